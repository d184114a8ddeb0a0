"""The two clocks of a path in trouble: giving UDP up, and finding the way back.

Owns: how long an unanswered probe is waited for, and how often a lost path is tried again. Does
not know: addresses, and what follows (`machine`). Times are monotonic seconds.
"""

from __future__ import annotations

from shadowmesh.base.constants import UDP_PROBE_INTERVAL_S, UDP_PROBES_LOST
from shadowmesh.wire.path.rules import (
    HEALTHY_S,
    LAST_WAIT_MIN_S,
    LAST_WAIT_RTTS,
    RECOVERY_MAX_S,
    RECOVERY_MIN_S,
)


class Check:
    """Probes to an address in doubt: three, 500 ms apart, and then it is lost.

    Attributes:
        since: what happened then, to end a sentence with; empty where nothing has happened.
        began: when it arose.
        due: when the last probe has been waited for.
        unanswered: probes since then.
    """

    def __init__(self, reason: str | None, now: float) -> None:
        self.since = "" if reason is None else f" since {reason}"
        self.began = now
        self.due = now
        self.unanswered = 0

    @property
    def lost(self) -> bool:
        """True when no further probe is worth while, once it is `due`."""
        return self.unanswered >= UDP_PROBES_LOST

    def probe_sent(self, rtt_s: float | None, now: float) -> None:
        """A probe goes out; its answer is expected after rtt_s, as far as that is known."""
        self.unanswered += 1
        wait_s = UDP_PROBE_INTERVAL_S
        if self.lost and rtt_s is not None:
            wait_s = max(LAST_WAIT_MIN_S, min(wait_s, LAST_WAIT_RTTS * rtt_s))
        self.due = now + wait_s


class Recovery:
    """When a path that was given up is probed: after 1, 2, 4, 5, 5 ... s.

    A path that comes and goes does not start from the front each time.
    """

    def __init__(self, now: float) -> None:
        self.due = now
        self._wait_s = RECOVERY_MIN_S

    def fell(self, carried_s: float, now: float) -> None:
        """UDP was given up after it had carried frames for so long."""
        if carried_s >= HEALTHY_S:
            self._wait_s = RECOVERY_MIN_S
        self.due = now + self._wait_s

    def hurry(self, now: float) -> None:
        """The network changed: try at once."""
        self._wait_s = RECOVERY_MIN_S
        self.due = now

    def answered(self, now: float) -> None:
        """A first probe was answered: the second follows soon."""
        self.due = min(self.due, now + UDP_PROBE_INTERVAL_S)

    def probe_sent(self, now: float, *, hopeful: bool) -> None:
        """Probes went out; hopeful when the one before was answered."""
        if hopeful:
            self.due = now + UDP_PROBE_INTERVAL_S
        else:
            self._wait_s = min(self._wait_s * 2.0, RECOVERY_MAX_S)
            self.due = now + self._wait_s
