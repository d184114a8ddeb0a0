"""What each optimisation brings: the same tunnel without it, beside the whole one, in turns.

One pair of daemons for each word of SHADOWMESH_WITHOUT that matters on the path, and one with the
slower cipher. A ratio of 0.5 says: without it half of the throughput is left.
"""

from __future__ import annotations

from collections.abc import Iterator

from .lab import Kind, Lab
from .report import Row
from .targets import AEGIS, CHACHA
from .tunnel import Readings, Streams, small_frames

#: what is switched off, by path: WSS knows neither trains of datagrams nor joined ones
WORDS = {
    "udp": ("tso", "csum", "gso", "gro", "join", "batch", "pack"),
    "wss": ("tso", "csum", "batch"),
}
TUNNELS = tuple(
    kind
    for path, words in WORDS.items()
    for kind in (
        Kind(path, AEGIS),
        Kind(path, CHACHA),
        *(Kind(path, AEGIS, word) for word in words),
    )
)


def measure(lab: Lab, quick: bool) -> Iterator[Row]:
    rounds, seconds = (1, 0.7) if quick else (3, 1.2)
    streams = Streams(1, seconds)
    speed, rate = Readings(lab), Readings(lab)
    speed.take(rounds, streams.read)
    rate.take(1 if quick else 2, small_frames(rate, 0.25 if quick else 0.4))
    spent = Readings(lab)
    spent.failures = speed.failures
    spent.values = streams.cpu_per_gb
    for title, unit, readings in (
        ("TCP, 1 stream", "Gbit/s", speed),
        ("CPU seconds of both daemons for one GB", "s", spent),
        ("64-byte frames, one way, at most 1 % lost", "/s", rate),
    ):
        for path in WORDS:
            yield from _compared(
                lab, f"{path}, less one thing at a time: {title}", path, unit, readings
            )


def _compared(lab: Lab, group: str, path: str, unit: str, readings: Readings) -> Iterator[Row]:
    whole = Kind(path, AEGIS).name
    for lane in lab.lanes.values():
        if lane.path == path:
            reference = "" if lane.name == whole else whole
            yield readings.row(group, lane.name, unit, reference)
