"""What dials teach: the order of addresses, and segments that fit."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.link.route import MAX_ADDRESSES, RAISE_S, SMALL_SEGMENT_BYTES, Route


def ways(*numbers):
    return [(socket.AF_INET, (f"192.0.2.{number}", 9001)) for number in numbers]


def test_addresses_that_nobody_tried_keep_their_order_and_come_first():
    route = Route()
    assert route.order(ways(1, 2, 3)) == ways(1, 2, 3)
    route.tried(("192.0.2.2", 9001))
    route.tried(("192.0.2.1", 9001))
    assert route.order(ways(1, 2, 3)) == ways(3, 2, 1)


def test_an_address_where_the_peer_answered_is_as_good_as_new():
    route = Route()
    for number in (1, 2):
        route.tried((f"192.0.2.{number}", 9001))
    route.succeeded(("192.0.2.1", 9001))
    assert route.order(ways(1, 2)) == ways(1, 2)


def test_of_a_name_with_many_addresses_the_next_dial_takes_the_rest():
    route, many = Route(), ways(*range(MAX_ADDRESSES + 5))
    first = route.order(many)
    assert first == many[:MAX_ADDRESSES]
    for _, sockaddr in first:
        route.tried(sockaddr)
    assert route.order(many)[:5] == many[MAX_ADDRESSES:]


@given(st.lists(st.integers(0, 255), max_size=200))
def test_every_address_of_a_name_gets_its_turn_and_the_memory_is_bounded(numbers):
    route, every = Route(), ways(*range(MAX_ADDRESSES))
    for number in numbers:
        route.tried((f"198.51.100.{number}", 9001))
    seen = set()
    for _ in range(MAX_ADDRESSES):
        best = route.order(every)[0]
        seen.add(best[1])
        route.tried(best[1])
    assert len(seen) == MAX_ADDRESSES
    assert len(route._tried) <= 2 * MAX_ADDRESSES


def test_what_timed_out_is_tried_again_at_once_with_short_segments_and_once_only():
    route = Route(clock=lambda: 0.0)
    assert route.segment_bytes is None
    route.timed_out()
    assert route.segment_bytes == SMALL_SEGMENT_BYTES
    assert [route.take_retry(), route.take_retry()] == [True, False]
    route.timed_out()  # it was not the length
    assert route.segment_bytes is None
    assert not route.take_retry()


def test_short_segments_stay_for_a_while_and_not_in_another_network():
    now = [0.0]
    route = Route(clock=lambda: now[0])
    route.keep_small()
    assert not route.take_retry()
    now[0] = RAISE_S - 1
    assert route.segment_bytes == SMALL_SEGMENT_BYTES
    now[0] = RAISE_S
    assert route.segment_bytes is None
    route.keep_small()
    route.network_changed()
    assert route.segment_bytes is None


def test_a_short_segment_fits_what_every_path_carries():
    for headers in (20 + 20, 40 + 20):
        assert SMALL_SEGMENT_BYTES + headers <= 1280
