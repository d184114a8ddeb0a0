"""Is io_uring cheaper than read() and write() for the frames of a TAP?

One device as the daemon opens it, in a network namespace of its own; perf/uring.c moves frames
through it one way after the other, in turns. The reference is what the daemon does.

CPU is that of the thread that moves frames and of the kernel's workers for it, not the sender's.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface

from shadowmesh.device.tap import OFFLOAD_TCP, OFFLOAD_UDP, Tap, open_tap
from shadowmesh.netlab import Net, NetlabError

from .lab import DATAGRAM_BUFFER_BYTES, SO_SNDBUFFORCE, build
from .report import Failure, Row, compared, unread
from .tunnel import SMALL_PAYLOAD

ADDRESS = IPv4Interface("10.0.0.1/24")
NEIGHBOUR, NEIGHBOUR_MAC = "10.0.0.2", bytes.fromhex("020000000002")
PORT = 9
SEGMENT_BYTES = 1400  # as in perf/uring.c, for which UNSUPPORTED is an exit code
UNSUPPORTED = 3


@dataclass(frozen=True, slots=True)
class Way:
    """How frames are moved: the words of perf/uring.c, and the name in the table."""

    word: str
    depth: int
    name: str


CALLS = Way("calls", 0, "system calls")
WRITES = (CALLS, Way("batch", 16, "io_uring, 16 at once"), Way("batch", 64, "io_uring, 64 at once"))
READS = (
    *WRITES,
    Way("armed", 16, "io_uring, 16 that wait"),
    Way("armed", 64, "io_uring, 64 that wait"),
    Way("multishot", 64, "io_uring, multishot"),
)
#: what is read, by bytes of a UDP payload and datagrams a second (see perf/uring.c)
LOADS = {
    "64-byte frames, 100,000 a second": (SMALL_PAYLOAD, 100_000),
    "64-byte frames, all that come": (SMALL_PAYLOAD, 0),
    "64-byte frames, 64 in the queue": (SMALL_PAYLOAD, -1),
    "64 KiB super-frames, all that come": (46 * SEGMENT_BYTES, 0),
    "64 KiB super-frames, 64 in the queue": (46 * SEGMENT_BYTES, -1),
}


class Unsupported(Exception):
    """This kernel does not do it, or not for us."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How fast frames went, and what CPU one of them has cost."""

    frames_per_second: float
    cpu_ns: float


def parse(text: str) -> Reading:
    """What perf/uring.c printed.

    Raises:
        ValueError: no frame came through, or the text is another.
    """
    frames, span_ns, cpu_ns = map(int, text.split())
    if not frames:
        raise ValueError("no frame came through")
    return Reading(frames * 1e9 / span_ns, cpu_ns / frames)


def internet_checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def frame(destination: bytes, protocol: int, segment: bytes, vnet: bytes = bytes(10)) -> bytes:
    """A frame to the hardware address `destination` and to ADDRESS, behind its virtio header."""
    source, target = (socket.inet_aton(text) for text in (NEIGHBOUR, str(ADDRESS.ip)))
    header = struct.pack("!BxHxxxxBBH", 0x45, 20 + len(segment), 64, protocol, 0) + source + target
    header = header[:10] + internet_checksum(header).to_bytes(2) + header[12:]
    ethernet = destination + NEIGHBOUR_MAC + b"\x08\0"
    return vnet + ethernet + header + segment


def frames(mac: bytes) -> dict[str, bytes]:
    """What is written. Frames for somebody else are dropped where they come out of the device."""
    udp = struct.pack("!4H", PORT, PORT, 8 + SMALL_PAYLOAD, 0) + bytes(SMALL_PAYLOAD)
    tcp = struct.pack("!HHIIBBHHH", PORT, PORT, 1, 1, 5 << 4, 0x10, 1024, 0, 0)
    # a checksum and segments to be made: flags, TCPv4, the four fields of struct virtio_net_hdr
    to_cut = struct.pack("=BB4H", 1, 1, 54, SEGMENT_BYTES, 34, 16)
    return {
        "64-byte frames for somebody else": frame(NEIGHBOUR_MAC, 17, udp),
        "64-byte frames to a socket": frame(mac, 17, udp),
        "64 KiB super-frames for somebody else": frame(
            NEIGHBOUR_MAC, 6, tcp + bytes(46 * SEGMENT_BYTES), to_cut
        ),
    }


