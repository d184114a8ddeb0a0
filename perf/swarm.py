"""Many members in one process, each with a data plane of its own: what one daemon has to do with.

Everything of a member is the program's own but its device, which is a pair of sockets. It does what
is asked for on its standard input, a line for each request, and answers with a line:

    connect FIRST LAST     start the members with these numbers; back when all are connected
    send COUNT BYTES       each connected member sends so many frames of that length

Ends at the end of its input.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
from gevent.fileobject import FileObject
from gevent.pool import Pool

from shadowmesh._fastpath import DataPlane
from shadowmesh.config import Config, HostPort, PeerEntry, load
from shadowmesh.device.device import Device
from shadowmesh.keys.identity import Identity, parse_public_key
from shadowmesh.keys.mac import stable_mac
from shadowmesh.link.tls import client_context
from shadowmesh.path.traversal import Traversal
from shadowmesh.peer.manager import ConnectionManager

#: as many handshakes at once as a daemon takes of one source
AT_ONCE = 4
CONNECT_S = 120.0
#: between two of one member, so that none is lost to anybody's queue
SPACING_S = 0.001
VNET_HEADER = bytes(10)
EXPERIMENTAL = b"\x88\xb5"


def identity(number: int) -> Identity:
    """The one of a member, from 1 on; the same in every run."""
    return Identity.from_seed(hashlib.sha256(b"shadowmesh perf member %d" % number).digest())


def frame(source: bytes, destination: bytes, length: int) -> bytes:
    """A frame between two MACs, of an experimental type that no host takes for its own."""
    return (destination + source + EXPERIMENTAL).ljust(length, b".")


class Wire:
    """In place of a TAP device: `kernel` is what the kernel would be."""

    def __init__(self, name: str, *, mtu: int, offload: int, **_ignored: Any) -> None:
        self.name = name
        self.mtu = mtu
        self.offload = offload
        self.udp_super_frames = True
        self.kernel, ours = gevent.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fds = (ours.detach(),)

    def set_offload(self, flags: int) -> None:
        self.offload = flags

    def ask_again(self) -> None:
        """Nobody has asked for anything."""

    def is_up(self) -> bool:
        return True

    def close(self) -> None:
        os.close(self.fds[0])
        self.kernel.close()


class Member:
    """One of them; dials the daemon under test."""

    def __init__(self, number: int, config: Config, daemon: PeerEntry) -> None:
        me = identity(number)
        assert daemon.public_key is not None
        self._mac, self._daemon_mac = stable_mac(me.public_key), stable_mac(daemon.public_key)
        config = replace(config, peer_list=(daemon,))
        plane = DataPlane()
        self._device = Device(config.network, self._mac, plane, open_tap=Wire)
        self._traversal = Traversal(plane, config.nat)
        self.manager = ConnectionManager(
            config, me, plane, self._device, client_context(), traversal=self._traversal
        )

    def connect(self) -> None:
        self._traversal.start()
        self.manager.start()
        path = "udp" if self._traversal.port is not None else "wss"
        tunnel = None
        while tunnel is None or tunnel.path != path:
            gevent.sleep(0.02)
            tunnel = self.manager.peer.current

    def send(self, count: int, length: int) -> None:
        assert isinstance(self._device.tap, Wire)
        sent = VNET_HEADER + frame(self._mac, self._daemon_mac, length)
        for _ in range(count):
            self._device.tap.kernel.send(sent)
            gevent.sleep(SPACING_S)


def main() -> None:
    directory, endpoint, public_key, path = sys.argv[1:]
    host, _, port = endpoint.rpartition(":")
    daemon = PeerEntry("daemon", parse_public_key(public_key), HostPort(host, int(port)), True)
    empty = Path(directory) / "empty.yaml"
    empty.touch()
    flags = {
        "daemon.state_dir": directory,
        "network.local_ip": "10.0.0.2/24",
        "nat.enabled": str(path == "udp").lower(),
        "nat.stun_server": "",
    }
    config = load(empty, flags, {}).config
    members: list[Member] = []
    for words in _requests():
        match words:
            case ["connect", first, last]:
                new = [Member(n, config, daemon) for n in range(int(first), int(last) + 1)]
                with gevent.Timeout(CONNECT_S):
                    for _ in Pool(AT_ONCE).imap_unordered(Member.connect, new):
                        pass
                members += new
            case ["send", count, length]:
                sending = [gevent.spawn(one.send, int(count), int(length)) for one in members]
                gevent.joinall(sending, raise_error=True)
            case _:
                raise ValueError(f"request {words}")
        print("done", flush=True)


def _requests() -> Iterator[list[str]]:
    for line in FileObject(sys.stdin.buffer, "rb"):
        yield line.decode().split()


if __name__ == "__main__":
    main()
