"""The ring of captured frames: bounded, in order, wiped, and no writer waits for another."""

from __future__ import annotations

import select
import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shadowmesh.fast.hooks import queues as hooks
from tests.fastpath.rig import vnet
from tests.twins.capture import HEADER_BYTES, RING_BYTES, Captured, CaptureRing, place_bytes

WHOLE = 262_144
IN, OUT = 1, 2


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def take(ring: hooks.CaptureRing) -> Captured | None:
    found = ring.take()
    return None if found is None else Captured(*found[1:])


def filled(snap_bytes: int = WHOLE) -> hooks.CaptureRing:
    """A ring that has no room for a frame of 64 KiB any more, and 63 in it."""
    ring = hooks.CaptureRing(snap_bytes)
    while ring.dropped == 0:
        ring.put(OUT, [bytes(65_536)])
    return ring


# --- One after the other ------------------------------------------------------------------------


def test_the_ring_has_the_size_that_the_twin_has():
    assert hooks.SIZES["CAPTURE_BYTES"] == RING_BYTES


def test_a_frame_comes_back_with_its_direction_and_the_time_of_day():
    ring = hooks.CaptureRing(WHOLE)
    before = time.time_ns()
    ring.put(IN, [b"a frame"])
    found = ring.take()
    assert found is not None
    assert before <= found[0] <= time.time_ns()
    assert found[1:] == (IN, 7, 0, b"a frame")
    assert ring.take() is None


def test_the_virtio_header_is_told_and_not_kept():
    ring = hooks.CaptureRing(WHOLE)
    header = vnet(flags=1, gso_type=1, hdr_len=54, gso_size=1448, csum_start=34, csum_offset=16)
    ring.put(OUT, [header + b"head", b"more", b"last"], vnet=True)
    assert take(ring) == Captured(OUT, 12, 1448, b"headmorelast")


def test_the_size_of_segments_means_nothing_without_segmentation():
    ring = hooks.CaptureRing(WHOLE)
    ring.put(OUT, [vnet(gso_size=1448) + b"frame"], vnet=True)
    assert take(ring) == Captured(OUT, 5, 0, b"frame")


@pytest.mark.parametrize("snap", [1, 3, 4, 5, 11, 12])
def test_only_the_first_bytes_of_a_frame_are_kept_wherever_its_pieces_end(snap):
    ring = hooks.CaptureRing(snap)
    ring.put(IN, [b"head", b"more", b"last"])
    assert take(ring) == Captured(IN, 12, 0, b"headmorelast"[:snap])


def test_what_does_not_fit_is_counted_and_harms_nothing():
    ring = filled()
    kept = RING_BYTES // place_bytes(65_536)
    assert ring.dropped == 1
    ring.put(OUT, [b"small"])
    assert [take(ring).frame_bytes for _ in range(kept)] == [65_536] * kept
    assert take(ring).data == b"small"
    assert take(ring) is None


