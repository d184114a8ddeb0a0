"""The connection manager: carries out the state table of `wire.peer`.

Owns: whether the tunnel is wanted, the TAP device, the dialler, the one live tunnel and those that
are not authenticated yet, the waiting between dials. Does not know: HTTP, what a snapshot looks
like (`view` builds it from the attributes here), records, keys.

::

    API, listener, dialler, tunnels, device --post--> mailbox --> one greenlet: `_run`
        connect: TAP, data plane, dial, handshake, ACCEPT, router on
        disconnect: router off, session, link, data plane, TAP

Everything that changes the state happens in that one greenlet, a message at a time, so that no
two of them can meet half way. Source: interface.md, "State machine"; protocol section 8.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import AsyncResult
from gevent.queue import SimpleQueue

from shadowmesh import log
from shadowmesh._fastpath import build_info
from shadowmesh.constants import Caps, CloseReason, RejectReason
from shadowmesh.dial import dial
from shadowmesh.errors import (
    AlreadyConnected,
    AlreadyConnecting,
    ConnectTimeout,
    ControlError,
    DeviceError,
    DeviceUnavailable,
    NotConfigured,
    NotConnected,
    NotPermitted,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.keys import format_public_key
from shadowmesh.tap import open_tap, stable_mac
from shadowmesh.tunnel import Timing, Tunnel, boottime
from shadowmesh.wire.handshake import Offer, Policy
from shadowmesh.wire.peer import Backoff, Event, PeerMachine, Phase, State, resolve_collision

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.ssl import SSLContext

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.config import Config, HostPort
    from shadowmesh.keys import Identity
    from shadowmesh.link import Upgraded
    from shadowmesh.tap import Tap
    from shadowmesh.tunnel import Ended
    from shadowmesh.wire.handshake import HandshakeResult

#: how long an operator's connect waits for the outcome: a dial and a handshake at their limits
CONNECT_TIMEOUT_S: Final = 35.0
#: a TAP that went away is made again so often, so far apart, before the tunnel is given up
DEVICE_ATTEMPTS: Final = 5
DEVICE_PAUSE_S: Final = 0.2
#: the peer's operator disconnected: an automatic dialler comes back, but not at once
PEER_DISCONNECT_PAUSE_S: Final = 30.0

_log = log.get(__name__)


class ConnectionManager:
    """The life of the one tunnel.

    Attributes for reading only:
        machine: state and phase.
        current: the live tunnel, None without one.
        tap: the open device, None without one.
        target: whom we dial.
        last_error, last_error_at: the last failure, cleared by success; wall-clock seconds.
        next_retry_at: when the next automatic dial starts, wall-clock seconds.
        reconnects: sessions that came back without being asked for.
        handshakes: how handshakes ended, by one word.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        plane: DataPlane,
        client_context: SSLContext,
        served_certificate_sha256: bytes,
    ) -> None:
        self.config = config
        self.identity = identity
        self.plane = plane
        self.machine = PeerMachine(time.time())
        self.current: Tunnel | None = None
        self.tap: Tap | None = None
        self.target: HostPort | None = config.peer.address
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.next_retry_at: float | None = None
        self.reconnects = 0
        self.handshakes: Counter[str] = Counter()
        #: there was a session since the last disconnect: the next one is a reconnect
        self._was_connected = False
        self._client_context = client_context
        self._served_certificate_sha256 = served_certificate_sha256
        self._mailbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._backoff = Backoff(random.SystemRandom().random)
        self._redial = False
        self._dialling: gevent.Greenlet | None = None
        self._dialled: Tunnel | None = None
        self._incoming: set[Tunnel] = set()
        self._retry: gevent.Greenlet | None = None
        self._waiters: list[AsyncResult] = []
        self._stopped = False
        self._loop = gevent.Greenlet(self._run)
        self._device_watch = gevent.Greenlet(self._watch_device)

    # --- what others may ask ------------------------------------------------------------------

    def start(self) -> None:
        """Start the mailbox; dial if the configuration says so."""
        self._loop.start()
        self._device_watch.start()
        if self.config.peer.auto_connect:
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

    def stop(self) -> None:
        """Undo everything, for good; returns when it is done, at most about 3 s later."""
        if not self._loop.started:
            return
        done: AsyncResult = AsyncResult()
        self._post(partial(self._stop, done))
        done.get()
        self._device_watch.kill()
        self._loop.kill()

    def take_incoming(self, upgraded: Upgraded) -> None:
        """Give an upgraded connection of the listener its handshake."""
        if self._stopped or self.config.mode == 0:
            upgraded.sock.close()
            upgraded.release()
            return
        offer = self._offer(self._served_certificate_sha256)
        tunnel = self._tunnel(upgraded, offer)
        self._incoming.add(tunnel)
        tunnel.start()

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
            except Exception:
                # One bad message must not end the manager: the daemon would be deaf for ever.
                _log.exception("a message to the connection manager failed")

    # --- connect and disconnect ---------------------------------------------------------------

    def _auto_connect(self) -> None:
        if self.machine.state is State.DISCONNECTED and self.config.mode:
            self._redial = True
            self._begin()

    def _connect(self, peer: HostPort | None, outcome: AsyncResult) -> None:
        try:
            self._check_connect(peer)
        except ControlError as error:
            outcome.set_exception(error)
            return
        self.target = peer or self.target
        self._redial = self.config.peer.auto_connect
        self._backoff.reset()
        self._waiters.append(outcome)
        self._begin()

    def _check_connect(self, peer: HostPort | None) -> None:
        if self._stopped:
            raise NotConnected("the daemon is shutting down")
        if self.config.mode == 0:
            raise NotConfigured(
                "nobody can be trusted yet; set peer.public_key or encryption.key"
                " (see `shadowmesh pubkey`, `shadowmesh genpsk`) and restart the daemon"
            )
        if self.machine.state is State.CONNECTED:
            raise AlreadyConnected("already connected; `shadowmesh disconnect` ends the session")
        if self.machine.state is State.CONNECTING:
            raise AlreadyConnecting(
                "already connecting; `shadowmesh status --watch` shows how far it is"
            )
        if peer is None and self.target is None:
            raise NotConfigured(
                "no peer to connect to; set peer.address, or run `shadowmesh connect HOST:PORT`"
            )

    def _begin(self) -> None:
        """Take the steps of connecting, from disconnected or error."""
        self._cancel_retry()
        retry = self.machine.state is State.ERROR and not self._waiters
        self._fire(Event.RETRY if retry else Event.CONNECT)
        self._start_dial()

    def _start_dial(self) -> None:
        assert self.target is not None
        try:
            self._ensure_tap()
        except DeviceUnavailable as error:
            self._attempt_failed(error)
            return
        self.machine.enter(Phase.DIALLING)
        self._dialling = gevent.spawn(self._dial, self.target)

    def _dial(self, target: HostPort) -> None:
        """Dial once and hand the connection to a tunnel; ends with it or when killed."""
        try:
            upgraded = dial(target, self.config.websocket.path, self._client_context)
        except ControlError as error:
            self._post(partial(self._dial_failed, gevent.getcurrent(), error))
            return
        self._post(partial(self._dial_upgraded, gevent.getcurrent(), upgraded))

    def _dial_upgraded(self, dialler: gevent.Greenlet, upgraded: Upgraded) -> None:
        if dialler is not self._dialling:
            upgraded.sock.close()
            return
        self._dialling = None
        self.machine.enter(Phase.HANDSHAKE)
        self._dialled = self._tunnel(upgraded, self._offer(upgraded.certificate_sha256))
        self._dialled.start()

    def _dial_failed(self, dialler: gevent.Greenlet, error: ControlError) -> None:
        if dialler is self._dialling:
            self._dialling = None
            self._attempt_failed(error)

    def _attempt_failed(self, error: ControlError) -> None:
        """One attempt to connect is over; plan the next or undo what was started."""
        if self.machine.state is not State.CONNECTING:
            return
        self._fire(Event.FAILED)
        self._note_failure(error)
        if self._redial:
            self._plan_retry(self._backoff.next_delay())
        else:
            self._drop_tap()

    def _disconnect(self, outcome: AsyncResult) -> None:
        if self.machine.state is State.DISCONNECTED:
            outcome.set_exception(NotConnected("not connected; there is nothing to disconnect"))
            return
        self._undo(CloseReason.DISCONNECT, "disconnected by the operator")
        self._fire(Event.DISCONNECT)
        self.last_error = self.last_error_at = None
        outcome.set(None)

    def _stop(self, done: AsyncResult) -> None:
        self._stopped = True
        for tunnel in tuple(self._incoming):
            tunnel.close(CloseReason.SHUTDOWN, "the daemon stops", wait=False)
        self._undo(CloseReason.SHUTDOWN, "the daemon stops")
        if self.machine.allows(Event.DISCONNECT):
            self._fire(Event.DISCONNECT)
        done.set(None)

    def _undo(self, reason: CloseReason, detail: str) -> None:
        """Everything that connecting started, in reverse: router, session, link, plane, TAP."""
        self._redial = False
        self._cancel_retry()
        self.plane.activate(None)
        tunnel, self.current = self.current, None
        if tunnel is not None:
            tunnel.close(reason, detail)
        self._abort_dial(reason, detail)
        self._drop_tap()
        self._answer_waiters(NotConnected(detail))

    def _abort_dial(self, reason: CloseReason, detail: str) -> None:
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.kill(block=False)
        dialled, self._dialled = self._dialled, None
        if dialled is not None:
            dialled.close(reason, detail, wait=False)

    # --- tunnels ------------------------------------------------------------------------------

    def _tunnel(self, upgraded: Upgraded, offer: Offer) -> Tunnel:
        config = self.config
        key = config.encryption.key
        policy = Policy(
            identity=self.identity,
            psk=None if key is None else key.reveal(),
            peer_public_key=config.peer.public_key,
            require_cipher="aegis-256" if config.encryption.cipher == "aegis-256" else None,
        )
        timing = Timing(
            rotation_interval_s=config.encryption.rotation_interval,
            keepalive_interval_s=config.websocket.keepalive_interval,
            read_timeout_s=config.websocket.read_timeout,
            write_timeout_s=config.websocket.write_timeout,
        )
        return Tunnel(
            self.plane,
            upgraded,
            policy,
            offer,
            timing,
            on_authenticated=lambda *what: self._post(partial(self._authenticated, *what)),
            on_established=lambda *what: self._post(partial(self._established, *what)),
            on_ended=lambda *what: self._post(partial(self._ended, *what)),
        )

    def _offer(self, certificate_sha256: bytes) -> Offer:
        caps = Caps(0)
        if build_info()["aegis256"] and self.config.encryption.cipher != "chacha20-poly1305":
            caps |= Caps.AEGIS256
        if self.config.network.offload:
            caps |= Caps.OFFLOAD
        # The session fills in a fresh key id for each handshake.
        return Offer(int(caps), self.config.network.mtu, certificate_sha256, key_id=0)

    def _authenticated(self, tunnel: Tunnel, result: HandshakeResult) -> None:
        if tunnel.over:
            return
        if self.config.websocket.require_direct_tls and not result.tls_matches:
            text = "TLS is proxied or intercepted and websocket.require_direct_tls is set"
            if tunnel.initiator:
                tunnel.close(CloseReason.POLICY, text, wait=False)
            else:
                _log.warning("peer refused", cause=text, remote=tunnel.remote_address)
                tunnel.reject(RejectReason.POLICY)
            return
        if tunnel.initiator:
            if self.machine.state is State.CONNECTING:
                self.machine.enter(Phase.ACCEPT)
            return
        reason = self._objection(tunnel, result)
        try:
            if reason is None:
                self._ensure_tap()
        except DeviceUnavailable as error:
            self._note_failure(error)
            reason = RejectReason.BUSY
        if reason is None:
            tunnel.accept()
        else:
            tunnel.reject(reason)

    def _objection(self, tunnel: Tunnel, result: HandshakeResult) -> RejectReason | None:
        """Why an authenticated incoming peer is not taken in; None when it is."""
        if self._stopped:
            return RejectReason.ADMIN_DOWN
        current = self.current
        if current is not None and current.peer_public_key != result.peer_public_key:
            # Only possible with a pre-shared key and no pin: the seat is taken.
            _log.limited(60).warning(
                "another holder of the pre-shared key was refused",
                remote=tunnel.remote_address,
                public_key=format_public_key(result.peer_public_key),
            )
            return RejectReason.BUSY
        own = self._dialled or current
        if (
            own is not None
            and own.initiator
            and own.peer_public_key == result.peer_public_key
            and (own.established_boottime is None or tunnel.started_at < own.established_boottime)
            and resolve_collision(
                self.identity.public_key, result.peer_public_key, own_dial_authenticated=True
            )
        ):
            return RejectReason.COLLISION
        return None

    def _established(self, tunnel: Tunnel) -> None:
        if tunnel.over or self._stopped or (tunnel.initiator and tunnel is not self._dialled):
            return
        assert tunnel.result is not None
        self.handshakes["ok"] += 1
        replaced = self.current
        reconnected = self.machine.state is State.CONNECTING and not self._waiters
        self._incoming.discard(tunnel)
        if tunnel is self._dialled:
            self._dialled = None
        try:
            self._ensure_tap()
        except DeviceUnavailable as error:
            tunnel.close(CloseReason.SHUTDOWN, str(error), wait=False)
            self._attempt_failed(error)
            return
        self._cancel_retry()
        if self.machine.state is State.CONNECTING:
            self.machine.enter(Phase.ROUTER)
        self.current = tunnel
        self._route(tunnel)
        if replaced is not None:
            self._fire(Event.REPLACED)
            replaced.close(CloseReason.REPLACED, "replaced by a newer session", wait=False)
        else:
            self._fire(Event.ESTABLISHED if tunnel.initiator else Event.ACCEPTED)
        if not tunnel.initiator:
            self._abort_dial(CloseReason.REPLACED, "the peer's own connection was taken")
        if reconnected and self._was_connected:
            self.reconnects += 1
        self._was_connected = True
        self.last_error = self.last_error_at = None
        result = tunnel.result
        _log.info(
            "connected",
            peer=tunnel.remote_address,
            public_key=format_public_key(result.peer_public_key),
            dialled=tunnel.initiator,
            cipher=result.cipher,
            tls="direct" if result.tls_matches else "proxied-or-intercepted",
        )
        if self.config.peer.public_key is None:
            _log.warning(
                "the peer is not pinned: any holder of encryption.key can be it;"
                " set peer.public_key",
                public_key=format_public_key(result.peer_public_key),
            )
        self._answer_waiters(None)

    def _route(self, tunnel: Tunnel) -> None:
        """Frames of the TAP go to this tunnel from now on."""
        assert self.tap is not None and tunnel.result is not None
        self.tap.set_offload(self._may_offload(tunnel))
        self.plane.activate(tunnel.session)

    def _may_offload(self, tunnel: Tunnel | None) -> bool:
        """Whether the kernel may hand us super-frames: only if the peer takes them."""
        if tunnel is None or tunnel.result is None:
            return self.config.network.offload
        caps = tunnel.result.peer_caps & tunnel.result.local_caps
        return bool(caps & Caps.OFFLOAD)

    def _ended(self, tunnel: Tunnel, ended: Ended) -> None:
        if tunnel in self._incoming:
            self._incoming.discard(tunnel)
            self.handshakes[ended.kind] += 1
            _log.limited(10).info(
                "incoming connection ended", remote=tunnel.remote_address, cause=ended.detail
            )
        elif tunnel is self._dialled:
            self._dialled = None
            self.handshakes[ended.kind] += 1
            self._attempt_failed(_as_control_error(self.target, ended))
            if ended.rejected == RejectReason.COLLISION and self._retry is None:
                # The peer's own connection is about to arrive.
                self._plan_retry(self._backoff.next_delay())
        elif tunnel is self.current:
            self.current = None
            self._lost(tunnel, ended)

    def _lost(self, tunnel: Tunnel, ended: Ended) -> None:
        """The live tunnel ended by itself."""
        self.plane.activate(None)
        _log.warning("connection lost", peer=tunnel.remote_address, cause=ended.detail)
        self.last_error, self.last_error_at = ended.detail, time.time()
        if tunnel.initiator and ended.by_operator and not self.config.peer.auto_connect:
            self._undo(CloseReason.DISCONNECT, ended.detail)
            self._fire(Event.DISCONNECT)
            return
        self._fire(Event.LINK_LOST)
        if self.target is None or not (tunnel.initiator or self.config.peer.auto_connect):
            self.machine.enter(Phase.WAITING_FOR_PEER)
            return
        self._redial = True
        self._backoff.session_ended(boottime() - (tunnel.established_boottime or boottime()))
        self.machine.enter(Phase.BACKOFF)
        pause = PEER_DISCONNECT_PAUSE_S if ended.by_operator else self._backoff.next_delay()
        self._plan_retry(pause)

    # --- waiting between dials ----------------------------------------------------------------

    def _plan_retry(self, delay_s: float) -> None:
        self._cancel_retry()
        self.next_retry_at = time.time() + delay_s
        self._retry = gevent.spawn_later(delay_s, self._post, self._retry_now)

    def _cancel_retry(self) -> None:
        retry, self._retry = self._retry, None
        self.next_retry_at = None
        if retry is not None:
            retry.kill(block=False)

    def _retry_now(self) -> None:
        if self._retry is None or self._stopped:
            return
        self._cancel_retry()
        if self.machine.state is State.ERROR:
            self._begin()
        elif self.machine.state is State.CONNECTING:
            self._start_dial()

    # --- the device ---------------------------------------------------------------------------

    def _ensure_tap(self) -> None:
        """Open the TAP and start the data plane on it, unless that is done.

        Raises:
            DeviceUnavailable: it cannot be done; nothing is left behind.
        """
        if self.tap is not None:
            return
        connecting = self.machine.state is State.CONNECTING
        network = self.config.network
        try:
            if connecting:
                self.machine.enter(Phase.TAP)
            tap = open_tap(
                network.tap_device,
                mtu=network.mtu,
                address=network.local_ip,
                persist=network.persist_tap,
                offload=self._may_offload(self.current),
                mac=stable_mac(self.identity.public_key),
            )
            if connecting:
                self.machine.enter(Phase.DATA_PLANE)
            try:
                self.plane.attach_tap(tap.fd, tap.mtu)
            except DeviceError:
                tap.close()
                raise
        except (DeviceError, NotPermitted) as error:
            raise DeviceUnavailable(str(error)) from error
        self.tap = tap

    def _drop_tap(self) -> None:
        if self.tap is not None:
            self.plane.detach_tap()
            self.tap.close()
            self.tap = None

    def _watch_device(self) -> None:
        """Tell the mailbox when the TAP thread gives up; ends when killed by stop()."""
        watcher = gevent.get_hub().loop.io(self.plane.event_fd, 1)
        try:
            while True:
                gevent.get_hub().wait(watcher)
                number = self.plane.device_error()
                if number:
                    self._post(partial(self._device_lost, number))
        finally:
            watcher.close()

    def _device_lost(self, number: int) -> None:
        """The TAP was deleted under us: make it again, or give the tunnel up."""
        if self.tap is None or not self.plane.device_error():
            return
        _log.warning("the TAP device is gone, making it again", device=self.tap.name, errno=number)
        failure = DeviceUnavailable(f"the TAP device is gone (errno {number})")
        for _ in range(DEVICE_ATTEMPTS):
            self._drop_tap()
            try:
                self._ensure_tap()
                return
            except DeviceUnavailable as error:
                failure = error
            gevent.sleep(DEVICE_PAUSE_S)
        redial = self._redial
        self._undo(CloseReason.SHUTDOWN, str(failure))
        if self.machine.allows(Event.DEVICE_FAILED):
            self._fire(Event.DEVICE_FAILED)
        self._note_failure(failure)
        if redial:
            self._redial = True
            self._plan_retry(self._backoff.next_delay())

    # --- reload -------------------------------------------------------------------------------

    def _reload(self, config: Config) -> None:
        old, self.config = self.config, replace(
            config, daemon=self.config.daemon, network=self.config.network
        )
        peer_changed = (old.peer, old.encryption.key) != (config.peer, config.encryption.key)
        if old.peer.address != config.peer.address:
            self.target = config.peer.address
        if not peer_changed or self.machine.state is State.DISCONNECTED:
            return
        redial = config.peer.auto_connect
        self._undo(CloseReason.POLICY, "the configuration of the peer has changed")
        self._fire(Event.DISCONNECT)
        if redial:
            self._auto_connect()

    # --- small things -------------------------------------------------------------------------

    def _fire(self, event: Event) -> None:
        before = self.machine.state
        after = self.machine.fire(event, time.time())
        if after is State.DISCONNECTED:
            self._was_connected = False
        if after is not before:
            _log.debug("state changed", before=before, after=after, event=event.name)

    def _note_failure(self, error: ControlError) -> None:
        """Log and keep a failure; whoever waits for the outcome gets it."""
        _log.limited(10).warning("cannot connect", cause=str(error))
        self.last_error, self.last_error_at = str(error), time.time()
        self._answer_waiters(error)

    def _answer_waiters(self, error: ControlError | None) -> None:
        waiters, self._waiters = self._waiters, []
        for outcome in waiters:
            if error is None:
                outcome.set(None)
            else:
                outcome.set_exception(error)


def _as_control_error(target: HostPort | None, ended: Ended) -> ControlError:
    """The failed handshake of our own dial in the words of the control API."""
    text = f"{target}: {ended.detail}"
    if ended.refused or ended.rejected is not None:
        return PeerRefused(
            f"{text}; compare encryption.key and peer.public_key on both sides, and the peer's log"
        )
    if ended.kind == "timeout":
        return ConnectTimeout(f"{text}; see the peer's log")
    return PeerUnreachable(f"{text}; see the peer's log")
