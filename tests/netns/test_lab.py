"""The lab itself, proved with nothing but the kernel, coturn and the proxies."""

from __future__ import annotations

import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from shadowmesh import netlab
from shadowmesh.netlab import Host, Net
from tests.lab import faults, nat, proxies
from tests.lab.capture import Capture
from tests.lab.frames import Canaries, Collector, Stream, Wire, vlan_tag

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def net():
    with Net() as net:
        net.host("left")
        net.host("right")
        yield net


@pytest.fixture(scope="module")
def left(net) -> Host:
    return net.hosts[0]


@pytest.fixture(scope="module")
def right(net) -> Host:
    return net.hosts[1]


def test_hosts_reach_each_other_with_full_frames_over_both_families(left, right):
    assert left.ping(right.ipv4, size=1472, dont_fragment=True).complete
    assert right.ping(left.ipv6, size=1452, dont_fragment=True).complete
    with pytest.raises(OSError, match="too long"):
        left.ping(right.ipv4, size=1473, dont_fragment=True)


def test_a_ping_to_nobody_is_counted_as_lost(left):
    assert left.ping("198.51.100.99", count=2, timeout_s=0.1).received == 0


def test_two_nets_share_addresses_and_nothing_else(net, left):
    with Net() as other:
        alone = other.host("left")
        assert alone.ipv4 == left.ipv4
        assert alone.ping("198.51.100.2", count=1, timeout_s=0.2).received == 0


def test_leaving_a_net_removes_its_namespaces_and_what_ran_in_them(tmp_path):
    with Net() as net:
        host = net.host("left")
        sleeper = host.popen("sleep", "600", log=tmp_path / "log")
        netlab.wait_until(lambda: sleeper.pid in host.pids(), 15, "sleep runs in the namespace")
    assert sleeper.wait(5) == -9
    assert not [name for name in os.listdir(netlab.NETNS_DIRECTORY) if net.prefix in name]


def test_what_is_bound_to_a_process_that_is_gone_does_not_begin():
    """The kernel would not tell it: its parent has ended before it asked."""
    bound = netlab.bound_to_us()
    assert subprocess.run([*bound, "echo", "here"], capture_output=True, check=True).stdout
    gone = [*bound[:-1], "1", "echo", "here"]
    assert subprocess.run(gone, capture_output=True, check=False).stdout == b""


def test_the_sweep_removes_only_nets_of_dead_processes(net):
    dead = netlab.Host("sm4194305-1-left", "left")  # above the kernel's largest pid
    dead.create()
    try:
        assert netlab.sweep() == ["sm4194305-1-left"]
    finally:
        dead.remove()
    assert net.switch.pids() == []
    assert (netlab.NETNS_DIRECTORY / net.switch.namespace).exists()


def test_a_thread_that_visits_a_namespace_comes_home(left):
    before = os.readlink("/proc/thread-self/ns/net")
    with left.entered():
        inside = os.readlink("/proc/thread-self/ns/net")
    assert inside != before
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_an_unplugged_host_is_silent_and_comes_back(net, left, right):
    with faults.link_down(net, right):
        assert left.ping(right.ipv4, count=1, timeout_s=0.2).received == 0
    netlab.wait_until(lambda: left.ping(right.ipv4, count=1).complete, 15, "link is back")
    assert left.ping(right.ipv6).complete


def test_a_black_hole_swallows_both_ways_and_spares_others(net, left, right):
    third = net.host("third")
    with faults.black_hole(net, left, right):
        assert left.ping(right.ipv4, count=1, timeout_s=0.2).received == 0
        assert right.ping(left.ipv6, count=1, timeout_s=0.2).received == 0
        assert left.ping(third.ipv4).complete
    assert left.ping(right.ipv4).complete


def test_dropping_udp_spares_tcp(net, left, right):
    udp = (socket.AF_INET, socket.SOCK_DGRAM)
    with left.open_socket(*udp) as out, right.open_socket(*udp) as into:
        into.bind((right.ipv4, 5000))
        into.settimeout(0.3)
        with faults.drop_udp(net):
            out.sendto(b"lost", (right.ipv4, 5000))
            with pytest.raises(TimeoutError):
                into.recv(100)
            with right.listen((right.ipv4, 5001)), left.connect((right.ipv4, 5001)):
                pass
        with faults.mtu_hole(net, 1300):
            out.sendto(bytes(1400), (right.ipv4, 5000))
            out.sendto(b"small", (right.ipv4, 5000))
            assert into.recv(100) == b"small"


