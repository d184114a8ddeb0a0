"""The server's side of the WebSocket upgrade on one TLS stream.

Owns: reading the request under a size limit, the plain HTTP errors for those that are refused,
and the 101 answer, which gevent-websocket writes. Does not know: accepting, TLS, deadlines (the
caller's gevent.Timeout ends it), which connection is wanted. What a right request is, is decided
by `wire.websocket.check_request`.

::

    stream --> head, at most 8 KiB --> check_request --> our own copy --> gevent-websocket --> 101
                 +--> leftover: the beginning of the first frame

The head is read here, not by the handler: its buffered reader would swallow the frames that
follow, and knows no limit. The handler gets a request that holds only what was checked.
Source: RFC 6455 section 4.2; protocol sections 5 and 9.
"""

from __future__ import annotations

import errno
import io
import logging
from typing import TYPE_CHECKING, Any, Final

import h11
from geventwebsocket.handler import WebSocketHandler

from shadowmesh.base.constants import MAX_HEADER_BYTES, WS_SUBPROTOCOL
from shadowmesh.wire.websocket import UpgradeRefused, check_request

if TYPE_CHECKING:
    from shadowmesh.link.stream import TlsStream

_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    505: "HTTP Version Not Supported",
}
_EXTRA_HEADERS: Final = {
    405: "Allow: GET\r\n",
    426: "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
}


def upgrade(sock: TlsStream, remote: tuple[str, int], path: str) -> bytes:
    """Read one request and answer it; return the bytes that followed it.

    Args:
        sock: server side, TLS handshake done; stays open in every case.
        remote: (IP address, port) of the client.
        path: websocket.path.
    Raises:
        UpgradeRefused: it was answered with an HTTP error.
        OSError: the connection is gone.
    """
    try:
        head, leftover = _read_head(sock)
        request = _parse_head(head)
        check_request(
            request.method.decode("ascii"),
            request.target.decode("ascii"),
            f"HTTP/{request.http_version.decode('ascii')}",
            [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers],
            expected_path=path,
        )
    except UpgradeRefused as refusal:
        sock.sendall(_http_error(refusal.status))
        raise
    key = next(value for name, value in request.headers if name == b"sec-websocket-key")
    _switch_protocols(sock, remote, path, key.decode("ascii"))
    return leftover


def _read_head(sock: TlsStream) -> tuple[bytes, bytes]:
    """Return (request up to and with its empty line, what came after it).

    Raises:
        UpgradeRefused: longer than MAX_HEADER_BYTES.
        ConnectionError: closed before it was complete.
    """
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) >= MAX_HEADER_BYTES:
            raise UpgradeRefused(f"request head is over {MAX_HEADER_BYTES} bytes", 431)
        part = sock.recv(MAX_HEADER_BYTES - len(data))
        if not part:
            raise ConnectionError(errno.ECONNRESET, "closed before the request was complete")
        data += part
    end += 4
    return bytes(data[:end]), bytes(data[end:])


def _parse_head(head: bytes) -> h11.Request:
    """Return the request of a complete head. Raises UpgradeRefused."""
    if head.count(b"\n") != head.count(b"\r\n"):
        # h11 forgives these; proxies differ about them, which is how requests are smuggled.
        raise UpgradeRefused("request has line feeds without carriage returns", 400)
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
    try:
        parser.receive_data(head)
        event = parser.next_event()
    except h11.RemoteProtocolError as error:
        raise UpgradeRefused(f"request is not HTTP: {error}", 400) from None
    if not isinstance(event, h11.Request):
        raise UpgradeRefused("request is not HTTP", 400)
    return event


def _http_error(status: int) -> bytes:
    """Return a whole answer that tells nothing about this program."""
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n{_EXTRA_HEADERS.get(status, '')}"
        "Content-Length: 0\r\nConnection: close\r\n\r\n"
    ).encode("ascii")


class _Server:
    """What gevent-websocket's handler asks of its server and of its application."""

    def __init__(self) -> None:
        self.application = self
        # The handler has texts of its own for each request; the listener logs what matters.
        self.logger = logging.getLogger("geventwebsocket")
        self.logger.disabled = True

    def app_protocol(self, path: str) -> str:
        """The subprotocol to answer with."""
        return WS_SUBPROTOCOL

    def get_environ(self) -> dict[str, Any]:
        """The WSGI environment before the request's own entries."""
        return {}


class _Handler(WebSocketHandler):
    """gevent-websocket's handler, for the upgrade alone."""

    prevent_wsgi_call = True

    def log_request(self) -> None:
        """The listener counts and logs."""

    def handle_error(self, kind: object, error: BaseException, trace: object) -> None:
        """Let everything, deadlines and kills included, reach the listener."""
        raise error


def _switch_protocols(
    sock: TlsStream, remote: tuple[str, int], path: str, websocket_key: str
) -> None:
    """Send ``101 Switching Protocols``. Raises OSError when it could not be sent."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {websocket_key}\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {WS_SUBPROTOCOL}\r\n\r\n"
    )
    handler = _Handler(sock, remote, _Server(), io.BytesIO(request.encode("latin-1")))
    handler.handle_one_request()
    websocket = getattr(handler, "websocket", None)
    if websocket is not None:
        # When it is collected it would write a close frame of its own into our stream.
        websocket.closed = True
    if websocket is None or handler.code != 101 or not handler.headers_sent:
        raise ConnectionError(errno.EPIPE, "the answer to the upgrade could not be sent")
