"""Data planes on a bench: a device that is a socket pair, and hands instead of a network.

A TAP is faked by a pair of SOCK_SEQPACKET sockets, which keep messages apart as the device does.
Whoever uses a `Node` moves the bytes between two of them, in pieces of any size. Nothing here
sleeps: waiting is looking again until it is true, with a deadline that fails the test.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from shadowmesh._fastpath import DataPlane, Pipe, Port, Session
from shadowmesh.base.constants import Caps, Inner
from tests.twins import records, websocket

VNET_BYTES = 10
NO_OFFLOAD = bytes(VNET_BYTES)
MTU = 1500
FRAME_MAX = MTU + 22
CHACHA, AEGIS = records.CHACHA, records.AEGIS
CIPHERS = (CHACHA, AEGIS)
#: What both planes of a pair know, by direction seen from node 0.
KEYS = {name: bytes([number]) * 32 for number, name in enumerate(("out", "in", "uout", "uin"), 1)}
DEADLINE_S = 10.0
PF_EXITING = 0x4  # linux/sched.h


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Look until `condition` gives something true, and return that."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came: {what or condition}"
        os.sched_yield()
    return value


def frame(body: bytes = b"", *, source: bytes = b"\x02\0\0\0\0\1") -> bytes:
    """A frame of 14 bytes and `body`."""
    return b"\x02\0\0\0\0\2" + source + b"\x08\x00" + body


def vnet(
    flags: int = 0,
    gso_type: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
) -> bytes:
    """A virtio header. Source: virtio 1.2, section 5.1.6."""
    return struct.pack("<BBHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)


def stun(what: int = 1, transaction: bytes = b"12 bytes ids") -> bytes:
    """A STUN message without attributes (RFC 8489, section 5): 1 is a request, 0x101 its answer."""
    return what.to_bytes(2) + bytes(2) + b"\x21\x12\xa4\x42" + transaction


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """Count our threads, without those that are ending: a joined one stays in /proc for a moment."""
    return len(named_threads())


def named_threads() -> dict[str, str]:
    """Return the names of the same by their ids."""
    names = {task: _name_unless_ending(task) for task in os.listdir("/proc/self/task")}
    return {task: name for task, name in names.items() if name is not None}


def plane_threads(before: dict[str, str]) -> list[str]:
    """Return the names of a data plane's threads, sorted, without those that were there before.

    Another test of this process may have left a plane to the garbage collector.
    """
    now = named_threads()
    return sorted(now[task] for task in now.keys() - before.keys() if now[task].startswith("sm-"))


def _name_unless_ending(task: str) -> str | None:
    try:
        with open(f"/proc/self/task/{task}/stat", encoding="utf-8") as stat:
            head, _, rest = stat.read().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if int(rest.split()[6]) & PF_EXITING else head.partition("(")[2]


class FakeTap:
    """A device: `fd` is the plane's end."""

    def __init__(self) -> None:
        self.kernel, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.end.setblocking(False)
        self.fed = 0

    @property
    def fd(self) -> int:
        return self.end.fileno()

    def feed(self, data: bytes, header: bytes = NO_OFFLOAD) -> None:
        """Let the plane read a frame."""
        eventually(lambda: self._offer(header + data), "room in the fake device")
        self.fed += 1

    def _offer(self, message: bytes) -> bool:
        try:
            return self.kernel.send(message) == len(message)
        except BlockingIOError:
            return False

    def take(self) -> list[bytes]:
        """Return what the plane wrote since the last call: virtio header and frame each."""
        taken = []
        while True:
            try:
                taken.append(self.kernel.recv(70_000))
            except BlockingIOError:
                return taken

    def close(self) -> None:
        self.kernel.close()
        self.end.close()


