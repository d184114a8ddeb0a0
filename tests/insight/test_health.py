from __future__ import annotations

from pathlib import Path

import pytest

from shadowmesh.insight import health, network_health
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.insight.vitals import ClockStep, Vitals
from shadowmesh.wire.peer.states import Phase, State

NOW = 1_800_000_000.0
CERT = Path("/etc/shadowmesh/cert.pem")
TAP = {"is_up": True, "needed": True, "problem": None}
PEER = {"configured": True, "last_error": None, "retries": False}
PATH = {"udp_wanted": True, "connected_s": 60.0, "loss": None}

DAY = 86400.0
YEARS = 20 * 365 * DAY
REMOVED = ("revoked", "laptop was removed from network home")
REPLACED = ("superseded", "the certificate of laptop was replaced by a newer one")


def own(left: float, lifetime: float = YEARS):
    """The check of a certificate that ends so soon."""
    return network_health.certificate(NOW + left - lifetime, NOW + left, NOW, None)


STANDING = health.Standing(3, connected=1, awaited=1)
AWAY = health.Standing(3, troubles=(("nas", "no route to host"), ("lab", "key differs")))
FEW_PATHS = [
    ("nas", health.path("udp", "punched", **PATH)),
    ("lab", health.path("wss", "UDP is silent", **PATH)),
    ("hut", health.path("wss", "no answer", **PATH)),
]

