"""What waits for a slow WebSocket link: whose turn it is, what is dropped, where it lies."""

from __future__ import annotations

import struct
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shadowmesh.fast.hooks import queues as hooks
from tests.twins.flow_queue import INTERVAL_NS, QUANTUM, TARGET_NS, FlowQueues

FLOWS = hooks.SIZES["FLOWS"]
PARKED_FRAMES = hooks.SIZES["PARKED_FRAMES"]
BATCH_FRAMES = hooks.SIZES["BATCH_FRAMES"]
MS = 1_000_000


def frame_of(port: int, number: int, length: int = 100) -> bytes:
    """A UDP datagram of the flow `port`, unlike all others by its number."""
    ethernet = bytes(12) + b"\x08\x00"
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    head = ethernet + ip + struct.pack(">HHHHQ", port, 9, 0, 0, number)
    return head + bytes(max(0, length - len(head)))


def bucket(frame: bytes) -> int:
    return hooks.flow_hash(frame) % FLOWS


def drain(backlog: hooks.Backlog, now: int = 1) -> list[bytes]:
    """Take all that waits, in turns."""
    frames = []
    while True:
        frame, dropped = backlog.next(now, False)
        assert dropped == 0
        if frame is None:
            return frames
        backlog.take()
        frames.append(frame)


def test_a_flow_that_has_nothing_waiting_goes_before_a_long_queue():
    backlog = hooks.Backlog()
    bulk = [frame_of(1, number, 1500) for number in range(40)]
    assert backlog.park(bulk, 1)
    assert backlog.next(1, False)[0] == bulk[0]
    backlog.take()
    key_press = frame_of(2, 0)
    assert backlog.park([key_press], 2)
    # The bulk's first turn was a frame; it is at the end of its turn now.
    assert drain(backlog) == [bulk[1], key_press, *bulk[2:]]


def test_a_flow_that_comes_new_goes_before_all_that_have_had_their_turn():
    backlog = hooks.Backlog()
    assert bucket(frame_of(1, 0)) != bucket(frame_of(3, 0))
    backlog.park([frame_of(port, number, 1500) for port in (1, 3) for number in range(5)], 1)
    for _ in range(4):  # two of each: their deficits are used up
        backlog.next(1, False)
        backlog.take()
    backlog.park([frame_of(2, 0)], 2)
    assert drain(backlog)[0] == frame_of(2, 0)


def test_two_long_queues_share_in_bytes_and_not_in_frames():
    backlog = hooks.Backlog()
    large = [frame_of(1, number, 1500) for number in range(20)]
    small = [frame_of(2, number, 150) for number in range(60)]
    assert bucket(large[0]) != bucket(small[0])
    assert backlog.park([*large[:10], *small[:50]], 1)
    assert backlog.park([*large[10:], *small[50:]], 1)
    first = drain(backlog)[:33]
    sent = {
        port: sum(len(f) for f in first if f in frames)
        for port, frames in (("large", large), ("small", small))
    }
    assert abs(sent["large"] - sent["small"]) <= 2 * QUANTUM


def test_the_frames_of_a_flow_keep_their_order():
    backlog = hooks.Backlog()
    frames = [frame_of(number % 7, number, 60 + number * 31 % 1400) for number in range(500)]
    for at in range(0, 250, 50):
        assert backlog.park(frames[at : at + 50], at)
    for at in range(250, 500):
        assert backlog.park_copy(frames[at], at)
    for _ in range(100):
        assert backlog.move_oldest()
    out = drain(backlog)
    assert sorted(out) == sorted(frames)
    for port in range(7):
        mine = [frame for number, frame in enumerate(frames) if number % 7 == port]
        assert [frame for frame in out if frame in mine] == mine


def test_a_queue_that_stays_long_loses_its_first_frame_after_the_interval():
    backlog = hooks.Backlog()
    frames = [frame_of(1, number) for number in range(20)]
    backlog.park(frames, 0)
    assert backlog.next(TARGET_NS - 1, True) == (frames[0], 0)
    assert backlog.next(TARGET_NS, True) == (frames[0], 0)  # the interval begins
    assert backlog.next(TARGET_NS + INTERVAL_NS - 1, True) == (frames[0], 0)
    assert backlog.next(TARGET_NS + INTERVAL_NS, True) == (frames[1], 1)
    # ... the second one interval later, the third sooner.
    assert backlog.next(TARGET_NS + 2 * INTERVAL_NS - 1, True) == (frames[1], 0)
    assert backlog.next(TARGET_NS + 2 * INTERVAL_NS, True) == (frames[2], 1)
    assert backlog.next(TARGET_NS + 2 * INTERVAL_NS + 142 * MS, True) == (frames[3], 1)


def test_the_last_frame_of_a_flow_is_never_dropped():
    backlog = hooks.Backlog()
    frame = frame_of(1, 0)
    backlog.park([frame], 0)
    for now in range(0, 5_000 * MS, 50 * MS):
        assert backlog.next(now, True) == (frame, 0)


def test_on_a_fast_link_nothing_is_dropped_however_long_it_waits():
    backlog = hooks.Backlog()
    frames = [frame_of(1, number) for number in range(20)]
    backlog.park(frames, 0)
    for now in range(0, 5_000 * MS, 50 * MS):
        assert backlog.next(now, False) == (frames[0], 0)


def test_the_arena_takes_no_more_until_the_oldest_has_gone():
    backlog = hooks.Backlog()
    number = 0
    while backlog.park([frame_of(1, number, 60_000)], 0):
        number += 1
    assert number >= 5  # a batch, and what waits of the last one
    assert not backlog.park([frame_of(2, 0)], 0)
    assert backlog.shed() == frame_of(1, 0, 60_000)
    while not backlog.park([frame_of(2, 0)], 0):
        backlog.shed()
    assert frame_of(2, 0) in drain(backlog)


