"""Two daemons that know each other, on two hosts: where most system tests begin."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any, Self

from shadowmesh.netlab import Daemon, Net, introduce, wait_until
from tests.words import faults_of_line

from .frames import BROADCAST, Canaries, Collector, Stream, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from shadowmesh.netlab import Host


@dataclass
class Pair:
    """`left` dials, `right` listens; neither does anything until it is told."""

    net: Net
    left: Daemon
    right: Daemon

    def __iter__(self) -> Iterator[Daemon]:
        return iter((self.left, self.right))

    def start(self) -> Self:
        for daemon in self:
            daemon.spawn()
        for daemon in self:
            daemon.await_healthy()
        return self

    def connect(self) -> Self:
        self.let_in()
        self.left.connect()
        self.await_connected()
        return self

    def let_in(self) -> None:
        """Take back a disconnect on the right, which then waits for the left."""
        if not self.right.status()["held"]:
            return

        def wait_for_the_left() -> None:
            # Whether the left comes at all is for the test.
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.right.api("POST", "/connect")

        Thread(target=wait_for_the_left, daemon=True).start()
        wait_until(lambda: not self.right.status()["held"], 5, "the left is let in")

    def await_connected(self, timeout_s: float = 10.0) -> None:
        for daemon in self:
            daemon.wait_for(timeout_s, state="connected")

    def disconnect(self) -> None:
        """Take both down, whatever state they are in."""

        def both_down() -> bool:
            for daemon in self:
                daemon.api("POST", "/disconnect")
            return all(daemon.status()["state"] == "disconnected" for daemon in self)

        wait_until(both_down, 10, "both disconnected")

    def assert_pings(self) -> None:
        """Traffic crosses the tunnel in both directions."""
        for source, target in ((self.left, self.right), (self.right, self.left)):
            outcome = source.host.ping(target.tunnel_ip)
            assert outcome.complete, f"{source.host.label} to {target.tunnel_ip}: {outcome}"

    def await_pings(self, timeout_s: float) -> None:
        def answered() -> bool:
            return self.left.host.ping(self.right.tunnel_ip, count=1, timeout_s=0.5).complete

        wait_until(answered, timeout_s, "a ping crosses the tunnel", interval_s=0.1)

    def assert_logs_clean(self) -> None:
        """Invariants (d) and (e): no traceback, no secret in a log, and plain words."""
        for daemon in self:
            assert_log_clean(daemon)

    def peer_connections(self) -> int:
        """Established TCP connections between the two peer ports, seen from the left."""
        listing = self.left.host.run(
            "ss", "-Htn", "state", "established", "( sport = :9001 or dport = :9001 )"
        ).stdout
        return len(listing.splitlines())


def assert_log_clean(daemon: Daemon) -> None:
    log = daemon.log()
    assert "Traceback" not in log, f"{daemon.host.label}:\n{log}"
    for line in log.splitlines():
        assert not faults_of_line(line), f"{daemon.host.label}: {faults_of_line(line)}: {line}"
    for name, secret in secrets_of(daemon).items():
        assert secret not in log, f"{daemon.host.label}: {name} is in the log"


def secrets_of(daemon: Daemon) -> dict[str, str]:
    """Everything that must never be printed, in the forms in which it could be."""
    found = {}
    psk = daemon.settings.get("encryption.key")
    if psk:
        found["the pre-shared key"] = str(psk)
    with contextlib.suppress(FileNotFoundError):
        found["the API token"] = daemon.token()
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        seed = (daemon.state_dir / "identity.key").read_bytes()
        if len(seed) == 32:
            found["the identity in hex"] = seed.hex()
            found["the identity in base64"] = base64.b64encode(seed).decode()
    return found


def make_pair(
    net: Net,
    directory: Path,
    both: Mapping[str, object] | None = None,
    *,
    left: Mapping[str, object] | None = None,
    right: Mapping[str, object] | None = None,
    psk: bool = True,
    pins: bool = True,
) -> Pair:
    """Configure two daemons on two new hosts of `net`, not started."""
    made = [
        Daemon(net.host(label), directory / label, {**(both or {}), **(own or {})})
        for label, own in (("left", left), ("right", right))
    ]
    introduce(*made, psk=psk, pins=pins)
    pair = Pair(net, *made)
    pair.left.settings.setdefault("peer.address", pair.right.host.peer_endpoint)
    pair.left.settings.setdefault("peer.auto_connect", False)
    return pair


@contextlib.contextmanager
def connected_pair(
    directory: Path, both: Mapping[str, object] | None = None, **options: Any
) -> Iterator[Pair]:
    """A net with a connected pair; at the end both daemons' logs must be clean."""
    with running_pair(directory, both, **options) as pair:
        pair.connect()
        yield pair


