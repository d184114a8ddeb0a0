"""Links, addresses, routes and neighbours of this host, through rtnetlink.

Owns: the few rtnetlink messages that it takes to set up a TAP device and to tell where a frame
would go, as plain calls. Does not know: TAP devices, configuration.

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
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Final, Self

Address = IPv4Address | IPv6Address
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

# linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h
_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_RTM_GETROUTE: Final = 26
_RTM_DELNEIGH: Final = 29
_RTM_GETNEIGH: Final = 30
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBI")
#: family, destination bits, source bits, tos, table, protocol, scope, type, flags
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
#: family, interface, state, flags, type
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_TXQLEN: Final = 13
_IFLA_LINKINFO: Final = 18
_IFLA_STATS64: Final = 23
_IFLA_LINK_NETNSID: Final = 37
_IFLA_GSO_MAX_SEGS: Final = 40
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_IFLA_TUN_NUM_QUEUES: Final = 8
#: linux/if_link.h, if_tunnel.h: where an interface that wraps packets into IP sends them
_REMOTE: Final = {
    "vxlan": (2, 17),  # IFLA_VXLAN_GROUP, IFLA_VXLAN_GROUP6
    "geneve": (2, 7),
    "ipip": (3,),  # IFLA_IPTUN_REMOTE
    "sit": (3,),
    "ip6tnl": (3,),
    "gre": (7,),  # IFLA_GRE_REMOTE
    "gretap": (7,),
    "ip6gre": (7,),
    "ip6gretap": (7,),
    "erspan": (7,),
    "ip6erspan": (7,),
}
#: the eighth of struct rtnl_link_stats64
_TX_DROPPED_OFFSET: Final = 7 * 8
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_BROADCAST: Final = 4
_IFA_FLAGS: Final = 8
_IFA_F_NODAD: Final = 0x02
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_MARK: Final = 16
_RTA_VIA: Final = 18
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_MASTER: Final = 9
IFF_UP: Final = 0x1
_IFF_RUNNING: Final = 0x40
RTN_LOCAL: Final = 2
#: the neighbour has answered, now or some time ago, or was entered by hand
NUD_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
NUD_INCOMPLETE: Final = 0x01
NUD_FAILED: Final = 0x20

# A kernel never puts more than this into one answer to a socket that offers it.
_ANSWER_BYTES: Final = 65_536
_BROADCAST_MAX_PREFIX: Final = 30


@dataclass(frozen=True, slots=True)
class Link:
    """One network interface as the kernel describes it; `mac` is empty where there is none.

    `master` is the index of the bridge that it is a port of, 0 without one. `running` is false
    while nobody is at the other end: no cable, or no program that has the TAP device open. `kind`
    is the driver ("tun", "bridge"; empty for hardware), `tx_dropped` what the kernel itself threw
    away on the way out, for want of room in the queue of the interface. `tun_queues` is how many
    descriptors hold a TAP or TUN device made with IFF_MULTI_QUEUE; None for any other interface, and
    before Linux 4.17. `lower` is the index of the interface of this namespace that it is stacked on,
    of a veth the other end; 0 without one. `remote` is whereto a tunnel of the kernel's sends.
    `most_segments` is into how many frames a super-frame may be cut that is sent through it.
    """

    index: int
    name: str
    mtu: int
    mac: bytes
    queue_length: int
    up: bool
    master: int = 0
    running: bool = True
    kind: str = ""
    tx_dropped: int = 0
    tun_queues: int | None = None
    lower: int = 0
    remote: Address | None = None
    most_segments: int = 0xFFFF


@dataclass(frozen=True, slots=True)
class Route:
    """Where the kernel would send a packet: out of interface `index`, to `gateway` if there is one.

    `local` means that the packet is for this host itself.
    """

    index: int
    gateway: Address | None
    local: bool


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Whom the kernel believes to have an address: an entry of its ARP or ND table.

    `state` has the NUD bits; `mac` is empty while nobody has answered.
    """

    index: int
    address: Address
    mac: bytes
    state: int


