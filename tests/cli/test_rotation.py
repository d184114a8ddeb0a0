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


# --- relays ----------------------------------------------------------------------------------------


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


# --- secret ----------------------------------------------------------------------------------------


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


# --- the end ---------------------------------------------------------------------------------------


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


# --- join ------------------------------------------------------------------------------------------


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
