"""`shadowmesh leave`."""

from __future__ import annotations

import click

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.cli.asking import ask, need_answer
from shadowmesh.cli.group import Command
from shadowmesh.cli.leaving import leave_network, need_network
from shadowmesh.cli.output import text
from shadowmesh.cli.settings import Settings


class IssuerNeeded(ShadowMeshError):
    """The machine that a network cannot do without would leave it."""


@click.command(cls=Command)
@click.option("--yes", is_flag=True, help="Leave without asking.")
@click.pass_obj
def leave(settings: Settings, yes: bool) -> None:
    """Leave the network: this machine gives up its certificate and its addresses in the tunnel.

    The way back is a new invitation. From the machine that made the network there is no way back, so
    it leaves with --yes only. Exit code 1 when it is in none, 6 when the daemon does not come back in
    time.
    """
    need_answer(yes=yes, what="leaving a network")
    client = settings.client()
    network = need_network(client, "to leave")
    name = text(network.get("name"))
    if not yes:
        if network.get("issuer"):
            raise IssuerNeeded(
                f"{name} was made on this machine, and without it nobody can be invited to it or"
                " removed from it any more; use `shadowmesh network delete`, or say --yes"
            )
        ask(
            f"leave {name}, and need a new invitation to come back?",
            otherwise=f"still in {name}; nothing was changed",
        )
    leave_network(settings, client, network)
