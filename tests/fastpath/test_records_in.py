"""What the peer may put into its messages, and what ends the link with 4400."""

from __future__ import annotations

import struct

import pytest

from shadowmesh.base.constants import ControlCode, Inner
from shadowmesh.base.errors import RemoteProtocolError
from tests.fastpath.rig import AEGIS, CHACHA, CIPHERS, KEYS, Peer, frame, ingest, plain
from tests.twins import records

GOOD = plain(frame(b"good"))
ACCEPT = bytes([Inner.CONTROL, ControlCode.ACCEPT]) + bytes(6)


@pytest.fixture(params=CIPHERS)
def peer(request, make) -> Peer:
    return Peer(make().start(request.param), request.param)


def refuse(peer: Peer, payload: bytes) -> None:
    """The message ends the link with 4400 and delivers nothing."""
    with pytest.raises(RemoteProtocolError) as caught:
        ingest(peer.node.pipe, peer.frame(payload))
    assert caught.value.close_code == 4400
    assert peer.node.tap.take() == []


def forged(message: bytes, at: int) -> bytes:
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


# --- What is right ------------------------------------------------------------------------------


def test_frames_reach_the_device_and_other_records_the_caller(peer):
    sent = [GOOD, ACCEPT, plain(frame(b"second")), bytes([Inner.PROBE]) + b"12345678"]
    key_id = peer.node.local_id
    assert peer.send(*sent) == [
        ("record", key_id, Inner.CONTROL, ACCEPT[1:]),
        ("record", key_id, Inner.PROBE, b"12345678"),
    ]
    assert peer.node.tap.take() == [bytes(10) + frame(b"good"), bytes(10) + frame(b"second")]


@pytest.mark.parametrize("size", [0, 1, 1000, 20_000])
def test_padding_of_any_size_is_an_event_without_a_body(peer, size):
    assert peer.send(bytes([Inner.PADDING]) + b"x" * size) == [
        ("record", peer.node.local_id, Inner.PADDING, b"")
    ]


@pytest.mark.parametrize("inner_type", [Inner.HANDSHAKE, Inner.MESH])
def test_a_record_that_is_no_frame_may_have_2048_bytes(peer, inner_type):
    body = bytes(range(256)) * 8
    assert peer.send(bytes([inner_type]) + body) == [
        ("record", peer.node.local_id, inner_type, body)
    ]
    refuse(peer, peer.message([bytes([inner_type]) + body + b"x"]))


def test_a_message_of_256_kib_is_taken(make):
    node = make().start()
    peer = Peer(node)
    padding = bytes(256 * 1024 - 16 - 4 - 16)
    message = peer.message([padding])
    assert len(message) == 256 * 1024
    assert len(ingest(node.pipe, peer.frame(message))) == 1


def test_a_message_of_65535_records_would_need_more_than_its_size(peer):
    # the count has 16 bits; the cap of the message is reached long before
    assert 65535 * (4 + 1 + 16) > 256 * 1024


# --- What is wrong ------------------------------------------------------------------------------


def test_a_gap_in_the_counters_ends_the_link(peer):
    peer.send(GOOD)
    peer.node.tap.take()
    refuse(peer, peer.message([GOOD], first_counter=2))


def test_a_repeated_message_ends_the_link(peer):
    message = peer.message([GOOD])
    assert ingest(peer.node.pipe, peer.frame(message)) == []
    peer.node.tap.take()
    refuse(peer, message)


def test_an_unknown_key_id_ends_the_link(peer):
    refuse(peer, peer.message([GOOD], key_id=peer.node.local_id ^ 0x100))


def test_a_key_id_of_another_slot_ends_the_link(peer):
    refuse(peer, peer.message([GOOD], key_id=peer.node.local_id ^ 1))


def test_a_key_id_without_keys_yet_ends_the_link(peer):
    # even when the record is sealed under what memory may hold there: zeros
    peer.cipher = CHACHA
    refuse(peer, peer.message([GOOD], key_id=peer.node.session.reserve_key_id(), key=bytes(32)))


def test_the_key_id_of_another_session_ends_the_link(make):
    node, other = make().start(), make()
    other.session.close()
    other.session = node.another_session()
    other.local_id = other.session.reserve_key_id()
    other.install(other.local_id, 1)
    peer = Peer(node)
    refuse(peer, peer.message([GOOD], key_id=other.local_id))


def test_each_forged_byte_of_a_record_ends_the_link(make):
    for at in (0, 1, 2, 4, 7, 8, 15, 16, 20, 21, -17, -16, -1):
        node = make().start()
        peer = Peer(node)
        message = peer.message([GOOD])
        refuse(peer, forged(message, at % len(message)))


@pytest.mark.parametrize("inner_type", [Inner.FRAGMENT, 8, 10, 127, 255])
def test_an_unknown_inner_type_ends_the_link(peer, inner_type):
    refuse(peer, peer.message([bytes([inner_type]) + bytes(30)]))


def test_frames_before_an_unknown_inner_type_are_delivered(peer):
    with pytest.raises(RemoteProtocolError):
        peer.send(GOOD, b"\x08")
    assert peer.node.tap.take() == [bytes(10) + frame(b"good")]


