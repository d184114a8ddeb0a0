"""What is noticed by looking once a second: drops, full queues, strangers, a clock that was set.

Owns: comparing each look with the one before, and telling the flight recorder. Does not know: who
looks, where the numbers come from, gevent. A look costs some 10 us and no wakeup of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from shadowmesh.base.clock import boottime, wall_time
from shadowmesh.insight.events import Recorder

#: new drops are told at once, further ones not before
DROPS_SPACING_S: Final = 10.0
#: the wall clock and the time since boot may drift apart by so much between two looks; the rate
#: of a clock that is being corrected changes by 0.05 % at most
CLOCK_STEP_S: Final = 2.0
#: how long a step of the clock stays worth a warning
CLOCK_MEMORY_S: Final = 600.0
#: drops that mean that a queue had no room: the WebSocket's, the TAP's. What the UDP socket refuses
#: has other causes, such as a firewall on our own output
FULL_REASONS: Final = ("link_stalled", "tap_full")
#: looks that `lately` goes back: a minute of them
LOOKS: Final = 60


@dataclass(frozen=True, slots=True)
class ClockStep:
    """The wall clock was set: by how many seconds, and when (boot-time seconds)."""

    by_s: float
    at: float


class Lately:
    """How much some totals have grown within the last minute of looks."""

    def __init__(self) -> None:
        self._looks: deque[dict[str, int]] = deque(maxlen=LOOKS + 1)

    def look(self, totals: Mapping[str, int]) -> None:
        """Remember the totals of now; a quiet minute is sixty times the same."""
        same = bool(self._looks) and self._looks[-1] == totals
        self._looks.append(self._looks[-1] if same else dict(totals))

    def grown(self, totals: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return by how much each total is above the oldest look of the last minute.

        Args:
            totals: those of now; None: of the last look. Smaller ones were counted anew.
        """
        if not self._looks:
            return {}
        before = self._looks[0]
        now = self._looks[-1] if totals is None else totals
        return {
            name: count - before.get(name, 0)
            for name, count in now.items()
            if count > before.get(name, 0)
        }


class Vitals:
    """Looks and remembers."""

    def __init__(
        self,
        recorder: Recorder,
        *,
        no_news: Collection[str] = (),
        wall: Callable[[], float] = wall_time,
        boot: Callable[[], float] = boottime,
    ) -> None:
        """Args: no_news: reasons for which frames are dropped all the time, as they shall be."""
        self._recorder = recorder
        self._no_news = frozenset(no_news)
        self._wall = wall
        self._boot = boot
        self._offset = wall() - boot()
        self._step: ClockStep | None = None
        self._drops = Lately()
        self._strangers = Lately()
        self._errors = Lately()
        self._told: dict[str, int] = {}
        self._told_at = -DROPS_SPACING_S

    @property
    def clock_step(self) -> ClockStep | None:
        """The last step of the wall clock, while it is worth a warning."""
        step = self._step
        return step if step is not None and self._boot() < step.at + CLOCK_MEMORY_S else None

    @property
    def full_drops(self) -> int:
        """Frames that found no room in a queue, in the last minute of looks."""
        lately = self._drops.grown()
        return sum(lately.get(reason, 0) for reason in FULL_REASONS)

    @property
    def forbidden(self) -> int:
        """UDP sends that the kernel did not permit, in the last minute of looks."""
        return self._errors.grown().get("EPERM", 0)

    def lately(self, dropped: Mapping[str, int]) -> dict[str, int]:
        """Return what was dropped since the oldest look of the last minute, by reason.

        Args:
            dropped: totals of now.
        """
        return self._drops.grown(dropped)

    def strangers(self, connections: Mapping[str, int]) -> dict[str, int]:
        """Return what became of connections to the peer port in the last minute, by outcome.

        Args:
            connections: totals of now.
        """
        return self._strangers.grown(connections)

    def look(
        self,
        dropped: Mapping[str, int],
        connections: Mapping[str, int],
        udp_errors: Mapping[str, int],
    ) -> None:
        """Take one look.

        Args:
            dropped: totals by reason.
            connections: totals of the peer port by outcome.
            udp_errors: totals of what the UDP socket refused, by errno.
        """
        now = self._boot()
        self._look_at_clock(now)
        self._look_at_drops(dropped, now)
        self._drops.look(dropped)
        self._strangers.look(connections)
        self._errors.look(udp_errors)

    def _look_at_clock(self, now: float) -> None:
        before, self._offset = self._offset, self._wall() - now
        by_s = self._offset - before
        if abs(by_s) > CLOCK_STEP_S:
            self._step = ClockStep(by_s, now)
            self._recorder.record("state", "the wall clock was set", by_s=round(by_s, 1))

    def _look_at_drops(self, all_dropped: Mapping[str, int], now: float) -> None:
        dropped = {
            reason: count for reason, count in all_dropped.items() if reason not in self._no_news
        }
        if now < self._told_at + DROPS_SPACING_S or dropped == self._told:
            return
        grown = {
            reason: count - self._told.get(reason, 0)
            for reason, count in dropped.items()
            if count > self._told.get(reason, 0)
        }
        self._told = dropped
        if grown:
            self._told_at = now
            self._recorder.record("drops", "frames dropped", **grown)
