"""Dialling the peer: name, TCP, TLS, WebSocket upgrade, in one call.

Owns: the order of the steps, their time limits, and what an operator reads when one fails. Does
not know: when or why to dial, what earlier dials taught (`route`), what runs over the connection
afterwards. Proxies (CONNECT, SOCKS) are not supported.

::

    name --> addresses, families in turn --> TCP to one after the other, 250 ms apart
                     ^                                 | the first that connects
                     '------- none: the next --- TLS, upgrade --> Upgraded
"""

from __future__ import annotations

import os
import socket
import time
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.queue
import gevent.socket

from shadowmesh.base.constants import HANDSHAKE_TIMEOUT_S, TLS_TIMEOUT_S
from shadowmesh.base.errors import (
    ConnectTimeout,
    ControlError,
    PeerRefused,
    PeerUnreachable,
    RemoteProtocolError,
)
from shadowmesh.fast.openssl import TlsError
from shadowmesh.link.link import Upgraded
from shadowmesh.link.route import Route
from shadowmesh.link.stream import TlsStream
from shadowmesh.link.tcp import (
    is_own_address,
    limit_segments,
    plain_address,
    set_socket_options,
)
from shadowmesh.link.tls import peer_certificate_sha256
from shadowmesh.wire.websocket import ClientUpgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shadowmesh.config import HostPort
    from shadowmesh.fast.openssl import TlsContext
    from shadowmesh.link.route import Way

#: All steps, all addresses. Shorter than what an operator waits for `connect`, long enough for
#: one dead address, one good one and a slow resolver.
DIAL_TIMEOUT_S: Final = 20.0
#: One address: two retransmitted SYNs (1 s, 3 s) and a little more.
CONNECT_TIMEOUT_S: Final = 5.0
#: From one address to the next (RFC 8305, section 8), while none has connected.
STAGGER_S: Final = 0.25
#: Connections on their way at a time; with the stagger the ninth begins after two seconds.
CONNECTS_AT_ONCE: Final = 10
#: From our request to the whole answer; a proxy in between may need to connect first.
UPGRADE_ANSWER_TIMEOUT_S: Final = 5.0
HTTPS_PORT: Final = 443
#: What the server may send up to the end of its answer: its certificates (a chain from a company's
#: proxy is 4 to 10 KiB) and a head of 8 KiB at most.
SERVER_ALLOWANCE_BYTES: Final = 32 * 1024


def _anywhere(_host: str) -> None:
    """Every address may be dialled."""


def dial(
    address: HostPort,
    path: str,
    context: TlsContext,
    route: Route | None = None,
    *,
    timeout_s: float = DIAL_TIMEOUT_S,
    refuses: Callable[[str], str | None] = _anywhere,
) -> Upgraded:
    """Connect to a peer and upgrade to WebSocket; blocks the calling greenlet only.

    The name is resolved anew on each call. TCP is tried to its addresses in an overlapping way
    (RFC 8305): the first that connects goes on to TLS and upgrade while the others wait; if that
    fails it is their turn again. A killed caller leaves no socket behind.

    Args:
        address: name or IP address of the peer, or of the proxy in front of it.
        path: websocket.path of the peer.
        context: `tls.client_context()`.
        route: what earlier dials to this peer taught; this one adds what it learns.
        timeout_s: for everything together.
        refuses: says why an IP address, perhaps with a zone, must not be dialled and what to do;
            None when it may be.
    Raises:
        PeerUnreachable: no address, no connection, or no TLS 1.3 at the other end.
        PeerRefused: something answered, but not with the upgrade.
        ConnectTimeout: a step took too long.
        The text names the step that came furthest, why it failed and what to do.
    """
    route = Route() if route is None else route
    progress = _Progress(address)
    timer = gevent.Timeout.start_new(timeout_s)
    race = _Race(progress, route)
    failures: list[tuple[int, ControlError]] = []
    try:
        for way in route.order(_resolve(progress)):
            why = refuses(way[1][0])
            if why is None:
                race.add([way])
            else:
                error = PeerUnreachable(f"cannot reach {address}: {why}")
                failures.append((_Progress.STEPS.index("tcp"), error))
        while (winner := race.next()) is not None:
            sock, sockaddr = winner
            progress.begin("tls", sockaddr[0])
            # Whether the peer is behind it only the handshake will show.
            route.tried(plain_address(sockaddr))
            try:
                return _take(progress, sock, sockaddr, path, context)
            except ControlError as error:
                failures.append((progress.step, error))
                if isinstance(error, ConnectTimeout):
                    route.timed_out()
        failures = race.failures + failures
        # The first of those that came furthest says most about what is wrong.
        raise max(failures, key=lambda failure: failure[0])[1]
    except gevent.Timeout as timeout:
        if timeout is not timer:
            raise
        raise progress.timeout(timeout_s) from None
    finally:
        timer.close()
        race.close()


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
        self.at: str | None = None

    def begin(self, name: str, at: str | None = None) -> None:
        self.step = self.STEPS.index(name)
        if at is not None:
            self.at = at

    def text(self, why: str) -> str:
        at = "" if self.at in (None, self.address.host) else f" at {self.at}"
        return f"cannot reach {self.address}: {self.STEPS[self.step]}{at}: {why}; {self._next()}"

    def _next(self) -> str:
        if self.at is not None and is_own_address(self.at):
            return f"{self.at} is an address of this machine, give one of the peer's"
        return self.NEXT[self.step]

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


