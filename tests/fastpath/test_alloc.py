"""Frames cost no allocation: neither of Python objects nor of C memory."""

from __future__ import annotations

import ctypes
import gc
import socket
import sys
from typing import Any

import pytest

from tests.fastpath.rig import Node, frame, offload, plain, vnet
from tests.twins import records, websocket
from tests.twins.offload import ACK, Ipv4, Packet, Tcp

BATCH = 64
FRAMES = [frame(bytes([i]) * 1400) for i in range(BATCH)]


class MallInfo2(ctypes.Structure):
    """Source: mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = MallInfo2


def c_memory() -> int:
    """Bytes that malloc has handed out, mapped ones included."""
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def grown(work: Any, rounds: int) -> tuple[int, int]:
    """(Python blocks, C bytes) that `rounds` of work leave behind, after a warm-up."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):  # fills what the collector has emptied: lists of free objects
            work()
        blocks, memory = sys.getallocatedblocks(), c_memory()
        for _ in range(rounds):
            work()
        return sys.getallocatedblocks() - blocks, c_memory() - memory
    finally:
        gc.enable()


def quiet(growth: tuple[int, int]) -> bool:
    # a few blocks are counters that became larger integers, and the like
    blocks, memory = growth
    return blocks < 10 and memory < 4096


@pytest.fixture
def node(make) -> Node:
    return make(client=True).start()


def let_some_wait(node: Node) -> None:
    """What frames need to wait is there once some had to."""
    fed = 4 * BATCH  # more than the ring takes at first
    node.feed(FRAMES * 4)
    while node.plane.counters()["frames_sent"] < fed:
        ready = node.pipe.outgoing()
        if ready is not None:
            node.pipe.sent(len(ready))


def test_frames_out_allocate_nothing(node):
    let_some_wait(node)
    sent = node.fed

    def batch() -> None:
        nonlocal sent
        for data in FRAMES:
            node.tap.feed(data)
        sent += BATCH
        while node.plane.counters()["frames_sent"] < sent:
            ready = node.pipe.outgoing()
            if ready is not None:
                node.pipe.sent(len(ready))

    assert quiet(grown(batch, 200))
    assert node.plane.counters()["frames_read"] == sent


def test_super_frames_out_allocate_nothing(node):
    packet = Packet(Ipv4(bytes(4), bytes(4)), Tcp(1, 2, 3, 4, 0, ACK, 5, 0, b""), bytes(60_000))
    message = b"".join(packet.super_frame(1400))
    sent = 0

    def batch() -> None:
        nonlocal sent
        node.tap.feed(message[10:], message[:10])
        sent += 1
        while node.plane.counters()["frames_sent"] < sent:
            ready = node.pipe.outgoing()
            if ready is not None:
                node.pipe.sent(len(ready))

    assert quiet(grown(batch, 200))


def test_frames_in_allocate_nothing(node):
    # sealed ahead: what is measured is only the way from the socket to the device
    rounds = 120
    counter = 0
    stream = []
    inners = [plain(data) for data in FRAMES[:20]] + [offload(vnet(flags=2), FRAMES[0])]
    for _ in range(rounds + 20):
        message = records.seal_message(records.CHACHA, b"\x02" * 32, node.local_id, counter, inners)
        counter += len(inners)
        stream.append(websocket.encode(websocket.Frame(websocket.BINARY, message)))
    place = iter(range(len(stream)))
    device = bytearray(70_000)

    def batch() -> None:
        data = stream[next(place)]
        for start in range(0, len(data), 16_384):
            part = data[start : start + 16_384]
            room = node.pipe.recv_buffer()
            room[: len(part)] = part
            node.pipe.ingest(len(part))
        for _ in inners:
            node.tap.kernel.recv_into(device)

    assert quiet(grown(batch, rounds))
    assert node.plane.counters()["frames_written"] == counter


def test_frames_over_udp_allocate_nothing(make, request):
    one, other = make().start(), make()
    other.local_id = other.session.reserve_key_id(one.remote_id)
    other.install(other.local_id, one.local_id, swap=True)
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    request.addfinalizer(lambda: [sock.close() for sock in sockets])
    for node, sock in zip((one, other), sockets, strict=True):
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        node.plane.attach_udp(sock.fileno(), socket.AF_INET)
    one.session.use_udp(*sockets[1].getsockname(), 1452)
    big = [frame(bytes([i]) * 1486) for i in range(8)]
    device = bytearray(70_000)
    got = 0

    def batch() -> None:
        nonlocal got
        for data in big:  # each in two fragments
            one.tap.feed(data)
        for _ in big:
            while True:
                try:
                    other.tap.kernel.recv_into(device)
                    break
                except BlockingIOError:
                    continue
            got += 1

    for _ in range(80):
        batch()  # of 16 datagrams: after 1,024 the replay window has its ring
    assert quiet(grown(batch, 150))
    assert got == 250 * len(big)
    for node in (one, other):
        node.plane.detach_udp()
