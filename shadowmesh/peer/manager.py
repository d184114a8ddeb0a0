"""The connection manager: holds the peers, and lets the rest of the daemon ask about them.

Owns: the peers (one, as long as the configuration has one), what comes to all of them alike:
accepted connections, changes of the network, the device and the configuration, the end. Does not
know: the life of a peer (`peer`), HTTP, what a snapshot looks like (`service.view` builds it from
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

from shadowmesh.base import log
from shadowmesh.base.constants import CloseReason
from shadowmesh.base.errors import ConnectTimeout, DeviceUnavailable, NotConnected
from shadowmesh.config import reloaded
from shadowmesh.device import addresses
from shadowmesh.insight.events import NOBODY
from shadowmesh.link.dial import dial
from shadowmesh.link.known import KnownAddresses
from shadowmesh.peer.common import Common
from shadowmesh.peer.incoming import Incoming
from shadowmesh.peer.mailbox import Mailbox
from shadowmesh.peer.peer import Peer
from shadowmesh.peer.verdicts import trust_of
from shadowmesh.wire.peer.states import Phase

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.config import Config, HostPort, NatSection
    from shadowmesh.device.device import Device
    from shadowmesh.device.tap import Tap
    from shadowmesh.fast.openssl import TlsContext
    from shadowmesh.insight.events import Recorder
    from shadowmesh.insight.status import Pong, Refused
    from shadowmesh.keys.identity import Identity
    from shadowmesh.link.link import Upgraded
    from shadowmesh.link.route import Route
    from shadowmesh.path.traversal import Traversal

#: how long an operator's connect waits for the outcome: a dial and a handshake at their limits
CONNECT_TIMEOUT_S: Final = 35.0
#: stop() gives up waiting for the undoing: a link closes within 3 s
STOP_TIMEOUT_S: Final = 3.0

_log = log.get("connection")


class ConnectionManager:
    """All peers of this daemon.

    Attributes for reading only:
        peers: at least one.
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
    ) -> None:
        """Make a manager of a tunnel that is not wanted yet.

        Args:
            device: closed; started and stopped here.
            dial: makes one connection, or raises ControlError.
            later: runs a function in a while.
            traversal: started and stopped by the caller; None: WSS only.
            recorder: whom changes of state and sessions are told.
            known: is told from where peers authenticate.
        """
        self.identity = identity
        self.plane = plane
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
        )
        self.peers = (Peer(self._common, later=later),)
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
    def config(self) -> Config:
        """The configuration in force."""
        return self._common.config

    @property
    def handshakes(self) -> Counter[str]:
        """How handshakes ended, by one word."""
        return self._common.handshakes

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
        return self._device.problem if any(peer.wanted for peer in self.peers) else None

    @property
    def realtime_problem(self) -> str | None:
        """Why the threads that carry frames do not run before other programs; None: they may."""
        return self._device.realtime_problem

    # --- what others may ask ------------------------------------------------------------------

    def start(self) -> None:
        """Start the mailbox; dial if the configuration says so."""
        self._mailbox.start()
        self._device.start(lambda: self._mailbox.post(self._device_lost))
        for peer in self.peers:
            peer.post(peer.auto_connect)

    def connect(self, target: HostPort | None) -> None:
        """Connect and wait for the outcome.

        Raises:
            ControlError: already connected or connecting, not configured, no device, peer
                unreachable or refusing, timeout.
        """
        outcome: AsyncResult = AsyncResult()
        self.peer.post(partial(self.peer.connect, target, outcome))
        try:
            outcome.get(timeout=CONNECT_TIMEOUT_S)
        except gevent.Timeout:
            what = "no outcome within"
            if self.peer.machine.phase is Phase.WAITING_FOR_PEER:
                what = "the peer, which is let in again, has not come within"
            raise ConnectTimeout(
                f"{what} {CONNECT_TIMEOUT_S:.0f} s; see `shadowmesh status`"
            ) from None

    def disconnect(self) -> None:
        """End the tunnel and take the TAP down.

        Raises:
            NotConnected: there is none.
        """
        outcome: AsyncResult = AsyncResult()
        self.peer.post(partial(self.peer.disconnect, outcome))
        outcome.get()

    def ping(self) -> Pong:
        """Measure one round trip to the peer; waits for the answer.

        Raises:
            NotConnected: there is no session.
        """
        tunnel = self.peer.current
        if tunnel is None:
            raise NotConnected("not connected; `shadowmesh connect` first")
        return tunnel.ping()

    def beat(self) -> None:
        """Note who is here; now and then."""
        for peer in self.peers:
            if peer.current is not None:
                peer.last_seen.here()

    def stop(self) -> None:
        """Undo everything, for good; returns when it is done, at most about 3 s later."""
        if self._mailbox.started:
            done = Done()
            self._mailbox.post(self._take_nobody_in)
            for peer in self.peers:
                peer.post(partial(peer.end, CloseReason.SHUTDOWN, "the daemon stops"))
            self._mailbox.post(done.set)
            if not done.wait(STOP_TIMEOUT_S):
                _log.warning(
                    "the tunnel did not end in time",
                    remedy="none is needed: what is left ends with this process",
                )
            self._mailbox.stop()
        self._device.stop()

    def take_incoming(self, upgraded: Upgraded) -> None:
        """Give an upgraded connection of the listener its handshake."""
        self._incoming.take(upgraded)

    def reload(self, config: Config) -> None:
        """Use a new configuration; a session that it no longer allows ends at once."""
        self._mailbox.post(partial(self._reload, config))

    # --- in the mailbox -----------------------------------------------------------------------

    def _peer_of(self, public_key: bytes) -> Peer:
        """Whose key this is. Of a pair whoever passed the handshake is the peer, or says so."""
        return self.peer

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
        self._common.config = after = reloaded(before, config)
        self._reload_udp(before.nat, after.nat)
        distrusted = trust_of(before) != trust_of(after)
        detail = "the configuration of the peer has changed"
        if distrusted:
            self._incoming.close(CloseReason.POLICY, detail)
        for peer in self.peers:
            # What an operator has disconnected stays so when only the shared key changes.
            wanted = peer.wanted or before.mode == 0
            if distrusted:
                peer.end(CloseReason.POLICY, detail)
                peer.retarget(after)
            if wanted or before.peer != after.peer:
                peer.auto_connect()

    def _reload_udp(self, before: NatSection, after: NatSection) -> None:
        if self.traversal is None or before == after:
            return
        if (before.enabled, before.udp_port) != (after.enabled, after.udp_port):
            for peer in self.peers:
                peer.udp_reopened(enabled=after.enabled)
        self.traversal.reload(after)
