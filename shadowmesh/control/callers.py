"""Who is at the other end of a connection.

Owns: what tells one client from another, and what the kernel vouches for. Does not know: HTTP,
tokens, what is limited by client.

A client is a user of this machine, wherever that can be told: whoever is not root can open any
number of connections and processes, but gets no second user id for it. Else it is an address.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from shadowmesh.control.rights import Credentials, Right
from shadowmesh.device.sock_diag import uid_of_socket

if TYPE_CHECKING:
    from shadowmesh.control.rights import Rights

#: linux/socket.h: pid, uid, gid
_UCRED: Final = struct.Struct("=iII")
#: asm-generic/socket.h, Linux 4.13; not in Python's socket
_SO_PEERGROUPS: Final = 59
#: as much as Python's getsockopt takes: 256 groups. Who is in more has the right of the first only
_GROUPS_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of one connection.

    Attributes:
        client: what limits count by.
        name: for the log.
        local: it is a process of this machine.
        right: what it may do by its credentials, without a token; None for a connection that has
            no credentials (TCP).
    """

    client: str
    name: str
    local: bool
    right: Right | None = None


def identify(sock: Any, address: Any, rights: Rights | None) -> Caller:
    """Return who is at the other end of an accepted connection.

    Args:
        sock: a TCP socket, or a Unix socket where rights are given.
        address: as accept() gave it.
    """
    if sock.family == socket.AF_UNIX:
        credentials = credentials_of(sock)
        right = Right.NONE if rights is None else rights.of(credentials)
        name = f"uid {credentials.uid}"
        return Caller(name, name, local=True, right=right)
    host, port = address[:2]
    own = sock.getsockname()[:2]
    local = is_loopback(host)
    uid = uid_of_socket((host, port), own) if local or host == own[0] else None
    return Caller(host if uid is None else f"uid {uid}", f"{host}:{port}", local=local)


def of_address(host: str, port: str = "?") -> Caller:
    """Return a caller of whom no more is known than the address."""
    return Caller(host, f"{host}:{port}", local=is_loopback(host))


def credentials_of(sock: Any) -> Credentials:
    """Return who connected a Unix socket, and the groups of that process at that time.

    From the kernel rather than from the group database: it has what the process really was in, and
    asks no directory service.

    Raises:
        OSError: the socket is not of this kind.
    """
    _pid, uid, gid = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        packed = b""
    return Credentials(uid, frozenset({gid, *struct.unpack(f"={len(packed) // 4}I", packed)}))


def is_loopback(host: str) -> bool:
    """Whether an address, however it is written, is this machine's loopback."""
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (found if mapped is None else mapped).is_loopback
