"""`shadowmesh reload`."""

from __future__ import annotations

import os
import signal

import click

from shadowmesh.cli.output import print_json
from shadowmesh.cli.process import daemon_pid
from shadowmesh.cli.settings import Settings
from shadowmesh.errors import NotPermitted


@click.command()
@click.pass_obj
def reload(settings: Settings) -> None:
    """Check the configuration, then make the daemon read it again.

    Exit code 7 when it is invalid: the daemon is then left alone. Keys that need a restart are named
    in its log.
    """
    settings.load()  # a ConfigError ends it here
    pid = daemon_pid(settings)
    try:
        os.kill(pid, signal.SIGHUP)
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
