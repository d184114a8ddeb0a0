"""Twenty daemons in full mesh: one Ethernet, on which nobody's trouble is another's."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from contextlib import ExitStack

import pytest

from shadowmesh.netlab import Daemon, wait_until
from tests.lab.frames import BROADCAST, Canaries, Collector, Stream, Wire, mac, vlan_tag
from tests.lab.mesh import (
    PATIENCE_S,
    assert_pings,
    fdb,
    running_mesh,
    tap_mac,
    undisturbed,
)
from tests.lab.pair import counters

pytestmark = pytest.mark.netns

COUNT = 20
ARP = 0x0806
#: hosts of no machine, locally administered
GUEST, OTHER_GUEST = bytes.fromhex("020000000a01"), bytes.fromhex("020000000a02")


@pytest.fixture(scope="module")
def mesh(directory):
    with running_mesh(directory, COUNT) as mesh:
        yield mesh


def arp_request(source: bytes, sender_ip: str, wanted_ip: str) -> bytes:
    """Source: RFC 826."""
    head = BROADCAST + source + struct.pack("!HHHBBH", ARP, 1, 0x0800, 6, 4, 1)
    sender, wanted = (socket.inet_aton(ip) for ip in (sender_ip, wanted_ip))
    return (head + source + sender + bytes(6) + wanted).ljust(60, b"\0")


def is_arp_answer(frame: bytes | None, sender_ip: str) -> bool:
    return (
        frame is not None
        and frame[12:14] == ARP.to_bytes(2)
        and frame[20:22] == b"\0\2"
        and frame[28:32] == socket.inet_aton(sender_ip)
    )


# --- One Ethernet -----------------------------------------------------------------------------


def test_every_peer_has_a_session_to_every_other_some_over_udp_some_over_wss(mesh):
    def settled() -> bool:
        paths = {
            (daemon.host.number, int(name[1:])): peer["path"]
            for daemon in mesh
            for name, peer in daemon.peers().items()
        }
        return paths == {
            pair: "wss" if any(number % 3 == 0 for number in pair) else "udp" for pair in paths
        }

    wait_until(settled, PATIENCE_S, "every pair on its path", interval_s=1)
    for daemon in mesh:
        status = daemon.status()
        assert status["state"] == "connected"
        assert status["peers"]["known"] == status["peers"]["sessions"] == COUNT - 1
        assert status["peer"] is status["path"] is status["session"] is None


def test_every_peer_pings_every_other(mesh):
    for source, target in itertools.permutations(mesh, 2):
        assert_pings(source, target)


def test_one_broadcast_reaches_every_other_once_and_comes_back_to_nobody(mesh):
    canaries = Canaries()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(daemon.host, daemon.tap)) for daemon in mesh]
        collectors = [stack.enter_context(Collector(wire, canaries)) for wire in wires]
        wires[0].send(canaries.frame(wires[0].address))
        wait_until(lambda: all(c.arrived for c in collectors[1:]), PATIENCE_S, "all have it")
        # What comes later would be seen before this one, which takes the same ways.
        wires[1].send(canaries.frame(wires[1].address))
        wait_until(
            lambda: all(1 in c.arrived for c in collectors if c is not collectors[1]),
            PATIENCE_S,
            "again",
        )
    for number, collector in enumerate(collectors):
        collector.assert_sound()
        assert set(collector.arrived) == {0, 1} - ({number} & {0, 1})


def test_an_arp_request_is_answered_by_the_one_who_has_the_address(mesh):
    asking, asked, third = mesh[1], mesh[2], mesh[4]
    with Wire(asking.host, asking.tap) as wire, Wire(third.host, third.tap) as elsewhere:
        wire.send(arp_request(wire.address, asking.tunnel_ip, asked.tunnel_ip))
        wait_until(
            lambda: is_arp_answer(wire.receive(0.2), asked.tunnel_ip), PATIENCE_S, "an answer"
        )
        assert not is_arp_answer(elsewhere.receive(0.2), asked.tunnel_ip)


def test_a_vlan_is_learned_apart_from_the_others(mesh):
    """A host behind one peer, known in VLAN 20: frames for it go there, in VLAN 21 to everybody."""
    home, far, third = mesh[3], mesh[5], mesh[6]
    announced, known, unknown = Canaries(), Canaries(), Canaries()
    with ExitStack() as stack:
        wires = {
            daemon.host.label: stack.enter_context(Wire(daemon.host, daemon.tap))
            for daemon in (home, far, third)
        }
        at_far = stack.enter_context(Collector(wires["h5"], announced))
        wires["h3"].send(announced.frame(GUEST, tags=vlan_tag(20)))
        wait_until(lambda: at_far.arrived, PATIENCE_S, "the announcement arrives")
    assert fdb(far)[GUEST, 20]["peer"] == "h3"
    assert (GUEST, 21) not in fdb(far)
    with ExitStack() as stack:
        out = stack.enter_context(Wire(far.host, far.tap))
        seen = {
            (daemon.host.label, canaries is known): stack.enter_context(
                Collector(stack.enter_context(Wire(daemon.host, daemon.tap)), canaries)
            )
            for daemon in (home, third)
            for canaries in (known, unknown)
        }
        out.send(known.frame(out.address, GUEST, tags=vlan_tag(20)))
        out.send(unknown.frame(out.address, GUEST, tags=vlan_tag(21)))
        wait_until(lambda: seen["h3", True].arrived, PATIENCE_S, "known at home")
        wait_until(lambda: seen["h3", False].arrived, PATIENCE_S, "unknown at home")
        wait_until(lambda: seen["h6", False].arrived, PATIENCE_S, "unknown elsewhere")
        assert not seen["h6", True].arrived


def test_the_table_has_every_peer_where_it_is(mesh):
    for daemon in (mesh[1], mesh[3]):
        entries = fdb(daemon)
        for other in mesh.others(daemon):
            entry = entries[tap_mac(other), None]  # in every VLAN
            assert (entry["peer"], entry["static"]) == (other.host.label, True)
            assert entries[tap_mac(other), 0]["peer"] == other.host.label


# --- Addresses that are not a peer's own ------------------------------------------------------


def test_a_host_cannot_speak_as_another_peer(mesh):
    """Its own daemon stops it, so that nobody has to take the word of another for it."""
    liar, victim, third = mesh[14], mesh[15], mesh[16]
    canaries = Canaries()
    with (
        Wire(liar.host, liar.tap) as out,
        Wire(third.host, third.tap) as into,
        Collector(into, canaries) as collector,
    ):
        out.send(canaries.frame(tap_mac(victim)))
        out.send(canaries.frame(out.address))
        wait_until(lambda: 1 in collector.arrived, PATIENCE_S, "the honest frame arrives")
    assert set(collector.arrived) == {1}
    assert counters(liar)["dropped"]["foreign_mac"] == 1
    assert fdb(third)[tap_mac(victim), None]["peer"] == victim.host.label
    assert_pings(third, victim)


def test_a_peer_that_may_use_its_own_address_alone_speaks_for_no_host_behind_it(mesh):
    strict, limited, third = mesh[16], mesh[17], mesh[18]
    listed = strict.settings["peers"]
    strict.settings["peers"] = [
        {**peer, "allowed_macs": "own"} if peer["name"] == "h17" else peer for peer in listed
    ]
    assert strict.reload()["applied"] == ["peers.h17"]
    mesh.await_sessions([strict, limited])
    canaries = Canaries()
    with ExitStack() as stack:
        out = stack.enter_context(Wire(limited.host, limited.tap))
        at_strict, at_third = (
            stack.enter_context(
                Collector(stack.enter_context(Wire(daemon.host, daemon.tap)), canaries)
            )
            for daemon in (strict, third)
        )
        out.send(canaries.frame(OTHER_GUEST))
        out.send(canaries.frame(out.address))
        wait_until(
            lambda: 1 in at_strict.arrived and len(at_third.arrived) == 2, PATIENCE_S, "frames"
        )
    assert set(at_strict.arrived) == {1}
    assert strict.peers()["h17"]["counters"]["dropped"]["mac_limit"] == 1
    strict.settings["peers"] = listed
    strict.reload()
    mesh.await_sessions([strict, limited])


# --- Bridges ----------------------------------------------------------------------------------


@contextlib.contextmanager
def bridged(mesh, daemon: Daemon, address: str):
    """A LAN behind a daemon: its TAP and the cable of one more host in a bridge; yields that host."""
    guest = mesh.net.namespace(f"guest-{daemon.host.label}")
    guest.ip(
        f"link add eth0 type veth peer name guest0 netns {daemon.host.namespace}",
        f"address add {address}/24 dev eth0",
        "link set eth0 up",
    )
    daemon.host.ip(
        "link add lan type bridge forward_delay 0 mcast_snooping 0",
        f"link set {daemon.tap} master lan",
        "link set guest0 master lan up",
        "link set lan up",
    )
    try:
        yield guest
    finally:
        daemon.host.ip("link delete lan", "link delete guest0")


def test_hosts_behind_two_bridges_reach_each_other_and_all_peers(mesh):
    one, other, plain = mesh[11], mesh[12], mesh[1]
    with bridged(mesh, one, "10.0.0.111") as here, bridged(mesh, other, "10.0.0.112") as there:
        for source, target in (
            (here, "10.0.0.112"), (there, "10.0.0.111"), (here, plain.tunnel_ip),
            (plain.host, "10.0.0.111"), (plain.host, "10.0.0.112"),
        ):  # fmt: skip
            wait_until(lambda s=source, t=target: s.ping(t, count=1).complete, PATIENCE_S, "a ping")
        entries = fdb(plain)
        for guest, daemon in ((here, one), (there, other)):
            entry = entries[mac(guest.interfaces()["eth0"]["address"]), 0]
            assert (entry["peer"], entry["static"]) == (daemon.host.label, False)


# --- One in trouble, the others not -----------------------------------------------------------


@contextlib.contextmanager
def full_load(source: Daemon, sink: Daemon):
    """One TCP stream takes all that it gets while the block runs; each byte of it arrives."""
    stop = threading.Event()
    counts = {"sent": 0, "received": 0}

    def send(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(PATIENCE_S)
            while not stop.is_set():
                counts["sent"] += connection.send(bytes(1 << 16))

    def receive(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(PATIENCE_S)
            while count := len(connection.recv(1 << 16)):
                counts["received"] += count

    with sink.host.listen((sink.tunnel_ip, 0)) as listener:
        out = source.host.connect(listener.getsockname())
        ends = (send, out), (receive, listener.accept()[0])
    threads = [threading.Thread(target=work, args=(end,), daemon=True) for work, end in ends]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert counts["received"] == counts["sent"] > 1 << 20


def test_a_peer_that_is_killed_comes_back_and_the_others_feel_nothing(mesh):
    victim = mesh[7]
    with undisturbed(mesh, victim), full_load(mesh[3], mesh[6]):
        victim.kill()
        for daemon in (mesh[1], mesh[20]):
            wait_until(
                lambda d=daemon: d.peers()["h7"]["state"] != "connected", PATIENCE_S, "missed"
            )
    victim.start(PATIENCE_S)
    mesh.await_sessions()
    assert_pings(mesh[1], victim)
    assert_pings(victim, mesh[20])


def test_a_peer_that_is_frozen_holds_up_nobody(mesh):
    victim = mesh[8]
    with undisturbed(mesh, victim), full_load(mesh[3], mesh[6]):
        victim.pause()
        try:
            # To all, the frozen one among them, and more than its sockets have room for.
            canaries = Canaries()
            with (
                Wire(mesh[1].host, mesh[1].tap) as out,
                Wire(mesh[20].host, mesh[20].tap) as into,
                Collector(into, canaries) as collector,
                Stream(out, canaries, BROADCAST, per_second=300, size=1400),
            ):
                wait_until(
                    lambda: len(collector.arrived) > 600,
                    PATIENCE_S,
                    "broadcast passes the frozen one",
                )
            assert_pings(mesh[1], mesh[20])
        finally:
            victim.resume()
    mesh.await_sessions()
    assert_pings(mesh[1], victim)


def test_a_storm_of_one_is_bounded_and_leaves_room_for_the_others(mesh):
    canaries = Canaries()
    with (
        undisturbed(mesh, mesh[10]),
        Wire(mesh[10].host, mesh[10].tap) as out,
        Wire(mesh[20].host, mesh[20].tap) as into,
        Collector(into, canaries) as collector,
    ):
        # A storm is one by its rate: on a machine that is busy with other things it takes longer
        # to send as many within a second. What the queue of its device had no room for is no
        # matter of the limit.
        for _ in range(20):
            for _ in range(20_000):
                out.send(canaries.frame(out.address))
            dropped = counters(mesh[10])["dropped"]["flood_limit"]
            if dropped > 1000:
                break
        assert dropped > 1000
        assert_pings(mesh[1], mesh[20])
        assert collector.arrived
    collector.assert_sound()


def test_a_device_that_is_deleted_comes_back_and_every_peer_is_reached_by_it(mesh):
    victim = mesh[5]
    before = tap_mac(victim)
    with undisturbed(mesh, victim):
        victim.host.ip(f"link delete {victim.tap}")
        wait_until(lambda: victim.tap in victim.host.taps(), PATIENCE_S, "the device is back")
        for other in mesh.others(victim):
            assert_pings(other, victim)
            assert_pings(victim, other)
    assert tap_mac(victim) == before
    assert fdb(mesh[1])[before, None]["peer"] == victim.host.label


def test_a_peer_that_leaves_the_list_of_one_loses_that_session_at_once_and_no_other(mesh):
    shunning, shunned = mesh[4], mesh[13]
    kept = mesh.sessions(mesh.others(shunned))
    rest = mesh.sessions(mesh.others(shunning))
    listed = shunning.settings["peers"]
    shunning.settings["peers"] = [peer for peer in listed if peer["name"] != "h13"]
    answer = shunning.reload()
    assert answer["applied"] == ["peers.h13"]
    assert answer["restart"] == []
    assert "h13" not in shunning.peers()
    wait_until(lambda: shunned.peers()["h4"]["state"] != "connected", 15, "the session ends")
    assert not shunning.host.ping(shunned.tunnel_ip, count=1, timeout_s=0.5).received
    assert mesh.sessions(mesh.others(shunned)) == kept
    assert mesh.sessions(mesh.others(shunning)) == rest
    shunning.settings["peers"] = listed
    assert shunning.reload()["applied"] == ["peers.h13"]
    mesh.await_sessions([shunning, shunned])
    assert_pings(shunning, shunned)
    assert mesh.sessions(mesh.others(shunned)) == kept
