"""How long a probe was on the way, whatever the event loops were busy with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.path.stopwatch import MAX_PROBES, Stopwatch

TOKEN = b"8 bytes!"


class Hands:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def stopped(came_at, held_s):
    hands = Hands()
    stopwatch = Stopwatch(hands)
    stopwatch.departs(TOKEN)
    hands.now += 7.0  # that we look at the answer late is of no matter
    return stopwatch.stop(TOKEN, came_at, held_s)


def test_what_the_peer_held_is_not_on_the_way():
    assert stopped(100.009, 0.0088) == pytest.approx(0.0002)


def test_a_peer_that_does_not_say_counts_with_all_its_time():
    assert stopped(100.009, None) == pytest.approx(0.009)


@given(st.floats(-10, 10), st.none() | st.floats(-1e9, 1e9))
def test_no_answer_makes_a_round_trip_longer_than_measured_or_negative(later_s, held_s):
    assert 0.0 <= stopped(100.0 + later_s, held_s) <= max(0.0, later_s) + 1e-9


def test_an_answer_counts_once_and_only_to_its_probe():
    stopwatch = Stopwatch(Hands())
    stopwatch.departs(TOKEN)
    assert stopwatch.stop(b"another!", 101.0, None) is None
    assert stopwatch.stop(TOKEN, 101.0, None) == pytest.approx(1.0)
    assert stopwatch.stop(TOKEN, 101.0, None) is None


def test_answers_that_never_come_cost_no_memory():
    stopwatch = Stopwatch(Hands())
    for number in range(10 * MAX_PROBES):
        stopwatch.departs(number.to_bytes(8))
    assert len(stopwatch._departed) == MAX_PROBES
    assert stopwatch.stop((10 * MAX_PROBES - 1).to_bytes(8), 101.0, None) is not None
