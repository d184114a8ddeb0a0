"""A link that stands still, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.wire.standstill import (
    ASK_AFTER_S,
    CHECK_INTERVAL_S,
    STANDS_AFTER_S,
    Finding,
    Readings,
    Standstill,
)

LATEST_S = STANDS_AFTER_S + 2 * CHECK_INTERVAL_S


@dataclass
class Link:
    """What TCP and the data plane would say, changed by `each` before each look."""

    now: float = 100.0
    log: list[tuple[float, Finding]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.readings = Readings(-1e9, -1e9, 0, in_flight=False, queued=False)
        self.start = self.now
        self.machine = Standstill(self.now)

    def run(self, seconds: float, **each: Callable[[float], object]) -> None:
        """Follow next_timeout(); `each` gives readings by name, of the seconds since the start."""
        until = self.now + seconds
        while (due := self.machine.next_timeout()) <= until:
            self.now = due
            changes = {name: of(self.now - self.start) for name, of in each.items()}
            self.readings = replace(self.readings, **changes)
            finding = self.machine.check(self.now, self.readings)
            if finding is not None:
                self.log.append((self.now - self.start, finding))

    def times(self, finding: Finding) -> list[float]:
        return [when for when, found in self.log if found is finding]


def at(seconds: float) -> float:
    return 100.0 + seconds


def test_a_link_that_answers_or_has_nothing_to_say_is_left_alone() -> None:
    link = Link()
    link.run(600)
    link.run(600, data_sent_at=at, heard_at=at, acked_bytes=int, in_flight=lambda t: True)
    assert link.log == []


def test_bytes_that_nobody_acknowledges_are_noticed_though_the_peer_is_heard() -> None:
    link = Link()
    link.run(60, data_sent_at=at, heard_at=at, in_flight=lambda t: True)
    [when] = link.times(Finding.STANDS)
    assert STANDS_AFTER_S <= when <= LATEST_S


def test_a_peer_that_falls_silent_is_asked_and_then_the_link_stands() -> None:
    link = Link()
    link.run(60, data_sent_at=at, heard_at=lambda t: at(min(t, 10.0)), acked_bytes=int)
    [asked], [stands] = link.times(Finding.ASK), link.times(Finding.STANDS)
    assert 10 + ASK_AFTER_S <= asked <= 10 + ASK_AFTER_S + 2 * CHECK_INTERVAL_S
    assert stands <= 10 + LATEST_S


def test_a_question_that_is_still_queued_behind_data_is_waited_for() -> None:
    link = Link()
    link.run(
        60, data_sent_at=at, heard_at=lambda t: at(0), acked_bytes=int, queued=lambda t: t < 40
    )
    [stands] = link.times(Finding.STANDS)
    assert stands >= 40


def test_a_slow_link_that_gets_somewhere_does_not_stand() -> None:
    link = Link()
    link.run(120, data_sent_at=at, heard_at=at, acked_bytes=lambda t: int(t / 5), in_flight=bool)
    assert link.log == []


def test_a_link_that_goes_on_after_all_is_told_once_and_watched_again() -> None:
    link = Link()
    link.run(30, in_flight=lambda t: True)
    link.run(10, acked_bytes=int)
    link.run(30, acked_bytes=lambda t: 40)
    assert [finding for _, finding in link.log] == [
        Finding.STANDS,
        Finding.MOVES,
        Finding.STANDS,
    ]


def test_the_time_in_which_our_own_process_stood_still_does_not_count() -> None:
    link = Link()
    link.run(3, data_sent_at=at, in_flight=lambda t: True)
    link.now += 60  # SIGSTOP
    assert link.machine.check(link.now, link.readings) is None
    link.run(1.5)
    assert link.times(Finding.STANDS) == []


@given(
    st.lists(
        st.tuples(st.floats(0.01, 30), st.booleans(), st.booleans(), st.booleans(), st.booleans()),
        max_size=60,
    )
)
def test_stands_and_moves_take_turns_and_no_look_comes_early(steps) -> None:
    machine, now, told = Standstill(0.0), 0.0, []
    readings = Readings(-1.0, -1.0, 0, in_flight=False, queued=False)
    for pause, sends, hears, acks, queued in steps:
        now += pause
        readings = Readings(
            now if sends else readings.data_sent_at,
            now if hears else readings.heard_at,
            readings.acked_bytes + acks,
            in_flight=sends,
            queued=queued,
        )
        finding = machine.check(now, readings)
        assert now < machine.next_timeout() <= now + 1.05 * CHECK_INTERVAL_S
        if finding in (Finding.STANDS, Finding.MOVES):
            told.append(finding)
    assert told == [Finding.STANDS, Finding.MOVES] * (len(told) // 2) + [Finding.STANDS] * (
        len(told) % 2
    )


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.booleans(), st.booleans(), st.booleans(), st.booleans()),
        max_size=40,
    )
)
def test_looks_that_were_left_out_because_nothing_was_new_change_nothing(steps) -> None:
    logs = []
    for lazy in (False, True):
        machine, now, log = Standstill(0.0), 0.0, []
        readings = seen = Readings(-1.0, -1.0, 0, in_flight=False, queued=False)
        for seconds, sends, hears, acks, queued in steps:
            for _ in range(seconds):
                now += 1.0
                if lazy and readings == seen and machine.quiet(now):
                    continue
                log.append((now, machine.check(now, readings)))
                seen = readings
            readings = Readings(
                now + 0.25 if sends else readings.data_sent_at,
                now + 0.5 if hears else readings.heard_at,
                readings.acked_bytes + acks,
                in_flight=sends,
                queued=queued,
            )
        logs.append([entry for entry in log if entry[1] is not None])
    assert logs[0] == logs[1]


def test_a_link_at_rest_need_not_be_looked_at() -> None:
    machine = Standstill(0.0)
    machine.check(1.0, Readings(-1.0, -1.0, 0, in_flight=False, queued=False))
    assert all(machine.quiet(float(second)) for second in range(2, 100))
    machine.check(100.0, Readings(99.0, -1.0, 0, in_flight=True, queued=False))
    assert not machine.quiet(101.0)
