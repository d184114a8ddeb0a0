"""This build beside another one: `make perf ARGS="--beside DIRECTORY"`, a checkout with its build.

For each path and cipher there are three tunnels: one of this build, the same once more, and one of the
other build. All lanes are up together and take turns within seconds, so that drift of the machine
meets all alike; what "again" is away from 1 is how much of a ratio is chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from shadowmesh.netlab import NetlabError

from .lab import TUNNELS, Kind, Lab, Lane, generate
from .latency import ONE_AFTER_THE_OTHER, PER_SECOND, RoundTrips, idle_trips, trips_beside_stream
from .report import Row
from .resources import FRAMES_PER_SECOND, at_ten_thousand, resident_bytes
from .tunnel import FULL_RATES, PLAIN, SMALL_PAYLOAD, Readings, Streams, full_frames, parse_trial

AGAIN, BEFORE = "again", "before"


def tunnels(other: Path) -> list[Kind]:
    """Three for each path and cipher.

    Raises:
        NetlabError: nothing is built in that directory.
    """
    if not (other / ".venv" / "bin" / "shadowmesh-daemon").exists():
        raise NetlabError(f"{other}: no build there; run `make build` in it")
    return [
        Kind(kind.path, kind.cipher, title=title, built=built)
        for kind in TUNNELS
        for title, built in (("", None), (AGAIN, None), (BEFORE, other.resolve()))
    ]


def check(lab: Lab, other: Path) -> None:
    """Make sure that each daemon runs the data plane of its own build.

    Raises:
        NetlabError: one has found that of another, by PYTHONPATH for instance.
    """
    theirs = f"{other.resolve()}/shadowmesh/_fastpath."
    for lane in lab.tunnels():
        for pid in lane.pids:
            if (theirs in Path(f"/proc/{pid}/maps").read_text()) != lane.name.endswith(BEFORE):
                raise NetlabError(f"{lane.name}: its daemon runs another build's data plane")


def measure(lab: Lab, quick: bool) -> Iterator[Row]:
    rounds, seconds = (3, 0.7) if quick else (9, 1.0)
    names = [lane.name for lane in lab.tunnels()]

    def take(group: str, unit: str, read: Callable[[Lane], float]) -> Iterator[Row]:
        readings = Readings(lab)
        readings.take(rounds, read, names)
        yield from _compared(group, unit, readings)

    one = Streams(1, seconds)
    yield from take("TCP, 1 stream", "Gbit/s", one.read)
    spent = Readings(lab)
    spent.values = one.cpu_per_gb
    yield from _compared("CPU seconds of both daemons for one GB", "s", spent)
    yield from take("TCP, 4 streams", "Gbit/s", Streams(4, seconds).read)
    with lab.plain_cables():
        yield from take(PLAIN, "Gbit/s", Streams(1, seconds).read)
    yield from take("64-byte frames, one way, delivered", "/s", _small_frames)
    yield from take("frames of 1,514 bytes, one way, delivered", "/s", full_frames(0.3))
    for title, per_second in (
        ("one after the other", ONE_AFTER_THE_OTHER),
        (f"{PER_SECOND} a second", PER_SECOND),
    ):
        read = idle_trips(RoundTrips(), seconds / 2, per_second)
        yield from take(f"round trip, idle, {title}, p50", "us", read)
    trips = RoundTrips()
    loaded = Readings(lab)
    loaded.take(rounds, trips_beside_stream(trips, seconds), names)
    for percent in (50, 99):
        readings = loaded.derived(trips.percentiles(percent, "ms"))
        yield from _compared(f"round trip beside one TCP stream, p{percent}", "ms", readings)
    group = f"CPU of one daemon at {FRAMES_PER_SECOND:,} frames/s"
    yield from take(group, "%", lambda lane: at_ten_thousand(lane, seconds)[0])
    memory = Readings(lab)
    memory.take(1, lambda lane: max(map(resident_bytes, lane.pids)) / 2**20, names)
    yield from _compared("memory of one daemon after load", "MiB", memory)


def _compared(group: str, unit: str, readings: Readings) -> Iterator[Row]:
    for kind in TUNNELS:
        before = f"{kind.name} {BEFORE}"
        for name in (kind.name, f"{kind.name} {AGAIN}"):
            yield readings.row(group, name, unit, before)


def _small_frames(lane: Lane) -> float:
    def trial(rate: float) -> float:
        words = generate("frames", 0.3, int(rate), SMALL_PAYLOAD, sockets=lane.datagrams())
        return parse_trial(words, 0.3).received_rate

    return max(map(trial, FULL_RATES))
