"""The life of a network by what its operator types: real daemons, and the command line alone."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

from shadowmesh.netlab import wait_until
from shadowmesh.network import trust
from tests.lab.network import PATIENCE_S, running_network

pytestmark = pytest.mark.netns

#: a recovery key of nobody
ANOTHER = trust.recovery_text(bytes(range(32)))


@pytest.fixture
def network(directory, request):
    with running_network(directory / request.node.name) as network:
        yield network


def typed(daemon, *words, code=0, text=None):
    """What a command prints, with the exit code that it has to have."""
    done = daemon.cli(*words, text=text)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + (done.stderr if code else "")


def recovery_key_of(said):
    return re.search(r"^recovery +(\S+)$", said, re.MULTILINE)[1]


def join(network, name, *words):
    """Let a fresh machine join by an invitation that the hub's operator sends."""
    token = typed(network["hub"], "invite", name, *words).strip()
    daemon = network.machine(name)
    announce = ("--announce", daemon.host.peer_endpoint)
    said = typed(daemon, "join", "-", "--yes", *announce, text=token)
    assert re.search(rf"joined home as {name}, 10\.77\.0\.\d+, connected to \d peer", said)
    return daemon


def assert_all_talk(network, *names):
    for one in names:
        for other in names:
            if one != other:
                typed(network[one], "wait", "--peer", other, "--timeout", "30s")
                answers = partial(network[one].host.ping, network.address(other), count=3)
                # An address may have been another's, whom a kernel asks first for some seconds.
                wait_until(lambda answers=answers: answers().complete, PATIENCE_S, "an answer")


def test_a_network_lives_by_what_is_typed(network):
    hub = network.machine("hub")
    made = typed(hub, "network", "create", "home", "--as", "hub", "--subnet", "10.77.0.0/24",
                 "--address", hub.host.peer_endpoint)  # fmt: skip
    key = recovery_key_of(made)
    laptop, nas = join(network, "laptop"), join(network, "nas")
    assert_all_talk(network, "hub", "laptop", "nas")

    told = typed(laptop, "relays").splitlines()
    assert told[0].split() == ["NAME", "ADDRESS", "SESSION", "RTT", "HOME"]
    assert re.fullmatch(rf"hub +{re.escape(hub.host.peer_endpoint)} +yes +.* home", told[1])
    assert told[-1].startswith("home is hub: ")
    assert json.loads(typed(hub, "relays", "--json"))["relays"] == []

    first = sessions(hub)
    assert "the network has secret 2" in typed(hub, "network", "secret", "rotate", "--yes")
    assert "not have the ledger" in typed(laptop, "network", "secret", "rotate", "--yes", code=1)
    before = authorities(laptop)
    by_file = ("--yes", "--recovery-key-file", "-")
    assert "3 certificates issued" in typed(
        hub, "network", "authority", "replace", *by_file, text=key
    )
    wait_until(lambda: len(authorities(laptop)) == 2, PATIENCE_S, "the new authority")
    wait_until(lambda: len(authorities(nas)) == 2, PATIENCE_S, "the new authority")
    said = typed(hub, "network", "authority", "drop", *by_file, text=key)
    assert "out of the network" not in said
    for one in (laptop, nas):
        wait_until(lambda one=one: len(authorities(one)) == 1, PATIENCE_S, "the end of the first")
        assert authorities(one) != before
    assert_all_talk(network, "hub", "laptop", "nas")
    assert sessions(hub) == first, "no session with the relay ended"

    assert "secret rotate" in typed(hub, "peer", "remove", "nas", "--yes")
    wait_until(lambda: "nas" not in laptop.peers(), 5, "the end at the laptop")
    assert "has secret 3" in typed(hub, "network", "secret", "rotate", "--yes")
    assert_all_talk(network, "hub", "laptop")
    # Whoever joins now gets the third secret, of the second authority.
    join(network, "desk")
    assert_all_talk(network, "hub", "laptop", "desk")

    assert "`shadowmesh leave`" in typed(laptop, "network", "delete", "--yes", code=1)
    assert typed(laptop, "leave", "--yes").startswith("left home, ")
    assert typed(hub, "network", "delete", "--yes").startswith("left home, ")
    assert "no network" in typed(hub, "network", "show", code=1)
    assert key not in hub.log()


