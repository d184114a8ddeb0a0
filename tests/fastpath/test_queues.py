"""Several queues of the device: one thread each, one session, one set of keys, one socket."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import struct
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from shadowmesh._fastpath import DataPlane
from shadowmesh.base.constants import MAX_QUEUES, Inner
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.fast.hooks import queues as hooks
from shadowmesh.fast.hooks.records import TxCounters
from tests.fastpath.rig import (
    CHACHA,
    CIPHERS,
    KEYS,
    MTU,
    NO_OFFLOAD,
    FakeTap,
    Node,
    Peer,
    eventually,
    frame,
    named_threads,
    plain,
    plane_threads,
    unpack,
    vnet,
)
from tests.fastpath.test_alloc import grown, quiet
from tests.twins import records

PAYLOAD = 1452
#: A TCP super-frame of 20 segments: IPv4, no options; the addresses are ours to choose.
TCP_HEADERS = 14 + 20 + 20
SEGMENT = 1300
SUPER_VNET = vnet(1, 1, TCP_HEADERS, SEGMENT, 34, 16)


def numbered(queue: int, number: int, size: int = 100) -> bytes:
    """A frame that says from which queue it is and which of its frames."""
    return frame(struct.pack(">BI", queue, number).ljust(size, b"."))


def super_frame(segments: int) -> bytes:
    total = 20 + 20 + segments * SEGMENT
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, total, 7, 0x4000, 64, 6, 0, b"\n\0\0\1", b"\n\0\0\2")
    tcp = struct.pack(">HHIIBBHHH", 4000, 5000, 1, 1, 0x50, 0x10, 500, 0, 0)
    return frame()[:14] + ip + tcp + bytes(segments * SEGMENT)


class Sink:
    """A node that sends over UDP, and the socket that its datagrams come to."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ours, self.theirs = (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)
        )
        for one in (self.ours, self.theirs):
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
        self.datagrams: list[bytes] = []
        node.plane.attach_udp(self.ours.fileno(), socket.AF_INET)
        self.use()

    def use(self) -> None:
        self.node.session.use_udp(*self.theirs.getsockname(), PAYLOAD)

    def drain(self) -> None:
        while True:
            try:
                self.datagrams.append(self.theirs.recv(70_000))
            except BlockingIOError:
                return

    def await_datagrams(self, count: int) -> None:
        eventually(lambda: self.drain() or len(self.datagrams) == count, f"{count} datagrams")

    def close(self) -> None:
        self.node.plane.detach_udp()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def sink(make):
    sinks: list[Sink] = []

    def build(queues: int = MAX_QUEUES, cipher: str = CHACHA) -> Sink:
        sinks.append(Sink(make(queues=queues).start(cipher)))
        return sinks[-1]

    yield build
    for one in sinks:
        one.close()


def assert_in_order(frames: list[bytes], expected: dict[int, int]) -> None:
    """Each queue's frames are there from 0 on, none twice, none before an earlier one."""
    found = defaultdict(list)
    for data in frames:
        queue, number = struct.unpack_from(">BI", data, 14)
        found[queue].append(number)
    assert found == {queue: list(range(count)) for queue, count in expected.items()}


# --- Threads ------------------------------------------------------------------------------------


def test_each_queue_has_a_thread_with_a_name():
    before, taps = named_threads(), [FakeTap() for _ in range(MAX_QUEUES)]
    plane = DataPlane()
    for count in (4, 1, 3):
        plane.attach_tap([tap.fd for tap in taps[:count]], MTU)
        wanted = [f"sm-tap-{number}" for number in range(count)]
        eventually(lambda wanted=wanted: plane_threads(before) == wanted)
        plane.detach_tap()
        eventually(lambda: plane_threads(before) == [])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        plane.attach_udp(sock.fileno(), socket.AF_INET)
        eventually(lambda: "sm-udp" in plane_threads(before))
        plane.attach_tap([tap.fd for tap in taps], MTU)
        plane.detach_udp()
        eventually(lambda: len(plane_threads(before)) == MAX_QUEUES)
    plane.detach_tap()
    for tap in taps:
        tap.close()


