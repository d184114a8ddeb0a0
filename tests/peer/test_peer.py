"""The connection manager: two machines in one process, and one machine whose dial is a fake."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import time
from dataclasses import replace
from types import SimpleNamespace

import gevent
import gevent.event
import gevent.socket as gsocket
import pytest

from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import (
    MAX_PER_SOURCE,
    PLACES_FOR_KNOWN,
    RejectReason,
)
from shadowmesh.base.errors import (
    AlreadyConnected,
    AlreadyConnecting,
    ConnectTimeout,
    ControlError,
    DeviceError,
    DeviceUnavailable,
    LocalProtocolError,
    NotConfigured,
    NotConnected,
    NotPermitted,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.config import HostPort
from shadowmesh.config.model import Secret
from shadowmesh.device.tap import OFFLOAD_CHECKSUM, OFFLOAD_TCP, OFFLOAD_UDP
from shadowmesh.insight.events import NOBODY as NOBODY_RECORDS
from shadowmesh.insight.status import Refused
from shadowmesh.insight.vitals import Vitals
from shadowmesh.link.admission import Admission, Limits
from shadowmesh.link.dial import dial
from shadowmesh.link.route import SMALL_SEGMENT_BYTES
from shadowmesh.peer.endings import Ended
from shadowmesh.peer.last_seen import LastSeen
from shadowmesh.peer.peer import COLLISION_WAIT_S, PEER_DISCONNECT_PAUSE_S
from shadowmesh.peer.verdicts import objection
from shadowmesh.service.hub_lag import HubLag
from shadowmesh.service.view import View
from tests.link import othertls
from tests.link.peerport import read_head, request
from tests.peer.machines import PATIENCE_S, Clock, Machine, cut, wait_for

PSK = bytes(range(32))
NOBODY = HostPort("127.0.0.1", 1)


@pytest.fixture(autouse=True)
def patience():
    with gevent.Timeout(4 * PATIENCE_S):
        yield


@pytest.fixture
def make(tmp_path):
    """Makes machines with one pre-shared key, not started; stops them after the test."""
    machines = []

    def build(**options):
        machines.append(Machine(tmp_path / str(len(machines)), **{"psk": PSK, **options}))
        return machines[-1]

    yield build
    for machine in machines:
        machine.stop()


@pytest.fixture
def pair(make):
    """(dialling, listening): started and not connected."""
    listening = make().start()
    dialling = make(clock=Clock()).trust(address=listening.address).start()
    return dialling, listening


@pytest.fixture
def connected(pair):
    dialling, listening = pair
    dialling.manager.connect(None)
    listening.wait_for("connected")
    return pair


@pytest.fixture
def lonely(make):
    """A machine whose dials do what the test puts into `answers`: an exception to raise or an
    event to wait for."""
    answers = []

    def dial(address, path, context, route):
        dialled.append(address)
        answer = answers.pop(0) if answers else PeerUnreachable(f"nobody at {address}")
        if isinstance(answer, Exception):
            raise answer
        answer.wait()
        raise PeerUnreachable("waited in vain")

    dialled = []
    machine = make(clock=Clock(), dial=dial, listen=False).trust(address=NOBODY)
    machine.answers, machine.dialled = answers, dialled
    return machine


def exchange(one, other):
    """Frames cross both ways."""
    for source, sink in ((one, other), (other, one)):
        sent = source.send(secrets.token_bytes(100))
        assert sink.receive() == sent


def outcome_of(call, *arguments):
    """Run a call in a greenlet; return it, its exception kept."""
    greenlet = gevent.Greenlet(call, *arguments)
    greenlet.start()
    return greenlet


def break_link(machine):
    """End the TCP connection of the live tunnel, without a word."""
    cut(machine.peer.current.wss.link._stream)


# --- Two machines -----------------------------------------------------------------------------


def test_a_dial_connects_two_machines_and_frames_cross_both_ways(connected):
    dialling, listening = connected
    exchange(dialling, listening)
    for machine in connected:
        assert machine.peer.last_error is None
        assert machine.manager.handshakes == {"ok": 1}
        assert machine.peer.reconnects == 0
    assert dialling.peer.current.initiator
    assert dialling.peer.current.peer_public_key == listening.identity.public_key
    assert listening.peer.current.peer_public_key == dialling.identity.public_key


def test_a_disconnect_undoes_everything_in_reverse_order(connected):
    dialling, listening = connected
    tunnel, log = dialling.peer.current, dialling.log
    end = tunnel._keying.end
    tunnel._keying.end = lambda *what: (log.append("keys erased"), end(*what))
    dialling.manager.disconnect()
    assert dialling.state == "disconnected"
    assert log == ["tap opened", "keys erased", "tap closed"]
    listening.wait_for("connecting", "waiting_for_peer")
    assert not listening.tap.closed


def stands(machine, stands=True):
    """The link of the live session gets nowhere, or goes on after all."""
    peer, tunnel = machine.peer, machine.peer.current
    peer.post(lambda: peer.link_stands(tunnel, stands))


def test_a_link_that_stands_is_replaced_by_one_with_short_segments(connected):
    dialling, listening = connected
    before = dialling.peer.current
    assert not before.wss.short_segments
    stands(dialling)
    wait_for(lambda: dialling.peer.current is not before, "another session")
    wait_for(lambda: before.over, "the old one is over")
    for machine in connected:
        assert machine.state == "connected"
        wait_for(lambda machine=machine: machine.peer.current.wss.short_segments, "short")
    exchange(dialling, listening)
    replacement = dialling.peer.current
    stands(dialling)  # now it cannot be the length
    gevent.sleep(0.05)
    assert not dialling.peer.dialling
    assert dialling.peer.current is replacement


def test_a_link_that_goes_on_after_all_keeps_its_session(make):
    listening, stuck = make().start(), gevent.event.Event()
    dials = []

    def dial_once(address, path, context, route):
        dials.append(route.segment_bytes)
        if len(dials) > 1:
            stuck.wait()
        return dial(address, path, context, route)

    dialling = make(dial=dial_once).trust(address=listening.address).start()
    dialling.manager.connect(None)
    before = dialling.peer.current
    stands(dialling)
    wait_for(lambda: dialling.peer.dialling, "another dial")
    stands(dialling, stands=False)
    wait_for(lambda: not dialling.peer.dialling, "it is given up")
    assert dialling.peer.current is before
    assert dials[0] is None
    assert dials[1] is not None
    exchange(dialling, listening)


def test_a_link_that_stands_on_the_side_that_cannot_dial_is_left_alone(connected):
    _, listening = connected
    before = listening.peer.current
    stands(listening)
    gevent.sleep(0.05)
    assert listening.peer.current is before
    assert not listening.peer.dialling


def test_a_handshake_without_an_answer_is_tried_again_with_short_segments(make, monkeypatch):
    monkeypatch.setattr("shadowmesh.wire.session.attempts.HANDSHAKE_MESSAGE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("shadowmesh.peer.outgoing.SILENCE_S", 0.1)
    listening, segments = make().start(), []
    silent = []  # connections that nobody says anything on
    take, listening.listener._on_upgraded = listening.listener._on_upgraded, silent.append

    def watched(address, path, context, route):
        segments.append(route.segment_bytes)
        if len(segments) == 2:
            listening.listener._on_upgraded = take
        return dial(address, path, context, route)

    dialling = make(dial=watched, clock=Clock()).trust(address=listening.address).start()
    dialling.manager.connect(None)
    for upgraded in silent:
        upgraded.sock.close()
        upgraded.release()
    assert segments == [None, SMALL_SEGMENT_BYTES]
    assert dialling.peer.current.wss.short_segments
    exchange(dialling, listening)


def test_a_peer_that_left_is_taken_in_again(connected):
    dialling, listening = connected
    dialling.manager.disconnect()
    listening.wait_for("connecting", "waiting_for_peer")
    assert "disconnect" in listening.peer.last_error
    dialling.manager.connect(None)
    listening.wait_for("connected")
    exchange(dialling, listening)
    assert [machine.peer.reconnects for machine in connected] == [0, 0], "it was said before"
    assert len(listening.taps) == 1


def test_connections_leave_no_descriptor_behind(pair):
    dialling, listening = pair

    def round_trip():
        dialling.manager.connect(None)
        listening.wait_for("connected")
        dialling.manager.disconnect()
        listening.wait_for("connecting")

    round_trip()
    gc.collect()
    gc.disable()  # what is left to the collector is left open for some time
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            round_trip()
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors are closed")
    finally:
        gc.enable()


def test_another_key_is_refused_and_both_sides_say_why(make, caplog):
    listening = make(psk=secrets.token_bytes(32)).start()
    dialling = make().trust(address=listening.address).start()
    with pytest.raises(PeerRefused, match=r"refused the handshake.*encryption.key"):
        dialling.manager.connect(None)
    assert dialling.state == "error"
    assert dialling.tap is None
    wait_for(lambda: listening.manager.handshakes, "the refusal is counted")
    assert listening.manager.handshakes == dialling.manager.handshakes == {"refused": 1}
    assert listening.state == "disconnected"
    [record] = [r for r in caplog.records if r.message == "incoming handshake failed"]
    assert "another encryption.key" in record.fields["cause"]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_daemon_that_dials_itself_is_told_so_once(make, caplog, pinned):
    machine = make(clock=Clock())
    if pinned:
        machine.trust(public_key=make().identity.public_key)
    machine.start()
    with pytest.raises(PeerRefused, match="this is the daemon itself; give the address"):
        machine.manager.connect(machine.address)
    wait_for(lambda: machine.manager.handshakes == {"refused": 2}, "both ends of it have failed")
    assert machine.manager.refused is None
    assert not [r for r in caplog.records if r.message == "incoming handshake failed"]


def test_a_lost_link_is_dialled_again_by_the_side_that_dialled(connected):
    dialling, listening = connected
    break_link(listening)
    listening.wait_for("connecting", "waiting_for_peer")
    dialling.wait_for("connecting", "backoff")
    assert dialling.peer.last_error
    assert dialling.peer.next_retry_at is not None
    assert 0.8 <= dialling.clock.fire() <= 1.2
    dialling.wait_for("connected")
    listening.wait_for("connected")
    exchange(dialling, listening)
    for machine in connected:
        assert machine.peer.reconnects == 1
        assert machine.peer.last_error is None
        assert len(machine.taps) == 1


def test_the_operator_need_not_wait_for_the_next_dial(connected):
    dialling, listening = connected
    break_link(listening)
    dialling.wait_for("connecting", "backoff")
    dialling.manager.connect(None)
    assert dialling.state == "connected"
    assert dialling.clock.pending == []


@pytest.mark.parametrize("automatic", [True, False])
def test_a_peer_whose_operator_disconnected_is_left_alone(make, automatic):
    listening = make().start()
    dialling = make(clock=Clock()).trust(address=listening.address, auto_connect=automatic)
    dialling.start()
    if not automatic:
        dialling.manager.connect(None)
    # Both: one that hears of it while it connects has been refused, which is another thing.
    dialling.wait_for("connected")
    listening.wait_for("connected")
    listening.manager.disconnect()
    if automatic:
        dialling.wait_for("connecting", "backoff")
        assert dialling.clock.fire() == PEER_DISCONNECT_PAUSE_S
        dialling.wait_for("error")
        assert "its operator has disconnected" in dialling.peer.last_error
        assert dialling.peer.next_retry_at is not None
        assert listening.state == "disconnected"
        assert listening.peer.held
        assert listening.manager.refused is None, "the operator knows"
    else:
        dialling.wait_for("disconnected")
        assert dialling.tap is None
        assert "disconnect" in dialling.peer.last_error


def test_who_has_disconnected_lets_the_peer_in_again_by_connecting(make):
    """Also a side that cannot dial: it then waits for the outcome like any other."""
    listening = make().start()
    dialling = make(clock=Clock()).trust(address=listening.address, auto_connect=True).start()
    dialling.wait_for("connected")
    listening.wait_for("connected")
    listening.manager.disconnect()
    with pytest.raises(NotConnected, match="the peer is refused"):
        listening.manager.disconnect()
    call = outcome_of(listening.manager.connect, None)
    listening.wait_for("connecting", "waiting_for_peer")
    assert not listening.peer.held
    assert dialling.clock.fire() == PEER_DISCONNECT_PAUSE_S
    call.join()
    assert call.exception is None
    assert listening.state == "connected"
    exchange(dialling, listening)
    assert [machine.peer.reconnects for machine in (dialling, listening)] == [0, 0]


def test_a_connect_that_waits_for_a_peer_that_does_not_come_goes_on_waiting(make, monkeypatch):
    monkeypatch.setattr("shadowmesh.peer.manager.CONNECT_TIMEOUT_S", 0.01)
    listening = make().start()
    listening.manager.disconnect()
    with pytest.raises(ConnectTimeout, match="let in again, has not come"):
        listening.manager.connect(None)
    assert (listening.state, listening.phase) == ("connecting", "waiting_for_peer")


def test_a_side_that_cannot_dial_waits_for_its_peer_and_can_be_told_not_to(pair):
    dialling, listening = pair
    assert listening.peer.expected
    assert not dialling.peer.expected, "its operator has to ask"
    listening.manager.disconnect()
    assert not listening.peer.expected
    with pytest.raises(PeerRefused, match="its operator has disconnected"):
        dialling.manager.connect(None)
    assert listening.state == "disconnected"


def test_an_operator_who_has_disconnected_the_dialling_side_is_not_overruled_by_the_peer(connected):
    dialling, listening = connected
    dialling.manager.disconnect()
    listening.wait_for("connecting", "waiting_for_peer")
    with pytest.raises(PeerRefused, match="its operator has disconnected"):
        listening.manager.connect(dialling.address)
    assert dialling.state == "disconnected"


def test_a_changed_peer_in_the_configuration_ends_what_an_operator_wanted_of_the_old_one(pair):
    dialling, listening = pair
    listening.manager.disconnect()
    config = listening.manager.config
    pinned = replace(config.peer, public_key=dialling.identity.public_key)
    listening.manager.reload(replace(config, peer=pinned))
    wait_for(lambda: not listening.peer.held, "the peer is let in")
    dialling.manager.connect(None)
    listening.wait_for("connected")


@pytest.mark.parametrize("how", ["link", "crash"])
def test_both_sides_count_the_same_reconnects(make, how, monkeypatch):
    """Whoever notices the loss first, and whether or not an operator is quicker than the timer."""
    listening = make().start()
    dialling = make(clock=Clock()).trust(address=listening.address).start()
    for lost in range(3):
        dialling.manager.connect(None)
        listening.wait_for("connected")
        wait_for(lambda: listening.peer.reconnects == dialling.peer.reconnects, "counted")
        assert dialling.peer.reconnects == lost
        if how == "link":
            break_link(dialling)
        else:  # the listener believes in the session until the peer comes anew
            tunnel = dialling.peer.current
            dialling.peer.ended(tunnel, Ended("gone without a word", "link_lost"))
        dialling.wait_for("connecting", "backoff")


def test_when_the_peer_was_last_here_is_known_after_a_restart(make, tmp_path):
    listening = make().start()
    assert listening.peer.last_seen.date is None
    dialling = make(clock=Clock()).trust(address=listening.address).start()
    dialling.manager.connect(None)
    listening.wait_for("connected")
    dialling.stop()
    listening.wait_for("connecting", "waiting_for_peer")
    directory = listening.manager.config.daemon.state_dir
    assert abs(LastSeen(directory).date - time.time()) < 60
    (directory / "last_seen").write_text("yesterday\n")
    assert LastSeen(directory).date is None
    assert LastSeen(directory / "empty.yaml").date is None, "no directory"
    LastSeen(directory / "none").here()


def test_a_restarted_peer_replaces_its_old_session(make):
    seed = secrets.token_bytes(32)
    listening = make().start()
    old, new = (make(seed=seed, clock=Clock()).trust(address=listening.address).start()
                for _ in range(2))  # fmt: skip
    old.manager.connect(None)
    listening.wait_for("connected")
    first = listening.peer.current
    new.manager.connect(None)
    wait_for(lambda: listening.peer.current is not first, "replaced")
    exchange(new, listening)
    assert listening.state == "connected"
    # The one that was thrown out is no restarted peer here, but a second one with the same key.
    old.wait_for("error")
    assert "identity.key" in old.peer.last_error
    assert [entry.delay_s > 0.5 for entry in old.clock.pending] == [True]


def test_an_address_behind_which_a_peer_was_is_known_to_both(connected):
    for machine in connected:
        assert machine.known.holds("127.0.0.1", boottime())
        assert not machine.known.holds("127.0.0.2", boottime())


def test_another_holder_of_the_key_does_not_take_the_seat(connected, make):
    _, listening = connected
    stranger = make().trust(address=listening.address).start()
    with pytest.raises(PeerRefused, match=r"busy.*another daemon"):
        stranger.manager.connect(None)
    assert listening.state == "connected"
    assert stranger.manager.handshakes == {"rejected": 1}
    wait_for(lambda: listening.manager.handshakes["rejected"], "the refusal is counted")


def test_strangers_who_fill_the_peer_port_make_room_for_the_peer(pair):
    dialling, listening = pair
    # Few, so that none of them is too late for its handshake before all are there.
    strangers_at_most = 3
    limits = Limits(handshake=strangers_at_most + PLACES_FOR_KNOWN)
    listening.listener._admission = Admission(limits)
    with contextlib.ExitStack() as strangers:
        for number in range(strangers_at_most):
            source = f"127.0.0.{2 + number // MAX_PER_SOURCE}"
            address = (listening.address.host, listening.address.port)
            raw = strangers.enter_context(
                gsocket.create_connection(address, PATIENCE_S, (source, 0))
            )
            sock = strangers.enter_context(othertls.client_context().wrap_socket(raw))
            sock.sendall(request())
            assert "101" in read_head(sock)[0]
        wait_for(lambda: listening.listener.unauthenticated == strangers_at_most, "full")
        dialling.manager.connect(None)
        listening.wait_for("connected")
        exchange(dialling, listening)
        assert listening.listener.counters["evicted_handshake"] == 1
        assert listening.listener.unauthenticated == strangers_at_most - 1


def test_both_sides_may_dial_at_once_and_both_operators_succeed(make):
    one = make(clock=Clock()).start()
    other = make(clock=Clock()).start()
    for _ in range(18):  # 20 dials a second are what a listener takes from one source
        calls = [outcome_of(one.manager.connect, other.address),
                 outcome_of(other.manager.connect, one.address)]  # fmt: skip
        gevent.joinall(calls, raise_error=True)
        for machine in (one, other):
            machine.wait_for("connected")
        # Exactly one session, and the same on both sides.
        initiators = [machine.peer.current.initiator for machine in (one, other)]
        assert sorted(initiators) == [False, True]
        exchange(one, other)
        for machine in (one, other):
            assert machine.peer.reconnects == 0
            with contextlib.suppress(NotConnected):
                machine.manager.disconnect()
        one.wait_for("disconnected")
        wait_for(lambda: not (one.manager._incoming or other.manager._incoming), "links closed")


@pytest.mark.parametrize("our_key_is_larger", [True, False])
@pytest.mark.parametrize("side", ["dialled", "current"])
@pytest.mark.parametrize(
    ("established_at", "began_at", "rival"),
    [(None, 5.0, True), (6.0, 5.0, True), (6.0, 7.0, False)],
    ids=["our dial is under way", "our dial was faster", "the peer restarted afterwards"],
)
def test_the_larger_key_wins_against_connections_from_before_it_was_established(
    our_key_is_larger, side, established_at, began_at, rival
):
    keys = sorted(secrets.token_bytes(32) for _ in range(2))
    ours, theirs = keys[::-1] if our_key_is_larger else keys
    dial = SimpleNamespace(
        initiator=True, peer_public_key=theirs, established_boottime=established_at
    )
    incoming = SimpleNamespace(initiator=False, started_at=began_at, peer_name="peer")
    others = {"current": None, "dialled": None, side: dial}
    verdict = objection(incoming, theirs, ours, **others)
    assert verdict == (RejectReason.COLLISION if rival and our_key_is_larger else None)


def test_the_loser_of_a_collision_does_not_wait_for_ever(make, monkeypatch):
    """The peer says that its own connection comes, and then it does not come."""
    listening = make().start()
    dialling = make(clock=Clock()).trust(address=listening.address).start()
    verdict = RejectReason.COLLISION
    monkeypatch.setattr("shadowmesh.peer.peer.objection", lambda *_, **__: verdict)
    call = outcome_of(dialling.manager.connect, None)
    wait_for(lambda: dialling.clock.pending, "waits for the peer's connection")
    assert dialling.state == "connecting"
    assert dialling.clock.fire() == COLLISION_WAIT_S
    call.join()
    assert isinstance(call.exception, PeerRefused)
    assert dialling.state == "error"


def test_a_stop_tells_the_peer_and_is_quick(connected):
    dialling, listening = connected
    dialling.stop()
    listening.wait_for("connecting", "waiting_for_peer")
    assert listening.peer.last_error == "the peer's daemon has stopped"
    assert dialling.tap is None
    dialling.stop()  # once more is harmless


def test_a_connection_is_not_taken_in_while_stopping_or_without_keys(pair, make):
    dialling, listening = pair
    listening.manager._common.stopping = True
    with pytest.raises(PeerUnreachable):
        dialling.manager.connect(None)
    keyless = make(psk=None).start()
    with pytest.raises(PeerUnreachable):
        dialling.manager.connect(keyless.address)
    assert keyless.state == "disconnected"


def test_a_session_on_udp_that_was_given_up_may_still_lose_its_link(connected):
    """Its attempt was aborted while the word that it is established was on its way."""
    dialling, _ = connected
    tunnel = dialling.peer.current
    for owner in (dialling.peer._outgoing, dialling.manager._incoming):
        owner.link_lost(tunnel)
    assert dialling.peer.current is tunnel
    assert dialling.state == "connected"


# --- What may be asked when -------------------------------------------------------------------


def test_connecting_twice_is_a_conflict(connected):
    dialling, _ = connected
    with pytest.raises(AlreadyConnected):
        dialling.manager.connect(None)


def test_connecting_while_a_dial_runs_is_a_conflict_and_a_disconnect_ends_it(lonely):
    hanging = gevent.event.Event()
    lonely.answers.append(hanging)
    lonely.start()
    call = outcome_of(lonely.manager.connect, None)
    lonely.wait_for("connecting", "dialling")
    with pytest.raises(AlreadyConnecting):
        lonely.manager.connect(None)
    lonely.manager.disconnect()
    call.join()
    assert isinstance(call.exception, NotConnected)
    assert lonely.state == "disconnected"
    hanging.set()
    gevent.sleep(0.01)
    assert lonely.state == "disconnected"
    assert lonely.peer.last_error is None


def test_a_dial_that_arrives_after_it_was_given_up_is_closed(make):
    listening = make().start()
    released = gevent.event.Event()
    upgraded = []

    def slow(address, path, context, route):
        upgraded.append(dial(address, path, context, route))
        with contextlib.suppress(gevent.GreenletExit):
            released.wait()  # as if it had been a moment faster than the kill
        return upgraded[0]

    dialling = make(dial=slow).trust(address=listening.address).start()
    outcome_of(dialling.manager.connect, None)
    wait_for(lambda: upgraded, "upgraded")
    dialling.manager.disconnect()
    wait_for(lambda: upgraded[0].sock.fileno() == -1, "the socket is closed")
    assert dialling.state == "disconnected"


def test_a_disconnect_without_a_connection_is_a_conflict(lonely):
    lonely.start()
    with pytest.raises(NotConnected):
        lonely.manager.disconnect()


def test_nobody_to_connect_to_is_said(lonely):
    lonely.trust(address=None).start()
    with pytest.raises(NotConfigured, match=r"peer\.address"):
        lonely.manager.connect(None)
    assert lonely.state == "disconnected"


def test_a_machine_without_keys_does_not_connect(make):
    machine = make(psk=None).trust(address=NOBODY, auto_connect=True).start()
    with pytest.raises(NotConfigured, match=r"encryption\.key"):
        machine.manager.connect(None)
    assert machine.state == "disconnected"


def test_no_argument_means_the_configured_peer_also_after_another_one(lonely):
    lonely.start()
    for peer in (HostPort("127.0.0.1", 2), None):
        with pytest.raises(PeerUnreachable):
            lonely.manager.connect(peer)
    assert lonely.dialled == [HostPort("127.0.0.1", 2), NOBODY]


def test_an_outcome_that_does_not_come_is_a_timeout(lonely, monkeypatch):
    monkeypatch.setattr("shadowmesh.peer.manager.CONNECT_TIMEOUT_S", 0.01)
    lonely.answers.append(gevent.event.Event())
    lonely.start()
    with pytest.raises(ConnectTimeout):
        lonely.manager.connect(None)
    assert lonely.state == "connecting"


# --- Failures and what follows ----------------------------------------------------------------


def test_a_failed_dial_is_undone(lonely):
    lonely.start()
    with pytest.raises(PeerUnreachable):
        lonely.manager.connect(None)
    assert lonely.state == "error"
    assert lonely.log == ["tap opened", "tap closed"]
    assert lonely.peer.last_error == f"nobody at {NOBODY}"
    assert lonely.clock.pending == []
    lonely.manager.disconnect()
    assert lonely.state == "disconnected"
    assert lonely.peer.last_error is None


def test_an_automatic_dialler_waits_longer_each_time_and_keeps_the_device(lonely):
    lonely.trust(auto_connect=True).start()
    delays = []
    for _ in range(8):
        wait_for(lambda: lonely.clock.pending, "the next pause")
        assert lonely.state == "error"
        assert lonely.peer.next_retry_at is not None
        delays.append(lonely.clock.fire())
        wait_for(lambda: len(lonely.dialled) > len(delays), "dialled again")
    for delay, wanted in zip(delays, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert 0.8 * wanted <= delay <= 1.2 * wanted
    assert lonely.log == ["tap opened"]


def test_the_same_failure_is_not_said_every_time(lonely, caplog):
    lonely.trust(auto_connect=True).start()
    for _ in range(3):
        lonely.clock.fire()
    wait_for(lambda: len(lonely.dialled) == 4, "dialled four times")
    said = [r.levelname for r in caplog.records if r.message == "cannot connect"]
    assert said[0] == "WARNING"
    assert set(said[1:]) <= {"DEBUG"}


def test_an_operator_starts_the_pauses_anew(lonely):
    lonely.trust(auto_connect=True).start()
    for _ in range(4):
        lonely.clock.fire()
    wait_for(lambda: lonely.clock.pending, "the next pause")
    with pytest.raises(PeerUnreachable):
        lonely.manager.connect(None)
    assert lonely.clock.fire() <= 1.2


def test_a_peer_that_was_asked_for_and_is_not_there_is_not_dialled_for_ever(lonely):
    lonely.trust(auto_connect=True).start()
    lonely.wait_for("error")
    with pytest.raises(PeerUnreachable):
        lonely.manager.connect(HostPort("127.0.0.1", 2))
    lonely.clock.fire()
    wait_for(lambda: len(lonely.dialled) == 3, "dialled again")
    assert lonely.dialled[2] == NOBODY


def test_a_bug_in_a_dial_is_an_error_and_not_the_end(lonely, caplog):
    lonely.answers.append(ZeroDivisionError("a bug"))
    lonely.start()
    with pytest.raises(PeerUnreachable, match="internal error"):
        lonely.manager.connect(None)
    assert lonely.state == "error"
    assert "a dial failed by a bug" in caplog.messages
    with pytest.raises(PeerUnreachable, match="nobody"):
        lonely.manager.connect(None)


def test_a_bug_in_a_message_is_logged_and_answered(lonely, caplog, monkeypatch):
    monkeypatch.setattr(lonely.device, "open", lambda: 1 / 0)
    lonely.start()
    with pytest.raises(ControlError, match="internal error"):
        lonely.manager.connect(None)
    assert lonely.state == "error"
    assert "a message to the connection manager failed" in caplog.messages
    monkeypatch.undo()
    with pytest.raises(PeerUnreachable):
        lonely.manager.connect(None)


def test_a_bug_in_what_a_reload_begins_is_followed_by_another_attempt(lonely, monkeypatch):
    """Nobody asked this peer for anything: the message is the manager's."""
    lonely.start()
    monkeypatch.setattr(lonely.device, "open", lambda: 1 / 0)
    config = lonely.manager.config
    lonely.manager.reload(replace(config, peer=replace(config.peer, auto_connect=True)))
    lonely.wait_for("error")
    assert "internal error" in lonely.peer.last_error
    monkeypatch.undo()
    lonely.clock.fire()
    wait_for(lambda: lonely.dialled == [NOBODY], "dialled again")


