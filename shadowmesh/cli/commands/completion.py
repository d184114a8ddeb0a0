"""`shadowmesh completion`."""

from __future__ import annotations

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings

PROGRAM = "shadowmesh"
#: click answers a shell's question when this variable is set, whatever else is on the line
VARIABLE = "_SHADOWMESH_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion of a shell, for its start-up file or its directory of completions.

    \b
    bash: shadowmesh completion bash > /etc/bash_completion.d/shadowmesh
    zsh:  shadowmesh completion zsh > "${fpath[1]}/_shadowmesh"
    fish: shadowmesh completion fish > ~/.config/fish/completions/shadowmesh.fish
    """
    settings = ctx.find_object(Settings)
    text = script(ctx.find_root().command, shell)
    if settings is not None and settings.json:
        print_json({"schema": 1, "shell": shell, "script": text})
    else:
        click.echo(text, nl=False)


def script(program: click.Command, shell: str) -> str:
    """Return the text that teaches a shell our commands."""
    # Not at the top: wanted once per installation.
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    # Bash's own source() starts a bash to look at its version; it may be made for another machine.
    return ShellComplete.source(kind(program, {}, PROGRAM, VARIABLE))
