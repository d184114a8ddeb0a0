"""Routes, bridges and devices stacked on the TAP: the tunnel never takes itself for a path.

Each scenario has a pair of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shadowmesh.netlab import Daemon, wait_until
from tests.lab.pair import Pair, running_pair

pytestmark = pytest.mark.netns

UDP = {"nat.enabled": True, "nat.stun_server": "", "peer.auto_connect": False}
RECIPE = Path(__file__).parents[2] / "docs" / "full-tunnel.md"
INSIDE = "leads into the tunnel itself (tap0)"
#: what is sealed in a second by a tunnel that carries nothing but pings and the kernel's own talk
QUIET_BYTES = 1 << 20


@pytest.fixture
def pair(directory, request):
    with running_pair(directory, {**UDP, **getattr(request, "param", {})}) as pair:
        yield pair


def failed(daemon: Daemon) -> dict[str, dict[str, object]]:
    """The checks that are not ok, by code."""
    _, health = daemon.api("GET", "/health")
    return {check["code"]: check for check in health["checks"].values() if not check["ok"]}


def block_udp_on_the_cable(daemon: Daemon) -> None:
    daemon.host.nft(
        "table inet cable {\nchain in {\ntype filter hook input priority 0\n"
        'iifname "eth0" udp dport 9001 drop\n}\n}\n'
    )


def sealed_bytes(pair: Pair) -> int:
    return sum(daemon.status()["counters"]["bytes_out"] for daemon in pair)


def test_a_macvlan_on_the_device_is_no_path_although_its_addresses_answer(pair):
    for daemon in pair:
        block_udp_on_the_cable(daemon)
    pair.connect()
    for number, daemon in enumerate(pair, 1):
        daemon.host.ip(
            "link add mv0 link tap0 type macvlan mode bridge",
            f"address add 192.168.77.{number}/24 dev mv0",
            "link set mv0 up",
        )
    assert pair.left.host.ping("192.168.77.2", count=3).received == 3
    before = sealed_bytes(pair)
    # The peer is asked for a round as soon as a network changes, so this is long enough for one.
    for daemon in pair:
        wait_until(lambda d=daemon: "no UDP path" in d.status()["path_reason"], 10, "a round")
        status = daemon.status()
        assert (status["path"], status["path_switches"]) == ("wss", 0)
        assert not any("192.168.77" in path["address"] for path in status["paths"])
    assert sealed_bytes(pair) - before < QUIET_BYTES


def put_behind_gateway(pair: Pair) -> None:
    """Left reaches everybody by one router only, as behind a home gateway."""
    router = pair.net.host("router")
    router.ip("address add 198.51.100.254/24 dev eth0")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.eth0.send_redirects=0")
    pair.left.host.ip(
        "address flush dev eth0",
        f"address add {pair.left.host.ipv4}/32 dev eth0",
        "route add 198.51.100.254 dev eth0",
        "route add default via 198.51.100.254 dev eth0",
    )
    pair.right.host.ip("address add 203.0.113.1/32 dev lo")


def recipe(host: str, block: int = 0) -> list[str]:
    """The commands of a block for a host, as the page has them."""
    found = re.findall(rf"^```sh {host}\n(.*?)^```", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    return found[block].splitlines()


THE_HALVES, BY_RULES, UNDO = range(3)


def answers_through_the_tunnel(left: Daemon) -> bool:
    return left.host.ping("203.0.113.1", count=1).received == 1


def test_a_default_route_into_the_tunnel_is_named_with_its_cure_and_the_recipe_works(pair):
    put_behind_gateway(pair)
    left, right = pair
    left.connect()
    left.wait_for(5, path="udp")
    exception, *halves = recipe("left", THE_HALVES)
    for command in halves:
        left.host.run(*command.split())
    wait_until(lambda: "tunnel_loop" in failed(left), 2, "the loop is noticed")
    check = failed(left)["tunnel_loop"]
    assert f"198.51.100.2 {INSIDE}" in check["text"]
    assert check["remedy"].startswith(exception)
    left.wait_for(2, path="wss")
    assert INSIDE in left.status()["path_reason"]
    explained = left.cli("explain")
    assert explained.returncode == 5
    assert exception in explained.stdout
    wait_until(lambda: exception in left.log(), 2, "the log")
    before = sealed_bytes(pair)
    left.host.ping("203.0.113.1", count=1)
    assert sealed_bytes(pair) - before < QUIET_BYTES

    left.host.run(*exception.split())
    for command in recipe("right"):
        right.host.run("sh", "-c", command)
    left.wait_for(10, state="connected", path="udp")
    wait_until(lambda: not failed(left), 5, "all is well")
    wait_until(lambda: answers_through_the_tunnel(left), 5, "through the tunnel")

    for command in recipe("left", UNDO):
        left.host.run(*command.split())
    assert not answers_through_the_tunnel(left)
    for command in recipe("left", BY_RULES):
        left.host.run(*command.split())
    wait_until(lambda: answers_through_the_tunnel(left), 5, "through the tunnel by rules")
    left.wait_for(10, state="connected", path="udp")
    wait_until(lambda: not failed(left), 5, "all is well")


def test_a_dial_into_the_tunnel_is_refused_at_once(pair):
    put_behind_gateway(pair)
    pair.left.host.ip(
        "tuntap add dev tap0 mode tap multi_queue vnet_hdr",
        "link set tap0 up",
        "route add 198.51.100.2 dev tap0",
    )
    answer = pair.left.cli("connect", "198.51.100.2:9001")
    assert answer.returncode == 5
    assert f"198.51.100.2 {INSIDE}" in answer.stderr
    assert "ip route add 198.51.100.2 via 198.51.100.254 dev eth0" in answer.stderr
    assert pair.left.status()["counters"]["loops_refused"]["dial"] >= 1


@pytest.mark.parametrize("pair", [{"network.local_ip": ""}], indirect=True)
def test_udp_is_used_when_the_uplink_and_the_device_are_ports_of_one_bridge(pair):
    host = pair.left.host
    host.ip(
        "address flush dev eth0",
        "link add br0 type bridge forward_delay 0 mcast_snooping 0",
        "link set eth0 master br0",
        f"address add {host.ipv4}/24 dev br0",
        "link set br0 up",
    )
    pair.left.connect()
    host.ip("link set tap0 master br0")
    for daemon in pair:
        daemon.wait_for(15, path="udp")
    assert pair.right.host.ping(host.ipv4, count=3).received == 3
    active = next(path for path in pair.right.status()["paths"] if path["active"])
    assert active["address"] == f"{host.ipv4}:9001"


def test_a_lan_that_has_the_tunnels_network_is_warned_of_and_udp_is_used(pair):
    pair.left.host.ip("address add 10.0.0.77/24 dev eth0 metric 500")
    answer = pair.left.cli("connect", "198.51.100.2:9001")
    assert "eth0 is in 10.0.0.0/24, and so is the tunnel" in answer.stderr
    for daemon in pair:
        daemon.wait_for(5, path="udp")
    assert set(failed(pair.left)) == {"subnet_overlap"}
    assert "eth0 is in 10.0.0.0/24" in pair.left.cli("status").stdout


def test_hosts_with_link_local_addresses_alone_meet_over_udp(pair):
    for daemon in pair:
        daemon.host.ip(
            "address flush dev eth0", f"address add fe80::{daemon.host.number}/64 dev eth0 nodad"
        )
    pair.left.connect("[fe80::2%eth0]:9001")
    for daemon in pair:
        daemon.wait_for(5, path="udp")
    pair.assert_pings()


def test_what_others_do_to_the_device_is_noticed_and_undone_by_nobody(pair):
    left = pair.left
    host = left.host
    pair.connect()
    changes = (
        ("address flush dev tap0", "tap_address_gone", "address add 10.0.0.1/24 dev tap0"),
        ("link set tap0 mtu 1400", "tap_mtu", "link set tap0 mtu 1500"),
        ("link set tap0 down", "tap_down", "link set tap0 up"),
    )
    for change, code, mended in changes:
        host.ip(change)
        wait_until(lambda code=code: code in failed(left), 2, code)
        assert f"ip {mended}" in failed(left)[code]["remedy"]
        host.ip(mended)
        wait_until(lambda: not failed(left), 2, "all is well")
    host.ip(
        "link add br9 type bridge forward_delay 0", "link set br9 up", "link set tap0 master br9"
    )
    wait_until(lambda: "tap_in_bridge" in failed(left), 2, "put into a bridge")
    wait_until(lambda: "tap0 is a port of the bridge br9" in left.log(), 3, "the log")
    remedy = str(failed(left)["tap_in_bridge"]["remedy"])
    host.run("sh", "-c", remedy.partition(";")[0])
    wait_until(lambda: "tap_address_moved" in failed(left), 2, "moved to the bridge")
    wait_until(lambda: host.ping("10.0.0.2", count=1).received == 1, 5, "the remedy works")
    assert host.interfaces()["tap0"]["master"] == "br9"
