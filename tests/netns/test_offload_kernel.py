"""Cutting and joining between two kernels: what one emits, the other must take.

    guest1 - veth - [bridge] - TAP - relay - TAP - [bridge] - veth - guest2

The relay is this process: super-frames that the kernel writes into one TAP are cut, and joined
again or not, and written into the other; VLAN tags are put on before and taken off after. Behind the bridges, checksum offload is off, so a kernel
finishes every checksum that we left open, cuts every super-frame that we joined, and the guest
verifies the result.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import random
import select
import socket
import struct
import threading
from collections import Counter
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import pytest

from shadowmesh import netlab
from shadowmesh.device.tap import OFFLOAD_TCP, OFFLOAD_UDP, Tap, open_tap
from shadowmesh.fast.hooks import offload as fast
from shadowmesh.netlab import Host
from tests.twins import offload as twin

pytestmark = pytest.mark.netns

TRANSFER = random.Random(5).randbytes(5_000_000)
PORT = 5201
MTU = 1500
OFFLOAD = OFFLOAD_TCP | OFFLOAD_UDP
PATH_FRAME_BYTES = 1300  # less than the kernel's own segments have
TAG = b"\x81\x00\x00\x07"
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17
UDP_SEGMENT = 103
BATCH = 32

MODES = ["cut", "joined", "finished"]


class Relay:
    """Carries frames between two TAPs from a thread while the block runs."""

    def __init__(self, taps: tuple[Tap, Tap], mode: str, tags: int = 0) -> None:
        self.seen: Counter[str] = Counter()
        self._taps = taps
        self._mode = mode
        self._tags = TAG * tags
        self._error: Exception | None = None
        self._stop_fd, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._stop)
        self._thread.join(10)
        os.close(self._stop_fd)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        first, second = (tap.fds[0] for tap in self._taps)
        other = {first: second, second: first}
        try:
            while True:
                ready = select.select([first, second, self._stop_fd], [], [])[0]
                if self._stop_fd in ready:
                    return
                for fd in ready:
                    frames = [self._tagged(frame) for frame in self._read(fd)]
                    for frame in self._forward(frames):
                        os.write(other[fd], b"".join(self._untagged(frame)))
        except Exception as error:  # noqa: BLE001  (raised again where the relay is stopped)
            self._error = error

    def _read(self, fd: int) -> list[twin.Frame]:
        frames = []
        while len(frames) < BATCH:
            try:
                data = os.read(fd, 70000)
            except BlockingIOError:
                break
            frames.append((data[:10], data[10:]))
        return frames

    def _tagged(self, frame: twin.Frame) -> twin.Frame:
        vnet, data = frame
        return moved(vnet, len(self._tags)), data[:12] + self._tags + data[12:]

    def _untagged(self, frame: twin.Frame) -> twin.Frame:
        vnet, data = frame
        size = len(self._tags)
        return moved(vnet, -size), data[:12] + data[12 + size :]

    def _forward(self, frames: list[twin.Frame]) -> list[twin.Frame]:
        out: list[twin.Frame] = []
        for vnet, frame in frames:
            if vnet[1]:
                segments = fast.segment(vnet, frame, PATH_FRAME_BYTES, self._mode == "finished")
                assert isinstance(segments, list), (segments, vnet.hex(), frame[:150].hex())
                self.seen["cut"] += len(segments)
                self.seen["super-frames"] += 1
                out += segments
            elif self._mode == "finished":
                finished = fast.complete(vnet, frame)
                assert finished is not None, (vnet.hex(), frame[:150].hex())
                out.append((bytes(10), finished[1]))
            else:
                out.append((vnet, frame))
        if self._mode != "joined":
            return out
        trains = fast.join(out)
        self.seen["trains"] += sum(count > 1 for *_, count in trains)
        self.seen["joined"] += sum(count for *_, count in trains if count > 1)
        return [(vnet, frame) for vnet, frame, _ in trains]


def moved(vnet: bytes, by: int) -> bytes:
    """Return the virtio header of a frame whose IP packet begins `by` bytes later."""
    flags, gso, header, size, start, offset = twin.VNET.unpack(vnet)
    return twin.VNET.pack(flags, gso, header, size, start + by if flags else start, offset)


def finish_checksums_in_software(host: Host, interface: str) -> None:
    """As `ethtool -K INTERFACE tx off`, which takes segmentation offload along."""
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
    with host.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


class Ends:
    """Two hosts with a TAP in a bridge, and a guest behind each of them."""

    def __init__(self, net: netlab.Net, stack: ExitStack) -> None:
        self.guests: list[Host] = []
        taps = []
        for number in (1, 2):
            host, guest = net.namespace(f"host{number}"), net.namespace(f"guest{number}")
            with host.entered():
                tap = open_tap("tap0", mtu=MTU, addresses=(), persist=False, offload=OFFLOAD)
            stack.callback(tap.close)
            host.ip(
                "link add br0 type bridge forward_delay 0 mcast_snooping 0",
                f"link add guest type veth peer name eth0 netns {guest.namespace}",
                "link set guest master br0",
                "link set guest up",
                "link set tap0 master br0",
                "link set br0 up",
            )
            guest.ip(
                "link set eth0 addrgenmode none",
                f"address add 192.0.2.{number}/24 dev eth0",
                f"address add fd00:99::{number}/64 dev eth0 nodad",
                "link set eth0 up",
            )
            finish_checksums_in_software(host, "guest")
            taps.append(tap)
            self.guests.append(guest)
        self.taps = (taps[0], taps[1])

    def bad_checksums(self) -> int:
        """Return how many segments and datagrams the guests have refused."""
        total = 0
        for guest in self.guests:
            lines = guest.run("cat", "/proc/net/snmp").stdout.splitlines()
            for names, values in zip(lines[::2], lines[1::2], strict=True):
                fields = dict(zip(names.split(), values.split(), strict=True))
                total += int(fields.get("InCsumErrors", 0))
            for line in guest.run("cat", "/proc/net/snmp6").stdout.splitlines():
                if line.startswith("Udp6InCsumErrors"):
                    total += int(line.split()[1])
        return total


@pytest.fixture(scope="module")
def ends():
    with netlab.Net() as net, ExitStack() as stack:
        yield Ends(net, stack)


def receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        got = connection.recv(1 << 18)
        assert got, f"the stream ended after {len(data)} of {size} bytes"
        data += got
    return bytes(data)


def exchange(ends: Ends, address: str) -> tuple[bytes, bytes]:
    """Send TRANSFER from guest1 to guest2 and back; return the hashes of what arrived."""
    digests: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            digests.append(hashlib.sha256(receive(connection, len(TRANSFER))).digest())
            connection.sendall(TRANSFER)

    with ends.guests[1].listen((address, PORT)) as listener:
        listener.settimeout(30)
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        with ends.guests[0].connect((address, PORT)) as connection:
            connection.settimeout(30)
            connection.sendall(TRANSFER)
            back = hashlib.sha256(receive(connection, len(TRANSFER))).digest()
        server.join(30)
    return digests[0], back


@pytest.mark.parametrize("tags", [0, 1, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("address", ["192.0.2.2", "fd00:99::2"], ids=["v4", "v6"])
def test_a_stream_passes_both_ways(ends: Ends, address: str, mode: str, tags: int) -> None:
    before = ends.bad_checksums()
    with Relay(ends.taps, mode, tags) as relay:
        there, back = exchange(ends, address)
    assert there == back == hashlib.sha256(TRANSFER).digest()
    assert ends.bad_checksums() == before
    assert relay.seen["cut"] > 4000, "the kernel was to hand us super-frames"
    if mode == "joined":
        assert relay.seen["joined"] > 0.9 * relay.seen["cut"], relay.seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("address", ["192.0.2.2", "fd00:99::2"], ids=["v4", "v6"])
def test_datagrams_of_a_super_frame_stay_what_they_were(
    ends: Ends, address: str, mode: str
) -> None:
    for tap in ends.taps:
        if not tap.udp_super_frames:
            pytest.skip("this kernel has no UDP segmentation for TAPs (Linux 6.2)")
    before = ends.bad_checksums()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sizes = [1000] * 30 + [300]
    sender = ends.guests[0].open_socket(family, socket.SOCK_DGRAM)
    receiver = ends.guests[1].open_socket(family, socket.SOCK_DGRAM)
    with sender, receiver, Relay(ends.taps, mode) as relay:
        receiver.bind((address, PORT))
        receiver.settimeout(10)
        sender.connect((address, PORT))
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.send(TRANSFER[: sum(sizes)])
        arrived = [receiver.recv(65536) for _ in sizes]
    assert [len(datagram) for datagram in arrived] == sizes
    assert b"".join(arrived) == TRANSFER[: sum(sizes)]
    assert ends.bad_checksums() == before
    assert relay.seen["cut"] == len(sizes)
    assert relay.seen["trains"] == (mode == "joined")


def test_super_frames_of_the_kernel_are_those_of_the_twin(ends: Ends) -> None:
    """Every one of a stream, taken apart and built from nothing, is what the kernel wrote."""
    seen = []

    class Recorder(Relay):
        def _forward(self, frames: list[twin.Frame]) -> list[twin.Frame]:
            seen.extend(frame for frame in frames if frame[0][1])
            return super()._forward(frames)

    with Recorder(ends.taps, "joined"):
        exchange(ends, "192.0.2.2")
    assert len(seen) > 50
    for vnet, frame in seen[:50]:
        packet, segment_bytes = twin.take_apart(frame), twin.VNET.unpack(vnet)[3]
        assert packet is not None
        assert fast.segment(vnet, frame, 1 << 20) == [
            part.plain() for part in twin.cut(packet, segment_bytes)
        ]
