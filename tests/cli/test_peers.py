"""The commands about several peers: what is printed, what is asked, the exit codes."""
# ruff: noqa: F811

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from click.shell_completion import ShellComplete
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.cli import client, render, render_peers
from shadowmesh.cli.program import program
from shadowmesh.cli.settings import Settings
from tests.cli.test_program import (  # noqa: F401
    NOBODY,
    assert_failed,
    control,
    run,
    served,
    token_file,
)
from tests.control.fake_control import AT_HOME, CONNECTED, FDB, HOME, MANY, MESH, NOW


@pytest.fixture
def mesh(control):
    """A daemon with three peers."""
    control.mesh, control.fdb, control.snapshot = MESH, FDB, MANY
    return control


def test_the_table_has_a_line_for_each_peer(run, mesh):
    result = run("peers")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "NAME    ADDRESS            PATH                      RTT       IN      OUT  CIPHER     SEEN",
        "nas     10.0.0.3           udp 203.0.113.7:9001  0.84 ms  3.0 GiB  1.0 MiB  aegis-256  now",
        "lab     198.51.100.9:9001  error                       -      0 B      0 B  -          3m 0s ago",
        "laptop  10.0.0.5           waiting                     -      0 B      0 B  -          never",
        "1 of 3 peers connected, 1 over UDP",
    ]


def test_of_a_pair_the_table_has_one_line(run):
    assert run("peers").stdout.splitlines()[1].startswith("peer ")


def test_a_peer_is_told_in_full(run, mesh):
    result = run("peers", "nas")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "peer      nas",
        "          public key dGhlIHBlZXIncyBwdWJsaWMga2V5LCAzMiBieXRlcyE=",
        "state     connected for 2m 13s",
        "path      udp, 0.84 ms round trip: hole punched",
        "          * udp 203.0.113.7:9001, host, 0.84 ms, 0 % lost, datagrams of 1392 bytes",
        "            wss 203.0.113.7:9001, 0.90 ms",
        "security  aegis-256, post-quantum yes, TLS direct",
        "session   established 2m 12s ago, 1 rekey, last 12s ago",
        "link      203.0.113.7:9001 up for 2m 12s, 0 reconnects",
        "address   dialled at 203.0.113.7:9001, in the tunnel 10.0.0.3, fd00::3",
        "traffic   in   12,345 frames  3.0 GiB",
        "          out  12,001 frames  1.0 MiB",
        "drops     replay 2",
        "behind it 02:5e:00:00:00:03 its own device",
        "          52:54:00:12:34:56 heard 3s ago, VLAN 20",
    ]


def test_a_peer_that_is_not_connected_exits_with_5_and_says_why(run, mesh):
    result = run("peers", "lab")
    assert result.exit_code == 5
    assert "error     no route to host (4s ago)" in result.stdout
    assert "retry     in 4s" in result.stdout
    assert "seen      3m 0s ago" in result.stdout


@pytest.mark.parametrize(
    "command",
    [["peers", "nsa"], ["wait", "--peer", "nsa", "--timeout", "1s"]],
    ids=lambda command: command[0],
)
def test_a_name_that_nobody_has_is_an_error(run, mesh, command):
    assert_failed(run(*command), 1, 'no peer "nsa"')


def test_the_table_of_the_switch(run, mesh):
    assert run("fdb").stdout.splitlines() == [
        "MAC                VLAN  PEER       AGE  KIND     MOVES",
        "02:5e:00:00:00:03   all  nas          -  static       0",
        "52:54:00:12:34:56    20  nas         3s  learned      1",
        "02:00:00:00:00:01     -  this host   2s  learned      0",
        "3 addresses",
    ]


def test_a_known_name_wins_over_a_host(run, mesh):
    result = run("connect", "nas")
    assert (result.exit_code, mesh.calls[0]) == (0, ("connect", "None", "nas"))
    assert result.stdout == "connected to nas over udp (aegis-256, post-quantum)\n"