class _Race:
    """TCP connections to several addresses, begun one after the other until one is there.

    Attributes:
        failures: (step, why) of the addresses that could not be connected to.
    """

    def __init__(self, progress: _Progress, route: Route) -> None:
        self.failures: list[tuple[int, ControlError]] = []
        self._progress = progress
        self._route = route
        self._waiting: list[Way] = []
        self._running: dict[gevent.Greenlet, Way] = {}
        self._ended: gevent.queue.Queue = gevent.queue.Queue()

    def add(self, ways: Iterable[Way]) -> None:
        """Give the addresses, the best first."""
        self._waiting.extend(ways)

    def next(self) -> tuple[gevent.socket.socket, Any] | None:
        """Return the next connection, which is the caller's, and where to; None: there is none.

        What else was on its way begins anew when another is asked for.
        """
        while self._waiting or self._running:
            if self._waiting and len(self._running) < CONNECTS_AT_ONCE:
                self._begin(self._waiting.pop(0))
            more = self._waiting and len(self._running) < CONNECTS_AT_ONCE
            try:
                greenlet = self._ended.get(timeout=STAGGER_S if more else None)
            except gevent.queue.Empty:
                continue
            way = self._running.pop(greenlet, None)
            if way is None:
                continue  # given up when another had won
            outcome = greenlet.get()
            if isinstance(outcome, ControlError):
                self.failures.append((_Progress.STEPS.index("tcp"), outcome))
                self._route.tried(plain_address(way[1]))
                continue
            self._waiting = [*self._running.values(), *self._waiting]
            try:
                self.close()
            except BaseException:  # it waits, so we may be killed meanwhile
                outcome.close()
                raise
            return outcome, way[1]
        return None

    def close(self) -> None:
        """Give up what is on its way."""
        running, self._running = self._running, {}
        gevent.killall(list(running))
        for greenlet in running:
            if isinstance(greenlet.value, gevent.socket.socket):
                greenlet.value.close()  # it came too late for the kill

    def _begin(self, way: Way) -> None:
        progress = _Progress(self._progress.address)
        progress.begin("tcp", way[1][0])
        if not self._running:
            self._progress.begin("tcp", way[1][0])  # whom to name if all time is up
        greenlet = gevent.Greenlet(_connect, progress, *way, self._route.segment_bytes)
        self._running[greenlet] = way
        greenlet.rawlink(self._ended.put)
        greenlet.start()


def _connect(
    progress: _Progress, family: int, sockaddr: Any, segment_bytes: int | None
) -> gevent.socket.socket | ControlError:
    """Return the connected socket, or why there is none; ends with either or when killed."""
    try:
        sock = gevent.socket.socket(family, gevent.socket.SOCK_STREAM)
    except OSError as error:  # this family is not available here, or no descriptor is left
        return PeerUnreachable(progress.text(error.strerror or str(error)))
    try:
        set_socket_options(sock)
        if segment_bytes is not None:
            limit_segments(sock, segment_bytes)
        with _Limit(progress, CONNECT_TIMEOUT_S):
            sock.connect(sockaddr)
    except ControlError as error:
        sock.close()
        return error
    except OSError as error:
        sock.close()
        return PeerUnreachable(progress.text(error.strerror or str(error)))
    except BaseException:
        sock.close()
        raise
    return sock


def _take(
    progress: _Progress, sock: gevent.socket.socket, sockaddr: Any, path: str, context: TlsContext
) -> Upgraded:
    """Take a connection through TLS and upgrade; closes it when that fails."""
    stream = _start_tls(progress, sock, context)
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


def _start_tls(progress: _Progress, sock: gevent.socket.socket, context: TlsContext) -> TlsStream:
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
    """The name for SNI: without a dot at its end, and none for an IP address (RFC 6066 section 3).

    The dot says to the resolver that the name is whole; others take it for another name.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return None
    return host.removesuffix(".")


def _host_header(address: HostPort) -> str:
    """RFC 9110 section 7.2; a zone (fe80::1%eth0) means something to this machine only."""
    if ":" in address.host:
        host = f"[{address.host.partition('%')[0]}]"
    else:
        host = address.host.removesuffix(".").encode("idna").decode("ascii")
    return host if address.port == HTTPS_PORT else f"{host}:{address.port}"


def _tls_problem(error: OSError) -> str:
    if isinstance(error, ConnectionResetError):
        return "the connection was closed during the handshake (no TLS there, or too many tries)"
    if isinstance(error, TlsError):
        return f"no TLS 1.3 there ({error.strerror})"
    return error.strerror or str(error)


def _nothing_to_release() -> None:
    """What we dialled counts against no limit."""
