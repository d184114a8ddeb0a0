"""Slow, obvious twin of the record layer: seal and open, one byte string at a time.

The oracle for the C code. Owns nothing but the text of protocol section 6 written down plainly;
not constant-time, not fast, not for use outside tests. ChaCha20-Poly1305 comes from cryptography,
AEGIS-256 is written out from draft-irtf-cfrg-aegis-aead.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

CHACHA, AEGIS = "chacha20-poly1305", "aegis-256"
TAG_BYTES = {CHACHA: 16, AEGIS: 32}
KIND_UDP, KIND_WSS = 0x80, 0x81
MESSAGE_MAX = 256 * 1024

# --- The AES round, FIPS 197 ------------------------------------------------------------------


def gf_double(a: int) -> int:
    """Multiply by x in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1."""
    return (a << 1) ^ (0x11B if a & 0x80 else 0)


def gf_multiply(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = gf_double(a), b >> 1
    return product


def _sub_byte(a: int) -> int:
    """Invert in the field (0 stays 0), then the affine map of FIPS 197 section 5.1.1."""
    inverse = next((b for b in range(256) if gf_multiply(a, b) == 1), 0)
    result = 0x63
    for turn in range(5):
        result ^= ((inverse << turn) | (inverse >> (8 - turn))) & 0xFF
    return result


SBOX = bytes(_sub_byte(a) for a in range(256))


def aes_round(block: bytes, key: bytes) -> bytes:
    """One middle round: SubBytes, ShiftRows, MixColumns, AddRoundKey; columns of four bytes."""
    a = [SBOX[block[(4 * ((i // 4 + i % 4) % 4)) + i % 4]] for i in range(16)]
    mixed = bytes(
        gf_double(a[column + row])
        ^ gf_double(a[column + (row + 1) % 4])
        ^ a[column + (row + 1) % 4]
        ^ a[column + (row + 2) % 4]
        ^ a[column + (row + 3) % 4]
        for column in range(0, 16, 4)
        for row in range(4)
    )
    return xor(mixed, key)


def xor(*blocks: bytes) -> bytes:
    return bytes(x for x in map(_xor_all, zip(*blocks, strict=True)))


def _xor_all(values: tuple[int, ...]) -> int:
    total = 0
    for value in values:
        total ^= value
    return total


def both(one: bytes, other: bytes) -> bytes:
    return bytes(x & y for x, y in zip(one, other, strict=True))


# --- AEGIS-256 --------------------------------------------------------------------------------

C0 = bytes.fromhex("000101020305080d1522375990e97962")
C1 = bytes.fromhex("db3d18556dc22ff12011314273b528dd")


class Aegis256:
    """One message under one key and nonce. Source: the draft, section "The AEGIS-256 Algorithm"."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        k0, k1, n0, n1 = key[:16], key[16:], nonce[:16], nonce[16:]
        self.s = [xor(k0, n0), xor(k1, n1), C1, C0, xor(k0, C0), xor(k1, C1)]
        for _ in range(4):
            for block in (k0, k1, xor(k0, n0), xor(k1, n1)):
                self.update(block)

    def update(self, block: bytes) -> None:
        s = self.s
        self.s = [
            aes_round(s[5], xor(s[0], block)),
            aes_round(s[0], s[1]),
            aes_round(s[1], s[2]),
            aes_round(s[2], s[3]),
            aes_round(s[3], s[4]),
            aes_round(s[4], s[5]),
        ]

    def key_stream(self) -> bytes:
        s = self.s
        return xor(s[1], s[4], s[5], both(s[2], s[3]))

    def absorb(self, aad: bytes) -> None:
        for start in range(0, len(aad), 16):
            self.update(aad[start : start + 16].ljust(16, b"\0"))

    def tag(self, aad_length: int, text_length: int) -> bytes:
        """Return the 32-byte tag."""
        lengths = struct.pack("<QQ", 8 * aad_length, 8 * text_length)
        block = xor(self.s[3], lengths)
        for _ in range(7):
            self.update(block)
        s = self.s
        return xor(s[0], s[1], s[2]) + xor(s[3], s[4], s[5])


def aegis256_encrypt(key: bytes, nonce: bytes, aad: bytes, text: bytes) -> bytes:
    """Return ciphertext and 32-byte tag."""
    state = Aegis256(key, nonce)
    state.absorb(aad)
    sealed = b""
    for start in range(0, len(text), 16):
        block = text[start : start + 16]
        stream = state.key_stream()
        state.update(block.ljust(16, b"\0"))
        sealed += xor(block, stream[: len(block)])
    return sealed + state.tag(len(aad), len(text))


