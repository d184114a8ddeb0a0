"""Small forms of text: JSON, what came from outside, times."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from shadowmesh.base.errors import one_line


def print_json(value: dict[str, Any], *, pretty: bool = True) -> None:
    """Print one JSON object, ASCII only; on one line when it is one of several."""
    click.echo(json.dumps(value, indent=2 if pretty else None))


def text(value: object) -> str:
    """Return value for a terminal: what came from outside cannot move the cursor."""
    return "-" if value is None else one_line(str(value))


def parse_time(value: object) -> float | None:
    """Return an RFC 3339 time as wall-clock seconds; None when it is none."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None
