"""The shell around the path machine: what it sends, when it switches, what it does not touch."""

from __future__ import annotations

import errno
import gc
import time
import weakref
from collections import Counter
from ipaddress import ip_address, ip_network

import gevent
import pytest

from shadowmesh._fastpath import UDP_ERROR_NAMES
from shadowmesh.base.constants import CloseReason, Inner
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.device import addresses
from shadowmesh.device.addresses import HostNetwork
from shadowmesh.path import paths as paths_module
from shadowmesh.path.paths import Paths
from shadowmesh.wire import control
from shadowmesh.wire.control import (
    Candidate,
    CandidateKind,
    Candidates,
    Endpoint,
    ProbeAnswer,
    PunchNow,
)
from shadowmesh.wire.path.rules import Transport

PEER = Endpoint(ip_address("192.0.2.2"), 9001)
OTHER = Endpoint(ip_address("192.0.2.3"), 9001)
INSIDE = Endpoint(ip_address("10.0.0.2"), 9001)
OURS = ip_address("192.0.2.1")
HOST = HostNetwork((OURS,), frozenset({4}), ((OURS, 1500),))
OVERHEAD = 33


def candidate(endpoint: Endpoint) -> Candidate:
    return Candidate(CandidateKind.HOST, endpoint)


class FakePlane:
    def __init__(self):
        self.errors = dict.fromkeys(UDP_ERROR_NAMES, 0)

    def udp_errors(self):
        return dict(self.errors)


class FakeSession:
    """Notes what goes out; answers probes of an endpoint in `alive` through `answer`."""

    def __init__(self):
        self.number = 3
        self.plane = FakePlane()
        self.sent = []
        self.uses = []
        self.refuse: Exception | int = 0
        self.sent_at = self.heard_at = 0.0
        self.alive = set()
        self.answer = lambda *what: None

    def use_udp(self, host, port, payload_bytes):
        self.uses.append((f"{host}:{port}", payload_bytes))

    def use_wss(self):
        if self.uses[-1:] != ["wss"]:
            self.wss_at = time.monotonic()
        self.uses.append("wss")

    def udp_activity(self):
        return self.sent_at, self.heard_at

    def send_udp_record(self, inner_type, body, host, port):
        if isinstance(self.refuse, Exception):
            raise self.refuse
        self.sent.append((inner_type, body, f"{host}:{port}"))
        if inner_type == Inner.PROBE and f"{host}:{port}" in self.alive:
            gevent.spawn(self.answer, body, Endpoint(ip_address(host), port))
        return self.refuse

    def probes(self):
        return [where for kind, _, where in self.sent if kind == Inner.PROBE]


class FakePort:
    def __init__(self):
        self.receivers = {}

    def listen(self, number, receiver):
        self.receivers[number] = receiver

    def forget(self, number, receiver):
        del self.receivers[number]

    def reaches(self, to):
        return to.address.version == 4


class FakeUnderlay:
    """The routes of this host: the tunnel's subnet, and whatever is put in `behind`, go into it."""

    def __init__(self):
        self.behind = {INSIDE.address}
        self.generation = 0
        self.refused = Counter()
        self.listeners = []

    def listen(self, on_change):
        self.listeners.append(on_change)

    def forget(self, on_change):
        self.listeners.remove(on_change)

    def inside(self, to):
        return f"{to} leads into the tunnel itself (tap0)" if to in self.behind else None

    def lead_into_tunnel(self, *addresses):
        self.behind = {INSIDE.address, *addresses}
        self.generation += 1
        for tell in self.listeners:
            tell()


class FakeTraversal:
    def __init__(self):
        self.told = (candidate(Endpoint(OURS, 9001)),)
        self.asked = []
        self.tunnel_device = lambda: "tap0"
        self.underlay = FakeUnderlay()

    def candidates(self, toward):
        return self.told

    def host(self):
        return addresses.look(self.tunnel_device())

    def refresh(self, why, *, older_than_s=15.0):
        self.asked.append(why)


