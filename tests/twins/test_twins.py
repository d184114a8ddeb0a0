"""Tests of the twins themselves: an oracle that is wrong proves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twins import records, replay, websocket
from tests.twins.websocket import Frame

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "records.json").read_text()
)
KEY = bytes(range(32))

# --- Records ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["accept_wss_message", "wss_batch", "wss_batch_aegis"])
def test_wss_messages_of_the_vectors_are_reproduced(name: str) -> None:
    case = VECTORS[name]
    key = bytes.fromhex(VECTORS["keys"][case["key"]])
    inners = [bytes.fromhex(inner) for inner in case["inners"]]
    message = records.seal_message(
        case["cipher"], key, case["key_id"], case["first_counter"], inners
    )
    assert message.hex() == case["message"]
    assert records.open_message(case["cipher"], key, message) == (
        case["key_id"],
        case["first_counter"],
        inners,
    )


@pytest.mark.parametrize("name", ["udp_frame", "udp_frame_aegis"])
def test_datagrams_of_the_vectors_are_reproduced(name: str) -> None:
    case = VECTORS[name]
    key, inner = bytes.fromhex(VECTORS["keys"][case["key"]]), bytes.fromhex(case["inner"])
    datagram = records.seal_datagram(case["cipher"], key, case["key_id"], case["counter"], inner)
    assert datagram.hex() == case["datagram"]
    assert records.open_datagram(case["cipher"], key, datagram) == (
        case["key_id"],
        case["counter"],
        inner,
    )


def test_the_aes_round_is_the_first_round_of_aes() -> None:
    """Nine such rounds and one without MixColumns are AES-128; undo it by a known answer.

    FIPS 197 appendix B: state after the first AddRoundKey, first round key, state after round 1.
    """
    assert records.SBOX[0x53] == 0xED
    start = bytes.fromhex("193de3bea0f4e22b9ac68d2ae9f84808")
    round_key = bytes.fromhex("a0fafe1788542cb123a339392a6c7605")
    assert records.aes_round(start, round_key).hex() == "a49c7ff2689f352b6b5bea43026a5049"


def test_the_sbox_is_that_of_aes() -> None:
    """AES-128 of another implementation, rebuilt from our S-box and round."""
    key = bytes(range(16))
    keys = [key[i : i + 4] for i in range(0, 16, 4)]
    for number in range(4, 44):
        word = keys[-1]
        if number % 4 == 0:
            word = bytes(records.SBOX[b] for b in word[1:] + word[:1])
            constant = 1
            for _ in range(number // 4 - 1):
                constant = records.gf_double(constant)
            word = records.xor(word, bytes((constant, 0, 0, 0)))
        keys.append(records.xor(keys[number - 4], word))
    rounds = [b"".join(keys[i : i + 4]) for i in range(0, 44, 4)]
    block = records.xor(bytes(range(100, 116)), rounds[0])
    for round_key in rounds[1:10]:
        block = records.aes_round(block, round_key)
    shifted = bytes(records.SBOX[block[(4 * ((i // 4 + i % 4) % 4)) + i % 4]] for i in range(16))
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    assert records.xor(shifted, rounds[10]) == encryptor.update(bytes(range(100, 116)))


@settings(max_examples=25, deadline=None)
@given(
    cipher=st.sampled_from([records.CHACHA, records.AEGIS]),
    counter=st.integers(0, 2**64 - 20),
    inners=st.lists(st.binary(min_size=1, max_size=70), min_size=1, max_size=4),
    place=st.integers(min_value=0),
)
def test_messages_open_again_and_a_changed_byte_does_not(
    cipher: str, counter: int, inners: list[bytes], place: int
) -> None:
    message = records.seal_message(cipher, KEY, 7, counter, inners)
    assert records.open_message(cipher, KEY, message) == (7, counter, inners)
    forged = bytearray(message)
    forged[place % len(message)] ^= 1
    assert records.open_message(cipher, KEY, bytes(forged)) is None
    assert records.open_message(cipher, KEY, message[: place % len(message)]) is None
    assert records.open_message(cipher, KEY, message + b"\0") is None


@settings(max_examples=25, deadline=None)
@given(
    cipher=st.sampled_from([records.CHACHA, records.AEGIS]),
    counter=st.integers(0, 2**64 - 1),
    inner=st.binary(min_size=1, max_size=70),
    place=st.integers(min_value=0),
)
def test_datagrams_open_again_and_a_changed_byte_does_not(
    cipher: str, counter: int, inner: bytes, place: int
) -> None:
    datagram = records.seal_datagram(cipher, KEY, 7, counter, inner)
    assert records.open_datagram(cipher, KEY, datagram) == (7, counter, inner)
    forged = bytearray(datagram)
    forged[place % len(datagram)] ^= 1
    assert records.open_datagram(cipher, KEY, bytes(forged)) is None
    assert records.open_datagram(cipher, KEY, datagram[: place % len(datagram)]) is None


# --- Replay window ----------------------------------------------------------------------------


def test_counters_are_taken_once_in_any_order() -> None:
    window = replay.ReplayWindow()
    for counter in (0, 1, 5, 3, 2, 4, 100):
        assert window.mark(counter)
        assert not window.test(counter)
    assert window.test(50)


@pytest.mark.parametrize(
    ("newest", "counter", "fresh"),
    [
        (0, 0, False),
        (65_472, 0, True),
        (65_473, 0, False),
        (65_473, 1, True),
        (2**64 - 1, 2**64 - 1 - 65_472, True),
        (2**64 - 1, 2**64 - 1 - 65_473, False),
    ],
)
def test_the_window_is_one_word_smaller_than_the_ring(
    newest: int, counter: int, fresh: bool
) -> None:
    window = replay.ReplayWindow()
    assert window.mark(newest)
    assert window.test(counter) is fresh


def test_testing_moves_nothing() -> None:
    window = replay.ReplayWindow()
    assert window.test(2**63)
    assert window.mark(0)
    assert not window.mark(0)


# --- WebSocket frames -------------------------------------------------------------------------


def test_the_examples_of_rfc_6455_section_5_7() -> None:
    mask = bytes.fromhex("37fa213d")
    for data, frame in (
        ("810548656c6c6f", Frame(websocket.TEXT, b"Hello")),
        ("818537fa213d7f9f4d5158", Frame(websocket.TEXT, b"Hello", mask=mask)),
        ("010348656c", Frame(websocket.TEXT, b"Hel", fin=False)),
        ("80026c6f", Frame(websocket.CONTINUATION, b"lo")),
        ("890548656c6c6f", Frame(websocket.PING, b"Hello")),
        ("8a8537fa213d7f9f4d5158", Frame(websocket.PONG, b"Hello", mask=mask)),
        ("827e0100" + "00" * 256, Frame(websocket.BINARY, bytes(256))),
        ("827f0000000000010000" + "00" * 65536, Frame(websocket.BINARY, bytes(65536))),
    ):
        raw = bytes.fromhex(data)
        assert websocket.encode(frame) == raw
        assert websocket.decode(raw, masked=frame.mask is not None) == (frame, len(raw))


frames = st.one_of(
    st.builds(
        Frame,
        st.sampled_from([websocket.CONTINUATION, websocket.TEXT, websocket.BINARY]),
        st.binary(max_size=70) | st.integers(120, 70000).map(bytes),
        st.booleans(),
        st.binary(min_size=4, max_size=4),
    ),
    st.builds(
        Frame,
        st.sampled_from([websocket.CLOSE, websocket.PING, websocket.PONG]),
        st.binary(max_size=125),
        st.just(True),
        st.binary(min_size=4, max_size=4),
    ),
)


@settings(deadline=None)
@given(sent=st.lists(frames, max_size=4), cut=st.integers(min_value=0))
def test_a_stream_of_frames_is_read_back_and_a_cut_one_waits(sent: list[Frame], cut: int) -> None:
    data = b"".join(map(websocket.encode, sent))
    assert websocket.decode_all(data, masked=True) == (sent, b"")
    part = data[: cut % (len(data) + 1)]
    got, rest = websocket.decode_all(part, masked=True)
    assert got == sent[: len(got)]
    assert b"".join(map(websocket.encode, got)) + rest == part


@pytest.mark.parametrize(
    "data",
    [
        "c100",  # reserved bit
        "8300",  # reserved opcode
        "8b00",
        "8180",  # masked, from a server
        "0900",  # fragmented control frame
        "897e",  # long control frame
        "827e007d",  # 125 in two bytes
        "827f000000000000ffff",
        "827f8000000000000000",
    ],
)
def test_a_frame_that_no_server_may_send_is_an_error(data: str) -> None:
    with pytest.raises(websocket.FrameError):
        websocket.decode(bytes.fromhex(data), masked=False)


def test_a_client_must_mask() -> None:
    with pytest.raises(websocket.FrameError):
        websocket.decode(b"\x82\x00", masked=True)