class Node:
    """A plane with a device of one or more queues, a session and a link."""

    def __init__(
        self,
        *,
        client: bool = False,
        mtu: int = MTU,
        tap: bool = True,
        queues: int = 1,
        without: Iterable[str] = (),
    ) -> None:
        self.plane = DataPlane(without)
        self.taps = [FakeTap() for _ in range(queues)]
        self.tap = self.taps[0]
        if tap:
            self.plane.attach_tap([one.fd for one in self.taps], mtu, udp_super_frames=True)
        self.port = Port(self.plane)
        self.session = self.another_session()
        self.pipe = Pipe(self.plane, client)
        self.client = client
        self.local_id = 0
        self.remote_id = 0

    def another_session(self) -> Session:
        """Return a session with the same peer."""
        session = Session(self.plane)
        session.belongs_to(self.port)
        return session

    def install(
        self,
        local_id: int,
        remote_id: int,
        cipher: str = CHACHA,
        *,
        swap: bool = False,
        keys: dict[str, bytes] = KEYS,
        caps: int = Caps.OFFLOAD | Caps.UDP_GSO,
        mtu: int = MTU,
        udp: bool = True,
    ) -> None:
        out, back, udp_out, udp_back = keys["out"], keys["in"], keys["uout"], keys["uin"]
        if swap:
            out, back, udp_out, udp_back = back, out, udp_back, udp_out
        self.session.install(
            local_id,
            remote_id,
            cipher,
            wss_tx=out,
            wss_rx=back,
            udp_tx=udp_out,
            udp_rx=udp_back,
            peer_mtu_bytes=mtu,
            peer_caps=int(caps),
            udp=udp,
        )

    def start(self, cipher: str = CHACHA, **options: Any) -> Node:
        """Give the session keys, its link and the device's frames; returns itself."""
        self.local_id = self.session.reserve_key_id()
        self.remote_id = options.pop("remote_id", 0x01020304)
        self.install(self.local_id, self.remote_id, cipher, **options)
        self.session.bind(self.pipe)
        self.session.send_under(self.local_id)
        self.port.activate(self.session)
        return self

    def take_outgoing(self) -> bytes:
        """Return everything that the link has to send, as sent."""
        taken = b""
        while (ready := self.pipe.outgoing()) is not None:
            taken += ready
            self.pipe.sent(len(ready))
        return taken

    def feed(self, frames: Iterable[bytes], header: bytes = NO_OFFLOAD) -> None:
        for data in frames:
            self.tap.feed(data, header)

    def settle(self) -> dict[str, Any]:
        """Wait until every frame that was fed is sent, queued or dropped; return the counters."""

        seen: dict[str, Any] = {}

        def settled() -> dict[str, Any] | None:
            counters = self.plane.counters()
            accounted = counters["frames_sent"] + counters["frames_queued"]
            accounted += sum(counters["tx_dropped"].values())
            seen.update(counters, accounted=accounted)
            done = counters["frames_read"] == self.fed == accounted
            return counters if done else None

        try:
            return eventually(settled)
        except AssertionError:
            names = ("frames_read", "accounted", "frames_sent", "frames_queued", "tx_dropped")
            found = {name: seen[name] for name in names}
            raise AssertionError(f"no account of {self.fed} frames: {found}") from None

    @property
    def fed(self) -> int:
        return sum(tap.fed for tap in self.taps)

    def close(self) -> None:
        """Take it down, and let go of what only the garbage collector gives back."""
        self.plane.detach_tap()
        self.session.close()
        self.pipe.close()
        self.port.close()
        for tap in self.taps:
            tap.close()
        del self.plane, self.port, self.session, self.pipe


def ingest(pipe: Pipe, data: bytes, pieces: Sequence[int] = ()) -> list[Any]:
    """Give `data` to a pipe as a socket would, in `pieces`, and return the events."""
    events = []
    view = memoryview(data)
    sizes = list(pieces)
    while view:
        room = pipe.recv_buffer()
        assert len(room) >= 16 * 1024
        n = min(len(room), len(view), sizes.pop(0) if sizes else len(view))
        room[:n] = view[:n]
        del room
        view = view[n:]
        found = pipe.ingest(n)
        while found:
            events += found
            found = pipe.ingest(0)
    return events


def pair(cipher: str = CHACHA, **options: Any) -> tuple[Node, Node]:
    """Two connected nodes; the first is the WebSocket client."""
    one, other = Node(client=True), Node(client=False)
    one.local_id, other.local_id = one.session.reserve_key_id(), other.session.reserve_key_id()
    for node, peer, swap in ((one, other, False), (other, one, True)):
        node.remote_id = peer.local_id
        node.install(node.local_id, node.remote_id, cipher, swap=swap, **options)
        node.session.bind(node.pipe)
        node.session.send_under(node.local_id)
        node.port.activate(node.session)
    return one, other


def carry(sender: Node, receiver: Node, pieces: Sequence[int] = ()) -> list[Any]:
    """Move what one link sends to the other, as long as there is something."""
    return ingest(receiver.pipe, sender.take_outgoing(), pieces)


class Peer:
    """The other side of a node's link, made of the slow twins."""

    def __init__(self, node: Node, cipher: str = CHACHA) -> None:
        self.node = node
        self.cipher = cipher
        self.counter = 0
        self.key = KEYS["in"]
        self.mask = None if node.client else b"\x37\xfa\x21\x3d"

    def message(self, inners: Sequence[bytes], **changes: Any) -> bytes:
        """A message with `inners` under the next counters."""
        first = changes.pop("first_counter", self.counter)
        key_id = changes.pop("key_id", self.node.local_id)
        key = changes.pop("key", self.key)
        assert not changes
        self.counter = first + len(inners)
        return records.seal_message(self.cipher, key, key_id, first, list(inners))

    def frame(self, payload: bytes, opcode: int = websocket.BINARY, *, fin: bool = True) -> bytes:
        """One WebSocket frame with that payload."""
        return websocket.encode(websocket.Frame(opcode, payload, fin, self.mask))

    def send(self, *inners: bytes) -> list[Any]:
        """Give the node one message with these records; returns its events."""
        return ingest(self.node.pipe, self.frame(self.message(inners)))


def unpack(stream: bytes, node: Node, cipher: str = CHACHA, key: bytes = KEYS["out"]) -> list[Any]:
    """Return (key id, first counter, inners) of each message in what a node's link sent."""
    frames, rest = websocket.decode_all(stream, masked=node.client)
    assert rest == b""
    assert all(one.opcode == websocket.BINARY and one.fin for one in frames)
    messages = [records.open_message(cipher, key, one.payload) for one in frames]
    assert None not in messages
    return messages


def plain(data: bytes) -> bytes:
    """The record of a frame."""
    return bytes([Inner.FRAME]) + data


def offload(header: bytes, data: bytes) -> bytes:
    """The record of a frame with a virtio header."""
    return bytes([Inner.OFFLOAD_FRAME]) + header + data


VECTORS = Path(__file__).parent.parent / "vectors" / "records.json"
