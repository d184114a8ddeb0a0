"""Who listens to the daemon: the WebSockets of `GET /events`.

Owns: the listeners, what they are sent and when, and the end of those that are too slow. Does not
know: HTTP, who may listen, what is in a snapshot.

::

    recorder --event----> message --+--> queue of each listener --its writer greenlet--> socket
    ticker, once a second: snapshot-+    full: the listener is dropped and counted

A message is written as JSON once, for all. Nothing runs while nobody listens.
Frames are RFC 6455's, through gevent-websocket's codec; the client may send control frames only.
"""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections import Counter
from socket import SHUT_RDWR, SO_LINGER, SO_SNDBUF, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import Timeout
from gevent.queue import Full, Queue
from geventwebsocket.exceptions import ProtocolError, WebSocketError
from geventwebsocket.websocket import Header, WebSocket

from shadowmesh.base import log
from shadowmesh.base.constants import (
    MAX_WS_CONTROL_BYTES,
    MAX_WS_CONTROL_PER_SECOND,
    WS_GOING_AWAY,
    WS_NORMAL,
    WS_POLICY,
    WS_PROTOCOL,
    WS_TRY_AGAIN,
    WS_UNSUPPORTED,
)
from shadowmesh.base.rate import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.socket import socket as Socket  # noqa: N812

    from shadowmesh.insight.events import Event, FlightRecorder

#: a dashboard or two and a script; each costs two greenlets and the buffers below
MAX_LISTENERS: Final = 8
SNAPSHOT_INTERVAL_S: Final = 1.0
#: events that a new listener is sent at once
BACKLOG_EVENTS: Final = 200
#: messages that wait for one listener; with the socket's buffer half a minute of them
QUEUE_MESSAGES: Final = 16
SEND_BUFFER_BYTES: Final = 64 * 1024
SEND_TIMEOUT_S: Final = 20.0
#: closing forgets what is not sent (socket(7), SO_LINGER: on, 0 s)
_RESET: Final = struct.pack("=ii", 1, 0)

_log = log.get("feed")


