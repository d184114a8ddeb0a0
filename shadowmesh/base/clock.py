"""The clock by which sessions and keys age.

Owns: which of the kernel's clocks that is. Does not know: who asks; machines in `wire/` take `now`.
"""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since boot, suspended time included: keys must not outlive a night's sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
