"""The TCP of a link: what the kernel is told about a connection, what it is asked, how it ends.

Owns: the options of every connection of ours, how much may be unsent in the kernel, how much the
peer's kernel has acknowledged, addresses as people write them, and an end that takes nothing away
from the peer. Does not know: WebSocket, who moves the bytes (`link`), who opened the connection
(`dial`, `listener`).
"""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv6Address
from typing import Any, Final

import gevent
from gevent.socket import IPPROTO_TCP, SHUT_WR, TCP_INFO, TCP_NODELAY
from gevent.socket import socket as gevent_socket
from gevent.ssl import SSLSocket

#: Unsent bytes that the kernel may hold per link; above that the socket is not writable. Keeps
#: the queue in the pipe, where plaintext is dropped by name, and the latency under load short. On
#: a slow link the pipe asks for less.
NOTSENT_LOWAT_BYTES: Final = 128 * 1024
#: linux/tcp.h; Python 3.11 does not name it
TCP_NOTSENT_LOWAT: Final = 25
#: how long the peer has to close too, once we have
LINGER_TIMEOUT_S: Final = 0.5
#: offset of tcpi_bytes_acked (u64) in struct tcp_info, linux/tcp.h since 4.1
_BYTES_ACKED_OFFSET: Final = 120


def set_socket_options(sock: gevent_socket) -> None:
    """Set what every connection of ours wants: no Nagle delay, a short unsent queue."""
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    limit_unsent(sock, NOTSENT_LOWAT_BYTES)


def limit_unsent(sock: gevent_socket, count: int) -> None:
    """Let the kernel hold so many unsent bytes before the socket stops being writable."""
    sock.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, count)


def bytes_acked(sock: gevent_socket) -> int:
    """Bytes that the peer's kernel has acknowledged since the connection began."""
    info = sock.getsockopt(IPPROTO_TCP, TCP_INFO, _BYTES_ACKED_OFFSET + 8)
    (acked,) = struct.unpack_from("=Q", info, _BYTES_ACKED_OFFSET)
    return int(acked)


def say_goodbye(sock: SSLSocket) -> None:
    """End TLS and TCP in order: close_notify, FIN, then read until the peer has closed too.

    Takes at most LINGER_TIMEOUT_S; the caller closes the socket. Closed with unread bytes in it a
    socket sends RST, which would take away from the peer what we sent last.
    """
    try:
        with gevent.Timeout(LINGER_TIMEOUT_S, False):
            sock.settimeout(0.0)
            with contextlib.suppress(OSError, ValueError):
                # Sends close_notify; that the peer's has not come yet is not of interest.
                sock.unwrap()
            sock.settimeout(None)
            sock.shutdown(SHUT_WR)  # gevent drops its TLS layer here: what follows is ciphertext
            while sock.recv(65536):
                pass
    except OSError:
        return  # the connection is broken: nothing left to end


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