@dataclass(frozen=True, slots=True)
class BridgeEntry:
    """Behind which port a bridge has seen a MAC; `index` is the port's, `master` the bridge's."""

    index: int
    master: int
    mac: bytes


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
        most_segments: int | None = None,
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
        if most_segments is not None:
            body += _attribute(_IFLA_GSO_MAX_SEGS, struct.pack("=I", most_segments))
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

    def route(self, to: Address, *, out: int = 0, mark: int = 0) -> Route:
        """Return the way to an address (ENETUNREACH when there is none).

        Args:
            out: only routes that lead out of this interface; 0 for any. IPv4 invents one without
                a gateway where there is none.
            mark: SO_MARK of who asks.
        """
        family = socket.AF_INET if to.version == 4 else socket.AF_INET6
        body = _RTMSG.pack(family, to.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
        body += _attribute(_RTA_DST, to.packed)
        if out:
            body += _attribute(_RTA_OIF, struct.pack("=I", out))
        if mark:
            body += _attribute(_RTA_MARK, struct.pack("=I", mark))
        [answer] = self._call(_RTM_GETROUTE, 0, body)
        return parse_route(answer)

    def neighbours(self) -> list[Neighbour]:
        """Return the ARP and ND tables of this namespace."""
        body = _NDMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        answers = self._call(_RTM_GETNEIGH, _NLM_F_DUMP, body)
        return [entry for entry in map(parse_neighbour, answers) if entry is not None]

    def forget_neighbour(self, entry: Neighbour) -> None:
        """Take an entry out of its table (ENOENT when it is not there any more)."""
        family = socket.AF_INET if entry.address.version == 4 else socket.AF_INET6
        body = _NDMSG.pack(family, entry.index, 0, 0, 0)
        self._call(_RTM_DELNEIGH, _NLM_F_ACK, body + _attribute(_NDA_DST, entry.address.packed))

    def bridge_entries(self) -> list[BridgeEntry]:
        """Return what the bridges of this namespace have learned."""
        # An ifinfomsg: kernels before 4.20 read one for AF_BRIDGE, newer ones take both.
        body = _IFINFOMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0)
        answers = self._call(_RTM_GETNEIGH, _NLM_F_DUMP, body)
        return [entry for entry in map(parse_bridge_entry, answers) if entry is not None]

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
    info = dict(_attributes(found.get(_IFLA_LINKINFO, b""), 0))
    kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
    elsewhere = _IFLA_LINK_NETNSID in found
    return Link(
        index=index,
        name=found[_IFLA_IFNAME].rstrip(b"\0").decode("utf-8", "replace"),
        mtu=int.from_bytes(found[_IFLA_MTU], sys.byteorder),
        mac=found.get(_IFLA_ADDRESS, b""),
        queue_length=int.from_bytes(found.get(_IFLA_TXQLEN, b""), sys.byteorder),
        up=bool(flags & IFF_UP),
        master=int.from_bytes(found.get(_IFLA_MASTER, b""), sys.byteorder),
        running=bool(flags & _IFF_RUNNING),
        kind=kind,
        tx_dropped=int.from_bytes(
            found.get(_IFLA_STATS64, b"")[_TX_DROPPED_OFFSET : _TX_DROPPED_OFFSET + 8],
            sys.byteorder,
        ),
        tun_queues=_tun_queues(info.get(_IFLA_INFO_DATA, b"")) if kind == "tun" else None,
        lower=0 if elsewhere else int.from_bytes(found.get(_IFLA_LINK, b""), sys.byteorder),
        remote=_remote(kind, info.get(_IFLA_INFO_DATA, b"")),
        most_segments=int.from_bytes(found.get(_IFLA_GSO_MAX_SEGS, b"\xff\xff"), sys.byteorder),
    )


def _remote(kind: str, data: bytes) -> Address | None:
    wanted = _REMOTE.get(kind)
    if wanted is None:
        return None
    found = dict(_attributes(data, 0))
    for attribute in wanted:
        packed = found.get(attribute, b"")
        if len(packed) in (4, 16) and any(packed):
            return ip_address(packed)
    return None


def _tun_queues(data: bytes) -> int | None:
    count = dict(_attributes(data, 0)).get(_IFLA_TUN_NUM_QUEUES)
    return None if count is None else int.from_bytes(count, sys.byteorder)


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


def parse_route(payload: bytes) -> Route:
    """Read an rtmsg and its attributes."""
    kind = _RTMSG.unpack_from(payload)[7]
    found = dict(_attributes(payload, _RTMSG.size))
    # An IPv4 route by an IPv6 gateway names it behind a family of two bytes (RFC 5549).
    gateway = found.get(_RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:] or None
    return Route(
        index=int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder),
        gateway=None if gateway is None else ip_address(gateway),
        local=kind == RTN_LOCAL,
    )


def parse_neighbour(payload: bytes) -> Neighbour | None:
    """Read an ndmsg and its attributes; None for a family that is not IP."""
    family, index, state, _flags, _kind = _NDMSG.unpack_from(payload)
    found = dict(_attributes(payload, _NDMSG.size))
    if family not in (socket.AF_INET, socket.AF_INET6) or _NDA_DST not in found:
        return None
    return Neighbour(index, ip_address(found[_NDA_DST]), found.get(_NDA_LLADDR, b""), state)


def parse_bridge_entry(payload: bytes) -> BridgeEntry | None:
    """Read an ndmsg of a bridge; None for an entry without a bridge or a MAC."""
    _family, index, _state, _flags, _kind = _NDMSG.unpack_from(payload)
    found = dict(_attributes(payload, _NDMSG.size))
    master = int.from_bytes(found.get(_NDA_MASTER, b""), sys.byteorder)
    if not master or _NDA_LLADDR not in found:
        return None
    return BridgeEntry(index, master, found[_NDA_LLADDR])


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
