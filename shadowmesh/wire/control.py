"""Small records: control, close, probe and probe answer, from bytes to values and back.

Owns: the bodies of the inner types 2 (control), 4 (probe), 5 (probe answer) and 7 (close), and
the rule which candidate addresses may be used at all. Does not know: the inner type byte in
front of a body, how records are sealed, or what any of the messages leads to.

::

    control       u8 code, then
      1 ACCEPT         6 zero
      2 REJECT         u8 reason
      3 REKEY_REQUEST  nothing
      4 CANDIDATES     u8 count (at most 8), count x ( u8 kind | endpoint )
      5 PUNCH_NOW      nothing
      6 ABILITIES      u32 bits, of which unknown ones are ignored
     16 CERTIFICATE    u16 length (1 to 2,045) | X.509 in DER; between members (mesh section 4)
    close         u8 reason | UTF-8 text of at most 64 bytes
    probe         8 random bytes | u8 1: say how long you held it | padding
    probe answer  the same 8 bytes | endpoint | u32 microseconds held, only if that was asked for
    endpoint      u8 family (4, 6; 0: unknown, in a probe answer only) | u16 port | 4, 16, 0 bytes

A probe of version 0.1 has zeros for padding and gets an answer without the time, and 0.1 does not
look at the padding of ours.

Integers are little-endian, an address is in network order. A body with bytes left over is
refused. Source: protocol sections 6 and 8.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from shadowmesh.base.constants import (
    CERTIFICATE_MAX_BYTES,
    CLOSE_TEXT_MAX_BYTES,
    MAX_CANDIDATES,
    PROBE_TOKEN_BYTES,
    ControlCode,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError

Address = IPv4Address | IPv6Address

_ENDPOINT: Final = struct.Struct("<BH")
_ACCEPT_RESERVED: Final = bytes(6)
_FAMILY_UNKNOWN: Final = 0

_ABILITIES: Final = struct.Struct("<I")
_CERTIFICATE_LENGTH: Final = struct.Struct("<H")
_HELD: Final = struct.Struct("<I")
_SAY_HELD: Final = b"\x01"
_MICROSECONDS: Final = 1_000_000

#: an answer that holds an IPv6 address and the time; a probe of this size can always be answered in
#: full, because an answer is never larger than the probe (protocol section 8)
PROBE_MIN_BYTES: Final = PROBE_TOKEN_BYTES + _ENDPOINT.size + 16 + _HELD.size


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A UDP address. `port` is 0 to 65535; an IPv4-mapped IPv6 address becomes IPv4."""

    address: Address
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 0xFFFF:
            raise LocalProtocolError(f"port {self.port} is outside 0..65535")
        if isinstance(self.address, IPv6Address) and self.address.ipv4_mapped is not None:
            # One dual-stack socket sees IPv4 peers as ::ffff:a.b.c.d; the wire knows one form.
            object.__setattr__(self, "address", self.address.ipv4_mapped)

    def __str__(self) -> str:
        if self.address.version == 6:
            return f"[{self.address}]:{self.port}"
        return f"{self.address}:{self.port}"


class CandidateKind(IntEnum):
    """Where a candidate comes from: an own interface, or what a STUN server saw."""

    HOST = 0
    REFLEXIVE = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address at which a side believes it can be reached; a hint until a probe proves it."""

    kind: CandidateKind
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Accept:
    """The responder took the initiator in; the first record under new keys."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The responder refused an authenticated initiator.

    `reason` is a RejectReason or a number that this version does not know.
    """

    reason: int


@dataclass(frozen=True, slots=True)
class RekeyRequest:
    """The responder asks the initiator for a rekey."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """All addresses of the sender, at most 8; replaces what it sent before."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class PunchNow:
    """Start probing the candidates now."""


@dataclass(frozen=True, slots=True)
class Able:
    """What the sender takes. `bits` are Abilities, and others that this version does not know."""

    bits: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """The sender's certificate of its network, DER, not looked into; between members alone."""

    der: bytes = field(repr=False)


