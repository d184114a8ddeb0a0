"""Liveness of the WSS link, driven through virtual hours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.wire.liveness import Action, Dead, Liveness, SendKeepalive, SendProbe

NEVER = -1e9


@dataclass
class Link:
    """A link in virtual time: what the data plane would report, and what Liveness did."""

    keepalive_s: float = 30.0
    read_timeout_s: float = 60.0
    now: float = 1000.0
    data_sent_at: float = NEVER
    heard_at: float = NEVER
    log: list[tuple[float, Action]] = field(default_factory=list)
    on_probe: Callable[[float], None] = lambda _now: None

    def __post_init__(self) -> None:
        self.start = self.now
        self.liveness = Liveness(self.keepalive_s, self.read_timeout_s, self.now)

    def check(self) -> None:
        for action in self.liveness.check(
            self.now, data_sent_at=self.data_sent_at, heard_at=self.heard_at
        ):
            self.log.append((self.now - self.start, action))
            if isinstance(action, SendProbe):
                self.on_probe(self.now)

    def run(self, until: float, each: Callable[[float], None] = lambda _now: None) -> None:
        """Follow next_timeout() until a time after the start, or death."""
        while (due := self.liveness.next_timeout()) is not None:
            assert due > self.now or not self.log or self.log[-1][0] < due - self.start
            if due - self.start > until:
                self.now = self.start + until
                return
            self.now = max(self.now, due)
            each(self.now)
            self.check()

    def times(self, kind: type[Action]) -> list[float]:
        return [when for when, action in self.log if isinstance(action, kind)]


def test_silence_on_our_side_sends_keepalives_for_hours() -> None:
    link = Link()

    def peer_speaks(now: float) -> None:
        link.heard_at = now

    link.run(7200, peer_speaks)
    assert link.times(SendKeepalive) == [30.0 * n for n in range(1, 241)]
    assert link.times(SendProbe) == link.times(Dead) == []


def test_sending_data_takes_the_place_of_keepalives() -> None:
    link = Link()

    def both_speak(now: float) -> None:
        link.data_sent_at = now - 0.5
        link.heard_at = now - 0.2

    link.run(3600, both_speak)
    assert link.log == []


def test_traffic_without_an_answer_is_probed_at_15_s_and_dead_at_25_s() -> None:
    link = Link()

    def we_send(now: float) -> None:
        link.data_sent_at = now - 0.01

    link.run(300, we_send)
    assert link.times(SendProbe) == [pytest.approx(15, abs=1.1)]
    assert link.times(Dead) == [pytest.approx(25, abs=1.1)]
    assert link.times(Dead)[0] <= 25.0
    assert link.liveness.next_timeout() is None
    assert link.liveness.check(link.now + 1, data_sent_at=0, heard_at=0) == []


def test_one_unanswered_frame_after_idle_time_is_not_probed_at_once() -> None:
    link = Link(keepalive_s=1000)

    def one_frame(now: float) -> None:
        if link.data_sent_at == NEVER and now - link.start >= 40:
            link.data_sent_at = now

    link.heard_at = link.now
    link.run(300, one_frame)
    # read_timeout would come first: idle probe at 50 s, dead at 60 s
    assert link.times(SendProbe) == [50.0]
    assert link.times(Dead) == [60.0]


def test_without_traffic_the_peer_is_dead_after_read_timeout() -> None:
    link = Link(keepalive_s=20)
    link.run(300)
    assert link.times(SendKeepalive) == [20.0, 40.0]  # the probe at 50 s is not silence either
    assert link.times(SendProbe) == [50.0]
    assert link.times(Dead) == [60.0]


def test_an_answered_probe_keeps_the_link() -> None:
    link = Link()

    def answer(now: float) -> None:
        link.heard_at = now + 0.1

    link.on_probe = answer
    link.run(3600)
    assert link.times(Dead) == []
    assert link.times(SendProbe)[:2] == [50.0, pytest.approx(100.1)]


def test_a_one_way_stream_probes_once_each_15_s_and_no_more() -> None:
    link = Link(keepalive_s=1000)

    def we_send(now: float) -> None:
        link.data_sent_at = now - 0.01

    def answer(now: float) -> None:
        link.heard_at = now + 0.05

    link.on_probe = answer
    link.run(600, we_send)
    assert link.times(Dead) == []
    assert 37 <= len(link.times(SendProbe)) <= 44


@pytest.mark.parametrize("stop_s", [5.0, 12.0, 40.0, 100.0])
def test_a_process_that_was_stopped_asks_before_it_gives_up(stop_s: float) -> None:
    link = Link()

    def we_send(now: float) -> None:
        link.data_sent_at = now - 0.01

    link.run(15.0, we_send)  # about to probe, or just probed
    link.now += stop_s
    link.check()
    assert link.times(Dead) == []
    resumed = link.now - link.start
    link.heard_at = link.now + 0.1  # the answer that waited in the socket
    link.run(resumed + 12)
    assert link.times(Dead) == []


def test_a_stopped_process_that_hears_nothing_gives_up_10_s_later() -> None:
    link = Link()
    link.run(55)  # idle probe at 50 s is out
    assert link.times(SendProbe) == [50.0]
    link.now += 100
    link.check()
    assert link.times(SendProbe) == [50.0, 155.0]
    link.run(400)
    assert link.times(Dead) == [165.0]


def test_a_short_read_timeout_does_not_probe_without_pause() -> None:
    link = Link(read_timeout_s=5, keepalive_s=1000)

    def answer(now: float) -> None:
        link.heard_at = now + 0.01

    link.on_probe = answer
    link.run(100)
    assert len(link.times(SendProbe)) <= 40
    assert link.times(Dead) == []


@given(
    st.lists(st.tuples(st.floats(0.01, 20), st.booleans(), st.booleans()), max_size=200),
    st.floats(0.5, 60),
    st.floats(0.5, 120),
)
def test_nobody_who_was_heard_in_the_last_10_s_is_dead(
    steps: list[tuple[float, bool, bool]], keepalive_s: float, read_timeout_s: float
) -> None:
    link = Link(keepalive_s, read_timeout_s)
    for pause, sent, heard in steps:
        link.run(link.now - link.start + pause)
        if link.times(Dead):
            assert link.times(Dead)[0] + link.start - max(link.heard_at, link.start) >= 10
            return
        if sent:
            link.data_sent_at = link.now
        if heard:
            link.heard_at = link.now


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), max_size=60))
def test_looks_that_were_left_out_because_nothing_was_new_change_nothing(
    steps: list[tuple[int, bool, bool]],
) -> None:
    logs: list[list[tuple[float, Action]]] = []
    for lazy in (False, True):
        link, left_out, seen = Link(), 0, (0.0, 0.0)
        for seconds, sent, heard in steps:
            for _ in range(seconds):
                link.now += 1.0
                now_seen = (link.data_sent_at, link.heard_at)
                if lazy and now_seen == seen and link.liveness.quiet(link.now):
                    left_out += 1
                    continue
                link.check()
                seen = now_seen
            if sent:
                link.data_sent_at = link.now + 0.25
            if heard:
                link.heard_at = link.now + 0.5
        logs.append(link.log)
    assert logs[0] == logs[1]


def test_most_looks_at_an_idle_link_are_left_out() -> None:
    link = Link()
    link.check()
    assert sum(link.liveness.quiet(link.start + second) for second in range(1, 100)) == 29
