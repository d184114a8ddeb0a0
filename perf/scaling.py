"""What more queues of the TAP bring: `make perf ARGS="--only scaling"`.

One pair of daemons for each number of queues, over UDP, one way: TCP with eight streams, and the
most small frames of eight flows of which at most 1 % are lost. Many flows, because one flow stays in
one queue. Both daemons and both ends of the test share the cores of this machine, so a second queue
pays off only where it has more of them than the first one keeps busy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from shadowmesh._fastpath import build_info

from .lab import Kind, Lab, Lane, output, spawn
from .report import Failure, Row, unread
from .targets import AEGIS, CHACHA
from .tunnel import SMALL_PAYLOAD, START_RATE, Readings, Streams, Trial, best_rate, parse_trial

QUEUES = (1, 2, 4)
FLOWS = 8
#: two queues are measured on any machine: that they cost nothing is worth knowing, too
FEWEST_CORES = 2


def kind(queues: int) -> Kind:
    return Kind("udp", AEGIS if build_info()["aegis256"] else CHACHA, queues=queues)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def tunnels() -> list[Kind]:
    return [kind(count) for count in QUEUES if count <= max(_cores(), FEWEST_CORES)]


def measure(lab: Lab, quick: bool) -> Iterator[Row]:
    rounds, seconds = (2, 0.7) if quick else (5, 1.5)
    shared = f"both daemons and both ends on {_cores()} cores"
    streams, frames = Readings(lab), Readings(lab)
    streams.take(rounds, Streams(FLOWS, seconds).read)
    frames.take(rounds, lambda lane: best_rate(lambda rate: trial(lane, rate), START_RATE))
    for title, unit, readings in (
        (f"TCP, {FLOWS} streams, {shared}", "Gbit/s", streams),
        (f"64-byte frames of {FLOWS} flows, one way, at most 1 % lost, {shared}", "/s", frames),
    ):
        for count in QUEUES:
            name = kind(count).name
            if name in lab.lanes:
                reference = kind(1).name if count > 1 else ""
                yield readings.row(title, name, unit, reference)
            else:
                yield unread(title, name, unit, Failure(f"this machine has {_cores()} cores"))


def trial(lane: Lane, rate: float, seconds: float = 0.3) -> Trial:
    """Send small frames of all flows at once, `rate` a second in all."""
    running = []
    for _ in range(FLOWS):
        ends = lane.datagrams()
        words = seconds, int(rate / FLOWS), SMALL_PAYLOAD
        running.append(spawn("frames", *words, sockets=ends))
        for end in ends:
            end.close()
    found = [parse_trial(output(one, seconds + 15).split(), seconds) for one in running]
    return Trial(
        sum(one.sent for one in found),
        sum(one.received for one in found),
        sum(one.received_rate for one in found),
        sum(one.sent_rate for one in found),
    )
