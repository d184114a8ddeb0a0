"""What the TAP thread does while the WebSocket link carries less than comes."""

from __future__ import annotations

import itertools
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shadowmesh._fastpath import Pipe
from shadowmesh.base.constants import Caps, Inner
from shadowmesh.fast.hooks import queues as hooks
from tests.fastpath.rig import CHACHA, KEYS, NO_OFFLOAD, Node, eventually, plain, unpack
from tests.fastpath.test_backlog import frame_of
from tests.fastpath.test_udp import some_tcp
from tests.twins import mix, records
from tests.twins import offload as twin
from tests.twins.offload import VNET

FIRST_LIMIT = hooks.SIZES["FIRST_LIMIT"]
BULK, KEY_PRESS = 1, 2  # ports
PIECE_BYTES = 4096
FRAMES_A_PIECE = 4
PER_SECOND = 1e6
PAYLOAD = 1472


def bulk() -> Iterator[bytes]:
    number = 0
    while True:
        yield frame_of(BULK, number, 1500)
        number += 1


def slow_down(node: Node, seconds: float = 0.4) -> bytes:
    """Offer more bulk than is taken; return what was taken."""
    return take_slowly(node, ((NO_OFFLOAD, one) for one in bulk()), seconds)


def take_slowly(node: Node, offer: Iterator[tuple[bytes, bytes]], seconds: float) -> bytes:
    """Offer frames with their virtio headers, and take a megabyte a second.

    What was not taken in time, because the machine is busy, is not made up for: emptied at one go,
    the link would be a fast one.
    """
    taken, due = b"", time.monotonic()
    ends = due + seconds
    # A machine that stands still must not shorten it: a rate is measured over what was taken.
    while (now := time.monotonic()) < ends or len(taken) < PER_SECOND * seconds / 2:
        for header, frame in itertools.islice(offer, FRAMES_A_PIECE):  # more than is taken
            node.tap.fed += node.tap._offer(header + frame)
        ready = node.pipe.outgoing()
        if ready is not None and now >= due:
            piece = bytes(ready[:PIECE_BYTES])
            node.pipe.sent(len(piece))
            taken += piece
            due = now + len(piece) / PER_SECOND
    return taken


def take_all(node: Node) -> bytes:
    """Take what waits, sealed and not."""
    taken = b""

    def nothing_waits() -> bool:
        nonlocal taken
        taken += node.take_outgoing()
        return node.plane.counters()["frames_queued"] == 0

    eventually(nothing_waits, "an empty link")
    # The last may have been sealed between the look at the link and that at the queue.
    return taken + node.take_outgoing()


def inners(stream: bytes, node: Node) -> list[bytes]:
    return [inner for _, _, some in unpack(stream, node) for inner in some]


def feed_more_than_fits(node: Node) -> list[bytes]:
    """Feed a link that takes nothing; return the frames, of which some wait to be sealed."""
    frames = [frame_of(BULK, number, 1400) for number in range(150)]
    assert sum(map(len, frames)) - 40 * 1400 > FIRST_LIMIT
    node.feed(frames)
    assert node.settle()["frames_queued"] == len(frames)
    return frames


def test_a_slow_link_has_little_sealed_and_the_rest_is_counted(make):
    node = make().start()
    stream = slow_down(node, 1.0)
    assert node.pipe.piece_bytes < 4 * PIECE_BYTES
    counters = node.settle()
    assert {name for name, count in counters["tx_dropped"].items() if count} == {"queue_full"}
    assert node.pipe.queued_bytes > 0
    stream += take_all(node)
    counters = node.settle()
    assert len(inners(stream, node)) == counters["frames_sent"]
    assert node.pipe.queued_bytes == 0


def test_a_frame_of_another_flow_overtakes_what_waits(make):
    node = make().start()
    stream = slow_down(node)
    node.settle()
    node.feed([frame_of(KEY_PRESS, 0)])
    node.settle()
    before = len(stream) // 1500
    stream += take_all(node)
    sent = inners(stream, node)
    place = sent.index(plain(frame_of(KEY_PRESS, 0)))
    sealed_before = 10_000 // 1500  # what leaves in 10 ms
    assert place <= before + 3 * sealed_before
    assert len(sent) - place > 50  # it did not come last by chance
    flow = [inner for inner in sent if inner != sent[place]]
    numbers = [int.from_bytes(inner[1 + 42 : 1 + 50]) for inner in flow]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("index", [9, 10, 12, 15, 19])
