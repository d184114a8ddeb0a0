"""Packed frames over UDP: the datagrams of the twin, in any order, and what is lost with one."""

from __future__ import annotations

import random
import socket
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmesh.base.constants import Abilities, Inner
from tests.fastpath.rig import CHACHA, CIPHERS, NO_OFFLOAD, eventually, frame, offload, plain
from tests.fastpath.test_udp import Wire, some_tcp
from tests.twins import mix, packed, records
from tests.twins import offload as twin

PAYLOAD = 1472  # of a path of 1,500 bytes
UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
LARGE = [frame(struct.pack("<I", number) + bytes(1496)) for number in range(40)]


def room(cipher: str, payload: int = PAYLOAD) -> int:
    return payload - 16 - records.TAG_BYTES[cipher] - packed.HEADER_BYTES


@pytest.fixture
def wired(make):
    wires: list[Wire] = []

    def build(cipher: str = CHACHA, **options: Any) -> Wire:
        wires.append(Wire(make(**options).start(cipher, mtu=9000), cipher))
        return wires[-1]

    yield build
    for one in wires:
        one.close()


def send_train(wire: Wire, datagrams: list[bytes]) -> None:
    """One system call, so that they come as one train."""
    size = struct.pack("<H", len(datagrams[0]))
    wire.theirs.sendmsg(
        datagrams, [(socket.IPPROTO_UDP, UDP_SEGMENT, size)], 0, wire.ours.getsockname()
    )


def bare(taken: list[bytes]) -> list[bytes]:
    assert all(one.startswith(NO_OFFLOAD) for one in taken)
    return [one[len(NO_OFFLOAD) :] for one in taken]


def packs(wire: Wire, payload: int = PAYLOAD) -> Wire:
    wire.node.session.peer_takes(Abilities.PACKED)
    wire.use(payload)
    return wire


# --- Out ----------------------------------------------------------------------------------------


def feed_at_once(wire: Wire, frames: list[bytes]) -> None:
    """Let all frames wait in the device before its thread reads the first."""
    wire.node.plane.detach_tap()
    wire.node.feed(frames)
    wire.node.plane.attach_tap([wire.node.tap.fd], 9000)


@pytest.mark.parametrize("payload", [1232, 1452, PAYLOAD])
@pytest.mark.parametrize("cipher", CIPHERS)
def test_frames_leave_packed_as_the_twin_packs_them(wired, cipher, payload):
    wire = packs(wired(cipher), payload)
    feed_at_once(wire, LARGE)
    wanted = packed.pack([plain(one) for one in LARGE], room(cipher, payload))
    got = wire.received(len(wanted))
    assert [inner for _, inner in got] == wanted
    assert [counter for counter, _ in got] == list(range(len(wanted)))
    counters = wire.node.settle()
    assert counters["frames_sent"] == len(LARGE)


def test_a_frame_that_no_other_follows_leaves_in_fragments(wired):
    wire = packs(wired())
    wire.node.feed(LARGE[:1])
    assert {inner[0] for _, inner in wire.received(2)} == {Inner.FRAGMENT}


@pytest.mark.parametrize("abilities", [0, 0xFFFFFFFF & ~Abilities.PACKED])
def test_nothing_is_packed_for_a_peer_that_has_not_said_that_it_takes_it(wired, abilities):
    wire = wired()
    wire.node.session.peer_takes(abilities)
    wire.use(PAYLOAD)
    feed_at_once(wire, LARGE)
    kinds = [inner[0] for _, inner in wire.received(2 * len(LARGE))]
    assert kinds == [Inner.FRAGMENT] * (2 * len(LARGE))


def test_frames_that_fit_as_they_are_are_not_packed_for_nothing(wired):
    wire = packs(wired())
    frames = [frame(bytes([number]) + bytes(1384)) for number in range(20)]
    feed_at_once(wire, frames)
    assert [inner for _, inner in wire.received(20)] == [plain(one) for one in frames]


def test_a_frame_that_three_datagrams_would_have_to_share_leaves_in_fragments(wired):
    wire = packs(wired(), 1232)
    jumbo = frame(bytes(2600))
    feed_at_once(wire, [jumbo, *LARGE])
    wanted = packed.pack([plain(one) for one in LARGE], room(CHACHA, 1232))
    got = [inner for _, inner in wire.received(3 + len(wanted))]
    assert {inner[0] for inner in got[:3]} == {Inner.FRAGMENT}
    assert got[3:] == wanted


