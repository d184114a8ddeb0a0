from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shadowmesh.config import HostPort
from shadowmesh.control.metrics_port import make_metrics_app
from shadowmesh.insight import metrics, status
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.insight.histogram import LAG_BUCKETS_S, Histogram
from shadowmesh.insight.table import Size
from tests.control.fake_control import AT_HOME, CONNECTED, DISCONNECTED, MANY, MESH, NOW

LISTEN = HostPort("127.0.0.1", 9091)


def scrape(snapshot, **sources):
    """Return {(name, labels): value} as a Prometheus server would read it."""
    registry = metrics.make_registry(metrics.Sources(lambda: snapshot, **sources))
    text = metrics.render(registry).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def full(snapshot=CONNECTED):
    """Return sources with something in every metric."""
    recorder = FlightRecorder()
    recorder.record("path", "path changed")
    recorder.round_trip("udp", 0.0008)
    return metrics.Sources(
        lambda: snapshot,
        Histogram(LAG_BUCKETS_S),
        recorder.round_trips,
        recorder.counts,
        lambda: (2, {"slow": 1}),
        lambda: MESH,
        lambda: Size(1, 2, 3),
    )


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        (("shadowmesh_build_info", ("version", "0.1.0")), 1),
        (("shadowmesh_state", ("state", "connected")), 1),
        (("shadowmesh_state", ("state", "error")), 0),
        (("shadowmesh_state_since_timestamp_seconds",), NOW - 133),
        (("shadowmesh_path", ("path", "udp")), 1),
        (("shadowmesh_path", ("path", "wss")), 0),
        (("shadowmesh_health", ("check", "tap")), 1),
        (("shadowmesh_post_quantum",), 1),
        (("shadowmesh_round_trip_seconds",), 0.0008412345),
        (("shadowmesh_path_mtu_bytes",), 1420),
        (("shadowmesh_session_established_timestamp_seconds",), NOW - 132),
        (("shadowmesh_session_last_rekey_timestamp_seconds",), NOW - 12),
        (("shadowmesh_session_rekeys",), 1),
        (("shadowmesh_reconnects_total",), 2),
        (("shadowmesh_path_switches_total",), 1),
        (("shadowmesh_handshakes_total", ("result", "ok")), 3),
        (("shadowmesh_handshakes_total", ("result", "refused")), 1),
        (("shadowmesh_peer_port_connections_total", ("outcome", "silent")), 2),
        (("shadowmesh_peer_port_unauthenticated", ("stage", "tls")), 1),
        (("shadowmesh_frames_total", ("direction", "in")), 12345),
        (("shadowmesh_frames_total", ("direction", "out")), 12001),
        (("shadowmesh_tap_queue_frames_total", ("direction", "in"), ("queue", "0")), 12000),
        (("shadowmesh_tap_queue_frames_total", ("direction", "out"), ("queue", "1")), 1000),
        (("shadowmesh_bytes_total", ("direction", "in")), 3 << 30),
        (("shadowmesh_bytes_total", ("direction", "out")), 1 << 20),
        (("shadowmesh_frames_dropped_total", ("reason", "queue_full")), 10),
        (("shadowmesh_frames_dropped_total", ("reason", "replay")), 2),
        (("shadowmesh_queue_bytes",), 4096),
        (("shadowmesh_process_cpu_seconds_total",), 1.5),
        (("shadowmesh_process_resident_memory_bytes",), 43 << 20),
        (("shadowmesh_process_threads",), 5),
        (("shadowmesh_process_open_fds",), 27),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_number_of_the_snapshot_is_told(sample, value):
    assert scrape(CONNECTED)[sample] == pytest.approx(value)


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        (("shadowmesh_members",), 3),
        (("shadowmesh_members_attached",), 1),
        (("shadowmesh_directory_version",), 17),
        (("shadowmesh_certificate_expiry_seconds",), 20 * 365 * 86400),
        (("shadowmesh_revocation_list_number",), 3),
        (("shadowmesh_revocation_list_age_seconds",), 60),
        (("shadowmesh_network_messages_refused_total", ("reason", "members")), 4),
        (("shadowmesh_join_answers_total", ("answer", "joined")), 2),
        (("shadowmesh_join_answers_total", ("answer", "proof")), 5),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_number_of_the_network_is_told_in_one_and_missing_outside(sample, value):
    member = dataclasses.replace(CONNECTED, now=NOW, network=AT_HOME)
    assert scrape(member)[sample] == pytest.approx(value)
    assert sample not in scrape(CONNECTED)


