"""`shadowmesh logs`.

The log itself where this user may read it; else, for who may only look, the events that the daemon
keeps, which it tells by its API.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click

from shadowmesh.base.constants import MAX_EVENTS
from shadowmesh.base.errors import NotPermitted, ShadowMeshError
from shadowmesh.base.log import as_word
from shadowmesh.base.services import service_of
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.failures import DaemonNotRunning
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.process import OtherProcess, daemon_pid, log_file_of, unit_of
from shadowmesh.cli.settings import Settings

#: where journald keeps the system's log, for good and until the next boot
JOURNALS = (Path("/var/log/journal"), Path("/run/log/journal"))

#: between two looks for new events with --follow
_PAUSE_S = 1.0


class NoLog(ShadowMeshError):
    """The log is nowhere where we could read it."""


@click.command(cls=Command)
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--lines", "-n", type=click.IntRange(0, 1_000_000), default=50, show_default=True,
    metavar="N", help="Begin with the last N lines.",
)  # fmt: skip
@click.pass_obj
def logs(settings: Settings, follow: bool, lines: int) -> None:
    """Show the log of the daemon, from the journal or from the file it goes to.

    Who may not read those, and may look at the daemon, is shown the events that it keeps.

    With --json the journal's form; a file is shown as it is (see daemon.log_format).
    """
    try:
        command = reader(settings, lines, follow=follow)
    except NotPermitted as error:
        _events(settings, lines, error, follow=follow)
        return
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)  # noqa: S606 - so that Ctrl-C and pipes reach it directly
    except OSError as error:
        raise NoLog(f"{command[0]} cannot be started: {error.strerror}") from None


def reader(settings: Settings, lines: int, *, follow: bool = False) -> list[str]:
    """Return the command that prints the log.

    Raises:
        NoLog: it goes to a terminal or a pipe.
        NotPermitted: this user may not read it, or not know where it goes.
    """
    form = "json" if settings.json else "short-iso"
    usual = f"{service_of(settings.config)}.service"
    try:
        pid = daemon_pid(settings)
    except (DaemonNotRunning, OtherProcess):
        # The log of one that has failed is what is wanted most.
        if _has_journal():
            # Without the right it shows what it may, and says whom to ask.
            return _journal(usual, lines, form, follow=follow)
        raise
    except NotPermitted:
        if _has_journal() and _may_read_journal():
            return _journal(usual, lines, form, follow=follow)
        raise
    unit = unit_of(pid)
    try:
        path = log_file_of(pid)
    except PermissionError:
        if unit is None or not _has_journal() or not _may_read_journal():
            raise NotPermitted(
                "the log may be read by root, the daemon's own user and, where there is a journal,"
                " the group systemd-journal"
            ) from None
        path = None
    if path is not None:
        return ["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), str(path)]
    if unit is not None and _has_journal():
        return _journal(unit, lines, form, follow=follow)
    raise NoLog(
        f"the log of the daemon (process {pid}) goes to where it was started, a terminal or a pipe;"
        " look there, or run it as a service"
    )


def _events(settings: Settings, lines: int, why: NotPermitted, *, follow: bool) -> None:
    """Print the last events, oldest first, and with follow those that come, until Ctrl-C."""
    client = settings.client()
    newest = _newest(client)
    click.echo(f"these are the events that the daemon keeps: {why}", err=True)
    seen = max(0, newest - lines)
    while True:
        if newest < seen:
            seen = 0  # the daemon has started again, and counts anew
        if newest > seen:
            for event in client.recent_events(MAX_EVENTS, after=seen):
                seen = event["number"]
                _print_event(settings, event)
        if not follow:
            return
        time.sleep(_PAUSE_S)
        newest = _newest(client)


def _newest(client: ApiClient) -> int:
    """Return the number of the newest event, 0 when there is none yet."""
    return max((int(event["number"]) for event in client.recent_events(1)), default=0)


def _print_event(settings: Settings, event: dict[str, Any]) -> None:
    if settings.json:
        print_json({"schema": 1, **event}, pretty=False)
        return
    line = f"{event['time']} {event['kind']}: {event['message']}"
    click.echo(
        line + "".join(f" {name}={as_word(value)}" for name, value in event["fields"].items())
    )


def _may_read_journal() -> bool:
    files = (file for place in JOURNALS for file in place.glob("*/system.journal"))
    return any(os.access(file, os.R_OK) for file in files)


def _has_journal() -> bool:
    return Path("/run/systemd/system").is_dir() and shutil.which("journalctl") is not None


def _journal(unit: str, lines: int, form: str, *, follow: bool) -> list[str]:
    more = ["--follow"] if follow else ["--no-pager"]
    return ["journalctl", f"--unit={unit}", f"--lines={lines}", f"--output={form}", *more]
