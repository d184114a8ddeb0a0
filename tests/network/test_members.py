"""Tests of who owns what. Source: mesh-rules C5, D1."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import BadCertificate
from shadowmesh.keys import sodium
from shadowmesh.network.authority import make_authority
from shadowmesh.network.certificate import Profile
from shadowmesh.network.members import Change, Members
from tests.words import faults

NOW = datetime(2026, 12, 1, tzinfo=UTC)
HOME = make_authority("home", NOW)
END = HOME.authority.not_after


def made(number, name, address="", begin=0):
    addresses = (ip_address(address),) if address else ()
    key = sodium.public_key(bytes([number]) * 32)
    profile = Profile(name, "home", addresses=addresses)
    return HOME.issue(profile, key, NOW + timedelta(seconds=begin), END)


def test_a_member_is_found_by_all_that_is_its_own():
    members = Members()
    laptop = made(1, "laptop", "10.77.0.2")
    assert members.take(laptop) is Change.NEW
    assert members.take(laptop) is Change.KNOWN
    for kind, value in (("node id", laptop.node_id), ("MAC address", laptop.mac),
                        ("name", "laptop"), ("address", laptop.addresses[0])):  # fmt: skip
        assert members.owner(kind, value) == laptop
    members.drop(laptop.public_key)
    assert members.owner("name", "laptop") is None
    assert list(members) == []


def test_of_two_certificates_for_one_key_the_later_counts_in_any_order():
    old, new = made(1, "laptop"), made(1, "desk", begin=1)
    members = Members()
    assert [members.take(one) for one in (old, new, old)] == [
        Change.NEW, Change.RENEWED, Change.OLDER,
    ]  # fmt: skip
    assert members.owner("name", "laptop") is None
    assert members.owner("name", "desk") == new


@pytest.mark.parametrize("shared", ["name", "address"])
def test_who_had_it_first_keeps_it_whoever_is_met_first(shared):
    first = made(1, "laptop", "10.77.0.2")
    second = made(2, "laptop" if shared == "name" else "nas",
                  "10.77.0.2" if shared == "address" else "10.77.0.3", begin=1)  # fmt: skip
    members = Members()
    members.take(first)
    with pytest.raises(BadCertificate, match=f"same {shared}") as refused:
        members.take(second)
    assert refused.value.kind == "clash"
    assert not faults(str(refused.value))
    other = Members()
    other.take(second)
    assert other.take(first) is Change.WON
    assert list(other) == list(members) == [first]


def test_with_one_date_the_smaller_key_owns_it():
    one, other = made(1, "laptop"), made(2, "laptop")
    smaller = min(one, other, key=lambda certificate: certificate.public_key)
    for order in ((one, other), (other, one)):
        members = Members()
        for certificate in order:
            with contextlib.suppress(BadCertificate):
                members.take(certificate)
        assert list(members) == [smaller]


def test_a_table_is_bounded():
    members = Members(most=1)
    members.take(made(1, "laptop"))
    with pytest.raises(BadCertificate) as refused:
        members.take(made(2, "nas"))
    assert refused.value.kind == "full"


def test_what_a_new_list_names_is_forgotten_with_its_reason():
    members = Members()
    for number, name in enumerate(("laptop", "nas"), 1):
        members.take(made(number, name))

    def check(certificate):
        if certificate.name == "nas":
            raise BadCertificate("nas was removed", "revoked")

    ((gone, reason),) = members.sift(check)
    assert (gone.name, reason.kind) == ("nas", "revoked")
    assert [one.name for one in members] == ["laptop"]


def test_a_certificate_that_nobody_verified_is_our_bug():
    with pytest.raises(AssertionError):
        Members().take(replace(made(1, "laptop"), issuer_key_id=b""))


POOL = [made(n, name, f"10.77.0.{a}", b) for n, name, a, b in
        ((1, "a", 1, 0), (1, "b", 1, 5), (2, "a", 2, 1), (2, "c", 1, 3), (3, "b", 3, 2))]  # fmt: skip


@given(st.lists(st.sampled_from(POOL), max_size=12))
def test_no_two_members_ever_share_anything(certificates):
    members = Members()
    for one in certificates:
        with contextlib.suppress(BadCertificate):
            members.take(one)
        found = list(members)
        for what in (lambda c: [c.public_key], lambda c: [c.name], lambda c: c.addresses):
            values = [value for certificate in found for value in what(certificate)]
            assert len(set(values)) == len(values)
        assert all(members.owner("name", one.name) == one for one in found)
