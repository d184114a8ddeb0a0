"""The chain of decisions about a frame: each row is a situation and the step that it shows in."""

from __future__ import annotations

import base64
import dataclasses
from ipaddress import ip_address

import pytest

from shadowmesh._fastpath import DROP_NAMES, REFUSAL_NAMES
from shadowmesh.device import facts
from shadowmesh.device.facts import HostFacts, Whereabouts, parse_target
from shadowmesh.insight import health, reasons, status
from shadowmesh.insight.explain import Explanation, Place, Step, explain
from shadowmesh.insight.status import Check
from shadowmesh.keys.mac import stable_mac
from shadowmesh.wire.peer.states import State
from tests.control.fake_control import AT_HOME, NOW, TAP0

PEER_KEY = bytes(range(32))
PEER_MAC = stable_mac(PEER_KEY)
PEER_IP = ip_address("10.0.0.2")
OTHER_MAC = parse_target("02:00:5e:10:00:01")

WELL = status.Snapshot(
    version="0.1.0",
    state="connected",
    since=NOW - 60,
    peer=status.Peer(
        "198.51.100.2:9001", base64.b64encode(PEER_KEY).decode(), pinned=True, tap_mtu=1500
    ),
    path="udp",
    path_reason="198.51.100.2:9001 (host) answers",
    paths=(
        status.Path("udp", "198.51.100.2:9001", "host", True, True, 0.3, 0.0, 1472),
        status.Path("udp", "[2001:db8::2]:9001", "host", unanswered=5),
        status.Path("wss", "198.51.100.2:9001", proven=True, rtt_ms=0.9),
    ),
    cipher="aegis-256",
    post_quantum=True,
    tap=status.Tap("tap0", 1500, "10.0.0.1/24"),
    session=status.Session(NOW - 60, 0, None, True, NOW + 62, NOW + 120),
    health=(
        Check("tap", True, text="tap0 is up"), Check("peer", True, text="connected"),
        Check("path", True), Check("refused", True), Check("queue", True), Check("disk", True),
    ),
)  # fmt: skip
DOWN = dataclasses.replace(
    WELL, state="disconnected", peer=None, path=None, path_reason=None, paths=(), cipher=None,
    post_quantum=None, tap=None, session=None,
)  # fmt: skip
HELD = dataclasses.replace(DOWN, held=True)
ASKED_NOBODY = {"configured": True, "last_error": None, "retries": False}
ERROR = dataclasses.replace(DOWN, state="error", last_error="cannot reach 198.51.100.2:9001")
FACTS = HostFacts("tap0", TAP0)
NO_TAP = HostFacts("tap0")
NO_DEVICE = HostFacts("")
HEADLESS = dataclasses.replace(
    WELL,
    tap=status.Tap(),
    counters=status.Counters(0, 0, 0, 0, {"tap_gone": 3}, {"tap_gone": 3}),
)


def with_check(snapshot: status.Snapshot, check: Check) -> status.Snapshot:
    others = [each for each in snapshot.health if each.name != check.name]
    return dataclasses.replace(snapshot, health=(*others, check))


def failing(name: str, text: str, code: str = "x", remedy: str = "act") -> Check:
    return Check(name, False, "warning", text, remedy, code)


def told(snapshot=WELL, facts=FACTS, target=None) -> Explanation:
    return explain(snapshot, facts, target, NOW)


def step_of(name: str, explanation: Explanation) -> Step:
    return next(step for step in explanation.steps if step.name == name)


def device(**changes) -> HostFacts:
    return HostFacts("tap0", dataclasses.replace(TAP0, **changes))


def at(**found) -> HostFacts:
    return HostFacts("tap0", TAP0, Whereabouts(**found))


def through(**found) -> HostFacts:
    return at(address=PEER_IP, out="tap0", into_tunnel=True, **found)


def bridged(**found) -> HostFacts:
    return HostFacts("tap0", dataclasses.replace(TAP0, bridge="br0"), Whereabouts(**found))


def lately(**dropped: int) -> status.Snapshot:
    return dataclasses.replace(WELL, counters=status.Counters(0, 0, 0, 0, dropped, dropped))


def keys(left_s: float | None, *, initiator: bool = True) -> status.Snapshot:
    end = None if left_s is None else NOW + left_s
    session = status.Session(NOW - 60, 0, None, initiator, NOW + 30, end)
    return dataclasses.replace(WELL, session=session)


