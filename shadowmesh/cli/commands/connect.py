"""`shadowmesh connect`."""

from __future__ import annotations

from typing import Any

import click

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.settings import Settings


class Interrupted(ShadowMeshError):
    """The user did not wait for the outcome."""


@click.command(cls=Command)
@click.argument("peer", metavar="[HOST[:PORT]]", required=False)
@click.pass_obj
def connect(settings: Settings, peer: str | None) -> None:
    """Connect to the peer given or configured, and wait for the outcome.

    Without PORT it is 9001. An IPv6 address stands in brackets: [2001:db8::7]:9001.

    Exit code 5: the peer cannot be reached; 1: it refused, or there is a connection already.
    """
    if peer is not None:
        peer = _with_port(peer)
    client = settings.client()
    try:
        snapshot = client.connect(peer)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted while connecting; the daemon goes on, see `shadowmesh status`, or stop"
            " it with `shadowmesh disconnect`"
        ) from None
    if settings.json:
        print_json(snapshot)
    else:
        click.echo(summary(snapshot))
        for warning in warnings(snapshot):
            click.echo(f"warning: {warning}", err=True)


def _with_port(peer: str) -> str:
    """Return the address in full, as the daemon shows it in its status."""
    from shadowmesh.config import values

    try:
        return str(values.peer(peer))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST:PORT") from None


def summary(snapshot: dict[str, Any]) -> str:
    """Return in one sentence what the connection is like."""
    peer = snapshot.get("peer") or {}
    secrecy = "post-quantum" if snapshot.get("post_quantum") else "not post-quantum"
    return (
        f"{click.style('connected', fg='green')} to {text(peer.get('address'))}"
        f" over {text(snapshot.get('path'))} ({text(snapshot.get('cipher'))}, {secrecy})"
    )


def warnings(snapshot: dict[str, Any]) -> list[str]:
    """Return what is wrong with the device and the routes of this host, with what to do."""
    checks = snapshot.get("health") or ()
    failed = [c for c in checks if c.get("name") in ("tap", "underlay") and not c.get("ok")]
    return [f"{text(check.get('text'))}; {text(check.get('remedy'))}" for check in failed]
