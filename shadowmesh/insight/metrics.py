"""Prometheus metrics out of status snapshots.

Owns: the names, units and help texts of the metrics. Does not know: where the numbers come from,
who serves them.

Nothing is counted twice: a scrape takes one snapshot and writes it down. The registry is our own,
without the library's process and garbage-collector collectors. Labels have few fixed values;
addresses and keys are never among them. The names of peers are, for as long as there are few of
them; the sums of all are always told. conf/ has a dashboard and alert rules that use the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from shadowmesh.insight.families import counter, gauge, histogram, info, labelled
from shadowmesh.insight.form import PATHS
from shadowmesh.insight.network_metrics import network_families
from shadowmesh.insight.status import STATES, Check, Queue, Snapshot, Tap
from shadowmesh.insight.table import Size

if TYPE_CHECKING:
    from shadowmesh.insight.histogram import Histogram
    from shadowmesh.insight.peers import Known, PeerStatus

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
#: with more peers than that none has metrics of its own: each has a dozen series, for ever
MAX_LABELLED_PEERS: Final = 64


def _no_listeners() -> tuple[int, Mapping[str, int]]:
    return 0, {}


def _no_peers() -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers come from.

    Attributes:
        status: takes a snapshot.
        hub_lag: filled by the daemon; None: not measured.
        round_trips: of each path.
        events: how many events of each kind were recorded.
        listeners: how many listen to the feed, and how many have ended in each way.
        peers: tells of each of several peers; of a pair nothing, as the snapshot has it all.
        table: how much the switch knows.
    """

    status: Callable[[], Snapshot]
    hub_lag: Histogram | None = None
    round_trips: Mapping[str, Histogram] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    listeners: Callable[[], tuple[int, Mapping[str, int]]] = _no_listeners
    peers: Callable[[], Sequence[PeerStatus]] = _no_peers
    table: Callable[[], Size] = Size


class SnapshotCollector(Collector):
    """Turns one snapshot per scrape into metric families."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not take a snapshot of a daemon that is starting."""
        return ()

    def collect(self) -> Iterator[Metric]:
        sources = self._sources
        snapshot = sources.status()
        yield from _state_families(snapshot)
        yield from _session_families(snapshot)
        yield from _path_families(snapshot)
        yield from _traffic_families(snapshot)
        yield from _mesh_families(snapshot.peers, sources.table())
        if snapshot.peers.known <= MAX_LABELLED_PEERS:
            yield from _peer_families(sources.peers())
        if snapshot.network is not None:
            yield from network_families(snapshot.network, snapshot.now)
        yield from _resource_families(snapshot)
        yield histogram(
            "probe_round_trip_seconds",
            "Round trips of answered probes, by the path that was probed.",
            "path",
            sources.round_trips,
        )
        if sources.hub_lag is not None:
            yield histogram(
                "hub_lag_seconds", "How late the event loop ran a timer.", "", {"": sources.hub_lag}
            )
        yield from _feed_families(sources)