#: check, what is wrong, severity, a word of the text, a word of the remedy
FAILING = [
    (health.tap("tap0", **TAP | {"is_up": False}), "tap_down", "error", "tap0", "ip link set"),
    (health.tap("tap0", **TAP | {"is_up": None}), "tap_gone", "error", "gone", "connect"),
    (health.tap("tap0", **TAP | {"problem": "no tun"}), "tap_unavailable", "error", "no tun",
     "log"),
    (health.peer(State.DISCONNECTED, None, **PEER | {"configured": False}), "not_configured",
     "warning", "no key", "encryption.key"),
    (health.peer(State.CONNECTING, Phase.WAITING_FOR_PEER, **PEER | {"last_error": "timeout"}),
     "waiting_for_peer", "warning", "never seen: timeout", "other machine"),
    (health.peer(State.DISCONNECTED, None, **PEER, awaited=True, last_seen_at=NOW, port=9001),
     "waiting_for_peer", "warning", "last seen 2027-01-15 08:00 UTC", "TCP port 9001"),
    (health.peer(State.CONNECTING, Phase.HANDSHAKE, **PEER), "connecting", "warning",
     "handshake", "wait"),
    (health.peer(State.ERROR, None, **PEER | {"last_error": "key differs", "retries": True}),
     "cannot_connect", "warning", "key differs", "keeps trying"),
    (health.peer(State.ERROR, None, **PEER | {"last_error": "no route"}), "cannot_connect",
     "warning", "no route", "shadowmesh connect"),
    (health.mesh(State.DISCONNECTED, health.Standing(0), port=9001), "not_configured", "warning",
     "no peer is configured", "add one to peers"),
    (health.mesh(State.CONNECTING, AWAY, port=9001), "cannot_connect", "warning",
     "no session with any of 3 peers; nas: no route to host", "`shadowmesh peers`"),
    (health.mesh(State.DISCONNECTED, health.Standing(3, awaited=3), port=9001), "waiting_for_peer",
     "warning", "waiting for 3 peers, and none is here", "TCP port 9001"),
    (health.mesh(State.CONNECTING, health.Standing(3), port=None), "connecting", "warning",
     "connecting to 3 peers", "wait"),
    (health.peers(AWAY), "peers_missing", "warning",
     "2 of 3 peers cannot be reached; nas: no route to host; lab: key differs", "`shadowmesh peers`"),
    (health.together(FEW_PATHS), "udp_unavailable", "warning",
     "lab and hut: frames go over WSS: UDP is silent", "netcheck"),
    (health.strangers({"silent": 50, "evicted_tls": 11}), "strangers", "warning",
     "61 connections to the peer port were turned away in the last minute (evicted_tls 11,",
     "firewall"),
    (health.hub_lag(0.3), "hub_late", "warning", "300 ms", "processor"),
    (health.clock(0.0, None), "clock_wrong", "warning", "1970", "set the clock"),
    (health.clock(NOW, ClockStep(-3600.0, 1.0)), "clock_set", "warning", "-3600.0 s", "log"),
    (health.queue(12, 0), "queue_full", "warning", "12 frames", "shape"),
    (health.certificate(CERT, 0, NOW - 1, NOW), "certificate_expired", "warning", "expired",
     "renew"),
    (health.certificate(CERT, 0, NOW + 86400, NOW), "certificate_expires_soon", "warning",
     "expires on", "renew"),
    (health.certificate(CERT, NOW + 1, NOW + 2, NOW), "certificate_not_yet_valid", "warning",
     "not valid before", "clock"),
    (health.path("wss", "no answer over UDP", **PATH), "udp_unavailable", "warning",
     "no answer over UDP", "netcheck"),
    (health.path("wss", "UDP is silent", **PATH | {"forbidden": 3}), "udp_forbidden_here",
     "warning", "a firewall on this host", "nft list ruleset"),
    (health.path("udp", "punched", **PATH | {"loss": 0.25}), "path_lossy", "warning", "25 %",
     "overloaded"),
    (health.path("wss", "UDP is silent", **PATH | {"connected_s": 1.0, "fallen": True}),
     "udp_unavailable", "warning", "UDP is silent", "netcheck"),
    (health.refused("192.0.2.1:5", "not the pinned key", 599.0), "peer_refused", "warning",
     "192.0.2.1:5 failed: not the pinned key", "peer.public_key"),
    (health.disk(Path("/var/lib/x"), 100), "disk_full", "warning", "/var/lib/x", "make room"),
    (health.disk(Path("/var/lib/x"), None), "disk_unreadable", "warning", "/var/lib/x", "file"),
    (health.metrics_port("port 9091 is taken"), "metrics_port_taken", "warning", "9091 is taken",
     "control API"),
    (own(29 * DAY), "certificate_expires_in_30_days", "warning", "expires in 29d 0h", "by itself"),
    (own(6 * DAY), "certificate_expires_in_7_days", "warning", "expires in 6d 0h", "by itself"),
    (own(23 * 3600), "certificate_expires_in_1_day", "error", "expires in 23h 0m", "by itself"),
    (own(-1), "certificate_expired", "error", "expired on 2027-01-15", "by itself"),
    (network_health.certificate(NOW - DAY, NOW + YEARS, NOW, REMOVED), "certificate_removed",
     "error", "was removed", "invitation, then `shadowmesh leave`"),
    (network_health.certificate(NOW - DAY, NOW + YEARS, NOW, REPLACED), "certificate_superseded",
     "error", "was replaced", "reaches a relay"),
    (network_health.certificate(NOW - DAY, NOW + YEARS, NOW, ("unlisted", "no list is known")),
     "certificate_refused", "error", "no list", "`shadowmesh join`"),
    (network_health.lists(None, NOW, issuer=False), "list_missing", "error", "no member is let in",
     "`shadowmesh join`"),
    (network_health.lists(NOW - 8 * DAY, NOW, issuer=False), "list_old", "warning", "8d 0h old",
     "the machine with the ledger"),
    (network_health.lists(NOW - 8 * DAY, NOW, issuer=True), "list_old", "warning", "8d 0h old",
     "the log of this machine"),
    (network_health.saved("/var/lib/x/members: the disk is full"), "network_not_saved", "warning",
     "a restart would forget", "make room"),
    (network_health.identities("laptop runs on two machines"), "identity_twice", "warning",
     "two machines", "an invitation of its own"),
    (network_health.authority(issues=False, revokes=True), "authority_away", "warning",
     "nobody can join: ", "bring it back"),
    (network_health.authority(issues=False, revokes=False), "authority_missing", "warning",
     "or be removed", "authority export"),
    (network_health.list_room(0.7, warn=0.7, full=0.9), "list_nearly_full", "warning", "70 % of",
     "network compact"),
    (network_health.list_room(0.9, warn=0.7, full=0.9), "list_full", "warning", "nobody can join",
     "network compact"),
]  # fmt: skip

