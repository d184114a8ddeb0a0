"""Two daemons behind every pair of home routers: the right path each time, and the right word.

        left 192.168.1.2 - router 198.51.100.1 -+- switch -+- router 198.51.100.2 - right 192.168.1.2
                                                +- STUN 198.51.100.3, .250 -+

Both sides have the same private address, as two homes do. WSS goes through a forwarded TCP port.
The pairs have nets of their own and run side by side; each test reports one outcome.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from shadowmesh.netlab import Daemon, Host, Net, introduce, wait_until
from tests.lab import faults
from tests.lab.capture import Capture
from tests.lab.homes import NAMES, OPEN, PAIRS, Side, expected_path, homes
from tests.lab.nat import Kind, Router, StunServer, installed
from tests.lab.pair import Pair
from tests.lab.stun_server import Behaviour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not installed(), reason="needs coturn and conntrack"),
]

AT_ONCE = 4


def check_pair(directory: Path, one: Side, other: Side) -> None:
    with homes(directory, one, other) as made:
        made.connect()
        made.await_verdict(expected_path(one, other))
        for daemon, side in zip(made.pair, (one, other), strict=True):

            def detected(daemon=daemon, side=side) -> bool:
                return daemon.status()["nat"]["type"] == NAMES[side]

            wait_until(detected, 15, f"{daemon.host.label} is behind {NAMES[side]}", interval_s=0.2)


SCENARIOS: dict[str, Callable[[Path], None]] = {}


def scenario(function: Callable[[Path], None]) -> Callable[[Path], None]:
    SCENARIOS[function.__name__] = function
    return function


@scenario
def two_hosts_behind_one_router_meet_inside(directory: Path) -> None:
    with Net() as net, StunServer(net, directory) as server:
        router = Router(net, Kind.PORT_RESTRICTED, "left")
        second = net.namespace("right", 77)
        second.ipv4, second.ipv6 = "192.168.1.3", ""
        # The cable of the first host becomes a switch that keeps the name of the router's port.
        router.wan.ip(
            "address del 192.168.1.1/24 dev ln",
            "link set ln down",
            "link set ln name ln1",
            f"link add ln2 type veth peer name eth0 netns {second.namespace}",
            "link add ln type bridge forward_delay 0",
            "link set ln1 master ln",
            "link set ln2 master ln",
            "link set ln1 up",
            "link set ln2 up",
            "link set ln up",
            "address add 192.168.1.1/24 dev ln",
        )
        second.ip(
            "address add 192.168.1.3/24 dev eth0",
            "link set eth0 up",
            "route add default via 192.168.1.1",
        )
        both = {
            "nat.enabled": True,
            "nat.stun_server": server.endpoint,
            "peer.auto_connect": False,
        }
        daemons = [Daemon(host, directory / host.label, both) for host in (router.inside, second)]
        introduce(*daemons)
        daemons[0].settings["peer.address"] = "192.168.1.3:9001"
        pair = Pair(net, *daemons)
        try:
            pair.start().connect()
            for daemon in pair:
                status = daemon.wait_for(15, path="udp")
                assert status["paths"][0]["address"].startswith("192.168.1."), status["paths"]
            pair.assert_pings()
        finally:
            for daemon in pair:
                daemon.kill()


@scenario
def a_router_that_forgets_its_mappings_is_passed_again(directory: Path) -> None:
    with homes(directory, Kind.PORT_RESTRICTED, Kind.PORT_RESTRICTED) as made:
        made.connect()
        made.await_verdict("udp")
        made.left.router.forget()
        made.right.router.forget()
        made.pair.await_pings(15)
        made.await_path("udp", 15)
        made.pair.assert_pings()


@scenario
def a_new_public_address_moves_the_path(directory: Path) -> None:
    with homes(directory, Kind.PORT_RESTRICTED, OPEN) as made:
        made.connect()
        made.await_verdict("udp")
        wan = made.left.router.wan
        wan.ip("address del 198.51.100.1/24 dev eth0", "address add 198.51.100.77/24 dev eth0")
        made.left.router.forget()
        made.pair.await_pings(15)

        def moved() -> bool:
            first = made.pair.right.status()["paths"][0]
            return first["path"] == "udp" and first["address"].startswith("198.51.100.77:")

        wait_until(moved, 15, "the peer sends to the new address", interval_s=0.2)
        made.pair.await_pings(15)


@scenario
def mappings_that_live_for_two_seconds_do_not_end_the_tunnel(directory: Path) -> None:
    with homes(directory, Kind.PORT_RESTRICTED, Kind.PORT_RESTRICTED) as made:
        for side in (made.left, made.right):
            for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
                side.router.wan.run("sysctl", "-q", "-w", f"net.netfilter.{name}=2")
        made.connect()
        made.await_verdict("udp")
        for _ in range(3):
            time.sleep(5)  # idle: the mappings are gone, and traffic brings them back
            made.pair.await_pings(15)
        assert [d.status()["state"] for d in made.pair] == ["connected", "connected"]
        assert made.pair.left.status()["reconnects"] == 0


@scenario
def idle_mappings_of_thirty_seconds_are_held(directory: Path) -> None:
    with homes(directory, Kind.PORT_RESTRICTED, Kind.PORT_RESTRICTED) as made:
        for side in (made.left, made.right):
            for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
                side.router.wan.run("sysctl", "-q", "-w", f"net.netfilter.{name}=30")
        made.connect()
        made.await_verdict("udp")
        switches = [d.status()["path_switches"] for d in made.pair]
        time.sleep(38)
        outcome = made.pair.right.host.ping(made.pair.left.tunnel_ip, count=3)
        assert outcome.complete
        assert [d.status()["path_switches"] for d in made.pair] == switches


@scenario
def a_rude_router_falls_back_to_wss_at_once(directory: Path) -> None:
    """A router that takes a stranger's flow for its own: no hole fits any more."""
    with homes(directory, Kind.PORT_RESTRICTED, Kind.PORT_RESTRICTED) as made:
        for side in (made.left, made.right):
            side.router.wan.nft("delete table ip inp")
        assert made.connect() < 5
        made.pair.assert_pings()
        time.sleep(3)
        made.pair.assert_pings()
        assert len({d.status()["path"] for d in made.pair}) == 1


