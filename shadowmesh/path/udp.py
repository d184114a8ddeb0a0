"""The UDP socket of the data path: opened once, for records of all sessions and for STUN.

Owns: the socket, its options and its place in the descriptor store, the greenlet that fetches what
the data plane's UDP thread has for the hub. Does not know: what records or STUN messages mean,
which address carries frames.

::

    socket <---> UDP thread, TAP thread (frames, nogil)
                   | udp_signals()
                   v
                 greenlet --+-- of a session ---> its receiver (`paths`)
                            +-- not a record ---> on_stun (`traversal`)
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import gevent

from shadowmesh.base import log
from shadowmesh.base.errors import DeviceError
from shadowmesh.device.fdstore import NO_STORE, UDP
from shadowmesh.wire.control import Endpoint

if TYPE_CHECKING:
    from shadowmesh._fastpath import DataPlane, Signal
    from shadowmesh.device.fdstore import FdStore

#: what a burst of trains needs; beyond net.core.rmem_max only with CAP_NET_ADMIN
BUFFER_BYTES: Final = 4 << 20

# linux/socket.h, udp.h, in.h, in6.h
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
#: DF is set and what ICMP says about the path is not believed (protocol section 6)
_PMTUDISC_PROBE: Final = 3

#: inner type, body (cut at 1536 bytes), its real size, whence, the local key id, when (boot time)
Receiver = Callable[[int, bytes, int, Endpoint, int, float], None]

_log = log.get("udp")


def open_socket(port: int) -> socket.socket:
    """Return a bound, non-blocking UDP socket for IPv6 and IPv4, or for IPv4 alone.

    Args:
        port: the one wanted, 0 for any. When it is taken any other is used: the port is told to
            the peer, so nothing depends on its number but a firewall rule of the operator's.
    Raises:
        DeviceError: there is no UDP here at all.
    """
    failure: OSError | None = None
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            return _open(family, port)
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRINUSE or not port:
                continue
        try:
            return _open(family, 0)
        except OSError as error:
            failure = error
    raise DeviceError(
        f"no UDP socket can be opened: {failure.strerror if failure else 'no address family'};"
        " set nat.enabled: false to go without",
        (failure.errno if failure else None) or 0,
    )


def _open(family: socket.AddressFamily, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        _set_options(sock)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    except OSError:
        sock.close()
        raise
    return sock


def _set_options(sock: socket.socket) -> None:
    """Set what may be set at any time."""
    sock.setblocking(False)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    _enlarge(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
    _enlarge(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
    try:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
    except OSError as error:
        # Before Linux 5.0: datagrams come one by one, which is slower and no less right.
        _log.info("this kernel joins no datagrams (UDP_GRO)", cause=error)


def _enlarge(sock: socket.socket, forced: int, plain: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)


class UdpPort:
    """The data path's socket, attached to a data plane from its making to `close`.

    Attributes:
        family: AF_INET6 for a dual-stack socket, or AF_INET.
        port: the local port.
        on_stun: takes datagrams that are not records; None: they are dropped.
    """

    def __init__(self, plane: DataPlane, port: int, store: FdStore = NO_STORE) -> None:
        """Open, or take over the socket of the last run, and attach.

        Raises:
            DeviceError: no socket or no thread.
        """
        self._plane = plane
        self._store = store
        self._socket = self._take_over(port) or open_socket(port)
        if "gro" in plane.without:
            self._socket.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 0)
        self.family = self._socket.family
        self.port: int = self._socket.getsockname()[1]
        if port not in (0, self.port):
            _log.warning(
                "UDP port is taken, using another",
                wanted=port,
                used=self.port,
                remedy=f"stop what uses it (`ss -lunp 'sport = :{port}'`), or set nat.udp_port",
            )
        self.on_stun: Callable[[bytes, Endpoint], None] | None = None
        self._receivers: dict[int, Receiver] = {}
        try:
            plane.attach_udp(self._socket.fileno(), self.family)
        except DeviceError:
            self._socket.close()
            self._store.forget(UDP)
            raise
        self._store.keep(UDP, self._socket.fileno())
        self._greenlet = gevent.spawn(self._fetch)

    def close(self) -> None:
        """Detach and close; sessions go back to WSS."""
        self._greenlet.kill()
        self._plane.detach_udp()
        self._socket.close()
        self._store.forget(UDP)

    def _take_over(self, port: int) -> socket.socket | None:
        """Return the socket of the last run if it is what open_socket() would make now."""
        fd = self._store.take(UDP)
        if fd is None:
            return None
        sock = socket.socket(fileno=fd)
        try:
            if sock.type == socket.SOCK_DGRAM and port in (0, sock.getsockname()[1]):
                _set_options(sock)
                return sock
            cause = "it is another kind of socket, or has another port"
        except (OSError, IndexError) as error:
            cause = str(error)
        _log.info("the UDP socket of the last run does not fit, opening another", cause=cause)
        sock.close()
        self._store.forget(UDP)
        return None

    def send(self, data: bytes, to: Endpoint) -> int:
        """Send a datagram that is not a record; return 0 or an errno."""
        if not self.reaches(to):
            return errno.EAFNOSUPPORT
        return self._plane.send_datagram(data, str(to.address), to.port)

    def reaches(self, to: Endpoint) -> bool:
        """Tell whether the socket's family has such addresses."""
        return self.family == socket.AF_INET6 or to.address.version == 4

    def listen(self, session_number: int, receiver: Receiver) -> None:
        """Give the signals of a session to `receiver` until `forget`."""
        self._receivers[session_number] = receiver

    def forget(self, session_number: int, receiver: Receiver) -> None:
        """Undo `listen`, unless another has listened to the session since."""
        if self._receivers.get(session_number) == receiver:
            del self._receivers[session_number]

    def _fetch(self) -> None:
        """Hand out signals as they come; ends when killed by close()."""
        hub = gevent.get_hub()
        watcher = hub.loop.io(self._plane.udp_event_fd, 1)
        try:
            while True:
                hub.wait(watcher)
                for signal in self._plane.udp_signals():
                    self._hand_out(signal)
        finally:
            watcher.close()

    def _hand_out(self, signal: Signal) -> None:
        number, key_id, inner_type, body, size, (host, port), came_at = signal
        source = Endpoint(ip_address(host), port)
        try:
            if number is None:
                if self.on_stun is not None:
                    self.on_stun(body, source)
            elif number in self._receivers:
                self._receivers[number](inner_type, body, size, source, key_id, came_at)
        except Exception:  # noqa: BLE001 - the socket goes on for everybody, whatever came
            _log.limited(60).exception("a datagram could not be dealt with", source=source)
