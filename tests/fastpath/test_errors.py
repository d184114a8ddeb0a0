"""What the module that is shipped does when the kernel says no: its system calls fail on demand."""

from __future__ import annotations

import errno
import gc
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from select import select
from typing import Any

import pytest

from shadowmesh import _fastpath
from shadowmesh._fastpath import DataPlane, Pipe, Port
from shadowmesh.base.constants import Inner
from shadowmesh.base.errors import DeviceError, LocalProtocolError, RemoteProtocolError
from shadowmesh.fast.hooks import faults
from tests.fastpath.rig import (
    NO_OFFLOAD,
    FakeTap,
    Node,
    Peer,
    eventually,
    frame,
    named_threads,
    open_files,
    plain,
    plane_threads,
    stun,
)
from tests.fastpath.test_udp import Wire, segments_of, slices, some_tcp
from tests.twins import mix

faults.lead(_fastpath.__file__)

FRAME = frame(b"whatever the kernel says")
MINUTE = 61


@pytest.fixture(autouse=True)
def _nothing_fails_afterwards() -> Iterator[None]:
    yield
    faults.end()


@pytest.fixture
def wired(make) -> Iterator[Callable[..., Wire]]:
    wires: list[Wire] = []

    def build(**options: Any) -> Wire:
        wires.append(Wire(make().start(**options)))
        return wires[-1]

    yield build
    for one in wires:
        one.close()


def done(function: str) -> None:
    """Wait until the calls that were to fail have failed."""
    eventually(lambda: faults.left(function) == 0, f"a {function}() that fails")


def dropped(node: Node, direction: str) -> dict[str, int]:
    return {name: n for name, n in node.plane.counters()[f"{direction}_dropped"].items() if n}


def counted(node: Node) -> dict[str, int]:
    return {name: n for name, n in node.plane.udp_errors().items() if n}


# --- read() and poll() of the TAP threads ---------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN])
def test_a_read_that_is_interrupted_or_has_nothing_loses_no_frame(make, number):
    node = make().start()
    faults.fail("read", number, times=3, fd=node.tap.fd)
    node.feed([FRAME] * 5)
    done("read")
    assert node.settle()["frames_queued"] == 5
    assert node.plane.device_error() == 0


@pytest.mark.parametrize("number", [errno.EBADFD, errno.EIO, errno.ENOMEM])
def test_a_device_that_cannot_be_read_is_told_and_its_thread_ends(make, number):
    node = make().start()
    faults.fail("read", number, fd=node.tap.fd)
    node.tap.feed(FRAME)
    eventually(lambda: select([node.plane.event_fd], [], [], 0)[0])
    assert node.plane.device_error() == number
    node.plane.detach_tap()  # the thread is joined
    node.plane.attach_tap([node.tap.fd], 1500)
    assert node.settle()["frames_queued"] == 1


def test_frames_that_were_read_before_an_error_are_sent(make):
    # what was read is told of first: the error comes again
    node = make(without=["batch"]).start()
    node.feed([FRAME] * 3)
    node.settle()
    faults.fail("read", errno.EIO, fd=node.tap.fd)
    node.tap.feed(FRAME)
    assert eventually(node.plane.device_error) == errno.EIO
    assert node.plane.counters()["frames_queued"] == 3


def test_a_poll_of_the_device_that_is_interrupted_goes_on(make):
    # what revents are then is not said: as if the thread were to stop
    node = make().start()
    faults.fail("poll", errno.EINTR, times=3, fd=node.tap.fd)
    node.feed([FRAME] * 2)
    node.settle()
    node.feed([FRAME] * 2)
    done("poll")
    assert node.settle()["frames_queued"] == 4


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL])
def test_a_poll_of_the_device_that_fails_is_told(make, number):
    # a thread that ended without a word would leave a tunnel that sends nothing
    node = make().start()
    faults.fail("poll", number, fd=node.tap.fd)
    node.tap.feed(FRAME)
    eventually(lambda: select([node.plane.event_fd], [], [], 0)[0])
    assert node.plane.device_error() == number


def test_what_is_too_short_for_a_virtio_header_is_no_frame(make):
    node = make().start()
    node.tap.kernel.send(b"too short")
    node.tap.feed(FRAME)
    assert node.settle()["frames_queued"] == 1


