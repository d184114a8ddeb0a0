"""What the tunnel carried and how long that took, over the last hour.

Owns: two resolutions of the same four figures, and what is said of a time in which nobody looked. Does not know: who looks, where the figures come from, HTTP, gevent.

::

    look, once a second --+--> the last 5 minutes, a slot for each second
                          '--> the last hour, a slot for each 15 seconds: the mean of the looks

A slot belongs to a stretch of the time since boot, so that a stopped process or a suspended machine
leaves a gap and moves nothing. All of it is 9 KiB, whatever the tunnel carries.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from shadowmesh.insight.form import SCHEMA, format_time

#: seconds of a slot, and how many slots
RESOLUTIONS: Final = ((1, 300), (15, 240))
#: looks come late on a busy machine: up to this their figures are those of the slots between, too
LATE_S: Final = 3.0
#: the figures, in the order of a look
FIGURES: Final = ("bits_in", "bits_out", "rtt_ms", "drops")
#: digits behind the point that are worth their bytes
_DIGITS: Final = (0, 0, 3, 1)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of one moment, since the daemon started: bytes of frames, and frames dropped."""

    bytes_in: int
    bytes_out: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """One resolution; every list has one value for each slot, the oldest first.

    Attributes:
        interval_s: seconds of a slot.
        until: when the last slot ends, wall-clock seconds.
        bits_in, bits_out: bits of frames per second; "in" is from the peer.
        rtt_ms: round trip to the peer in milliseconds, null without a session.
        drops: frames dropped per second, both directions.
    """

    interval_s: int
    until: float
    bits_in: Sequence[float | None]
    bits_out: Sequence[float | None]
    rtt_ms: Sequence[float | None]
    drops: Sequence[float | None]

    def to_dict(self) -> dict[str, Any]:
        return {
            "interval_s": self.interval_s,
            "until": format_time(self.until),
            **{name: list(getattr(self, name)) for name in FIGURES},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The history at one moment.

    Attributes:
        now: when it was told, wall-clock seconds.
        stretches: the finest first; each begins when the daemon did, or where it is full.
    """

    now: float
    stretches: Sequence[Stretch]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "now": format_time(self.now),
            "stretches": [stretch.to_dict() for stretch in self.stretches],
        }


class _Track:
    """One resolution: a ring of slots for each figure."""

    def __init__(self, interval_s: int, slots: int) -> None:
        self.interval_s = interval_s
        self._slots = slots
        self._values = [array("f", [math.nan]) * slots for _ in FIGURES]
        self._begun: int | None = None
        self._slot = 0
        self._looks = [0] * len(FIGURES)

    def add(self, now: float, figures: Sequence[float | None], *, gap: bool) -> None:
        """Take the figures of the time up to now; gap: not of the slots since the look before."""
        slot = int(now // self.interval_s)
        if self._begun is None:
            self._begun, self._slot = slot, slot
        skipped = min(slot - self._slot, self._slots)
        if skipped > 0:
            for values, figure in zip(self._values, figures, strict=True):
                between = math.nan if gap or figure is None else figure
                for at in range(slot - skipped + 1, slot):
                    values[at % self._slots] = between
                values[slot % self._slots] = math.nan
            self._slot, self._looks = slot, [0] * len(FIGURES)
        at = self._slot % self._slots
        for index, figure in enumerate(figures):
            if figure is None:
                continue
            count = self._looks[index] = self._looks[index] + 1
            before = self._values[index][at] if count > 1 else figure
            self._values[index][at] = before + (figure - before) / count

    def report(self, now: float, date: float) -> Stretch | None:
        """Return what is known; `date` is that of `now`."""
        if self._begun is None:
            return None
        first = max(self._begun, self._slot - self._slots + 1)
        columns = [
            [_plain(values[at % self._slots], digits) for at in range(first, self._slot + 1)]
            for values, digits in zip(self._values, _DIGITS, strict=True)
        ]
        until = date - now + (self._slot + 1) * self.interval_s
        return Stretch(self.interval_s, until, *columns)


class History:
    """Both resolutions. Times are boot-time seconds."""

    def __init__(self) -> None:
        self._tracks = [_Track(*resolution) for resolution in RESOLUTIONS]
        self._before: tuple[float, Totals] | None = None

    def look(self, now: float, totals: Totals, rtt_ms: float | None) -> None:
        """Take one look; counters that went back leave a gap."""
        before, self._before = self._before, (now, totals)
        if before is None or now <= before[0]:
            return
        elapsed_s, last = now - before[0], before[1]
        steps = (
            (totals.bytes_in - last.bytes_in) * 8,
            (totals.bytes_out - last.bytes_out) * 8,
            totals.dropped - last.dropped,
        )
        rates = [None if step < 0 else step / elapsed_s for step in steps]
        for track in self._tracks:
            track.add(now, (rates[0], rates[1], rtt_ms, rates[2]), gap=elapsed_s > LATE_S)

    def report(self, now: float, date: float) -> Report:
        """Return all of it.

        Args:
            date: `now` in wall-clock seconds.
        """
        found = [track.report(now, date) for track in self._tracks]
        return Report(date, tuple(stretch for stretch in found if stretch is not None))


def _plain(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)
