"""`shadowmesh peer rename`, `tag` and `rekey`."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from shadowmesh.cli import asking
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text, texts, warn_when_others_can_read
from shadowmesh.cli.parameters import MemberName, PeerName
from shadowmesh.cli.settings import Settings

_now = click.option(
    "--now", "at_once", is_flag=True,
    help="Let the old certificate count no more from now on, also while the member is away.",
)  # fmt: skip


@click.command(cls=Command)
@click.argument("name", metavar="NAME", type=PeerName())
@click.argument("new", metavar="NEW", type=MemberName())
@_now
@click.pass_obj
def rename(settings: Settings, name: str, new: str, at_once: bool) -> None:
    """Give a member another name, on the machine that issues.

    It gets its new certificate when it is reached; the old one counts until then, at most a week.
    """
    found = _reissued(settings, name, {"new_name": new, "at_once": at_once})
    if found is not None:
        click.echo(f"{name} is {text(found.get('name'))} now")


@click.command(cls=Command)
@click.argument("name", metavar="NAME", type=PeerName())
@click.option("--add", "add", multiple=True, metavar="TAG", help="Tag that it gets.")
@click.option("--drop", "drop", multiple=True, metavar="TAG", help="Tag that it loses.")
@_now
@click.pass_obj
def tag(
    settings: Settings, name: str, add: tuple[str, ...], drop: tuple[str, ...], at_once: bool
) -> None:
    """Change the tags of a member, on the machine that issues.

    It gets its new certificate when it is reached; the old one counts until then, at most a week.
    """
    if not add and not drop:
        raise click.UsageError("say which tag to --add or to --drop")
    body = {"add_tags": list(add), "drop_tags": list(drop), "at_once": at_once}
    found = _reissued(settings, name, body)
    if found is not None:
        tags = ", ".join(texts(found.get("tags"))) or "no tags"
        click.echo(f"{text(found.get('name'))} has {tags}")


@click.command(cls=Command)
@click.argument("name", metavar="NAME", type=PeerName())
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def rekey(settings: Settings, name: str, yes: bool) -> None:
    """Put the key of a member out for good, and print an invitation for its machine.

    For a machine that was copied, or whose key may be known to others. With the invitation, after
    `shadowmesh leave` there, it has name, roles, tags and addresses again, and another key.
    """
    asking.need_answer(yes=yes, what="putting a key out")
    client = settings.client()
    if not yes:
        asking.ask(
            f"put the key of {text(name)} out for good, and invite its machine anew?",
            otherwise=f"{text(name)} has the key that it had; nothing was changed",
        )
    warn_when_others_can_read("the invitation")
    answer = client.post(f"/peers/{quote(name, safe='')}/rekey", {}, "token")
    if settings.json:
        print_json(answer)
    else:
        click.echo(text(answer["token"]))


def _reissued(settings: Settings, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Ask for another certificate; return it, None when it was printed as JSON."""
    path = f"/peers/{quote(name, safe='')}/reissue"
    answer = settings.client().post(path, body, "renewed")
    if settings.json:
        print_json(answer)
        return None
    return answer.get("certificate") or {}
