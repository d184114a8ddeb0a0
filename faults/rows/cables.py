"""What happens to the network between two hosts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shadowmesh.netlab import Net
from tests.lab import faults
from tests.lab.pair import Pair, make_pair

from ..bench import UDP, Bench, assert_logs_clean, await_path, until
from ..catalogue import row

if TYPE_CHECKING:
    from shadowmesh.netlab import Daemon


def lost(pair: Pair) -> bool:
    return all(daemon.status()["state"] != "connected" for daemon in pair)


@row(
    "link flap",
    "<= 5 s: no reconnect; longer: back by itself",
    bound_s=300,
    short=(
        "netns/test_faults.py::a_link_that_is_down_for_three_seconds_is_not_redialled",
        "netns/test_faults.py::a_link_that_is_down_for_twenty_seconds_comes_back",
    ),
)
def link_flap(bench: Bench) -> None:
    with bench.pair(settle_s=60) as pair:
        for down_s in (0.1, 1, 5, 20, *((60,) if bench.long else (40,))):
            before = pair.left.status()["reconnects"]
            with faults.link_down(pair.net, pair.left.host):
                time.sleep(down_s)
            began = time.monotonic()
            pair.await_pings(45)
            pair.await_connected(45)
            reconnects = pair.left.status()["reconnects"] - before
            bench.figure(
                f"{down_s} s: back {time.monotonic() - began:.1f} s, {reconnects} reconnects"
            )
            assert down_s > 5 or reconnects == 0, f"a flap of {down_s} s made it dial again"


@row(
    "address change",
    "UDP moves <= 3 s, WSS is dialled again",
    bound_s=120,
    short=("netns/test_paths.py::a_new_address_moves_both_paths_within_three_seconds",),
)
def address_change(bench: Bench) -> None:
    with bench.pair(udp=True) as pair:
        pair.left.host.ip("address del 2001:db8::1/64 dev eth0")
        old = "198.51.100.1"
        for new in ("198.51.100.61", "198.51.100.62"):
            pair.left.host.ip(f"address del {old}/24 dev eth0", f"address add {new}/24 dev eth0")
            began = time.monotonic()
            took = until("the peer sends to the new address", lambda n=new: _to(pair.right, n), 15)
            pair.await_pings(10)
            bench.figure(f"moved after {took:.1f} s, ping after {time.monotonic() - began:.1f} s")
            assert took <= 3.5, "the path moved too late"
            until("the link is dialled again", lambda: pair.left.status()["reconnects"] > 0, 30)
            old = new
        await_path(pair, "udp")


def _to(daemon: Daemon, address: str) -> bool:
    paths = daemon.status()["paths"]
    return any(path["active"] and path["address"].startswith(f"{address}:") for path in paths)


@row(
    "black hole (half-open)",
    "missed <= 25 s with traffic, <= read_timeout idle",
    bound_s=240,
    short=(
        "netns/test_faults.py::a_black_hole_is_noticed_within_25_seconds_under_traffic",
        "netns/test_faults.py::a_black_hole_without_traffic_is_noticed_within_the_read_timeout",
        "netns/test_faults.py::a_daemon_in_a_black_hole_stops_in_time",
    ),
)
def half_open(bench: Bench) -> None:
    for traffic, limit_s in ((True, 27), (False, 63)):
        with bench.pair(canaries=traffic, settle_s=60) as pair:
            if not traffic:
                for daemon in pair:
                    daemon.host.run("sysctl", "-qw", "net.ipv6.conf.tap0.disable_ipv6=1")
                time.sleep(5)
            with faults.black_hole(pair.net, pair.left.host, pair.right.host):
                took = until("the black hole is missed", lambda p=pair: lost(p), limit_s)
            bench.figure(f"{'with' if traffic else 'without'} traffic: {took:.1f} s")


@row(
    "TCP RST",
    "dialled again; no frame lost on UDP",
    bound_s=120,
    short=(
        "netns/test_faults.py::reset_tcp_connections_are_dialled_again",
        "netns/test_paths.py::a_lost_link_does_not_touch_the_frames_on_udp",
    ),
)
def reset(bench: Bench) -> None:
    with bench.pair() as pair:
        for daemon in pair:
            faults.kill_sockets(daemon.host, 9001)
            began = time.monotonic()
            pair.await_connected(20)
            pair.await_pings(20)
            bench.figure(f"WSS back {time.monotonic() - began:.1f} s")
    with bench.pair(udp=True) as pair:
        first = [daemon.host.ping for daemon in pair]
        lost_pings = 0
        for daemon in pair:
            before = pair.left.status()["reconnects"]
            faults.kill_sockets(daemon.host, 9001)
            outcome = first[0](pair.right.tunnel_ip, count=100, timeout_s=0.5)
            lost_pings += outcome.sent - outcome.received
            until("the link is back", lambda b=before: pair.left.status()["reconnects"] > b, 15)
        bench.figure(f"lost on UDP: {lost_pings}")
        assert lost_pings == 0


@row(
    "UDP blocked after punch",
    "on WSS <= 2 s, back on UDP when it passes",
    bound_s=90,
    short=(
        "netns/test_paths.py::udp_that_is_blocked_in_mid_flow_is_replaced_within_two_seconds",
        "netns/test_paths.py::udp_that_is_blocked_one_way_is_given_up_by_both",
    ),
)
def udp_blocked(bench: Bench) -> None:
    with bench.pair(udp=True) as pair:
        for _ in range(bench.amount(2, 10)):
            with faults.drop_udp(pair.net):
                began = time.monotonic()
                pair.await_pings(10)
                gap = time.monotonic() - began
                await_path(pair, "wss", 10)
            again = until("on UDP", lambda: pair.left.status()["path"] == "udp", 60)
            bench.figure(f"gap {gap:.1f} s, UDP again {again:.1f} s")
            assert gap <= 2.5, "too long without frames"


@row(
    "path MTU black hole",
    "connects; a running session heals in 10 s",
    bound_s=420,
    short=(
        "netns/test_faults.py::a_wss_session_whose_path_begins_to_swallow_long_packets_heals",
        "netns/test_faults.py::a_udp_session_whose_path_begins_to_swallow_long_packets_heals",
        "netns/test_paths.py::a_hole_for_long_datagrams_is_found",
        "wire/test_path.py::test_loss_does_not_shrink_the_mtu",
    ),
)
def mtu_black_hole(bench: Bench) -> None:
    failures = []
    for udp in (False, True):
        for longest in (1400, 1280):
            name = f"{'UDP' if udp else 'WSS'} {longest}"
            with bench.pair(udp=udp, flat=False, settle_s=60) as pair:
                faults.without_offload(pair.net, pair.left.host, pair.right.host)
                with faults.swallow(pair.net, longest):
                    try:
                        took = until("full frames pass", lambda p=pair: _full_frames(p), 20)
                        bench.figure(f"{name}: healed {took:.1f} s")
                        if took > 10:
                            failures.append(f"{name} healed after {took:.1f} s")
                    except AssertionError:
                        failures.append(f"{name} does not heal in 20 s")
            failures += _connects_through(bench, longest, udp, name)
    assert not failures, "; ".join(failures)


def _connects_through(bench: Bench, longest: int, udp: bool, name: str) -> list[str]:
    with Net() as net:
        both = {**(UDP if udp else {}), "peer.auto_connect": True}
        pair = make_pair(net, bench.place(), both, right={"peer.auto_connect": False})
        faults.without_offload(net, pair.left.host, pair.right.host)
        try:
            with faults.swallow(net, longest):
                pair.start()
                try:
                    took = until("connected", lambda: _connected(pair), 30)
                    bench.figure(f"{name}: connects {took:.1f} s")
                except AssertionError:
                    return [f"{name} does not connect in 30 s"]
        finally:
            for daemon in pair:
                daemon.kill()
        assert_logs_clean(pair)
    return []


def _connected(pair: Pair) -> bool:
    return all(daemon.status()["state"] == "connected" for daemon in pair) and _full_frames(pair)


def _full_frames(pair: Pair) -> bool:
    return pair.left.host.ping(pair.right.tunnel_ip, size=1472, count=1, timeout_s=0.5).complete


@row(
    "dead addresses",
    "connected <= 5 s behind 1, 4 and 8 of them",
    bound_s=150,
    short=(
        "link/test_dial.py::test_addresses_that_swallow_packets_do_not_hide_a_good_one",
        "link/test_dial.py::test_a_dead_address_does_not_hide_a_good_one",
    ),
)
def dead_addresses(bench: Bench) -> None:
    failures = []
    for dead in (1, 4, 8):
        with Net() as net:
            pair = make_pair(net, bench.place(), {"peer.auto_connect": False})
            _names(pair, dead)
            pair.left.settings["peer.address"] = "peer.test:9001"
            try:
                pair.start()
                began = time.monotonic()
                pair.left.api("POST", "/connect")
                try:
                    until("connected", lambda p=pair: p.left.status()["state"] == "connected", 20)
                    took = time.monotonic() - began
                    bench.figure(f"{dead} dead: {took:.1f} s")
                    if took > 5:
                        failures.append(f"{dead} dead ones cost {took:.1f} s")
                except AssertionError:
                    failures.append(f"behind {dead} dead ones never connected")
            finally:
                for daemon in pair:
                    daemon.kill()
            assert_logs_clean(pair)
    assert not failures, "; ".join(failures)


def _names(pair: Pair, dead: int) -> None:
    """Let peer.test mean so many addresses that swallow packets, and then one of the peer's."""
    # The resolver puts first what has more bits in common with our own 198.51.100.1 (RFC 6724,
    # rule 9), so the good one is far from it.
    good = "198.51.100.250"
    pair.right.host.ip(f"address add {good}/24 dev eth0")
    swallowed = [f"198.51.100.{8 + number}" for number in range(dead)]
    pair.left.host.ip(*(f"neigh add {a} lladdr 02:00:00:00:00:99 dev eth0" for a in swallowed))
    lines = "".join(f"{a} peer.test\n" for a in (*swallowed, good))
    hosts = pair.left.directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{lines}")
    # The daemon has the mounts that it is started with.
    pair.left.wrapper = ("sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")
