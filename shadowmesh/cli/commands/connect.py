"""`shadowmesh connect`."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.base.units import count
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text, warn
from shadowmesh.cli.parameters import PeerName
from shadowmesh.cli.render import warnings
from shadowmesh.cli.settings import Settings

#: what can be the name of a peer: a DNS label
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Interrupted(ShadowMeshError):
    """The user did not wait for the outcome."""


@click.command(cls=Command)
@click.argument("peer", metavar="[NAME|HOST[:PORT]]", type=PeerName(), required=False)
@click.argument("address", metavar="[HOST[:PORT]]", required=False)
@click.pass_obj
def connect(settings: Settings, peer: str | None, address: str | None) -> None:
    """Connect to the peer given or configured, and wait for the outcome.

    NAME is that of one of several peers. Without it all that have an address are dialled, the first
    session is the outcome, and those that have to come by themselves are let in again.

    An address behind NAME is where that one is dialled this time, whatever is known of it. Of HOST
    without PORT it is 9001. An IPv6 address stands in brackets: [2001:db8::7]:9001.

    Exit code 5: the peer cannot be reached; 1: it refused, or there is a connection already.
    """
    if address is not None and not _LABEL.fullmatch(peer or ""):
        raise click.UsageError("before an address the name of a peer may stand, and nothing else")
    target = None if address is None else _with_port(address)
    client = settings.client()
    name = peer if address is not None else _name(client, peer)
    if peer is not None and name is None:
        target = _with_port(peer)
    try:
        snapshot = client.connect(target, name)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted while connecting; the daemon goes on, see `shadowmesh status`, or stop"
            " it with `shadowmesh disconnect`"
        ) from None
    if settings.json:
        print_json(snapshot)
    else:
        click.echo(summary(snapshot) if name is None else summary_of(client.peer(name)["peer"]))
        for warning in warnings(snapshot):
            warn(warning)


def _name(client: ApiClient, word: str | None) -> str | None:
    """Return what was typed if it is the name of a peer, which wins over a host of that name."""
    if word is None or not _LABEL.fullmatch(word):
        return None
    known = client.peers()["peers"]
    return word if any(isinstance(one, dict) and one.get("name") == word for one in known) else None


def _with_port(peer: str) -> str:
    """Return the address in full, as the daemon shows it in its status."""
    from shadowmesh.config import values

    try:
        return str(values.peer(peer))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST:PORT") from None


def summary(snapshot: dict[str, Any]) -> str:
    """Return in one sentence what the connection is like."""
    peer, peers = snapshot.get("peer"), snapshot.get("peers")
    if not isinstance(peer, dict) and isinstance(peers, dict):
        sessions, known = peers.get("sessions") or 0, peers.get("known") or 0
        return f"{click.style('connected', fg='green')} to {sessions} of {count(known, 'peer')}"
    return _connected(snapshot, (peer or {}).get("address"))


def summary_of(peer: dict[str, Any]) -> str:
    """Return in one sentence what the connection to one of several peers is like."""
    return _connected(peer, peer.get("name"))


def _connected(snapshot: dict[str, Any], whom: object) -> str:
    secrecy = "post-quantum" if snapshot.get("post_quantum") else "not post-quantum"
    return (
        f"{click.style('connected', fg='green')} to {text(whom)}"
        f" over {text(snapshot.get('path'))} ({text(snapshot.get('cipher'))}, {secrecy})"
    )
