"""STUN: building and parsing of messages.

Owns: the binding method of RFC 8489 with the attributes of RFC 5780, from bytes to values and
back. Does not know: when requests are sent (`transaction`), what an answer means for
the NAT (`detector`), credentials (message integrity is stepped over: we never ask for it).

::

     0       2       4               8                               20
     +-------+-------+---------------+-------------------------------+----------
     | type  |length | cookie        | transaction id (96 bits)      | attributes
     +-------+-------+---------------+-------------------------------+----------
     attribute: u16 type | u16 length | value | padding to a multiple of 4

STUN integers are big-endian. The first byte is 0 to 3, a record of ours starts with 0x80, so
both share one UDP socket (RFC 7983). What a server answers is a hint and never more: a probe
proves an address. Source: RFC 8489, RFC 5780, protocol section 8.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire.control import Endpoint

MAGIC_COOKIE: Final = 0x2112A442
HEADER_BYTES: Final = 20
TRANSACTION_ID_BYTES: Final = 12
#: XORed onto the CRC so that it cannot be taken for another protocol's (RFC 8489 section 14.7)
FINGERPRINT_XOR: Final = 0x5354554E

_METHOD_BINDING: Final = 0x001
_CLASS_MASK: Final = 0x0110
_HEADER: Final = struct.Struct("!HHI12s")
_TLV: Final = struct.Struct("!HH")
_CHANGE_IP: Final = 0x4
_CHANGE_PORT: Final = 0x2


class MessageClass(IntEnum):
    """The two class bits, where they stand in the type field. Source: RFC 8489, section 5."""

    REQUEST = 0x0000
    INDICATION = 0x0010
    SUCCESS = 0x0100
    ERROR = 0x0110


class Attribute(IntEnum):
    """Attribute types. Below 0x8000 a receiver has to understand them (RFC 8489 section 14)."""

    MAPPED_ADDRESS = 0x0001
    CHANGE_REQUEST = 0x0003
    SOURCE_ADDRESS = 0x0004  # RFC 3489 only; old servers still send it
    CHANGED_ADDRESS = 0x0005  # RFC 3489 only
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    REALM = 0x0014
    NONCE = 0x0015
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    PRIORITY = 0x0024
    USE_CANDIDATE = 0x0025
    PADDING = 0x0026
    RESPONSE_PORT = 0x0027
    # Not in an RFC: drafts before RFC 5389 had XOR-MAPPED-ADDRESS here, and servers of that
    # age still answer so.
    XOR_MAPPED_ADDRESS_DRAFT = 0x8020
    SOFTWARE = 0x8022
    ALTERNATE_SERVER = 0x8023
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029
    ICE_CONTROLLING = 0x802A
    RESPONSE_ORIGIN = 0x802B
    OTHER_ADDRESS = 0x802C


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """ERROR-CODE: `code` is 300 to 699, `reason` is for people."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """CHANGE-REQUEST: from where the server is to answer. Source: RFC 5780, section 7.2."""

    ip: bool = False
    port: bool = False


Value = Endpoint | ErrorCode | ChangeRequest | tuple[int, ...] | bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One binding message.

    Attributes:
        message_class: request, indication, success or error response.
        transaction_id: 12 bytes.
        attributes: the first value of each known attribute that counts (what follows a message
            integrity does not).
        unknown_required: types below 0x8000 that this version does not know.
    """

    message_class: MessageClass
    transaction_id: bytes
    attributes: Mapping[Attribute, Value] = field(default_factory=dict)
    unknown_required: tuple[int, ...] = ()

    def endpoint(self, *kinds: Attribute) -> Endpoint | None:
        """Return the value of the first of these attributes that is there and an address."""
        for kind in kinds:
            value = self.attributes.get(kind)
            if isinstance(value, Endpoint):
                return value
        return None


@dataclass(frozen=True, slots=True)
class BindingResponse:
    """What a server said of us.

    Attributes:
        mapped: the address it saw.
        other: its second address and port, when it offers the tests of RFC 5780.
        origin: the address it says it answered from.
    """

    mapped: Endpoint
    other: Endpoint | None = None
    origin: Endpoint | None = None


class StunError(RemoteProtocolError):
    """The server refused a request. `code` is its ERROR-CODE; `alternate` where to ask instead."""

    def __init__(self, error: ErrorCode, alternate: Endpoint | None = None) -> None:
        super().__init__(f"STUN error {error.code} {error.reason}".rstrip())
        self.code = error.code
        self.alternate = alternate


