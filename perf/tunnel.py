"""Throughput and small frames through every lane, in turns.

TCP: how many bits a second the receiver takes, after a warm-up. Small frames: the highest rate of
64-byte Ethernet frames, one way, at which at most 1 % is lost. Large frames: how many arrive of those
that do not fit the path. "plain" repeats the first on cables that cut and join nothing, neither TCP
nor UDP, as on a network card without that.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from shadowmesh.netlab import NetlabError

from .lab import CIPHERS, PATHS, Broken, Lab, Lane, generate
from .report import Failure, Row, compared, unread
from .targets import (
    CPU_PER_GB,
    FOUR_STREAMS,
    FULL_FRAMES,
    PLAIN_STREAM,
    ROUNDS,
    SMALL_FRAMES,
    STREAM,
    Target,
)

PLAIN = "TCP, 1 stream, plain network card (tso, gso, gro, tx-udp-segmentation off)"
#: UDP payload of a 64-byte frame: less Ethernet, IPv4 and UDP headers
SMALL_PAYLOAD = 64 - 14 - 20 - 8
MAX_LOSS = 0.01
START_RATE = 40e3
RAMP = 1.5
BISECTIONS = 4
#: ... of the largest frame of a device of 1,500 bytes, which no path of 1,500 carries whole, and of
#: what vxlan carries whole
FULL_PAYLOAD = 1514 - 14 - 20 - 8
FULL_PAYLOAD_VXLAN = 1428 - 14 - 20 - 8
#: Offered one after the other: with more than it can carry a lane delivers less than it could.
FULL_RATES = (100e3, 150e3, 200e3)
#: A sender that comes this far below the rate that was asked for is itself the limit.
SENDER_TOO_SLOW = 0.85


@dataclass(frozen=True, slots=True)
class Trial:
    """One row of datagrams at a steady rate; rates per second."""

    sent: int
    received: int
    received_rate: float
    sent_rate: float

    @property
    def good(self) -> bool:
        return self.sent > 0 and self.received >= (1 - MAX_LOSS) * self.sent


def parse_trial(words: list[str], seconds: float) -> Trial:
    """What `generator frames` printed."""
    sent, received, span = int(words[0]), int(words[1]), float(words[2])
    return Trial(sent, received, received / span if span > 0 else 0.0, sent / seconds)


def best_rate(trial: Callable[[float], Trial], start: float) -> float:
    """Find the highest received rate without much loss: up by RAMP, then halve the step.

    A rate at which the sender could not keep up is the end of what this machine can tell.
    """
    best, good, bad, rate = 0.0, 0.0, 0.0, start
    left = BISECTIONS
    while True:
        result = trial(rate)
        if result.good:
            good = rate
            best = max(best, result.received_rate)
            if result.sent_rate < SENDER_TOO_SLOW * rate:
                return best
        else:
            bad = rate
        if left == 0:
            return best
        if not bad:
            rate *= RAMP
            continue
        left -= 1
        if good:
            rate = (good + bad) / 2
        else:
            bad, rate = 0.0, rate / (RAMP * RAMP)


class Readings:
    """Readings by lane; a lane that fails once is left out from then on, with the reason."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.values: dict[str, list[float]] = {}
        self.failures = {
            lane.name: lane.failure for lane in lab.lanes.values() if lane.failure is not None
        }

    def take(
        self, rounds: int, read: Callable[[Lane], float], names: Container[str] | None = None
    ) -> None:
        """Read every lane, or those of these names, once a round, in alternating order."""
        for turn in range(rounds):
            lanes = [lane for lane in self.lab.usable() if names is None or lane.name in names]
            for lane in lanes if turn % 2 == 0 else reversed(lanes):
                if lane.name in self.failures:
                    continue
                try:
                    value = read(lane)
                    self.lab.settle(lane)
                except (Broken, NetlabError, OSError, ValueError) as error:
                    why = str(error).partition("\n")[0]
                    # Another program that does not do its work is no missed target of ours.
                    self.failures[lane.name] = Failure(why, broken=not lane.programs)
                else:
                    self.values.setdefault(lane.name, []).append(value)

    def row(
        self,
        group: str,
        lane: str,
        unit: str,
        reference: str = "",
        target: Target | None = None,
        title: str = "",
    ) -> Row:
        """What was read of a lane, under its name or another title."""
        title = title or lane
        failure = self.failures.get(lane) or self.failures.get(reference)
        if failure is not None:
            return unread(group, title, unit, failure, target)
        beside = self.values[reference] if reference else ()
        return compared(group, title, unit, self.values[lane], reference, beside, target)

    def derived(self, values: dict[str, list[float]]) -> Self:
        """Other figures of the same rounds."""
        made = type(self)(self.lab)
        made.failures, made.values = self.failures, values
        return made


def tunnel_names() -> list[str]:
    return [f"{path} {cipher}" for path in PATHS for cipher in CIPHERS]


