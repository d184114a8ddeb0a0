"""Which path carries the frames: two machines, simulated NATs, virtual time.

The table of NAT pairs first, then what goes wrong, then single rules and random input.
"""

from __future__ import annotations

import random
from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.base.constants import MAX_CANDIDATES, PUNCH_MAX_PROBES
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.wire.control import PROBE_MIN_BYTES, Candidate, CandidateKind, Endpoint
from shadowmesh.wire.path.candidates import choose_candidates, with_link
from shadowmesh.wire.path.events import (
    AskPunch,
    Kind,
    PathChanged,
    Refused,
    SendProbe,
    SendProbeAnswer,
    UsePath,
)
from shadowmesh.wire.path.machine import PathMachine
from shadowmesh.wire.path.remote import MAX_LEARNED
from shadowmesh.wire.path.rules import TRANSITIONS, Cause, Transport
from tests.twins.nat_box import Host, endpoint, make_box
from tests.wire.path_lab import OVERHEAD, Lab, Node, behind_tunnel

KINDS = ["open", "full", "addr-restr", "port-restr", "symmetric", "blocked"]
PAIRS = [(a, b) for a in KINDS for b in KINDS]
STRANGER = endpoint("203.0.113.66:6666")


def expected_path(a: str, b: str) -> str:
    """Return what the table of the network lab says."""
    if "blocked" in (a, b):
        return "wss"
    hard = {"port-restr", "symmetric"}
    return "wss" if "symmetric" in (a, b) and {a, b} <= hard else "udp"


# --- The table of NAT pairs ------------------------------------------------------------------


@pytest.mark.parametrize("delay_s", [0.0005, 0.01, 0.15])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_each_pair_of_nats_ends_on_the_path_of_the_table(a, b, delay_s):
    lab = Lab(a, b, delay_s=delay_s)
    lab.connect()
    for node in lab.nodes:
        node.talk(until=8.0)
    lab.run(9.0)
    path = expected_path(a, b)
    assert lab.paths() == (path, path)
    assert [node.missing() for node in lab.nodes] == [0, 0]
    for node in lab.nodes:
        # One move to UDP and no more, and soon: two round trips after the candidates came.
        moves = [at for at, change in node.log if change.before != change.after]
        assert len(moves) == (path == "udp")
        assert all(at < 0.05 + 4 * delay_s for at in moves)
        assert node.use.mtu == (1472 if path == "udp" else None)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("a", "b"), [p for p in PAIRS if p[0] <= p[1]])
def test_each_pair_ends_on_the_right_path_though_every_tenth_datagram_is_lost(a, b, seed):
    dice = random.Random(seed)
    lab = Lab(a, b, seed=seed)
    lab.network.drop = lambda *_: dice.random() < 0.1
    lab.connect()
    lab.run(130.0)
    path = expected_path(a, b)
    assert lab.paths() == (path, path)


def test_symmetric_against_cone_uses_an_address_that_nobody_announced():
    lab = Lab("symmetric", "addr-restr")
    lab.connect()
    lab.run(2.0)
    report = lab.b.machine.report()[0]
    assert report.active
    assert report.kind is Kind.LEARNED
    assert report.endpoint.port not in [c.endpoint.port for c in lab.a.candidates()]


def test_rude_routers_end_on_wss_soon_and_quietly():
    lab = Lab("port-restr", "port-restr", rude=True)
    # a's first probe is there before b has sent one, and takes the pair of b's router.
    lab.a.wss_delay_s = 0.2
    lab.connect()
    for node in lab.nodes:
        node.talk(until=5.0)
    lab.run(6.0)
    assert lab.paths() == ("wss", "wss")
    assert [node.missing() for node in lab.nodes] == [0, 0]


# --- One LAN ---------------------------------------------------------------------------------


def test_two_hosts_behind_one_nat_find_the_direct_way():
    lab = Lab("port-restr", "port-restr")
    lab.b.host.box = lab.a.host.box
    lab.b.host.endpoint = endpoint("192.168.1.3:9001")
    lab.connect()
    lab.run(2.0)
    assert lab.a.machine.active == endpoint("192.168.1.3:9001")
    assert lab.b.machine.active == endpoint("192.168.1.2:9001")
    assert lab.a.machine.report()[0].kind is Kind.HOST


def test_a_lan_without_stun_server_is_on_udp_within_a_second():
    lab = Lab("open", "open", delay_s=0.0002)
    for node in lab.nodes:
        node.candidates = lambda node=node: choose_candidates(  # type: ignore[method-assign]
            [node.host.endpoint.address], 9001
        )
    lab.connect()
    lab.run(1.0)
    assert lab.paths() == ("udp", "udp")


def test_the_direct_way_beats_the_way_through_the_nat_and_back():
    lab = Lab("full", "full", hairpin=True)
    lab.b.host.box = lab.a.host.box
    lab.b.host.endpoint = endpoint("192.168.1.3:9002")
    lab.connect()
    lab.run(5.0)
    assert {str(node.machine.active) for node in lab.nodes} == {
        "192.168.1.2:9001",
        "192.168.1.3:9002",
    }


# --- Faults ----------------------------------------------------------------------------------


def busy_lab(*kinds: str, seconds: float = 60.0, **options) -> Lab:
    lab = Lab(*kinds, **options)
    lab.connect()
    for node in lab.nodes:
        node.talk(until=seconds)
    lab.run(5.0)
    assert lab.paths() == ("udp", "udp")
    return lab


