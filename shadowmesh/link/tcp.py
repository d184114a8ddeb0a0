"""The TCP of a link: what the kernel is told about a connection, and what it is asked.

Owns: the options of every connection of ours, how much may be unsent in the kernel, how much the
peer's kernel has acknowledged, addresses as people write them, which of them are this host's. Does not know: WebSocket, who moves
the bytes (`link`, `stream`), who opened the connection (`dial`, `listener`).
"""

from __future__ import annotations

import errno
import struct
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import (
    AF_INET,
    AF_INET6,
    AI_NUMERICHOST,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    SOCK_DGRAM,
    TCP_INFO,
    TCP_MAXSEG,
    TCP_NODELAY,
    getaddrinfo,
    socket,
)
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from gevent.socket import socket as gevent_socket

    from shadowmesh.link.stream import TlsStream

#: Unsent bytes that the kernel may hold per link; above that the socket is not writable. Keeps
#: the queue in the pipe, where plaintext is dropped by name, and the latency under load short. On
#: a slow link the pipe asks for less.
NOTSENT_LOWAT_BYTES: Final = 128 * 1024
#: linux/tcp.h; Python 3.11 does not name it
TCP_NOTSENT_LOWAT: Final = 25
#: offsets in struct tcp_info, linux/tcp.h since 4.1: tcpi_snd_mss, tcpi_unacked (both u32) and
#: tcpi_bytes_acked (u64)
_SND_MSS_OFFSET: Final = 16
_UNACKED_OFFSET: Final = 24
_BYTES_ACKED_OFFSET: Final = 120
#: of TCP, with the time stamps that the kernel leaves out of the sizes above
_TCP_HEADERS: Final = 20 + 12
_IPV4_HEADERS: Final = 20
_IPV6_HEADERS: Final = 40
#: the least that is in front of a segment
SEGMENT_HEADERS_BYTES: Final = _TCP_HEADERS + _IPV4_HEADERS
#: any will do where nothing is sent
_ANY_PORT: Final = 9
# linux/in.h, in6.h
_IP_MTU: Final = 14
_IPV6_MTU: Final = 24


def set_socket_options(sock: socket | gevent_socket) -> None:
    """Set what every connection of ours wants: no Nagle delay, a short unsent queue."""
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    limit_unsent(sock, NOTSENT_LOWAT_BYTES)


def limit_unsent(sock: socket | gevent_socket, count: int) -> None:
    """Let the kernel hold so many unsent bytes before the socket stops being writable."""
    sock.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, count)


def limit_segments(sock: socket | gevent_socket, count: int) -> None:
    """Let segments have so many bytes, TCP's options included; before connect(), for both sides."""
    sock.setsockopt(IPPROTO_TCP, TCP_MAXSEG, count)


def bytes_acked(sock: socket | gevent_socket) -> int:
    """Bytes that the peer's kernel has acknowledged since the connection began."""
    info = sock.getsockopt(IPPROTO_TCP, TCP_INFO, _BYTES_ACKED_OFFSET + 8)
    return int.from_bytes(info[_BYTES_ACKED_OFFSET:], sys.byteorder)


class Progress(NamedTuple):
    """How far the peer's kernel is with what we sent.

    Attributes:
        acked_bytes: acknowledged since the connection began.
        in_flight: segments that are sent and not acknowledged; 0 while its window is closed.
        segment_bytes: the longest that we send, without TCP's options.
        room_bytes: the longest that the way out would take now; None when the kernel knows none.
    """

    acked_bytes: int
    in_flight: int
    segment_bytes: int
    room_bytes: int | None


def progress(sock: socket | gevent_socket) -> Progress:
    """Ask the kernel. Raises OSError: the socket is closed."""
    info = sock.getsockopt(IPPROTO_TCP, TCP_INFO, _BYTES_ACKED_OFFSET + 8)
    (acked_bytes,) = struct.unpack_from("=Q", info, _BYTES_ACKED_OFFSET)
    (in_flight,) = struct.unpack_from("=I", info, _UNACKED_OFFSET)
    (segment_bytes,) = struct.unpack_from("=I", info, _SND_MSS_OFFSET)
    return Progress(acked_bytes, in_flight, segment_bytes, _room_bytes(sock))


def _room_bytes(sock: socket | gevent_socket) -> int | None:
    """Longest segment that the way out would take; None without a way, or a connection."""
    try:
        if sock.family == AF_INET6:
            mtu = sock.getsockopt(IPPROTO_IPV6, _IPV6_MTU)
        else:
            mtu = sock.getsockopt(IPPROTO_IP, _IP_MTU)
        # The peer name of a dual-stack socket may be an IPv4 address all the same.
        ipv6 = ":" in plain_address(sock.getpeername())[0]
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return None
    return mtu - _TCP_HEADERS - (_IPV6_HEADERS if ipv6 else _IPV4_HEADERS)


def far_end(sock: TlsStream, host: str) -> IPv4Address | IPv6Address:
    """Return the address of the other end of a connection; a link-local one with its zone.

    Args:
        host: the address as `plain_address` has it.
    """
    address = ip_address(host.partition("%")[0])
    if address.version == 6 and address.is_link_local:
        return IPv6Address(f"{address}%{sock.getpeername()[3]}")
    return address


def is_own_address(host: str) -> bool:
    """Whether an IP address, perhaps with a zone, is one that this host has; loopback counts not.

    The kernel gives what a host sends to itself the address that it is sent to (RFC 6724 section
    5, rule 1). Nothing is sent.
    """
    try:
        address = ip_address(host.partition("%")[0])
        if address.is_loopback or address.is_unspecified:
            return False
        family = AF_INET6 if address.version == 6 else AF_INET
        found = getaddrinfo(host, _ANY_PORT, family, SOCK_DGRAM, flags=AI_NUMERICHOST)[0][4]
        with socket(family, SOCK_DGRAM) as probe:
            probe.connect(found)
            return ip_address(str(probe.getsockname()[0]).partition("%")[0]) == address
    except (OSError, ValueError):
        return False  # no way there, no descriptor left, or an address of another family


def plain_address(sockaddr: tuple[Any, ...]) -> tuple[str, int]:
    """Return (IP address, port) of a socket address, an IPv4-mapped address as plain IPv4.

    A dual-stack listener sees IPv4 peers as ::ffff:192.0.2.1; people and limits should not.
    """
    host, port = sockaddr[0], sockaddr[1]
    if ":" in host:
        mapped = IPv6Address(host).ipv4_mapped
        if mapped is not None:
            return str(mapped), port
    return host, port
