"""Round trips through every lane, in turns: idle, and beside one TCP stream.

One small UDP datagram goes and comes back; the next leaves at its time or when that is done. The
ends sleep while they wait, so an idle round trip has two wake-ups of the test in it on every lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .lab import Lab, Lane, generate, output, spawn
from .report import Row, compared, percentile, unread
from .targets import RTT_IDLE, RTT_LOADED_MS
from .tunnel import Readings, tunnel_names

PER_SECOND = 200
LOADED_PER_SECOND = 500
#: The stream's own warm-up; round trips begin after it.
STREAM_WARM_UP_S = 0.4
#: An uplink of a home or a small site; bulk needs longer there to fill every queue.
SLOW_RATE = "20mbit"
SLOW_WARM_UP_S = 2.0
SLOW_PER_SECOND = 50


@dataclass
class RoundTrips:
    """All round trips of a lane, in us, and how many datagrams never came back."""

    microseconds: dict[str, list[float]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def add(self, lane: Lane, words: Sequence[str]) -> float:
        """Take what `generator rtt` printed; return the median in us."""
        times, lost = parse_round_trips(words)
        self.microseconds.setdefault(lane.name, []).extend(times)
        self.lost[lane.name] = self.lost.get(lane.name, 0) + lost
        return percentile(times, 50)


def parse_round_trips(words: Sequence[str]) -> tuple[list[float], int]:
    """Round trips in us, and the number of lost ones.

    Raises:
        ValueError: nothing came back, or the text is not a generator's.
    """
    *times, label, lost = words
    if label != "lost" or not times:
        raise ValueError(f"no round trips in {' '.join(words[-3:])!r}")
    return [int(word) / 1000 for word in times], int(lost)


def measure(lab: Lab, quick: bool) -> Iterator[Row]:
    rounds, seconds = (1, 0.6) if quick else (3, 2.0)
    yield from _idle(lab, rounds, seconds / 2)
    yield from _loaded(lab, rounds, seconds)
    yield from _slow(lab, min(rounds, 2), 1.0 + seconds)


def _idle(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    group = "round trip, idle"
    medians, trips = Readings(lab), RoundTrips()
    medians.take(rounds, idle_trips(trips, seconds))
    yield medians.row(f"{group}, p50", "veth", "us", "vxlan")
    for name in tunnel_names():
        target = RTT_IDLE[name.partition(" ")[0]]
        yield medians.row(f"{group}, p50", name, "us", "vxlan", target)
    for name in ("veth", "vxlan", *tunnel_names()):
        yield _tail(f"{group}, p99", name, medians, trips, 99, "us")


def _loaded(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    group = "round trip beside one TCP stream"
    medians, trips = Readings(lab), RoundTrips()
    medians.take(rounds, trips_beside_stream(trips, seconds))
    everywhere = ("veth", "vxlan", *tunnel_names())
    for name in everywhere:
        yield _tail(f"{group}, p50", name, medians, trips, 50, "ms")
    for name in everywhere:
        yield _tail(f"{group}, p99", name, medians, trips, 99, "ms")
    for name in everywhere:
        yield _tail(f"{group}, p99.9", name, medians, trips, 99.9, "ms")


def idle_trips(trips: RoundTrips, seconds: float) -> Callable[[Lane], float]:
    """Return what reads a lane's median round trip, in us."""

    def read(lane: Lane) -> float:
        return trips.add(lane, generate("rtt", seconds, PER_SECOND, sockets=lane.datagrams()))

    return read


def trips_beside_stream(trips: RoundTrips, seconds: float) -> Callable[[Lane], float]:
    """As `idle_trips`, while one TCP stream takes what it gets."""

    def read(lane: Lane) -> float:
        words = beside_a_stream(lane, STREAM_WARM_UP_S, seconds - 0.1, LOADED_PER_SECOND)
        return trips.add(lane, words)

    return read


def _slow(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    """Whose round trips wait for the bulk in front of them, when the line is what limits it."""
    group = f"round trip beside one TCP stream (cubic), line of {SLOW_RATE}"
    medians, trips = Readings(lab), RoundTrips()

    def read(lane: Lane) -> float:
        words = beside_a_stream(lane, SLOW_WARM_UP_S, seconds, SLOW_PER_SECOND, "cubic")
        return trips.add(lane, words)

    with lab.slow_cables(SLOW_RATE):
        medians.take(rounds, read)
    for percent in (50, 99):
        for name in ("veth", "vxlan", *tunnel_names()):
            yield _tail(f"{group}, p{percent}", name, medians, trips, percent, "ms", judged=False)


def beside_a_stream(
    lane: Lane, warm_up_s: float, seconds: float, per_second: int, congestion: str = ""
) -> list[str]:
    """Return what `generator rtt` printed while one TCP stream went the same way."""
    ends = lane.streams(1, congestion)
    stream = spawn("stream", warm_up_s + seconds, sockets=ends)
    for end in ends:
        end.close()
    sockets = lane.datagrams()
    time.sleep(warm_up_s)
    try:
        return generate("rtt", seconds, per_second, sockets=sockets)
    finally:
        output(stream, seconds + 20)


def _tail(
    group: str,
    name: str,
    medians: Readings,
    trips: RoundTrips,
    percent: float,
    unit: str,
    *,
    judged: bool = True,
) -> Row:
    """A percentile over the round trips of all rounds, because one round has too few for it."""
    loaded = judged and unit == "ms" and percent == 99 and name in tunnel_names()
    target = RTT_LOADED_MS if loaded else None
    if name in medians.failures:
        return unread(group, name, unit, medians.failures[name], target)
    scale = 1000 if unit == "ms" else 1
    value = percentile(trips.microseconds[name], percent) / scale
    return compared(group, name, unit, [value], target=target)
