"""The peer port: from TCP accept to an upgraded WebSocket.

Owns: the listening socket, the limits before authentication, the TLS handshake and the upgrade,
each under its own deadline, and a counter for every way a connection can end here. Does not
know: sessions, handshakes, frames after the upgrade.

::

    accept --Admission--> TLS (5 s) --> head, at most 8 KiB (2 s) --check_request--+
                                                                                   |
    on_upgraded(Upgraded) <-- 101 by gevent-websocket's handler <-- our own copy --+

The head is read here, not by the handler: its buffered reader would swallow frames that follow,
and has no deadline. The handler gets a request that holds only what was checked.
Source: protocol sections 5 and 9.
"""

from __future__ import annotations

import errno
import io
import logging
import time
import traceback
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.socket
import h11
from gevent.event import Event
from gevent.pool import Group
from geventwebsocket.handler import WebSocketHandler

from shadowmesh import log
from shadowmesh.admission import Admission, Limits, source_of
from shadowmesh.constants import (
    MAX_HEADER_BYTES,
    TLS_TIMEOUT_S,
    UNAUTHENTICATED_TIMEOUT_S,
    UPGRADE_TIMEOUT_S,
    WS_SUBPROTOCOL,
)
from shadowmesh.errors import NotPermitted, ShadowMeshError
from shadowmesh.link import Upgraded, plain_address, say_goodbye, set_socket_options
from shadowmesh.wire.websocket import UpgradeRefused, check_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.ssl import SSLContext, SSLSocket

    from shadowmesh.config import HostPort

#: connections that the kernel completes before we accept them
BACKLOG: Final = 128
#: Without descriptors or memory accept() fails at once, again and again; the pause doubles from
#: the first to the second.
ACCEPT_PAUSE_MIN_S: Final = 0.1
ACCEPT_PAUSE_MAX_S: Final = 2.0
#: Let others run after so many connections were accepted without a wait.
ACCEPT_TURNS: Final = 8

#: accept(2): an error of the connection that was just being accepted; the next may be good.
_CONNECTION_ERRORS: Final = frozenset({
    errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH,
    errno.EINTR,
})
#: No IPv6 in this kernel, or switched off.
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

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
    426: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
}

_log = log.get(__name__)


