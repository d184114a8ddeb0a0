"""NATs and a network between them, in one process and in virtual time.

Owns: the slow, obvious model of a NAT as RFC 4787 describes it (mapping x filtering), and a
network of hosts behind such boxes in which a test decides how fast time passes. Does not know:
what the datagrams mean; a datagram is any object with a size.

::

    host 192.168.1.2 - NatBox 198.51.100.1 --+-- NatBox 198.51.100.2 - host 192.168.2.2
                                             +-- public host 198.51.100.10
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from itertools import count
from typing import Any

from shadowmesh.wire.control import Address, Endpoint


class Depends(Enum):
    """On what a mapping or a filter depends. Source: RFC 4787, sections 4.1 and 5."""

    NOTHING = 0
    ADDRESS = 1
    ADDRESS_AND_PORT = 2

    def part(self, remote: Endpoint) -> object:
        """Return what of a remote address counts."""
        return (None, remote.address, remote)[self.value]


@dataclass
class _Mapping:
    inside: Endpoint
    port: int
    last_used: float
    #: what was sent to, reduced to what the filter looks at, and when
    allowed: dict[object, float] = field(default_factory=dict)


class NatBox:
    """One NAT with a public address.

    Attributes:
        preserve_port: a first mapping keeps the inside port when that is free.
        timeout_s: a mapping and a hole live this long after the last datagram from the inside.
        rude: as a Linux router without a rule that drops what nobody asked for: a stranger's
            datagram to a public port takes the pair, and a later mapping that wants the same
            pair gets another port.
        blocked: no UDP passes in either direction.
    """

    def __init__(
        self,
        public: str,
        mapping: Depends = Depends.NOTHING,
        filtering: Depends = Depends.ADDRESS_AND_PORT,
        *,
        preserve_port: bool = True,
        timeout_s: float = 120.0,
        rude: bool = False,
        hairpin: bool = False,
    ) -> None:
        self.public = ip_address(public)
        self.mapping = mapping
        self.filtering = filtering
        self.preserve_port = preserve_port
        self.timeout_s = timeout_s
        self.rude = rude
        self.hairpin = hairpin
        self.blocked = False
        self._mappings: dict[tuple[Endpoint, object], _Mapping] = {}
        self._taken: dict[tuple[Endpoint, int], float] = {}
        self._next_port = 50000

    def outbound(self, inside: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        """Return the public source of a datagram from the inside; None when it is dropped."""
        if self.blocked:
            return None
        self._expire(now)
        key = (inside, self.mapping.part(remote))
        if self.rude and (remote, inside.port) in self._taken:
            key = (inside, remote)
        mapping = self._mappings.get(key)
        if mapping is None:
            mapping = _Mapping(inside, self._choose_port(inside, remote), now)
            self._mappings[key] = mapping
        mapping.last_used = now
        mapping.allowed[self.filtering.part(remote)] = now
        return Endpoint(self.public, mapping.port)

    def inbound(self, remote: Endpoint, port: int, now: float) -> Endpoint | None:
        """Return the inside destination of a datagram to a public port; None when dropped."""
        if self.blocked:
            return None
        self._expire(now)
        for mapping in self._mappings.values():
            if mapping.port == port and self.filtering.part(remote) in mapping.allowed:
                return mapping.inside
        if self.rude:
            self._taken[remote, port] = now
        return None

    def forget(self) -> None:
        """Lose every mapping, as `conntrack -F` does."""
        self._mappings.clear()
        self._taken.clear()

    def move(self, public: str) -> None:
        """Get another public address, as after a reconnect of the line."""
        self.public = ip_address(public)
        self.forget()

    def _choose_port(self, inside: Endpoint, remote: Endpoint) -> int:
        taken = {mapping.port for mapping in self._mappings.values()}
        wanted = inside.port
        if self.preserve_port and wanted not in taken and (remote, wanted) not in self._taken:
            return wanted
        while self._next_port in taken:
            self._next_port += 1
        self._next_port += 1
        return self._next_port - 1

    def _expire(self, now: float) -> None:
        oldest = now - self.timeout_s
        self._mappings = {k: m for k, m in self._mappings.items() if m.last_used > oldest}
        for mapping in self._mappings.values():
            mapping.allowed = {k: at for k, at in mapping.allowed.items() if at > oldest}
        self._taken = {k: at for k, at in self._taken.items() if at > now - 30.0}


#: the kinds of netlab.md, by the names of its table
KINDS: dict[str, tuple[Depends, Depends]] = {
    "full": (Depends.NOTHING, Depends.NOTHING),
    "addr-restr": (Depends.NOTHING, Depends.ADDRESS),
    "port-restr": (Depends.NOTHING, Depends.ADDRESS_AND_PORT),
    "symmetric": (Depends.ADDRESS_AND_PORT, Depends.ADDRESS_AND_PORT),
}


def make_box(kind: str, public: str, **options: Any) -> NatBox:
    """Return the box of one of the `KINDS`; a symmetric one does not preserve ports."""
    mapping, filtering = KINDS[kind]
    return NatBox(public, mapping, filtering, preserve_port=kind != "symmetric", **options)


@dataclass
class Host:
    """A machine with one UDP socket.

    `receive` is called with (payload, size, source, now, local) for each datagram.
    """

    endpoint: Endpoint
    box: NatBox | None
    receive: Callable[[Any, int, Endpoint, float, Endpoint], None]


class Network:
    """Hosts, boxes, and a clock that goes as fast as the test wants.

    Attributes:
        now: virtual seconds.
        delay_s: one way between any two hosts behind different boxes; 0.1 ms inside one LAN.
        mtu: datagrams (IP headers included) above this size are lost, silently.
        drop: called with (source host, destination endpoint, size); True loses the datagram.
        lost: how many datagrams did not arrive, for whatever reason.
    """

    def __init__(self, delay_s: float = 0.01) -> None:
        self.now = 0.0
        self.delay_s = delay_s
        self.mtu = 65535
        self.drop: Callable[[Host, Endpoint, int], bool] = lambda *_: False
        self.lost = 0
        self._hosts: list[Host] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def add(self, host: Host) -> Host:
        self._hosts.append(host)
        return host

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Call action when the clock reaches time."""
        heapq.heappush(self._queue, (time, next(self._order), action))

    def run_until(self, time: float) -> None:
        """Let everything happen that happens up to time."""
        while self._queue and self._queue[0][0] <= time:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = time

    def send(
        self,
        host: Host,
        payload: Any,
        size: int,
        to: Endpoint,
        local: Endpoint | None = None,
    ) -> None:
        """Send `size` bytes of UDP payload from a host (from its address `local`)."""
        local = local or host.endpoint
        headers = 28 if to.address.version == 4 else 48
        if size + headers > self.mtu or self.drop(host, to, size):
            self.lost += 1
            return
        neighbour = self._find(lambda other: other.endpoint == to and other.box is host.box)
        if neighbour is not None and host.box is not None:
            self._deliver(neighbour, payload, size, local, to, 0.0001)
            return
        source: Endpoint | None = local
        if host.box is not None:
            source = host.box.outbound(local, to, self.now)
        if source is None:
            self.lost += 1
            return
        self.at(self.now + self.delay_s, lambda: self._arrive(host, payload, size, source, to))

    def _arrive(
        self, sender: Host, payload: Any, size: int, source: Endpoint, to: Endpoint
    ) -> None:
        direct = self._find(lambda host: host.box is None and host.endpoint == to)
        if direct is not None:
            self._deliver(direct, payload, size, source, to, 0.0)
            return
        for box in {id(host.box): host.box for host in self._hosts if host.box}.values():
            if box.public == to.address and (box is not sender.box or box.hairpin):
                inside = box.inbound(source, to.port, self.now)
                host = self._find(lambda other: other.box is box and other.endpoint == inside)  # noqa: B023
                if inside is not None and host is not None:
                    self._deliver(host, payload, size, source, inside, 0.0)
                    return
        self.lost += 1

    def _deliver(
        self, host: Host, payload: Any, size: int, source: Endpoint, local: Endpoint, delay_s: float
    ) -> None:
        def arrive() -> None:
            host.receive(payload, size, source, self.now, local)

        self.at(self.now + delay_s, arrive)

    def _find(self, wanted: Callable[[Host], bool]) -> Host | None:
        return next((host for host in self._hosts if wanted(host)), None)


def endpoint(text: str) -> Endpoint:
    """Return 198.51.100.1:9001 or [2001:db8::1]:9001 as a value."""
    host, _, port = text.rpartition(":")
    address: Address = ip_address(host.strip("[]"))
    return Endpoint(address, int(port))
