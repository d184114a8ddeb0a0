"""`shadowmesh join`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from shadowmesh.base.errors import AlreadyInNetwork, KeyFileError, NotPermitted, ShadowMeshError
from shadowmesh.base.units import count
from shadowmesh.cli.asking import ask, is_terminal, need_answer
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.failures import DaemonNotRunning, NoAnswer
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text, texts, warn
from shadowmesh.cli.parameters import HostAndPort, MemberName
from shadowmesh.cli.render import warnings
from shadowmesh.cli.render_network import render_offer
from shadowmesh.cli.settings import NoSuchFile, Settings
from shadowmesh.cli.settling import NobodyYet, Progress, await_first_peer, await_network

if TYPE_CHECKING:
    from shadowmesh.wire.mesh.token import Token

#: more than any invitation, so that a wrong file is never read whole
_READ_LIMIT: Final = 8192


@click.command(cls=Command)
@click.argument("words", metavar="[TOKEN|-]", nargs=-1)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the invitation from there.",
)
@click.option(
    "--as", "name", type=MemberName(), metavar="NAME",
    help="Name that this machine would like.  [default: of the invitation, or its host name]",
)  # fmt: skip
@click.option(
    "--announce", type=HostAndPort(), multiple=True, metavar="HOST:PORT",
    help="Where other members may dial this machine; repeatable, and a relay needs one.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Join without asking.")
@click.pass_obj
def join(
    settings: Settings,
    words: tuple[str, ...],
    file: Path | None,
    name: str | None,
    announce: tuple[str, ...],
    yes: bool,
) -> None:
    """Join a network with an invitation, the line that `shadowmesh invite` has printed.

    TOKEN is that line; with - or without it, it is read from standard input. What it offers is shown
    before anything changes here. Again it does no harm: who is a member stays one.

    Exit code 5: no relay of the invitation can be reached; 6: not in time.
    """
    from shadowmesh.wire.mesh.token import Token

    # Mistyped it is no matter for the daemon; and so it goes on as it was made.
    token = Token.parse(_typed(words, file))
    need_answer(yes=yes, what="joining a network")
    client = settings.client()
    progress = Progress(shown=not settings.json)
    try:
        with progress.step("reaching the relay"):
            offer = client.join(token.text(), name, announce, accept=False)
    except AlreadyInNetwork as error:
        _tell_again(settings, _network_of(client, token, error))
        return
    _show(settings, offer, asks=not yes)
    if not yes:
        ask("join?", otherwise="not joined; the invitation stays good for this machine")
    with progress.step("certificate"):
        _take(client, token, name, announce)
    with progress.step("device"):
        await_network(client, offer.get("network"))
    number = _count_peers(client, progress)
    with contextlib.suppress(ShadowMeshError):  # it is joined, whatever keeps it from being asked
        for warning in warnings(client.status()):
            warn(warning)
    if settings.json:
        print_json({**offer, "taken": True, "again": False, "connected": number})
        return
    click.echo(
        f"joined {text(offer.get('network'))} as {text(offer.get('name'))},"
        f" {(texts(offer.get('addresses')) or ['no address'])[0]},"
        f" connected to {count(number, 'peer')}, {progress.spent_s:.1f} s"
    )


def _typed(words: tuple[str, ...], file: Path | None) -> str:
    """Return the text of the invitation from wherever it is."""
    if file is not None and words:
        raise click.UsageError("the invitation is given twice, by itself and as --file")
    if file is not None:
        return _read(file)
    if words == ("-",) or (not words and not is_terminal()):
        return sys.stdin.buffer.read(_READ_LIMIT).decode("ascii", "replace")
    if not words:
        raise click.UsageError(
            "an invitation is missing: give the line that `shadowmesh invite` has printed"
        )
    # Pasted with its line breaks it comes in parts.
    return " ".join(words)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(_READ_LIMIT).decode("ascii", "replace")
    except FileNotFoundError:
        raise NoSuchFile(f"there is no file {file}; name another one with --file") from None
    except PermissionError:
        raise NotPermitted(f"{file} may not be read by this user") from None
    except OSError as error:
        raise KeyFileError(f"{file} cannot be read: {error.strerror}") from None


def _show(settings: Settings, offer: dict[str, Any], *, asks: bool) -> None:
    """Tell what is offered; on stdout, unless that is for an object."""
    if asks or not settings.json:
        click.echo(render_offer(offer), err=settings.json)
    for doubt in texts(offer.get("doubts")):
        warn(doubt)


def _take(client: ApiClient, token: Token, name: str | None, announce: tuple[str, ...]) -> None:
    try:
        client.join(token.text(), name, announce, accept=True)
    except AlreadyInNetwork as error:
        # Somebody else has taken it meanwhile; or another one.
        _network_of(client, token, error)
    except (DaemonNotRunning, NoAnswer):
        # It may have begun anew before the answer was out: what it says then is what counts.
        return


def _network_of(client: ApiClient, token: Token, error: AlreadyInNetwork) -> dict[str, Any]:
    """Return the network of an invitation when this machine is in it.

    Raises:
        AlreadyInNetwork: it is in another one, or `error` when it is in none that has a name.
    """
    network = client.network()
    if network is None:
        raise error
    if not str(network.get("network_id")).startswith(token.network_id.hex()):
        raise AlreadyInNetwork(
            f"this machine is in the network {text(network.get('name'))}, and the invitation is to"
            " another one; `shadowmesh leave` comes first"
        )
    return network


def _tell_again(settings: Settings, network: dict[str, Any]) -> None:
    """Say that nothing had to be done."""
    if settings.json:
        answer = {name: network.get(name) for name in ("addresses", "subnets")}
        answer |= {"network": network.get("name"), "name": network.get("own")}
        print_json({"schema": 1, **answer, "taken": True, "again": True})
        return
    addresses = texts(network.get("addresses")) or ["no address"]
    click.echo(
        f"this machine is in {text(network.get('name'))} already, as {text(network.get('own'))},"
        f" {addresses[0]}"
    )


def _count_peers(client: ApiClient, progress: Progress) -> int:
    try:
        with progress.step("first peer"):
            return await_first_peer(client)
    except NobodyYet as error:
        warn(str(error))
        return 0
