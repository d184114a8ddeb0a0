"""`make faults`: do to two daemons what the fault catalogue lists, and print what came of it.

Exit code: 0 when every row holds, 1 when one does not, 2 for a pattern that fits none, 4 without
the right to make namespaces, 130 when interrupted. build/faults/outcomes.jsonl has a line for each
row, build/faults/RUN/ROW the logs.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shadowmesh.cli.benchmark import machine

from . import report, runner
from .catalogue import Row, rows
from .report import FAIL, Outcome

ROOT = Path(__file__).resolve().parent.parent
#: for all rows together, but with --long
LIMIT_S = 40 * 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="rows with this in their name, or a glob"
    )
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument(
        "--long", action="store_true", help="full counts and a soak of 8 hours, in pieces of one"
    )
    parser.add_argument("--seed", type=int, help="repeat the chance of an earlier run")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what the last run has through, same seed"
    )
    parser.add_argument("--jobs", type=int, default=5, help="rows side by side (default 5)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "faults", help="directory")
    options = parser.parse_args(arguments)
    wanted = [row for row in rows() if _fits(row, options.only)]
    if not wanted:
        print(f"faults: no row fits {options.only}; --list names them", file=sys.stderr)
        return 2
    if options.list:
        for row in wanted:
            print(f"{row.name:52} {row.expected}")
        return 0
    if os.geteuid() != 0 or (reason := runner.why_not_here()):
        reason = "not root" if os.geteuid() != 0 else reason
        print(f"faults: no right to make namespaces ({reason}): run as root", file=sys.stderr)
        return 4
    return _run(wanted, options)


def _fits(row: Row, patterns: Sequence[str] | None) -> bool:
    return not patterns or any(
        pattern.lower() in row.name.lower() or fnmatch.fnmatch(row.name, pattern)
        for pattern in patterns
    )


def _run(wanted: Sequence[Row], options: argparse.Namespace) -> int:
    options.output = options.output.resolve()
    lines = options.output / "outcomes.jsonl"
    before = report.read(lines) if options.resume else []
    seed = options.seed
    if seed is None:
        seed = before[0].seed if before else random.SystemRandom().randrange(1 << 31)
    through = {outcome.key for outcome in before if outcome.verdict != FAIL}
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        lines.unlink(missing_ok=True)
    place = options.output / "logs"
    shutil.rmtree(place, ignore_errors=True)
    jobs = [
        runner.Job(row, piece, seed, options.long)
        for row in wanted
        for piece in (range(1, row.pieces + 1) if options.long and row.pieces > 1 else (0,))
        if (row.name, piece) not in through
    ]
    began = time.monotonic()
    print(f"{machine()}\n{len(jobs)} rows, seed {seed}, {options.jobs} side by side\n")

    def tell(outcome: Outcome) -> None:
        report.append(lines, outcome)
        print(
            f"{time.monotonic() - began:5.0f} s  {outcome.verdict}  {outcome.title}  "
            f"{outcome.failure}",
            file=sys.stderr,
            flush=True,
        )

    for number in (signal.SIGINT, signal.SIGTERM):  # a job in the background ignores the first
        signal.signal(number, signal.default_int_handler)
    try:
        limit_s = math.inf if options.long else LIMIT_S
        outcomes = runner.run(jobs, place, options.jobs, tell, limit_s)
    except KeyboardInterrupt:
        print(f"\nfaults: interrupted; go on with --resume (seed {seed})", file=sys.stderr)
        return 130
    kept = [outcome for outcome in before if outcome.key in through]
    print(report.table([*kept, *outcomes]))
    print(
        f"\n{report.judgement([*kept, *outcomes])}; seed {seed}; "
        f"{time.monotonic() - began:.0f} s; written to {lines}"
    )
    return 1 if any(outcome.verdict == FAIL for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
