"""Who looks at the frames: the one capture that may run, and the bytes that it gives.

Owns: the capture that is running, when it ends, how much of the hub's time it may take. Does not
know: HTTP, how frames are copied (`_fastpath`), the layout of pcapng (`pcapng`).

::

    frame path --copies--> ring of 4 MiB --read_capture--> pcapng --next()--> the caller's socket
                 full: counted                              sleeps three times as long as it works

Plaintext leaves the daemon here: every capture is logged and recorded with its start and its end,
and is part of the status while it runs. The ring is wiped; the Python objects between it and the
socket are small, few and soon used again, and nobody wipes those.
"""

from __future__ import annotations

import os
import time
from socket import MSG_PEEK
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import gevent
from gevent.select import select

from shadowmesh import __version__
from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import CAPTURE_DAEMON_STOPS
from shadowmesh.base.errors import CaptureRunning, DeviceUnavailable, NoSuchPeer
from shadowmesh.insight import pcapng
from shadowmesh.insight.status import Capture

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from gevent.socket import socket as Socket  # noqa: N812

    from shadowmesh.insight.events import Recorder

_log = log.get("capture")

#: one turn: a millisecond or two of the hub, which also carries the WSS path
TURN_FRAMES: Final = 512
TURN_BYTES: Final = 256 * 1024
#: a capture sleeps this many times as long as it has worked: a quarter of the hub's time at most
REST_FACTOR: Final = 3.0
#: and at least so long, so that single frames do not come one by one
LEAST_REST_S: Final = 0.005
#: between two blocks of statistics, which also find out whether the other end still takes bytes
STATISTICS_INTERVAL_S: Final = 1.0
#: what was seen before the end is sent within this time, or left out
LAST_S: Final = 2.0

NOTE: Final = (
    "Frames as they cross between the TAP device and the tunnel; outbound is to the peer. The "
    "host's segmentation offload makes frames larger than the MTU, with a remark that says into "
    "what they are cut, and a checksum may not be computed yet: as on any card with offloads."
)
SUPER_FRAME: Final = "segments of {} bytes"


class Plane(Protocol):
    """What a capture needs of the data plane; see `_fastpath.DataPlane`."""

    @property
    def capture_fd(self) -> int: ...
    def start_capture(self, snap_bytes: int, port: Any = None) -> None: ...
    def read_capture(self, frames: int, total_bytes: int) -> list[Any]: ...
    def capture_dropped(self) -> int: ...
    def stop_capture(self) -> None: ...


def _nobody(name: str) -> NoReturn:
    raise NoSuchPeer(f'there is no peer "{name}"; `shadowmesh peers` names all')


class Captures:
    """Lets one capture run at a time."""

    def __init__(
        self,
        plane: Plane,
        device: Callable[[], str | None],
        recorder: Recorder,
        *,
        port_of: Callable[[str], Any] = _nobody,
    ) -> None:
        """Make captures possible.

        Args:
            device: returns the name of the TAP device, None where there is never one.
            port_of: returns the place of a peer in the data plane, or raises NoSuchPeer.
        """
        self._port_of = port_of
        self._plane = plane
        self._device = device
        self._recorder = recorder
        self._running: Stream | None = None

    def start(
        self,
        *,
        snap_bytes: int,
        count: int | None,
        duration_s: float | None,
        sock: Socket | None,
        who: str,
        peer: str | None = None,
    ) -> Stream:
        """Start a capture and return its bytes; the caller closes the stream, come what may.

        Args:
            snap_bytes: how much of a frame is kept.
            count: end after so many frames; None: do not count.
            duration_s: end after this time; None: go on until asked to end.
            sock: the connection that the bytes go to. Its other end asks for the end by sending
                no more (a half-close), or by being gone.
            who: the other end, for the log.
            peer: name of the one whose frames are captured; None: those of all.
        Raises:
            CaptureRunning: there is one already.
            DeviceUnavailable: there is no device between which and the tunnel frames could cross.
            NoSuchPeer: nobody has that name.
        """
        if self._running is not None:
            raise CaptureRunning(
                "a capture is running already: `shadowmesh status` says since when; end it first"
            )
        device = self._device()
        if device is None:
            raise DeviceUnavailable(
                "network.tap_device is empty: this daemon runs without a device, and no frame crosses"
                " it; capture on a machine that has one"
            )
        port = None if peer is None else self._port_of(peer)
        stream = Stream(self._plane, device, sock, snap_bytes, count, duration_s, port)
        self._running = stream
        stream.on_close = lambda: self._ended(stream)
        facts = {"remote": who, "snaplen": snap_bytes, "count": count, "duration_s": duration_s}
        if peer is not None:
            facts["name"] = peer
        _log.info("capture started", **facts)
        self._recorder.record("capture", "capture started", **facts)
        return stream

    def report(self) -> Capture | None:
        """Return what is known of the capture that is running."""
        return None if self._running is None else self._running.report()

    def stop(self) -> None:
        """Let the running capture end, because the daemon stops."""
        if self._running is not None:
            self._running.end(CAPTURE_DAEMON_STOPS)

    def _ended(self, stream: Stream) -> None:
        self._running = None
        facts = {
            "cause": stream.cause,
            "frames": stream.frames,
            "dropped": stream.dropped,
            "seconds": round(boottime() - stream.since, 3),
        }
        _log.info("capture ended", **facts)
        self._recorder.record("capture", "capture ended", **facts)


