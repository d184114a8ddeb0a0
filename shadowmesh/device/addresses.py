"""Which addresses this host has, and when that changes.

Owns: the choice of interfaces whose addresses a peer may be told, and the watch for changes. Does
not know: what the addresses are used for.

What the tunnel's own device carries is never a path to the peer: the tunnel would run through
itself. The same holds for whatever is stacked on it, and for a bridge that has no other port.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Final

import gevent

from shadowmesh.base import log
from shadowmesh.device.netlink import Netlink
from shadowmesh.device.underlay import Stack, plain, zone_of
from shadowmesh.wire.control import Address

#: changes come in bursts (link, then address, then routes): wait for this much quiet ...
QUIET_S: Final = 0.3
#: ... but not longer than this
PATIENCE_S: Final = 2.0

# linux/rtnetlink.h: link, IPv4 and IPv6 addresses and routes
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RT_TABLE_LOCAL: Final = 255
_RTM_F_CLONED: Final = 0x200
_RTA_OIF: Final = 4
_HEADER: Final = struct.Struct("=IHHII")
#: family, destination bits, source bits, tos, table, protocol, scope, type, flags
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_READ_BYTES: Final = 65_536
#: any port will do: nothing is sent
_NO_PORT: Final = 9

Network = IPv4Network | IPv6Network

_log = log.get("network")


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """A look at the host's interfaces.

    Attributes:
        addresses: of interfaces that are up, in the kernel's order, without the tunnel's.
        tunnel_links: indices of the tunnel's device, of what is stacked on it and of its bridge.
        mtus: bytes, by address.
        held: every address of this host, also of interfaces that are down.
    """

    addresses: tuple[Address, ...] = ()
    tunnel_links: frozenset[int] = frozenset()
    mtus: tuple[tuple[Address, int], ...] = ()
    held: frozenset[Address] = frozenset()

    def mtu_of(self, address: Address) -> int | None:
        """Return the MTU of the interface that has this address."""
        return dict(self.mtus).get(address)


def look(tunnel_device: str | None) -> HostNetwork:
    """Return what the kernel says now; empty when it says nothing.

    Args:
        tunnel_device: name of the tunnel's TAP, None while there is none.
    """
    try:
        with Netlink() as netlink:
            links = {link.index: link for link in netlink.links()}
            held = netlink.addresses()
            stack = Stack(list(links.values()), tunnel_device, lambda to: netlink.route(to).index)
            only = frozenset(index for index in links if stack.only_tunnel(index))
    except OSError as error:
        _log.limited(60).warning(
            "the host's addresses cannot be read",
            cause=error,
            remedy="let the service use AF_NETLINK (RestrictAddressFamilies=)",
        )
        return HostNetwork()
    tap = next((link for link in links.values() if link.name == tunnel_device), None)
    ours = only if tap is None else only | frozenset({tap.index, tap.master} - {0})
    usable = [
        (interface.ip, links[index].mtu)
        for index, interface in held
        if index in links and index not in only and links[index].up
        if not interface.ip.is_loopback and not interface.ip.is_link_local
    ]
    return HostNetwork(
        addresses=tuple(address for address, _ in usable),
        tunnel_links=ours,
        mtus=tuple(usable),
        held=frozenset(interface.ip for _, interface in held),
    )


def networks(tunnel_device: str) -> tuple[tuple[str, Network], ...]:
    """Return the networks that this host has addresses in, each with its interface.

    Without loopback, link-local addresses and those of the tunnel's device. Empty when the kernel
    says nothing.
    """
    try:
        with Netlink() as netlink:
            names = {link.index: link.name for link in netlink.links()}
            held = netlink.addresses()
    except OSError as error:
        _log.limited(60).warning(
            "the host's networks cannot be read",
            cause=error,
            remedy="let the service use AF_NETLINK (RestrictAddressFamilies=)",
        )
        return ()
    return tuple(
        (names[index], interface.network)
        for index, interface in held
        if names.get(index, tunnel_device) != tunnel_device
        if not interface.ip.is_loopback and not interface.ip.is_link_local
    )


def source_address(to: Address) -> Address | None:
    """Return the address that this host would send from to reach `to`; None without a route.

    One that is link-local has its zone, as a number.
    """
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            way = (
                (plain(to), _NO_PORT) if to.version == 4 else (plain(to), _NO_PORT, 0, zone_of(to))
            )
            probe.connect(way)  # asks for a route, sends nothing
            host, *_, scope = probe.getsockname()
            zoned = to.version == 6 and to.is_link_local
            return ip_address(f"{host}%{scope}" if zoned else host)
    except OSError:
        return None


class NetworkWatch:
    """Calls back when links, addresses or routes of this host changed, bursts counted as one.

    Args:
        tunnel_device: gives the name of the tunnel's device, whose changes are our own.
        on_change: called in the watch's greenlet.
    """

    def __init__(
        self, tunnel_device: Callable[[], str | None], on_change: Callable[[], None]
    ) -> None:
        self._tunnel_device = tunnel_device
        self._on_change = on_change
        self._known = look(tunnel_device())
        #: changes have come that `_known` may not have yet
        self._moving = False
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        try:
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket.close()
            raise
        self._greenlet = gevent.spawn(self._run)

    def host(self) -> HostNetwork:
        """Return what `look` would, without asking the kernel unless something is changing."""
        return look(self._tunnel_device()) if self._moving else self._known

    def close(self) -> None:
        """Stop watching."""
        self._greenlet.kill()
        self._socket.close()

    def _run(self) -> None:
        """Wait for changes and tell of them; ends when killed by close()."""
        hub = gevent.get_hub()
        watcher = hub.loop.io(self._socket.fileno(), 1)
        try:
            while True:
                hub.wait(watcher)
                self._moving = True
                rerouted = self._drain()
                began = time.monotonic()
                while time.monotonic() < began + PATIENCE_S and _comes_soon(watcher):
                    rerouted |= self._drain()
                self._compare(rerouted)
        finally:
            self._moving = True
            watcher.close()

    def _drain(self) -> set[int]:
        """Read what came; return the interfaces whose routes changed, 0 for one not named."""
        rerouted: set[int] = set()
        while True:
            try:
                rerouted |= rerouted_links(self._socket.recv(_READ_BYTES))
            except BlockingIOError:
                return rerouted
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                rerouted.add(0)  # something was missed, so look at everything

    def _compare(self, rerouted: set[int]) -> None:
        # Messages also tell of what stays the same (a router's advertisement renews an address)
        # and of what we do ourselves to the TAP.
        before, self._known = self._known, look(self._tunnel_device())
        self._moving = False
        ours = before.tunnel_links | self._known.tunnel_links
        if set(before.mtus) != set(self._known.mtus) or rerouted - ours:
            _log.info("the network of this host changed", addresses=self._known.addresses)
            self._on_change()


def _comes_soon(watcher: Any) -> bool:
    """Wait for the watcher, at most QUIET_S; tell whether it fired."""
    timer = gevent.Timeout.start_new(QUIET_S)
    try:
        gevent.get_hub().wait(watcher)
        return True
    except gevent.Timeout as timeout:
        if timeout is not timer:
            raise
        return False
    finally:
        timer.close()


def rerouted_links(datagram: bytes) -> set[int]:
    """Return the interfaces of the routes in a netlink datagram, 0 for one without.

    Routes of the local table (they follow addresses) and caches are passed over.
    """
    found: set[int] = set()
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            break
        end = min(len(datagram), offset + length)
        start = offset + _HEADER.size
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE) and start + _RTMSG.size <= end:
            route = _RTMSG.unpack_from(datagram, start)
            if route[4] != _RT_TABLE_LOCAL and not route[8] & _RTM_F_CLONED:
                found.add(_outgoing_link(datagram, start + _RTMSG.size, end))
        offset += -(-length // 4) * 4
    return found


def _outgoing_link(datagram: bytes, offset: int, end: int) -> int:
    while offset + _ATTRIBUTE.size <= end:
        size, kind = _ATTRIBUTE.unpack_from(datagram, offset)
        if size < _ATTRIBUTE.size:
            break
        if kind == _RTA_OIF:
            return int.from_bytes(datagram[offset + 4 : offset + 8], sys.byteorder)
        offset += -(-size // 4) * 4
    return 0
