"""The symmetric state of a Noise handshake, with SHA-256 and ChaCha20-Poly1305.

Owns: chaining key, transcript hash, the cipher key and its counter, and their erasure.
Does not know: which messages there are or what is in them.

Method and variable names are those of the Noise specification, so that the two can be read side
by side. Secrets live in bytearrays that are overwritten when they are replaced; the copies that
hmac and cryptography make inside are beyond our reach and only dropped.
Source: Noise revision 34, sections 4.3, 5.1 and 5.2; protocol section 3.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shadowmesh.base.constants import HASH_BYTES
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.keys import sodium


def hmac_sha256(key: bytes | bytearray, data: bytes | bytearray) -> bytearray:
    """Return HMAC-SHA-256, 32 bytes that the caller may wipe."""
    return bytearray(hmac.digest(key, data, "sha256"))


def noise_hkdf(
    chaining_key: bytes | bytearray, input_key: bytes | bytearray, outputs: int
) -> list[bytearray]:
    """Return 2 or 3 outputs of 32 bytes. Source: Noise section 4.3."""
    temp_key = hmac_sha256(chaining_key, input_key)
    results: list[bytearray] = []
    previous = bytearray()
    for number in range(1, outputs + 1):
        block = previous + bytes((number,))
        previous = hmac_sha256(temp_key, block)
        results.append(previous)
        sodium.wipe(block)
    sodium.wipe(temp_key)
    return results


class SymmetricState:
    """One side's running state of one handshake; both sides mix the same in the same order."""

    __slots__ = ("_ck", "_h", "_k", "_n")

    def __init__(self, protocol_name: bytes) -> None:
        if len(protocol_name) <= HASH_BYTES:
            raise LocalProtocolError("a name that needs no hashing is not used here")
        self._h = hashlib.sha256(protocol_name).digest()
        self._ck = bytearray(self._h)
        #: empty until the first key is mixed
        self._k = bytearray()
        self._n = 0

    @property
    def h(self) -> bytes:
        """The hash of all that was mixed so far, 32 bytes."""
        return self._h

    def mix_hash(self, data: bytes) -> None:
        """MixHash: h = SHA-256(h || data)."""
        self._h = hashlib.sha256(self._h + data).digest()

    def mix_key(self, input_key: bytes | bytearray) -> None:
        """MixKey: a new chaining key and cipher key, counter 0."""
        ck, k = noise_hkdf(self._ck, input_key, 2)
        self._replace(ck, k)

    def mix_key_and_hash(self, input_key: bytes | bytearray) -> None:
        """MixKeyAndHash: as MixKey, and the transcript depends on input_key as well."""
        ck, temp_h, k = noise_hkdf(self._ck, input_key, 3)
        self.mix_hash(bytes(temp_h))
        sodium.wipe(temp_h)
        self._replace(ck, k)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Return the ciphertext of plaintext, 16 bytes longer, and mix it."""
        ciphertext = self._cipher().encrypt(self._next_nonce(), plaintext, self._h)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes, name: str) -> bytes:
        """Return the plaintext of ciphertext, 16 bytes shorter, and mix the ciphertext.

        Raises:
            RemoteProtocolError: it does not authenticate; name says which field it was.
        """
        try:
            plaintext = self._cipher().decrypt(self._next_nonce(), ciphertext, self._h)
        except InvalidTag:
            raise RemoteProtocolError(f"{name} does not authenticate") from None
        self.mix_hash(ciphertext)
        return plaintext

    def export(self, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return K(name), 32 bytes, for each name, and erase this state; h stays.

        prk = HMAC(h, ck), K(x) = HKDF-Expand(prk, x, 32). Source: RFC 5869, protocol section 4.
        """
        prk = hmac_sha256(self._h, self._ck)
        # The first block of HKDF-Expand is all of a 32-byte output.
        keys = tuple(hmac.digest(prk, name + b"\x01", "sha256") for name in names)
        sodium.wipe(prk)
        self.wipe()
        return keys

    def wipe(self) -> None:
        """Erase the chaining key and the cipher key; the state cannot be used after it."""
        sodium.wipe(self._ck)
        sodium.wipe(self._k)
        self._k = bytearray()

    def _replace(self, ck: bytearray, k: bytearray) -> None:
        self.wipe()
        self._ck, self._k, self._n = ck, k, 0

    def _cipher(self) -> ChaCha20Poly1305:
        # Noise sends plaintext here. No message of ours does, so it could only be a mistake.
        if not self._k:
            raise LocalProtocolError("the handshake has no key (none mixed yet, or erased)")
        return ChaCha20Poly1305(self._k)

    def _next_nonce(self) -> bytes:
        nonce = _NONCE_ZEROS + self._n.to_bytes(8, "little")
        self._n += 1
        return nonce


_NONCE_ZEROS: Final = bytes(4)