def is_stun(data: bytes) -> bool:
    """Tell, from the header only, whether a datagram may be STUN. Source: RFC 8489, section 5."""
    return (
        len(data) >= HEADER_BYTES
        and data[0] < 4
        and data[4:8] == MAGIC_COOKIE.to_bytes(4, "big")
        and len(data) % 4 == 0
    )


def parse(data: bytes) -> Message:
    """Return the binding message in one datagram.

    Args:
        data: the whole datagram, of any length; not kept.
    Raises:
        RemoteProtocolError: not STUN, not the binding method, a length that does not fit, an
            attribute that is cut short or malformed, or a FINGERPRINT that is wrong or not last.
    Source: RFC 8489, sections 5, 6.3 and 14.
    """
    if len(data) < HEADER_BYTES:
        raise RemoteProtocolError(f"{len(data)} bytes, a STUN header of 20 was wanted")
    kind, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if kind & 0xC000 or cookie != MAGIC_COOKIE:
        raise RemoteProtocolError("not STUN: first two bits or magic cookie are wrong")
    if length % 4 or length != len(data) - HEADER_BYTES:
        raise RemoteProtocolError(f"STUN length {length}, the datagram has {len(data) - 20}")
    if kind & ~_CLASS_MASK != _METHOD_BINDING:
        raise RemoteProtocolError(f"STUN method {kind & ~_CLASS_MASK:#06x}, binding was wanted")
    attributes: dict[Attribute, Value] = {}
    unknown: list[int] = []
    sealed = False
    offset = HEADER_BYTES
    while offset < len(data):
        number, size = _TLV.unpack_from(data, offset)
        value = data[offset + 4 : offset + 4 + size]
        if len(value) != size:
            raise RemoteProtocolError(f"STUN attribute {number:#06x} is cut short")
        end = offset + 4 + size + -size % 4
        if number == Attribute.FINGERPRINT:
            _check_fingerprint(data, offset, end, value)
        if number in _KNOWN:
            attribute = Attribute(number)
            # Behind a message integrity only what protects the message counts (section 14.5).
            if attribute not in attributes and (not sealed or attribute in _AFTER_INTEGRITY):
                attributes[attribute] = _TABLE[attribute].unpack(value, transaction_id)
            sealed = sealed or attribute in _INTEGRITY
        elif number < 0x8000 and not sealed:
            unknown.append(number)
        offset = end
    return Message(MessageClass(kind & _CLASS_MASK), transaction_id, attributes, tuple(unknown))


def build(
    message_class: MessageClass,
    transaction_id: bytes,
    attributes: Iterable[tuple[Attribute, Value]] = (),
    *,
    fingerprint: bool = True,
) -> bytes:
    """Return a binding message as one datagram.

    Args:
        message_class: of the message.
        transaction_id: 12 bytes; random in a request.
        attributes: in the order in which they are sent.
        fingerprint: end the message with a FINGERPRINT.
    Raises:
        LocalProtocolError: transaction id not of 12 bytes.
        TypeError: a value of another type than the attribute has.
    Source: RFC 8489, sections 5 and 14.
    """
    if len(transaction_id) != TRANSACTION_ID_BYTES:
        raise LocalProtocolError(f"transaction id of {len(transaction_id)} bytes, 12 were wanted")
    body = bytearray()
    for attribute, value in attributes:
        packed = _TABLE[attribute].pack(value, transaction_id)
        body += _TLV.pack(attribute, len(packed)) + packed + bytes(-len(packed) % 4)
    kind = message_class | _METHOD_BINDING
    total = len(body) + (8 if fingerprint else 0)
    message = _HEADER.pack(kind, total, MAGIC_COOKIE, transaction_id) + body
    if fingerprint:
        message += _TLV.pack(Attribute.FINGERPRINT, 4) + _crc(message)
    return message


def binding_request(transaction_id: bytes, change: ChangeRequest | None = None) -> bytes:
    """Return a binding request, with CHANGE-REQUEST when one is given.

    Source: RFC 8489, section 6.2; RFC 5780, section 4.
    """
    attributes: list[tuple[Attribute, Value]] = []
    if change is not None:
        attributes.append((Attribute.CHANGE_REQUEST, change))
    return build(MessageClass.REQUEST, transaction_id, attributes)


def parse_response(data: bytes, transaction_id: bytes) -> BindingResponse:
    """Return the address at which a STUN server saw us.

    Args:
        data: one datagram; not kept.
        transaction_id: the 12 bytes sent in the request.
    Raises:
        StunError: an error response of this transaction.
        RemoteProtocolError: not STUN, not a response, another transaction, an unknown attribute
            that has to be understood, or no (XOR-)MAPPED-ADDRESS.
    Source: RFC 8489, sections 6.3.3, 6.3.4 and 14.2.
    """
    return interpret_response(parse(data), transaction_id)


