"""Two planes joined over one path, with a mix of offloads: what goes in on one side, what comes out.

    Side --feed--> device, plane --pipe or UDP socket--> plane, device --take--> Side

The device is a fake one here; tests/netns/test_offload_mix.py puts a real one in its place.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

from shadowmesh.base.constants import Caps
from tests.fastpath.rig import CHACHA, VNET_BYTES, Node, carry, eventually
from tests.twins import mix, records
from tests.twins.offload import Frame

UDP_GRO = 104  # linux/udp.h
PATH_BYTES = 1452  # the largest datagram of the path
#: Frames are sent in groups of which no socket on the way has to drop one: bytes, and what the
#: kernel needs for a frame beside them.
GROUP_BYTES, FRAME_COST_BYTES = 160_000, 1_000
FRAME_OVERHEAD = 16 + 1 + VNET_BYTES  # of a record that carries a frame, without the tag

SWITCH = (False, True)
BOTH = [*itertools.product(SWITCH, SWITCH)]
#: path, (offload of either side), (trains of either side)
EVERY_MIX = [*itertools.product(("wss", "udp"), BOTH, BOTH)]


class Side:
    """A node with a UDP socket and what it can do.

    Attributes:
        offload: it takes super-frames and unfinished checksums from the device and from the peer.
        trains: datagrams leave and arrive in trains.
    """

    def __init__(self, node: Node, udp: socket.socket, *, offload: bool, trains: bool) -> None:
        """Args: udp: bound; closed by close(). The node is without gso unless `trains`."""
        self.node = node
        self.udp = udp
        self.offload = offload
        self.caps = Caps.UDP | (Caps.OFFLOAD | Caps.UDP_GSO if offload else 0)
        udp.setblocking(False)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if trains:
            udp.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        node.plane.attach_udp(udp.fileno(), socket.AF_INET)
        node.local_id = node.session.reserve_key_id()

    def install(self, peer: Side, cipher: str) -> None:
        """Open from now on what `peer` seals."""
        node = self.node
        node.remote_id = peer.node.local_id
        caps = int(peer.caps)
        node.install(node.local_id, node.remote_id, cipher, swap=not node.client, caps=caps)

    def join(self, peer: Side, path: str) -> None:
        """Send to `peer` from now on, which has the keys."""
        node = self.node
        node.session.bind(node.pipe)
        node.session.send_under(node.local_id)
        if path == "udp":
            node.session.use_udp(*peer.udp.getsockname(), PATH_BYTES)
        node.port.activate(node.session)

    def feed(self, frame: Frame, *, whole: bool) -> None:
        """Let the device have a frame of the host's.

        Args:
            whole: as it is; otherwise the host cuts it and finishes its checksum before.
        """
        for vnet, data in emitted(frame, whole=whole):
            self.node.tap.feed(data, vnet)

    def take(self) -> list[Frame]:
        """Return the frames that came out of the device since the last call."""
        return [(one[:VNET_BYTES], one[VNET_BYTES:]) for one in self.node.tap.take()]

    def close(self) -> None:
        self.node.plane.detach_udp()
        self.udp.close()
        self.node.close()


def emitted(frame: Frame, *, whole: bool) -> list[Frame]:
    """Return what a daemon reads from its device for a frame of the host's."""
    return [frame] if whole else [(mix.NOTHING, one) for one in mix.flat(frame)]


class Tunnel:
    """Two sides that are joined over one path."""

    def __init__(self, path: str, sides: tuple[Side, Side], cipher: str = CHACHA) -> None:
        self.sides = sides
        self.whole = all(side.offload for side in sides)
        # TCP is cut to the path where there is one that is narrower than a WebSocket.
        room = PATH_BYTES - FRAME_OVERHEAD - records.TAG_BYTES[cipher]
        self._most_bytes = room if path == "udp" else None
        # Keys first: a real device may have frames of the kernel's own waiting, which leave at once.
        for side, peer in (sides, sides[::-1]):
            side.install(peer, cipher)
        for side, peer in (sides, sides[::-1]):
            side.join(peer, path)

    def close(self) -> None:
        for side in self.sides:
            side.close()

    def expected(self, frame: Frame) -> list[bytes]:
        """Return the frames on the wire for a frame of the sender's host."""
        frames = emitted(frame, whole=self.whole)
        return [wire for one in frames for wire in mix.flat(one, self._most_bytes)]

    def send(self, sender: Side, receiver: Side, frames: list[Frame]) -> list[Frame]:
        """Carry frames across; return what the receiver's daemon has written to its device."""
        captured: list[Frame] = []
        for group in self._groups(frames):
            wanted = sum(len(self.expected(frame)) for frame in group)
            arrived: list[bytes] = []
            for frame in group:
                sender.feed(frame, whole=self.whole)

            def complete(arrived: list[bytes] = arrived, wanted: int = wanted) -> bool:
                carry(sender.node, receiver.node)
                taken = receiver.take()
                captured.extend(taken)
                arrived.extend(wire for frame in taken for wire in mix.flat(frame))
                return len(arrived) >= wanted

            eventually(complete, f"{wanted} frames")
        return captured

    def _groups(self, frames: list[Frame]) -> Iterator[list[Frame]]:
        group: list[Frame] = []
        taken = 0
        for frame in frames:
            cost = sum(len(wire) + FRAME_COST_BYTES for wire in self.expected(frame))
            if group and taken + cost > GROUP_BYTES:
                yield group
                group, taken = [], 0
            group.append(frame)
            taken += cost
        yield group

    def dropped(self) -> dict[str, int]:
        """Return how many frames were lost on the way, by reason."""
        lost: dict[str, int] = {}
        for side in self.sides:
            counters = side.node.plane.counters()
            for way in (counters["tx_dropped"], counters["rx_dropped"], counters["udp_refused"]):
                lost |= {reason: count for reason, count in way.items() if count}
        return lost


class Arrived:
    """How frames arrived, apart from being right."""

    def __init__(self, frames: list[Frame]) -> None:
        supers = [frame for frame in frames if mix.is_super(frame)]
        self.supers = len(supers)
        self.of_datagrams = len([frame for frame in supers if not mix.is_stream(frame)])
        self.unfinished = len([frame for frame in frames if mix.is_unfinished(frame)])


def assert_unchanged(tunnel: Tunnel) -> Arrived:
    """Send frames of every kind both ways: the same come out, in the same order."""
    arrived: list[Frame] = []
    for seed, (sender, receiver) in enumerate((tunnel.sides, tunnel.sides[::-1])):
        frames = mix.corpus(seed)
        captured = tunnel.send(sender, receiver, frames)
        expected = [wire for frame in frames for wire in tunnel.expected(frame)]
        assert [wire for frame in captured for wire in mix.flat(frame)] == expected
        arrived += captured
    assert tunnel.dropped() == {}
    return Arrived(arrived)
