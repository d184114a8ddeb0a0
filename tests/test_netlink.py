"""shadowmesh.netlink: reading what the kernel answers, byte for byte."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_interface

import pytest

from shadowmesh import netlink

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
