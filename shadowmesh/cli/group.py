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


#: key in what contexts share: a word of a `NameOrCommands` was typed where its name could stand
_WORD: Final = f"{__name__}.word"


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


class NameOrCommands(Commands):
    """A command that takes a name, in whose place the words of its own commands may stand.

    So no name can be one of these words. Its function is called in either case, as that of any
    group: with `ctx.invoked_subcommand`, and without the name, when a word was typed.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find out which of both was typed, by the first word that belongs to no option."""
        given = self.make_parser(ctx).parse_args(list(args))[0]
        names = (given.get(str(one.name)) for one in self.params if _is_argument(one))
        first = next((name for name in names if name in self.commands), None)
        # Behind a -- it is meant as a name, and the name's type says what is wrong with it.
        if not isinstance(first, str) or "--" in args[: args.index(first)]:
            ctx.allow_interspersed_args = True
            ctx.allow_extra_args = False
            return click.Command.parse_args(self, ctx, args)
        self.find(ctx, first)
        rest = super().parse_args(ctx, args)
        for one in self.params:
            if one.expose_value and _is_typed(ctx, one):
                raise click.UsageError(
                    f"`{first}` is a command of `{ctx.command_path}`, takes no {one.opts[0]}, and"
                    " cannot be a name",
                    ctx,
                )
        return rest

    def find(self, ctx: click.Context, name: str) -> click.Command:
        """Return the command of this word, which stands in the place of the name from now on."""
        found = super().find(ctx, name)
        ctx.meta[_WORD] = True
        return found

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters, without the name where a word stands in its place."""
        params = super().get_params(ctx)
        return [one for one in params if not (ctx.meta.get(_WORD) and _is_argument(one))]

    def invoke(self, ctx: click.Context) -> Any:
        """Run what was named behind, or the command itself."""
        return click.Group.invoke(self, ctx)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return click.Command.collect_usage_pieces(self, ctx)


def _is_argument(one: click.Parameter) -> bool:
    return isinstance(one, click.Argument)


def _is_typed(ctx: click.Context, one: click.Parameter) -> bool:
    return ctx.get_parameter_source(str(one.name)) is click.core.ParameterSource.COMMANDLINE