def test_without_the_optimisation_nothing_is_packed(wired):
    wire = packs(wired(without=["pack"]))
    feed_at_once(wire, LARGE)
    assert all(inner[0] == Inner.FRAGMENT for _, inner in wire.received(2 * len(LARGE)))


# --- In -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gro", [False, True])
@pytest.mark.parametrize("cipher", CIPHERS)
def test_packed_frames_come_out_as_they_went_in(wired, make, cipher, gro):
    here = packs(wired(cipher))
    there = make().start(cipher, swap=True)
    there.remote_id, here.node.remote_id = here.node.local_id, there.local_id
    here.node.session.retire(here.node.local_id)
    if gro:
        here.theirs.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    here.node.local_id = here.node.session.reserve_key_id()
    here.node.install(here.node.local_id, there.local_id, cipher)
    here.node.session.send_under(here.node.local_id)
    there.plane.attach_udp(here.theirs.fileno(), here.family)
    feed_at_once(here, LARGE)
    got: list[bytes] = []
    eventually(lambda: got.extend(there.tap.take()) or len(got) >= len(LARGE))
    assert bare(got) == LARGE
    assert not any(there.plane.counters()["udp_refused"].values())
    there.plane.detach_udp()


def test_packed_segments_of_a_stream_are_joined(wired):
    wire = wired()
    wire.ours.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    cut = twin.segment(some_tcp(9000), 1100, 1500)
    assert cut is not None
    inners = packed.pack([offload(*one) for one in cut], room(CHACHA))
    send_train(wire, [wire.datagram(inner) for inner in inners])
    taken = wire.opened(1)
    eventually(lambda: wire.node.plane.counters()["frames_opened"] == len(cut))
    taken += wire.node.tap.take()
    assert len(taken) < len(cut)
    wires = [one for each in taken for one in mix.flat((each[:10], each[10:]))]
    assert wires == [one for each in cut for one in mix.flat(each)]


sizes = st.lists(st.integers(14, 1514), min_size=1, max_size=30)


@given(sizes, st.integers(780, 1600), st.randoms(use_true_random=False), st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_lost_or_late_the_frames_are_those_of_the_twin(wired, sizes, room, dice, data):
    frames = [frame(dice.randbytes(max(0, size - 14)))[:size] for number, size in enumerate(sizes)]
    wire = wired()
    inners = packed.pack([plain(one) for one in frames], room)
    kept = [number for number in range(len(inners)) if dice.random() < 0.9]
    if data.draw(st.booleans()):
        dice.shuffle(kept)
    wanted = packed.unpack({number: inners[number] for number in kept})
    datagrams = [wire.datagram(inners[number], number) for number in kept]
    if kept == sorted(kept) and datagrams and data.draw(st.booleans()):
        wire.ours.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        send_train(wire, datagrams)
    else:
        wire.send(*datagrams)
    got: list[bytes] = []
    eventually(lambda: got.extend(wire.node.tap.take()) or len(got) >= len(wanted))
    eventually(lambda: wire.node.plane.counters()["records_opened"] == len(kept))
    assert sorted(bare(got)) == sorted(one[1:] for one in wanted)
    assert wire.node.plane.counters()["frames_opened"] == len(wanted)
    if kept == sorted(kept):
        assert bare(got) == [one[1:] for one in wanted]


def test_a_lost_datagram_costs_the_frames_that_have_a_part_in_it_and_no_other(wired):
    wire = wired()
    inners = packed.pack([plain(one) for one in LARGE], room(CHACHA))
    lost = 7
    wire.send(*(wire.datagram(one, n) for n, one in enumerate(inners) if n != lost))
    alone = packed.unpack({n: one for n, one in enumerate(inners) if n != lost})
    assert len(alone) == len(LARGE) - 2
    assert bare(wire.opened(len(alone))) == [one[1:] for one in alone]


def test_the_halves_of_a_frame_come_together_in_any_order_and_batch(wired):
    wire = wired()
    first, second, third = packed.pack([plain(one) for one in LARGE[:2]], room(CHACHA))
    for one, other, last in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)):
        made = [wire.datagram(inner) for inner in (first, second, third)]
        for number in (one, other, last):
            wire.send(made[number])
        assert sorted(bare(wire.opened(2))) == LARGE[:2]


