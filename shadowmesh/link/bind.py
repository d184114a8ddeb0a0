"""The socket on which the peer port listens: bound anew, or kept from the daemon before us.

Owns: where an address of the configuration is bound, with and without IPv6, what a failure means to
an operator, and whether a kept socket is that one. Does not know: what is accepted there.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

import gevent.socket

from shadowmesh.base import log
from shadowmesh.base.errors import NotPermitted, ShadowMeshError
from shadowmesh.config import HostPort

#: connections that the kernel completes before we accept them
BACKLOG: Final = 128
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
#: No IPv6 in this kernel, or switched off.
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

_log = log.get("listener")


def misfit(fd: int, address: HostPort) -> str | None:
    """Say why a socket that somebody kept does not listen on `address`; None when it does."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.type != socket.SOCK_STREAM or sock.family not in _FAMILIES:
                return "it is another kind of socket"
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return "it does not listen"
            bound = HostPort(*sock.getsockname()[:2])
        hosts = {found[4][0] for found in _addresses(address.host, address.port)}
    except OSError as error:
        return str(error)
    if address.host in ("", "::"):
        hosts.add("0.0.0.0")  # what listen() falls back to
    if bound.host not in hosts or address.port not in (0, bound.port):
        return f"it listens on {bound}, not {address}"
    return None


def listen(address: HostPort) -> gevent.socket.socket:
    """Return a socket that listens on `address`; ``[::]`` takes IPv4 too, or alone without IPv6.

    Raises:
        NotPermitted: the port needs a privilege.
        ShadowMeshError: the port is taken, or the address is not one of this machine.
    """
    try:
        return _listen_on(address.host, address.port)
    except OSError as error:
        if address.host in ("", "::") and error.errno in _NO_IPV6:
            _log.warning(
                "no IPv6 on this machine, listening on IPv4 only",
                port=address.port,
                remedy="set websocket.listen_address to 0.0.0.0:PORT if that is meant",
            )
        else:
            raise _listen_problem(address, error) from None
    try:
        return _listen_on("0.0.0.0", address.port)
    except OSError as error:
        raise _listen_problem(address, error) from None


def _addresses(host: str, port: int) -> list[Any]:
    # AI_PASSIVE and an empty name: the unspecified address. The first answer is the resolver's.
    return gevent.socket.getaddrinfo(
        host or "::", port, type=gevent.socket.SOCK_STREAM, flags=gevent.socket.AI_PASSIVE
    )


def _listen_on(host: str, port: int) -> gevent.socket.socket:
    family, kind, protocol, _, sockaddr = _addresses(host, port)[0]
    sock = gevent.socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEADDR, 1)
        if family == gevent.socket.AF_INET6:
            # The system's default (net.ipv6.bindv6only) must not decide whether IPv4 works.
            sock.setsockopt(gevent.socket.IPPROTO_IPV6, gevent.socket.IPV6_V6ONLY, 0)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_problem(address: HostPort, error: OSError) -> ShadowMeshError:
    text = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        return ShadowMeshError(
            f"{text}: port {address.port} is taken; stop the program that"
            f" `ss -ltnp 'sport = :{address.port}'` shows, or set websocket.listen_address"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(
            f"{text}: not permitted; set websocket.listen_address to a port above 1023, or give"
            " the daemon CAP_NET_BIND_SERVICE"
        )
    return ShadowMeshError(
        f"{text}: {error.strerror or error}; set websocket.listen_address to an address of this"
        " machine, or to [::]:9001 for all"
    )
