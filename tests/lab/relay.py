"""The switch's place between two hosts for UDP, where a test is the attacker on the way.

Owns: taking IPv4 datagrams to the data port out of the switch, and putting frames back. Does not
know: what the datagrams hold.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

from shadowmesh.netlab import PEER_PORT

from . import faults
from .frames import ETH_P_ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shadowmesh.netlab import Daemon, Host, Net

DATA_PORT = PEER_PORT
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def udp_of(frame: bytes) -> tuple[int, bytes] | None:
    """Return where the UDP payload of an IPv4 frame to the data port begins, and the payload."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return None
    start = 14 + (frame[14] & 15) * 4 + 8
    if struct.unpack_from("!H", frame, start - 6)[0] != DATA_PORT:
        return None
    return start, frame[start : 14 + struct.unpack_from("!H", frame, 16)[0]]


def with_payload(frame: bytes, start: int, payload: bytes, source: str = "") -> bytes:
    """Return the frame with another payload, perhaps from another address; UDP checksum off."""
    head = bytearray(frame[:start])
    if source:
        head[26:30] = socket.inet_aton(source)
    head[16:18] = struct.pack("!H", start - 14 + len(payload))
    head[start - 4 : start] = struct.pack("!HH", 8 + len(payload), 0)
    head[24:26] = b"\0\0"
    total = sum(struct.unpack(f"!{(start - 22) // 2}H", head[14 : start - 8]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head[24:26] = struct.pack("!H", ~total & 0xFFFF)
    return bytes(head) + payload


def one_datagram_a_frame(host: Host) -> None:
    """Cut trains before the cable: on it a switch would see them whole, unlike a real one."""
    host.ip("link set eth0 gso_max_segs 1")


def without_ipv6(daemons: Iterable[Daemon]) -> None:
    """Leave IPv4 alone, which is all that the relay knows; else the first to answer decides."""
    for daemon in daemons:
        daemon.host.ip("-6 address flush dev eth0")


class Relay:
    """The switch's place between two hosts for UDP: a test decides what becomes of each frame.

    It sees them with the UDP checksum off: on a virtual cable it is not filled in yet.
    """

    def __init__(self, net: Net, source: Host, target: Host, treat: Callable[[bytes], list[bytes]]):
        self.seen = 0
        self._net = net
        self._treat = treat
        one_datagram_a_frame(source)
        self._in = self._tap(source)
        self._out = self._tap(target)
        there, back = net.port(source), net.port(target)
        rule = f'iifname "{there}" oifname "{back}" meta protocol ip udp dport {DATA_PORT} drop'
        self._fault = faults.forwarding(net, rule)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _tap(self, host: Host) -> socket.socket:
        kind = (socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock = self._net.switch.open_socket(*kind)
        # A relay in Python stands still now and then; what comes meanwhile must not be lost.
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        sock.bind((self._net.port(host), ETH_P_ALL))
        return sock

    def __enter__(self) -> Relay:
        self._fault.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._fault.__exit__(None, None, None)  # first: better twice than not at all
        self._stop.set()
        self._thread.join(5)
        self._in.close()
        self._out.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._in], [], [], 0.1)[0]:
                continue
            frame, address = self._in.recvfrom(65536)
            if address[2] == socket.PACKET_OUTGOING or (found := udp_of(frame)) is None:
                continue
            self.seen += 1
            for sent in self._treat(with_payload(frame, *found)):
                with contextlib.suppress(OSError):
                    self._out.send(sent)
