"""One peer as others see it: its session, its paths, and what is told about both.

Owns: how a peer of the connection manager becomes values of `insight.peers`. Does not know: the
daemon as a whole (`view`), whether what is found is well (`checks`), HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shadowmesh.device.facts import format_mac
from shadowmesh.insight.peers import (
    Known,
    Link,
    Path,
    Peer,
    PeerCounters,
    PeerReport,
    PeerStatus,
    Session,
)
from shadowmesh.insight.table import Entry, Size
from shadowmesh.keys.identity import format_public_key
from shadowmesh.keys.mac import stable_mac
from shadowmesh.wire.peer.states import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shadowmesh._fastpath import Port
    from shadowmesh.base.clock import Dates
    from shadowmesh.device.underlay import Underlay
    from shadowmesh.insight.form import PathName, TlsPath
    from shadowmesh.peer.manager import ConnectionManager
    from shadowmesh.peer.peer import Peer as LivePeer
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.wire.control import Address

#: IP and UDP headers around a datagram
_IPV4_HEADERS: Final = 28
_IPV6_HEADERS: Final = 48


class PeerView:
    """Shows the peers of one daemon, one at a time."""

    def __init__(self, manager: ConnectionManager, underlay: Underlay, dates: Dates) -> None:
        """Args: underlay: tells whether the way to a peer leads into the tunnel."""
        self._manager = manager
        self._underlay = underlay
        self._dates = dates

    def status(self, peer: LivePeer) -> PeerStatus:
        """Return what is told of a peer among others."""
        return PeerStatus(**self._members(peer))

    def report(self, peer: LivePeer) -> PeerReport:
        """Return all about one peer."""
        return PeerReport(
            **self._members(peer),
            paths=() if peer.current is None else ways(peer.current),
            macs=self.table(port=peer.port.number),
        )

    def known(self) -> Known:
        """Count the peers."""
        tunnels = [peer.current for peer in self._manager.peers]
        sessions = [tunnel for tunnel in tunnels if tunnel is not None]
        direct = sum(tunnel.path == "udp" for tunnel in sessions)
        return Known(len(tunnels), len(sessions), direct)

    def table(self, *, port: int | None = None, mac: bytes | None = None) -> tuple[Entry, ...]:
        """Return the addresses that the switch knows.

        Args:
            port: only those behind it; None: all.
            mac: only this one; None: all.
        """
        names = {peer.port.number: peer.name for peer in self._manager.peers}
        return tuple(
            Entry(
                format_mac(each),
                vlan,
                None if number is None else names.get(number),
                age_s,
                static,
                moves,
            )
            for each, vlan, number, age_s, static, moves in self._manager.plane.fdb()
            if port in (None, number) and mac in (None, each)
            # Else of a peer that has just been removed.
            if number is None or number in names
        )

    def table_size(self) -> Size:
        """Sum the table up, for who asks again and again."""
        told = self._manager.plane.fdb_counters()
        return Size(told["entries"], told["moves"], told["unlearned"])

    def _members(self, peer: LivePeer) -> dict[str, Any]:
        tunnel, machine, entry, date = peer.current, peer.machine, peer.entry, self._dates.of
        key = entry.public_key if tunnel is None else tunnel.peer_public_key
        result = None if tunnel is None else tunnel.result
        return {
            "name": peer.name,
            "state": machine.state,
            "since": date(machine.since),
            "public_key": None if key is None else format_public_key(key),
            "address": None if peer.target is None else str(peer.target),
            "tunnel_ips": tuple(map(str, entry.tunnel_ips)),
            "phase": phase(peer),
            "wanted": peer.wanted or peer.expected,
            "held": peer.held,
            "path": path(tunnel),
            "endpoint": None if tunnel is None else _endpoint(tunnel),
            "path_reason": self.path_reason(peer),
            "cipher": None if result is None else result.cipher,
            "post_quantum": None if result is None else True,
            "tls_path": tls_path(tunnel),
            "rtt_ms": rtt_ms(tunnel),
            "last_seen_at": self.last_seen_at(peer),
            "last_error": peer.last_error,
            "last_error_at": date(peer.last_error_at),
            "next_retry_at": date(peer.next_retry_at),
            "reconnects": peer.reconnects,
            "path_switches": peer.path_switches,
            "session": self.session(tunnel),
            "link": self.link(tunnel),
            "counters": _counters(peer.port),
            "mac": None if key is None else format_mac(stable_mac(key)),
        }

    def shown(self, peer: LivePeer) -> Peer:
        """Return the other side as a snapshot of a pair tells it."""
        tunnel, pin = peer.current, peer.entry.public_key
        key = pin if tunnel is None else tunnel.peer_public_key
        address: str | None
        if tunnel is not None and not tunnel.initiator:
            address = tunnel.peer_name
        else:
            address = None if peer.target is None else str(peer.target)
        return Peer(
            address=address,
            public_key=None if key is None else format_public_key(key),
            name=address,
            pinned=pin is not None,
            tap_mtu=None if tunnel is None or tunnel.result is None else tunnel.result.peer.tap_mtu,
            last_seen_at=self.last_seen_at(peer),
        )

    def last_seen_at(self, peer: LivePeer) -> float | None:
        """Until when a peer that is not here was, as a date."""
        last_seen = peer.last_seen
        if peer.current is not None:
            return None
        return last_seen.date if last_seen.moment is None else self._dates.of(last_seen.moment)

    def session(self, tunnel: Tunnel | None) -> Session | None:
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

    def link(self, tunnel: Tunnel | None) -> Link | None:
        if tunnel is None or tunnel.link_error is not None:
            return None
        return Link(tunnel.peer_name, self._dates.of(tunnel.established_boottime))

    def path_reason(self, peer: LivePeer) -> str | None:
        """Say why it is this path; None without a session."""
        manager, tunnel = self._manager, peer.current
        if tunnel is None:
            return None
        inside = self._underlay.inside(far_end(tunnel)) if tunnel.path == "wss" else None
        if inside is not None:
            return inside
        if tunnel.link_error is not None:
            ours = peer.next_retry_at is not None or peer.dialling
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


def phase(peer: LivePeer) -> Phase | None:
    """What is gone through now; a side that has only to wait does so without a state of it."""
    return Phase.WAITING_FOR_PEER if peer.expected else peer.machine.phase


def path(tunnel: Tunnel | None) -> PathName | None:
    """What carries the frames."""
    return None if tunnel is None else "udp" if tunnel.path == "udp" else "wss"


def tls_path(tunnel: Tunnel | None) -> TlsPath | None:
    """Whether both sides saw the same certificate."""
    direct = None if tunnel is None or tunnel.result is None else tunnel.result.tls_matches
    return None if direct is None else "direct" if direct else "proxied-or-intercepted"


def far_end(tunnel: Tunnel) -> Address:
    """Return the address of the peer's end of the link."""
    return tunnel.wss.far_end