@pytest.mark.parametrize("delay_s", [0.0005, 0.02, 0.1])
def test_udp_blocked_in_mid_flow_goes_to_wss_in_two_seconds_and_comes_back(delay_s):
    lab = busy_lab("port-restr", "port-restr", delay_s=delay_s)
    lab.network.drop = lambda *_: True
    lab.run(2.0)
    assert lab.paths() == ("wss", "wss")
    lab.run(10.0)
    assert lab.paths() == ("wss", "wss")
    lab.network.drop = lambda *_: False
    lab.run(7.0)
    assert lab.paths() == ("udp", "udp")
    lab.run(60.0)
    for node in lab.nodes:
        assert node.missing() <= 200  # two seconds of a frame each 10 ms
        reasons = [change.reason for _, change in node.log]
        assert any("3 probes unanswered" in reason for reason in reasons)
        assert any("UDP is back" in reason for reason in reasons)


@pytest.mark.parametrize("delay_s", [0.0005, 0.1])
def test_udp_blocked_one_way_is_noticed_by_both_sides_in_time(delay_s):
    lab = busy_lab("port-restr", "port-restr", delay_s=delay_s)
    lab.network.drop = lambda host, *_: host is lab.a.host
    lab.run(2.6)
    # b hears nothing; a hears b's frames, but its own probes stay unanswered.
    assert lab.paths() == ("wss", "wss")
    lab.network.drop = lambda *_: False
    lab.run(10.0)
    assert lab.paths() == ("udp", "udp")


def test_udp_blocked_while_idle_is_noticed_by_the_keepalive():
    lab = Lab("port-restr", "port-restr")
    lab.connect()
    lab.run(40.0)
    lab.network.drop = lambda *_: True
    lab.run(17.1)
    assert lab.paths() == ("wss", "wss")


def test_an_idle_hour_behind_a_nat_with_30_s_mappings_stays_on_udp():
    lab = Lab("port-restr", "port-restr", timeout_s=30.0)
    lab.connect()
    lab.run(3600.0)
    for node in lab.nodes:
        node.talk(until=3610.0)
        assert len(node.probes) < 4 * 3600 / 15 + 100
    lab.run(11.0)
    assert lab.paths() == ("udp", "udp")
    assert [len(node.uses) for node in lab.nodes] == [2, 2]  # base MTU, then the whole
    assert [node.missing() for node in lab.nodes] == [0, 0]


def test_two_second_mappings_lose_no_more_than_two_seconds_of_frames():
    lab = Lab("port-restr", "port-restr", timeout_s=2.0)
    lab.connect()
    for start in (5.0, 35.0, 65.0):
        for node in lab.nodes:
            lab.network.at(start, lambda node=node, end=start + 10.0: node.talk(until=end))
    lab.run(80.0)
    for node in lab.nodes:
        assert node.missing() <= 3 * 200


def test_a_forgotten_mapping_that_comes_back_alike_is_hardly_noticed():
    lab = busy_lab("port-restr", "port-restr")
    lab.a.host.box.forget()
    lab.run(3.0)
    assert lab.paths() == ("udp", "udp")
    lab.run(60.0)
    assert all(node.missing() <= 3 for node in lab.nodes)


@pytest.mark.parametrize("b", ["full", "addr-restr"])
def test_a_mapping_that_moves_is_followed_after_a_probe(b):
    lab = busy_lab("full", b)
    box = lab.a.host.box
    box.preserve_port = False
    before = lab.b.machine.active
    box.forget()
    lab.run(1.5)
    assert lab.paths() == ("udp", "udp")
    assert lab.b.machine.active != before
    assert lab.b.machine.active.address == before.address
    assert lab.a.seen_as
    assert lab.a.seen_as[0].after == lab.b.machine.active
    lab.run(60.0)
    assert all(node.missing() <= 100 for node in lab.nodes)


def test_a_moved_mapping_behind_strict_nats_is_punched_again():
    lab = busy_lab("port-restr", "port-restr")
    box = lab.a.host.box
    box.preserve_port = False
    box.forget()
    lab.run(2.2)
    assert lab.paths() == ("wss", "wss")
    lab.run(3.0)
    assert lab.paths() == ("udp", "udp")
    lab.run(60.0)
    assert all(node.missing() <= 220 for node in lab.nodes)


def test_a_new_public_address_is_reached_within_three_seconds():
    lab = busy_lab("full", "full")
    lab.a.host.box.move("198.51.100.77")
    lab.run(3.0)
    assert lab.paths() == ("udp", "udp")
    assert str(lab.b.machine.active.address) == "198.51.100.77"


def test_a_new_network_is_proven_again_and_told_to_the_peer():
    lab = busy_lab("open", "full")
    lab.a.host.endpoint = endpoint("198.51.100.78:9001")
    lab.a.machine.network_changed(lab.network.now)
    lab.a.pump()
    assert lab.a.asked == 1
    lab.run(3.0)
    assert lab.paths() == ("udp", "udp")
    assert lab.b.machine.active == endpoint("198.51.100.78:9001")


def test_five_stalls_of_a_second_do_not_leave_udp():
    lab = busy_lab("port-restr", "port-restr")
    for n in range(5):
        start = lab.network.now
        lab.network.drop = lambda *_, end=start + 1.0: lab.network.now < end
        lab.run(3.0)
        assert lab.paths() == ("udp", "udp"), n


def test_udp_that_comes_and_goes_is_taken_up_ever_more_slowly():
    lab = busy_lab("port-restr", "port-restr", seconds=100.0)
    # Open for two seconds, closed for three: long enough for two good probes each time.
    lab.network.drop = lambda *_: lab.network.now % 5.0 > 2.0
    lab.run(90.0)
    for node in lab.nodes:
        falls = [at for at, change in node.log if change.after == "wss" != change.before]
        assert len(falls) <= 12


# --- Lies and copies -------------------------------------------------------------------------


def watch(lab: Lab, at: Endpoint) -> list[object]:
    """Put a host there that only counts what it gets."""
    got: list[object] = []
    lab.network.add(Host(at, None, lambda payload, *_: got.append(payload)))
    return got