# --- poll() and recvmmsg() of the UDP thread --------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.EINTR, None), (errno.ENOMEM, "other"), (errno.EINVAL, "other")],
)
def test_a_poll_of_the_socket_that_fails_is_counted_and_the_thread_goes_on(wired, number, name):
    # with revents of whatever there was: as if the thread were to stop
    wire = wired()
    faults.fail("poll", number, times=3, fd=wire.ours.fileno())
    for _ in range(4):
        wire.send(wire.datagram(plain(FRAME)))
        assert wire.opened(1) == [NO_OFFLOAD + FRAME]
    done("poll")
    assert counted(wire.node) == ({name: 3} if name else {})


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.EINTR, None),
        (errno.EAGAIN, None),
        (errno.ECONNREFUSED, "ECONNREFUSED"),
        (errno.ENETDOWN, "ENETUNREACH"),
        (errno.ENOMEM, "other"),
    ],
)
def test_a_receive_that_fails_is_counted_and_the_thread_goes_on(wired, number, name):
    wire = wired()
    faults.fail("recvmmsg", number, times=2, fd=wire.ours.fileno())
    wire.send(wire.datagram(plain(FRAME)))
    assert wire.opened(1) == [NO_OFFLOAD + FRAME]
    assert faults.left("recvmmsg") == 0
    assert counted(wire.node) == ({name: 2} if name else {})


# --- sendmmsg() and sendto() ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN, errno.ENOBUFS])
def test_a_frame_that_the_socket_does_not_take_at_once_is_sent_after_all(wired, number):
    wire = wired()
    wire.use()
    faults.fail("sendmmsg", number, fd=wire.ours.fileno())
    wire.node.tap.feed(FRAME)
    assert wire.received(1) == [(0, plain(FRAME))]
    assert faults.left("sendmmsg") == 0
    assert wire.node.settle()["frames_sent"] == 1
    assert counted(wire.node) == {}


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.EMSGSIZE, "EMSGSIZE"),
        (errno.EPERM, "EPERM"),
        (errno.EHOSTUNREACH, "ENETUNREACH"),
        (errno.EINVAL, "other"),
    ],
)
def test_a_frame_that_the_socket_refuses_is_counted_and_the_next_one_sent(wired, number, name):
    wire = wired()
    wire.use()
    faults.fail("sendmmsg", number, fd=wire.ours.fileno())
    wire.node.tap.feed(FRAME)
    done("sendmmsg")
    wire.node.tap.feed(frame(b"the next"))
    assert wire.received(1) == [(1, plain(frame(b"the next")))]
    assert wire.node.settle()["frames_sent"] == 1
    assert dropped(wire.node, "tx") == {"udp_send": 1}
    assert counted(wire.node) == {name: 1}


def send_train(wire: Wire, segments: int = 10) -> None:
    """A super-frame, as one train of datagrams; all of them arrive."""
    packet = some_tcp(segments * 100)
    wire.node.tap.feed(*reversed(packet.super_frame(100)))
    assert segments_of(wire, segments) == mix.flat(packet.super_frame(100))


def test_a_card_that_cuts_no_trains_is_asked_again_after_a_minute(wired):
    wire = wired()
    wire.use()
    send_train(wire)
    trains, singles = faults.calls("sendmmsg"), faults.calls("sendto")
    faults.fail("sendmmsg", errno.EIO, fd=wire.ours.fileno())
    for _ in range(3):  # the first is refused, the others are not even tried
        send_train(wire)
    assert faults.calls("sendmmsg") == trains + 1
    assert faults.calls("sendto") == singles + 30
    faults.later(MINUTE)
    send_train(wire)
    assert faults.calls("sendmmsg") == trains + 2
    assert faults.calls("sendto") == singles + 30
    assert counted(wire.node) == {}


def test_a_card_that_cuts_no_trains_is_that_of_one_peer_only(wired):
    wire = wired()
    wire.use()
    faults.fail("sendmmsg", errno.EIO, fd=wire.ours.fileno())
    send_train(wire)
    trains, singles = faults.calls("sendmmsg"), faults.calls("sendto")
    wire.node.session.close()
    wire.node.port.close()
    wire.node.port = Port(wire.node.plane)
    wire.node.session = wire.node.another_session()
    wire.node.start()
    wire.use()
    send_train(wire)
    assert (faults.calls("sendmmsg"), faults.calls("sendto")) == (trains + 1, singles)


