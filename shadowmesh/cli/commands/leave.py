"""`shadowmesh leave`."""

from __future__ import annotations

import click

from shadowmesh.base.errors import NotInNetwork
from shadowmesh.cli.asking import ask, need_answer
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.settings import Settings
from shadowmesh.cli.settling import Progress, await_network


@click.command(cls=Command)
@click.option("--yes", is_flag=True, help="Leave without asking.")
@click.pass_obj
def leave(settings: Settings, yes: bool) -> None:
    """Leave the network: this machine gives up its certificate and its addresses in the tunnel.

    The way back is a new invitation. Exit code 1 when it is in none, 6 when the daemon does not come
    back in time.
    """
    need_answer(yes=yes, what="leaving a network")
    client = settings.client()
    network = client.network()
    if network is None:
        raise NotInNetwork("this machine is in no network; there is nothing to leave")
    name = text(network.get("name"))
    if not yes:
        ask(
            f"leave {name}, and need a new invitation to come back?",
            otherwise=f"still in {name}; nothing was changed",
        )
    progress = Progress(shown=not settings.json)
    with progress.step("leaving"):
        client.leave()
    with progress.step("beginning anew"):
        await_network(client, None)
    if settings.json:
        print_json({"schema": 1, "left": network.get("name")})
    else:
        click.echo(f"left {name}, {progress.spent_s:.1f} s")
