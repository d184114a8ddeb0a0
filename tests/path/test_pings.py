"""Round trips that somebody waits for."""

from __future__ import annotations

import gevent
import pytest

from shadowmesh.path.pings import Pings


def test_the_round_trip_ends_with_the_answer_to_its_own_token():
    pings = Pings()

    def send(token):
        pings.answered(bytes(8), 7.0)
        pings.answered(token, 0.05)
        return True

    assert pings.round_trip(send, 5) == 0.05


def test_two_at_once_do_not_take_each_other_s_answer():
    pings = Pings()
    tokens = []

    def send(token):
        tokens.append(token)
        return True

    waiting = [gevent.spawn(pings.round_trip, send, 5) for _ in range(2)]
    gevent.sleep(0)
    assert len(set(tokens)) == 2
    pings.answered(tokens[1], 0.1)
    waiting[1].join(5)
    assert waiting[1].value is not None
    assert not waiting[0].ready()
    pings.answered(tokens[0], 0.1)
    waiting[0].join(5)
    assert waiting[0].value is not None


@pytest.mark.parametrize("sent", [True, False])
def test_without_an_answer_there_is_no_round_trip(sent):
    pings = Pings()
    assert pings.round_trip(lambda token: sent, 0.01) is None


def test_nothing_is_kept_of_what_is_over():
    pings = Pings()
    tokens = []
    pings.round_trip(lambda token: bool(tokens.append(token)), 0.01)
    pings.answered(tokens[0], 0.1)
    pings.answered(b"of nobody", 0.1)
    assert not pings._waiting
