"""Two daemons, each at home behind a router of some kind, and a STUN server on the switch.

        left 192.168.1.2 - router 198.51.100.1 -+- switch -+- router 198.51.100.2 - right 192.168.1.2
                                                +- STUN 198.51.100.3, .250 -+

Both sides have the same private address, as two homes do. WSS goes through a forwarded TCP port.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

from shadowmesh.netlab import Daemon, Host, Net, introduce, wait_until

from .nat import Kind, Router, StunServer
from .pair import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPEN = "open"
SIDES = [OPEN, *Kind]
#: a router kind as our own daemon calls it
NAMES = {
    OPEN: "open",
    Kind.FULL: "full_cone",
    Kind.ADDRESS_RESTRICTED: "restricted_cone",
    Kind.PORT_RESTRICTED: "port_restricted_cone",
    Kind.ADDRESS_DEPENDENT: "symmetric",
    Kind.SYMMETRIC: "symmetric",
    Kind.UDP_BLOCKED: "udp_blocked",
}
PAIRS = list(combinations_with_replacement(SIDES, 2))
Side = str  # OPEN or a Kind


def expected_path(one: Side, other: Side) -> str:
    """Return what netlab.md's table says; a mapping that depends on the address is symmetric."""
    pair = {one, other}
    if Kind.UDP_BLOCKED in pair:
        return "wss"
    varying = {Kind.SYMMETRIC, Kind.ADDRESS_DEPENDENT}
    return "wss" if pair & varying and pair <= varying | {Kind.PORT_RESTRICTED} else "udp"


@dataclass
class Home:
    """One side: the host that runs the daemon, its router if any, its public address."""

    host: Host
    router: Router | None
    public: Host


def home(net: Net, side: Side, label: str) -> Home:
    if side == OPEN:
        host = net.host(label)
        return Home(host, None, host)
    router = Router(net, Kind(side), label)
    router.forward_tcp(9001)
    return Home(router.inside, router, router.wan)


@dataclass
class Homes:
    """A pair behind routers, running, not connected."""

    net: Net
    pair: Pair
    left: Home
    right: Home
    stun: StunServer

    def connect(self) -> float:
        """Connect; return the seconds that it took."""
        began = time.monotonic()
        self.pair.left.connect()
        took = time.monotonic() - began
        self.pair.await_connected()
        return took

    def await_path(self, path: str, timeout_s: float = 8.0) -> None:
        for daemon in self.pair:
            daemon.wait_for(timeout_s, path=path)

    def await_verdict(self, path: str) -> None:
        """Wait for UDP, or until both have given it up; then nothing may change any more."""
        if path == "udp":
            self.await_path("udp")
        else:
            for daemon in self.pair:

                def tried(daemon=daemon) -> bool:
                    return daemon.status()["path_reason"].startswith("no UDP path")

                wait_until(tried, 8, f"{daemon.host.label} gives UDP up", interval_s=0.2)
        time.sleep(1.5)
        assert [d.status()["path"] for d in self.pair] == [path, path], self.story()
        self.pair.assert_pings()

    def story(self) -> str:
        """What both daemons said, for the text of a failure."""
        return "\n".join(f"--- {d.host.label}\n{d.log_tail(40)}" for d in self.pair)


@contextlib.contextmanager
def homes(
    directory: Path,
    one: Side,
    other: Side,
    *,
    settings: dict[str, object] | None = None,
    stun: bool = True,
) -> Iterator[Homes]:
    with Net() as net, contextlib.ExitStack() as stack:
        left, right = home(net, one, "left"), home(net, other, "right")
        server = stack.enter_context(StunServer(net, directory))
        both = {
            "nat.enabled": True,
            "nat.stun_server": server.endpoint if stun else "",
            "peer.auto_connect": False,
            **(settings or {}),
        }
        daemons = []
        for side, label in ((left, "left"), (right, "right")):
            daemons.append(Daemon(side.host, directory / label, both))
        introduce(*daemons)
        daemons[0].settings["peer.address"] = f"{right.public.ipv4}:9001"
        pair = Pair(net, *daemons)
        try:
            pair.start()
            yield Homes(net, pair, left, right, server)
        finally:
            for daemon in pair:
                daemon.kill()
        pair.assert_logs_clean()
