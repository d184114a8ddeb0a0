"""One WebSocket link after its upgrade: the socket, its two greenlets, its end.

Owns: the stream of an `Upgraded`, the reader and the writer greenlet, the write deadline, the close
sequence. Does not know: TLS and how it is fed (`stream`), the options of TCP (`tcp`), what records
and messages contain, who the peer is, why the link is wanted. Frames of the data path pass by
inside the pipe and are never seen here.

::

    until carry(), that is, while the peer may be anybody
    stream --read_into--> pipe.recv_buffer() --ingest--> events --> on_events     reader greenlet
    pipe.outgoing() <--wakeup_fd-- (hub, TAP thread);  --write, flush--> stream   writer greenlet

    afterwards
    a thread of the data plane moves the bytes; pipe.events() --> on_events       reader greenlet,
                                                             which is there only while there are any

What TLS itself wants to send (the answer to a key update) is flushed by the reader if TCP takes it
at once, else by the writer: a reader that waited for room could wait for a peer that does the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import gevent
from gevent.event import Event

from shadowmesh.base import log
from shadowmesh.base.constants import WS_ABNORMAL, WS_GOING_AWAY, WS_NORMAL
from shadowmesh.base.errors import REPORT_BUG, DeviceError, LocalProtocolError, RemoteProtocolError
from shadowmesh.link.stream import TlsStream
from shadowmesh.link.tcp import Progress, bytes_acked, progress
from shadowmesh.wire.websocket import decode_close, encode_close

if TYPE_CHECKING:
    from shadowmesh.fast.openssl import Tls

#: A greenlet whose socket never makes it wait steps aside after so many calls. One call works on
#: one TLS record, 20 to 100 us, so the hub waits about half a millisecond.
READ_TURNS: Final = 8
WRITE_TURNS: Final = 2
#: close(): what is queued, and the close frame, get this long to leave
FLUSH_TIMEOUT_S: Final = 1.0
#: How long a call-back of the owner may go on after the link ended before it is cut off.
CALLBACK_TIMEOUT_S: Final = 1.0
#: While a write is stuck, progress is looked for so many times per write timeout.
PROGRESS_CHECKS: Final = 4

#: RFC 6455 section 7.4.1: our own failure, not the peer's
WS_INTERNAL_ERROR: Final = 1011

#: decode_close() of a close frame without a code; may not be sent
_NO_CODE: Final = 1005

OP_CLOSE: Final = 0x8
OP_PING: Final = 0x9
OP_PONG: Final = 0xA

_WAIT_READ: Final = 1

#: ("message", bytes) or ("record", key_id, inner_type, body), as the pipe's ingest() returns it
LinkEvent = tuple[Any, ...]

_log = log.get("link")


class Pipe(Protocol):
    """What a link needs of `_fastpath.Pipe`; the owner of the pipe keeps the rest."""

    @property
    def wakeup_fd(self) -> int:
        """An eventfd, readable when outgoing() has something; outgoing() clears it."""

    def recv_buffer(self) -> memoryview:
        """At least one byte of writable space, valid until the next call of ingest()."""

    def ingest(self, count: int) -> Sequence[LinkEvent]:
        """Take `count` bytes of recv_buffer(); with 0 go on until there are no more events.

        Raises RemoteProtocolError.
        """

    def outgoing(self) -> memoryview | None:
        """Bytes to send, unchanged until sent(); None when there is nothing."""

    def sent(self, count: int) -> None:
        """`count` bytes of the last outgoing() have left."""

    def send_ws_control(self, opcode: int, payload: bytes) -> None:
        """Queue a control frame of at most 125 bytes. LocalProtocolError: there is no room."""

    def carry(self, tls: Tls, fd: int) -> None:
        """Let the data plane move the bytes from now on, until release().

        Raises DeviceError: it cannot.
        """

    def release(self) -> None:
        """Take the bytes back."""

    @property
    def event_fd(self) -> int:
        """An eventfd, readable when one of the following has something new."""

    def events(self) -> Sequence[LinkEvent]:
        """What has come, like ingest(); [] when there is nothing more for now.

        Raises RemoteProtocolError, and OSError when the connection has failed.
        """

    @property
    def ended(self) -> bool:
        """The peer's end has come."""

    @property
    def blocked(self) -> bool:
        """TCP takes nothing for now. Told once, and after watch() once again."""

    def watch(self) -> None:
        """Let event_fd tell of the next time that the connection is blocked."""

    def stop_reading(self) -> None:
        """Take no more from the peer, and tell when the pipe is empty."""

    @property
    def empty(self) -> bool:
        """All has left, or nothing leaves any more."""

    def close(self) -> None:
        """Free everything; no other call follows."""


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A connection that has become a WebSocket; made by the listener and by `dial`.

    Attributes:
        sock: the TLS stream; whoever holds this object owns it.
        remote_address: (IP address, port) of the other end of the TCP connection; an IPv4
            address is never written as an IPv4-mapped IPv6 address.
        leftover: bytes that came after the HTTP head: the beginning of the first frame.
        server: we accepted; the peer's frames are masked, ours are not.
        certificate_sha256: of the server's certificate: served (server) or seen (client).
        authenticate_by: time.monotonic() at which an unauthenticated connection is to be
            closed by its owner.
        release: tells the listener that this connection is authenticated or closed and no
            longer counts against its limits. May be called any number of times.
    """

    sock: TlsStream
    remote_address: tuple[str, int]
    leftover: bytes
    server: bool
    certificate_sha256: bytes
    authenticate_by: float
    release: Callable[[], None]


class Link:
    """Moves bytes between one upgraded connection and its pipe until either ends.

    All methods belong to the hub's thread.
    """

    def __init__(
        self,
        upgraded: Upgraded,
        pipe: Pipe,
        *,
        on_events: Callable[[Sequence[LinkEvent]], None],
        on_closed: Callable[[str, int], None],
        write_timeout_s: float,
    ) -> None:
        """Take over the socket and the pipe; nothing moves before start().

        Args:
            on_events: called in the reader greenlet with each batch of events, in order, pings,
                pongs and closes taken out. RemoteProtocolError raised by it ends the link as if
                the pipe had raised it; any other exception is logged and ends the link with
                1011. Not called any more once the link is ending.
            on_closed: called exactly once, after the socket is closed, with a reason for the
                log and for people, and the close code: the peer's, ours, or 1006.
            write_timeout_s: the link ends when the peer takes no byte for so long.
        """
        self._upgraded = upgraded
        self._stream = upgraded.sock
        self._pipe = pipe
        self._on_events = on_events
        self._on_closed = on_closed
        self._write_timeout_s = write_timeout_s
        self._ending: tuple[str, int] | None = None
        self._flushing = False
        self._in_callback = False
        #: the data plane is to have the bytes; the reader has stopped for that; it has them
        self._to_be_carried = self._reader_stopped = self._carried = False
        #: set when the reader has to look for something, in place of what it waits for
        self._input = Event()
        self._ended = Event()
        self._finisher: gevent.Greenlet | None = None
        self._watchman: gevent.Greenlet | None = None
        self._reader: gevent.Greenlet | None = gevent.Greenlet(self._run, self._read, "reading")
        self._writer: gevent.Greenlet | None = gevent.Greenlet(self._run, self._write, "sending")
        loop = gevent.get_hub().loop
        self._wakeup_wait = loop.io(pipe.wakeup_fd, _WAIT_READ)
        self._event_wait: Any = None

    @property
    def remote_address(self) -> tuple[str, int]:
        """(IP address, port) of the other end."""
        return self._upgraded.remote_address

    @property
    def certificate_sha256(self) -> bytes:
        """Hash of the certificate served or seen, 32 bytes."""
        return self._upgraded.certificate_sha256

    @property
    def closed(self) -> bool:
        """The link is ending or has ended; on_closed was or will be called."""
        return self._ending is not None

    def progress(self) -> Progress | None:
        """How far the peer's kernel is with what we sent; None when the link is ending."""
        return None if self.closed else progress(self._stream.tcp)

    def start(self) -> None:
        """Start both greenlets. They end with the link, or when the data plane takes over."""
        for greenlet in (self._reader, self._writer):
            assert greenlet is not None
            greenlet.start()

    def carry(self) -> None:
        """Let a thread of the data plane move the bytes: the peer is authentic.

        Soon, not at once: each of the greenlets comes to the end of what it is doing.
        """
        self._to_be_carried = True
        self._input.set()

    def close(self, code: int = WS_NORMAL, reason: str = "closed by this side") -> None:
        """End the link: send what is queued and a close frame, then close the socket.

        Returns when on_closed has returned, at most about 3 s later; at once when called from
        on_events, from on_closed or for a link that has already ended. Only the first reason
        counts.

        Args:
            code: goes into the close frame; the reason does not go on the wire.
        """
        self._end(reason, code, farewell=code)
        if gevent.getcurrent() not in (self._reader, self._writer, self._finisher):
            self._ended.wait()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until on_closed has returned; False when timeout_s passed first."""
        return bool(self._ended.wait(timeout_s))

    # --- The two greenlets --------------------------------------------------------------------

    def _run(self, work: Callable[[], None], doing: str) -> None:
        """Body of both greenlets; ends when work() ends, and turns every failure into an end."""
        try:
            work()
        except gevent.GreenletExit:
            return  # as the greenlet's value it would hold this stack, and with it the pipe
        except RemoteProtocolError as error:
            self._end(
                f"the peer broke the protocol: {error}", error.close_code, farewell=error.close_code
            )
        except OSError as error:
            self._end(f"connection lost while {doing}: {error.strerror or error}", WS_ABNORMAL)
        except Exception:  # noqa: BLE001 - every failure reaches the owner
            self._end_by_bug(f"while {doing}")

    def _read(self) -> None:
        """Feed the pipe until the connection or the link ends."""
        self._ingest_leftover()
        pipe, stream, turns = self._pipe, self._stream, 0
        while self._ending is None:
            if self._to_be_carried:
                self._reader_stopped = True
                os.eventfd_write(pipe.wakeup_fd, 1)
                return
            count = stream.read_into(pipe.recv_buffer())
            if count:
                self._take(count)
            elif stream.ended:
                self._end("the connection ended without a close frame", WS_ABNORMAL)
                return
            if stream.unsent and not stream.flush():
                os.eventfd_write(pipe.wakeup_fd, 1)
            turns += 1
            if not stream.ready:
                stream.wait_readable(self._input)
                turns = 0
            elif turns == READ_TURNS:
                turns = 0
                gevent.sleep(0)

    def _write(self) -> None:
        """Send what the pipe holds until the link ends; when flushing, until the pipe is empty."""
        pipe, turns = self._pipe, 0
        hub = gevent.get_hub()
        while True:
            self._send_sealed()
            if self._reader_stopped and self._ending is None:
                try:
                    pipe.carry(self._stream.tls, self._stream.fileno())
                except DeviceError as error:
                    why = f"this machine cannot carry the link: {error}"
                    self._end(why, WS_GOING_AWAY, farewell=WS_GOING_AWAY)
                    continue
                self._carried = True
                self._reader = self._writer = None
                self._event_wait = hub.loop.io(pipe.event_fd, _WAIT_READ)
                self._event_wait.start(self._on_event_fd)
                return
            pending = pipe.outgoing()
            if pending is None:
                if self._flushing:
                    return
                hub.wait(self._wakeup_wait)
                turns = 0
                continue
            self._stream.write(pending)
            self._send_sealed()
            pipe.sent(len(pending))
            turns += 1
            if turns == WRITE_TURNS:
                turns = 0
                gevent.sleep(0)

    def _on_event_fd(self) -> None:
        """Have a greenlet look what the data plane has to tell. Called by the loop.

        One that waited for it would hold 10 KiB, and most links are idle most of the time.
        """
        self._event_wait.stop()
        self._reader = gevent.spawn(self._run, self._follow, "reading")

    def _follow(self) -> None:
        """Hand on what the data plane has for the hub; ends when there is nothing more."""
        pipe, turns = self._pipe, 0
        os.eventfd_read(pipe.event_fd)
        while self._ending is None and (events := pipe.events()):
            self._handle(events)
            turns += 1
            if turns == READ_TURNS:
                turns = 0
                gevent.sleep(0)
        if self._ending is not None:
            return
        if pipe.ended:
            self._end("the connection ended without a close frame", WS_ABNORMAL)
            return
        if pipe.blocked and (self._watchman is None or self._watchman.dead):
            self._watchman = gevent.spawn(self._run, self._watch_writes, "sending")
        self._reader = None
        self._event_wait.start(self._on_event_fd)

    def _watch_writes(self) -> None:
        """While the data plane waits for TCP; TimeoutError when the peer acknowledges nothing."""
        step_s = self._write_timeout_s / PROGRESS_CHECKS
        while self._pipe.blocked and self._ending is None:
            acked, idle_steps = bytes_acked(self._stream.tcp), 0
            while self._pipe.blocked and idle_steps < PROGRESS_CHECKS and self._ending is None:
                gevent.sleep(step_s)
                before, acked = acked, bytes_acked(self._stream.tcp)
                idle_steps = idle_steps + 1 if acked == before else 0
            if idle_steps == PROGRESS_CHECKS and self._pipe.blocked:
                raise self._took_nothing()
            self._pipe.watch()

    def _took_nothing(self) -> TimeoutError:
        return TimeoutError(
            errno.ETIMEDOUT, f"the peer took nothing for {self._write_timeout_s:g} s"
        )

    def _ingest_leftover(self) -> None:
        rest = memoryview(self._upgraded.leftover)
        while rest and self._ending is None:
            space = self._pipe.recv_buffer()
            count = min(len(rest), len(space))
            space[:count] = rest[:count]
            rest = rest[count:]
            self._take(count)

    def _take(self, count: int) -> None:
        """Let the pipe parse; it stops after events whose handling decides how it goes on."""
        events = self._pipe.ingest(count)
        while events and self._ending is None:
            self._handle(events)
            if self._to_be_carried:
                return  # whoever moves the bytes goes on
            events = self._pipe.ingest(0)

    def _handle(self, events: Sequence[LinkEvent]) -> None:
        """Answer WebSocket control frames; hand everything else to the owner, in order."""
        if all(event[0] in ("message", "record") for event in events):
            self._deliver(events)
            return
        for event in events:
            if self._ending is not None:
                return
            if event[0] == "ping":
                self._send_control(OP_PONG, event[1])
            elif event[0] == "close":
                self._end_by_peer(event[1])
            elif event[0] != "pong":  # we send no pings; RFC 6455 allows unasked pongs
                self._deliver([event])

    def _send_control(self, opcode: int, payload: bytes) -> None:
        # The pipe is full only when the peer takes nothing; the write timeout deals with that.
        with contextlib.suppress(LocalProtocolError):
            self._pipe.send_ws_control(opcode, payload)

    def _deliver(self, events: Sequence[LinkEvent]) -> None:
        self._in_callback = True
        try:
            self._on_events(events)
        except RemoteProtocolError:
            raise
        except Exception:  # noqa: BLE001 - in _run() an OSError means the connection
            self._end_by_bug("in on_events")
        finally:
            self._in_callback = False

    def _send_sealed(self) -> None:
        """Send what TLS has sealed; raises TimeoutError when the peer stops taking."""
        while not self._stream.flush():
            self._wait_for_progress()

    def _wait_for_progress(self) -> None:
        """Wait until the socket is ready; TimeoutError when the peer acknowledges nothing.

        One write may be a dozen TLS records, and a slow path may need longer than the timeout
        for them: so what counts is whether the peer's kernel takes bytes at all.
        """
        step_s = self._write_timeout_s / PROGRESS_CHECKS
        acked, idle_steps = bytes_acked(self._stream.tcp), 0
        while idle_steps < PROGRESS_CHECKS:
            with gevent.Timeout(step_s, False):
                self._stream.wait_writable()
                return
            before, acked = acked, bytes_acked(self._stream.tcp)
            idle_steps = idle_steps + 1 if acked == before else 0
        raise self._took_nothing()

    # --- The end ------------------------------------------------------------------------------

    def _end_by_peer(self, payload: bytes) -> None:
        """The peer's close frame is answered with its own code. Raises RemoteProtocolError."""
        code, text = decode_close(payload)
        why = f"the peer closed the link with code {code}"
        farewell = WS_NORMAL if code == _NO_CODE else code
        self._end(f"{why}: {text}" if text else why, code, farewell=farewell)

    def _end_by_bug(self, where: str) -> None:
        """An exception that nobody expected: keep its stack, and let the owner go on."""
        _log.exception("link ended by a bug", where=where, peer=self.remote_address[0])
        self._end(
            f"internal error of the link; {REPORT_BUG}",
            WS_INTERNAL_ERROR,
            farewell=WS_INTERNAL_ERROR,
        )

    def _end(self, reason: str, code: int, *, farewell: int | None = None) -> None:
        """Start the end, once. `farewell` is the code of the close frame to send, if any."""
        if self._ending is None:
            self._ending = (reason, code)
            self._finisher = gevent.spawn(self._finish, reason, code, farewell)

    def _finish(self, reason: str, code: int, farewell: int | None) -> None:
        """The end, in its own greenlet: stop, flush, close, tell. Ends by itself within 3 s."""
        for step in (
            self._stop_reader,
            partial(self._flush, farewell),
            self._stop_writer,
            self._pipe.release,
            partial(self._close_socket, linger=farewell is not None),
            self._free,
            partial(self._on_closed, reason, code),
            # Last: the next connection may come only when the owner has given back its seat.
            self._upgraded.release,
        ):
            try:
                step()
            except Exception:  # noqa: BLE001 - the other steps free the socket, tell the owner
                _log.exception("closing a link failed by a bug", peer=self.remote_address[0])
        # The owner holds us and we its call-backs: in a cycle the pipe's descriptor and its
        # megabyte would wait for the garbage collector.
        self._on_events = self._on_closed = _ignore
        self._ended.set()

    def _stop_reader(self) -> None:
        if self._event_wait is not None:
            self._event_wait.stop()
        reader = self._reader
        if reader is None:
            return
        if self._in_callback:
            # The reader is in the owner's code, which may have ended the link: let it return.
            reader.join(CALLBACK_TIMEOUT_S)
        reader.kill()

    def _stop_writer(self) -> None:
        if self._writer is not None:
            self._writer.kill()

    def _flush(self, farewell: int | None) -> None:
        """Give the queue and a close frame FLUSH_TIMEOUT_S to leave."""
        writer = self._writer
        if farewell is None or not (self._carried or (writer is not None and writer.started)):
            return
        self._send_control(OP_CLOSE, encode_close(farewell))
        if writer is None:
            self._await_empty()
            return
        self._flushing = True
        os.eventfd_write(self._pipe.wakeup_fd, 1)
        writer.join(FLUSH_TIMEOUT_S)

    def _await_empty(self) -> None:
        self._pipe.stop_reading()
        with gevent.Timeout(FLUSH_TIMEOUT_S, False):
            while not self._pipe.empty:
                gevent.get_hub().wait(self._event_wait)
                os.eventfd_read(self._pipe.event_fd)

    def _close_socket(self, *, linger: bool) -> None:
        if linger:
            self._stream.goodbye()
        self._stream.close()

    def _free(self) -> None:
        self._wakeup_wait.close()
        if self._event_wait is not None:
            self._event_wait.close()
        if self._watchman is not None:
            self._watchman.kill()
        self._pipe.close()


def _ignore(*what: object) -> None:
    """The call-back of an owner who has been told all."""
