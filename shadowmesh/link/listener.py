"""The peer port: from TCP accept to an upgraded WebSocket.

Owns: accepting, the deadlines before the upgrade, and a counter for every way a connection can end
here. Does not know: how the listening socket is bound (`bind`), who has to make room (`admission`),
HTTP, sessions, handshakes, frames after the upgrade.

::

    accept --> first byte (2 s) --> TLS (5 s) --> upgrade (2 s) --> on_upgraded(Upgraded)
               no greenlet, no TLS   16 KiB of input in all

Source: protocol sections 5 and 9.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pool import Group

from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import (
    CLIENT_ALLOWANCE_BYTES,
    FIRST_BYTE_TIMEOUT_S,
    MAX_ACCEPTED,
    PLACES_FOR_KNOWN,
    TLS_TIMEOUT_S,
    UNAUTHENTICATED_TIMEOUT_S,
    UPGRADE_TIMEOUT_S,
)
from shadowmesh.config import HostPort
from shadowmesh.fast.openssl import TlsFlood
from shadowmesh.link.admission import Admission, Limits, Place, Stage, source_of
from shadowmesh.link.bind import listen
from shadowmesh.link.link import Upgraded
from shadowmesh.link.stream import TlsStream
from shadowmesh.link.tcp import plain_address, set_socket_options
from shadowmesh.link.upgrade import upgrade
from shadowmesh.wire.websocket import UpgradeRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.fast.openssl import TlsContext
    from shadowmesh.link.known import KnownAddresses

#: Without descriptors or memory accept() fails at once, again and again; the pause doubles from
#: the first to the second.
ACCEPT_PAUSE_MIN_S: Final = 0.1
ACCEPT_PAUSE_MAX_S: Final = 2.0
#: A fault that lasts is logged once in this time.
LOG_INTERVAL_S: Final = 60.0
#: Let others run after so many connections were accepted without a wait.
ACCEPT_TURNS: Final = 8
#: The first byte of a ClientHello: a TLS record of type handshake.
_CLIENT_HELLO: Final = b"\x16"
_WAIT_READ: Final = 1

#: accept(2): an error of the connection that was just being accepted; the next may be good.
_CONNECTION_ERRORS: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.EINTR,
    }
)

_log = log.get("listener")


class Listener:
    """Accepts peers on one address until stop().

    `counters` counts connections by what became of them:

    =================  =====================================================================
    accepted           taken from the kernel; each is in exactly one of the next ten, later
    upgraded           handed to on_upgraded
    refused_rate       too many new ones from its source within a second
    silent             sent nothing
    evicted_accepted   sent nothing, and its place was needed
    evicted_tls        had not asked for the upgrade, and its place was needed
    tls_failed         not TLS 1.3, or closed in the handshake
    tls_flood          made TLS work without sending a request, or sent too much
    timed_out          TLS or the request took too long
    upgrade_refused    answered with an HTTP error
    lost               closed by the other side before its request was complete, or by stop()
    evicted_handshake  was upgraded, had not authenticated, and its place was needed
    accept_aborted     accept() reported the failure of a connection
    accept_paused      accept() was stopped for a while: no descriptors or memory
    =================  =====================================================================
    """

    def __init__(
        self,
        address: HostPort,
        path: str,
        context: TlsContext,
        certificate_sha256: bytes,
        on_upgraded: Callable[[Upgraded], None],
        known: KnownAddresses,
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
            known: addresses for which places are kept.
            limits: those of the protocol when None, with fewer silent connections if the process
                may not have that many descriptors.
        """
        self._address = address
        self._path = path
        self._served = context, certificate_sha256
        self._on_upgraded = on_upgraded
        self._known = known
        self._admission = Admission(limits or _affordable_limits())
        self._listening: gevent.socket.socket | None = None
        self._accepting: gevent.Greenlet | None = None
        self._silent: set[_Connection] = set()
        self._pending = Group()
        self._stopping = Event()
        self.counters = dict.fromkeys(
            (
                "accepted",
                "upgraded",
                "refused_rate",
                "silent",
                "evicted_accepted",
                "evicted_tls",
                "tls_failed",
                "tls_flood",
                "timed_out",
                "upgrade_refused",
                "lost",
                "evicted_handshake",
                "accept_aborted",
                "accept_paused",
            ),
            0,
        )

    def serve(self, context: TlsContext, certificate_sha256: bytes) -> None:
        """Show another certificate to those who connect from now on."""
        self._served = context, certificate_sha256

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
        return sum(self.held.values())

    @property
    def held(self) -> dict[str, int]:
        """Connections that count against the limits now, by stage."""
        return {stage.value: self._admission.held(stage) for stage in Stage}

    @property
    def fd(self) -> int:
        """The listening socket, this object's."""
        if self._listening is None:
            raise ValueError("the listener is not started")
        return self._listening.fileno()

    def start(self, held: int | None = None) -> None:
        """Bind, listen and accept.

        Args:
            held: a listening socket in which `misfit` found no fault, to use instead of a new
                one; from now on ours.
        Raises:
            NotPermitted: the port needs a privilege.
            ShadowMeshError: the port is taken, or the address is not one of this machine.
        """
        if held is None:
            self._listening = listen(self._address)
        else:
            self._listening = gevent.socket.socket(fileno=held)
        self._accepting = gevent.spawn(self._accept, self._listening)

    def stop(self) -> None:
        """Close the port and every connection that is not upgraded yet; idempotent."""
        self._stopping.set()
        if self._listening is not None:
            self._listening.close()
        if self._accepting is not None:
            self._accepting.kill()
        self._pending.kill()
        for connection in tuple(self._silent):
            self._end_silent(connection, "lost")

    # --- Accepting ----------------------------------------------------------------------------

    def _accept(self, listening: gevent.socket.socket) -> None:
        """Accept for ever; ends with stop(). Its owner is the listener."""
        pause_s, turns = ACCEPT_PAUSE_MIN_S, 0
        while not self._stopping.is_set():
            try:
                raw, sockaddr = listening.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                if error.errno in _CONNECTION_ERRORS:
                    self.counters["accept_aborted"] += 1
                    gevent.sleep(0)
                    continue
                _log.limited(LOG_INTERVAL_S).warning(
                    "accepting peers is paused",
                    cause=error,
                    remedy="let the daemon open more descriptors (LimitNOFILE=), or wait",
                )
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
        """Give a new connection a place and wait for its first byte, or close it."""
        self.counters["accepted"] += 1
        now = time.monotonic()
        connection = _Connection(raw, remote, now + UNAUTHENTICATED_TIMEOUT_S)
        peers = self._known.peers(remote[0], boottime())
        source = source_of(remote[0], known=peers > 0, peers=peers)
        place = self._admission.admit(source, now, partial(self._evict, connection))
        if place is None:
            self.counters["refused_rate"] += 1
            _log.debug("connection refused", peer=remote[0], limit="rate")
            raw.close()
            return
        connection.place = place
        self._silent.add(connection)
        # No greenlet yet: a thousand silent strangers cost a thousand descriptors.
        loop = gevent.get_hub().loop
        connection.first_byte = loop.io(raw.fileno(), _WAIT_READ)
        connection.deadline = loop.timer(FIRST_BYTE_TIMEOUT_S)
        connection.first_byte.start(self._begin, connection)
        connection.deadline.start(self._end_silent, connection, "silent")

    def _begin(self, connection: _Connection) -> None:
        """A silent connection has something to say, or has ended."""
        try:
            first = connection.raw.recv(1, socket.MSG_PEEK)
        except OSError:
            first = b""
        if first != _CLIENT_HELLO:
            self._end_silent(connection, "tls_failed" if first else "lost")
            return
        self._stop_waiting(connection)
        connection.place.advance(Stage.TLS)
        # A greenlet that stop() kills before it ran once cannot clean up after itself.
        self._pending.spawn(self._serve, connection).rawlink(partial(self._finished, connection))

    def _stop_waiting(self, connection: _Connection) -> None:
        self._silent.discard(connection)
        connection.first_byte.close()
        connection.deadline.close()

    def _end_silent(self, connection: _Connection, outcome: str) -> None:
        self._stop_waiting(connection)
        connection.outcome = outcome
        self._close(connection)

    def _evict(self, connection: _Connection, stage: Stage) -> None:
        """Another connection needs the place of this one."""
        if stage is Stage.ACCEPTED:
            self._end_silent(connection, "evicted_accepted")
        elif connection.handed_over:
            self.counters["evicted_handshake"] += 1
            connection.stream.abort()
        else:
            connection.evicted = True
            connection.abort()

    # --- One connection -----------------------------------------------------------------------

    def _serve(self, connection: _Connection) -> None:
        """TLS, head, upgrade, hand-over of one connection; until then it ends within 8 s."""
        timer = gevent.Timeout.start_new(TLS_TIMEOUT_S)
        try:
            self._start_tls(connection)
            timer.close()
            timer = gevent.Timeout.start_new(UPGRADE_TIMEOUT_S)
            leftover = upgrade(connection.stream, connection.remote, self._path)
        except gevent.Timeout as timeout:
            if timeout is not timer:
                raise
            connection.outcome = "timed_out"
            return
        except UpgradeRefused as refusal:
            connection.outcome, connection.detail = "upgrade_refused", str(refusal)
            timer.close()
            connection.stream.goodbye()
            return
        except TlsFlood as error:
            connection.outcome, connection.detail = "tls_flood", error.strerror or str(error)
            return
        except OSError as error:
            connection.detail = error.strerror or str(error)
            return
        finally:
            timer.close()
        if connection.evicted:  # its answer left together with its place
            return
        connection.outcome = "upgraded"
        connection.stream.unlimited()
        self._hand_over(connection, leftover)

    def _finished(self, connection: _Connection, greenlet: gevent.Greenlet) -> None:
        """Called when the greenlet of a connection has ended, however it ended."""
        if connection.outcome == "upgraded":
            return
        if connection.evicted:
            connection.outcome = "evicted_tls"
        self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self.counters[connection.outcome] += 1
        connection.close()
        connection.place.release()
        _log.debug(
            "connection not upgraded",
            peer=connection.remote[0],
            outcome=connection.outcome,
            detail=connection.detail,
        )

    def _start_tls(self, connection: _Connection) -> None:
        try:
            set_socket_options(connection.raw)
            context, connection.certificate_sha256 = self._served
            connection.stream = TlsStream(connection.raw, context, allowance=CLIENT_ALLOWANCE_BYTES)
            connection.stream.do_handshake()
        except OSError:
            connection.outcome = "tls_failed"
            raise

    def _hand_over(self, connection: _Connection, leftover: bytes) -> None:
        # From here on stop() must not touch this greenlet: it belongs to on_upgraded.
        self._pending.discard(gevent.getcurrent())
        self.counters["upgraded"] += 1
        connection.handed_over = True
        connection.place.advance(Stage.HANDSHAKE)
        upgraded = Upgraded(
            sock=connection.stream,
            remote_address=connection.remote,
            leftover=leftover,
            server=True,
            certificate_sha256=connection.certificate_sha256,
            authenticate_by=connection.authenticate_by,
            release=connection.place.release,
        )
        try:
            self._on_upgraded(upgraded)
        except Exception:  # noqa: BLE001 - a bug must not keep the connection open
            _log.exception("taking over a connection failed by a bug", peer=connection.remote[0])
            upgraded.sock.close()
            upgraded.release()


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection on its way through the port: first `raw`, which `stream` then takes over."""

    raw: gevent.socket.socket
    remote: tuple[str, int]
    authenticate_by: float
    place: Place = field(init=False)
    stream: TlsStream = field(init=False)
    first_byte: Any = field(init=False)
    deadline: Any = field(init=False)
    certificate_sha256: bytes = b""
    outcome: str = "lost"
    detail: str = ""
    evicted: bool = False
    handed_over: bool = False

    def close(self) -> None:
        self.raw.close()
        if hasattr(self, "stream"):
            self.stream.close()

    def abort(self) -> None:
        """Let what its greenlet does next fail."""
        if hasattr(self, "stream"):
            self.stream.abort()
        else:
            with contextlib.suppress(OSError):
                self.raw.shutdown(socket.SHUT_RDWR)


def _affordable_limits() -> Limits:
    """The protocol's; silent strangers get at most half of the process's descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits(accepted=max(2 * PLACES_FOR_KNOWN, min(MAX_ACCEPTED, descriptors // 2)))