def test_a_bug_while_a_peer_is_taken_in_leaves_no_session_behind(pair, monkeypatch):
    dialling, listening = pair
    monkeypatch.setattr(listening.device, "offload", lambda *_, **__: 1 / 0)
    dialling.manager.connect(None)
    wait_for(lambda: not len(listening.manager._incoming), "nobody waits for its end")
    dialling.manager.disconnect()
    monkeypatch.undo()
    dialling.manager.connect(None)
    listening.wait_for("connected")


@pytest.mark.parametrize(
    "error", [LocalProtocolError("all seats taken"), OSError(24, "EMFILE"), MemoryError()]
)
def test_a_session_that_cannot_be_made_is_a_failed_attempt(pair, monkeypatch, error):
    dialling, listening = pair

    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr("shadowmesh.peer.common.Tunnel", refuse)
    with pytest.raises(PeerUnreachable):
        dialling.manager.connect(None)
    assert dialling.state == "error"
    assert listening.state == "disconnected"
    monkeypatch.undo()
    dialling.manager.connect(None)
    listening.wait_for("connected")


# --- The device -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [DeviceError("no such device", 19), NotPermitted("not you")])
def test_without_a_device_there_is_no_connection(pair, error):
    dialling, listening = pair
    dialling.tap_error = error
    with pytest.raises(DeviceUnavailable, match=str(error)):
        dialling.manager.connect(None)
    assert dialling.state == "error"
    dialling.tap_error = None
    dialling.manager.connect(None)
    dialling.manager.disconnect()
    listening.wait_for("connecting")
    listening.device.close()
    listening.tap_error = error
    with pytest.raises(PeerRefused, match="busy"):
        dialling.manager.connect(None)
    assert listening.phase == "waiting_for_peer"
    assert listening.peer.last_error == str(error)


