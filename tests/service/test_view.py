"""How a snapshot is put together, of a pair and of many."""

from __future__ import annotations

import dataclasses
import errno
from types import SimpleNamespace

import pytest

from shadowmesh.base.errors import NoSuchPeer
from shadowmesh.device import facts
from shadowmesh.insight.table import Size
from shadowmesh.service import view
from shadowmesh.wire.peer.states import Event
from tests.service.mesh import FakePeer, make_view, own_mac


def test_what_the_process_uses_is_read_anew_only_when_it_is_older_than_asked(monkeypatch):
    now = 100.0
    readings = iter(range(10))
    monkeypatch.setattr(view, "read_resources", lambda _process: next(readings))
    monkeypatch.setattr(view.time, "monotonic", lambda: now)
    one = view.View(*[None] * 8)
    assert one._read_resources(0.0) == 0
    assert one._read_resources(0.0) == 1
    now += 4.9
    assert one._read_resources(5.0) == 1
    now += 0.1
    assert one._read_resources(5.0) == 2


def test_what_the_process_uses_is_the_last_reading_when_there_is_no_descriptor(monkeypatch):
    def fail(_process):
        raise OSError(errno.EMFILE, "Too many open files")

    one = view.View(*[None] * 8)
    monkeypatch.setattr(view, "read_resources", fail)
    assert one._read_resources(0.0) is None
    monkeypatch.setattr(view, "read_resources", lambda _process: 7)
    assert one._read_resources(0.0) == 7
    monkeypatch.setattr(view, "read_resources", fail)
    assert one._read_resources(0.0) == 7


# --- One peer and several -----------------------------------------------------------------------

#: what is null as a whole where there is not one peer
OF_ONE = {
    "peer", "path", "path_reason", "paths", "cipher", "post_quantum", "tls_path", "rtt_ms", "mtu",
    "session", "link", "phase",
}  # fmt: skip


@pytest.fixture
def three():
    """One that is here over UDP, one that is dialled in vain, one that has to come by itself."""
    return make_view(
        FakePeer("nas", 0).is_here(),
        FakePeer("lab", 1, address="198.51.100.9:9001").fails("no route to host"),
        FakePeer("laptop", 2, address=None),
    )


def test_of_one_peer_a_snapshot_tells_all():
    told = make_view(FakePeer("peer").is_here(), listed=False).snapshot().to_dict()
    assert told["state"] == "connected"
    assert told["peer"]["address"] == "203.0.113.7:9001"
    assert (told["path"], told["cipher"], told["mtu"]) == ("udp", "aegis-256", 1420)
    assert told["session"]["rekeys"] == 1
    assert told["peers"] == {"known": 1, "sessions": 1, "direct": 1, "relayed": 0}
    assert {check["name"] for check in told["health"]} == {
        "tap", "peer", "path", "refused", "strangers", "underlay", "hub_lag", "clock", "queue",
        "certificate", "disk", "metrics_port",
    }  # fmt: skip


def test_a_list_of_one_is_told_like_a_pair():
    told = make_view(FakePeer("nas").is_here()).snapshot().to_dict()
    assert told["peer"]["public_key"] is not None
    assert told["path"] == "udp"


def test_of_several_what_is_of_one_is_null_and_the_rest_is_summed_up(three):
    told = three.snapshot().to_dict()
    assert {name for name in OF_ONE if told[name] is not None} == set()
    assert told["state"] == "connected"
    assert told["peers"] == {"known": 3, "sessions": 1, "direct": 1, "relayed": 0}
    assert told["last_error"] == "lab: no route to host"
    assert told["next_retry_at"] is not None
    assert told["wanted"] is True
    assert told["held"] is False
    assert told["queue_bytes"] == 7


def test_what_sessions_drop_themselves_is_told_with_what_the_data_plane_drops(three):
    three.manager.dropped = {"unjudged": 3}
    dropped = three.snapshot().counters.dropped
    assert (dropped["unjudged"], dropped["queue_full"]) == (3, 0)
    three.beat()
    three.manager.dropped = {"unjudged": 5}
    assert three.snapshot().counters.dropped_lately == {"unjudged": 2}


