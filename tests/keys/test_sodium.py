"""Tests of the libsodium wrapper."""

from __future__ import annotations

import hashlib
from typing import Any

import pysodium  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.keys import sodium

P = 2**255 - 19
#: order of the prime-order group of Ed25519, RFC 8032 section 5.1
L = 2**252 + 27742317777372353535851937790883648493

# RFC 8032 section 7.1, tests 1 to 3: seed, public key, message, signature
RFC8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]

# y of a point of order 8; the other is P - Y8. The small-order points have y in
# {1, -1, 0, Y8, -Y8}; an encoding is y or y + P (where it fits 255 bits) with either sign bit.
Y8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
SMALL_ORDER = [
    (y | sign << 255).to_bytes(32, "little")
    for y in (0, 1, Y8, P - Y8, P - 1, P, P + 1)
    for sign in (0, 1)
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC8032)
def test_published_vectors_are_reproduced(
    seed: str, public: str, message: str, signature: str
) -> None:
    secret, text = bytes.fromhex(seed), bytes.fromhex(message)
    assert sodium.public_key(secret).hex() == public
    assert sodium.sign(secret, text).hex() == signature
    assert sodium.verify(bytes.fromhex(public), text, bytes.fromhex(signature))
    assert sodium.is_valid_public_key(bytes.fromhex(public))


def test_there_are_fourteen_small_order_encodings_and_all_are_refused_as_keys() -> None:
    assert len(set(SMALL_ORDER)) == 14
    for key in SMALL_ORDER:
        assert not sodium.is_valid_public_key(key), key.hex()


def test_no_signature_verifies_under_a_small_order_key() -> None:
    """R = identity, S = 0 satisfies the equation of a library that does not look at the key."""
    forgeries = [r + bytes(32) for r in SMALL_ORDER]
    for key in SMALL_ORDER:
        for forgery in forgeries:
            for message in (b"", b"a", b"b", b"c", b"d", b"e", b"f", b"g"):
                assert not sodium.verify(key, message, forgery)


def test_the_same_forgeries_pass_a_verification_without_the_check() -> None:
    """The reason for the rule: if this fails, the forgeries above prove nothing."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    Ed25519PublicKey.from_public_bytes(SMALL_ORDER[2]).verify(SMALL_ORDER[2] + bytes(32), b"a")


def test_a_non_canonical_encoding_is_refused_as_a_key() -> None:
    # every y below 19 has a second encoding, y + P
    for y in range(19):
        for sign in (0, 1):
            assert not sodium.is_valid_public_key(((y + P) | sign << 255).to_bytes(32, "little"))


def test_a_point_outside_the_prime_order_group_is_refused() -> None:
    good = sodium.public_key(bytes(range(32)))
    assert sodium.is_valid_public_key(good)
    assert not sodium.is_valid_public_key(outside_prime_order_group(good))


def outside_prime_order_group(public: bytes) -> bytes:
    """Return public + (0, -1), which is (-x, -y): on the curve, of order 2L."""
    value = int.from_bytes(public, "little")
    y, sign = value & ((1 << 255) - 1), value >> 255
    return ((P - y) | (1 - sign) << 255).to_bytes(32, "little")


def test_a_signature_made_for_a_key_outside_the_prime_order_group_does_not_verify() -> None:
    """libsodium's own verification takes half of them: those whose challenge k is even."""
    seed = bytes(range(32))
    secret = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    secret = (secret & ~7 & ((1 << 254) - 1)) | 1 << 254
    mixed = outside_prime_order_group(sodium.public_key(seed))
    point = sodium.public_key(bytes(range(1, 33)))  # R = rB for the r of another seed
    r = int.from_bytes(hashlib.sha512(bytes(range(1, 33))).digest()[:32], "little")
    r = (r & ~7 & ((1 << 254) - 1)) | 1 << 254
    accepted_without_the_check = 0
    for number in range(20):
        message = bytes((number,))
        k = int.from_bytes(hashlib.sha512(point + mixed + message).digest(), "little") % L
        signature = point + ((r + k * secret) % L).to_bytes(32, "little")
        assert not sodium.verify(mixed, message, signature)
        try:
            pysodium.crypto_sign_verify_detached(signature, message, mixed)
        except ValueError:
            continue
        accepted_without_the_check += 1
    assert accepted_without_the_check > 0


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    assert not sodium.is_valid_public_key(b"\x03" * size)


