"""Which frames a capture sees: those that cross between the device and the tunnel, as they are."""

from __future__ import annotations

import time

import pytest

from shadowmesh.base.errors import LocalProtocolError
from tests.fastpath.rig import VNET_BYTES, Node, Peer, eventually, frame, offload, plain
from tests.fastpath.test_udp import PAYLOAD, Wire
from tests.twins.capture import RING_BYTES
from tests.twins.offload import Ipv4, Packet, Tcp, cut

IN, OUT = 1, 2
WHOLE = 262_144
SEGMENT = 1400
STREAM = Packet(
    Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2"), Tcp(40_000, 5201), bytes(i % 251 for i in range(5000))
)
ARP = frame(b"who has")
REPLY = frame(b"is at")


def captured(node: Node, count: int) -> list[tuple[int, int, int, bytes]]:
    """Wait for that many frames: direction, size, size of segments, bytes."""
    found: list[tuple[int, int, int, bytes]] = []

    def enough() -> bool:
        found.extend(one[1:] for one in node.plane.read_capture(100, 1 << 20))
        return len(found) >= count

    eventually(enough, f"{count} captured frames")
    return found


@pytest.fixture
def node(make):
    node = make().start()
    node.plane.start_capture(WHOLE)
    yield node
    node.plane.stop_capture()


@pytest.fixture
def wire(node):
    wire = Wire(node)
    yield wire
    wire.close()


def test_nothing_is_captured_before_the_start_and_after_the_end(make):
    node = make().start()
    node.feed([ARP])
    node.settle()
    assert node.plane.read_capture(10, WHOLE) == []
    node.plane.start_capture(WHOLE)
    node.plane.stop_capture()
    node.feed([ARP])
    node.settle()
    assert node.plane.read_capture(10, WHOLE) == []
    node.plane.start_capture(WHOLE)
    assert node.plane.read_capture(10, WHOLE) == []
    node.plane.stop_capture()


def test_one_capture_at_a_time(node):
    with pytest.raises(LocalProtocolError, match="running"):
        node.plane.start_capture(WHOLE)
    node.plane.stop_capture()
    node.plane.stop_capture()
    node.plane.start_capture(WHOLE)


def test_a_plane_that_goes_away_takes_its_capture_along(make):
    # the module's fixture looks for what is left behind
    node = make().start()
    node.plane.start_capture(WHOLE)
    node.feed([ARP])
    node.settle()


@pytest.mark.parametrize("path", ["wss", "udp"])
def test_both_directions_are_captured_with_the_time_of_day(node, wire, path):
    before = time.time_ns()
    if path == "udp":
        wire.use()
    node.feed([ARP])
    assert captured(node, 1) == [(OUT, len(ARP), 0, ARP)]
    if path == "udp":
        wire.send(wire.datagram(plain(REPLY)))
        wire.opened(1)
    else:
        Peer(node).send(plain(REPLY))
    node.feed([ARP])
    found = []
    eventually(lambda: found.extend(node.plane.read_capture(10, WHOLE)) or len(found) == 2)
    assert [one[1:] for one in found] == [(IN, len(REPLY), 0, REPLY), (OUT, len(ARP), 0, ARP)]
    assert before < found[0][0] < time.time_ns()


def test_frames_that_nobody_is_there_for_are_not_captured(make):
    node = make()
    node.plane.start_capture(WHOLE)
    node.feed([ARP])
    node.settle()  # after a second: dropped as not_connected
    assert node.plane.read_capture(10, WHOLE) == []
    node.plane.stop_capture()


def test_frames_that_are_refused_are_not_captured(node):
    node.feed([b"runt", ARP])
    node.settle()
    Peer(node).send(plain(b"runt"), plain(frame(source=b"\x01\0\0\0\0\1")), plain(REPLY))
    assert captured(node, 2) == [(OUT, len(ARP), 0, ARP), (IN, len(REPLY), 0, REPLY)]


def test_a_frame_that_the_device_does_not_take_is_not_captured(node):
    node.plane.detach_tap()
    Peer(node).send(plain(REPLY))
    assert node.plane.counters()["rx_dropped"]["tap_gone"] == 1
    assert node.plane.read_capture(10, WHOLE) == []


@pytest.mark.parametrize("path", ["wss", "udp"])
def test_a_super_frame_from_the_host_is_captured_as_the_host_made_it(node, wire, path):
    if path == "udp":
        wire.use()
    header, data = STREAM.super_frame(SEGMENT)
    node.feed([data], header)
    assert captured(node, 1) == [(OUT, len(data), SEGMENT, data)]
    if path == "udp":
        assert len(wire.received(5)) == 5  # cut in place to the size of the path, afterwards


def test_a_super_frame_from_the_peer_is_captured_as_the_device_takes_it(node):
    header, data = STREAM.super_frame(SEGMENT)
    Peer(node).send(offload(header, data))
    assert captured(node, 1) == [(IN, len(data), SEGMENT, data)]


def test_segments_from_the_peer_are_captured_as_they_were_joined_for_the_device(node, wire):
    # how many the UDP thread finds at once is not ours to say
    wire.send(*(wire.datagram(offload(*part.plain())) for part in cut(STREAM, SEGMENT)))
    taken: list[bytes] = []

    def all_there() -> bool:
        taken.extend(node.tap.take())
        return sum(len(one) - VNET_BYTES - STREAM.header_bytes for one in taken) == 5000

    eventually(all_there, "the stream on the device")
    found = captured(node, len(taken))
    assert [one[3] for one in found] == [one[VNET_BYTES:] for one in taken]
    assert {one[0] for one in found} == {IN}


def test_only_the_start_of_a_frame_is_kept(make):
    node = make().start()
    node.plane.start_capture(16)
    node.feed([ARP])
    assert captured(node, 1) == [(OUT, len(ARP), 0, ARP[:16])]


def test_a_reader_gets_no_more_than_it_asks_for(node):
    node.feed([ARP] * 5)
    node.settle()
    assert len(node.plane.read_capture(2, WHOLE)) == 2
    assert len(node.plane.read_capture(100, len(ARP) + 1)) == 2
    assert len(node.plane.read_capture(100, 0)) == 0
    assert len(node.plane.read_capture(100, WHOLE)) == 1


def test_a_reader_that_does_not_come_slows_nobody_and_the_rest_is_counted(node, wire):
    wire.use(PAYLOAD)
    big = frame(bytes(1450))
    sent = RING_BYTES // len(big) + 200
    for _ in range(sent // 50 + 1):
        node.feed([big] * 50)
        while wire_has_datagrams(wire):
            pass
    counters = node.settle()
    assert counters["frames_sent"] == node.tap.fed
    dropped = node.plane.capture_dropped()
    assert dropped > 0
    kept = 0
    while found := node.plane.read_capture(1000, 1 << 20):
        kept += len(found)
    assert kept + dropped == node.tap.fed
    node.plane.stop_capture()
    assert node.plane.capture_dropped() == dropped


def wire_has_datagrams(wire: Wire) -> bool:
    try:
        return bool(wire.theirs.recv(70_000))
    except BlockingIOError:
        return False