@pytest.mark.parametrize("count", [0, MAX_QUEUES + 1])
def test_another_number_of_queues_is_refused(count):
    with pytest.raises(ValueError, match=r"queues are outside 1\.\.4"):
        DataPlane().attach_tap([0] * count, MTU)


def test_a_bad_descriptor_among_good_ones_is_refused():
    tap = FakeTap()
    for fds, why in (([tap.fd, -1], "out of range"), ([tap.fd, 0], "non-blocking")):
        with pytest.raises(ValueError, match=why):
            DataPlane().attach_tap(fds, MTU)
    tap.close()


def test_one_queue_that_fails_is_told(tmp_path):
    tap = FakeTap()
    unreadable = os.open(tmp_path, os.O_RDONLY | os.O_NONBLOCK)  # read() gives EISDIR
    plane = DataPlane()
    plane.attach_tap([tap.fd, unreadable], MTU)
    assert eventually(plane.device_error) == errno.EISDIR
    plane.detach_tap()
    tap.close()
    os.close(unreadable)


# --- Out ----------------------------------------------------------------------------------------


def test_all_queues_share_the_consecutive_counters_of_a_link(make):
    node = make(client=True, queues=4).start()
    for number in range(50):
        for queue, tap in enumerate(node.taps):
            tap.feed(numbered(queue, number))
    counters = node.settle()
    messages = unpack(node.take_outgoing(), node)
    following = 0
    frames = []
    for _, first, inners in messages:
        assert first == following
        following += len(inners)
        frames += [inner[1:] for inner in inners]
    assert_in_order(frames, dict.fromkeys(range(4), 50))
    assert [read for read, _ in counters["queues"]] == [50] * 4


def test_all_queues_wait_for_room_in_the_ring(make):
    node = make(queues=4).start()
    sent = b""
    for number in range(300):
        for queue, tap in enumerate(node.taps):
            tap.feed(numbered(queue, number, 1400))
        if number % 100 == 99:  # more than the ring holds has come since: all threads wait for it
            eventually(lambda: node.pipe.queued_bytes > 256 * 1024)
            sent += node.take_outgoing()

    def all_done() -> bool:
        nonlocal sent
        sent += node.take_outgoing()
        counters = node.plane.counters()
        return counters["frames_sent"] + sum(counters["tx_dropped"].values()) == 1200

    eventually(all_done)
    frames = [inner[1:] for *_, inners in unpack(sent, node) for inner in inners]
    if len(frames) == 1200:
        assert_in_order(frames, dict.fromkeys(range(4), 300))
    # Else this test was stopped for so long that a queue was too long (backlog.pxd).
    assert len(frames) > 600


@pytest.mark.parametrize("cipher", CIPHERS)
def test_over_udp_no_counter_is_taken_twice_and_each_queue_keeps_its_order(sink, cipher):
    wire = sink(4, cipher)
    for number in range(60):
        for queue, tap in enumerate(wire.node.taps):
            tap.feed(numbered(queue, number, 20 if queue % 2 else 1300))
        if number % 10 == 9:  # more than that the socket does not hold
            wire.await_datagrams(4 * (number + 1))
    counters = wire.node.settle()
    opened = [records.open_datagram(cipher, KEYS["uout"], one) for one in wire.datagrams]
    assert sorted(counter for _, counter, _ in opened) == list(range(240))
    assert_in_order([inner[1:] for *_, inner in opened], dict.fromkeys(range(4), 60))
    assert counters["frames_sent"] == 240


def test_threads_that_take_counters_at_once_get_each_of_them_once():
    counters, times, takers = TxCounters(), 500_000, 4
    with ThreadPoolExecutor(takers) as pool:
        total = sum(pool.map(counters.take, [times] * takers))
    taken = times * takers
    assert counters.take(1) == taken
    assert total == taken * (taken - 1) // 2


