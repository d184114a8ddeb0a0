"""Whose socket is at the other end of a TCP connection within this machine.

Owns: one question to the kernel, through sock_diag(7). Does not know: what is done with the answer.

The kernel answers inside of send(), so a plain blocking socket never waits and is safe in a
greenlet; it finds the one socket by its hash, however many there are (measured: 70 us). The tables
in /proc/net say the same, line by line for all of them.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Final

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
#: family, protocol, extensions, padding, states
_REQUEST: Final = struct.Struct("=BBBxI")
#: source port, destination port, source, destination; interface and cookie in the order of the host
_PORTS: Final = struct.Struct("!HH16s16s")
_ANYWHERE: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_ALL_STATES: Final = 0xFFFFFFFF
#: family, state, timer, retransmissions; the id; expires, receive queue, send queue, uid, inode
_ANSWER: Final = struct.Struct("=4B48s5I")
_ANSWER_BYTES: Final = 4096

Address = tuple[str, int]


def uid_of_socket(own: Address, other: Address) -> int | None:
    """Return the user who made the TCP socket with address `own`, connected to `other`.

    None when the kernel does not know: there is no such socket on this machine, its program has
    closed it, or the kernel was built without the question.
    """
    family, source = _packed(own[0])
    other_family, destination = _packed(other[0])
    if family != other_family:
        return None
    body = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES)
        + _PORTS.pack(own[1], other[1], source, destination)
        + _ANYWHERE
    )
    head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        ) as kernel:
            kernel.send(head + body)
            answer = kernel.recv(_ANSWER_BYTES)
    except OSError:
        return None
    if len(answer) < _HEADER.size + _ANSWER.size:
        return None
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None  # an error, such as that there is none
    *_, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    # Without a file there is no owner any more, and the kernel says 0, which would be root.
    return uid if inode else None


def _packed(host: str) -> tuple[int, bytes]:
    """Return family and bytes of an address; one of IPv4 in IPv6's clothes is of IPv4."""
    address = ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return family, address.packed
