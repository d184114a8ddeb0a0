"""The connection manager: carries out the state table of `wire.peer`.

Owns: whether the tunnel is wanted, the dialler, the one live tunnel and those that are not
authenticated yet, the waiting between dials. Does not know: HTTP, what a snapshot looks like
(`service.view` builds it from the attributes here), records, keys, how a device is opened.

::

    API, listener, dialler, tunnels, device --post--> mailbox --> one greenlet: `_run`
        connect: TAP, data plane, dial, handshake, ACCEPT, router on
        disconnect: router off, session, link, data plane, TAP

Everything that changes the state happens in that one greenlet, a message at a time, so that no
two of them can meet half way; a message that is late (its tunnel ended, its dial was given up)
is recognised by the object it is about. Source: interface.md, "State machine"; protocol section 8.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import AsyncResult
from gevent.event import Event as Done
from gevent.queue import SimpleQueue

from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import (
    BACKOFF_MIN_S,
    HANDSHAKE_TIMEOUT_S,
    Caps,
    CloseReason,
    RejectReason,
)
from shadowmesh.base.errors import (
    AlreadyConnected,
    AlreadyConnecting,
    ConnectTimeout,
    ControlError,
    DeviceUnavailable,
    LocalProtocolError,
    NotConfigured,
    NotConnected,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.config import reloaded
from shadowmesh.device import addresses
from shadowmesh.insight.events import NOBODY
from shadowmesh.insight.status import Refused
from shadowmesh.keys.identity import format_public_key
from shadowmesh.link.dial import dial
from shadowmesh.peer.dialler import Dialler, Pause
from shadowmesh.peer.terms import terms_of
from shadowmesh.peer.tunnel import Tunnel
from shadowmesh.peer.verdicts import DUPLICATE, INTERCEPTED, failed_dial, objection, trust_of
from shadowmesh.wire.peer import Backoff, Event, PeerMachine, Phase, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.ssl import SSLContext

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.config import Config, HostPort, NatSection
    from shadowmesh.device.device import Device
    from shadowmesh.device.tap import Tap
    from shadowmesh.insight.events import Recorder
    from shadowmesh.insight.status import Pong
    from shadowmesh.keys.identity import Identity
    from shadowmesh.link.link import Upgraded
    from shadowmesh.path.traversal import Traversal
    from shadowmesh.peer.tunnel import Ended
    from shadowmesh.wire.handshake.agreement import HandshakeResult

#: how long an operator's connect waits for the outcome: a dial and a handshake at their limits
CONNECT_TIMEOUT_S: Final = 35.0
#: stop() gives up waiting for the undoing: a link closes within 3 s
STOP_TIMEOUT_S: Final = 3.0
#: the peer's operator disconnected: an automatic dialler comes back, but not at once
PEER_DISCONNECT_PAUSE_S: Final = 30.0
#: our dial lost against the peer's, whose own handshake is on its way
COLLISION_WAIT_S: Final = HANDSHAKE_TIMEOUT_S
#: the same failure again is said so often
REPEAT_LOG_S: Final = 600.0

_log = log.get("connection")


class ConnectionManager:
    """The life of the one tunnel.

    Attributes for reading only:
        machine: state and phase.
        current: the live tunnel, None without one.
        target: whom we dial.
        last_error, last_error_at: the last failure, cleared by success; wall-clock seconds.
        refused: the last peer that was not let in, cleared by success.
        reconnects: sessions and links that came back without being asked for.
        handshakes: how handshakes ended, by one word.
        traversal: the UDP side of this host.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        plane: DataPlane,
        device: Device,
        client_context: SSLContext,
        served_certificate_sha256: bytes,
        *,
        dial: Callable[[HostPort, str, SSLContext], Upgraded] = dial,
        later: Callable[[float, Callable[[], None]], gevent.Greenlet] = gevent.spawn_later,
        traversal: Traversal | None = None,
        recorder: Recorder = NOBODY,
    ) -> None:
        """Make a manager of a tunnel that is not wanted yet.

        Args:
            device: closed; started and stopped here.
            later: runs a function in a while.
            traversal: started and stopped by the caller; None: WSS only.
            recorder: whom changes of state and sessions are told.
        """
        self.config = config
        self.identity = identity
        self.plane = plane
        self.machine = PeerMachine(time.time())
        self.current: Tunnel | None = None
        self.target: HostPort | None = config.peer.address
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.refused: Refused | None = None
        self.reconnects = 0
        self.handshakes: Counter[str] = Counter()
        #: there was a session since the last disconnect: the next one is a reconnect
        self._was_connected = False
        self._device = device
        self._client_context = client_context
        self._served_certificate_sha256 = served_certificate_sha256
        self._dial_once = dial
        self._mailbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._backoff = Backoff(random.SystemRandom().random)
        #: a failed attempt is followed by another
        self._redial = False
        #: at most one of the next three is at work, and while connecting one of them always is but
        #: in phase waiting_for_peer
        self._dialler = Dialler(self._post, self._dial, self._dial_upgraded, self._attempt_failed)
        self._dialled: Tunnel | None = None
        self._pause = Pause(self._post, later)
        self._incoming: set[Tunnel] = set()
        self._waiters: list[AsyncResult] = []
        self._logged = ("", 0.0)
        self._stopped = False
        self._loop = gevent.Greenlet(self._run)
        #: of sessions that are over
        self._switches = 0
        self.traversal = traversal
        self._recorder = recorder
        if traversal is not None:
            traversal.on_change = lambda: self._post(self._candidates_changed)
            traversal.on_network_change = lambda: self._post(self._network_changed)

    @property
    def path_switches(self) -> int:
        """Moves between WSS and UDP."""
        paths = None if self.current is None else self.current.paths
        return self._switches + (0 if paths is None else paths.switches)

    @property
    def on_udp_alone(self) -> bool:
        """The WSS link is lost and the session goes on without it."""
        return self.current is not None and self.current.link_error is not None

    @property
    def dialling(self) -> bool:
        """A dial or its handshake is on the way."""
        return self._dialler.running or self._dialled is not None

    @property
    def next_retry_at(self) -> float | None:
        """When the next automatic dial starts, wall-clock seconds."""
        # In phase accept we wait for the peer's own connection, not for a dial of ours.
        return None if self.machine.phase is Phase.ACCEPT else self._pause.ends_at

    @property
    def tap(self) -> Tap | None:
        """The open device, None without one."""
        return self._device.tap

    @property
    def device_problem(self) -> str | None:
        """Why the device, which is wanted, could not be made; None when it could or is not."""
        return None if self.machine.state is State.DISCONNECTED else self._device.problem

    # --- what others may ask ------------------------------------------------------------------

    def start(self) -> None:
        """Start the mailbox; dial if the configuration says so."""
        self._loop.start()
        self._device.start(lambda: self._post(self._device_lost))
        self._post(self._auto_connect)

    def connect(self, peer: HostPort | None) -> None:
        """Connect and wait for the outcome.

        Raises:
            ControlError: already connected or connecting, not configured, no device, peer
                unreachable or refusing, timeout.
        """
        outcome: AsyncResult = AsyncResult()
        self._post(partial(self._connect, peer, outcome))
        try:
            outcome.get(timeout=CONNECT_TIMEOUT_S)
        except gevent.Timeout:
            raise ConnectTimeout(
                f"no outcome within {CONNECT_TIMEOUT_S:.0f} s; see `shadowmesh status`"
            ) from None

    def disconnect(self) -> None:
        """End the tunnel and take the TAP down.

        Raises:
            NotConnected: there is none.
        """
        outcome: AsyncResult = AsyncResult()
        self._post(partial(self._disconnect, outcome))
        outcome.get()

    def ping(self) -> Pong:
        """Measure one round trip to the peer; waits for the answer.

        Raises:
            NotConnected: there is no session.
        """
        tunnel = self.current
        if tunnel is None:
            raise NotConnected("not connected; `shadowmesh connect` first")
        return tunnel.ping()

    def stop(self) -> None:
        """Undo everything, for good; returns when it is done, at most about 3 s later."""
        if self._loop.started:
            done = Done()
            self._post(partial(self._stop, done))
            if not done.wait(STOP_TIMEOUT_S):
                _log.warning(
                    "the tunnel did not end in time",
                    remedy="none is needed: what is left ends with this process",
                )
            self._loop.kill()
        self._device.stop()

    def take_incoming(self, upgraded: Upgraded) -> None:
        """Give an upgraded connection of the listener its handshake."""
        if not self._stopped and self.config.mode:
            try:
                self._incoming.add(self._start_tunnel(upgraded))
                return
            except (LocalProtocolError, OSError) as error:
                _log.limited(10).warning(
                    "incoming connection dropped",
                    cause=str(error),
                    remedy="let the daemon open more descriptors (LimitNOFILE=)",
                )
        upgraded.sock.close()
        upgraded.release()

    def reload(self, config: Config) -> None:
        """Use a new configuration; a session that it no longer allows ends at once."""
        self._post(partial(self._reload, config))

    # --- the mailbox --------------------------------------------------------------------------

    def _post(self, message: Callable[[], None]) -> None:
        self._mailbox.put(message)

    def _run(self) -> None:
        """Carry out one message after another; ends when killed by stop()."""
        while True:
            message = self._mailbox.get()
            try:
                message()
            except Exception as error:  # noqa: BLE001 - or the daemon would be deaf for ever
                _log.exception("a message to the connection manager failed")
                failure = ControlError(f"internal error: {error!r}; see the log")
                if not (self._idle or self.dialling or self._pause.ends_at):
                    self._attempt_failed(failure)
                self._answer_waiters(failure)
            del message  # while we wait for the next one it would hold a tunnel that has ended

    # --- connect and disconnect ---------------------------------------------------------------

    def _auto_connect(self) -> None:
        config = self.config
        if config.peer.auto_connect and config.mode and self.machine.state is State.DISCONNECTED:
            self.target = config.peer.address
            self._redial = True
            self._begin()

    def _connect(self, peer: HostPort | None, outcome: AsyncResult) -> None:
        target = peer or self.config.peer.address
        try:
            self._check_connect(target)
        except ControlError as error:
            outcome.set_exception(error)
            return
        self.target = target
        self._redial = self._redial or self.config.peer.auto_connect
        self._backoff.reset()
        self._waiters.append(outcome)
        self._begin()

    def _check_connect(self, target: HostPort | None) -> None:
        if self._stopped:
            raise NotConnected("the daemon is shutting down")
        if self.config.mode == 0:
            raise NotConfigured(
                "nobody can be trusted yet; set peer.public_key or encryption.key"
                " (see `shadowmesh pubkey`, `shadowmesh genpsk`) and `shadowmesh reload`"
            )
        if self.machine.state is State.CONNECTED:
            raise AlreadyConnected("already connected; `shadowmesh disconnect` ends the session")
        if self.machine.state is State.CONNECTING and not self._idle:
            raise AlreadyConnecting(
                "already connecting; `shadowmesh status --watch` shows how far it is"
            )
        if target is None:
            raise NotConfigured(
                "no peer to connect to; set peer.address, or run `shadowmesh connect HOST:PORT`"
            )

    @property
    def _idle(self) -> bool:
        """No attempt runs although we are connecting: an operator may start one."""
        return self.machine.phase in (Phase.BACKOFF, Phase.WAITING_FOR_PEER)

    def _begin(self) -> None:
        """Take the steps of connecting, from wherever nothing goes on."""
        self._pause.cancel()
        retry = not self._waiters and self.machine.state is not State.DISCONNECTED
        if self.machine.state not in (State.CONNECTING, State.CONNECTED):
            self._fire(Event.RETRY if retry else Event.CONNECT)
        (_log.debug if retry else _log.info)("connecting", peer=self.target)
        assert self.target is not None
        try:
            self._enter(Phase.TAP)
            self._device.open()
        except DeviceUnavailable as error:
            self._attempt_failed(error)
            return
        self._enter(Phase.DIALLING)
        self._dialler.start(self.target)

    def _dial(self, target: HostPort) -> Upgraded:
        return self._dial_once(target, self.config.websocket.path, self._client_context)

    def _dial_upgraded(self, upgraded: Upgraded) -> None:
        self._enter(Phase.HANDSHAKE)
        try:
            self._dialled = self._start_tunnel(upgraded)
        except (LocalProtocolError, OSError) as error:
            upgraded.sock.close()
            self._attempt_failed(PeerUnreachable(f"cannot start a session: {error}"))

    def _attempt_failed(self, error: ControlError) -> None:
        """An attempt to connect is over; plan the next or undo what was started."""
        if self.machine.state is State.CONNECTING:
            self._fire(Event.FAILED)
            self._give_up(error)
        elif self.on_udp_alone and self._redial:
            _log.limited(REPEAT_LOG_S).warning("the WSS link is not back yet", cause=str(error))
            self._pause.plan(self._backoff.next_delay(), self._begin)

    def _give_up(self, error: ControlError) -> None:
        """In error: say why, and plan what comes next."""
        if self.config.peer.auto_connect and not self._was_connected:
            self.target = self.config.peer.address  # another one that was asked for did not work
        delay_s = self._backoff.next_delay() if self._redial else None
        text = str(error)
        self.last_error, self.last_error_at = text, time.time()
        repeated = self._logged[0] == text and boottime() < self._logged[1] + REPEAT_LOG_S
        if not repeated:
            self._logged = (text, boottime())
        say = _log.debug if repeated else _log.warning
        self._tell(say, "cannot connect", cause=text, retry_in_s=delay_s and round(delay_s, 1))
        self._answer_waiters(error)
        if delay_s is None:
            self._device.close()
        else:
            self._pause.plan(delay_s, self._begin)

    def _disconnect(self, outcome: AsyncResult) -> None:
        if self.machine.state is State.DISCONNECTED:
            self._device.close()  # of the last run, taken over and not used yet
            outcome.set_exception(NotConnected("not connected; there is nothing to disconnect"))
            return
        try:
            self._undo(CloseReason.DISCONNECT, "disconnected by the operator")
        finally:
            outcome.set(None)

    def _stop(self, done: Done) -> None:
        self._stopped = True
        for tunnel in tuple(self._incoming):
            tunnel.close(CloseReason.SHUTDOWN, "the daemon stops", wait=False)
        try:
            if self.machine.state is not State.DISCONNECTED:
                self._undo(CloseReason.SHUTDOWN, "the daemon stops")
        finally:
            done.set()

    def _undo(self, reason: CloseReason, detail: str) -> None:
        """Everything that connecting started, in reverse: router, session, link, plane, TAP."""
        self._redial = False
        self._pause.cancel()
        self.plane.activate(None)
        self._switches = self.path_switches
        tunnel, self.current = self.current, None
        if tunnel is not None:
            tunnel.close(reason, detail)
        self._abort_dial(reason, detail)
        self._device.close()
        self._answer_waiters(NotConnected(detail))
        self._fire(Event.DISCONNECT)
        self._was_connected = False
        self.last_error = self.last_error_at = None
        self._tell(_log.info, "disconnected", cause=detail)

    def _abort_dial(self, reason: CloseReason, detail: str) -> None:
        self._dialler.abort()
        dialled, self._dialled = self._dialled, None
        if dialled is not None:
            dialled.close(reason, detail, wait=False)

    # --- tunnels ------------------------------------------------------------------------------

    def _start_tunnel(self, upgraded: Upgraded) -> Tunnel:
        """Raises LocalProtocolError, OSError: no means for one; the socket stays the caller's."""
        tunnel = Tunnel(
            self.plane,
            upgraded,
            terms_of(
                self.config,
                self.identity,
                upgraded.certificate_sha256,
                udp=self.traversal is not None and self.traversal.port is not None,
                udp_super_frames=self._device.udp_super_frames,
            ),
            on_authenticated=lambda *what: self._post(partial(self._authenticated, *what)),
            on_established=lambda *what: self._post(partial(self._established, *what)),
            on_link_lost=lambda *what: self._post(partial(self._link_lost, *what)),
            on_ended=lambda *what: self._post(partial(self._ended, *what)),
            traversal=self.traversal,
            recorder=self._recorder,
        )
        tunnel.start()
        return tunnel

    def _authenticated(self, tunnel: Tunnel, result: HandshakeResult) -> None:
        """Decide about a peer whose identity is verified."""
        if tunnel.over:
            return
        intercepted = self.config.websocket.require_direct_tls and not result.tls_matches
        if tunnel.initiator:
            if intercepted:
                tunnel.close(CloseReason.POLICY, INTERCEPTED, wait=False)
            elif tunnel is self._dialled:
                self._enter(Phase.ACCEPT)
            return
        reason = objection(
            tunnel,
            result.peer_public_key,
            self.identity.public_key,
            current=self.current,
            dialled=self._dialled,
        )
        if self._stopped:
            reason = RejectReason.ADMIN_DOWN
        elif intercepted:
            _log.limited(10).warning("peer refused", peer=tunnel.peer_name, cause=INTERCEPTED)
            reason = RejectReason.POLICY
        if reason is None:
            try:
                self._device.open()
            except DeviceUnavailable as error:
                _log.limited(10).warning("peer refused", peer=tunnel.peer_name, cause=str(error))
                self.last_error, self.last_error_at = str(error), time.time()
                reason = RejectReason.BUSY
        if reason is not None:
            tunnel.reject(reason)
            return
        # Before accepting: from now on our own dial must not reach the peer's decision any more.
        self._abort_dial(CloseReason.REPLACED, "the peer's own connection was taken")
        if tunnel.accept():
            self._take(tunnel)
        else:
            self._resume()

    def _established(self, tunnel: Tunnel) -> None:
        """The peer has accepted our dial."""
        if tunnel.over or tunnel is not self._dialled:
            return
        self._dialled = None
        try:
            self._device.open()
        except DeviceUnavailable as error:
            tunnel.close(CloseReason.SHUTDOWN, str(error), wait=False)
            self._attempt_failed(error)
        else:
            self._take(tunnel)

    def _take(self, tunnel: Tunnel) -> None:
        """Router on: this session is the live one."""
        result = tunnel.result
        assert result is not None
        self._incoming.discard(tunnel)
        self._pause.cancel()
        lost = self.current is None or self.on_udp_alone
        unasked = self._was_connected and lost and not self._waiters
        self._switches = self.path_switches
        replaced, self.current = self.current, tunnel
        self._enter(Phase.ROUTER)
        # The kernel may hand us only what the peer takes.
        self._device.offload(
            bool(result.peer_caps & result.local_caps & Caps.OFFLOAD),
            udp=bool(result.peer_caps & Caps.UDP_GSO),
        )
        self.plane.activate(tunnel.session)
        if replaced is not None:
            self._fire(Event.REPLACED)
            replaced.replace()
        else:
            self._fire(Event.ESTABLISHED if tunnel.initiator else Event.ACCEPTED)
        self.handshakes["ok"] += 1
        self.reconnects += unasked
        self._was_connected = True
        self.last_error = self.last_error_at = self.refused = None
        self._logged = ("", 0.0)
        self._tell(
            _log.info,
            "connected",
            peer=tunnel.peer_name,
            public_key=format_public_key(result.peer_public_key),
            dialled=tunnel.initiator,
            cipher=result.cipher,
            tls="direct" if result.tls_matches else "proxied-or-intercepted",
            replaced=replaced is not None,
        )
        if self.config.peer.public_key is None:
            _log.warning(
                "the peer is not pinned: any holder of encryption.key can be it;"
                " set peer.public_key",
                public_key=format_public_key(result.peer_public_key),
            )
        self._answer_waiters(None)

    def _resume(self) -> None:
        """A peer that was to be accepted is gone: back to where nothing was tried."""
        if (self.machine.state is State.CONNECTING and not self._idle) or self.on_udp_alone:
            self._attempt_failed(PeerUnreachable("the peer's own connection ended too early"))
        elif self.machine.state is State.DISCONNECTED or (
            self.machine.state is State.ERROR and not self._redial
        ):
            self._device.close()

    def _ended(self, tunnel: Tunnel, ended: Ended) -> None:
        if tunnel in self._incoming:
            self._incoming.discard(tunnel)
            self.handshakes[ended.kind] += 1
            say = _log.limited(10).warning if ended.kind == "refused" else _log.limited(10).info
            cause = ended.detail
            if ended.kind in ("refused", "rejected"):
                self.refused = Refused(tunnel.peer_name, cause, time.time())
            self._tell(
                say,
                "incoming handshake failed",
                peer=tunnel.peer_name,
                cause=cause,
                remedy="if that was the peer, compare encryption.key and peer.public_key"
                " on both sides",
            )
        elif tunnel is self._dialled:
            self._dialled = None
            self.handshakes[ended.kind] += 1
            error = failed_dial(self.target, ended)
            if ended.rejected == RejectReason.COLLISION:
                self._pause.plan(COLLISION_WAIT_S, partial(self._attempt_failed, error))
            else:
                self._attempt_failed(error)
        elif tunnel is self.current:
            self._switches = self.path_switches
            self.current = None
            self._lost(tunnel, ended)

    def _link_lost(self, tunnel: Tunnel) -> None:
        """The live tunnel goes on over UDP alone: get it a new link."""
        if tunnel is not self.current or tunnel.over:
            return
        cause = tunnel.link_error
        self._tell(
            _log.warning,
            "WSS link lost, UDP goes on",
            peer=tunnel.peer_name,
            cause=cause,
            remedy="none is needed if it comes back; else something on the way cuts TCP",
        )
        if self._dials_again(tunnel):
            self._redial = True
            self._backoff.session_ended(boottime() - (tunnel.established_boottime or boottime()))
            self._pause.plan(self._backoff.next_delay(), self._begin)

    def _dials_again(self, tunnel: Tunnel) -> bool:
        """Whether a tunnel that ended by itself is ours to bring back."""
        return self.target is not None and (tunnel.initiator or self.config.peer.auto_connect)

    def _lost(self, tunnel: Tunnel, ended: Ended) -> None:
        """The live tunnel ended by itself."""
        self.plane.activate(None)
        by_operator = ended.peer_reason == CloseReason.DISCONNECT
        if tunnel.initiator and by_operator and not self.config.peer.auto_connect:
            self._undo(CloseReason.DISCONNECT, ended.detail)
            self.last_error, self.last_error_at = ended.detail, time.time()
            return
        self._tell(
            _log.warning,
            "connection lost",
            peer=tunnel.peer_name,
            cause=ended.detail,
            remedy="none is needed: it is dialled again"
            if self._dials_again(tunnel)
            else "look after the peer, which has to dial again",
        )
        self.last_error, self.last_error_at = ended.detail, time.time()
        self._fire(Event.LINK_LOST)
        if self.dialling or self._pause.ends_at:
            # The link was lost before, and its successor is on the way.
            self.machine.enter(Phase.DIALLING if self.dialling else Phase.BACKOFF)
            return
        if not self._dials_again(tunnel):
            self.machine.enter(Phase.WAITING_FOR_PEER)
            return
        self._redial = True
        if ended.peer_reason == CloseReason.REPLACED:
            # A success for neither, or the two would throw each other out every second.
            self._attempt_failed(PeerRefused(f"{ended.detail}; {DUPLICATE}"))
            return
        self._backoff.session_ended(boottime() - (tunnel.established_boottime or boottime()))
        self.machine.enter(Phase.BACKOFF)
        self._pause.plan(
            PEER_DISCONNECT_PAUSE_S if by_operator else self._backoff.next_delay(), self._begin
        )

    # --- device and configuration -------------------------------------------------------------

    def _device_lost(self) -> None:
        """The TAP was deleted under us: make it again, or give the tunnel up."""
        tap = self._device.tap
        if tap is None or not self._device.lost:
            return
        _log.warning(
            "the TAP device is gone, making it again",
            device=tap.name,
            remedy="find out who deletes it: systemd-networkd, NetworkManager or a script",
        )
        self._recorder.record("device", "the TAP device is gone, making it again", device=tap.name)
        try:
            self._device.renew()
        except DeviceUnavailable as error:
            self._recorder.record("device", "the TAP device cannot be made", cause=str(error))
            redial = self._redial
            self._undo(CloseReason.SHUTDOWN, str(error))
            self._redial = redial
            self._fire(Event.CONNECT)
            self._fire(Event.DEVICE_FAILED)
            self._give_up(error)

    def _candidates_changed(self) -> None:
        if self.current is not None and self.current.paths is not None:
            self.current.paths.candidates_changed()

    def _network_changed(self) -> None:
        """Prove the paths anew, and dial soon if we were only waiting to."""
        if self.current is not None:
            self.current.network_changed(addresses.look(None).held)
        if self.next_retry_at is not None and self.next_retry_at > time.time() + BACKOFF_MIN_S:
            self._backoff.reset()
            self._pause.plan(self._backoff.next_delay(), self._begin)

    def _reload_udp(self, before: NatSection, after: NatSection) -> None:
        if self.traversal is None or before == after:
            return
        reopened = (before.enabled, before.udp_port) != (after.enabled, after.udp_port)
        paths = None if self.current is None else self.current.paths
        if paths is not None and reopened:
            paths.disable("nat.* was changed: UDP again in the next session")
        self.traversal.reload(after)

    def _reload(self, config: Config) -> None:
        before, self.config = self.config, reloaded(self.config, config)
        after = self.config
        self._reload_udp(before.nat, after.nat)
        # What an operator has disconnected stays so when only the shared key changes.
        wanted = self.machine.state is not State.DISCONNECTED or before.mode == 0
        if trust_of(before) != trust_of(after):
            detail = "the configuration of the peer has changed"
            for tunnel in tuple(self._incoming):
                tunnel.close(CloseReason.POLICY, detail, wait=False)
            if self.machine.state is not State.DISCONNECTED:
                self._undo(CloseReason.POLICY, detail)
            self.target = after.peer.address
        if wanted or before.peer != after.peer:
            self._auto_connect()

    # --- small things -------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        """Name the step of connecting; a link that is brought back under a session has none."""
        if self.machine.state is State.CONNECTING:
            self.machine.enter(phase)

    def _fire(self, event: Event) -> None:
        before = self.machine.state
        after = self.machine.fire(event, time.time())
        if after is not before:
            _log.debug("state changed", before=before, after=after, event=event.name)
            self._recorder.record("state", "state changed", before=before, after=after, event=event)

    def _tell(self, say: Callable[..., None], message: str, **facts: object) -> None:
        """Log something about the session, and record it for who asks later."""
        say(message, **facts)
        self._recorder.record("session", message, **facts)

    def _answer_waiters(self, error: ControlError | None) -> None:
        waiters, self._waiters = self._waiters, []
        for outcome in waiters:
            if error is None:
                outcome.set(None)
            else:
                outcome.set_exception(error)