class Listener:
    """Accepts peers on one address until stop().

    `counters` counts connections by what became of them:

    ================  ======================================================================
    accepted          taken from the kernel; each is in exactly one of the next eight, later
    upgraded          handed to on_upgraded
    refused_total     too many unauthenticated connections
    refused_source    too many of them from this address or /64
    refused_rate      too many new ones from it within a second
    tls_failed        not TLS 1.3, or closed in the handshake
    timed_out         TLS or the request took too long
    upgrade_refused   answered with an HTTP error
    lost              closed by the other side before its request was complete, or by stop()
    accept_aborted    accept() reported the failure of a connection
    accept_paused     accept() was stopped for a while: no descriptors or memory
    ================  ======================================================================
    """

    def __init__(
        self,
        address: HostPort,
        path: str,
        context: SSLContext,
        certificate_sha256: bytes,
        on_upgraded: Callable[[Upgraded], None],
        *,
        limits: Limits | None = None,
    ) -> None:
        """Prepare; nothing is opened before start().

        Args:
            address: websocket.listen_address; ``[::]`` takes IPv4 too.
            path: websocket.path.
            context: `tls.server_context()`.
            certificate_sha256: of the certificate in that context.
            on_upgraded: called in the greenlet of each upgraded connection, which it may keep.
                It owns the socket from then on and calls release().
            limits: those of the protocol when None.
        """
        self._address = address
        self._path = path
        self._context = context
        self._certificate_sha256 = certificate_sha256
        self._on_upgraded = on_upgraded
        self._admission = Admission(limits or Limits())
        self._upgrader = _Upgrader()
        self._listening: gevent.socket.socket | None = None
        self._accepting: gevent.Greenlet | None = None
        self._pending = Group()
        self._stopping = Event()
        self.counters = dict.fromkeys(
            (
                "accepted", "upgraded", "refused_total", "refused_source", "refused_rate",
                "tls_failed", "timed_out", "upgrade_refused", "lost",
                "accept_aborted", "accept_paused",
            ),
            0,
        )

    @property
    def bound(self) -> tuple[str, int]:
        """(IP address, port) that start() bound; the port is the real one if 0 was asked for."""
        if self._listening is None:
            raise ValueError("the listener is not started")
        host, port = self._listening.getsockname()[:2]
        return host, port

    @property
    def unauthenticated(self) -> int:
        """Connections that count against the limits now."""
        return self._admission.unauthenticated

    def start(self) -> None:
        """Bind, listen and accept.

        Raises:
            NotPermitted: the port needs a privilege.
            ShadowMeshError: the port is taken, or the address is not one of this machine.
        """
        self._listening = _listen(self._address)
        self._accepting = gevent.spawn(self._accept)

    def stop(self) -> None:
        """Close the port and every connection that is not upgraded yet; idempotent."""
        self._stopping.set()
        if self._listening is not None:
            self._listening.close()
        if self._accepting is not None:
            self._accepting.kill()
        self._pending.kill()

    # --- Accepting ----------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept for ever; ends with stop(). Its owner is the listener."""
        assert self._listening is not None
        pause_s, turns = ACCEPT_PAUSE_MIN_S, 0
        while not self._stopping.is_set():
            try:
                raw, sockaddr = self._listening.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                if error.errno in _CONNECTION_ERRORS:
                    self.counters["accept_aborted"] += 1
                    gevent.sleep(0)
                    continue
                if pause_s == ACCEPT_PAUSE_MIN_S:
                    _log.warning("accepting peers is paused", error=error.strerror)
                self.counters["accept_paused"] += 1
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, ACCEPT_PAUSE_MAX_S)
                continue
            pause_s = ACCEPT_PAUSE_MIN_S
            self._admit(raw, plain_address(sockaddr))
            turns += 1
            if turns % ACCEPT_TURNS == 0:
                gevent.sleep(0)

    def _admit(self, raw: gevent.socket.socket, remote: tuple[str, int]) -> None:
        """Start a greenlet for a new connection, or close it."""
        self.counters["accepted"] += 1
        now = time.monotonic()
        source = source_of(remote[0])
        limit = self._admission.admit(source, now)
        if limit is not None:
            self.counters[f"refused_{limit}"] += 1
            _log.debug("connection refused", peer=remote[0], limit=limit)
            raw.close()
            return
        connection = _Connection(
            raw, remote, _Slot(self._admission, source), now + UNAUTHENTICATED_TIMEOUT_S
        )
        # A greenlet that stop() kills before it ran once cannot clean up after itself.
        self._pending.spawn(self._serve, connection).rawlink(partial(self._finished, connection))

    # --- One connection -----------------------------------------------------------------------

    def _serve(self, connection: _Connection) -> None:
        """TLS, head, upgrade, hand-over of one connection; until then it ends within 8 s."""
        timer = gevent.Timeout.start_new(TLS_TIMEOUT_S)
        try:
            self._start_tls(connection)
            timer.close()
            timer = gevent.Timeout.start_new(UPGRADE_TIMEOUT_S)
            leftover = self._upgrade(connection)
        except gevent.Timeout as timeout:
            if timeout is not timer:
                raise
            connection.outcome = "timed_out"
            return
        except UpgradeRefused as refusal:
            connection.outcome, connection.detail = "upgrade_refused", str(refusal)
            timer.close()
            say_goodbye(connection.sock)
            return
        except OSError as error:
            connection.detail = error.strerror or str(error)
            return
        finally:
            timer.close()
        connection.outcome = "upgraded"
        self._hand_over(connection, leftover)

    def _finished(self, connection: _Connection, greenlet: gevent.Greenlet) -> None:
        """Called when the greenlet of a connection has ended, however it ended."""
        if connection.outcome == "upgraded":
            return
        self.counters[connection.outcome] += 1
        connection.sock.close()
        connection.slot.release()
        _log.debug(
            "connection not upgraded",
            peer=connection.remote[0],
            outcome=connection.outcome,
            detail=connection.detail,
        )

    def _start_tls(self, connection: _Connection) -> None:
        try:
            set_socket_options(connection.sock)
            # Raises if the connection was reset already: SSLSocket would lose the descriptor.
            connection.sock.getpeername()
            connection.sock = self._context.wrap_socket(
                connection.sock, server_side=True, do_handshake_on_connect=False
            )
            connection.sock.do_handshake()
        except OSError:
            connection.outcome = "tls_failed"
            raise

    def _hand_over(self, connection: _Connection, leftover: bytes) -> None:
        # From here on stop() must not touch this greenlet: it belongs to on_upgraded.
        self._pending.discard(gevent.getcurrent())
        self.counters["upgraded"] += 1
        upgraded = Upgraded(
            sock=connection.sock,
            remote_address=connection.remote,
            leftover=leftover,
            server=True,
            certificate_sha256=self._certificate_sha256,
            authenticate_by=connection.authenticate_by,
            release=connection.slot.release,
        )
        try:
            self._on_upgraded(upgraded)
        except Exception:
            _log.error("taking over a connection failed by a bug", trace=traceback.format_exc())
            upgraded.sock.close()
            upgraded.release()

    def _upgrade(self, connection: _Connection) -> bytes:
        """Read the request and answer it; return what followed it.

        Raises:
            UpgradeRefused: an HTTP error was sent.
            OSError: the connection is gone.
            gevent.Timeout: raised into it by the caller.
        """
        sock = connection.sock
        try:
            head, leftover = _read_head(sock)
            request = _parse_head(head)
            check_request(
                request.method.decode("ascii"),
                request.target.decode("ascii"),
                f"HTTP/{request.http_version.decode('ascii')}",
                [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers],
                expected_path=self._path,
            )
        except UpgradeRefused as refusal:
            sock.sendall(_http_error(refusal.status))
            raise
        key = next(value for name, value in request.headers if name == b"sec-websocket-key")
        self._upgrader.answer(sock, connection.remote, self._path, key.decode("ascii"))
        return leftover


