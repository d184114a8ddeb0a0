"""By which interface packets leave, and what that is stacked on."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address, ip_interface

import gevent
import gevent.event
import pytest

from shadowmesh.device import underlay as module
from shadowmesh.device.netlink import BridgeEntry, Link, Neighbour, Route
from shadowmesh.device.underlay import Stack, Underlay, Way, zone_of

PEER = ip_address("198.51.100.2")
GATEWAY = ip_address("192.0.2.254")
FAR_MAC = bytes.fromhex("02005e000009")
LO, ETH0, ETH1, TAP, TOP, BRIDGE, VETH, VETH_END = range(1, 9)


def link(index, name, **more):
    return Link(index, name, 1500, b"", 1000, more.pop("up", True), **more)


ETHERNET = link(ETH0, "eth0")
DEVICE = link(TAP, "tap0", kind="tun")
PORT = link(TAP, "tap0", kind="tun", master=BRIDGE)
BRIDGED = link(BRIDGE, "br0", kind="bridge")


def stack(*links, leaves_by=None):
    def nowhere(_to):
        raise OSError(errno.ENETUNREACH, "no")

    return Stack(list(links), "tap0", leaves_by or nowhere)


@pytest.mark.parametrize(
    ("links", "chain"),
    [
        ([DEVICE], "tap0"),
        ([DEVICE, link(TOP, "mv0", kind="macvlan", lower=TAP)], "mv0 on tap0"),
        (
            [DEVICE, link(9, "v5", kind="vlan", lower=TAP), link(TOP, "m5", kind="macvlan", lower=9)],
            "m5 on v5 on tap0",
        ),
        ([PORT, BRIDGED, link(TOP, "br0.7", kind="vlan", lower=BRIDGE)], "br0.7 on br0 with the port tap0"),
        (
            [
                PORT, BRIDGED, link(VETH, "veth0", kind="veth", lower=VETH_END),
                link(VETH_END, "veth1", kind="veth", lower=VETH, master=BRIDGE),
            ],
            "veth0 to br0 with the port tap0",
        ),
    ],
    ids=["device", "macvlan", "two levels", "vlan on a bridge", "veth into the bridge"],
)  # fmt: skip
def test_what_is_stacked_on_the_device_leads_into_the_tunnel(links, chain):
    top = links[-1] if links[-1].kind != "veth" else links[-2]
    found = stack(ETHERNET, *links)
    assert found.chain(top.index) == chain
    assert found.chain(ETH0) is None


def test_a_vxlan_leads_where_its_far_end_is():
    top = link(TOP, "vx0", kind="vxlan", remote=ip_address("10.0.0.2"))
    found = stack(ETHERNET, DEVICE, top, leaves_by=lambda to: TAP)
    assert found.chain(TOP) == "vx0 to 10.0.0.2 by tap0"
    assert stack(ETHERNET, DEVICE, top, leaves_by=lambda to: ETH0).chain(TOP) is None


def test_a_bridge_with_another_port_may_lead_outside():
    alone = stack(PORT, BRIDGED)
    both = stack(link(ETH0, "eth0", master=BRIDGE), PORT, BRIDGED)
    down = stack(link(ETH0, "eth0", master=BRIDGE, up=False), PORT, BRIDGED)
    assert [each.only_tunnel(BRIDGE) for each in (alone, both, down)] == [True, False, True]
    assert both.chain(BRIDGE) == "br0 with the port tap0"


def test_interfaces_in_a_ring_are_followed_once():
    found = stack(link(TOP, "a", lower=9), link(9, "b", lower=TOP), DEVICE)
    assert found.chain(TOP) is None
    assert not found.only_tunnel(TOP)


class FakeNetlink:
    """A made-up host."""

    def __init__(self):
        self.links_ = [ETHERNET, link(ETH1, "eth1"), DEVICE]
        self.routes = {0: Route(ETH0, GATEWAY, local=False)}
        self.held = [(ETH0, ip_interface("192.0.2.7/24")), (ETH1, ip_interface("203.0.113.7/24"))]
        self.neighbours_, self.entries, self.asked = [], [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def links(self):
        return self.links_

    def addresses(self):
        return self.held

    def neighbours(self):
        return self.neighbours_

    def bridge_entries(self):
        return self.entries

    def route(self, to, *, out=0, mark=0):
        self.asked.append((to, out, mark))
        if out in self.routes:
            return self.routes[out]
        if out:  # as IPv4 does
            return Route(out, None, local=False)
        raise OSError(errno.ENETUNREACH, "no")


@pytest.fixture
def kernel(monkeypatch):
    kernel = FakeNetlink()
    monkeypatch.setattr(module, "Netlink", lambda: kernel)
    return kernel


@pytest.fixture
def underlay():
    found = Underlay(lambda: "tap0", mark=7)
    yield found
    found.close()


def forget(underlay):
    """What an event of the kernel does."""
    underlay._answers.clear()


def test_an_ordinary_route_leads_outside_and_is_asked_for_once(kernel, underlay):
    for _ in range(3):
        assert underlay.way(PEER) == Way("eth0", GATEWAY)
    assert underlay.inside(PEER) is None
    assert kernel.asked == [(PEER, 0, 7)]


def test_a_route_that_turns_into_the_tunnel_is_told_with_the_way_that_it_had(kernel, underlay):
    underlay.way(PEER)
    kernel.routes[0] = Route(TAP, None, local=False)
    forget(underlay)
    assert underlay.inside(PEER) == "198.51.100.2 leads into the tunnel itself (tap0)"
    assert underlay.advice(PEER) == "ip route add 198.51.100.2 via 192.0.2.254 dev eth0"


def test_a_route_that_always_led_there_is_told_with_that_of_another_interface(kernel, underlay):
    kernel.routes = {0: Route(TAP, None, local=False), ETH1: Route(ETH1, GATEWAY, local=False)}
    assert underlay.advice(PEER) == "ip route add 198.51.100.2 via 192.0.2.254 dev eth1"
    kernel.routes = {0: Route(TAP, None, local=False)}
    forget(underlay)
    assert underlay.advice(PEER) == "ip route add 198.51.100.2 via GATEWAY dev INTERFACE"
    kernel.held.append((ETH1, ip_interface("198.51.100.7/24")))
    forget(underlay)
    assert underlay.advice(PEER) == "ip route add 198.51.100.2 dev eth1"


def test_what_is_refused_is_counted(kernel, underlay):
    kernel.routes[0] = Route(TAP, None, local=False)
    assert underlay.refuses_dial("198.51.100.2").endswith("; " + underlay.advice(PEER))
    assert underlay.refusal(PEER, "stun") is not None
    kernel.routes[0] = Route(ETH0, None, local=False)
    forget(underlay)
    assert underlay.refuses_dial("198.51.100.2") is None
    assert underlay.refused == {"dial": 1, "stun": 1}


@pytest.mark.parametrize(
    ("port", "inside"), [(ETH0, False), (TAP, True), (None, False)], ids=["eth0", "tap0", "unknown"]
)
def test_behind_a_bridge_of_both_the_port_of_the_next_hop_decides(kernel, underlay, port, inside):
    kernel.links_ = [link(ETH0, "eth0", master=BRIDGE), PORT, BRIDGED]
    kernel.routes[0] = Route(BRIDGE, GATEWAY, local=False)
    kernel.neighbours_ = [Neighbour(BRIDGE, GATEWAY, FAR_MAC, 2)]
    kernel.entries = [] if port is None else [BridgeEntry(port, BRIDGE, FAR_MAC)]
    assert (underlay.inside(PEER) is not None) is inside


def test_without_a_route_nothing_is_said(kernel, underlay):
    kernel.routes = {}
    assert underlay.way(PEER) is None
    assert underlay.inside(PEER) is None
    assert underlay.advice(PEER) is None


def test_the_kernel_is_asked_for_real():
    found = Underlay(lambda: None)
    assert found.way(ip_address("127.0.0.1")) == Way("lo")
    assert found.inside(ip_address("127.0.0.1")) is None
    before = found.generation
    assert found.generation == before
    found.close()


@pytest.mark.parametrize("refuses", ["socket", "bind"])
def test_who_may_not_listen_to_changes_asks_each_time(kernel, underlay, monkeypatch, refuses):
    class Deaf(socket.socket):
        def __init__(self, *arguments):
            if refuses == "socket":
                raise OSError(errno.EAFNOSUPPORT, "no netlink")
            super().__init__(*arguments)

        def bind(self, _address):
            raise OSError(errno.EPERM, "not allowed")

    monkeypatch.setattr(module.socket, "socket", Deaf)
    for _ in range(2):
        assert underlay.way(PEER) == Way("eth0", GATEWAY)
    assert len(kernel.asked) == 2


@pytest.fixture
def news(monkeypatch):
    """The other end of the socket on which changes are told."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(module, "_events", lambda: ours)
    yield kernels
    kernels.close()


