"""One line about a frame: tags with their numbers, types, and what a user looks for first."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shadowmesh.insight.frame_words import describe

MACS = bytes.fromhex("020000000002020000000001")
IP4 = bytes.fromhex("0a000001") + bytes.fromhex("0a000002")
IP6 = bytes.fromhex("fd00" + "00" * 13 + "01") + bytes.fromhex("fd00" + "00" * 13 + "02")


def ipv4(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    head = bytes((0x45, 0, 0, 20 + len(payload), 0, 0)) + fragment.to_bytes(2, "big")
    return b"\x08\x00" + head + bytes((64, protocol, 0, 0)) + IP4 + payload


def ipv6(following: int, payload: bytes) -> bytes:
    return b"\x86\xdd" + bytes((0x60, 0, 0, 0, 0, len(payload), following, 255)) + IP6 + payload


def arp(operation: int, sender: str = "0a000001", target: str = "0a000002") -> bytes:
    return (
        bytes.fromhex("0806000108000604") + operation.to_bytes(2, "big") + MACS[6:]
        + bytes.fromhex(sender) + bytes(6) + bytes.fromhex(target)
    )  # fmt: skip


PORTS = (40000).to_bytes(2, "big") + (22).to_bytes(2, "big")
SYN = PORTS + bytes(8) + bytes((0x50, 0x12)) + bytes(6)
NEIGHBOUR = bytes(7) + IP6[16:]
CASES = [
    (ipv4(1, b"\x08"), "IPv4", "10.0.0.1 > 10.0.0.2 ICMP echo request"),
    (ipv4(1, b"\x2a"), "IPv4", "10.0.0.1 > 10.0.0.2 ICMP type 42"),
    (ipv4(6, SYN), "IPv4", "10.0.0.1:40000 > 10.0.0.2:22 TCP SYN ACK"),
    (ipv4(17, PORTS), "IPv4", "10.0.0.1:40000 > 10.0.0.2:22 UDP"),
    (ipv4(17, PORTS, 0x2000), "IPv4", "10.0.0.1:40000 > 10.0.0.2:22 UDP"),
    (ipv4(17, PORTS, 0x00B9), "IPv4", "10.0.0.1 > 10.0.0.2 UDP, a later fragment"),
    (ipv4(6, SYN[:9]), "IPv4", "10.0.0.1:40000 > 10.0.0.2:22 TCP, cut short"),
    (ipv4(6, b"x"), "IPv4", "10.0.0.1 > 10.0.0.2 TCP, cut short"),
    (ipv4(99, b""), "IPv4", "10.0.0.1 > 10.0.0.2 protocol 99"),
    (b"\x08\x00" + b"echo" * 21, "IPv4", "no IPv4 header"),
    (b"\x08\x00" + b"\x45" * 19, "IPv4", "cut short"),
    (ipv6(58, b"\x87" + NEIGHBOUR), "IPv6", "fd00::1 > fd00::2 ICMPv6 asks for fd00::2"),
    (ipv6(58, b"\x88" + NEIGHBOUR), "IPv6", "fd00::1 > fd00::2 ICMPv6 fd00::2 is there"),
    (ipv6(58, b"\x86"), "IPv6", "fd00::1 > fd00::2 ICMPv6 router advertisement"),
    (ipv6(0, b"\x3a" + bytes(7) + b"\x8f"), "IPv6", "fd00::1 > fd00::2 ICMPv6 multicast report"),
    (ipv6(44, b"\x11\x00\x00\x08" + bytes(4)), "IPv6", "fd00::1 > fd00::2 UDP, a later fragment"),
    (ipv6(6, SYN), "IPv6", "[fd00::1]:40000 > [fd00::2]:22 TCP SYN ACK"),
    (arp(1), "ARP", "10.0.0.1 asks for 10.0.0.2"),
    (arp(1, target="0a000001"), "ARP", "10.0.0.1 announces itself"),
    (arp(2), "ARP", "10.0.0.1 is at 02:00:00:00:00:01"),
    (arp(2)[:20], "ARP", "cut short"),
    (b"\x88\xcc", "LLDP", ""),
    (b"\xab\xcd", "0xabcd", ""),
    (b"\x00\x26\x42\x42\x03", "802.3", "STP"),
    (b"\x81\x00\x60\x0c" + arp(1), "VLAN 12 ARP", "10.0.0.1 asks for 10.0.0.2"),
    (b"\x88\xa8\x00\x64\x81\x00\x0f\xfe\x88\xcc", "QinQ 100 VLAN 4094 LLDP", ""),
    (b"\x81\x00\x00\x0c", "VLAN 12", "cut short"),
    (b"\x81\x00", "VLAN", "cut short"),
    (b"\x81\x00\x00\x01" * 5 + b"\x88\xcc", "VLAN 1 VLAN 1 VLAN 1 VLAN 1 0x8100", ""),
]


@pytest.mark.parametrize(("behind", "kind", "detail"), CASES)
def test_a_frame_is_told_in_words(behind, kind, detail):
    words = describe(MACS + behind)
    assert (words.kind, words.detail) == (kind, detail)


def test_the_numbers_of_all_tags_are_told_the_outermost_first():
    words = describe(MACS + b"\x88\xa8\x00\x64\x81\x00\x0f\xfe" + arp(1))
    assert (words.vlans, words.ethertype) == ((100, 4094), 0x0806)


@given(st.binary(max_size=200) | st.builds(
    lambda case, cut, more: (MACS + case[0])[:cut] + more,
    st.sampled_from(CASES), st.integers(0, 90), st.binary(max_size=40),
))  # fmt: skip
@example(b"")
def test_any_bytes_have_words_of_one_printable_line(frame):
    words = describe(frame)
    assert words.kind.isprintable()
    assert words.detail.isprintable()
    assert len(words.kind) + len(words.detail) < 200
    assert all(0 <= vlan < 4096 for vlan in words.vlans)
