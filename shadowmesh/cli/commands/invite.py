"""`shadowmesh invite`, `invite list` and `invite cancel`."""

from __future__ import annotations

from typing import Any, Final

import click

from shadowmesh.base.units import count, duration
from shadowmesh.cli.group import NameOrCommands
from shadowmesh.cli.output import parse_time, print_json, text, warn_when_others_can_read
from shadowmesh.cli.parameters import Duration, MemberName
from shadowmesh.cli.qr import draw
from shadowmesh.cli.render_network import render_invitations
from shadowmesh.cli.settings import Settings

#: a minute and a year, as the API has it
_SHORTEST_S: Final = 60.0
_LONGEST_S: Final = 365 * 86400.0
_MOST_USES: Final = 1000


@click.group(cls=NameOrCommands)
@click.argument("name", metavar="[NAME]", type=MemberName(), required=False)
@click.option(
    "--expires", "expires_s", type=Duration(_LONGEST_S, _SHORTEST_S), default="1h",
    show_default=True, metavar="DURATION", help="How long it is valid, such as 10m, 24h or 30d.",
)  # fmt: skip
@click.option(
    "--uses", type=click.IntRange(1, _MOST_USES), default=1, show_default=True, metavar="N",
    help="How many machines it lets in.",
)  # fmt: skip
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag of the member; repeatable.")
@click.option(
    "--role", "roles", multiple=True, metavar="ROLE", help="Role of the member, such as relay.",
)  # fmt: skip
@click.option(
    "--ip", "addresses", multiple=True, metavar="IP",
    help="Address of the member in the tunnel; one of IPv4 and one of IPv6.  [default: chosen]",
)  # fmt: skip
@click.option("--qr", is_flag=True, help="Draw it as a QR code too, on standard error.")
@click.pass_context
def invite(
    ctx: click.Context,
    *,
    name: str | None = None,
    expires_s: float,
    uses: int,
    tags: tuple[str, ...],
    roles: tuple[str, ...],
    addresses: tuple[str, ...],
    qr: bool,
) -> None:
    """Let a machine into the network: print an invitation, as the one line of standard output.

    It is a secret until it is used: whoever has it first is let in. NAME is what the machine will be
    called; without it the machine chooses. A member cannot be called list or cancel, for these are
    commands.
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = ctx.ensure_object(Settings)
    warn_when_others_can_read("the invitation")
    wanted: dict[str, Any] = {"name": name, "expires_s": round(expires_s), "uses": uses}
    wanted |= {"roles": list(roles), "tags": list(tags), "addresses": list(addresses)}
    answer = settings.client().invite(**wanted)
    if settings.json:
        print_json(answer)
    else:
        click.echo(text(answer["token"]))
        click.echo(_validity(answer.get("invitation") or {}), err=True)
    if qr:
        click.echo(draw(answer["token"]), err=True)


def _validity(invitation: dict[str, Any]) -> str:
    """Return for how long and for whom it is, as the daemon has made it."""
    made, ends = parse_time(invitation.get("made_at")), parse_time(invitation.get("expires_at"))
    words = "valid" if made is None or ends is None else f"valid for {duration(ends - made)}"
    uses = invitation.get("uses")
    words += f", for {count(uses, 'machine')}" if isinstance(uses, int) else ""
    if invitation.get("name"):
        words += f", as {text(invitation['name'])}"
    return f"{words}: type `shadowmesh join` and this line there"


@invite.command("list")
@click.pass_obj
def list_invitations(settings: Settings) -> None:
    """Show the invitations that were made, and what became of them."""
    answer = settings.client().invitations()
    if settings.json:
        print_json(answer)
    else:
        click.echo(render_invitations(answer["invitations"]))


@invite.command()
@click.argument("id_", metavar="[ID]", required=False)
@click.option("--all", "every", is_flag=True, help="Cancel all that are open.")
@click.pass_obj
def cancel(settings: Settings, id_: str | None, every: bool) -> None:
    """Cancel an invitation that nobody has used yet, by its ID in `shadowmesh invite list`."""
    if (id_ is None) != every:
        raise click.UsageError("name the ID of one invitation, or say --all")
    answer = settings.client().cancel_invitation(None if id_ is None else id_.lower())
    if settings.json:
        print_json(answer)
    elif answer["cancelled"]:
        click.echo(f"cancelled {count(answer['cancelled'], 'invitation')}")
    else:
        click.echo("nothing to cancel: none of them was open")