def test_an_address_that_a_lying_stun_server_named_gets_five_probes_and_no_frames():
    lab = Lab("port-restr", "port-restr")
    victim = watch(lab, STRANGER)
    lab.a.stun_lies = Candidate(CandidateKind.REFLEXIVE, STRANGER)
    lab.connect()
    for node in lab.nodes:
        node.talk(until=10.0)
    lab.run(11.0)
    assert lab.paths() == ("udp", "udp")
    assert 0 < len(victim) <= 5
    assert {payload[0] for payload in victim} == {"probe"}


def test_copied_packets_from_a_stranger_do_not_move_the_traffic():
    lab = busy_lab("port-restr", "port-restr")
    victim = watch(lab, STRANGER)
    before = lab.b.machine.active
    for n in range(300):
        # A stranger on the way sends each second packet first, from its own address.
        def copy(n=n):
            token = n.to_bytes(8, "big")
            lab.b.machine.data_heard(lab.network.now, STRANGER)
            lab.b.machine.probe_received(STRANGER, token, 27, lab.network.now)
            lab.b.machine.data_heard(lab.network.now, before)
            lab.b.pump()

        lab.network.at(lab.network.now + n * 0.1, copy)
    lab.run(35.0)
    assert lab.b.machine.active == before
    assert lab.paths() == ("udp", "udp")
    assert all(change.before == "wss" for _, change in lab.b.log)
    assert "frame" not in {payload[0] for payload in victim}
    asked = [payload for payload in victim if payload[0] == "probe"]
    assert len(asked) <= 5 + 30 / 2 + 1


def test_a_stranger_that_relays_probes_without_answering_them_gets_nothing():
    lab = busy_lab("port-restr", "port-restr")
    token = None
    for _, probe in reversed(lab.a.probes):
        token = probe.token
        break
    before = lab.a.machine.active
    # The answer is genuine but comes from elsewhere: no proof of that address.
    lab.a.machine.answer_received(STRANGER, token, None, lab.network.now)
    lab.a.pump()
    lab.run(5.0)
    assert lab.a.machine.active == before


@pytest.mark.parametrize("a", ["port-restr", "symmetric"])
def test_many_strangers_do_not_push_out_what_is_known(a):
    lab = busy_lab(a, "addr-restr")
    before = lab.b.machine.active
    for port in range(1000, 1200):
        lab.b.machine.probe_received(
            Endpoint(STRANGER.address, port), port.to_bytes(8, "big"), 27, lab.network.now
        )
    lab.b.pump()
    assert len(lab.b.machine.report()) <= MAX_CANDIDATES + MAX_LEARNED
    assert lab.b.machine.active == before
    assert lab.b.machine.report()[0].active


# --- One machine -----------------------------------------------------------------------------

PEER = endpoint("198.51.100.2:9001")
PEER_2 = endpoint("198.51.100.3:9001")
HOST = Candidate(CandidateKind.HOST, PEER)
REFLEXIVE = Candidate(CandidateKind.REFLEXIVE, PEER_2)


def machine(**options) -> PathMachine:
    return PathMachine(
        0.0, random=random.Random(7).randbytes, **{"inside": behind_tunnel, **options}
    )


def events(path: PathMachine) -> list[object]:
    found = []
    while (event := path.next_event()) is not None:
        found.append(event)
    return found


def probes(path: PathMachine, to: Endpoint | None = None) -> list[SendProbe]:
    found = [event for event in events(path) if isinstance(event, SendProbe)]
    return [probe for probe in found if to in (None, probe.endpoint)]


def on_udp(*candidates: Candidate, rtt_s: float = 0.01, **options) -> PathMachine:
    """Return a machine that sends over UDP to PEER since rtt_s, with its MTU found."""
    path = machine(**options)
    path.set_candidates(candidates or (HOST,), 0.0)
    path.punch(0.0)
    for probe in probes(path, PEER):
        path.answer_received(PEER, probe.token, None, rtt_s)
    assert path.path == "udp"
    for _ in range(2):
        path.handle_timeout(rtt_s)
        for probe in probes(path, PEER):
            path.answer_received(PEER, probe.token, None, rtt_s)
    events(path)
    return path


def test_a_path_is_used_only_after_an_own_probe_was_answered_from_there():
    path = machine()
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    (probe,) = probes(path)
    path.probe_received(PEER, bytes(8), 27, 0.1)
    path.data_heard(0.1, PEER)
    path.answer_received(PEER, b"forged!!", None, 0.1)
    path.answer_received(PEER_2, probe.token, None, 0.1)
    assert path.path == "wss"
    path.answer_received(PEER, probe.token, None, 0.1)
    assert path.path == "wss", "one token is good for one answer"
    (again,) = [e for e in events(path) if isinstance(e, SendProbe) and e.endpoint == PEER]
    path.answer_received(PEER, again.token, None, 0.12)
    assert path.path == "udp"
    assert events(path) == [
        UsePath("udp", PEER, 1232, path.reason),
        PathChanged("wss", "udp 198.51.100.2:9001", path.reason),
    ]


def test_the_reason_is_a_sentence_at_every_stage():
    path = machine()
    assert path.reason == "UDP is not tried yet, as the peer has named no address"
    path.set_candidates([HOST], 0.0)
    assert path.reason == "UDP is not tried yet, 1 address of the peer known"
    path.punch(0.0)
    assert path.reason == "UDP is being tried to 1 address of the peer"
    path.handle_timeout(0.5)
    assert path.reason == (
        "no UDP path: 1 probe to 1 address of the peer unanswered; tried again every 60 s"
    )
    path = on_udp()
    assert path.reason == "198.51.100.2:9001 (host) answers"


