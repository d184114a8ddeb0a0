"""Joining: one question, one answer, 10 s, and no way from there into a session."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.base.constants import WS_NORMAL, CloseReason, Inner
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.keys.identity import Identity
from shadowmesh.wire import control
from shadowmesh.wire.handshake.agreement import Offer, Policy
from shadowmesh.wire.handshake.machines import Initiator
from shadowmesh.wire.handshake.messages import wants_to_join
from shadowmesh.wire.mesh import identifiers, messages
from shadowmesh.wire.mesh.chunks import cut
from shadowmesh.wire.mesh.joining import JoiningMachine
from shadowmesh.wire.session import events
from tests.wire.pair import CERTIFICATES, IDENTITIES, MEMBERS, PSK, Pair

VECTOR: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "mesh.json").read_text()
)["join"]
OFFER = Offer(caps=0, tap_mtu=1500, tls_cert_sha256=bytes(32), key_id=0)
JOINER = Policy(IDENTITIES["i"], None, IDENTITIES["r"].public_key, join=True)
RELAY = Policy(IDENTITIES["r"], None, None, join=True)
QUESTION = messages.Join(invitation_id=b"12345678", name="laptop", proof=bytes(32))
NO = messages.Refused(reason="expired")
YES = messages.Joined(
    certificate=b"certificate of i",
    authorities=(b"authority",),
    trust_list=b"trust",
    revocation_lists=(bytes(100_000),),
    network_secret=bytes(32),
    secret_epoch=1,
)


class Side:
    """One machine, and everything that it said."""

    def __init__(self, initiator: bool, policy: Policy) -> None:
        self.reserved: set[int] = set()
        self.events: list[Any] = []
        self.machine = JoiningMachine(
            initiator,
            policy,
            OFFER,
            reserve_key_id=self.reserve,
            release_key_id=self.reserved.remove,
        )

    def reserve(self) -> int:
        self.reserved.add(7)
        return 7

    def said(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def keys(self) -> Any:
        return self.said(events.InstallKeys)[0].result.keys


class Conversation:
    """Both sides; everything is delivered in order."""

    def __init__(self, answer: messages.Message | None = YES, *, ask: bool = True) -> None:
        self.now = 100.0
        self.answer, self.asks = answer, ask
        self.i, self.r = Side(True, JOINER), Side(False, RELAY)
        for side in (self.r, self.i):
            side.machine.start(self.now)
            self.drain(side)

    def drain(self, side: Side) -> None:
        other = self.r if side is self.i else self.i
        while (event := side.machine.next_event()) is not None:
            assert not side.said(events.Finished)
            assert not side.said(events.Failed)
            side.events.append(event)
            match event:
                case events.SendMessage(data):
                    assert not side.said(events.InstallKeys)
                    self.give_message(other, data)
                case events.SendRecord(inner_type, body):
                    assert side.said(events.SendUnder)
                    assert len(body) <= 2048
                    self.give(other, inner_type, body)
                case events.InstallKeys(result):
                    side.reserved.remove(result.local_key_id)
                case events.Reached() if self.asks:
                    side.machine.ask(QUESTION, self.now)
                case events.Asked() if self.answer is not None:
                    side.machine.answer(self.answer, self.now)
        if side.machine.over:
            assert not side.reserved
            assert side.machine.next_timeout() is None
            assert len(side.said(events.RetireKeys)) == len(side.said(events.InstallKeys))

    def give(self, side: Side, inner_type: int, body: bytes) -> None:
        try:
            side.machine.receive_record(7, inner_type, body, self.now)
        finally:
            self.drain(side)

    def give_message(self, side: Side, data: bytes) -> None:
        try:
            side.machine.receive_message(data, self.now)
        finally:
            self.drain(side)

    def later(self, seconds: float) -> None:
        self.now += seconds
        for side in (self.i, self.r):
            side.machine.handle_timeout(self.now)
            self.drain(side)


def failure(side: Side) -> events.Failed:
    (failed,) = side.said(events.Failed)
    assert side.events[-1] is failed
    return failed


# --- The straight line ------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [YES, NO, messages.Busy(retry_after=5)])
def test_a_question_gets_its_answer_and_both_end(answer: messages.Message):
    talk = Conversation(answer)
    (asked,) = talk.r.said(events.Asked)
    assert asked.question == QUESTION
    assert asked.result.peer_public_key == IDENTITIES["i"].public_key
    (answered,) = talk.i.said(events.Answered)
    assert answered.answer == answer
    for side in (talk.i, talk.r):
        assert side.events[-1] == events.Finished(WS_NORMAL)
        assert side.machine.over


def test_both_sides_agree_and_there_are_no_keys_for_udp():
    talk = Conversation()
    assert talk.i.keys == talk.r.keys
    for side in (talk.i, talk.r):
        assert len(side.keys.wss_i2r) == len(side.keys.wss_r2i) == 32
        assert side.keys.udp_i2r == side.keys.udp_r2i == side.keys.exporter == b""
        for event in (*side.said(events.Reached), *side.said(events.Asked)):
            assert event.result.keys.wss_i2r == b""
            assert event.result.mode == 10


def test_a_proof_is_made_of_what_both_sides_have_seen():
    talk = Conversation(None, ask=False)
    (reached,) = talk.i.said(events.Reached)
    key = identifiers.invitation_key(bytes(16))
    ids = (IDENTITIES["i"].public_key, IDENTITIES["r"].public_key)
    common = (key, bytes(16), b"12345678", *ids)
    proof = identifiers.join_proof(*common, reached.result.h, "laptop")
    question = messages.Join(invitation_id=b"12345678", name="laptop", proof=proof)
    talk.i.machine.ask(question, talk.now)
    talk.drain(talk.i)
    (asked,) = talk.r.said(events.Asked)
    again = identifiers.join_proof(*common, asked.result.h, asked.question.name)
    assert asked.question.proof == again


def test_a_member_renews_with_the_largest_certificate():
    talk = Conversation(NO, ask=False)
    question = messages.Renew(certificate=bytes(2045))
    talk.i.machine.ask(question, talk.now)
    talk.drain(talk.i)
    assert talk.r.said(events.Asked)[0].question == question
    assert talk.i.said(events.Answered)


def test_which_first_messages_are_for_this():
    assert wants_to_join(bytes.fromhex(VECTOR["msg1"]))
    assert not wants_to_join(bytes.fromhex(VECTOR["msg2"]))
    assert not wants_to_join(b"")
    assert not wants_to_join(Initiator(MEMBERS["i"], replace_key_id()).first_message())


def replace_key_id() -> Offer:
    return Offer(caps=0, tap_mtu=1500, tls_cert_sha256=bytes(32), key_id=1)


# --- What may not happen ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "policies", [(MEMBERS["i"], RELAY), (Policy(IDENTITIES["i"], PSK, None), RELAY)]
)
def test_members_and_pairs_do_not_come_in_this_way(policies: tuple[Policy, Policy]):
    side = Side(False, policies[1])
    side.machine.start(0.0)
    with pytest.raises(RemoteProtocolError, match="mode"):
        side.machine.receive_message(Initiator(policies[0], replace_key_id()).first_message(), 0.0)
    assert side.machine.over
    assert not side.reserved


def test_a_joiner_does_not_get_into_a_session():
    pair = Pair(policies=MEMBERS, certificates=CERTIFICATES)
    pair.start()
    with pytest.raises(RemoteProtocolError, match="no invitation is open"):
        pair.give_message("r", Initiator(JOINER, replace_key_id()).first_message())


@pytest.mark.parametrize("policy", [MEMBERS["r"], Policy(IDENTITIES["r"], PSK, None)])
def test_the_machine_is_for_joining_alone(policy: Policy):
    with pytest.raises(LocalProtocolError, match="mode 10"):
        Side(False, policy)


def test_who_joins_has_a_pin():
    side = Side(True, RELAY)
    with pytest.raises(LocalProtocolError, match="know the key"):
        side.machine.start(0.0)
    assert not side.reserved


@pytest.mark.parametrize(
    ("inner_type", "body"),
    [
        (Inner.CONTROL, control.encode_control(control.Accept())),
        (Inner.CONTROL, control.encode_control(control.Certificate(b"x"))),
        (Inner.HANDSHAKE, bytes(1272)),
        (Inner.PROBE, bytes(31)),
        (Inner.FRAME, bytes(64)),
        (Inner.MESH, b"junk"),
        (Inner.MESH, messages.encode(messages.Where(mac=bytes(6)))),
        (Inner.MESH, messages.encode(NO)),
        (Inner.MESH, messages.encode(messages.Part(size=5000, offset=0, data=b"x"))),
        (Inner.CLOSE, b""),
    ],
    ids=range(10),
)
def test_a_relay_takes_one_question_and_nothing_else(inner_type: int, body: bytes):
    talk = Conversation(ask=False)
    with pytest.raises(RemoteProtocolError):
        talk.give(talk.r, inner_type, body)
    assert not failure(talk.r).local
    assert not talk.r.said(events.Asked)


@pytest.mark.parametrize(
    ("inner_type", "body"),
    [
        (Inner.CONTROL, control.encode_control(control.Accept())),
        (Inner.HANDSHAKE, bytes(1336)),
        (Inner.MESH, messages.encode(QUESTION)),
        (Inner.MESH, messages.encode(messages.Gone(node_id=bytes(8), reason="left"))),
        (Inner.MESH, msgspec.msgpack.encode({"t": "joined"})),
    ],
    ids=range(5),
)
def test_a_joiner_takes_one_answer_and_nothing_else(inner_type: int, body: bytes):
    talk = Conversation(None)
    with pytest.raises(RemoteProtocolError):
        talk.give(talk.i, inner_type, body)
    failure(talk.i)
    assert not talk.i.said(events.Answered)


def test_there_is_no_second_question_and_no_answer_before_one():
    talk = Conversation(None)
    with pytest.raises(RemoteProtocolError, match="second question"):
        talk.give(talk.r, Inner.MESH, messages.encode(QUESTION))
    talk = Conversation(ask=False)
    with pytest.raises(RemoteProtocolError, match="answer before"):
        talk.give(talk.i, Inner.MESH, messages.encode(NO))


def test_a_question_in_crumbs_is_refused():
    talk = Conversation(ask=False)
    data = messages.encode(QUESTION)
    with pytest.raises(RemoteProtocolError, match="without end"):
        for at in range(len(data)):
            part = messages.Part(size=len(data), offset=at, data=data[at : at + 1])
            talk.give(talk.r, Inner.MESH, messages.encode(part))


def test_a_bare_message_after_keys_ends_it():
    for name in ("i", "r"):
        talk = Conversation(ask=False)
        side = getattr(talk, name)
        with pytest.raises(RemoteProtocolError, match="bare message"):
            talk.give_message(side, bytes(1272))
        failure(side)


def test_records_under_other_keys_are_not_read():
    talk = Conversation(ask=False)
    talk.r.machine.receive_record(8, Inner.MESH, b"junk", talk.now)
    assert not talk.r.machine.over


# --- Ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [True, False])
def test_it_takes_10_s_in_all(asks: bool):
    talk = Conversation(None, ask=asks)
    talk.later(9.9)
    assert not talk.i.machine.over
    assert not talk.r.machine.over
    talk.later(0.1)
    for side in (talk.i, talk.r):
        assert failure(side).reason is CloseReason.TIMEOUT
    talk.r.machine.answer(NO, talk.now)  # too late, and harmless
    talk.i.machine.ask(QUESTION, talk.now)
    assert talk.r.machine.next_event() is talk.i.machine.next_event() is None


def test_a_silent_stranger_takes_10_s_too():
    side = Side(False, RELAY)
    side.machine.start(50.0)
    assert side.machine.next_timeout() == 60.0
    side.machine.handle_timeout(60.0)
    assert side.machine.over
    assert not side.reserved


def test_a_close_of_the_relay_is_no_answer():
    talk = Conversation(None)
    talk.r.machine.close(CloseReason.SHUTDOWN, "", talk.now)
    talk.drain(talk.r)
    talk.give(talk.i, Inner.CLOSE, control.encode_close(CloseReason.SHUTDOWN))
    assert "reason 2" in failure(talk.i).detail
    assert not talk.i.said(events.Answered)


def test_without_its_link_it_is_over():
    talk = Conversation(None)
    for side in (talk.i, talk.r):
        side.machine.link_lost(talk.now)
        talk.drain(side)
        failure(side)


def test_calls_out_of_turn_are_our_own_error():
    side = Side(True, JOINER)
    with pytest.raises(LocalProtocolError, match="before start"):
        side.machine.receive_message(b"", 0.0)
    side.machine.start(0.0)
    with pytest.raises(LocalProtocolError, match="before"):
        side.machine.start(0.0)
    with pytest.raises(LocalProtocolError, match="nobody to ask"):
        side.machine.ask(QUESTION, 0.0)
    with pytest.raises(LocalProtocolError, match="nothing was asked"):
        side.machine.answer(NO, 0.0)
    talk = Conversation(None)
    with pytest.raises(LocalProtocolError, match="asked already"):
        talk.i.machine.ask(QUESTION, talk.now)


pieces = st.sampled_from(
    [
        *((Inner.MESH, body) for body in cut(QUESTION)),
        *((Inner.MESH, body) for body in cut(messages.Renew(certificate=bytes(2045)))),
        (Inner.MESH, messages.encode(NO)),
        (Inner.PADDING, b""),
        (Inner.CLOSE, control.encode_close(CloseReason.POLICY)),
        (Inner.CONTROL, b"\x01"),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["i", "r"]), st.lists(pieces, max_size=10), st.booleans())
def test_no_records_lead_to_more_than_one_question_and_one_answer(name, records, asks):
    talk = Conversation(None, ask=asks)
    side = getattr(talk, name)
    for record in records:
        with suppress(RemoteProtocolError):
            talk.give(side, *record)
    assert len(talk.r.said(events.Asked)) <= 1
    assert len(talk.i.said(events.Answered)) <= asks
    assert not side.said(events.Authenticated)


def test_the_identity_of_the_vector_is_what_the_relay_sees():
    joiner = Identity(bytes.fromhex(VECTOR["id_i_seed"]))
    one = Initiator(Policy(joiner, None, IDENTITIES["r"].public_key, join=True), replace_key_id())
    side = Side(False, RELAY)
    side.machine.start(0.0)
    side.machine.receive_message(one.first_message(), 0.0)
    event = side.machine.next_event()
    assert isinstance(event, events.SendMessage)
    side.machine.receive_message(one.receive_msg2(event.data), 0.0)
    result = side.machine.next_event().result
    assert result.peer_public_key == joiner.public_key
    assert result.h == one.result.h
