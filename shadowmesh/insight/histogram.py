"""A histogram that costs a comparison and two additions for each value.

Owns: the counting, and which bounds the daemon's histograms have. Does not know: Prometheus,
which turns it into text (`metrics`); who measures.

The library's own histogram takes a lock for each value, and the library belongs into the
daemon's memory only while metrics are on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

#: seconds; 1 ms is a busy but healthy hub, 100 ms is a frame's life on the WSS path
LAG_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
#: seconds; from two namespaces of one machine to a satellite
RTT_BUCKETS_S: Final = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0,
)  # fmt: skip


class Histogram:
    """Counts of values by upper bound, and their sum. For one thread.

    Attributes:
        sum: of all values.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Args: bounds: ascending; a value that equals one belongs to it."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; below zero (a coarse clock) counts as zero."""
        value = max(0.0, value)
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Give (upper bound, values up to it), the last bound being ``+Inf``."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield bound, total