@pytest.mark.parametrize("number", [errno.EINTR, errno.ENETUNREACH])
def test_a_datagram_of_a_train_that_is_sent_singly_may_fail(wired, number):
    wire = wired()
    wire.use()
    faults.fail("sendmmsg", errno.EIO, fd=wire.ours.fileno())
    faults.fail("sendto", number, fd=wire.ours.fileno())
    wire.node.tap.feed(*reversed(some_tcp(1000).super_frame(100)))
    lost = number != errno.EINTR
    segments_of(wire, 10 - lost)
    assert wire.node.settle()["frames_sent"] == 1 - lost
    assert counted(wire.node) == ({"ENETUNREACH": 1} if lost else {})


def test_the_hub_hears_with_which_errno_its_datagram_was_refused(wired):
    wire = wired()
    to = (wire.loopback, wire.port)
    for number, heard in ((errno.EINTR, 0), (errno.ENETUNREACH, errno.ENETUNREACH)):
        faults.fail("sendto", number)
        assert wire.node.plane.send_datagram(stun(), *to) == heard
        faults.fail("sendto", number)
        assert wire.node.session.send_udp_record(Inner.PROBE, bytes(8), *to) == heard


# --- write() and writev() -----------------------------------------------------------------------------

#: of a TAP device: its queue is full, it is down, it takes no such frame, it is gone
REFUSALS = [
    (errno.EAGAIN, "tap_full"),
    (errno.ENOBUFS, "tap_full"),
    (errno.EIO, "tap_down"),
    (errno.EINVAL, "tap_refused"),
    (errno.EBADFD, "tap_gone"),
    (errno.ENODEV, "tap_gone"),
]


@pytest.mark.parametrize(("number", "reason"), REFUSALS)
@pytest.mark.parametrize("path", ["wss", "udp"])
def test_a_frame_that_the_device_refuses_has_a_reason(wired, path, number, reason):
    wire = wired()
    node = wire.node
    if path == "wss":
        faults.fail("write", number, fd=node.tap.fd)
        peer = Peer(node)
        peer.send(plain(FRAME), plain(frame(b"the next")))
    else:
        faults.fail("writev", number, fd=node.tap.fd)
        wire.send(wire.datagram(plain(FRAME)))
        eventually(lambda: dropped(node, "rx"))
        wire.send(wire.datagram(plain(frame(b"the next"))))
    assert wire.opened(1) == [NO_OFFLOAD + frame(b"the next")]
    assert dropped(node, "rx") == {reason: 1}


@pytest.mark.parametrize("path", ["wss", "udp"])
def test_a_write_that_is_interrupted_is_made_again(wired, path):
    wire = wired()
    faults.fail("write", errno.EINTR, times=2, fd=wire.node.tap.fd)
    faults.fail("writev", errno.EINTR, times=2, fd=wire.node.tap.fd)
    if path == "wss":
        Peer(wire.node).send(plain(FRAME))
    else:
        wire.send(wire.datagram(plain(FRAME)))
    assert wire.opened(1) == [NO_OFFLOAD + FRAME]
    assert dropped(wire.node, "rx") == {}


# --- Memory, descriptors and threads that there are not ------------------------------------------------


def test_a_plane_without_memory_or_descriptors_is_none_and_leaves_none():
    files = open_files()
    faults.fail("calloc", errno.ENOMEM)
    with pytest.raises(MemoryError):
        DataPlane()
    for number in range(9):
        faults.fail("eventfd", errno.EMFILE, spared=number)
        with pytest.raises(OSError, match="open files") as caught:
            DataPlane()
        assert caught.value.errno == errno.EMFILE
    assert open_files() == files


def test_a_link_without_memory_or_descriptor_is_none(make):
    plane = make().plane
    files = open_files()
    faults.fail("mmap", errno.ENOMEM)
    with pytest.raises(MemoryError):
        Pipe(plane, client=True)
    faults.fail("eventfd", errno.EMFILE)
    with pytest.raises(OSError, match="open files"):
        Pipe(plane, client=True)
    assert open_files() == files


