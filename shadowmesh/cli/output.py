"""Small forms of text: JSON, units, relative times."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from shadowmesh.errors import one_line

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def print_json(value: dict[str, Any], *, pretty: bool = True) -> None:
    """Print one JSON object, ASCII only; on one line when it is one of several."""
    click.echo(json.dumps(value, indent=2 if pretty else None))


def text(value: object) -> str:
    """Return value for a terminal: what came from outside cannot move the cursor."""
    return "-" if value is None else one_line(str(value))


def count(number: int, noun: str) -> str:
    """Return ``1 frame``, ``12,345 frames``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Return a number of bytes as ``512 B``, ``1.4 KiB`` and so on."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        # 1023.95 would be written as 1024.0
        if number < 1023.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """Return a duration with its two largest units; below zero (the clock was set) as ``0s``."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE}m"
    return f"{whole // _DAY}d {whole % _DAY // _HOUR}h"


def parse_time(value: object) -> float | None:
    """Return an RFC 3339 time as wall-clock seconds; None when it is none."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None