def interpret_response(message: Message, transaction_id: bytes) -> BindingResponse:
    """Return what a parsed response says; raises as `parse_response` does."""
    if message.message_class not in (MessageClass.SUCCESS, MessageClass.ERROR):
        raise RemoteProtocolError(f"STUN {message.message_class.name}, a response was wanted")
    if message.transaction_id != transaction_id:
        raise RemoteProtocolError("STUN response of another transaction")
    if message.unknown_required:
        numbers = ", ".join(f"{number:#06x}" for number in message.unknown_required)
        raise RemoteProtocolError(f"STUN response with unknown attributes {numbers}")
    if message.message_class is MessageClass.ERROR:
        error = message.attributes.get(Attribute.ERROR_CODE)
        if not isinstance(error, ErrorCode):
            raise RemoteProtocolError("STUN error response without ERROR-CODE")
        raise StunError(error, message.endpoint(Attribute.ALTERNATE_SERVER))
    mapped = message.endpoint(
        Attribute.XOR_MAPPED_ADDRESS,
        Attribute.XOR_MAPPED_ADDRESS_DRAFT,
        Attribute.MAPPED_ADDRESS,
    )
    if mapped is None:
        raise RemoteProtocolError("STUN response without XOR-MAPPED-ADDRESS or MAPPED-ADDRESS")
    return BindingResponse(
        mapped,
        message.endpoint(Attribute.OTHER_ADDRESS),
        message.endpoint(Attribute.RESPONSE_ORIGIN),
    )


# --- The table of attributes -----------------------------------------------------------------


def _pack_address(value: Value, _: bytes) -> bytes:
    if not isinstance(value, Endpoint):
        raise TypeError(f"an Endpoint was wanted, not {type(value).__name__}")
    family = 1 if value.address.version == 4 else 2
    return struct.pack("!BBH", 0, family, value.port) + value.address.packed


def _unpack_address(data: bytes, _: bytes) -> Endpoint:
    if len(data) < 4:
        raise RemoteProtocolError(f"STUN address of {len(data)} bytes, 8 or 20 were wanted")
    _zero, family, port = struct.unpack_from("!BBH", data)
    packed = data[4:]
    if family == 1 and len(packed) == 4:
        return Endpoint(IPv4Address(packed), port)
    if family == 2 and len(packed) == 16:
        return Endpoint(IPv6Address(packed), port)
    raise RemoteProtocolError(f"STUN address of family {family} with {len(packed)} bytes")


def _xor(value: bytes, transaction_id: bytes) -> bytes:
    """XOR port and address of an address value. Source: RFC 8489, section 14.2."""
    mask = MAGIC_COOKIE.to_bytes(4, "big")
    mask = bytes(2) + mask[:2] + mask + transaction_id
    return bytes(a ^ b for a, b in zip(value, mask, strict=False))


def _pack_xor_address(value: Value, transaction_id: bytes) -> bytes:
    return _xor(_pack_address(value, transaction_id), transaction_id)


def _unpack_xor_address(data: bytes, transaction_id: bytes) -> Endpoint:
    # Not longer than the mask, or the XOR would silently cut what has a wrong length.
    if len(data) > 20:
        raise RemoteProtocolError(f"STUN address of {len(data)} bytes, 8 or 20 were wanted")
    return _unpack_address(_xor(data, transaction_id), transaction_id)


def _pack_error(value: Value, _: bytes) -> bytes:
    if not isinstance(value, ErrorCode):
        raise TypeError(f"an ErrorCode was wanted, not {type(value).__name__}")
    return struct.pack("!HBB", 0, *divmod(value.code, 100)) + value.reason.encode("utf-8")


def _unpack_error(data: bytes, _: bytes) -> ErrorCode:
    if len(data) < 4:
        raise RemoteProtocolError(f"ERROR-CODE of {len(data)} bytes, at least 4 were wanted")
    hundreds, rest = data[2] & 0x07, data[3]
    if not 3 <= hundreds <= 6 or rest > 99:
        raise RemoteProtocolError(f"ERROR-CODE {hundreds} {rest} is outside 300..699")
    # RFC 8489 section 14.8 allows 763 bytes of text; it ends up in one line of a log.
    text = data[4:132].decode("utf-8", "replace")
    return ErrorCode(hundreds * 100 + rest, "".join(char for char in text if char.isprintable()))


