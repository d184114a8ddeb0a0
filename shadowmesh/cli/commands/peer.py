"""`shadowmesh peer remove`."""

from __future__ import annotations

import click

from shadowmesh.base.units import listed
from shadowmesh.cli.asking import ask, need_answer
from shadowmesh.cli.group import Commands
from shadowmesh.cli.output import print_json, text, texts
from shadowmesh.cli.parameters import PeerName
from shadowmesh.cli.settings import Settings


@click.group(cls=Commands)
def peer() -> None:
    """Change who is a member of the network."""


@peer.command()
@click.argument("name", metavar="NAME", type=PeerName())
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def remove(settings: Settings, name: str, yes: bool) -> None:
    """Put a member out of the network: its certificates end everywhere, and so do its sessions.

    It comes back with a new key and a new invitation only.
    """
    need_answer(yes=yes, what="putting a member out")
    client = settings.client()
    if not yes:
        ask(
            f"put {text(name)} out of the network for good?",
            otherwise=f"{text(name)} is still a member; nothing was changed",
        )
    answer = client.remove_peer(name)
    if settings.json:
        print_json(answer)
        return
    out = texts(answer["removed"])
    verb = "is" if len(out) == 1 else "are"
    click.echo(f"{listed(out)} {verb} out of the network" if out else "nobody was put out")
    if out:
        who = "it still knows" if len(out) == 1 else "they still know"
        click.echo(
            f"{who} the secret of the network, which opens nothing alone;"
            " `shadowmesh network secret rotate` replaces it"
        )