def test_copies_take_nothing_of_the_arena_and_have_a_limit_of_their_own():
    backlog = hooks.Backlog()
    number = 0
    while backlog.park_copy(frame_of(1, number, 60_000), 0):
        number += 1
    assert number * 60_000 <= backlog.copied <= hooks.SIZES["LANE_BYTES"]
    assert number == 17  # a MiB
    assert backlog.park([frame_of(2, 0)], 0)
    assert backlog.shed() == frame_of(1, 0, 60_000)
    assert backlog.park_copy(frame_of(1, number, 60_000), 0)
    drain(backlog)
    assert backlog.copied == 0


def test_small_copies_are_counted_by_number():
    backlog = hooks.Backlog()
    for number in range(hooks.SIZES["LANE_FRAMES"]):
        assert backlog.park_copy(frame_of(number % 5, number), 0)
    assert not backlog.park_copy(frame_of(0, 0), 0)


def test_what_has_been_in_the_arena_for_longest_makes_room_and_keeps_its_place():
    backlog = hooks.Backlog()
    frames = []
    while backlog.park([frame_of(len(frames) % 2, len(frames), 60_000)], 0):
        frames.append(frame_of(len(frames) % 2, len(frames), 60_000))
    assert backlog.move_oldest()
    assert backlog.copied == 60_001
    while not backlog.park([frame_of(1, len(frames), 60_000)], 0):
        assert backlog.move_oldest()
    frames.append(frame_of(1, len(frames), 60_000))
    out = drain(backlog)
    for port in range(2):
        mine = [
            frame for frame in frames if frame in out and frame[34:36] == frame_of(port, 0)[34:36]
        ]
        assert [frame for frame in out if frame in mine] == mine
    assert sorted(out) == sorted(frames)


def test_the_list_takes_no_more_when_a_batch_would_not_fit():
    backlog = hooks.Backlog()
    batches = 0
    while backlog.park([frame_of(port, batches) for port in range(BATCH_FRAMES)], 0):
        batches += 1
    assert backlog.waiting[0] == batches * BATCH_FRAMES <= PARKED_FRAMES
    assert backlog.waiting[0] > PARKED_FRAMES - BATCH_FRAMES


def test_between_two_frames_there_is_room_for_the_header_of_a_fragment():
    # it is written in front of a slice of the second, when the first may not have been sealed
    header = hooks.SIZES["FRAGMENT_HEADER_BYTES"]
    assert min(hooks.stride(size) - size for size in range(1, 66_000)) >= header


def test_an_empty_backlog_has_nothing_to_send_or_to_shed():
    backlog = hooks.Backlog()
    assert backlog.next(1, True) == (None, 0)
    assert backlog.shed() is None
    assert backlog.waiting == (0, 0)


class Model(RuleBasedStateMachine):
    """The backlog beside its slow twin; time only goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = hooks.Backlog()
        self.twin = FlowQueues()
        self.now = 1
        self.number = 0

    @rule(
        frames=st.lists(
            st.tuples(st.integers(1, 5), st.sampled_from([50, 100, 1400, 1500, 9000, 60_000])),
            min_size=1,
            max_size=8,
        )
    )
    def park(self, frames: list[tuple[int, int]]) -> None:
        batch, total = [], 0
        for port, length in frames:
            total += length + 128
            if total < 65_000:
                self.number += 1
                batch.append(frame_of(port, self.number, length))
        if self.backlog.park(batch, self.now):
            for frame in batch:
                self.twin.park(bucket(frame), frame, self.now)

    @rule(port=st.integers(1, 5), length=st.sampled_from([50, 1400, 60_000]))
    def park_copy(self, port: int, length: int) -> None:
        self.number += 1
        frame = frame_of(port, self.number, length)
        if self.backlog.park_copy(frame, self.now):
            self.twin.park(bucket(frame), frame, self.now)

    @rule()
    def move_oldest(self) -> None:
        self.backlog.move_oldest()

    @rule(taking=st.booleans(), dropping=st.booleans())
    def send(self, taking: bool, dropping: bool) -> None:
        found = self.backlog.next(self.now, dropping)
        assert found == self.twin.next(self.now, dropping=dropping)
        if taking and found[0] is not None:
            self.backlog.take()
            self.twin.take()

    @rule(count=st.integers(1, 6), step_ms=st.integers(0, 30))
    def send_some(self, count: int, step_ms: int) -> None:
        for _ in range(count):
            self.now += step_ms * MS
            self.send(taking=True, dropping=True)

    @rule(ms=st.sampled_from([0, 1, 21, 80, 300, 4000]))
    def wait(self, ms: int) -> None:
        self.now += ms * MS

    @rule()
    def shed(self) -> None:
        assert self.backlog.shed() == self.twin.shed()

    @invariant()
    def counts_agree(self) -> None:
        assert self.backlog.waiting == self.twin.waiting


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("most", [PARKED_FRAMES, 3])
def test_numbers_and_arena_go_round_many_times(most):
    backlog, waiting, sent = hooks.Backlog(), deque(), 0
    for number in range(20_000):
        frame = frame_of(1, number, 50 + number * 37 % 900)
        while len(waiting) >= most or not backlog.park([frame], 0):
            assert backlog.next(1, False)[0] == waiting.popleft()
            backlog.take()
            sent += 1
        waiting.append(frame)
    assert sent >= 20_000 - PARKED_FRAMES
