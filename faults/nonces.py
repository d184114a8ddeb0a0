"""Invariant (f) from outside: no key and counter is used for two datagrams.

Owns: a look at every UDP datagram that crosses the switch. The header of a record tells the key's
number and the counter (protocol section 6); of a train that a virtual cable carries whole, the
first record is seen.
"""

from __future__ import annotations

import errno
import hashlib
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Self

from shadowmesh.base.constants import KIND_UDP
from tests.lab.frames import ETH_P_ALL
from tests.lab.relay import udp_of

if TYPE_CHECKING:
    from tests.lab.pair import Pair

HEADER: Final = struct.Struct("<B3xIQ")


class NonceWatch:
    """Looks at what both hosts send while the block runs."""

    def __init__(self, pair: Pair) -> None:
        self.seen: dict[tuple[bytes, int, int], bytes] = {}
        self.repeated: list[tuple[bytes, int, int]] = []
        kind = (socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._sockets = []
        for daemon in pair:
            sock = pair.net.switch.open_socket(*kind)
            sock.bind((pair.net.port(daemon.host), ETH_P_ALL))
            self._sockets.append(sock)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    def _look(self) -> None:
        while not self._stop.is_set():
            for sock in select.select(self._sockets, [], [], 0.1)[0]:
                try:
                    frame, address = sock.recvfrom(65536)
                except OSError as error:
                    # Told once when a fault takes the link down; it goes on when the link is up.
                    if error.errno != errno.ENETDOWN:
                        raise
                    continue
                # What a relay puts back is outgoing, what a host has sent is not.
                if address[2] != socket.PACKET_OUTGOING:
                    self.note(frame)

    def note(self, frame: bytes) -> None:
        """Remember what one frame was sealed under."""
        found = udp_of(frame)
        if found is None or len(found[1]) < HEADER.size or found[1][0] != KIND_UDP:
            return
        _, key, counter = HEADER.unpack_from(found[1])
        pair = (frame[26:30], key, counter)
        digest = hashlib.blake2b(found[1], digest_size=8).digest()
        if self.seen.setdefault(pair, digest) != digest:
            self.repeated.append(pair)

    def assert_sound(self) -> None:
        assert self._thread.is_alive(), "nobody looks at the nonces any more"
        assert not self.repeated, f"a nonce was used twice: {self.repeated[0]}"
