"""Sessions between members: both certificates, both judgements, and nothing else before them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.base.constants import (
    CERTIFICATE_MAX_BYTES,
    WS_HANDSHAKE_FAILED,
    CloseReason,
    ControlCode,
    Inner,
    RejectReason,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire import control
from shadowmesh.wire.control import Accept, Certificate, PunchNow, Reject, encode_control
from shadowmesh.wire.session import events
from tests.wire.pair import CERTIFICATES, MEMBERS, Pair, Record, Side, policy_of

SHOWN = {name: encode_control(Certificate(der)) for name, der in CERTIFICATES.items()}
ACCEPT = encode_control(Accept())
REJECT = encode_control(Reject(RejectReason.POLICY))


def members(*, accepts: str = "ir") -> Pair:
    pair = Pair(policies=MEMBERS, certificates=CERTIFICATES)
    for name, side in pair.sides.items():
        side.accepts = name in accepts
    pair.start()
    return pair


def after(sent: str, *, accepts: str = "ir") -> Pair:
    """Return a pair after so many deliveries, each named by its sender."""
    pair = members(accepts=accepts)
    for sender in sent:
        pair.deliver(sender)
    return pair


def unjudged(name: str) -> tuple[Pair, Side, int]:
    """Return a pair of which one side has keys and has not been shown anything."""
    pair = after("ir" if name == "i" else "iri", accepts="")
    side = pair.sides[name]
    (key_id,) = side.installed
    return pair, side, key_id


def connected() -> Pair:
    pair = members()
    pair.deliver_all()
    assert pair.i.machine.established
    assert pair.r.machine.established
    return pair


def names(side: Side) -> list[str]:
    return [type(event).__name__ for event in side.events]


def controls(side: Side) -> list[int]:
    return [event.body[0] for event in side.said(events.SendRecord)]


def failure(side: Side) -> events.Failed:
    (failed,) = side.said(events.Failed)
    assert side.events[-1] is failed
    return failed


def never_established(pair: Pair, name: str) -> None:
    assert not pair.sides[name].said(events.Established)
    assert not pair.sides[name].machine.established


# --- The straight line ------------------------------------------------------------------------


def test_members_say_their_events_in_this_order():
    pair = connected()
    assert names(pair.i) == [
        "SendMessage",
        "SendMessage",
        "InstallKeys",
        "SendUnder",
        "SendRecord",
        "Authenticated",
        "Established",
    ]
    assert names(pair.r) == [
        "SendMessage",
        "InstallKeys",
        "Authenticated",
        "SendUnder",
        "SendRecord",
        "SendRecord",
        "Established",
    ]
    assert controls(pair.i) == [ControlCode.CERTIFICATE]
    assert controls(pair.r) == [ControlCode.CERTIFICATE, ControlCode.ACCEPT]
    assert pair.i.current.result.keys == pair.r.current.result.keys
    assert pair.i.current.result.mode == 7


def test_each_owner_is_shown_the_certificate_of_the_other_side():
    pair = connected()
    for name, other in (("i", "r"), ("r", "i")):
        (authenticated,) = pair.sides[name].said(events.Authenticated)
        assert authenticated.certificate == CERTIFICATES[other]
        assert authenticated.result.keys.wss_i2r == b""


def test_a_pair_shows_no_certificate_and_reads_none():
    pair = Pair(certificates=CERTIFICATES)
    pair.connect()
    for side in (pair.i, pair.r):
        assert side.said(events.Authenticated)[0].certificate == b""
        assert ControlCode.CERTIFICATE not in controls(side)
        for other in CERTIFICATES:
            pair.give(side.name, Inner.CONTROL, SHOWN[other])
        assert not side.machine.over


def test_a_member_without_a_certificate_is_our_own_error():
    for shown in (b"", bytes(CERTIFICATE_MAX_BYTES + 1)):
        pair = Pair(policies=MEMBERS, certificates={"i": shown, "r": shown})
        for side in (pair.i, pair.r):
            with pytest.raises(LocalProtocolError, match="certificate"):
                side.machine.start(pair.now)


def test_the_responder_sends_nothing_before_it_has_judged():
    pair = after("irii", accepts="")
    assert pair.r.said(events.Authenticated)
    assert not pair.wires["r"]
    assert not pair.r.said(events.SendUnder)
    assert not pair.r.machine.established


@pytest.mark.parametrize("order", ["certificate first", "ACCEPT first"])
@pytest.mark.parametrize("owner", ["at once", "last"])
def test_the_initiator_wants_the_certificate_its_owner_and_accept(order: str, owner: str):
    pair, side, key_id = unjudged("i")
    bodies = [SHOWN["r"], ACCEPT]
    side.accepts = owner == "at once"
    for body in bodies if order == "certificate first" else bodies[::-1]:
        never_established(pair, "i")
        pair.give("i", Inner.CONTROL, body, key_id)
    if owner == "last":
        never_established(pair, "i")
        side.machine.accept(pair.now)
        pair.drain("i")
    assert side.machine.established
    assert names(side)[-1] == "Established"


# --- What may not happen ----------------------------------------------------------------------


def test_accept_without_a_certificate_never_establishes():
    pair, side, key_id = unjudged("i")
    for _ in range(3):
        pair.give("i", Inner.CONTROL, ACCEPT, key_id)
    never_established(pair, "i")
    with pytest.raises(LocalProtocolError):
        side.machine.accept(pair.now)
    pair.advance(10.1)
    never_established(pair, "i")
    assert "certificate did not come" in failure(side).detail


def test_accept_and_certificate_without_our_own_judgement_never_establish():
    pair = after("iri", accepts="r")
    pair.deliver_all()
    never_established(pair, "i")
    pair.advance(10.1)
    never_established(pair, "i")
    assert "owner" in failure(pair.i).detail
    pair.i.machine.accept(pair.now)  # too late, and harmless
    never_established(pair, "i")


def test_a_responder_cannot_accept_who_has_shown_nothing():
    pair, side, _ = unjudged("r")
    for call in (
        lambda: side.machine.accept(pair.now),
        lambda: side.machine.reject(RejectReason.POLICY, pair.now),
    ):
        with pytest.raises(LocalProtocolError):
            call()
    never_established(pair, "r")
    pair.advance(5.1)
    assert "certificate did not come" in failure(side).detail
    assert failure(side).close_code == WS_HANDSHAKE_FAILED


def test_a_handshake_of_members_takes_10_s_at_most():
    pair = after("", accepts="")
    for sender in "iri":
        pair.advance(2.4)
        pair.deliver(sender)
    pair.advance(2.7)
    pair.deliver("i")
    assert pair.r.said(events.Authenticated)
    pair.advance(0.2)
    assert "owner" in failure(pair.r).detail
    pair.r.machine.accept(pair.now)
    assert pair.r.machine.next_event() is None


@pytest.mark.parametrize("name", ["i", "r"])
def test_the_same_certificate_again_changes_nothing(name: str):
    pair, side, key_id = unjudged(name)
    other = "r" if name == "i" else "i"
    for _ in range(3):
        pair.give(name, Inner.CONTROL, SHOWN[other], key_id)
    assert len(side.said(events.Authenticated)) == 1
    assert not side.machine.over
    pair = connected()
    pair.give(name, Inner.CONTROL, SHOWN[other])
    assert not pair.sides[name].machine.over


@pytest.mark.parametrize("name", ["i", "r"])
def test_another_certificate_ends_the_session(name: str):
    pair, side, key_id = unjudged(name)
    other = "r" if name == "i" else "i"
    pair.give(name, Inner.CONTROL, SHOWN[other], key_id)
    with pytest.raises(RemoteProtocolError, match="another certificate"):
        pair.give(name, Inner.CONTROL, SHOWN[name], key_id)
    never_established(pair, name)
    assert failure(side).reason is CloseReason.PROTOCOL
    pair = connected()
    with pytest.raises(RemoteProtocolError, match="another certificate"):
        pair.give(name, Inner.CONTROL, SHOWN[name])


@pytest.mark.parametrize("name", ["i", "r"])
@pytest.mark.parametrize(
    "body",
    [
        b"\x10",
        b"\x10\x01",
        b"\x10\x00\x00",
        b"\x10\x02\x00x",
        b"\x10\x01\x00xx",
        b"\x10\xfe\x07" + bytes(2046),
        b"\x10\xff\xff" + bytes(65535),
    ],
    ids=range(7),
)
def test_a_certificate_that_is_cut_empty_or_too_large_ends_the_session(name: str, body: bytes):
    pair, side, key_id = unjudged(name)
    with pytest.raises(RemoteProtocolError, match="CERTIFICATE"):
        pair.give(name, Inner.CONTROL, body, key_id)
    never_established(pair, name)
    assert side.machine.over


def test_the_largest_certificate_fits():
    body = encode_control(Certificate(bytes(CERTIFICATE_MAX_BYTES)))
    assert len(body) == 2048
    assert control.decode_control(body) == Certificate(bytes(CERTIFICATE_MAX_BYTES))


EARLY = [
    (Inner.CONTROL, encode_control(PunchNow())),
    (Inner.CONTROL, encode_control(control.Able(1))),
    (Inner.CONTROL, encode_control(control.RekeyRequest())),
    (Inner.CONTROL, encode_control(control.Candidates(()))),
    (Inner.CONTROL, b"\x04junk that nobody reads"),
    (Inner.CONTROL, b""),
    (Inner.CONTROL, b"\xff"),
    (Inner.HANDSHAKE, bytes(1272)),
    (Inner.PROBE, bytes(31)),
    (Inner.FRAME, bytes(64)),
    (11, b"\x81\xa1t\xa5hello"),
    (255, b""),
]


@pytest.mark.parametrize("name", ["i", "r"])
def test_everything_else_is_dropped_and_counted_before_the_peer_is_judged(name: str):
    pair, side, key_id = unjudged(name)
    said = list(side.events)
    for inner_type, body in EARLY:
        pair.give(name, inner_type, body, key_id)
    assert side.events == said
    assert side.machine.dropped_unjudged == len(EARLY)
    other = "r" if name == "i" else "i"
    side.accepts = True
    pair.give(name, Inner.CONTROL, SHOWN[other], key_id)
    if name == "i":
        pair.give(name, Inner.CONTROL, encode_control(PunchNow()), key_id)
        assert side.machine.dropped_unjudged == len(EARLY) + 1
        pair.give(name, Inner.CONTROL, ACCEPT, key_id)
    assert side.machine.established
    pair.give(name, Inner.CONTROL, encode_control(PunchNow()))
    assert side.said(events.Control)


def test_who_dials_does_not_accept_or_reject_itself_into_the_network():
    pair, side, key_id = unjudged("r")
    for body in (ACCEPT, REJECT):
        pair.give("r", Inner.CONTROL, body, key_id)
    assert side.machine.dropped_unjudged == 2
    never_established(pair, "r")


# --- Ends -------------------------------------------------------------------------------------


def test_a_responder_rejects_without_showing_itself():
    pair = after("irii", accepts="i")
    pair.r.machine.reject(RejectReason.POLICY, pair.now)
    pair.drain("r")
    assert controls(pair.r) == [ControlCode.REJECT]
    pair.deliver_all()
    assert failure(pair.i).rejected == failure(pair.r).rejected == RejectReason.POLICY
    never_established(pair, "i")
    never_established(pair, "r")


def test_a_reject_behind_a_certificate_counts():
    pair, side, key_id = unjudged("i")
    pair.give("i", Inner.CONTROL, SHOWN["r"], key_id)
    pair.give("i", Inner.CONTROL, REJECT, key_id)
    assert failure(side).rejected == RejectReason.POLICY
    never_established(pair, "i")


def test_an_initiator_that_does_not_take_the_responder_closes_and_says_so():
    pair = after("iri", accepts="r")
    pair.deliver_all()
    pair.i.machine.close(CloseReason.POLICY, "", pair.now)
    pair.drain("i")
    last = pair.wires["i"][-1]
    assert isinstance(last, Record)
    assert (last.inner_type, last.body[0]) == (Inner.CLOSE, CloseReason.POLICY)
    pair.deliver_all()
    assert pair.r.said(events.PeerClosed)[0].reason == CloseReason.POLICY


@pytest.mark.parametrize("name", ["i", "r"])
def test_a_close_is_read_before_the_peer_is_judged(name: str):
    pair, side, key_id = unjudged(name)
    pair.give(name, Inner.CLOSE, control.encode_close(CloseReason.SHUTDOWN), key_id)
    assert side.said(events.PeerClosed)
    assert side.machine.over


@pytest.mark.parametrize("name", ["i", "r"])
def test_without_its_link_an_unjudged_session_is_over(name: str):
    pair, side, _ = unjudged(name)
    side.machine.link_lost(pair.now)
    pair.drain(name)
    assert failure(side).reason is CloseReason.TIMEOUT


# --- Rekeys -----------------------------------------------------------------------------------


def test_a_rekey_keeps_the_mode_and_shows_no_certificate():
    pair = connected()
    pair.i.events.clear()
    pair.r.events.clear()
    pair.advance(3600, flowing=True)
    for side in (pair.i, pair.r):
        rekeyed = side.said(events.Rekeyed)
        assert len(rekeyed) == 29
        assert {event.result.mode for event in rekeyed} == {7}
        assert not side.said(events.Authenticated)
        shown = [one for one in side.said(events.SendRecord) if one.inner_type == Inner.CONTROL]
        assert ControlCode.CERTIFICATE not in {one.body[0] for one in shown}


def test_members_and_pairs_do_not_meet():
    pair = Pair(policies={"i": policy_of("i"), "r": MEMBERS["r"]}, certificates=CERTIFICATES)
    pair.start()
    with pytest.raises(RemoteProtocolError, match="dials a pair"):
        pair.deliver("i")


# --- Any order --------------------------------------------------------------------------------

bodies = st.sampled_from(
    [
        (Inner.CONTROL, SHOWN["i"]),
        (Inner.CONTROL, SHOWN["r"]),
        (Inner.CONTROL, ACCEPT),
        (Inner.CONTROL, REJECT),
        (Inner.CLOSE, control.encode_close(CloseReason.POLICY)),
        *EARLY,
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["i", "r"]),
    st.lists(bodies | st.sampled_from(["judge", "wait"]), max_size=12),
)
def test_in_no_order_of_records_is_a_session_established_unjudged(name: str, steps: list):
    pair, side, key_id = unjudged(name)
    shown = judged = accepted = False
    for step in steps:
        if step == "judge":
            with suppress(LocalProtocolError):
                side.machine.accept(pair.now)
                judged |= shown
            pair.drain(name)
        elif step == "wait":
            pair.now += 2.0
            side.machine.handle_timeout(pair.now)
            pair.drain(name)
        else:
            accepted |= step[1] == ACCEPT
            with suppress(RemoteProtocolError):
                pair.give(name, *step, key_id)
            shown = bool(side.said(events.Authenticated))
        if side.said(events.Established):
            assert shown
            assert judged
            assert accepted or name == "r"
        if side.machine.over:
            return


def test_messages_of_the_network_come_from_judged_members_alone():
    pair = connected()
    for name, side in pair.sides.items():
        pair.give(name, Inner.MESH, b"hello")
        assert side.said(events.MeshMessage) == [events.MeshMessage(b"hello")]
    pair = Pair()
    pair.connect()
    with pytest.raises(RemoteProtocolError, match="in a pair"):
        pair.give("r", Inner.MESH, b"hello")


def test_a_session_is_never_for_somebody_who_joins():
    with pytest.raises(LocalProtocolError, match="never a session"):
        Pair(policies={"r": replace(MEMBERS["r"], join=True)})
