"""The daemon as others see it: snapshots and health checks out of the live objects.

Owns: how the connection manager, the data plane and the process become a `Snapshot`, and what
counts as healthy. Does not know: HTTP, how things are changed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import psutil

from shadowmesh import __version__
from shadowmesh.errors import DeviceError
from shadowmesh.keys import format_public_key
from shadowmesh.status import (
    Check,
    Counters,
    Health,
    Link,
    Nat,
    Path,
    Peer,
    Session,
    Snapshot,
    Tap,
    read_resources,
)
from shadowmesh.wire.peer import Phase, State

if TYPE_CHECKING:
    from shadowmesh.config import Config
    from shadowmesh.connection import ConnectionManager
    from shadowmesh.heartbeat import Heartbeat
    from shadowmesh.tunnel import Tunnel

#: the hub answered late: links and timers are delayed, the frames of the UDP path are not
HUB_LAG_LIMIT_S: Final = 0.25
#: IP and UDP headers around a datagram
_IPV4_HEADERS: Final = 28
_IPV6_HEADERS: Final = 48


class View:
    """Builds snapshots of one daemon.

    Args:
        heartbeat: how late the hub runs.
    """

    def __init__(self, manager: ConnectionManager, heartbeat: Heartbeat) -> None:
        self._manager = manager
        self._heartbeat = heartbeat
        self._process = psutil.Process(os.getpid())

    def snapshot(self) -> Snapshot:
        """Return everything that is known now."""
        manager = self._manager
        machine, tunnel = manager.machine, manager.current
        result = None if tunnel is None else tunnel.result
        direct = None if result is None else result.tls_matches
        return Snapshot(
            version=__version__,
            state=machine.state,
            since=machine.since,
            public_key=format_public_key(manager.identity.public_key),
            phase=machine.phase,
            last_error=manager.last_error,
            last_error_at=manager.last_error_at,
            next_retry_at=manager.next_retry_at,
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
            session=_session(tunnel),
            link=_link(tunnel),
            reconnects=manager.reconnects,
            path_switches=manager.path_switches,
            handshakes=dict(manager.handshakes),
            queue_bytes=0 if tunnel is None else tunnel.pipe.queued_bytes,
            counters=self._counters(),
            resources=read_resources(self._process),
            health=self.health().checks,
        )

    def summary(self) -> str:
        """Return in one sentence how the daemon is; cheap, and no different each second."""
        manager = self._manager
        machine, tunnel = manager.machine, manager.current
        if machine.state is State.CONNECTED and tunnel is not None:
            return f"connected to {tunnel.peer_name} over {tunnel.path}"
        if machine.state is State.DISCONNECTED:
            return "not connected"
        trouble = f": {manager.last_error}" if manager.last_error else ""
        if machine.phase is Phase.WAITING_FOR_PEER:
            return f"waiting for the peer{trouble}"
        if machine.state is State.ERROR or machine.phase is Phase.BACKOFF:
            what = "trying again" if manager.next_retry_at is not None else "given up"
            return f"no tunnel to {manager.target}, {what}{trouble}"
        return f"connecting to {manager.target} ({machine.phase})"

    def health(self) -> Health:
        """Run the checks."""
        return Health((self._check_tap(), self._check_peer(), self._check_hub()))

    # --- parts of a snapshot ------------------------------------------------------------------

    def _peer(self, tunnel: Tunnel | None) -> Peer:
        manager = self._manager
        pin = manager.config.peer.public_key
        key = pin if tunnel is None else tunnel.peer_public_key
        address: str | None
        if tunnel is not None and not tunnel.initiator:
            address = tunnel.peer_name
        else:
            address = None if manager.target is None else str(manager.target)
        return Peer(
            address=address,
            public_key=None if key is None else format_public_key(key),
            name=address,
            pinned=pin is not None,
        )

    def _path_reason(self, tunnel: Tunnel) -> str:
        manager = self._manager
        if tunnel.link_error is not None:
            ours = manager.next_retry_at is not None or manager.dialling
            who = "it is being dialled again" if ours else "the peer has to dial again"
            reason = "" if tunnel.paths is None else f"{tunnel.paths.reason}; "
            return f"{reason}the WSS link is lost ({tunnel.link_error}), {who}"
        if tunnel.paths is not None:
            return tunnel.paths.reason
        if not manager.config.nat.enabled:
            return "UDP is switched off (nat.enabled: false)"
        if manager.traversal is None or manager.traversal.port is None:
            return "no UDP socket could be opened: see the log"
        return "the peer does not want UDP"

    def _mtu(self, tunnel: Tunnel | None) -> int | None:
        active = None if tunnel is None or tunnel.paths is None else tunnel.paths.active
        if active is not None and active.mtu is not None:
            return active.mtu + (_IPV4_HEADERS if active.endpoint.address.version == 4
                                 else _IPV6_HEADERS)
        return None if self._manager.tap is None else self._manager.tap.mtu

    def _nat(self) -> Nat | None:
        traversal = self._manager.traversal
        result = None if traversal is None else traversal.result
        if traversal is None or result is None:
            return None
        public = result.public_address
        return Nat(
            type=str(result.type),
            public_address=None if public is None else str(public),
            detected_at=traversal.detected_at,
            mapping=str(result.mapping),
            filtering=str(result.filtering),
            detail=result.detail,
        )

    def _tap(self, config: Config) -> Tap | None:
        tap = self._manager.tap
        if tap is None:
            return None
        address = config.network.local_ip
        return Tap(tap.name, tap.mtu, None if address is None else str(address))

    def _counters(self) -> Counters:
        plane = self._manager.plane.counters()
        dropped = {
            name: plane["tx_dropped"][name] + plane["rx_dropped"][name]
            for name in plane["tx_dropped"]
        }
        return Counters(
            frames_in=plane["frames_written"],
            frames_out=plane["frames_sent"],
            bytes_in=plane["bytes_written"],
            bytes_out=plane["bytes_read"],
            dropped=dropped,
            udp_refused=plane["udp_refused"],
            udp_errors=self._manager.plane.udp_errors(),
        )

    # --- health -------------------------------------------------------------------------------

    def _check_tap(self) -> Check:
        tap = self._manager.tap
        if tap is None:
            if self._manager.machine.state is State.CONNECTED:
                return Check("tap", False, text="the TAP device is gone",
                             remedy="`shadowmesh disconnect`, then connect again")
            return Check("tap", True, text="not needed while disconnected")
        try:
            up = tap.is_up()
        except DeviceError as error:
            return Check("tap", False, text=str(error), remedy="see the daemon's log")
        if not up:
            return Check("tap", False, text=f"{tap.name} is down, frames are dropped",
                         remedy=f"ip link set {tap.name} up")
        return Check("tap", True, text=f"{tap.name} is up")

    def _check_peer(self) -> Check:
        manager = self._manager
        machine = manager.machine
        if manager.config.mode == 0:
            return Check("peer", False, severity="warning",
                         text="no key is configured, nobody is accepted",
                         remedy="set peer.public_key or encryption.key and restart")
        if machine.state is State.CONNECTED:
            return Check("peer", True, text="connected")
        if machine.state is State.DISCONNECTED:
            return Check("peer", True, text="disconnected")
        text = manager.last_error or f"{machine.state}"
        if machine.phase is Phase.WAITING_FOR_PEER:
            return Check("peer", False, severity="warning", text=f"waiting for the peer: {text}",
                         remedy="start the daemon on the other machine, or look at its log")
        return Check("peer", False, severity="warning", text=text,
                     remedy="the daemon keeps trying" if manager.next_retry_at
                     else "`shadowmesh connect` tries again")

    def _check_hub(self) -> Check:
        lag_s = self._heartbeat.worst_s
        if lag_s > HUB_LAG_LIMIT_S:
            return Check("hub_lag", False, severity="warning",
                         text=f"the event loop was {lag_s * 1000:.0f} ms late",
                         remedy="the machine is short of processor time")
        return Check("hub_lag", True, text="in time")


def _session(tunnel: Tunnel | None) -> Session | None:
    if tunnel is None:
        return None
    return Session(
        established_at=tunnel.established_at,
        rekeys=tunnel.rekeys,
        last_rekey_at=tunnel.last_rekey_at,
        initiator=tunnel.initiator,
    )


def _link(tunnel: Tunnel | None) -> Link | None:
    if tunnel is None or tunnel.link_error is not None:
        return None
    return Link(tunnel.peer_name, tunnel.established_at)


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
        )
        for report in (() if tunnel.paths is None else tunnel.paths.report())
    ]
    if tunnel.link_error is None:
        rtt_ms = None if tunnel.rtt_s is None else tunnel.rtt_s * 1000
        active = tunnel.path == "wss"
        found.append(Path("wss", tunnel.peer_name, active=active, proven=True, rtt_ms=rtt_ms))
    return tuple(sorted(found, key=lambda path: not path.active))
