"""`shadowmesh network create` and `show`."""

from __future__ import annotations

import click

from shadowmesh.base.errors import NotInNetwork
from shadowmesh.cli.group import Commands
from shadowmesh.cli.output import print_json, text, warn_when_others_can_read
from shadowmesh.cli.parameters import HostAndPort, MemberName
from shadowmesh.cli.render_network import render_founded, render_network
from shadowmesh.cli.settings import Settings
from shadowmesh.cli.settling import NotBack, Progress, await_network


@click.group(cls=Commands)
def network() -> None:
    """Make a network of many machines, or show the one that this machine is in."""


@network.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--subnet", "subnets", multiple=True, metavar="PREFIX",
    help="Addresses of the tunnel, such as 10.77.0.0/24; once for IPv4 and once for IPv6."
    "  [default: chosen]",
)  # fmt: skip
@click.option(
    "--address", type=HostAndPort(), metavar="HOST:PORT",
    help="Where other machines reach this one; without it they have to be told otherwise.",
)  # fmt: skip
@click.option(
    "--as", "own_name", type=MemberName(), metavar="NAME",
    help="Name of this machine in the network.  [default: its host name]",
)  # fmt: skip
@click.pass_obj
def create(
    settings: Settings,
    name: str,
    subnets: tuple[str, ...],
    address: str | None,
    own_name: str | None,
) -> int:
    """Make a network, with this machine as its first member and its issuer.

    The recovery key that it prints is shown this once. Exit code 6 when the daemon does not come
    back with the network in time.
    """
    client = settings.client()
    progress = Progress(shown=not settings.json)
    warn_when_others_can_read("the recovery key")
    with progress.step("authority"):
        founded = client.create_network(name, own_name, subnets, address)
    made = founded.get("network") or {}
    # At once: nobody can ask for the recovery key again.
    if settings.json:
        print_json(founded)
    else:
        click.echo(render_founded(made, founded["recovery_key"]))
    try:
        with progress.step("device"):
            await_network(client, made.get("name"))
    except NotBack as error:
        click.echo(f"{click.style('error:', fg='red')} {error}", err=True)
        return error.exit_code
    if not settings.json:
        click.echo(f"made {text(made.get('name'))}, {progress.spent_s:.1f} s")
        click.echo("next: let a machine in with `shadowmesh invite NAME`")
    return 0


@network.command()
@click.pass_obj
def show(settings: Settings) -> None:
    """Show name, authority, addresses, relays and members of the network.

    Exit code 1 when this machine is in none.
    """
    found = settings.client().network()
    if found is None:
        raise NotInNetwork(
            "this machine is in no network; take an invitation with `shadowmesh join`, or make a"
            " network with `shadowmesh network create NAME`"
        )
    if settings.json:
        print_json({"schema": 1, "network": found})
    else:
        click.echo(render_network(found))
