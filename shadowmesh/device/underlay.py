"""Whether a packet of ours would leave this host through the tunnel that it belongs to.

Owns: the question to the kernel by which interface a packet to an address leaves, what that
interface is stacked on at every level, the answers of which one look is enough until something
changes, and the count of what was refused for it. Does not know: what the packet is, sockets.

::

    198.51.100.2 --RTM_GETROUTE--> mv0 --IFLA_LINK--> tap0      inside: never a path to the peer
    203.0.113.9  --RTM_GETROUTE--> br0 --ports--> eth0, tap0    the bridge knows behind which port
                                                                the next hop is; if not, it may be
    2001:db8::2  --RTM_GETROUTE--> eth0                         outside

A packet of the tunnel's own that goes into the tunnel is wrapped and sent again, for ever. What
cannot be known here (a bridge that has not seen the next hop, a veth into another namespace) is let
through: the data plane recognises its own datagrams on the device and drops them (`own_datagram`).

The kernel tells of changes on a socket of ours that is looked at before each answer, so an answer is
never older than the last change; it costs one system call as long as there is none. Who wants to
act on a change listens: the loop wakes for that socket, and for nothing while the host stays as it is.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import gevent

from shadowmesh.base import log
from shadowmesh.device.netlink import Address, Interface, Link, Netlink, Route

# linux/rtnetlink.h: links, addresses, routes and rules of IPv4 and IPv6
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18
_READ_BYTES: Final = 65_536
#: where a bridge has seen a MAC is told to nobody that we listen to
_BRIDGE_LIFE_S: Final = 1.0
#: changes come in bursts: who listens is told of the first at once, of the next not before
_SPACING_S: Final = 0.1
#: and where the kernel does not tell, so often that there may have been one
_GUESS_S: Final = 1.0
#: gevent's name for it
_WAIT_READ: Final = 1
#: addresses of which the answer is kept; peers and STUN servers are fewer
_MAX_ANSWERS: Final = 2048

_log = log.get("network")


@dataclass(frozen=True, slots=True)
class Way:
    """How packets to an address leave.

    Attributes:
        out: name of the interface.
        gateway: next hop; None when the address is on the link itself.
        inside: the tunnel's device as the route meets it, such as "tap0" or "mv0 on tap0"; None
            when they do not go into the tunnel, or when that cannot be known.
        detour: the route that would lead around the tunnel, as `ip route add` takes it; None when
            `inside` is, and with words to replace when it is not known.
    """

    out: str
    gateway: Address | None = None
    inside: str | None = None
    detour: str | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    way: Way | None
    until: float | None


class Underlay:
    """Asks the kernel for ways, and keeps the answers until something changes.

    Attributes:
        refused: how often something was not done because it would have gone into the tunnel, by
            what it was ("probe", "dial", ...).
    """

    def __init__(self, tunnel_device: Callable[[], str | None], *, mark: int = 0) -> None:
        """Args: tunnel_device: gives the name of the TAP; mark: SO_MARK of our sockets."""
        self.refused: Counter[str] = Counter()
        self._tunnel_device = tunnel_device
        self._mark = mark
        self._answers: dict[Address, _Answer] = {}
        self._outside: dict[Address, Way] = {}
        self._generation = 0
        #: when the first of the answers may be wrong although nothing was told
        self._until: float | None = None
        self._socket: socket.socket | None = None
        self._listeners: list[Callable[[], None]] = []
        #: of the loop: for the socket; for the time between two looks at it
        self._readable: Any = None
        self._pause: Any = None

    def close(self) -> None:
        """Let go of the socket; the next question opens another. Idempotent."""
        self._stop_watching()
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def listen(self, on_change: Callable[[], None]) -> None:
        """Have `on_change` called when `generation` may be another one, until `forget`.

        By the loop or by who asks; it must not wait, nor ask anything here.
        """
        self._listeners.append(on_change)
        self.generation  # noqa: B018 - opens the socket
        self._watch()

    def forget(self, on_change: Callable[[], None]) -> None:
        """Undo `listen`. Idempotent."""
        if on_change in self._listeners:
            self._listeners.remove(on_change)
        if not self._listeners:
            self._stop_watching()

    @property
    def generation(self) -> int:
        """A number that is another one after links, addresses, routes or rules may have changed.

        Where a bridge has seen a MAC may change unheard: then it is another one each second.
        """
        if self._changed() or (self._until is not None and time.monotonic() >= self._until):
            self._generation += 1
            self._answers.clear()
            self._until = None
            if self._socket is not None:  # else each question would be taken for a change
                self._tell()
        return self._generation

    def way(self, to: Address) -> Way | None:
        """Return how packets to an address leave now; None when there is no route."""
        self.generation  # noqa: B018 - forgets what is no longer true
        known = self._answers.get(to)
        if known is not None:
            return known.way
        answer = self._ask(to)
        if self._socket is not None:
            while len(self._answers) >= _MAX_ANSWERS:
                del self._answers[next(iter(self._answers))]
            self._answers[to] = answer
            if answer.until is not None and self._until is None:
                self._until = answer.until
        way = answer.way
        if way is not None and way.inside is None:
            while len(self._outside) >= _MAX_ANSWERS:
                del self._outside[next(iter(self._outside))]
            self._outside[to] = way
        return way

    def inside(self, to: Address) -> str | None:
        """Say why packets to an address would go into the tunnel itself; None when they do not."""
        way = self.way(to)
        if way is None or way.inside is None:
            return None
        return f"{plain(to)} leads into the tunnel itself ({way.inside})"

    def refusal(self, to: Address, what: str) -> str | None:
        """As `inside`, for something that is not done then: counts it."""
        why = self.inside(to)
        if why is not None:
            self.refused[what] += 1
        return why

    def refuses_dial(self, host: str) -> str | None:
        """Say why an IP address must not be dialled, and what to do; None when it may be."""
        to = ip_address(host)
        why = self.refusal(to, "dial")
        return None if why is None else f"{why}; {self.advice(to)}"

    def advice(self, to: Address) -> str | None:
        """Return the command that leads packets to an address around the tunnel; None: none is."""
        way = self.way(to)
        return None if way is None or way.detour is None else f"ip route add {way.detour}"

    # --- listening ----------------------------------------------------------------------------

    def _tell(self) -> None:
        for on_change in tuple(self._listeners):
            on_change()

    def _watch(self) -> None:
        """Wait for the socket, or for the time to guess that something has changed."""
        if not self._listeners or self._readable is not None or self._pause is not None:
            return
        loop = gevent.get_hub().loop
        if self._socket is None:
            self._pause = loop.timer(_GUESS_S)
            self._pause.start(self._guess)
        else:
            self._readable = loop.io(self._socket.fileno(), _WAIT_READ)
            self._readable.start(self._heard)

    def _heard(self) -> None:
        self._stop_watching()
        self._pause = gevent.get_hub().loop.timer(_SPACING_S)
        self._pause.start(self._rested)
        self.generation  # noqa: B018 - reads what came and tells of it

    def _guess(self) -> None:
        self._rested()
        self._tell()

    def _rested(self) -> None:
        self._stop_watching()
        self._watch()

    def _stop_watching(self) -> None:
        for watcher in (self._readable, self._pause):
            if watcher is not None:
                watcher.close()
        self._readable = self._pause = None

    # --- asking -------------------------------------------------------------------------------

    def _changed(self) -> bool:
        if self._socket is None:
            self._socket = _events()
            self._watch()
            return True
        changed = False
        while True:
            try:
                self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            changed = True

    def _ask(self, to: Address) -> _Answer:
        try:
            with Netlink() as netlink:
                return self._look(netlink, to)
        except OSError as error:
            if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES):
                _log.limited(60).debug("no way is known", to=to, cause=error)
            return _Answer(None, None)

    def _look(self, netlink: Netlink, to: Address) -> _Answer:
        route = netlink.route(to, out=zone_of(to), mark=self._mark)
        stack = Stack(netlink.links(), self._tunnel_device(), lambda a: netlink.route(a).index)
        out = stack.name(route.index)
        chain = stack.chain(route.index)
        if route.local or chain is None:
            return _Answer(Way(out, route.gateway), None)
        until = None
        if not stack.only_tunnel(route.index):
            until = time.monotonic() + _BRIDGE_LIFE_S
            port = _port_of(netlink, route.index, route.gateway or to)
            if port is None or not stack.only_tunnel(port):
                return _Answer(Way(out, route.gateway), until)
        return _Answer(
            Way(out, route.gateway, chain, self._detour(netlink, stack, to)),
            until,
        )

    def _detour(self, netlink: Netlink, stack: Stack, to: Address) -> str:
        """Return the route that leads around: the last one known, or one of another interface."""
        host = plain(to)
        before = self._outside.get(to)
        if before is not None and stack.is_up(before.out):
            return f"{host} {_by(before.gateway, before.out)}"
        held = netlink.addresses()
        for link in stack.others():
            if not any(i == link.index and a.version == to.version for i, a in held):
                continue
            try:
                route = netlink.route(to, out=link.index, mark=self._mark)
            except OSError:
                continue
            if route.index == link.index and _is_real(route, link, to, held):
                return f"{host} {_by(route.gateway, link.name)}"
        return f"{host} via GATEWAY dev INTERFACE"


def _events() -> socket.socket | None:
    """Return a socket that hears of changes; None where that is not allowed: then ask each time."""
    try:
        sock = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
    except OSError as error:
        _log.limited(600).info("changes of routes are not told", cause=error)
        return None
    try:
        sock.bind((0, _GROUPS))
    except OSError as error:
        _log.limited(600).info("changes of routes are not told", cause=error)
        sock.close()
        return None
    return sock


def _port_of(netlink: Netlink, bridge: int, hop: Address) -> int | None:
    """Return the port of a bridge behind which the next hop was seen; None when it was not."""
    mac = next((n.mac for n in netlink.neighbours() if (n.index, n.address) == (bridge, hop)), b"")
    if not any(mac):
        return None
    entries = netlink.bridge_entries()
    return next((e.index for e in entries if e.mac == mac and e.master == bridge), None)


def _is_real(route: Route, link: Link, to: Address, held: list[tuple[int, Interface]]) -> bool:
    """Whether a route out of a given interface is one, not IPv4's guess that all are neighbours."""
    if route.gateway is not None:
        return True
    return any(index == link.index and to in interface.network for index, interface in held)


