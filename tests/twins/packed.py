"""Slow, obvious twin of packed frames: a stream of records cut into datagrams, and put together.

Source: protocol section 6, inner type 12. Owns: where the bytes of a record go. Does not know:
sealing, what a record holds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

PACKED = 12
HEADER_BYTES = 3
ENTRY_BYTES = 3
FRAMES = (1, 9)  # inner types that may be packed


def pack(records: Sequence[bytes], room: int) -> list[bytes]:
    """Return the inner bytes of the datagrams that the records fill, `room` bytes of them each."""
    datagrams: list[tuple[int, bytes]] = []  # bytes of the record before, all bytes
    for record in records:
        entry = struct.pack("<H", len(record)) + record
        assert len(entry) <= 2 * room
        left = room - len(datagrams[-1][1]) if datagrams else 0
        if len(entry) > left and (left < ENTRY_BYTES or len(entry) - left > room):
            if datagrams:
                head, body = datagrams[-1]
                datagrams[-1] = (head, body + bytes(left))
            datagrams.append((0, b""))
            left = room
        head, body = datagrams[-1]
        datagrams[-1] = (head, body + entry[:left])
        if rest := entry[left:]:
            datagrams.append((len(rest), rest))
    return [struct.pack("<BH", PACKED, head) + body for head, body in datagrams]


def unpack(datagrams: Mapping[int, bytes]) -> list[bytes]:
    """Return the records that are whole, in the order in which they were sent.

    Args:
        datagrams: inner bytes by counter; some may be missing.
    """
    records = []
    for counter, inner in sorted(datagrams.items()):
        parts = _parts(inner)
        if parts is None:
            continue
        _, whole, tail = parts
        records += whole
        following = _parts(datagrams.get(counter + 1, b""))
        if tail and following is not None:
            entry = tail + following[0]
            if following[0] and len(entry) == 2 + struct.unpack_from("<H", entry)[0]:
                records.append(entry[2:])
    return records


def _parts(inner: bytes) -> tuple[bytes, list[bytes], bytes] | None:
    """The end of the record before, the whole records, the beginning of one that is cut."""
    if inner[:1] != bytes([PACKED]) or len(inner) < HEADER_BYTES:
        return None
    (head_bytes,) = struct.unpack_from("<H", inner, 1)
    body = inner[HEADER_BYTES:]
    if head_bytes > len(body):
        return None
    head, rest = body[:head_bytes], body[head_bytes:]
    whole = []
    while len(rest) >= ENTRY_BYTES:
        (length,) = struct.unpack_from("<H", rest)
        if length == 0:
            break
        if length > len(rest) - 2:
            return head, whole, rest
        whole.append(rest[2 : 2 + length])
        rest = rest[2 + length :]
    return head, whole, b""