def test_the_fragments_of_a_frame_have_consecutive_counters_whoever_else_seals(sink):
    wire = sink(4)
    for number in range(40):
        for queue, tap in enumerate(wire.node.taps):
            tap.feed(numbered(queue, number, 1480))
        if number % 10 == 9:
            wire.await_datagrams(8 * (number + 1))
    halves = defaultdict(dict)
    for one in wire.datagrams:
        _, counter, inner = records.open_datagram(CHACHA, KEYS["uout"], one)
        kind, identity, index, total = struct.unpack_from("<BHBB", inner)
        assert (kind, total) == (Inner.FRAGMENT, 2)
        halves[identity][index] = counter, inner[5:]
    assert len(halves) == 160  # no two frames have one id
    assert all(pair[1][0] == pair[0][0] + 1 for pair in halves.values())
    frames = [pair[0][1] + pair[1][1] for pair in halves.values()]
    assert sorted(data[15:20] for data in frames) == sorted(
        struct.pack(">BI", queue, number) for queue in range(4) for number in range(40)
    )


def test_frames_over_several_queues_allocate_nothing(sink):
    wire = sink(4)
    data = [NO_OFFLOAD + numbered(queue, 0, 1400) for queue in range(4)]
    buffer = bytearray(2000)
    got = 0

    def batch() -> None:
        nonlocal got
        for tap, one in zip(wire.node.taps, data, strict=True):
            for _ in range(8):
                tap.kernel.send(one)
        for _ in range(32):
            while True:
                try:
                    wire.theirs.recv_into(buffer)
                    break
                except BlockingIOError:
                    continue
            got += 1

    assert quiet(grown(batch, 150))
    assert got == 170 * 32


# --- Keys that change while four threads seal ------------------------------------------------------


def keys_of(number: int) -> dict[str, bytes]:
    """The keys of epoch `number`, of which no two share a byte by more than chance."""
    return {
        name: hashlib.sha256(f"{name} {number}".encode()).digest()
        for name in ("wss_tx", "wss_rx", "udp_tx", "udp_rx")
    }


class Rekeys:
    """A node's session, given new keys again and again; the peer's key id is the number."""

    def __init__(self, wire: Sink) -> None:
        self.wire = wire
        self.node = wire.node
        self.number = 0
        self.current = wire.node.local_id

    def install(self) -> int:
        self.number += 1
        session = self.node.session
        key_id = session.reserve_key_id()
        session.install(
            key_id,
            self.number,
            CHACHA,
            **keys_of(self.number),
            peer_mtu_bytes=MTU,
            peer_caps=2,
        )
        return key_id

    def rekey(self) -> None:
        """As after a handshake: the new keys, then the end of the old."""
        key_id = self.install()
        self.node.session.send_under(key_id)
        self.node.session.retire(self.current)
        self.current = key_id

    def retire_first(self) -> None:
        """Nothing may be sealed between the old keys and the new."""
        self.node.session.retire(self.current)
        self.current = self.install()
        self.node.session.send_under(self.current)

    def replace_session(self) -> None:
        self.node.session.close()
        self.node.session = self.node.another_session()
        self.current = self.install()
        self.node.session.send_under(self.current)
        self.wire.use()
        self.node.port.activate(self.node.session)

    def probe(self) -> None:
        """The hub seals, too."""
        self.node.session.send_udp_record(Inner.PROBE, bytes(8), *self.wire.theirs.getsockname())


