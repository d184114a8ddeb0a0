"""Many peers: several machines in one process, each with a list of the others."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import replace

import gevent
import pytest

from shadowmesh.base.constants import MAX_MACS_PER_PEER
from shadowmesh.base.errors import (
    AlreadyConnected,
    BadRequest,
    ConnectTimeout,
    DeviceError,
    DeviceUnavailable,
    NoSuchPeer,
    NotConfigured,
    NotConnected,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.config import HostPort
from shadowmesh.config.model import Secret
from shadowmesh.device.tap import OFFLOAD_TCP, OFFLOAD_UDP
from shadowmesh.peer.peer import COLLISION_WAIT_S
from shadowmesh.wire.peer.states import State
from tests.peer.machines import VNET_HEADER, Clock, Machine, frame, wait_for

PSK = bytes(range(32))
NOBODY = HostPort("127.0.0.1", 1)
#: twenty machines share two cores with other tests
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def patience():
    with gevent.Timeout(4 * PATIENCE_S):
        yield


@pytest.fixture
def make(tmp_path):
    """Makes started machines with one pre-shared key and an empty list; stops them at the end."""
    machines = []

    def build(name, *, start=True, **options):
        machines.append(Machine(tmp_path / name, **{"psk": PSK, **options}))
        if options.get("flags") is None:
            machines[-1].know()
        return machines[-1].start() if start else machines[-1]

    yield build
    gevent.joinall([gevent.spawn(machine.stop) for machine in machines], raise_error=True)


@pytest.fixture
def trio(make):
    """a, b and c in full mesh, the later of each pair dials."""
    return connect_all([make(name) for name in "abc"])


def connect_all(machines, *, both_dial=False):
    """Let every machine list all others, and wait until each has a session with each."""
    for place, machine in enumerate(machines):
        others = machines[:place] + machines[place + 1 :]
        dialled = others if both_dial else machines[:place]
        machine.know(*others, **{other.name: other for other in dialled}).reload()
    wait_for(lambda: meshed(machines), "a full mesh", PATIENCE_S)
    return machines


def meshed(machines):
    return all(joined(one, other) for one, other in itertools.combinations(machines, 2))


def joined(one, other):
    """Whether both have one and the same session."""
    ours, theirs = one.knows(other).current, other.knows(one).current
    return (
        ours is not None
        and theirs is not None
        and not (ours.over or theirs.over)
        and ours.initiator != theirs.initiator
        and ours.result.local_key_id == theirs.result.remote_key_id
    )


def sessions(machine):
    """The live session with each peer, by name."""
    return {peer.name: peer.current for peer in machine.manager.peers}


# --- A mesh comes up --------------------------------------------------------------------------


def test_three_machines_with_lists_have_a_session_each_with_each(trio):
    for machine in trio:
        assert machine.manager.state == "connected"
        for peer in machine.manager.peers:
            other = next(other for other in trio if other.name == peer.name)
            assert peer.machine.state == "connected"
            assert peer.current.peer_public_key == other.identity.public_key
            assert peer.last_error is None
            assert peer.reconnects == 0
        numbers = {peer.port.number for peer in machine.manager.peers}
        assert len(numbers) == 2
        assert machine.manager.handshakes == {"ok": 2}


def test_a_broadcast_reaches_all_and_its_answer_the_one_that_asked(trio):
    a, b, c = trio
    question = a.send(b"who has", source=1)
    assert b.receive() == c.receive() == question
    answer = question[6:12] + bytes([2, 0, 0, 0, 0, 2]) + question[12:]
    b.tap.kernel.send(VNET_HEADER + answer)
    assert a.receive() == answer
    second = b.send(b"to all", source=2)
    # What c gets next is this: the answer was not for it.
    assert c.receive() == a.receive() == second
    assert a.knows(b).port.counters()["frames_received"] == 2
    assert a.knows(c).port.counters()["frames_received"] == 0


def test_frames_of_a_peer_that_was_taken_off_the_list_are_not_delivered(trio):
    a, b, c = trio
    a.know(b=a.knows(b).entry).reload()
    wait_for(lambda: c.knows(a).current is None, "c has heard of it")
    c.send(b"from c", source=3)
    assert b.receive()
    kept = b.send(b"from b", source=2)
    assert a.receive() == kept


def test_twenty_machines_behind_one_address_that_all_dial_each_other_make_one_mesh(make):
    machines = []
    for number in range(20):  # not all at once: a busy machine has 10 s for each handshake
        machines.append(make(f"m{number}"))
        connect_all(machines, both_dial=True)
    for machine in machines:
        assert len(machine.manager.peers) == 19
        assert {peer.current.peer_public_key for peer in machine.manager.peers} == {
            other.identity.public_key for other in machines if other is not machine
        }
        assert machine.manager.state == "connected"


def test_a_list_and_a_pair_that_pins_it_connect(make):
    one = make("one")
    other = make("other", start=False, flags={})
    other.trust(address=one.address, public_key=one.identity.public_key)
    one.know(other).reload()
    other.start()
    other.manager.connect(None)
    wait_for(lambda: one.knows(other).current is not None, "connected")
    assert one.manager.state == other.manager.state == "connected"


def test_the_device_is_there_from_the_start_and_goes_with_the_disconnect_of_all(make):
    one = make("one")
    wait_for(lambda: one.tap is not None, "a device without any peer")
    one.manager.disconnect()
    assert one.tap is None
    with pytest.raises(NotConnected, match="all peers are refused"):
        one.manager.disconnect()
    with pytest.raises(NotConfigured):
        one.manager.connect(None)
    assert one.tap is None


def test_a_device_that_cannot_be_made_at_the_start_is_made_when_a_peer_comes(make):
    one, other = make("one", start=False), make("other")
    one.tap_error = DeviceError("no device today")
    one.know(other).start()
    gevent.idle()
    assert one.tap is None
    assert one.manager.device_problem == "no device today"
    one.tap_error = None
    other.know(one=one).reload()
    wait_for(lambda: joined(one, other), "connected")
    assert one.tap is not None


# --- Who is let in ----------------------------------------------------------------------------


def test_a_stranger_with_the_pre_shared_key_is_refused_and_disturbs_nobody(trio, make):
    host, before = trio[0], [sessions(machine) for machine in trio]
    stranger = make("stranger", clock=Clock()).know(a=host).reload()
    stranger.wait_for_error(host)
    wait_for(lambda: host.manager.refused is not None, "told")
    assert [sessions(machine) for machine in trio] == before
    assert host.manager.handshakes["refused"] == 1
    assert "none of those in peers" in host.manager.refused.cause
    trio[1].manager.disconnect("a")
    trio[1].manager.connect(None, "a")
    assert host.manager.refused is None, "somebody has come in from the same address"


def test_who_dials_any_holder_of_the_pre_shared_key_is_refused_by_a_list(make):
    one = make("one")
    careless = make("careless", start=False, flags={}, clock=Clock()).trust(address=one.address)
    one.know(careless).reload()
    careless.start()
    with pytest.raises(PeerRefused):
        careless.manager.connect(None)
    wait_for(lambda: one.manager.refused is not None, "told")
    assert "set peer.public_key" in one.manager.refused.cause


def test_a_dial_takes_nobody_but_whom_it_is_for_though_both_are_listed(make):
    one, other, dialling = make("one"), make("other"), make("dialling", clock=Clock())
    for machine in (one, other):
        machine.know(dialling).reload()
    # The address of `one` is given for `other`: whoever answers there is a peer, but not that one.
    dialling.know(one, other=other.entry(address=one.address)).reload()
    dialling.wait_for_error(other)
    assert sessions(dialling) == {"one": None, "other": None}
    assert one.knows(dialling).current is None
    dialling.know(one=one, other=other).reload()
    wait_for(lambda: joined(dialling, one) and joined(dialling, other), "connected")


def test_a_peer_that_was_taken_off_the_list_in_its_handshake_is_not_let_in(make, monkeypatch):
    one, other = make("one"), make("other", clock=Clock())
    one.know(other).reload()
    authenticated = one.manager._incoming.authenticated

    def too_late(tunnel, result):
        one.know()
        one.manager._reload(one.config)
        authenticated(tunnel, result)

    monkeypatch.setattr(one.manager._incoming, "authenticated", too_late)
    other.know(one=one).reload()
    other.wait_for_error(one)
    wait_for(lambda: one.manager.handshakes["rejected"] == 1, "counted")
    assert one.manager.peers == ()


# --- Both at once -----------------------------------------------------------------------------


def test_two_that_dial_each_other_at_once_end_with_one_session_in_every_round(make):
    one, other, third = make("one"), make("other"), make("third")
    connect_all([one, other, third], both_dial=True)
    kept = one.knows(third).current
    for _ in range(30):
        for machine, peer in ((one, other), (other, one)):
            if machine.knows(peer).wanted:
                machine.manager.disconnect(peer.name)
        assert one.knows(other).held
        assert other.knows(one).held
        # The order of the two, and how far the first comes before the second begins, vary.
        dials = [
            gevent.spawn_later(secrets.randbelow(4) / 1000, dial, machine, peer)
            for machine, peer in ((one, other), (other, one))
        ]
        gevent.joinall(dials, raise_error=True)
        wait_for(lambda: joined(one, other), "one session", COLLISION_WAIT_S + 10)
    assert one.knows(third).current is kept


def dial(machine, peer):
    """Connect; whatever the outcome is, the two have a session soon."""
    try:
        machine.manager.connect(None, peer.name)
    except (AlreadyConnected, PeerRefused, PeerUnreachable, ConnectTimeout):
        return


def test_a_peer_that_comes_anew_replaces_its_own_session_and_no_other(make):
    seed = secrets.token_bytes(32)
    a, b, c = connect_all([make("a"), make("b"), make("c", seed=seed)])
    before = a.knows(c).current
    kept = a.knows(b).current
    make("twin", seed=seed, start=False).know(a=a).start()
    wait_for(lambda: a.knows(c).current not in (None, before), "replaced")
    assert a.knows(b).current is kept
    assert a.manager.state == "connected"


# --- Reload -----------------------------------------------------------------------------------


def test_a_reload_adds_a_peer_and_touches_no_other(trio, make):
    a, b, c = trio
    before = [sessions(machine) for machine in trio]
    d = make("d").know(a=a, b=b, c=c).reload()
    for machine, others in ((a, (b, c)), (b, (a, c)), (c, (a, b))):
        entries = {other.name: machine.knows(other).entry for other in others}
        machine.know(d, **entries).reload()
    wait_for(lambda: meshed([a, b, c, d]), "four in full mesh", PATIENCE_S)
    for machine, was in zip(trio, before, strict=True):
        assert {name: found for name, found in sessions(machine).items() if name != "d"} == was


def test_a_peer_that_is_taken_off_the_list_is_gone_at_once_and_no_other(trio):
    a, b, c = trio
    removed, kept = a.knows(c), a.knows(b).current
    tunnel = removed.current
    a.know(b=a.knows(b).entry).reload()
    assert [peer.name for peer in a.manager.peers] == ["b"]
    assert tunnel.over
    assert removed.current is None
    with pytest.raises(NoSuchPeer):
        a.manager.ping("c")
    wait_for(lambda: c.knows(a).current is None, "the other side hears of it")
    assert c.knows(a).last_error is not None
    assert a.knows(b).current is kept
    assert joined(b, c)
    assert a.tap is not None


def test_who_was_taken_off_comes_in_again_when_it_is_back_on_the_list(trio):
    a, b, c = trio
    entries = {"b": a.knows(b).entry, "c": a.knows(c).entry}
    a.know(b=entries["b"]).reload()
    a.know(**entries).reload()
    wait_for(lambda: joined(a, c), "c is back", PATIENCE_S)
    assert joined(a, b)


def test_another_key_under_the_same_name_is_another_peer(trio, make):
    a, b, c = trio
    kept, lost = a.knows(b).current, a.knows(c).current
    changed = replace(a.knows(c).entry, public_key=make("d").identity.public_key)
    a.know(b=a.knows(b).entry, c=changed).reload()
    assert lost.over
    assert a.knows(c).current is None
    assert a.knows(b).current is kept


def test_another_name_for_the_same_key_is_the_same_peer(trio):
    a, b, c = trio
    kept = a.knows(c).current
    a.know(b=a.knows(b).entry, nas=a.knows(c).entry).reload()
    assert a.manager.peer_named("nas").current is kept
    assert joined(a, b)


def test_another_shared_key_ends_all_sessions_and_who_dials_comes_back(trio):
    before = [tunnel for machine in trio for tunnel in sessions(machine).values()]
    key = Secret(secrets.token_bytes(32))
    for machine in trio:
        encryption = replace(machine.config.encryption, key=key)
        machine.config = replace(machine.config, encryption=encryption)
        machine.reload()
    assert all(tunnel.over for tunnel in before)
    wait_for(lambda: meshed(trio), "a full mesh under the new key", PATIENCE_S)


def test_another_address_changes_only_whom_is_dialled(trio, make):
    a, _, c = trio
    kept = c.knows(a).current
    other_entries = {peer.name: peer.entry for peer in c.manager.peers}
    c.know(**{**other_entries, "a": replace(other_entries["a"], address=NOBODY)}).reload()
    assert c.knows(a).current is kept
    assert c.knows(a).target == NOBODY


def test_a_peer_that_was_dialled_in_vain_is_dialled_at_its_new_address_at_once(make):
    one, dialling = make("one"), make("dialling", clock=Clock())
    one.know(dialling).reload()
    dialling.know(one=one.entry(address=NOBODY)).reload()
    dialling.wait_for_error(one)
    dialling.know(one=one).reload()
    wait_for(lambda: joined(one, dialling), "connected")
    assert not dialling.clock.pending


def test_a_peer_without_an_address_any_more_is_dialled_no_more(make):
    one, dialling = make("one"), make("dialling", clock=Clock())
    dialling.know(one=one.entry(address=NOBODY)).reload()
    dialling.wait_for_error(one)
    dialling.know(one).reload()
    assert dialling.knows(one).machine.state == "disconnected"
    assert dialling.knows(one).expected
    assert not dialling.clock.pending


def test_other_addresses_for_its_frames_end_the_session_which_comes_back(trio):
    a, b, c = trio
    kept, lost, port = a.knows(b).current, a.knows(c).current, a.knows(c).port
    entry = replace(a.knows(c).entry, allowed_macs="own")
    a.know(b=a.knows(b).entry, c=entry).reload()
    assert lost.over
    assert a.knows(b).current is kept
    wait_for(lambda: joined(a, c), "c is back", PATIENCE_S)
    assert a.knows(c).port is not port


def test_a_peer_may_have_as_many_addresses_listed_as_a_list_can_hold(trio):
    a, b, c = trio
    macs = tuple(bytes([2, 0, 0, 0, 0, number]) for number in range(MAX_MACS_PER_PEER))
    a.know(b=a.knows(b).entry, c=replace(a.knows(c).entry, allowed_macs=macs)).reload()
    wait_for(lambda: joined(a, c), "c is back", PATIENCE_S)


def test_a_pair_that_becomes_a_list_keeps_its_session(make):
    one, other = make("one", start=False, flags={}), make("other", start=False, flags={})
    one.trust(public_key=other.identity.public_key).start()
    other.trust(address=one.address, public_key=one.identity.public_key).start()
    other.manager.connect(None)
    wait_for(lambda: one.peer.current is not None, "connected")
    before = one.peer.current
    third = make("third")
    one.know(other, third).reload()
    assert one.knows(other).current is before
    assert one.tap is not None
    one.config = replace(one.config, peer_list=None)
    one.reload()
    assert one.peer.current is before
    assert one.peer.name == "peer"
    other.manager.disconnect()
    wait_for(lambda: one.peer.current is None, "over")


# --- Operators --------------------------------------------------------------------------------


def test_a_disconnect_of_one_peer_touches_no_other(trio):
    a, b, c = trio
    kept, lost = a.knows(b).current, a.knows(c).current
    a.manager.disconnect("c")
    assert a.knows(c).held
    assert lost.over
    assert a.knows(c).machine.state == "disconnected"
    assert (a.knows(b).current, a.manager.state) == (kept, "connected")
    assert a.tap is not None
    with pytest.raises(NotConnected, match="refused"):
        a.manager.disconnect("c")
    # c dials by itself, and is refused until somebody connects.
    wait_for(lambda: c.knows(a).current is None, "c has heard of it")
    c.manager.disconnect("a")
    with pytest.raises(PeerRefused, match="operator has disconnected"):
        c.manager.connect(None, "a")


def test_a_disconnect_of_all_holds_all_and_a_connect_lets_all_in_again(trio, make):
    a, b, c = trio
    b.manager.disconnect()
    assert all(peer.held and peer.current is None for peer in b.manager.peers)
    assert b.manager.state == "disconnected"
    assert b.tap is None
    wait_for(lambda: a.knows(b).current is None, "a has heard of it")
    b.manager.connect(None)  # dials a, and lets c in, who dials
    assert b.tap is not None
    assert not any(peer.held for peer in b.manager.peers)
    c.manager.connect(None)
    wait_for(lambda: meshed(trio), "all are back", PATIENCE_S)
    with pytest.raises(AlreadyConnected):
        b.manager.connect(None)


def test_a_peer_that_is_added_while_all_are_disconnected_is_held_too(make):
    one, other = make("one"), make("other", clock=Clock())
    one.manager.disconnect()
    one.know(other=other).reload()
    assert one.knows(other).held
    assert one.tap is None
    other.know(one=one).reload()
    other.wait_for_error(one)
    one.manager.connect(None, "other")
    assert joined(one, other)


def test_a_disconnect_of_all_is_remembered_over_a_restart_until_somebody_connects(make):
    one, other = make("one", seed=bytes(range(32))), make("other")
    one.manager.disconnect()
    one.stop()
    again = make("one", seed=bytes(range(32)), start=False).know(other=other).start()
    other.know(again).reload()
    wait_for(lambda: again.knows(other).held, "held")
    assert again.tap is None
    assert again.manager.state == "disconnected"
    again.manager.connect(None)
    assert joined(again, other)
    again.stop()
    third = make("one", seed=bytes(range(32)), start=False).know(other=other).start()
    wait_for(lambda: joined(third, other), "connected by itself")


def test_a_connect_of_all_is_a_success_with_the_first(make):
    one, other, dialling = make("one"), make("other"), make("dialling", clock=Clock())
    one.know(dialling).reload()
    here, gone = one.entry(address=one.address), other.entry(address=NOBODY)
    dialling.know(
        one=replace(here, auto_connect=False), other=replace(gone, auto_connect=False)
    ).reload()
    dialling.manager.connect(None)
    assert joined(one, dialling)
    with pytest.raises(PeerUnreachable):
        dialling.manager.connect(None)  # those that are missing


def test_a_target_is_whose_address_it_is_or_has_to_be_named(make):
    one, dialling = make("one"), make("dialling")
    one.know(dialling).reload()
    entry = one.entry(address=NOBODY)
    dialling.know(one=replace(entry, auto_connect=False)).reload()
    with pytest.raises(BadRequest, match="says whom"):
        dialling.manager.connect(one.address)
    with pytest.raises(PeerUnreachable):
        dialling.manager.connect(NOBODY)
    dialling.manager.connect(one.address, "one")
    assert joined(one, dialling)


def test_a_name_that_is_not_there_is_answered_with_the_nearest(trio):
    manager = trio[0].know(nas=trio[1].entry(), c=trio[0].knows(trio[2]).entry).reload().manager
    for ask in (manager.ping, manager.disconnect, lambda name: manager.connect(None, name)):
        with pytest.raises(NoSuchPeer, match='did you mean "nas"'):
            ask("nass")
    with pytest.raises(NoSuchPeer, match="shadowmesh peers"):
        manager.ping("something-else")


def test_a_ping_goes_to_whom_it_is_for(trio):
    a = trio[0]
    assert a.manager.ping("b").rtt_ms is not None
    with pytest.raises(BadRequest, match="say which"):
        a.manager.ping()
    a.manager.disconnect("b")
    with pytest.raises(NotConnected, match="no session with b"):
        a.manager.ping("b")


@pytest.mark.parametrize(
    ("states", "derived"),
    [
        (["disconnected", "disconnected"], "disconnected"),
        (["error", "error"], "connecting"),
        (["disconnected", "error"], "connecting"),
        (["connecting", "connected"], "connected"),
        (["error"], "error"),
        ([], "disconnected"),
    ],
)
def test_the_state_of_the_daemon_is_that_of_the_best_peer(make, states, derived):
    one = make("one").know(
        **{f"p{number}": make(f"p{number}").entry() for number in range(len(states))}
    )
    one.reload()
    for peer, state in zip(one.manager.peers, states, strict=True):
        peer.machine.state = State(state)
    assert one.manager.state == derived
    for peer in one.manager.peers:
        peer.machine.state = State.DISCONNECTED


# --- What all share ---------------------------------------------------------------------------


def test_the_kernel_hands_over_only_what_every_peer_takes(make):
    one, other = make("one"), make("other")
    plain = make("plain", start=False)
    network = replace(plain.config.network, offload=False)
    plain.config = replace(plain.config, network=network)
    plain.start()
    one.know(other, plain).reload()
    other.know(one=one).reload()
    wait_for(lambda: joined(one, other), "connected")
    assert one.tap.offload == OFFLOAD_TCP | OFFLOAD_UDP
    plain.know(one=one).reload()
    wait_for(lambda: joined(one, plain), "connected")
    assert one.tap.offload == 0
    one.manager.disconnect("plain")
    assert one.tap.offload == OFFLOAD_TCP | OFFLOAD_UDP


def test_a_peer_without_a_device_takes_from_nobody_what_the_others_take(make):
    """It drops super-frames as well as others; the kernel goes on handing them to all."""
    one, other = make("one"), make("other")
    headless = make("headless", flags={"network.tap_device": "", "network.offload": "false"})
    connect_all([one, other, headless])
    for machine in (one, other):
        assert machine.tap.offload == OFFLOAD_TCP | OFFLOAD_UDP
    assert headless.taps == []
    one.tap.kernel.send(VNET_HEADER + frame(b"to all"))
    wait_for(lambda: headless.plane.counters()["rx_dropped"]["tap_gone"] == 1, "dropped by name")
    assert headless.plane.counters()["frames_written"] == 0
    assert headless.manager.tap is headless.manager.device_problem is None


def test_when_each_peer_was_last_here_is_known_after_a_restart(trio, make):
    a, b, c = trio
    a.stop()
    again = make("a", seed=None, start=False)
    again.know(b, c).start()
    for other in (b, c):
        assert abs(again.knows(other).last_seen.date - time.time()) < 60


def test_a_stop_ends_all_sessions_and_waits_once_for_all(trio):
    a, b, c = trio
    tunnels = list(sessions(a).values())
    a.manager.stop()
    assert all(tunnel.over for tunnel in tunnels)
    assert a.tap is None
    for other in (b, c):
        wait_for(lambda other=other: other.knows(a).current is None, "they have heard of it")
        assert "stopped" in other.knows(a).last_error
    assert joined(b, c)


def test_a_device_that_is_lost_for_good_ends_all_sessions_until_it_can_be_made(trio):
    a = trio[0]
    for peer in a.manager.peers:
        peer.post(lambda peer=peer: peer.device_failed(DeviceUnavailable("gone")))
    wait_for(lambda: not any(sessions(a).values()), "no session")
    wait_for(lambda: meshed(trio), "all are back", PATIENCE_S)