def test_who_listens_is_told_of_a_change_by_the_loop(kernel, underlay, news):
    told = gevent.event.Event()
    underlay.listen(told.set)
    told.clear()
    before = underlay._generation
    for _ in range(2):  # and of the next one, too
        news.send(b"a route")
        assert told.wait(5)
        told.clear()
        assert underlay._generation > before
        before = underlay._generation
    underlay.forget(told.set)
    assert underlay._readable is underlay._pause is None


def test_a_burst_of_changes_wakes_who_listens_once_and_then_in_the_pauses(
    kernel, underlay, news, monkeypatch
):
    monkeypatch.setattr(module, "_SPACING_S", 3600)
    told = []
    underlay.listen(lambda: told.append(1))
    told.clear()
    news.send(b"a route")
    gevent.sleep(0.05)
    for _ in range(20):
        news.send(b"a route")
        gevent.sleep(0)
    gevent.sleep(0.05)
    assert told == [1]


def test_a_change_that_an_answer_has_met_is_told_as_well(kernel, underlay, news):
    told = []
    underlay.listen(lambda: told.append(1))
    told.clear()
    news.send(b"a route")
    underlay.way(PEER)
    assert told == [1]


def test_a_host_that_stays_as_it_is_wakes_nobody(kernel, underlay, news):
    told = []
    underlay.listen(lambda: told.append(1))
    told.clear()
    assert underlay._readable.active
    assert underlay._pause is None
    for _ in range(3):
        underlay.way(PEER)
        gevent.sleep(0)
    assert told == []
    assert kernel.asked == [(PEER, 0, 7)]