class Rig:
    """A Paths with everything around it made up."""

    def __init__(self):
        self.session, self.port, self.traversal = FakeSession(), FakePort(), FakeTraversal()
        self.wss, self.closes, self.changes = [], [], 0
        self.link = True
        self.paths = Paths(
            self.session,
            "chacha20-poly1305",
            self.port,
            self.traversal,
            toward=PEER.address,
            peer="peer",
            hole_punch_timeout_s=0.2,
            clock=time.monotonic,
            send_control=self.send_control,
            receive_close=lambda *what: self.closes.append(what),
            on_change=self.changed,
        )
        self.session.answer = self.answer

    def send_control(self, message):
        self.wss.append(message)
        return self.link

    def changed(self):
        self.changes += 1

    def answer(self, body, source):
        probe = control.decode_probe(body)
        seen = Endpoint(OURS, 9001)
        self.signal(Inner.PROBE_ANSWER, control.answer_probe(probe, seen), source)

    def signal(self, kind, body=b"", source=PEER, size=None):
        receiver = self.port.receivers[self.session.number]
        receiver(kind, body, len(body) if size is None else size, source, 0x77, time.monotonic())

    def offer(self, *endpoints):
        """The peer tells its candidates and asks for a round."""
        self.paths.receive_control(Candidates(tuple(map(candidate, endpoints))))
        self.paths.receive_control(PunchNow())

    def go_udp(self):
        self.session.alive.add(str(PEER))
        self.offer(PEER)
        wait_for(lambda: self.paths.path == "udp")


def wait_for(condition):
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.005)


@pytest.fixture(autouse=True)
def _host(monkeypatch):
    monkeypatch.setattr(addresses, "look", lambda device: HOST)
    monkeypatch.setattr(
        addresses,
        "source_address",
        lambda to: ip_address("10.0.0.1") if to in ip_network("10.0.0.0/24") else OURS,
    )


@pytest.fixture
def rig():
    rig = Rig()
    rig.paths.start()
    yield rig
    if not rig.paths._stopped:
        rig.paths.stop()
    gevent.sleep(0)


def test_the_peer_is_told_our_addresses_before_it_is_to_punch(rig):
    assert rig.wss == [Candidates(rig.traversal.told), PunchNow()]
    assert rig.session.sent == []
    assert (rig.paths.path, rig.paths.switches) == ("wss", 0)


def test_an_answered_probe_moves_the_frames(rig):
    rig.go_udp()
    assert rig.session.uses[0] == (str(PEER), 1232)
    assert rig.paths.switches == 1
    assert rig.changes
    assert rig.paths.active.endpoint == PEER
    assert rig.paths.active.seen_as == Endpoint(OURS, 9001)
    assert "192.0.2.2" in rig.paths.reason


def test_the_size_of_datagrams_grows_to_that_of_the_interface(rig):
    rig.go_udp()
    wait_for(lambda: (str(PEER), 1472) in rig.session.uses)
    sizes = {len(body) for kind, body, _ in rig.session.sent if kind == Inner.PROBE}
    assert 1472 - OVERHEAD in sizes


def test_silence_never_moves_the_frames(rig):
    rig.offer(PEER)
    wait_for(lambda: "no UDP path" in rig.paths.reason)
    assert rig.session.uses == []
    assert 1 <= len(rig.session.probes()) <= 5


def test_a_path_through_the_tunnel_is_not_even_probed(rig):
    # Not in the subnet of the device, but routed there.
    rig.traversal.underlay.lead_into_tunnel(PEER.address)
    rig.session.alive.add(str(PEER))
    rig.offer(PEER, INSIDE)
    wait_for(lambda: "no UDP path" in rig.paths.reason)
    assert rig.session.sent == []
    assert "192.0.2.2 leads into the tunnel itself (tap0)" in rig.paths.reason
    assert rig.traversal.underlay.refused["probe"] >= 2


def test_frames_leave_udp_within_a_second_when_its_route_turns_into_the_tunnel(rig):
    rig.go_udp()
    rig.traversal.underlay.lead_into_tunnel(PEER.address)
    wait_for(lambda: rig.paths.path == "wss")
    assert rig.session.uses[-1] == "wss"
    assert "leads into the tunnel itself" in rig.paths.reason
    rig.traversal.underlay.lead_into_tunnel()
    wait_for(lambda: rig.paths.path == "udp")


def test_an_address_that_the_socket_cannot_reach_is_left_alone(rig):
    rig.offer(Endpoint(ip_address("2001:db8::2"), 9001))
    wait_for(lambda: "no UDP path" in rig.paths.reason)
    assert set(rig.session.probes()) == {str(PEER)}  # the address of the link
    assert "cannot be probed: Address family not supported" in rig.paths.reason


def test_a_probe_is_answered_where_it_came_from_with_that_address(rig):
    rig.signal(Inner.PROBE, control.encode_probe(b"8 bytes!"), OTHER)
    kind, body, where = rig.session.sent[0]
    assert (kind, where) == (Inner.PROBE_ANSWER, str(OTHER))
    answer = control.decode_probe_answer(body)
    assert (answer.token, answer.seen) == (b"8 bytes!", OTHER)
    assert len(body) <= control.PROBE_MIN_BYTES


