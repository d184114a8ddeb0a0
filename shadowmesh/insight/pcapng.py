"""pcapng as far as a capture of Ethernet frames needs it: blocks to bytes, and bytes to blocks.

Owns: the layout of the four kinds of blocks and of their options. Does not know: where frames come
from, files, sockets, clocks.

::

    block     type u32 | total length u32 | body | total length u32      all little-endian
    options   code u16 | length u16 | value, padded to 4 bytes | ... | 0 u16 | 0 u16

    section header, interface description, then enhanced packets and interface statistics

Times are nanoseconds since 1970 (if_tsresol 9).
Source: draft-ietf-opsawg-pcapng, sections 3 and 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

#: LINKTYPE_ETHERNET
ETHERNET: Final = 1
#: what readers take; the value that tcpdump calls "the whole packet"
MAX_SNAP_BYTES: Final = 262_144
#: directions, as in epb_flags
INBOUND: Final = 1
OUTBOUND: Final = 2

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_STATISTICS: Final = 5
_PACKET: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_NANOSECONDS: Final = b"\x09"

_COMMENT: Final = 1
_SHB_APPLICATION: Final = 4
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_EPB_FLAGS: Final = 2
_ISB_START: Final = 2
_ISB_END: Final = 3
_ISB_RECEIVED: Final = 4
_ISB_DROPPED: Final = 5

#: a packet block with the longest frame and a comment
MAX_BLOCK_BYTES: Final = MAX_SNAP_BYTES + 4096

_HEAD: Final = struct.Struct("<II")
_U16_PAIR: Final = struct.Struct("<HH")
_U32_PAIR: Final = struct.Struct("<II")
_U64: Final = struct.Struct("<Q")
_PACKET_HEAD: Final = struct.Struct("<IIIIIII")
_PACKET_BODY: Final = struct.Struct("<IIIII")
_STATISTICS_BODY: Final = struct.Struct("<III")
_LENGTH: Final = struct.Struct("<I")
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


@dataclass(frozen=True, slots=True)
class Section:
    """The start of a capture: who made it, and a remark for who reads it."""

    application: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Interface:
    """Where the frames were seen, and how much of each is kept; 0: all."""

    name: str = ""
    snap_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """One frame.

    Attributes:
        time_ns: since 1970.
        direction: `INBOUND`, `OUTBOUND`; 0 when it is not told.
        frame_bytes: of the whole frame.
        data: its beginning.
    """

    time_ns: int
    direction: int
    frame_bytes: int
    data: bytes
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """How it went so far.

    Attributes:
        time_ns: of this block.
        received: frames seen, those that were dropped included.
        dropped: frames that did not get into the capture.
        started_ns: of the capture.
        ended_ns: None while it goes on.
        comment: why it has ended.
    """

    time_ns: int
    received: int
    dropped: int
    started_ns: int
    ended_ns: int | None = None
    comment: str = ""


Block = Section | Interface | Packet | Statistics


# --- Writing ----------------------------------------------------------------------------------


def section(block: Section) -> bytes:
    """Return a section header block of unknown length."""
    body = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(
        _SECTION,
        body,
        (_SHB_APPLICATION, block.application.encode()),
        (_COMMENT, block.comment.encode()),
    )


def interface(block: Interface) -> bytes:
    """Return an interface description block; the first interface has the number 0."""
    body = struct.pack("<HHI", ETHERNET, 0, block.snap_bytes)
    return _block(_INTERFACE, body, (_IF_NAME, block.name.encode()), (_IF_TSRESOL, _NANOSECONDS))


def packet(time_ns: int, direction: int, frame_bytes: int, data: bytes, comment: str = "") -> bytes:
    """Return an enhanced packet block of interface 0; see `Packet`."""
    tail = _PACKET_TAILS[direction]
    if comment:
        tail = _option(_COMMENT, comment.encode()) + tail
    padding = _PADDING[len(data) & 3]
    # The block's head, 20 bytes of body, its length again.
    total = 32 + len(data) + len(padding) + len(tail)
    head = _PACKET_HEAD.pack(
        _PACKET, total, 0, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), frame_bytes
    )
    return b"".join((head, data, padding, tail, _LENGTH.pack(total)))


def statistics(block: Statistics) -> bytes:
    """Return an interface statistics block of interface 0."""
    body = _STATISTICS_BODY.pack(0, block.time_ns >> 32, block.time_ns & 0xFFFFFFFF)
    return _block(
        _STATISTICS,
        body,
        (_COMMENT, block.comment.encode()),
        (_ISB_START, _time(block.started_ns)),
        (_ISB_END, b"" if block.ended_ns is None else _time(block.ended_ns)),
        (_ISB_RECEIVED, _U64.pack(block.received)),
        (_ISB_DROPPED, _U64.pack(block.dropped)),
    )


def _block(kind: int, body: bytes, *options: tuple[int, bytes]) -> bytes:
    """Return a block; options without a value are left out."""
    said = b"".join(_option(code, value) for code, value in options if value)
    total = 12 + len(body) + len(said) + 4
    return b"".join((_HEAD.pack(kind, total), body, said, bytes(4), _LENGTH.pack(total)))


def _option(code: int, value: bytes) -> bytes:
    return _U16_PAIR.pack(code, len(value)) + value + _PADDING[len(value) & 3]


def _time(time_ns: int) -> bytes:
    return _U32_PAIR.pack(time_ns >> 32, time_ns & 0xFFFFFFFF)


_PACKET_TAILS: Final = tuple(
    _option(_EPB_FLAGS, _LENGTH.pack(direction)) + bytes(4) for direction in (0, 1, 2)
)


# --- Reading ----------------------------------------------------------------------------------


class Reader:
    """Takes a capture of one section and one interface, in pieces of any size.

    Reads what `section`, `interface`, `packet` and `statistics` write, and skips other blocks and
    options.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def receive(self, data: bytes) -> Iterator[tuple[bytes, Block | None]]:
        """Give each block that is complete now: its bytes, and what it says, None for others.

        Raises:
            ValueError: this is not pcapng, or not of a kind that we write.
        """
        self._rest += data
        at = 0
        try:
            while len(self._rest) - at >= _HEAD.size:
                kind, total = _HEAD.unpack_from(self._rest, at)
                if not 12 <= total <= MAX_BLOCK_BYTES or total % 4:
                    raise ValueError(f"a block of type {kind:#x} with {total} bytes")
                if len(self._rest) - at < total:
                    return
                raw = bytes(self._rest[at : at + total])
                at += total
                if raw[-4:] != raw[4:8]:
                    raise ValueError(f"a block of type {kind:#x} whose two lengths differ")
                try:
                    yield raw, _parse(kind, raw)
                except struct.error:
                    raise ValueError(f"a block of type {kind:#x} that is too short") from None
        finally:
            del self._rest[:at]


