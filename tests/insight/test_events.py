from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.constants import MAX_EVENTS
from shadowmesh.config.model import Secret
from shadowmesh.insight import events
from shadowmesh.insight.events import KINDS, MESSAGE_RATE, FlightRecorder
from shadowmesh.insight.histogram import Histogram


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recorder(clock):
    return FlightRecorder(clock=lambda: 1767323045.678, monotonic=clock)


def fill(recorder, clock, count):
    for number in range(count):
        clock.now += 1 / MESSAGE_RATE[0]
        recorder.record("path", "path changed", number=number)


def test_an_event_has_number_time_kind_message_and_fields(recorder):
    recorder.record("path", "path changed", before="wss", after="udp 192.0.2.1:9001")
    (event,) = recorder.recent()
    assert event.to_dict() == {
        "number": 1,
        "time": "2026-01-02T03:04:05.678Z",
        "kind": "path",
        "message": "path changed",
        "fields": {"before": "wss", "after": "udp 192.0.2.1:9001"},
    }


def test_events_come_back_in_the_order_in_which_they_happened(recorder, clock):
    fill(recorder, clock, 5)
    assert [event.number for event in recorder.recent()] == [1, 2, 3, 4, 5]
    assert [event.number for event in recorder.recent(2)] == [4, 5]
    assert [event.number for event in recorder.recent(2, after=4)] == [5]
    assert recorder.recent(after=5) == []


def test_only_the_last_thousand_events_are_kept(recorder, clock):
    fill(recorder, clock, MAX_EVENTS + 7)
    kept = recorder.recent()
    assert len(kept) == MAX_EVENTS == 1000
    assert (kept[0].number, kept[-1].number) == (8, MAX_EVENTS + 7)


def test_a_message_that_comes_too_often_cannot_wash_out_the_others(recorder, clock):
    recorder.record("state", "state changed")
    for _ in range(10 * MAX_EVENTS):
        clock.now += 0.01
        recorder.record("session", "incoming handshake failed")
    kept = recorder.recent()
    assert kept[0].message == "state changed"
    assert len(kept) < 50
    assert sum(event.fields.get("suppressed", 0) for event in kept) > 9 * MAX_EVENTS


def test_a_burst_of_one_message_is_kept_whole(recorder):
    for _ in range(int(MESSAGE_RATE[1])):
        recorder.record("state", "state changed")
    assert len(recorder.recent()) == int(MESSAGE_RATE[1])


def test_no_secret_gets_into_an_event(recorder):
    key = bytes(range(32))
    recorder.record("config", "configuration reloaded", key=Secret(key), raw=key, nested=[key])
    text = json.dumps(recorder.recent()[0].to_dict())
    assert key.hex() not in text
    assert recorder.recent()[0].fields == {
        "key": "***", "raw": "<32 bytes>", "nested": ["<32 bytes>"],
    }  # fmt: skip


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.none() | st.booleans() | st.floats()
                       | st.integers() | st.text() | st.binary(), max_size=4))  # fmt: skip
def test_every_event_can_be_written_as_json(fields):
    recorder = FlightRecorder()
    recorder.record("state", "state changed", **fields)
    event = recorder.recent()[0].to_dict()
    assert json.loads(json.dumps(event, allow_nan=False)) == event


def test_listeners_hear_of_new_events_until_they_are_forgotten(recorder):
    heard = []
    recorder.record("state", "before")
    recorder.listen(heard.append)
    recorder.record("state", "state changed")
    recorder.forget(heard.append)
    recorder.record("state", "after")
    assert [event.message for event in heard] == ["state changed"]


def test_a_listener_may_leave_while_it_is_told(recorder):
    def once(event):
        recorder.forget(once)

    heard = []
    recorder.listen(once)
    recorder.listen(heard.append)
    recorder.record("state", "state changed")
    assert len(heard) == 1


def test_the_kinds_are_those_of_the_interface():
    known = (
        "state", "path", "nat", "rekey", "drops", "session", "device", "config", "capture",
        "network",
    )  # fmt: skip
    assert known == KINDS


def test_round_trips_are_counted_by_path(recorder):
    recorder.round_trip("udp", 0.0008)
    recorder.round_trip("udp", 0.3)
    recorder.round_trip("wss", 0.04)
    udp = dict(recorder.round_trips["udp"].buckets())
    assert (udp["0.0005"], udp["0.001"], udp["0.5"], udp["+Inf"]) == (0, 1, 2, 2)
    assert dict(recorder.round_trips["wss"].buckets())["+Inf"] == 1


def test_nobody_records_nothing():
    events.NOBODY.record("state", "state changed", any_field=1)
    events.NOBODY.round_trip("udp", 1.0)


@given(st.lists(st.floats(-1, 100)))
def test_a_histogram_counts_like_its_definition(values):
    bounds = (0.1, 1.0, 10.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    for bound, count in histogram.buckets():
        assert count == sum(value <= float(bound) for value in values)
    assert histogram.sum == pytest.approx(sum(max(0.0, value) for value in values))


def test_an_event_about_one_of_several_peers_names_it(recorder):
    events.Named(recorder, "nas").record("path", "path changed", before="wss")
    assert recorder.recent()[0].fields == {"before": "wss", "name": "nas"}


def test_one_peer_that_flaps_costs_the_others_no_event(recorder):
    nas, lab = (events.Named(recorder, name) for name in ("nas", "lab"))
    for _ in range(100):
        nas.record("session", "connection lost")
    lab.record("session", "connection lost")
    names = [event.fields["name"] for event in recorder.recent()]
    assert (names.count("nas"), names.count("lab")) == (int(MESSAGE_RATE[1]), 1)


def test_what_is_remembered_about_rates_is_bounded(recorder):
    for number in range(events.MAX_RATES + 100):
        events.Named(recorder, f"peer-{number}").record("session", "connection lost")
    assert len(recorder._rates) == events.MAX_RATES
