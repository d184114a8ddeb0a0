"""`make perf`: measure, print one table, write build/perf.json and build/perf.png.

The picture wants Pillow (`pip install .[perf]`, which `make perf` does); without it the rest is done.

Exit code: 0 when no target was missed, 1 when one was, 4 without the right to measure.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shadowmesh.cli.benchmark import machine
from shadowmesh.netlab import NetlabError

from . import (
    ablation,
    beside,
    fps,
    keys,
    lab,
    latency,
    many,
    members,
    others,
    report,
    resources,
    scaling,
    soak,
    tunnel,
    uring,
)
from .report import Row

Measure = Callable[[lab.Lab, bool], Iterator[Row]]
#: In the order in which they run; memory is read after the load.
THROUGH_TUNNELS: dict[str, Measure] = {
    "tunnel": tunnel.measure,
    "latency": latency.measure,
    "resources": resources.measure,
}
ALL = ("fps", "keys", *THROUGH_TUNNELS)
#: what judges no target or takes minutes: only when it is asked for
ON_DEMAND = ("ablation", "many", "members", "others", "scaling", "soak", "uring")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="perf", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one round, a minute: figures only roughly right"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=(*ALL, *ON_DEMAND),
        metavar="NAME",
        help=f"one of {', '.join(ALL)}; or of what is not part of all: {', '.join(ON_DEMAND)}",
    )
    parser.add_argument(
        "--gb", type=float, default=10.0, help="soak: gigabytes over each path (default 10)"
    )
    parser.add_argument(
        "--frames", type=float, default=1e7, help="soak: frames over each path (default 10^7)"
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="DIRECTORY",
        help="nothing but this build beside that of another checkout, in turns, about 12 minutes",
    )
    parser.add_argument("--output", type=Path, default=lab.ROOT / "build", help="directory")
    options = parser.parse_args(arguments)
    wanted = ("beside",) if options.beside else options.only or ALL
    if not set(wanted) <= {"fps", "keys"} and os.geteuid() != 0:
        print("perf: network namespaces need root: run as root or use --only fps", file=sys.stderr)
        return 4
    began = time.monotonic()
    print(f"{machine()}\n")
    amount = soak.Amount(options.gb * 1e9, options.frames)
    try:
        if options.beside:
            rows = list(_beside(options.beside, options.quick))
        else:
            rows = list(_rows(wanted, options.quick, amount))
    except NetlabError as error:
        print(f"perf: {error}", file=sys.stderr)
        return 1
    print(report.table(rows))
    report.write_json(options.output / "perf.json", rows, options.quick)
    print(
        f"\n{report.judgement(rows)}; {time.monotonic() - began:.0f} s; "
        f"written to {options.output}/perf.json and {_draw(options.output, rows)}"
    )
    return 1 if report.failed(rows) else 0


def _draw(directory: Path, rows: Sequence[Row]) -> str:
    """Draw the picture; return its name, or why there is none."""
    try:
        from . import picture
    except ModuleNotFoundError as error:
        if error.name != "PIL":
            raise
        return "no picture: Pillow is not installed (pip install '.[perf]')"
    picture.draw(directory / "perf.png", rows)
    return "perf.png"


def _rows(wanted: Sequence[str], quick: bool, amount: soak.Amount) -> Iterator[Row]:
    if "fps" in wanted:
        _say("fps")
        yield from fps.measure(quick)
    if "keys" in wanted:
        _say("keys")
        yield from keys.measure(quick)
    if "members" in wanted:
        _say("members")
        yield from members.measure(quick)
    if "uring" in wanted:
        _say("uring")
        yield from uring.measure(quick)
    with tempfile.TemporaryDirectory(prefix="shadowmesh-perf-") as directory:
        if set(wanted) & set(THROUGH_TUNNELS):
            with lab.Lab(Path(directory)) as lanes:
                for name, measure in THROUGH_TUNNELS.items():
                    if name in wanted:
                        _say(name)
                        yield from measure(lanes, quick)
        if "ablation" in wanted:
            _say("ablation")
            with lab.Lab(Path(directory), ablation.TUNNELS, references=False) as lanes:
                yield from ablation.measure(lanes, quick)
        if "many" in wanted:
            _say("many")
            yield from many.measure(Path(directory), quick)
        if "others" in wanted:
            _say("others")
            with (
                lab.Lab(Path(directory), others.TUNNELS) as lanes,
                others.beside(lanes, Path(directory)),
            ):
                yield from others.measure(lanes, quick)
        if "scaling" in wanted:
            _say("scaling")
            with lab.Lab(Path(directory), scaling.tunnels(), references=False) as lanes:
                yield from scaling.measure(lanes, quick)
        if "soak" in wanted:
            _say("soak")
            with lab.Lab(Path(directory), soak.TUNNELS, references=False) as lanes:
                yield from soak.measure(lanes, amount)


def _beside(other: Path, quick: bool) -> Iterator[Row]:
    kinds = beside.tunnels(other)
    with (
        tempfile.TemporaryDirectory(prefix="shadowmesh-perf-") as directory,
        lab.Lab(Path(directory), kinds, references=False) as lanes,
    ):
        beside.check(lanes, other)
        _say("beside")
        yield from beside.measure(lanes, quick)


def _say(name: str) -> None:
    print(f"measuring {name} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
