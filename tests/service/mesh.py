"""Stand-ins for what a view is built over: a manager with peers, without data plane and sockets."""

from __future__ import annotations

import dataclasses
import os
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

from shadowmesh.base.clock import boottime
from shadowmesh.base.errors import NoSuchPeer
from shadowmesh.config import HostPort, load
from shadowmesh.config.model import PeerEntry
from shadowmesh.insight.events import NOBODY
from shadowmesh.insight.vitals import Vitals
from shadowmesh.keys.mac import stable_mac
from shadowmesh.service.view import View
from shadowmesh.wire.control import Endpoint
from shadowmesh.wire.peer.states import Event, PeerMachine, State

CONFIG = load(Path(os.devnull), {}, {"HOME": "/nonexistent"}).config
FAR_END = ip_address("203.0.113.7")


def key_of(name: str) -> bytes:
    return name.encode().ljust(32, b"\0")


def make_tunnel(name: str = "", *, path: str = "udp") -> SimpleNamespace:
    """Return a session with the peer of this name."""
    result = SimpleNamespace(
        cipher="aegis-256", tls_matches=True, peer=SimpleNamespace(tap_mtu=1500)
    )
    report = SimpleNamespace(
        endpoint=Endpoint(FAR_END, 9001), kind="host", active=True, proven=True, rtt_ms=0.5, loss=0.0, mtu=1392,
        seen_as=None, unanswered=0, hindrance=None,
    )  # fmt: skip
    paths = SimpleNamespace(
        active=report if path == "udp" else None, reason="it answers", switches=0,
        report=lambda: (report,) if path == "udp" else (),
    )  # fmt: skip
    return SimpleNamespace(
        path=path, peer_name="203.0.113.7:9001", initiator=True, result=result, paths=paths,
        peer_public_key=key_of(name), established_boottime=boottime() - 60, rekeys=1,
        last_rekey_at=None, rekey_at=None, keys_expire_at=boottime() + 120, rtt_s=0.001, link_error=None,
        wss=SimpleNamespace(far_end=FAR_END, pipe=SimpleNamespace(queued_bytes=7)),
    )  # fmt: skip


class FakePort:
    """A peer's place in the data plane."""

    def __init__(self, number: int) -> None:
        self.number = number

    def counters(self):
        return {
            "frames_sent": 1, "bytes_sent": 60, "frames_received": 2, "bytes_received": 120,
            "frames_queued": 3, "bytes_queued": 180, "tx_dropped": {"queue_full": 4},
            "rx_dropped": {"mac_limit": 5}, "macs": 1,
        }  # fmt: skip


class FakePeer:
    """One peer; `is_here`, `fails` and so on bring it into a state."""

    def __init__(self, name: str, number: int = 0, *, address: str | None = "203.0.113.7:9001"):
        host, _, port = (address or ":0").rpartition(":")
        self.target = None if address is None else HostPort(host, int(port))
        self.entry = PeerEntry(name, key_of(name), self.target, address is not None)
        self.name = name
        self.port = FakePort(number)
        self.machine = PeerMachine(boottime())
        self.current = None
        self.last_error = self.last_error_at = self.next_retry_at = None
        self.reconnects = self.path_switches = 0
        self.held = self.dialling = False
        self.last_seen = SimpleNamespace(moment=None, date=None)

    @property
    def wanted(self):
        return self.machine.state is not State.DISCONNECTED

    @property
    def expected(self):
        return not (self.wanted or self.held) and self.target is None

    def is_here(self, path: str = "udp"):
        self.machine.fire(Event.ACCEPTED, boottime())
        self.current = make_tunnel(self.name, path=path)
        return self

    def fails(self, why: str):
        self.machine.fire(Event.CONNECT, boottime())
        self.machine.fire(Event.FAILED, boottime())
        self.last_error, self.last_error_at = why, boottime()
        self.next_retry_at = boottime() + 4
        return self

    def is_held(self):
        self.held = True
        return self


class FakePlane:
    """Counts nothing; `entries` is the switch's table."""

    def __init__(self):
        self.entries = []

    def counters(self):
        return {
            "frames_read": 0, "bytes_read": 0, "frames_sent": 0, "frames_written": 0,
            "bytes_written": 0, "tx_dropped": {"queue_full": 0}, "rx_dropped": {"queue_full": 0},
            "udp_refused": {}, "queues": [(0, 0)],
        }  # fmt: skip

    def udp_errors(self):
        return {}

    def fdb(self):
        return self.entries

    def fdb_counters(self):
        return {"entries": 1, "moves": 2, "unlearned": 3}


class FakeManager:
    """Some peers; what it says of the state is for the test to decide."""

    def __init__(self, *peers: FakePeer, listed: bool = True):
        self.peers = peers
        entries = tuple(peer.entry for peer in peers)
        self.config = dataclasses.replace(CONFIG, peer_list=entries if listed else None)
        self.plane = FakePlane()
        self.identity = SimpleNamespace(public_key=key_of("self"))
        self.handshakes = {"ok": 1}
        self.dropped = {}
        self.tap = self.device_problem = self.refused = self.traversal = None
        self.realtime_problem = None

    @property
    def state(self):
        if len(self.peers) == 1:
            return self.peers[0].machine.state
        if any(peer.current for peer in self.peers):
            return State.CONNECTED
        wanted = any(peer.wanted for peer in self.peers)
        return State.CONNECTING if wanted else State.DISCONNECTED

    def peer_named(self, name: str):
        for peer in self.peers:
            if peer.name == name:
                return peer
        raise NoSuchPeer(f'there is no peer "{name}"; `shadowmesh peers` names all')


class FakeUnderlay:
    """No way leads into the tunnel, but those to `looped` addresses."""

    def __init__(self):
        self.generation = 1
        self.refused = {}
        self.looped = set()

    def inside(self, to):
        return f"{to} leads into the tunnel itself (tap0)" if to in self.looped else None

    def advice(self, to):
        return f"ip route add {to} via GATEWAY"


def make_view(*peers: FakePeer, listed: bool = True) -> View:
    """Return a view; `view.manager` and `view.underlay` are its stand-ins."""
    manager, underlay = FakeManager(*peers, listed=listed), FakeUnderlay()
    certificate = SimpleNamespace(
        cert_path=Path("/nonexistent"), not_before=0.0, not_after=4e9, sha256=bytes(32)
    )
    view = View(
        manager, SimpleNamespace(worst_s=0.0), Vitals(NOBODY), certificate, lambda: None,
        SimpleNamespace(listener=None), lambda: None, underlay,
    )  # fmt: skip
    view.manager, view.underlay = manager, underlay
    return view


def own_mac(peer: FakePeer) -> bytes:
    """The MAC that the daemon of this peer gives its device."""
    return stable_mac(peer.entry.public_key)