class Stream:
    """The pcapng bytes of one capture, in pieces. It runs from the start, not from the first piece.

    Attributes:
        since: boot-time seconds.
        frames: captured so far.
        cause: why it has ended; None before.
        on_close: called once, when all is given back.
    """

    def __init__(
        self,
        plane: Plane,
        device: str,
        sock: Socket | None,
        snap_bytes: int,
        count: int | None,
        duration_s: float | None,
        port: Any = None,
    ) -> None:
        self.since = boottime()
        self.frames = 0
        self.cause: str | None = None
        self.on_close: Callable[[], None] = lambda: None
        self._plane = plane
        self._device = device
        self._sock = sock
        self._snap_bytes = snap_bytes
        self._count = count
        self._deadline = None if duration_s is None else time.monotonic() + duration_s
        self._until_ns: int | None = None
        self._last = 0.0
        self._started_ns = time.time_ns()
        self._dropped: int | None = None
        self._closed = False
        plane.start_capture(snap_bytes, port)
        self._pieces = self._make()

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    @property
    def dropped(self) -> int:
        """Frames for which there was no room."""
        return self._plane.capture_dropped() if self._dropped is None else self._dropped

    def report(self) -> Capture:
        return Capture(self.since, self._snap_bytes, self.frames, self.dropped)

    def end(self, cause: str) -> None:
        """Give what was seen up to now, and no more. Idempotent."""
        if self.cause is None:
            self.cause = cause
            self._until_ns = time.time_ns()
            self._last = time.monotonic() + LAST_S
            os.eventfd_write(self._plane.capture_fd, 1)

    def close(self) -> None:
        """Give everything back, at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.cause is None:
            self.cause = "connection lost"
        self._pieces.close()
        self._dropped = self._plane.capture_dropped()
        self._plane.stop_capture()
        self.on_close()

    def _make(self) -> Generator[bytes, None, None]:
        yield pcapng.section(pcapng.Section(f"shadowmesh {__version__}", NOTE)) + pcapng.interface(
            pcapng.Interface(self._device, self._snap_bytes)
        )
        said = time.monotonic()
        while True:
            begun = time.monotonic()
            if self._deadline is not None and begun >= self._deadline:
                self.end("time is over")
            found = self._plane.read_capture(TURN_FRAMES, TURN_BYTES)
            blocks = self._blocks(found)
            worked_s = time.monotonic() - begun
            if blocks:
                yield b"".join(blocks)
            if len(blocks) < len(found) or (self.cause is not None and self._is_over(found)):
                break
            if time.monotonic() >= said + STATISTICS_INTERVAL_S:
                said = time.monotonic()
                yield self._statistics()
            if found:
                gevent.sleep(max(LEAST_REST_S, REST_FACTOR * worked_s))
            self._wait(begun if found else said + STATISTICS_INTERVAL_S)
        yield self._statistics()

    def _blocks(self, found: list[Any]) -> list[bytes]:
        """Return the blocks of those frames that belong to the capture."""
        blocks = []
        for time_ns, direction, frame_bytes, segment_bytes, data in found:
            if self.frames == self._count or (
                self._until_ns is not None and time_ns > self._until_ns
            ):
                break
            comment = SUPER_FRAME.format(segment_bytes) if segment_bytes else ""
            blocks.append(pcapng.packet(time_ns, direction, frame_bytes, data, comment))
            self.frames += 1
        if self.frames == self._count:
            self.end("count reached")
        return blocks

    def _is_over(self, found: list[Any]) -> bool:
        # Times of frames are those of the wall clock, which may be set back.
        return not found or time.monotonic() >= self._last

    def _statistics(self) -> bytes:
        dropped = self.dropped
        return pcapng.statistics(
            pcapng.Statistics(
                time_ns=time.time_ns(),
                received=self.frames + dropped,
                dropped=dropped,
                started_ns=self._started_ns,
                ended_ns=self._until_ns,
                comment=self.cause or "",
            )
        )

    def _wait(self, until: float) -> None:
        """Sleep until there are frames, the other end sends no more, or a time has come.

        Also with a time in the past it looks at the other end: frames may never cease to come.
        """
        if self._deadline is not None:
            until = min(until, self._deadline)
        watched = [self._plane.capture_fd]
        if self._sock is not None:
            watched.append(self._sock.fileno())
        ready, _, _ = select(watched, [], [], max(0.0, until - time.monotonic()))
        if self._sock is not None and self._sock.fileno() in ready:
            self._look_at(self._sock)

    def _look_at(self, sock: Socket) -> None:
        try:
            gone = not sock.recv(1, MSG_PEEK)
        except OSError:
            gone = True
        # Bytes that nobody has asked for are left to the server, which reads them afterwards.
        self._sock = None
        if gone:
            self.end("asked to end")
