"""The insides of two or more daemons in one process: real data planes, TLS, WebSockets on loopback.

Only the TAP is not real: a pair of datagram sockets, of which the data plane has one end and the
test, as the kernel, the other. What passes there is the 10-byte virtio header and a frame.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import replace

import gevent
import gevent.socket as gsocket
from gevent.event import Event

from shadowmesh._fastpath import DataPlane
from shadowmesh.base.errors import DeviceError
from shadowmesh.config import HostPort, PeerEntry, load
from shadowmesh.config.model import Secret
from shadowmesh.device.device import Device
from shadowmesh.keys.identity import Identity
from shadowmesh.link import tls
from shadowmesh.link.known import KnownAddresses
from shadowmesh.link.listener import Listener
from shadowmesh.peer.manager import ConnectionManager

PATIENCE_S = 10.0
VNET_HEADER = bytes(10)
LOCALHOST = "127.0.0.1"


def wait_for(predicate, what="the condition", timeout_s=PATIENCE_S):
    """Poll until the predicate is true, letting the hub run, and return what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"{what}: not in time, last {value!r}"
        gevent.sleep(0.005)
    return value


def frame(payload: bytes, source: int = 1) -> bytes:
    """Return a broadcast frame of an experimental type."""
    return b"\xff" * 6 + bytes([2, 0, 0, 0, 0, source]) + b"\x88\xb5" + payload.ljust(46, b"\0")


def cut(sock) -> None:
    """End a TCP connection under its TLS, both ways."""
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        raw.shutdown(socket.SHUT_RDWR)


class FakeTap:
    """Has the interface of `device.tap.Tap`; `kernel` is the other end.

    That one is gevent's: its close() wakes whoever waits for a frame. A watcher left on a closed
    descriptor would end the process as soon as the number belongs to something else.
    """

    def __init__(self, name, *, mtu, offload, udp_super_frames=True, on_close=None):
        self.name = name
        self.udp_super_frames = udp_super_frames
        self.left_out = ()
        self.mtu = mtu
        self.offload = offload
        self.closed = False
        self.asked_again = 0
        self._on_close = on_close
        self.kernel, ours = gsocket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fds = (ours.detach(),)

    def set_offload(self, flags):
        if self.closed:
            raise DeviceError("closed")
        self.offload = flags

    def ask_again(self):
        self.asked_again += 1

    def is_up(self):
        return True

    def close(self):
        if self.closed:
            return
        self.closed = True
        if self._on_close is not None:
            self._on_close()
        os.close(self.fds[0])
        self.kernel.close()


class Clock:
    """In place of gevent.spawn_later: what is due, and nothing that happens by itself."""

    class Entry:
        def __init__(self, delay_s, action):
            self.delay_s = delay_s
            self.action = action
            self.killed = False

        def kill(self, *, block=True):
            self.killed = True

    def __init__(self):
        self.entries = []

    def later(self, delay_s, action):
        self.entries.append(self.Entry(delay_s, action))
        return self.entries[-1]

    @property
    def pending(self):
        return [entry for entry in self.entries if not entry.killed]

    def fire(self):
        """Let the time of the only pending action come; return how long that would have taken."""
        [entry] = wait_for(lambda: self.pending, "something is planned")
        entry.killed = True
        entry.action()
        return entry.delay_s


