"""`shadowmesh disconnect`."""

from __future__ import annotations

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings


@click.command(cls=Command)
@click.pass_obj
def disconnect(settings: Settings) -> None:
    """End the tunnel; the peer is let in again by `shadowmesh connect`."""
    snapshot = settings.client().disconnect()
    if settings.json:
        print_json(snapshot)
    else:
        click.echo("disconnected")
        if snapshot.get("held"):
            click.echo("the peer is refused until `shadowmesh connect`")
