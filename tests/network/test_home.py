"""The home relay: the nearest, and no other for a trifle."""

from __future__ import annotations

import random

from shadowmesh.network.home import GAIN_S, WINDOW_S, HomeChooser

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))


def test_there_is_no_home_without_a_relay():
    chooser = HomeChooser()
    assert not chooser.look({}, 0)
    assert chooser.choice.home is None
    assert "no session" in chooser.choice.reason


def test_the_only_relay_is_home_before_anything_is_measured():
    chooser = HomeChooser()
    assert chooser.look({A: None}, 0)
    assert chooser.choice.home == A


def test_the_nearest_becomes_home():
    chooser = HomeChooser()
    chooser.look({A: 0.030, B: 0.010}, 0)
    assert chooser.choice.home == B


def test_a_gain_has_to_be_ten_milliseconds_and_a_third():
    chooser = HomeChooser()
    chooser.look({A: 0.100}, 0)
    assert not chooser.look({A: 0.100, B: 0.080}, 1)  # 20 ms, a fifth
    assert "not worth a move" in chooser.choice.reason
    assert chooser.look({A: 0.100, B: 0.060}, 2)
    near = HomeChooser()
    near.look({A: 0.012}, 0)
    assert not near.look({A: 0.012, B: 0.012 - GAIN_S + 0.001}, 1)  # more than a third, 9 ms


def test_a_home_that_is_away_is_left_at_once():
    chooser = HomeChooser()
    chooser.look({A: 0.010, B: 0.500}, 0)
    assert chooser.look({B: 0.500}, 1)
    assert chooser.choice.home == B
    assert chooser.look({}, 2)
    assert chooser.choice.home is None


def test_a_queue_that_comes_and_goes_moves_nobody():
    chooser = HomeChooser()
    chooser.look({A: 0.010, B: 0.030}, 0)
    for second in range(1, int(WINDOW_S) - 1):
        assert not chooser.look({A: 0.900, B: 0.030}, second)
    assert chooser.look({A: 0.900, B: 0.030}, WINDOW_S + 2)
    assert chooser.choice.home == B


def test_what_is_kept_is_bounded_and_is_the_best_of_the_window():
    chooser = HomeChooser()
    rng = random.Random(1)
    seen = []
    for second in range(3000):
        rtt = rng.uniform(0.001, 0.2)
        seen.append((second, rtt))
        chooser.look({A: rtt, C: None}, second)
        wanted = min(value for at, value in seen if at >= second - WINDOW_S)
        assert chooser.best_s(A) == wanted
    assert len(chooser._measured[A]) < 100
