"""`shadowmesh fdb`."""

from __future__ import annotations

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.render_peers import render_table
from shadowmesh.cli.settings import Settings


@click.command(cls=Command)
@click.pass_obj
def fdb(settings: Settings) -> None:
    """Show the table of the switch: which MAC address is behind which peer.

    An entry without a peer is on this host's side. Those of the peers' own devices are static: they
    are known from the keys, do not age, and nobody else can take them.
    """
    entries = settings.client().table()
    if settings.json:
        print_json({"schema": 1, "entries": entries})
    else:
        click.echo(render_table(entries))
