"""The clocks: one by which sessions and keys age, and one that people read.

Owns: which of the kernel's clocks those are, how a moment of the first is said in the second, and
the ticks at which those look who look now and then.
Does not know: who asks; machines in `wire/` take `now`.

A moment that something happened at is kept in boot time and becomes a date when it is shown. So
somebody who sets the clock, or a machine that learns the year a minute after it has started,
changes no age: what was shown as ten minutes ago stays ten minutes ago. `tests/test_layers.py`
names the few modules that may ask for the date themselves.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Final, overload

#: so little of an interval before a tick one may as well wait for the next: timers fire a bit early
_EARLY: Final = 0.05
#: the two clocks run at one rate, also while NTP corrects it; more than the time between reading
#: one and the other is a clock that was set
_SET_S: Final = 0.05


def boottime() -> float:
    """Seconds since boot, suspended time included: keys must not outlive a night's sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def next_tick(now: float, interval_s: float) -> float:
    """Return the next multiple of an interval: the moment of all that look so often.

    An idle process costs what it is woken for, far more than what it does then; who keeps to the
    ticks of one clock is woken together with the others.
    """
    return (math.floor(now / interval_s + _EARLY) + 1) * interval_s


def wall_time() -> float:
    """The date, in seconds since 1970: to be shown or written down, never to be waited for."""
    return time.time()


def utc_now() -> datetime:
    """The date as certificates have it."""
    return datetime.fromtimestamp(wall_time(), UTC)


class Dates:
    """Says moments of boot time as dates.

    The same moment is the same date each time, to the last digit, until the clock is set.
    """

    def __init__(self) -> None:
        self._offset_s = wall_time() - boottime()

    def now(self) -> float:
        """Return the date by which the ages of all others come out right."""
        return self._offset() + boottime()

    @overload
    def of(self, moment: float) -> float: ...

    @overload
    def of(self, moment: float | None) -> float | None: ...

    def of(self, moment: float | None) -> float | None:
        """Return the date of a moment in boot-time seconds, as the clock stands now."""
        return None if moment is None else self._offset() + moment

    def _offset(self) -> float:
        found_s = wall_time() - boottime()
        if abs(found_s - self._offset_s) > _SET_S:
            self._offset_s = found_s
        return self._offset_s
