"""An invitation as one line of text: what a joiner has to know, and the secret that lets it in.

Owns: the bytes behind ``sm1-``, their alphabet, what a mistyped line is told. Does not know:
whether the invitation is still open, which the issuer alone decides.

::

    sm1-  Crockford base32 of     u8 version 1 | u8 n, 1 to 3
                                  n x ( u8 length | host:port | 32 public key of that relay )
                                  16 network id | 16 fingerprint of the authority
                                  8 invitation id | 16 secret | u40 expires_at
                                  u32 CRC-32 of all before

Integers are little-endian. A CRC finds every change of one character and of any six that are
neighbours (a burst of up to 32 bits); against forgery stands the proof, not the checksum.
Source: mesh-rules B1; https://www.crockford.com/base32.html.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from shadowmesh.base.constants import IDENTITY_BYTES
from shadowmesh.base.errors import BadToken, LocalProtocolError
from shadowmesh.wire.mesh.identifiers import (
    INVITATION_ID_BYTES,
    INVITATION_SECRET_BYTES,
    SHORT_NETWORK_ID_BYTES,
)

VERSION: Final = 1
MAX_RELAYS: Final = 3
#: a host name has at most 253 characters; the length of host:port has to fit into one byte
ADDRESS_MAX_BYTES: Final = 255
FINGERPRINT_BYTES: Final = 16
#: more than three relays with the longest names take
TEXT_MAX_CHARACTERS: Final = 4096

_PREFIX: Final = "sm"
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUE: Final = {character: value for value, character in enumerate(_ALPHABET)}
#: what people take for one another, and what only groups the characters
_TYPED: Final = str.maketrans({"o": "0", "i": "1", "l": "1", "-": None})
_GROUP: Final = 5
_EXPIRY_BYTES: Final = 5
_CHECKSUM_BYTES: Final = 4
_TAIL: Final = struct.Struct(
    f"{SHORT_NETWORK_ID_BYTES}s{FINGERPRINT_BYTES}s{INVITATION_ID_BYTES}s"
    f"{INVITATION_SECRET_BYTES}s{_EXPIRY_BYTES}s"
)
_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", re.ASCII)

_NEWER: Final = (
    "the invitation is of a newer version of ShadowMesh; update this machine's, then join again"
)
_MISTYPED: Final = "the invitation is mistyped, {}; copy the whole line again"


@dataclass(frozen=True, slots=True)
class Relay:
    """Where to go, and who has to answer there.

    Attributes:
        address: ``host:port`` as people write it, an IPv6 address in brackets.
        public_key: 32 bytes; whether it is a key the handshake finds out, which pins it.
    """

    address: str
    public_key: bytes

    def __post_init__(self) -> None:
        match = _ADDRESS.fullmatch(self.address)
        if match is None or not 1 <= int(match[1]) <= 0xFFFF:
            raise LocalProtocolError(f"{self.address!r} is not host:port")
        if len(self.address) > ADDRESS_MAX_BYTES:
            raise LocalProtocolError(f"an address is at most {ADDRESS_MAX_BYTES} characters")
        _check_size("a relay's public key", self.public_key, IDENTITY_BYTES)


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation.

    Attributes:
        relays: 1 to 3, to be tried in this order.
        network_id: its first 16 bytes.
        authority_fingerprint: first 16 bytes of SHA-256 of the SubjectPublicKeyInfo of the
            authority that signs the certificate. That is the network's id until the authority is
            replaced.
        invitation_id: 8 bytes.
        secret: 16 bytes.
        expires_at: seconds since 1970, to be shown: the issuer's clock decides.
    """

    relays: tuple[Relay, ...]
    network_id: bytes
    authority_fingerprint: bytes
    invitation_id: bytes
    secret: bytes = field(repr=False)
    expires_at: int
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise LocalProtocolError(f"an invitation of version {self.version} cannot be made")
        if not 1 <= len(self.relays) <= MAX_RELAYS:
            raise LocalProtocolError(f"{len(self.relays)} relays, 1 to {MAX_RELAYS} were wanted")
        _check_size("the network id", self.network_id, SHORT_NETWORK_ID_BYTES)
        _check_size("the authority's fingerprint", self.authority_fingerprint, FINGERPRINT_BYTES)
        _check_size("the invitation id", self.invitation_id, INVITATION_ID_BYTES)
        _check_size("the invitation's secret", self.secret, INVITATION_SECRET_BYTES)
        if not 0 <= self.expires_at < 1 << 8 * _EXPIRY_BYTES:
            raise LocalProtocolError(f"expiry {self.expires_at} does not fit into 5 bytes")

    def text(self) -> str:
        """Return the line that is handed over; it holds the secret."""
        parts = [bytes([VERSION, len(self.relays)])]
        for relay in self.relays:
            address = relay.address.encode("ascii")
            parts += [bytes([len(address)]), address, relay.public_key]
        parts += [self.network_id, self.authority_fingerprint, self.invitation_id, self.secret]
        parts.append(self.expires_at.to_bytes(_EXPIRY_BYTES, "little"))
        data = b"".join(parts)
        encoded = _encode(data + _checksum(data))
        groups = [encoded[at : at + _GROUP] for at in range(0, len(encoded), _GROUP)]
        return "-".join([f"{_PREFIX}{VERSION}", *groups])

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read what somebody has pasted or typed.

        Case, spaces, line breaks and dashes do not matter, nor does o for 0 or i and l for 1.

        Raises:
            BadToken: one sentence, without any of the text: no invitation at all, mistyped, cut,
                or of a newer version.
        """
        if len(text) > TEXT_MAX_CHARACTERS:
            raise BadToken(
                f"this is no invitation, it has {len(text)} characters and not about 200; copy"
                " only the line that begins with sm1-"
            )
        typed = "".join(text.split()).lower().translate(_TYPED)
        prefix, encoded = typed[:3], typed[3:]
        if prefix[:2] != _PREFIX or not prefix[2:].isdigit():
            raise BadToken(
                "this is no invitation, it does not begin with sm1-; copy the whole line that"
                " `shadowmesh invite` has printed"
            )
        if prefix != f"{_PREFIX}{VERSION}":
            raise BadToken(_NEWER)
        data = _decode(encoded)
        _check_whole(data)
        if data[0] != VERSION:
            raise BadToken(_NEWER)
        return _read(data)


def _read(data: bytes) -> Token:
    """Return the invitation in bytes whose checksum and length are right."""
    at, relays = 2, []
    try:
        for _ in range(data[1]):
            end = at + 1 + data[at]
            address = data[at + 1 : end].decode("ascii")
            at = end + IDENTITY_BYTES
            relays.append(Relay(address, data[end:at]))
        network_id, fingerprint, invitation_id, secret, expiry = _TAIL.unpack_from(data, at)
        expires_at = int.from_bytes(expiry, "little")
        return Token(tuple(relays), network_id, fingerprint, invitation_id, secret, expires_at)
    except (UnicodeDecodeError, LocalProtocolError):
        # A right checksum: this is how somebody has made it.
        raise BadToken("the invitation does not say where to go; ask for a new one") from None


def _check_whole(data: bytes) -> None:
    """Refuse what has lost its end, or has changed on the way."""
    wanted = _wanted_bytes(data)
    if len(data) < wanted:
        raise BadToken(
            f"the invitation is cut, its last {(wanted - len(data)) * 8 // 5} characters or so are"
            " missing; copy the whole line again"
        )
    if len(data) > wanted:
        raise BadToken(_MISTYPED.format("it has characters too many"))
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if checksum != _checksum(body):
        raise BadToken(_MISTYPED.format("its checksum does not fit"))


def _wanted_bytes(data: bytes) -> int:
    """Return how many bytes the beginning asks for; at least so many when it is cut itself."""
    count = data[1] if len(data) > 1 else 1
    if not 1 <= count <= MAX_RELAYS:
        raise BadToken(_MISTYPED.format("it counts its relays wrongly"))
    at = 2
    for _ in range(count):
        at += 1 + (data[at] if at < len(data) else 1) + IDENTITY_BYTES
    return at + _TAIL.size + _CHECKSUM_BYTES


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


def _encode(data: bytes) -> str:
    """Return data as base32, without padding: 8 characters for 5 bytes."""
    characters = -(-len(data) * 8 // 5)
    number = int.from_bytes(data, "big") << characters * 5 - len(data) * 8
    return "".join(_ALPHABET[number >> 5 * (characters - 1 - at) & 31] for at in range(characters))


def _decode(text: str) -> bytes:
    """Return the bytes of base32 text; what is left over of a character has to be zero bits."""
    number = 0
    for place, character in enumerate(text, start=1):
        value = _VALUE.get(character)
        if value is None:
            raise BadToken(_MISTYPED.format(f"character {place} behind sm1- is none of its own"))
        number = number << 5 | value
    size, spare = divmod(len(text) * 5, 8)
    if spare >= 5 or number & (1 << spare) - 1:
        raise BadToken(_MISTYPED.format("its last character cannot be"))
    return (number >> spare).to_bytes(size, "big")


def _check_size(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise LocalProtocolError(f"{what} is {size} bytes, not {len(value)}")
