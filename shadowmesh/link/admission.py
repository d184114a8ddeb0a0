"""Who may connect to the peer port before having proved anything.

Owns: the count of unauthenticated connections, in all and per source, and the rate of new ones
per source. Does not know: sockets, clocks (the caller passes `now`), what a connection is used
for. Source: protocol section 9.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from shadowmesh.base.constants import MAX_NEW_PER_SECOND, MAX_PER_ADDRESS, MAX_UNAUTHENTICATED

#: Sources remembered for the rate. A source is forgotten after a second; a flood from more
#: sources than this within one second makes the oldest be forgotten sooner.
MAX_SOURCES: Final = 4096
_WINDOW_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many unauthenticated connections there may be.

    Attributes:
        total: at the same time, in all.
        per_source: at the same time, per IPv4 address or IPv6 /64.
        new_per_second: in any second, per source.
    """

    total: int = MAX_UNAUTHENTICATED
    per_source: int = MAX_PER_ADDRESS
    new_per_second: int = MAX_NEW_PER_SECOND


def source_of(ip: str) -> str:
    """Return what counts as one source: an IPv4 address, or the /64 of an IPv6 address.

    A /64 is what one household or one server gets, so its addresses cost an attacker nothing.
    """
    if ":" not in ip:
        return ip
    address = IPv6Address(ip.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, 64), strict=False).network_address)


class Admission:
    """Counts connections against `Limits`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: Counter[str] = Counter()
        self._total = 0
        self._recent: OrderedDict[str, deque[float]] = OrderedDict()

    @property
    def unauthenticated(self) -> int:
        """Connections that count now."""
        return self._total

    def admit(self, source: str, now: float) -> str | None:
        """Count one new connection of `source_of(ip)`, or return which limit refuses it.

        Args:
            now: monotonic seconds, never less than in the call before.
        Returns:
            None: counted, until leave(source). Otherwise "rate", "source" or "total".
        """
        if not self._within_rate(source, now):
            return "rate"
        if self._open[source] >= self._limits.per_source:
            return "source"
        if self._total >= self._limits.total:
            return "total"
        self._open[source] += 1
        self._total += 1
        return None

    def leave(self, source: str) -> None:
        """One admitted connection of this source is authenticated or closed."""
        if self._open[source] <= 0:
            raise ValueError(f"no connection of {source} is counted")
        self._open[source] -= 1
        self._total -= 1
        if not self._open[source]:
            del self._open[source]

    def _within_rate(self, source: str, now: float) -> bool:
        recent = self._recent
        while recent and next(iter(recent.values()))[-1] <= now - _WINDOW_S:
            recent.popitem(last=False)
        starts = recent.setdefault(source, deque(maxlen=self._limits.new_per_second))
        if len(starts) == starts.maxlen and starts[0] > now - _WINDOW_S:
            return False
        starts.append(now)
        recent.move_to_end(source)
        if len(recent) > MAX_SOURCES:
            recent.popitem(last=False)
        return True
