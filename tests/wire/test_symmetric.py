"""Tests of the symmetric state against published HKDF vectors and the text of Noise."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire.handshake.symmetric import SymmetricState, noise_hkdf

NAME = b"a protocol name that is longer than one hash, as ours is"


def keyed(key: bytes = b"input key") -> SymmetricState:
    state = SymmetricState(NAME)
    state.mix_key(key)
    return state


def test_hkdf_reproduces_rfc_5869_test_case_3() -> None:
    """Noise's HKDF is RFC 5869 with an empty info."""
    okm = b"".join(noise_hkdf(b"", b"\x0b" * 22, 2))[:42]
    assert okm.hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@given(chaining_key=st.binary(min_size=32, max_size=32), input_key=st.binary(max_size=80))
def test_hkdf_agrees_with_another_implementation(chaining_key: bytes, input_key: bytes) -> None:
    for outputs in (2, 3):
        other = HKDF(SHA256(), 32 * outputs, chaining_key, b"").derive(input_key)
        assert b"".join(noise_hkdf(chaining_key, input_key, outputs)) == other


def test_the_first_hash_is_that_of_the_name() -> None:
    assert SymmetricState(NAME).h == hashlib.sha256(NAME).digest()


def test_a_short_name_is_refused_because_noise_pads_it_instead() -> None:
    with pytest.raises(LocalProtocolError):
        SymmetricState(b"x" * 32)


def test_mix_hash_appends() -> None:
    state = SymmetricState(NAME)
    state.mix_hash(b"abc")
    assert state.h == hashlib.sha256(hashlib.sha256(NAME).digest() + b"abc").digest()


def test_mix_key_follows_noise_section_5_2() -> None:
    ck = hashlib.sha256(NAME).digest()
    _, k = noise_hkdf(ck, b"input key", 2)
    sealed = keyed().encrypt_and_hash(b"text")
    assert sealed == ChaCha20Poly1305(k).encrypt(bytes(12), b"text", ck)


def test_mix_key_and_hash_follows_noise_section_5_2() -> None:
    ck = hashlib.sha256(NAME).digest()
    _, temp_h, k = noise_hkdf(ck, b"psk", 3)
    state = SymmetricState(NAME)
    state.mix_key_and_hash(b"psk")
    h = hashlib.sha256(ck + temp_h).digest()
    assert state.h == h
    assert state.encrypt_and_hash(b"text") == ChaCha20Poly1305(k).encrypt(bytes(12), b"text", h)


def test_the_nonce_counts_from_zero_in_little_endian_after_four_zero_bytes() -> None:
    _, k = noise_hkdf(hashlib.sha256(NAME).digest(), b"input key", 2)
    state = keyed()
    for number in range(300):
        h = state.h
        nonce = bytes(4) + number.to_bytes(8, "little")
        assert state.encrypt_and_hash(b"") == ChaCha20Poly1305(k).encrypt(nonce, b"", h)
    state.mix_key(b"next")
    h, ck = state.h, hashlib.sha256(NAME).digest()
    ck, _ = map(bytes, noise_hkdf(ck, b"input key", 2))
    _, k = noise_hkdf(ck, b"next", 2)
    assert state.encrypt_and_hash(b"") == ChaCha20Poly1305(k).encrypt(bytes(12), b"", h)


@given(texts=st.lists(st.binary(max_size=100), max_size=5))
def test_two_states_that_mix_the_same_understand_each_other(texts: list[bytes]) -> None:
    one, other = keyed(), keyed()
    for text in texts:
        sealed = one.encrypt_and_hash(text)
        assert len(sealed) == len(text) + 16
        assert other.decrypt_and_hash(sealed, "it") == text
        one.mix_key(text)
        other.mix_key(text)
    assert one.h == other.h
    assert one.export((b"a", b"b")) == other.export((b"a", b"b"))


def test_a_changed_byte_is_refused_by_name() -> None:
    sealed = bytearray(keyed().encrypt_and_hash(b"text"))
    for place in range(len(sealed)):
        forged = bytearray(sealed)
        forged[place] ^= 0x40
        with pytest.raises(RemoteProtocolError, match="the field does not auth") as caught:
            keyed().decrypt_and_hash(bytes(forged), "the field")
        assert caught.value.close_code == 4400


def test_a_ciphertext_shorter_than_a_tag_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        keyed().decrypt_and_hash(b"short", "the field")


def test_states_that_differ_in_the_transcript_do_not_understand_each_other() -> None:
    one, other = keyed(), keyed()
    one.mix_hash(b"a")
    other.mix_hash(b"b")
    with pytest.raises(RemoteProtocolError):
        other.decrypt_and_hash(one.encrypt_and_hash(b"text"), "the field")


def test_nothing_is_sent_in_the_clear_without_a_key() -> None:
    state = SymmetricState(NAME)
    with pytest.raises(LocalProtocolError, match="no key"):
        state.encrypt_and_hash(b"text")
    with pytest.raises(LocalProtocolError, match="no key"):
        state.decrypt_and_hash(bytes(20), "the field")


def test_export_is_hkdf_expand_of_the_chaining_key_bound_to_the_hash() -> None:
    state = keyed()
    ck, _ = noise_hkdf(hashlib.sha256(NAME).digest(), b"input key", 2)
    prk = hmac.digest(state.h, ck, "sha256")
    expected = tuple(HKDFExpand(SHA256(), 32, name).derive(prk) for name in (b"one", b"two"))
    assert state.export((b"one", b"two")) == expected


def test_secrets_are_overwritten_when_they_are_replaced() -> None:
    state = keyed()
    ck, k = state._ck, state._k
    assert any(ck)
    assert any(k)
    state.mix_key(b"next")
    assert not any(ck)
    assert not any(k)


def test_export_and_wipe_end_a_state() -> None:
    for end in ("export", "wipe"):
        state = keyed()
        ck, k, h = state._ck, state._k, state.h
        if end == "export":
            state.export((b"x",))
        else:
            state.wipe()
        assert not any(ck)
        assert not any(k)
        assert state.h == h
        with pytest.raises(LocalProtocolError):
            state.encrypt_and_hash(b"text")
