"""Tests of one identity on two machines. Source: mesh-rules D2."""

from __future__ import annotations

import pytest

from shadowmesh.network.twins import TOLD_S, WITHIN_S, Twins

KEY, OTHER = b"k" * 32, b"o" * 32


def show(twins, boots, *, every_s=2.0, key=KEY):
    """Sessions one after the other; whether the last one is of a twin."""
    found = False
    for number, boot in enumerate(boots):
        found = twins.shown(key, boot.encode() * 16, f"{boot}:1", number * every_s)
    return found


def test_two_machines_that_throw_each_other_out_are_found_and_both_places_told():
    twins = Twins()
    assert show(twins, "ABAB")
    assert set(twins.sources(KEY, 6.0)) == {"A:1", "B:1"}
    assert twins.found(6.0) == (KEY,)
    assert twins.found(6.0 + TOLD_S + 1) == ()


@pytest.mark.parametrize("boots", ["A", "AAAAAAAA", "ABA", "ABBB", "ABCDEFGH", "AABBCCDD"])
def test_who_roams_or_restarts_again_and_again_is_one_machine(boots):
    assert not show(Twins(), boots)


def test_changes_far_apart_say_nothing():
    assert not show(Twins(), "ABABABAB", every_s=WITHIN_S / 2 + 1)


def test_each_key_stands_for_itself_and_is_forgotten_with_its_member():
    twins = Twins()
    assert show(twins, "ABAB")
    assert not show(twins, "A", key=OTHER)
    twins.keep({OTHER})
    assert twins.found(6.0) == ()
    assert not show(twins, "A")