def by_path(targets: Mapping[str, Target]) -> dict[str, Target]:
    """The target of each tunnel out of those of the paths."""
    return {name: targets[name.partition(" ")[0]] for name in tunnel_names()}


@dataclass
class Streams:
    """Reads TCP throughput in Gbit/s; keeps what CPU the daemons spent on each GB."""

    count: int
    seconds: float
    cpu_per_gb: dict[str, list[float]] = field(default_factory=dict)

    def read(self, lane: Lane) -> float:
        before = lane.cpu_seconds()
        counted, span, moved = generate("stream", self.seconds, sockets=lane.streams(self.count))
        spent = lane.cpu_seconds() - before
        if lane.pids and int(moved):
            self.cpu_per_gb.setdefault(lane.name, []).append(spent * 1e9 / int(moved))
        return int(counted) * 8 / float(span) / 1e9


def measure(lab: Lab, quick: bool) -> Iterator[Row]:
    rounds, seconds = (1, 0.7) if quick else (ROUNDS, 1.5)
    one, four = Readings(lab), Readings(lab)
    streams = Streams(1, seconds)
    one.take(rounds, streams.read)
    four.take(rounds, Streams(4, seconds).read)
    yield from _one_stream(one)
    yield from _four_streams(one, four)
    yield from _plain(lab, rounds, seconds)
    yield from _small_frames(lab, rounds, 0.25 if quick else 0.4)
    yield from _full_frames(lab, rounds, 0.25 if quick else 0.5)
    for name, target in CPU_PER_GB.items():
        yield cpu_row(one, streams, name, target)
    for name in tunnel_names():
        if name not in CPU_PER_GB:
            yield cpu_row(one, streams, name)


def _one_stream(one: Readings) -> Iterator[Row]:
    group = "TCP, 1 stream"
    yield one.row(group, "veth", "Gbit/s", "vxlan")
    for name in tunnel_names():
        yield one.row(group, name, "Gbit/s", "vxlan", STREAM[name])


def _four_streams(one: Readings, four: Readings) -> Iterator[Row]:
    group = "TCP, 4 streams"
    for name in ("vxlan", *tunnel_names()):
        target = FOUR_STREAMS if name != "vxlan" else None
        failure = four.failures.get(name) or one.failures.get(name)
        if failure is not None:
            yield unread(group, name, "Gbit/s", failure, target)
        else:
            beside = one.values[name]
            yield compared(group, name, "Gbit/s", four.values[name], "1 stream", beside, target)


def _plain(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    plain = Readings(lab)
    with lab.plain_cables():
        plain.take(rounds, Streams(1, seconds).read)
    yield plain.row(PLAIN, "vxlan", "Gbit/s", "veth")
    for name in tunnel_names():
        yield plain.row(PLAIN, name, "Gbit/s", "veth", PLAIN_STREAM.get(name))


def _small_frames(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    group = "64-byte frames, one way, at most 1 % lost"
    small = Readings(lab)
    small.take(rounds, small_frames(small, seconds))
    yield small.row(group, "veth", "/s", "vxlan")
    for name, target in by_path(SMALL_FRAMES).items():
        yield small.row(group, name, "/s", "vxlan", target)


def _full_frames(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    group = "frames of 1,514 bytes (vxlan: 1,428), one way, delivered"
    full = Readings(lab)
    full.take(rounds, full_frames(seconds))
    yield full.row(group, "veth", "/s", "vxlan")
    for name in tunnel_names():
        yield full.row(group, name, "/s", "vxlan", FULL_FRAMES.get(name))


def full_frames(seconds: float) -> Callable[[Lane], float]:
    """Return what reads how many large frames a lane delivers at the best of some rates."""

    def read(lane: Lane) -> float:
        size = FULL_PAYLOAD_VXLAN if lane.name == "vxlan" else FULL_PAYLOAD

        def trial(rate: float) -> float:
            sockets = lane.datagrams()
            words = generate("frames", seconds, int(rate), size, sockets=sockets)
            return parse_trial(words, seconds).received_rate

        return max(map(trial, FULL_RATES))

    return read


def small_frames(known: Readings, seconds: float) -> Callable[[Lane], float]:
    """Return what reads the best rate of a lane; it begins near the readings that are known."""

    def read(lane: Lane) -> float:
        def trial(rate: float) -> Trial:
            sockets = lane.datagrams()
            words = generate("frames", seconds, int(rate), SMALL_PAYLOAD, sockets=sockets)
            return parse_trial(words, seconds)

        before = known.values.get(lane.name)
        return best_rate(trial, max(START_RATE, 0.7 * min(before)) if before else START_RATE)

    return read


def cpu_row(one: Readings, streams: Streams, name: str, target: Target | None = None) -> Row:
    group = "CPU seconds of both daemons for one GB"
    if name in one.failures:
        return unread(group, name, "s", one.failures[name], target)
    return compared(group, name, "s", streams.cpu_per_gb[name], target=target)
