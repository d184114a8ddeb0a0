"""How late the hub runs: one greenlet that sleeps and looks at the clock.

Owns: the measurement and its histogram. Does not know: who reads it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

import gevent

from shadowmesh.base.clock import boottime, next_tick
from shadowmesh.insight.histogram import LAG_BUCKETS_S, Histogram

#: often enough to notice a stall within a health check, rare enough to cost nothing when idle
INTERVAL_S: Final = 1.0
#: readings that `worst` looks back on
WINDOW: Final = 60


class HubLag:
    """Measures from start() to stop(). `histogram` is for the metrics.

    Args:
        on_beat: called after each measurement, so only while the hub turns; must not wait.
    """

    def __init__(self, on_beat: Callable[[], None] = lambda: None) -> None:
        self._on_beat = on_beat
        self.histogram = Histogram(LAG_BUCKETS_S)
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._greenlet = gevent.Greenlet(self._beat)

    @property
    def worst_s(self) -> float:
        """The longest lag of the last minute, in seconds."""
        return max(self._recent, default=0.0)

    def start(self) -> None:
        """Start measuring."""
        self._greenlet.start()

    def stop(self) -> None:
        """Stop measuring."""
        self._greenlet.kill()

    def _beat(self) -> None:
        """Measure for ever; ends when killed by stop()."""
        while True:
            now = boottime()
            wait_s = next_tick(now, INTERVAL_S) - now
            due = time.monotonic() + wait_s  # by this clock a suspended machine is not late
            gevent.sleep(wait_s)
            lag_s = max(0.0, time.monotonic() - due)
            self._recent.append(lag_s)
            self.histogram.observe(lag_s)
            self._on_beat()
