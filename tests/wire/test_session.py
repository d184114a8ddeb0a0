"""The session machine: its straight line, every refusal, and an adversarial scheduler."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shadowmesh.base.constants import (
    CLOSE_AFTER_FAILED,
    KEY_LIFETIME_S,
    REKEY_AFTER_FAILED,
    REKEY_AFTER_RECORDS,
    WS_HANDSHAKE_FAILED,
    CloseReason,
    Inner,
    RejectReason,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.keys.identity import Identity
from shadowmesh.wire import control
from shadowmesh.wire.handshake.agreement import Offer
from shadowmesh.wire.handshake.machines import Initiator, Responder
from shadowmesh.wire.session import events
from shadowmesh.wire.session.machine import HANDSHAKE_RATE
from shadowmesh.wire.session.rekey_timer import REKEY_RETRY_S
from tests.wire.pair import IDENTITIES, Message, Pair, Record, Side, policy_of

ROTATION_S = 120.0
#: the pair's jitter is one half of 5 s
REKEY_AT_S = ROTATION_S + 2.5


def connected(rotation_s: float = ROTATION_S) -> Pair:
    pair = Pair(rotation_s)
    pair.connect()
    return pair


def names(side: Side) -> list[str]:
    return [type(event).__name__ for event in side.events]


def only_failure(side: Side) -> events.Failed:
    (failure,) = side.said(events.Failed)
    assert side.events[-1] is failure
    assert isinstance(failure, events.Failed)
    return failure


def assert_agreement(pair: Pair) -> None:
    ours, theirs = pair.i.current.result, pair.r.current.result
    assert ours.keys == theirs.keys
    assert ours.h == theirs.h
    assert ours.local_key_id == theirs.remote_key_id
    assert ours.remote_key_id == theirs.local_key_id


def test_the_first_handshake_says_its_events_in_this_order() -> None:
    pair = connected()
    assert names(pair.i) == [
        "SendMessage",
        "SendMessage",
        "InstallKeys",
        "Authenticated",
        "SendUnder",
        "Established",
    ]
    assert names(pair.r) == [
        "SendMessage",
        "Authenticated",
        "InstallKeys",
        "SendUnder",
        "SendRecord",
        "Established",
    ]
    assert_agreement(pair)


def test_accept_is_the_first_record_and_the_initiator_waits_for_it() -> None:
    pair = Pair()
    pair.start()
    for sender in ("i", "r", "i"):
        assert not pair.i.machine.established
        pair.deliver(sender)
    (accept,) = pair.wires["r"]
    assert isinstance(accept, Record)
    assert (accept.counter, accept.inner_type) == (0, Inner.CONTROL)
    assert accept.body == bytes.fromhex("01000000000000")
    assert pair.r.machine.established
    assert not pair.i.machine.established
    pair.deliver("r")
    assert pair.i.machine.established


def test_only_install_keys_carries_secrets() -> None:
    pair = connected()
    pair.advance(200, flowing=True)
    for side in (pair.i, pair.r):
        assert side.said(events.Rekeyed)
        for event in side.events:
            if isinstance(event, events.Authenticated | events.Established | events.Rekeyed):
                assert event.result.keys.wss_i2r == event.result.keys.exporter == b""


def test_reject_reaches_the_initiator_and_ends_both() -> None:
    pair = Pair()
    pair.r.accepts = False
    pair.start()
    for sender in ("i", "r", "i"):
        pair.deliver(sender)
    pair.r.machine.reject(RejectReason.COLLISION, pair.now)
    pair.drain("r")
    pair.deliver_all()
    ours, theirs = only_failure(pair.i), only_failure(pair.r)
    assert (ours.local, theirs.local) == (False, True)
    assert ours.rejected == theirs.rejected == RejectReason.COLLISION
    assert "collision" in ours.detail
    assert "Established" not in names(pair.i) + names(pair.r)


def test_a_reject_of_an_unknown_kind_is_named_by_its_number() -> None:
    pair = Pair()
    pair.r.accepts = False
    pair.start()
    for sender in ("i", "r", "i"):
        pair.deliver(sender)
    (key_id,) = pair.i.installed
    pair.give("i", Inner.CONTROL, control.encode_control(control.Reject(77)), key_id)
    assert "77" in only_failure(pair.i).detail


@pytest.mark.parametrize(
    ("delivered", "waiting"), [((), "i"), ((), "r"), (("i",), "r"), (("i", "r", "i"), "i")]
)
def test_a_message_that_does_not_come_within_5_s_ends_the_handshake(
    delivered: tuple[str, ...], waiting: str
) -> None:
    pair = Pair()
    pair.start()
    for sender in delivered:
        pair.deliver(sender)
    pair.advance(4.9)
    assert not pair.sides[waiting].machine.over
    pair.advance(0.2)
    failure = only_failure(pair.sides[waiting])
    assert failure.close_code == WS_HANDSHAKE_FAILED
    assert failure.local
    assert failure.reason is CloseReason.TIMEOUT


def test_a_handshake_may_take_10_s_in_all() -> None:
    pair = Pair()
    pair.r.accepts = False
    pair.start()
    pair.advance(4.9)
    pair.deliver("i")
    pair.deliver("r")
    pair.advance(4.6)
    pair.deliver("i")
    assert pair.r.said(events.Authenticated)
    pair.advance(0.4)
    assert not pair.r.machine.over
    pair.advance(0.2)
    assert "owner" in only_failure(pair.r).detail


def test_an_owner_that_decides_after_10_s_is_too_late() -> None:
    pair = Pair()
    pair.r.accepts = False
    pair.start()
    for sender in ("i", "r", "i"):
        pair.deliver(sender)
    pair.now += 11
    pair.r.machine.accept(pair.now)
    pair.drain("r")
    assert only_failure(pair.r).reason is CloseReason.TIMEOUT
    pair.r.machine.accept(pair.now)  # the session is over: nothing
    assert pair.r.machine.next_event() is None


def test_calls_out_of_turn_are_our_own_error() -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError):
        pair.i.machine.receive_message(b"", pair.now)
    pair.start()
    with pytest.raises(LocalProtocolError):
        pair.i.machine.start(pair.now)
    for side in (pair.i, pair.r):
        with pytest.raises(LocalProtocolError):
            side.machine.accept(pair.now)
        with pytest.raises(LocalProtocolError):
            side.machine.reject(RejectReason.BUSY, pair.now)


@pytest.mark.parametrize("name", ["i", "r"])
@pytest.mark.parametrize("data", [b"", b"SMH", bytes(1272), bytes(200)])
def test_junk_instead_of_a_handshake_ends_the_session(name: str, data: bytes) -> None:
    pair = Pair()
    pair.start()
    with pytest.raises(RemoteProtocolError):
        pair.give_message(name, data)
    failure = only_failure(pair.sides[name])
    assert (failure.close_code, failure.local) == (WS_HANDSHAKE_FAILED, False)


def test_a_second_message_1_ends_the_first_handshake() -> None:
    pair = Pair()
    pair.start()
    (message,) = pair.wires["i"]
    assert isinstance(message, Message)
    pair.deliver("i")
    with pytest.raises(RemoteProtocolError):
        pair.give_message("r", message.data)


def test_a_message_3_again_ends_the_session() -> None:
    pair = Pair()
    pair.r.accepts = False
    pair.start()
    pair.deliver("i")
    pair.deliver("r")
    (message,) = pair.wires["i"]
    assert isinstance(message, Message)
    pair.deliver("i")
    with pytest.raises(RemoteProtocolError):
        pair.give_message("r", message.data)


@pytest.mark.parametrize("name", ["i", "r"])
def test_a_bare_message_after_keys_ends_the_session(name: str) -> None:
    pair = connected()
    with pytest.raises(RemoteProtocolError):
        pair.give_message(name, b"anything")
    assert only_failure(pair.sides[name]).reason is CloseReason.PROTOCOL


def test_nothing_but_accept_or_reject_may_come_first() -> None:
    for inner, body in (
        (Inner.CONTROL, control.encode_control(control.PunchNow())),
        (Inner.HANDSHAKE, bytes(1272)),
    ):
        pair = Pair()
        pair.start()
        for sender in ("i", "r"):
            pair.deliver(sender)
        (key_id,) = pair.i.installed
        with pytest.raises(RemoteProtocolError):
            pair.give("i", inner, body, key_id)


# --- rekeys ------------------------------------------------------------------------------------


def test_a_rekey_says_its_events_in_this_order() -> None:
    pair = connected()
    before = pair.i.current.result
    pair.i.events.clear()
    pair.r.events.clear()
    pair.advance(REKEY_AT_S - 0.1, flowing=True)
    assert names(pair.i) == []
    pair.advance(0.1, flowing=True)
    assert names(pair.i) == [
        "SendRecord",
        "InstallKeys",  # the responder may send under them as soon as it has the next message
        "SendRecord",
        "SendUnder",
        "SendRecord",
        "Rekeyed",
    ]
    assert names(pair.r) == ["SendRecord", "InstallKeys", "SendUnder", "SendRecord", "Rekeyed"]
    assert_agreement(pair)
    assert pair.i.current.result.keys != before.keys
    pair.advance(9.9, flowing=True)
    assert len(pair.i.installed) == len(pair.r.installed) == 2
    pair.advance(0.2, flowing=True)
    assert names(pair.i)[-1] == names(pair.r)[-1] == "RetireKeys"
    assert len(pair.i.installed) == len(pair.r.installed) == 1


def test_a_session_rekeys_for_hours() -> None:
    pair = connected()
    pair.advance(4 * 3600, flowing=True)
    assert len(pair.i.said(events.Rekeyed)) == len(pair.r.said(events.Rekeyed)) == 117
    assert not pair.i.said(events.RekeyAborted)
    assert_agreement(pair)


def test_frames_sent_at_every_step_of_a_rekey_arrive() -> None:
    pair = connected()
    pair.advance(REKEY_AT_S)
    sent: dict[str, list[bytes]] = {"i": [], "r": []}
    for step in range(20):
        for name, other in (("i", "r"), ("r", "i")):
            frame = f"{name}{step}".encode()
            pair.send_frame(name, frame)
            sent[other].append(frame)
        for name in ("i", "r")[:: 1 if step % 2 else -1]:
            if pair.wires[name]:
                pair.deliver(name)
    pair.deliver_all()
    assert len(pair.i.said(events.Rekeyed)) == len(pair.r.said(events.Rekeyed)) == 1
    assert pair.i.frames == sent["i"]
    assert pair.r.frames == sent["r"]


@pytest.mark.parametrize("name", ["i", "r"])
def test_2_to_60_records_rekey_at_once(name: str) -> None:
    pair = connected()
    pair.advance(20, flowing=True)
    pair.sides[name].machine.records_sealed(REKEY_AFTER_RECORDS - 1, pair.now)
    pair.advance(1, flowing=True)
    assert not pair.i.said(events.Rekeyed)
    for _ in range(5):  # a plane reports again and again
        pair.sides[name].machine.records_sealed(REKEY_AFTER_RECORDS, pair.now)
        pair.sides[name].machine.handle_timeout(pair.now)
        pair.drain(name)
    pair.deliver_all()
    pair.advance(1, flowing=True)
    assert len(pair.i.said(events.Rekeyed)) == len(pair.r.said(events.Rekeyed)) == 1


@pytest.mark.parametrize("name", ["i", "r"])
def test_failed_opens_rekey_at_2_to_20_and_end_the_session_at_2_to_36(name: str) -> None:
    pair = connected()
    pair.advance(20, flowing=True)
    side = pair.sides[name]
    side.machine.note_open_failures(REKEY_AFTER_FAILED, pair.now)
    pair.advance(1, flowing=True)
    assert len(side.said(events.Rekeyed)) == 1
    side.machine.note_open_failures(CLOSE_AFTER_FAILED, pair.now)
    pair.drain(name)
    pair.deliver_all()
    assert only_failure(side).local
    other = pair.r if name == "i" else pair.i
    assert other.said(events.PeerClosed) == [events.PeerClosed(CloseReason.POLICY, "")]


def test_failures_under_the_key_that_was_replaced_ask_for_no_other_rekey() -> None:
    pair = connected()
    pair.advance(20, flowing=True)
    for _ in range(15):  # the data plane tells of both keys while both may open
        pair.i.machine.note_open_failures(REKEY_AFTER_FAILED, pair.now)
        pair.advance(0.5, flowing=True)
    assert len(pair.i.said(events.Rekeyed)) == 1


def test_the_responder_asks_30_s_after_the_interval_and_is_heard() -> None:
    pair = connected(rotation_s=100)
    pair.i.machine._rekey.due = None  # an initiator that forgot
    pair.advance(129.9, flowing=True)
    assert not pair.i.said(events.Rekeyed)
    pair.i.machine._rekey.due = pair.now + 1000
    pair.advance(0.2, flowing=True)
    assert len(pair.i.said(events.Rekeyed)) == len(pair.r.said(events.Rekeyed)) == 1


def test_requests_for_young_keys_are_ignored() -> None:
    pair = connected()
    request = control.encode_control(control.RekeyRequest())
    pair.advance(5)
    pair.give("i", Inner.CONTROL, request)
    pair.advance(1, flowing=True)
    assert not pair.i.said(events.Rekeyed)
    pair.advance(5)
    pair.give("i", Inner.CONTROL, request)
    pair.give("i", Inner.CONTROL, request)
    pair.advance(1, flowing=True)
    assert len(pair.i.said(events.Rekeyed)) == 1


def test_a_request_to_the_responder_ends_the_session() -> None:
    pair = connected()
    with pytest.raises(RemoteProtocolError):
        pair.give("r", Inner.CONTROL, control.encode_control(control.RekeyRequest()))
    assert pair.r.events[-3:-1] == [
        events.SendRecord(Inner.CLOSE, bytes([CloseReason.PROTOCOL])),
        events.RetireKeys(pair.r.sending),
    ]


@pytest.mark.parametrize("name", ["i", "r"])
@pytest.mark.parametrize("message", [control.Accept(), control.Reject(1)])
def test_an_unsolicited_answer_ends_the_session(name: str, message: control.ControlMessage) -> None:
    pair = connected()
    with pytest.raises(RemoteProtocolError):
        pair.give(name, Inner.CONTROL, control.encode_control(message))


@pytest.mark.parametrize("name", ["i", "r"])
def test_a_peer_that_starts_a_rekey_in_the_wrong_role_ends_the_session(name: str) -> None:
    pair = connected()
    offer = Offer(0, 1500, bytes(32), 99)
    prev_h = pair.i.current.result.h
    msg1 = Initiator(policy_of("r"), offer, prev_h).first_message()
    if name == "i":
        wrong = msg1
    else:
        wrong = Responder(policy_of("r"), offer, prev_h).receive_msg1(
            Initiator(policy_of("i"), offer, prev_h).first_message()
        )
    with pytest.raises(RemoteProtocolError):
        pair.give(name, Inner.HANDSHAKE, wrong)
    assert only_failure(pair.sides[name]).close_code == WS_HANDSHAKE_FAILED


@pytest.mark.parametrize(("pause_s", "allowed"), [(0.0, False), (0.5, False), (1.0, True)])
def test_rekeys_without_end_end_the_session(pause_s: float, allowed: bool) -> None:
    # each costs the responder operations with public keys: 0.4 ms of the hub
    pair = connected()
    offer = Offer(0, 1500, bytes(32), 99)
    prev_h = pair.r.current.result.h
    ended = nullcontext() if allowed else pytest.raises(RemoteProtocolError, match="without end")
    with ended:
        for _ in range(30):
            pair.now += pause_s
            message = Initiator(policy_of("i"), offer, prev_h).first_message()
            pair.give("r", Inner.HANDSHAKE, message)


@pytest.mark.parametrize("number", [2, 3])
def test_unsolicited_handshake_messages_end_the_session(number: int) -> None:
    pair = connected()
    name = "i" if number == 2 else "r"
    body = b"SMH\x01\x01\x03" + bytes([number]) + bytes(1329 if number == 2 else 193)
    with pytest.raises(RemoteProtocolError):
        pair.give(name, Inner.HANDSHAKE, body)


def test_a_rekey_of_another_session_is_refused() -> None:
    pair = connected()
    offer = Offer(0, 1500, bytes(32), 99)
    message = Initiator(policy_of("i"), offer, bytes(32)).first_message()
    with pytest.raises(RemoteProtocolError):
        pair.give("r", Inner.HANDSHAKE, message)


@pytest.mark.parametrize("name", ["i", "r"])
def test_another_identity_in_a_rekey_ends_the_session(name: str) -> None:
    # Without pins both sides would take any holder of the PSK, but not in the middle of a session.
    policies = {side: policy_of(side, pinned=False) for side in ("i", "r")}
    pair = Pair(policies=policies)
    pair.connect()
    impostor = Identity.from_seed(b"x" * 32)
    other = pair.sides["r" if name == "i" else "i"].machine._attempts
    other._policy = replace(other._policy, identity=impostor)
    with pytest.raises(RemoteProtocolError, match="identity"):
        pair.advance(REKEY_AT_S, flowing=True)
    pair.drain(name)
    assert only_failure(pair.sides[name]).reason is CloseReason.PROTOCOL
    assert len(pair.sides[name].said(events.InstallKeys)) == 1


def test_a_key_id_that_is_in_use_is_refused() -> None:
    pair = connected()
    taken = pair.r.current.result.remote_key_id
    pair.i.machine._attempts._reserve_key_id = lambda: (pair.i.reserved.add(taken), taken)[1]
    with pytest.raises(RemoteProtocolError, match="in use"):
        pair.advance(REKEY_AT_S, flowing=True)


def test_the_owners_own_key_id_check_is_asked_too() -> None:
    policies = {"r": replace(policy_of("r"), key_id_in_use=lambda _key_id: True)}
    pair = Pair(policies=policies)
    with pytest.raises(RemoteProtocolError, match="in use"):
        pair.connect()


@pytest.mark.parametrize(("lost", "who"), [(1, "i"), (2, "r"), (3, "i")])
def test_a_rekey_whose_message_is_lost_leaves_the_keys_and_is_tried_again(
    lost: int, who: str
) -> None:
    pair = connected()
    before = pair.i.current.result.keys
    pair.advance(REKEY_AT_S)
    for sender in ("i", "r", "i")[: lost - 1]:
        pair.deliver(sender)
    pair.deliver(who, lose=True)
    pair.advance(5.1)
    assert len(pair.i.said(events.RekeyAborted)) == 1
    assert pair.i.current.result.keys == pair.r.current.result.keys == before
    pair.advance(REKEY_RETRY_S, flowing=True)
    assert len(pair.i.said(events.Rekeyed)) == len(pair.r.said(events.Rekeyed)) == 1
    assert_agreement(pair)


@pytest.mark.parametrize("held_up", ["i", "r"])
@pytest.mark.parametrize("delivered", [(), ("i",), ("i", "r"), ("i", "r", "i")])
@pytest.mark.parametrize("stall_s", [4.0, 6.0, 11.0, 14.9, 16.0, 31.0])
def test_a_link_that_stands_still_in_a_rekey_loses_no_frame_and_no_session(
    held_up: str, delivered: tuple[str, ...], stall_s: float
) -> None:
    pair = connected()
    pair.advance(REKEY_AT_S)
    for sender in delivered:
        pair.deliver(sender)
    other = "r" if held_up == "i" else "i"
    for _ in range(int(stall_s * 2)):  # only one direction stands still
        for name in ("i", "r"):
            pair.send_frame(name, b"frame")
        while pair.wires[other]:
            pair.deliver(other)
        pair.advance(0.5)
    pair.deliver_all()
    pair.advance(60, flowing=True)
    for side in (pair.i, pair.r):
        assert len(side.frames) == int(stall_s * 2)
        assert side.said(events.Rekeyed)
        assert not side.machine.over
    assert not pair.i.machine._attempts._abandoned
    assert_agreement(pair)


def test_one_late_message_3_is_forgiven_and_only_one() -> None:
    pair = connected()
    pair.advance(REKEY_AT_S)
    pair.deliver("i")
    pair.deliver("r")
    (message,) = pair.wires["i"]
    assert isinstance(message, Record)
    pair.advance(5.1)
    pair.deliver("i")
    assert not pair.r.machine.over
    with pytest.raises(RemoteProtocolError):
        pair.give("r", Inner.HANDSHAKE, message.body)


@pytest.mark.parametrize(("name", "wanted"), [("i", 4), ("r", 2)])
def test_worn_keys_reported_again_and_again_do_not_shorten_the_pauses(
    name: str, wanted: int
) -> None:
    pair = connected()
    pair.i.machine._rekey.due = pair.now + (0 if name == "i" else 1000)
    for _ in range(46):
        pair.sides[name].machine.records_sealed(REKEY_AFTER_RECORDS, pair.now)
        pair.advance(1)
    assert len(pair.wires[name]) == wanted  # every 15 s a message 1, every 30 s a request


def test_keys_are_over_after_180_s_without_a_rekey() -> None:
    pair = connected()
    pair.advance(KEY_LIFETIME_S - 0.01)
    assert pair.i.machine.established
    pair.advance(0.01)
    for side in (pair.i, pair.r):
        failure = only_failure(side)
        assert failure.reason is CloseReason.KEYS_EXPIRED
        assert failure.local
        assert not side.machine.established
        # and the peer cannot be told: there is nothing to seal with
        assert not any(
            isinstance(event, events.SendRecord) and event.inner_type == Inner.CLOSE
            for event in side.events
        )


def test_a_rekey_whose_messages_are_always_dropped_stops_at_180_s() -> None:
    pair = connected()
    while not pair.i.machine.over:
        pair.advance(0.5)
        for name in ("i", "r"):
            while pair.wires[name]:
                pair.deliver(name, lose=True)
    assert pair.now - pair.start_at == KEY_LIFETIME_S
    assert len(pair.i.said(events.RekeyAborted)) == 4
    assert only_failure(pair.i).reason is CloseReason.KEYS_EXPIRED


@pytest.mark.parametrize("call", ["record", "close", "timeout", "link", "failures"])
def test_after_a_suspend_expired_keys_are_not_used_by_whatever_comes_first(call: str) -> None:
    pair = connected()
    machine, side = pair.r.machine, pair.r
    pair.now += 200
    if call == "record":
        machine.receive_record(
            side.sending, Inner.CONTROL, control.encode_control(control.PunchNow()), pair.now
        )
    elif call == "close":
        machine.close(CloseReason.DISCONNECT, "", pair.now)
    elif call == "timeout":
        machine.handle_timeout(pair.now)
    elif call == "link":
        machine.link_lost(pair.now)
    else:
        machine.note_open_failures(CLOSE_AFTER_FAILED, pair.now)
    side.events.clear()
    pair.drain("r")
    assert names(side) == ["RetireKeys", "Failed"]
    assert only_failure(side).reason is CloseReason.KEYS_EXPIRED


# --- the link is gone, the end ----------------------------------------------------------------


def test_without_the_link_keys_live_on_until_180_s_and_nothing_is_sent() -> None:
    pair = connected()
    pair.advance(50, flowing=True)
    pair.lose_link()
    pair.advance(129.9)
    assert pair.i.machine.established
    assert pair.can_open("r", pair.seal("i", Inner.FRAME, b"over UDP"))
    assert pair.can_open("i", pair.seal("r", Inner.FRAME, b"over UDP"))
    pair.advance(0.2)
    assert only_failure(pair.i).reason is CloseReason.KEYS_EXPIRED


@pytest.mark.parametrize("delivered", [(), ("i",), ("i", "r"), ("i", "r", "i")])
def test_a_link_lost_in_a_rekey_leaves_keys_that_both_sides_can_open(
    delivered: tuple[str, ...],
) -> None:
    pair = connected()
    pair.advance(REKEY_AT_S)
    for sender in delivered:
        pair.deliver(sender)
    pair.lose_link()
    for _ in range(50):
        assert pair.can_open("r", pair.seal("i", Inner.FRAME, b"over UDP"))
        assert pair.can_open("i", pair.seal("r", Inner.FRAME, b"over UDP"))
        pair.advance(1)


def test_records_read_before_the_link_broke_get_no_answer_but_close_counts() -> None:
    pair = connected()
    pair.lose_link()
    pair.give("i", Inner.CONTROL, control.encode_control(control.PunchNow()))
    assert not pair.i.said(events.Control)
    pair.give("i", Inner.CLOSE, control.encode_close(CloseReason.SHUTDOWN))
    assert isinstance(pair.i.events[-1], events.PeerClosed)


def test_a_link_lost_in_the_first_handshake_is_the_end() -> None:
    pair = Pair()
    pair.start()
    pair.deliver("i")
    pair.lose_link()
    for side in (pair.i, pair.r):
        assert "link lost" in only_failure(side).detail


@pytest.mark.parametrize("name", ["i", "r"])
def test_close_tells_the_peer_why_and_retires_all_keys(name: str) -> None:
    pair = connected()
    pair.close(name)
    pair.deliver_all()
    side, other = (pair.i, pair.r) if name == "i" else (pair.r, pair.i)
    assert names(side)[-2:] == ["SendRecord", "RetireKeys"]
    assert other.events[-1] == events.PeerClosed(CloseReason.DISCONNECT, "bye")
    assert pair.i.machine.over
    assert pair.r.machine.over


def test_close_in_the_first_handshake_is_silent() -> None:
    pair = Pair()
    pair.start()
    pair.deliver("i")
    pair.deliver("r")
    pair.close("i")
    assert not any(isinstance(item, Record) for item in pair.wires["i"])
    assert pair.i.machine.over


def test_when_all_is_over_every_input_is_ignored() -> None:
    pair = connected()
    pair.close("i")
    machine = pair.i.machine
    machine.receive_message(b"", pair.now)
    machine.receive_record(1, Inner.HANDSHAKE, b"", pair.now)
    machine.handle_timeout(pair.now)
    machine.link_lost(pair.now)
    machine.accept(pair.now)
    machine.records_sealed(1 << 62, pair.now)
    machine.close(CloseReason.DISCONNECT, "", pair.now)
    assert machine.next_event() is None


@pytest.mark.parametrize("name", ["i", "r"])
def test_candidates_punch_now_and_abilities_are_handed_on(name: str) -> None:
    pair = connected()
    for message in (control.Candidates(()), control.PunchNow(), control.Able(3)):
        pair.give(name, Inner.CONTROL, control.encode_control(message))
        assert pair.sides[name].events[-1] == events.Control(message)
    before = len(pair.sides[name].events)
    pair.give(name, Inner.CONTROL, b"\xc8later")  # of a later version
    pair.give(name, Inner.PADDING, b"")
    pair.give(name, Inner.CONTROL, b"", key_id=0xFFFF)  # retired before it was handed over
    assert len(pair.sides[name].events) == before


@pytest.mark.parametrize(
    ("inner", "body"), [(Inner.CONTROL, b""), (Inner.CLOSE, b""), (Inner.HANDSHAKE, b"")]
)
def test_malformed_records_end_the_session_and_the_peer_is_told_no_detail(
    inner: Inner, body: bytes
) -> None:
    pair = connected()
    with pytest.raises(RemoteProtocolError):
        pair.give("r", inner, body)
    pair.deliver("r")
    assert pair.i.events[-1] == events.PeerClosed(CloseReason.PROTOCOL, "")


def test_identities_are_reported_to_both_owners() -> None:
    pair = connected()
    for side, peer in ((pair.i, "r"), (pair.r, "i")):
        (authenticated,) = side.said(events.Authenticated)
        assert isinstance(authenticated, events.Authenticated)
        assert authenticated.result.peer_public_key == IDENTITIES[peer].public_key


# --- the adversary ----------------------------------------------------------------------------


class Scheduler(RuleBasedStateMachine):
    """Two honest machines; the scheduler decides when time passes and what arrives or breaks.

    The pair itself asserts that every record opens in order under keys on which both agree, that
    at most three sets of keys are live, and that nothing is sealed or opened after 180 s.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(rotation_s=10)
        self.pair.connect()
        self.sent: dict[str, int] = {"i": 0, "r": 0}

    def alive(self) -> bool:
        return not (self.pair.i.machine.over or self.pair.r.machine.over)

    def flowing(self) -> bool:
        return self.alive() and self.pair.link_up

    def moving(self) -> bool:
        """Whether the link is not yet one that its liveness, which is not here, would have ended.

        What stands still for minutes and then arrives at once are more handshakes than a peer may send.
        """
        waiting = (
            record.inner_type == Inner.HANDSHAKE
            for wire in self.pair.wires.values()
            for record in wire
            if isinstance(record, Record)
        )
        return sum(waiting) <= HANDSHAKE_RATE[1] // 2

    @precondition(moving)
    @rule(seconds=st.one_of(st.floats(0, 6), st.floats(0, 40), st.sampled_from([5, 10, 12.5])))
    def time_passes_and_nothing_arrives(self, seconds: float) -> None:
        self.pair.advance(seconds)

    @rule(seconds=st.floats(0, 30))
    def time_passes_and_everything_arrives(self, seconds: float) -> None:
        self.pair.advance(seconds, flowing=True)

    @rule(sender=st.sampled_from("ir"), count=st.integers(1, 4))
    def something_arrives(self, sender: str, count: int) -> None:
        for _ in range(min(count, len(self.pair.wires[sender]))):
            self.pair.deliver(sender)

    @rule(sender=st.sampled_from("ir"))
    def a_handshake_message_is_ignored(self, sender: str) -> None:
        wire = self.pair.wires[sender]
        if wire and isinstance(wire[0], Record) and wire[0].inner_type == Inner.HANDSHAKE:
            self.pair.deliver(sender, lose=True)

    @precondition(flowing)
    @rule(sender=st.sampled_from("ir"))
    def a_frame_is_sent(self, sender: str) -> None:
        self.sent[sender] += 1
        self.pair.send_frame(sender, b"%d" % self.sent[sender])

    @precondition(flowing)
    @rule(name=st.sampled_from("ir"))
    def keys_wear_out(self, name: str) -> None:
        self.pair.sides[name].machine.records_sealed(REKEY_AFTER_RECORDS, self.pair.now)

    @precondition(lambda self: self.flowing() and self.pair.now - self.pair.start_at > 60)
    @rule()
    def the_link_breaks(self) -> None:
        self.pair.lose_link()

    @precondition(lambda self: self.flowing() and self.pair.now - self.pair.start_at > 60)
    @rule(name=st.sampled_from("ir"))
    def one_side_closes(self, name: str) -> None:
        self.pair.close(name)

    @invariant()
    def a_datagram_sent_now_can_be_opened_now(self) -> None:
        if self.alive():
            for name, other in (("i", "r"), ("r", "i")):
                assert self.pair.can_open(other, self.pair.seal(name, Inner.FRAME, b""))
                self.pair.sides[name].current.sent -= 1  # it went over UDP, not over the wire

    @invariant()
    def frames_arrive_in_order_without_a_gap(self) -> None:
        for side, sender in ((self.pair.r, "i"), (self.pair.i, "r")):
            count = len(side.frames)
            assert count <= self.sent[sender]
            assert side.frames == [b"%d" % number for number in range(1, count + 1)]

    @invariant()
    def a_session_ends_only_for_a_reason_that_there_was(self) -> None:
        for side in (self.pair.i, self.pair.r):
            for failure in side.said(events.Failed):
                assert isinstance(failure, events.Failed)
                assert failure.reason is CloseReason.KEYS_EXPIRED

    def teardown(self) -> None:
        if not self.flowing():
            return
        before = {name: len(side.said(events.Rekeyed)) for name, side in self.pair.sides.items()}
        self.pair.deliver_all()
        if not self.alive():
            return  # a close was on its way
        self.pair.advance(100, flowing=True)
        assert self.alive(), "an undisturbed session recovers"
        assert_agreement(self.pair)
        for name, side in self.pair.sides.items():
            assert len(side.said(events.Rekeyed)) >= before[name] + 5
            assert len(side.frames) == self.sent["i" if name == "r" else "r"]


TestScheduler = Scheduler.TestCase
TestScheduler.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
