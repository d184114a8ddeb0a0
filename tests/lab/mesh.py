"""Many daemons on one switch, each with a session to every other: where the tests of many begin.

Every peer lists all others; of each two the one with the smaller number dials. Every third daemon
stays on the WebSocket path, and with it all its pairs, the others move to UDP.
"""

from __future__ import annotations

import contextlib
import http
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from shadowmesh.netlab import Daemon, Net, NetlabError, acquaint, wait_until
from tests.lab.frames import Canaries, Collector, Stream, Wire, mac
from tests.lab.pair import assert_log_clean, counters, link_statistics, socket_drops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: all on two cores: what one takes 0.1 s for may take twenty of them that much longer
PATIENCE_S = 60.0


@dataclass
class Mesh:
    """Daemons in the order of their numbers, named h1, h2 and so on."""

    net: Net
    daemons: list[Daemon]

    def __iter__(self) -> Iterator[Daemon]:
        return iter(self.daemons)

    def __getitem__(self, number: int) -> Daemon:
        """Return the daemon with this number, counted from 1."""
        return self.daemons[number - 1]

    def start(self) -> Self:
        for daemon in self:
            daemon.spawn()
        for daemon in self:
            daemon.await_healthy(PATIENCE_S)
        return self

    def others(self, *left_out: Daemon) -> list[Daemon]:
        return [daemon for daemon in self if daemon not in left_out]

    def await_sessions(self, among: Sequence[Daemon] | None = None) -> None:
        """Wait until each of these daemons, of all by default, has a session to each other one.

        Raises:
            TimeoutError: not in time; the text names a daemon and the peers that it lacks.
        """
        among = self.daemons if among is None else among
        for daemon in among:
            wanted = {other.host.label for other in among if other is not daemon}
            self.await_peers(daemon, wanted, "connected")

    def await_peers(self, daemon: Daemon, names: set[str], state: str) -> None:
        """Wait until these peers of a daemon are in this state."""
        lacking: set[str] = set()

        def reached() -> bool:
            lacking.clear()
            lacking.update(
                name for name, peer in daemon.peers().items()
                if name in names and peer["state"] != state
            )  # fmt: skip
            return not lacking

        try:
            wait_until(reached, PATIENCE_S, "sessions", interval_s=0.2)
        except TimeoutError:
            raise NetlabError(
                f"daemon on {daemon.host.label}: {sorted(lacking)} not {state} within"
                f" {PATIENCE_S:g} s, log:\n{daemon.log_tail()}"
            ) from None

    def sessions(self, among: Sequence[Daemon]) -> dict[tuple[str, str], Any]:
        """Return since when each of these daemons has its session to each other one."""
        names = {daemon.host.label for daemon in among}
        return {
            (daemon.host.label, name): peer["session"]["established_at"]
            for daemon in among
            for name, peer in daemon.peers().items()
            if name in names
        }


def no_room(source: Daemon, sink: Daemon) -> int:
    """Count what full queues have cost on the way from one TAP to the other, not what others lost."""
    tap = link_statistics(source.host, source.tap)["tx"]["dropped"]
    link = source.peers()[sink.host.label]["counters"]["dropped"].get("queue_full", 0)
    return tap + link + socket_drops(sink) + counters(sink)["dropped"].get("tap_full", 0)


@contextlib.contextmanager
def running_mesh(
    directory: Path, count: int, change: Callable[[Mesh], None] = lambda mesh: None
) -> Iterator[Mesh]:
    """A full mesh of so many daemons; at the end their logs must be clean.

    Args:
        change: called with the mesh before it starts.
    """
    with Net() as net:
        daemons = []
        for number in range(1, count + 1):
            settings = {"nat.enabled": number % 3 != 0, "nat.stun_server": ""}
            label = f"h{number}"
            daemons.append(Daemon(net.host(label), directory / label, settings))
        acquaint(daemons)
        mesh = Mesh(net, daemons)
        change(mesh)
        try:
            mesh.start()
            mesh.await_sessions()
            yield mesh
        finally:
            for daemon in mesh:
                daemon.kill()
        for daemon in mesh:
            assert_log_clean(daemon)


def tap_mac(daemon: Daemon) -> bytes:
    return mac(daemon.host.interfaces()[daemon.tap]["address"])


def assert_pings(source: Daemon, target: Daemon) -> None:
    """One is answered; on a busy machine not always the first."""
    wait_until(
        lambda: source.host.ping(target.tunnel_ip, count=1).complete,
        PATIENCE_S,
        f"a ping from {source.host.label} to {target.host.label}",
    )


def fdb(daemon: Daemon) -> dict[tuple[bytes, int | None], dict[str, Any]]:
    """Return the table of a daemon by MAC address and VLAN."""
    code, answer = daemon.api("GET", "/fdb")
    assert code == http.HTTPStatus.OK, answer
    return {(mac(entry["mac"]), entry["vlan"]): entry for entry in answer["entries"]}


@contextlib.contextmanager
def undisturbed(
    mesh: Mesh, *in_trouble: Daemon, between: tuple[Daemon, Daemon] | None = None
) -> Iterator[None]:
    """The others keep their sessions while the block runs, and two of them lose no frame."""
    others = mesh.others(*in_trouble)
    before = mesh.sessions(others)
    one, two = between or others[:2]
    full = no_room(one, two)
    canaries = Canaries()
    with (
        Wire(one.host, one.tap) as out,
        Wire(two.host, two.tap) as into,
        Collector(into, canaries) as collector,
    ):
        with Stream(out, canaries, into.address, per_second=200):
            yield
        collector.no_room = no_room(one, two) - full
        wait_until(lambda: not collector.vanished, PATIENCE_S, "all frames arrived")
    collector.assert_sound()
    assert mesh.sessions(others) == before
