"""The comparison as a picture: one panel for each group of rows, a bar for each row.

Grey bars are references, green ones reach their target, red ones miss it. The solid mark is what a
row must reach, the dotted one the moonshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .report import FAIL, PASS, SKIP, Row, machine, number
from .tunnel import PLAIN

COLUMNS = 2
PANEL_WIDTH, MARGIN, ROW_HEIGHT, LABEL_WIDTH, VALUE_WIDTH = 680, 24, 24, 190, 150
TITLE_HEIGHT = 34
BACKGROUND, INK, FAINT = "#ffffff", "#22262a", "#8a9097"
COLOURS = {PASS: "#3f9a5c", FAIL: "#cc4b3d", SKIP: "#c9cdd1", "": "#aab2ba"}
#: Groups whose rows differ so much that only their logarithm can be seen are left to the table.
SHOWN = (
    "TCP, 1 stream",
    PLAIN,
    "TCP, 4 streams",
    "64-byte frames, one way, at most 1 % lost",
    "round trip, idle, one after the other, p50",
    "round trip, idle, 200 a second, p50",
    "round trip beside one TCP stream, p50",
    "round trip beside one TCP stream, p99",
    "CPU seconds of both daemons for one GB",
)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG with the groups of SHOWN that were measured; nothing when there are none."""
    panels = list(_panels(rows))
    if not panels:
        return
    heights = [TITLE_HEIGHT + ROW_HEIGHT * len(panel) + MARGIN for panel in panels]
    lines = [max(heights[i : i + COLUMNS]) for i in range(0, len(heights), COLUMNS)]
    width = MARGIN + COLUMNS * (PANEL_WIDTH + MARGIN)
    image = Image.new("RGB", (width, 3 * MARGIN + sum(lines)), BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN), f"ShadowMesh: {machine()}", FAINT, font=_font(14))
    top = 3 * MARGIN
    for index, panel in enumerate(panels):
        left = MARGIN + index % COLUMNS * (PANEL_WIDTH + MARGIN)
        _panel(pen, left, top, panel)
        if index % COLUMNS == COLUMNS - 1:
            top += lines[index // COLUMNS]
    image.save(path)


def _panels(rows: Sequence[Row]) -> Iterator[list[Row]]:
    for group in SHOWN:
        panel = [row for row in rows if row.group == group]
        if any(row.value is not None for row in panel):
            yield _with_reference(panel)


def _with_reference(panel: list[Row]) -> list[Row]:
    """Put the reference of the rows on top, unless it is a row itself or another lane's value."""
    first = panel[0]
    named = {row.name for row in panel}
    if first.reference in named or first.reference not in ("veth", "vxlan"):
        return panel
    top = Row(first.group, first.reference, first.reference_value, first.unit)
    return [top, *panel]


def _panel(pen: ImageDraw.ImageDraw, left: int, top: int, panel: list[Row]) -> None:
    pen.text((left, top), f"{panel[0].group} ({panel[0].unit})", INK, font=_font(15))
    start, room = left + LABEL_WIDTH, PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH
    largest = max(row.value or 0 for row in panel) or 1
    for index, row in enumerate(panel):
        y = top + TITLE_HEIGHT + index * ROW_HEIGHT
        pen.text((left, y), row.name, INK, font=_font(13))
        if row.value is None:
            pen.text((start, y), f"not measured: {row.why}"[:70], FAINT, font=_font(12))
            continue
        length = round(room * row.value / largest)
        pen.rectangle((start, y, start + max(length, 1), y + ROW_HEIGHT - 8), COLOURS[row.verdict])
        ratio = f"  ({row.ratio:.2f} x {row.reference})" if row.ratio is not None else ""
        beyond = start + length + 6
        for limit, dotted in ((_limit(row, "must"), False), (_limit(row, "moonshot"), True)):
            if limit is not None and limit <= largest:
                x = start + round(room * limit / largest)
                _mark(pen, x, y - 2, y + ROW_HEIGHT - 6, dotted=dotted)
                beyond = max(beyond, x + 6)
        pen.text((beyond, y), number(row.value) + ratio, INK, font=_font(12))


def _limit(row: Row, which: str) -> float | None:
    """Where the target lies on the axis of the values."""
    limit: float | None = getattr(row.target, which, None)
    if limit is None or row.ratio is None:
        return limit
    return None if row.reference_value is None else limit * row.reference_value


def _mark(pen: ImageDraw.ImageDraw, x: int, top: int, bottom: int, *, dotted: bool) -> None:
    step = 4 if dotted else 1
    for y in range(top, bottom, step):
        pen.line((x, y, x, y + (1 if dotted else step)), INK, 2)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