def test_without_any_peer_a_snapshot_can_be_taken_all_the_same():
    told = make_view().snapshot().to_dict()
    assert (told["state"], told["wanted"], told["held"]) == ("disconnected", False, False)
    assert told["peers"]["known"] == 0
    assert told["peer"] is None


@pytest.mark.parametrize("problem", [None, "not permitted"])
def test_without_a_device_a_snapshot_has_none_and_misses_none(three, problem):
    manager = three.manager
    manager.realtime_problem = problem
    for realtime in (False, True):
        network = dataclasses.replace(manager.config.network, tap_device="", realtime=realtime)
        manager.config = dataclasses.replace(manager.config, network=network)
        told = three.snapshot().to_dict()
        assert told["tap"] == {
            "device": None, "mtu": None, "address": None, "addresses": [], "queues": [],
            "realtime": problem is None if realtime else None,
            "realtime_problem": problem if realtime else None,
        }  # fmt: skip
        assert check_of(three, "tap").ok
        assert "none is wanted" in check_of(three, "tap").text


def test_the_derived_state_is_as_old_as_the_change_that_led_to_it(three):
    lab = three.manager.peers[1]
    began = three.snapshot().since
    assert three.snapshot().since == began
    lab.machine.since += 100  # another attempt has failed: the daemon's state is the same
    assert three.snapshot().since == began
    three.manager.peers[0].current = None
    assert three.snapshot().since > began + 50


def test_a_mesh_is_held_when_all_of_it_is():
    peers = [FakePeer("nas").is_held(), FakePeer("lab", 1)]
    assert make_view(*peers).snapshot().held is False
    peers[1].is_held()
    assert make_view(*peers).snapshot().held is True


def test_each_peer_is_told_by_itself(three):
    nas, lab, laptop = three.peers().to_dict()["peers"]
    assert (nas["name"], nas["state"], nas["path"]) == ("nas", "connected", "udp")
    assert nas["endpoint"] == "203.0.113.7:9001"
    assert nas["mac"] == facts.format_mac(own_mac(three.manager.peers[0]))
    assert nas["counters"] == {
        "frames_in": 2, "frames_out": 1, "bytes_in": 120, "bytes_out": 60, "frames_queued": 3,
        "bytes_queued": 180, "dropped": {"mac_limit": 5, "queue_full": 4}, "macs": 1,
    }  # fmt: skip
    assert (lab["state"], lab["last_error"]) == ("error", "no route to host")
    assert lab["endpoint"] is None
    assert lab["session"] == dict.fromkeys(nas["session"], None) | {"rekeys": 0}
    assert (laptop["phase"], laptop["address"]) == ("waiting_for_peer", None)
    assert laptop["wanted"] is True


def test_a_peer_in_full_has_its_ways_and_the_addresses_behind_it(three):
    three.manager.plane.entries = [
        (own_mac(three.manager.peers[0]), 0, 0, 1.0, True, 0),
        (bytes(5) + b"\x07", 20, 0, 3.0, False, 2),
        (bytes(5) + b"\x08", 0, 1, 3.0, False, 0),
        (bytes(5) + b"\x09", 0, None, 3.0, False, 0),
    ]
    told = three.peer("nas").to_dict()["peer"]
    assert [path["path"] for path in told["paths"]] == ["udp", "wss"]
    assert [entry["mac"][-2:] for entry in told["macs"]][1:] == ["07"]
    with pytest.raises(NoSuchPeer):
        three.peer("nobody")


