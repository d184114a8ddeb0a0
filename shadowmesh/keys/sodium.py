"""The only door to libsodium from Python: typed, bytes only, initialised.

Owns: the call of ``sodium_init`` and the few functions the project needs. pysodium encodes str
arguments silently and never initialises the library, so nobody else imports it.
Does not know: files, the protocol, what is signed.

Sizes: seed 32, public key 32, signature 64 bytes. Every function takes bytes and raises TypeError
for anything else (a str, or a bytearray that its owner may change or wipe during the call), and
ValueError for a wrong size.

Signatures are verified here and nowhere else: libsodium refuses keys of small order, under which
other libraries accept forgeries. Source: protocol section 2, RFC 8032.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path
from typing import Any

from shadowmesh.base.constants import IDENTITY_BYTES, SEED_BYTES, SIGNATURE_BYTES

#: built with the data plane, unless the system's library is new enough (scripts/libsodium.py)
_CARRIED = Path(__file__).parent.with_name("_libsodium.so")


def _find_carried(name: str) -> str | None:
    return str(_CARRIED) if name == "sodium" else None


def _import_pysodium() -> Any:
    """Import pysodium with the libsodium that we carry, else with the system's.

    pysodium asks ctypes.util when it is imported and takes no other hint; that answer is ours
    for as long as the import lasts. It also spares the start of ldconfig for each command.
    """
    find = ctypes.util.find_library
    if _CARRIED.exists():
        ctypes.util.find_library = _find_carried
    try:
        import pysodium  # type: ignore[import-untyped]
    finally:
        ctypes.util.find_library = find
    return pysodium


pysodium = _import_pysodium()
_lib: ctypes.CDLL = pysodium.sodium

# 0: initialised now, 1: was already. Without it randombytes may be used before its source is
# opened, and the processor's fast code is never chosen.
if _lib.sodium_init() < 0:
    raise ImportError("libsodium could not be initialised (sodium_init failed)")

# Subscription makes function objects of our own: types set here do not change pysodium's.
_is_valid_point = _lib["crypto_core_ed25519_is_valid_point"]
_is_valid_point.argtypes = [ctypes.c_char_p]
_is_valid_point.restype = ctypes.c_int
_memcmp = _lib["sodium_memcmp"]
_memcmp.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int
_memzero = _lib["sodium_memzero"]
_memzero.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_memzero.restype = None


def _need_bytes(value: object, name: str, size: int | None = None) -> None:
    """Raise unless value is bytes (of exactly this size). The text never holds the value."""
    if type(value) is not bytes:
        raise TypeError(f"{name} must be bytes, not {type(value).__name__}")
    if size is not None and len(value) != size:
        raise ValueError(f"{name} must be {size} bytes, not {len(value)}")


def random_bytes(count: int) -> bytes:
    """Return count bytes from the operating system's generator."""
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    return bytes(pysodium.randombytes(count))


def public_key(seed: bytes) -> bytes:
    """Return the 32-byte Ed25519 public key of a 32-byte seed."""
    _need_bytes(seed, "seed", SEED_BYTES)
    public, _ = pysodium.crypto_sign_seed_keypair(seed)
    return bytes(public)


def sign(seed: bytes, message: bytes) -> bytes:
    """Return the 64-byte Ed25519 signature of message under a 32-byte seed."""
    _need_bytes(seed, "seed", SEED_BYTES)
    _need_bytes(message, "message")
    _, secret = pysodium.crypto_sign_seed_keypair(seed)
    return bytes(pysodium.crypto_sign_detached(message, secret))


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether signature (64 bytes) of message was made by the owner of public (32 bytes).

    False too for a key that `is_valid_public_key` refuses.
    """
    _need_bytes(public, "public key", IDENTITY_BYTES)
    _need_bytes(message, "message")
    _need_bytes(signature, "signature", SIGNATURE_BYTES)
    if not is_valid_public_key(public):
        return False
    try:
        pysodium.crypto_sign_verify_detached(signature, message, public)
    except ValueError:
        return False
    return True


def seal(public: bytes, message: bytes) -> bytes:
    """Return message, 48 bytes longer, so that only the owner of an Ed25519 public key can read it.

    It says nothing about who wrote it. Source: libsodium, "Sealed boxes", "Ed25519 to Curve25519".
    """
    _need_bytes(public, "public key", IDENTITY_BYTES)
    _need_bytes(message, "message")
    return bytes(pysodium.crypto_box_seal(message, pysodium.crypto_sign_pk_to_box_pk(public)))


def unseal(seed: bytes, sealed: bytes) -> bytes:
    """Return what `seal` was given for the public key of this seed.

    Raises:
        ValueError: it is for another key, or not all of it is there.
    """
    _need_bytes(seed, "seed", SEED_BYTES)
    _need_bytes(sealed, "sealed message")
    public, secret = pysodium.crypto_sign_seed_keypair(seed)
    box_public = pysodium.crypto_sign_pk_to_box_pk(public)
    box_secret = pysodium.crypto_sign_sk_to_box_sk(secret)
    return bytes(pysodium.crypto_box_seal_open(sealed, box_public, box_secret))


def is_valid_public_key(public: bytes) -> bool:
    """Tell whether public is the canonical encoding of a point of the prime-order group.

    False for another size, a point off the curve, an encoding that is not canonical, and the 14
    encodings of points of small order. Source: protocol section 2.
    """
    _need_bytes(public, "public key")
    return len(public) == IDENTITY_BYTES and _is_valid_point(public) == 1


def equal(one: bytes, other: bytes) -> bool:
    """Compare in a time that depends on the length only."""
    _need_bytes(one, "first value")
    _need_bytes(other, "second value")
    return len(one) == len(other) and _memcmp(one, other, len(one)) == 0


def wipe(buffer: bytearray) -> None:
    """Overwrite buffer with zeros, in place, in a way that no optimiser removes."""
    if type(buffer) is not bytearray:
        raise TypeError(f"buffer must be a bytearray, not {type(buffer).__name__}")
    if buffer:
        _memzero((ctypes.c_char * len(buffer)).from_buffer(buffer), len(buffer))
