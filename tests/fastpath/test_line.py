"""How much of what we sent the host may hold: what leaves within 5 ms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.fast.hooks.queues import SIZES, Line

FIRST, LEAST, MOST = (SIZES[f"LINE_{which}"] for which in ("FIRST", "LEAST", "MOST"))
MS = 1_000_000


def fill(line: Line, bytes_per_ms: float, milliseconds: int, now_ms: int = 1) -> int:
    """Send as much as the line's limit allows over one of that rate; return when it is."""
    held = 0.0
    for now in range(now_ms, now_ms + milliseconds):
        held = max(0.0, held - bytes_per_ms)
        sent = max(0.0, line.limit - held)
        line.look(0, int(held), now * MS)
        if sent == 0:
            line.meet()
        held += sent
        line.look(int(sent), int(held), now * MS)
    return now_ms + milliseconds


@pytest.mark.parametrize("mbit", [50, 100, 400, 2000, 5000])
def test_the_host_may_hold_what_a_line_takes_in_5_ms(mbit):
    line = Line()
    per_ms = mbit * 125
    fill(line, per_ms, 1000)
    assert line.limit == pytest.approx(per_ms * 5, rel=0.3)


def test_a_very_slow_line_may_be_given_a_few_frames_all_the_same():
    line = Line()
    fill(line, 10, 3000)
    assert line.limit == LEAST


def test_a_line_that_becomes_slow_is_noticed_within_half_a_second():
    line = Line()
    now = fill(line, 1_000_000, 300)
    assert line.limit == MOST
    fill(line, 2500, 500, now)
    assert line.limit <= 2 * LEAST


def test_a_line_that_becomes_fast_is_noticed_within_half_a_second():
    line = Line()
    now = fill(line, 2500, 500)
    fill(line, 1_000_000, 500, now)
    assert line.limit == MOST


def test_what_leaves_at_once_raises_the_limit_to_what_was_given():
    line = Line()
    for now in range(1, 200):
        line.look(1_000_000, 0, now * MS)
    assert line.limit == MOST


def test_an_application_that_sends_little_does_not_lower_the_limit():
    line = Line()
    for now in range(1, 1000, 5):
        line.look(100, 0, now * MS)
    assert line.limit == FIRST


def test_a_pause_is_not_taken_for_a_slow_line():
    line = Line()
    for now in range(1000, 60_000, 1000):
        line.look(0, 0, now * MS)
        line.look(5000, 5000, (now + 1) * MS)
    assert line.limit == FIRST


def test_nobody_looks_while_the_host_can_only_hold_little():
    line = Line()
    line.look(0, 0, MS)
    assert not line.look_due(2 * MS)
    assert line.look_due(22 * MS)
    line.look(1000, FIRST // 2, 3 * MS)
    assert line.look_due(3 * MS)


looks = st.lists(
    st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40), st.booleans())
)


@given(looks)
def test_the_limit_stays_between_its_bounds_whatever_is_seen(seen):
    line, now = Line(), 1
    for sent, held, later, met in seen:
        now += later
        if met:
            line.meet()
        line.look(sent, held, now)
        assert LEAST <= line.limit <= MOST
