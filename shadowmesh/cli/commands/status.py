"""`shadowmesh status`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from shadowmesh.base.errors import one_line
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.failures import DaemonNotRunning, NoAnswer
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import parse_time, print_json
from shadowmesh.cli.render import render
from shadowmesh.cli.settings import Settings

EXIT_NOT_CONNECTED = 5
#: ANSI: cursor home, erase to the end of the screen; no flicker, as nothing is blanked first
_REDRAW = "\x1b[H\x1b[J"


@click.command(cls=Command)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True,
    metavar="SECONDS", help="Time between two looks of --watch.",
)  # fmt: skip
@click.pass_obj
def status(settings: Settings, watch: bool, interval: float) -> int:
    """Show state, peer, path, cipher, traffic, drops and health.

    Exit code 0 only when connected, else 5; with --watch 0 when ended by Ctrl-C.
    """
    client = settings.client()
    if watch:
        try:
            _watch(settings, client, interval)
        except KeyboardInterrupt:
            return 0
    snapshot = client.status()
    if settings.json:
        print_json(snapshot)
    else:
        click.echo(render(snapshot, _now(snapshot)))
    return 0 if snapshot["state"] == "connected" else EXIT_NOT_CONNECTED


def _watch(settings: Settings, client: ApiClient, interval_s: float) -> None:
    """Show snapshots for ever. The first must succeed; later failures are shown and outlived."""
    previous: tuple[float, dict[str, Any]] | None = None
    redraw = sys.stdout.isatty() and not settings.json
    while True:
        try:
            snapshot = client.status()
        except (DaemonNotRunning, NoAnswer) as error:
            if previous is None:
                raise
            _show_failure(settings, error, redraw=redraw)
        else:
            came_at = time.monotonic()
            if settings.json:
                print_json(snapshot, pretty=False)
            else:
                before = None if previous is None else (came_at - previous[0], previous[1])
                block = render(snapshot, _now(snapshot), before)
                click.echo(f"{_REDRAW}{block}" if redraw else f"{block}\n")
            previous = (came_at, snapshot)
        # the reader of a pipe wants each block when it is due
        sys.stdout.flush()
        time.sleep(interval_s)


def _now(snapshot: dict[str, Any]) -> float:
    """Return the moment of a snapshot by the daemon's clock, which its other times are of."""
    return parse_time(snapshot.get("now")) or time.time()


def _show_failure(settings: Settings, error: Exception, *, redraw: bool) -> None:
    if settings.json:
        print_json({"schema": 1, "error": {"message": str(error)}}, pretty=False)
    else:
        line = f"{click.style('error:', fg='red')} {one_line(str(error))}"
        click.echo(f"{_REDRAW}{line}" if redraw else f"{line}\n")
