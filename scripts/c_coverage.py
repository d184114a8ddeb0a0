"""Say which lines of the data plane ran: c_coverage.py OBJECTS, where gcc has put its notes and counts.

The C that Cython writes names the lines of the .pxd and .pyx files that it comes from, so gcov counts
those. A line counts as reached when any module that contains it has reached it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLANE = ROOT / "shadowmesh"
#: what tests and measurements call the data plane by is not the data plane
WITHOUT = ("fast/hooks/", "fast/bench.pyx")
#: Cython names a file from the directory of the one that includes it; no two have one name
SOURCES = {
    path.name: path for kind in ("pyx", "pxd", "pxi", "h") for path in PLANE.rglob(f"*.{kind}")
}


def main(objects: Path) -> None:
    reached: dict[str, dict[int, bool]] = defaultdict(dict)
    for counts in sorted(objects.rglob("*.gcda")):
        for source, line, count in lines_of(counts):
            reached[source][line] = reached[source].get(line, False) or count > 0
    if not reached:
        sys.exit(f"c_coverage: no counts under {objects}: has anything run that was built for it?")
    everything = [hit for lines in reached.values() for hit in lines.values()]
    print(f"{'lines':>6} {'reached':>8}       not reached")
    for source, lines in sorted(reached.items()):
        row(source, lines.values(), missing(lines))
    row("all", everything, "")


def lines_of(counts: Path) -> Iterable[tuple[str, int, int]]:
    """Return (file, line, how often it ran) of our own sources from one file of counts."""
    told = subprocess.run(
        ["gcov", "--json-format", "--stdout", counts.name],
        cwd=counts.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    for text in told.stdout.splitlines():
        for file in json.loads(text)["files"]:
            path = Path(file["file"])
            if path.name not in SOURCES or (path.is_absolute() and not path.is_relative_to(ROOT)):
                continue
            source = str(SOURCES[path.name].relative_to(PLANE))
            if source.startswith(WITHOUT):
                continue
            for line in file["lines"]:
                yield source, line["line_number"], line["count"]


def row(name: str, hits: Iterable[bool], lacking: str) -> None:
    known = list(hits)
    print(f"{len(known):>6} {100 * sum(known) / len(known):>7.1f}%  {name:<28} {lacking}".rstrip())


def missing(lines: dict[int, bool]) -> str:
    """Return the lines that were not reached, "12, 15-17"."""
    runs: list[list[int]] = []
    for line in sorted(lines):
        if lines[line]:
            runs.append([])
        elif runs and runs[-1]:
            runs[-1].append(line)
        else:
            runs.append([line])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if run)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
