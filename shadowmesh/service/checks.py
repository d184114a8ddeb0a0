"""The facts of the health checks: where they are found in the live objects, and when they are news.

Owns: what each check is given, and the log's lines about what others did to the device and the
routes. Does not know: what counts as well (`insight.health` and `insight.surroundings` judge), how
a snapshot looks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.clock import boottime, wall_time
from shadowmesh.base.errors import DeviceError
from shadowmesh.device import facts
from shadowmesh.device.tun import CLONE_DEVICE
from shadowmesh.insight import health, surroundings
from shadowmesh.insight.status import Health
from shadowmesh.link.peer_port import TURNED_AWAY
from shadowmesh.service.peer_view import far_end
from shadowmesh.wire.peer.states import Phase, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shadowmesh.device.facts import Held, HostFacts
    from shadowmesh.device.underlay import Underlay
    from shadowmesh.insight.status import Check
    from shadowmesh.insight.vitals import Vitals
    from shadowmesh.link.peer_port import PeerPort
    from shadowmesh.link.tls import Certificate as TlsCertificate
    from shadowmesh.peer.manager import ConnectionManager
    from shadowmesh.peer.peer import Peer
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.service.hub_lag import HubLag
    from shadowmesh.service.member_view import MemberView
    from shadowmesh.service.peer_view import PeerView

_NO_PATH: Final = health.path(None, None, udp_wanted=False, connected_s=0.0, loss=None)

_log = log.get("status")


class Checks:
    """The health checks of one daemon.

    Attributes:
        certificate: that the peer port shows.
    """

    def __init__(
        self,
        manager: ConnectionManager,
        peers: PeerView,
        hub_lag: HubLag,
        vitals: Vitals,
        certificate: TlsCertificate,
        peer_port: PeerPort,
        metrics_problem: Callable[[], str | None],
        underlay: Underlay,
        network: MemberView | None = None,
    ) -> None:
        """Args: as for `View`."""
        self.certificate = certificate
        self._manager = manager
        self._peers = peers
        self._hub_lag = hub_lag
        self._vitals = vitals
        self._port = peer_port
        self._metrics_problem = metrics_problem
        self._underlay = underlay
        self._network = network
        self._facts: tuple[int, str, HostFacts] | None = None
        self._judged: tuple[object, ...] | None = None
        self._told: dict[str, str] = {}

    def health(self, about: Peer | None = None) -> Health:
        """Run the checks.

        Args:
            about: the one peer that they are about; None: all that there are.
        """
        date, vitals = wall_time(), self._vitals
        peers = self._manager.peers if about is None else (about,)
        return Health(
            (
                self.tap(),
                *self._of_peers(peers),
                self._path(peers),
                self._refused(peers),
                health.strangers(self._turned_away()),
                self.underlay(peers),
                health.hub_lag(self._hub_lag.worst_s),
                health.clock(date, vitals.clock_step),
                health.queue(vitals.full_drops, queue_bytes(self._manager)),
                health.certificate(
                    self.certificate.cert_path,
                    self.certificate.not_before,
                    self.certificate.not_after,
                    date,
                ),
                self._disk(),
                health.metrics_port(self._metrics_problem()),
                *(() if self._network is None else self._network.checks(date)),
            )
        )

    def look_around(self) -> None:
        """Judge device and routes, if anything has changed that the judgement depends on.

        A look costs a system call as long as nothing has: the kernel tells.
        """
        manager = self._manager
        seen = (
            self._underlay.generation,
            manager.tap,
            manager.device_problem,
            manager.tap is not None or _may_make_device(),
            [peer.machine.state for peer in manager.peers],
            [(far_end(peer.current), peer.current.path) for peer in manager.peers if peer.current],
        )
        if seen != self._judged:
            self._judged = seen
            for check in (self.tap(), self.underlay(manager.peers)):
                self._tell(check)

    def _tell(self, check: Check) -> None:
        """Log what others did to the device or the routes, once, and that it is over."""
        before, now = self._told.get(check.name, ""), "" if check.ok else check.code
        if before == now:
            return
        self._told[check.name] = now
        if check.ok:
            _log.info("a check passes again", check=check.name, found=check.text)
        else:
            _log.warning("a check fails", check=check.name, found=check.text, remedy=check.remedy)

    # --- the device and the host --------------------------------------------------------------

    def tap(self) -> Check:
        manager = self._manager
        tap = manager.tap
        device = self.device
        is_up, problem = None, None
        try:
            if manager.config.network.headless:
                pass
            elif tap is not None:
                is_up = tap.is_up()
            elif manager.device_problem is not None:
                problem = manager.device_problem
            elif not _may_make_device():
                problem = f"{CLONE_DEVICE} may not be used, {device} cannot be made"
        except DeviceError as error:
            problem = str(error)
        needed = any(peer.machine.state is State.CONNECTED for peer in manager.peers)
        check = health.tap(device, is_up=is_up, needed=needed, problem=problem)
        if not check.ok or tap is None:
            return check
        found = self._host()
        if found.device is None:
            return check
        changed = surroundings.device(found.device, found.others, self._addresses(), tap.mtu)
        return check if changed is None else changed

    @property
    def device(self) -> str:
        """The name of the TAP device, also while there is none; empty if there is to be none."""
        tap = self._manager.tap
        return self._manager.config.network.tap_device if tap is None else tap.name

    def _host(self) -> HostFacts:
        """Return the facts about the device; asked anew only when something has changed."""
        known, name = self._facts, self.device
        generation = self._underlay.generation
        if known is None or known[:2] != (generation, name):
            known = self._facts = generation, name, facts.look(name, None)
        return known[2]

    def _addresses(self) -> tuple[str, ...]:
        tap = self._manager.tap
        left_out = () if tap is None else tap.left_out
        return tuple(
            str(one) for one in self._manager.config.network.local_ip if one not in left_out
        )

    def underlay(self, peers: Sequence[Peer]) -> Check:
        others = self._host().others if self._manager.tap is not None else ()
        if len(peers) == 1:
            return self._way(peers[0].current, others)
        found = [
            (peer.name, self._way(tunnel, others))
            for peer, tunnel in _connected(peers)
            if self._underlay.inside(far_end(tunnel)) is not None
        ]
        return health.together(found) if found else self._way(None, others)

    def _way(self, tunnel: Tunnel | None, others: Sequence[Held]) -> Check:
        if tunnel is None:
            return surroundings.way(None, None, others, self._addresses(), carried=False)
        to = far_end(tunnel)
        return surroundings.way(
            self._underlay.inside(to),
            self._underlay.advice(to),
            others,
            self._addresses(),
            carried=tunnel.path == "udp",
        )

    def _disk(self) -> Check:
        directory = self._manager.config.daemon.state_dir
        try:
            found = os.statvfs(directory)
        except OSError:
            return health.disk(directory, None)
        return health.disk(directory, found.f_bavail * found.f_frsize)

    # --- the peers ----------------------------------------------------------------------------

    def _of_peers(self, peers: Sequence[Peer]) -> tuple[Check, ...]:
        """Whether there is who shall be there, and with several of them who is not."""
        if len(peers) == 1:
            return (self._peer(peers[0]),)
        standing = health.Standing(
            known=len(peers),
            connected=sum(peer.current is not None for peer in peers),
            awaited=sum(is_awaited(peer) for peer in peers),
            held=sum(peer.held for peer in peers),
            troubles=troubles(peers),
            network=self._network is not None,
        )
        listen = self._manager.config.websocket.listen_address
        port = None if listen is None else listen.port
        return health.mesh(self._manager.state, standing, port=port), health.peers(standing)

    def _peer(self, peer: Peer) -> Check:
        manager = self._manager
        listen = manager.config.websocket.listen_address
        return health.peer(
            peer.machine.state,
            peer.machine.phase,
            configured=manager.config.mode != 0,
            last_error=peer.last_error,
            retries=peer.next_retry_at is not None or peer.dialling,
            held=peer.held,
            awaited=peer.expected,
            last_seen_at=self._peers.last_seen_at(peer),
            port=None if listen is None else listen.port,
        )

    def _path(self, peers: Sequence[Peer]) -> Check:
        if len(peers) == 1:
            return self._path_of(peers[0])
        found = [(peer.name, self._path_of(peer)) for peer, _ in _connected(peers)]
        return health.together(found) if found else _NO_PATH

    def _path_of(self, peer: Peer) -> Check:
        tunnel = peer.current
        if tunnel is None or tunnel.established_boottime is None:
            return _NO_PATH
        active = None if tunnel.paths is None else tunnel.paths.active
        return health.path(
            tunnel.path,
            self._peers.path_reason(peer),
            udp_wanted=self._manager.config.nat.enabled,
            connected_s=boottime() - tunnel.established_boottime,
            loss=None if active is None else active.loss,
            fallen=tunnel.paths is not None and tunnel.paths.switches > 0,
            forbidden=self._vitals.forbidden,
        )

    def _refused(self, peers: Sequence[Peer]) -> Check:
        refused = self._manager.refused
        all_here = all(peer.current is not None for peer in peers)
        if all_here or refused is None or refused.failed_at is None:
            return health.refused(None, None, 0.0)
        return health.refused(refused.address, refused.cause, boottime() - refused.failed_at)

    def _turned_away(self) -> dict[str, int]:
        lately = self._vitals.strangers(connections(self._port))
        return {outcome: lately[outcome] for outcome in TURNED_AWAY if outcome in lately}


def is_awaited(peer: Peer) -> bool:
    """It is let in and has to come by itself."""
    return peer.expected or peer.machine.phase is Phase.WAITING_FOR_PEER


def troubles(peers: Sequence[Peer]) -> tuple[tuple[str, str], ...]:
    """Return name and cause of each peer that we dial, and that is not reached."""
    return tuple(
        (peer.name, peer.last_error)
        for peer in peers
        if peer.wanted and peer.current is None and not is_awaited(peer) and peer.last_error
    )


def connections(port: PeerPort) -> dict[str, int]:
    """What became of connections to the peer port, by outcome."""
    return {} if port.listener is None else dict(port.listener.counters)


def queue_bytes(manager: ConnectionManager) -> int:
    """Bytes that wait for WebSocket links."""
    return sum(tunnel.wss.pipe.queued_bytes for _, tunnel in _connected(manager.peers))


def _connected(peers: Sequence[Peer]) -> list[tuple[Peer, Tunnel]]:
    return [(peer, peer.current) for peer in peers if peer.current is not None]


def _may_make_device() -> bool:
    return os.access(CLONE_DEVICE, os.R_OK | os.W_OK)
