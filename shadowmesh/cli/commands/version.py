"""`shadowmesh version`."""

from __future__ import annotations

import click

from shadowmesh import __version__
from shadowmesh.base.errors import ShadowMeshError, one_line
from shadowmesh.base.services import service_of
from shadowmesh.cli.failures import DaemonNotRunning
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.settings import Settings


@click.command(cls=Command)
@click.pass_obj
def version(settings: Settings) -> None:
    """Print the versions of this program and of the running daemon; warn when they differ.

    Exit code 0 also when no daemon can be asked.
    """
    daemon, why = None, None
    try:
        daemon = str(settings.client().status().get("version"))
    except DaemonNotRunning:
        why = "not running"
    except ShadowMeshError as error:
        why = f"not known: {error}"
    if settings.json:
        same = None if daemon is None else daemon == __version__
        print_json({
            "schema": 1, "program": __version__, "daemon": daemon, "same": same, "detail": why,
        })  # fmt: skip
    else:
        click.echo(f"program  {__version__}")
        click.echo(f"daemon   {text(daemon or why)}")
    if daemon is not None and daemon != __version__:
        click.echo(
            f"{click.style('warning:', fg='yellow')} the daemon is {one_line(daemon)}, this"
            f" program {__version__}; restart the daemon after an update:"
            f" `systemctl restart {service_of(settings.config)}`",
            err=True,
        )
