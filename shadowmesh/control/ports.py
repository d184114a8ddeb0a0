"""The ports of HTTP: bound, served, and proved to answer.

Owns: binding an address or a Unix socket for a WSGI application, asking our own API once. Does not
know: what the applications answer, the limits of a connection (`server`), when ports are opened.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import gevent.socket

from shadowmesh.base import log
from shadowmesh.base.errors import NotPermitted, ShadowMeshError
from shadowmesh.config import HostPort
from shadowmesh.control import api_socket
from shadowmesh.control.rights import GROUPS, rights_of_this_process
from shadowmesh.control.server import LimitedServer

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path
    from wsgiref.types import WSGIApplication

    from gevent.pywsgi import WSGIServer
    from gevent.socket import socket as Socket  # noqa: N812

_log = log.get("api")

#: our own control API has to answer within this, or the start has failed
API_START_TIMEOUT_S: Final = 10.0
#: running API requests get this long when the daemon stops
API_STOP_TIMEOUT_S: Final = 0.5


def listen(address: HostPort, key: str) -> Socket:
    """Bind a socket of TCP that listens; who connects waits until it is served.

    Raises:
        ShadowMeshError: the port is taken or the address is not this machine's.
    """
    family = gevent.socket.AF_INET6 if ":" in address.host else gevent.socket.AF_INET
    sock = gevent.socket.socket(family, gevent.socket.SOCK_STREAM)
    try:
        sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise _listen_problem(address, key, error) from None
    return sock


def address_of(listener: Socket) -> HostPort:
    """Return what was really bound: port 0 has become one that was free."""
    return HostPort(*listener.getsockname()[:2])


def serve(undo: ExitStack, listener: Socket, application: WSGIApplication) -> None:
    """Serve an application at a socket that listens until undone, which closes it."""
    server: WSGIServer = LimitedServer(listener, application)
    server.start()
    undo.callback(server.stop, API_STOP_TIMEOUT_S)


def serve_socket(undo: ExitStack, path: Path, application: WSGIApplication) -> None:
    """Serve an application on a Unix socket until undone, by the rights of who connects.

    Without it the API still answers on its port: what goes wrong is told in the log.
    """
    try:
        listener = api_socket.listen(path)
    except ShadowMeshError as error:
        _log.warning(
            "the control API has no Unix socket",
            cause=error,
            remedy="set daemon.api_socket to a path that fits; commands use the port meanwhile",
        )
        return
    undo.callback(listener.remove)
    server: WSGIServer = LimitedServer(listener.sock, application, rights_of_this_process())
    server.start()
    undo.callback(server.stop, API_STOP_TIMEOUT_S)
    _log.info("control API has a Unix socket", path=path, groups=sorted(GROUPS.values()))


def _listen_problem(address: HostPort, key: str, error: OSError) -> ShadowMeshError:
    text = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        return ShadowMeshError(
            f"{text}: port {address.port} is taken; stop the program that"
            f" `ss -ltnp 'sport = :{address.port}'` shows, or set {key} to another"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(f"{text}: not permitted; set {key} to a port above 1023")
    return ShadowMeshError(f"{text}: {error.strerror}; set {key} to an address of this machine")


def check_answer(api: HostPort) -> None:
    """Ask our own control API for its health, as any client does; whatever it says is an answer.

    Raises:
        ShadowMeshError: it does not speak HTTP within `API_START_TIMEOUT_S`.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(api.host, api.host)
    request = f"GET /health HTTP/1.0\r\nHost: localhost:{api.port}\r\n\r\n".encode("ascii")
    try:
        with gevent.socket.create_connection((host, api.port), API_START_TIMEOUT_S) as sock:
            sock.sendall(request)
            answer = sock.recv(16)
    except OSError as error:
        answer, cause = b"", error.strerror or str(error)
    else:
        cause = "what answers there speaks no HTTP"
    if not answer.startswith(b"HTTP/1."):
        raise ShadowMeshError(
            f"the control API on {api} does not answer: {cause}; is a firewall in the way of"
            " this machine's own addresses? see daemon.listen_address"
        )
