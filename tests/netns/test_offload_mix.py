"""The frames captured on the far TAP are the frames sent, with every mix of offloads.

    AF_PACKET - TAP - plane === UDP or WebSocket messages === plane - TAP - AF_PACKET

Super-frames go in and come out with their virtio header, as a guest's do. Both planes run in this
process, on devices and sockets of two hosts; tests/fastpath/test_mix.py asks the same without a
kernel in between.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from shadowmesh import netlab
from shadowmesh.device.tap import OFFLOAD_TCP, OFFLOAD_UDP, Tap, open_tap
from shadowmesh.netlab import Host
from tests.fastpath.rig import AEGIS, VNET_BYTES, Node
from tests.fastpath.sides import EVERY_MIX, Side, Tunnel, assert_unchanged
from tests.lab.frames import PACKET_OUTGOING, SOL_PACKET, Wire, with_tag
from tests.twins import mix
from tests.twins.offload import Frame

pytestmark = pytest.mark.netns

MTU = 1500
PACKET_VNET_HDR = 15  # linux/if_packet.h


class VnetWire(Wire):
    """A Wire whose frames have a virtio header each way."""

    def __init__(self, host: Host, interface: str) -> None:
        super().__init__(host, interface)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.setblocking(False)

    def put(self, frame: Frame) -> None:
        self.socket.send(b"".join(frame))

    def take(self) -> list[Frame]:
        """Return our frames that came since the last call."""
        frames = []
        while select.select([self.socket], [], [], 0)[0]:
            data, ancillary, _, address = self.socket.recvmsg(70_000, 64)
            header, received = data[:VNET_BYTES], data[VNET_BYTES:]
            if address[2] == PACKET_OUTGOING or not received.startswith(mix.MACS):
                continue
            tagged = with_tag(received, ancillary)
            frames.append(mix.moved((header, tagged), len(tagged) - len(received)))
        return frames


class KernelSide(Side):
    """A side whose device is a real one."""

    def __init__(
        self, end: End, number: int, *, offload: bool, peer_offload: bool, trains: bool
    ) -> None:
        self.wire = end.wire
        # As the connection manager sets it: the kernel cuts where either side is without.
        end.tap.set_offload(OFFLOAD_TCP | OFFLOAD_UDP if offload and peer_offload else 0)
        node = Node(client=number == 0, tap=False, without=() if trains else ("gso",))
        node.plane.attach_tap(end.tap.fds, MTU, end.tap.udp_super_frames)
        udp = end.host.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind((end.host.ipv4, 0))
        super().__init__(node, udp, offload=offload, trains=trains)

    def feed(self, frame: Frame, *, whole: bool) -> None:
        self.wire.put(frame)

    def take(self) -> list[Frame]:
        return self.wire.take()


class End:
    """A host with a TAP, and a socket on it."""

    def __init__(self, net: netlab.Net, label: str, stack: ExitStack) -> None:
        self.host = net.host(label)
        with self.host.entered():
            self.tap: Tap = open_tap("tap0", mtu=MTU, addresses=(), persist=False, offload=0)
        stack.callback(self.tap.close)
        self.wire = stack.enter_context(VnetWire(self.host, "tap0"))


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[End, End]]:
    with netlab.Net() as net, ExitStack() as stack:
        yield End(net, "left", stack), End(net, "right", stack)


@pytest.fixture
def tunnel(ends: tuple[End, End]) -> Iterator[Any]:
    made: list[Tunnel] = []

    def build(path: str, offload: tuple[bool, bool], trains: tuple[bool, bool]) -> Tunnel:
        left, right = (
            KernelSide(
                end,
                number,
                offload=offload[number],
                peer_offload=offload[1 - number],
                trains=trains[number],
            )
            for number, end in enumerate(ends)
        )
        made.append(Tunnel(path, (left, right), AEGIS))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.mark.parametrize(("path", "offload", "trains"), EVERY_MIX)
def test_frames_arrive_byte_for_byte_with_every_mix_of_offloads(
    ends, tunnel, path, offload, trains
):
    if not ends[0].tap.udp_super_frames:
        pytest.skip("this kernel has no super-frames of datagrams (Linux 6.2)")
    arrived = assert_unchanged(tunnel(path, offload, trains))
    assert bool(arrived.supers) == bool(arrived.of_datagrams) == all(offload)