def aegis256_decrypt(key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> bytes | None:
    """Return the text, None when it does not authenticate."""
    if len(sealed) < 32:
        return None
    ciphertext, tag = sealed[:-32], sealed[-32:]
    state = Aegis256(key, nonce)
    state.absorb(aad)
    text = b""
    for start in range(0, len(ciphertext), 16):
        block = ciphertext[start : start + 16]
        plain = xor(block, state.key_stream()[: len(block)])
        state.update(plain.ljust(16, b"\0"))
        text += plain
    return text if state.tag(len(aad), len(text)) == tag else None


# --- One record -------------------------------------------------------------------------------


def aad_header(kind: int, key_id: int, counter: int) -> bytes:
    """Return the 16 bytes that are authenticated with each record."""
    return struct.pack("<B3xIQ", kind, key_id, counter)


def seal(cipher: str, key: bytes, kind: int, key_id: int, counter: int, inner: bytes) -> bytes:
    """Return the ciphertext of inner (type byte and body), longer by the tag."""
    aad = aad_header(kind, key_id, counter)
    if cipher == AEGIS:
        return aegis256_encrypt(key, bytes(24) + struct.pack("<Q", counter), aad, inner)
    return ChaCha20Poly1305(key).encrypt(bytes(4) + struct.pack("<Q", counter), inner, aad)


def open_record(
    cipher: str, key: bytes, kind: int, key_id: int, counter: int, sealed: bytes
) -> bytes | None:
    """Return inner (type byte and body), None when it does not authenticate."""
    aad = aad_header(kind, key_id, counter)
    if cipher == AEGIS:
        return aegis256_decrypt(key, bytes(24) + struct.pack("<Q", counter), aad, sealed)
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(4) + struct.pack("<Q", counter), sealed, aad)
    except InvalidTag:
        return None


# --- UDP datagrams ----------------------------------------------------------------------------


def seal_datagram(cipher: str, key: bytes, key_id: int, counter: int, inner: bytes) -> bytes:
    header = aad_header(KIND_UDP, key_id, counter)
    return header + seal(cipher, key, KIND_UDP, key_id, counter, inner)


def open_datagram(cipher: str, key: bytes, datagram: bytes) -> tuple[int, int, bytes] | None:
    """Return (key_id, counter, inner), None for anything that is not a good datagram."""
    if len(datagram) < 16 + 1 + TAG_BYTES[cipher]:  # an inner type is always there
        return None
    kind, reserved, key_id, counter = struct.unpack("<B3sIQ", datagram[:16])
    if kind != KIND_UDP or reserved != bytes(3):
        return None
    inner = open_record(cipher, key, KIND_UDP, key_id, counter, datagram[16:])
    return None if inner is None else (key_id, counter, inner)


# --- WSS messages -----------------------------------------------------------------------------


def seal_message(
    cipher: str, key: bytes, key_id: int, first_counter: int, inners: list[bytes]
) -> bytes:
    """Return one message with all inners, in order, under consecutive counters."""
    message = struct.pack("<BxHIQ", KIND_WSS, len(inners), key_id, first_counter)
    for place, inner in enumerate(inners):
        sealed = seal(cipher, key, KIND_WSS, key_id, first_counter + place, inner)
        message += struct.pack("<I", len(sealed)) + sealed
    return message


def open_message(cipher: str, key: bytes, message: bytes) -> tuple[int, int, list[bytes]] | None:
    """Return (key_id, first_counter, inners), None when any part of it is wrong."""
    if not 16 <= len(message) <= MESSAGE_MAX:
        return None
    kind, reserved, count, key_id, first_counter = struct.unpack("<BBHIQ", message[:16])
    if kind != KIND_WSS or reserved != 0 or count == 0:
        return None
    inners = []
    rest = message[16:]
    for place in range(count):
        if len(rest) < 4:
            return None
        (length,) = struct.unpack("<I", rest[:4])
        sealed, rest = rest[4 : 4 + length], rest[4 + length :]
        if len(sealed) != length or length < 1 + TAG_BYTES[cipher]:
            return None
        inner = open_record(cipher, key, KIND_WSS, key_id, first_counter + place, sealed)
        if inner is None:
            return None
        inners.append(inner)
    return None if rest else (key_id, first_counter, inners)
