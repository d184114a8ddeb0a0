"""The TAP device: bridges, addresses, and what happens when somebody touches it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from shadowmesh.netlab import Net, wait_until
from shadowmesh.netlab.transfer import transfer
from tests.lab.frames import vlan_tag
from tests.lab.pair import connected_pair, counters, exchange, make_pair

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def pair(directory):
    with connected_pair(directory) as pair:
        yield pair


@pytest.fixture(scope="module")
def bridges(directory):
    """A pair of which both TAPs are bridge members, with a host behind each bridge."""
    settings = {"network.local_ip": ""}
    with connected_pair(directory / "bridges", settings) as pair:
        behind = []
        for number, daemon in enumerate(pair, 1):
            guest = pair.net.namespace(f"guest{number}")
            daemon.host.ip(
                "link add br0 type bridge forward_delay 0 mcast_snooping 0",
                f"link add guest type veth peer name eth0 netns {guest.namespace}",
                "link set guest master br0",
                "link set guest up",
                f"link set {daemon.tap} master br0",
                "link set br0 up",
            )
            guest.ip(
                "link set eth0 addrgenmode none",
                f"address add 192.0.2.{number}/24 dev eth0",
                f"address add fd00:99::{number}/64 dev eth0 nodad",
                "link set eth0 up",
            )
            behind.append(guest)
        yield pair, behind


def busy(pid: int, seconds: float) -> float:
    """CPU seconds that a process uses while we wait, per second."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


def test_hosts_behind_two_bridges_share_one_ethernet(bridges):
    _, (here, there) = bridges
    wait_until(lambda: here.ping("192.0.2.2", count=1).complete, 5, "the bridges forward")
    assert here.ping("192.0.2.2", size=1472, dont_fragment=True).complete
    assert there.ping("fd00:99::1", size=1452, dont_fragment=True).complete


def test_frames_of_foreign_hosts_and_vlans_cross_the_bridges(bridges):
    _, (here, there) = bridges
    wait_until(lambda: here.ping("192.0.2.2", count=1).complete, 5, "the bridges forward")
    exchange(here, "eth0", there, "eth0", size=1514)
    exchange(there, "eth0", here, "eth0", size=104, tags=vlan_tag(7))