@scenario
def a_silent_stun_server_delays_nothing(directory: Path) -> None:
    with homes(directory, OPEN, OPEN, settings={"nat.stun_server": "198.51.100.99:3478"}) as made:
        assert made.connect() < 4.5
        made.await_path("udp", 15)
        wait_until(lambda: made.pair.left.status()["nat"]["type"] == "udp_blocked", 8, "said so")


@contextlib.contextmanager
def strange_server(net: Net, directory: Path, behaviour: Behaviour, lie: str) -> Iterator[Host]:
    """A STUN server of our own with bad manners, on a host of its own."""
    host = net.host("strange")
    log = directory / f"{behaviour}.log"
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


@scenario
def stun_servers_with_bad_manners_do_no_harm(directory: Path) -> None:
    for behaviour in (
        Behaviour.LIAR, Behaviour.GARBAGE, Behaviour.OTHER_SOURCE,
        Behaviour.WRONG_TRANSACTION, Behaviour.REFUSING, Behaviour.SILENT,
    ):  # fmt: skip
        place = directory / behaviour
        place.mkdir()
        with Net() as net, contextlib.ExitStack() as stack:
            victim = net.host("victim")
            lie = f"{victim.ipv4}:6666"
            server = stack.enter_context(strange_server(net, place, behaviour, lie))
            both = {
                "nat.enabled": True,
                "nat.stun_server": f"{server.ipv4}:3478",
                "nat.detection_timeout": "6s",
                "peer.auto_connect": False,
            }
            daemons = [Daemon(net.host(label), place / label, both) for label in ("left", "right")]
            introduce(*daemons)
            daemons[0].settings["peer.address"] = daemons[1].host.peer_endpoint
            pair = Pair(net, *daemons)
            pair.start()
            with Capture(net, victim, place) as capture:
                began = time.monotonic()
                pair.connect()
                assert time.monotonic() - began < 5
                for daemon in pair:
                    daemon.wait_for(15, path="udp")
                pair.assert_pings()

                def detected(pair=pair) -> bool:
                    return all(d.status()["nat"]["detected_at"] for d in pair)

                wait_until(detected, 15, "the detection ends")
                own = bytes.fromhex(victim.interfaces()["eth0"]["address"].replace(":", ""))
                sent = [f for f in capture.frames() if f[:6] == own and f[23:24] == b"\x11"]
            # A liar can aim a few probes at somebody, and no more.
            limit = 12 if behaviour is Behaviour.LIAR else 0
            assert len(sent) <= limit, (behaviour, len(sent))
            if behaviour is not Behaviour.LIAR:
                assert [d.status()["nat"]["public_address"] for d in pair] == [None, None]
            for daemon in pair:
                daemon.kill()
            pair.assert_logs_clean()


@scenario
def netcheck_tells_what_the_router_is(directory: Path) -> None:
    with Net() as net, StunServer(net, directory) as server:
        for kind in (Kind.PORT_RESTRICTED, Kind.SYMMETRIC, Kind.UDP_BLOCKED):
            router = Router(net, kind, f"h{kind[:4]}")
            daemon = Daemon(
                router.inside,
                directory / kind,
                {"nat.enabled": True, "nat.stun_server": server.endpoint,
                 "nat.detection_timeout": "4s", "encryption.key": secrets.token_hex(32)},
            )  # fmt: skip
            daemon.write_config()
            for running in (False, True):
                if running:
                    daemon.start()
                done = daemon.cli("--json", "netcheck")
                report = json.loads(done.stdout)
                assert report["type"] == NAMES[kind], report
                blocked = kind is Kind.UDP_BLOCKED
                assert done.returncode == (5 if blocked else 0)
                assert report["udp_out"] is not blocked
                assert report["mapping_varies"] is (None if blocked else kind is Kind.SYMMETRIC)
                if not blocked:
                    assert report["public_addresses"][0].startswith(f"{router.wan.ipv4}:")
                    assert report["servers"][0]["rtt_ms"] > 0
                assert (report["port"] == 9001) is not running
            daemon.kill()


@scenario
def udp_that_is_blocked_later_and_freed_again(directory: Path) -> None:
    with homes(directory, Kind.FULL, Kind.SYMMETRIC) as made:
        made.connect()
        made.await_verdict("udp")
        with faults.drop_udp(made.net):
            made.pair.await_pings(15)
            made.await_path("wss", 16)
        made.await_path("udp", 20)
        made.pair.assert_pings()


RUNS = {
    **{f"{one} and {other}": (one, other) for one, other in PAIRS},
    **SCENARIOS,
}


@pytest.fixture(scope="module")
def outcomes(directory):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {}
        # What waits longest begins first.
        for number, name in enumerate([*SCENARIOS, *(n for n in RUNS if n not in SCENARIOS)]):
            place = directory / str(number)
            place.mkdir()
            run = RUNS[name]
            if isinstance(run, tuple):
                futures[name] = pool.submit(check_pair, place, *run)
            else:
                futures[name] = pool.submit(run, place)
        try:
            yield futures
        finally:
            for future in futures.values():
                future.cancel()


@pytest.mark.parametrize("name", RUNS)
def test_nat(outcomes, name):
    outcomes[name].result()
