"""`shadowmesh help`."""

from __future__ import annotations

import click

from shadowmesh.cli.group import Command, Commands
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings


@click.command("help", cls=Command)
@click.argument("names", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def show_help(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Print the help of the program or of a command."""
    wanted = ctx.find_root()
    for name in names:
        group = wanted.command
        if not isinstance(group, Commands):
            raise click.UsageError(f"{wanted.command_path} has no commands of its own", ctx)
        wanted = click.Context(group.find(ctx, name), info_name=name, parent=wanted)
        wanted.formatter_class = ctx.formatter_class
    text = wanted.command.get_help(wanted)
    if ctx.ensure_object(Settings).json:
        print_json({"schema": 1, "help": text})
    else:
        click.echo(text)
