"""Dialling the peer: name, TCP, TLS, WebSocket upgrade, in one call.

Owns: the order of the steps, their time limits, and what an operator reads when one fails. Does
not know: when or why to dial, what runs over the connection afterwards. Proxies (CONNECT, SOCKS)
are not supported.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.socket

from shadowmesh.base.constants import HANDSHAKE_TIMEOUT_S, TLS_TIMEOUT_S
from shadowmesh.base.errors import (
    ConnectTimeout,
    ControlError,
    PeerRefused,
    PeerUnreachable,
    RemoteProtocolError,
)
from shadowmesh.link.link import Upgraded
from shadowmesh.link.stream import TlsStream
from shadowmesh.link.tcp import plain_address, set_socket_options
from shadowmesh.link.tls import peer_certificate_sha256
from shadowmesh.wire.websocket import ClientUpgrade

if TYPE_CHECKING:
    from gevent.ssl import SSLContext

    from shadowmesh.config import HostPort

#: All steps, all addresses. Shorter than what an operator waits for `connect`, long enough for
#: one dead address, one good one and a slow resolver.
DIAL_TIMEOUT_S: Final = 20.0
#: One address: two retransmitted SYNs (1 s, 3 s) and a little more.
CONNECT_TIMEOUT_S: Final = 5.0
#: From our request to the whole answer; a proxy in between may need to connect first.
UPGRADE_ANSWER_TIMEOUT_S: Final = 5.0
HTTPS_PORT: Final = 443
#: What the server may send up to the end of its answer: its certificates (a chain from a company's
#: proxy is 4 to 10 KiB) and a head of 8 KiB at most.
SERVER_ALLOWANCE_BYTES: Final = 32 * 1024


def dial(
    address: HostPort, path: str, context: SSLContext, *, timeout_s: float = DIAL_TIMEOUT_S
) -> Upgraded:
    """Connect to a peer and upgrade to WebSocket; blocks the calling greenlet only.

    The name is resolved anew on each call. Its addresses are tried one after the other, IPv6
    and IPv4 in turn, each through all steps, until one is upgraded. A killed caller leaves no
    socket behind.

    Args:
        address: name or IP address of the peer, or of the proxy in front of it.
        path: websocket.path of the peer.
        context: `tls.client_context()`.
        timeout_s: for everything together.
    Raises:
        PeerUnreachable: no address, no connection, or no TLS 1.3 at the other end.
        PeerRefused: something answered, but not with the upgrade.
        ConnectTimeout: a step took too long.
        The text names the step that came furthest, why it failed and what to do.
    """
    progress = _Progress(address)
    timer = gevent.Timeout.start_new(timeout_s)
    try:
        failures: list[tuple[int, ControlError]] = []
        for family, sockaddr in _resolve(progress):
            try:
                return _dial_one(progress, family, sockaddr, path, context)
            except ControlError as error:
                failures.append((progress.step, error))
        # The first of those that came furthest says most about what is wrong.
        raise max(failures, key=lambda failure: failure[0])[1]
    except gevent.Timeout as timeout:
        if timeout is not timer:
            raise
        raise progress.timeout(timeout_s) from None
    finally:
        timer.close()


class _Progress:
    """Which step of which address we are at, for the text of an error."""

    STEPS = ("dns", "tcp", "tls", "upgrade")
    NEXT = (
        "check the name in peer.address and this machine's resolver",
        "check the address, that the peer's daemon runs and that a firewall lets TCP through",
        "check that the port is the peer's websocket.listen_address, not another service",
        "check websocket.path on both sides and a proxy in between",
    )

    def __init__(self, address: HostPort) -> None:
        self.address = address
        self.step = 0
        self.at = ""

    def begin(self, name: str, at: str | None = None) -> None:
        self.step = self.STEPS.index(name)
        if at is not None and at != self.address.host:
            self.at = f" at {at}"

    def text(self, why: str) -> str:
        return (
            f"cannot reach {self.address}: {self.STEPS[self.step]}{self.at}: {why};"
            f" {self.NEXT[self.step]}"
        )

    def timeout(self, seconds: float) -> ConnectTimeout:
        return ConnectTimeout(self.text(f"no answer within {seconds:g} s"))


class _Limit:
    """A time limit for one step: ConnectTimeout instead of gevent.Timeout."""

    def __init__(self, progress: _Progress, seconds: float) -> None:
        self._progress = progress
        self._seconds = seconds
        self._timer = gevent.Timeout(seconds)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.close()
        if error is self._timer:
            raise self._progress.timeout(self._seconds) from None


def _resolve(progress: _Progress) -> list[tuple[int, Any]]:
    """Return (family, socket address) of every address of the peer, families in turn.

    The first is the resolver's choice (RFC 6724); after it the other family gets its chance,
    because a broken IPv6 path usually breaks all IPv6 addresses (RFC 8305 section 4).
    """
    address = progress.address
    try:
        # gevent's resolver works in a thread: the hub goes on.
        found = gevent.socket.getaddrinfo(
            address.host, address.port, type=gevent.socket.SOCK_STREAM
        )
    except socket.gaierror as error:
        raise PeerUnreachable(progress.text(error.strerror or "cannot be resolved")) from None
    except (OSError, UnicodeError):
        raise PeerUnreachable(progress.text("this is no host name")) from None
    addresses = list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))
    first = [item for item in addresses if item[0] == addresses[0][0]]
    other = [item for item in addresses if item[0] != addresses[0][0]]
    return [item for pair in zip_longest(first, other) for item in pair if item is not None]


def _dial_one(
    progress: _Progress, family: int, sockaddr: Any, path: str, context: SSLContext
) -> Upgraded:
    stream = _start_tls(progress, _connect(progress, family, sockaddr), context)
    try:
        leftover = _upgrade(progress, stream, path)
        stream.unlimited()
        return Upgraded(
            sock=stream,
            remote_address=plain_address(sockaddr),
            leftover=leftover,
            server=False,
            certificate_sha256=peer_certificate_sha256(stream.tls),
            authenticate_by=time.monotonic() + HANDSHAKE_TIMEOUT_S,
            release=_nothing_to_release,
        )
    except BaseException:
        stream.close()
        raise


def _connect(progress: _Progress, family: int, sockaddr: Any) -> gevent.socket.socket:
    progress.begin("tcp", sockaddr[0])
    try:
        sock = gevent.socket.socket(family, gevent.socket.SOCK_STREAM)
    except OSError as error:  # this family is not available here, or no descriptor is left
        raise PeerUnreachable(progress.text(error.strerror or str(error))) from None
    try:
        set_socket_options(sock)
        with _Limit(progress, CONNECT_TIMEOUT_S):
            sock.connect(sockaddr)
    except OSError as error:
        sock.close()
        raise PeerUnreachable(progress.text(error.strerror or str(error))) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _start_tls(progress: _Progress, sock: gevent.socket.socket, context: SSLContext) -> TlsStream:
    """Return the TLS stream that takes over sock, which is closed after a failure."""
    progress.begin("tls")
    stream = TlsStream(
        sock,
        context,
        server_hostname=_server_name(progress.address.host),
        allowance=SERVER_ALLOWANCE_BYTES,
    )
    try:
        with _Limit(progress, TLS_TIMEOUT_S):
            stream.do_handshake()
    except OSError as error:
        stream.close()
        raise PeerUnreachable(progress.text(_tls_problem(error))) from None
    except BaseException:
        stream.close()
        raise
    return stream


def _upgrade(progress: _Progress, sock: TlsStream, path: str) -> bytes:
    """Ask for the upgrade; return the bytes that came after the answer."""
    progress.begin("upgrade")
    machine = ClientUpgrade(_host_header(progress.address), path, os.urandom)
    try:
        with _Limit(progress, UPGRADE_ANSWER_TIMEOUT_S):
            sock.sendall(machine.request())
            while True:
                answer = machine.receive(sock.recv(4096))
                if answer is not None:
                    return answer.leftover
    except RemoteProtocolError as error:
        raise PeerRefused(progress.text(str(error))) from None
    except OSError as error:
        raise PeerUnreachable(progress.text(error.strerror or str(error))) from None


def _server_name(host: str) -> str | None:
    """The name for SNI; none for an IP address (RFC 6066 section 3)."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return None
    return host


def _host_header(address: HostPort) -> str:
    """RFC 9110 section 7.2; a zone (fe80::1%eth0) means something to this machine only."""
    if ":" in address.host:
        host = f"[{address.host.partition('%')[0]}]"
    else:
        host = address.host.encode("idna").decode("ascii")
    return host if address.port == HTTPS_PORT else f"{host}:{address.port}"


def _tls_problem(error: OSError) -> str:
    if isinstance(error, ConnectionResetError):
        return "the connection was closed during the handshake (no TLS there, or too many tries)"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"no TLS 1.3 there ({reason})"
    return error.strerror or str(error)


def _nothing_to_release() -> None:
    """What we dialled counts against no limit."""