def test_keys_that_change_under_four_sealing_threads_are_used_once_and_never_after(sink):
    wire = sink(4)
    rekeys = Rekeys(wire)
    rekeys.retire_first()
    source = random.Random(7)
    big = super_frame(20)
    numbers = [0, 0]
    rounds = 3000
    for turn in range(rounds):
        for queue in (0, 1):
            for _ in range(source.randrange(5)):
                wire.node.taps[queue].feed(numbered(queue, numbers[queue]))
                numbers[queue] += 1
        if turn % 4 == 0:  # sealing one takes long enough to lose its keys in the middle
            for queue in (2, 3):
                wire.node.taps[queue].feed(big, SUPER_VNET)
        source.choices(
            [rekeys.rekey, rekeys.retire_first, rekeys.replace_session, rekeys.probe],
            [80, 10, 2, 20],
        )[0]()
        wire.drain()
    counters = wire.node.settle()
    wire.drain()
    assert rekeys.number > rounds * 0.7
    seen = set()
    frames = defaultdict(list)
    segments = 0
    for one in wire.datagrams:
        # Sealed under erased keys, or under half of a key, it would not open.
        number = int.from_bytes(one[4:8], "little")
        assert 0 < number <= rekeys.number
        opened = records.open_datagram(CHACHA, keys_of(number)["udp_tx"], one)
        assert opened is not None
        assert opened[:2] not in seen
        seen.add(opened[:2])
        inner = opened[2]
        if inner[0] == Inner.FRAME:
            queue, place = struct.unpack_from(">BI", inner, 15)
            frames[queue].append(place)
        segments += inner[0] == Inner.OFFLOAD_FRAME
    assert segments > 1000
    for queue in (0, 1):
        # What came between two keys was dropped: on a busy machine that is more than half.
        assert len(frames[queue]) > numbers[queue] / 10
        assert frames[queue] == sorted(set(frames[queue]))
    dropped = {reason: count for reason, count in counters["tx_dropped"].items() if count}
    assert set(dropped) <= {"not_connected"}


# --- In -----------------------------------------------------------------------------------------


def ipv4(
    source: str, to: str, protocol: int, ports: tuple[int, int] = (0, 0), flags: int = 0x4000
) -> bytes:
    addresses = socket.inet_aton(source), socket.inet_aton(to)
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 1, flags, 64, protocol, 0, *addresses)
    return frame()[:12] + b"\x08\x00" + head + struct.pack(">HHHH", *ports, 8, 0)


def ipv6(source: str, to: str, protocol: int, ports: tuple[int, int]) -> bytes:
    addresses = (socket.inet_pton(socket.AF_INET6, one) for one in (source, to))
    head = struct.pack(">IHBB16s16s", 6 << 28, 8, protocol, 64, *addresses)
    return frame()[:12] + b"\x86\xdd" + head + struct.pack(">HHHH", *ports, 8, 0)


def tagged(data: bytes, *tags: int) -> bytes:
    return data[:12] + b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags) + data[12:]


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize(
    ("build", "here", "there"), [(ipv4, "10.0.0.1", "10.0.0.2"), (ipv6, "fd00::1", "fd00::2")]
)
def test_both_directions_of_a_flow_are_one(build, here, there, protocol):
    for port in range(1000, 1200):
        out = build(here, there, protocol, (port, 443))
        back = build(there, here, protocol, (443, port))
        assert hooks.flow_hash(out) == hooks.flow_hash(back)
        assert hooks.flow_hash(tagged(out, 7)) == hooks.flow_hash(tagged(back, 7, 9))
    flows = {hooks.flow_hash(build(here, there, protocol, (port, 443))) for port in range(1000)}
    assert len(flows) > 950


def test_flows_whose_addresses_differ_in_the_same_bits_are_told_apart():
    # the XOR of both ends, which anybody can keep the same, once was all that a flow was known by
    flows = {
        hooks.flow_hash(ipv4(f"10.0.0.{n}", f"10.0.0.{n ^ 0x55}", 17, (5000 + n, 5000 ^ n)))
        for n in range(256)
    }
    same = {hooks.flow_hash(ipv4(f"10.0.{n}.1", f"10.1.{n}.1", 17, (53, 53))) for n in range(256)}
    assert min(len(flows), len(same)) > 250


def test_what_the_kernel_takes_for_one_flow_is_not_split():
    # fragments of one pair of hosts, whatever looks like ports; all ARP; a protocol without ports
    more, last = 0x2000, 0x0005
    fragments = {
        hooks.flow_hash(ipv4("10.0.0.1", "10.0.0.2", 17, (port, 53), flags))
        for port in range(50)
        for flags in (more, last)
    }
    assert len(fragments) == 1
    arp = {hooks.flow_hash(frame()[:6] + bytes([2, 0, 0, 0, 0, n]) + b"\x08\x06") for n in range(9)}
    assert len(arp) == 1
    icmp = {hooks.flow_hash(ipv4("10.0.0.1", "10.0.0.2", 1, (n, n))) for n in range(9)}
    assert len(icmp) == 1