def test_every_probe_is_answered_to_its_source():
    path = machine()
    path.probe_received(PEER, b"12345678", 1000, 1.0)
    answer = events(path)[0]
    assert isinstance(answer, SendProbeAnswer)
    assert (answer.endpoint, answer.probe.token, answer.probe.size) == (PEER, b"12345678", 1000)


@pytest.mark.parametrize("source", ["127.0.0.1:9001", "224.0.0.5:9001", "192.0.2.1:0", "[::1]:5"])
def test_addresses_that_must_not_be_used_are_neither_answered_nor_learned(source):
    path = on_udp()
    path.probe_received(endpoint(source), bytes(8), 27, 1.0)
    path.data_heard(1.0, endpoint(source))
    path.set_candidates([HOST, Candidate(CandidateKind.HOST, endpoint(source))], 1.0)
    assert events(path) == []
    assert [report.endpoint for report in path.report()] == [PEER]


# --- The tunnel itself ---------------------------------------------------------------------------

INSIDE = endpoint("10.0.0.9:9001")
INSIDE_CANDIDATE = Candidate(CandidateKind.HOST, INSIDE)


class Routes:
    """Which addresses lie behind the tunnel; may change."""

    def __init__(self, *behind: Endpoint) -> None:
        self.behind = {each.address for each in behind}

    def __call__(self, address: object) -> str | None:
        return (
            f"{address} leads into the tunnel itself (mv0 on tap0)"
            if address in self.behind
            else None
        )


def refused(found: list[object]) -> list[str]:
    return [event.what for event in found if isinstance(event, Refused)]


def test_nothing_is_sent_to_an_address_behind_the_tunnel_and_that_is_said():
    path = machine()
    path.set_candidates([INSIDE_CANDIDATE], 0.0)
    path.punch(0.0)
    assert "10.0.0.9 leads into the tunnel itself (tap0)" in path.reason
    assert probes(path) == []
    assert path.report()[0].unanswered == 0
    assert "itself (tap0)" in str(path.report()[0].hindrance)
    drive(path, 5.0)
    assert "no UDP path: 10.0.0.9 leads into the tunnel itself (tap0); tried" in path.reason


def test_probes_that_were_sent_and_addresses_that_were_not_probed_are_told_apart():
    path = machine()
    path.set_candidates([HOST, INSIDE_CANDIDATE], 0.0)
    path.punch(0.0)
    drive(path, 5.0)
    assert "5 probes to 1 address of the peer unanswered, 10.0.0.9 leads into" in path.reason


def test_what_came_through_the_tunnel_is_neither_answered_nor_a_proof():
    path = on_udp()
    path.probe_received(INSIDE, bytes(8), 27, 1.0)
    path.data_heard(1.0, INSIDE)
    assert refused(events(path)) == ["answer", "answer"]
    assert [report.endpoint for report in path.report()] == [PEER]


def test_an_answer_that_comes_when_the_route_has_turned_into_the_tunnel_proves_nothing():
    routes = Routes()
    path = machine(inside=routes)
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    [probe] = probes(path)
    routes.behind.add(PEER.address)
    assert path.answer_received(PEER, probe.token, None, 0.01) is None
    assert path.path == "wss"


def test_a_route_that_turns_into_the_tunnel_takes_the_frames_off_udp_at_once():
    routes = Routes()
    path = on_udp(inside=routes)
    routes.behind.add(PEER.address)
    path.ways_changed(2.0)
    assert path.path == "wss"
    assert path.reason == (
        "UDP is given up: 198.51.100.2 leads into the tunnel itself (mv0 on tap0)"
    )
    assert probes(path) == []


def test_a_route_that_leads_outside_again_is_tried_at_once():
    routes = Routes(PEER)
    path = machine(inside=routes)
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    events(path)
    routes.behind.clear()
    path.ways_changed(20.0)
    found = events(path)
    assert any(isinstance(event, AskPunch) for event in found)
    assert [e.endpoint for e in found if isinstance(e, SendProbe)] == [PEER]


def test_a_probe_that_could_not_be_sent_is_not_counted_as_sent():
    path = machine()
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    [probe] = probes(path)
    path.probe_not_sent(probe.token, f"{PEER} cannot be probed: Network is unreachable")
    assert path.report()[0].unanswered == 0
    path.handle_timeout(0.5)
    assert path.reason == (
        f"no UDP path: {PEER} cannot be probed: Network is unreachable; tried again every 60 s"
    )


def drive(path: PathMachine, until: float) -> list[tuple[float, object]]:
    """Let time pass; return what the machine wanted, and when. Time never stands still."""
    found: list[tuple[float, object]] = []
    now = 0.0
    while (timeout := path.next_timeout()) is not None and timeout <= until:
        assert timeout > now or now == 0.0, "a timer that is due was not handled"
        now = timeout
        path.handle_timeout(now)
        found += [(now, event) for event in events(path)]
    return found


def test_a_round_sends_five_probes_to_each_candidate_at_100_ms():
    path = machine()
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    assert len(probes(path)) == 1
    times = [at for at, event in drive(path, 30.0) if isinstance(event, SendProbe)]
    assert times == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_long_round_sends_no_more():
    path = machine(hole_punch_timeout_s=5.0)
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    events(path)
    times = [at for at, event in drive(path, 30.0) if isinstance(event, SendProbe)]
    assert len(times) == 4


def test_a_round_sends_64_probes_in_all():
    path = machine()
    path.set_candidates(
        [Candidate(CandidateKind.HOST, Endpoint(PEER.address, 1000 + n)) for n in range(20)], 0.0
    )
    for n in range(MAX_LEARNED):
        path.probe_received(Endpoint(PEER_2.address, 2000 + n), bytes([n] * 8), 27, 0.0)
    assert len(path.report()) == MAX_CANDIDATES + 1 + MAX_LEARNED
    events(path)
    path.punch(1.0)
    count = len(probes(path)) + sum(isinstance(event, SendProbe) for _, event in drive(path, 30.0))
    assert count == PUNCH_MAX_PROBES


