"""What the data plane lets the host hold of its datagrams when the line of the host is slow.

rig.Node -- UDP socket -- eth0 (20 Mbit/s, 4 s of queue) ------- eth0 -- UDP socket: the test
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import itertools
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from shadowmesh.fast.hooks.queues import SIZES
from shadowmesh.netlab import Host, Net
from tests.fastpath.rig import CHACHA, KEYS, NO_OFFLOAD, Node, eventually
from tests.fastpath.test_backlog import frame_of
from tests.twins import records

pytestmark = pytest.mark.netns

SIOCOUTQ = 0x5411  # linux/sockios.h
LINE = "rate 20mbit burst 16kb latency 4s"
CRAWLING = "rate 1mbit burst 4kb latency 20s"
PAYLOAD = 1472
BULK, KEY_PRESS = 1, 2  # ports
FRAME_BYTES = 1400
#: what a line of 20 Mbit/s takes in 5 ms, what is chosen on top of it, and what the kernel adds
HELD_BYTES = 4 * SIZES["LINE_LEAST"]


@dataclass
class Line:
    """A node whose datagrams leave over a slow line, and who receives them."""

    node: Node
    ours: socket.socket
    theirs: socket.socket

    @property
    def held(self) -> int:
        """Bytes that the host of the node holds unsent, as the kernel counts them."""
        held = array.array("i", [0])
        fcntl.ioctl(self.ours, SIOCOUTQ, held)
        return held[0]

    def offer(self, frames: Iterator[bytes], count: int) -> None:
        """Let the device have so many frames, as many as it has room for."""
        for one in itertools.islice(frames, count):
            self.node.tap.fed += self.node.tap._offer(NO_OFFLOAD + one)

    def receive(self) -> list[bytes]:
        """Return the records that have come since the last call."""
        inners = []
        with contextlib.suppress(BlockingIOError):
            while True:
                opened = records.open_datagram(CHACHA, KEYS["uout"], self.theirs.recv(2048))
                assert opened is not None
                inners.append(opened[2])
        return inners


@pytest.fixture(scope="module")
def hosts():
    with Net() as net:
        left, right = net.namespace("left", 1), net.namespace("right", 2)
        left.ip(f"link add eth0 type veth peer name eth0 netns {right.namespace}")
        for host in (left, right):
            host.ip(f"address add {host.ipv4}/24 dev eth0", "link set eth0 up")
        yield left, right


@pytest.fixture
def line(hosts: tuple[Host, Host]):
    left, right = hosts
    ours, theirs = (host.open_socket(socket.AF_INET, socket.SOCK_DGRAM) for host in hosts)
    for host, one in ((left, ours), (right, theirs)):
        one.bind((host.ipv4, 0))
        one.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    left.run("tc", *f"qdisc add dev eth0 root tbf {LINE}".split())
    node = Node().start()
    node.plane.attach_udp(ours.fileno(), socket.AF_INET)
    node.session.use_udp(*theirs.getsockname(), PAYLOAD)
    try:
        yield Line(node, ours, theirs)
    finally:
        node.plane.detach_udp()
        node.close()
        left.run("tc", "qdisc", "del", "dev", "eth0", "root")
        ours.close()
        theirs.close()


def bulk() -> Iterator[bytes]:
    for number in itertools.count():
        yield frame_of(BULK, number, FRAME_BYTES)


def fill(line: Line, frames: Iterator[bytes], received: list[bytes]) -> None:
    """Offer more than the line takes until its limit is known, and a little longer."""
    while len(received) < 1500:
        line.offer(frames, 20)
        received += line.receive()
        time.sleep(0.002)  # the device is kept full; how long a turn takes does not matter


def test_the_host_holds_little_while_more_comes_than_the_line_takes(line):
    frames, received = bulk(), []
    fill(line, frames, received)
    most = 0
    while len(received) < 3000:
        line.offer(frames, 20)
        received += line.receive()
        most = max(most, line.held)
        # Who watches the link must not take it for one that stands still.
        assert line.node.pipe.queued_bytes == 0
        time.sleep(0.002)
    assert 0 < most <= HELD_BYTES
    assert line.node.plane.counters()["frames_queued"] > 0


def test_who_has_nothing_waiting_does_not_wait_for_the_bulk(line):
    frames, received = bulk(), []
    fill(line, frames, received)
    key_press = frame_of(KEY_PRESS, 0, 60)
    behind = len(received)
    line.node.feed([key_press])

    def arrived() -> bool:
        line.offer(frames, 20)
        received.extend(line.receive())
        return any(key_press in inner for inner in received[behind:])

    eventually(arrived)
    passed = next(n for n, inner in enumerate(received[behind:]) if key_press in inner)
    assert passed * FRAME_BYTES <= 2 * HELD_BYTES


def test_a_socket_that_is_full_costs_no_frame(line, hosts):
    hosts[0].run("tc", *f"qdisc change dev eth0 root tbf {CRAWLING}".split())
    # one datagram fills it, for many times longer than the thread ever slept
    line.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for number in range(12):
        line.node.feed([frame_of(BULK + number, number, 9000 // 8)])
    received: list[bytes] = []
    eventually(lambda: received.extend(line.receive()) or len(received) >= 12)
    counters = line.node.settle()
    assert counters["frames_sent"] == 12
    assert not any(counters["tx_dropped"].values())


def test_a_plane_that_is_taken_down_accounts_for_what_its_socket_did_not_take(line, hosts):
    hosts[0].run("tc", *f"qdisc change dev eth0 root tbf {CRAWLING}".split())
    # more than the host may hold, of a line that takes a hundred of them a second
    line.node.feed(itertools.islice(bulk(), 600))
    counters = line.node.settle()
    assert counters["frames_queued"] > 0
    line.node.plane.detach_tap()
    counters = line.node.plane.counters()
    assert counters["frames_queued"] == 0
    assert counters["tx_dropped"]["tap_gone"] + counters["tx_dropped"]["udp_send"] > 0
    assert counters["frames_read"] == counters["frames_sent"] + sum(counters["tx_dropped"].values())
