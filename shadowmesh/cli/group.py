"""What all commands have in common: options of the program behind them, help, suggestions.

Owns: how a command line is read. Does not know: the commands.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import click

from shadowmesh.base.errors import one_line
from shadowmesh.base.words import nearest
from shadowmesh.cli.helptext import Context
from shadowmesh.cli.options import shared_options

_EPILOG = "The options of `shadowmesh --help`, such as --json, may stand here as well."
_CONTEXT: Final = {"help_option_names": ["-h", "--help"]}


class MissingCommand(click.UsageError):
    """A group was named and none of its commands: whoever typed it wants to see them."""


class Command(click.Command):
    """A command, which takes the options of the program too."""

    context_class = Context

    def __init__(self, *args: Any, **more: Any) -> None:
        more = {"epilog": _EPILOG, "context_settings": _CONTEXT} | more
        super().__init__(*args, **more)
        self.params.extend(shared_options(hidden=True))


class Commands(click.Group):
    """The program, and a command that has commands of its own."""

    context_class = Context
    command_class = Command
    #: whether its help describes the options that all commands take
    describes_shared: ClassVar[bool] = False

    def __init__(self, *args: Any, **more: Any) -> None:
        epilog = None if self.describes_shared else _EPILOG
        # Alone it is to print its help, as an error; click has an answer of its own, which
        # differs between its releases.
        more |= {
            "epilog": epilog,
            "context_settings": _CONTEXT,
            "no_args_is_help": False,
            "invoke_without_command": True,
            "subcommand_metavar": "COMMAND [ARGS]...",
        }
        super().__init__(*args, **more)
        self.params.extend(shared_options(hidden=not self.describes_shared))

    def invoke(self, ctx: click.Context) -> Any:
        """Run what was named behind.

        Raises:
            MissingCommand: nothing was.
        """
        outcome = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            raise MissingCommand("a command is missing", ctx)
        return outcome

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # While a shell completes a line, half of a name is no mistake.
        if not ctx.resilient_parsing and not args[0].startswith("-"):
            self.find(ctx, args[0])
        return super().resolve_command(ctx, args)

    def find(self, ctx: click.Context, name: str) -> click.Command:
        """Return the command of this name.

        Raises:
            click.UsageError: there is none; with the nearest there is.
        """
        command = self.get_command(ctx, name)
        if command is None:
            near = nearest(name, self.commands)
            hint = "" if near is None else f", did you mean {near!r}?"
            raise click.UsageError(f"no command {one_line(name)!r}{hint}", ctx)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the whole first sentence of its help."""
        rows = [
            (name, (command.help or "").partition("\n\n")[0].removesuffix("."))
            for name, command in sorted(self.commands.items())
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
