"""Tests of the handshake messages' layout."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base import constants
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire.handshake import messages
from shadowmesh.wire.handshake.messages import P1, P2, P3

CERT = bytes(range(32))
U8, U16 = st.integers(0, 255), st.integers(0, 65535)
KEY_ID = st.integers(1, 2**32 - 1)
CAPS = st.integers(0, 15)
CERTS = st.binary(min_size=32, max_size=32)


def test_fields_end_where_the_messages_end() -> None:
    assert messages.MSG1_KEM_END == 1240
    assert messages.MSG1_END == constants.MSG1_BYTES == 1272
    assert messages.MSG2_KEM_END == 1144
    assert messages.MSG2_ID_END == 1192
    assert messages.MSG2_SIGNATURE_END == 1272
    assert messages.MSG2_END == constants.MSG2_BYTES == 1336
    assert messages.MSG3_ID_END == 56
    assert messages.MSG3_SIGNATURE_END == 136
    assert messages.MSG3_END == constants.MSG3_BYTES == 200


def test_a_header_is_eight_bytes() -> None:
    assert messages.header(3, 2) == b"SMH\x01\x01\x03\x02\x00"
    assert messages.header(3, 2)[constants.MODE_OFFSET] == 3


@given(caps=CAPS, low=st.integers(0, 1), high=st.integers(1, 255))
def test_p1_survives_the_wire(caps: int, low: int, high: int) -> None:
    payload = P1(caps, low, high)
    assert len(payload.pack()) == 16
    assert P1.unpack(payload.pack()) == payload


@given(key_id=KEY_ID, mtu=U16, caps=CAPS, cert=CERTS, high=st.integers(1, 255))
def test_p2_survives_the_wire(key_id: int, mtu: int, caps: int, cert: bytes, high: int) -> None:
    payload = P2(key_id, mtu, caps, cert, 1, high)
    assert len(payload.pack()) == 48
    assert P2.unpack(payload.pack()) == payload


@given(key_id=KEY_ID, mtu=U16, caps=CAPS, cert=CERTS)
def test_p3_survives_the_wire(key_id: int, mtu: int, caps: int, cert: bytes) -> None:
    payload = P3(key_id, mtu, caps, cert)
    assert len(payload.pack()) == 48
    assert P3.unpack(payload.pack()) == payload


def test_payloads_have_the_bytes_of_the_protocol_text() -> None:
    assert P1(0x0005).pack() == bytes((1, 1, 5, 0)) + bytes(12)
    assert P2(0x11223344, 1500, 3, CERT).pack() == (
        bytes.fromhex("44332211dc0503000101000000000000") + CERT
    )
    assert P3(0x55667788, 1500, 3, CERT).pack() == (
        bytes.fromhex("88776655dc0503000000000000000000") + CERT
    )


@pytest.mark.parametrize(
    ("kind", "packed", "reserved"),
    [
        (P1, P1(0).pack(), range(4, 16)),
        (P2, P2(1, 1500, 0, CERT).pack(), range(10, 16)),
        (P3, P3(1, 1500, 0, CERT).pack(), range(8, 16)),
    ],
)
def test_every_reserved_byte_must_be_zero(kind: Any, packed: bytes, reserved: range) -> None:
    kind.unpack(packed)
    for place in reserved:
        forged = bytearray(packed)
        forged[place] = 1
        with pytest.raises(RemoteProtocolError, match="reserved") as caught:
            kind.unpack(bytes(forged))
        assert caught.value.close_code == 4400


@pytest.mark.parametrize("bit", range(4, 16))
def test_an_unknown_capability_is_refused(bit: int) -> None:
    for kind, packed in (
        (P1, P1(1 << bit).pack()),
        (P2, P2(1, 1500, 1 << bit, CERT).pack()),
        (P3, P3(1, 1500, 1 << bit, CERT).pack()),
    ):
        with pytest.raises(RemoteProtocolError, match="capability"):
            kind.unpack(packed)


@pytest.mark.parametrize(
    ("low", "high", "fits"),
    [(1, 1, True), (0, 1, True), (1, 9, True), (2, 3, False), (0, 0, False), (2, 1, False)],
)
def test_the_versions_must_include_ours(low: int, high: int, fits: bool) -> None:
    for kind, packed in ((P1, P1(0, low, high).pack()), (P2, P2(1, 0, 0, CERT, low, high).pack())):
        if fits:
            kind.unpack(packed)
        else:
            with pytest.raises(RemoteProtocolError, match="versions"):
                kind.unpack(packed)


@pytest.mark.parametrize(
    "payload",
    [
        P1(1 << 16),
        P1(0, 256),
        P2(0, 1500, 0, CERT),
        P2(1 << 32, 1500, 0, CERT),
        P2(1, 1 << 16, 0, CERT),
        P2(1, 1500, 0, CERT + b"x"),
        P2(1, 1500, 0, b""),
        P3(0, 1500, 0, CERT),
        P3(1, -1, 0, CERT),
        P3(1, 1500, 0, CERT[:-1]),
    ],
)
def test_a_value_of_ours_that_does_not_fit_is_our_mistake(payload: P1 | P2 | P3) -> None:
    with pytest.raises(LocalProtocolError):
        payload.pack()


@given(data=st.binary(min_size=48, max_size=48))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    for kind, size in ((P1, 16), (P2, 48), (P3, 48)):
        try:
            parsed = kind.unpack(data[:size])
        except RemoteProtocolError:
            continue
        assert kind is P3 or parsed.min_version <= 1 <= parsed.max_version  # type: ignore[union-attr]
