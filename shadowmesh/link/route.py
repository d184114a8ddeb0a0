"""What dials to one peer have taught: which addresses to try first, how long segments may be.

Owns: the order of a name's addresses over several dials, and whether TCP keeps its segments small.
Does not know: sockets, when to dial.

An address that was tried in vain, at whatever step, comes after those that were not: so the next
dial goes on where the last one stopped, and one whose TCP answers but not the peer is not preferred
for ever.

A path may swallow packets above some size without the ICMP that TCP counts on (RFC 2923, section
2.1). TCP connects over it, and then whatever is long never arrives. Segments that fit every path
are the remedy. They can be had only before connect(); what the SYN announces binds both sides.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from shadowmesh.link.tcp import plain_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: addresses of one name that are tried, and remembered
MAX_ADDRESSES: Final = 16
#: With 20 bytes of TCP and 40 of IPv6 in front, and a little for tunnels on the way, this is less
#: than the 1,280 bytes that every IPv6 path carries, as does nearly every IPv4 path.
SMALL_SEGMENT_BYTES: Final = 1200
#: the longest packet of such a connection, over IPv6
SMALL_PACKET_BYTES: Final = SMALL_SEGMENT_BYTES + 20 + 40
#: full segments are given another chance then (RFC 8899, PMTU_RAISE_TIMER)
RAISE_S: Final = 600.0

#: (family, socket address)
Way = tuple[int, Any]


class Route:
    """The memory of one peer's dials.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: those tried since the peer last answered there, by a running number
        self._tried: dict[tuple[str, int], int] = {}
        self._count = 0
        self._small_since: float | None = None
        self._may_retry = False

    def order(self, found: Iterable[Way]) -> list[Way]:
        """Return at most MAX_ADDRESSES of these: those that were not tried as they come, then the
        others, the one whose try is longest ago first.
        """
        # Before the cut: of a name with more addresses the next dial takes the rest.
        ordered = sorted(found, key=lambda way: self._tried.get(plain_address(way[1]), 0))
        return ordered[:MAX_ADDRESSES]

    def tried(self, address: tuple[str, int]) -> None:
        """This (IP address, port) was tried, and is not known to lead to the peer."""
        self._count += 1
        self._tried.pop(address, None)
        self._tried[address] = self._count
        while len(self._tried) > 2 * MAX_ADDRESSES:
            del self._tried[next(iter(self._tried))]

    def succeeded(self, address: tuple[str, int]) -> None:
        """The peer has proved there who it is."""
        self._tried.pop(address, None)

    # --- segments -----------------------------------------------------------------------------

    @property
    def segment_bytes(self) -> int | None:
        """How long the segments of the next connection may be; None: as the kernel thinks."""
        since = self._small_since
        if since is not None and self._clock() >= since + RAISE_S:
            self._small_since = None
        return None if self._small_since is None else SMALL_SEGMENT_BYTES

    def keep_small(self) -> None:
        """A connection that worked lets nothing long through any more."""
        self._small_since = self._clock()

    def timed_out(self) -> None:
        """TCP connected, and then no answer came: perhaps it, or the question, was too long."""
        if self.segment_bytes is None:
            self.keep_small()
            self._may_retry = True
        else:
            self._small_since = None  # it was not that

    def take_retry(self) -> bool:
        """Whether to dial again at once, because segments are small now; true once."""
        retry, self._may_retry = self._may_retry, False
        return retry

    def network_changed(self) -> None:
        """We may be elsewhere now: nothing that was learned need hold."""
        self._tried.clear()
        self._small_since = None
