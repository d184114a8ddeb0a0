"""The daemon as others see it: snapshots out of the live objects.

Owns: how the connection manager, the data plane and the process become a `Snapshot`, and how one
peer is put into it or several are summed up. Does not know: what is told of one peer (`peer_view`),
how well all is (`checks`), HTTP, how things are changed.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from shadowmesh import __version__
from shadowmesh.base import log
from shadowmesh.base.clock import Dates, boottime
from shadowmesh.base.errors import MORE_DESCRIPTORS
from shadowmesh.base.units import count
from shadowmesh.config import HostPort
from shadowmesh.device import facts
from shadowmesh.insight.health import few
from shadowmesh.insight.history import History, Totals
from shadowmesh.insight.peers import OnePeer, Peers
from shadowmesh.insight.resources import read_resources
from shadowmesh.insight.status import (
    Certificate,
    Counters,
    Health,
    Nat,
    Queue,
    Resources,
    Snapshot,
    Tap,
)
from shadowmesh.insight.status import PeerPort as PeerPortStatus
from shadowmesh.insight.table import freshest_first
from shadowmesh.keys.identity import format_public_key
from shadowmesh.service import peer_view
from shadowmesh.service.checks import Checks, connections, is_awaited, queue_bytes, troubles
from shadowmesh.service.peer_view import PeerView
from shadowmesh.wire.peer.states import Phase, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import psutil

    from shadowmesh.config import Config
    from shadowmesh.device.facts import HostFacts, Target
    from shadowmesh.device.underlay import Underlay
    from shadowmesh.insight.explain import Explanation
    from shadowmesh.insight.history import Report
    from shadowmesh.insight.peers import PeerStatus
    from shadowmesh.insight.status import Capture, Refused
    from shadowmesh.insight.table import Entry, Size
    from shadowmesh.insight.vitals import Vitals
    from shadowmesh.link.peer_port import PeerPort
    from shadowmesh.link.tls import Certificate as TlsCertificate
    from shadowmesh.peer.manager import ConnectionManager
    from shadowmesh.peer.peer import Peer
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.service.hub_lag import HubLag
    from shadowmesh.service.member_view import MemberView

#: between two pauses; some 3 ms of work
PEERS_AT_ONCE: Final = 50

_log = log.get("status")


class View:
    """Builds snapshots of one daemon.

    Args:
        hub_lag: how late the hub runs.
        certificate: of the peer port.
        capture: returns what is known of the capture that is running.
        peer_port: where peers are accepted.
        metrics_problem: says why the metrics port is not open; None when it is, or not wanted.
        underlay: tells whether the way to the peer leads into the tunnel.
        network: tells of the network that this machine is in.
    """

    def __init__(
        self,
        manager: ConnectionManager,
        hub_lag: HubLag,
        vitals: Vitals,
        certificate: TlsCertificate,
        capture: Callable[[], Capture | None],
        peer_port: PeerPort,
        metrics_problem: Callable[[], str | None],
        underlay: Underlay,
        network: MemberView | None = None,
    ) -> None:
        self._manager = manager
        self._network = network
        self._vitals = vitals
        self._capture = capture
        self._port = peer_port
        self._underlay = underlay
        self._dates = Dates()
        self._peers = PeerView(manager, underlay, self._dates)
        self._checks = Checks(
            manager,
            self._peers,
            hub_lag,
            vitals,
            certificate,
            peer_port,
            metrics_problem,
            underlay,
            network,
        )
        self._resources: Resources | None = None
        self._resources_at = 0.0
        self._history = History()
        #: the derived state of several peers, and since when
        self._state: tuple[State | None, float] = (None, boottime())

    @cached_property
    def _process(self) -> psutil.Process:
        # As with `http`: a start has nobody yet who asks what the process uses.
        import psutil

        return psutil.Process(os.getpid())

    def certificate_renewed(self, certificate: TlsCertificate) -> None:
        """The peer port shows this one from now on."""
        self._checks.certificate = certificate

    def snapshot(self, *, resources_age_s: float = 0.0) -> Snapshot:
        """Return everything that is known now.

        Args:
            resources_age_s: of what the process uses, which is half of the work, a reading of so
                many seconds ago will do.
        """
        return self._snapshot(self._only_peer, resources_age_s=resources_age_s)

    def _snapshot(self, peer: Peer | None, *, resources_age_s: float = 0.0) -> Snapshot:
        """Return what is known of the daemon.

        Args:
            peer: what is told beside that is of it alone; None: it is of all peers.
        """
        manager, certificate = self._manager, self._checks.certificate
        return Snapshot(
            version=__version__,
            host=os.uname().nodename,
            pid=os.getpid(),
            now=self._dates.now(),
            public_key=format_public_key(manager.identity.public_key),
            refused=self._refused(),
            tap=self._tap(manager.config),
            nat=self._nat(),
            certificate=Certificate(certificate.not_after, certificate.sha256.hex()),
            capture=self._running_capture(),
            handshakes=dict(manager.handshakes),
            peer_port=self._peer_port(),
            queue_bytes=queue_bytes(manager),
            counters=self._counters(),
            resources=self._read_resources(resources_age_s),
            health=self._checks.health(peer).checks,
            peers=self._peers.known(),
            network=None if self._network is None else self._network.status(),
            **(self._of_all() if peer is None else self._of_one(peer)),
        )

    def peers(self, pause: Callable[[], None] | None = None) -> Peers:
        """Return what is told of each peer among the others.

        Args:
            pause: lets others work now and then; of a thousand peers this takes a while.
        """
        found = []
        for peer in self._manager.peers:
            if pause is not None and found and len(found) % PEERS_AT_ONCE == 0:
                pause()
            found.append(self._peers.status(peer))
        return Peers(self._dates.now(), found)

    def several(self) -> Sequence[PeerStatus]:
        """Return the same of a list of peers; of a pair nothing, as its snapshot tells all."""
        return self.peers().peers if self._manager.config.listed else ()

    def peer(self, name: str) -> OnePeer:
        """Return all about one peer. Raises NoSuchPeer."""
        report = self._peers.report(self._manager.peer_named(name))
        return OnePeer(self._dates.now(), report)

    def table(self) -> tuple[Entry, ...]:
        """Return the addresses that the switch knows."""
        return self._peers.table()

    def table_size(self) -> Size:
        """Return how many they are."""
        return self._peers.table_size()

    def explain(self, target: Target | None, name: str | None = None) -> Explanation:
        """Return what would happen to a frame for target now.

        Args:
            name: of the peer that it is for; None: whom the target is behind.
        Raises:
            NoSuchPeer: nobody has that name.
        """
        # Not at the top: few daemons are ever asked, and all would hold its sentences in memory.
        from shadowmesh.insight.explain import Place, explain

        peer = self._only_peer if name is None else self._manager.peer_named(name)
        found = facts.look(self._checks.device, target)
        if self._only_peer is not None:
            return explain(self.snapshot(), found, target, self._dates.now())
        entries = self._entries(target, found)
        configured = False
        if peer is None and entries:
            peer = self._of_name(entries[0].peer)
        elif peer is None and target is not None:
            peer = self._owner(target)
            configured = peer is not None
        place = Place(None if peer is None else peer.name, entries, configured)
        return explain(self._snapshot(peer), found, target, self._dates.now(), place)

    def _entries(self, target: Target | None, found: HostFacts) -> tuple[Entry, ...]:
        """Return what the switch knows of a target, or of the next hop to it."""
        mac = target if isinstance(target, bytes) else found.target and found.target.mac
        return () if mac is None else freshest_first(self._peers.table(mac=mac))

    def _of_name(self, name: str | None) -> Peer | None:
        return next((peer for peer in self._manager.peers if peer.name == name), None)

    def _owner(self, target: Target) -> Peer | None:
        """Return the peer that has an address by the configuration."""
        return next((one for one in self._manager.peers if target in one.entry.tunnel_ips), None)

    def summary(self) -> str:
        """Return in one sentence how the daemon is; cheap, and no different each second."""
        peer = self._only_peer
        if peer is None:
            return _summary_of(self._manager.peers)
        machine, tunnel = peer.machine, peer.current
        if machine.state is State.CONNECTED and tunnel is not None:
            return f"connected to {tunnel.peer_name} over {tunnel.path}"
        if peer.expected:
            return "waiting for the peer"
        if machine.state is State.DISCONNECTED:
            return "not connected"
        trouble = f": {peer.last_error}" if peer.last_error else ""
        if machine.phase is Phase.WAITING_FOR_PEER:
            return f"waiting for the peer{trouble}"
        if machine.state is State.ERROR or machine.phase is Phase.BACKOFF:
            what = "trying again" if peer.next_retry_at is not None else "given up"
            return f"no tunnel to {peer.target}, {what}{trouble}"
        return f"connecting to {peer.target} ({machine.phase})"

    def health(self) -> Health:
        """Run the checks."""
        return self._checks.health()

    def history(self) -> Report:
        """Return what the tunnel carried in the last hour."""
        return self._history.report(boottime(), self._dates.now())

    def beat(self) -> None:
        """Take the look that some checks, events and the history need; once a second."""
        plane, peer = self._manager.plane.counters(), self._only_peer
        dropped = self._dropped(plane)
        self._vitals.look(dropped, connections(self._port), self._manager.plane.udp_errors())
        totals = Totals(plane["bytes_written"], plane["bytes_read"], sum(dropped.values()))
        if peer is None:
            self._state_since()
        rtt_ms = None if peer is None else peer_view.rtt_ms(peer.current)
        self._history.look(boottime(), totals, rtt_ms)
        self._checks.look_around()

    # --- parts of a snapshot ------------------------------------------------------------------

    @property
    def _only_peer(self) -> Peer | None:
        """The peer of a pair; None of several, and without any."""
        peers = self._manager.peers
        return peers[0] if len(peers) == 1 else None

    def _of_one(self, peer: Peer) -> dict[str, Any]:
        """What a snapshot tells of its only peer."""
        machine, tunnel, date = peer.machine, peer.current, self._dates.of
        result = None if tunnel is None else tunnel.result
        return {
            "state": machine.state,
            "since": date(machine.since),
            "phase": peer_view.phase(peer),
            "wanted": peer.wanted or peer.expected,
            "held": peer.held,
            "last_error": peer.last_error,
            "last_error_at": date(peer.last_error_at),
            "next_retry_at": date(peer.next_retry_at),
            "peer": self._peers.shown(peer),
            "path": peer_view.path(tunnel),
            "path_reason": self._peers.path_reason(peer),
            "paths": () if tunnel is None else peer_view.ways(tunnel),
            "cipher": None if result is None else result.cipher,
            "post_quantum": None if result is None else True,
            "tls_path": peer_view.tls_path(tunnel),
            "rtt_ms": peer_view.rtt_ms(tunnel),
            "mtu": self._mtu(tunnel),
            "session": self._peers.session(tunnel),
            "link": self._peers.link(tunnel),
            "reconnects": peer.reconnects,
            "path_switches": peer.path_switches,
        }

    def _of_all(self) -> dict[str, Any]:
        """What a snapshot tells instead where there is not one peer: of all of them together."""
        peers, date = self._manager.peers, self._dates.of
        failed = [peer for peer in peers if peer.last_error is not None]
        last = max(failed, key=lambda peer: peer.last_error_at or 0.0, default=None)
        retries = [peer.next_retry_at for peer in peers if peer.next_retry_at is not None]
        return {
            "state": self._manager.state,
            "since": date(self._state_since()),
            "wanted": any(peer.wanted or peer.expected for peer in peers),
            "held": bool(peers) and all(peer.held for peer in peers),
            "last_error": None if last is None else f"{last.name}: {last.last_error}",
            "last_error_at": None if last is None else date(last.last_error_at),
            "next_retry_at": date(min(retries, default=None)),
            "reconnects": sum(peer.reconnects for peer in peers),
            "path_switches": sum(peer.path_switches for peer in peers),
        }

    def _state_since(self) -> float:
        """Return when the derived state was entered: with the last change of a peer before it."""
        before, since = self._state
        state = self._manager.state
        if state is not before:
            moved = [peer.machine.since for peer in self._manager.peers]
            since = max(moved, default=since)
            self._state = (state, since)
        return since

    def _peer_port(self) -> PeerPortStatus:
        listener = self._port.listener
        if listener is None:
            return PeerPortStatus()
        outcomes = connections(self._port)
        host, port = listener.bound
        return PeerPortStatus(
            address=str(HostPort(host, port)),
            unauthenticated=listener.held,
            connections=outcomes,
            lately=self._vitals.strangers(outcomes),
        )

    def _refused(self) -> Refused | None:
        refused = self._manager.refused
        if refused is None:
            return None
        return replace(refused, failed_at=self._dates.of(refused.failed_at))

    def _running_capture(self) -> Capture | None:
        capture = self._capture()
        return None if capture is None else replace(capture, since=self._dates.of(capture.since))

    def _mtu(self, tunnel: Tunnel | None) -> int | None:
        found = peer_view.path_mtu(tunnel)
        if found is not None:
            return found
        return None if self._manager.tap is None else self._manager.tap.mtu

    def _nat(self) -> Nat | None:
        traversal = self._manager.traversal
        result = None if traversal is None else traversal.result
        if traversal is None or result is None or not self._manager.config.nat.enabled:
            return None
        public = result.public_address
        return Nat(
            type=str(result.type),
            public_address=None if public is None else str(public),
            detected_at=self._dates.of(traversal.detected_at),
            mapping=str(result.mapping),
            filtering=str(result.filtering),
            detail=result.detail,
        )

    def _tap(self, config: Config) -> Tap | None:
        tap, problem = self._manager.tap, self._manager.realtime_problem
        priority = (problem is None, problem) if config.network.realtime else (None, None)
        if tap is None:
            # Without a device there are threads all the same: those of UDP and of the links.
            return Tap(None, None, None, (), (), *priority) if config.network.headless else None
        addresses = tuple(map(str, config.network.local_ip))
        frames = self._manager.plane.counters()["queues"]
        return Tap(
            tap.name,
            tap.mtu,
            addresses[0] if addresses else None,
            tuple(Queue(written, read) for read, written in frames[: len(tap.fds)]),
            addresses,
            *priority,
        )

    def _read_resources(self, age_s: float) -> Resources | None:
        now = time.monotonic()
        if self._resources is None or now >= self._resources_at + age_s:
            try:
                self._resources, self._resources_at = read_resources(self._process), now
            except OSError as error:
                # Status is wanted most when something has run out: the last reading will do.
                _log.limited(60).warning(
                    "the process's resources cannot be read",
                    cause=error,
                    remedy=MORE_DESCRIPTORS,
                )
        return self._resources

    def _dropped(self, plane: Mapping[str, Any]) -> dict[str, int]:
        """Return what was dropped by reason. Args: plane: counters of the data plane."""
        return {**peer_view.both(plane["tx_dropped"], plane["rx_dropped"]), **self._manager.dropped}

    def _counters(self) -> Counters:
        plane = self._manager.plane.counters()
        dropped = self._dropped(plane)
        return Counters(
            frames_in=plane["frames_written"],
            frames_out=plane["frames_sent"],
            bytes_in=plane["bytes_written"],
            bytes_out=plane["bytes_read"],
            dropped=dropped,
            dropped_lately=self._vitals.lately(dropped),
            udp_refused=plane["udp_refused"],
            udp_errors=self._manager.plane.udp_errors(),
            loops_refused=dict(self._underlay.refused),
        )


def _summary_of(peers: Sequence[Peer]) -> str:
    """Return how several peers are, or none, in one sentence."""
    known = count(len(peers), "peer")
    connected = sum(peer.current is not None for peer in peers)
    missing = [name for name, _ in troubles(peers)]
    trouble = f", no session with {few(missing)}" if missing else ""
    if connected:
        return f"connected to {connected} of {known}{trouble}"
    if trouble:
        return f"connected to none of {known}{trouble}"
    if any(peer.wanted and not is_awaited(peer) for peer in peers):
        return f"connecting to {known}"
    return f"waiting for {known}" if any(map(is_awaited, peers)) else "not connected"
