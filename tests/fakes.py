"""Stand-ins that more than one test module needs.

FakePlane has what a capture uses of `_fastpath.DataPlane`; frames come when a test adds them.
FakePipe has the interface of `_fastpath.Pipe` as far as a link uses it, in plain Python: whole
frames only, no fragments, no limits but the message size.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque

from shadowmesh.base.constants import MAX_MESSAGE
from shadowmesh.base.errors import RemoteProtocolError

BINARY, CLOSE, PING, PONG = 0x2, 0x8, 0x9, 0xA
_EVENT_OF = {BINARY: "message", CLOSE: "close", PING: "ping", PONG: "pong"}


def encode_frame(opcode: int, payload: bytes, *, mask: bytes | None) -> bytes:
    """Return one unfragmented WebSocket frame; mask is 4 bytes, or None for a server's frame."""
    bit = 0 if mask is None else 0x80
    head = bytes([0x80 | opcode])
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    return head + (payload if mask is None else mask + xor(payload, mask))


def xor(data: bytes, mask: bytes) -> bytes:
    """Return data masked with 4 bytes."""
    stream = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")


def decode_frame(data: bytes, *, masked: bool) -> tuple[int, bytes, int] | None:
    """Return (opcode, payload, length of the frame), or None while data is incomplete."""
    if len(data) < 2:
        return None
    if data[0] & 0x70 or not data[0] & 0x80 or bool(data[1] & 0x80) is not masked:
        raise RemoteProtocolError("a frame that the fake does not take", 1002)
    length, at = data[1] & 0x7F, 2
    if length >= 126:
        at += 2 if length == 126 else 8
        if len(data) < at:
            return None
        length = int.from_bytes(data[2:at], "big")
    if length > MAX_MESSAGE:
        raise RemoteProtocolError("message too big", 1009)
    mask = data[at : at + 4] if masked else bytes(4)
    at += 4 if masked else 0
    if len(data) < at + length:
        return None
    return data[0] & 0xF, xor(bytes(data[at : at + length]), bytes(mask)), at + length


#: of a real pipe on a fast link
PIECE_BYTES = 128 * 1024


class FakePipe:
    """One WebSocket's frames, in and out."""

    def __init__(self, *, client: bool, recv_bytes: int = 65536) -> None:
        self.wakeup_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.ended = self.blocked = False
        self.closed = False
        self.queued_bytes = 0
        self.piece_bytes = PIECE_BYTES
        self._client = client
        self._out: deque[bytes] = deque()
        self._sent = 0
        self._in = bytearray()
        self._space = bytearray(recv_bytes)

    def send_message(self, payload: bytes) -> None:
        self._queue(BINARY, payload)

    def send_ws_control(self, opcode: int, payload: bytes) -> None:
        self._queue(opcode, payload)

    def _queue(self, opcode: int, payload: bytes) -> None:
        assert not self.closed
        frame = encode_frame(opcode, payload, mask=os.urandom(4) if self._client else None)
        self._out.append(frame)
        self.queued_bytes += len(frame)
        os.eventfd_write(self.wakeup_fd, 1)

    def recv_buffer(self) -> memoryview:
        return memoryview(self._space)

    def ingest(self, count: int) -> list[tuple]:
        self._in += self._space[:count]
        events = []
        while (frame := decode_frame(self._in, masked=not self._client)) is not None:
            opcode, payload, length = frame
            del self._in[:length]
            if opcode not in _EVENT_OF:
                raise RemoteProtocolError("an opcode that the fake does not take", 1003)
            events.append((_EVENT_OF[opcode], payload))
        return events

    def outgoing(self) -> memoryview | None:
        if not self._out:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.wakeup_fd)
            return None
        return memoryview(self._out[0])[self._sent :][: self.piece_bytes]

    def sent(self, count: int) -> None:
        self._sent += count
        self.queued_bytes -= count
        assert self._sent <= len(self._out[0])
        if self._sent == len(self._out[0]):
            self._out.popleft()
            self._sent = 0

    def events(self) -> list[tuple]:
        return []

    def release(self) -> None:
        assert not self.closed

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        os.close(self.wakeup_fd)
        os.close(self.event_fd)


class FakePlane:
    """Gives the frames that a test has added; `captured` is the number of captures so far.

    A frame is (time_ns, direction, frame_bytes, segment_bytes, data).
    """

    def __init__(self) -> None:
        self.capture_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.frames: deque[tuple[int, int, int, int, bytes]] = deque()
        self.snap_bytes: int | None = None
        self.dropped = 0
        self.captured = 0

    def __del__(self) -> None:
        os.close(self.capture_fd)

    def add(self, *frames: tuple[int, int, int, int, bytes]) -> None:
        """From any thread."""
        self.frames.extend(frames)
        os.eventfd_write(self.capture_fd, 1)

    def start_capture(self, snap_bytes: int, port: object = None) -> None:
        assert self.snap_bytes is None
        self.port = port
        self.snap_bytes = snap_bytes
        self.captured += 1

    def read_capture(self, frames: int, total_bytes: int) -> list[tuple[int, int, int, int, bytes]]:
        assert self.snap_bytes is not None
        found = []
        while self.frames and len(found) < frames and total_bytes > 0:
            found.append(self.frames.popleft())
            total_bytes -= len(found[-1][4])
        if not found:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.capture_fd)
        return found

    def capture_dropped(self) -> int:
        return self.dropped

    def stop_capture(self) -> None:
        self.snap_bytes = None
        self.frames.clear()