def test_without_memory_no_key_id_is_promised(make):
    session = make().session
    faults.fail("calloc", errno.ENOMEM)
    with pytest.raises(LocalProtocolError):
        session.reserve_key_id()
    assert session.reserve_key_id()


@pytest.mark.parametrize(
    ("function", "spared"),
    [("calloc", 0), ("calloc", 1), ("calloc", 3), ("pthread_create", 0), ("pthread_create", 1)],
)
def test_a_device_is_attached_with_all_of_its_threads_or_with_none(function, spared):
    taps, plane = [FakeTap(), FakeTap()], DataPlane()
    fds = [tap.fd for tap in taps]
    before = named_threads()
    faults.fail(function, errno.EAGAIN, spared=spared)
    with pytest.raises(DeviceError, match="out of threads or memory"):
        plane.attach_tap(fds, 1500)
    eventually(lambda: plane_threads(before) == [])
    plane.attach_tap(fds, 1500)
    eventually(lambda: len(plane_threads(before)) == 2)
    plane.detach_tap()
    for tap in taps:
        tap.close()


@pytest.mark.parametrize(
    ("function", "spared", "error"),
    [
        ("calloc", 0, MemoryError),
        ("calloc", 1, MemoryError),
        ("calloc", 2, MemoryError),
        ("pthread_create", 0, DeviceError),
    ],
)
def test_a_socket_that_cannot_be_served_is_not_attached(make, function, spared, error):
    node = make().start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        faults.fail(function, errno.EAGAIN, spared=spared)
        with pytest.raises(error):
            node.plane.attach_udp(sock.fileno(), socket.AF_INET)
        with pytest.raises(LocalProtocolError, match="no UDP socket"):
            node.session.use_udp("127.0.0.1", 9, 1400)
        node.tap.feed(FRAME)
        node.settle()
        node.plane.attach_udp(sock.fileno(), socket.AF_INET)
        node.plane.detach_udp()


def test_tap_threads_that_do_not_come_back_after_a_socket_are_told(wired):
    wire = wired()
    faults.fail("pthread_create", errno.EAGAIN)
    wire.node.plane.detach_udp()
    assert wire.node.plane.device_error() == errno.EAGAIN
    wire.node.plane.detach_tap()
    wire.node.plane.attach_tap([wire.node.tap.fd], 1500)
    wire.node.tap.feed(FRAME)
    wire.node.settle()


def test_a_capture_without_memory_is_none(make):
    plane = make().plane
    faults.fail("calloc", errno.ENOMEM)
    with pytest.raises(MemoryError):
        plane.start_capture(100)
    plane.start_capture(100)
    plane.stop_capture()


# --- What only time does --------------------------------------------------------------------------------


def test_a_partial_frame_is_given_up_after_a_second(wired):
    wire = wired()
    late = slices(wire, plain(frame(bytes(200))), 2)
    wire.send(late[0], wire.datagram(plain(FRAME)))
    wire.opened(1)  # so the one before has been taken by the clock that there was
    faults.later(2)
    wire.send(*slices(wire, plain(FRAME), 2, frag_id=8))
    assert wire.opened(1) == [NO_OFFLOAD + FRAME]
    assert wire.refused("fragment") == 1
    wire.send(late[1])
    assert wire.opened(0) == []


def test_after_a_rest_nothing_is_taken_that_is_older_than_the_last_datagram(wired):
    wire = wired()
    wire.send(wire.datagram(plain(FRAME), 0), wire.datagram(plain(FRAME), 4000))
    wire.opened(2)  # so both have been taken by the clock that there was
    wire.send(wire.datagram(plain(FRAME), 3999))
    assert len(wire.opened(1)) == 1
    faults.later(11)
    wire.send(wire.datagram(plain(FRAME), 3998), wire.datagram(plain(FRAME), 4001))
    assert len(wire.opened(1)) == 1
    assert wire.refused("replay") == 1


def test_keys_of_180_seconds_seal_nothing_more(wired):
    wire = wired()
    wire.use()
    to = (wire.loopback, wire.port)
    faults.later(181)
    with pytest.raises(LocalProtocolError, match="expired"):
        wire.node.session.send_udp_record(Inner.PROBE, bytes(8), *to)
    with pytest.raises(LocalProtocolError, match="key_expired"):
        wire.node.session.send_record(Inner.PADDING, b"")
    wire.node.tap.feed(FRAME)
    assert wire.node.settle()["tx_dropped"]["key_expired"] == 1
    wire.send(wire.datagram(plain(FRAME)))
    eventually(lambda: wire.refused("expired") == 1)
    with pytest.raises(RemoteProtocolError):
        Peer(wire.node).send(plain(FRAME))


