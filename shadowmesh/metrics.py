"""Prometheus metrics out of status snapshots.

Owns: the names, units and help texts of the metrics, the histogram of the hub's lag, and the WSGI
application of the metrics port. Does not know: where the numbers come from, gevent, the token.

Nothing is counted twice: a scrape takes one snapshot and writes it down. The registry is our own,
without the library's process and garbage-collector collectors. Labels have few fixed values;
addresses and keys are never among them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from shadowmesh.guard import SECURITY_HEADERS, Guard, refuse
from shadowmesh.status import PATHS, STATES, Snapshot

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from shadowmesh.config import HostPort

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

#: seconds; 1 ms is a busy but healthy hub, 100 ms is a frame's life on the WSS path
LAG_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class LagHistogram:
    """How late the hub runs what was due: filled by the daemon, told by the collector.

    Plain counters instead of the library's histogram, which takes a lock for each value.
    """

    __slots__ = ("_counts", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(LAG_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, lag_s: float) -> None:
        """Count one measurement of lag_s seconds; below zero (a coarse clock) counts as zero."""
        lag_s = max(0.0, lag_s)
        self._counts[bisect_left(LAG_BUCKETS_S, lag_s)] += 1
        self._sum_s += lag_s

    def family(self) -> HistogramMetricFamily:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, LAG_BUCKETS_S), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(
            "shadowmesh_hub_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=buckets,
            sum_value=self._sum_s,
        )


class SnapshotCollector(Collector):
    """Turns one snapshot per scrape into metric families."""

    def __init__(self, status: Callable[[], Snapshot], hub_lag: LagHistogram | None = None) -> None:
        self._status = status
        self._hub_lag = hub_lag

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not take a snapshot of a daemon that is starting."""
        return ()

    def collect(self) -> Iterator[Metric]:
        snapshot = self._status()
        yield from _state_families(snapshot)
        yield from _session_families(snapshot)
        yield from _traffic_families(snapshot)
        yield from _resource_families(snapshot)
        if self._hub_lag is not None:
            yield self._hub_lag.family()


def make_registry(
    status: Callable[[], Snapshot], hub_lag: LagHistogram | None = None
) -> CollectorRegistry:
    """Return a registry that takes a snapshot at each scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(status, hub_lag))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """Return the Prometheus text format, content type `CONTENT_TYPE`."""
    return generate_latest(registry)


def make_metrics_app(registry: CollectorRegistry, listen: HostPort) -> WSGIApplication:
    """Return the WSGI application of `monitoring.prometheus_port`.

    GET /metrics only, without a token: the port is on loopback and tells no secret. Requests from
    web pages and for foreign hosts are refused all the same.
    """

    def metrics_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/metrics":
            return refuse(start_response, "404 Not Found", "not_found", "see /metrics")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return refuse(
                start_response,
                "405 Method Not Allowed",
                "method_not_allowed",
                "use GET",
                [("Allow", "GET, HEAD")],
            )
        body = render(registry)
        start_response(
            "200 OK",
            [
                ("Content-Type", CONTENT_TYPE),
                ("Content-Length", str(len(body))),
                *SECURITY_HEADERS,
            ],
        )
        return [body] if environ["REQUEST_METHOD"] == "GET" else []

    return Guard(metrics_app, listen, token=None)


def _gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    """A gauge without labels; nothing when the value is not known."""
    if value is not None:
        yield GaugeMetricFamily(f"shadowmesh_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"shadowmesh_{name}", text, value=value)


def _labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Iterable[tuple[str, float]],
) -> Metric:
    family: Any = kind(f"shadowmesh_{name}", text, labels=[label])
    for value_of_label, value in values:
        family.add_metric([value_of_label], value)
    return family  # type: ignore[no-any-return]


def _state_families(snapshot: Snapshot) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily,
        "build_info",
        "Version of the daemon; always 1.",
        "version",
        [(snapshot.version, 1)],
    )
    yield _labelled(
        GaugeMetricFamily,
        "state",
        "1 for the state that the connection is in.",
        "state",
        [(state, float(state == snapshot.state)) for state in STATES],
    )
    yield from _gauge(
        "state_since_timestamp_seconds", "When the state was entered.", snapshot.since
    )
    yield _labelled(
        GaugeMetricFamily,
        "path",
        "1 for the path that carries data.",
        "path",
        [(path, float(path == snapshot.path)) for path in PATHS],
    )
    yield _labelled(
        GaugeMetricFamily,
        "health_check",
        "1 when the health check passed.",
        "check",
        [(check.name, float(check.ok)) for check in snapshot.health],
    )


def _session_families(snapshot: Snapshot) -> Iterator[Metric]:
    yield from _gauge(
        "post_quantum",
        "1 when the session's keys come from a post-quantum handshake.",
        snapshot.post_quantum,
    )
    yield from _gauge(
        "round_trip_seconds",
        "Round trip to the peer.",
        None if snapshot.rtt_ms is None else snapshot.rtt_ms / 1000,
    )
    yield _labelled(
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
    yield from _gauge("path_mtu_bytes", "MTU of the path that carries data.", snapshot.mtu)
    session = snapshot.session
    if session is not None:
        yield from _gauge(
            "session_established_timestamp_seconds",
            "When the session was established.",
            session.established_at,
        )
        yield from _gauge(
            "session_last_rekey_timestamp_seconds",
            "When the session's keys were last renewed.",
            session.last_rekey_at,
        )
        yield from _gauge("session_rekeys", "Rekeys of the session.", session.rekeys)
    yield _counter("reconnects", "Sessions re-established by itself.", snapshot.reconnects)
    yield _counter("path_switches", "Moves between WSS and UDP.", snapshot.path_switches)
    yield _labelled(
        CounterMetricFamily,
        "handshakes",
        "Handshakes by result.",
        "result",
        sorted(snapshot.handshakes.items()),
    )


def _traffic_families(snapshot: Snapshot) -> Iterator[Metric]:
    counters = snapshot.counters
    yield _labelled(
        CounterMetricFamily,
        "frames",
        "Ethernet frames; in is from the peer to the TAP.",
        "direction",
        [("in", counters.frames_in), ("out", counters.frames_out)],
    )
    yield _labelled(
        CounterMetricFamily,
        "bytes",
        "Bytes of Ethernet frames; in is from the peer to the TAP.",
        "direction",
        [("in", counters.bytes_in), ("out", counters.bytes_out)],
    )
    yield _labelled(
        CounterMetricFamily,
        "frames_dropped",
        "Frames and records dropped, by reason.",
        "reason",
        sorted(counters.dropped.items()),
    )
    yield _labelled(
        CounterMetricFamily,
        "udp_refused",
        "UDP datagrams that were no record of the session, by reason.",
        "reason",
        sorted(counters.udp_refused.items()),
    )
    yield _labelled(
        CounterMetricFamily,
        "udp_errors",
        "What the UDP socket refused, by errno.",
        "errno",
        sorted(counters.udp_errors.items()),
    )
    yield from _gauge(
        "queue_bytes", "Sealed bytes that wait for the WebSocket link.", snapshot.queue_bytes
    )


def _resource_families(snapshot: Snapshot) -> Iterator[Metric]:
    resources = snapshot.resources
    if resources is None:
        return
    yield _counter("process_cpu_seconds", "Processor time used.", resources.cpu_seconds)
    yield from _gauge("process_resident_memory_bytes", "Resident memory.", resources.rss_bytes)
    yield from _gauge("process_threads", "Threads of the process.", resources.threads)
    yield from _gauge("process_open_fds", "Open file descriptors.", resources.open_fds)