def test_who_listens_where_the_kernel_does_not_tell_is_told_now_and_then(
    kernel, underlay, monkeypatch
):
    monkeypatch.setattr(module, "_events", lambda: None)
    monkeypatch.setattr(module, "_GUESS_S", 0.02)
    told = []

    def changed():
        told.append(underlay.generation)

    underlay.listen(changed)
    with gevent.Timeout(5):
        while len(told) < 3:
            gevent.sleep(0.01)
    assert len(set(told)) == len(told)


def test_what_a_bridge_has_learned_is_looked_at_anew_each_second(kernel, underlay, monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    kernel.links_ = [link(ETH0, "eth0", master=BRIDGE), PORT, BRIDGED]
    kernel.routes[0] = Route(BRIDGE, GATEWAY, local=False)
    assert underlay.inside(PEER) is None
    before = underlay.generation
    kernel.neighbours_ = [Neighbour(BRIDGE, GATEWAY, FAR_MAC, 2)]
    kernel.entries = [BridgeEntry(TAP, BRIDGE, FAR_MAC)]
    assert underlay.generation == before
    now += 1.1
    assert underlay.generation != before
    assert underlay.inside(PEER) is not None


def test_zones_are_known_by_name_and_by_number():
    assert zone_of(ip_address("fe80::1%lo")) == zone_of(ip_address("fe80::1%1")) == 1
    assert zone_of(ip_address("fe80::1")) == zone_of(PEER) == 0
