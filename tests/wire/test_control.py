"""Control, close and probe records: vectors, round trips, junk."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.constants import CloseReason, Inner, RejectReason
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire import control
from shadowmesh.wire.control import (
    Able,
    Accept,
    Candidate,
    CandidateKind,
    Candidates,
    Close,
    Endpoint,
    Probe,
    ProbeAnswer,
    PunchNow,
    Reject,
    RekeyRequest,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "records.json"

addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address)
)
endpoints = st.builds(Endpoint, addresses, st.integers(0, 0xFFFF))
candidates = st.builds(Candidate, st.sampled_from(CandidateKind), endpoints)
messages = st.one_of(
    st.just(Accept()),
    st.just(RekeyRequest()),
    st.just(PunchNow()),
    st.integers(0, 255).map(Reject),
    st.integers(0, 2**32 - 1).map(Able),
    st.lists(candidates, max_size=8).map(lambda some: Candidates(tuple(some))),
)
tokens = st.binary(min_size=8, max_size=8)


def candidate(text: str, port: int = 9001) -> Candidate:
    return Candidate(CandidateKind.HOST, Endpoint(ip_address(text), port))


def test_accept_is_the_record_of_the_vectors() -> None:
    inner = json.loads(VECTORS.read_text())["accept_wss_message"]["inners"][0]
    assert bytes([Inner.CONTROL]) + control.encode_control(Accept()) == bytes.fromhex(inner)
    assert control.decode_control(bytes.fromhex(inner)[1:]) == Accept()


def test_candidates_are_laid_out_as_documented() -> None:
    message = Candidates(
        (
            candidate("192.0.2.7", 0x1234),
            Candidate(CandidateKind.REFLEXIVE, Endpoint(ip_address("2001:db8::1"), 1)),
        )
    )
    wanted = "0402" + "00043412c0000207" + "01060100" + "20010db8" + "00" * 11 + "01"
    assert control.encode_control(message).hex() == wanted


@given(messages)
def test_control_messages_survive_the_round_trip(message: control.ControlMessage) -> None:
    assert control.decode_control(control.encode_control(message)) == message


@given(st.binary(max_size=200))
def test_junk_is_refused_or_decodes_to_what_encodes_to_the_same_bytes(body: bytes) -> None:
    try:
        message = control.decode_control(body)
    except RemoteProtocolError:
        return
    if message is None:
        assert body[0] not in (1, 2, 3, 4, 5, 6)
    elif b"\xff\xff" not in body:  # IPv4-mapped addresses do not come back as they were
        assert control.encode_control(message) == body


@given(messages, st.data())
def test_a_control_message_cut_short_or_prolonged_is_refused(
    message: control.ControlMessage, data: st.DataObject
) -> None:
    body = control.encode_control(message)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(RemoteProtocolError):
        control.decode_control(body[:cut])
    with pytest.raises(RemoteProtocolError):
        control.decode_control(body + data.draw(st.binary(min_size=1, max_size=8)))


def test_abilities_that_this_version_does_not_know_are_taken() -> None:
    assert control.encode_control(Able(1)) == b"\x06\x01\0\0\0"
    assert control.decode_control(b"\x06\xff\xff\xff\xff") == Able(0xFFFFFFFF)


@pytest.mark.parametrize("code", [0, 7, 200, 255])
def test_unknown_control_codes_are_ignored(code: int) -> None:
    assert control.decode_control(bytes([code]) + b"whatever") is None


@pytest.mark.parametrize(
    "body",
    [
        "01000000000001",  # ACCEPT, a reserved byte set
        "0409" + "00043412c0000207" * 9,  # nine candidates
        "0401" + "02043412c0000207",  # candidate of an unknown kind
        "0401" + "00053412c0000207",  # unknown family
        "0401" + "0000341200000000",  # family "unknown" belongs to probe answers
    ],
)
def test_malformed_control_records_are_refused(body: str) -> None:
    with pytest.raises(RemoteProtocolError):
        control.decode_control(bytes.fromhex(body))


def test_what_does_not_fit_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        control.encode_control(Reject(256))
    with pytest.raises(LocalProtocolError):
        control.encode_control(Candidates((candidate("192.0.2.1"),) * 9))
    with pytest.raises(LocalProtocolError):
        control.encode_close(-1)
    with pytest.raises(LocalProtocolError):
        control.encode_probe(bytes(7))
    with pytest.raises(LocalProtocolError):
        control.encode_probe(bytes(8), 26)
    with pytest.raises(LocalProtocolError):
        control.encode_probe_answer(ProbeAnswer(bytes(9)))
    with pytest.raises(LocalProtocolError):
        Endpoint(ip_address("192.0.2.1"), 65536)


def test_a_mapped_address_becomes_the_ipv4_address() -> None:
    mapped = Endpoint(ip_address("::ffff:192.0.2.1"), 5)
    assert mapped == Endpoint(ip_address("192.0.2.1"), 5)
    assert str(mapped) == "192.0.2.1:5"
    assert str(Endpoint(ip_address("2001:db8::1"), 5)) == "[2001:db8::1]:5"


@given(st.integers(0, 255), st.text(max_size=100))
def test_close_text_comes_back_printable_and_cut_between_characters(reason: int, text: str) -> None:
    body = control.encode_close(reason, text)
    assert len(body) <= 65
    close = control.decode_close(body)
    assert close.reason == reason
    printable = "".join(char for char in text if char.isprintable())
    assert printable.startswith(close.text)
    assert len(printable.encode()) - len(close.text.encode()) < 4 or len(close.text.encode()) > 60


@given(st.binary(max_size=80))
def test_any_close_record_is_refused_or_printable(body: bytes) -> None:
    try:
        close = control.decode_close(body)
    except RemoteProtocolError:
        assert not 1 <= len(body) <= 65
        return
    assert close.text.isprintable()


def test_close_text_loses_control_characters_and_bad_utf8() -> None:
    body = bytes([CloseReason.POLICY]) + b"a\x1b[2J\nb\xff\xe2\x80\xae!"
    assert control.decode_close(body) == Close(CloseReason.POLICY, "a[2Jb\ufffd!")


@given(tokens, st.integers(31, 1500))
def test_probes_survive_the_round_trip(token: bytes, size: int) -> None:
    body = control.encode_probe(token, size)
    assert len(body) == size
    assert control.decode_probe(body) == Probe(token, size, timed=True)


@given(tokens, st.none() | endpoints, st.none() | st.integers(0, 0xFFFFFFFF))
def test_probe_answers_survive_the_round_trip(
    token: bytes, seen: Endpoint | None, held_us: int | None
) -> None:
    answer = ProbeAnswer(token, seen, None if held_us is None else held_us / 1_000_000)
    assert control.decode_probe_answer(control.encode_probe_answer(answer)) == answer


@given(st.binary(max_size=40))
def test_junk_probes_and_answers_are_refused_or_decoded(body: bytes) -> None:
    for decode in (control.decode_probe, control.decode_probe_answer):
        try:
            decode(body)
        except RemoteProtocolError:
            continue


@pytest.mark.parametrize("body", [b"", bytes(8), bytes(10), bytes(12), bytes(8) + b"\x04\0\0abc"])
def test_probe_answers_of_the_wrong_length_are_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        control.decode_probe_answer(body)


def test_a_probe_shorter_than_its_token_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        control.decode_probe(bytes(7))


@given(st.binary(min_size=8, max_size=60), st.none() | endpoints)
def test_an_answer_is_never_larger_than_its_probe(body: bytes, seen: Endpoint | None) -> None:
    answer = control.answer_probe(control.decode_probe(body), seen)
    if answer is None:
        assert len(body) < 11
        return
    assert len(answer) <= len(body)
    decoded = control.decode_probe_answer(answer)
    assert decoded.token == body[:8]
    assert decoded.held_s is None or body[8] == 1
    if len(body) >= control.PROBE_MIN_BYTES:
        assert decoded.seen == seen


def test_a_timed_probe_is_told_how_long_it_was_held() -> None:
    probe = control.decode_probe(control.encode_probe(b"8 bytes!"))
    assert probe.timed
    for seen in (None, Endpoint(IPv4Address("192.0.2.1"), 5)):
        answer = control.answer_probe(probe, seen, 0.001_234_4)
        assert answer is not None
        assert control.decode_probe_answer(answer) == ProbeAnswer(b"8 bytes!", seen, 0.001_234)


@pytest.mark.parametrize("held_s", [-1.0, 1e9])
def test_a_time_that_does_not_fit_is_told_as_the_nearest_that_does(held_s: float) -> None:
    answer = control.encode_probe_answer(ProbeAnswer(bytes(8), None, held_s))
    decoded = control.decode_probe_answer(answer).held_s
    assert decoded == pytest.approx(0.0 if held_s < 0 else 0xFFFFFFFF * 1e-6)


def test_version_0_1_gets_the_answer_that_it_knows_and_takes_our_probe() -> None:
    """It sends 27 bytes with zeros, and refuses an answer with bytes left over."""
    old = control.decode_probe(b"8 bytes!".ljust(27, b"\0"))
    assert not old.timed
    seen = Endpoint(IPv6Address("2001:db8::1"), 5)
    answer = control.answer_probe(old, seen, 0.5)
    assert answer is not None
    assert len(answer) == 27


@pytest.mark.parametrize("extra", [1, 3, 5])
def test_a_time_of_another_length_is_refused(extra: int) -> None:
    with pytest.raises(RemoteProtocolError):
        control.decode_probe_answer(bytes(8) + bytes(3) + bytes(extra))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.1.1",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "fe80::1",
        "::ffff:127.0.0.1",
    ],
)
def test_dangerous_and_useless_candidates_are_refused(address: str) -> None:
    assert not control.is_usable(candidate(address))


@pytest.mark.parametrize(
    "address", ["192.168.1.5", "10.0.1.2", "8.8.8.8", "169.254.3.4", "2001:db8::1", "fe80::1%2"]
)
def test_ordinary_candidates_are_usable(address: str) -> None:
    assert control.is_usable(candidate(address))
    assert not control.is_usable(candidate(address, 0))


def test_reject_reasons_have_a_byte_each() -> None:
    for reason in RejectReason:
        assert control.encode_control(Reject(reason)) == bytes([2, reason])
