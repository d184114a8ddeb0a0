"""A thousand sessions on one plane, over links and over UDP: each frame where it belongs."""

from __future__ import annotations

import gc
import random
import resource
import socket
from collections.abc import Iterator

import pytest

from tests.fastpath.hub import BROADCAST, Hub, mac
from tests.fastpath.rig import eventually, open_files
from tests.fastpath.test_alloc import c_memory

COUNT = 1000
#: of a link two, of a UDP peer one, and what the plane and its device have
DESCRIPTORS = 2 * COUNT + 100
TYPE = b"\x08\0"


def by_udp(number: int) -> bool:
    return number % 2 == 1


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} descriptors, and may have {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], DESCRIPTORS), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def thousand() -> Iterator[Hub]:
    hub = Hub(COUNT, by_udp)
    yield hub
    hub.close()


def test_frames_to_and_from_a_thousand_peers_reach_exactly_the_right_ones(thousand):
    hub, dice = thousand, random.Random(1)
    wanted: list[list[bytes]] = [[] for _ in range(COUNT)]
    for number in range(400):
        target = dice.randrange(COUNT)
        frame = hub.far[target].mac + hub.own + TYPE + dice.randbytes(60)
        wanted[target].append(frame)
        hub.tap.feed(frame)
        if number % 50 == 49:  # less than a socket holds
            hub.settle()
    assert [far.got() for far in hub.far] == wanted
    sent: list[bytes] = []
    taken: list[bytes] = []
    for _ in range(20):
        for far in dice.choices(hub.far, k=20):  # no more than the device holds
            sent.append(hub.own + far.mac + TYPE + dice.randbytes(60))
            far.send(sent[-1])
        eventually(lambda: taken.extend(hub.tap.take()) or len(taken) >= len(sent), "all frames")
    assert sorted(message[10:] for message in taken) == sorted(sent)
    assert hub.dropped("rx_dropped") == hub.dropped("tx_dropped") == {}


def test_floods_reach_a_thousand_peers_and_those_that_are_left(thousand):
    hub, dice = thousand, random.Random(2)
    for to in (BROADCAST, b"\x33\x33\0\0\0\1", mac(7)):
        hub.say(to)
    assert hub.heard() == [3] * COUNT
    assert hub.plane.counters()["frames_copied"] == 3 * (COUNT - 1)
    gone = set(dice.sample(range(COUNT), COUNT // 2))
    left = [far for number, far in enumerate(hub.far) if number not in gone]
    late = [
        hub.far[number].sealed(hub.own + mac(8) + TYPE + bytes(46))
        for number in sorted(gone)
        if by_udp(number)
    ]
    for number in gone:
        hub.far[number].close()
    hub.far = left
    hub.say(BROADCAST)
    assert hub.heard() == [1] * len(left)
    hub.say(mac(100 + min(gone)))  # nobody's any more
    assert hub.heard() == [1] * len(left)
    for far in dice.sample(left, 50):
        hub.say(far.mac)
        assert len(far.got()) == 1
        far.send(hub.own + far.mac + TYPE + bytes(46))
    taken: list[bytes] = []
    eventually(lambda: taken.extend(hub.tap.take()) or len(taken) >= 50, "theirs")
    assert hub.heard() == [0] * len(left)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for datagram in late[:50]:
            out.sendto(datagram, hub.udp.getsockname())
    eventually(lambda: hub.plane.counters()["udp_refused"]["key_id"] == 50, "an account of them")


def test_a_thousand_peers_leave_neither_memory_nor_descriptors():
    def come_and_go() -> None:
        hub = Hub(COUNT, by_udp)
        hub.say(BROADCAST)
        assert hub.heard() == [1] * COUNT
        hub.close()

    come_and_go()
    gc.collect()
    files, memory = open_files(), c_memory()
    come_and_go()
    gc.collect()
    assert open_files() == files
    assert c_memory() - memory < 64 * 1024