@pytest.mark.parametrize("kind", [0x80, 0x82, 0])
def test_another_kind_of_message_ends_the_link(peer, kind):
    refuse(peer, bytes([kind]) + peer.message([GOOD])[1:])


def test_a_reserved_byte_that_is_not_zero_ends_the_link(peer):
    refuse(peer, b"\x81\x01" + peer.message([GOOD])[2:])


def test_a_count_of_zero_ends_the_link(peer):
    refuse(peer, peer.message([]))


def test_a_count_above_the_records_that_came_ends_the_link(peer):
    message = peer.message([GOOD])
    with pytest.raises(RemoteProtocolError) as caught:
        ingest(peer.node.pipe, peer.frame(message[:2] + b"\x02\x00" + message[4:]))
    assert caught.value.close_code == 4400


def test_bytes_behind_the_last_record_end_the_link(peer):
    with pytest.raises(RemoteProtocolError) as caught:
        ingest(peer.node.pipe, peer.frame(peer.message([GOOD]) + b"x"))
    assert caught.value.close_code == 4400


@pytest.mark.parametrize("length", range(16))
def test_a_message_shorter_than_its_header_ends_the_link(peer, length):
    refuse(peer, peer.message([GOOD])[:length])


@pytest.mark.parametrize("length", [0, 1, 16, 256 * 1024 + 1, 2**31, 2**32 - 1])
def test_a_record_length_that_cannot_be_ends_the_link(peer, length):
    message = peer.message([GOOD])
    refuse(peer, message[:16] + struct.pack("<I", length) + message[20:])


def test_an_empty_inner_record_ends_the_link(peer):
    # a tag and nothing else: there is not even a type
    refuse(peer, peer.message([b""]))


@pytest.mark.parametrize("change", [-1, 1, 100, 70_000])
def test_a_record_length_beyond_or_within_the_message_ends_the_link(peer, change):
    message = peer.message([GOOD])
    length = len(message) - 20 + change
    refuse(peer, message[:16] + struct.pack("<I", length) + message[20:])


def test_the_cipher_is_the_agreed_one(make):
    node = make().start(CHACHA)
    refuse(Peer(node, AEGIS), Peer(node, AEGIS).message([GOOD]))


def test_the_keys_of_the_other_direction_and_of_udp_do_not_open(make):
    for name in ("out", "uin", "uout"):
        node = make().start()
        peer = Peer(node)
        refuse(peer, peer.message([GOOD], key=KEYS[name]))


def test_a_datagram_inside_a_message_does_not_open(make):
    node = make().start()
    peer = Peer(node)
    sealed = records.seal(CHACHA, peer.key, records.KIND_UDP, node.local_id, 0, GOOD)
    header = struct.pack("<BxHIQ", 0x81, 1, node.local_id, 0)
    refuse(peer, header + struct.pack("<I", len(sealed)) + sealed)


# --- After the end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda peer: peer.message([b"\x08"]), id="unknown type"),
        pytest.param(lambda peer: forged(peer.message([GOOD]), -1), id="forged tag"),
        pytest.param(lambda peer: peer.message([GOOD], first_counter=9), id="gap"),
    ],
)
def test_nothing_that_follows_a_violation_is_taken(make, bad):
    node = make().start()
    peer = Peer(node)
    with pytest.raises(RemoteProtocolError):
        ingest(node.pipe, peer.frame(bad(peer)))
    with pytest.raises(RemoteProtocolError):
        ingest(node.pipe, peer.frame(peer.message([GOOD])))
    assert node.tap.take() == []


def test_keys_that_were_erased_in_the_middle_of_a_message_open_nothing_more(make):
    # The header of a message is not sealed: anybody on the way can begin one and wait. What he
    # then seals under zeros, which is what erased memory holds, must not open.
    node = make().start()
    peer = Peer(node)
    message = peer.message([GOOD])
    stream = peer.frame(message)
    first = len(stream) - len(message) + 16
    assert ingest(node.pipe, stream[:first]) == []
    node.session.retire(node.local_id)
    sealed = records.seal(CHACHA, bytes(32), records.KIND_WSS, 0, 0, GOOD)
    record = struct.pack("<I", len(sealed)) + sealed
    masked = records.xor(record, (peer.mask * len(record))[: len(record)])
    with pytest.raises(RemoteProtocolError) as caught:
        ingest(node.pipe, masked)
    assert caught.value.close_code == 4400
    assert node.tap.take() == []


def test_a_key_slot_that_was_filled_again_in_the_middle_of_a_message_is_another_key(make):
    node = make().start()
    peer = Peer(node)
    message = peer.message([GOOD])
    stream = peer.frame(message)
    first = len(stream) - len(message) + 16
    assert ingest(node.pipe, stream[:first]) == []
    old = node.local_id
    node.session.retire(old)
    wanted = old ^ 0x5A000000 or 0x5A000000
    assert node.session.reserve_key_id(wanted) == wanted
    node.install(wanted, 7)
    sealed = records.seal(CHACHA, peer.key, records.KIND_WSS, wanted, 0, GOOD)
    record = struct.pack("<I", len(sealed)) + sealed
    with pytest.raises(RemoteProtocolError):
        ingest(node.pipe, records.xor(record, (peer.mask * len(record))[: len(record)]))
    assert node.tap.take() == []