def _pack_change(value: Value, _: bytes) -> bytes:
    if not isinstance(value, ChangeRequest):
        raise TypeError(f"a ChangeRequest was wanted, not {type(value).__name__}")
    return struct.pack("!I", _CHANGE_IP * value.ip | _CHANGE_PORT * value.port)


def _unpack_change(data: bytes, _: bytes) -> ChangeRequest:
    if len(data) != 4:
        raise RemoteProtocolError(f"CHANGE-REQUEST of {len(data)} bytes, 4 were wanted")
    bits = int.from_bytes(data, "big")
    return ChangeRequest(ip=bool(bits & _CHANGE_IP), port=bool(bits & _CHANGE_PORT))


def _pack_types(value: Value, _: bytes) -> bytes:
    if not isinstance(value, tuple):
        raise TypeError(f"a tuple of numbers was wanted, not {type(value).__name__}")
    return struct.pack(f"!{len(value)}H", *value)


def _unpack_types(data: bytes, _: bytes) -> tuple[int, ...]:
    if len(data) % 2:
        raise RemoteProtocolError(f"UNKNOWN-ATTRIBUTES of {len(data)} bytes, an even number wanted")
    return struct.unpack(f"!{len(data) // 2}H", data)


def _pack_bytes(value: Value, _: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"bytes were wanted, not {type(value).__name__}")
    return value


def _unpack_bytes(data: bytes, _: bytes) -> bytes:
    return data


@dataclass(frozen=True, slots=True)
class _Codec:
    """How the value of one attribute is packed and unpacked; both get the transaction id."""

    pack: Callable[[Value, bytes], bytes]
    unpack: Callable[[bytes, bytes], Value]


_ADDRESS: Final = _Codec(_pack_address, _unpack_address)
_XOR_ADDRESS: Final = _Codec(_pack_xor_address, _unpack_xor_address)
_BYTES: Final = _Codec(_pack_bytes, _unpack_bytes)

_TABLE: Final[Mapping[Attribute, _Codec]] = {
    Attribute.MAPPED_ADDRESS: _ADDRESS,
    Attribute.CHANGE_REQUEST: _Codec(_pack_change, _unpack_change),
    Attribute.SOURCE_ADDRESS: _ADDRESS,
    Attribute.CHANGED_ADDRESS: _ADDRESS,
    Attribute.USERNAME: _BYTES,
    Attribute.MESSAGE_INTEGRITY: _BYTES,
    Attribute.ERROR_CODE: _Codec(_pack_error, _unpack_error),
    Attribute.UNKNOWN_ATTRIBUTES: _Codec(_pack_types, _unpack_types),
    Attribute.REALM: _BYTES,
    Attribute.NONCE: _BYTES,
    Attribute.MESSAGE_INTEGRITY_SHA256: _BYTES,
    Attribute.PASSWORD_ALGORITHM: _BYTES,
    Attribute.USERHASH: _BYTES,
    Attribute.XOR_MAPPED_ADDRESS: _XOR_ADDRESS,
    Attribute.PRIORITY: _BYTES,
    Attribute.USE_CANDIDATE: _BYTES,
    Attribute.PADDING: _BYTES,
    Attribute.RESPONSE_PORT: _BYTES,
    Attribute.XOR_MAPPED_ADDRESS_DRAFT: _XOR_ADDRESS,
    Attribute.SOFTWARE: _BYTES,
    Attribute.ALTERNATE_SERVER: _ADDRESS,
    Attribute.FINGERPRINT: _BYTES,
    Attribute.ICE_CONTROLLED: _BYTES,
    Attribute.ICE_CONTROLLING: _BYTES,
    Attribute.RESPONSE_ORIGIN: _ADDRESS,
    Attribute.OTHER_ADDRESS: _ADDRESS,
}
_KNOWN: Final = frozenset(int(attribute) for attribute in _TABLE)
_INTEGRITY: Final = (Attribute.MESSAGE_INTEGRITY, Attribute.MESSAGE_INTEGRITY_SHA256)
_AFTER_INTEGRITY: Final = (*_INTEGRITY, Attribute.FINGERPRINT)


def _crc(message: bytes) -> bytes:
    return (zlib.crc32(message) ^ FINGERPRINT_XOR).to_bytes(4, "big")


def _check_fingerprint(data: bytes, start: int, end: int, value: bytes) -> None:
    """Source: RFC 8489, section 14.7."""
    if end != len(data):
        raise RemoteProtocolError("STUN FINGERPRINT is not the last attribute")
    if value != _crc(data[:start]):
        raise RemoteProtocolError("STUN FINGERPRINT does not match")