def rtt_ms(tunnel: Tunnel | None) -> float | None:
    """Round trip of the path that carries the frames."""
    if tunnel is None:
        return None
    active = None if tunnel.paths is None else tunnel.paths.active
    if active is not None:
        return active.rtt_ms
    return None if tunnel.rtt_s is None else tunnel.rtt_s * 1000


def path_mtu(tunnel: Tunnel | None) -> int | None:
    """MTU of a UDP path that carries the frames, with IP headers; None of any other."""
    active = None if tunnel is None or tunnel.paths is None else tunnel.paths.active
    if active is None or active.mtu is None:
        return None
    version = active.endpoint.address.version
    return active.mtu + (_IPV4_HEADERS if version == 4 else _IPV6_HEADERS)


def ways(tunnel: Tunnel) -> tuple[Path, ...]:
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


def both(out: Mapping[str, int], into: Mapping[str, int]) -> dict[str, int]:
    """Add up the drops of both directions."""
    return {reason: out.get(reason, 0) + into.get(reason, 0) for reason in {**out, **into}}


def _counters(port: Port) -> PeerCounters:
    told = port.counters()
    return PeerCounters(
        frames_in=told["frames_received"],
        frames_out=told["frames_sent"],
        bytes_in=told["bytes_received"],
        bytes_out=told["bytes_sent"],
        frames_queued=told["frames_queued"],
        bytes_queued=told["bytes_queued"],
        dropped=both(told["tx_dropped"], told["rx_dropped"]),
        macs=told["macs"],
    )


def _endpoint(tunnel: Tunnel) -> str:
    """Where the peer is on the path that carries the frames."""
    active = None if tunnel.paths is None else tunnel.paths.active
    return tunnel.peer_name if active is None else str(active.endpoint)