class Feed:
    """All listeners.

    Attributes:
        subprotocol: what is spoken on the WebSocket.
        ended: how listeners ended: `left`, `slow`, `misbehaved`, `replaced`, `shutdown`.
    """

    subprotocol: Final = "shadowmesh.events.v1"

    def __init__(self, snapshot: Callable[[], dict[str, Any]], recorder: FlightRecorder) -> None:
        """Args: snapshot: returns the JSON form of a status snapshot."""
        self.ended: Counter[str] = Counter()
        self._snapshot = snapshot
        self._recorder = recorder
        #: each with its client, the oldest first
        self._listeners: dict[_Listener, str] = {}
        self._ticker: gevent.Greenlet | None = None

    @property
    def listening(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    def make_room(self, client: str) -> bool:
        """Return whether one more of a client may listen.

        When all places are taken, the oldest listener of whoever has the most of them leaves, if
        that is somebody who has at least two more than the newcomer.
        """
        if len(self._listeners) < MAX_LISTENERS:
            return True
        counts = Counter(self._listeners.values())
        most = max(counts.values())
        if most < counts[client] + 2:
            return False
        leaves = next(one for one, whose in self._listeners.items() if counts[whose] == most)
        del self._listeners[leaves]
        leaves.end("replaced", WS_TRY_AGAIN)
        return True

    def serve(self, sock: Socket, file: Any, client: str) -> None:
        """Keep one listener until it leaves or is dropped.

        Args:
            sock: after the upgrade; closed by the caller.
            file: what the client sends is read from here.
            client: whose it is.
        """
        listener = _Listener(sock, file)
        self._listeners[listener] = client
        try:
            if self._ticker is None:
                self._recorder.listen(self._on_event)
                self._ticker = gevent.spawn(self._tick)
            backlog = self._recorder.recent(BACKLOG_EVENTS)
            listener.put(_snapshot_message(self._snapshot()))
            listener.put(_events_message(backlog))
            self.ended[listener.run()] += 1
        finally:
            self._listeners.pop(listener, None)
            if not self._listeners:
                self._rest()

    def stop(self) -> None:
        """Tell every listener that the daemon stops."""
        for listener in tuple(self._listeners):
            listener.end("shutdown", WS_GOING_AWAY)

    def _rest(self) -> None:
        ticker, self._ticker = self._ticker, None
        self._recorder.forget(self._on_event)
        if ticker is not None:
            ticker.kill(block=False)

    def _tick(self) -> None:
        """Send a snapshot each second; ends when killed with the last listener."""
        while True:
            gevent.sleep(SNAPSHOT_INTERVAL_S)
            try:
                self._send(_snapshot_message(self._snapshot()))
            except Exception:  # noqa: BLE001 - the next one may succeed, and the log has this one
                _log.limited(60).exception("no snapshot for the listeners")

    def _on_event(self, event: Event) -> None:
        self._send(_events_message([event]))

    def _send(self, message: bytes) -> None:
        for listener in tuple(self._listeners):
            listener.put(message)


class _Listener:
    """One WebSocket."""

    def __init__(self, sock: Socket, file: Any) -> None:
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES)
        self._sock = sock
        self._file = file
        self._queue: Queue[bytes] = Queue(QUEUE_MESSAGES)
        self._why: str | None = None
        self._rate = TokenBucket(MAX_WS_CONTROL_PER_SECOND, 2 * MAX_WS_CONTROL_PER_SECOND)

    def put(self, message: bytes) -> None:
        """Send a whole frame in a while; one that finds no room is the last."""
        if self._why is None:
            try:
                self._queue.put_nowait(message)
            except Full:
                self.end("slow", None)

    def run(self) -> str:
        """Send and receive until the end; return why it ended."""
        writer = gevent.spawn(self._write)
        try:
            self._read()
        finally:
            writer.kill()
        return self._why or "left"

    def end(self, why: str, code: int | None) -> None:
        """End with a close frame, or without one where it would only wait behind the rest."""
        if self._why is not None:
            return
        self._why = why
        if code is None:
            # What it has not taken would stay in the kernel, which tries for minutes.
            self._sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
        with contextlib.suppress(OSError):
            if code is not None:
                self._sock.settimeout(0.1)
                self._sock.sendall(_frame(WebSocket.OPCODE_CLOSE, struct.pack("!H", code)))
        with contextlib.suppress(OSError):
            self._sock.shutdown(SHUT_RDWR)

    def _write(self) -> None:
        """Send what is queued; ends with the connection, or killed by run()."""
        try:
            while True:
                message = self._queue.get()
                with Timeout(SEND_TIMEOUT_S):
                    self._sock.sendall(message)
        except Timeout:
            self.end("slow", None)
        except OSError:
            self.end("left", None)

    def _read(self) -> None:
        """Answer control frames until the client closes or breaks a rule."""
        try:
            while True:
                header = Header.decode_header(self._file)
                if header.opcode not in _CONTROL:
                    self.end("misbehaved", WS_UNSUPPORTED)
                    return
                if header.flags or header.length > MAX_WS_CONTROL_BYTES or not header.mask:
                    self.end("misbehaved", WS_PROTOCOL)
                    return
                payload = self._file.read(header.length)
                if header.opcode == WebSocket.OPCODE_CLOSE or len(payload) < header.length:
                    self.end("left", WS_NORMAL)
                    return
                if not self._rate.take(time.monotonic()):
                    self.end("misbehaved", WS_POLICY)
                    return
                if header.opcode == WebSocket.OPCODE_PING:
                    self.put(_frame(WebSocket.OPCODE_PONG, bytes(header.unmask_payload(payload))))
        except ProtocolError:
            self.end("misbehaved", WS_PROTOCOL)
        except (WebSocketError, OSError):  # the connection ended
            self.end("left", None)


_CONTROL: Final = (WebSocket.OPCODE_CLOSE, WebSocket.OPCODE_PING, WebSocket.OPCODE_PONG)


def _frame(opcode: int, payload: bytes) -> bytes:
    return bytes(Header.encode_header(True, opcode, b"", len(payload), 0)) + payload


def _text(message: dict[str, Any]) -> bytes:
    payload = json.dumps(message, separators=(",", ":")).encode("ascii")
    return _frame(WebSocket.OPCODE_TEXT, payload)


def _snapshot_message(snapshot: dict[str, Any]) -> bytes:
    return _text({"type": "snapshot", "snapshot": snapshot})


def _events_message(events: list[Event]) -> bytes:
    return _text({"type": "events", "events": [event.to_dict() for event in events]})