def cut_record(claimed: int, first: bytes, second: bytes) -> tuple[bytes, bytes]:
    return (
        struct.pack("<BHH", Inner.PACKED, 0, claimed) + first,
        struct.pack("<BH", Inner.PACKED, len(second)) + second,
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("claimed", [1000, 1002, 65535])
def test_halves_that_are_not_what_the_length_says_are_refused(wired, claimed, order):
    wire = wired()
    whole = plain(frame(bytes(986)))
    halves = [wire.datagram(one) for one in cut_record(claimed, whole[:500], whole[500:])]
    wire.send(*(halves[number] for number in order))
    eventually(lambda: wire.refused("fragment") == 1)
    assert wire.node.plane.counters()["frames_opened"] == 0


def test_halves_of_other_keys_or_counters_do_not_mix(wired):
    wire = wired()
    whole = plain(frame(bytes(986)))
    first, second = cut_record(len(whole), whole[:500], whole[500:])
    wire.send(wire.datagram(first, 10), wire.datagram(second, 12), wire.datagram(second, 10_000))
    wire.send(wire.datagram(plain(LARGE[0]), 20))
    assert bare(wire.opened(1)) == LARGE[:1]
    assert wire.node.plane.counters()["frames_opened"] == 1


def test_a_frame_in_fragments_and_one_in_halves_do_not_mix(wired):
    wire = wired()
    whole = plain(frame(bytes(986)))
    first, second = cut_record(len(whole), whole[:500], whole[500:])
    wire.send(wire.datagram(struct.pack("<BHBB", 3, 0, 0, 2) + whole[:500], 30))
    wire.send(wire.datagram(second, 31))
    wire.send(wire.datagram(first, 40))
    wire.send(wire.datagram(struct.pack("<BHBB", 3, 0, 1, 2) + whole[500:], 41))
    wire.send(wire.datagram(plain(LARGE[0]), 50))
    assert bare(wire.opened(1)) == LARGE[:1]
    assert wire.node.plane.counters()["frames_opened"] == 1


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        pytest.param(b"\x0c", "fragment", id="without a header"),
        pytest.param(b"\x0c\x01\x00", "fragment", id="a head beyond the end"),
        pytest.param(b"\x0c\xff\xff" + bytes(1400), "fragment", id="a head of the largest size"),
        pytest.param(b"\x0c\x00\x00\x05\x00\x02\x01\x00\x00\x00", "inner_type", id="control"),
        pytest.param(b"\x0c\x00\x00\x05\x00\x0c\x00\x00\x02\x00", "inner_type", id="packed again"),
        pytest.param(b"\x0c\x00\x00\x05\x00\x03\x00\x00\x00\x02", "inner_type", id="a fragment"),
    ],
)
def test_what_is_packed_wrongly_is_refused(wired, inner, reason):
    wire = wired()
    wire.send(wire.datagram(inner))
    eventually(lambda: wire.refused(reason) == 1)
    assert wire.node.plane.counters()["frames_opened"] == 0


def test_a_super_frame_is_not_taken_out_of_packed_ones(wired):
    wire = wired()
    inners = packed.pack([offload(*some_tcp(100).super_frame(9)), plain(LARGE[0])], 1400)
    wire.send(*map(wire.datagram, inners))
    assert bare(wire.opened(1)) == LARGE[:1]
    assert wire.node.plane.counters()["rx_dropped"]["bad_offload"] == 1


def test_no_more_than_64_halves_are_kept(wired):
    wire = wired()
    whole = plain(frame(bytes(986)))
    first, _ = cut_record(len(whole), whole[:500], whole[500:])
    wire.send(*(wire.datagram(first, 10 * number) for number in range(70)))
    eventually(lambda: wire.refused("fragment") >= 6)


def test_padding_between_packed_frames_is_nothing(wired):
    wire = wired()
    for tail in (b"", b"\x00", b"\x01\x00", bytes(500), b"\x00\x00" + b"\xff" * 90):
        one = plain(LARGE[1])
        wire.send(wire.datagram(struct.pack("<BHH", 12, 0, len(one)) + one + tail))
        assert bare(wire.opened(1)) == [LARGE[1]]
    assert not any(wire.node.plane.counters()["udp_refused"].values())


def test_random_order_of_many_datagrams_is_no_matter(wired):
    wire = wired()
    order = list(range(43))
    random.Random(3).shuffle(order)
    inners = packed.pack([plain(one) for one in LARGE], room(CHACHA))
    wire.send(*(wire.datagram(inners[number], number) for number in order if number < len(inners)))
    assert sorted(bare(wire.opened(len(LARGE)))) == LARGE