def _by(gateway: Address | None, interface: str) -> str:
    return f"dev {interface}" if gateway is None else f"via {gateway} dev {interface}"


def plain(address: Address) -> str:
    """Return an address without its zone, which `ip route` does not take."""
    return str(address).partition("%")[0]


def zone_of(address: Address) -> int:
    """Return the index of the interface that an IPv6 address names; 0 for none."""
    zone = address.scope_id if isinstance(address, IPv6Address) else None
    if not zone:
        return 0
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        if zone.isdecimal():
            return int(zone)
        raise


class Stack:
    """The interfaces of this host as they are stacked, seen from the tunnel's device.

    Args:
        links: all of this namespace.
        device: name of the tunnel's TAP; None without one.
        leaves_by: gives the index of the interface by which packets to an address leave.
    """

    def __init__(
        self,
        links: list[Link],
        device: str | None,
        leaves_by: Callable[[Address], int],
    ) -> None:
        self._links = {link.index: link for link in links}
        self._tap = next((link.index for link in links if link.name == device), 0)
        self._leaves_by = leaves_by

    def name(self, index: int) -> str:
        """Return the name of an interface."""
        return self._links[index].name if index in self._links else f"interface {index}"

    def is_up(self, name: str) -> bool:
        """Whether there is an interface of this name, and it is up."""
        return any(link.name == name and link.up for link in self._links.values())

    def others(self) -> Iterator[Link]:
        """Give the interfaces that are up and lead nowhere near the tunnel."""
        for link in self._links.values():
            if link.up and link.name != "lo" and self.chain(link.index) is None:
                yield link

    def only_tunnel(self, index: int) -> bool:
        """Whether all that is sent on an interface goes into the tunnel."""
        return self._tap != 0 and self._exits(index) == {self._tap}

    def chain(self, index: int) -> str | None:
        """Return how an interface leads to the TAP, in words; None when it does not."""
        ways = {index: self.name(index)}
        waiting = deque([index])
        while waiting:
            at = waiting.popleft()
            if at == self._tap:
                return ways[at]
            for below, how in self._below(at):
                if below not in ways:
                    ways[below] = f"{ways[at]} {how} {self.name(below)}"
                    waiting.append(below)
        return None

    def _exits(self, index: int) -> set[int]:
        """Return the lowest interfaces by which what is sent on one may leave."""
        found: set[int] = set()
        seen: set[int] = set()
        waiting = [index]
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            below = [each for each, _ in self._below(at)]
            if at == self._tap or not below:
                found.add(at)
            else:
                waiting += below
        return found

    def _below(self, index: int) -> list[tuple[int, str]]:
        """Return what an interface hands its packets to, each with the word between the names."""
        link = self._links.get(index)
        if link is None or index == self._tap:
            return []
        # A bridge or a bond: what is sent on it leaves by those that have it as master.
        ports = [each for each in self._links.values() if each.master == index and each.up]
        if ports:
            return [(port.index, "with the port") for port in ports]
        if link.remote is not None and not link.remote.is_multicast:
            try:
                by = self._leaves_by(link.remote)
            except OSError:
                return []
            return [(by, f"to {link.remote} by")] if by in self._links else []
        if link.lower not in self._links or link.lower == index:
            return []
        other = self._links[link.lower]
        if link.kind != "veth":
            return [(other.index, "on")]
        # What a veth takes comes out of its other end: into a bridge, or up to this host again.
        return [(other.master, "to")] if other.master in self._links else []
