"""The commands about a network that goes on: its relays, its secret, its authority, and its end."""
# ruff: noqa: F811

from __future__ import annotations

import dataclasses
import json

import pytest

from shadowmesh.base import errors
from shadowmesh.insight import network
from tests.cli.test_network import (  # noqa: F401
    asked,
    assert_failed_after_progress,
    briefly,
    home,
    terminal,
)
from tests.cli.test_program import assert_failed, control, run, served, token_file  # noqa: F401
from tests.control.fake_control import HOME
from tests.control.fake_rotation import AUTHORITY

KEY = "smr1-one-two-three"
NEXT = (
    "next: once `shadowmesh peers` has shown everybody connected,"
    " `shadowmesh network authority drop` ends the one before"
)
WITH_KEY = (["network", "authority", "replace"], ["network", "compact"],
            ["network", "authority", "drop"])  # fmt: skip


@pytest.fixture
def key_file(tmp_path):
    """A recovery key as somebody keeps it."""
    path = tmp_path / "recovery"
    path.touch(0o600)
    path.write_text(f"{KEY}\nof the network at home\n")
    return path


@pytest.fixture
def two(home):
    """A network with two authorities."""
    home.rotating.trusted = 2
    return home


# --- relays -----------------------------------------------------------------------------------


def test_relays_are_a_table_and_why_one_of_them_is_home(run, home, monkeypatch):
    far = network.MeasuredRelay("far", None, session=False, rtt_ms=None, home=False)
    near = network.MeasuredRelay("near", "vpn.example.com:443", session=True, rtt_ms=8.1, home=True)
    told = network.Relays((far, near), "the nearest")
    monkeypatch.setattr(home, "relays", lambda: told)
    assert run("relays").stdout.splitlines() == [
        "NAME  ADDRESS              SESSION      RTT  HOME",
        "far   -                    no             -  -",
        "near  vpn.example.com:443  yes      8.10 ms  home",
        "home is near: the nearest",
    ]


def test_without_another_relay_none_is_home(run, home, monkeypatch):
    why = "there is no session with any relay"
    monkeypatch.setattr(home, "relays", lambda: network.Relays((), why))
    assert run("relays").stdout == f"no other relay is known\nno home: {why}\n"


def test_a_relay_cannot_move_the_cursor(run, home, monkeypatch):
    evil = network.MeasuredRelay("\x1b[2J", "\x1b[2J", session=True, rtt_ms=1, home=True)
    monkeypatch.setattr(home, "relays", lambda: network.Relays((evil,), "\x1b[2J"))
    assert "\x1b" not in run("relays").stdout


def test_without_a_network_there_are_no_relays(run):
    assert_failed(run("relays"), 1, "no network")


# --- secret -----------------------------------------------------------------------------------


def test_another_secret_is_asked_for_and_told_by_its_number(run, home, terminal):
    result = run("network", "secret", "rotate", input="y\n")
    assert result.stdout.splitlines() == [
        "the network has secret 2; 1 counts beside it until the next one",
        "a member that is away for two rotations asks for it by itself when it is back",
    ]
    assert "give the network another secret? [y/N]" in result.stderr


def test_who_does_not_say_yes_keeps_the_secret(run, home, terminal):
    result = run("network", "secret", "rotate", input="n\n")
    assert_failed_after_progress(result, 1, "the secret is the one of before")
    assert home.calls == []


def test_without_a_terminal_another_secret_needs_a_yes(run, home):
    assert_failed(run("network", "secret", "rotate"), 2, "--yes")
    assert run("network", "secret", "rotate", "--yes").exit_code == 0


def test_a_removal_names_what_makes_the_secret_worthless(run, home):
    assert "`shadowmesh network secret rotate`" in run("peer", "remove", "nas", "--yes").stdout


# --- authority --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", WITH_KEY)
def test_the_recovery_key_is_typed_without_an_echo(run, two, terminal, words):
    result = run(*words, input=f"y\n{KEY}\n")
    assert result.exit_code == 0, result.output
    assert "recovery key:" in result.stderr
    assert KEY not in result.output
    assert two.calls[-1][1:] == (KEY,)


@pytest.mark.parametrize("words", WITH_KEY)
def test_the_recovery_key_comes_from_the_first_line_of_a_file(run, two, key_file, words):
    for place in (key_file, "-"):
        two.rotating.trusted = 2
        result = run(*words, "--yes", "--recovery-key-file", place, input=f"{KEY}\r\n\n")
        assert result.exit_code == 0, result.output
        assert two.calls[-1][1:] == (KEY,)
        assert "chmod" not in result.stderr
    key_file.chmod(0o640)
    two.rotating.trusted = 2
    assert "chmod 600" in run(*words, "--yes", "--recovery-key-file", key_file).stderr


@pytest.mark.parametrize("words", WITH_KEY)
def test_a_recovery_key_that_cannot_be_had_is_told_before_anybody_is_asked(
    run, two, tmp_path, words
):
    assert_failed(run(*words), 2, "--yes")
    assert_failed(run(*words, "--yes"), 2, "no terminal", "--recovery-key-file")
    assert_failed(run(*words, "--yes", KEY), 2)
    assert two.calls == []
    empty = tmp_path / "empty"
    for content in (b"", b"\n", b"\r\n" + KEY.encode(), b"\xff" + KEY.encode()):
        empty.write_bytes(content)
        empty.chmod(0o600)
        result = run(*words, "--yes", "--recovery-key-file", empty)
        assert result.exit_code == 1
        assert "there is no recovery key on the first line" in result.stderr
        assert KEY not in result.output
    for place, code in ((tmp_path / "none", 2), (tmp_path, 1)):
        assert run(*words, "--yes", "--recovery-key-file", place).exit_code == code
    assert [call for call in two.calls if call[0] != "peers"] == []