def test_the_last_byte_of_the_ring_is_used():
    ring = hooks.CaptureRing(WHOLE)
    for _ in range(16):
        ring.put(IN, [b"x" * (RING_BYTES // 16 - HEADER_BYTES)])
    assert (ring.used, ring.dropped) == (RING_BYTES, 0)
    ring.put(IN, [b""])
    assert ring.dropped == 1
    assert take(ring).data == b"x" * (RING_BYTES // 16 - HEADER_BYTES)
    ring.put(IN, [b""])
    assert ring.dropped == 1


def test_what_was_read_is_wiped():
    ring = filled()
    for _ in range(3):
        ring.put(OUT, [b"secret" * 8000])
    while take(ring):
        ring.put(IN, [b"more" * 100])
        if ring.used < RING_BYTES // 2:
            break
    assert ring.clean()
    while take(ring):
        pass
    assert ring.used == 0
    assert ring.clean()


def test_nothing_is_kept_after_the_end():
    ring = hooks.CaptureRing(WHOLE)
    ring.put(OUT, [b"one"])
    used = ring.used
    ring.stop()
    ring.put(OUT, [b"two"])
    assert (ring.used, ring.dropped) == (used, 0)


class CaptureModel(RuleBasedStateMachine):
    """The ring against its twin: the same frames, the same drops, and never a lost wakeup."""

    def __init__(self) -> None:
        super().__init__()
        self.snap = WHOLE
        self.ring = hooks.CaptureRing(WHOLE)
        self.twin = CaptureRing(WHOLE)
        self.number = 0
        self.sleeps = True

    def bytes_of(self, size: int) -> bytes:
        self.number += 1
        return (self.number.to_bytes(4, "little") * (size // 4 + 1))[:size]

    def put(self, direction: int, sizes: list[int], header: bytes) -> None:
        pieces = [self.bytes_of(size) for size in sizes]
        pieces[0] = header + pieces[0]
        dropped = self.twin.dropped
        self.ring.put(direction, pieces, vnet=bool(header))
        self.twin.put(direction, pieces, vnet=bool(header))
        if self.sleeps and self.twin.dropped == dropped:
            assert readable(self.ring.wakeup_fd)

    @rule(
        direction=st.sampled_from([IN, OUT]),
        sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=8),
        header=st.sampled_from([b"", vnet(), vnet(flags=1), vnet(1, 4, 54, 1400)]),
    )
    def put_one(self, direction: int, sizes: list[int], header: bytes) -> None:
        self.put(direction, sizes, header)

    @rule(size=st.integers(60_000, 65_557), count=st.integers(1, 40))
    def put_many(self, size: int, count: int) -> None:
        for _ in range(count):
            self.put(OUT, [size], b"")

    @rule(count=st.integers(1, 50))
    def take(self, count: int) -> None:
        for _ in range(count):
            found = take(self.ring)
            assert found == self.twin.take()
            self.sleeps = found is None
            if found is None:
                return

    @invariant()
    def the_sums_agree(self) -> None:
        assert (self.ring.used, self.ring.dropped) == (self.twin.used, self.twin.dropped)


TestCaptureModel = CaptureModel.TestCase
TestCaptureModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


# --- Several writers ----------------------------------------------------------------------------


def test_a_writer_that_was_stopped_in_the_middle_delays_the_reader_only():
    ring = hooks.CaptureRing(WHOLE)
    place = ring.claim(HEADER_BYTES)
    ring.put(IN, [b"behind it"])
    assert ring.take() is None
    ring.finish(place, HEADER_BYTES)
    assert take(ring).data == b""
    assert take(ring).data == b"behind it"


def test_no_place_is_given_away_in_a_full_ring():
    ring = hooks.CaptureRing(WHOLE)
    assert ring.claim(RING_BYTES - HEADER_BYTES) == 0
    assert ring.claim(2 * HEADER_BYTES) is None
    assert ring.claim(HEADER_BYTES) == RING_BYTES - HEADER_BYTES
    assert ring.claim(HEADER_BYTES) is None


def test_four_threads_lose_no_frame_but_those_that_are_counted():
    frames, writers = 30_000, (1, 2, 3, 4)
    ring = hooks.CaptureRing(WHOLE)
    threads = [threading.Thread(target=ring.produce, args=(frames, who)) for who in writers]
    for thread in threads:
        thread.start()
    last = dict.fromkeys(writers, -1)
    got = 0
    while True:
        alive = any(thread.is_alive() for thread in threads)
        while (found := take(ring)) is not None:
            number, who = int.from_bytes(found.data[:4], "little"), found.data[4]
            assert number > last[who], "in the order in which a thread has written"
            assert found.data[4:] == bytes([who]) * (1 + number * 7919 % 2000)
            last[who] = number
            got += 1
        if not alive:
            break
    assert got + ring.dropped == frames * len(writers)
    assert got >= RING_BYTES // place_bytes(2005)
    assert ring.used == 0
    assert ring.clean()


def test_the_end_waits_for_those_who_are_writing():
    # a ring that is taken down 200 times under a thread that writes all the time; a write into
    # memory that was freed is what the sanitizers look for
    for _ in range(200):
        ring = hooks.CaptureRing(64)
        thread = threading.Thread(target=ring.produce, args=(2000, 1))
        thread.start()
        ring.take()
        ring.stop()
        used = ring.used
        thread.join()
        assert ring.used == used


# --- Wakeups ------------------------------------------------------------------------------------


def test_a_frame_wakes_a_reader_that_found_nothing():
    ring = hooks.CaptureRing(WHOLE)
    assert ring.take() is None
    assert not readable(ring.wakeup_fd)
    ring.put(IN, [b"frame"])
    assert readable(ring.wakeup_fd)


def test_a_frame_leaves_a_busy_reader_alone():
    ring = hooks.CaptureRing(WHOLE)
    ring.put(IN, [b"one"])
    ring.take()
    assert ring.take() is None  # drains the eventfd and goes to sleep
    ring.put(IN, [b"two"])
    ring.take()
    ring.put(IN, [b"three"])
    ring.take()
    assert readable(ring.wakeup_fd)  # from the first of the two
    assert ring.take() is None
    assert not readable(ring.wakeup_fd)
