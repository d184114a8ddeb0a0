"""The daemon as others see it: snapshots and health checks out of the live objects.

Owns: how the connection manager, the data plane and the process become a `Snapshot`, and where the
facts of the health checks are found (`insight.health` judges them). Does not know: HTTP, how things
are changed.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from shadowmesh import __version__
from shadowmesh.base import log
from shadowmesh.base.clock import Dates, boottime, wall_time
from shadowmesh.base.errors import MORE_DESCRIPTORS, DeviceError
from shadowmesh.config import HostPort
from shadowmesh.device import facts
from shadowmesh.device.tun import CLONE_DEVICE
from shadowmesh.insight import health, surroundings
from shadowmesh.insight.history import History, Totals
from shadowmesh.insight.resources import read_resources
from shadowmesh.insight.status import (
    Certificate,
    Check,
    Counters,
    Health,
    Link,
    Nat,
    Path,
    Peer,
    Queue,
    Resources,
    Session,
    Snapshot,
    Tap,
)
from shadowmesh.insight.status import PeerPort as PeerPortStatus
from shadowmesh.keys.identity import format_public_key
from shadowmesh.link.peer_port import TURNED_AWAY
from shadowmesh.wire.peer.states import Phase, State

if TYPE_CHECKING:
    from collections.abc import Callable

    import psutil

    from shadowmesh.config import Config
    from shadowmesh.device.facts import HostFacts, Target
    from shadowmesh.device.underlay import Underlay
    from shadowmesh.insight.explain import Explanation
    from shadowmesh.insight.history import Report
    from shadowmesh.insight.status import Capture, Refused
    from shadowmesh.insight.vitals import Vitals
    from shadowmesh.link.peer_port import PeerPort
    from shadowmesh.link.tls import Certificate as TlsCertificate
    from shadowmesh.peer.manager import ConnectionManager
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.service.hub_lag import HubLag
    from shadowmesh.wire.control import Address

#: IP and UDP headers around a datagram
_IPV4_HEADERS: Final = 28
_IPV6_HEADERS: Final = 48

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
    ) -> None:
        self._manager = manager
        self._hub_lag = hub_lag
        self._vitals = vitals
        self._certificate = certificate
        self._capture = capture
        self._port = peer_port
        self._metrics_problem = metrics_problem
        self._underlay = underlay
        self._facts: tuple[int, str, HostFacts] | None = None
        self._judged: tuple[object, ...] | None = None
        self._told: dict[str, str] = {}
        self._resources: Resources | None = None
        self._resources_at = 0.0
        self._dates = Dates()
        self._history = History()

    @cached_property
    def _process(self) -> psutil.Process:
        # As with `http`: a start has nobody yet who asks what the process uses.
        import psutil

        return psutil.Process(os.getpid())

    def certificate_renewed(self, certificate: TlsCertificate) -> None:
        """The peer port shows this one from now on."""
        self._certificate = certificate

    def snapshot(self, *, resources_age_s: float = 0.0) -> Snapshot:
        """Return everything that is known now.

        Args:
            resources_age_s: of what the process uses, which is half of the work, a reading of so
                many seconds ago will do.
        """
        manager = self._manager
        machine, tunnel = manager.peer.machine, manager.peer.current
        result = None if tunnel is None else tunnel.result
        direct = None if result is None else result.tls_matches
        date = self._dates.of
        return Snapshot(
            version=__version__,
            host=os.uname().nodename,
            pid=os.getpid(),
            state=machine.state,
            now=self._dates.now(),
            since=date(machine.since),
            public_key=format_public_key(manager.identity.public_key),
            phase=self._phase(),
            wanted=manager.peer.wanted or manager.peer.expected,
            held=manager.peer.held,
            last_error=manager.peer.last_error,
            last_error_at=date(manager.peer.last_error_at),
            next_retry_at=date(manager.peer.next_retry_at),
            refused=self._refused(),
            peer=self._peer(tunnel),
            path=None if tunnel is None else "udp" if tunnel.path == "udp" else "wss",
            path_reason=None if tunnel is None else self._path_reason(tunnel),
            paths=() if tunnel is None else _paths(tunnel),
            cipher=None if result is None else result.cipher,
            post_quantum=None if result is None else True,
            tls_path=None if direct is None else "direct" if direct else "proxied-or-intercepted",
            rtt_ms=None if tunnel is None else _rtt_ms(tunnel),
            mtu=self._mtu(tunnel),
            tap=self._tap(manager.config),
            nat=self._nat(),
            session=self._session(tunnel),
            link=self._link(tunnel),
            certificate=Certificate(self._certificate.not_after, self._certificate.sha256.hex()),
            capture=self._running_capture(),
            reconnects=manager.peer.reconnects,
            path_switches=manager.peer.path_switches,
            handshakes=dict(manager.handshakes),
            peer_port=self._peer_port(),
            queue_bytes=self._queue_bytes(),
            counters=self._counters(),
            resources=self._read_resources(resources_age_s),
            health=self.health().checks,
        )

    def explain(self, target: Target | None) -> Explanation:
        """Return what would happen to a frame for target now."""
        # Not at the top: few daemons are ever asked, and all would hold its sentences in memory.
        from shadowmesh.insight.explain import explain

        found = facts.look(self._device(), target)
        return explain(self.snapshot(), found, target, self._dates.now())

    def summary(self) -> str:
        """Return in one sentence how the daemon is; cheap, and no different each second."""
        manager = self._manager
        machine, tunnel = manager.peer.machine, manager.peer.current
        if machine.state is State.CONNECTED and tunnel is not None:
            return f"connected to {tunnel.peer_name} over {tunnel.path}"
        if manager.peer.expected:
            return "waiting for the peer"
        if machine.state is State.DISCONNECTED:
            return "not connected"
        trouble = f": {manager.peer.last_error}" if manager.peer.last_error else ""
        if machine.phase is Phase.WAITING_FOR_PEER:
            return f"waiting for the peer{trouble}"
        if machine.state is State.ERROR or machine.phase is Phase.BACKOFF:
            what = "trying again" if manager.peer.next_retry_at is not None else "given up"
            return f"no tunnel to {manager.peer.target}, {what}{trouble}"
        return f"connecting to {manager.peer.target} ({machine.phase})"

    def health(self) -> Health:
        """Run the checks."""
        date = wall_time()
        certificate, vitals = self._certificate, self._vitals
        return Health(
            (
                self._check_tap(),
                self._check_peer(),
                self._check_path(),
                self._check_refused(),
                health.strangers(self._turned_away()),
                self._check_underlay(),
                health.hub_lag(self._hub_lag.worst_s),
                health.clock(date, vitals.clock_step),
                health.queue(vitals.full_drops, self._queue_bytes()),
                health.certificate(
                    certificate.cert_path, certificate.not_before, certificate.not_after, date
                ),
                self._check_disk(),
                health.metrics_port(self._metrics_problem()),
            )
        )

    def history(self) -> Report:
        """Return what the tunnel carried in the last hour."""
        return self._history.report(boottime(), self._dates.now())

    def beat(self) -> None:
        """Take the look that some checks, events and the history need; once a second."""
        plane, tunnel = self._manager.plane.counters(), self._manager.peer.current
        dropped = _both(plane["tx_dropped"], plane["rx_dropped"])
        self._vitals.look(dropped, self._connections(), self._manager.plane.udp_errors())
        totals = Totals(plane["bytes_written"], plane["bytes_read"], sum(dropped.values()))
        self._history.look(boottime(), totals, None if tunnel is None else _rtt_ms(tunnel))
        self._look_around()

    def _look_around(self) -> None:
        """Judge device and routes, if anything has changed that the judgement depends on.

        A look costs a system call as long as nothing has: the kernel tells.
        """
        manager, tunnel = self._manager, self._manager.peer.current
        seen = (
            self._underlay.generation,
            manager.tap,
            manager.device_problem,
            manager.tap is not None or _may_make_device(),
            manager.peer.machine.state,
            None if tunnel is None else (_far_end(tunnel), tunnel.path),
        )
        if seen != self._judged:
            self._judged = seen
            for check in (self._check_tap(), self._check_underlay()):
                self._tell(check)

    def _connections(self) -> dict[str, int]:
        listener = self._port.listener
        return {} if listener is None else dict(listener.counters)

    def _turned_away(self) -> dict[str, int]:
        lately = self._vitals.strangers(self._connections())
        return {outcome: lately[outcome] for outcome in TURNED_AWAY if outcome in lately}

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

    # --- parts of a snapshot ------------------------------------------------------------------

    def _peer_port(self) -> PeerPortStatus:
        listener = self._port.listener
        if listener is None:
            return PeerPortStatus()
        connections = self._connections()
        host, port = listener.bound
        return PeerPortStatus(
            address=str(HostPort(host, port)),
            unauthenticated=listener.held,
            connections=connections,
            lately=self._vitals.strangers(connections),
        )

    def _peer(self, tunnel: Tunnel | None) -> Peer:
        manager = self._manager
        pin = manager.config.peer.public_key
        key = pin if tunnel is None else tunnel.peer_public_key
        address: str | None
        if tunnel is not None and not tunnel.initiator:
            address = tunnel.peer_name
        else:
            address = None if manager.peer.target is None else str(manager.peer.target)
        return Peer(
            address=address,
            public_key=None if key is None else format_public_key(key),
            name=address,
            pinned=pin is not None,
            tap_mtu=None if tunnel is None or tunnel.result is None else tunnel.result.peer.tap_mtu,
            last_seen_at=self._last_seen_at(),
        )

    def _phase(self) -> Phase | None:
        """What is gone through now; a side that has only to wait does so without a state of it."""
        peer = self._manager.peer
        return Phase.WAITING_FOR_PEER if peer.expected else peer.machine.phase

    def _last_seen_at(self) -> float | None:
        last_seen = self._manager.peer.last_seen
        if self._manager.peer.current is not None:
            return None
        return last_seen.date if last_seen.moment is None else self._dates.of(last_seen.moment)

    def _refused(self) -> Refused | None:
        refused = self._manager.refused
        if refused is None:
            return None
        return replace(refused, failed_at=self._dates.of(refused.failed_at))

    def _running_capture(self) -> Capture | None:
        capture = self._capture()
        return None if capture is None else replace(capture, since=self._dates.of(capture.since))

    def _session(self, tunnel: Tunnel | None) -> Session | None:
        if tunnel is None:
            return None
        date = self._dates.of
        return Session(
            established_at=date(tunnel.established_boottime),
            rekeys=tunnel.rekeys,
            last_rekey_at=date(tunnel.last_rekey_at),
            initiator=tunnel.initiator,
            next_rekey_at=date(tunnel.rekey_at),
            keys_expire_at=date(tunnel.keys_expire_at),
        )

    def _link(self, tunnel: Tunnel | None) -> Link | None:
        if tunnel is None or tunnel.link_error is not None:
            return None
        return Link(tunnel.peer_name, self._dates.of(tunnel.established_boottime))

    def _path_reason(self, tunnel: Tunnel) -> str:
        manager = self._manager
        inside = self._underlay.inside(_far_end(tunnel))
        if inside is not None and tunnel.path == "wss":
            return inside
        if tunnel.link_error is not None:
            ours = manager.peer.next_retry_at is not None or manager.peer.dialling
            who = "it is being dialled again" if ours else "the peer has to dial again"
            reason = "" if tunnel.paths is None else f"{tunnel.paths.reason}; "
            return f"{reason}the WSS link is lost ({tunnel.link_error}), {who}"
        if tunnel.paths is not None:
            return tunnel.paths.reason
        if not manager.config.nat.enabled:
            return "UDP is switched off by nat.enabled: false"
        if manager.traversal is None or manager.traversal.port is None:
            return "no UDP socket could be opened, the log says why"
        return "the peer does not want UDP"

    def _mtu(self, tunnel: Tunnel | None) -> int | None:
        active = None if tunnel is None or tunnel.paths is None else tunnel.paths.active
        if active is not None and active.mtu is not None:
            return active.mtu + (
                _IPV4_HEADERS if active.endpoint.address.version == 4 else _IPV6_HEADERS
            )
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
        tap = self._manager.tap
        if tap is None:
            return None
        addresses = tuple(map(str, config.network.local_ip))
        frames = self._manager.plane.counters()["queues"]
        return Tap(
            tap.name,
            tap.mtu,
            addresses[0] if addresses else None,
            tuple(Queue(written, read) for read, written in frames[: len(tap.fds)]),
            addresses,
            self._manager.realtime_problem is None if config.network.realtime else None,
            self._manager.realtime_problem if config.network.realtime else None,
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

    def _queue_bytes(self) -> int:
        tunnel = self._manager.peer.current
        return 0 if tunnel is None else tunnel.wss.pipe.queued_bytes

    def _counters(self) -> Counters:
        plane = self._manager.plane.counters()
        dropped = _both(plane["tx_dropped"], plane["rx_dropped"])
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

    # --- health -------------------------------------------------------------------------------

    def _check_tap(self) -> Check:
        manager = self._manager
        tap = manager.tap
        device = manager.config.network.tap_device if tap is None else tap.name
        is_up, problem = None, None
        try:
            if tap is not None:
                is_up = tap.is_up()
            elif manager.device_problem is not None:
                problem = manager.device_problem
            elif not _may_make_device():
                problem = f"{CLONE_DEVICE} may not be used, {device} cannot be made"
        except DeviceError as error:
            problem = str(error)
        needed = manager.peer.machine.state is State.CONNECTED
        check = health.tap(device, is_up=is_up, needed=needed, problem=problem)
        if not check.ok or tap is None:
            return check
        found = self._host()
        if found.device is None:
            return check
        changed = surroundings.device(found.device, found.others, self._addresses(), tap.mtu)
        return check if changed is None else changed

    def _device(self) -> str:
        tap = self._manager.tap
        return self._manager.config.network.tap_device if tap is None else tap.name

    def _host(self) -> HostFacts:
        """Return the facts about the device; asked anew only when something has changed."""
        known, name = self._facts, self._device()
        generation = self._underlay.generation
        if known is None or known[:2] != (generation, name):
            known = self._facts = generation, name, facts.look(name, None)
        return known[2]

    def _addresses(self) -> tuple[str, ...]:
        return tuple(map(str, self._manager.config.network.local_ip))

    def _check_underlay(self) -> Check:
        manager, tunnel = self._manager, self._manager.peer.current
        others = self._host().others if manager.tap is not None else ()
        if tunnel is None:
            return surroundings.way(None, None, others, self._addresses(), carried=False)
        to = _far_end(tunnel)
        return surroundings.way(
            self._underlay.inside(to),
            self._underlay.advice(to),
            others,
            self._addresses(),
            carried=tunnel.path == "udp",
        )

    def _check_peer(self) -> Check:
        manager = self._manager
        listen = manager.config.websocket.listen_address
        return health.peer(
            manager.peer.machine.state,
            manager.peer.machine.phase,
            configured=manager.config.mode != 0,
            last_error=manager.peer.last_error,
            retries=manager.peer.next_retry_at is not None or manager.peer.dialling,
            held=manager.peer.held,
            awaited=manager.peer.expected,
            last_seen_at=self._last_seen_at(),
            port=None if listen is None else listen.port,
        )

    def _check_path(self) -> Check:
        manager, tunnel = self._manager, self._manager.peer.current
        if tunnel is None or tunnel.established_boottime is None:
            return health.path(None, None, udp_wanted=False, connected_s=0.0, loss=None)
        active = None if tunnel.paths is None else tunnel.paths.active
        return health.path(
            tunnel.path,
            self._path_reason(tunnel),
            udp_wanted=manager.config.nat.enabled,
            connected_s=boottime() - tunnel.established_boottime,
            loss=None if active is None else active.loss,
            fallen=tunnel.paths is not None and tunnel.paths.switches > 0,
            forbidden=self._vitals.forbidden,
        )

    def _check_refused(self) -> Check:
        refused = self._manager.refused
        if self._manager.peer.current is not None or refused is None or refused.failed_at is None:
            return health.refused(None, None, 0.0)
        return health.refused(refused.address, refused.cause, boottime() - refused.failed_at)

    def _check_disk(self) -> Check:
        directory = self._manager.config.daemon.state_dir
        try:
            found = os.statvfs(directory)
        except OSError:
            return health.disk(directory, None)
        return health.disk(directory, found.f_bavail * found.f_frsize)


def _may_make_device() -> bool:
    return os.access(CLONE_DEVICE, os.R_OK | os.W_OK)


def _far_end(tunnel: Tunnel) -> Address:
    """Return the address of the peer's end of the link."""
    return tunnel.wss.far_end


