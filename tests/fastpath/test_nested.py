"""The tunnel's own datagrams inside the tunnel: neither sealed again nor delivered."""

from __future__ import annotations

import struct

import pytest

from tests.fastpath.rig import KEYS, NO_OFFLOAD, plain
from tests.fastpath.test_udp import Wire, wired  # noqa: F401 - a fixture
from tests.twins import records

UDP_PORTS = struct.pack(">HH", 9001, 9001)
ETHERNET = b"\x02\0\0\0\0\2" + b"\x02\0\0\0\0\1"
TAG = b"\x81\x00\x00\x05"


def ipv4(payload: bytes, *, protocol: int = 17, options: bytes = b"", fragment: int = 0) -> bytes:
    udp = UDP_PORTS + struct.pack(">HH", 8 + len(payload), 0) + payload
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(udp), 0, fragment, 64,
        protocol, 0, b"\xc0\xa8\x4d\x01", b"\xc0\xa8\x4d\x02",
    )  # fmt: skip
    return b"\x08\x00" + head + options + udp


def ipv6(payload: bytes) -> bytes:
    udp = UDP_PORTS + struct.pack(">HH", 8 + len(payload), 0) + payload
    return b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(udp), 17, 64) + bytes(32) + udp


WRAPPED = {
    "IPv4": lambda data: ETHERNET + ipv4(data),
    "IPv4 with options": lambda data: ETHERNET + ipv4(data, options=bytes(8)),
    "IPv6": lambda data: ETHERNET + ipv6(data),
    "VLAN": lambda data: ETHERNET + TAG + ipv4(data),
    "two tags": lambda data: ETHERNET + b"\x88\xa8\0\1" + TAG + ipv6(data),
}
OTHERS = {
    "another port's TCP": lambda data: ETHERNET + ipv4(data, protocol=6),
    "a later fragment": lambda data: ETHERNET + ipv4(data, fragment=100),
    "no IP": lambda data: ETHERNET + b"\x88\xb5" + ipv4(data)[2:],
    "cut short": lambda data: (ETHERNET + ipv4(data))[:46],
}


def sent_by(wire: Wire) -> bytes:
    """A datagram as this node seals it."""
    return records.seal_datagram(wire.cipher, KEYS["uout"], wire.node.remote_id, 9, b"\x01" * 40)


def dropped(wire: Wire, direction: str) -> int:
    return wire.node.plane.counters()[direction]["own_datagram"]


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_datagram_of_ours_that_comes_out_of_the_device_is_not_sealed_again(wired, wrap):  # noqa: F811
    wire = wired()
    wire.use()
    after = ETHERNET + ipv4(b"an ordinary datagram")
    wire.node.feed([wrap(sent_by(wire)), after])
    assert [inner for _, inner in wire.received(1)] == [plain(after)]
    assert dropped(wire, "tx_dropped") == 1


@pytest.mark.parametrize("wrap", OTHERS.values(), ids=OTHERS)
def test_what_only_resembles_one_passes(wired, wrap):  # noqa: F811
    wire = wired()
    wire.use()
    data = wrap(sent_by(wire))
    wire.node.feed([data])
    assert [inner for _, inner in wire.received(1)] == [plain(data)]


def test_a_datagram_of_another_tunnel_passes(wired):  # noqa: F811
    wire = wired()
    wire.use()
    other = records.seal_datagram(wire.cipher, KEYS["uout"], wire.node.remote_id ^ 0x100, 9, b"1")
    data = ETHERNET + ipv4(other)
    wire.node.feed([data])
    assert [inner for _, inner in wire.received(1)] == [plain(data)]


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_datagram_for_us_inside_a_frame_of_the_peers_is_not_delivered(wired, wrap):  # noqa: F811
    wire = wired()
    nested = wrap(wire.datagram(b"\x04" + bytes(30), counter=70))
    after = ETHERNET + ipv4(b"an ordinary datagram")
    wire.send(wire.datagram(plain(nested)), wire.datagram(plain(after)))
    assert wire.opened(1) == [NO_OFFLOAD + after]
    assert dropped(wire, "rx_dropped") == 1
