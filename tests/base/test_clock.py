"""The clocks: what is shown when somebody sets the date."""

from __future__ import annotations

import pytest

from shadowmesh.base import clock

TEN_YEARS = 10 * 365.25 * 86400.0


@pytest.fixture
def clocks(monkeypatch):
    """Both clocks in the test's hands."""
    hands = {"wall": 1_800_000_000.0, "boot": 500.0}
    monkeypatch.setattr(clock, "wall_time", lambda: hands["wall"])
    monkeypatch.setattr(clock, "boottime", lambda: hands["boot"])
    return hands


@pytest.mark.parametrize("jump_s", [TEN_YEARS, -TEN_YEARS, 3600.0, -1.0])
def test_a_clock_that_is_set_changes_dates_and_no_age(clocks, jump_s):
    dates = clock.Dates()
    moment = clocks["boot"] - 60
    before = dates.of(moment)
    clocks["wall"] += jump_s
    assert dates.now() - dates.of(moment) == pytest.approx(60)
    assert dates.of(moment) - before == pytest.approx(jump_s)


def test_a_moment_is_the_same_date_each_time(clocks):
    """The clocks are read one after the other: what lies between must not show."""
    dates = clock.Dates()
    before = dates.of(400.0)
    for late_s in (0.004, -0.003, 0.0001):
        clocks["boot"] += 10
        clocks["wall"] += 10 + late_s
        assert dates.of(400.0) == before


def test_what_has_not_happened_has_no_date():
    assert clock.Dates().of(None) is None


@pytest.mark.parametrize("interval_s", [0.02, 0.5, 1.0])
def test_all_who_look_now_and_then_look_at_the_same_moments(interval_s):
    ticks = {round(clock.next_tick(7 + shift / 100, interval_s), 9) for shift in range(3)}
    assert ticks <= {round(7 + count * interval_s, 9) for count in range(1, 4)}
    due = clock.next_tick(1234.56, interval_s)
    for late_s in (-0.04 * interval_s, 0.0, 0.3 * interval_s):  # a timer is never exact
        assert clock.next_tick(due + late_s, interval_s) == pytest.approx(due + interval_s)