def test_the_peer_is_asked_to_punch_again_after_60_s():
    path = machine()
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    asks = [at for at, event in drive(path, 200.0) if isinstance(event, AskPunch)]
    assert asks == pytest.approx([60.0, 120.0, 180.0])


def test_punch_now_in_a_flood_starts_one_round_a_second():
    path = machine()
    path.set_candidates([HOST], 0.0)
    for n in range(1000):
        path.punch(n / 100)
        path.handle_timeout(n / 100)
    assert len(probes(path)) <= 10 * 5


def test_late_candidates_get_a_whole_round():
    path = machine()
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    path.handle_timeout(0.45)
    path.set_candidates([HOST, REFLEXIVE], 0.45)
    path.punch(0.45)
    path.handle_timeout(0.45)
    assert len(probes(path, PEER_2)) == 1, "at once"
    sent = [e for at, e in drive(path, 5.0) if isinstance(e, SendProbe) and e.endpoint == PEER_2]
    assert len(sent) == 5


def test_sending_into_silence_asks_after_500_ms_and_gives_up_after_three_probes():
    path = on_udp(rtt_s=0.01)
    asked, fell = [], None
    for step in range(300):
        now = 0.02 + step * 0.01
        path.data_sent(now)
        path.handle_timeout(now)
        for event in events(path):
            if isinstance(event, SendProbe) and event.size == PROBE_MIN_BYTES and fell is None:
                asked.append(round(now, 2))
            if isinstance(event, UsePath):
                fell = round(now, 2)
    assert asked == [0.51, 1.01, 1.51]
    assert fell == pytest.approx(1.71, abs=0.02)  # the last probe is given 200 ms


def test_any_word_of_the_peer_ends_the_silence():
    path = on_udp()
    for step in range(300):
        now = 0.02 + step * 0.01
        path.data_sent(now)
        if step % 40 == 0:
            path.data_heard(now)
        path.handle_timeout(now)
    assert path.transport is Transport.UDP
    assert probes(path) == []


def test_return_to_udp_takes_two_good_probes():
    path = on_udp()
    path.data_sent(0.02)
    drive(path, 3.0)
    assert path.transport is Transport.FALLEN
    for expected in (Transport.FALLEN, Transport.UDP):
        timeout = path.next_timeout()
        path.handle_timeout(timeout)
        (probe,) = probes(path)
        path.answer_received(PEER, probe.token, None, timeout + 0.01)
        assert path.transport is expected


def test_a_lost_probe_in_between_starts_the_count_again():
    path = on_udp()
    path.data_sent(0.02)
    drive(path, 3.0)
    for answered in (True, False, True):
        timeout = path.next_timeout()
        path.handle_timeout(timeout)
        (probe,) = probes(path)
        if answered:
            path.answer_received(PEER, probe.token, None, timeout + 0.01)
    assert path.transport is Transport.FALLEN


def fall(path: PathMachine, now: float) -> float:
    """Send and hear nothing until the machine is on WSS; return when it got there."""
    path.data_sent(now)
    while path.path == "udp":
        now = max(now, path.next_timeout())
        path.handle_timeout(now)
    events(path)
    return now


def recover(path: PathMachine, fell: float) -> tuple[float, float]:
    """Answer all probes until it is on UDP; return when it got there and its first probe."""
    now, first = fell, None
    while path.path == "wss":
        now = max(now, path.next_timeout())
        path.handle_timeout(now)
        for probe in probes(path, PEER):
            first = first or now
            path.answer_received(PEER, probe.token, None, now)
    assert first is not None
    events(path)
    return now, first


def test_udp_that_fell_soon_after_its_return_is_tried_again_more_slowly():
    path = on_udp()
    now, waits = 0.02, []
    for carried_s in (0.1, 0.1, 0.1, 40.0):
        fell = fall(path, now)
        back, first = recover(path, fell)
        waits.append(first - fell)
        now = back + 0.01
        path.data_heard(back + carried_s - 0.01)
        path.data_sent(back + carried_s)
        now = back + carried_s
    fell = fall(path, now)
    waits.append(recover(path, fell)[1] - fell)
    assert waits == pytest.approx([1.0, 2.0, 4.0, 5.0, 1.0])


def test_a_path_that_dies_at_once_is_not_taken_for_a_small_one():
    path = machine()
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    for probe in probes(path, PEER):
        path.answer_received(PEER, probe.token, None, 0.01)
    uses = [event for _, event in drive(path, 10.0) if isinstance(event, UsePath)]
    assert [use.mtu for use in uses] == [1232, None]


def test_a_peer_that_prefers_another_way_is_not_asked_all_the_time():
    path = on_udp(HOST, REFLEXIVE)
    count = 0
    for step in range(1000):
        now = 0.1 + step * 0.01
        path.data_sent(now)
        path.data_heard(now, PEER_2)
        path.handle_timeout(now)
        for probe in probes(path):
            count += 1
            path.answer_received(probe.endpoint, probe.token, None, now)
    assert path.active == PEER
    assert count < 10


def test_an_idle_path_gets_one_small_probe_in_15_s():
    lab = Lab("full", "full")
    lab.connect()
    lab.run(20.0)
    before = len(lab.a.probes)
    lab.run(150.0)
    late = lab.a.probes[before:]
    assert 10 <= len(late) <= 14  # and two to the other address
    assert {probe.size for _, probe in late} == {PROBE_MIN_BYTES}


