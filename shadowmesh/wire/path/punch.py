"""When which address of the peer is probed to punch a hole.

Owns: the rounds of punching, their limits, and when the next one is wanted. Does not know: what
an answer leads to (`machine`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shadowmesh.base.constants import (
    PUNCH_INTERVAL_S,
    PUNCH_MAX_PER_CANDIDATE,
    PUNCH_MAX_PROBES,
    PUNCH_RETRY_S,
)
from shadowmesh.wire.path.remote import Remote
from shadowmesh.wire.path.rules import (
    PUNCH_AFTER_FALL_S,
    PUNCH_AFTER_FALL_SPACING_S,
    PUNCH_SPACING_S,
)


@dataclass(slots=True)
class _Round:
    """A round that runs. Times are monotonic seconds."""

    began: float
    ends: float
    next_tick: float
    budget: int = PUNCH_MAX_PROBES


class Punching:
    """Rounds of a probe to every address each 100 ms, 5 to each and 64 in all at most.

    An address that answered is left alone for the rest of the round. Source: protocol section 8.
    """

    def __init__(self, hole_punch_timeout_s: float) -> None:
        self._timeout_s = hole_punch_timeout_s
        self._round: _Round | None = None
        self._began: float | None = None
        self._deferred: float | None = None
        self._asked_at: float | None = None
        self._ask_due: float | None = None

    @property
    def running(self) -> bool:
        return self._round is not None

    @property
    def sent(self) -> int:
        """Probes of the round that runs."""
        return 0 if self._round is None else PUNCH_MAX_PROBES - self._round.budget

    def start(self, remotes: Iterable[Remote], now: float) -> bool:
        """Begin a round; return False when one runs, or is put off because one just began.

        Addresses that the running round has not come to are probed at the next tick, and by
        another round after it: this one may be nearly over.
        """
        remotes = tuple(remotes)
        if self._round is not None:
            if any(not remote.tries and not remote.proven for remote in remotes):
                self._round.next_tick = now
                self._deferred = max(self._round.ends, self._round.began + PUNCH_SPACING_S)
            return False
        self._deferred = None
        if not remotes:
            self._ask_due = now + PUNCH_RETRY_S
            return False
        if self._began is not None and now < self._began + PUNCH_SPACING_S:
            self._deferred = self._began + PUNCH_SPACING_S
            return False
        self._began = now
        self._ask_due = now + PUNCH_RETRY_S
        self._round = _Round(now, now + self._timeout_s, now)
        for remote in remotes:
            remote.tries = 0
        return True

    def stop(self) -> None:
        """Forget everything, also when the next round was due."""
        self._round = self._deferred = self._ask_due = None

    def deferred_is_due(self, now: float) -> bool:
        """Tell whether a round that was put off is to begin now."""
        return self._deferred is not None and now >= self._deferred

    def is_over(self, now: float) -> bool:
        """Tell whether the round's time is up; `end` ends it."""
        return self._round is not None and now >= self._round.ends

    def end(self) -> None:
        self._round = None

    def due_remotes(self, remotes: Iterable[Remote], now: float) -> list[Remote]:
        """Return the addresses to probe now; counts them as probed."""
        current = self._round
        if current is None or now < current.next_tick:
            return []
        current.next_tick = now + PUNCH_INTERVAL_S
        due = []
        for remote in remotes:
            recent = remote.asked_at is not None and now < remote.asked_at + PUNCH_INTERVAL_S / 2
            answered = remote.answered_at is not None and remote.answered_at >= current.began
            if not recent and not answered and self.may_probe(remote):
                current.budget -= 1
                due.append(remote)
        return due

    def may_probe(self, remote: Remote) -> bool:
        """Tell whether the limits of the round, if one runs, leave a probe for this address."""
        if remote.tries >= PUNCH_MAX_PER_CANDIDATE:
            return False
        return self._round is None or self._round.budget > 0

    def spend(self) -> None:
        """A probe outside the schedule (to an address just learned) counts, too."""
        if self._round is not None:
            self._round.budget -= 1

    def spare(self) -> None:
        """A probe that was counted has not been sent."""
        if self._round is not None:
            self._round.budget += 1

    def ask_after_fall(self, now: float) -> None:
        """UDP was given up: want a round soon, but not each time when it comes and goes."""
        earliest = now + PUNCH_AFTER_FALL_S
        if self._asked_at is not None:
            earliest = max(earliest, self._asked_at + PUNCH_AFTER_FALL_SPACING_S)
        self._asked_at = self._ask_due = earliest

    def ask_is_due(self, now: float) -> bool:
        """Tell, once, that the peer is to be asked for a round. Only wanted while on WSS."""
        if self._ask_due is None or now < self._ask_due:
            return False
        self._ask_due = now + PUNCH_RETRY_S
        return True

    def next_timeout(self, *, on_wss: bool) -> float | None:
        """Return when the next of all these is due."""
        times = [self._deferred, self._ask_due if on_wss else None]
        if self._round is not None:
            times.append(min(self._round.next_tick, self._round.ends))
        return min((time for time in times if time is not None), default=None)