def test_a_frame_that_is_cut_off_anywhere_still_has_a_flow():
    for whole in (
        ipv4("10.0.0.1", "10.0.0.2", 6, (1, 2)),
        ipv6("fd00::1", "fd00::2", 17, (1, 2)),
        tagged(ipv4("10.0.0.1", "10.0.0.2", 6, (1, 2)), 1, 2, 3),
        frame()[:12] + b"\x08\x00\xff" + bytes(30),
    ):
        for size in range(len(whole) + 1):
            assert hooks.flow_hash(whole[:size]) == hooks.flow_hash(whole[:size])


def flow(number: int) -> tuple[bytes, bytes]:
    """(what this host sends, what the peer sends) of one flow."""
    return (
        ipv4("10.0.0.1", "10.0.0.2", 17, (2000 + number, 53)),
        ipv4("10.0.0.2", "10.0.0.1", 17, (53, 2000 + number)),
    )


def test_flows_of_the_peer_are_dealt_out_to_all_queues():
    steering = hooks.Steering(4)
    found = [steering.into(flow(number)[1]) for number in range(400)]
    assert all(60 < found.count(queue) < 140 for queue in range(4))
    assert [steering.into(flow(number)[1]) for number in range(400)] == found


def test_a_flow_that_this_host_began_stays_where_the_kernel_put_it():
    steering = hooks.Steering(4)
    for number in range(20):  # of which no two share a bucket
        out, back = flow(number)
        steering.out(number % 4, out)
        assert steering.into(back) == number % 4


def test_a_flow_does_not_move_while_frames_come_in():
    steering = hooks.Steering(4)
    out, back = flow(1)
    queue = steering.into(back)
    other = (queue + 1) % 4
    steering.out(other, out, later_ms=1000)  # read from there before the kernel followed
    assert steering.into(back) == queue
    steering.out(other, out, later_ms=2500)  # the kernel has forgotten the flow, and put it there
    assert steering.into(back) == other


def test_a_device_with_one_queue_has_no_choice():
    steering = hooks.Steering(1)
    assert {steering.into(flow(number)[1]) for number in range(50)} == {0}


def test_frames_in_go_to_the_queue_of_their_flow_over_either_path(sink):
    wire = sink(4)
    node = wire.node
    peer = Peer(node)
    for number in range(8):  # the host speaks first, and the kernel has chosen
        node.taps[number % 4].feed(flow(number)[0])
    node.settle()
    for number in range(8):
        peer.send(plain(flow(number)[1]))
        datagram = records.seal_datagram(
            CHACHA, KEYS["uin"], node.local_id, number, plain(flow(number)[1])
        )
        wire.theirs.sendto(datagram, wire.ours.getsockname())
    eventually(lambda: node.plane.counters()["frames_written"] == 16)
    for queue, tap in enumerate(node.taps):
        expected = [NO_OFFLOAD + flow(number)[1] for number in range(queue, 8, 4) for _ in "wu"]
        assert sorted(tap.take()) == sorted(expected)
    assert node.plane.counters()["queues"] == [(2, 4)] * 4


# --- Order of calls -------------------------------------------------------------------------------


def test_a_device_comes_and_goes_with_another_number_of_queues(make):
    node = make(queues=4).start()
    total = 0
    for count in (1, 4, 2, 3):
        node.plane.detach_tap()
        with pytest.raises(LocalProtocolError, match="attached already"):
            node.plane.attach_tap([tap.fd for tap in node.taps[:count]], MTU)
            node.plane.attach_tap([tap.fd for tap in node.taps[:count]], MTU)
        for tap in node.taps[:count]:
            tap.feed(frame())
        total += count
        assert node.settle()["frames_queued"] == total
