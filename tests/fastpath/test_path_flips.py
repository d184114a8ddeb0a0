"""What changes under a batch of frames: the session that they leave by, and its path."""

from __future__ import annotations

import socket
import threading
from itertools import cycle, islice

from shadowmesh._fastpath import Pipe, Session
from shadowmesh.base.constants import Caps, Inner
from tests.fastpath.rig import CHACHA, KEYS, VNET_BYTES, Node, eventually
from tests.fastpath.sides import FRAME_OVERHEAD, PATH_BYTES
from tests.twins import mix, records, websocket

OTHER_KEYS = {name: bytes([number]) * 32 for number, name in enumerate(KEYS, 21)}
FRAMES = 800
#: of a frame in a datagram
ROOM = PATH_BYTES - FRAME_OVERHEAD - records.TAG_BYTES[CHACHA]


class Way:
    """One session to the same peer, on a link of its own."""

    def __init__(self, node: Node, keys: dict[str, bytes], caps: Caps) -> None:
        self.key = keys["out"]
        self.session: Session = node.another_session()
        self.pipe = Pipe(node.plane, client=False)
        local_id = self.session.reserve_key_id()
        self.session.install(
            local_id, 0x0A0B0C0D, CHACHA,
            wss_tx=keys["out"], wss_rx=keys["in"], udp_tx=keys["uout"], udp_rx=keys["uin"],
            peer_mtu_bytes=1500, peer_caps=int(caps),
        )  # fmt: skip
        self.session.bind(self.pipe)
        self.session.send_under(local_id)
        self.got = b""

    def take(self) -> None:
        while (ready := self.pipe.outgoing()) is not None:
            self.got += ready
            self.pipe.sent(len(ready))

    def frames(self) -> list[bytes]:
        """Return the records of what it got, all of which open under its own key."""
        messages, rest = websocket.decode_all(self.got, masked=False)
        assert rest == b""
        opened = [records.open_message(CHACHA, self.key, one.payload) for one in messages]
        assert None not in opened
        return [inner for one in opened for inner in one[2]]

    def close(self) -> None:
        self.session.close()
        self.pipe.close()


def test_a_batch_reaches_each_session_and_path_as_that_may_have_it(make):
    node = make()
    able = Way(node, KEYS, Caps.OFFLOAD | Caps.UDP_GSO | Caps.UDP)
    plain = Way(node, OTHER_KEYS, Caps(0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for one in (udp, theirs):
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    node.plane.attach_udp(udp.fileno(), socket.AF_INET)
    paths = cycle((
        lambda: able.session.use_udp(*theirs.getsockname(), PATH_BYTES),
        able.session.use_wss,
    ))  # fmt: skip
    over = threading.Event()

    def flip() -> None:
        # as often as it goes, so that it happens also while a batch is being sealed
        while not over.is_set():
            node.port.activate(plain.session)
            node.port.activate(able.session)

    flipping = threading.Thread(target=flip)
    fed: list[mix.Frame] = []
    datagrams: list[bytes] = []

    def drain() -> None:
        able.take()
        plain.take()
        while True:
            try:
                datagrams.append(theirs.recv(65536))
            except BlockingIOError:
                return

    node.port.activate(able.session)
    flipping.start()
    for number, frame in enumerate(islice(cycle(mix.corpus(7)), 20 * FRAMES)):
        if number >= FRAMES and able.got and plain.got and datagrams:
            break
        node.tap.feed(frame[1], frame[0])
        fed.append(frame)
        if number % 20 == 0:
            next(paths)()
        if number % 7 == 0:
            drain()
    over.set()
    flipping.join()

    def accounted() -> bool:
        drain()
        counters = node.plane.counters()
        gone = counters["frames_sent"] + sum(counters["tx_dropped"].values())
        return (
            node.fed <= counters["frames_read"] == gone
        )  # a super-frame that is cut counts as many

    eventually(accounted, "an account of all frames")
    drain()

    wire = {part for one in fed for most in (None, ROOM) for part in mix.flat(one, most)}
    for inner in able.frames():
        assert inner[0] in (Inner.FRAME, Inner.OFFLOAD_FRAME)
        head = 1 if inner[0] == Inner.FRAME else 1 + VNET_BYTES
        frame = (inner[1:head] or mix.NOTHING), inner[head:]
        assert wire.issuperset(mix.flat(frame))
    for inner in plain.frames():
        assert inner[0] == Inner.FRAME
        assert inner[1:] in wire
    opened = [records.open_datagram(CHACHA, KEYS["uout"], one) for one in datagrams]
    assert None not in opened
    assert {one[2][0] for one in opened} <= {Inner.FRAME, Inner.OFFLOAD_FRAME, Inner.FRAGMENT}
    assert all(one[2][2] == 0 for one in opened if one[2][0] == Inner.OFFLOAD_FRAME)
    # each had its turn, so that the above says something
    assert able.frames()
    assert plain.frames()
    assert opened
    node.plane.detach_udp()
    for way in (able, plain):
        way.close()
    for one in (udp, theirs):
        one.close()
