"""STUN: the vectors of RFC 5769 first, then one table of bad messages, then random bytes."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire.control import Endpoint
from shadowmesh.wire.nat import stun
from shadowmesh.wire.nat.stun import Attribute, ChangeRequest, ErrorCode, MessageClass
from shadowmesh.wire.nat.transaction import Finished, Outcome, Transaction
from tests.lab.stun_server import Behaviour, StunServer

# RFC 5769: 2.1 request, 2.2 IPv4 response, 2.3 IPv6 response, 2.4 long-term request.
SAMPLE_REQUEST = bytes.fromhex(
    "00010058 2112a442 b7e7a701bc34d686fa87dfae"
    "80220010 5354554e207465737420636c69656e74"
    "00240004 6e0001ff"
    "80290008 932ff9b151263b36"
    "00060009 6576746a3a68367659 202020"
    "00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004 e57a3bcf"
)
SAMPLE_IPV4_RESPONSE = bytes.fromhex(
    "0101003c 2112a442 b7e7a701bc34d686fa87dfae"
    "8022000b 7465737420766563746f72 20"
    "00200008 0001a147e112a643"
    "00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004 c07d4c96"
)
SAMPLE_IPV6_RESPONSE = bytes.fromhex(
    "01010048 2112a442 b7e7a701bc34d686fa87dfae"
    "8022000b 7465737420766563746f72 20"
    "00200014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014 a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004 c8fb0b4c"
)
SAMPLE_LONG_TERM_REQUEST = bytes.fromhex(
    "00010060 2112a442 78ad3433c6ad72c029da412e"
    "00060012 e3839ee38388e383aae38383e382afe382b9 0000"
    "0015001c 662f2f3439396b39353464364f4c33346f4c394653547679363473 41"
    "0014000b 6578616d706c652e6f7267 00"
    "00080014 f67024656dd64a3e02b8e0712e85c9a28ca89666"
)
SAMPLE_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")

SERVER = Endpoint(ip_address("198.51.100.10"), 3478)
OTHER = Endpoint(ip_address("198.51.100.11"), 3479)
CLIENT = Endpoint(ip_address("203.0.113.5"), 40000)
ID = bytes(range(12))


def response(*attributes: tuple[Attribute, stun.Value], transaction_id: bytes = ID) -> bytes:
    return stun.build(MessageClass.SUCCESS, transaction_id, attributes)


# --- Vectors ---------------------------------------------------------------------------------


def test_sample_request_of_rfc_5769_parses():
    message = stun.parse(SAMPLE_REQUEST)
    assert message.message_class is MessageClass.REQUEST
    assert message.transaction_id == SAMPLE_ID
    assert message.attributes[Attribute.SOFTWARE] == b"STUN test client"
    assert message.attributes[Attribute.USERNAME] == b"evtj:h6vY"
    assert message.attributes[Attribute.PRIORITY] == bytes.fromhex("6e0001ff")
    assert message.attributes[Attribute.ICE_CONTROLLED] == bytes.fromhex("932ff9b151263b36")
    assert message.attributes[Attribute.FINGERPRINT] == bytes.fromhex("e57a3bcf")
    assert message.unknown_required == ()


def test_sample_ipv4_response_of_rfc_5769_gives_the_mapped_address():
    answer = stun.parse_response(SAMPLE_IPV4_RESPONSE, SAMPLE_ID)
    assert answer.mapped == Endpoint(ip_address("192.0.2.1"), 32853)
    assert stun.parse(SAMPLE_IPV4_RESPONSE).attributes[Attribute.SOFTWARE] == b"test vector"


def test_sample_ipv6_response_of_rfc_5769_gives_the_mapped_address():
    answer = stun.parse_response(SAMPLE_IPV6_RESPONSE, SAMPLE_ID)
    assert answer.mapped == Endpoint(ip_address("2001:db8:1234:5678:11:2233:4455:6677"), 32853)


def test_sample_long_term_request_of_rfc_5769_parses():
    message = stun.parse(SAMPLE_LONG_TERM_REQUEST)
    assert message.transaction_id == bytes.fromhex("78ad3433c6ad72c029da412e")
    assert message.attributes[Attribute.USERNAME] == "マトリックス".encode()
    assert message.attributes[Attribute.NONCE] == b"f//499k954d6OL34oL9FSTvy64sA"
    assert message.attributes[Attribute.REALM] == b"example.org"
    assert len(message.attributes[Attribute.MESSAGE_INTEGRITY]) == 20


@pytest.mark.parametrize("sample", [SAMPLE_REQUEST, SAMPLE_IPV4_RESPONSE, SAMPLE_IPV6_RESPONSE])
def test_every_flipped_bit_of_a_sample_is_noticed_by_its_fingerprint(sample):
    # A flip in the header of an attribute may hide the fingerprint inside another value, and
    # then there is none to check; everything else has to be refused.
    headers, offset = set(), 20
    while offset < len(sample):
        headers.update(range(offset, offset + 4))
        size = int.from_bytes(sample[offset + 2 : offset + 4], "big")
        offset += 4 + size + -size % 4
    for index in range(len(sample) * 8):
        bad = bytearray(sample)
        bad[index // 8] ^= 1 << index % 8
        if index // 8 not in headers:
            with pytest.raises(RemoteProtocolError):
                stun.parse(bytes(bad))


def test_built_messages_equal_the_samples_where_those_have_no_password():
    software = b"test vector "  # the sample pads with a space, which counts for the CRC
    ours = stun.build(
        MessageClass.SUCCESS,
        SAMPLE_ID,
        [
            (Attribute.SOFTWARE, software),
            (Attribute.XOR_MAPPED_ADDRESS, Endpoint(ip_address("192.0.2.1"), 32853)),
            (Attribute.MESSAGE_INTEGRITY, SAMPLE_IPV4_RESPONSE[52:72]),
        ],
    )
    # The software's length differs by the padding byte; with it put right, all but the CRC agree.
    assert ours[:23] + b"\x0b" + ours[24:-4] == SAMPLE_IPV4_RESPONSE[:-4]


# --- Requests and responses ------------------------------------------------------------------


def test_a_request_is_a_header_and_a_fingerprint():
    data = stun.binding_request(ID)
    assert data[:20] == bytes.fromhex("00010008 2112a442") + ID
    assert data[20:24] == bytes.fromhex("80280004")
    assert len(data) == 28
    assert stun.is_stun(data)


@pytest.mark.parametrize(
    ("change", "bits"),
    [
        (ChangeRequest(), 0),
        (ChangeRequest(port=True), 2),
        (ChangeRequest(ip=True), 4),
        (ChangeRequest(ip=True, port=True), 6),
    ],
)
def test_change_request_has_the_flags_of_rfc_5780(change, bits):
    data = stun.binding_request(ID, change)
    assert data[20:28] == bytes.fromhex("00030004") + bits.to_bytes(4, "big")
    assert stun.parse(data).attributes[Attribute.CHANGE_REQUEST] == change


def test_a_transaction_id_of_another_length_is_our_own_bug():
    with pytest.raises(LocalProtocolError, match="11 bytes"):
        stun.binding_request(bytes(11))


def test_response_from_another_transaction_is_refused():
    with pytest.raises(RemoteProtocolError, match="transaction"):
        stun.parse_response(SAMPLE_IPV4_RESPONSE, bytes(12))


def test_request_is_no_response():
    with pytest.raises(RemoteProtocolError, match="response was wanted"):
        stun.parse_response(stun.binding_request(ID), ID)


def test_xor_mapped_address_beats_mapped_address_whatever_the_order():
    wrong = Endpoint(ip_address("10.0.0.1"), 1)
    data = response((Attribute.MAPPED_ADDRESS, wrong), (Attribute.XOR_MAPPED_ADDRESS, CLIENT))
    assert stun.parse_response(data, ID).mapped == CLIENT


@pytest.mark.parametrize(
    "attribute", [Attribute.MAPPED_ADDRESS, Attribute.XOR_MAPPED_ADDRESS_DRAFT]
)
def test_old_forms_of_the_mapped_address_are_understood(attribute):
    assert stun.parse_response(response((attribute, CLIENT)), ID).mapped == CLIENT


def test_other_address_and_response_origin_are_given():
    data = response(
        (Attribute.XOR_MAPPED_ADDRESS, CLIENT),
        (Attribute.OTHER_ADDRESS, OTHER),
        (Attribute.RESPONSE_ORIGIN, SERVER),
    )
    assert stun.parse_response(data, ID) == stun.BindingResponse(CLIENT, OTHER, SERVER)


def test_the_first_of_two_equal_attributes_counts():
    data = response((Attribute.XOR_MAPPED_ADDRESS, CLIENT), (Attribute.XOR_MAPPED_ADDRESS, OTHER))
    assert stun.parse_response(data, ID).mapped == CLIENT


def test_what_follows_a_message_integrity_does_not_count():
    data = response((Attribute.MESSAGE_INTEGRITY, bytes(20)), (Attribute.MAPPED_ADDRESS, CLIENT))
    with pytest.raises(RemoteProtocolError, match="without XOR-MAPPED"):
        stun.parse_response(data, ID)


def test_an_error_response_carries_code_reason_and_alternate_server():
    data = stun.build(
        MessageClass.ERROR,
        ID,
        [
            (Attribute.ERROR_CODE, ErrorCode(300, "Try\nAlternate")),
            (Attribute.ALTERNATE_SERVER, OTHER),
        ],
    )
    with pytest.raises(stun.StunError, match="300 TryAlternate") as caught:
        stun.parse_response(data, ID)
    assert caught.value.code == 300
    assert caught.value.alternate == OTHER


def with_body(body: bytes, kind: int = 0x0101) -> bytes:
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + ID + body


BAD = {
    "empty": (b"", "header of 20"),
    "short header": (SAMPLE_REQUEST[:19], "header of 20"),
    "cut": (SAMPLE_IPV4_RESPONSE[:-4], "length"),
    "longer": (SAMPLE_IPV4_RESPONSE + bytes(4), "length"),
    "length not a multiple of 4": (with_body(bytes(5)), "length"),
    "record of ours": (b"\x80" + SAMPLE_REQUEST[1:], "first two bits"),
    "no cookie": (SAMPLE_REQUEST[:4] + bytes(4) + SAMPLE_REQUEST[8:], "cookie"),
    "another method": (with_body(b"", 0x0003), "method"),
    "attribute longer than the message": (with_body(b"\x80\x22\x00\x05abcd"), "cut short"),
    "address too short": (with_body(b"\x00\x01\x00\x00"), "of 0 bytes"),
    "address of family 3": (with_body(b"\x00\x01\x00\x08\x00\x03" + bytes(6)), "family 3"),
    "IPv4 address of 16 bytes": (with_body(b"\x00\x20\x00\x14\x00\x01" + bytes(18)), "family 1"),
    "IPv6 address of 4 bytes": (with_body(b"\x00\x20\x00\x08\x00\x02" + bytes(6)), "family 2"),
    "IPv6 address of 20 bytes": (with_body(b"\x00\x20\x00\x18\x00\x02" + bytes(22)), "24 bytes"),
    "error code cut": (with_body(b"\x00\x09\x00\x02\x00\x00\x00\x00", 0x0111), "ERROR-CODE"),
    "error code 299": (with_body(b"\x00\x09\x00\x04\x00\x00\x02\x63", 0x0111), "outside"),
    "error code 4 100": (with_body(b"\x00\x09\x00\x04\x00\x00\x04\x64", 0x0111), "outside"),
    "no error code": (with_body(b"", 0x0111), "without ERROR-CODE"),
    "change request of 3 bytes": (with_body(b"\x00\x03\x00\x03" + bytes(4)), "CHANGE-REQUEST"),
    "odd unknown attributes": (with_body(b"\x00\x0a\x00\x01" + bytes(4)), "UNKNOWN-ATTRIBUTES"),
    "fingerprint not last": (
        SAMPLE_IPV4_RESPONSE[:2] + b"\x00\x44" + SAMPLE_IPV4_RESPONSE[4:] + b"\x80\x22\x00\x04abcd",
        "last",
    ),
    "fingerprint of 2 bytes": (with_body(b"\x80\x28\x00\x02" + bytes(4)), "match"),
    "unknown attribute": (with_body(b"\x7f\xff\x00\x00"), "0x7fff"),
    "nothing in it": (with_body(b""), "without XOR-MAPPED"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_message_is_refused(name):
    data, reason = BAD[name]
    with pytest.raises(RemoteProtocolError, match=reason):
        stun.parse_response(data, ID)


def test_unknown_attributes_above_0x7fff_are_stepped_over():
    plain = stun.build(
        MessageClass.SUCCESS, ID, [(Attribute.XOR_MAPPED_ADDRESS, CLIENT)], fingerprint=False
    )
    assert stun.parse_response(with_body(b"\xff\xff\x00\x01abcd" + plain[20:]), ID).mapped == CLIENT


@given(st.binary(max_size=200))
def test_random_bytes_give_a_message_or_a_remote_error(data):
    try:
        stun.parse(data)
    except RemoteProtocolError:
        pass
    else:
        assert stun.is_stun(data)


@given(
    st.binary(max_size=120).map(lambda body: body + bytes(-len(body) % 4)),
    st.sampled_from([0x0001, 0x0011, 0x0101, 0x0111]),
)
def test_random_attributes_give_a_response_or_a_remote_error(body, kind):
    with contextlib.suppress(RemoteProtocolError):
        stun.parse_response(with_body(body, kind), ID)


ENDPOINTS = st.builds(Endpoint, st.ip_addresses(), st.integers(0, 0xFFFF))


@given(ENDPOINTS, ENDPOINTS, st.binary(min_size=12, max_size=12))
def test_addresses_survive_the_way_there_and_back(mapped, other, transaction_id):
    data = response(
        (Attribute.XOR_MAPPED_ADDRESS, mapped),
        (Attribute.OTHER_ADDRESS, other),
        transaction_id=transaction_id,
    )
    assert stun.parse_response(data, transaction_id) == stun.BindingResponse(mapped, other)


def test_every_attribute_is_in_the_table():
    assert set(stun._TABLE) == set(Attribute)


# --- Transactions ----------------------------------------------------------------------------


def run(transaction: Transaction) -> tuple[list[float], Finished]:
    """Let time pass without an answer; return when requests went out, and the end."""
    sent, now = [], 0.0
    while (event := transaction.next_event()) is None:
        if transaction.data_to_send():
            sent.append(now)
        timeout = transaction.next_timeout()
        assert timeout is not None
        assert timeout > now
        now = timeout
        transaction.handle_timeout(now)
    return [*sent, now], event


def test_requests_are_repeated_as_rfc_8489_says():
    times, event = run(Transaction(SERVER, ID, 0.0, deadline=1000.0))
    assert times == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 39.5]
    assert event.outcome is Outcome.SILENT
    assert event.response is None


def test_the_deadline_ends_the_wait_whatever_the_schedule():
    times, event = run(Transaction(SERVER, ID, 0.0, deadline=5.0))
    assert times == [0.0, 0.5, 1.5, 3.5, 5.0]
    assert event == Finished(Outcome.SILENT, detail="no answer to 4 requests")


def test_every_request_of_a_transaction_is_the_same_datagram():
    transaction = Transaction(SERVER, ID, 0.0, deadline=5.0)
    first = transaction.data_to_send()
    transaction.handle_timeout(0.5)
    assert transaction.data_to_send() == first == [stun.binding_request(ID)]


def test_an_early_timeout_call_does_nothing():
    transaction = Transaction(SERVER, ID, 0.0, deadline=5.0)
    transaction.data_to_send()
    transaction.handle_timeout(0.499)
    assert transaction.data_to_send() == []
    assert transaction.next_timeout() == 0.5


def exchange(
    server: StunServer, now: float = 0.03, **options: object
) -> tuple[Transaction, list[bool]]:
    transaction = Transaction(SERVER, ID, 0.0, deadline=5.0, **options)  # type: ignore[arg-type]
    verdicts = []
    for request in transaction.data_to_send():
        for reply in server.receive(request, CLIENT, SERVER):
            assert reply.destination == CLIENT
            verdicts.append(transaction.receive(reply.data, reply.local, now))
    return transaction, verdicts


def test_an_honest_answer_ends_the_transaction():
    transaction, verdicts = exchange(StunServer(SERVER, OTHER))
    assert verdicts == [True]
    event = transaction.next_event()
    assert event is not None
    assert event.outcome is Outcome.ANSWERED
    assert event.response == stun.BindingResponse(CLIENT, OTHER, SERVER)
    assert event.source == SERVER
    assert event.rtt_s == pytest.approx(0.03)
    assert transaction.next_event() is None
    assert transaction.next_timeout() is None
    assert transaction.finished


def test_a_second_answer_is_none_of_a_finished_transaction():
    transaction, _ = exchange(StunServer(SERVER))
    data = response((Attribute.XOR_MAPPED_ADDRESS, OTHER))
    assert not transaction.receive(data, SERVER, 1.0)


@pytest.mark.parametrize(
    ("behaviour", "ignored"),
    [
        (Behaviour.SILENT, 0),
        (Behaviour.GARBAGE, 7),
        (Behaviour.BAD_FINGERPRINT, 1),
        (Behaviour.OTHER_SOURCE, 0),
        (Behaviour.WRONG_TRANSACTION, 1),
    ],
)
def test_what_is_not_an_answer_does_not_end_the_wait(behaviour, ignored):
    transaction, verdicts = exchange(StunServer(SERVER, behaviour=behaviour))
    assert not any(verdicts)
    assert not transaction.finished
    assert transaction.ignored == ignored
    assert transaction.next_timeout() == 0.5
    honest = response((Attribute.XOR_MAPPED_ADDRESS, CLIENT))
    assert transaction.receive(honest, SERVER, 0.1)


@pytest.mark.parametrize(
    ("behaviour", "outcome", "detail"),
    [
        (Behaviour.REFUSING, Outcome.REFUSED, "500 Server Error"),
        (Behaviour.UNKNOWN_ATTRIBUTE, Outcome.UNUSABLE, "0x7fff"),
    ],
)
def test_a_refusal_ends_the_wait(behaviour, outcome, detail):
    transaction, verdicts = exchange(StunServer(SERVER, behaviour=behaviour))
    assert verdicts == [True]
    event = transaction.next_event()
    assert event is not None
    assert event.outcome is outcome
    assert event.response is None
    assert detail in event.detail


def test_an_indication_of_the_right_id_is_no_answer():
    transaction = Transaction(SERVER, ID, 0.0, deadline=5.0)
    assert not transaction.receive(stun.build(MessageClass.INDICATION, ID), SERVER, 0.1)
    assert transaction.ignored == 1


def test_a_changed_source_counts_only_when_it_was_asked_for():
    change = ChangeRequest(ip=True, port=True)
    _, refused = exchange(StunServer(SERVER, OTHER), change=change)
    transaction, taken = exchange(StunServer(SERVER, OTHER), change=change, answer_from=[OTHER])
    assert (refused, taken) == ([False], [True])
    event = transaction.next_event()
    assert event is not None
    assert event.source == OTHER


def test_a_server_with_one_address_refuses_change_request():
    transaction, _ = exchange(StunServer(SERVER), change=ChangeRequest(ip=True))
    event = transaction.next_event()
    assert event is not None
    assert event.outcome is Outcome.REFUSED
    assert "420" in event.detail


def test_rtt_after_a_retransmission_counts_from_the_last_request():
    transaction = Transaction(SERVER, ID, 0.0, deadline=5.0)
    transaction.handle_timeout(0.5)
    transaction.receive(response((Attribute.XOR_MAPPED_ADDRESS, CLIENT)), SERVER, 0.52)
    event = transaction.next_event()
    assert event is not None
    assert event.rtt_s == pytest.approx(0.02)
    assert transaction.data_to_send() == []