def test_a_record_from_elsewhere_is_asked_back_and_does_not_move_the_frames(rig):
    rig.go_udp()
    before = list(rig.session.uses)
    rig.signal(Inner.PADDING, source=OTHER)
    assert str(OTHER) in rig.session.probes()
    gevent.sleep(0.05)
    assert rig.paths.active.endpoint == PEER
    assert [use for use in rig.session.uses[len(before) :] if use[0] == str(OTHER)] == []


def test_frames_without_any_sign_of_the_peer_go_back_to_wss_within_two_seconds(rig):
    rig.go_udp()
    rig.session.alive.clear()
    began = time.monotonic()
    while rig.paths.path == "udp":
        rig.session.sent_at = time.monotonic()
        gevent.sleep(0.02)
        assert time.monotonic() < began + 2.5
    assert time.monotonic() - began <= 2.0
    assert rig.session.uses[-1] == "wss"
    assert rig.paths.switches == 2
    assert rig.session.wss_at - began <= 1.2, "TCP's third attempt has to arrive"
    rig.session.alive.add(str(PEER))
    wait_for(lambda: rig.paths.path == "udp")
    assert rig.paths.switches == 3


def test_an_answer_after_a_lost_probe_brings_the_frames_back_from_wss(rig):
    rig.go_udp()
    wait_for(lambda: (str(PEER), 1472) in rig.session.uses)
    rig.session.alive.clear()
    while rig.session.uses[-1] != "wss":
        rig.session.sent_at = time.monotonic()
        gevent.sleep(0.02)
    assert rig.paths.path == "udp"
    rig.session.alive.add(str(PEER))
    wait_for(lambda: rig.session.uses[-1] == (str(PEER), 1472))
    assert (rig.paths.path, rig.paths.switches) == ("udp", 1)


def test_without_a_link_nothing_is_diverted_to_it(rig):
    rig.go_udp()
    rig.session.alive.clear()
    rig.paths.wss_lost()
    gevent.sleep(0.9)
    assert rig.paths.path == "udp"
    assert "wss" not in rig.session.uses


def test_what_is_heard_keeps_the_path(rig):
    rig.go_udp()
    rig.session.alive.clear()
    began = time.monotonic()
    while time.monotonic() < began + 1.2:
        rig.session.sent_at = rig.session.heard_at = time.monotonic()
        gevent.sleep(0.02)
    assert rig.paths.path == "udp"


def test_a_lost_link_is_a_question_to_udp(rig):
    rig.go_udp()
    rig.session.sent.clear()
    rig.link = False
    rig.paths.wss_lost()
    assert rig.session.probes()[0] == str(PEER)
    gevent.sleep(0.05)
    assert rig.paths.path == "udp"
    rig.session.alive.clear()
    rig.paths.wss_lost()
    wait_for(lambda: rig.paths.path == "wss")


def test_candidates_are_told_again_only_when_they_are_others(rig):
    rig.wss.clear()
    rig.paths.candidates_changed()
    assert rig.wss == []
    rig.traversal.told = (candidate(OTHER),)
    rig.paths.candidates_changed()
    assert rig.wss == [Candidates((candidate(OTHER),)), PunchNow()]


def test_a_changed_network_is_looked_at_told_and_proved(rig):
    rig.go_udp()
    rig.wss.clear()
    rig.session.sent.clear()
    rig.paths.network_changed()
    assert PunchNow() in rig.wss
    assert "our network changed" in rig.traversal.asked
    assert str(PEER) in rig.session.probes()


def test_an_address_that_moved_is_looked_at_again(rig):
    rig.go_udp()
    moved = Endpoint(ip_address("203.0.113.9"), 4242)
    rig.session.answer = lambda body, source: rig.signal(
        Inner.PROBE_ANSWER, control.answer_probe(control.decode_probe(body), moved), source
    )
    rig.paths.wss_lost()
    wait_for(lambda: "our address moved" in rig.traversal.asked)


def test_a_close_record_goes_to_the_session(rig):
    body = control.encode_close(CloseReason.DISCONNECT)
    rig.signal(Inner.CLOSE, body)
    assert rig.closes == [(0x77, body)]


def test_a_goodbye_over_udp_is_said_twice_and_only_to_a_proven_address(rig):
    rig.paths.send_close(b"\x01")
    assert rig.session.sent == []
    rig.go_udp()
    rig.session.sent.clear()
    rig.paths.send_close(b"\x01")
    assert rig.session.sent == [(Inner.CLOSE, b"\x01", str(PEER))] * 2


@pytest.mark.parametrize("kind", [Inner.PROBE, Inner.PROBE_ANSWER])
def test_nonsense_that_authenticated_is_passed_over(rig, kind):
    rig.signal(kind, b"short")
    assert rig.session.sent == []


