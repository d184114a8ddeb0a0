"""`shadowmesh network delete`."""

from __future__ import annotations

import click

from shadowmesh.base.errors import IssuerRefused
from shadowmesh.base.units import count
from shadowmesh.cli.asking import ask, need_answer
from shadowmesh.cli.group import Command
from shadowmesh.cli.leaving import leave_network, need_network
from shadowmesh.cli.output import text, texts, warn
from shadowmesh.cli.settings import Settings


@click.command(cls=Command)
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def delete(settings: Settings, yes: bool) -> None:
    """End the network on the machine that made it, which forgets its authority and its ledger.

    Nobody can be invited or removed from then on, unless a backup of this machine is restored. The
    other members keep talking to each other until each of them leaves. On any other machine it is
    `shadowmesh leave` that is meant. Exit code 6 when the daemon does not come back in time.
    """
    need_answer(yes=yes, what="deleting a network")
    client = settings.client()
    network = need_network(client, "to delete")
    name = text(network.get("name"))
    if not network.get("issuer"):
        raise IssuerRefused(
            f"{name} was made on another machine, and can be deleted there only; `shadowmesh leave`"
            " takes this one out of it"
        )
    others = len(texts(network.get("members"))) - 1
    stay = "" if others < 1 else f"; {count(others, 'other member')} can talk until they leave"
    warn(
        f"nobody can be invited to {name} or removed from it any more, unless a backup of this"
        f" machine is restored{stay}"
    )
    if not yes:
        ask(f"delete {name}?", otherwise=f"still in {name}; nothing was changed")
    leave_network(settings, client, network)
