"""Layout of the three handshake messages: header, field offsets, payloads p1, p2, p3.

Owns: how a payload becomes bytes and which bytes are refused on sight. Does not know: keys,
encryption, the order of a handshake, whether a value is wanted.

::

    msg1   0 header(1)   8 e_i   40 ML-KEM key + tag   1240 p1 + tag                  1272 bytes
    msg2   0 header(2)   8 e_r   40 ML-KEM ciphertext + tag   1144 id_R + tag
           1192 signature + tag   1272 p2 + tag                                       1336 bytes
    msg3   0 header(3)   8 id_I + tag   56 signature + tag   136 p3 + tag              200 bytes

    header "SMH" | u8 version 1 | u8 suite 1 | u8 mode | u8 message number | u8 0
    p1     u8 min_version | u8 max_version | u16 caps | 12 zero
    p2     u32 key_id | u16 tap_mtu | u16 caps | u8 min_version | u8 max_version | 6 zero | 32 cert
    p3     u32 key_id | u16 tap_mtu | u16 caps | 8 zero | 32 cert

Integers are little-endian. Source: protocol sections 3 and 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from shadowmesh.base.constants import (
    HANDSHAKE_TAG_BYTES,
    HASH_BYTES,
    HEADER_BYTES,
    IDENTITY_BYTES,
    JOIN_MODE,
    MLKEM_CIPHERTEXT_BYTES,
    MLKEM_PUBLIC_BYTES,
    MODE_OFFSET,
    MSG1_BYTES,
    P1_BYTES,
    P2_BYTES,
    P3_BYTES,
    PROTOCOL_VERSION,
    SIGNATURE_BYTES,
    X25519_BYTES,
    Caps,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError

MAGIC: Final = b"SMH"
SUITE: Final = 1
KNOWN_CAPS: Final = int(Caps.AEGIS256 | Caps.OFFLOAD | Caps.UDP | Caps.UDP_GSO)

_TAG: Final = HANDSHAKE_TAG_BYTES
#: where the fields of the messages end; each begins where the one before it ends
E_END: Final = HEADER_BYTES + X25519_BYTES
MSG1_KEM_END: Final = E_END + MLKEM_PUBLIC_BYTES + _TAG
MSG1_END: Final = MSG1_KEM_END + P1_BYTES + _TAG
MSG2_KEM_END: Final = E_END + MLKEM_CIPHERTEXT_BYTES + _TAG
MSG2_ID_END: Final = MSG2_KEM_END + IDENTITY_BYTES + _TAG
MSG2_SIGNATURE_END: Final = MSG2_ID_END + SIGNATURE_BYTES + _TAG
MSG2_END: Final = MSG2_SIGNATURE_END + P2_BYTES + _TAG
MSG3_ID_END: Final = HEADER_BYTES + IDENTITY_BYTES + _TAG
MSG3_SIGNATURE_END: Final = MSG3_ID_END + SIGNATURE_BYTES + _TAG
MSG3_END: Final = MSG3_SIGNATURE_END + P3_BYTES + _TAG

# "x" would skip reserved bytes when unpacking; they are read as text and compared with zeros.
_P1: Final = struct.Struct("<BBH12s")
_P2: Final = struct.Struct("<IHHBB6s32s")
_P3: Final = struct.Struct("<IHH8s32s")


def header(mode: int, number: int) -> bytes:
    """Return the 8-byte header of message number 1, 2 or 3. Source: protocol section 3."""
    return MAGIC + bytes((PROTOCOL_VERSION, SUITE, mode, number, 0))


@dataclass(frozen=True, slots=True)
class P1:
    """What the initiator says first, known to who holds the PSK or the responder's key."""

    caps: int
    min_version: int = PROTOCOL_VERSION
    max_version: int = PROTOCOL_VERSION

    def pack(self) -> bytes:
        """Return 16 bytes."""
        return _pack(_P1, self.min_version, self.max_version, self.caps, bytes(12))

    @classmethod
    def unpack(cls, data: bytes) -> P1:
        """Parse 16 bytes. Raises RemoteProtocolError for what version 1 does not allow."""
        min_version, max_version, caps, reserved = _P1.unpack(data)
        _check(reserved, caps, "p1")
        _check_versions(min_version, max_version, "p1")
        return cls(caps, min_version, max_version)


@dataclass(frozen=True, slots=True)
class P2:
    """What the responder announces; the certificate is the one it serves."""

    key_id: int
    tap_mtu: int
    caps: int
    tls_cert_sha256: bytes
    min_version: int = PROTOCOL_VERSION
    max_version: int = PROTOCOL_VERSION

    def pack(self) -> bytes:
        """Return 48 bytes."""
        _check_local(self.key_id, self.tls_cert_sha256)
        return _pack(
            _P2,
            self.key_id,
            self.tap_mtu,
            self.caps,
            self.min_version,
            self.max_version,
            bytes(6),
            self.tls_cert_sha256,
        )

    @classmethod
    def unpack(cls, data: bytes) -> P2:
        """Parse 48 bytes. Raises RemoteProtocolError for what version 1 does not allow."""
        key_id, tap_mtu, caps, min_version, max_version, reserved, cert = _P2.unpack(data)
        _check(reserved, caps, "p2")
        _check_versions(min_version, max_version, "p2")
        return cls(key_id, tap_mtu, caps, cert, min_version, max_version)


@dataclass(frozen=True, slots=True)
class P3:
    """What the initiator announces; the certificate is the one it was shown."""

    key_id: int
    tap_mtu: int
    caps: int
    tls_cert_sha256: bytes

    def pack(self) -> bytes:
        """Return 48 bytes."""
        _check_local(self.key_id, self.tls_cert_sha256)
        return _pack(_P3, self.key_id, self.tap_mtu, self.caps, bytes(8), self.tls_cert_sha256)

    @classmethod
    def unpack(cls, data: bytes) -> P3:
        """Parse 48 bytes. Raises RemoteProtocolError for what version 1 does not allow."""
        key_id, tap_mtu, caps, reserved, cert = _P3.unpack(data)
        _check(reserved, caps, "p3")
        return cls(key_id, tap_mtu, caps, cert)


def _pack(layout: struct.Struct, *values: int | bytes) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise LocalProtocolError(f"a value does not fit a handshake payload: {error}") from None


def _check_local(key_id: int, cert: bytes) -> None:
    # struct would cut or fill the certificate hash silently.
    if len(cert) != HASH_BYTES:
        raise LocalProtocolError(f"a certificate hash is {HASH_BYTES} bytes, not {len(cert)}")
    if key_id == 0:
        raise LocalProtocolError("key id 0 is never used")


def _check(reserved: bytes, caps: int, name: str) -> None:
    if any(reserved):
        raise RemoteProtocolError(f"reserved bytes of {name} are not zero")
    if caps & ~KNOWN_CAPS:
        raise RemoteProtocolError(f"unknown capability bits in {name}: {caps:#06x}")


def _check_versions(min_version: int, max_version: int, name: str) -> None:
    if not min_version <= PROTOCOL_VERSION <= max_version:
        raise RemoteProtocolError(
            f"{name} offers versions {min_version} to {max_version}, we speak {PROTOCOL_VERSION}"
        )


def wants_to_join(message: bytes) -> bool:
    """Tell whether the first message of a connection is of who joins, and so of no session."""
    return len(message) == MSG1_BYTES and message[MODE_OFFSET] == JOIN_MODE
