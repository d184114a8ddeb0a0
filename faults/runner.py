"""Runs rows, each in a process and in namespaces of its own, some side by side.

Owns: those processes. A row has its own network, mounts and process numbers, so that whatever it
leaves, also when it is killed, goes with it: the kernel ends all its processes and its hosts.

    runner --unshare--> python -m faults.one ROW ...  --> one line of JSON in a file
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .bench import FIGURES
from .catalogue import Row
from .report import FAIL, PASS, Outcome

#: nor does it outlive the runner, however that ends
NAMESPACES: Final = (
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """A row to run; `piece` counts from 1 where a row has several, else it is 0."""

    row: Row
    piece: int
    seed: int
    long: bool

    @property
    def bound_s(self) -> float:
        return self.row.long_bound_s if self.long else self.row.bound_s


@dataclass(slots=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    place: Path
    began: float
    ends_at: float
    ended_early: bool = False


def run(
    jobs: Iterable[Job],
    directory: Path,
    at_once: int,
    tell: Callable[[Outcome], None],
    limit_s: float = math.inf,
) -> list[Outcome]:
    """Run all; those that load the machine come last, one by one.

    Args:
        directory: for logs; each job gets one below it.
        tell: called with each outcome when it is known.
        limit_s: for all together; what has not ended by then fails.
    """
    jobs, ends_at = list(jobs), time.monotonic() + limit_s
    outcomes: list[Outcome] = []
    # The long ones first: what runs side by side then ends at about the same time.
    waiting = sorted((j for j in jobs if not j.row.loads), key=lambda j: -j.bound_s)
    for batch, width in ((waiting, at_once), ([j for j in jobs if j.row.loads], 1)):
        for outcome in _run(batch, directory, width, ends_at):
            outcomes.append(outcome)
            tell(outcome)
    order = {(job.row.name, job.piece): number for number, job in enumerate(jobs)}
    return sorted(outcomes, key=lambda outcome: order[outcome.key])


def _run(jobs: list[Job], directory: Path, width: int, ends_at: float) -> Iterator[Outcome]:
    queue, running = list(jobs), list[_Running]()
    try:
        while queue or running:
            while queue and len(running) < width:
                running.append(_start(queue.pop(0), directory, ends_at))
            time.sleep(POLL_S)
            for one in list(running):
                if one.process.poll() is not None:
                    running.remove(one)
                    yield _outcome(one)
                else:
                    _hurry(one)
    finally:
        for one in running:
            one.process.kill()
            one.process.wait()


def _start(job: Job, directory: Path, ends_at: float) -> _Running:
    place = directory / f"{job.row.name.replace('/', ' ')} {job.piece}".replace(" ", "-")
    place.mkdir(parents=True)
    words = [*NAMESPACES, sys.executable, "-m", "faults.one", job.row.name, str(place)]
    words += [str(job.seed), str(int(job.long))]
    with (place / "row.log").open("wb") as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    now = time.monotonic()
    return _Running(job, process, place, now, min(now + job.bound_s, ends_at))


def _hurry(one: _Running) -> None:
    """End a row whose time is over."""
    if time.monotonic() > one.ends_at:
        one.ended_early = True
        one.process.kill()


def _outcome(one: _Running) -> Outcome:
    job, seconds = one.job, time.monotonic() - one.began
    result = one.place / "result.json"
    if one.ended_early:
        found = {"figures": [], "failure": f"not through after {seconds:.0f} s"}
        if (figures := one.place / FIGURES).exists():
            found["figures"] = figures.read_text("utf-8").splitlines()
    elif result.exists():
        found = json.loads(result.read_text("utf-8"))
    else:
        log = (one.place / "row.log").read_text(errors="replace").strip().splitlines()
        found = {"figures": [], "failure": f"ended without a result: {(log or ['?'])[-1]}"}
    return Outcome(
        row=job.row.name,
        piece=job.piece,
        seed=job.seed,
        verdict=FAIL if found["failure"] else PASS,
        expected=job.row.expected,
        measured="; ".join(found["figures"]),
        failure=found["failure"],
        seconds=round(seconds, 1),
    )


def why_not_here() -> str | None:
    """Return why rows cannot run on this machine, None when they can."""
    try:
        probe = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            return probe.stderr.strip()
    except OSError as error:
        return str(error)
    return None