class Machine:
    """One daemon without its command line and APIs."""

    def __init__(
        self,
        directory,
        *,
        psk=None,
        seed=None,
        clock=None,
        dial=None,
        listen=True,
        flags=None,
        without=(),
    ):
        self.identity = Identity.from_seed(seed or secrets.token_bytes(32))
        self.clock = clock
        self.taps = []
        #: an exception for the next attempts to open the TAP
        self.tap_error = None
        self.log = []
        directory.mkdir(exist_ok=True)
        self._certificate = tls.load_or_create_certificate(
            directory / "cert.pem", directory / "key.pem"
        )
        empty = directory / "empty.yaml"
        empty.write_text("")
        defaults = {"daemon.state_dir": str(directory), "network.local_ip": "10.0.0.1/24"}
        config = load(empty, {**defaults, **(flags or {})}, {}).config
        key = None if psk is None else Secret(psk)
        self.config = replace(config, encryption=replace(config.encryption, key=key))
        self.plane = DataPlane(without)
        #: whether this machine's kernel knows super-frames of datagrams
        self.udp_super_frames = True
        self.device = Device(
            self.config.network,
            bytes(6),
            self.plane,
            udp_super_frames=True,
            open_tap=self._open_tap,
        )
        self._directory = directory
        self._dial = dial
        self._listen = listen
        self.known = KnownAddresses()
        #: of a network that this machine is in
        self.membership = None
        #: where whoever wants to join it is answered
        self.desk = None
        #: told of a relay that refuses this member
        self.on_out_of_date = None
        #: takes what members say about it
        self.meet = None
        self.listener = None
        self.manager = None

    def _open_tap(self, name, *, mtu, addresses, persist, offload, queues, mac, held):
        if self.tap_error is not None:
            raise self.tap_error
        self.taps.append(
            FakeTap(
                name,
                mtu=mtu,
                offload=offload,
                udp_super_frames=self.udp_super_frames,
                on_close=lambda: self.log.append("tap closed"),
            )
        )
        self.log.append("tap opened")
        return self.taps[-1]

    def trust(self, **peer):
        """Change the peer section, before start()."""
        self.config = replace(self.config, peer=replace(self.config.peer, **peer))
        return self

    def know(self, *others, **entries):
        """List other machines as peers, before start() or as what reload() is to use.

        Args:
            others: machines that dial this one, or nobody does.
            entries: what is said of one by its name: a machine to dial, or an entry.
        """
        named = {other.name: other.entry() for other in others}
        for name, what in entries.items():
            named[name] = what.entry(address=what.address) if isinstance(what, Machine) else what
        peers = tuple(replace(entry, name=name) for name, entry in named.items())
        self.config = replace(self.config, peer_list=peers)
        return self

    @property
    def name(self):
        return self._directory.name

    def entry(self, address=None, **more):
        """What another machine's list says of this one."""
        auto = more.pop("auto_connect", address is not None)
        return PeerEntry(self.name, self.identity.public_key, address, auto, **more)

    def reload(self):
        """Let the manager use what `know` or `trust` has said since."""
        self.manager.reload(self.config)
        done = Event()
        self.manager._mailbox.post(done.set)
        done.wait()
        return self

    def knows(self, other):
        """What this machine knows of the other one, that it has in its list."""
        return self.manager.peer_named(other.name)

    def start(self):
        options = {}
        if self.clock is not None:
            options["later"] = self.clock.later
        if self._dial is not None:
            options["dial"] = self._dial
        self.manager = ConnectionManager(
            self.config, self.identity, self.plane, self.device, tls.client_context(),
            known=self.known, membership=self.membership, desk=self.desk, meet=self.meet,
            on_out_of_date=self.on_out_of_date, **options,
        )  # fmt: skip
        if self._listen:
            self.listener = Listener(
                HostPort(LOCALHOST, 0), self.config.websocket.path,
                tls.server_context(self._certificate), self._certificate.sha256,
                self.manager.take_incoming, self.known,
            )  # fmt: skip
            self.listener.start()
        self.manager.start()
        return self

    @property
    def peer(self):
        """What this machine knows of the other one."""
        return self.manager.peer

    @property
    def address(self):
        return HostPort(LOCALHOST, self.listener._listening.getsockname()[1])

    @property
    def state(self):
        return str(self.peer.machine.state)

    @property
    def phase(self):
        phase = self.peer.machine.phase
        return None if phase is None else str(phase)

    @property
    def tap(self):
        return self.manager.tap

    def send(self, payload, source=1):
        """Let the kernel send a frame into the TAP; return it."""
        sent = frame(payload, source)
        self.tap.kernel.send(VNET_HEADER + sent)
        return sent

    def receive(self, timeout_s=PATIENCE_S):
        """Return the next frame that the daemon delivers; OSError when its TAP is closed."""
        with gevent.Timeout(timeout_s):
            return self.tap.kernel.recv(70000)[len(VNET_HEADER) :]

    def wait_for(self, state, phase=None):
        wait_for(
            lambda: self.state == state and phase in (None, self.phase),
            f"{state} {phase or ''}, is {self.peer.machine.state} {self.phase}"
            f" ({self.peer.last_error})",
        )
        return self

    def wait_for_error(self, other):
        """Wait until what this machine tried with another one has failed."""
        wait_for(
            lambda: self.knows(other).machine.state == "error",
            f"an error with {other.name}, is {self.knows(other).machine.state}",
        )
        return self

    def stop(self):
        if self.listener is not None:
            self.listener.stop()
        if self.manager is not None:
            self.manager.stop()
        for tap in self.taps:
            tap.close()