def run(
    verb: str,
    seconds: float,
    way: Way,
    amounts: Sequence[int],
    descriptors: Sequence[int],
    written: bytes = b"",
) -> Reading:
    """Move frames for so long.

    Raises:
        Unsupported, NetlabError, ValueError.
    """
    words = verb, seconds, way.word, way.depth, *amounts, *descriptors
    command = [str(build("uring")), *map(str, words)]
    done = subprocess.run(
        command,
        input=written,
        capture_output=True,
        check=False,
        pass_fds=descriptors,
        timeout=seconds + 15,
    )
    if done.returncode == UNSUPPORTED:
        raise Unsupported(done.stderr.decode().strip())
    if done.returncode != 0:
        raise NetlabError(f"uring {verb}: exit {done.returncode}: {done.stderr.decode().strip()}")
    return parse(done.stdout.decode())


def measure(quick: bool) -> Iterator[Row]:
    rounds, seconds = (2, 0.15) if quick else (7, 0.2)
    with device() as (tap, sender):
        for title, data in frames(tap.mac).items():
            yield from _compared(
                f"write to the TAP, {title}",
                WRITES,
                rounds,
                lambda way, data=data: run("write", seconds, way, [], tap.fds, data),
            )
        for title, load in LOADS.items():
            yield from _compared(
                f"read from the TAP, {title}",
                READS,
                rounds,
                lambda way, load=load: run("read", seconds, way, load, [*tap.fds, sender.fileno()]),
            )


@contextlib.contextmanager
def device() -> Iterator[tuple[Tap, socket.socket]]:
    """A TAP, and a socket whose datagrams come out of it; it takes those that are written."""
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Net()).namespace("uring", 1)
        with host.entered():
            tap = open_tap(
                "tap0",
                mtu=1500,
                addresses=(ADDRESS,),
                persist=False,
                offload=OFFLOAD_TCP | OFFLOAD_UDP,
            )
        stack.callback(tap.close)
        host.ip(f"neighbour add {NEIGHBOUR} lladdr {NEIGHBOUR_MAC.hex(':')} dev {tap.name}")
        sender = stack.enter_context(host.open_socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, DATAGRAM_BUFFER_BYTES)
        sender.bind((str(ADDRESS.ip), PORT))
        sender.connect((NEIGHBOUR, PORT))
        yield tap, sender


def _compared(
    group: str, ways: Sequence[Way], rounds: int, read: Callable[[Way], Reading]
) -> Iterator[Row]:
    """Read every way once a round, in alternating order; one that fails is left out from then on."""
    readings: dict[Way, list[Reading]] = {way: [] for way in ways}
    failures: dict[Way, Failure] = {}
    for turn in range(rounds):
        for way in ways if turn % 2 == 0 else reversed(ways):
            if way in failures:
                continue
            try:
                readings[way].append(read(way))
            except Unsupported as error:
                failures[way] = Failure(str(error))
            except (NetlabError, OSError, ValueError, subprocess.TimeoutExpired) as error:
                failures[way] = Failure(str(error).partition("\n")[0], broken=True)
    columns: tuple[tuple[str, str, Callable[[Reading], float]], ...] = (
        ("CPU of a frame", "ns", lambda reading: reading.cpu_ns),
        ("frames", "/s", lambda reading: reading.frames_per_second),
    )
    for title, unit, column in columns:
        for way in ways:
            failure = failures.get(way) or failures.get(CALLS)
            if failure is not None:
                yield unread(f"{group}: {title}", way.name, unit, failure)
                continue
            mine, plain = ([column(r) for r in readings[w]] for w in (way, CALLS))
            beside = ("", ()) if way == CALLS else (CALLS.name, plain)
            yield compared(f"{group}: {title}", way.name, unit, mine, *beside)
