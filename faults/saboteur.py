"""A real daemon that is changed in one respect: `python -m faults.saboteur WAY ...its arguments`.

An authenticated peer that is hostile or broken cannot be made from outside: what it sends is
sealed. So this is our own daemon with one part of it replaced, and the only module here that knows
the daemon's inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import struct
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gevent

from shadowmesh._fastpath import CIPHER_NAMES
from shadowmesh.base.constants import KIND_WSS, REKEY_AFTER_RECORDS, Inner
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.fast.hooks.records import seal, write_ws_header
from shadowmesh.peer import keying, tunnel
from shadowmesh.service import daemon
from shadowmesh.wire.handshake import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: a session is left alone for so long after it was established
PEACE_S: Final = 2.0
#: protocol section 6: what is authenticated with a record, and a message of one record
_AAD: Final = struct.Struct("<B3xIQ")
_MESSAGE: Final = struct.Struct("<BxHIQI")

#: how many frames `hostile_frames` sends for each reason to drop them
FLOODS: Final = {
    "foreign_mac": 400,
    "multicast_source": 200,
    "bad_vlan": 200,
    "reserved_address": 200,
    "flood_limit": 20_000,
    "mac_limit": 100_000,
}


def _spawn_with_each_session(work: Callable[[Any], None]) -> None:
    """Run `work` with each session from its beginning, until the session is over."""
    establish = tunnel.Tunnel._establish

    def _establish(self: Any, result: Any) -> None:
        establish(self, result)
        gevent.spawn_later(PEACE_S, work, self)

    tunnel.Tunnel._establish = _establish  # type: ignore[method-assign]


def rekey_every_2_s() -> None:
    """Change keys more often than the configuration allows."""
    keying.SessionMachine = partial(_hasty, keying.SessionMachine)  # type: ignore[misc]


def _hasty(machine: Any, *arguments: Any, **options: Any) -> Any:
    return machine(*arguments, **{**options, "rotation_interval_s": 2.0, "jitter": lambda: 0.0})


def no_rekey() -> None:
    """Swallow the handshake messages of every rekey."""
    send = keying.Keying._send

    def _send(self: Any, inner_type: Inner, body: bytes) -> None:
        if inner_type is not Inner.HANDSHAKE:
            send(self, inner_type, body)

    keying.Keying._send = _send  # type: ignore[method-assign]


def worn_keys() -> None:
    """Believe, 2 s after each start of a session, that 2^60 records were sealed."""

    def wear(self: Any) -> None:
        machine = self._keying._machine
        machine.records_sealed(REKEY_AFTER_RECORDS, tunnel.boottime())
        self._keying._carry_out()

    _spawn_with_each_session(wear)


def newer_version() -> None:
    """Offer version 2 beside 1."""
    for kind in (messages.P1, messages.P2):
        pack = kind.pack

        def _pack(self: Any, pack: Any = pack) -> bytes:
            packed = bytearray(pack(self))
            at = 1 if isinstance(self, messages.P1) else 9
            packed[at] = 2
            return bytes(packed)

        kind.pack = _pack  # type: ignore[method-assign]


class _OwnSealing:
    """Seals records of any size and content for one link, in place of the data plane.

    Counters on WSS are consecutive, so the data plane must not seal beside it: whoever uses this
    takes the TAP down, and what the hub sends is swallowed.
    """

    def __init__(self, session: Any, link: Any, result: Any) -> None:
        self._result = result
        self._counter = session.records_sealed()
        self._stream = link._stream

    def send(self, inner: bytes) -> None:
        result = self._result
        key = result.keys.wss_i2r if result.initiator else result.keys.wss_r2i
        aad = _AAD.pack(KIND_WSS, result.remote_key_id, self._counter)
        sealed = seal(CIPHER_NAMES[result.cipher], key, self._counter, aad, inner)
        head = _MESSAGE.pack(KIND_WSS, 1, result.remote_key_id, self._counter, len(sealed))
        message = head + sealed
        self._counter += 1
        data = write_ws_header(0x2, len(message), bytes(4) if result.initiator else None) + message
        self._stream.write(data)
        while not self._stream.flush():
            gevent.sleep(0.002)


def _virtio(
    kind: int, frame: bytes, *, gso_bytes: int, flags: int, start: int, offset: int
) -> bytes:
    """A virtio_net_hdr of 10 bytes before a frame (virtio 1.2, section 5.1.6), little-endian."""
    words = (54, gso_bytes, start, offset)
    return bytes([flags, kind]) + b"".join(w.to_bytes(2, "little") for w in words) + frame


def hostile_virtio() -> None:
    """Send super-frames whose headers lie: tiny segments, a wrong type, a place in the payload."""
    ethernet = bytes.fromhex("02000000000202000000000108 00".replace(" ", ""))
    ip = bytes.fromhex("4500fe1000014000400600000a0000010a000002")
    tcp = bytes.fromhex("138913890000000000000000501802000000 0000".replace(" ", ""))
    long = ethernet + ip + tcp + bytes(0xFE10 - 40)
    wrong = [
        _virtio(1, long, gso_bytes=1, flags=1, start=34, offset=16),
        _virtio(1, long, gso_bytes=8, flags=1, start=34, offset=16),
        _virtio(4, long, gso_bytes=1400, flags=1, start=34, offset=16),
        _virtio(5, long, gso_bytes=1, flags=1, start=34, offset=6),
        _virtio(0, long[:1514], gso_bytes=0, flags=1, start=900, offset=300),
        _virtio(3, long, gso_bytes=1400, flags=1, start=60_000, offset=5_000),
    ]
    install = keying.Keying._install

    def _install(self: Any, result: Any) -> None:
        install(self, result)
        self.kept = replace(result, keys=result.keys)

    keying.Keying._install = _install  # type: ignore[method-assign]

    def send(self: Any) -> None:
        subprocess.run(["ip", "link", "set", "tap0", "down"], check=True)
        keying.Keying._send = lambda *_: None  # type: ignore[method-assign]
        self.wss.probes.send = self.wss.probes.answer = lambda *_: None
        sealing = _OwnSealing(self.session, self.wss.link, self._keying.kept)
        number = 0
        with contextlib.suppress(OSError):  # the peer has closed the link
            while not self.over:
                sealing.send(bytes([Inner.OFFLOAD_FRAME]) + wrong[number % len(wrong)])
                number += 1
                gevent.sleep(0.005)

    _spawn_with_each_session(send)


def forged_records() -> None:
    """Send sealed nonsense of every inner type, over the link and over UDP."""
    dice = random.Random(int(os.environ.get("FAULTS_SEED", "1")))

    def send(self: Any) -> None:
        for _ in range(400):
            if self.over:
                return
            inner, body = dice.randrange(12), dice.randbytes(dice.choice((0, 1, 9, 60, 1200)))
            active = None if self.paths is None else self.paths.active
            try:
                if active is not None and dice.random() < 0.9:
                    host, port = str(active.endpoint.address), active.endpoint.port
                    self.session.send_udp_record(inner, body, host, port)
                elif dice.random() < 0.2:
                    self.session.send_record(inner, body)
            except LocalProtocolError:
                gevent.sleep(0.05)
            gevent.sleep(0.005)

    _spawn_with_each_session(send)


def _hostile_frames(victim: bytes, third: bytes) -> Iterator[bytes]:
    """What a switch must not believe of the peer that sends it: kinds and counts as in FLOODS."""
    own = bytes.fromhex(Path("/sys/class/net/tap0/address").read_text().strip().replace(":", ""))
    group, reserved, all_hosts = bytes.fromhex("01005e000001"), b"\x01\x80\xc2\0\0\0", b"\xff" * 6
    tags = b"\x81\0\0\1" * 3
    for count, to, source, tail in (
        (FLOODS["foreign_mac"] // 2, third, victim, b""),
        (FLOODS["foreign_mac"] // 2, victim, third, b""),
        (FLOODS["multicast_source"], victim, group, b""),
        (FLOODS["bad_vlan"], victim, own, tags),
        (FLOODS["reserved_address"], reserved, own, b""),
        (FLOODS["flood_limit"], all_hosts, own, b""),
    ):
        for _ in range(count):
            yield to + source + tail + b"\x88\xb6" + bytes(46)
    for number in range(FLOODS["mac_limit"]):
        yield victim + b"\x02\1" + number.to_bytes(4) + b"\x88\xb6" + bytes(46)


def hostile_frames() -> None:
    """Flood one peer, once, with frames that lie.

    The file FAULTS_ORDERS has its outer address, its MAC address and that of a third; it is waited for.
    """
    orders = Path(os.environ["FAULTS_ORDERS"])

    def send(self: Any) -> None:
        while not orders.exists():
            gevent.sleep(0.05)
        address, *macs = orders.read_text().split()
        if self.peer_name.partition(":")[0] != address:
            return
        victim, third = map(bytes.fromhex, macs)
        for number, frame in enumerate(_hostile_frames(victim, third)):
            while not self.over:
                try:
                    self.session.send_record(Inner.FRAME, frame)
                    break
                except LocalProtocolError:  # the link takes no more now
                    gevent.sleep(0.002)
            if number % 64 == 0:
                gevent.sleep(0)

    _spawn_with_each_session(send)


def key_updates() -> None:
    """Ask for TLS key updates without end on an authenticated link.

    We have no call for it: the SSL object stands first in `openssl.Tls`, behind the object header.
    """
    libssl = ctypes.CDLL("libssl.so.3")
    libssl.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    libssl.SSL_do_handshake.argtypes = [ctypes.c_void_p]

    def update(self: Any) -> None:
        stream = self.wss.link._stream
        while not self.wss.link._carried:
            gevent.sleep(0.001)
        self.wss.pipe.release()  # two threads may not use it at a time
        place = id(stream.tls) + 2 * ctypes.sizeof(ctypes.c_void_p)
        pointer = ctypes.c_void_p.from_address(place).value
        with contextlib.suppress(OSError):  # the peer has closed the link
            while not self.over:
                for _ in range(64):
                    libssl.SSL_key_update(pointer, 0)
                    libssl.SSL_do_handshake(pointer)
                while not stream.flush():
                    gevent.sleep(0.001)
                gevent.sleep(0)

    _spawn_with_each_session(update)


WAYS: Final = {
    way.__name__: way
    for way in (
        rekey_every_2_s,
        no_rekey,
        worn_keys,
        newer_version,
        hostile_virtio,
        forged_records,
        hostile_frames,
        key_updates,
    )
}


def main(way: str, *arguments: str) -> None:
    WAYS[way]()
    sys.argv[1:] = arguments
    daemon.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
