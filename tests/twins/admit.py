"""Slow, obvious twin of fast/admit.pxd: what of a frame with a virtio header reaches a device.

A header is believed in what the frame, taken to pieces and built again, says as well; a super-frame
is cut to see what would come of it.
"""

from __future__ import annotations

import struct

from tests.twins.mix import finished
from tests.twins.offload import (
    DATA_VALID,
    GSO_ECN,
    GSO_NONE,
    MAX_HEADERS,
    NEEDS_CSUM,
    VNET,
    Frame,
    Ipv4,
    Packet,
    Tcp,
    cut,
    read,
)


def understood(frame: bytes) -> Packet | None:
    """Return the packet that a frame is, whatever its checksums are; None when it is not one."""
    try:
        packet = read(frame)
        built = packet.build() if packet else b""
    except (IndexError, struct.error):
        return None
    if packet is None or packet.header_bytes > MAX_HEADERS:
        return None
    sums = [packet.l4_at + packet.l4.checksum_at]
    if isinstance(packet.ip, Ipv4):
        sums.append(14 + 4 * len(packet.tags) + 10)
    for at in sums:
        built = built[:at] + frame[at : at + 2] + built[at + 2 :]
    return packet if built == frame else None


def admit(vnet: bytes, frame: bytes, mtu_bytes: int, most_segments: int = 128) -> Frame | None:
    """Return what may be written to a device of that MTU; None when the frame is refused."""
    longest = mtu_bytes + 22
    flags, gso, header_bytes, segment_bytes, start, offset = VNET.unpack(vnet)
    if flags & ~(NEEDS_CSUM | DATA_VALID) or len(frame) < 14 or frame[6] & 1:
        return None
    packet = understood(frame)
    place = (packet.l4_at, packet.l4.checksum_at) if packet else None
    known = bool(flags & NEEDS_CSUM) and (start, offset) == place
    if gso == GSO_NONE:
        if len(frame) > longest:
            return None
        if known:
            return VNET.pack(flags, 0, 0, 0, start, offset), frame
        if flags & NEEDS_CSUM:
            if start < 14 or start + offset + 2 > len(frame):
                return None
            frame = finished(frame, start, offset)
        return VNET.pack(flags & DATA_VALID, 0, 0, 0, 0, 0), frame
    if not most_segments or not known or packet is None or not segment_bytes:
        return None
    kinds = {packet.gso_type, packet.gso_type | (GSO_ECN if isinstance(packet.l4, Tcp) else 0)}
    pieces = cut(packet, segment_bytes)
    if (
        gso not in kinds
        or header_bytes > len(frame)
        or len(pieces) > most_segments
        or any(len(piece.build()) > longest for piece in pieces)
    ):
        return None
    return VNET.pack(flags, gso, packet.header_bytes, segment_bytes, start, offset), frame
