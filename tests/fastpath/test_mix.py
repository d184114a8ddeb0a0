"""Frames between two planes with every mix of offloads: what arrives is what was sent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fastpath.rig import AEGIS, CHACHA, Node
from tests.fastpath.sides import EVERY_MIX, Side, Tunnel, assert_unchanged


def make_side(number: int, *, offload: bool, trains: bool, without: frozenset[str]) -> Side:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    node = Node(client=number == 0, without=without if trains else without | {"gso"})
    return Side(node, udp, offload=offload, trains=trains)


@pytest.fixture
def tunnel() -> Iterator[Any]:
    made: list[Tunnel] = []

    def build(
        path: str,
        offload: tuple[bool, bool] = (True, True),
        trains: tuple[bool, bool] = (True, True),
        *,
        cipher: str = CHACHA,
        without: frozenset[str] = frozenset(),
    ) -> Tunnel:
        left, right = (
            make_side(number, offload=offload[number], trains=trains[number], without=without)
            for number in range(2)
        )
        made.append(Tunnel(path, (left, right), cipher))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.mark.parametrize(("path", "offload", "trains"), EVERY_MIX)
def test_frames_arrive_byte_for_byte_with_every_mix_of_offloads(tunnel, path, offload, trains):
    arrived = assert_unchanged(tunnel(path, offload, trains))
    assert bool(arrived.supers) == bool(arrived.of_datagrams) == all(offload)
    assert bool(arrived.unfinished) == all(offload)


def test_there_are_32_mixes():
    assert len(EVERY_MIX) == 32


@pytest.mark.parametrize(
    "without",
    [{"join"}, {"batch"}, {"batch", "join", "gso"}],
    ids=lambda parts: " ".join(sorted(parts)),
)
@pytest.mark.parametrize("path", ["wss", "udp"])
@pytest.mark.parametrize("cipher", [CHACHA, AEGIS])
def test_frames_arrive_byte_for_byte_without_what_makes_it_fast(tunnel, path, cipher, without):
    arrived = assert_unchanged(tunnel(path, cipher=cipher, without=frozenset(without)))
    assert bool(arrived.supers) == (path == "wss" or "join" not in without)