def test_another_proven_address_takes_over_before_wss_has_to():
    lab = busy_lab("full", "full")
    second = endpoint("198.51.100.9:9001")
    also = Candidate(CandidateKind.REFLEXIVE, second)
    lab.a.machine.set_candidates([*lab.b.candidates(), also], 5.0)
    first = lab.a.machine.active
    relayed: list[float] = []

    def relay(payload, size, source, now, local):
        # The second address of b: answers what is a probe, as b would.
        if payload[0] == "probe":
            relayed.append(now)
            answer = ("answer", payload[1], source)
            lab.network.send(host, answer, size, source)
        elif payload[0] == "frame":
            lab.b.take_frame(payload[1], "udp")

    host = lab.network.add(Host(second, None, relay))
    lab.a.machine.punch(5.0)
    lab.a.pump()
    lab.run(5.0)
    assert relayed
    assert lab.a.machine.active == first
    lab.network.drop = lambda host, to, size: to == first or host is lab.b.host
    lab.run(1.6)
    assert lab.a.machine.active == second
    assert "wss" not in {use.path for _, use in lab.a.uses}


def test_a_path_that_dies_while_idle_is_not_taken_for_a_smaller_one():
    lab = Lab("full", "full")
    lab.connect()
    lab.run(20.0)
    lab.network.drop = lambda *_: True
    lab.run(40.0)
    for node in lab.nodes:
        assert [use.mtu for at, use in node.uses if at > 20.0] == [None]


def test_a_late_answer_still_counts_but_an_ancient_one_does_not():
    path = machine()
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    first = probes(path)[0]
    path.handle_timeout(5.1)
    path.answer_received(PEER, first.token, None, 5.2)
    assert path.path == "wss"


# --- The better of two -----------------------------------------------------------------------


def two_paths(rtt_1: float, kind: CandidateKind) -> PathMachine:
    """Return a machine on PEER (reflexive); the first probe to PEER_2 of that kind was lost."""
    path = machine()
    path.set_candidates([Candidate(CandidateKind.REFLEXIVE, PEER), Candidate(kind, PEER_2)], 0.0)
    path.punch(0.0)
    tokens = {probe.endpoint: probe.token for probe in probes(path)}
    path.answer_received(PEER, tokens[PEER], None, rtt_1)
    return path


def settle(path: PathMachine, rtts: dict[Endpoint, float], until: float) -> None:
    """Answer every probe after its round trip until the time is up."""
    waiting: list[tuple[float, Endpoint, bytes]] = []
    now = 0.1
    while now < until:
        waiting += [(now + rtts[p.endpoint], p.endpoint, p.token) for p in probes(path)]
        timeout = path.next_timeout() or until
        now = max(now, min([timeout, until, *[at for at, _, _ in waiting]]))
        for entry in sorted(waiting):
            if entry[0] <= now:
                path.answer_received(entry[1], entry[2], None, now)
                waiting.remove(entry)
        path.handle_timeout(now)


@pytest.mark.parametrize(
    ("rtt_1", "rtt_2", "kind", "moves"),
    [
        (0.050, 0.030, CandidateKind.REFLEXIVE, True),
        (0.050, 0.045, CandidateKind.REFLEXIVE, False),  # not by a fifth
        (0.0020, 0.0002, CandidateKind.REFLEXIVE, False),  # not by 2 ms
        (0.0006, 0.0002, CandidateKind.HOST, True),  # interface address: no detour
        (0.020, 0.021, CandidateKind.HOST, False),
        (0.020, 0.100, CandidateKind.HOST, False),  # an interface address far away
    ],
)
def test_a_better_address_is_taken_when_it_is_clearly_better(rtt_1, rtt_2, kind, moves):
    path = two_paths(rtt_1, kind)
    assert path.active == PEER
    rtts = {PEER: rtt_1, PEER_2: rtt_2}
    settle(path, rtts, 1.9)
    assert path.active == PEER, "not within two seconds of the last move"
    settle(path, rtts, 200.0)
    assert path.active == (PEER_2 if moves else PEER)


def test_a_roaming_peer_is_followed_at_most_once_in_two_seconds():
    path = on_udp()
    moves = []
    for step in range(1000):
        now = 0.1 + step * 0.01
        # The peer's mapping moves every 300 ms, and only the newest one answers.
        source = Endpoint(PEER.address, 10000 + step // 30)
        path.data_heard(now, source)
        path.data_sent(now)
        path.handle_timeout(now)
        for event in events(path):
            if isinstance(event, SendProbe) and event.endpoint == source:
                path.answer_received(source, event.token, None, now)
            if isinstance(event, PathChanged) and event.before != event.after != "wss":
                moves.append(now)
    assert all(b - a >= 2.0 for a, b in pairwise(moves))


# --- The path's MTU --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "network", "low", "high"),
    [
        (1500, 1500, 1472, 1472),
        (1500, 1492, 1456, 1464),
        (1500, 1400, 1364, 1372),
        (1500, 1280, 1244, 1252),
        (1500, 1260, 1232, 1232),
        (9000, 9000, 8972, 8972),
        (9000, 1500, 1464, 1472),
        (9000, 4000, 3964, 3972),
        (1400, 1500, 1372, 1372),
        (1000, 1500, 1232, 1232),  # a link that small is not believed but tried
    ],
)
def test_the_path_mtu_is_found_by_probes(link, network, low, high):
    lab = Lab("full", "full")
    for node in lab.nodes:
        node.machine.set_link_mtu(link, 0.0)
    lab.network.mtu = network
    lab.connect()
    lab.run(30.0)
    for node in lab.nodes:
        assert low <= node.use.mtu <= high
        assert node.machine.path == "udp"
        assert len([c for _, c in node.log if c.before != c.after]) == 1


def test_the_usual_path_takes_two_round_trips_to_measure():
    lab = Lab("full", "full")
    lab.connect()
    lab.run(0.2)
    assert [node.use.mtu for node in lab.nodes] == [1472, 1472]


