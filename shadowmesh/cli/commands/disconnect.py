"""`shadowmesh disconnect`."""

from __future__ import annotations

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.parameters import PeerName
from shadowmesh.cli.settings import Settings


@click.command(cls=Command)
@click.argument("name", metavar="[NAME]", type=PeerName(), required=False)
@click.pass_obj
def disconnect(settings: Settings, name: str | None) -> None:
    """End the tunnel; the peer is let in again by `shadowmesh connect`.

    With the NAME of one of several peers, end the session with it alone.
    """
    snapshot = settings.client().disconnect(name)
    if settings.json:
        print_json(snapshot)
    elif name is not None:
        click.echo(f"disconnected from {text(name)}")
        click.echo(f"{text(name)} is refused until `shadowmesh connect {text(name)}`")
    else:
        click.echo("disconnected")
        if snapshot.get("held"):
            who = "the peer is" if isinstance(snapshot.get("peer"), dict) else "all peers are"
            click.echo(f"{who} refused until `shadowmesh connect`")