PASSING = [
    health.mesh(State.CONNECTED, STANDING, port=9001),
    health.mesh(State.DISCONNECTED, health.Standing(3, held=3), port=9001),
    health.mesh(State.DISCONNECTED, health.Standing(3, held=1), port=9001),
    health.peers(STANDING),
    health.peers(health.Standing(0)),
    health.together(FEW_PATHS[:1]),
    health.tap("tap0", **TAP),
    health.tap("tap0", **TAP | {"is_up": None, "needed": False}),
    health.tap("", **TAP | {"is_up": None}),
    health.peer(State.CONNECTED, None, **PEER),
    health.peer(State.DISCONNECTED, None, **PEER),
    health.peer(State.DISCONNECTED, None, **PEER, held=True),
    health.refused(None, None, 0.0),
    health.refused("192.0.2.1:5", "long ago", 601.0),
    health.strangers({}),
    health.strangers({"silent": 60}),
    health.hub_lag(0.2),
    health.clock(NOW, None),
    health.queue(0, 500_000),
    health.certificate(CERT, 0, NOW + 365 * 86400, NOW),
    health.path(None, None, **PATH),
    health.path("udp", "punched", **PATH | {"loss": 0.05}),
    health.path("wss", "still looking", **PATH | {"connected_s": 1.0}),
    health.path("wss", "nat.enabled: false", **PATH | {"udp_wanted": False}),
    health.disk(Path("/var/lib/x"), 1 << 30),
    health.metrics_port(None),
    health.mesh(State.DISCONNECTED, health.Standing(0, network=True), port=9001),
    own(31 * DAY),
    own(11 * DAY, 30 * DAY),
    network_health.lists(NOW - 7 * DAY, NOW, issuer=True),
    network_health.saved(None),
    network_health.identities(None),
    network_health.authority(issues=True, revokes=True),
    network_health.list_room(0.69, warn=0.7, full=0.9),
]


@pytest.mark.parametrize(
    ("check", "code", "severity", "text", "remedy"), FAILING, ids=[row[1] for row in FAILING]
)
def test_a_failing_check_says_what_is_wrong_and_what_to_do(check, code, severity, text, remedy):
    assert (check.ok, check.code, check.severity) == (False, code, severity)
    assert text in check.text
    assert remedy in check.remedy


@pytest.mark.parametrize("check", PASSING, ids=lambda check: f"{check.name}: {check.text[:20]}")
def test_a_passing_check_asks_for_nothing(check):
    assert (check.ok, check.code, check.remedy) == (True, "ok", "")
    assert check.text


def test_every_code_of_a_failure_is_its_own():
    codes = [(check.name, code) for check, code, *_ in FAILING]
    of_several = {
        ("peer", "cannot_connect"): 3, ("peer", "waiting_for_peer"): 3, ("path", "udp_unavailable"): 3,
        ("peer", "not_configured"): 2, ("peer", "connecting"): 2, ("revocation_list", "list_old"): 2,
    }  # fmt: skip
    assert {code: codes.count(code) for code in set(codes) if codes.count(code) > 1} == of_several
    assert {name for name, _ in codes} == {
        "tap", "peer", "peers", "refused", "strangers", "hub_lag", "clock", "queue", "certificate", "path", "disk",
        "metrics_port", "member_certificate", "revocation_list", "network_saved", "identities", "authority", "list_room",
    }  # fmt: skip


# --- Vitals -----------------------------------------------------------------------------------


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