def make_registry(sources: Sources) -> CollectorRegistry:
    """Return a registry that takes a snapshot at each scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(sources))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """Return the Prometheus text format, content type `CONTENT_TYPE`."""
    return generate_latest(registry)


def _state_families(snapshot: Snapshot) -> Iterator[Metric]:
    yield from info("build", "Version of the daemon; always 1.", {"version": snapshot.version})
    yield labelled(
        GaugeMetricFamily,
        "state",
        "1 for the state that the connection is in.",
        "state",
        [(state, float(state == snapshot.state)) for state in STATES],
    )
    yield from gauge(
        "wanted",
        "1 when there is a tunnel or shall be one, 0 when nobody wants one.",
        snapshot.wanted,
    )
    yield from gauge(
        "peer_last_seen_timestamp_seconds",
        "When the last session with the peer ended; missing while connected.",
        None if snapshot.peer is None else snapshot.peer.last_seen_at,
    )
    yield from gauge("state_since_timestamp_seconds", "When the state was entered.", snapshot.since)
    yield labelled(
        GaugeMetricFamily,
        "health",
        "1 when the health check passes, 0 when it fails.",
        "check",
        [(check.name, float(check.ok)) for check in snapshot.health],
    )
    yield _problems(snapshot.health)
    certificate = snapshot.certificate
    yield from gauge(
        "certificate_expiry_timestamp_seconds",
        "When the TLS certificate of the peer port expires.",
        None if certificate is None else certificate.not_after,
    )


def _problems(health: Sequence[Check]) -> Metric:
    """One sample for each check that fails, with what an alert wants to say about it."""
    family = GaugeMetricFamily(
        "shadowmesh_health_problem",
        "1 for each health check that fails, with its code and severity.",
        labels=["check", "code", "severity"],
    )
    for check in health:
        if not check.ok:
            family.add_metric([check.name, check.code, check.severity], 1)
    return family


def _session_families(snapshot: Snapshot) -> Iterator[Metric]:
    yield from gauge(
        "post_quantum",
        "1 when the session's keys come from a post-quantum handshake.",
        snapshot.post_quantum,
    )
    yield from info(
        "session",
        "Cipher and TLS of the session; always 1.",
        {"cipher": snapshot.cipher, "tls_path": snapshot.tls_path},
    )
    yield from gauge(
        "link_up",
        "1 while the WebSocket link is up; 0 while the session goes on over UDP alone.",
        None if snapshot.path is None else snapshot.link is not None,
    )
    session = snapshot.session
    if session is not None:
        yield from gauge(
            "session_established_timestamp_seconds",
            "When the session was established.",
            session.established_at,
        )
        yield from gauge(
            "session_last_rekey_timestamp_seconds",
            "When the session's keys were last renewed.",
            session.last_rekey_at,
        )
        yield from gauge("session_rekeys", "Rekeys of the session.", session.rekeys)
    yield counter(
        "reconnects",
        "Sessions re-established after a loss that neither side announced.",
        snapshot.reconnects,
    )
    yield labelled(
        CounterMetricFamily,
        "handshakes",
        "Handshakes by result.",
        "result",
        sorted(snapshot.handshakes.items()),
    )
    port = snapshot.peer_port
    if port is not None:
        yield labelled(
            CounterMetricFamily,
            "peer_port_connections",
            "Connections to the peer port, by what became of them before they authenticated.",
            "outcome",
            sorted(port.connections.items()),
        )
        yield labelled(
            GaugeMetricFamily,
            "peer_port_unauthenticated",
            "Connections to the peer port that have proved nothing yet, by stage.",
            "stage",
            sorted(port.unauthenticated.items()),
        )


def _path_families(snapshot: Snapshot) -> Iterator[Metric]:
    yield labelled(
        GaugeMetricFamily,
        "path",
        "1 for the path that carries data.",
        "path",
        [(path, float(path == snapshot.path)) for path in PATHS],
    )
    yield counter("path_switches", "Moves between WSS and UDP.", snapshot.path_switches)
    yield from gauge(
        "round_trip_seconds",
        "Smoothed round trip to the peer, on the path that carries data.",
        None if snapshot.rtt_ms is None else snapshot.rtt_ms / 1000,
    )
    yield labelled(
        GaugeMetricFamily,
        "path_loss_ratio",
        "Share of the last probes that were not answered, on the path that carries data.",
        "path",
        [
            (path.path, path.loss)
            for path in snapshot.paths
            if path.active and path.loss is not None
        ],
    )
    yield from gauge("path_mtu_bytes", "MTU of the path that carries data.", snapshot.mtu)
    yield from gauge(
        "paths_proven",
        "Addresses of the peer that have answered a probe.",
        sum(path.proven for path in snapshot.paths),
    )
    tap = snapshot.tap or Tap()
    yield from gauge("tap_mtu_bytes", "MTU of the TAP device.", tap.mtu)
    if tap.queues:
        yield _queue_frames(tap.queues)
    if snapshot.nat is not None:
        yield from info("nat", "The NAT in front of us; always 1.", {"type": snapshot.nat.type})


def _queue_frames(queues: Sequence[Queue]) -> Metric:
    family = CounterMetricFamily(
        "shadowmesh_tap_queue_frames",
        "Ethernet frames by queue of the TAP device; in is from the peer to the TAP.",
        labels=["queue", "direction"],
    )
    for number, queue in enumerate(queues):
        family.add_metric([str(number), "in"], queue.frames_in)
        family.add_metric([str(number), "out"], queue.frames_out)
    return family


def _traffic_families(snapshot: Snapshot) -> Iterator[Metric]:
    counters = snapshot.counters
    yield labelled(
        CounterMetricFamily,
        "frames",
        "Ethernet frames; in is from the peer to the TAP.",
        "direction",
        [("in", counters.frames_in), ("out", counters.frames_out)],
    )
    yield labelled(
        CounterMetricFamily,
        "bytes",
        "Bytes of Ethernet frames; in is from the peer to the TAP.",
        "direction",
        [("in", counters.bytes_in), ("out", counters.bytes_out)],
    )
    yield labelled(
        CounterMetricFamily,
        "frames_dropped",
        "Frames and records dropped, by reason.",
        "reason",
        sorted(counters.dropped.items()),
    )
    yield labelled(
        CounterMetricFamily,
        "udp_refused",
        "UDP datagrams that were no record of the session, by reason.",
        "reason",
        sorted(counters.udp_refused.items()),
    )
    yield labelled(
        CounterMetricFamily,
        "udp_errors",
        "What the UDP socket refused, by errno.",
        "errno",
        sorted(counters.udp_errors.items()),
    )
    yield labelled(
        CounterMetricFamily,
        "loops_refused",
        "What was not sent or dialled because it would have gone into the tunnel itself, by kind.",
        "kind",
        sorted(counters.loops_refused.items()),
    )
    yield from gauge("queue_bytes", "Bytes that wait for the WebSocket link.", snapshot.queue_bytes)


def _mesh_families(known: Known, table: Size) -> Iterator[Metric]:
    yield labelled(
        GaugeMetricFamily,
        "peers",
        "Peers: all that are known, with a session, and by what carries their frames.",
        "which",
        [
            ("known", known.known),
            ("connected", known.sessions),
            ("direct", known.direct),
            ("relayed", known.relayed),
        ],
    )
    yield from gauge("fdb_entries", "Addresses in the table of the switch.", table.entries)
    yield counter("fdb_moves", "Moves of an address from one side to another.", table.moves)
    yield counter(
        "fdb_unlearned", "Frames whose source address found no place in the table.", table.unlearned
    )


def _peer_families(peers: Sequence[PeerStatus]) -> Iterator[Metric]:
    """What is told of each of several peers, under its name."""
    if not peers:
        return
    yield labelled(
        GaugeMetricFamily,
        "peer_connected",
        "1 while there is a session with the peer.",
        "peer",
        [(peer.name, float(peer.path is not None)) for peer in peers],
    )
    yield labelled(
        GaugeMetricFamily,
        "peer_direct",
        "1 while the peer's frames go over UDP.",
        "peer",
        [(peer.name, float(peer.path == "udp")) for peer in peers],
    )
    yield labelled(
        GaugeMetricFamily,
        "peer_round_trip_seconds",
        "Smoothed round trip to the peer, on the path that carries its frames.",
        "peer",
        [(peer.name, peer.rtt_ms / 1000) for peer in peers if peer.rtt_ms is not None],
    )
    yield labelled(
        CounterMetricFamily,
        "peer_reconnects",
        "Sessions with the peer re-established after a loss that neither side announced.",
        "peer",
        [(peer.name, peer.reconnects) for peer in peers],
    )
    yield labelled(
        GaugeMetricFamily,
        "peer_queue_bytes",
        "Bytes that wait for the peer's link.",
        "peer",
        [(peer.name, peer.counters.bytes_queued) for peer in peers],
    )
    for what, text in (("frames", "Ethernet frames"), ("bytes", "Bytes of Ethernet frames")):
        family = CounterMetricFamily(
            f"shadowmesh_peer_{what}",
            f"{text} by peer; in is from the peer to the TAP.",
            labels=["peer", "direction"],
        )
        for peer in peers:
            for direction in ("in", "out"):
                value = getattr(peer.counters, f"{what}_{direction}")
                family.add_metric([peer.name, direction], value)
        yield family
    dropped = CounterMetricFamily(
        "shadowmesh_peer_frames_dropped",
        "Frames and records of the peer that were dropped, by reason.",
        labels=["peer", "reason"],
    )
    for peer in peers:
        for reason, number in sorted(peer.counters.dropped.items()):
            dropped.add_metric([peer.name, reason], number)
    yield dropped


def _resource_families(snapshot: Snapshot) -> Iterator[Metric]:
    resources = snapshot.resources
    if resources is None:
        return
    yield counter("process_cpu_seconds", "Processor time used.", resources.cpu_seconds)
    yield from gauge("process_resident_memory_bytes", "Resident memory.", resources.rss_bytes)
    yield from gauge("process_threads", "Threads of the process.", resources.threads)
    yield from gauge("process_open_fds", "Open file descriptors.", resources.open_fds)


def _feed_families(sources: Sources) -> Iterator[Metric]:
    yield labelled(
        CounterMetricFamily,
        "events",
        "Events in the flight recorder, by kind.",
        "kind",
        sorted(sources.events.items()),
    )
    listening, ended = sources.listeners()
    yield from gauge("listeners", "Who listens to GET /events now.", listening)
    yield labelled(
        CounterMetricFamily,
        "listeners_ended",
        "Listeners of GET /events that have ended, by how.",
        "reason",
        sorted(ended.items()),
    )