def test_a_path_that_shrinks_is_noticed_without_icmp_and_one_that_grows_in_ten_minutes():
    lab = Lab("full", "full")
    lab.connect()
    lab.run(20.0)
    lab.network.mtu = 1400
    for node in lab.nodes:
        node.talk(until=50.0)
    lab.run(30.0)
    assert all(1364 <= node.use.mtu <= 1372 for node in lab.nodes)
    assert lab.paths() == ("udp", "udp")
    lab.network.mtu = 1500
    lab.run(640.0)
    assert [node.use.mtu for node in lab.nodes] == [1472, 1472]
    assert [len([c for _, c in n.log if c.before != c.after]) for n in lab.nodes] == [1, 1]


def test_a_stream_that_stands_on_a_path_that_answers_asks_for_its_length_at_once():
    path = on_udp()
    now = 4.0
    path.data_heard(now)
    path.data_sent(now + 0.3)  # TCP repeats itself, and nothing is acknowledged
    while path.report()[0].mtu == 1472:
        now = path.next_timeout()
        path.handle_timeout(now)
        for probe in probes(path, PEER):
            if probe.size < 1000:  # what is long does not pass any more
                path.answer_received(PEER, probe.token, None, now + 0.01)
    assert now < 4.0 + 1.2, "TCP's next attempt comes 1.4 s after it lost a packet"
    assert path.path == "udp"


def test_a_stream_in_one_direction_does_not_ask_for_the_length_all_the_time():
    lab = Lab("full", "full")
    lab.connect()
    lab.run(10.0)
    lab.a.talk(until=70.0, every=0.1)
    lab.run(60.0)
    long = [probe for at, probe in lab.a.probes if at > 10.0 and probe.size > 1000]
    assert 10 <= len(long) <= 32, "every two seconds at most"


def test_a_path_below_the_base_size_is_left_to_wss_until_it_carries_it():
    lab = Lab("full", "full")
    lab.network.mtu = 1000
    lab.connect()
    for node in lab.nodes:
        node.talk(until=30.0)
    lab.run(20.0)
    assert lab.paths() == ("wss", "wss")
    for node in lab.nodes:
        moves = [change for _, change in node.log if change.before != change.after]
        assert len(moves) == 2, "one try is enough to know"
        assert node.machine.reason.endswith("answers, but not to datagrams of 1232 bytes")
    lab.network.mtu = 1500
    lab.run(7.0)
    assert lab.paths() == ("udp", "udp")
    assert [node.use.mtu for node in lab.nodes] == [1472, 1472]


def test_our_own_kernel_refusing_the_base_size_ends_udp_at_once():
    path = on_udp()
    path.datagram_too_big(1200, 1.0)
    assert path.transport is Transport.FALLEN
    assert events(path)[0].path == "wss"


def test_our_own_kernel_saying_too_big_is_believed_at_once():
    lab = Lab("full", "full")
    lab.connect()
    lab.run(5.0)
    lab.network.mtu = 1400
    lab.a.machine.datagram_too_big(1472, lab.network.now)
    lab.a.pump()
    assert lab.a.use.mtu == 1232
    assert lab.a.use.path == "udp"
    lab.run(10.0)
    assert 1364 <= lab.a.use.mtu <= 1372


def test_loss_does_not_shrink_the_mtu():
    dice = random.Random(3)
    lab = Lab("full", "full")
    lab.network.drop = lambda *_: dice.random() < 0.05
    lab.connect()
    for node in lab.nodes:
        node.talk(until=300.0, every=0.1)
    lab.run(300.0)
    small = [use for node in lab.nodes for at, use in node.uses if at > 10 and use.mtu != 1472]
    assert small == []


# --- States ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", Transport)
@pytest.mark.parametrize("cause", Cause)
def test_every_state_and_cause_is_in_the_table_or_refused(state, cause):
    path = machine()
    path._transport = state
    if cause in TRANSITIONS[state]:
        path._become(cause)
        assert path.transport is TRANSITIONS[state][cause]
    else:
        with pytest.raises(LocalProtocolError, match="cannot happen"):
            path._become(cause)
        assert path.transport is state


def test_a_disabled_machine_does_nothing_until_it_is_enabled():
    path = on_udp()
    path.disable("the peer does not want UDP", 1.0)
    assert events(path) == [
        UsePath("wss", None, None, "the peer does not want UDP"),
        PathChanged("udp 198.51.100.2:9001", "wss", "the peer does not want UDP"),
    ]
    path.disable("again", 1.0)
    path.punch(2.0)
    path.network_changed(2.0)
    path.probe_received(PEER, bytes(8), 27, 2.0)
    path.data_heard(2.0, PEER_2)
    path.handle_timeout(100.0)
    assert events(path) == []
    assert path.next_timeout() is None
    path.enable(101.0)
    path.punch(101.0)
    for probe in probes(path, PEER):
        path.answer_received(PEER, probe.token, None, 101.01)
    assert path.path == "udp"


def test_the_report_tells_round_trip_loss_and_where_we_were_seen():
    lab = busy_lab("port-restr", "full")
    active, *others = lab.a.machine.report()
    assert active.active
    assert active.proven
    assert active.rtt_ms == pytest.approx(20.0, abs=0.5)
    assert active.loss == 0.0
    assert active.mtu == 1472
    assert active.seen_as == endpoint("198.51.100.1:9001")
    assert all(not other.proven and other.rtt_ms is None for other in others)


def test_loss_counts_probes_that_were_given_up():
    path = on_udp()
    path.data_sent(0.02)
    drive(path, 20.0)
    loss = path.report()[0].loss
    assert loss is not None
    assert loss > 0.0


# --- Candidates ------------------------------------------------------------------------------


