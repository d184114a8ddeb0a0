"""Rows of the result: verdicts, the table, the JSON file and the picture.

Owns: how figures are judged and shown. Does not know: how they were measured.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shadowmesh.cli.benchmark import machine

from .targets import Target

PASS, FAIL, SKIP, SHOWN = "PASS", "FAIL", "SKIP", ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        group, name: what was measured, and on what.
        value, unit: the median of the rounds.
        reference, reference_value: what it is compared with in the same rounds.
        ratio: the median of the ratios of the rounds, in which drift cancels out.
        target: what it is judged by; None for a figure that is only shown.
        why: of a row that could not be measured.
        broken: that is our fault: a missed target, not a missing feature of this machine.
        rounds, ratios: every reading, and what it was to the reference in its round.
    """

    group: str
    name: str
    value: float | None
    unit: str
    reference: str = ""
    reference_value: float | None = None
    ratio: float | None = None
    target: Target | None = None
    why: str = ""
    broken: bool = False
    rounds: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()

    @property
    def figure(self) -> float | None:
        """What the target judges."""
        return self.value if self.ratio is None else self.ratio

    @property
    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest of what the target judges; None of a single round."""
        figures = self.ratios or self.rounds
        return (min(figures), max(figures)) if len(figures) > 1 else None

    @property
    def verdict(self) -> str:
        if self.why:
            return FAIL if self.broken else SKIP
        if self.target is None or self.target.must is None or self.figure is None:
            return SHOWN
        return PASS if self.target.met(self.figure) else FAIL

    @property
    def moonshot(self) -> str:
        """How far the moonshot is: "reached", or the factor that is missing."""
        figure, target = self.figure, self.target
        if figure is None or target is None or target.moonshot is None:
            return ""
        if target.splendid(figure):
            return "reached"
        near, far = sorted((figure, target.moonshot))
        return f"{far / near:.2f}x to go" if near else f"{far:g} to go"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict, "moonshot": self.moonshot}


def compared(
    group: str,
    name: str,
    unit: str,
    rounds: Sequence[float],
    reference: str = "",
    reference_rounds: Sequence[float] = (),
    target: Target | None = None,
) -> Row:
    """A row out of the readings of interleaved rounds, with or without a reference."""
    ratio = reference_value = None
    ratios: tuple[float, ...] = ()
    if reference_rounds:
        pairs = zip(rounds, reference_rounds, strict=True)
        ratios = tuple(mine / other if other else math.inf for mine, other in pairs)
        ratio = statistics.median(ratios)
        reference_value = statistics.median(reference_rounds)
    value = statistics.median(rounds)
    return Row(
        group,
        name,
        value,
        unit,
        reference,
        reference_value,
        ratio,
        target,
        rounds=tuple(rounds),
        ratios=ratios,
    )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no reading; `broken` as in Row."""

    why: str
    broken: bool = False


def unread(group: str, name: str, unit: str, failure: Failure, target: Target | None = None) -> Row:
    return Row(group, name, None, unit, target=target, why=failure.why, broken=failure.broken)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was seen, never one in between.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def number(value: float | None) -> str:
    """Three significant digits, as people read them."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g} M"
    if size >= 1e4:
        return f"{value / 1e3:.3g} k"
    if size >= 1e3:
        return f"{value:.0f}"
    return f"{value:.3g}"


def limit(row: Row, which: str) -> str:
    """What a row's target asks for: its "must" or its "moonshot", in words."""
    value = getattr(row.target, which, None)
    if row.target is None or value is None:
        return ""
    sign = ">=" if row.target.at_least else "<="
    what = f" x {row.reference}" if row.ratio is not None else ""
    return f"{sign} {number(value)}{what}"


def spread(row: Row) -> str:
    return "" if row.spread is None else "..".join(map(number, row.spread))


HEADINGS = (
    "measure", "measured", "reference", "ratio", "spread", "must", "moonshot", "verdict", "note",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """All rows under one heading, groups apart."""
    lines: list[tuple[str, ...]] = [HEADINGS]
    group = None
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append((group,))
        value = "-" if row.value is None else f"{number(row.value)} {row.unit}"
        reference = f"{row.reference} {number(row.reference_value)}" if row.reference else ""
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(
            (
                f"  {row.name}",
                value,
                reference,
                ratio,
                spread(row),
                limit(row, "must"),
                limit(row, "moonshot"),
                row.verdict,
                row.why or row.moonshot,
            )
        )
    columns = [line for line in lines if len(line) > 1]
    widths = [max(len(line[i]) for line in columns) for i in range(len(HEADINGS))]
    right = {1, 3}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )


def judgement(rows: Sequence[Row]) -> str:
    counts = {word: sum(row.verdict == word for row in rows) for word in (PASS, FAIL, SKIP)}
    splendid = sum(row.moonshot == "reached" for row in rows)
    text = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"{text}; {splendid} moonshots reached"


def failed(rows: Sequence[Row]) -> bool:
    return any(row.verdict == FAIL for row in rows)


def write_json(path: Path, rows: Sequence[Row], quick: bool) -> None:
    """Everything that was read, for whoever compares two runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine(),
        "quick": quick,
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": [row.to_dict() for row in rows],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
