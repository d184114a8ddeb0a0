"""A plane with several peers on a bench: the peers are the slow twins at the end of their paths.

host --FakeTap--> plane of a Hub --Pipe or UDP socket--> Far, Far, ...
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from shadowmesh._fastpath import DataPlane, Pipe, Port, Session
from shadowmesh.base.constants import Caps
from tests.fastpath.rig import CHACHA, KEYS, FakeTap, eventually, ingest
from tests.twins import records, websocket

BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    return b"\x02\0" + number.to_bytes(4)


class Far:
    """A peer at the other end of a path of the plane, with keys of its own."""

    def __init__(self, hub: Hub, number: int, *, belongs: bool = True, udp: bool = False) -> None:
        plane = hub.plane
        self.mac = mac(100 + number)
        self.keys = {name: key[:28] + number.to_bytes(4) for name, key in KEYS.items()}
        self.port = Port(plane, self.mac)
        self.session = Session(plane)
        if belongs:
            self.session.belongs_to(self.port)
        self.pipe = None if udp else Pipe(plane, client=False)
        self.local_id = self.session.reserve_key_id()
        self.remote_id = 0x5000_0000 + number
        self.session.install(
            self.local_id, self.remote_id, CHACHA,
            wss_tx=self.keys["out"], wss_rx=self.keys["in"],
            udp_tx=self.keys["uout"], udp_rx=self.keys["uin"],
            peer_mtu_bytes=1500, peer_caps=int(Caps.OFFLOAD | Caps.UDP),
        )  # fmt: skip
        self.session.bind(self.pipe)
        self.session.send_under(self.local_id)
        self.counter = 0
        self._hub = hub
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM) if udp else None
        if self._socket is not None:
            self._socket.bind(("127.0.0.1", 0))
            self._socket.setblocking(False)
            self.session.use_udp(*self._socket.getsockname(), 1452)

    def connect(self) -> Far:
        self.port.activate(self.session)
        return self

    def got(self) -> list[bytes]:
        """Return the frames that were sent to it since the last call."""
        inners = self._got_messages() if self._socket is None else self._got_datagrams()
        return [inner[1:] for inner in inners]

    def _got_messages(self) -> list[bytes]:
        taken = b""
        while (ready := self.pipe.outgoing()) is not None:
            taken += ready
            self.pipe.sent(len(ready))
        messages, rest = websocket.decode_all(taken, masked=False)
        assert rest == b""
        inners = []
        for message in messages:
            opened = records.open_message(CHACHA, self.keys["out"], message.payload)
            assert opened is not None
            assert opened[0] == self.remote_id
            inners += opened[2]
        return inners

    def _got_datagrams(self) -> list[bytes]:
        inners = []
        while True:
            try:
                opened = records.open_datagram(CHACHA, self.keys["uout"], self._socket.recv(2000))
            except BlockingIOError:
                return inners
            assert opened is not None
            assert opened[0] == self.remote_id
            inners.append(opened[2])

    def sealed(self, frame: bytes) -> bytes:
        """Return a frame from it as the plane is to read it."""
        inner = b"\x01" + frame
        self.counter += 1
        if self._socket is not None:
            return records.seal_datagram(
                CHACHA, self.keys["uin"], self.local_id, self.counter - 1, inner
            )
        message = records.seal_message(
            CHACHA, self.keys["in"], self.local_id, self.counter - 1, [inner]
        )
        return websocket.encode(websocket.Frame(websocket.BINARY, message, mask=bytes(4)))

    def send(self, frame: bytes) -> None:
        """Let it send a frame; over UDP, where another thread has it next, wait for nothing."""
        if self._socket is not None:
            self._socket.sendto(self.sealed(frame), self._hub.udp.getsockname())
        else:
            ingest(self.pipe, self.sealed(frame))

    def close(self) -> None:
        self.session.close()
        if self.pipe is not None:
            self.pipe.close()
        if self._socket is not None:
            self._socket.close()
        self.port.close()


class Hub:
    """A plane with so many peers, connected: those over UDP whose number `by_udp` takes."""

    def __init__(self, count: int, by_udp: Callable[[int], bool] = lambda number: False) -> None:
        self.plane = DataPlane()
        self.tap = FakeTap()
        self.own = mac(99)
        self.plane.own_mac(self.own)
        self.plane.attach_tap([self.tap.fd], 1500)
        self.udp = None
        if any(map(by_udp, range(count))):
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind(("127.0.0.1", 0))
            self.udp.setblocking(False)
            self.plane.attach_udp(self.udp.fileno(), socket.AF_INET)
        self.far = [Far(self, number, udp=by_udp(number)).connect() for number in range(count)]

    def say(self, to: bytes, source: bytes | None = None, body: bytes = bytes(46)) -> None:
        """Let the host send a frame, and wait until it has been dealt with."""
        self.tap.feed(to + (source or self.own) + b"\x08\0" + body)
        self.settle()

    def settle(self) -> None:
        def settled() -> bool:
            counters = self.plane.counters()
            done = counters["frames_sent"] + counters["frames_queued"]
            done += sum(counters["tx_dropped"].values())
            return counters["frames_read"] == self.tap.fed and done == (
                counters["frames_read"] + counters["frames_copied"]
            )

        eventually(settled, "an account of all frames")

    def dropped(self, way: str) -> dict[str, int]:
        return {why: count for why, count in self.plane.counters()[way].items() if count}

    def heard(self) -> list[int]:
        """How many frames each peer has got since the last call."""
        return [len(one.got()) for one in self.far]

    def close(self) -> None:
        self.plane.detach_tap()
        self.plane.detach_udp()
        while self.far:
            self.far.pop().close()
        self.tap.close()
        if self.udp is not None:
            self.udp.close()
        del self.plane
