"""How WSGI applications are served on loopback and on a Unix socket: gevent's pywsgi with limits.

Owns: connections of the control API and of the metrics port: how long, how large, and the end of
those that lose their place. Does not know: routes, tokens, what the applications answer, who has to
go (`places`).

pywsgi by itself reads slowly sent requests for ever, takes any number of connections, throws away
bodies of any length, prints tracebacks for broken requests and looks its own name up in DNS. Here
a request has to arrive whole within `REQUEST_TIMEOUT_S`, before the application sees it; the
answer may take as long as it needs, as long as the client takes it: one that lets a piece of it
wait for `SEND_TIMEOUT_S` is given up. When `MAX_CONNECTIONS` are open a new one takes the place of
another, whatever that one is doing. So neither idle connections nor such as ask and never read can
keep anybody out. What a client sends ahead waits in the kernel, `BUFFER_BYTES` of it. Whoever asks,
a server answers one request a turn of the hub, and the tunnel has all others' time: with an answer
for each of 64 connections in one turn it waited for 225 ms of processor time.

While the server stops, a request that is still being answered fails with `DaemonStopping`, which the
application tells in its own way.

A request that asks for a WebSocket goes to the application like any other. The application may
take the connection over: `environ[UPGRADE](subprotocol)` sends the 101 answer, which
gevent-websocket makes, and returns the connection. What the application returns in the end is not
sent then. An application that answers without an end finds the socket in `environ[CONNECTION]`, to
look whether somebody is still there; it does not read from it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import logging
import struct
from errno import EBADF, EPIPE
from socket import SHUT_RDWR, SO_LINGER, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import Timeout
from gevent.lock import Semaphore
from gevent.pool import Pool
from gevent.pywsgi import Input, WSGIHandler, WSGIServer
from geventwebsocket.handler import WebSocketHandler

from shadowmesh.base import log
from shadowmesh.base.constants import MAX_API_BODY_BYTES, MAX_HEADER_BYTES
from shadowmesh.base.errors import DaemonStopping
from shadowmesh.control.callers import identify
from shadowmesh.control.guard import CALLER, CONNECTION, HOLD, UPGRADE, error_body
from shadowmesh.control.places import Places

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from gevent.socket import socket as Socket  # noqa: N812

    from shadowmesh.control.callers import Caller
    from shadowmesh.control.rights import Rights

_log = log.get("http")

#: RFC 6455, section 4.1
_WEBSOCKET_VERSION: Final = "13"
_WEBSOCKET_KEY_BYTES: Final = 16

#: each costs a greenlet, a read buffer of 8 KiB, and `BUFFER_BYTES` of the kernel's each way
MAX_CONNECTIONS: Final = 64
#: for those that have shown that they may change something; the others are for everybody
MAX_HELD: Final = 48
#: without a bound the kernel gives megabytes to a connection that asks and does not read
BUFFER_BYTES: Final = 128 * 1024
#: head and body of one request, and the pause before it on a kept connection
REQUEST_TIMEOUT_S: Final = 10.0
_CHUNK_BYTES: Final = 16 * 1024
#: for one piece of an answer
SEND_TIMEOUT_S: Final = 20.0
#: closing forgets what is not sent (socket(7), SO_LINGER: on, 0 s)
_RESET: Final = struct.pack("=ii", 1, 0)


_BAD_REQUEST_BODY: Final = error_body("bad_request", "the request could not be read")
_BAD_REQUEST: Final = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BAD_REQUEST_BODY), _BAD_REQUEST_BODY)
)


class _Ended(BaseException):
    """The connection is to end, now. Not an Exception: nothing below may swallow it."""


class _TooSlow(_Ended):
    """The request did not arrive in time."""


class _Replaced(_Ended):
    """Somebody else has got the place."""


class _HeadReader:
    """The readline of a file, for at most `MAX_HEADER_BYTES` bytes in all."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._left = MAX_HEADER_BYTES

    def readline(self, limit: int = -1) -> bytes:
        allowed = self._left + 1 if limit < 0 else min(limit, self._left + 1)
        line = self._file.readline(allowed)
        self._left -= len(line)
        if self._left < 0:
            raise ValueError(f"the head of the request is longer than {MAX_HEADER_BYTES} bytes")
        return line


class _ReadBody(Input):  # type: ignore[misc]
    """The request's body, read by the handler below; nothing is left to be thrown away."""

    def _discard(self) -> None:
        pass