def test_the_table_names_the_peer_and_leaves_out_one_that_was_just_removed(three):
    three.manager.plane.entries = [
        (bytes(6), 20, 2, 3.25, False, 2), (bytes(6), 0, None, None, False, 0),
        (bytes(6), 0, 9, 1.0, False, 0),
    ]  # fmt: skip
    assert [entry.to_dict() for entry in three.table()] == [
        {"mac": "00:00:00:00:00:00", "vlan": 20, "peer": "laptop", "age_s": 3.2, "static": False,
         "moves": 2},
        {"mac": "00:00:00:00:00:00", "vlan": 0, "peer": None, "age_s": None, "static": False,
         "moves": 0},
    ]  # fmt: skip


def many(count: int, *, here: int = 0) -> view.View:
    """A mesh of peers that are all dialled, the first of them with success."""
    peers = [FakePeer(f"site-{number}", number) for number in range(count)]
    for number, peer in enumerate(peers):
        if number < here:
            peer.is_here()
        else:
            peer.fails("no route to host")
    return make_view(*peers)


@pytest.mark.parametrize(
    ("one", "summary"),
    [
        (lambda: make_view(FakePeer("nas").is_here()), "connected to 203.0.113.7:9001 over udp"),
        (lambda: many(2, here=2), "connected to 2 of 2 peers"),
        (lambda: many(3, here=2), "connected to 2 of 3 peers, no session with site-2"),
        (lambda: many(9),
         "connected to none of 9 peers, no session with site-0, site-1, site-2, site-3, site-4 and 4 more"),
        (lambda: make_view(FakePeer("a", address=None), FakePeer("b", 1, address=None)),
         "waiting for 2 peers"),
        (lambda: make_view(FakePeer("a").is_held(), FakePeer("b", 1).is_held()), "not connected"),
        (make_view, "not connected"),
    ],
)  # fmt: skip
def test_systemd_reads_one_sentence_however_many_peers_there_are(one, summary):
    assert one().summary() == summary


# --- Health -------------------------------------------------------------------------------------


def check_of(one: view.View, name: str):
    [check] = [check for check in one.health().checks if check.name == name]
    return check


def test_one_of_many_that_is_away_is_named_and_the_daemon_is_ready():
    one = many(3, here=2)
    assert check_of(one, "peer").text == "connected to 2 of 3 peers"
    missing = check_of(one, "peers")
    assert (missing.code, missing.severity) == ("peers_missing", "warning")
    assert missing.text == "1 of 3 peers cannot be reached; site-2: no route to host"
    # The stand-in has no device.
    assert {check.name for check in one.health().failing} == {"tap"}
    assert {check.name for check in one.health().not_ready} == {"tap"}


def test_fifty_peers_in_trouble_do_not_make_fifty_lines():
    one = many(50)
    assert len(one.health().checks) == 13
    told = check_of(one, "peers").text
    assert told.count("no route to host") == 5
    assert told.endswith("and 45 more")
    assert check_of(one, "peer").code == "cannot_connect"
    assert "peer" in {check.name for check in one.health().not_ready}


def test_a_peer_that_comes_and_goes_by_itself_is_no_trouble():
    one = make_view(FakePeer("nas").is_here(), FakePeer("laptop", 1, address=None))
    assert check_of(one, "peers").text == "1 of 2 peers are connected, 1 may come by themselves"
    assert check_of(one, "peers").ok


def test_the_peers_whose_frames_take_the_second_best_path_are_named(three):
    lab = three.manager.peers[1]
    lab.current = None
    lab.machine.fire(Event.RETRY, 0.0)
    lab.is_here("wss")
    path = check_of(three, "path")
    assert (path.ok, path.code) == (False, "udp_unavailable")
    assert path.text == "lab: frames go over WSS: it answers"
    lab.current.path = "udp"
    assert check_of(three, "path").ok


def test_a_way_that_leads_into_the_tunnel_is_told_with_the_peer_it_is_to(three):
    three.underlay.looped.add(three.manager.peers[0].current.wss.far_end)
    found = check_of(three, "underlay")
    assert found.code == "tunnel_loop"
    assert found.text.startswith("nas: 203.0.113.7 leads into the tunnel itself")


