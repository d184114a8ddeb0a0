"""How long the hub stands still when it changes keys while the data plane works at full load.

A sender in a process of its own seals super-frames as fast as it can, another drains the device of
the receiver; the receiver's hub does nothing but install keys and erase them again. Both devices are
socket pairs, so this needs no right to make one.

    feed --> sender's TAP thread --UDP--> receiver's UDP thread --> drain
                                          hub: reserve, install, retire, ... timed
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from shadowmesh._fastpath import DataPlane, Port, Session
from shadowmesh.base.constants import Caps
from shadowmesh.cli.benchmark import ciphers

from .report import Failure, Row, compared, percentile, unread
from .targets import AEGIS, CHACHA, KEY_CHANGE_P99

CHANGES = 3000
MTU = 1500
SENDER_ID, RECEIVER_ID = 0x5E4D00, 0x4ECE00
KEYS = [bytes([number]) * 32 for number in range(4)]
SEGMENT, SEGMENTS = 1400, 44
WARM_UP_S = 0.3


def measure(quick: bool) -> Iterator[Row]:
    for cipher in (AEGIS, CHACHA):
        group = f"{cipher}, the hub under full receive load"
        if cipher not in ciphers():
            yield unread(group, "keys installed and erased, p99", "us", Failure("not built"))
            continue
        rounds = [read(cipher, CHANGES // 5) for _ in range(5 if quick else 15)]
        for percent, target in ((50, None), (99, KEY_CHANGE_P99), (100, None)):
            readings = [percentile(one, percent) * 1e6 for one in rounds]
            name = f"keys installed and erased, p{percent}"
            yield compared(group, name, "us", readings, target=target)


def read(cipher: str, changes: int) -> list[float]:
    """Return the seconds that each change of keys took."""
    with ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)
        )
        for one in (ours, theirs):
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
        kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(kernel)
        stack.enter_context(device)
        device.setblocking(False)
        _child(stack, lambda: _drain(kernel))
        _child(stack, lambda: _send(cipher, theirs, ours.getsockname()))
        plane = DataPlane()
        stack.callback(plane.detach_udp)
        stack.callback(plane.detach_tap)
        plane.attach_tap([device.fileno()], MTU, udp_super_frames=True)
        plane.attach_udp(ours.fileno(), socket.AF_INET)
        session = Session(plane)
        stack.callback(session.close)
        session.reserve_key_id(RECEIVER_ID)
        _install(session, RECEIVER_ID, SENDER_ID, cipher, receives=True)
        deadline = time.monotonic() + 5
        while plane.counters()["frames_written"] < 1000:
            assert time.monotonic() < deadline, "no load came up"
            time.sleep(0.01)
        time.sleep(WARM_UP_S)
        return [_change(session, cipher) for _ in range(changes)]


def _change(session: Session, cipher: str) -> float:
    time.sleep(random.uniform(0, 0.001))
    key_id = session.reserve_key_id()
    began = time.perf_counter()
    _install(session, key_id, SENDER_ID, cipher, receives=True)
    session.retire(key_id)
    return time.perf_counter() - began


def _install(session: Session, key_id: int, remote_id: int, cipher: str, *, receives: bool) -> None:
    wss, wss_back, udp, udp_back = KEYS
    session.install(
        key_id,
        remote_id,
        cipher,
        wss_tx=wss_back if receives else wss,
        wss_rx=wss if receives else wss_back,
        udp_tx=udp_back if receives else udp,
        udp_rx=udp if receives else udp_back,
        peer_mtu_bytes=MTU,
        peer_caps=int(Caps.OFFLOAD | Caps.UDP | Caps.UDP_GSO),
    )


def _child(stack: ExitStack, work: Callable[[], None]) -> None:
    """Run work in a process that ends with the stack."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    stack.callback(os.waitpid, pid, 0)
    stack.callback(os.kill, pid, signal.SIGKILL)


def _drain(kernel: socket.socket) -> None:
    while kernel.recv(70_000):
        pass


def _send(cipher: str, sock: socket.socket, to: tuple[str, int]) -> None:
    feed, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device.setblocking(False)
    plane = DataPlane()
    plane.attach_tap([device.fileno()], MTU)
    plane.attach_udp(sock.fileno(), socket.AF_INET)
    port, session = Port(plane), Session(plane)
    session.belongs_to(port)
    session.reserve_key_id(SENDER_ID)
    _install(session, SENDER_ID, RECEIVER_ID, cipher, receives=False)
    session.send_under(SENDER_ID)
    session.use_udp(*to, 1472)
    port.activate(session)
    message = _super_frame()
    while True:
        feed.send(message)


def _super_frame() -> bytes:
    """A virtio header and a TCP super-frame."""
    payload = bytes(SEGMENT * SEGMENTS)
    ethernet = bytes.fromhex("020000000002020000000001 0800".replace(" ", ""))
    ip = bytes.fromhex("45000000000140004006 0000 0a000001 0a000002".replace(" ", ""))
    ip = ip[:2] + (40 + len(payload)).to_bytes(2) + ip[4:]
    tcp = bytes.fromhex("138913890000000100000001 5010 ffff 0000 0000".replace(" ", ""))
    words = (54, SEGMENT, 34, 16)
    vnet = b"\x01\x01" + b"".join(word.to_bytes(2, "little") for word in words)
    return vnet + ethernet + ip + tcp + payload
