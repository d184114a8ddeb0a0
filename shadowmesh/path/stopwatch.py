"""How long a probe and its answer were on the way: what a frame needs there and back.

Owns: when each probe left, and what of the time until its answer was not the way's. Does not know:
how a probe is sent, which path it takes, what a round trip is good for.

::

    departs --> sent ......> came at the peer
                                 |  its event loop: told in the answer, and taken off
    came <...... sent back <-----'

A frame never meets the event loops, which take a millisecond or more to get to a probe. So the time
begins right before the record is sealed, and ends when the data plane opened the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shadowmesh.base.clock import boottime

if TYPE_CHECKING:
    from collections.abc import Callable

#: probes whose answer may still come; the oldest is forgotten for a new one
MAX_PROBES: Final = 64


class Stopwatch:
    """The probes over one kind of path of one session. Belongs to the hub's thread."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        """Args: clock: the one of the data plane's time stamps, seconds."""
        self._clock = clock
        self._departed: dict[bytes, float] = {}

    def departs(self, token: bytes) -> None:
        """A probe is about to be sent."""
        while len(self._departed) >= MAX_PROBES:
            del self._departed[next(iter(self._departed))]
        self._departed[token] = self._clock()

    def stop(self, token: bytes, came_at: float, held_s: float | None) -> float | None:
        """Return the seconds on the way of a probe that was answered; None for one of nobody.

        Args:
            came_at: when the answer came.
            held_s: how long the peer says that it was busy before it answered; None from a peer
                of version 0.1. It is the peer's word: a wrong one makes nothing but a wrong
                figure, which is never below zero nor above what was measured here.
        """
        departed = self._departed.pop(token, None)
        if departed is None:
            return None
        taken_s = max(0.0, came_at - departed)
        return max(0.0, taken_s - max(0.0, held_s or 0.0))