def on_wss(reason: str) -> status.Snapshot:
    found = (
        status.Path("udp", "198.51.100.2:9001", "host", unanswered=5),
        status.Path("wss", "198.51.100.2:9001", active=True, proven=True, rtt_ms=0.9),
    )
    return dataclasses.replace(WELL, path="wss", path_reason=reason, paths=found)


def carrying(payload: int | None, *, mtu: int = 1500, peer: int | None = 1500) -> status.Snapshot:
    first = dataclasses.replace(WELL.paths[0], payload_bytes=payload)
    return dataclasses.replace(
        WELL,
        paths=(first, *WELL.paths[1:]),
        tap=status.Tap("tap0", mtu, "10.0.0.1/24"),
        peer=dataclasses.replace(WELL.peer, tap_mtu=peer),
    )


#: what is so, the step, its verdict, words of its text, words of its remedy
TABLE = [
    # --- the device
    (told(), "tap", "ok", "tap0 is up, 10.0.0.1/24, MTU 1500", ""),
    (told(dataclasses.replace(WELL, tap=status.Tap("tap0", 1500)), facts=device(bridge="br0", addresses=())),
     "tap", "ok", "a port of the bridge br0", ""),
    (told(facts=device(bridge="br0")), "tap", "warn", "10.0.0.1/24 on it receives nothing",
     "ip address add 10.0.0.1/24 dev br0"),
    (told(facts=device(up=False)), "tap", "fail", "tap0 is down", "ip link set tap0 up"),
    (told(facts=NO_TAP), "tap", "fail", "tap0 was deleted", "logs"),
    (told(facts=device(addresses=())), "tap", "warn", "10.0.0.1/24 was taken off it",
     "ip address add 10.0.0.1/24 dev tap0"),
    (told(facts=device(mtu=1400)), "tap", "warn", "MTU is 1400", "mtu 1500"),
    (told(facts=HostFacts("tap0", problem="Permission denied")), "tap", "warn",
     "Permission denied", ""),
    (told(DOWN, NO_TAP), "tap", "warn", "is made when the tunnel connects", ""),
    (told(ERROR, device(kind="dummy")), "tap", "fail", "another interface, a dummy device",
     "ip link delete tap0"),
    (told(ERROR, device(kind="")), "tap", "fail", "another interface: the daemon", "tap_device"),
    (told(with_check(ERROR, failing("tap", "no /dev/net/tun", remedy="see the log")), NO_TAP),
     "tap", "fail", "no /dev/net/tun", "see the log"),
    (told(dataclasses.replace(WELL, tap=None), NO_TAP), "tap", "fail", "tap0 is gone", "connect"),
    (told(HEADLESS, NO_DEVICE), "tap", "fail", "this daemon runs without a device", "name a device"),
    (told(HEADLESS, NO_DEVICE), "drops", "ok", "3 frames since the start", ""),
    # --- a MAC
    (told(target=PEER_MAC, facts=at(mac=PEER_MAC)), "target", "ok", "the peer's own TAP", ""),
    (told(target=b"\xff" * 6, facts=at()), "target", "ok", "every host of the segment", ""),
    (told(target=OTHER_MAC, facts=at(ours="tap0")), "target", "fail",
     "02:00:5e:10:00:01 is tap0 of this host", "on the other side"),
    (told(target=OTHER_MAC, facts=bridged(port="eth1")), "target", "fail",
     "the bridge br0 has seen it behind eth1", "none is needed"),
    (told(target=OTHER_MAC, facts=bridged(port="tap0")), "target", "ok", "behind the tunnel", ""),
    (told(target=OTHER_MAC, facts=at(address=PEER_IP)), "target", "ok", "is 10.0.0.2", ""),
    (told(target=OTHER_MAC, facts=at()), "target", "warn", "has not been seen here", ""),
    (told(target=OTHER_MAC), "target", "warn", "cannot be asked", ""),
    # --- an address
    (told(target=ip_address("10.0.0.1"), facts=at(ours="tap0")), "target", "fail",
     "10.0.0.1 is an address of this host (tap0)", "network.local_ip"),
    (told(target=ip_address("224.0.0.251"), facts=at()), "target", "ok", "is a group", ""),
    (told(target=PEER_IP, facts=at(no_route="Network is unreachable")), "target", "fail",
     "no route to 10.0.0.2: Network is unreachable", "ip route add 10.0.0.2 dev tap0"),
    (told(target=PEER_IP, facts=at(out="eth0", gateway=ip_address("192.0.2.1"))), "target", "fail",
     "send 10.0.0.2 out of eth0 to 192.0.2.1, not into the tunnel", "ip route add"),
    (told(target=PEER_IP, facts=through(answered=True, mac=PEER_MAC)), "target", "ok",
     f"answered with {PEER_MAC.hex(':')}, the peer's own TAP device", ""),
    (told(target=PEER_IP, facts=through(answered=True, mac=OTHER_MAC)), "target", "ok",
     "answered with 02:00:5e:10:00:01", ""),
    (told(target=PEER_IP, facts=through(answered=None)), "target", "ok", "asks who has it", ""),
    (told(target=PEER_IP, facts=through(answered=False)), "target", "fail",
     "nobody there answers when the kernel asks who has 10.0.0.2", "network.local_ip"),
    (told(ERROR, through(answered=False), PEER_IP), "target", "warn", "nobody there answers", ""),
    (told(DOWN, HostFacts("tap0", None, Whereabouts(PEER_IP, out="eth0")), PEER_IP), "target",
     "warn", "is not known before tap0 is there", ""),
    (told(target=PEER_IP, facts=through(answered=None, gateway=ip_address("10.0.0.9"))), "target",
     "ok", "through tap0 by the gateway 10.0.0.9", ""),
    (told(target=PEER_IP, facts=bridged(
        address=PEER_IP, out="br0", into_tunnel=True, answered=True, mac=OTHER_MAC, port="eth1")),
     "target", "fail", "it answered behind eth1, which is in the bridge br0", "none is needed"),
    # --- the connection
    (told(), "connection", "ok", "connected to 198.51.100.2:9001 for 1m 0s", ""),
    (told(with_check(DOWN, health.peer(State.DISCONNECTED, None, **ASKED_NOBODY))),
     "connection", "fail", "disconnected: nobody has asked", "`shadowmesh connect HOST:PORT`"),
    (told(with_check(HELD, health.peer(State.DISCONNECTED, None, **ASKED_NOBODY, held=True))),
     "connection", "fail", "disconnected: an operator has disconnected", "`shadowmesh connect`"),
    (told(with_check(DOWN, health.peer(
        State.DISCONNECTED, None, **ASKED_NOBODY, awaited=True, last_seen_at=NOW, port=9001))),
     "connection", "fail", "waiting for the peer, last seen", "this one on TCP port 9001"),
    (told(with_check(ERROR, failing("peer", "x", remedy="the daemon keeps trying"))),
     "connection", "fail", "the last attempt failed: cannot reach 198.51.100.2:9001", "keeps trying"),
    (told(with_check(DOWN, failing("peer", "no key is configured", "not_configured"))),
     "connection", "fail", "no key is configured", "act"),
    (told(with_check(DOWN, failing("refused", "the handshake with a:1 failed: wrong key"))),
     "connection", "fail", "disconnected: the handshake with a:1 failed: wrong key", "act"),
    (told(with_check(dataclasses.replace(DOWN, state="connecting", phase="handshake"),
                     failing("peer", "connecting: handshake", remedy="wait"))),
     "connection", "fail", "connecting (handshake)", "wait"),
    # --- the session
    (told(), "session", "ok",
     "keys 1m 0s old, next rekey in 1m 2s, they end in 2m 0s without one", ""),
    (told(keys(100, initiator=False)), "session", "ok", "the peer rekeys, else we ask for it in",
     ""),
    (told(keys(20)), "session", "warn", "no rekey has succeeded in time", "rekey"),
    (told(keys(-5)), "session", "fail", "the keys ended 5s ago", "connect again"),
    (told(keys(None)), "session", "fail", "there are no keys", "logs"),
    # --- the path
    (told(), "path", "ok", "frames go over udp: 198.51.100.2:9001 (host) answers", ""),
    (told(with_check(on_wss("UDP to 198.51.100.2:9001 is silent"),
                     failing("path", "on WSS: ...", "udp_unavailable", "let UDP pass"))),
     "path", "warn", "frames go over wss: UDP to 198.51.100.2:9001 is silent", "let UDP pass"),
    (told(with_check(WELL, failing("path", "25 % of the probes over UDP are lost", "path_lossy"))),
     "path", "warn", "25 % of the probes over UDP are lost", "act"),
    (told(with_check(on_wss("UDP to 198.51.100.2:9001 is silent"),
                     failing("path", "a firewall on this host forbids it", "udp_forbidden_here"))),
     "path", "warn", "frames go over wss: a firewall on this host forbids it", "act"),
    # --- the MTU; AEGIS-256 adds 49 bytes to a frame of 1514
    (told(carrying(1563)), "mtu", "ok", "1514 bytes fits one datagram", ""),
    (told(carrying(1562)), "mtu", "ok", "is cut into 2 fragments", ""),
    (told(carrying(1232, mtu=9000, peer=9000), device(mtu=9000)), "mtu", "ok", "is cut into 8 fragments", ""),
    (told(carrying(None)), "mtu", "ok", "is not known yet", ""),
    (told(on_wss("x")), "mtu", "ok", "goes through whole", ""),
    (told(carrying(1472, peer=1400)), "mtu", "warn", "the peer's TAP takes 1400 bytes",
     "network.mtu"),
    # --- queue, drops, the rest
    (told(), "queue", "ok", "0 B wait", ""),
    (told(with_check(WELL, failing("queue", "12 frames found no room"))), "queue", "warn",
     "12 frames found no room", "act"),
    (told(), "drops", "ok", "none in the last minute", ""),
    (told(lately(not_connected=3)), "drops", "ok", "3 frames since the start", ""),
    (told(lately(not_connected=3, tap_down=4, runt=1)), "drops", "warn",
     "5 frames dropped in the last minute, most as tap_down", "ip link set tap0 up"),
    (told(with_check(WELL, failing("disk", "/var/lib/x has 3 bytes left"))), "daemon", "warn",
     "/var/lib/x has 3 bytes left", "act"),
    (told(), "daemon", "ok", "nothing else is wrong", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("explanation", "name", "verdict", "text", "remedy"),
    TABLE, ids=[f"{row[1]}: {row[3][:40]}" for row in TABLE],
)  # fmt: skip
def test_each_step_says_what_is_so_and_what_to_do(explanation, name, verdict, text, remedy):
    step = step_of(name, explanation)
    assert text in step.text
    assert remedy in step.remedy
    assert step.verdict == verdict
    assert "\n" not in step.text + step.remedy
    assert explanation.delivered is all(each.verdict != "fail" for each in explanation.steps)


def of_member(snapshot: status.Snapshot, name: str = "nas") -> Step:
    told = explain(snapshot, FACTS, None, NOW, Place(name))
    return step_of("connection", told)


def test_a_member_that_cannot_be_dialled_and_has_not_come_is_told_as_that():
    waits = with_check(DOWN, health.peer(State.DISCONNECTED, None, **ASKED_NOBODY, awaited=True))
    for seen_at, seen in ((None, "never seen"), (NOW - 200, "last seen 3m 20s ago")):
        peer = status.Peer(last_seen_at=seen_at)
        snapshot = dataclasses.replace(waits, network=AT_HOME, peer=peer)
        step = of_member(snapshot)
        assert step.verdict == "fail"
        assert step.text == (
            "nas: it announces no address where it could be dialled, and has not come to this"
            f" machine, {seen}"
        )
        assert step.remedy.startswith("set mesh.announce, on either side")
    assert "TCP port" in of_member(with_check(DOWN, health.peer(
        State.DISCONNECTED, None, **ASKED_NOBODY, awaited=True, port=9001))).remedy  # fmt: skip


def test_whom_an_operator_has_disconnected_is_let_in_by_name():
    held = with_check(HELD, health.peer(State.DISCONNECTED, None, **ASKED_NOBODY, held=True))
    assert of_member(held).remedy == "`shadowmesh connect nas`"
    nobody = with_check(DOWN, health.peer(State.DISCONNECTED, None, **ASKED_NOBODY))
    assert of_member(nobody).remedy == "`shadowmesh connect nas HOST:PORT`"


def test_a_frame_passes_when_all_is_well():
    explanation = told(target=PEER_IP, facts=through(answered=True, mac=PEER_MAC))
    assert explanation.delivered
    assert explanation.summary == "a frame is delivered over udp"
    assert [step.name for step in explanation.steps] == [
        "tap", "target", "connection", "session", "path", "mtu", "queue", "drops", "daemon",
    ]  # fmt: skip


@pytest.mark.parametrize("target", [None, PEER_IP, PEER_MAC])
def test_without_a_device_no_frame_goes_and_the_session_is_told_all_the_same(target):
    explanation = told(HEADLESS, NO_DEVICE, target)
    assert not explanation.delivered
    assert explanation.summary.startswith("no frame is delivered: network.tap_device is empty")
    assert [(step.name, step.verdict) for step in explanation.steps] == [
        ("tap", "fail"), ("connection", "ok"), ("session", "ok"), ("path", "ok"), ("queue", "ok"),
        ("drops", "ok"), ("daemon", "ok"),
    ]  # fmt: skip


def test_the_summary_names_the_first_cause_and_counts_the_warnings():
    assert told(ERROR, NO_TAP).summary == (
        "no frame is delivered: the last attempt failed: cannot reach 198.51.100.2:9001"
    )
    assert told(facts=device(up=False)).summary == "no frame is delivered: tap0 is down"
    doubtful = told(with_check(keys(20), failing("disk", "full")))
    assert doubtful.summary == "a frame is delivered over udp, 2 warnings"


def test_every_way_that_was_tried_is_told_with_its_outcome():
    assert list(step_of("path", told()).details) == [
        "udp 198.51.100.2:9001 (host), carries the frames, answers in 0.3 ms",
        "udp [2001:db8::2]:9001 (host), 5 probes without an answer",
        "wss 198.51.100.2:9001, open, in reserve, answers in 0.9 ms",
    ]
    nat = dataclasses.replace(WELL, nat=status.Nat("symmetric", "203.0.113.4:9001"))
    assert step_of("path", told(nat)).details[-1] == (
        "this side's NAT: symmetric, seen as 203.0.113.4:9001"
    )


def test_every_drop_is_told_with_its_meaning_and_when():
    counters = status.Counters(
        dropped={"runt": 3, "tap_full": 7}, dropped_lately={"runt": 3}, udp_refused={"replay": 2}
    )
    facts = device(tx_dropped=9)
    details = step_of("drops", told(dataclasses.replace(WELL, counters=counters), facts)).details
    assert details[0] == "in the last minute: runt 3 frames: shorter than an Ethernet header"
    assert details[1].startswith("before: tap_full 7 frames: the kernel took frames slower")
    assert details[2].startswith("since the start: replay 2 datagrams: came twice")
    assert details[3].startswith("by the kernel, since tap0 was made: 9 frames")


def test_a_refusal_is_told_beside_the_cause_of_our_own_failure():
    both = with_check(ERROR, failing("refused", "the handshake with a:1 failed: x"))
    both = dataclasses.replace(both, next_retry_at=NOW + 4)
    step = step_of("connection", told(both))
    assert "cannot reach" in step.text
    assert step.details == [
        "the next attempt starts in 4s", "the handshake with a:1 failed: x",
    ]  # fmt: skip


def test_a_refusal_after_the_last_failure_is_the_news():
    late = dataclasses.replace(
        ERROR, last_error_at=NOW - 60, refused=status.Refused("a:1", "wrong key", NOW - 2)
    )
    late = with_check(late, failing("refused", "the handshake with a:1 failed: wrong key"))
    assert step_of("connection", told(late)).text == (
        "the last attempt failed: the handshake with a:1 failed: wrong key"
    )


def test_every_reason_has_a_meaning():
    # Of members that were not judged yet sessions drop records themselves.
    assert set(reasons.DROPPED) == {*DROP_NAMES, "unjudged"}
    assert set(reasons.REFUSED) == set(REFUSAL_NAMES)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("02:00:5E:10:00:01", OTHER_MAC),
        ("02-00-5e-10-00-01", OTHER_MAC),
        ("10.0.0.2", PEER_IP),
        ("fd00::2", ip_address("fd00::2")),
    ],
)
def test_a_target_is_a_mac_or_an_address(text, target):
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "tap0", "02:00:5e:10:00", "02:00-5e:10:00:01", "10.0.0.0/24", "10.0.0.256"]
)
def test_another_target_is_refused(text):
    with pytest.raises(ValueError, match="neither a MAC"):
        parse_target(text)


def test_a_host_that_cannot_be_asked_is_told_and_no_error(monkeypatch):
    def refuse():
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(facts, "Netlink", refuse)
    found = facts.look("tap0", PEER_IP)
    assert found == HostFacts("tap0", problem="Operation not permitted")