def test_a_member_that_is_no_relay_has_no_version_of_the_directory():
    here = dataclasses.replace(AT_HOME, directory_version=None)
    samples = scrape(dataclasses.replace(CONNECTED, now=NOW, network=here))
    assert ("shadowmesh_directory_version",) not in samples


def test_every_count_by_kind_of_the_snapshot_is_told():
    counts = [
        field.name
        for field in dataclasses.fields(status.Counters)
        # What a minute brought is the rate of another one.
        if field.default is dataclasses.MISSING and field.name != "dropped_lately"
    ]
    told = dataclasses.replace(
        CONNECTED, counters=status.Counters(**{name: {name: 4711} for name in counts})
    )
    labels = {
        value for (_, *labels), seen in scrape(told).items() if seen == 4711 for _, value in labels
    }
    assert labels == set(counts) >= {"dropped", "loops_refused"}


def test_what_is_not_known_is_left_out():
    samples = {name for name, *_ in scrape(DISCONNECTED)}
    for name in ("round_trip_seconds", "path_mtu_bytes", "post_quantum", "session_rekeys",
                 "process_threads"):  # fmt: skip
        assert f"shadowmesh_{name}" not in samples
    assert "shadowmesh_frames_total" in samples


def test_a_failed_check_is_zero():
    snapshot = dataclasses.replace(CONNECTED, health=(status.Check("stun", ok=False),))
    assert scrape(snapshot)["shadowmesh_health", ("check", "stun")] == 0


def test_a_failed_check_says_its_code_and_severity_and_one_that_passes_nothing():
    failed = status.Check("tap", False, "error", "tap0 is down", "set it up", "tap_down")
    passed = status.Check("peer", True)
    samples = scrape(dataclasses.replace(CONNECTED, health=(failed, passed)))
    [problem] = [key for key in samples if key[0] == "shadowmesh_health_problem"]
    assert dict(problem[1:]) == {"check": "tap", "code": "tap_down", "severity": "error"}
    assert samples[problem] == 1


def test_each_scrape_takes_one_snapshot_and_registering_none():
    taken = []
    registry = metrics.make_registry(metrics.Sources(lambda: taken.append(1) or CONNECTED))
    assert taken == []
    metrics.render(registry)
    metrics.render(registry)
    assert len(taken) == 2


def test_every_metric_is_ours_has_a_help_text_and_no_address_in_a_label():
    text = metrics.render(metrics.make_registry(full())).decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.name.startswith("shadowmesh_") for family in families)
    assert all(len(family.documentation) > 10 for family in families)
    for secret in ("203.0.113.7", "198.51.100.4", CONNECTED.public_key, CONNECTED.peer.public_key):
        assert secret not in text


def test_the_lag_histogram_counts_each_value_once():
    lag = Histogram(LAG_BUCKETS_S)
    for value in (-1.0, 0.0, 0.0005, 0.0006, 0.3, 60.0):
        lag.observe(value)
    samples = scrape(CONNECTED, hub_lag=lag)
    buckets = {
        key[1][1]: value
        for key, value in samples.items()
        if key[0] == "shadowmesh_hub_lag_seconds_bucket"
    }
    assert buckets["0.0005"] == 3  # bounds are inclusive
    assert buckets["0.001"] == 4
    assert buckets["0.25"] == 4
    assert buckets["0.5"] == 5
    assert buckets["5.0"] == 5
    assert buckets["+Inf"] == 6
    assert samples[("shadowmesh_hub_lag_seconds_count",)] == 6
    assert samples[("shadowmesh_hub_lag_seconds_sum",)] == pytest.approx(60.3011)


