from __future__ import annotations

import dataclasses
import enum
import json
import os

import psutil
import pytest

from shadowmesh.base.rate import TokenBucket
from shadowmesh.insight import status
from shadowmesh.insight.resources import read_resources
from tests.control.fake_control import CONNECTED, DISCONNECTED, NOW

#: the names of the interface text; scripts rely on them
DOCUMENTED = {
    "schema": None, "version": None, "state": None, "phase": None, "since": None,
    "now": None,
    "last_error": None, "path": None, "path_reason": None, "cipher": None, "post_quantum": None,
    "rtt_ms": None, "mtu": None, "public_key": None, "health": None, "tls_path": None,
    "reconnects": None,
    "peer": {"address", "public_key", "name"},
    "tap": {"device", "mtu", "address", "addresses", "queues"},
    "nat": {"type", "public_address", "detected_at"},
    "session": {"established_at", "rekeys", "last_rekey_at"},
    "counters": {"frames_in", "frames_out", "bytes_in", "bytes_out", "dropped"},
    "resources": {"cpu_percent", "rss_bytes", "threads", "open_fds"},
    "link": {"remote_address", "since"},
}  # fmt: skip


@pytest.mark.parametrize("snapshot", [CONNECTED, DISCONNECTED], ids=["connected", "disconnected"])
def test_every_documented_name_is_there_in_every_state(snapshot):
    answer = snapshot.to_dict()
    for name, members in DOCUMENTED.items():
        assert name in answer
        if members is not None:
            assert members <= answer[name].keys()
    assert answer["schema"] == 1


def test_a_snapshot_survives_json_unchanged():
    answer = CONNECTED.to_dict()
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_every_field_of_a_snapshot_is_told():
    assert {field.name for field in dataclasses.fields(status.Snapshot)} <= (
        CONNECTED.to_dict().keys()
    )


def test_a_state_of_the_state_machine_is_told_as_its_name():
    class State(enum.StrEnum):
        CONNECTED = "connected"

    answer = dataclasses.replace(CONNECTED, state=State.CONNECTED).to_dict()
    assert type(answer["state"]) is str
    assert answer["state"] == "connected"


def test_times_are_rfc_3339_in_utc():
    assert status.format_time(NOW) == "2026-01-02T03:04:05.678Z"
    assert status.format_time(0.0) == "1970-01-01T00:00:00.000Z"
    assert status.format_time(None) is None
    answer = CONNECTED.to_dict()
    assert answer["since"] == "2026-01-02T03:01:52.678Z"
    assert answer["session"]["last_rekey_at"] == "2026-01-02T03:03:53.678Z"


def test_the_round_trip_is_rounded_to_microseconds():
    assert CONNECTED.to_dict()["rtt_ms"] == 0.841


def test_a_snapshot_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONNECTED.state = "error"


def test_health_fails_by_errors_and_not_by_warnings():
    good = status.Check("tap", ok=True)
    warning = status.Check("stun", False, "warning", "no answer", "wait", code="no_answer")
    error = status.Check("link", ok=False, text="lost", remedy="look at the peer")
    assert status.Health([good, warning]).ok
    report = status.Health([good, warning, error])
    assert not report.ok
    answer = report.to_dict()
    assert answer["status"] == "failing"
    assert answer["failing"] == ["link"]
    assert answer["checks"]["stun"] == {
        "ok": False, "severity": "warning", "text": "no answer", "remedy": "wait",
        "code": "no_answer",
    }  # fmt: skip
    assert status.Health([good]).to_dict()["status"] == "ok"


def test_health_without_details_holds_no_texts():
    check = status.Check("link", False, "error", "203.0.113.7 is silent", "see /etc/x", "silent")
    answer = status.Health([check]).to_dict(details=False)
    assert answer["checks"] == {"link": {"ok": False, "severity": "error", "code": "silent"}}


def test_resources_are_those_of_the_process():
    process = psutil.Process()
    read_resources(process)
    read_end, write_end = os.pipe()
    try:
        with_pipe = read_resources(process)
    finally:
        os.close(read_end)
        os.close(write_end)
    without = read_resources(process)
    assert with_pipe.open_fds == without.open_fds + 2
    assert with_pipe.rss_bytes > 1 << 20
    assert with_pipe.threads >= 1
    assert with_pipe.cpu_seconds > 0


def test_a_bucket_allows_its_burst_and_then_its_rate():
    bucket = TokenBucket(rate_per_s=2, burst=3)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(10.4)
    assert bucket.take(10.5)
    assert not bucket.take(10.5)


def test_a_bucket_that_owes_allows_nothing_until_it_is_paid_back():
    bucket = TokenBucket(rate_per_s=2, burst=3)
    assert bucket.take(10.0)
    bucket.owe(6)
    assert not bucket.take(12.0)
    assert bucket.take(12.5)


def test_a_bucket_never_holds_more_than_its_burst():
    bucket = TokenBucket(rate_per_s=1, burst=2)
    assert [bucket.take(now) for now in (0.0, 1000.0, 1000.0, 1000.0)] == [True, True, True, False]


def test_a_bucket_outlives_a_clock_that_goes_back():
    bucket = TokenBucket(rate_per_s=1, burst=1)
    assert bucket.take(100.0)
    assert not bucket.take(50.0)
    assert not bucket.take(100.5)
    assert bucket.take(101.0)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_bucket_that_allows_nothing_is_refused(rate, burst):
    with pytest.raises(ValueError, match="allows nothing"):
        TokenBucket(rate, burst)
