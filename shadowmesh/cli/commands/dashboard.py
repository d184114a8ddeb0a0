"""`shadowmesh dashboard`."""

from __future__ import annotations

import sys

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.http10 import parse_url
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings


@click.command(cls=Command)
@click.pass_obj
def dashboard(settings: Settings) -> int:
    """Print the link to the dashboard, a page that the daemon serves on this machine.

    The link holds the API token behind the #, which a browser keeps to itself: whoever has it
    controls the daemon. So it is for who may read the token: root and the daemon's user.
    """
    client = settings.token_client()
    client.status()  # a link that nobody answers, or with a wrong token, helps nobody
    if settings.json:
        print_json({"schema": 1, "url": client.page_url})
        return 0
    click.echo(client.page_url)
    if sys.stderr.isatty():
        host, port = parse_url(client.url)
        click.echo(
            f"from another machine: ssh -L {port}:{host}:{port} THIS-MACHINE, then the same link",
            err=True,
        )
    return 0
