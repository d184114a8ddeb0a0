"""The last hour in two resolutions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.insight.history import FIGURES, RESOLUTIONS, History, Totals

DATE = 1_800_000_000.0


def told(history, now):
    """Return {seconds of a slot: stretch}."""
    return {stretch.interval_s: stretch for stretch in history.report(now, DATE).stretches}


def looked(seconds, *, start=1000.5, step_s=1.0, bytes_in=125, rtt_ms=2.0):
    history = History()
    for number in range(seconds + 1):
        totals = Totals(number * bytes_in, 2 * number * bytes_in, 3 * number)
        history.look(start + number * step_s, totals, rtt_ms)
    return history, start + seconds * step_s


def test_each_second_has_its_rates_and_each_quarter_of_a_minute_their_mean():
    history, now = looked(45)
    stretches = told(history, now)
    for interval_s, slots in ((1, 45), (15, 4)):
        stretch = stretches[interval_s]
        assert stretch.bits_in == [1000.0] * slots
        assert stretch.bits_out == [2000.0] * slots
        assert stretch.rtt_ms == [2.0] * slots
        assert stretch.drops == [3.0] * slots


def test_the_last_slot_ends_where_it_says():
    history, now = looked(3, start=1000.25)
    assert now == 1003.25
    stretches = told(history, now)
    assert stretches[1].until == DATE + 0.75
    assert stretches[15].until == DATE + 1005 - now


def test_a_mean_is_of_the_looks_that_had_something_to_say():
    history = History()
    for number, rtt_ms in enumerate((1.0, None, None, 4.0, 7.0)):
        history.look(15.5 + number, Totals(0, 0, 0), rtt_ms)
    stretches = told(history, 20.0)
    assert stretches[1].rtt_ms == [None, None, 4.0, 7.0], "the first look is only a beginning"
    assert stretches[15].rtt_ms == [5.5]


def test_looks_that_come_late_leave_no_holes():
    history, now = looked(20, step_s=1.4)
    values = told(history, now)[1].bits_in
    assert len(values) >= 27
    assert values == [pytest.approx(1000 / 1.4, abs=1)] * len(values)


def test_a_stopped_process_leaves_a_gap_and_moves_nothing():
    history, now = looked(5)
    history.look(now + 10, Totals(10_000, 0, 15), 2.0)
    values = told(history, now + 10)[1].bits_in
    assert values[5:14] == [None] * 9
    assert len(values) == 15
    assert values[-1] == pytest.approx((10_000 - 5 * 125) * 8 / 10, rel=1e-3)


def test_a_night_s_sleep_empties_it():
    history, now = looked(400)
    history.look(now + 8 * 3600, Totals(0, 0, 0), None)
    for stretch in told(history, now + 8 * 3600).values():
        assert set(stretch.bits_in) == {None}, "the counters went back as well"


def test_before_the_second_look_there_is_nothing():
    history = History()
    assert told(history, 5.0) == {}
    history.look(5.0, Totals(9, 9, 9), None)
    assert told(history, 5.0) == {}


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5000), st.integers(0, 1 << 50)), max_size=60))
def test_whatever_the_looks_it_stays_within_its_bounds(looks):
    history, now = History(), 100.0
    for later_s, total in looks:
        now += later_s
        history.look(now, Totals(total, total // 2, total // 3), None)
    stretches = told(history, now)
    for interval_s, slots in RESOLUTIONS:
        if interval_s in stretches:
            for name in FIGURES:
                values = getattr(stretches[interval_s], name)
                assert 1 <= len(values) <= slots
                assert all(value is None or value >= 0 for value in values)
            assert DATE - 1e-6 <= stretches[interval_s].until <= DATE + interval_s + 1e-6


def test_the_json_form_has_dates_and_columns_of_one_length():
    history, now = looked(700)
    answer = history.report(now, DATE).to_dict()
    assert answer["schema"] == 1
    assert [len(one["bits_in"]) for one in answer["stretches"]] == [300, 48]
    for stretch in answer["stretches"]:
        assert {len(stretch[name]) for name in FIGURES} == {len(stretch["bits_in"])}
        assert stretch["until"].startswith("2027-01-15T")
