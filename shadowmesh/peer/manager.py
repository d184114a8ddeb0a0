"""The connection manager: holds the peers, and lets the rest of the daemon ask about them.

Owns: the peers (one of `peer:`, or those of the list `peers:`), what comes to all of them alike:
accepted connections, changes of the network, the device and the configuration, the end; that the
device of a list is there from start to disconnect. Does not know: the life of a peer (`peer`), HTTP, what a snapshot looks like (`service.view` builds it from
what is here).

::

    API, listener, diallers, sessions, device --post--> mailbox --> Peer, Incoming, device
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import AsyncResult
from gevent.event import Event as Done
from gevent.hub import iwait

from shadowmesh.base import log
from shadowmesh.base.constants import CloseReason
from shadowmesh.base.errors import (
    REPORT_BUG,
    AlreadyConnected,
    BadRequest,
    ConnectTimeout,
    ControlError,
    DeviceUnavailable,
    NoSuchPeer,
    NotConfigured,
    NotConnected,
)
from shadowmesh.base.words import nearest
from shadowmesh.config import reloaded
from shadowmesh.device import addresses
from shadowmesh.insight.events import NOBODY
from shadowmesh.keys.mac import stable_mac
from shadowmesh.link.dial import dial
from shadowmesh.link.known import KnownAddresses
from shadowmesh.peer import joining
from shadowmesh.peer.common import Common
from shadowmesh.peer.incoming import Incoming
from shadowmesh.peer.last_seen import LastSeen
from shadowmesh.peer.mailbox import Mailbox
from shadowmesh.peer.peer import OPERATOR, Peer
from shadowmesh.peer.seen_list import SeenList
from shadowmesh.peer.standing_down import StandingDown
from shadowmesh.peer.verdicts import trust_of
from shadowmesh.wire.peer.states import Phase, State

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Collection

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.config import Config, HostPort, NatSection, PeerEntry
    from shadowmesh.device.device import Device
    from shadowmesh.device.tap import Tap
    from shadowmesh.fast.openssl import TlsContext
    from shadowmesh.insight.events import Recorder
    from shadowmesh.insight.peers import Pong
    from shadowmesh.insight.status import Refused
    from shadowmesh.keys.identity import Identity
    from shadowmesh.link.link import Upgraded
    from shadowmesh.link.route import Route
    from shadowmesh.network.membership import Membership
    from shadowmesh.path.traversal import Traversal
    from shadowmesh.peer.seen_list import SeenPeer
    from shadowmesh.peer.terms import Desk, Meet
    from shadowmesh.wire.handshake.agreement import HandshakeResult
    from shadowmesh.wire.mesh.joining import Answer, Question

#: how long an operator's connect waits for the outcome: a dial and a handshake at their limits
CONNECT_TIMEOUT_S: Final = 35.0
#: addresses in the switch's table that were not heard for long are looked for so seldom
FORGET_MACS_BEATS: Final = 10
#: stop() gives up waiting for the undoing: a link closes within 3 s
STOP_TIMEOUT_S: Final = 3.0

_CHANGED: Final = "the configuration of the peer has changed"

_NOT_LISTED: Final = "it is not among the peers any more"
_OUT: Final = "it was removed from the network, or its certificate counts no more"

_log = log.get("connection")


class ConnectionManager:
    """All peers of this daemon.

    Attributes for reading only:
        peers: sorted as in the configuration; one of `peer:`, any number of a list.
        identity, plane: what it was made with.
        traversal: the UDP side of this host, None without.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        plane: DataPlane,
        device: Device,
        client_context: TlsContext,
        *,
        dial: Callable[[HostPort, str, TlsContext, Route], Upgraded] = dial,
        later: Callable[[float, Callable[[], None]], gevent.Greenlet] = gevent.spawn_later,
        traversal: Traversal | None = None,
        recorder: Recorder = NOBODY,
        known: KnownAddresses | None = None,
        membership: Membership | None = None,
        desk: Desk | None = None,
        meet: Meet | None = None,
        on_out_of_date: Callable[[PeerEntry, HostPort], None] | None = None,
    ) -> None:
        """Make a manager of a tunnel that is not wanted yet.

        Args:
            device: closed; started and stopped here.
            dial: makes one connection, or raises ControlError.
            later: runs a function in a while.
            traversal: started and stopped by the caller; None: WSS only.
            recorder: whom changes of state and sessions are told.
            known: is told from where peers authenticate.
            membership: in a network; then `config` lists the other members.
            desk: where whoever wants to join the network is answered.
            on_out_of_date: told of a member, and where it was dialled, that may want another
                certificate or secret of us.
            meet: takes what members say about the network, see `Terms.meet`.
        """
        self.identity = identity
        self.plane = plane
        plane.own_mac(stable_mac(identity.public_key))
        plane.limit_macs(config.mesh.max_macs)
        self.traversal = traversal
        self._mailbox = Mailbox(self._recover)
        self._common = Common(
            config,
            identity,
            plane,
            device,
            client_context,
            self._mailbox,
            dial=dial,
            traversal=traversal,
            recorder=recorder,
            known=KnownAddresses() if known is None else known,
            membership=membership,
            desk=desk,
            meet=meet,
            on_out_of_date=on_out_of_date,
        )
        self._later = later
        #: of a list; None for a pair
        self._seen = SeenList(config.daemon.state_dir) if config.listed else None
        #: of a list: while it is, those who are added are held, too
        self._down = StandingDown(config.daemon.state_dir)
        self._beats = 0
        self.peers = tuple(self._make(entry) for entry in config.peers)
        self._by_key = self._index()
        self._incoming = Incoming(self._common, self._peer_of)
        self._device = device
        if traversal is not None:
            traversal.on_change = lambda: self._mailbox.post(self._candidates_changed)
            traversal.on_network_change = lambda: self._mailbox.post(self._network_changed)

    @property
    def peer(self) -> Peer:
        """The peer of a pair."""
        return self.peers[0]

    @property
    def state(self) -> State:
        """Of one peer its own; of several the best, where one in error counts as connecting."""
        if len(self.peers) == 1:
            return self.peer.machine.state
        states = {peer.machine.state for peer in self.peers}
        if State.CONNECTED in states:
            return State.CONNECTED
        return State.CONNECTING if states - {State.DISCONNECTED} else State.DISCONNECTED

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._common.config

    @property
    def handshakes(self) -> Counter[str]:
        """How handshakes ended, by one word."""
        return self._common.handshakes

    @property
    def dropped(self) -> Counter[str]:
        """Records that were dropped beside those of the data plane, by reason."""
        return self._common.dropped

    @property
    def refused(self) -> Refused | None:
        """The last peer that was not let in, cleared by success."""
        return self._common.refused

    @property
    def tap(self) -> Tap | None:
        """The open device, None without one."""
        return self._device.tap

    @property
    def device_problem(self) -> str | None:
        """Why the device, which is wanted, could not be made; None when it could or is not."""
        wanted = self._common.device_kept or any(peer.wanted for peer in self.peers)
        return self._device.problem if wanted else None

    @property
    def realtime_problem(self) -> str | None:
        """Why the threads that carry frames do not run before other programs; None: they may."""
        return self._device.realtime_problem

    # --- what others may ask ------------------------------------------------------------------

    def start(self) -> None:
        """Start the mailbox; dial if the configuration says so."""
        self._mailbox.start()
        self._device.start(lambda: self._mailbox.post(self._device_lost))
        self._mailbox.post(self._begin_all)

    def peer_named(self, name: str) -> Peer:
        """Return the peer with this name.

        Raises:
            NoSuchPeer: there is none.
        """
        for peer in self.peers:
            if peer.name == name:
                return peer
        near = nearest(name, [peer.name for peer in self.peers])
        hint = "`shadowmesh peers` names all" if near is None else f'did you mean "{near}"?'
        if name == self._common.own_name:
            hint = "that is this machine itself"
        raise NoSuchPeer(f'there is no peer "{name}"; {hint}')

    def connect(self, target: HostPort | None, name: str | None = None) -> None:
        """Connect and wait for the outcome, of several peers for the first success.

        Args:
            target: whom to dial; None: whom the configuration names.
            name: of the peer; None: all that can be dialled, or the one with that address. All
                whom an operator has disconnected are let in again.
        Raises:
            ControlError: already connected or connecting, not configured, no such peer, no device,
                peer unreachable or refusing, timeout.
        """
        begun: AsyncResult = AsyncResult()
        self._mailbox.post(partial(self._answer, begun, partial(self._connect, target, name)))
        attempts: dict[AsyncResult, Peer] = {}
        timer = gevent.Timeout.start_new(CONNECT_TIMEOUT_S)
        try:
            attempts = begun.get()
            _await_success(attempts)
        except gevent.Timeout as timeout:
            if timeout is not timer:
                raise
            what = "no outcome within"
            if {peer.machine.phase for peer in attempts.values()} == {Phase.WAITING_FOR_PEER}:
                what = "the peer, which is let in again, has not come within"
            raise ConnectTimeout(
                f"{what} {CONNECT_TIMEOUT_S:.0f} s; see `shadowmesh status`"
            ) from None
        finally:
            timer.close()

    def disconnect(self, name: str | None = None) -> None:
        """End the session of one peer, or all sessions and take the TAP down.

        Raises:
            NotConnected: there is none.
            NoSuchPeer: nobody has that name.
        """
        outcome: AsyncResult = AsyncResult()
        self._mailbox.post(partial(self._answer, outcome, partial(self._disconnect, name)))
        outcome.get()

    def ping(self, name: str | None = None) -> Pong:
        """Measure one round trip to a peer; waits for the answer.

        Raises:
            NotConnected: there is no session.
            NoSuchPeer: nobody has that name.
            BadRequest: there are several peers, and none is named.
        """
        if name is None and len(self.peers) != 1:
            raise BadRequest("there are several peers; say which: `shadowmesh ping NAME`")
        peer = self.peers[0] if name is None else self.peer_named(name)
        tunnel = peer.current
        if tunnel is None:
            if not self._common.config.listed:
                raise NotConnected("not connected; `shadowmesh connect` first")
            raise NotConnected(
                f"no session with {peer.name}; `shadowmesh connect {peer.name}` first"
            )
        return tunnel.ping()

    def round_trips(self) -> dict[bytes, float | None]:
        """Return the round trip to each peer with a session, by its key, in seconds.

        Over WSS, where UDP may be blocked: None before the first answer.
        """
        sessions = ((peer.entry.public_key, peer.current) for peer in self.peers)
        return {
            key: tunnel.rtt_s for key, tunnel in sessions if key is not None and tunnel is not None
        }

    def beat(self) -> None:
        """Note who is here, free what a burst has left; now and then."""
        self.plane.give_memory_back()
        for peer in self.peers:
            if peer.current is not None:
                peer.last_seen.here()
        if self._seen is not None:
            self._seen.beat()
            self._beats += 1
            if self._beats % FORGET_MACS_BEATS == 0:
                self.plane.age_macs()

    def forget_disconnect(self) -> None:
        """There will be other peers at the next start: whom an operator has disconnected is gone."""
        self._down.end()

    def stop(self) -> None:
        """Undo everything, for good; returns when it is done, at most about 3 s later."""
        if self._mailbox.started:
            done = Done()
            self._mailbox.post(self._take_nobody_in)
            self._mailbox.post(
                lambda: self._end_all(self.peers, CloseReason.SHUTDOWN, "the daemon stops")
            )
            self._mailbox.post(done.set)
            if not done.wait(STOP_TIMEOUT_S):
                _log.warning(
                    "the tunnel did not end in time",
                    remedy="none is needed: what is left ends with this process",
                )
            self._mailbox.stop()
        if self._seen is not None:
            self._seen.write()
        self._device.stop()

    def ask_to_join(
        self,
        address: HostPort,
        identity: Identity,
        relay_key: bytes,
        question: Callable[[HandshakeResult], Question],
        timeout_s: float,
    ) -> Answer:
        """Ask a relay to be let into its network; waits. As `joining.ask`, with its errors."""
        return joining.ask(self._common, address, identity, relay_key, question, timeout_s)

    def take_incoming(self, upgraded: Upgraded) -> None:
        """Give an upgraded connection of the listener its handshake."""
        self._incoming.take(upgraded)

    def reload(self, config: Config) -> None:
        """Use a new configuration; a session that it no longer allows ends at once."""
        self._mailbox.post(partial(self._reload, config))

    # --- in the mailbox -----------------------------------------------------------------------

    def _make(self, entry: PeerEntry) -> Peer:
        return Peer(self._common, entry, self._seen_of(entry), later=self._later)

    def _seen_of(self, entry: PeerEntry) -> LastSeen | SeenPeer:
        if self._seen is None or entry.public_key is None:
            return LastSeen(self._common.config.daemon.state_dir)
        return self._seen.of(entry.public_key)

    def _index(self) -> dict[bytes, Peer]:
        """Return the peers by their keys; of a pair the key may be unknown."""
        keys = ((peer.entry.public_key, peer) for peer in self.peers)
        return {key: peer for key, peer in keys if key is not None}

    def _peer_of(self, public_key: bytes) -> Peer | None:
        """Whose key this is. Of a pair whoever passed the handshake is the peer, or says so."""
        return self._by_key.get(public_key) if self._common.config.listed else self.peer

    def _answer(self, outcome: AsyncResult, question: Callable[[], object]) -> None:
        """Let who waits for it know what came of it."""
        try:
            outcome.set(question())
        except ControlError as error:
            outcome.set_exception(error)
        except BaseException:
            outcome.set_exception(ControlError(f"internal error; {REPORT_BUG}"))
            raise

    def _connect(self, target: HostPort | None, name: str | None) -> dict[AsyncResult, Peer]:
        """Begin to connect; return whose outcomes there will be, None of them: all is done."""
        if not self._common.config.listed:
            peers = (self.peer if name is None else self.peer_named(name),)
        elif name is not None:
            peers = (self.peer_named(name),)
        elif target is not None:
            peers = (self._peer_at(target),)
        else:
            return self._connect_all()
        self._come_up()
        attempts = {AsyncResult(): peer for peer in peers}
        for outcome, peer in attempts.items():
            peer.connect(target, outcome)
        return attempts

    def _peer_at(self, target: HostPort) -> Peer:
        for peer in self.peers:
            if peer.entry.address == target:
                return peer
        raise BadRequest(
            f"no peer has the address {target}; `shadowmesh peers` names all, and `shadowmesh"
            " connect NAME HOST:PORT` says whom you want to reach there"
        )

    def _connect_all(self) -> dict[AsyncResult, Peer]:
        if not self.peers:
            raise NotConfigured("peers is an empty list: there is nobody to connect to")
        held = [peer for peer in self.peers if peer.held]
        absent = [peer for peer in self.peers if peer.machine.state is not State.CONNECTED]
        if not (held or absent):
            raise AlreadyConnected("all peers are connected; `shadowmesh peers` shows them")
        self._come_up()
        for peer in held:
            peer.let_in()
        attempts = {AsyncResult(): peer for peer in absent if peer.entry.address is not None}
        for outcome, peer in attempts.items():
            peer.join(outcome)
        if attempts or held:
            return attempts
        raise NotConfigured(
            "no peer to connect to: those that are missing have no address, they come by themselves"
        )

    def _begin_all(self) -> None:
        if self._common.config.listed:
            if self._down.now:
                _log.info(
                    "all peers stay disconnected, as an operator has left them",
                    remedy="`shadowmesh connect` lets them in and dials them",
                )
            else:
                self._keep_device()
        for peer in self.peers:
            self._begin(peer)

    def _come_up(self) -> None:
        if self._common.config.listed:
            self._down.end()
            self._keep_device()

    def _keep_device(self) -> None:
        """Have the device of a list; where it cannot be made, who needs it next tries again."""
        self._common.device_kept = True
        try:
            self._device.open()
        except DeviceUnavailable as error:
            _log.warning(
                "there is no TAP device yet",
                cause=error,
                remedy="none is needed once it can be made: each session tries again",
            )

    def _disconnect(self, name: str | None) -> None:
        if name is not None or not self._common.config.listed:
            (self.peer if name is None else self.peer_named(name)).disconnect()
            return
        if self._down.now:
            raise NotConnected(
                "not connected, and all peers are refused; there is nothing to disconnect"
            )
        # Before the sessions end: who comes back meanwhile must not be taken in.
        self._down.begin()
        for peer in self.peers:
            peer.hold()
        self._end_all(self.peers, CloseReason.DISCONNECT, OPERATOR)

    def _end_all(self, peers: Collection[Peer], reason: CloseReason, detail: str) -> None:
        """End all sessions side by side, then let go of the device; at most about 3 s."""
        self._common.device_kept = False
        gevent.joinall([gevent.spawn(peer.end, reason, detail) for peer in peers], raise_error=True)
        self._common.release_device(self)

    def _recover(self, _error: Exception) -> None:
        """A message failed by a bug."""
        for peer in self.peers:
            peer.recover()

    def _take_nobody_in(self) -> None:
        self._common.stopping = True
        self._incoming.close(CloseReason.SHUTDOWN, "the daemon stops")

    def _device_lost(self) -> None:
        """The TAP was deleted under us: make it again, or give up what needs it."""
        tap = self._device.tap
        if tap is None or not self._device.lost:
            return
        recorder = self._common.recorder
        _log.warning(
            "the TAP device is gone, making it again",
            device=tap.name,
            remedy="find out who deletes it: systemd-networkd, NetworkManager or a script",
        )
        recorder.record("device", "the TAP device is gone, making it again", device=tap.name)
        try:
            self._device.renew()
        except DeviceUnavailable as error:
            recorder.record("device", "the TAP device cannot be made", cause=error)
            for peer in self.peers:
                peer.device_failed(error)

    def _candidates_changed(self) -> None:
        for peer in self.peers:
            peer.candidates_changed()

    def _network_changed(self) -> None:
        held = addresses.look(None).held if any(peer.current for peer in self.peers) else ()
        for peer in self.peers:
            peer.network_changed(held)

    def _reload(self, config: Config) -> None:
        before = self._common.config
        after = reloaded(before, config)
        self._common.use(after)
        self._reload_udp(before.nat, after.nat)
        if before.listed or after.listed:
            self._reload_list(before, after)
        else:
            self._reload_pair(before, after)

    def _reload_pair(self, before: Config, after: Config) -> None:
        peer, (entry,) = self.peer, after.peers
        distrusted = trust_of(before) != trust_of(after)
        # What an operator has disconnected stays so when only the shared key changes.
        wanted = peer.wanted or before.mode == 0
        if distrusted:
            self._incoming.close(CloseReason.POLICY, _CHANGED)
            peer.end(CloseReason.POLICY, _CHANGED)
        peer.follow(entry, peer.last_seen)
        if wanted or before.peer != after.peer:
            peer.auto_connect()

    def _reload_list(self, before: Config, after: Config) -> None:
        """Change what has changed; a session is its key's, whatever else is said of the peer."""
        if (before.listed, before.encryption.key) != (after.listed, after.encryption.key):
            self._incoming.close(CloseReason.POLICY, _CHANGED)
        known = self._index()
        if not after.listed:
            self._seen = None
        elif self._seen is None:
            self._seen = SeenList(after.daemon.state_dir)
        kept = {key: known[key] for entry in after.peers if (key := entry.public_key) in known}
        staying = set(kept.values())
        for peer in self.peers:
            if peer not in staying:
                peer.end(CloseReason.POLICY, _OUT if after.in_network else _NOT_LISTED)
                peer.close()
        if self._seen is not None:
            self._seen.keep({entry.public_key for entry in after.peers if entry.public_key})
        if after.listed and not self._down.now:
            self._keep_device()
        peers, new = [], set()
        for entry in after.peers:
            peer = None if entry.public_key is None else kept.get(entry.public_key)
            if peer is None:
                peer = self._make(entry)
                new.add(peer)
            peers.append(peer)
        self.peers = tuple(peers)
        self._by_key = self._index()
        distrusted = before.encryption.key != after.encryption.key
        for peer, entry in zip(self.peers, after.peers, strict=True):
            if peer in new:
                self._begin(peer)
            else:
                self._change(peer, entry, distrusted=distrusted)
        if not after.listed:
            self._common.device_kept = False
            self._common.release_device(self)

    def _begin(self, peer: Peer) -> None:
        """A peer is new: dial it, unless an operator wants none."""
        if self._common.config.listed and self._down.now:
            peer.hold()
        else:
            peer.auto_connect()

    def _change(self, peer: Peer, entry: PeerEntry, *, distrusted: bool) -> None:
        """Another configuration has this peer, too."""
        was, wanted = peer.entry, peer.wanted
        if distrusted or was.allowed_macs != entry.allowed_macs:
            peer.end(CloseReason.POLICY, _CHANGED)
        peer.follow(entry, self._seen_of(entry))
        if (was.address, was.auto_connect) != (entry.address, entry.auto_connect):
            peer.dial_anew()
        elif wanted and not peer.wanted:
            peer.auto_connect()

    def _reload_udp(self, before: NatSection, after: NatSection) -> None:
        if self.traversal is None or before == after:
            return
        if (before.enabled, before.udp_port) != (after.enabled, after.udp_port):
            for peer in self.peers:
                peer.udp_reopened(enabled=after.enabled)
        self.traversal.reload(after)


def _await_success(attempts: Collection[AsyncResult]) -> None:
    """Wait for the first that succeeds. Raises ControlError: none does."""
    failures = []
    for outcome in iwait(list(attempts)):
        if outcome.successful():
            return
        failures.append(outcome.exception)
    if failures:
        raise failures[0]
