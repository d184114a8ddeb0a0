"""The flight recorder: the last things that happened, in memory.

Owns: a bounded ring of events, what an event looks like, the histogram of round trips, and whom
new events are told. Does not know: HTTP, gevent, where events come from.

::

    connection, tunnel, paths, ... --record()--> ring of 1,000 --recent()--> API, bug report
                                                  +--> listeners (the feed of GET /events)

Not the log: it does not depend on the log level, it is there when the log is not, and its kinds
are few and fixed. Fields go through the same filter as the log's, so a key never gets in.
All methods belong to the hub's thread, and none of them waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal, Protocol, get_args

from shadowmesh.base import log
from shadowmesh.base.clock import wall_time
from shadowmesh.base.constants import MAX_EVENTS
from shadowmesh.base.rate import TokenBucket
from shadowmesh.insight.form import PATHS, PathName, format_time
from shadowmesh.insight.histogram import RTT_BUCKETS_S, Histogram

Kind = Literal[
    "state", "path", "nat", "rekey", "drops", "session", "device", "config", "capture", "network"
]
KINDS: Final[tuple[str, ...]] = get_args(Kind)

#: of one message about one peer, per second and at once: a peer that fails ten times a second must
#: not wash everything else out of the ring
MESSAGE_RATE: Final = (0.2, 20.0)
#: of whatever was told longest ago is forgotten how often that was
MAX_RATES: Final = 4096


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        number: counts up from 1 since the start of the daemon; a gap means that events between
            are no longer kept.
        time: when, wall-clock seconds.
        kind: what it is about.
        message: what happened; a constant text of the program.
        fields: the facts.
    """

    number: int
    time: float
    kind: Kind
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "time": format_time(self.time),
            "kind": self.kind,
            "message": self.message,
            "fields": dict(self.fields),
        }


class Recorder(Protocol):
    """What those who have something to tell need to know of this module."""

    def record(self, kind: Kind, message: str, /, **fields: object) -> None:
        """Keep one event. message: a constant; what varies goes into fields."""
        ...

    def round_trip(self, path: PathName, rtt_s: float) -> None:
        """Count one answered probe on `path`, in seconds."""
        ...


class NoRecorder:
    """Keeps nothing."""

    def record(self, kind: Kind, message: str, /, **fields: object) -> None:
        pass

    def round_trip(self, path: PathName, rtt_s: float) -> None:
        pass


NOBODY: Final = NoRecorder()


class Named:
    """Tells another recorder which of several peers an event is about. Satisfies `Recorder`."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name

    def record(self, kind: Kind, message: str, /, **fields: object) -> None:
        self._recorder.record(kind, message, name=self._name, **fields)

    def round_trip(self, path: PathName, rtt_s: float) -> None:
        self._recorder.round_trip(path, rtt_s)


class FlightRecorder:
    """Keeps the last events. Satisfies `Recorder`.

    Attributes:
        round_trips: histogram of each path.
        counts: events kept so far, by kind.
    """

    def __init__(
        self,
        *,
        limit: int = MAX_EVENTS,
        clock: Callable[[], float] = wall_time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: limit: events that are kept."""
        self.round_trips: dict[str, Histogram] = {path: Histogram(RTT_BUCKETS_S) for path in PATHS}
        self.counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._ring: deque[Event] = deque(maxlen=limit)
        self._number = 0
        self._clock = clock
        self._monotonic = monotonic
        #: by message, and the peer that it is about
        self._rates: dict[tuple[str, object], TokenBucket] = {}
        self._suppressed: dict[tuple[str, object], int] = {}
        self._listeners: list[Callable[[Event], None]] = []

    def record(self, kind: Kind, message: str, /, **fields: object) -> None:
        """Keep an event and tell the listeners.

        Of a message about one peer that comes too often some are left out; the next one that is
        kept says in its field `suppressed` how many.
        """
        which = message, fields.get("name")
        rate = self._rates.get(which)
        if rate is None:
            while len(self._rates) >= MAX_RATES:
                forgotten = next(iter(self._rates))
                del self._rates[forgotten]
                self._suppressed.pop(forgotten, None)
            rate = self._rates[which] = TokenBucket(*MESSAGE_RATE)
        if not rate.take(self._monotonic()):
            self._suppressed[which] = self._suppressed.get(which, 0) + 1
            return
        suppressed = self._suppressed.pop(which, 0)
        if suppressed:
            fields["suppressed"] = suppressed
        self._number += 1
        plain = {name: log.plain(value) for name, value in fields.items()}
        event = Event(self._number, self._clock(), kind, message, plain)
        self._ring.append(event)
        self.counts[kind] += 1
        for listener in self._listeners:
            listener(event)

    def round_trip(self, path: PathName, rtt_s: float) -> None:
        self.round_trips[path].observe(rtt_s)

    def recent(self, limit: int | None = None, *, after: int = 0) -> list[Event]:
        """Return the newest events, the oldest of them first.

        Args:
            limit: at most so many; None: all.
            after: only those with a greater number.
        """
        newest: Iterable[Event] = reversed(self._ring)
        if limit is not None:
            newest = islice(newest, limit)
        found = [event for event in newest if event.number > after]
        found.reverse()
        return found

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with each new event; it must not wait."""
        self._listeners = [*self._listeners, listener]

    def forget(self, listener: Callable[[Event], None]) -> None:
        """Stop calling a listener."""
        self._listeners = [one for one in self._listeners if one != listener]