# --- Explanations -------------------------------------------------------------------------------


MAC = bytes.fromhex("525400123456")


@pytest.fixture
def quiet(monkeypatch, three):
    """The kernel knows the device and nothing else."""
    device = facts.Device(
        "tap0", "tun", bytes(6), 1500, up=True, running=True, addresses=("10.0.0.1/24",)
    )
    known = facts.HostFacts("tap0", device, facts.Whereabouts())
    monkeypatch.setattr(facts, "look", lambda _device, _target: known)
    three.manager.tap = SimpleNamespace(
        name="tap0", mtu=1500, fds=(1,), is_up=lambda: True, left_out=()
    )


def step_of(explanation, name):
    [step] = [step for step in explanation.steps if step.name == name]
    return step


def test_a_mac_is_explained_by_the_peer_that_it_is_behind(three, quiet):
    three.manager.plane.entries = [(MAC, 20, 0, 3.0, False, 1)]
    told = three.explain(MAC)
    assert step_of(told, "target").text == (
        "52:54:00:12:34:56 is behind nas, learned 3s ago, VLAN 20, moved 1 time"
    )
    assert step_of(told, "connection").text.startswith("nas: connected to 203.0.113.7:9001")
    assert told.summary.startswith("a frame is delivered to nas over udp")


def test_a_mac_behind_a_peer_without_session_is_not_delivered(three, quiet):
    three.manager.plane.entries = [(MAC, 0, 1, 250.0, False, 0)]
    told = three.explain(MAC)
    assert not told.delivered
    assert "behind lab, learned 4m 10s ago" in step_of(told, "target").text
    step = step_of(told, "connection")
    assert step.text == "lab: the last attempt failed: no route to host"
    assert "no peer passes frames on for another" in step.details[-1]


def test_a_mac_on_our_own_side_goes_to_nobody(three, quiet):
    three.manager.plane.entries = [(MAC, 0, None, 3.0, False, 0)]
    told = three.explain(MAC)
    assert step_of(told, "target").verdict == "fail"
    assert "on this side of the tunnel, learned 3s ago" in step_of(told, "target").text


def test_an_unknown_mac_is_sent_to_all_and_the_chain_ends_there(three, quiet):
    told = three.explain(MAC)
    assert "sent to every peer with a session, now 1" in step_of(told, "target").text
    assert step_of(told, "connection").text == "connected to 1 of 3 peers"
    assert {step.name for step in told.steps}.isdisjoint({"session", "path", "mtu"})
    assert told.summary.startswith("a frame is delivered to 1 of 3 peers")


def test_a_name_is_explained_by_itself(three, quiet):
    assert three.explain(None, "nas").delivered
    lab = three.explain(None, "lab")
    assert step_of(lab, "target").text == "every frame for lab that leaves through tap0"
    assert not lab.delivered
    with pytest.raises(NoSuchPeer):
        three.explain(None, "nobody")


def test_a_thousand_peers_are_told_with_pauses_between():
    pauses = []
    one = make_view(*[FakePeer(f"site-{number}", number) for number in range(1000)])
    assert len(one.peers(lambda: pauses.append(1)).peers) == 1000
    assert len(pauses) == 1000 / view.PEERS_AT_ONCE - 1


def test_the_size_of_the_table_is_what_the_switch_counts(three):
    assert three.table_size() == Size(1, 2, 3)


def test_of_the_table_only_what_is_asked_for_is_told(three):
    peers = three._peers
    three.manager.plane.entries = [
        (MAC, 0, 0, 5.0, False, 0), (MAC, 20, 1, 1.0, False, 0), (bytes(6), 0, 0, 1.0, False, 0),
        (MAC, 30, None, 1.0, False, 0),
    ]  # fmt: skip
    assert [entry.vlan for entry in peers.table(mac=MAC)] == [0, 20, 30]
    assert [entry.mac[-2:] for entry in peers.table(port=0)] == ["56", "00"]