def test_another_word_is_a_host(run, mesh):
    assert run("connect", "elsewhere").exit_code == 0
    assert mesh.calls == [("connect", "elsewhere:9001")]


def test_a_name_may_have_an_address_for_once(run, mesh):
    result = run("connect", "laptop", "198.51.100.7")
    assert mesh.calls[0] == ("connect", "198.51.100.7:9001", "laptop"), result.output


@pytest.mark.parametrize(
    "words", [["a:1", "b:1"], ["198.51.100.7", "b:1"], ["NAS", "b:1"], ["nas", "b:x"], ["nas", ""]]
)
def test_before_an_address_a_name_may_stand_and_nothing_else(run, mesh, words):
    assert_failed(run("connect", *words), 2, "shadowmesh connect --help")
    assert mesh.calls == []


def test_connect_without_a_name_says_how_many_are_here(run, mesh, monkeypatch):
    monkeypatch.setattr(mesh, "connect", lambda peer, name: MANY)
    assert run("connect").stdout == "connected to 1 of 3 peers\n"


def test_disconnect_ends_one_or_all(run, mesh, monkeypatch):
    assert run("disconnect", "nas").stdout == (
        "disconnected from nas\nnas is refused until `shadowmesh connect nas`\n"
    )
    assert mesh.calls == [("disconnect", "nas")]
    held = dataclasses.replace(MANY, state="disconnected", held=True)
    monkeypatch.setattr(mesh, "disconnect", lambda name: held)
    assert run("disconnect").stdout == (
        "disconnected\nall peers are refused until `shadowmesh connect`\n"
    )


def test_ping_asks_for_the_one_that_is_named(run, mesh):
    assert run("ping", "nas", "-c", "1").exit_code == 0
    assert mesh.calls == [("ping", "1", "nas")]


def test_wait_looks_at_one_peer(run, mesh):
    assert run("wait", "--peer", "nas", "--timeout", "1s").stdout == "connected\n"
    assert run("wait", "--peer", "nas", "--for", "udp", "--timeout", "1s").exit_code == 0
    late = run("wait", "--peer", "lab", "--timeout", "10ms")
    assert_failed(late, 6, "the state is error", "no route to host")


def test_in_a_network_a_member_that_is_not_known_yet_is_waited_for(run, mesh):
    mesh.joined, known = HOME, mesh.mesh
    mesh.mesh, looks = (), []

    def look():
        looks.append(1)
        mesh.mesh = known if len(looks) > 2 else ()

    mesh.before = look
    assert run("wait", "--peer", "nas", "--timeout", "10s").stdout == "connected\n"
    late = run("wait", "--peer", "nsa", "--timeout", "10ms")
    assert_failed(late, 6, 'there is no peer "nsa"')


def test_all_are_on_the_direct_path_when_every_session_is(run, mesh):
    assert run("wait", "--for", "udp", "--timeout", "1s").exit_code == 0
    mesh.snapshot = dataclasses.replace(MANY, peers=dataclasses.replace(MANY.peers, sessions=2))
    assert run("wait", "--for", "udp", "--timeout", "10ms").exit_code == 6


def test_explain_takes_a_name_and_says_what_it_may_be(run, mesh):
    mesh.snapshot = CONNECTED
    result = run("explain", "nas")
    assert result.exit_code == 0
    assert mesh.calls == [("explain", "None", "nas")]
    assert "ok    connection  nas: connected to 203.0.113.7:9001" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("a frame is delivered to nas over udp")
    assert_failed(run("explain", "nsa"), 2, "neither a MAC", "nor the name of a peer")


def test_the_status_of_many_is_short(run, mesh):
    mesh.snapshot = dataclasses.replace(MANY, now=NOW)
    lines = run("status").stdout.splitlines()
    assert lines[:4] == [
        "state     connected for 2m 13s",
        "error     lab: no route to host (4s ago)",
        "retry     in 4s",
        "peers     1 of 3 connected, 1 over UDP; `shadowmesh peers` shows each",
    ]
    many = dataclasses.replace(MANY, peers=dataclasses.replace(MANY.peers, known=50))
    assert len(render.render(many.to_dict(), NOW).splitlines()) == len(lines)


