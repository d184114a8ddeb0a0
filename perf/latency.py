"""Round trips through every lane, in turns: idle, and beside one TCP stream.

One small UDP datagram goes and comes back; the next leaves at its time or when that is done. The
ends sleep while they wait, so an idle round trip has two wake-ups of the test in it on every lane.
Each round has its percentile, and its ratio to the references of that round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .lab import Lab, Lane, generate, output, spawn
from .report import Row, percentile
from .targets import (
    ROUNDS,
    RTT_IDLE,
    RTT_LOADED,
    RTT_LOADED_MS,
    RTT_SLOW_MS,
    RTT_SPARSE,
    Target,
)
from .tunnel import Readings, by_path, tunnel_names

#: The next leaves at once, so that hardly anything sleeps deeply; more than any lane can do.
ONE_AFTER_THE_OTHER = 1_000_000
#: What a person does at a prompt, and more: between two of them the cores sleep.
PER_SECOND = 200
LOADED_PER_SECOND = 500
#: The stream's own warm-up; round trips begin after it.
STREAM_WARM_UP_S = 0.4
#: An uplink of a home or a small site; bulk needs longer there to fill every queue.
SLOW_RATE = "20mbit"
SLOW_WARM_UP_S = 2.0
SLOW_PER_SECOND = 50
#: of a unit in a microsecond
UNITS = {"us": 1.0, "ms": 1000.0}


@dataclass
class RoundTrips:
    """The round trips of each lane, in us, round by round."""

    rounds: dict[str, list[list[float]]] = field(default_factory=dict)

    def add(self, lane: Lane, words: Sequence[str]) -> float:
        """Take what `generator rtt` printed; return the median in us."""
        times, _ = parse_round_trips(words)
        self.rounds.setdefault(lane.name, []).append(times)
        return percentile(times, 50)

    def percentiles(self, percent: float, unit: str) -> dict[str, list[float]]:
        """That percentile of each round, by lane."""
        return {
            name: [percentile(times, percent) / UNITS[unit] for times in rounds]
            for name, rounds in self.rounds.items()
        }


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
    rounds, seconds = (1, 0.6) if quick else (ROUNDS, 2.0)
    for group, per_second, target in (
        ("round trip, idle, one after the other", ONE_AFTER_THE_OTHER, RTT_IDLE),
        ("round trip, idle, 200 a second", PER_SECOND, RTT_SPARSE),
    ):
        medians, trips = Readings(lab), RoundTrips()
        medians.take(rounds, idle_trips(trips, seconds / 2, per_second))
        yield from _beside(f"{group}, p50", medians, trips, 50, "us", by_path(target))
        yield from _beside(f"{group}, p99", medians, trips, 99, "us")
    yield from _loaded(lab, rounds, seconds)
    yield from _slow(lab, rounds, 1.0 + seconds)


def idle_trips(
    trips: RoundTrips, seconds: float, per_second: float = PER_SECOND
) -> Callable[[Lane], float]:
    """Return what reads a lane's median round trip, in us."""

    def read(lane: Lane) -> float:
        return trips.add(lane, generate("rtt", seconds, per_second, sockets=lane.datagrams()))

    return read


def trips_beside_stream(trips: RoundTrips, seconds: float) -> Callable[[Lane], float]:
    """As `idle_trips`, while one TCP stream takes what it gets."""

    def read(lane: Lane) -> float:
        words = beside_a_stream(lane, STREAM_WARM_UP_S, seconds - 0.1, LOADED_PER_SECOND)
        return trips.add(lane, words)

    return read


def _loaded(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    group = "round trip beside one TCP stream"
    medians, trips = Readings(lab), RoundTrips()
    medians.take(rounds, trips_beside_stream(trips, seconds))
    for percent, target in ((50, None), (99, by_path(RTT_LOADED)), (99.9, None)):
        yield from _beside(f"{group}, p{percent:g}", medians, trips, percent, "ms", target)
    absolute = medians.derived(trips.percentiles(99, "ms"))
    for name, limit in by_path(RTT_LOADED_MS).items():
        yield absolute.row(f"{group}, p99, whatever vxlan has", name, "ms", target=limit)


def _slow(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    """Whose round trips wait for the bulk in front of them, when the line is what limits it."""
    group = f"round trip beside one TCP stream (cubic), line of {SLOW_RATE} with a deep queue"
    medians, trips = Readings(lab), RoundTrips()

    def read(lane: Lane) -> float:
        words = beside_a_stream(lane, SLOW_WARM_UP_S, seconds, SLOW_PER_SECOND, "cubic")
        return trips.add(lane, words)

    with lab.slow_cables(SLOW_RATE):
        medians.take(rounds, read)
    for percent, target in ((50, by_path(RTT_SLOW_MS)), (99, {})):
        readings = medians.derived(trips.percentiles(percent, "ms"))
        for name in ("veth", "vxlan", *tunnel_names()):
            yield readings.row(f"{group}, p{percent}", name, "ms", target=target.get(name))


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


def _beside(
    group: str,
    medians: Readings,
    trips: RoundTrips,
    percent: float,
    unit: str,
    targets: Mapping[str, Target] | None = None,
) -> Iterator[Row]:
    """A percentile of each lane beside vxlan, by which it is judged, and beside veth."""
    readings = medians.derived(trips.percentiles(percent, unit))
    yield readings.row(group, "veth", unit, "vxlan")
    for name in tunnel_names():
        yield readings.row(group, name, unit, "vxlan", (targets or {}).get(name))
        yield readings.row(group, name, unit, "veth")
