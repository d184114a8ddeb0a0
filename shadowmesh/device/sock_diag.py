"""Whose a TCP socket of this machine is: the other end of a connection, or who listens on a port.

Owns: two questions to the kernel, through sock_diag(7). Does not know: what is done with the answer.

The kernel answers before send() returns, so a plain blocking socket never waits and is safe in a
greenlet. The tables in /proc/net say the same, line by line for all sockets: reading one of them
takes 12 ms on a machine with a hundred (its hash has a hundred thousand places), a question here
70 us.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, include/net/tcp_states.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 0x1
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_ERRNO: Final = struct.Struct("=i")
#: family, protocol, extensions, padding, states
_REQUEST: Final = struct.Struct("=BBBxI")
#: source port, destination port, source, destination; interface and cookie in the order of the host
_ENDS: Final = struct.Struct("!HH16s16s")
_ANY_INTERFACE: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_ALL_STATES: Final = 0xFFFFFFFF
_LISTEN: Final = 1 << 10
#: family, state, timer, retransmissions; the ends; interface, cookie; expires, queues, uid, inode
_SOCKET: Final = struct.Struct("=4B36s3I5I")
_ANSWER_BYTES: Final = 32 * 1024

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens: where, whose, and the number by which it is told from another."""

    address: Address
    uid: int
    inode: int


def uid_of_socket(own: tuple[str, int], other: tuple[str, int]) -> int | None:
    """Return the user who made the TCP socket with address `own`, connected to `other`.

    None when the kernel does not know: there is no such socket on this machine, its program has
    closed it, or the kernel was built without the question.
    """
    source, destination = _plain(own[0]), _plain(other[0])
    if source.version != destination.version:
        return None
    ends = _ENDS.pack(own[1], other[1], source.packed, destination.packed)
    try:
        found = list(_ask(_family(source), _ALL_STATES, ends, 0))
    except OSError:
        return None
    # Without a file there is no owner any more, and the kernel says 0, which would be root.
    return found[0].uid if found and found[0].inode else None


def listeners_on(port: int) -> frozenset[Listener]:
    """Return who listens on a TCP port of this machine.

    Raises:
        OSError: the kernel does not tell.
    """
    ends = _ENDS.pack(port, 0, b"", b"")
    return frozenset(
        one
        for family in (socket.AF_INET, socket.AF_INET6)
        for one in _ask(family, _LISTEN, ends, _NLM_F_DUMP)
    )


def _ask(family: int, states: int, ends: bytes, flags: int) -> Iterator[Listener]:
    """Yield the sockets that a question is answered with. Raises OSError: with the kernel's."""
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + ends + _ANY_INTERFACE
    head = _HEADER.pack(
        _HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0
    )
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(head + body)
        more = True
        while more:
            answer = memoryview(kernel.recv(_ANSWER_BYTES))
            while len(answer) >= _HEADER.size:
                length, message, *_ = _HEADER.unpack_from(answer)
                if message == _NLMSG_ERROR:
                    raise OSError(-_ERRNO.unpack_from(answer, _HEADER.size)[0], "sock_diag")
                more = bool(flags) and message != _NLMSG_DONE
                if message == _SOCK_DIAG_BY_FAMILY:
                    yield _read(answer[_HEADER.size : length])
                answer = answer[(length + 3) & ~3 :]


def _read(message: memoryview) -> Listener:
    family, _state, _timer, _retransmissions, ends, *_, uid, inode = _SOCKET.unpack_from(message)
    source = _ENDS.unpack(ends)[2]
    return Listener(ip_address(source[:4] if family == socket.AF_INET else source), uid, inode)


def _plain(host: str) -> Address:
    """Return an address; one of IPv4 in IPv6's clothes is of IPv4."""
    address = ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