def test_the_tap_of_a_bridge_member_has_no_address(bridges):
    pair, _ = bridges
    for daemon in pair:
        assert daemon.status()["tap"]["address"] is None
        infos = daemon.host.interfaces()[daemon.tap]["addr_info"]
        assert not [info for info in infos if info["family"] == "inet"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_deleted_tap_is_made_again_with_its_address(pair, side):
    daemon = getattr(pair, side)
    before = daemon.host.interfaces()["tap0"]
    daemon.host.ip("link delete tap0")
    started = time.monotonic()
    wait_until(lambda: "tap0" in daemon.host.interfaces(), 15, "the TAP is back")
    assert time.monotonic() - started < 10
    pair.await_pings(15)
    after = daemon.host.interfaces()["tap0"]
    assert after["ifindex"] != before["ifindex"]
    assert after["mtu"] == before["mtu"]
    assert [i["local"] for i in after["addr_info"] if i["family"] == "inet"] == [daemon.tunnel_ip]
    assert busy(daemon.pid, 0.5) < 0.3
    pair.await_connected()
    pair.assert_pings()


def test_a_tap_that_is_down_drops_and_counts_and_burns_no_cpu(pair):
    right = pair.right
    before = sum(counters(right)["dropped"].values())
    right.host.ip("link set tap0 down")
    assert pair.left.host.ping(right.tunnel_ip, count=3, timeout_s=0.2).received == 0
    assert busy(right.pid, 1.0) < 0.3
    wait_until(lambda: sum(counters(right)["dropped"].values()) > before, 15, "drops counted")
    right.host.ip("link set tap0 up")
    pair.await_pings(15)
    pair.await_connected()
    pair.assert_pings()


def test_a_tap_whose_name_is_taken_meanwhile_is_an_error_and_not_a_loop(directory):
    with connected_pair(directory / "taken") as pair:
        left = pair.left
        left.pause()  # or it would be faster
        left.host.ip("link delete tap0", "link add tap0 type bridge")
        left.resume()
        error = left.wait_for(15, state="error")["last_error"]
        assert "not a TAP device" in error
        pair.right.wait_for(15, state="connecting", phase="waiting_for_peer")
        assert busy(left.pid, 0.5) < 0.3
        left.host.ip("link delete tap0")
        left.connect()
        pair.await_connected()
        pair.assert_pings()


def test_a_tunnel_with_both_families_over_an_ipv6_network_with_another_mtu(directory):
    with connected_pair(
        directory / "ipv6",
        {"network.mtu": 1400},
        left={
            "network.local_ip": "fd00:5::1/64, 10.5.0.1/24",
            "peer.address": "[2001:db8::2]:9001",
        },
        right={"network.local_ip": "fd00:5::2/64, 10.5.0.2/24"},
    ) as pair:
        pair.await_pings(15)  # duplicate address detection on the TAP takes a second
        assert pair.left.host.ping("fd00:5::2", size=1352, dont_fragment=True).complete
        assert pair.left.host.ping("10.5.0.2", size=1372, dont_fragment=True).complete
        assert pair.left.status()["tap"]["addresses"] == ["fd00:5::1/64", "10.5.0.1/24"]
        assert pair.left.host.interfaces()["tap0"]["mtu"] == 1400
        assert pair.left.status()["peer"]["address"] == "[2001:db8::2]:9001"


def test_jumbo_frames_and_unequal_mtus(directory):
    with connected_pair(
        directory / "jumbo", left={"network.mtu": 9000}, right={"network.mtu": 9000}
    ) as pair:
        assert pair.left.host.ping(pair.right.tunnel_ip, size=8972, dont_fragment=True).complete
        exchange(pair.right.host, "tap0", pair.left.host, "tap0", size=9014)


def test_a_stream_of_small_segments_crosses_over_wss(directory):
    # the kernel makes super-frames of more than 600 of them where nobody tells it not to
    with connected_pair(directory / "small") as pair:
        for daemon in pair:
            daemon.host.ip("route change 10.0.0.0/24 dev tap0 advmss 100")
        rate, received = transfer(pair.left.host, pair.right.host, pair.right.tunnel_ip, 1.0)
        assert rate > 1e6, received
        for daemon in pair:
            dropped = counters(daemon)["dropped"]
            assert dropped["bad_offload"] == 0, dropped


def test_a_frame_larger_than_the_peers_mtu_is_dropped_and_counted(directory):
    with connected_pair(directory / "unequal", right={"network.mtu": 1280}) as pair:

        def drops() -> int:
            return sum(sum(counters(daemon)["dropped"].values()) for daemon in pair)

        before = drops()
        large = pair.left.host.ping(pair.right.tunnel_ip, size=1472, count=2, timeout_s=0.3)
        assert large.received == 0
        assert drops() >= before + 2
        pair.assert_pings()


def test_a_persistent_tap_outlives_the_daemon_and_is_taken_again(directory):
    with connected_pair(directory / "persist", left={"network.persist_tap": True}) as pair:
        index = pair.left.host.interfaces()["tap0"]["ifindex"]
        assert pair.left.terminate()[0] == 0
        assert pair.left.host.interfaces()["tap0"]["ifindex"] == index
        pair.left.start()
        pair.left.connect()
        pair.await_connected()
        assert pair.left.host.interfaces()["tap0"]["ifindex"] == index
        pair.assert_pings()


def policies(pid: int) -> set[int]:
    """How the threads that carry frames are scheduled."""
    return {
        os.sched_getscheduler(int(task.name))
        for task in Path(f"/proc/{pid}/task").iterdir()
        if (task / "comm").read_text().startswith("sm-")
    }


def test_the_threads_run_before_other_programs_until_one_of_them_does_not_rest(directory):
    settings = {"network.realtime": True, "nat.enabled": True, "nat.stun_server": ""}
    with connected_pair(directory / "realtime", settings) as pair:
        daemon = pair.left
        assert policies(daemon.pid) == {os.SCHED_RR}
        tap = daemon.status()["tap"]
        assert (tap["realtime"], tap["realtime_problem"]) == (True, None)
        pair.assert_pings()
        os.kill(daemon.pid, signal.SIGXCPU)  # as the kernel does at LimitRTTIME
        wait_until(lambda: policies(daemon.pid) == {os.SCHED_OTHER}, 10, "ordinary priority")
        tap = daemon.status()["tap"]
        assert tap["realtime"] is False
        assert "LimitRTTIME" in tap["realtime_problem"]
        pair.assert_pings()
        assert policies(pair.right.pid) == {os.SCHED_RR}


def test_without_the_right_to_it_the_tunnel_works_and_says_why_nothing_runs_before(directory):
    settings = {"network.realtime": True}
    with Net() as net:
        pair = make_pair(net, directory / "no-realtime", settings)
        pair.left.wrapper = ("prlimit", "--rtprio=0", "setpriv", "--bounding-set=-sys_nice")
        try:
            pair.start()
            pair.connect()
            pair.assert_pings()
            assert policies(pair.left.pid) == {os.SCHED_OTHER}
            tap = pair.left.status()["tap"]
            assert tap["realtime"] is False
            assert "not permitted" in tap["realtime_problem"]
            assert "have no real-time priority" in pair.left.log()
        finally:
            for daemon in pair:
                daemon.kill()
        pair.assert_logs_clean()
