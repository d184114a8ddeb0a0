"""Raw Ethernet frames with a canary, a sequence number and a hash.

They prove invariant (a) of the fault catalogue: no frame is delivered twice or altered, and
nothing arrives that was not sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import select
import socket
import struct
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from shadowmesh.netlab import Host

ETHERTYPE = 0x88B5  # IEEE 802, local experiments
ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_OUTGOING = 4
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
VLAN_VALID, VLAN_TPID_VALID = 0x10, 0x40
HEADER = 14
CANARY_BYTES = 16
HASH_BYTES = 16
BODY = struct.Struct(f"!{CANARY_BYTES}sQ{HASH_BYTES}s")
SHORTEST = HEADER + BODY.size
BROADCAST = bytes([255] * 6)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def vlan_tag(identifier: int, *, tpid: int = 0x8100) -> bytes:
    return struct.pack("!HH", tpid, identifier)


def _digest(canary: bytes, sequence: int, filler: bytes) -> bytes:
    return hashlib.sha256(canary + sequence.to_bytes(8) + filler).digest()[:HASH_BYTES]


class Wire:
    """An AF_PACKET socket on one interface of one host."""

    def __init__(self, host: Host, interface: str) -> None:
        self.socket = host.open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        with contextlib.suppress(PermissionError):  # SO_RCVBUFFORCE, past net.core.rmem_max
            self.socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
        self.socket.bind((interface, ETH_P_ALL))
        self.address: bytes = self.socket.getsockname()[4]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the next frame that came in, with its VLAN tags in place; None when none came."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.socket], [], [], left)[0]:
                return None
            frame, ancillary, _, address = self.socket.recvmsg(65600, 64)
            if address[2] == PACKET_OUTGOING:
                continue
            return with_tag(frame, ancillary)
        return None


def with_tag(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """Put back the outer tag, which the kernel moves out of the frame on its way in."""
    for level, kind, data in ancillary:
        if level == SOL_PACKET and kind == PACKET_AUXDATA:
            status, _, _, _, _, tci, tpid = AUXDATA.unpack(data[: AUXDATA.size])
            if status & VLAN_VALID:
                tag = struct.pack("!HH", tpid if status & VLAN_TPID_VALID else 0x8100, tci)
                return frame[:12] + tag + frame[12:]
    return frame


class Canaries:
    """Frames of one sender: made here, recognised and checked here."""

    def __init__(self) -> None:
        self.canary = secrets.token_bytes(CANARY_BYTES)
        self.sent = 0

    def frame(
        self, source: bytes, target: bytes = BROADCAST, *, size: int = 100, tags: bytes = b""
    ) -> bytes:
        """Make the next frame, `size` bytes with header and tags, without checksum."""
        filler = secrets.token_bytes(size - SHORTEST - len(tags))
        body = BODY.pack(self.canary, self.sent, _digest(self.canary, self.sent, filler))
        self.sent += 1
        return target + source + tags + ETHERTYPE.to_bytes(2) + body + filler

    def sequence(self, frame: bytes) -> int | None:
        """Return the number of a frame of ours, None for another's.

        Raises:
            ValueError: the frame has our canary and was altered.
        """
        start = frame.find(self.canary)
        if start < 0:
            return None
        if len(frame) < start + BODY.size:
            raise ValueError("cut short")
        _, sequence, digest = BODY.unpack_from(frame, start)
        if digest != _digest(self.canary, sequence, frame[start + BODY.size :]):
            raise ValueError(f"frame {sequence} was altered")
        return int(sequence)


class Collector:
    """Counts the canary frames that reach one interface while the block runs."""

    def __init__(self, wire: Wire, canaries: Canaries) -> None:
        self.arrived: Counter[int] = Counter()
        self.altered: list[str] = []
        self.last_at = 0.0
        self.longest_gap_s = 0.0
        self.no_room = 0  # frames that a full queue has cost; set by who knows, see `streams`
        self._wire = wire
        self._canaries = canaries
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="collector", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(5)

    def _collect(self) -> None:
        while not self._stop.is_set():
            frame = self._wire.receive(0.1)
            if frame is None:
                continue
            try:
                sequence = self._canaries.sequence(frame)
            except ValueError as error:
                self.altered.append(str(error))
                continue
            if sequence is None:
                continue
            now = time.monotonic()
            if self.last_at:
                self.longest_gap_s = max(self.longest_gap_s, now - self.last_at)
            self.last_at = now
            self.arrived[sequence] += 1

    @property
    def lost(self) -> int:
        return self._canaries.sent - len(self.arrived)

    @property
    def vanished(self) -> int:
        """How many are lost although nothing before, in or behind the tunnel was full."""
        return max(0, self.lost - self.no_room)

    def assert_sound(self) -> None:
        """Nothing came twice, nothing came altered, nothing came that was not sent."""
        assert not self.altered, self.altered[:3]
        twice = [sequence for sequence, times in self.arrived.items() if times > 1]
        assert not twice, f"delivered twice: {twice[:10]}"
        assert all(sequence < self._canaries.sent for sequence in self.arrived)


class Stream:
    """Sends canary frames at a steady rate from a thread while the block runs."""

    def __init__(
        self, wire: Wire, canaries: Canaries, target: bytes, *, per_second: int, size: int = 100
    ) -> None:
        self.errors: Counter[int] = Counter()  # by errno; such a frame never left the socket
        self._wire = wire
        self._canaries = canaries
        self._target = target
        self._per_second = per_second
        self._size = size
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="stream", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _send(self) -> None:
        started = time.monotonic()
        sent = 0
        while not self._stop.is_set():
            due = int((time.monotonic() - started) * self._per_second)
            for _ in range(min(due - sent, 64)):
                frame = self._canaries.frame(self._wire.address, self._target, size=self._size)
                try:
                    self._wire.send(frame)
                except OSError as error:
                    self.errors[error.errno or 0] += 1
                    self._canaries.sent -= 1
            sent = due
            self._stop.wait(0.005)