def test_a_lost_device_is_made_again_under_the_live_session(connected, monkeypatch):
    dialling, listening = connected
    monkeypatch.setattr(type(dialling.device), "lost", True)
    dialling.manager._device_lost()
    assert len(dialling.taps) == 2
    assert dialling.taps[0].closed
    exchange(dialling, listening)
    assert dialling.state == listening.state == "connected"


def test_a_device_that_does_not_come_back_ends_the_session(connected, monkeypatch):
    dialling, listening = connected
    monkeypatch.setattr("shadowmesh.device.device.RENEW_PAUSE_S", 0.001)
    monkeypatch.setattr(type(dialling.device), "lost", True)
    dialling.tap_error = DeviceError("taken by somebody else")
    dialling.manager._mailbox.post(dialling.manager._device_lost)
    dialling.wait_for("error")
    assert "taken by somebody else" in dialling.peer.last_error
    assert dialling.tap is None
    listening.wait_for("connecting", "waiting_for_peer")


@pytest.mark.parametrize(("ours", "theirs"), [(True, True), (True, False), (False, True)])
def test_super_frames_are_taken_only_when_both_sides_can(make, ours, theirs):
    flags = [{"network.offload": str(wanted).lower()} for wanted in (ours, theirs)]
    listening = make(flags=flags[1]).start()
    dialling = make(flags=flags[0]).trust(address=listening.address).start()
    dialling.manager.connect(None)
    listening.wait_for("connected")
    flags = OFFLOAD_TCP | OFFLOAD_UDP if ours and theirs else 0
    assert dialling.tap.offload == listening.tap.offload == flags


