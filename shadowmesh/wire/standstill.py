"""Does the WSS link stand still although the peer may be there? A pure machine of readings.

Owns: when a link that has stopped is worth another dial beside it. Does not know: TCP, links, why
it stopped, what a dial finds; whether the peer is dead is for `liveness` to say.

A path that swallows long packets and tells nobody lets a link connect, and stops it at the first
long segment: TCP repeats that for minutes, and what is short waits behind it. From outside it looks
like a path that is down for a while, so nothing is ended here: another connection, with segments
that fit, is tried beside this one, and only if it succeeds does it take over.

::

    bytes in flight, none acknowledged for 6.5 s ................... stands
    data sent and left, nothing heard for 2 s ...................... ask with a probe
    the probe has left, and nothing heard for 4.5 s more ........... stands

The times let TCP mend an outage of 3 s by itself: its fifth attempt comes after 6.2 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from shadowmesh.base.clock import next_tick

#: how often the readings are looked at
CHECK_INTERVAL_S: Final = 1.0
#: a check that comes this much later than asked for means that our own process stood still
_STALL_S: Final = 2.0
STANDS_AFTER_S: Final = 6.5
ASK_AFTER_S: Final = 2.0


class Finding(Enum):
    """What to do."""

    ASK = auto()
    """Send a probe."""
    STANDS = auto()
    """Said once: try another connection."""
    MOVES = auto()
    """It goes on by itself, after STANDS: forget the other connection."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What is known of a link now.

    Attributes:
        data_sent_at: when a frame was last sealed onto it; anything in the past when never.
        heard_at: when a record of it last opened, of whatever type.
        acked_bytes: what the peer's TCP has acknowledged since the connection began.
        in_flight: something was sent and is not acknowledged.
        queued: something waits to be sent.
    """

    data_sent_at: float
    heard_at: float
    acked_bytes: int
    in_flight: bool
    queued: bool


class Standstill:
    """Watches one WSS link, from Established on. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._checked_at = now
        self._acked_bytes = 0
        #: when TCP last made progress, or had nothing to make it with
        self._moved_at = now
        #: not later than the first data since the peer was last heard; None: all is answered
        self._waiting_since: float | None = None
        self._heard_at = now
        #: since when the answer to our question is awaited
        self._asked_at: float | None = None
        self._stands = False
        #: TCP had nothing to do when it was last looked at
        self._at_rest = False

    def check(self, now: float, readings: Readings) -> Finding | None:
        """Look at the readings and say what to do. To be called at next_timeout(), or oftener."""
        stalled = now - self._checked_at > CHECK_INTERVAL_S + _STALL_S
        before, self._checked_at = self._checked_at, now
        self._note(now, before, readings)
        if stalled:  # the time in which we could neither send nor listen does not count
            self._moved_at = now
            self._waiting_since = self._waiting_since and now
            self._asked_at = None
        if now >= self._stands_at():
            if self._stands:
                return None
            self._stands = True
            return Finding.STANDS
        if self._stands:
            self._stands = False
            return Finding.MOVES
        if (
            self._waiting_since is not None
            and self._asked_at is None
            and now >= self._waiting_since + ASK_AFTER_S
        ):
            self._asked_at = now
            return Finding.ASK
        return None

    def quiet(self, now: float) -> bool:
        """Whether check() would say nothing, with the readings of its last call; then it is done."""
        if self._stands or self._waiting_since is not None or not self._at_rest:
            return False
        self._checked_at = self._moved_at = now
        return True

    def next_timeout(self) -> float:
        """Return when check() or quiet() is due."""
        return next_tick(self._checked_at, CHECK_INTERVAL_S)

    def _note(self, now: float, before: float, readings: Readings) -> None:
        self._at_rest = not (readings.in_flight or readings.queued)
        if readings.acked_bytes != self._acked_bytes or not readings.in_flight:
            self._acked_bytes = readings.acked_bytes
            self._moved_at = now
        if readings.heard_at > self._heard_at:
            self._heard_at = readings.heard_at
            self._waiting_since = self._asked_at = None
        if self._waiting_since is None and readings.data_sent_at > self._heard_at:
            # The reading tells of the last frame; the first came after the check before this one.
            self._waiting_since = max(self._heard_at, min(before, readings.data_sent_at))
        if self._asked_at is not None and readings.queued:
            self._asked_at = now  # the question may not have left

    def _stands_at(self) -> float:
        times = [self._moved_at + STANDS_AFTER_S]
        if self._asked_at is not None:
            times.append(self._asked_at + STANDS_AFTER_S - ASK_AFTER_S)
        return min(times)
