"""Slow, obvious twin of the WebSocket frame codec: one frame at a time, nothing incremental.

The oracle for the C parser. It reads and writes single frames of RFC 6455 section 5.2 and knows
nothing of messages, limits or state.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
OPCODES = {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}


class FrameError(ValueError):
    """Bytes that no peer may send, whatever follows them."""


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes
    fin: bool = True
    #: 4 bytes from a client, None from a server
    mask: bytes | None = None


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """Mask or unmask. Source: RFC 6455 section 5.3."""
    return bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def encode(frame: Frame) -> bytes:
    """Return the bytes of frame, with the shortest length that holds its payload."""
    first = (0x80 if frame.fin else 0) | frame.opcode
    mask_bit = 0 if frame.mask is None else 0x80
    size = len(frame.payload)
    if size <= 125:
        head = struct.pack(">BB", first, mask_bit | size)
    elif size <= 0xFFFF:
        head = struct.pack(">BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack(">BBQ", first, mask_bit | 127, size)
    if frame.mask is None:
        return head + frame.payload
    return head + frame.mask + apply_mask(frame.payload, frame.mask)


def decode(data: bytes, *, masked: bool) -> tuple[Frame, int] | None:
    """Return the first frame in data and how many bytes it takes, None when it is incomplete.

    Raises:
        FrameError: a reserved bit or opcode, a mask missing or too many, a length not in its
            shortest form or above 2**63 - 1, a control frame that is long or fragmented.
    """
    if len(data) < 2:
        return None
    fin, reserved, opcode = bool(data[0] & 0x80), data[0] & 0x70, data[0] & 0x0F
    has_mask, size = bool(data[1] & 0x80), data[1] & 0x7F
    if reserved:
        raise FrameError("a reserved bit is set")
    if opcode not in OPCODES:
        raise FrameError(f"opcode {opcode:#x} is reserved")
    if has_mask != masked:
        raise FrameError("a client masks, a server does not")
    if opcode >= CLOSE and (not fin or size > 125):
        raise FrameError("a control frame is whole and has at most 125 bytes")
    place = 2
    if size >= 126:
        width = 2 if size == 126 else 8
        if len(data) < place + width:
            return None
        size = int.from_bytes(data[place : place + width], "big")
        place += width
        if size < (126 if width == 2 else 0x10000):
            raise FrameError("the length is not in its shortest form")
        if size >> 63:
            raise FrameError("the length has its highest bit set")
    mask = None
    if masked:
        if len(data) < place + 4:
            return None
        mask = data[place : place + 4]
        place += 4
    if len(data) < place + size:
        return None
    payload = data[place : place + size]
    if mask is not None:
        payload = apply_mask(payload, mask)
    return Frame(opcode, payload, fin, mask), place + size


def decode_all(data: bytes, *, masked: bool) -> tuple[list[Frame], bytes]:
    """Return all complete frames in data and the bytes left over."""
    frames = []
    while (found := decode(data, masked=masked)) is not None:
        frame, used = found
        frames.append(frame)
        data = data[used:]
    return frames, data
