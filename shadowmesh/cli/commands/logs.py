"""`shadowmesh logs`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from shadowmesh.base.errors import NotPermitted, ShadowMeshError
from shadowmesh.cli.client import DaemonNotRunning
from shadowmesh.cli.group import Command
from shadowmesh.cli.process import OtherProcess, daemon_pid, log_file_of, unit_of
from shadowmesh.cli.settings import Settings

UNIT = "shadowmesh.service"


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

    With --json the journal's form; a file is shown as it is (see daemon.log_format).
    """
    command = reader(settings, lines, follow=follow)
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)  # noqa: S606 - so that Ctrl-C and pipes reach it directly
    except OSError as error:
        raise NoLog(f"{command[0]} cannot be started: {error.strerror}") from None


def reader(settings: Settings, lines: int, *, follow: bool = False) -> list[str]:
    """Return the command that prints the log.

    Raises:
        NoLog: it goes to a terminal or a pipe.
        NotPermitted: this user may not know where it goes.
    """
    form = "json" if settings.json else "short-iso"
    try:
        pid = daemon_pid(settings)
    except (DaemonNotRunning, OtherProcess):
        # The log of one that has failed is what is wanted most.
        if _has_journal():
            return _journal(UNIT, lines, form, follow=follow)
        raise
    unit = unit_of(pid)
    try:
        path = log_file_of(pid)
    except PermissionError:
        if unit is None or not _has_journal():
            raise NotPermitted(
                f"where the log of the daemon (process {pid}) goes may be known by its user and"
                " root only; run as one of them"
            ) from None
        path = None  # the journal decides by itself who may read it
    if path is not None:
        return ["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), str(path)]
    if unit is not None and _has_journal():
        return _journal(unit, lines, form, follow=follow)
    raise NoLog(
        f"the log of the daemon (process {pid}) goes to where it was started, a terminal or a pipe;"
        " look there, or run it as a service"
    )


def _has_journal() -> bool:
    return Path("/run/systemd/system").is_dir() and shutil.which("journalctl") is not None


def _journal(unit: str, lines: int, form: str, *, follow: bool) -> list[str]:
    more = ["--follow"] if follow else ["--no-pager"]
    return ["journalctl", f"--unit={unit}", f"--lines={lines}", f"--output={form}", *more]
