"""`shadowmesh peers`."""

from __future__ import annotations

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.output import parse_time, print_json
from shadowmesh.cli.parameters import PeerName
from shadowmesh.cli.render_peers import render_peer, render_peers
from shadowmesh.cli.settings import Settings

EXIT_NOT_CONNECTED = 5


@click.command(cls=Command)
@click.argument("name", metavar="[NAME]", type=PeerName(), required=False)
@click.pass_obj
def peers(settings: Settings, name: str | None) -> int:
    """Show all peers as a table, or one of them in full.

    With NAME the exit code is 0 only when that peer is connected, else 5.
    """
    client = settings.client()
    answer = client.peers() if name is None else client.peer(name)
    # A daemon that has the route says when it was asked.
    now = parse_time(answer.get("now")) or 0.0
    if settings.json:
        print_json(answer)
    elif name is None:
        click.echo(render_peers(answer["peers"], now))
    else:
        click.echo(render_peer(answer["peer"], now))
    connected = name is None or answer["peer"].get("state") == "connected"
    return 0 if connected else EXIT_NOT_CONNECTED