def test_of_a_file_without_an_end_a_part_is_read(run, home):
    result = run(*WITH_KEY[0], "--yes", "--recovery-key-file", "/dev/zero")
    assert_failed_after_progress(result, 1, "is not what is meant")
    assert home.calls == []


@pytest.mark.parametrize("words", WITH_KEY)
def test_a_recovery_key_that_is_refused_is_not_repeated(run, two, key_file, words):
    two.error = errors.BadRequest("this recovery key is mistyped")
    result = run(*words, "--yes", "--recovery-key-file", key_file)
    assert "error: this recovery key is mistyped" in result.stderr
    assert result.exit_code == 2
    assert KEY not in result.output


def test_a_recovery_key_that_is_far_too_long_is_refused_by_the_daemon(run, two):
    result = run(*WITH_KEY[0], "--yes", "--recovery-key-file", "-", input="k" * 200)
    assert_failed(result, 2, "longer than 128 characters")
    assert two.calls == []


def test_a_new_authority_is_told_with_what_comes_next(run, home, key_file):
    said = run(*WITH_KEY[0], "--yes", "--recovery-key-file", key_file).stdout.splitlines()
    assert said == [
        f"the new authority is {AUTHORITY}",
        "3 certificates issued; members that are connected have theirs within seconds",
        "1 open invitation was cancelled: invite anew",
        NEXT,
    ]
    home.invited = ()
    said = run(*WITH_KEY[1], "--yes", "--recovery-key-file", key_file).stdout.splitlines()
    assert len(said) == 3
    assert said[-1].endswith("ends the list before")


@pytest.mark.parametrize("words", WITH_KEY)
def test_who_does_not_say_yes_keeps_the_authority_and_types_no_key(run, two, terminal, words):
    result = run(*words, input="n\n")
    assert result.exit_code == 1
    assert "nothing was changed" in result.stderr
    assert "recovery key" not in result.stderr.splitlines()[-1]
    assert two.rotating.trusted == 2


def test_before_an_authority_is_dropped_who_may_be_out_is_named(run, two, key_file):
    two.rotating.out = ("lab",)
    result = run(*WITH_KEY[2], "--yes", "--recovery-key-file", key_file)
    assert "warning: lab and laptop are not connected to this machine now" in result.stderr
    assert result.stdout.splitlines() == [
        f"the network trusts {AUTHORITY} alone",
        "lab is out of the network",
    ]
    assert_failed_after_progress(
        run(*WITH_KEY[2], "--yes", "--recovery-key-file", key_file), 1, "none to drop"
    )


def test_of_many_that_may_be_out_some_are_named(run, two, key_file):
    away = two.mesh[-1]
    two.mesh = tuple(dataclasses.replace(away, name=f"m{n}") for n in range(40))
    result = run(*WITH_KEY[2], "--yes", "--recovery-key-file", key_file)
    assert "m9 and 30 more are not connected" in result.stderr
    two.mesh, two.rotating.trusted = two.mesh[:0], 2
    assert run(*WITH_KEY[2], "--yes", "--recovery-key-file", key_file).stderr == ""


# --- the end ----------------------------------------------------------------------------------


def test_deleting_a_network_is_asked_for_after_what_it_means(run, home, terminal):
    result = run("network", "delete", input="y\n")
    assert result.exit_code == 0, result.output
    assert "warning: nobody can be invited to home or removed from it any more" in result.stderr
    assert "2 other members can talk until they leave" in result.stderr
    assert "delete home? [y/N]" in result.stderr
    assert result.stdout.startswith("left home, ")
    assert home.joined is None


def test_who_does_not_say_yes_keeps_the_network(run, home, terminal):
    assert_failed_after_progress(run("network", "delete", input="\n"), 1, "still in home")
    assert home.joined is HOME


def test_a_network_is_deleted_where_it_was_made(run, home):
    assert_failed(run("network", "delete"), 2, "--yes")
    home.joined = dataclasses.replace(HOME, issuer=False)
    assert_failed(run("network", "delete", "--yes"), 1, "another machine", "`shadowmesh leave`")
    home.joined = None
    assert_failed(run("network", "delete", "--yes"), 1, "nothing to delete")
    assert asked(home, "leave") == []


def test_the_machine_that_made_the_network_leaves_it_with_a_yes_only(run, home, terminal):
    result = run("leave", input="y\n")
    assert_failed(result, 1, "nobody can be invited", "`shadowmesh network delete`", "--yes")
    assert asked(home, "leave") == []
    assert json.loads(run("--json", "leave").stdout)["error"]["code"] == "issuer_needed"
    assert run("leave", "--yes").exit_code == 0


# --- join -------------------------------------------------------------------------------------


def test_who_joins_may_say_where_it_is_dialled(run, control):
    from tests.cli.test_network import INVITATION

    words = ["--announce", "nas.example", "--announce", "[2001:db8::1]:443"]
    assert run("join", INVITATION, "--yes", *words).exit_code == 0
    for call in asked(control, "join"):
        assert call[-2:] == ("nas.example:9001", "[2001:db8::1]:443")


@pytest.mark.parametrize("place", ["", "nas:x", "nas:0", "a b"])
def test_a_place_where_nobody_can_be_dialled_is_asked_of_nobody(run, control, place):
    from tests.cli.test_network import INVITATION

    assert_failed(run("join", INVITATION, "--yes", "--announce", place), 2, "--announce")
    assert control.calls == []
