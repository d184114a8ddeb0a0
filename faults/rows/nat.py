"""Routers, STUN servers, proxies between two hosts."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from shadowmesh.netlab import Net, wait_until
from tests.lab import proxies
from tests.lab.homes import NAMES, OPEN, SIDES, expected_path, homes
from tests.lab.nat import Kind
from tests.lab.pair import make_pair
from tests.lab.stun_server import Behaviour

from ..bench import Bench, assert_logs_clean, await_path, beside, until
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadowmesh.netlab import Host


@row(
    "NAT forgets or moves mapping",
    "keepalive holds it, or punched again",
    bound_s=200,
    short=(
        "netns/test_nat.py::a_router_that_forgets_its_mappings_is_passed_again",
        "netns/test_nat.py::a_new_public_address_moves_the_path",
        "netns/test_nat.py::mappings_that_live_for_two_seconds_do_not_end_the_tunnel",
    ),
)
def forgets(bench: Bench) -> None:
    with homes(bench.place(), Kind.PORT_RESTRICTED, Kind.PORT_RESTRICTED) as made:
        made.connect()
        made.await_verdict("udp")
        for _ in range(bench.amount(3, 20)):
            made.left.router.forget()
            made.right.router.forget()
            began = time.monotonic()
            made.pair.await_pings(6)
            made.await_path("udp", 15)
            bench.figure(f"forgotten: back {time.monotonic() - began:.1f} s")
    # Two others: a router that has forgotten a TCP connection may reset it at any time afterwards.
    with homes(bench.place(), Kind.PORT_RESTRICTED, Kind.PORT_RESTRICTED) as made:
        made.connect()
        made.await_verdict("udp")
        for side in (made.left, made.right):
            for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
                side.router.wan.run("sysctl", "-q", "-w", f"net.netfilter.{name}=2")
        for _ in range(bench.amount(2, 20)):
            time.sleep(5)
            made.pair.await_pings(6)
        assert [daemon.status()["reconnects"] for daemon in made.pair] == [0, 0]
        switches = [daemon.status()["path_switches"] for daemon in made.pair]
        bench.figure(f"2 s mappings: {switches} path switches")
    with homes(bench.place(), Kind.PORT_RESTRICTED, OPEN) as made:
        made.connect()
        made.await_verdict("udp")
        wan = made.left.router.wan
        wan.ip("address del 198.51.100.1/24 dev eth0", "address add 198.51.100.77/24 dev eth0")
        made.left.router.forget()
        began = time.monotonic()
        made.pair.await_pings(10)
        bench.figure(f"new WAN address: back {time.monotonic() - began:.1f} s")


@row(
    "two NAT types at random",
    "the right path every time",
    bound_s=300,
    long_bound_s=3600,
    short=("netns/test_nat.py::test_nat",),
)
def random_nats(bench: Bench) -> None:
    wrong = []
    rounds = bench.amount(8, 200)
    for _ in range(rounds):
        one, other = bench.random.choice(SIDES), bench.random.choice(SIDES)
        try:
            with homes(bench.place(), one, other) as made:
                made.connect()
                made.await_verdict(expected_path(one, other))
                for daemon, side in zip(made.pair, (one, other), strict=True):
                    until(
                        f"{daemon.host.label} is behind {NAMES[side]}",
                        lambda d=daemon, s=side: d.status()["nat"]["type"] == NAMES[s],
                        15,
                    )
        except (AssertionError, TimeoutError) as error:
            wrong.append(f"{one} and {other}: {str(error).splitlines()[0][:80]}")
    bench.figure(f"{rounds} pairs, {len(wrong)} wrong")
    assert not wrong, "; ".join(wrong)


@contextlib.contextmanager
def _strange_server(net: Net, bench: Bench, behaviour: Behaviour, lie: str) -> Iterator[Host]:
    host = net.host("strange")
    log = bench.place() / "stun.log"
    process = host.popen(
        sys.executable, "-m", "tests.lab.stun_server", "--listen", f"{host.ipv4}:3478",
        "--behaviour", behaviour, "--lie", lie, log=log,
    )  # fmt: skip
    wait_until(lambda: "ready" in log.read_text(), 15, "the STUN server is ready")
    try:
        yield host
    finally:
        process.kill()
        process.wait(10)


@row(
    "STUN spoof, silence, garbage, slow",
    "hint ignored, connected <= detection_timeout + 1 s, also in a flood",
    bound_s=240,
    short=(
        "netns/test_nat.py::stun_servers_with_bad_manners_do_no_harm",
        "netns/test_nat.py::a_silent_stun_server_delays_nothing",
    ),
)
def bad_stun(bench: Bench) -> None:
    slowest = 0.0
    for behaviour in Behaviour:
        with Net() as net, contextlib.ExitStack() as stack:
            victim = net.host("victim")
            lie = f"{victim.ipv4}:6666"
            server = stack.enter_context(_strange_server(net, bench, behaviour, lie))
            both = {
                "nat.enabled": True,
                "nat.stun_server": f"{server.ipv4}:3478",
                "nat.detection_timeout": "2s",
                "peer.auto_connect": False,
            }
            pair = make_pair(net, bench.place(), both)
            for daemon in pair:
                stack.callback(daemon.kill)
            stack.enter_context(_flood(victim, [pair.left.host, pair.right.host]))
            pair.start()
            began = time.monotonic()
            pair.connect()
            slowest = max(slowest, time.monotonic() - began)
            await_path(pair, "udp", 10)
            pair.assert_pings()
            for daemon in pair:
                until("the detection ends", lambda d=daemon: d.status()["nat"]["detected_at"], 15)
            assert_logs_clean(pair)
    bench.figure(f"{len(Behaviour)} kinds, each in a flood: slowest {slowest:.1f} s")
    assert slowest <= 3


@contextlib.contextmanager
def _flood(source: Host, targets: list[Host]) -> Iterator[None]:
    """Forged STUN answers and junk to the data port, 1,000 a second, while the block runs."""
    answer = (
        bytes.fromhex("0101000c2112a442") + bytes(12) + bytes.fromhex("0020000800010000c0000242")
    )

    def send(stop: threading.Event) -> None:
        with source.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not stop.wait(0.02):
                for host in targets:
                    for data in (answer, b"\x80\0\0\0" + bytes(60)) * 5:
                        sock.sendto(data, (host.ipv4, 9001))

    with beside(send):
        yield


@row(
    "proxy faults",
    "dialled again, idle survives",
    bound_s=300,
    long_bound_s=1200,
    short=("netns/test_proxies.py::test_a_tunnel_through_a_proxy_survives_its_restart",),
)
def proxy_faults(bench: Bench) -> None:
    for kind in proxies.Kind:
        assert proxies.installed(kind), f"{kind.value} is not installed"
        with Net() as net:
            place = bench.place()
            pair = make_pair(net, place)
            with proxies.Proxy(net, kind, pair.right.host, place) as proxy:
                pair.left.settings["peer.address"] = proxy.endpoint
                try:
                    pair.start().connect()
                    for _ in range(bench.amount(2, 10)):
                        proxy.stop()
                        until("missed", lambda p=pair: p.left.status()["state"] != "connected", 10)
                        proxy.start()
                        began = time.monotonic()
                        pair.await_connected(40)
                        pair.await_pings(20)
                        bench.figure(f"{kind.value}: back {time.monotonic() - began:.1f} s")
                    before = pair.left.status()["reconnects"]
                    time.sleep(bench.amount(70 if kind is proxies.Kind.NGINX else 1, 300))
                    pair.assert_pings()
                    assert pair.left.status()["reconnects"] == before, "idle time ended it"
                finally:
                    for daemon in pair:
                        daemon.kill()
        assert_logs_clean(pair)