def test_whom_the_host_asked_for_before_the_peer_was_there_is_asked_for_again(make):
    listening = make().start()
    dialling = make().trust(address=listening.address).start()
    dialling.manager.connect(None)
    listening.wait_for("connected")
    dialling.wait_for("connected")
    assert dialling.tap.asked_again == listening.tap.asked_again == 1


@pytest.mark.parametrize("old", [0, 1])
def test_a_peer_with_an_older_kernel_gets_no_super_frames_of_datagrams(make, old):
    sides = make(), make()
    for side, udp_super_frames in zip(sides, (old == 1, old == 0), strict=True):
        side.device.udp_super_frames = side.udp_super_frames = udp_super_frames
    listening = sides[0].start()
    dialling = sides[1].trust(address=listening.address).start()
    dialling.manager.connect(None)
    listening.wait_for("connected")
    assert sides[1 - old].tap.offload == OFFLOAD_TCP


@pytest.mark.parametrize(
    ("without", "flags"),
    [("tso", OFFLOAD_CHECKSUM), ("csum", 0), ("gso", OFFLOAD_TCP | OFFLOAD_UDP)],
)
def test_a_developer_can_switch_super_frames_and_checksums_off(make, without, flags):
    listening = make().start()
    dialling = make(without=(without,)).trust(address=listening.address).start()
    dialling.manager.connect(None)
    listening.wait_for("connected")
    assert dialling.tap.offload == flags
    assert listening.tap.offload == OFFLOAD_TCP | OFFLOAD_UDP