def _both(out: dict[str, int], into: dict[str, int]) -> dict[str, int]:
    """Add up the drops of both directions."""
    return {reason: count + into[reason] for reason, count in out.items()}


def _rtt_ms(tunnel: Tunnel) -> float | None:
    """Round trip of the path that carries the frames."""
    active = None if tunnel.paths is None else tunnel.paths.active
    if active is not None:
        return active.rtt_ms
    return None if tunnel.rtt_s is None else tunnel.rtt_s * 1000


def _paths(tunnel: Tunnel) -> tuple[Path, ...]:
    """Every way to the peer, the one that carries the frames first."""
    found = [
        Path(
            "udp",
            str(report.endpoint),
            kind=str(report.kind),
            active=report.active,
            proven=report.proven,
            rtt_ms=report.rtt_ms,
            loss=report.loss,
            payload_bytes=report.mtu,
            seen_as=None if report.seen_as is None else str(report.seen_as),
            unanswered=report.unanswered,
            hindrance=report.hindrance,
        )
        for report in (() if tunnel.paths is None else tunnel.paths.report())
    ]
    if tunnel.link_error is None:
        rtt_ms = None if tunnel.rtt_s is None else tunnel.rtt_s * 1000
        active = tunnel.path == "wss"
        found.append(Path("wss", tunnel.peer_name, active=active, proven=True, rtt_ms=rtt_ms))
    return tuple(sorted(found, key=lambda path: not path.active))
