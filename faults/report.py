"""What rows came to, as a table for people and as JSON lines.

Owns: the form of both. Does not know: how an outcome was found.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

PASS, FAIL = "PASS", "FAIL"
NAME, EXPECTED, MEASURED = 26, 38, 56


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row, or one piece of it, that was run."""

    row: str
    piece: int
    seed: int
    verdict: str
    expected: str
    measured: str
    failure: str
    seconds: float

    @property
    def key(self) -> tuple[str, int]:
        return self.row, self.piece

    @property
    def title(self) -> str:
        return f"{self.row} {self.piece}" if self.piece else self.row


def append(path: Path, outcome: Outcome) -> None:
    """Write one JSON line; what came before stays."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


def read(path: Path) -> list[Outcome]:
    """Return what an earlier run has written; nothing when there was none."""
    if not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def table(outcomes: Iterable[Outcome]) -> str:
    """Return one line for each, more where a text is long."""
    head = (f"{'row':{NAME}} {'expected':{EXPECTED}} {'measured':{MEASURED}} verdict seconds",)
    return "\n".join((*head, *(_lines(outcome) for outcome in outcomes)))


def _lines(outcome: Outcome) -> str:
    measured = "; ".join(filter(None, (outcome.failure, outcome.measured)))
    columns = [
        textwrap.wrap(text, width) or [""]
        for text, width in (
            (outcome.title, NAME),
            (outcome.expected, EXPECTED),
            (measured, MEASURED),
        )
    ]
    lines = []
    for number in range(max(map(len, columns))):
        name, expected, found = (c[number] if number < len(c) else "" for c in columns)
        end = f" {outcome.verdict:7} {outcome.seconds:7.0f}" if number == 0 else ""
        lines.append(f"{name:{NAME}} {expected:{EXPECTED}} {found:{MEASURED}}{end}".rstrip())
    return "\n".join(lines)


def judgement(outcomes: Iterable[Outcome]) -> str:
    verdicts = [outcome.verdict for outcome in outcomes]
    return f"{verdicts.count(PASS)} rows hold, {verdicts.count(FAIL)} do not"
