"""`shadowmesh relays`."""

from __future__ import annotations

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.render_network import render_relays
from shadowmesh.cli.settings import Settings


@click.command(cls=Command)
@click.pass_obj
def relays(settings: Settings) -> None:
    """Show the other relays of the network, which one is home, and why.

    Home is the relay by which others find this machine. RTT is the best round trip of the last
    minutes. Exit code 1 when this machine is in no network.
    """
    answer = settings.client().relays()
    if settings.json:
        print_json(answer)
    else:
        click.echo(render_relays(answer["relays"], answer.get("reason")))
