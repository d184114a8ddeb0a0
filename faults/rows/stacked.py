"""The tunnel inside itself: what is stacked on the TAP or routed into it is no way to the peer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.lab import faults
from tests.lab.pair import Pair, counters

from ..bench import Bench, await_path, crosses, until
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.netlab import Daemon

#: addresses of one network on both sides, above the TAP
INSIDE = "192.168.77"


def _macvlan(daemon: Daemon) -> None:
    daemon.host.ip("link add mv0 link tap0 type macvlan mode bridge", "link set mv0 up")
    daemon.host.ip(f"address add {INSIDE}.{daemon.host.number}/24 dev mv0")


def _vxlan(daemon: Daemon) -> None:
    other = 3 - daemon.host.number
    daemon.host.ip(
        f"link add vx0 type vxlan id 7 remote 10.0.0.{other} dstport 4789 dev tap0",
        "link set vx0 up",
        f"address add {INSIDE}.{daemon.host.number}/24 dev vx0",
    )


def _bridge(daemon: Daemon) -> None:
    daemon.host.ip(
        "link add br7 type bridge forward_delay 0",
        "link set tap0 master br7",
        "link set br7 up",
        f"address add {INSIDE}.{daemon.host.number}/24 dev br7",
    )


def _foreign_source(daemon: Daemon) -> None:
    """An address of another interface from which packets leave through the TAP."""
    other = 3 - daemon.host.number
    daemon.host.ip(
        f"address add 192.168.{70 + daemon.host.number}.1/24 dev lo",
        f"route add 192.168.{70 + other}.0/24 dev tap0 src 192.168.{70 + daemon.host.number}.1",
    )


def _halves(daemon: Daemon) -> None:
    daemon.host.ip("route add 0.0.0.0/1 dev tap0", "route add 128.0.0.0/1 dev tap0")


def _default(daemon: Daemon) -> None:
    daemon.host.ip(f"route add default via 10.0.0.{3 - daemon.host.number} dev tap0")


@row(
    "tunnel inside itself",
    "never a path; the cause is named",
    bound_s=300,
    short=(
        "netns/test_underlay.py::test_a_macvlan_on_the_device_is_no_path_although_its_addresses_answer",
        "netns/test_paths.py::a_bridge_with_the_tunnel_in_it_is_no_path",
    ),
)
def inside_itself(bench: Bench) -> None:
    failures = []
    ways: dict[str, Callable[[Daemon], None]] = {
        "macvlan": _macvlan,
        "VXLAN": _vxlan,
        "bridge": _bridge,
        "foreign source": _foreign_source,
    }
    for name, stack in ways.items():
        try:
            _stacked(bench, name, stack)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    for name, route in {"0/1 and 128/1": _halves, "default": _default}.items():
        try:
            _routed(bench, name, route)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    assert not failures, "; ".join(failures)


def _stacked(bench: Bench, name: str, stack: Callable[[Daemon], None]) -> None:
    """Direct UDP is blocked, so that the way inside is the only one that UDP could take."""
    with bench.pair(both={"nat.enabled": True, "nat.stun_server": ""}, flat=False) as pair:
        await_path(pair, "udp", 15)
        with faults.drop_udp(pair.net):
            await_path(pair, "wss", 20)
            for daemon in pair:
                stack(daemon)
            before = counters(pair.left)["bytes_out"]
            switches = pair.left.status()["path_switches"]
            time.sleep(bench.amount(12, 70))
            inside = [
                path["address"]
                for daemon in pair
                for path in daemon.status()["paths"]
                if path["proven"] and path["address"].startswith(("192.168.7", "10.0.0."))
            ]
            flips = pair.left.status()["path_switches"] - switches
            sent = (counters(pair.left)["bytes_out"] - before) >> 20
            bench.figure(f"{name}: {flips} flips, {sent} MiB sent")
            for daemon in pair:
                for interface in ("mv0", "vx0", "br7"):
                    daemon.host.run("ip", "link", "del", interface, check=False)
            assert not inside, f"{inside[0]} was taken for a path"
            assert flips == 0, f"{flips} path flips"
            assert sent < 50, f"{sent} MiB went round"


def _routed(bench: Bench, name: str, route: Callable[[Daemon], None]) -> None:
    """The peer is behind a router, so that a default route decides about the way to it."""

    def far(pair: Pair) -> None:
        for daemon, subnet in ((pair.left, 51), (pair.right, 52)):
            daemon.host.ip(
                "address flush dev eth0",
                f"address add 203.0.{subnet}.2/24 dev eth0",
                f"route add default via 203.0.{subnet}.1 dev eth0",
            )
        pair.net.switch.ip("address add 203.0.51.1/24 dev br0", "address add 203.0.52.1/24 dev br0")
        pair.net.switch.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        pair.left.settings["peer.address"] = "203.0.52.2:9001"

    with bench.pair(change=far, flat=False) as pair:
        # What DHCP gave stays behind, with a worse metric, as a wrong set-up leaves it.
        pair.left.host.ip("route del default", "route add default via 203.0.51.1 metric 500")
        route(pair.left)
        time.sleep(5)  # what is dead is noticed by then
        status = pair.left.status()
        told = (
            f"{status['last_error']} {pair.left.log()[-5000:]} {pair.left.api('GET', '/health')[1]}"
        )
        alive = pair.left.host.ping(pair.right.tunnel_ip, count=3).received
        bench.figure(f"{name}: {alive} of 3 pings after 5 s")
        named = any(word in told for word in ("into the tunnel", "through the tunnel"))
        pair.left.host.run("ip", "route", "del", "0.0.0.0/1", check=False)
        pair.left.host.run("ip", "route", "del", "128.0.0.0/1", check=False)
        pair.left.host.run("ip", "route", "del", "default", "dev", "tap0", check=False)
        until("frames pass again", lambda: crosses(pair), 60)
        assert alive or named, (
            "dead, and no cause says that the way to the peer leads into the tunnel"
        )
