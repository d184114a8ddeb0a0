"""`shadowmesh network authority replace` and `drop`, and `shadowmesh network compact`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from shadowmesh.base.units import count, listed
from shadowmesh.cli.asking import ask, need_answer
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.commands.authority import authority
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text, texts, warn
from shadowmesh.cli.recovery import need_recovery_key, recovery_key, recovery_key_file
from shadowmesh.cli.settings import Settings

#: of the names of members so many are told
_SHOWN: Final = 10


@authority.command()
@recovery_key_file
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def replace(settings: Settings, file: Path | None, yes: bool) -> None:
    """Make a new authority, and give every member a certificate of it.

    For one whose key was lost, may be known to others, or ends soon. It takes the recovery key that
    was shown when the network was made, and which is asked for. The authority before is trusted until
    `shadowmesh network authority drop`, so no session ends. Open invitations are cancelled.
    """
    _replace(
        settings, file, yes, "make a new authority, and give all members new certificates?",
        "ends the one before",
    )  # fmt: skip


@click.command(cls=Command)
@recovery_key_file
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def compact(settings: Settings, file: Path | None, yes: bool) -> None:
    """Let the revocation list begin empty, by new certificates for all that are members now.

    For a list that is nearly full, which health tells. It is what `shadowmesh network authority
    replace` does, and takes the recovery key too: the new certificates are of a new authority, of
    which none is revoked. Open invitations are cancelled.
    """
    _replace(
        settings, file, yes, "give all members certificates of a new authority, with an empty list?",
        "ends the list before",
    )  # fmt: skip


def _replace(
    settings: Settings, file: Path | None, yes: bool, question: str, what_drop_does: str
) -> None:
    need_answer(yes=yes, what="replacing the authority")
    need_recovery_key(file)
    client = settings.client()
    if not yes:
        ask(question, otherwise="the authority is the one of before; nothing was changed")
    body = {"recovery_key": recovery_key(file)}
    answer = client.post("/network/authority/replace", body, "issued")
    if settings.json:
        print_json(answer)
        return
    click.echo("\n".join(_replaced(answer, what_drop_does)))


def _replaced(answer: dict[str, Any], what_drop_does: str) -> Iterator[str]:
    yield f"the new authority is {text(answer.get('authority'))}"
    issued, cancelled = answer["issued"], answer.get("cancelled")
    yield (
        f"{count(issued, 'certificate')} issued; members that are connected have theirs within"
        " seconds"
    )
    if isinstance(cancelled, int) and cancelled:
        verb = "was" if cancelled == 1 else "were"
        yield f"{count(cancelled, 'open invitation')} {verb} cancelled: invite anew"
    yield (
        "next: once `shadowmesh peers` has shown everybody connected,"
        f" `shadowmesh network authority drop` {what_drop_does}"
    )


@authority.command()
@recovery_key_file
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def drop(settings: Settings, file: Path | None, yes: bool) -> None:
    """Trust the authority of this machine alone, after it has replaced another.

    Whoever has not fetched its new certificate by then is out, and comes back with a new invitation
    only. It takes the recovery key, as replacing did.
    """
    need_answer(yes=yes, what="dropping the authority before")
    need_recovery_key(file)
    client = settings.client()
    away = _away(client)
    if away:
        verb = "is" if len(away) == 1 else "are"
        warn(
            f"{_some(away)} {verb} not connected to this machine now: whoever has not fetched its"
            " new certificate will be out, and needs a new invitation"
        )
    if not yes:
        ask(
            "trust the authority of this machine alone?",
            otherwise="the authority before is still trusted; nothing was changed",
        )
    body = {"recovery_key": recovery_key(file)}
    answer = client.post("/network/authority/drop", body, "out")
    if settings.json:
        print_json(answer)
        return
    click.echo(f"the network trusts {text(answer.get('authority'))} alone")
    out = texts(answer["out"])
    if out:
        click.echo(f"{_some(out)} {'is' if len(out) == 1 else 'are'} out of the network")


def _away(client: ApiClient) -> list[str]:
    """Return the names of the members that this machine has no session with."""
    return [
        text(one.get("name"))
        for one in client.peers()["peers"]
        if isinstance(one, dict) and one.get("state") != "connected"
    ]


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return listed(names) if more <= 0 else f"{', '.join(names[:_SHOWN])} and {more} more"