def test_candidates_are_eight_at_most_and_keep_room_for_the_reflexive_ones():
    hosts = [ip_address(f"192.0.2.{n}") for n in range(1, 12)]
    seen = [endpoint("198.51.100.1:7"), endpoint("198.51.100.1:8"), endpoint("198.51.100.1:9")]
    chosen = choose_candidates(hosts, 9001, seen)
    assert len(chosen) == 8
    assert [c.kind for c in chosen] == [CandidateKind.HOST] * 6 + [CandidateKind.REFLEXIVE] * 2
    assert chosen[0].endpoint == endpoint("192.0.2.1:9001")


def test_candidates_leave_out_what_the_protocol_refuses_and_what_is_said_twice():
    hosts = [ip_address(text) for text in ["127.0.0.1", "fe80::1", "192.0.2.1"]]
    own = endpoint("192.0.2.1:9001")
    assert choose_candidates(hosts, 9001, [own, own]) == (Candidate(CandidateKind.HOST, own),)


def test_the_links_address_is_a_candidate_with_the_port_that_the_peer_told():
    link = ip_address("64:ff9b::c633:6402")
    assert with_link([HOST], link)[1] == Candidate(
        CandidateKind.REFLEXIVE, Endpoint(link, PEER.port)
    )
    zone = ip_address("fe80::2%3")
    assert with_link([HOST], zone)[1] == Candidate(CandidateKind.HOST, Endpoint(zone, PEER.port))
    assert with_link([HOST], PEER.address) == (HOST,)
    assert with_link([REFLEXIVE], link) == (REFLEXIVE,)
    many = [Candidate(CandidateKind.HOST, Endpoint(PEER.address, n)) for n in range(1, 9)]
    path = machine()
    path.set_candidates(with_link(many, link), 0.0)
    assert path.report()[-1].endpoint == Endpoint(link, 1)


# --- Random input ----------------------------------------------------------------------------

SOURCES = st.sampled_from([PEER, PEER_2, STRANGER, endpoint("[2001:db8::5]:9001")])
ACTIONS = st.one_of(
    st.tuples(st.just("probe"), SOURCES),
    st.tuples(st.just("answer"), st.integers(0, 5)),
    st.tuples(st.just("answer elsewhere"), SOURCES),
    st.tuples(st.just("heard"), SOURCES),
    st.tuples(st.just("sent"), st.none()),
    st.tuples(st.just("punch"), st.none()),
    st.tuples(st.just("network"), st.none()),
    st.tuples(st.just("candidates"), st.lists(SOURCES, max_size=4)),
    st.tuples(st.just("too big"), st.integers(100, 9000)),
    st.tuples(st.just("timeout"), st.none()),
    st.tuples(st.just("wait"), st.floats(0.001, 20.0)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, max_size=80))
def test_whatever_comes_frames_go_only_where_a_probe_was_answered(actions):
    path = machine()
    now = 0.0
    open_probes: list[SendProbe] = []
    proven: set[Endpoint] = set()
    use = UsePath("wss", None, None, "")
    for action, value in actions:
        if action == "probe":
            path.probe_received(value, random.Random(now).randbytes(8), 27, now)
        elif action == "answer" and open_probes:
            probe = open_probes.pop(value % len(open_probes))
            proven.add(probe.endpoint)
            path.answer_received(probe.endpoint, probe.token, None, now)
        elif action == "answer elsewhere" and open_probes:
            path.answer_received(value, open_probes[0].token, value, now)
            if open_probes[0].endpoint == value:
                proven.add(value)
        elif action == "heard":
            path.data_heard(now, value)
        elif action == "sent":
            path.data_sent(now)
        elif action == "punch":
            path.punch(now)
        elif action == "network":
            path.network_changed(now)
        elif action == "candidates":
            path.set_candidates([Candidate(CandidateKind.HOST, e) for e in value], now)
        elif action == "too big":
            path.datagram_too_big(value, now)
        elif action == "timeout":
            timeout = path.next_timeout()
            if timeout is not None:
                now = max(now, timeout)
                path.handle_timeout(now)
                after = path.next_timeout()
                assert after is None or after > now, "a timer that is due was not handled"
        elif action == "wait":
            now += value
            path.handle_timeout(now)
        for event in events(path):
            if isinstance(event, SendProbe):
                assert event.size >= PROBE_MIN_BYTES
                open_probes.append(event)
            elif isinstance(event, UsePath):
                use = event
                assert event.mtu is None or 1232 <= event.mtu <= 1472
        assert (use.path, use.endpoint) == (path.path, path.active)
        assert use.endpoint is None or use.endpoint in proven


def test_the_overhead_makes_a_padded_probe_as_long_as_the_size_it_asks_for():
    node: Node = Lab("full", "full").a
    path = node.machine
    path.set_candidates([HOST], 0.0)
    path.punch(0.0)
    for probe in probes(path):
        path.answer_received(PEER, probe.token, None, 0.01)
    events(path)
    path.handle_timeout(0.01)
    sizes = sorted(probe.size + OVERHEAD for probe in probes(path))
    assert sizes == [PROBE_MIN_BYTES + OVERHEAD, 1232]


def test_boxes_of_the_twin_behave_as_their_names_say():
    inside, first, second = (endpoint(f"192.0.2.{n}:5000") for n in (1, 2, 3))
    other_port = Endpoint(first.address, 5001)
    for kind, host_may, port_may in [
        ("full", True, True),
        ("addr-restr", False, True),
        ("port-restr", False, False),
        ("symmetric", False, False),
    ]:
        box = make_box(kind, "198.51.100.1")
        public = box.outbound(inside, first, 0.0)
        assert box.inbound(first, public.port, 1.0) == inside
        assert (box.inbound(second, public.port, 1.0) == inside) is host_may
        assert (box.inbound(other_port, public.port, 1.0) == inside) is port_may
        same = box.outbound(inside, second, 2.0) == public
        assert same is (kind != "symmetric")
        assert box.inbound(first, public.port, 123.0) is None
