"""Slow, obvious twin of the ring of captured frames: a list, and a sum of what is in it."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

RING_BYTES = 4 * 1024 * 1024
HEADER_BYTES = 32
VNET_BYTES = 10


class Captured(NamedTuple):
    """What is known of one frame; `data` is its beginning."""

    direction: int
    frame_bytes: int
    segment_bytes: int
    data: bytes


def place_bytes(held_bytes: int) -> int:
    """What a frame takes of the ring: a header and the bytes, in whole headers."""
    return HEADER_BYTES * (1 + -(-held_bytes // HEADER_BYTES))


class CaptureRing:
    """Keeps frames in order as long as there is room; counts the others."""

    def __init__(self, snap_bytes: int) -> None:
        self.snap_bytes = snap_bytes
        self.frames: deque[Captured] = deque()
        self.used = 0
        self.dropped = 0

    def put(self, direction: int, pieces: Sequence[bytes], *, vnet: bool = False) -> None:
        data = b"".join(pieces)
        segment_bytes = 0
        if vnet:
            _, gso_type, _, gso_size = struct.unpack_from("<BBHH", data)
            segment_bytes = gso_size if gso_type else 0
            data = data[VNET_BYTES:]
        held = data[: self.snap_bytes]
        if self.used + place_bytes(len(held)) > RING_BYTES:
            self.dropped += 1
            return
        self.used += place_bytes(len(held))
        self.frames.append(Captured(direction, len(data), segment_bytes, held))

    def take(self) -> Captured | None:
        if not self.frames:
            return None
        frame = self.frames.popleft()
        self.used -= place_bytes(len(frame.data))
        return frame