def test_a_wrong_recovery_key_replaces_nothing_and_stands_nowhere(network):
    hub = network.machine("hub")
    typed(hub, "network", "create", "home", "--address", hub.host.peer_endpoint)
    before = authorities(hub)
    replace = ("network", "authority", "replace", "--yes", "--recovery-key-file", "-")
    mistyped = "smr1-" + "-".join(["aaaa"] * 14)
    for text, code, why in (
        (mistyped, 2, "mistyped"), ("x", 2, "characters behind smr1-"), ("k" * 4000, 1, "more than 1024 bytes"), ("k" * 900, 2, "longer than"),
        (ANOTHER, 1, "not the recovery key of this network"), ("", 1, "no recovery key"),
    ):  # fmt: skip
        said = typed(hub, *replace, code=code, text=text)
        assert why in said
        assert not text or len(text) < 2 or text not in said + hub.log()
    assert "none to drop" in typed(
        hub,
        "network",
        "authority",
        "drop",
        "--yes",
        "--recovery-key-file",
        "-",
        text=ANOTHER,
        code=1,
    )
    assert authorities(hub) == before


def test_an_authority_that_is_dropped_at_once_takes_nobodys_relay_away(network):
    hub = network.machine("hub")
    key = recovery_key_of(
        typed(hub, "network", "create", "home", "--as", "hub", "--address", hub.host.peer_endpoint)
    )
    network.join("laptop")
    network.await_session("laptop", "hub")
    for what in ("replace", "drop"):
        code, said = hub.api("POST", f"/network/authority/{what}", {"recovery_key": key})
        assert code == 200, said
    assert said["out"] == []
    laptop = network["laptop"]
    wait_until(lambda: authorities(laptop) == authorities(hub), PATIENCE_S, "the new authority")
    assert_all_talk(network, "hub", "laptop")
    laptop.kill()
    laptop.start()
    assert_all_talk(network, "hub", "laptop")


def test_members_are_meant_by_their_names(network):
    network.found()
    hub, laptop = network["hub"], network.join("laptop")
    nas = network.join("nas", announce=["198.51.100.3:9001"])
    assert nas.host.peer_endpoint == "198.51.100.3:9001"
    desk = network.join("desk")
    for name in ("hub", "nas"):
        assert typed(laptop, "wait", "--for", "connected", "--peer", name) == "connected\n"
        assert "2 probes, 2 answered" in typed(laptop, "ping", name, "-c", "2")
        assert f"a frame is delivered to {name} over" in typed(laptop, "explain", name)
        assert f"disconnected from {name}" in typed(laptop, "disconnect", name)
        said = typed(laptop, "explain", name, code=5)
        assert f"do: `shadowmesh connect {name}`" in said
        assert f"connected to {name} over" in typed(laptop, "connect", name)
    laptop.host.popen(
        "ping", "-i", "0.2", "-c", "25", network.address("nas"), log=network.directory / "ping.log"
    )
    assert "ICMP echo" in typed(laptop, "capture", "--peer", "nas", "-c", "1", "--duration", "5s")

    # Nobody has an address of the other.
    said = typed(laptop, "explain", "desk", code=5)
    assert "desk: it announces no address where it could be dialled, and has not come" in said
    assert "do: set mesh.announce, on either side" in said
    assert typed(laptop, "explain", network.address("desk"), code=5)
    assert "no session with desk" in typed(laptop, "ping", "desk", "-c", "1", code=5)
    assert "desk announces no address" in typed(laptop, "connect", "desk", code=1)
    assert "(waiting_for_peer)" in typed(
        laptop, "wait", "--peer", "desk", "--timeout", "1s", code=6
    )
    assert "connected to desk over" in typed(laptop, "connect", "desk", desk.host.peer_endpoint)
    assert "1 answered" in typed(laptop, "ping", "desk", "-c", "1")

    # Nobody, and this machine itself; one that is not there yet may come.
    for words, code in ((["ping", "-c", "1"], 1), (["explain"], 2), (["capture", "--peer"], 1),
                        (["disconnect"], 1), (["peers"], 1)):  # fmt: skip
        assert "did you mean" in typed(laptop, *words, "nass", code=code)
        assert "this machine itself" in typed(laptop, *words, "laptop", code=code)
    assert 'no peer "tv"' in typed(hub, "wait", "--peer", "tv", "--timeout", "1s", code=6)


def authorities(daemon):
    return daemon.network()["authorities"]


def sessions(daemon):
    """When its sessions were established."""
    return {name: peer["session"]["established_at"] for name, peer in daemon.peers().items()}