@pytest.mark.parametrize("how", ["reject", "kill"])
def test_tcp_is_reset(net, left, right, how):
    with right.listen((right.ipv4, 5002)) as listener, left.connect((right.ipv4, 5002)) as out:
        into, _ = listener.accept()
        with into:
            if how == "reject":
                with faults.reset_tcp(net, left, right, port=5002):
                    out.send(b"x")
                    with pytest.raises(ConnectionResetError):
                        out.recv(1)
            else:
                faults.kill_sockets(left, 5002)
                with pytest.raises(ConnectionError):
                    out.recv(1)
                with pytest.raises(ConnectionError):
                    into.recv(1)


def test_a_capture_finds_what_is_on_the_wire(net, left, right, tmp_path):
    with Capture(net, left, tmp_path) as capture:
        left.ping(right.ipv4, payload=b"seen in the clear")
        netlab.wait_until(lambda: capture.count(b"seen in the clear") == 6, 5, "pings captured")
    with pytest.raises(AssertionError):
        capture.assert_absent(b"seen in the clear")
    capture.assert_absent(b"never sent")


def test_canary_frames_arrive_as_sent(left, right):
    canaries = Canaries()
    with (
        Wire(left, "eth0") as out,
        Wire(right, "eth0") as into,
        Collector(into, canaries) as collector,
    ):
        with Stream(out, canaries, into.address, per_second=2000, size=1514):
            netlab.wait_until(lambda: len(collector.arrived) > 500, 15, "frames arrive")
        netlab.wait_until(lambda: collector.lost == 0, 15, "all frames arrived")
    collector.assert_sound()


def test_a_repeated_and_an_altered_frame_are_noticed(left, right):
    canaries = Canaries()
    with Wire(left, "eth0") as out, Wire(right, "eth0") as into:
        for spoil in (lambda frame: frame, lambda frame: frame[:-1] + b"\0\0"):
            with Collector(into, canaries) as collector:
                frame = canaries.frame(out.address, into.address)
                out.send(frame)
                out.send(spoil(frame))
                netlab.wait_until(
                    lambda: collector.altered or max(collector.arrived.values(), default=0) > 1,
                    2,
                    "the fault is noticed",
                )
            with pytest.raises(AssertionError):
                collector.assert_sound()


def test_vlan_tags_are_seen_although_the_kernel_moves_them(left, right):
    canaries = Canaries()
    tags = vlan_tag(8, tpid=0x88A8) + vlan_tag(7)
    with Wire(left, "eth0") as out, Wire(right, "eth0") as into:
        frame = canaries.frame(out.address, into.address, tags=tags)
        out.send(frame)
        assert into.receive(2) == frame


NAT_BEHAVIOUR = {
    nat.Kind.FULL: ("Endpoint Independent", "Endpoint Independent"),
    nat.Kind.ADDRESS_RESTRICTED: ("Endpoint Independent", "Address Dependent"),
    nat.Kind.PORT_RESTRICTED: ("Endpoint Independent", "Address and Port Dependent"),
    nat.Kind.ADDRESS_DEPENDENT: ("Address Dependent", "Address and Port Dependent"),
    nat.Kind.SYMMETRIC: ("Address and Port Dependent", "Address and Port Dependent"),
    nat.Kind.UDP_BLOCKED: ("", ""),
}


@pytest.mark.skipif(not nat.installed(), reason="needs coturn and conntrack")
def test_each_router_behaves_as_its_kind_says(tmp_path):
    with Net() as net, nat.StunServer(net, tmp_path) as server:
        routers = [nat.Router(net, kind, kind.value) for kind in nat.Kind]
        assert all(router.inside.ping(server.host.ipv4).complete for router in routers[:-1])
        with ThreadPoolExecutor() as pool:
            seen = list(pool.map(lambda router: server.discover(router.inside), routers))
    assert dict(zip(nat.Kind, seen, strict=True)) == NAT_BEHAVIOUR


@pytest.mark.parametrize("kind", nat.Kind)
def test_a_forwarded_port_reaches_the_inside_host(net, kind):
    with Net() as net:
        outside = net.host("outside")
        router = nat.Router(net, kind, "home")
        router.forward_tcp(9001)
        with router.inside.listen(("0.0.0.0", 9001)), outside.connect((router.wan.ipv4, 9001)):
            pass


@pytest.mark.parametrize("kind", proxies.Kind)
def test_a_proxy_starts_and_its_end_frees_the_port(net, right, kind, tmp_path):
    if not proxies.installed(kind):
        pytest.skip(f"needs {kind}")
    with proxies.Proxy(net, kind, right, tmp_path) as proxy:
        host = proxy.host
    with pytest.raises(ConnectionRefusedError):
        host.connect((host.ipv4, netlab.PEER_PORT))
    assert host.pids() == []