# --- Reload -----------------------------------------------------------------------------------


def test_a_reload_without_the_peer_ends_its_session(connected):
    dialling, listening = connected
    config = listening.manager.config
    other = replace(config.peer, public_key=secrets.token_bytes(32))
    listening.manager.reload(replace(config, peer=other))
    listening.wait_for("disconnected")
    dialling.wait_for("connecting")


def test_a_reload_of_something_else_keeps_the_session(connected):
    dialling, _ = connected
    config = dialling.manager.config
    tunnel = dialling.peer.current
    changed = replace(
        config,
        encryption=replace(config.encryption, rotation_interval=30.0),
        network=replace(config.network, mtu=9000),
    )
    dialling.manager.reload(changed)
    wait_for(lambda: dialling.manager.config is not config, "reloaded")
    assert dialling.manager.config.encryption.rotation_interval == 30.0
    assert dialling.manager.config.network.mtu == 1500, "this key needs a restart"
    assert dialling.peer.current is tunnel


def test_a_reload_may_bring_the_peer_to_dial(pair):
    dialling, listening = pair
    config = dialling.manager.config
    dialling.manager.reload(
        replace(config, peer=replace(config.peer, address=listening.address, auto_connect=True))
    )
    listening.wait_for("connected")


def _with_key(config, key):
    return replace(config, encryption=replace(config.encryption, key=key and Secret(key)))


