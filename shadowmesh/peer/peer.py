"""One peer, from wanted to connected: carries out the state table of `wire.peer`.

Owns: whether this peer is wanted, whom that means dialling and when, the live session and what
follows when it ends, its port of the switch. Does not know: other peers, how a session comes about (`outgoing`,
`incoming`), HTTP, what a snapshot looks like, records, keys, how a device is opened.

::

    connect:     TAP, data plane, dial, handshake, ACCEPT, router on
    disconnect:  router off, session, link, data plane, TAP

             .--pause--> Outgoing: dial, handshake --.
    wanted --+                                       +--> `current` --ended--> wanted
             '--- Incoming --admit-------------------'

All of it happens in the mailbox, one message after the other, but for what is said to be for
reading. At most one of attempt and pause is at work, and while connecting one of them always is but
in phase waiting_for_peer. It is one module because every method moves the one state.

Source: interface.md, "State machine"; protocol section 8.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Final

import gevent

from shadowmesh._fastpath import Port
from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import (
    BACKOFF_MIN_S,
    HANDSHAKE_TIMEOUT_S,
    MAX_MACS_PER_PEER,
    Caps,
    CloseReason,
    RejectReason,
)
from shadowmesh.base.errors import (
    REPORT_BUG,
    AlreadyConnected,
    AlreadyConnecting,
    ControlError,
    DeviceUnavailable,
    NotConfigured,
    NotConnected,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.keys.identity import format_public_key
from shadowmesh.keys.mac import stable_mac
from shadowmesh.link.route import SMALL_PACKET_BYTES
from shadowmesh.peer.outgoing import Outgoing
from shadowmesh.peer.pause import Pause
from shadowmesh.peer.verdicts import DUPLICATE, objection
from shadowmesh.wire.peer.backoff import Backoff
from shadowmesh.wire.peer.states import Event, PeerMachine, Phase, State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gevent.event import AsyncResult

    from shadowmesh.config import HostPort, PeerEntry
    from shadowmesh.peer.common import Common
    from shadowmesh.peer.endings import Ended
    from shadowmesh.peer.last_seen import LastSeen
    from shadowmesh.peer.seen_list import SeenPeer
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.wire.control import Address
    from shadowmesh.wire.handshake.agreement import HandshakeResult

#: the peer's operator disconnected: an automatic dialler comes back, but not at once
PEER_DISCONNECT_PAUSE_S: Final = 30.0
#: our dial lost against the peer's, whose own handshake is on its way
COLLISION_WAIT_S: Final = HANDSHAKE_TIMEOUT_S
#: why a peer ends a session that it does not want at that moment: what comes next is no reconnect
ANNOUNCED: Final = (CloseReason.DISCONNECT, CloseReason.SHUTDOWN, CloseReason.POLICY)
#: the same failure again is said so often
REPEAT_LOG_S: Final = 600.0

#: why a session ends that nobody wants any more
OPERATOR: Final = "disconnected by the operator"

_log = log.get("connection")


class Peer:
    """The life of one peer. Satisfies `tunnel.Owner`.

    Attributes for reading only:
        entry: what the configuration says of it.
        port: the place of its frames in the data plane.
        machine: state and phase.
        current: the live session, None without one.
        target: whom we dial.
        last_error, last_error_at: the last failure, cleared by success; boot-time seconds.
        reconnects: sessions that were established after a loss that neither side had announced;
            a link that came back under a session is one, too. Both sides count the same ones.
        held: an operator has disconnected: the peer is refused until somebody connects.
        last_seen: when and until when there was a session.
    """

    def __init__(
        self,
        common: Common,
        entry: PeerEntry,
        last_seen: LastSeen | SeenPeer,
        *,
        later: Callable[[float, Callable[[], None]], gevent.Greenlet] = gevent.spawn_later,
    ) -> None:
        """Make a peer that is not wanted yet.

        Args:
            later: runs a function in a while.
        """
        self.entry = entry
        self.port = _port(common, entry)
        self.machine = PeerMachine(boottime())
        self.current: Tunnel | None = None
        self.target: HostPort | None = entry.address
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.reconnects = 0
        self.held = False
        self.last_seen = last_seen
        self._common = common
        #: there was a session since the last disconnect
        self._was_connected = False
        #: the last session was lost, and neither side had said so before: the next is a reconnect
        self._lost_unannounced = False
        self._backoff = Backoff(random.SystemRandom().random)
        #: a failed attempt is followed by another
        self._redial = False
        self._outgoing = Outgoing(
            common,
            self.post,
            on_phase=self._enter,
            on_established=self._established,
            on_failed=self._attempt_failed,
        )
        self._pause = Pause(self.post, later)
        #: operators who wait for the outcome
        self._waiters: list[AsyncResult] = []
        self._logged = ("", 0.0)
        #: moves between WSS and UDP of sessions that are over
        self._switches = 0

    @property
    def name(self) -> str:
        """By which operators call it."""
        return self.entry.name

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
        return self._outgoing.running

    @property
    def next_retry_at(self) -> float | None:
        """When the next automatic dial starts, boot-time seconds."""
        # In phase accept we wait for the peer's own connection, not for a dial of ours.
        return None if self.machine.phase is Phase.ACCEPT else self._pause.ends_at

    @property
    def wanted(self) -> bool:
        """Whether there is a session, or shall be one."""
        return self.machine.state is not State.DISCONNECTED

    @property
    def expected(self) -> bool:
        """Nobody dials, but the peer is known and let in: it has to come by itself."""
        config, entry = self._common.config, self.entry
        return (
            not (self.wanted or self.held or self._common.stopping)
            and bool(config.mode)
            and (entry.address is None or (config.listed and not entry.auto_connect))
            and config.websocket.listen_address is not None
        )

    def post(self, message: Callable[[], None]) -> None:
        """Carry out something about this peer, in its turn."""
        self._common.mailbox.post(message)

    def recover(self) -> None:
        """A message failed by a bug, perhaps one about this peer: nobody may wait for ever."""
        failure = ControlError(f"internal error; {REPORT_BUG}")
        if not (self._idle or self.dialling or self._pause.ends_at):
            self._attempt_failed(failure)
        self._answer_waiters(failure)

    # --- what operator and configuration want -------------------------------------------------

    def auto_connect(self) -> None:
        """Dial if the configuration says so."""
        self.held = False
        if self.entry.auto_connect and self._common.config.mode and not self.wanted:
            self.target = self.entry.address
            self._redial = True
            self._begin()

    def connect(self, target: HostPort | None, outcome: AsyncResult) -> None:
        """Dial `target`, or whom the configuration names; `outcome` gets None or a ControlError."""
        target = target or self.entry.address
        try:
            self._check_connect(target)
        except ControlError as error:
            outcome.set_exception(error)
            return
        self.held = False
        self._waiters.append(outcome)
        if target is None:
            self._await_peer()
            return
        self.target = target
        self._redial = self._redial or self.entry.auto_connect
        self._backoff.reset()
        self._begin()

    def join(self, outcome: AsyncResult) -> None:
        """Tell of the outcome of what is on its way, or connect()."""
        if self.machine.state is State.CONNECTING and not self._idle:
            self._waiters.append(outcome)
        else:
            self.connect(None, outcome)

    def _check_connect(self, target: HostPort | None) -> None:
        if self._common.stopping:
            raise NotConnected("the daemon is shutting down")
        if self._common.config.mode == 0:
            raise NotConfigured(
                "nobody can be trusted yet; set peer.public_key or encryption.key"
                " (see `shadowmesh pubkey`, `shadowmesh genpsk`) and `shadowmesh reload`"
            )
        if self.machine.state is State.CONNECTED:
            raise AlreadyConnected(
                f"already connected; `shadowmesh disconnect{self._argument}` ends the session"
            )
        if self.machine.state is State.CONNECTING and not self._idle:
            raise AlreadyConnecting(
                "already connecting; `shadowmesh status --watch` shows how far it is"
            )
        if target is None and not self.held:
            waits = ", and the peer can come by itself" if self.expected else ""
            key = "set peer.address, or "
            if self._common.own_name is not None:
                waits = f": {self.name} announces no address, and comes by itself"
                key = ""
            elif self._common.config.listed:
                key = "set its address in peers, or "
            raise NotConfigured(
                f"no peer to connect to{waits}; to dial it from here {key}run"
                f" `shadowmesh connect{self._argument} HOST:PORT`"
            )

    def _await_peer(self) -> None:
        """Let the peer, whom we cannot dial, in again."""
        self._fire(Event.CONNECT)
        try:
            self._enter(Phase.TAP)
            self._common.hold_device(self)
        except DeviceUnavailable as error:
            self._attempt_failed(error)
            return
        self._enter(Phase.WAITING_FOR_PEER)

    def disconnect(self) -> None:
        """End the session and let the peer in no more.

        Raises:
            NotConnected: there is nothing to end.
        """
        expected = self.expected
        if not (self.wanted or expected):
            # One of the last run may have been taken over and not used yet.
            self._common.release_device(self)
            refused = ", and the peer is refused" if self.held else ""
            raise NotConnected(f"not connected{refused}; there is nothing to disconnect")
        # Before the session ends: a peer that comes back meanwhile must not be taken in.
        self.held = True
        if expected:
            self._common.release_device(self)
            self._tell(_log.info, "the peer is refused from now on", cause=OPERATOR)
        else:
            self._undo(CloseReason.DISCONNECT, OPERATOR)

    def end(self, reason: CloseReason, detail: str) -> None:
        """The daemon stops, or this peer is not trusted any more: undo everything."""
        if self.wanted:
            self._undo(reason, detail)

    def hold(self) -> None:
        """Let the peer in no more; what there is goes on until end()."""
        self.held = True

    def let_in(self) -> None:
        """Let the peer in again, if an operator has disconnected it."""
        self.held = False

    def follow(self, entry: PeerEntry, last_seen: LastSeen | SeenPeer) -> None:
        """Go by what a new configuration says of this peer.

        Without a session if that rests on something else now.
        """
        before, self.entry = self.entry, entry
        last_seen.moment = self.last_seen.moment
        self.last_seen = last_seen
        self.target = entry.address
        if (before.public_key, before.allowed_macs) != (entry.public_key, entry.allowed_macs):
            self.port.close()
            self.port = _port(self._common, entry)

    def dial_anew(self) -> None:
        """Whom to dial, or whether, has changed: let go of what was tried, and try that."""
        if self.current is None:
            self.end(CloseReason.POLICY, "the configuration says another way to the peer")
            if not self.held:
                self.auto_connect()
        elif self.on_udp_alone:
            self._pause.cancel()
            self._outgoing.abort(CloseReason.POLICY, "the configuration says another way")
            if self._dials_again(self.current):
                self._redial = True
                self._begin()

    def close(self) -> None:
        """The peer is not one any more: give its place in the data plane back, after end()."""
        self.port.close()

    # --- connecting ---------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        """No attempt runs although we are connecting: an operator may start one."""
        return self.machine.phase in (Phase.BACKOFF, Phase.WAITING_FOR_PEER)

    def _begin(self) -> None:
        """Take the steps of connecting, from wherever nothing goes on."""
        self._pause.cancel()
        retry = not self._waiters and self.wanted
        if self.machine.state not in (State.CONNECTING, State.CONNECTED):
            self._fire(Event.RETRY if retry else Event.CONNECT)
        (_log.debug if retry else _log.info)("connecting", **self._who, peer=self.target)
        assert self.target is not None
        try:
            self._enter(Phase.TAP)
            self._common.hold_device(self)
        except DeviceUnavailable as error:
            self._attempt_failed(error)
            return
        self._outgoing.start(self.target, self.entry, self.port)

    def _attempt_failed(self, error: ControlError, collision: bool = False) -> None:
        """An attempt to connect is over; plan the next or undo what was started.

        Args:
            collision: it lost against one of the peer's, which is to come.
        """
        if collision:
            self._pause.plan(COLLISION_WAIT_S, partial(self._attempt_failed, error))
        elif self.machine.state is State.CONNECTING:
            self._fire(Event.FAILED)
            self._give_up(error)
        elif self.on_udp_alone and self._redial:
            _log.limited(REPEAT_LOG_S).warning(
                "the WSS link is not back yet",
                **self._who,
                cause=error,
                remedy="none is needed while UDP carries the frames: it is dialled again",
            )
            self._pause.plan(self._backoff.next_delay(), self._begin)

    def _give_up(self, error: ControlError) -> None:
        """In error: say why, and plan what comes next."""
        if self.entry.auto_connect and not self._was_connected:
            self.target = self.entry.address  # another one that was asked for did not work
        delay_s = self._backoff.next_delay() if self._redial else None
        text = str(error)
        self._note_error(text)
        repeated = self._logged[0] == text and boottime() < self._logged[1] + REPEAT_LOG_S
        if not repeated:
            self._logged = (text, boottime())
        say = _log.debug if repeated else _log.warning
        self._tell(say, "cannot connect", cause=text, retry_in_s=delay_s and round(delay_s, 1))
        self._answer_waiters(error)
        if delay_s is None:
            self._common.release_device(self)
        else:
            self._pause.plan(delay_s, self._begin)

    def _undo(self, reason: CloseReason, detail: str) -> None:
        """Everything that connecting started, in reverse: router, session, link, plane, TAP."""
        self._redial = False
        self._pause.cancel()
        self.port.activate(None)
        self._common.takes_nothing(self)
        self._switches = self.path_switches
        tunnel, self.current = self.current, None
        if tunnel is not None:
            self.last_seen.gone()
            # Only a device that goes down has to wait for the end of its sessions.
            tunnel.close(reason, detail, wait=not self._common.device_kept)
        self._outgoing.abort(reason, detail)
        self._common.release_device(self)
        self._answer_waiters(NotConnected(detail))
        self._fire(Event.DISCONNECT)
        self._was_connected = False
        self.last_error = self.last_error_at = None
        self._tell(_log.info, "disconnected", cause=detail)

    # --- a session begins ---------------------------------------------------------------------

    def _established(self, tunnel: Tunnel) -> None:
        """The peer has accepted our dial."""
        tunnel.owner = self
        try:
            self._common.hold_device(self)
        except DeviceUnavailable as error:
            tunnel.close(CloseReason.SHUTDOWN, str(error), wait=False)
            self._attempt_failed(error)
        else:
            self._take(tunnel, result=tunnel.result)

    def admit(self, tunnel: Tunnel, result: HandshakeResult) -> None:
        """Decide about a session that this peer began: from now on we own it.

        If not it has been refused, or has ended; who owns it then hears of the end.
        """
        if self.held:
            _log.limited(REPEAT_LOG_S).info(
                "peer refused",
                **self._who,
                peer=tunnel.peer_name,
                cause=OPERATOR,
                remedy=f"`shadowmesh connect{self._argument}` lets it in again",
            )
            tunnel.reject(RejectReason.ADMIN_DOWN)
            return
        reason = objection(
            tunnel,
            result.peer_public_key,
            self._common.identity.public_key,
            current=self.current,
            dialled=self._outgoing.tunnel,
        )
        if reason is None:
            try:
                self._common.hold_device(self)
            except DeviceUnavailable as error:
                _log.limited(10).warning(
                    "peer refused",
                    **self._who,
                    peer=tunnel.peer_name,
                    cause=error,
                    remedy="none is needed once the device can be made: the peer comes again",
                )
                self._note_error(str(error))
                reason = RejectReason.BUSY
        if reason is not None:
            tunnel.reject(reason)
            return
        # Before accepting: from now on our own dial must not reach the peer's decision any more.
        self._outgoing.abort(CloseReason.REPLACED, "the peer's own connection was taken")
        tunnel.session.belongs_to(self.port)
        if self._common.config.listed:
            tunnel.called(self.name)
        if not tunnel.accept():
            self._resume()
            return
        tunnel.owner = self
        self._take(tunnel, result=tunnel.result)

    def _take(self, tunnel: Tunnel, *, result: HandshakeResult | None) -> None:
        """Router on: this session is the live one."""
        assert result is not None
        self._pause.cancel()
        self._switches = self.path_switches
        replaced, self.current = self.current, tunnel
        # Who comes while we believe in a session has lost it: unless both began at once.
        self.reconnects += self._lost_unannounced or (
            replaced is not None and tunnel.started_at >= (replaced.established_boottime or 0.0)
        )
        self._lost_unannounced = False
        self.last_seen.here()
        self._enter(Phase.ROUTER)
        # The kernel may hand us only what the peer takes.
        self._common.takes(
            self,
            streams=bool(result.peer_caps & result.local_caps & Caps.OFFLOAD),
            datagrams=bool(result.peer_caps & Caps.UDP_GSO),
        )
        self.port.activate(tunnel.session)
        self._common.device.peer_is_there()
        self._common.known.authenticated(
            tunnel.wss.remote_address[0], boottime(), result.peer_public_key
        )
        if replaced is not None:
            self._fire(Event.REPLACED)
            replaced.replace()
        else:
            self._fire(Event.ESTABLISHED if tunnel.initiator else Event.ACCEPTED)
        self._common.handshakes["ok"] += 1
        self._was_connected = True
        self.last_error = self.last_error_at = None
        self._common.came_in(tunnel)
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
        if self.entry.public_key is None:
            _log.warning(
                "the peer is not pinned: any holder of encryption.key can be it",
                public_key=format_public_key(result.peer_public_key),
                remedy="set peer.public_key to the key of your peer",
            )
        self._answer_waiters(None)

    def _resume(self) -> None:
        """A peer that was to be accepted is gone: back to where nothing was tried."""
        if (self.machine.state is State.CONNECTING and not self._idle) or self.on_udp_alone:
            self._attempt_failed(PeerUnreachable("the peer's own connection ended too early"))
        elif not self.wanted or (self.machine.state is State.ERROR and not self._redial):
            self._common.release_device(self)

    # --- a session ends -----------------------------------------------------------------------

    def ended(self, tunnel: Tunnel, ended: Ended) -> None:
        """A session of ours is over; of those that were replaced nothing follows."""
        if tunnel is self.current:
            self._switches = self.path_switches
            self.current = None
            self._lost(tunnel, ended)

    def link_lost(self, tunnel: Tunnel) -> None:
        """The live session goes on over UDP alone: get it a new link."""
        if tunnel is not self.current or tunnel.over:
            return
        self._tell(
            _log.warning,
            "WSS link lost, UDP goes on",
            peer=tunnel.peer_name,
            cause=tunnel.link_error,
            remedy="none is needed if it comes back; else something on the way cuts TCP",
        )
        if self._dials_again(tunnel) and not self.dialling:
            self._redial = True
            self._backoff.session_ended(tunnel.age_s)
            self._pause.plan(self._backoff.next_delay(), self._begin)

    def link_stands(self, tunnel: Tunnel, stands: bool) -> None:
        """The link of the live session gets nowhere: try another beside it, with short segments.

        Which is it, a path that is down for a while or one that swallows long packets? The new
        connection will tell: only if it comes through does it take over. Once per standstill, and
        not for a link whose segments are short already.
        """
        if tunnel is not self.current or tunnel.over or self.on_udp_alone:
            return
        if not stands:
            self._outgoing.abort(CloseReason.REPLACED, "the link goes on after all")
        elif self._dials_again(tunnel) and not self.dialling and not tunnel.wss.short_segments:
            _log.warning(
                "the WSS link stands still, trying another with short segments",
                **self._who,
                peer=tunnel.peer_name,
                packet_bytes=SMALL_PACKET_BYTES,
                remedy="let ICMP through on the way to the peer if this comes again",
            )
            self._redial = True
            self._outgoing.route.keep_small()
            self._begin()

    def _dials_again(self, tunnel: Tunnel) -> bool:
        """Whether a session that ended by itself is ours to bring back."""
        return self.target is not None and (tunnel.initiator or self.entry.auto_connect)

    def _lost(self, tunnel: Tunnel, ended: Ended) -> None:
        """The live session ended by itself."""
        self.port.activate(None)
        self._common.takes_nothing(self)
        self.last_seen.gone()
        self._lost_unannounced = ended.peer_reason not in ANNOUNCED
        by_operator = ended.peer_reason == CloseReason.DISCONNECT
        if tunnel.initiator and by_operator and not self.entry.auto_connect:
            self._undo(CloseReason.DISCONNECT, ended.detail)
            self._note_error(ended.detail)
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
        self._note_error(ended.detail)
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
        self._backoff.session_ended(tunnel.age_s)
        self.machine.enter(Phase.BACKOFF)
        self._pause.plan(
            PEER_DISCONNECT_PAUSE_S if by_operator else self._backoff.next_delay(), self._begin
        )

    # --- the ground moves ---------------------------------------------------------------------

    def device_failed(self, error: DeviceUnavailable) -> None:
        """The TAP device is gone and could not be made again."""
        if not self.wanted:
            return
        redial = self._redial
        self._undo(CloseReason.SHUTDOWN, str(error))
        self._redial = redial
        self._fire(Event.CONNECT)
        self._fire(Event.DEVICE_FAILED)
        self._give_up(error)

    def candidates_changed(self) -> None:
        """The addresses at which the peer may reach us are others now."""
        if self.current is not None and self.current.paths is not None:
            self.current.paths.candidates_changed()

    def network_changed(self, held: Collection[Address]) -> None:
        """Prove the paths anew, and dial soon if we were only waiting to.

        Args:
            held: the addresses that this host has now.
        """
        self._outgoing.route.network_changed()
        if self.current is not None:
            self.current.network_changed(held)
        if self.next_retry_at is not None and self.next_retry_at > boottime() + BACKOFF_MIN_S:
            self._backoff.reset()
            self._pause.plan(self._backoff.next_delay(), self._begin)

    def udp_reopened(self, *, enabled: bool) -> None:
        """The UDP socket is another one, or gone: this session has to do without."""
        if self.current is not None and self.current.paths is not None:
            self.current.paths.disable(
                "the UDP port has changed, the next session uses UDP again"
                if enabled
                else "UDP is switched off by nat.enabled: false"
            )

    # --- small things -------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        """Name the step of connecting; a link that is brought back under a session has none."""
        if self.machine.state is State.CONNECTING:
            self.machine.enter(phase)

    def _fire(self, event: Event) -> None:
        before = self.machine.state
        after = self.machine.fire(event, boottime())
        if after is not before:
            _log.debug("state changed", **self._who, before=before, after=after, event=event.name)
            self._common.recorder.record(
                "state", "state changed", **self._who, before=before, after=after, event=event
            )

    @property
    def _who(self) -> dict[str, str]:
        """What log and events say besides; nothing where there is only one."""
        return {"name": self.name} if self._common.config.listed else {}

    @property
    def _argument(self) -> str:
        """What names this peer on the command line."""
        return f" {self.name}" if self._common.config.listed else ""

    def _tell(self, say: Callable[..., None], message: str, **facts: object) -> None:
        self._common.tell(say, message, **self._who, **facts)

    def _note_error(self, text: str) -> None:
        self.last_error, self.last_error_at = text, boottime()

    def _answer_waiters(self, error: ControlError | None) -> None:
        waiters, self._waiters = self._waiters, []
        for outcome in waiters:
            if error is None:
                outcome.set(None)
            else:
                outcome.set_exception(error)


def _port(common: Common, entry: PeerEntry) -> Port:
    """Return a place in the data plane for the frames of this peer."""
    allowed = entry.allowed_macs
    key = entry.public_key
    mac = None if key is None else stable_mac(key)
    if key == common.identity.public_key:
        mac = None  # a pair that was told our own key, by mistake: nobody can be that peer
    return Port(
        common.plane,
        mac,
        # beside its own
        macs=None if allowed == "any" else () if allowed == "own" else allowed,
        max_macs=MAX_MACS_PER_PEER,
        broadcast=common.config.mesh.broadcast,
    )