@contextlib.contextmanager
def running_pair(
    directory: Path, both: Mapping[str, object] | None = None, **options: Any
) -> Iterator[Pair]:
    with Net() as net:
        pair = make_pair(net, directory, both, **options)
        try:
            pair.start()
            yield pair
        finally:
            for daemon in pair:
                daemon.kill()
        pair.assert_logs_clean()


@contextlib.contextmanager
def streams(pair: Pair, *, per_second: int, size: int = 200) -> Iterator[tuple[Collector, ...]]:
    """Canary frames through the tunnel in both directions while the block runs.

    The daemons have to run at its begin and at its end. On a busy machine a frame may find a queue
    full before the daemon sees it, or a datagram the socket of the other one: behind the block
    `vanished` of a collector leaves those out.
    """
    with contextlib.ExitStack() as stack:
        collectors = []
        senders = []
        wires = [stack.enter_context(Wire(daemon.host, daemon.tap)) for daemon in pair]
        for out, into in (wires, wires[::-1]):
            canaries = Canaries()
            collectors.append(stack.enter_context(Collector(into, canaries)))
            senders.append(Stream(out, canaries, into.address, per_second=per_second, size=size))
        ways = ((pair.left, pair.right), (pair.right, pair.left))
        before = [no_room(*way) for way in ways]
        with contextlib.ExitStack() as sending:
            for sender in senders:
                sending.enter_context(sender)
            yield tuple(collectors)
        for collector, way, old in zip(collectors, ways, before, strict=True):
            collector.no_room = no_room(*way) - old
        with contextlib.suppress(TimeoutError):  # the caller judges what is lost
            wait_until(lambda: not any(c.vanished for c in collectors), 5, "all frames arrived")


def exchange(
    source: Host,
    source_tap: str,
    sink: Host,
    sink_tap: str,
    *,
    target: bytes = BROADCAST,
    **frame: Any,
) -> None:
    """Send one canary frame from TAP to TAP; it must arrive byte for byte, and once."""
    canaries = Canaries()
    with Wire(source, source_tap) as out, Wire(sink, sink_tap) as into:
        sent = canaries.frame(out.address, target, **frame)
        out.send(sent)

        def arrived() -> bytes | None:
            received = into.receive(0.5)
            return received if received is not None and canaries.canary in received else None

        received = wait_until(arrived, 3, f"a frame of {len(sent)} bytes arrives")
        assert received == sent
        again = into.receive(0.05)
        assert again is None or canaries.canary not in again, "delivered twice"


def counters(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.status()["counters"])


def link_statistics(host: Host, interface: str) -> dict[str, dict[str, int]]:
    """The kernel's own counters; for a TAP, "tx" is what the daemon reads."""
    rows = json.loads(host.ip(f"-json -stats link show {interface}"))
    return dict(rows[0]["stats64"])


def no_room(source: Daemon, sink: Daemon) -> int:
    """Count what full queues have cost from one TAP to the other, before, in and behind the tunnel."""
    tap = link_statistics(source.host, source.tap)["tx"]["dropped"]
    link = counters(source)["dropped"].get("queue_full", 0)
    return tap + link + counters(sink)["dropped"].get("tap_full", 0) + socket_drops(sink)


def socket_drops(daemon: Daemon) -> int:
    """Count the datagrams that the UDP sockets of a host had no room for."""
    snmp = daemon.host.run("cat", "/proc/net/snmp").stdout.splitlines()
    names, values = (line.split() for line in snmp if line.startswith("Udp:"))
    return int(dict(zip(names, values, strict=True))["RcvbufErrors"])
