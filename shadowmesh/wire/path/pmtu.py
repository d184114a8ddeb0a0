"""How large a datagram a path carries, found with padded probes.

Owns: which size to try next and when, and what the answers mean. Does not know: what a probe
looks like, and whether a path is used.

Sizes are UDP payloads in bytes. ICMP is never believed (protocol section 6): only an answered
probe of a size proves it, and three lost ones while small probes are answered disprove it.
Source: RFC 8899, sections 5.1 to 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: a padded probe is given so long, or two round trips: PROBE_TIMER
PROBE_TIMER_S: Final = 0.5
#: while a size that was found is confirmed the next probe follows sooner: frames may be getting lost
CONFIRM_TIMER_S: Final = 0.1
#: a size that was found is confirmed this often, when something is odd at most so often, and larger
#: ones are tried again that often
CONFIRM_S: Final = 5.0
CONFIRM_SPACING_S: Final = 2.0
RAISE_S: Final = 600.0  # PMTU_RAISE_TIMER
#: probes of one size that are lost before it counts as too large: MAX_PROBES
MAX_PROBES: Final = 3
#: what every path is taken to carry until it is shown not to, and has to carry to be used at
#: all: an IPv6 packet of 1280 bytes
BASE_BYTES: Final = 1280 - 40 - 8
#: the search ends when it knows the answer to within so many bytes
GRANULARITY_BYTES: Final = 8

_IPV4_HEADERS: Final = 20 + 8
_IPV6_HEADERS: Final = 40 + 8
_ETHERNET_MTU: Final = 1500


class MtuSearch:
    """The search on one path: base size, then the link's size, then halving in between."""

    def __init__(self, link_mtu: int, version: int) -> None:
        """Begin at the base size, which is used at once and confirmed first.

        Args:
            link_mtu: of the outgoing interface, IP headers included; taken for 1280 if less.
            version: of IP, 4 or 6.
        """
        headers = _IPV4_HEADERS if version == 4 else _IPV6_HEADERS
        self._ceiling = max(link_mtu - headers, BASE_BYTES)
        self._ethernet = _ETHERNET_MTU - headers
        self.narrow = False  # not even the base size passes
        self._good = 0  # proven to pass; 0: not even the base size is
        self._bad = self._ceiling + 1  # the smallest size known not to pass
        self._lost = 0
        self._refused: set[int] = set()

    @property
    def mtu(self) -> int:
        """The largest UDP payload to send now."""
        return self._good or BASE_BYTES

    @property
    def doubted(self) -> bool:
        """True after a loss that is not yet a verdict."""
        return self._lost > 0

    def next_size(self) -> int | None:
        """Return the size to probe next; None when the search is over."""
        if self.narrow:
            return None
        if not self._good:
            return BASE_BYTES
        if self._good >= self._ceiling or self._bad - self._good <= GRANULARITY_BYTES:
            return None
        if self._bad > self._ceiling:
            return self._ceiling
        if self._good < self._ethernet < self._bad and self._ethernet not in self._refused:
            # Far more likely than anything that halving would come by.
            return self._ethernet
        return (self._good + self._bad) // 2

    def answered(self, size: int) -> None:
        """A probe of this size was answered."""
        self._lost = 0
        self._good = max(self._good, size)
        if self._bad <= size:
            self._bad = self._ceiling + 1

    def lost(self, size: int) -> None:
        """A probe of this size was not answered, though a small one sent with it was."""
        self._lost += 1
        if self._lost >= MAX_PROBES:
            self.too_big(size)

    def too_big(self, size: int) -> None:
        """A size does not pass: three probes were lost, or our own kernel said so."""
        self._lost = 0
        self._refused.add(size)
        self._bad = min(self._bad, size)
        self.narrow = self.narrow or size <= BASE_BYTES
        if size <= self._good:
            self._good = 0  # what worked no longer does: begin at the base size

    def search_again(self) -> None:
        """The path may carry more than it did; what works now goes on being used."""
        self._bad = self._ceiling + 1
        self._refused.clear()


@dataclass(frozen=True, slots=True)
class MtuStep:
    """What to do now.

    Attributes:
        size: send a padded probe of this size and a small one with it; None: nothing.
        doubt: not even the small probe of the last step was answered, so the path itself is in
            doubt and the lost probe says nothing about its size.
    """

    size: int | None = None
    doubt: bool = False


class MtuProber:
    """`MtuSearch` with its timers. Times are monotonic seconds."""

    def __init__(self, link_mtu: int, version: int, now: float) -> None:
        self._search = MtuSearch(link_mtu, version)
        self._pending: tuple[int, float] | None = None
        self._raise_due = now + RAISE_S
        self._confirmed_at = now
        self.due = now

    @property
    def mtu(self) -> int:
        """The largest UDP payload to send now, bytes."""
        return self._search.mtu

    @property
    def narrow(self) -> bool:
        """True when the path does not carry the base size, and so no frames."""
        return self._search.narrow

    def tick(self, now: float, answered_at: float | None, rtt_s: float, *, busy: bool) -> MtuStep:
        """Return what to do, when it is `due`.

        Args:
            now: monotonic seconds.
            answered_at: when any probe was last answered.
            rtt_s: of small probes.
            busy: frames were sent lately; what nobody uses is not confirmed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            size, sent_at = pending
            if answered_at is None or answered_at < sent_at:
                self.due = now + PROBE_TIMER_S
                return MtuStep(doubt=True)
            self._search.lost(size)
        if now >= self._raise_due:
            self._raise_due = now + RAISE_S
            self._search.search_again()
        next_size, timer_s = self._search.next_size(), PROBE_TIMER_S
        if next_size is None and ((pending is None and busy) or self._search.doubted):
            next_size, timer_s = self._search.mtu, CONFIRM_TIMER_S  # does it still pass?
            self._confirmed_at = now
        if next_size is None:
            self.due = now + CONFIRM_S
        else:
            self._pending = next_size, now
            self.due = now + max(timer_s, 2.0 * rtt_s)
        return MtuStep(next_size)

    def confirm(self, now: float) -> None:
        """The path answers and is odd all the same: does the size that was found still pass?"""
        if self._pending is None and now >= self._confirmed_at + CONFIRM_SPACING_S:
            self.due = now

    def answered(self, size: int, now: float) -> None:
        """A padded probe was answered."""
        self._search.answered(size)
        self._pending = None
        self.due = now if self._search.next_size() is not None else now + CONFIRM_S

    def too_big(self, size: int, now: float) -> None:
        """Our own kernel refused a datagram of this size."""
        self._search.too_big(size)
        self._pending = None
        self.due = now
