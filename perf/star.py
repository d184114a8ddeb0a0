"""One daemon that lists many peers, and those of them that are there: the rigs of perf/many.py.

Owns: their namespaces, cables and daemons. Does not know: what is measured.

    hub --eth0--> switch --> s1, s2, ...      each on its path, each with a session to the hub alone
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowmesh.keys.identity import Identity, format_public_key
from shadowmesh.netlab import Daemon, Net, wait_until

from .lab import CONNECT_S, Broken, Lane
from .targets import AEGIS


@dataclass
class Star:
    """A hub and its spokes; `lanes` go from the hub to each of them."""

    net: Net
    hub: Daemon
    spokes: list[Daemon]
    paths: tuple[str, ...]

    @property
    def lanes(self) -> list[Lane]:
        return [self.lane(number) for number in range(len(self.spokes))]

    def lane(self, number: int, *, back: bool = False) -> Lane:
        """From the hub to that spoke, counted from 0, or back."""
        ends = self.hub, self.spokes[number]
        one, other = reversed(ends) if back else ends
        return Lane(
            f"{one.host.label} to {other.host.label}",
            one.host,
            other.host,
            (one.tunnel_ip, other.tunnel_ip),
            self.paths[number],
            AEGIS,
            (one, other),
        )

    def connect(self) -> None:
        """Wait until every spoke has its session, on its path.

        Raises:
            NetlabError, TimeoutError: not in time.
        """
        for spoke, path in zip(self.spokes, self.paths, strict=True):
            spoke.wait_for(CONNECT_S, state="connected", path=path, cipher=AEGIS)
        wait_until(lambda: self._found() == self._wanted(), CONNECT_S, "the hub says so, too")

    def settle(self) -> None:
        """Make sure that every spoke is still where it was.

        Raises:
            Broken: it is not, for instance because UDP has fallen back.
        """
        found, wanted = self._found(), self._wanted()
        if found != wanted:
            raise Broken(f"the paths are {found} and not {wanted}")

    def _wanted(self) -> dict[str, str | None]:
        labels = (spoke.host.label for spoke in self.spokes)
        return dict(zip(labels, self.paths, strict=True))

    def _found(self) -> dict[str, str | None]:
        """The path of each spoke, None without a session."""
        found: dict[str, str | None] = {}
        for spoke in self.spokes:
            label = spoke.host.label
            _, answer = self.hub.api("GET", f"/peers/{label}")
            peer = answer["peer"]
            found[label] = peer["path"] if peer["state"] == "connected" else None
        return found

    @contextlib.contextmanager
    def slow_line(self, number: int, rate: str) -> Iterator[None]:
        """Let what goes to that spoke wait for a line of that rate, in a queue of a second."""
        port = self.net.port(self.spokes[number].host)
        shape = f"rate {rate} burst 16kb latency 1s"
        self.net.switch.run("tc", *f"qdisc add dev {port} root tbf {shape}".split())
        try:
            yield
        finally:
            self.net.switch.run("tc", "qdisc", "del", "dev", port, "root")


@contextlib.contextmanager
def star(directory: Path, paths: Sequence[str], *, idle: int = 0) -> Iterator[Star]:
    """A hub with a spoke on each of these paths, connected.

    Args:
        idle: the hub lists so many more, who are nowhere.
    """
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(Net())
        made = [
            Daemon(
                net.host(label),
                directory / label,
                {
                    "daemon.log_level": "info",
                    "encryption.cipher": AEGIS,
                    "nat.enabled": path == "udp",
                    "nat.stun_server": "",
                },
            )
            for label, path in (
                ("hub", "udp" if "udp" in paths else "wss"),
                *((f"s{number}", path) for number, path in enumerate(paths, 1)),
            )
        ]
        _list_each_other(made[0], made[1:], idle)
        for daemon in made:
            stack.callback(daemon.kill)
            daemon.spawn()
        for daemon in made:
            daemon.await_healthy()
        built = Star(net, made[0], made[1:], tuple(paths))
        built.connect()
        yield built


def _list_each_other(hub: Daemon, spokes: Sequence[Daemon], idle: int) -> None:
    psk = secrets.token_hex(32)
    for daemon in (hub, *spokes):
        daemon.settings["encryption.key"] = psk
    for spoke in spokes:
        spoke.settings["peers"] = [
            {"name": "hub", "public_key": hub.public_key, "address": hub.host.peer_endpoint}
        ]
    nobody = (Identity(secrets.token_bytes(32)).public_key for _ in range(idle))
    hub.settings["peers"] = [
        *({"name": one.host.label, "public_key": one.public_key} for one in spokes),
        *(
            {"name": f"idle{number}", "public_key": format_public_key(key)}
            for number, key in enumerate(nobody, 1)
        ),
    ]
