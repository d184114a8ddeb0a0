"""What must come out of a tunnel for each frame that goes in, however it is cut and joined inside.

A stream has no boundaries that a super-frame must keep: the kernel, our segmenter and our joiner
draw them anew. What must not change is the frames that a card without any offload would put on the
wire. So both sides are brought to that form by the slow twin, and compared byte for byte.

    sent      --carried()--> frames on the wire, TCP cut to the path
    captured  --flat()-----> frames on the wire
"""

from __future__ import annotations

import functools
import random
from dataclasses import replace

from tests.twins import offload as twin
from tests.twins.offload import ACK, CWR, ECE, FIN, NEEDS_CSUM, PSH, VNET, Frame, Ipv4, Ipv6, Packet

NOTHING = bytes(VNET.size)
MACS = bytes.fromhex("020000000002020000000001")
OUTER, INNER = b"\x88\xa8\x00\x64", b"\x81\x00\x00\x07"


def finished(frame: bytes, start: int, offset: int) -> bytes:
    """Return the frame with the checksum that was left to the device at `start + offset`."""
    value = twin.checksum(frame[start:]) or 0xFFFF
    at = start + offset
    return frame[:at] + value.to_bytes(2) + frame[at + 2 :]


@functools.cache
def flat(frame: Frame, most_bytes: int | None = None) -> list[bytes]:
    """Return what a card without offload sends for a frame.

    Args:
        most_bytes: TCP super-frames are cut to frames no larger than this; None: as they say.
    """
    vnet, data = frame
    flags, gso, _, segment_bytes, start, offset = VNET.unpack(vnet)
    if gso:
        packet = twin.take_apart(data)
        assert packet is not None, data[:100].hex()
        segments = twin.segment(packet, segment_bytes, most_bytes or len(data), finished=True)
        assert segments is not None
        return [segment for _, segment in segments]
    return [finished(data, start, offset) if flags & NEEDS_CSUM else data]


def is_super(frame: Frame) -> bool:
    return frame[0][1] != 0


def is_unfinished(frame: Frame) -> bool:
    return bool(frame[0][0] & NEEDS_CSUM)


def is_stream(frame: Frame) -> bool:
    return frame[0][1] & ~twin.GSO_ECN in (twin.GSO_TCPV4, twin.GSO_TCPV6)


def moved(frame: Frame, by: int) -> Frame:
    """Return a frame whose headers begin `by` bytes later than its virtio header says."""
    flags, gso, header, size, start, offset = VNET.unpack(frame[0])
    return VNET.pack(flags, gso, header, size, start + by if flags else start, offset), frame[1]


@functools.cache
def corpus(seed: int) -> list[Frame]:
    """Return frames of every kind that a LAN has, each different from all others.

    Plain and tagged, of IPv4 and IPv6, with finished and unfinished checksums, from the smallest
    to super-frames of 64 KiB and of segments of a few bytes.
    """
    source = random.Random(seed)

    def payload(size: int) -> bytes:
        return source.randbytes(size)

    tcp = Packet(
        Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", id=65530),
        twin.Tcp(40000, 5201, 2**32 - 3000, 99, 0, ACK, 502, 0, b"\1\1\x08\x0a" + payload(8)),
        b"",
        MACS,
    )
    hops = ((0, b"\0" + b"\1\4" + bytes(4)), (60, b"\0" + b"\1\4" + bytes(4)))
    ip6 = Ipv6(b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2", 0x0ABCDEF)
    tcp6, chain6 = replace(tcp, ip=ip6), replace(tcp, ip=replace(ip6, extensions=hops))
    udp, udp6 = replace(tcp, l4=twin.Udp(40000, 53)), replace(tcp6, l4=twin.Udp(40000, 53))

    def raw(kind: bytes, size: int) -> Frame:
        return NOTHING, (MACS + kind + payload(size))[:size]

    def some(packet: Packet, size: int, *tags: bytes, **flags: int) -> Packet:
        l4 = replace(packet.l4, **flags) if flags else packet.l4
        return replace(packet, l4=l4, payload=payload(size), tags=tags)

    def whole(packet: Packet) -> Frame:
        return NOTHING, packet.build(finished=True)

    return [
        raw(b"\x08\x06", 42),  # ARP
        raw(b"\0\x26\x42\x42\3", 60),  # a bridge's LLC
        raw(b"\x88\xb5", 15),
        some(tcp, 1448).plain(),
        whole(some(tcp, 1448)),
        whole(some(udp, 1472)),
        some(udp6, 1452).plain(),
        some(udp, 1).plain(),
        raw(OUTER + INNER + b"\x88\xb5", 1514),
        some(tcp, 63000, flags=ACK | PSH).super_frame(1448),
        some(tcp6, 63001, flags=ACK | FIN).super_frame(1428),
        some(tcp, 20000, INNER, flags=ACK | ECE | CWR).super_frame(1448),
        some(tcp6, 20000, INNER, flags=ACK).super_frame(1428),
        some(tcp, 20000, OUTER, INNER, flags=ACK).super_frame(1448),
        some(tcp, 5000, flags=ACK | PSH).super_frame(536),
        some(tcp, 1000, flags=ACK).super_frame(11),
        some(tcp, 1449, flags=ACK).super_frame(1448),
        some(chain6, 9000).super_frame(1400),
        some(chain6, 9000, INNER).super_frame(1400),
        some(udp, 31 * 1200 + 5).super_frame(1200),
        some(udp6, 9 * 1452).super_frame(1452),  # larger than the path: each goes in fragments
        some(udp, 5 * 900, INNER).super_frame(900),
        some(udp, 64).super_frame(1),
        raw(b"\x88\xb5", 60),
    ]
