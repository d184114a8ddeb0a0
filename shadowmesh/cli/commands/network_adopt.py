"""`shadowmesh network adopt`."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

import click

from shadowmesh.cli import files
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text, warn_when_others_can_read
from shadowmesh.cli.parameters import HostAndPort
from shadowmesh.cli.render_network import render_founded
from shadowmesh.cli.settings import Settings
from shadowmesh.cli.settling import Progress, await_network

_MAX_BYTES: Final = 12 << 10
_MAX_LIST_BYTES: Final = 20 << 10


@click.command(cls=Command)
@click.argument("ca", type=files.FILE, metavar="CA")
@click.option(
    "--certificate", type=files.FILE, required=True, metavar="FILE",
    help="That the CA has signed for the request of this machine, with the OU role:issuer.",
)  # fmt: skip
@click.option(
    "--crl", type=files.FILE, required=True, metavar="FILE", help="The CA's revocation list.",
)  # fmt: skip
@click.option(
    "--subnet", "subnets", multiple=True, required=True, metavar="PREFIX",
    help="Addresses of the tunnel, such as 10.77.0.0/24; once for IPv4 and once for IPv6.",
)  # fmt: skip
@click.option(
    "--address", type=HostAndPort(), metavar="HOST:PORT",
    help="Where other machines reach this one, whose certificate has the OU role:relay then.",
)  # fmt: skip
@click.pass_obj
def adopt(
    settings: Settings,
    ca: Path,
    certificate: Path,
    crl: Path,
    subnets: tuple[str, ...],
    address: str | None,
) -> None:
    """Make a network whose certificates are signed by a CA of yours, such as openssl, step-ca or Vault.

    CA is its certificate, with the key usages keyCertSign and cRLSign; it should serve this network
    alone. Other machines get theirs by `cert request`, the CA, and `cert bundle` here.

    The recovery key that it prints is shown this once. Exit code 6 when the daemon does not come
    back with the network in time.
    """
    body = {
        "authority": _encoded(ca, _MAX_BYTES),
        "certificate": _encoded(certificate, _MAX_BYTES),
        "revoked": _encoded(crl, _MAX_LIST_BYTES),
        "subnets": list(subnets),
        "address": address,
    }
    client = settings.client()
    warn_when_others_can_read("the recovery key")
    founded = client.post("/network/adopt", body, "recovery_key")
    made = founded.get("network") or {}
    # At once: nobody can ask for the recovery key again.
    if settings.json:
        print_json(founded)
    else:
        click.echo(render_founded(made, founded["recovery_key"]))
    with Progress(shown=not settings.json).step("device"):
        await_network(client, made.get("name"))
    if not settings.json:
        click.echo(f"made {text(made.get('name'))}")


def _encoded(path: Path, most: int) -> str:
    return base64.b64encode(files.read_file(path, most)).decode("ascii")
