"""A daemon that only pretends: what the control API needs, without sockets, TAP or peers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket as std_socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gevent
import gevent.event
import gevent.socket

from shadowmesh.base import errors
from shadowmesh.config import HostPort, LoadedConfig, load
from shadowmesh.control import api_socket, app, feed, server
from shadowmesh.control.rights import Rights
from shadowmesh.device import facts
from shadowmesh.insight import capture, events, explain, history, network, peers, status, table
from shadowmesh.wire.mesh import token
from tests.control.fake_custody import FakeCustody
from tests.control.fake_rotation import FakeRotation
from tests.fakes import FakePlane

TOKEN = "tokentokentokentokentokentokentokentoken123"
LISTEN = HostPort("127.0.0.1", 9090)
#: 2026-01-02T03:04:05.678Z
NOW = 1767323045.678

CONNECTED = status.Snapshot(
    version="0.1.0",
    state="connected",
    since=NOW - 133,
    public_key="b3VyIG93biBwdWJsaWMga2V5LCB0aGlydHktdHdvIGI=",
    peer=status.Peer(
        "203.0.113.7:9001", "dGhlIHBlZXIncyBwdWJsaWMga2V5LCAzMiBieXRlcyE=", pinned=True
    ),
    path="udp",
    path_reason="hole punched",
    cipher="aegis-256",
    post_quantum=True,
    tls_path="direct",
    rtt_ms=0.8412345,
    mtu=1420,
    tap=status.Tap(
        "tap0",
        1500,
        "10.0.0.1/24",
        (status.Queue(12000, 11001), status.Queue(345, 1000)),
        ("10.0.0.1/24", "fd00::1/64"),
    ),
    nat=status.Nat("full cone", "198.51.100.4:9001", NOW - 130),
    session=status.Session(NOW - 132, 1, NOW - 12, True, NOW + 108, NOW + 168),
    link=status.Link("203.0.113.7:9001", NOW - 132),
    reconnects=2,
    path_switches=1,
    handshakes={"ok": 3, "refused": 1},
    peer_port=status.PeerPort(
        "[::]:9001",
        {"accepted": 2, "tls": 1, "handshake": 0},
        {"accepted": 9, "upgraded": 4, "silent": 2},
        {"silent": 2},
    ),
    queue_bytes=4096,
    counters=status.Counters(12345, 12001, 3 << 30, 1 << 20, {"replay": 2, "queue_full": 10}),
    resources=status.Resources(0.26, 1.5, 43 << 20, 5, 27),
    health=(status.Check("tap", ok=True), status.Check("link", ok=True)),
)
TAP0 = facts.Device(
    "tap0", "tun", bytes(5) + b"\x01", 1500, up=True, running=True, addresses=("10.0.0.1/24",)
)
PONG = peers.Pong("udp", "203.0.113.7:9001", 0.8412345)
DISCONNECTED = status.Snapshot(version="0.1.0", state="disconnected", since=NOW - 10)


PAST = history.Report(
    NOW, (history.Stretch(1, NOW + 0.5, [None, 8e6], [None, 1e3], [None, 0.3], [None, 0.0]),)
)


#: a peer that is here, one that is dialled in vain, one that has to come by itself
MESH = (
    peers.PeerStatus(
        "nas", "connected", NOW - 133, "dGhlIHBlZXIncyBwdWJsaWMga2V5LCAzMiBieXRlcyE=",
        "203.0.113.7:9001", ("10.0.0.3", "fd00::3"), wanted=True, path="udp",
        endpoint="203.0.113.7:9001", path_reason="hole punched", cipher="aegis-256",
        post_quantum=True, tls_path="direct", rtt_ms=0.8412345,
        session=status.Session(NOW - 132, 1, NOW - 12, True, NOW + 108, NOW + 168),
        link=status.Link("203.0.113.7:9001", NOW - 132),
        counters=peers.PeerCounters(12345, 12001, 3 << 30, 1 << 20, 3, 4096, {"replay": 2}, 2),
        mac="02:5e:00:00:00:03",
    ),
    peers.PeerStatus(
        "lab", "error", NOW - 4, None, "198.51.100.9:9001", wanted=True, last_seen_at=NOW - 180,
        last_error="no route to host", last_error_at=NOW - 4, next_retry_at=NOW + 4,
    ),
    peers.PeerStatus(
        "laptop", "disconnected", NOW - 200, None, None, ("10.0.0.5",), "waiting_for_peer", True
    ),
)  # fmt: skip
PATHS = (
    status.Path("udp", "203.0.113.7:9001", "host", True, True, 0.8412345, 0.0, 1392),
    status.Path("wss", "203.0.113.7:9001", proven=True, rtt_ms=0.9),
)
FDB = (
    table.Entry("02:5e:00:00:00:03", None, "nas", None, True, 0),
    table.Entry("52:54:00:12:34:56", 20, "nas", 3.0, False, 1),
    table.Entry("02:00:00:00:00:01", 0, None, 2.04, False, 0),
)
#: what the daemon tells of itself then
MANY = dataclasses.replace(
    CONNECTED, peer=None, path=None, path_reason=None, paths=(), cipher=None, post_quantum=None,
    tls_path=None, rtt_ms=None, mtu=None, session=None, link=None,
    last_error="lab: no route to host", last_error_at=NOW - 4, next_retry_at=NOW + 4,
    peers=peers.Known(3, 1, 1, 0),
)  # fmt: skip

#: what this machine is in once it has made or joined it
HOME = network.NetworkReport(
    "home", "ab" * 32, ("ab" * 32,), ("10.77.0.0/24", "fd42::/64"), "laptop",
    ("10.77.0.2", "fd42::2"), ("relay",), ("factory",), NOW + 20 * 365 * 86400, True,
    ("laptop", "nas", "server"),
    (network.RelayReport("server", "vpn.example.com:443"), network.RelayReport(None, "[::1]:443")),
    (network.ListReport(3, NOW - 60, 2),), None,
)  # fmt: skip
#: what the snapshot tells of it
AT_HOME = network.NetworkStatus(
    "home", "laptop", ("10.77.0.2", "fd42::2"), ("relay",), True, 3, 1, 17,
    (
        network.MeasuredRelay("nas", None, False, None, False),
        network.MeasuredRelay("server", "vpn.example.com:443", True, 12.3456, True),
    ),
    "it is the only one with a session", NOW + 20 * 365 * 86400, (network.ListReport(3, NOW - 60, 2),), {"members": 4},
    {"joined": 2, "proof": 5}, None,
)  # fmt: skip
OPEN = network.InvitationReport(
    "0123456789abcdef", "laptop", ("relay",), ("factory",), ("10.77.0.9",), 1, 0, NOW, NOW + 3600,
    "open",
)  # fmt: skip
USED = network.InvitationReport(
    "fedcba9876543210", None, (), (), (), 3, 3, NOW - 7200, NOW - 3600, "used"
)
#: the text of an invitation to HOME
INVITATION = token.Token(
    (token.Relay("vpn.example.com:443", bytes(range(32))),),
    b"\xab" * 16, b"\xab" * 16, b"\x01\x23\x45\x67\x89\xab\xcd\xef", bytes(range(16)), 1767326645,
).text()  # fmt: skip
RECOVERY_KEY = "rk1-kept-nowhere-but-on-paper"
DOUBT = "the tunnel has 10.77.0.0/24, and so has eth0 of this machine"


def _given(name: str | None) -> tuple[str, ...]:
    """What a call is remembered by: a name only where there is one."""
    return () if name is None else (name,)


class FakeControl:
    """Answers with `snapshot` and `report`, or raises `error`; `calls` is what was asked."""

    def __init__(self) -> None:
        self.snapshot = DISCONNECTED
        self.report = status.Health([status.Check("tap", ok=True, text="tap0 is up")])
        self.facts = facts.HostFacts("tap0", TAP0)
        self.error: Exception | None = None
        #: what the next pings say, before it is always `PONG`
        self.pongs: list[peers.Pong] = []
        self.past = PAST
        self.mesh: tuple[peers.PeerStatus, ...] = (
            peers.PeerStatus("peer", "disconnected", NOW - 10),
        )
        self.fdb: tuple[table.Entry, ...] = ()
        self.reloaded = status.Reloaded(4711, ("nat.enabled",), ("network.mtu",))
        self.loaded = load(Path(os.devnull), {}, {"HOME": "/nonexistent"})
        #: the network that this machine is in
        self.joined: network.NetworkReport | None = None
        self.invited: tuple[network.InvitationReport, ...] = (OPEN, USED)
        self.doubts: tuple[str, ...] = ()
        #: and will be in, once it was restored
        self.restored = HOME
        self.kept = FakeCustody(self)
        self.rotating = FakeRotation(self)
        self.calls: list[tuple[str, ...]] = []
        #: called before each answer
        self.before: Callable[[], None] = lambda: None

    def _answer(self, *call: str) -> status.Snapshot:
        self.calls.append(call)
        self.before()
        if self.error is not None:
            raise self.error
        return self.snapshot

    def connect(self, peer: str | None, name: str | None = None) -> status.Snapshot:
        self.snapshot = dataclasses.replace(CONNECTED)
        return self._answer("connect", str(peer), *_given(name))

    def disconnect(self, name: str | None = None) -> status.Snapshot:
        self.snapshot = dataclasses.replace(DISCONNECTED)
        return self._answer("disconnect", *_given(name))

    def reload(self) -> status.Reloaded:
        self._answer("reload")
        return self.reloaded

    def configuration(self) -> LoadedConfig:
        self._answer("configuration")
        return self.loaded

    def ping(self, count: int, name: str | None = None) -> list[peers.Pong]:
        self._answer("ping", str(count), *_given(name))
        return [self.pongs.pop(0) if self.pongs else PONG for _ in range(count)]

    def status(self) -> status.Snapshot:
        return self._answer("status")

    def health(self) -> status.Health:
        self._answer("health")
        return self.report

    def peers(self) -> peers.Peers:
        return peers.Peers(NOW, self.mesh)

    def peer(self, name: str) -> peers.OnePeer:
        found = self._named(name)
        self._answer("peer", name)
        told = {one.name: getattr(found, one.name) for one in dataclasses.fields(found)}
        behind = tuple(entry for entry in self.fdb if entry.peer == name)
        return peers.OnePeer(NOW, peers.PeerReport(**told, paths=PATHS, macs=behind))

    def table(self) -> tuple[table.Entry, ...]:
        self._answer("fdb")
        return self.fdb

    def _named(self, name: str) -> peers.PeerStatus:
        for peer in self.mesh:
            if peer.name == name:
                return peer
        raise errors.NoSuchPeer(f'there is no peer "{name}"; `shadowmesh peers` names all')

    def explain(self, target: str | None, peer: str | None = None) -> explain.Explanation:
        asked = None if target is None else facts.parse_target(target)
        place = None if peer is None else explain.Place(self._named(peer).name)
        self._answer("explain", str(target), *_given(peer))
        return explain.explain(self.snapshot, self.facts, asked, NOW, place)

    def history(self) -> history.Report:
        self._answer("history")
        return self.past

    def network(self) -> network.NetworkReport | None:
        self._answer("network")
        return self.joined

    def relays(self) -> network.Relays:
        self._answer("relays")
        self._be_in_one()
        return network.Relays(
            (network.MeasuredRelay("server", "vpn.example.com:443", session=True, rtt_ms=8.1, home=True),),
            "the only relay with a session",
        )  # fmt: skip

    def create_network(
        self, name: str, own_name: str | None, subnets: Sequence[str], address: str | None
    ) -> network.Founded:
        self._answer("create_network", name, str(own_name), ",".join(subnets), str(address))
        self._be_in_none()
        self.joined = dataclasses.replace(HOME, name=name, own=own_name or HOME.own)
        return network.Founded(self.joined, RECOVERY_KEY)

    def invite(
        self,
        name: str | None,
        expires_s: int,
        uses: int,
        roles: Sequence[str],
        tags: Sequence[str],
        addresses: Sequence[str],
    ) -> network.Invited:
        lists = [",".join(one) for one in (roles, tags, addresses)]
        self._answer("invite", str(name), str(expires_s), str(uses), *lists)
        self._be_in_one()
        made = dataclasses.replace(
            OPEN, name=name, roles=tuple(roles), tags=tuple(tags), addresses=tuple(addresses),
            uses=uses, expires_at=NOW + expires_s,
        )  # fmt: skip
        return network.Invited(made, INVITATION)

    def invitations(self) -> Sequence[network.InvitationReport]:
        self._answer("invitations")
        self._be_in_one()
        return self.invited

    def cancel_invitation(self, id_: str | None) -> int:
        self._answer("cancel_invitation", str(id_))
        self._be_in_one()
        return sum(one.state == "open" and id_ in (None, one.id) for one in self.invited)

    def join(
        self, token: str, name: str | None, accept: bool, announce: Sequence[str]
    ) -> network.Admission:
        self._answer("join", token, str(name), str(accept), *announce)
        self._be_in_none()
        own = name or HOME.own
        if accept:
            self.joined = dataclasses.replace(HOME, own=own)
        return network.Admission(
            HOME.name, HOME.authorities[0], "vpn.example.com:443", own, HOME.addresses, HOME.subnets,
            self.doubts, accept,
        )  # fmt: skip

    def leave(self) -> None:
        self._answer("leave")
        self._be_in_one()
        self.joined = None

    def remove_peer(self, name: str) -> Sequence[str]:
        self._answer("remove_peer", name)
        self._be_in_one()
        self._named(name)
        return [name]

    def custody(self) -> FakeCustody:
        return self.kept

    def rotation(self) -> FakeRotation:
        return self.rotating

    def _be_in_one(self) -> None:
        if self.joined is None:
            raise errors.NotInNetwork("this machine is in no network; make one or join one")

    def _be_in_none(self) -> None:
        if self.joined is not None:
            raise errors.AlreadyInNetwork("this machine is in a network; leave it first")


def make_app(
    control: FakeControl,
    listen: HostPort = LISTEN,
    metrics_registry=None,
    recorder=None,
    captures=None,
):
    """Return the control API over a fake daemon, in whose tunnel nothing moves."""
    recorder = events.FlightRecorder() if recorder is None else recorder
    if captures is None:
        captures = capture.Captures(FakePlane(), lambda: "tap0", recorder)
    return app.create_app(
        control,
        TOKEN,
        listen,
        metrics_registry,
        recorder=recorder,
        feed=feed.Feed(lambda: control.status().to_dict(), recorder),
        captures=captures,
    )


@contextlib.contextmanager
def serving(
    make_app: Callable[[HostPort], object],
    *,
    path: Path | None = None,
    rights: Rights | None = None,
) -> Iterator[HostPort]:
    """Serve an application on loopback, from a thread with an event loop of its own.

    The thread makes the test's blocking client and the server independent of each other.

    Args:
        path: also serve it on a Unix socket there, where credentials give these rights.
    """
    listener = std_socket.create_server(("127.0.0.1", 0), backlog=64)
    address = HostPort("127.0.0.1", listener.getsockname()[1])
    ready = threading.Event()
    stop_watchers = []

    def run() -> None:
        sock = gevent.socket.socket(fileno=listener.detach())
        application = make_app(address)
        servers = [server.LimitedServer(sock, application)]
        name = None
        if path is not None:
            name = api_socket.listen(path)
            servers.append(server.LimitedServer(name.sock, application, rights))
        stop = gevent.event.Event()
        watcher = gevent.get_hub().loop.async_()
        watcher.start(stop.set)
        stop_watchers.append(watcher)
        for one in servers:
            one.start()
        ready.set()
        stop.wait()
        for one in servers:
            one.stop(timeout=0.1)
        if name is not None:
            name.remove()
        watcher.close()
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield address
    finally:
        stop_watchers[0].send()
        thread.join(10)
        assert not thread.is_alive()
