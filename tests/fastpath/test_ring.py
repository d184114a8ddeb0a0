"""The ring between the sealing side and the writer: order, wrap-around, wakeups."""

from __future__ import annotations

import select
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shadowmesh.fast.hooks import queues as hooks

RING_BYTES = hooks.SIZES["RING_BYTES"]
RING_MESSAGES = hooks.SIZES["RING_MESSAGES"]
FIRST_LIMIT = hooks.SIZES["FIRST_LIMIT"]
MIN_LIMIT = hooks.SIZES["MIN_LIMIT"]
KEPT_BYTES = hooks.SIZES["KEPT_BYTES"]
PAGE_BYTES = hooks.SIZES["PAGE_BYTES"]


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def pattern(start: int, length: int) -> bytes:
    """Bytes that say where in the stream they belong."""
    return bytes((start + i) % 251 for i in range(min(length, 251))) * (length // 251 + 1)


# --- One side after the other -------------------------------------------------------------------


def test_an_empty_ring_takes_its_size():
    ring = hooks.Ring()
    assert ring.space() == RING_BYTES
    assert ring.commit(bytes(RING_BYTES))
    assert ring.space() == 0
    assert not ring.commit(b"x")
    assert ring.peek() == bytes(RING_BYTES)


def test_a_full_ring_that_was_read_takes_a_message_from_the_front():
    ring = hooks.Ring()
    ring.commit(bytes(RING_BYTES))
    ring.consume(RING_BYTES)
    assert ring.commit(b"front")
    assert ring.peek() == b"front"


def test_an_emptied_ring_always_has_half_of_its_size_in_one_piece():
    ring = hooks.Ring()
    for size in (RING_BYTES // 2, RING_BYTES // 2 - 1, 1, 4096, RING_BYTES // 2 - 1):
        assert ring.space() >= RING_BYTES // 2 - 1
        assert ring.commit(bytes(size)), size
        ring.consume(size)


def test_a_message_never_wraps():
    ring = hooks.Ring()
    assert ring.commit(b"a" * (RING_BYTES - 10))
    ring.consume(RING_BYTES - 10)
    assert ring.commit(b"b" * 11)  # ten bytes are left at the end
    assert ring.commit(b"c")
    assert ring.peek() == b"b" * 11 + b"c"


def test_the_front_is_read_after_the_end():
    ring = hooks.Ring()
    assert ring.commit(b"a" * (RING_BYTES - 10))
    ring.consume(RING_BYTES - 20)
    assert ring.commit(b"b" * 50)
    assert ring.peek() == b"a" * 10
    ring.consume(10)
    assert ring.peek() == b"b" * 50


def test_the_writer_never_catches_up_with_the_reader():
    # one byte stays free, else a full ring would look like an empty one
    ring = hooks.Ring()
    assert ring.commit(b"a" * RING_BYTES)
    ring.consume(100)
    assert ring.space() == 99
    assert ring.commit(b"b" * 99)
    assert ring.space() == 0
    assert ring.peek() == b"a" * (RING_BYTES - 100)


def test_more_messages_than_entries_are_refused_until_one_has_gone():
    ring = hooks.Ring()
    for _ in range(RING_MESSAGES):
        assert ring.commit(b"xy")
    assert ring.space() == 0
    assert not ring.commit(b"xy")
    ring.consume(1)
    assert ring.space() == 0
    ring.consume(1)
    assert ring.commit(b"xy")
    assert len(ring.peek()) == 2 * RING_MESSAGES


def test_a_frame_counts_as_gone_with_the_last_byte_of_its_message():
    ring = hooks.Ring()
    ring.commit(b"12345", 3)
    ring.commit(b"67", 4)
    assert ring.frames == (7, 0)
    ring.consume(4)
    assert ring.frames == (7, 0)
    ring.consume(2)
    assert ring.frames == (7, 3)
    ring.consume(1)
    assert ring.frames == (7, 7)


class RingModel(RuleBasedStateMachine):
    """The ring against a list of messages: the same bytes, in order, and never a lost wakeup."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = hooks.Ring()
        self.messages: list[tuple[bytes, int]] = []
        self.partial = 0  # bytes of messages[0] that have gone
        self.total = 0
        self.frames = [0, 0]
        self.sleeps = True  # a new link has nothing to send
        self.starved = False

    def waiting(self) -> bytes:
        return b"".join(message for message, _ in self.messages)[self.partial :]

    @rule(
        size=st.one_of(
            st.integers(1, 300),
            st.integers(1, 80_000),
            st.integers(RING_BYTES // 2 - 3, RING_BYTES),
        ),
        frames=st.integers(0, 64),
    )
    def commit(self, size: int, frames: int) -> None:
        space = self.ring.space()
        message = pattern(self.total, size)[:size]
        assert self.ring.commit(message, frames) == (size <= space)
        if size > space:
            assert self.messages or size > RING_BYTES // 2 - 1
            return
        self.messages.append((message, frames))
        self.frames[0] += frames
        self.total += size
        if self.sleeps:
            assert readable(self.ring.wakeup_fd)

    @rule()
    def commit_all_there_is_room_for(self) -> None:
        if size := self.ring.space():
            self.commit(size, 1)

    @rule(share=st.floats(0, 1))
    def consume(self, share: float) -> None:
        ready = self.ring.peek()
        waiting = self.waiting()
        assert waiting.startswith(ready)
        assert bool(ready) == bool(waiting)
        self.sleeps = not ready
        size = round(share * len(ready))
        self.ring.consume(size)
        self.partial += size
        while self.messages and self.partial >= len(self.messages[0][0]):
            self.partial -= len(self.messages[0][0])
            self.frames[1] += self.messages.pop(0)[1]
        if not self.messages:
            self.sleeps = False  # consuming does not put the writer to sleep, looking does
        if size and self.starved and self.ring.space() >= RING_BYTES // 4:
            assert readable(self.ring.space_fd)

    @precondition(lambda self: not self.starved)
    @rule()
    def starve(self) -> None:
        self.starved = self.ring.starve()
        assert self.starved == (self.ring.space() < RING_BYTES // 4)

    @precondition(lambda self: self.starved)
    @rule()
    def wake(self) -> None:
        if readable(self.ring.space_fd):
            self.starved = False
            with open(self.ring.space_fd, "rb", buffering=0, closefd=False) as fd:
                fd.read(8)

    @invariant()
    def frames_agree(self) -> None:
        assert self.ring.frames == tuple(self.frames)


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


# --- How much may wait ----------------------------------------------------------------------------


def drain(ring: hooks.Ring, per_second: float, seconds: float, began_ns: int, piece: int) -> int:
    """Take pieces at this rate out of a ring that is never empty; return the time at the end."""
    now = began_ns
    ring.commit(bytes(2 * piece))
    while now < began_ns + seconds * 1e9:
        ring.commit(bytes(piece))
        taken = min(piece, len(ring.peek()))  # less at the end of the block
        now += round(taken / per_second * 1e9)
        ring.consume(taken, now)
    return now


@pytest.mark.parametrize("per_second", [1e4, 1e6, 5e6, 1e9])
def test_what_leaves_in_ten_milliseconds_may_wait(per_second):
    ring = hooks.Ring(RING_BYTES)
    drain(ring, per_second, max(0.5, 60 * 4096 / per_second), 1, 4096)
    wanted = min(max(0.01 * per_second, MIN_LIMIT), RING_BYTES)
    assert ring.limit == pytest.approx(wanted, rel=0.05)


def test_the_limit_follows_a_link_that_becomes_faster_or_slower():
    ring = hooks.Ring(RING_BYTES)
    now = drain(ring, 1e6, 1.0, 1, 4096)
    assert ring.limit < 15_000
    now = drain(ring, 1e9, 0.2, now, 65_536)
    assert ring.limit > 0.9 * RING_BYTES
    drain(ring, 1e6, 1.0, now, 4096)
    assert ring.limit < 15_000


def test_one_late_moment_of_the_writer_counts_for_half():
    ring = hooks.Ring(RING_BYTES)
    ring.commit(bytes(200_000))
    ring.consume(1, 1)
    ring.consume(100_000, 100_000_001)  # 1 MB/s
    assert ring.limit == pytest.approx((RING_BYTES + 10_000) / 2, rel=0.01)


def test_a_link_that_is_full_and_empty_at_once_is_given_more_each_time():
    ring = hooks.Ring(FIRST_LIMIT)
    limits = []
    for now in range(1, 10):
        size = min(ring.limit, RING_BYTES // 2 - 1)
        assert ring.commit(bytes(size))
        ring.starve()
        ring.consume(size, now)
        assert ring.peek() == b""
        limits.append(ring.limit)
    assert limits[:2] == [2 * FIRST_LIMIT, 4 * FIRST_LIMIT]
    assert limits[-2:] == [RING_BYTES, RING_BYTES]


def test_a_link_that_has_little_to_send_is_not_given_more():
    ring = hooks.Ring(FIRST_LIMIT)
    for now in range(1, 1000):
        ring.commit(bytes(100))
        ring.consume(100, now)
        assert ring.peek() == b""
    assert ring.limit == FIRST_LIMIT


def test_a_producer_at_the_limit_is_woken_when_a_quarter_of_it_is_free():
    ring = hooks.Ring(40_000)
    ring.commit(bytes(50_000))
    assert ring.allowance() == 0
    assert ring.starve()
    ring.consume(19_999)
    assert not readable(ring.space_fd)
    ring.consume(1)
    assert readable(ring.space_fd)
    assert ring.allowance() == 10_000


def test_what_waits_is_counted_around_the_end_of_the_ring():
    ring = hooks.Ring(RING_BYTES)
    ring.commit(b"a" * (RING_BYTES - 10))
    ring.consume(RING_BYTES - 20)
    ring.commit(b"b" * 50)
    assert ring.allowance() == RING_BYTES - 10 - 50


@pytest.mark.parametrize(
    ("limit", "piece"),
    [
        (MIN_LIMIT, 4096),
        (65_535, 4096),
        (65_536, 8192),
        (RING_BYTES - 1, 32_768),
        (RING_BYTES, 131_072),
    ],
)
def test_a_piece_is_a_part_of_the_limit_in_powers_of_two(limit, piece):
    assert hooks.Ring(limit).piece == piece


# --- Wakeups ------------------------------------------------------------------------------------


def test_a_commit_wakes_a_writer_that_found_nothing():
    ring = hooks.Ring()
    assert ring.peek() == b""
    assert not readable(ring.wakeup_fd)
    ring.commit(b"message")
    assert readable(ring.wakeup_fd)


def test_a_commit_leaves_a_busy_writer_alone():
    ring = hooks.Ring()
    ring.commit(b"one")
    assert ring.peek() == b"one"
    ring.consume(3)
    assert ring.peek() == b""  # drains the eventfd and goes to sleep
    ring.commit(b"two")
    assert readable(ring.wakeup_fd)
    assert ring.peek() == b"two"
    ring.commit(b"three")
    assert not readable(ring.wakeup_fd)
    ring.consume(8)
    assert ring.peek() == b""
    assert not readable(ring.wakeup_fd)


def test_a_producer_without_space_is_woken_when_a_quarter_is_free():
    ring = hooks.Ring()
    ring.commit(bytes(RING_BYTES))
    assert ring.starve()
    ring.consume(RING_BYTES // 4)
    assert not readable(ring.space_fd)
    ring.consume(1)
    assert readable(ring.space_fd)


def test_a_producer_does_not_wait_for_space_that_came_before_it_said_that_it_would():
    # found no space; then, before the flag was up, the writer sent all there was
    ring = hooks.Ring()
    ring.commit(bytes(RING_BYTES))
    assert ring.space() == 0
    ring.consume(RING_BYTES)
    assert not ring.starve()
    ring.commit(b"x")
    ring.consume(1)
    assert not readable(ring.space_fd)  # the flag is down again


def test_two_threads_lose_no_byte_and_no_wakeup():
    # a lost wakeup shows as a wait of a second, which either side gives up
    messages = 40_000
    ring = hooks.Ring()
    produced: list[int] = []
    thread = threading.Thread(target=lambda: produced.append(ring.produce(messages, 1, 1000)))
    thread.start()
    got = ring.drain(messages, 2, 1000)
    thread.join()
    assert produced == [messages]
    assert got[0] == messages
    assert got[2] == 0
    assert ring.frames == (messages, messages)


@pytest.mark.parametrize("length", [1, 2, 3, 64])
def test_queued_bytes_leave_in_any_pieces(length):
    ring = hooks.Ring()
    stream = b"".join(pattern(i, i % 40 + 1)[: i % 40 + 1] for i in range(200))
    at = 0
    for i in range(200):
        ring.commit(pattern(i, i % 40 + 1)[: i % 40 + 1])
    while ready := ring.peek():
        piece = ready[:length]
        assert stream[at : at + len(piece)] == piece
        ring.consume(len(piece))
        at += len(piece)
    assert at == len(stream)


def test_an_idle_ring_touches_no_new_memory():
    # 54 KB of it per thousand small records looked like a leak until the ring was through once
    ring = hooks.Ring()
    message = b"x" * 100
    for _ in range(3000):
        assert ring.commit(message, 1)
        assert ring.peek() == message
        ring.consume(len(message))
        assert ring.peek() == b""
    assert max(ring.touched) <= 2 * PAGE_BYTES


def test_the_memory_of_a_burst_is_given_back_when_the_ring_is_empty():
    ring = hooks.Ring()
    message = b"x" * 40
    while ring.commit(message, 1):
        pass
    in_use = ring.touched
    assert min(in_use) > 100 * 1024
    ring.give_back()
    assert ring.touched == in_use  # it is full
    while ready := ring.peek():
        ring.consume(len(ready))
    ring.give_back()
    assert max(ring.touched) <= KEPT_BYTES
    assert ring.space() == RING_BYTES
    assert ring.commit(b"on", 1)
    assert ring.peek() == b"on"


def test_a_ring_that_began_again_between_two_looks_has_moved():
    ring = hooks.Ring()
    assert ring.commit(bytes(5000), 1)
    before = ring.position
    while ready := ring.peek():
        ring.consume(len(ready))
    assert ring.commit(bytes(5000), 1)
    assert ring.position != before