def test_the_status_of_a_member_has_two_lines_of_its_network(run, mesh):
    mesh.snapshot = dataclasses.replace(MANY, now=NOW, network=AT_HOME)
    lines = run("status").stdout.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("network"))
    assert lines[at : at + 2] == [
        "network   home as laptop, 10.77.0.2, fd42::2, relay, 3 members known",
        (
            "          relay nas (no session), home relay server at vpn.example.com:443 (connected),"
            " list 3 made 1m 0s ago, certificate until 2045-12-28"
        ),
    ]


def test_a_mesh_that_is_held_says_how_it_is_let_in_again():
    held = dataclasses.replace(MANY, state="disconnected", held=True)
    lines = render.render(held.to_dict(), NOW).splitlines()
    assert lines[1].strip() == "all peers are refused until `shadowmesh connect`"


# --- Completion ---------------------------------------------------------------------------------


def completions(settings, *words, incomplete=""):
    shell = ShellComplete(program, {"obj": settings}, "shadowmesh", "_SHADOWMESH_COMPLETE")
    return [item.value for item in shell.get_completions(list(words), incomplete)]


@pytest.fixture
def settings(served, token_file):
    return Settings(api=f"http://{served}", token_file=token_file)


@pytest.mark.parametrize(
    "words", [["peers"], ["connect"], ["disconnect"], ["ping"], ["explain"], ["wait", "--peer"]],
    ids=" ".join,
)  # fmt: skip
def test_the_shell_completes_the_names_of_peers(settings, mesh, words):
    assert completions(settings, *words) == ["nas", "lab", "laptop"]
    assert completions(settings, *words, incomplete="la") == ["lab", "laptop"]


def test_without_a_daemon_there_is_nothing_to_complete(token_file):
    assert completions(Settings(api=NOBODY, token_file=token_file), "peers") == []


def test_the_shell_does_not_wait_long(settings, monkeypatch):
    asked = []
    monkeypatch.setattr(
        client.ApiClient, "peers", lambda _self, timeout_s: asked.append(timeout_s) or {"peers": []}
    )
    completions(settings, "peers")
    assert asked == [1.0]


# --- What comes from outside --------------------------------------------------------------------


def test_what_a_peer_says_cannot_move_the_cursor():
    evil = "\x1b[2Jgone\r\n\u202eforged"
    told = dict.fromkeys(MESH[0].to_dict(), evil) | {"counters": {"dropped": {evil: 1}}}
    told |= {"tunnel_ips": [evil], "macs": [{"mac": evil, "vlan": evil, "peer": evil}]}
    shown = [
        render_peers.render_peer(told, NOW), render_peers.render_peers([told], NOW),
        render_peers.render_table(told["macs"]),
    ]  # fmt: skip
    for text in shown:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert "\x1b" not in plain
        assert "\r" not in plain
        assert "\u202e" not in plain


#: what may be null or of nothing, as a daemon of another version may leave it
HOLES = st.none() | st.just({}) | st.just([])


@given(st.dictionaries(st.sampled_from(sorted(MESH[0].to_dict())), HOLES))
def test_a_peer_with_holes_is_shown_all_the_same(peer):
    assert render_peers.render_peers([peer, None], NOW).startswith("NAME ")
    assert render_peers.render_peer(peer, NOW).startswith("peer ")


def test_the_json_is_what_the_daemon_says(run, mesh):
    assert json.loads(run("--json", "peers").stdout)["peers"] == [one.to_dict() for one in MESH]
    assert json.loads(run("fdb", "--json").stdout) == {
        "schema": 1, "entries": [entry.to_dict() for entry in FDB],
    }  # fmt: skip
