"""`shadowmesh reload`."""

from __future__ import annotations

import os
import signal

import click

from shadowmesh.base.errors import NotPermitted
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.process import OtherProcess, daemon_pid
from shadowmesh.cli.settings import Settings


@click.command(cls=Command)
@click.option(
    "--pid", type=click.IntRange(2), metavar="N",
    help="Process to tell.  [default: the one whose API answers]",
)  # fmt: skip
@click.pass_obj
def reload(settings: Settings, pid: int | None) -> None:
    """Check the configuration, then make the daemon read it again.

    Exit code 7 when it is invalid: the daemon is then left alone. Keys that need a restart are named
    in its log.
    """
    settings.load()  # a ConfigError ends it here
    # A number that is given is not looked at: the service's sandbox hides the process, not the
    # right to signal it.
    pid = daemon_pid(settings) if pid is None else pid
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        raise OtherProcess(f"there is no process {pid}; see `shadowmesh status`") from None
    except PermissionError:
        raise NotPermitted(
            f"the daemon (process {pid}) may not be signalled by this user; run as its user or root"
        ) from None
    if settings.json:
        print_json({"schema": 1, "pid": pid})
    else:
        click.echo(
            f"process {pid} reads its configuration again; `shadowmesh logs` has the outcome"
        )