def test_a_record_that_cannot_be_sealed_is_not_sent(rig):
    rig.session.refuse = LocalProtocolError("keys have expired")
    rig.offer(PEER)
    rig.session.refuse = errno.ENETUNREACH
    gevent.sleep(0.12)
    assert rig.paths.path == "wss"


def test_frames_that_our_kernel_refuses_for_their_length_get_shorter(rig, monkeypatch):
    monkeypatch.setattr(paths_module, "SETTLE_S", 0.0)
    rig.go_udp()
    wait_for(lambda: (str(PEER), 1472) in rig.session.uses)
    before = len(rig.session.uses)
    rig.session.sent_at = time.monotonic()
    rig.session.plane.errors["EMSGSIZE"] += 1
    wait_for(lambda: (str(PEER), 1232) in rig.session.uses[before:])
    assert all(size < 1472 for _, size in rig.session.uses[before:])


def test_the_data_plane_is_looked_at_often_only_while_frames_are_sent(rig, monkeypatch):
    monkeypatch.setattr(paths_module, "QUIET_AFTER_S", 0.3)
    monkeypatch.setattr(paths_module, "QUIET_POLL_S", 0.05)
    rig.session.sent_at = time.monotonic()
    rig.go_udp()
    assert rig.paths._poll.active
    wait_for(lambda: rig.paths._slow_poll.active)
    assert not rig.paths._poll.active
    rig.session.sent_at = time.monotonic()
    wait_for(lambda: rig.paths._poll.active)
    assert not rig.paths._slow_poll.active


def test_on_wss_nothing_is_looked_at_until_the_routes_change(rig):
    rig.offer(PEER)
    wait_for(lambda: "no UDP path" in rig.paths.reason)
    assert not rig.paths._poll.active
    assert not rig.paths._slow_poll.active
    assert len(rig.traversal.underlay.listeners) == 1
    rig.paths.stop()
    assert rig.traversal.underlay.listeners == []


def test_disabling_is_for_good(rig):
    rig.go_udp()
    rig.paths.disable("switched off")
    assert rig.session.uses[-1] == "wss"
    assert rig.paths.reason == "switched off"
    rig.offer(PEER)
    gevent.sleep(0.05)
    assert rig.paths.path == "wss"


def test_after_stop_nothing_is_touched(rig):
    rig.go_udp()
    receiver = rig.port.receivers[3]
    rig.paths._wakeup.set()  # woken and stopped in one turn
    rig.paths.stop()
    rig.paths.stop()
    rig.session.udp_activity = None
    assert rig.port.receivers == {}
    sent = len(rig.session.sent)
    rig.paths.candidates_changed()
    rig.paths.network_changed()
    gevent.sleep(0.15)
    assert len(rig.session.sent) == sent
    assert receiver is not None


def test_a_bug_leaves_the_frames_on_wss(rig):
    rig.go_udp()
    rig.session.udp_activity = None
    wait_for(lambda: rig.session.uses[-1] == "wss")
    assert rig.paths._machine.transport is Transport.OFF
    assert "because of a bug" in rig.paths.reason


def test_stopped_paths_hold_nobody_and_are_held_by_nobody():
    rig = Rig()
    rig.paths.start()
    rig.go_udp()
    gc.collect()
    gc.disable()
    try:
        rig.paths.stop()
        gevent.sleep(0)
        paths, owner, stopped = rig.paths, weakref.ref(rig), weakref.ref(rig.paths)
        rig.session.answer = None  # the fake's own way back
        del rig
        assert owner() is None
        del paths
        assert stopped() is None
    finally:
        gc.enable()


def test_the_round_trip_is_that_of_a_frame_and_not_of_busy_event_loops(rig, monkeypatch):
    """The data plane says when the answer came, the peer how long it had the question."""
    rig.offer(PEER)
    token = next(body[:8] for kind, body, _ in rig.session.sent if kind == Inner.PROBE)
    departed = rig.paths._stopwatch._departed[token]
    answer = control.encode_probe_answer(ProbeAnswer(token, Endpoint(OURS, 9001), held_s=0.5))
    receiver = rig.port.receivers[rig.session.number]
    receiver(Inner.PROBE_ANSWER, answer, len(answer), PEER, 0x77, departed + 0.5003)
    [report] = rig.paths.report()
    assert report.rtt_ms == pytest.approx(0.3, abs=0.01)


def test_an_answer_says_how_long_the_question_lay_here(rig):
    receiver = rig.port.receivers[rig.session.number]
    question = control.encode_probe(b"8 bytes!")
    receiver(Inner.PROBE, question, len(question), PEER, 0x77, time.monotonic() - 0.2)
    [answer] = [body for kind, body, _ in rig.session.sent if kind == Inner.PROBE_ANSWER]
    assert 0.2 <= control.decode_probe_answer(answer).held_s < 60