@given(
    seed=st.binary(min_size=32, max_size=32),
    message=st.binary(max_size=200),
    place=st.integers(min_value=0),
    bit=st.integers(min_value=0, max_value=7),
)
def test_a_flipped_bit_makes_a_signature_invalid(
    seed: bytes, message: bytes, place: int, bit: int
) -> None:
    public = sodium.public_key(seed)
    signature = sodium.sign(seed, message)
    assert sodium.verify(public, message, signature)
    forged = bytearray(signature)
    forged[place % 64] ^= 1 << bit
    assert not sodium.verify(public, message, bytes(forged))
    assert not sodium.verify(public, message + b"\0", signature)


def test_a_signature_with_a_reduced_or_raised_scalar_is_refused() -> None:
    """S and S + L verify alike in the equation; only S below L is accepted (malleability)."""
    seed = bytes(range(32))
    signature = sodium.sign(seed, b"text")
    raised = int.from_bytes(signature[32:], "little") + L
    assert not sodium.verify(
        sodium.public_key(seed), b"text", signature[:32] + raised.to_bytes(32, "little")
    )


BYTES32, BYTES64 = bytes(32), bytes(64)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (sodium.public_key, ("a" * 32,)),
        (sodium.public_key, (bytearray(32),)),
        (sodium.sign, ("a" * 32, b"")),
        (sodium.sign, (BYTES32, "text")),
        (sodium.sign, (BYTES32, None)),
        (sodium.verify, ("a" * 32, b"", BYTES64)),
        (sodium.verify, (BYTES32, "", BYTES64)),
        (sodium.verify, (BYTES32, b"", "a" * 64)),
        (sodium.is_valid_public_key, ("a" * 32,)),
        (sodium.is_valid_public_key, (memoryview(BYTES32),)),
        (sodium.equal, ("a", b"a")),
        (sodium.equal, (b"a", "a")),
        (sodium.wipe, (b"abc",)),
    ],
)
def test_anything_but_bytes_is_a_type_error(function: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        function(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (sodium.public_key, (bytes(31),)),
        (sodium.sign, (bytes(33), b"")),
        (sodium.verify, (bytes(31), b"", BYTES64)),
        (sodium.verify, (BYTES32, b"", bytes(63))),
        (sodium.random_bytes, (-1,)),
    ],
)
def test_a_wrong_size_is_a_value_error(function: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        function(*arguments)


def test_errors_do_not_repeat_the_secret() -> None:
    with pytest.raises(ValueError) as caught:
        sodium.public_key(b"topsecret")
    assert "topsecret" not in str(caught.value)


def test_random_bytes_have_the_size_asked_for_and_differ() -> None:
    assert sodium.random_bytes(0) == b""
    drawn = {sodium.random_bytes(32) for _ in range(100)}
    assert len(drawn) == 100
    assert {len(one) for one in drawn} == {32}


@given(one=st.binary(max_size=40), other=st.binary(max_size=40))
def test_equal_agrees_with_the_operator(one: bytes, other: bytes) -> None:
    assert sodium.equal(one, other) == (one == other)
    assert sodium.equal(one, bytes(bytearray(one)))


def test_wipe_zeroes_in_place() -> None:
    buffer = bytearray(b"secret" * 10)
    view = memoryview(buffer)
    sodium.wipe(buffer)
    assert view.tobytes() == bytes(60)
    sodium.wipe(bytearray())
