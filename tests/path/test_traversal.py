"""How the world sees us: interfaces, changes of the network, STUN on the data socket."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import time
from ipaddress import ip_address, ip_interface

import gevent
import gevent.event
import gevent.socket
import pytest
from click.testing import CliRunner

from shadowmesh._fastpath import DataPlane
from shadowmesh.base.clock import boottime
from shadowmesh.cli.program import program
from shadowmesh.config import HostPort
from shadowmesh.config.model import NatSection
from shadowmesh.device import addresses
from shadowmesh.device.netlink import Link
from shadowmesh.path import netcheck, traversal
from shadowmesh.path.traversal import Traversal
from shadowmesh.wire.control import CandidateKind, Endpoint
from shadowmesh.wire.nat.result import Mapping, NatType
from tests.lab.stun_server import Behaviour, StunServer

WAIT_S = 5.0
V4, V6 = ip_address("192.0.2.7"), ip_address("2001:db8::7")


def link(index: int, name: str, *, master: int = 0, up: bool = True, mtu: int = 1500) -> Link:
    return Link(index, name, mtu, b"", 1000, up, master)


class FakeNetlink:
    """Interfaces of a made-up host."""

    def __init__(self, links, addresses):
        self._links, self._addresses = links, [(i, ip_interface(a)) for i, a in addresses]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def links(self):
        return self._links

    def addresses(self):
        return self._addresses


@pytest.fixture
def host(monkeypatch):
    """Give the host other interfaces."""

    def become(links, held):
        monkeypatch.setattr(addresses, "Netlink", lambda: FakeNetlink(links, held))

    return become


# --- Interfaces -------------------------------------------------------------------------------


def test_addresses_of_interfaces_that_are_up_count(host):
    host(
        [link(1, "lo"), link(2, "eth0", mtu=9000), link(3, "eth1", up=False)],
        [
            (1, "127.0.0.1/8"), (1, "::1/128"), (2, "192.0.2.7/24"), (2, "2001:db8::7/64"),
            (2, "fe80::7/64"), (3, "198.51.100.7/24"), (9, "203.0.113.7/24"),
        ],
    )  # fmt: skip
    found = addresses.look("tap0")
    assert found.addresses == (V4, V6)
    assert found.mtu_of(V4) == 9000
    assert found.mtu_of(ip_address("198.51.100.7")) is None


@pytest.mark.parametrize("bridge", [0, 5])
def test_the_tunnels_device_and_its_bridge_are_no_path(host, bridge):
    host(
        [link(2, "eth0"), link(4, "tap0", master=bridge), link(5, "br0")],
        [(2, "192.0.2.7/24"), (4, "10.0.0.1/24"), (5, "10.9.0.1/16")],
    )
    found = addresses.look("tap0")
    assert (ip_address("10.9.0.1") in found.addresses) is (bridge == 0)
    assert ip_address("10.0.0.1") not in found.addresses
    assert found.tunnel_links == {4, 5} if bridge else {4}


def test_what_is_stacked_on_the_device_is_no_path_and_a_bridge_with_an_uplink_is_one(host):
    stacked = Link(6, "mv0", 1500, b"", 1000, True, kind="macvlan", lower=4)
    host(
        [link(2, "eth0", master=5), link(4, "tap0", master=5), link(5, "br0"), stacked],
        [(5, "192.0.2.7/24"), (6, "192.168.77.1/24")],
    )
    assert addresses.look("tap0").addresses == (V4,)


def test_the_kernel_tells_its_own_interfaces():
    found = addresses.look(None)
    assert not any(address.is_loopback for address in found.addresses)


def test_the_source_address_is_that_of_the_route():
    assert addresses.source_address(ip_address("127.0.0.1")) == ip_address("127.0.0.1")


# --- The watch --------------------------------------------------------------------------------

NEWROUTE, DELROUTE, NEWADDR = 24, 25, 20


def route(kind: int, oif: int | None, *, table: int = 254, flags: int = 0) -> bytes:
    body = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, table, 3, 0, 1, flags)
    body += struct.pack("=HH4s", 8, 5, bytes([192, 0, 2, 1]))
    if oif is not None:
        body += struct.pack("=HHI", 8, 4, oif)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("datagram", "links"),
    [
        (route(NEWROUTE, 2) + route(DELROUTE, 300), {2, 300}),
        (route(NEWROUTE, None), {0}),
        (route(NEWROUTE, 2, table=255), set()),
        (route(NEWROUTE, 2, flags=0x200), set()),
        (route(NEWADDR, 2), set()),
        (route(NEWROUTE, 2)[:20], set()),
        (struct.pack("=IHHII", 3, NEWROUTE, 0, 0, 0), set()),
        (b"", set()),
    ],
    ids=["two", "no interface", "local table", "cache", "address", "cut", "short", "empty"],
)  # fmt: skip
def test_routes_that_changed_are_found_by_their_interface(datagram, links):
    assert addresses.rerouted_links(datagram) == links


@pytest.fixture
def watch(host):
    """A watch whose netlink socket is ours to write to; counts its calls."""
    host([link(2, "eth0"), link(4, "tap0")], [(2, "192.0.2.7/24"), (4, "10.0.0.1/24")])
    calls = []
    watch = addresses.NetworkWatch(lambda: "tap0", lambda: calls.append(time.monotonic()))
    watch._greenlet.kill()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    watch._socket.close()
    watch._socket = theirs
    watch._greenlet = gevent.spawn(watch._run)
    watch.calls, watch.kernel = calls, ours
    yield watch
    watch.close()
    ours.close()


def settle():
    gevent.sleep(2.5 * addresses.QUIET_S)


def test_a_burst_of_changes_is_told_once(watch, host):
    host([link(2, "eth0")], [(2, "192.0.2.8/24")])
    for _ in range(5):
        watch.kernel.send(route(NEWROUTE, 2))
        gevent.sleep(0.02)
    settle()
    assert len(watch.calls) == 1


def test_who_asks_for_the_host_is_told_what_the_watch_knows_or_what_is_new(watch, host):
    host([link(2, "eth0")], [(2, "192.0.2.8/24")])
    assert watch.host().addresses == (ip_address("192.0.2.7"),), "nothing has been heard of it yet"
    watch.kernel.send(route(NEWROUTE, 2))
    gevent.sleep(0.02)
    assert watch.host().addresses == (ip_address("192.0.2.8"),), "while it is going on"
    settle()
    assert watch.host().addresses == (ip_address("192.0.2.8"),)


def test_messages_about_what_stays_the_same_are_not_told(watch):
    watch.kernel.send(route(NEWADDR, 2))
    watch.kernel.send(route(NEWROUTE, 4))  # of the tunnel's own device
    settle()
    assert watch.calls == []


def test_a_new_default_route_is_told_although_no_address_changed(watch):
    watch.kernel.send(route(NEWROUTE, 2))
    settle()
    assert len(watch.calls) == 1


# --- STUN on the data socket --------------------------------------------------------------------

LOOPBACK = ip_address("127.0.0.1")


@contextlib.contextmanager
def stun_server(behaviour=Behaviour.HONEST):
    """A STUN server on loopback; gives it and its address."""
    with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(LOOPBACK), 0))
        here = Endpoint(LOOPBACK, sock.getsockname()[1])
        server = StunServer(here, behaviour=behaviour)

        def serve():
            while True:
                data, (host, port) = sock.recvfrom(2048)
                for reply in server.receive(data, Endpoint(ip_address(host), port), here):
                    sock.sendto(reply.data, (host, port))

        greenlet = gevent.spawn(serve)
        try:
            yield server
        finally:
            greenlet.kill()


def section(*servers: StunServer, **changes) -> NatSection:
    names = tuple(HostPort(str(s.primary.address), s.primary.port) for s in servers)
    plain = NatSection(
        enabled=True, stun_server=names, detection_timeout=0.6, hole_punch_timeout=0.5, udp_port=0
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def make(host):
    """Make and start a Traversal on a host with one address."""
    host([link(2, "eth0")], [(2, "192.0.2.7/24")])
    made = []

    def start(nat: NatSection) -> Traversal:
        found = Traversal(DataPlane(), nat)
        found.changes = 0

        def count():
            found.changes += 1

        found.on_change = count
        made.append(found)
        found.start()
        return found

    yield start
    for found in made:
        found.stop()


def wait_for(condition):
    with gevent.Timeout(WAIT_S):
        while not condition():
            gevent.sleep(0.01)


def test_switched_off_nothing_is_opened(make):
    found = make(section(enabled=False))
    assert found.port is None
    assert found.candidates(V4) == ()
    found.refresh("no harm")


def test_a_server_that_answers_gives_type_and_address(make):
    with stun_server() as server:
        found = make(section(server))
        wait_for(lambda: found.result is not None)
    assert found.result.type is NatType.OPEN
    assert found.result.public_address == Endpoint(LOOPBACK, found.port.port)
    assert abs(found.detected_at - boottime()) < WAIT_S
    assert found.changes >= 1


def test_starting_does_not_wait_for_a_silent_server(make):
    with stun_server(Behaviour.SILENT) as server:
        began = time.monotonic()
        found = make(section(server))
        assert time.monotonic() - began < 0.3
        hosts = [candidate.endpoint for candidate in found.candidates(V4)]
        assert hosts == [Endpoint(V4, found.port.port)]
        assert found.result is None
        wait_for(lambda: found.result is not None)
    assert found.result.type is NatType.UDP_BLOCKED


def test_a_name_without_address_is_said(make):
    found = make(section(stun_server=(HostPort("no.such.name.invalid", 3478),)))
    wait_for(lambda: found.result is not None)
    assert "no.such.name.invalid:3478" in found.result.detail


def test_without_servers_the_host_addresses_remain(make):
    found = make(section())
    wait_for(lambda: found.result is not None)
    assert found.result.type is NatType.UNKNOWN
    assert [c.kind for c in found.candidates(None)] == [CandidateKind.HOST]


def test_what_a_liar_names_is_a_candidate_and_no_more(make):
    with stun_server(Behaviour.LIAR) as server:
        found = make(section(server))
        wait_for(lambda: len(found.candidates(None)) == 2)
    host_candidate, reflexive = found.candidates(None)
    assert host_candidate.endpoint.address == V4
    assert (reflexive.kind, reflexive.endpoint) == (CandidateKind.REFLEXIVE, server.lie)


def test_the_right_answer_from_another_address_is_not_taken(make):
    with (
        stun_server(Behaviour.SILENT) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        found = make(section(server))
        sent = []
        send = found.port.send
        found.port.send = lambda data, to: sent.append(data) or send(data, to)
        wait_for(lambda: sent)
        us = Endpoint(LOOPBACK, found.port.port)
        [reply] = StunServer(server.primary).receive(sent[0], us, server.primary)
        stranger.sendto(reply.data, (str(us.address), us.port))
        wait_for(lambda: found.result is not None)
    assert found.result.public_address is None


def test_a_look_is_repeated_when_the_network_changes(make):
    with stun_server() as server:
        found = make(section(server))
        wait_for(lambda: found.result is not None)
        told = []
        found.on_network_change = lambda: told.append(1)
        before, found.result = server.requests.total(), None
        found._on_network_change()
        assert told == [1]
        wait_for(lambda: found.result is not None)
        assert server.requests.total() > before


def test_a_fresh_look_is_not_repeated(make):
    with stun_server() as server:
        found = make(section(server))
        wait_for(lambda: found.result is not None)
        before = server.requests.total()
        found.refresh("again")
        gevent.sleep(0.1)
        assert server.requests.total() == before


def test_a_reload_opens_and_closes_the_socket(make):
    found = make(section(enabled=False))
    found.reload(section())
    assert found.port is not None
    number = found.port.port
    found.reload(section(enabled=False))
    assert found.port is None
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", number))


def test_other_servers_are_asked_after_a_reload(make):
    with stun_server() as first, stun_server() as second:
        found = make(section(first))
        wait_for(lambda: found.result is not None)
        found.reload(section(second))
        wait_for(lambda: second.requests)


def test_a_bug_in_one_look_leaves_the_next_one(make, monkeypatch):
    monkeypatch.setattr(traversal, "NatDetector", None)
    with stun_server() as server:
        found = make(section(server))
        gevent.sleep(0.05)
        monkeypatch.undo()
        found.refresh("again", older_than_s=0.0)
        wait_for(lambda: found.result is not None)


# --- netcheck -----------------------------------------------------------------------------------


def run_netcheck(servers, timeout_s=0.6):
    """Run the blocking check beside the greenlets that serve it."""
    pool = gevent.get_hub().threadpool
    return pool.apply(netcheck.check, (servers, 0, timeout_s, None))


def test_netcheck_tells_who_answered_and_what_it_saw():
    with stun_server() as server, stun_server(Behaviour.SILENT) as silent:
        names = [HostPort(str(LOOPBACK), s.primary.port) for s in (server, silent)]
        report = run_netcheck(names).to_dict()
    here = f"127.0.0.1:{report['port']}"
    assert (report["type"], report["udp_out"], report["mapping_varies"]) == ("open", True, False)
    assert report["public_addresses"] == [here]
    answered, other = report["servers"]
    assert answered["saw"] == here
    assert 0 < answered["rtt_ms"] < 600
    assert other["saw"] is None
    assert other["detail"]


def test_netcheck_without_an_answer_says_blocked():
    with stun_server(Behaviour.SILENT) as silent:
        report = run_netcheck([HostPort(str(LOOPBACK), silent.primary.port)])
    assert (report.udp_out, report.udp_in) == (False, None)
    assert report.result.mapping is Mapping.UNKNOWN


def test_netcheck_names_a_server_without_address():
    report = run_netcheck([HostPort("no.such.name.invalid", 3478)]).to_dict()
    assert report["servers"][0]["name"] == "no.such.name.invalid:3478"
    assert "no address" in report["servers"][0]["detail"]
    assert report["udp_out"] is None


@pytest.fixture
def command(tmp_path):
    """Run the netcheck command with a configuration of its own."""
    config = tmp_path / "daemon.yaml"
    config.write_text("nat:\n  stun_server: ''\n  detection_timeout: 500ms\n  udp_port: 0\n")

    def run(*arguments):
        words = ["--config", str(config), *arguments]
        return gevent.get_hub().threadpool.apply(CliRunner().invoke, (program, words))

    return run


def test_the_command_prints_one_line_for_each_fact(command):
    with stun_server() as server:
        done = command("netcheck", "--server", str(server.primary))
    assert done.exit_code == 0
    for words in ("open", "mapping   the same", "UDP out   yes", "UDP in", "answered in"):
        assert words in done.output


def test_the_command_without_an_answer_exits_with_unreachable(command):
    with stun_server(Behaviour.SILENT) as server:
        done = command("--json", "netcheck", "--server", str(server.primary))
    assert done.exit_code == 5
    assert '"udp_blocked"' in done.output


def test_the_command_refuses_a_server_that_is_none(command):
    done = command("netcheck", "--server", "nonsense")
    assert done.exit_code == 2
    assert "--server" in done.stderr
