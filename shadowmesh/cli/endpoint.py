"""Where the control API of a daemon is, and that it is the daemon who is there.

Owns: the two kinds of address, TCP and Unix socket, how each is connected, whom a command believes.
Does not know: HTTP, which one is used (`settings`).

While the daemon is down anybody may listen on its port. So over TCP within this machine a token is
sent only when it is proved that the listener is somebody who may know it: its owner is looked up
before and after connecting, and must be the same, for only then the connection is to it. Over a Unix
socket no token is sent, and the kernel says who listens.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from shadowmesh.base.constants import SERVICE_USER
from shadowmesh.base.errors import NotPermitted
from shadowmesh.cli.http10 import parse_url

if TYPE_CHECKING:
    from shadowmesh.device.sock_diag import Listener

_UNIX: Final = "unix:"
#: linux/socket.h: pid, uid, gid
_UCRED: Final = struct.Struct("=iII")


@dataclass(frozen=True, slots=True)
class Tcp:
    """An API at ``http://host:port``.

    Attributes:
        trusted: who may listen there when a token is sent, as user ids.
    """

    needs_token: ClassVar[bool] = True
    host: str
    port: int
    trusted: frozenset[int]

    @property
    def url(self) -> str:
        return f"http://{self.name}"

    @property
    def name(self) -> str:
        """What stands in the header Host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect(self, timeout_s: float, *, secret: bool) -> socket.socket:
        """Return a connection.

        Args:
            secret: a token will be sent.
        Raises:
            OSError: nobody listens there, or does not answer.
            NotPermitted: who listens there is not to know the token.
        """
        # Not at the top: most commands use the Unix socket.
        from shadowmesh.device.sock_diag import listeners_on

        try:
            before = listeners_on(self.port) if secret else frozenset()
        except OSError:
            before = frozenset()  # then nobody is found there
        connection = socket.create_connection((self.host, self.port), timeout_s)
        try:
            if secret and _is_local(connection):
                self._prove(connection.getpeername()[0], before)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prove(self, host: str, before: frozenset[Listener]) -> None:
        from shadowmesh.device.sock_diag import listeners_on

        try:
            after = listeners_on(self.port)
        except OSError as error:
            raise NotPermitted(
                f"who listens at {self.url} cannot be told ({error.strerror}), so the token was"
                " not sent; use the Unix socket, daemon.api_socket"
            ) from None
        address = _plain(host)
        owners = {
            one.uid
            for one in after
            if one.address.is_unspecified or _plain(str(one.address)) == address
        }
        strangers = sorted(owners - self.trusted)
        if strangers:
            raise NotPermitted(
                f"the program that listens at {self.url} belongs to {_user(strangers[0])} and not"
                " to the daemon, so the token was not sent;"
                f" `ss -ltnp 'sport = :{self.port}'` as root shows what it is"
            )
        if not owners or before != after:
            raise NotPermitted(
                f"who listens at {self.url} has changed meanwhile or cannot be told, so the token"
                " was not sent; try again"
            )


@dataclass(frozen=True, slots=True)
class Unix:
    """An API at a Unix socket. `trusted` are those who may listen there."""

    needs_token: ClassVar[bool] = False
    name: ClassVar[str] = "localhost"
    path: Path
    trusted: frozenset[int]

    @property
    def url(self) -> str:
        return f"{_UNIX}{self.path}"

    def connect(self, timeout_s: float, *, secret: bool) -> socket.socket:
        """Return a connection.

        Raises:
            OSError: nobody listens there.
            NotPermitted: somebody does who is not to be believed.
        """
        del secret  # it is the same for every request
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(str(self.path))
            self._prove(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prove(self, connection: socket.socket) -> None:
        _pid, uid, _gid = _UCRED.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        # Whoever owns the directory decides who listens there.
        if uid not in self.trusted | {self.path.parent.stat().st_uid}:
            raise NotPermitted(
                f"the program that listens at {self.path} belongs to {_user(uid)} and not to the"
                " daemon; nothing was asked of it"
            )


Endpoint = Tcp | Unix


def parse(url: str, *trusted: int) -> Endpoint:
    """Return the endpoint of ``http://host:port`` or ``unix:/path``.

    Args:
        trusted: users who may be the daemon, beside root, the service's and this one.
    Raises:
        BadAddress: it is neither.
    """
    users = frozenset({0, os.geteuid(), *_service_user(), *trusted})
    if url.startswith(f"{_UNIX}/"):
        return Unix(Path(url.removeprefix(_UNIX)), users)
    host, port = parse_url(url)
    return Tcp(host, port, users)


def _service_user() -> tuple[int, ...]:
    try:
        return (pwd.getpwnam(SERVICE_USER).pw_uid,)
    except KeyError:
        return ()


def _is_local(connection: socket.socket) -> bool:
    """Whether the other end is on this machine."""
    own, other = connection.getsockname()[0], connection.getpeername()[0]
    return own == other or _plain(other).is_loopback


def _plain(host: str) -> IPv4Address | IPv6Address:
    """Return an address; one of IPv4 in IPv6's clothes is of IPv4."""
    address = ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