ControlMessage = Accept | Reject | RekeyRequest | Candidates | PunchNow | Able | Certificate


@dataclass(frozen=True, slots=True)
class Close:
    """The sender ends the session.

    `reason` is a CloseReason or a number that this version does not know; `text` is printable.
    """

    reason: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that whoever holds the keys at an address answers.

    `token` is 8 random bytes; `size` is the length of the whole body in bytes; `timed`: the answer
    shall say how long it took to make.
    """

    token: bytes = field(repr=False)
    size: int = PROBE_MIN_BYTES
    timed: bool = False


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """The probe's token, and the address that the probe came from; None when unknown.

    `held_s` is how long its receiver had the probe before it answered; None: it does not say.
    """

    token: bytes = field(repr=False)
    seen: Endpoint | None = None
    held_s: float | None = None


def encode_control(message: ControlMessage) -> bytes:
    """Return the body of a control record (inner type 2).

    Raises:
        LocalProtocolError: a reason outside one byte, more than 8 candidates, or a certificate
            that is empty or too long.
    Source: protocol section 6.
    """
    if isinstance(message, Accept):
        return bytes([ControlCode.ACCEPT]) + _ACCEPT_RESERVED
    if isinstance(message, Reject):
        return bytes([ControlCode.REJECT, _u8(message.reason, "reason")])
    if isinstance(message, RekeyRequest):
        return bytes([ControlCode.REKEY_REQUEST])
    if isinstance(message, PunchNow):
        return bytes([ControlCode.PUNCH_NOW])
    if isinstance(message, Able):
        return bytes([ControlCode.ABILITIES]) + _ABILITIES.pack(message.bits)
    if isinstance(message, Certificate):
        size = len(message.der)
        if not 1 <= size <= CERTIFICATE_MAX_BYTES:
            raise LocalProtocolError(f"a certificate of {size} bytes, 1 to {CERTIFICATE_MAX_BYTES}")
        return bytes([ControlCode.CERTIFICATE]) + _CERTIFICATE_LENGTH.pack(size) + message.der
    count = len(message.candidates)
    if count > MAX_CANDIDATES:
        raise LocalProtocolError(f"{count} candidates, at most {MAX_CANDIDATES} can be sent")
    parts = [bytes([ControlCode.CANDIDATES, count])]
    for candidate in message.candidates:
        parts += [bytes([candidate.kind]), _encode_endpoint(candidate.endpoint)]
    return b"".join(parts)


def decode_control(body: bytes) -> ControlMessage | None:
    """Return the message of a control record, None for a code that this version does not know.

    Args:
        body: the record without its inner type byte, of any length.
    Raises:
        RemoteProtocolError: empty, cut short, bytes left over, reserved bytes not zero, more
            than 8 candidates, an unknown kind or address family, or a certificate that is empty
            or too long.
    Source: protocol section 6.
    """
    if not body:
        raise RemoteProtocolError("control record is empty, a code was wanted")
    code, rest = body[0], body[1:]
    if code == ControlCode.ACCEPT:
        if rest != _ACCEPT_RESERVED:
            raise RemoteProtocolError("ACCEPT is not followed by exactly 6 zero bytes")
        return Accept()
    if code == ControlCode.REJECT:
        if len(rest) != 1:
            raise RemoteProtocolError(f"REJECT with {len(rest)} bytes, 1 was wanted")
        return Reject(rest[0])
    if code == ControlCode.REKEY_REQUEST:
        _want_end(rest, "REKEY_REQUEST")
        return RekeyRequest()
    if code == ControlCode.CANDIDATES:
        return _decode_candidates(rest)
    if code == ControlCode.PUNCH_NOW:
        _want_end(rest, "PUNCH_NOW")
        return PunchNow()
    if code == ControlCode.ABILITIES:
        if len(rest) != _ABILITIES.size:
            raise RemoteProtocolError(f"ABILITIES with {len(rest)} bytes, 4 were wanted")
        return Able(_ABILITIES.unpack(rest)[0])
    if code == ControlCode.CERTIFICATE:
        return _decode_certificate(rest)
    return None


def encode_close(reason: int, text: str = "") -> bytes:
    """Return the body of a close record (inner type 7).

    The text loses what is not printable and is cut, between characters, to 64 bytes.
    """
    encoded = _printable(text).encode("utf-8", "replace")[:CLOSE_TEXT_MAX_BYTES]
    # Cutting may have split a character; dropping the incomplete tail keeps it valid UTF-8.
    encoded = encoded.decode("utf-8", "ignore").encode("utf-8")
    return bytes([_u8(reason, "reason")]) + encoded


def decode_close(body: bytes) -> Close:
    """Return reason and text of a close record.

    Bytes that are not UTF-8 become U+FFFD, and characters that are not printable (line breaks,
    terminal sequences, direction marks) are removed: the text ends up in a log and a terminal.

    Raises:
        RemoteProtocolError: empty, or a text of more than 64 bytes.
    Source: protocol section 6.
    """
    if not body:
        raise RemoteProtocolError("close record is empty, a reason was wanted")
    if len(body) - 1 > CLOSE_TEXT_MAX_BYTES:
        raise RemoteProtocolError(
            f"close text of {len(body) - 1} bytes, at most {CLOSE_TEXT_MAX_BYTES} are allowed"
        )
    return Close(body[0], _printable(body[1:].decode("utf-8", "replace")))


def encode_probe(token: bytes, size: int = PROBE_MIN_BYTES) -> bytes:
    """Return a probe of `size` bytes that wants a timed answer.

    Raises:
        LocalProtocolError: token not of 8 bytes, or size below 31, which is what a full answer
            needs.
    """
    _check_token(token)
    if size < PROBE_MIN_BYTES:
        raise LocalProtocolError(f"probe of {size} bytes, at least {PROBE_MIN_BYTES} are needed")
    return (token + _SAY_HELD).ljust(size, b"\0")


def decode_probe(body: bytes) -> Probe:
    """Return a probe; padding may hold anything.

    Raises:
        RemoteProtocolError: shorter than 8 bytes.
    """
    if len(body) < PROBE_TOKEN_BYTES:
        raise RemoteProtocolError(f"probe of {len(body)} bytes, at least 8 were wanted")
    token, rest = body[:PROBE_TOKEN_BYTES], body[PROBE_TOKEN_BYTES:]
    return Probe(token, len(body), rest[:1] == _SAY_HELD)


def answer_probe(probe: Probe, seen: Endpoint | None, held_s: float = 0.0) -> bytes | None:
    """Return the answer to a probe, None when the probe is too small to be answered.

    An answer larger than its probe would let a forged source amplify traffic, so what does not fit
    is left out: first the time that we have held it, then the address. Source: protocol section 8.
    """
    held = held_s if probe.timed else None
    for endpoint, time_s in ((seen, held), (seen, None), (None, None)):
        answer = encode_probe_answer(ProbeAnswer(probe.token, endpoint, time_s))
        if len(answer) <= probe.size:
            return answer
    return None


def encode_probe_answer(answer: ProbeAnswer) -> bytes:
    """Return the body of a probe answer: 11, 15 or 27 bytes, and 4 more with the time held."""
    _check_token(answer.token)
    if answer.seen is None:
        endpoint = _ENDPOINT.pack(_FAMILY_UNKNOWN, 0)
    else:
        endpoint = _encode_endpoint(answer.seen)
    if answer.held_s is None:
        return answer.token + endpoint
    held = min(max(0, round(answer.held_s * _MICROSECONDS)), 0xFFFFFFFF)
    return answer.token + endpoint + _HELD.pack(held)


def decode_probe_answer(body: bytes) -> ProbeAnswer:
    """Return a probe answer.

    Raises:
        RemoteProtocolError: cut short, bytes left over, or an unknown address family.
    """
    token, rest = body[:PROBE_TOKEN_BYTES], body[PROBE_TOKEN_BYTES:]
    seen: Endpoint | None = None
    if rest[:1] == bytes([_FAMILY_UNKNOWN]) and len(rest) >= _ENDPOINT.size:
        rest = rest[_ENDPOINT.size :]
    else:
        seen, rest = _take_endpoint(rest)
    if not rest:
        return ProbeAnswer(token, seen)
    _want_end(rest[_HELD.size :], "probe answer")
    if len(rest) != _HELD.size:
        raise RemoteProtocolError("the time in a probe answer is cut short")
    return ProbeAnswer(token, seen, _HELD.unpack(rest)[0] / _MICROSECONDS)


def is_usable(candidate: Candidate) -> bool:
    """Tell whether datagrams may be sent to a candidate that a peer named.

    Refused: loopback, multicast, broadcast and unspecified addresses, port 0, and IPv6 link-local
    addresses without a zone, which is all that comes over the wire: they mean nothing without the
    interface. Whether an address lies behind the tunnel itself is for the routes to tell.
    Source: protocol section 8; the last two are our own.
    """
    address = candidate.endpoint.address
    if candidate.endpoint.port == 0:
        return False
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return False
    if isinstance(address, IPv4Address):
        # "This network" (RFC 791) and the limited broadcast; directed broadcasts cannot be told.
        return address.packed[0] != 0 and address != IPv4Address("255.255.255.255")
    return not address.is_link_local or address.scope_id is not None


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    address = endpoint.address
    return _ENDPOINT.pack(address.version, endpoint.port) + address.packed


def _take_endpoint(data: bytes) -> tuple[Endpoint, bytes]:
    """Return the endpoint at the start of data, and what follows it."""
    if len(data) < _ENDPOINT.size:
        raise RemoteProtocolError(f"{len(data)} bytes left, an address was wanted")
    family, port = _ENDPOINT.unpack_from(data)
    if family not in (4, 6):
        raise RemoteProtocolError(f"address family {family}, 4 or 6 was wanted")
    end = _ENDPOINT.size + (4 if family == 4 else 16)
    packed = data[_ENDPOINT.size : end]
    if len(data) < end:
        raise RemoteProtocolError(f"IPv{family} address of {len(packed)} bytes")
    address: Address = IPv4Address(packed) if family == 4 else IPv6Address(packed)
    return Endpoint(address, port), data[end:]


def _decode_candidates(data: bytes) -> Candidates:
    if not data:
        raise RemoteProtocolError("CANDIDATES without a count")
    count, data = data[0], data[1:]
    if count > MAX_CANDIDATES:
        raise RemoteProtocolError(f"{count} candidates, at most {MAX_CANDIDATES} are allowed")
    candidates = []
    for _ in range(count):
        if not data:
            raise RemoteProtocolError("CANDIDATES ends before its last candidate")
        try:
            kind = CandidateKind(data[0])
        except ValueError:
            raise RemoteProtocolError(f"candidate kind {data[0]}, 0 or 1 was wanted") from None
        endpoint, data = _take_endpoint(data[1:])
        candidates.append(Candidate(kind, endpoint))
    _want_end(data, "CANDIDATES")
    return Candidates(tuple(candidates))


def _decode_certificate(data: bytes) -> Certificate:
    if len(data) < _CERTIFICATE_LENGTH.size:
        raise RemoteProtocolError("CERTIFICATE without a length")
    (size,) = _CERTIFICATE_LENGTH.unpack_from(data)
    der = data[_CERTIFICATE_LENGTH.size :]
    if size != len(der) or not 1 <= size <= CERTIFICATE_MAX_BYTES:
        raise RemoteProtocolError(f"CERTIFICATE with {len(der)} bytes, of {size}")
    return Certificate(der)


def _want_end(rest: bytes, name: str) -> None:
    if rest:
        raise RemoteProtocolError(f"{name} with {len(rest)} bytes left over")


def _check_token(token: bytes) -> None:
    if len(token) != PROBE_TOKEN_BYTES:
        raise LocalProtocolError(f"probe token of {len(token)} bytes, 8 were wanted")


def _u8(value: int, name: str) -> int:
    if not 0 <= value <= 0xFF:
        raise LocalProtocolError(f"{name} {value} does not fit into one byte")
    return value


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())