class _Slot:
    """One counted connection; gives its place back once."""

    def __init__(self, admission: Admission, source: str) -> None:
        self._admission: Admission | None = admission
        self._source = source

    def release(self) -> None:
        if self._admission is not None:
            self._admission.leave(self._source)
            self._admission = None


@dataclass(slots=True)
class _Connection:
    """One admitted connection on its way through the port; `sock` becomes the TLS socket."""

    sock: gevent.socket.socket | SSLSocket
    remote: tuple[str, int]
    slot: _Slot
    authenticate_by: float
    outcome: str = "lost"
    detail: str = ""


def _read_head(sock: SSLSocket) -> tuple[bytes, bytes]:
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


# --- The 101 answer by gevent-websocket -------------------------------------------------------


class _Upgrader:
    """What gevent-websocket's handler takes for its server; writes the 101 answer through it."""

    def __init__(self) -> None:
        self.application = self
        # The handler logs text of its own for each request; the listener logs what matters.
        self.logger = logging.Logger("geventwebsocket", logging.CRITICAL + 1)

    def app_protocol(self, path: str) -> str:
        """The subprotocol that the handler answers with."""
        return WS_SUBPROTOCOL

    def get_environ(self) -> dict[str, Any]:
        """The WSGI environment before the request's own entries."""
        return {}

    def answer(
        self, sock: SSLSocket, remote: tuple[str, int], path: str, websocket_key: str
    ) -> None:
        """Send ``101 Switching Protocols`` for a request that check_request() let pass.

        Raises:
            OSError: the answer could not be sent.
        """
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {websocket_key}\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {WS_SUBPROTOCOL}\r\n\r\n"
        )
        handler = _Handler(sock, remote, self, io.BytesIO(request.encode("latin-1")))
        handler.handle_one_request()
        websocket = getattr(handler, "websocket", None)
        if websocket is not None:
            # When it is collected it would write a close frame of its own into our stream.
            websocket.closed = True
        if websocket is None or handler.code != 101 or not handler.headers_sent:
            raise ConnectionError(errno.EPIPE, "the answer to the upgrade could not be sent")


class _Handler(WebSocketHandler):
    """gevent-websocket's handler, for the upgrade alone."""

    prevent_wsgi_call = True

    def log_request(self) -> None:
        """The listener counts and logs."""

    def handle_error(self, kind: object, error: BaseException, trace: object) -> None:
        """Let everything, deadlines and kills included, reach the listener."""
        raise error


# --- The listening socket ---------------------------------------------------------------------


def _listen(address: HostPort) -> gevent.socket.socket:
    """Return a listening socket; see Listener.start() for the errors."""
    try:
        return _listen_on(address.host, address.port)
    except OSError as error:
        if address.host in ("", "::") and error.errno in _NO_IPV6:
            _log.warning("no IPv6 on this machine, listening on IPv4 only", port=address.port)
        else:
            raise _listen_problem(address, error) from None
    try:
        return _listen_on("0.0.0.0", address.port)
    except OSError as error:
        raise _listen_problem(address, error) from None


def _listen_on(host: str, port: int) -> gevent.socket.socket:
    # AI_PASSIVE and an empty name: the unspecified address. The first answer is the resolver's.
    family, kind, protocol, _, sockaddr = gevent.socket.getaddrinfo(
        host or "::", port, type=gevent.socket.SOCK_STREAM, flags=gevent.socket.AI_PASSIVE
    )[0]
    sock = gevent.socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEADDR, 1)
        if family == gevent.socket.AF_INET6:
            # The system's default (net.ipv6.bindv6only) must not decide whether IPv4 works.
            sock.setsockopt(gevent.socket.IPPROTO_IPV6, gevent.socket.IPV6_V6ONLY, 0)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_problem(address: HostPort, error: OSError) -> ShadowMeshError:
    text = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        return ShadowMeshError(
            f"{text}: port {address.port} is taken; stop the program that"
            f" `ss -ltnp 'sport = :{address.port}'` shows, or set websocket.listen_address"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(
            f"{text}: not permitted; set websocket.listen_address to a port above 1023, or give"
            " the daemon CAP_NET_BIND_SERVICE"
        )
    return ShadowMeshError(
        f"{text}: {error.strerror or error}; set websocket.listen_address to an address of this"
        " machine, or to [::]:9001 for all"
    )
