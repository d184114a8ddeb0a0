"""`shadowmesh disconnect`."""

from __future__ import annotations

import click

from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings


@click.command()
@click.pass_obj
def disconnect(settings: Settings) -> None:
    """End the session and take the TAP device down."""
    snapshot = settings.client().disconnect()
    if settings.json:
        print_json(snapshot)
    else:
        click.echo("disconnected")
