"""shadowmesh.device.netlink: reading what the kernel answers, byte for byte."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address, ip_interface

import pytest

from shadowmesh.device import netlink

ERROR, DONE, ADDRESS = 2, 3, 20
MULTI, TEXT = 0x2, 0x200


def message(kind: int, flags: int, payload: bytes, sequence: int = 7) -> bytes:
    size = 16 + len(payload)
    return struct.pack("=IHHII", size, kind, flags, sequence, 0) + payload + bytes(-size % 4)


def error(code: int, text: bytes = b"") -> bytes:
    attribute = struct.pack("=HH", 4 + len(text), 1) + text if text else b""
    return message(ERROR, TEXT if text else 0, struct.pack("=i", -code) + bytes(16) + attribute)


def test_an_acknowledgement_ends_the_answer():
    answers: list[bytes] = []
    assert netlink.collect(error(0), 7, answers) is False
    assert answers == []


def test_a_refusal_carries_the_kernels_explanation():
    with pytest.raises(OSError, match=r"Invalid argument \(mtu greater than maximum\)") as caught:
        netlink.collect(error(errno.EINVAL, b"mtu greater than maximum\0"), 7, [])
    assert caught.value.errno == errno.EINVAL


def test_a_refusal_without_explanation_has_the_errors_text():
    with pytest.raises(OSError, match=r"Operation not permitted$") as caught:
        netlink.collect(error(errno.EPERM), 7, [])
    assert caught.value.errno == errno.EPERM


def test_a_dump_goes_on_until_it_says_done():
    answers: list[bytes] = []
    part = message(ADDRESS, MULTI, b"one!") + message(ADDRESS, MULTI, b"two!!")
    assert netlink.collect(part, 7, answers) is True
    assert netlink.collect(message(DONE, MULTI, bytes(4)), 7, answers) is False
    assert answers == [b"one!", b"two!!"]


def test_answers_to_another_request_are_passed_over():
    answers: list[bytes] = []
    assert netlink.collect(message(ADDRESS, 0, b"late", sequence=6), 7, answers) is True
    assert netlink.collect(message(ADDRESS, 0, b"mine"), 7, answers) is False
    assert answers == [b"mine"]


def test_a_message_shorter_than_its_header_is_refused():
    with pytest.raises(OSError, match="length 3"):
        netlink.collect(struct.pack("=IHHII", 3, ADDRESS, 0, 7, 0), 7, [])


@pytest.mark.parametrize("text", ["10.0.0.1/24", "10.0.0.1/31", "10.0.0.1/32", "fd00::1/64"])
def test_an_address_reads_back_as_it_was_written(text):
    address = ip_interface(text)
    assert netlink.parse_address(netlink.address_body(5, address)) == (5, address)


@pytest.mark.parametrize(("text", "has_broadcast"), [("10.0.0.1/30", True), ("10.0.0.1/31", False)])
def test_only_a_network_with_room_for_it_gets_a_broadcast_address(text, has_broadcast):
    body = netlink.address_body(5, ip_interface(text))
    assert (ip_interface(text).network.broadcast_address.packed in body[24:]) is has_broadcast


def test_an_address_of_another_family_is_passed_over():
    body = bytearray(netlink.address_body(5, ip_interface("10.0.0.1/24")))
    body[0] = socket.AF_PACKET
    assert netlink.parse_address(bytes(body)) is None
    assert netlink.parse_address(bytes(body[:8])) is None


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_a_link_is_read_with_its_driver_and_what_the_kernel_dropped():
    flags = netlink.IFF_UP | 0x40
    statistics = struct.pack("=24Q", *range(24))
    body = struct.pack("=BxHiII", 0, 1, 7, flags, 0)
    body += attribute(3, b"tap0\0") + attribute(4, struct.pack("=I", 1500))
    body += attribute(18, attribute(1, b"tun\0")) + attribute(23, statistics)
    link = netlink.parse_link(body)
    assert (link.index, link.name, link.kind, link.mtu) == (7, "tap0", "tun", 1500)
    assert (link.up, link.running, link.tx_dropped) == (True, True, 7)


def stacked(name: bytes, kind: bytes, data: bytes = b"", *more: bytes) -> netlink.Link:
    body = struct.pack("=BxHiII", 0, 1, 8, netlink.IFF_UP, 0)
    body += attribute(3, name + b"\0") + attribute(4, struct.pack("=I", 1500))
    body += attribute(18, attribute(1, kind + b"\0") + attribute(2, data)) + b"".join(more)
    return netlink.parse_link(body)


def test_a_link_tells_what_it_is_stacked_on_unless_that_is_in_another_namespace():
    below = attribute(5, struct.pack("=I", 7))
    assert stacked(b"mv0", b"macvlan", b"", below).lower == 7
    assert stacked(b"veth0", b"veth", b"", below, attribute(37, bytes(4))).lower == 0
    assert stacked(b"dummy0", b"dummy").lower == 0


def test_a_tunnel_of_the_kernels_tells_where_it_sends_to():
    far = ip_address("10.0.0.2")
    assert stacked(b"vx0", b"vxlan", attribute(2, far.packed)).remote == far
    far6 = ip_address("fd00::2")
    assert stacked(b"vx0", b"vxlan", attribute(17, far6.packed)).remote == far6
    assert stacked(b"gre1", b"gretap", attribute(7, far.packed)).remote == far
    assert stacked(b"vx0", b"vxlan", attribute(2, bytes(4))).remote is None
    assert stacked(b"vx0", b"vxlan", attribute(2, b"short")).remote is None
    assert stacked(b"mv0", b"macvlan", attribute(2, far.packed)).remote is None


def test_a_route_is_read_with_and_without_a_gateway():
    header = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, 0, 0, 1, 0)
    direct = netlink.parse_route(header + attribute(4, struct.pack("=I", 3)))
    assert direct == netlink.Route(3, None, local=False)
    way = attribute(4, struct.pack("=I", 3)) + attribute(5, bytes([192, 0, 2, 1]))
    assert netlink.parse_route(header + way).gateway == ip_address("192.0.2.1")
    local = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 255, 0, 0, 2, 0)
    assert netlink.parse_route(local).local


def test_a_neighbour_is_read_and_other_families_are_passed_over():
    mac = bytes([2, 0, 0, 0, 0, 9])
    body = struct.pack("=BxxxiHBB", socket.AF_INET, 3, 0x02, 0, 0)
    entry = netlink.parse_neighbour(body + attribute(1, bytes([10, 0, 0, 2])) + attribute(2, mac))
    assert entry == netlink.Neighbour(3, ip_address("10.0.0.2"), mac, 0x02)
    assert netlink.parse_neighbour(body) is None
    bridge = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, 3, 0x02, 0, 0) + attribute(2, mac)
    assert netlink.parse_neighbour(bridge) is None
    assert netlink.parse_bridge_entry(bridge) is None
    known = netlink.parse_bridge_entry(bridge + attribute(9, struct.pack("=I", 8)))
    assert known == netlink.BridgeEntry(3, 8, mac)


def test_the_kernel_knows_the_way_to_this_host():
    with netlink.Netlink() as kernel:
        assert kernel.route(ip_address("127.0.0.1")).local
        assert kernel.links()[0].name == "lo"
        assert isinstance(kernel.neighbours(), list)
        assert isinstance(kernel.bridge_entries(), list)