# --- Destructors that the collector runs while signals are fetched ------------------------------------


class Nosy:
    """Garbage that looks for signals itself when it, and what it leaves, was collected often enough."""

    def __init__(self, look: Callable[[], Any], times: int) -> None:
        self.look = look
        self.times = times
        self.me = self

    def __del__(self) -> None:
        if self.times:
            Nosy(self.look, self.times - 1)
        else:
            self.look()


def test_a_destructor_may_fetch_signals_while_signals_are_fetched(wired):
    wire = wired()
    wire.send(*[wire.datagram(b"\x04%8d" % number) for number in range(60)])
    wire.send(wire.datagram(plain(FRAME)))
    wire.opened(1)
    fetched: list[Any] = []
    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    Nosy(lambda: fetched.extend(wire.node.plane.udp_signals()), 10)
    gc.set_threshold(1)
    gc.enable()
    try:
        outer = wire.node.plane.udp_signals()
    finally:
        gc.set_threshold(*before)
    assert outer, "the collector came too early"
    assert fetched, "the collector did not come by"
    probes = [one[3] for one in (*outer, *fetched) if one[2] == Inner.PROBE]
    assert sorted(probes) == sorted(b"%8d" % number for number in range(60))
    wire.send(wire.datagram(b"\x04" + b"go on..."), wire.datagram(plain(FRAME)))
    wire.opened(1)
    assert [one[3] for one in wire.node.plane.udp_signals()] == [b"go on..."]


# --- The secret of flows ------------------------------------------------------------------------------

#: Deals a hundred flows of a peer out to four queues, and prints how many frames each got.
DEALER = """
from tests.fastpath.rig import Node, Peer, plain
from tests.fastpath.test_queues import flow

node = Node(queues=4).start()
peer = Peer(node)
for number in range(100):
    peer.send(plain(flow(number)[1]))
print([written for _, written in node.plane.counters()["queues"]])
node.close()
"""


def test_nobody_knows_beforehand_which_queue_a_flow_goes_to():
    # with a hash that is the same everywhere a peer could give all its flows to one queue
    dealt = {
        subprocess.run(
            [sys.executable, "-c", DEALER], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    }
    assert len(dealt) > 1


# --- A socket that takes no more for a while: every frame goes in the end, or is counted ----------


def test_a_socket_that_is_full_for_long_costs_no_frame(wired):
    wire = wired()
    wire.use()
    faults.fail("sendmmsg", errno.EAGAIN, times=200, fd=wire.ours.fileno())
    for number in range(5):
        wire.node.tap.feed(frame(bytes([number]) * 90))
    assert wire.received(5) == [(n, plain(frame(bytes([n]) * 90))) for n in range(5)]
    done("sendmmsg")
    assert wire.node.settle()["frames_sent"] == 5
    assert counted(wire.node) == {}


def test_a_train_without_memory_twice_is_dropped_and_counted(wired):
    wire = wired()
    wire.use()
    faults.fail("sendmmsg", errno.ENOBUFS, times=2, fd=wire.ours.fileno())
    wire.node.tap.feed(FRAME)
    done("sendmmsg")
    wire.node.tap.feed(frame(b"the next"))
    assert wire.received(1)[0][1] == plain(frame(b"the next"))
    assert dropped(wire.node, "tx") == {"udp_send": 1}
    assert counted(wire.node) == {"ENOBUFS": 1}


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_a_train_that_is_sent_singly_goes_on_where_the_socket_was_full(wired, number):
    wire = wired()
    wire.use()
    faults.fail("sendmmsg", errno.EIO, fd=wire.ours.fileno())
    faults.fail("sendto", number, times=1, fd=wire.ours.fileno())
    wire.node.tap.feed(*reversed(some_tcp(1000).super_frame(100)))
    segments_of(wire, 10)
    assert wire.node.settle()["frames_sent"] == 1
    assert counted(wire.node) == {}
