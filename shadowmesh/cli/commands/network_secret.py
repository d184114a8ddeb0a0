"""`shadowmesh network secret rotate`."""

from __future__ import annotations

import click

from shadowmesh.cli.asking import ask, need_answer
from shadowmesh.cli.group import Commands
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings


@click.group(cls=Commands)
def secret() -> None:
    """Replace the secret that all members of the network have."""


@secret.command()
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def rotate(settings: Settings, yes: bool) -> None:
    """Give the network another secret, so that who was removed knows none that counts.

    The one before counts beside it until the next rotation, so no session ends. Members that are
    connected have the new one within seconds. One that is away for two rotations asks for it by
    itself when it is back.
    """
    need_answer(yes=yes, what="replacing the secret of the network")
    client = settings.client()
    if not yes:
        ask("give the network another secret?", otherwise="the secret is the one of before")
    answer = client.post("/network/secret", {}, "epoch")
    if settings.json:
        print_json(answer)
        return
    epoch = answer["epoch"]
    click.echo(f"the network has secret {epoch}; {epoch - 1} counts beside it until the next one")
    click.echo("a member that is away for two rotations asks for it by itself when it is back")
