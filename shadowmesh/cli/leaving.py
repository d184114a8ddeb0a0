"""Leaving a network, as `leave` and `network delete` do it.

Owns: what both ask the daemon, wait for and print. Does not know: what is asked before.
"""

from __future__ import annotations

from typing import Any

import click

from shadowmesh.base.errors import NotInNetwork
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.settings import Settings
from shadowmesh.cli.settling import Progress, await_network


def need_network(client: ApiClient, what: str) -> dict[str, Any]:
    """Return the network that this machine is in.

    Args:
        what: cannot be done without one, such as "to leave".
    Raises:
        NotInNetwork: it is in none.
    """
    network = client.network()
    if network is None:
        raise NotInNetwork(f"this machine is in no network; there is nothing {what}")
    return network


def leave_network(settings: Settings, client: ApiClient, network: dict[str, Any]) -> None:
    """Leave it, wait until the daemon says so, and print that it is done.

    Raises:
        NotBack: the daemon does not say so in time.
    """
    progress = Progress(shown=not settings.json)
    with progress.step("leaving"):
        client.leave()
    with progress.step("beginning anew"):
        await_network(client, None)
    if settings.json:
        print_json({"schema": 1, "left": network.get("name")})
    else:
        click.echo(f"left {text(network.get('name'))}, {progress.spent_s:.1f} s")