def test_a_super_frame_is_cut_for_a_very_slow_link(make, index):
    node = make().start()
    stream = slow_down(node)
    read = node.settle()["frames_read"]
    super_frame = mix.corpus(7)[index]
    wanted = mix.flat(super_frame)
    node.tap.feed(super_frame[1], super_frame[0])
    eventually(lambda: node.plane.counters()["frames_read"] == read + len(wanted), "its segments")
    stream += take_all(node)
    pieces = [inner for inner in inners(stream, node) if inner[0] == Inner.OFFLOAD_FRAME]
    assert not any(VNET.unpack(piece[1:11])[1] for piece in pieces)
    assert [one for piece in pieces for one in mix.flat((piece[1:11], piece[11:]))] == wanted


def test_frames_of_many_flows_come_whole_out_of_an_arena_that_goes_round(make):
    node = make().start()
    stream = slow_down(node)
    supers = [one for one in mix.corpus(7) if mix.is_super(one)]
    wanted = {frame for one in supers for frame in mix.flat(one)}
    source = random.Random(7)

    def mixed() -> Iterator[tuple[bytes, bytes]]:
        for number in itertools.count():
            if source.random() < 0.3:
                yield source.choice(supers)
            else:
                yield (
                    NO_OFFLOAD,
                    frame_of(source.randrange(1, 9), number, source.randrange(60, 1500)),
                )

    stream += take_slowly(node, mixed(), 2.5)  # more than two MiB
    stream += take_all(node)
    for inner in inners(stream, node):
        if inner[0] == Inner.OFFLOAD_FRAME:
            assert set(mix.flat((inner[1:11], inner[11:]))) <= wanted
        else:
            frame = inner[1:]
            port, number = int.from_bytes(frame[34:36]), int.from_bytes(frame[42:50])
            assert frame == frame_of(port, number, len(frame))


def test_on_a_fast_link_a_super_frame_stays_whole(make):
    node = make().start()
    super_frame = mix.corpus(7)[9]
    node.feed([super_frame[1]] * 3, super_frame[0])
    node.settle()
    assert [inner[1:] for inner in inners(take_all(node), node)] == [b"".join(super_frame)] * 3


def test_what_waits_follows_its_session_to_udp_in_order(make):
    node = make().start()
    ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with ours, theirs:
        for sock in (ours, theirs):
            sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.setblocking(False)
        theirs.settimeout(5)
        node.plane.attach_udp(ours.fileno(), socket.AF_INET)
        frames = feed_more_than_fits(node)
        node.session.use_udp("127.0.0.1", theirs.getsockname()[1], PAYLOAD)
        sealed = inners(node.take_outgoing(), node)
        assert sealed == [plain(one) for one in frames[: len(sealed)]]
        for one in frames[len(sealed) :]:
            record = records.open_datagram(CHACHA, KEYS["uout"], theirs.recv(2048))
            assert record is not None
            assert record[2] == plain(one)
        assert node.settle()["frames_sent"] == len(frames)
        node.plane.detach_udp()


def test_what_waits_is_judged_anew_for_the_session_that_takes_over(make):
    # it was read for a peer with other abilities and another MTU
    node = make().start()
    frames = feed_more_than_fits(node)
    datagrams = replace(some_tcp(3000), l4=twin.Udp(40000, 53))
    node.tap.feed(*reversed(datagrams.super_frame(1000)))
    key_press = frame_of(KEY_PRESS, 0, 100)
    node.tap.feed(key_press)
    node.settle()
    session, pipe = node.session, node.pipe
    node.session, node.pipe = node.another_session(), Pipe(node.plane, node.client)
    node.start(caps=Caps.OFFLOAD, mtu=1000)
    sealed = b""
    while (ready := pipe.outgoing()) is not None:
        sealed += ready
        pipe.sent(len(ready))
    assert inners(take_all(node), node) == [plain(key_press)]
    counters = node.settle()["tx_dropped"]
    assert counters["bad_offload"] == 1
    assert counters["too_long"] == len(frames) - len(inners(sealed, node)) > 0
    session.close()
    pipe.close()


def test_what_waits_is_lost_with_its_link(make):
    node = make().start()
    frames = feed_more_than_fits(node)
    node.session.bind(None)
    eventually(lambda: node.plane.counters()["frames_queued"] == 0, "nothing waits")
    assert node.settle()["tx_dropped"]["link_lost"] == len(frames)


def test_what_waits_is_lost_with_the_device(make):
    node = make().start()
    frames = feed_more_than_fits(node)
    node.plane.detach_tap()
    gone = node.plane.counters()["tx_dropped"]["tap_gone"]
    sealed = inners(node.take_outgoing(), node)
    assert sealed == [plain(one) for one in frames[: len(sealed)]]
    assert gone == len(frames) - len(sealed) >= 40
