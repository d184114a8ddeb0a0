"""Frames with a sequence number and a hash through the tunnel, both ways, whatever happens to it.

Owns: one socket on each host, which outlives the TAP: it is bound to the type of the frames and
not to an interface, and what it sends names the interface anew each time.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, Self

from tests.lab.frames import ETHERTYPE, Canaries

if TYPE_CHECKING:
    from shadowmesh.netlab import Daemon
    from tests.lab.pair import Pair

SOURCE: Final = bytes.fromhex("020000000001")
#: nobody's address: a host's own stack has nothing to say to it
TARGET: Final = bytes.fromhex("020000000002")
FRAME_BYTES: Final = 200


class Watch:
    """Sends and checks canaries while the block runs."""

    def __init__(self, pair: Pair, *, per_second: float) -> None:
        self._pause_s = 1 / per_second
        self._stop = threading.Event()
        self._ends = [_End(daemon) for daemon in pair]
        self._ends[0].peer, self._ends[1].peer = self._ends[1], self._ends[0]
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.socket.close()

    def _send(self) -> None:
        while not self._stop.wait(self._pause_s):
            for end in self._ends:
                end.send()

    def _receive(self) -> None:
        sockets = {end.socket: end for end in self._ends}
        while not self._stop.is_set():
            for sock in select.select(list(sockets), [], [], 0.1)[0]:
                sockets[sock].receive()

    @property
    def sent(self) -> int:
        return sum(end.canaries.sent for end in self._ends)

    @property
    def arrived(self) -> int:
        return sum(len(end.arrived) for end in self._ends)

    def assert_sound(self) -> None:
        """Invariant (a): nothing came twice, altered, or without having been sent."""
        assert all(thread.is_alive() for thread in self._threads), "nobody watches any more"
        for end in self._ends:
            assert not end.altered, f"a frame was altered: {end.altered[0]}"
            arrived = dict(end.arrived)  # more of them arrive all the time
            twice = [number for number, times in arrived.items() if times > 1]
            assert not twice, f"{len(twice)} frames were delivered twice, such as {twice[0]}"
            assert end.peer is not None
            assert all(number < end.peer.canaries.sent for number in arrived)


class _End:
    """The canaries of one host: those that it sends, and those of its peer that arrived."""

    def __init__(self, daemon: Daemon) -> None:
        self.canaries = Canaries()
        self.peer: _End | None = None
        self.arrived: Counter[int] = Counter()
        self.altered: list[str] = []
        self._daemon = daemon
        kind = (socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self.socket = daemon.host.open_socket(*kind)

    def send(self) -> None:
        frame = self.canaries.frame(SOURCE, TARGET, size=FRAME_BYTES)
        try:
            self.socket.sendto(frame, (self._daemon.tap, ETHERTYPE))
        except OSError:  # no TAP, or a full one: this frame has never been
            self.canaries.sent -= 1

    def receive(self) -> None:
        frame = self.socket.recv(65536)
        assert self.peer is not None
        try:
            number = self.peer.canaries.sequence(frame)
        except ValueError as error:
            self.altered.append(str(error))
            return
        if number is not None:
            self.arrived[number] += 1