class _OneProtocol:
    """What gevent-websocket asks the application: which subprotocol it speaks."""

    def __init__(self, subprotocol: str) -> None:
        self._subprotocol = subprotocol

    def app_protocol(self, path: str) -> str:
        return self._subprotocol


class LimitedHandler(WebSocketHandler):  # type: ignore[misc]
    """One connection. Ends when it is closed, refused or replaced.

    Attributes:
        caller: who is at the other end.
        greenlet: that this connection is served in.
        running: the application has a request, whose answer is not sent yet.
    """

    server: LimitedServer
    caller: Caller
    greenlet: gevent.Greenlet
    rfile: Any
    wsgi_input: Any
    _deadline: Timeout | None = None
    running = False
    _upgraded = False

    def read_requestline(self) -> str:
        self._deadline = Timeout.start_new(REQUEST_TIMEOUT_S, _TooSlow)
        line: str = super().read_requestline()
        return line

    def read_request(self, raw_requestline: str) -> Any:
        file = self.rfile
        self.rfile = _HeadReader(file)
        try:
            return super().read_request(raw_requestline)
        finally:
            self.rfile = file

    def handle_one_request(self) -> Any:
        try:
            return super().handle_one_request()
        except _Ended:
            return None
        finally:
            self._stop_deadline()
            self.server.places.rests(self)

    def handle_one_response(self) -> None:
        try:
            self._read_body()
        except (OSError, ValueError):  # ended or broken off in the middle of the body
            self.close_connection = True
            return
        finally:
            self._stop_deadline()
        self.server.places.asks(self)
        self.server.await_turn()
        self.running = True
        try:
            super().handle_one_response()
        finally:
            self.running = False

    def run_application(self) -> None:
        # Not gevent-websocket's, which upgrades before the application can refuse.
        if self._wants_websocket():
            self.environ[UPGRADE] = self._upgrade
        self.environ[CONNECTION] = self.socket
        self.environ[CALLER] = self.caller
        self.environ[HOLD] = self._hold
        WSGIHandler.run_application(self)

    def start_response(self, status: Any, headers: Any, exc_info: Any = None) -> Any:
        if self._upgraded and self.headers_sent:
            return _discard
        return super().start_response(status, headers, exc_info)

    def process_result(self) -> None:
        if not self._upgraded:
            super().process_result()

    def _sendall(self, data: Any) -> None:
        try:
            with Timeout(SEND_TIMEOUT_S):
                super()._sendall(data)
        except Timeout:
            self._forget()
            # As if the client had left, which pywsgi knows how to bear.
            raise BrokenPipeError(EPIPE, "the client does not take the answer") from None
        except OSError as error:
            if error.errno != EBADF:
                raise
            raise BrokenPipeError(EPIPE, "its place was given to another meanwhile") from None

    def log_request(self) -> None:
        """Nothing is logged for each request."""

    def end(self) -> None:
        """End the connection at once, whatever it is doing."""
        if self.running:
            self._forget()
        with contextlib.suppress(OSError):  # the client was quicker
            self.socket.shutdown(SHUT_RDWR)
        self.greenlet.kill(_Replaced, block=False)

    def fail(self, error: DaemonStopping) -> None:
        """Let what the application waits for fail; its answer is the last one."""
        self.close_connection = True
        self.greenlet.kill(error, block=False)

    def _forget(self) -> None:
        """Do not let the kernel keep, and try to send for minutes, what the client does not take."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)

    def _hold(self) -> bool:
        holds, leaves = self.server.places.hold(self)
        if leaves is not None:
            leaves.end()
        return holds

    def _wants_websocket(self) -> bool:
        """Whether this is a right request for a WebSocket. Source: RFC 6455, section 4.2.1."""
        asked = self.environ
        try:
            key = base64.b64decode(asked.get("HTTP_SEC_WEBSOCKET_KEY", ""), validate=True)
        except (binascii.Error, ValueError):
            return False
        options = asked.get("HTTP_CONNECTION", "").lower().split(",")
        return (
            asked["REQUEST_METHOD"] == "GET"
            and self.request_version == "HTTP/1.1"
            and asked.get("HTTP_UPGRADE", "").lower() == "websocket"
            and "upgrade" in (option.strip() for option in options)
            and asked.get("HTTP_SEC_WEBSOCKET_VERSION") == _WEBSOCKET_VERSION
            and len(key) == _WEBSOCKET_KEY_BYTES
        )

    def _upgrade(self, subprotocol: str) -> tuple[Socket, Any]:
        """Answer 101 and return the socket, and the file that its bytes are read from.

        Args:
            subprotocol: told to the client if it has offered it.
        Raises:
            OSError: the connection is gone.
        """
        offered = self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "").split(",")
        if subprotocol not in (one.strip() for one in offered):
            subprotocol = ""
        self.application = _OneProtocol(subprotocol)
        self.upgrade_connection()
        # Theirs reads messages of any length, and would write a close frame when it is collected.
        self.websocket.closed = True
        self.environ["wsgi.websocket"] = None
        self._upgraded = True
        self.close_connection = True
        self.write(b"")
        return self.socket, self.rfile

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.close()
            self._deadline = None

    def _read_body(self) -> None:
        """Take the body off the connection, or so much of it that the application refuses it.

        The rest is not read: closing the connection is the end of it.
        """
        body = bytearray()
        while len(body) <= MAX_API_BODY_BYTES:
            piece = self.wsgi_input.read(_CHUNK_BYTES)
            if not piece:
                break
            body += piece
        else:
            self.close_connection = True
        self.wsgi_input = _ReadBody(io.BytesIO(body), len(body))
        self.environ["wsgi.input"] = self.wsgi_input
        if body:
            self.environ["CONTENT_LENGTH"] = str(len(body))
        self.environ.pop("HTTP_TRANSFER_ENCODING", None)

    def _handle_client_error(self, error: Exception) -> tuple[str, bytes]:
        # pywsgi prints a traceback for some of these
        _log.debug("malformed request refused", error=error)
        return ("400", _BAD_REQUEST)

    def handle_error(self, kind: Any, error: Any, trace: Any) -> None:
        if issubclass(kind, (_Ended, gevent.GreenletExit)):
            self.close_connection = True
            return
        # The applications catch their own errors, so this is a bug of ours.
        _log.exception("request failed outside the application")
        if not self.headers_sent:
            self._send_error_response_if_possible(500)
        self.close_connection = True


def _discard(data: bytes) -> None:
    """Takes the place of write() once the connection is no longer HTTP."""


class LimitedServer(WSGIServer):  # type: ignore[misc]
    """Serves one WSGI application on a listening socket.

    Attributes:
        places: the connections that are open.
    """

    handler_class = LimitedHandler

    def __init__(
        self, listener: Socket, application: WSGIApplication, rights: Rights | None = None
    ) -> None:
        """Args:
        listener: bound and listening, TCP or Unix; closed by stop().
        rights: what credentials give at a Unix socket.
        """
        super().__init__(
            listener,
            application,
            # no bound of its own (see handle), but stop() can end what is still running
            spawn=Pool(),
            log=None,
            error_log=None,
            # given here, because pywsgi would ask DNS for the name of the address
            environ={"SERVER_NAME": "localhost"},
        )
        #: where gevent-websocket writes; ours says what matters
        self.logger = logging.getLogger("geventwebsocket")
        self.logger.disabled = True
        self.places: Places[LimitedHandler] = Places(MAX_CONNECTIONS, MAX_HELD)
        self._handlers: set[LimitedHandler] = set()
        self._turn = Semaphore()
        self._rights = rights
        for option in (SO_SNDBUF, SO_RCVBUF):  # connections have what their listener has
            listener.setsockopt(SOL_SOCKET, option, BUFFER_BYTES)

    def await_turn(self) -> None:
        """Wait until this server answers nobody else in this turn of the hub, first come first served.

        The hub by itself goes through all that is ready before it looks at the sockets again, and
        `sleep(0)` waits for a place in that row, not for its end.
        """
        with self._turn:
            # With the highest priority it is once round the loop, whatever else there is to do.
            gevent.idle(self.loop.MAXPRI)

    def stop(self, timeout: float | None = None) -> None:
        """Stop listening, let running requests finish for timeout seconds, end the others.

        One that is still being answered is told that the daemon stops.
        """
        for handler in tuple(self._handlers):
            if not handler.running:
                handler.end()
            elif not handler.headers_sent:
                handler.fail(DaemonStopping("the daemon is stopping"))
        super().stop(timeout)

    def handle(self, sock: Socket, address: Any) -> None:
        """Serve one connection; pywsgi runs this in a greenlet of its own."""
        handler = self.handler_class(sock, address, self)
        handler.greenlet = gevent.getcurrent()
        handler.caller = identify(sock, address, self._rights)
        leaves = self.places.enter(handler, handler.caller.client)
        if leaves is not None:
            leaves.end()
        self._handlers.add(handler)
        try:
            handler.handle()
        except _Ended:
            pass  # between two requests, where nobody has to hear of it
        finally:
            self._handlers.discard(handler)
            self.places.leave(handler)
