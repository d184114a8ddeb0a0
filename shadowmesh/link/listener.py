"""The peer port: from TCP accept to an upgraded WebSocket.

Owns: accepting, the limits before authentication, the deadlines of TLS and upgrade, and a counter
for every way a connection can end here. Does not know: how the listening socket is bound
(`bind`), HTTP, sessions, handshakes, frames after the upgrade.

::

    accept --Admission--> TLS (5 s) --> upgrade (2 s) --> on_upgraded(Upgraded)

Source: protocol sections 5 and 9.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pool import Group

from shadowmesh.base import log
from shadowmesh.base.constants import TLS_TIMEOUT_S, UNAUTHENTICATED_TIMEOUT_S, UPGRADE_TIMEOUT_S
from shadowmesh.config import HostPort
from shadowmesh.link.admission import Admission, Limits, source_of
from shadowmesh.link.bind import listen
from shadowmesh.link.link import Upgraded
from shadowmesh.link.tcp import plain_address, say_goodbye, set_socket_options
from shadowmesh.link.upgrade import upgrade
from shadowmesh.wire.websocket import UpgradeRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.ssl import SSLContext, SSLSocket

#: Without descriptors or memory accept() fails at once, again and again; the pause doubles from
#: the first to the second.
ACCEPT_PAUSE_MIN_S: Final = 0.1
ACCEPT_PAUSE_MAX_S: Final = 2.0
#: A fault that lasts is logged once in this time.
LOG_INTERVAL_S: Final = 60.0
#: Let others run after so many connections were accepted without a wait.
ACCEPT_TURNS: Final = 8

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
        self._listening: gevent.socket.socket | None = None
        self._accepting: gevent.Greenlet | None = None
        self._pending = Group()
        self._stopping = Event()
        self.counters = dict.fromkeys(
            (
                "accepted",
                "upgraded",
                "refused_total",
                "refused_source",
                "refused_rate",
                "tls_failed",
                "timed_out",
                "upgrade_refused",
                "lost",
                "accept_aborted",
                "accept_paused",
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
                    cause=error.strerror,
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
            leftover = upgrade(connection.sock, connection.remote, self._path)
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
        except Exception:  # noqa: BLE001 - a bug must not keep the connection open
            _log.exception("taking over a connection failed by a bug", peer=connection.remote[0])
            upgraded.sock.close()
            upgraded.release()


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
