"""Links and addresses of this host, through rtnetlink.

Owns: the few rtnetlink messages that setting up a TAP device takes, as plain calls.
Does not know: TAP devices, configuration.

The kernel handles a request inside sendto() and has the answer queued before that returns, so a
plain blocking socket never waits and is safe in a greenlet. (pyroute2 does all this and more, but
importing it costs 11 MiB of resident memory, a fifth of what the whole daemon may use.)

::

    0        4      6       8       12      16
    +--------+------+-------+-------+-------+----------------------+--------------------------+
    | length | type | flags |  seq  |  pid  | ifinfomsg|ifaddrmsg  | attributes: u16 length,  |
    |        |      |       |       |       |                      | u16 type, value, padding |
    +--------+------+-------+-------+-------+----------------------+--------------------------+
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final, Self

Interface = IPv4Interface | IPv6Interface

# linux/netlink.h
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NLM_F_REQUEST: Final = 0x1
_NLM_F_MULTI: Final = 0x2  # one of several answers
_NLM_F_ACK: Final = 0x4
_NLM_F_EXCL: Final = 0x200
_NLM_F_CREATE: Final = 0x400
_NLM_F_DUMP: Final = 0x300
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLMSGERR_ATTR_MSG: Final = 1
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_ATTRIBUTE_TYPE_MASK: Final = 0x3FFF

# linux/rtnetlink.h, if_link.h, if_addr.h
_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBI")
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_MASTER: Final = 10
_IFLA_TXQLEN: Final = 13
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_BROADCAST: Final = 4
_IFA_FLAGS: Final = 8
_IFA_F_NODAD: Final = 0x02
IFF_UP: Final = 0x1

# A kernel never puts more than this into one answer to a socket that offers it.
_ANSWER_BYTES: Final = 65_536
_BROADCAST_MAX_PREFIX: Final = 30


@dataclass(frozen=True, slots=True)
class Link:
    """One network interface as the kernel describes it; `mac` is empty where there is none.

    `master` is the index of the bridge that it is a port of, 0 without one.
    """

    index: int
    name: str
    mtu: int
    mac: bytes
    queue_length: int
    up: bool
    master: int = 0


class Netlink:
    """One rtnetlink socket, in the network namespace of the caller at the time it is made.

    Every method raises OSError with the kernel's errno and, where it gives one, its explanation.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def link(self, index: int) -> Link:
        """Return interface `index` (ENODEV when there is none)."""
        body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        [answer] = self._call(_RTM_GETLINK, 0, body)
        return parse_link(answer)

    def links(self) -> list[Link]:
        """Return every interface of this namespace."""
        body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return [parse_link(answer) for answer in self._call(_RTM_GETLINK, _NLM_F_DUMP, body)]

    def set_link(
        self,
        index: int,
        *,
        mtu: int | None = None,
        queue_length: int | None = None,
        mac: bytes | None = None,
        up: bool | None = None,
    ) -> None:
        """Change what is given and leave the rest."""
        change = 0 if up is None else IFF_UP
        body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, IFF_UP if up else 0, change)
        if mtu is not None:
            body += _attribute(_IFLA_MTU, struct.pack("=I", mtu))
        if queue_length is not None:
            body += _attribute(_IFLA_TXQLEN, struct.pack("=I", queue_length))
        if mac is not None:
            body += _attribute(_IFLA_ADDRESS, mac)
        self._call(_RTM_NEWLINK, _NLM_F_ACK, body)

    def addresses(self) -> list[tuple[int, Interface]]:
        """Return (interface index, address) for every address of this namespace."""
        body = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        answers = self._call(_RTM_GETADDR, _NLM_F_DUMP, body)
        return [entry for entry in map(parse_address, answers) if entry is not None]

    def add_address(self, index: int, address: Interface) -> None:
        """Give interface `index` an address (EEXIST when it has it).

        An IPv6 address can be used at once: nobody else is on a link that is just being made,
        and duplicate address detection would hold it back for a second.
        """
        self._call(
            _RTM_NEWADDR, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL, address_body(index, address)
        )

    def delete_address(self, index: int, address: Interface) -> None:
        """Take an address away again (EADDRNOTAVAIL when it is not there)."""
        self._call(_RTM_DELADDR, _NLM_F_ACK, address_body(index, address))

    def _call(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        header = _HEADER.pack(
            _HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, self._sequence, 0
        )
        self._socket.sendto(header + body, (0, 0))
        answers: list[bytes] = []
        more = True
        while more:
            more = collect(self._socket.recv(_ANSWER_BYTES), self._sequence, answers)
        return answers


def collect(datagram: bytes, sequence: int, answers: list[bytes]) -> bool:
    """Append the payloads of one datagram that belong to request `sequence`.

    Returns:
        True when more datagrams follow (a dump that has not ended).
    Raises:
        OSError: the kernel refused the request.
    """
    offset = 0
    more = True
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, number, _pid = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            raise OSError(0, f"netlink answer with length {length}")
        payload = datagram[offset + _HEADER.size : offset + length]
        offset += -(-length // 4) * 4
        if number != sequence:
            continue
        if kind in (_NLMSG_ERROR, _NLMSG_DONE):
            # After the code comes our own header (its body cut off by NETLINK_CAP_ACK), then text.
            text_at = 4 + (_HEADER.size if kind == _NLMSG_ERROR else 0)
            _raise_if_error(payload, text_at if flags & _NLM_F_ACK_TLVS else len(payload))
            return False
        answers.append(payload)
        more = bool(flags & _NLM_F_MULTI)
    return more


def parse_link(payload: bytes) -> Link:
    """Read an ifinfomsg and its attributes."""
    _family, _kind, index, flags, _change = _IFINFOMSG.unpack_from(payload)
    found = dict(_attributes(payload, _IFINFOMSG.size))
    return Link(
        index=index,
        name=found[_IFLA_IFNAME].rstrip(b"\0").decode("utf-8", "replace"),
        mtu=int.from_bytes(found[_IFLA_MTU], sys.byteorder),
        mac=found.get(_IFLA_ADDRESS, b""),
        queue_length=int.from_bytes(found.get(_IFLA_TXQLEN, b""), sys.byteorder),
        up=bool(flags & IFF_UP),
        master=int.from_bytes(found.get(_IFLA_MASTER, b""), sys.byteorder),
    )


def parse_address(payload: bytes) -> tuple[int, Interface] | None:
    """Read an ifaddrmsg and its attributes; None for a family that is not IP."""
    family, prefix, _flags, _scope, index = _IFADDRMSG.unpack_from(payload)
    found = dict(_attributes(payload, _IFADDRMSG.size))
    # On a point-to-point IPv4 link IFA_ADDRESS is the other end.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None:
        return None
    if family == socket.AF_INET:
        return index, IPv4Interface((packed, prefix))
    if family == socket.AF_INET6:
        return index, IPv6Interface((packed, prefix))
    return None


def address_body(index: int, address: Interface) -> bytes:
    """The ifaddrmsg and attributes that describe one address of one interface."""
    is_ipv4 = isinstance(address, IPv4Interface)
    family = socket.AF_INET if is_ipv4 else socket.AF_INET6
    flags = 0 if is_ipv4 else _IFA_F_NODAD
    packed = address.ip.packed
    body = _IFADDRMSG.pack(family, address.network.prefixlen, flags, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    if is_ipv4 and address.network.prefixlen <= _BROADCAST_MAX_PREFIX:
        body += _attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return body


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _attributes(payload: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _ATTRIBUTE.size <= len(payload):
        size, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if size < _ATTRIBUTE.size:
            return
        yield kind & _ATTRIBUTE_TYPE_MASK, payload[offset + _ATTRIBUTE.size : offset + size]
        offset += -(-size // 4) * 4


def _raise_if_error(payload: bytes, text_at: int) -> None:
    (code,) = struct.unpack_from("=i", payload)
    if code == 0:
        return
    text = os.strerror(-code)
    said = dict(_attributes(payload, text_at)).get(_NLMSGERR_ATTR_MSG, b"")
    if said:
        text += f" ({said.rstrip(bytes(1)).decode('utf-8', 'replace')})"
    raise OSError(-code, text)