# --- The metrics port -------------------------------------------------------------------------


def ask(path="/metrics", method="GET", **environ):
    registry = metrics.make_registry(metrics.Sources(lambda: CONNECTED))
    app = make_metrics_app(registry, LISTEN)
    seen = []
    body = b"".join(
        app(
            {"PATH_INFO": path, "REQUEST_METHOD": method, "HTTP_HOST": "127.0.0.1:9091", **environ},
            lambda line, headers: seen.append((int(line[:3]), dict(headers))),
        )
    )
    return *seen[0], body


def test_the_metrics_port_tells_metrics_without_a_token():
    http_status, headers, body = ask()
    assert http_status == 200
    assert headers["Content-Type"] == metrics.CONTENT_TYPE
    assert int(headers["Content-Length"]) == len(body)
    assert body.startswith(b"# HELP shadowmesh_")


def test_head_answers_without_a_body():
    http_status, headers, body = ask(method="HEAD")
    assert (http_status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    ("asked", "http_status", "code"),
    [
        ({"path": "/"}, 404, "not_found"),
        ({"path": "/status"}, 404, "not_found"),
        ({"method": "POST"}, 405, "method_not_allowed"),
        ({"HTTP_ORIGIN": "http://evil"}, 403, "forbidden_origin"),
        ({"HTTP_HOST": "evil:9091"}, 403, "forbidden_host"),
        ({"HTTP_HOST": "127.0.0.2:9091"}, 403, "forbidden_host"),
    ],
)
def test_the_metrics_port_refuses_everything_else(asked, http_status, code):
    got, headers, body = ask(**asked)
    assert got == http_status
    assert json.loads(body)["error"]["code"] == code
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_library_does_not_measure_the_process_a_second_time():
    # its collectors of the process and the garbage collector are in the global registry
    text = metrics.render(metrics.make_registry(metrics.Sources(lambda: CONNECTED))).decode()
    for name in ("python_gc", "python_info", "\nprocess_"):
        assert name not in text


def test_the_api_does_not_load_the_metrics_library():
    code = "import sys, shadowmesh.control.app; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        (("shadowmesh_peers", ("which", "known")), 3),
        (("shadowmesh_peers", ("which", "connected")), 1),
        (("shadowmesh_fdb_entries",), 1),
        (("shadowmesh_fdb_moves_total",), 2),
        (("shadowmesh_fdb_unlearned_total",), 3),
        (("shadowmesh_peer_connected", ("peer", "nas")), 1),
        (("shadowmesh_peer_connected", ("peer", "lab")), 0),
        (("shadowmesh_peer_direct", ("peer", "nas")), 1),
        (("shadowmesh_peer_round_trip_seconds", ("peer", "nas")), 0.0008412345),
        (("shadowmesh_peer_bytes_total", ("direction", "in"), ("peer", "nas")), 3 << 30),
        (("shadowmesh_peer_frames_total", ("direction", "out"), ("peer", "nas")), 12001),
        (("shadowmesh_peer_frames_dropped_total", ("peer", "nas"), ("reason", "replay")), 2),
        (("shadowmesh_peer_queue_bytes", ("peer", "nas")), 4096),
    ],
    ids=str,
)
def test_each_of_a_few_peers_has_metrics_of_its_own(sample, value):
    found = scrape(MANY, peers=lambda: MESH, table=lambda: Size(1, 2, 3))
    assert found[sample] == pytest.approx(value)


def test_of_many_peers_the_sums_are_told_and_no_peer_by_name():
    many = dataclasses.replace(MANY, peers=dataclasses.replace(MANY.peers, known=65))
    found = scrape(many, peers=lambda: MESH)
    assert found[("shadowmesh_peers", ("which", "known"))] == 65
    assert not [name for name in found if ("peer", "nas") in name]


def test_a_pair_has_no_metrics_by_name():
    assert not [name for name in scrape(CONNECTED) if name[0] == "shadowmesh_peer_connected"]
