"""How long to wait between dials.

Owns: the delays, and what shortens them again. Does not know: who waits (`peer.peer`), why a
dial failed. Source: protocol section 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import BACKOFF_FACTOR, BACKOFF_JITTER, BACKOFF_MAX_S, BACKOFF_MIN_S

if TYPE_CHECKING:
    from collections.abc import Callable

#: a session that lived this long was a success, so the next dial starts at BACKOFF_MIN_S again;
#: above KEY_LIFETIME_S would punish peers that restart, below a handshake would reward flapping
BACKOFF_RESET_AFTER_S: Final = 30.0
#: what a shorter session leaves of earlier failures: BACKOFF_MIN_S doubled so often
FAILURES_AFTER_SESSION: Final = 2


class Backoff:
    """Delays between dials: 1, 2, 4 ... 30 s, each up to 20 % shorter or longer.

    Args:
        random: returns a float in [0, 1).
    Attributes:
        failures: delays handed out since the last reset; status shows it.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.failures = 0

    def next_delay(self) -> float:
        """Return how many seconds to wait before the next dial, and count the failure."""
        # The exponent stops growing long before the float overflows.
        delay = min(BACKOFF_MAX_S, BACKOFF_MIN_S * BACKOFF_FACTOR ** min(self.failures, 16))
        self.failures += 1
        return delay * (1 - BACKOFF_JITTER + 2 * BACKOFF_JITTER * self._random())

    def reset(self) -> None:
        """Start again at the shortest delay: the operator asked, or the network changed."""
        self.failures = 0

    def session_ended(self, lifetime_s: float) -> None:
        """Reset if a session lived long enough; after a short one be careful, but not for long.

        Even a session that dies at once proves that the peer is there and is the right one, so
        the next delay is 4 s at most: a peer that restarts twice is not punished for it.
        """
        if lifetime_s >= BACKOFF_RESET_AFTER_S:
            self.reset()
        self.failures = min(self.failures, FAILURES_AFTER_SESSION)