def _parse(kind: int, raw: bytes) -> Block | None:
    if kind == _PACKET:
        return _packet(raw)
    if kind == _STATISTICS:
        return _statistics(raw)
    if kind == _SECTION:
        if _LENGTH.unpack_from(raw, 8)[0] != _BYTE_ORDER:
            raise ValueError("a section of another byte order")
        options = _options(raw, 24)
        return Section(_text(options.get(_SHB_APPLICATION)), _text(options.get(_COMMENT)))
    if kind == _INTERFACE:
        link, _, snap_bytes = struct.unpack_from("<HHI", raw, 8)
        options = _options(raw, 16)
        if link != ETHERNET or options.get(_IF_TSRESOL) != _NANOSECONDS:
            raise ValueError(f"an interface of link type {link}, or without nanoseconds")
        return Interface(_text(options.get(_IF_NAME)), snap_bytes)
    return None


def _packet(raw: bytes) -> Packet:
    _, high, low, held, frame_bytes = _PACKET_BODY.unpack_from(raw, 8)
    end = 28 + held
    if end > len(raw) - 4:
        raise ValueError(f"a packet of {held} bytes in a block of {len(raw)}")
    options = _options(raw, end + -end % 4)
    flags = options.get(_EPB_FLAGS, bytes(4))
    return Packet(
        high << 32 | low,
        _LENGTH.unpack(flags)[0] & 3,
        frame_bytes,
        raw[28:end],
        _text(options.get(_COMMENT)),
    )


def _statistics(raw: bytes) -> Statistics:
    _, high, low = _STATISTICS_BODY.unpack_from(raw, 8)
    options = _options(raw, 20)
    ended = options.get(_ISB_END)
    return Statistics(
        high << 32 | low,
        _U64.unpack(options.get(_ISB_RECEIVED, bytes(8)))[0],
        _U64.unpack(options.get(_ISB_DROPPED, bytes(8)))[0],
        _from_time(options.get(_ISB_START, bytes(8))),
        None if ended is None else _from_time(ended),
        _text(options.get(_COMMENT)),
    )


def _options(raw: bytes, at: int) -> Mapping[int, bytes]:
    """Return the options from `at` to the end of a block; the first of each code."""
    found: dict[int, bytes] = {}
    end = len(raw) - 4
    while at + 4 <= end:
        code, length = _U16_PAIR.unpack_from(raw, at)
        at += 4
        if code == 0:
            break
        if at + length > end:
            raise ValueError(f"an option of {length} bytes that is longer than its block")
        found.setdefault(code, raw[at : at + length])
        at += length + -length % 4
    return found


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def _from_time(value: bytes) -> int:
    high, low = _U32_PAIR.unpack(value)
    return int(high) << 32 | int(low)
