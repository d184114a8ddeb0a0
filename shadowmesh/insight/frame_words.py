"""What is in an Ethernet frame, in a few words: for the lines of a capture.

Owns: tags, EtherTypes, and the beginnings of ARP, IPv4, IPv6, ICMP, TCP and UDP, as far as one line
tells them. Does not know: where frames come from, how a line looks. Every function takes any bytes,
cut anywhere, and says no more than is in them.

Source: IEEE 802.1Q, RFC 826, 791, 8200, 792, 4443, 4861, 9293, 768.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

_ETHERTYPE_AT: Final = 12
#: below it the field is the length of an 802.3 frame
_LEAST_ETHERTYPE: Final = 0x0600
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
_VLAN, _QINQ = 0x8100, 0x88A8
#: 0x9100 is what QinQ had before it was a standard
_TAGS: Final = {_VLAN: "VLAN", _QINQ: "QinQ", 0x9100: "QinQ"}
#: two are usual
_MAX_TAGS: Final = 4
_ETHERTYPES: Final = {
    _IPV4: "IPv4",
    _ARP: "ARP",
    _IPV6: "IPv6",
    0x8035: "RARP",
    0x8847: "MPLS",
    0x8863: "PPPoE",
    0x8864: "PPPoE",
    0x888E: "802.1X",
    0x88A4: "EtherCAT",
    0x88CC: "LLDP",
    0x88E5: "MACsec",
    0x88F7: "PTP",
    0x9000: "loop test",
}
#: LSAPs of 802.3 frames that a bridge sends or passes
_LSAPS: Final = {0x42: "STP", 0xAA: "SNAP", 0xFE: "IS-IS"}
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_PROTOCOLS: Final = {
    _ICMP: "ICMP", 2: "IGMP", _TCP: "TCP", _UDP: "UDP", 41: "IPv6 inside", 47: "GRE", 50: "ESP",
    51: "AH", _ICMPV6: "ICMPv6", 89: "OSPF", 103: "PIM", 112: "VRRP", 132: "SCTP",
}  # fmt: skip
_ICMP_TYPES: Final = {
    0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded",
}  # fmt: skip
_ICMPV6_TYPES: Final = {
    1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request",
    129: "echo reply", 130: "multicast query", 131: "multicast report", 133: "router solicitation",
    134: "router advertisement", 143: "multicast report",
}  # fmt: skip
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_TCP_FLAGS: Final = ((0x02, "SYN"), (0x10, "ACK"), (0x01, "FIN"), (0x04, "RST"))
_FRAGMENT: Final = 44
#: hop-by-hop, routing, destination options: their second byte is the length
_EXTENSIONS: Final = (0, 43, 60)
_MAX_EXTENSIONS: Final = 8
_CUT: Final = "cut short"


@dataclass(frozen=True, slots=True)
class Words:
    """What a frame is.

    Attributes:
        vlans: the number of each tag, the outermost first.
        ethertype: behind the tags; None when the frame ends before it.
        kind: tags and type, such as ``VLAN 12 IPv4``.
        detail: what is in it, such as ``10.0.0.1 > 10.0.0.2 ICMP echo request``; may be empty.
    """

    vlans: tuple[int, ...]
    ethertype: int | None
    kind: str
    detail: str


def describe(frame: bytes) -> Words:
    """Return the words for a frame, from its destination MAC on; any bytes are one."""
    at = _ETHERTYPE_AT
    tags: list[str] = []
    vlans: list[int] = []
    number = _u16(frame, at)
    while number in _TAGS and len(tags) < _MAX_TAGS:
        control = _u16(frame, at + 2)
        if control is None:
            return Words(tuple(vlans), None, " ".join([*tags, _TAGS[number]]), _CUT)
        vlans.append(control & 0x0FFF)
        tags.append(f"{_TAGS[number]} {vlans[-1]}")
        at += 4
        number = _u16(frame, at)
    if number is None:
        return Words(tuple(vlans), None, " ".join(tags) or "no Ethernet frame", _CUT)
    payload = frame[at + 2 :]
    if number < _LEAST_ETHERTYPE:
        kind, detail = "802.3", _LSAPS.get(payload[0], "") if payload else _CUT
    else:
        kind, detail = _ETHERTYPES.get(number, f"0x{number:04x}"), ""
        if number in (_ARP, 0x8035):
            detail = _arp(payload)
        elif number == _IPV4:
            detail = _ipv4(payload)
        elif number == _IPV6:
            detail = _ipv6(payload)
    return Words(tuple(vlans), number, " ".join([*tags, kind]), detail)


def _u16(data: bytes, at: int) -> int | None:
    return int.from_bytes(data[at : at + 2], "big") if len(data) >= at + 2 else None


def _arp(data: bytes) -> str:
    if len(data) < 28:
        return _CUT
    if data[:6] != bytes((0, 1, 8, 0, 6, 4)):
        return "not of Ethernet and IPv4"
    operation = int.from_bytes(data[6:8], "big")
    sender, target = IPv4Address(data[14:18]), IPv4Address(data[24:28])
    if operation == 1:
        return f"{sender} announces itself" if sender == target else f"{sender} asks for {target}"
    if operation == 2:
        return f"{sender} is at {data[8:14].hex(':')}"
    return f"operation {operation}"


def _ipv4(data: bytes) -> str:
    if len(data) < 20:
        return _CUT
    header_bytes = (data[0] & 0x0F) * 4
    if data[0] >> 4 != 4 or header_bytes < 20:
        return "no IPv4 header"
    source, target = str(IPv4Address(data[12:16])), str(IPv4Address(data[16:20]))
    fragment = int.from_bytes(data[6:8], "big")
    if fragment & 0x1FFF:
        return f"{source} > {target} {_protocol(data[9])}, a later fragment"
    return _upper(source, target, data[9], data[header_bytes:])


def _ipv6(data: bytes) -> str:
    if len(data) < 40:
        return _CUT
    if data[0] >> 4 != 6:
        return "no IPv6 header"
    source, target = str(IPv6Address(data[8:24])), str(IPv6Address(data[24:40]))
    following, rest = data[6], data[40:]
    for _ in range(_MAX_EXTENSIONS):
        if following not in (*_EXTENSIONS, _FRAGMENT):
            break
        if len(rest) < 8:
            return f"{source} > {target}, {_CUT}"
        if following == _FRAGMENT:
            if int.from_bytes(rest[2:4], "big") & 0xFFF8:
                return f"{source} > {target} {_protocol(rest[0])}, a later fragment"
            length = 8
        else:
            length = (rest[1] + 1) * 8
        following, rest = rest[0], rest[length:]
    return _upper(source, target, following, rest)


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, f"protocol {number}")


def _upper(source: str, target: str, protocol: int, data: bytes) -> str:
    """Return the words for what IP carries, the first fragment of it at least."""
    name = _protocol(protocol)
    if protocol in (_TCP, _UDP):
        if len(data) < 4:
            return f"{source} > {target} {name}, {_CUT}"
        ports = [int.from_bytes(data[at : at + 2], "big") for at in (0, 2)]
        line = f"{_place(source, ports[0])} > {_place(target, ports[1])} {name}"
        if protocol == _UDP:
            return line
        if len(data) < 14:
            return f"{line}, {_CUT}"
        return " ".join([line, *(word for bit, word in _TCP_FLAGS if data[13] & bit)])
    line = f"{source} > {target} {name}"
    if protocol not in (_ICMP, _ICMPV6):
        return line
    if not data:
        return f"{line}, {_CUT}"
    if protocol == _ICMP:
        return f"{line} {_ICMP_TYPES.get(data[0], f'type {data[0]}')}"
    if data[0] in (_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT):
        if len(data) < 24:
            return f"{line}, {_CUT}"
        about = IPv6Address(data[8:24])
        asks = data[0] == _NEIGHBOUR_SOLICITATION
        return f"{line} asks for {about}" if asks else f"{line} {about} is there"
    return f"{line} {_ICMPV6_TYPES.get(data[0], f'type {data[0]}')}"


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
