"""The TCP of a link: what the kernel is told about a connection, and what it is asked.

Owns: the options of every connection of ours, how much may be unsent in the kernel, how much the
peer's kernel has acknowledged, addresses as people write them. Does not know: WebSocket, who moves
the bytes (`link`, `stream`), who opened the connection (`dial`, `listener`).
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from socket import IPPROTO_TCP, TCP_INFO, TCP_NODELAY
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from socket import socket

    from gevent.socket import socket as gevent_socket

#: Unsent bytes that the kernel may hold per link; above that the socket is not writable. Keeps
#: the queue in the pipe, where plaintext is dropped by name, and the latency under load short. On
#: a slow link the pipe asks for less.
NOTSENT_LOWAT_BYTES: Final = 128 * 1024
#: linux/tcp.h; Python 3.11 does not name it
TCP_NOTSENT_LOWAT: Final = 25
#: offset of tcpi_bytes_acked (u64) in struct tcp_info, linux/tcp.h since 4.1
_BYTES_ACKED_OFFSET: Final = 120


def set_socket_options(sock: socket | gevent_socket) -> None:
    """Set what every connection of ours wants: no Nagle delay, a short unsent queue."""
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    limit_unsent(sock, NOTSENT_LOWAT_BYTES)


def limit_unsent(sock: socket | gevent_socket, count: int) -> None:
    """Let the kernel hold so many unsent bytes before the socket stops being writable."""
    sock.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, count)


def bytes_acked(sock: socket | gevent_socket) -> int:
    """Bytes that the peer's kernel has acknowledged since the connection began."""
    info = sock.getsockopt(IPPROTO_TCP, TCP_INFO, _BYTES_ACKED_OFFSET + 8)
    (acked,) = struct.unpack_from("=Q", info, _BYTES_ACKED_OFFSET)
    return int(acked)


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