def _reload_key(machine, key):
    """Give a machine another key; return when it has begun to use it."""
    config = machine.manager.config
    machine.manager.reload(_with_key(config, key))
    wait_for(lambda: machine.manager.config is not config, "reloaded")


def test_a_reload_with_another_key_ends_the_session_and_an_automatic_dialler_comes_back(make):
    listening = make().start()
    dialling = make(clock=Clock()).trust(address=listening.address, auto_connect=True).start()
    before = listening.wait_for("connected").peer.current
    for machine in (listening, dialling):
        _reload_key(machine, secrets.token_bytes(32))
    # Until then the state, and the TAP that is about to be closed, are those of the old session.
    listening.wait_for("disconnected")
    assert before.over
    for machine in (listening, dialling):
        _reload_key(machine, PSK)
    for machine in (listening, dialling):
        machine.wait_for("connected")
    exchange(dialling, listening)


def test_the_first_key_lets_an_automatic_dialler_dial(make):
    listening = make().start()
    dialling = make(psk=None).trust(address=listening.address, auto_connect=True).start()
    wait_for(lambda: dialling.manager.config.mode == 0, "no key")
    dialling.manager.reload(_with_key(dialling.manager.config, PSK))
    listening.wait_for("connected")


def test_another_key_does_not_dial_for_an_operator_who_has_disconnected(make):
    listening = make().start()
    dialling = make().trust(address=listening.address, auto_connect=True).start()
    listening.wait_for("connected")
    dialling.manager.disconnect()
    config = dialling.manager.config
    dialling.manager.reload(_with_key(config, secrets.token_bytes(32)))
    wait_for(lambda: dialling.manager.config is not config, "reloaded")
    assert dialling.state == "disconnected"
    assert not dialling.peer.dialling


