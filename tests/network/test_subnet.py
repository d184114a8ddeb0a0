"""Tests of the addresses of a network. Source: mesh section 2, mesh-rules B4."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import IssuerRefused
from shadowmesh.network import subnet as subnets
from tests.words import faults

HOME = ip_network("10.77.0.0/24")


def test_a_random_subnet_is_a_24_of_ten():
    assert subnets.choose([], b"\x4d\x05") == ip_network("10.77.5.0/24")


@given(st.binary(min_size=2, max_size=2), st.lists(st.integers(0, (1 << 24) - 1), max_size=8))
def test_a_random_subnet_overlaps_nothing_taken(random, starts):
    taken = [ip_network(((10 << 24) | start, 20), strict=False) for start in starts]
    chosen = subnets.choose([*taken, ip_network("fd00::/8")], random)
    assert not any(chosen.overlaps(one) for one in taken)


def test_without_a_free_subnet_one_has_to_be_named():
    with pytest.raises(IssuerRefused, match="--subnet"):
        subnets.choose([ip_network("10.0.0.0/8")], bytes(2))


def test_the_ipv6_prefix_is_unique_and_local():
    assert subnets.local_prefix(bytes.fromhex("0102030405")) == ip_network("fd01:203:405::/64")


def test_addresses_are_given_upwards_and_from_the_start_when_the_end_is_reached():
    given_: set = set()
    for number in range(1, 255):
        address = subnets.next_address(HOME, given_)
        assert address == ip_address(f"10.77.0.{number}")
        given_.add(address)
    with pytest.raises(IssuerRefused, match="every address"):
        subnets.next_address(HOME, given_)
    given_.remove(ip_address("10.77.0.9"))
    assert subnets.next_address(HOME, given_) == ip_address("10.77.0.9")


def test_a_hole_is_not_filled_while_there_is_room_above():
    assert subnets.next_address(HOME, {ip_address("10.77.0.7")}) == ip_address("10.77.0.8")


def test_what_others_had_is_given_last():
    small = ip_network("192.168.0.0/29")  # .1 to .6
    given_, before = {ip_address("192.168.0.1")}, {ip_address(f"192.168.0.{n}") for n in (2, 3, 4)}
    order = []
    for _ in range(5):
        address = subnets.next_address(small, given_, before)
        order.append(int(address) & 7)
        given_.add(address)
    assert order == [5, 6, 2, 3, 4]


def test_a_64_is_not_walked():
    prefix = ip_network("fd00::/64")
    assert subnets.next_address(prefix, {ip_address("fd00::ffff:ffff:ffff:ffff")}) == ip_address(
        "fd00::1"
    )


@given(st.sets(st.integers(0, 15)))
def test_a_given_address_is_never_given_again(numbers):
    small = ip_network("192.168.0.0/28")
    given_ = {small[number] for number in numbers}
    if len(numbers & set(range(1, 15))) == 14:
        with pytest.raises(IssuerRefused):
            subnets.next_address(small, given_)
    else:
        address = subnets.next_address(small, given_)
        assert address not in given_
        subnets.check_host([small], address)


@pytest.mark.parametrize("text", ["10.77.0.0", "10.77.0.255", "10.78.0.1", "fd00::1"])
def test_an_address_that_no_host_can_have_is_refused(text):
    with pytest.raises(IssuerRefused) as refused:
        subnets.check_host([HOME], ip_address(text))
    assert refused.value.reason == "address"
    assert not faults(str(refused.value))


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0/0", "::/0", "8.8.8.0/24", "10.0.0.0/7", "127.0.0.0/8", "169.254.0.0/16",
     "100.64.0.0/10", "2001:db8::/64", "fe80::/64", "10.0.0.0/31", "fd00::/128"],
)  # fmt: skip
def test_a_subnet_that_would_take_other_traffic_is_refused(text):
    reason = subnets.why_unusable(ip_network(text))
    assert reason is not None
    assert text in reason
    assert not faults(reason)


@pytest.mark.parametrize("text", ["10.77.0.0/24", "172.16.0.0/12", "192.168.1.0/30", "fd01::/64"])
def test_a_private_subnet_is_taken(text):
    assert subnets.why_unusable(ip_network(text)) is None


def test_a_subnet_that_this_machine_has_is_named_with_its_interface():
    own = [("lo", ip_network("127.0.0.0/8")), ("eth0", ip_network("10.77.0.128/25"))]
    reason = subnets.overlapping(HOME, own)
    assert reason is not None
    assert "eth0" in reason
    assert not faults(reason)
    assert subnets.overlapping(ip_network("10.78.0.0/24"), own) is None
    assert subnets.overlapping(ip_network("fd00::/64"), own) is None
