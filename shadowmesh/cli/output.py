"""Small forms of text: JSON, what came from outside, times, warnings.

Owns: what they look like. Does not know: commands, what is said.
"""

from __future__ import annotations

import json
import os
import stat
import sys
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


def texts(value: object) -> list[str]:
    """Return the entries of a list for a terminal; none of what is no list."""
    return [text(one) for one in value] if isinstance(value, list) else []


def warn(sentence: str) -> None:
    """Say on stderr what is not as it should be."""
    click.echo(f"{click.style('warning:', fg='yellow')} {sentence}", err=True)


def warn_when_others_can_read(what: str) -> None:
    """Say so when a secret goes to a file that others may read."""
    try:
        status = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return  # not a file
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        warn(
            f"{what} goes to a file that others may open (mode {mode:04o}); set `umask 077`"
            " before, or `chmod 600` it"
        )