def test_a_handshake_that_began_under_the_old_key_is_not_taken_in(pair, monkeypatch):
    dialling, listening = pair
    incoming_of = listening.manager._incoming
    authenticated, late = incoming_of.authenticated, []
    monkeypatch.setattr(incoming_of, "authenticated", lambda *what: late.append(what))
    call = outcome_of(dialling.manager.connect, None)
    [(incoming, result)] = wait_for(lambda: late, "message 3 has come")
    listening.manager.reload(_with_key(listening.manager.config, secrets.token_bytes(32)))
    wait_for(lambda: incoming.over, "the handshake has ended")
    listening.manager._mailbox.post(lambda: authenticated(incoming, result))
    call.join()
    assert isinstance(call.exception, ControlError)
    wait_for(lambda: listening.manager.handshakes, "it is counted")
    assert listening.manager.handshakes == {"closed": 1}
    assert listening.state == "disconnected"


# --- The wall clock is set --------------------------------------------------------------------

TEN_YEARS = 10 * 365.25 * 86400.0


@pytest.mark.parametrize("jump_s", [TEN_YEARS, -TEN_YEARS])
def test_a_clock_that_is_set_by_years_changes_no_age_and_no_timer(connected, monkeypatch, jump_s):
    """In the sessions, the snapshot, the pause before the next dial and what a stranger left."""
    dialling, listening = connected
    views = [
        View(machine.manager, HubLag(lambda: None), Vitals(NOBODY_RECORDS), machine._certificate,
             lambda: None, SimpleNamespace(listener=None), lambda: None,
             SimpleNamespace(inside=lambda _to: None, advice=lambda _to: None, generation=0,
                             refused={}))
        for machine in connected
    ]  # fmt: skip
    listening.manager._common.refused = Refused("192.0.2.1:5", "a stranger", boottime() - 30)

    def ages():
        found = []
        for view in views:
            snapshot = view.snapshot()
            since = (snapshot.since, snapshot.session.established_at, snapshot.link.since)
            ahead = (snapshot.session.next_rekey_at, snapshot.session.keys_expire_at)
            moments = (*since, *ahead)
            found += [snapshot.now - moment for moment in moments if moment is not None]
        found.append(snapshot.now - snapshot.refused.failed_at)
        return found

    before, real = ages(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    assert ages() == pytest.approx(before, abs=PATIENCE_S)
    exchange(dialling, listening)
    break_link(listening)
    dialling.wait_for("connecting", "backoff")
    snapshot = views[0].snapshot()
    assert 0 < snapshot.next_retry_at - snapshot.now <= 1.2
    assert snapshot.now - snapshot.last_error_at < PATIENCE_S
    assert dialling.clock.fire() <= 1.2
    listening.wait_for("connected")
    exchange(dialling, listening)