class Looking:
    """Vitals with clocks that the test moves."""

    def __init__(self):
        self.wall, self.boot = Clock(NOW), Clock(1000.0)
        self.recorder = FlightRecorder(clock=self.wall, monotonic=self.boot)
        self.connections = {}
        self.udp_errors = {}
        self.vitals = Vitals(self.recorder, wall=self.wall, boot=self.boot)

    def look(self, seconds=1.0, **dropped):
        self.wall.now += seconds
        self.boot.now += seconds
        self.vitals.look(dropped, self.connections, self.udp_errors)

    def events(self):
        return [(event.message, event.fields) for event in self.recorder.recent()]


@pytest.fixture
def looking():
    return Looking()


def test_nothing_happens_while_nothing_changes(looking):
    for _ in range(100):
        looking.look(runt=3)
    looking.look(runt=3)
    assert looking.events() == [("frames dropped", {"runt": 3})]
    assert looking.vitals.clock_step is None


def test_drops_are_told_at_once_and_then_added_up(looking):
    looking.look(runt=0, tap_full=0)
    looking.look(runt=2, tap_full=0)
    for count in range(3, 13):
        looking.look(runt=count, tap_full=1)
    assert looking.events() == [
        ("frames dropped", {"runt": 2}),
        ("frames dropped", {"runt": 10, "tap_full": 1}),
    ]


def test_drops_that_there_shall_be_are_no_news(looking):
    looking.vitals = Vitals(
        looking.recorder, no_news=("tap_gone",), wall=looking.wall, boot=looking.boot
    )
    for count in range(60):
        looking.look(tap_gone=count)
    assert looking.events() == []
    assert looking.vitals.lately({"tap_gone": 70}) == {"tap_gone": 70}
    looking.look(tap_gone=71, runt=1)
    assert looking.events() == [("frames dropped", {"runt": 1})]


def test_sends_that_the_kernel_does_not_permit_are_those_of_the_last_minute(looking):
    assert looking.vitals.forbidden == 0
    for total, lately in ((5, 0), (8, 3)):  # the first look knows of none before
        looking.udp_errors = {"EPERM": total, "EAGAIN": total}
        looking.look()
        assert looking.vitals.forbidden == lately
    for _ in range(60):
        looking.look()
    assert looking.vitals.forbidden == 0


def test_frames_that_found_no_room_are_those_of_the_last_minute(looking):
    looking.look(link_stalled=5)
    assert looking.vitals.full_drops == 0  # they may be old
    looking.look(link_stalled=8, tap_full=1, udp_send=1, runt=7)
    assert looking.vitals.full_drops == 4  # what the UDP socket refuses is no lack of room
    for _ in range(60):
        looking.look(link_stalled=8, tap_full=1, udp_send=1)
    assert looking.vitals.full_drops == 0


def test_what_was_dropped_lately_is_told_by_reason_up_to_now(looking):
    assert looking.vitals.lately({"runt": 1}) == {}  # nothing to compare with
    looking.look(runt=5, tap_full=1)
    assert looking.vitals.lately({"runt": 7, "tap_full": 1, "tap_down": 2}) == {
        "runt": 2, "tap_down": 2,
    }  # fmt: skip
    for _ in range(61):
        looking.look(runt=7, tap_full=1)
    assert looking.vitals.lately({"runt": 7, "tap_full": 1}) == {}


@pytest.mark.parametrize("by_s", [3600.0, -3600.0])
def test_a_clock_that_was_set_is_told_and_forgotten_in_time(looking, by_s):
    looking.look()
    looking.wall.now += by_s
    looking.look()
    assert looking.vitals.clock_step.by_s == pytest.approx(by_s)
    assert looking.events() == [("the wall clock was set", {"by_s": by_s})]
    looking.look(seconds=601.0)
    assert looking.vitals.clock_step is None


def test_a_suspended_machine_has_not_had_its_clock_set(looking):
    looking.look(seconds=7200.0)
    assert looking.vitals.clock_step is None
