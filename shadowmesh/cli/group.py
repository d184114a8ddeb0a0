"""A group of commands that suggests the nearest name for one it does not know."""

from __future__ import annotations

import click

from shadowmesh.base.errors import one_line


class Commands(click.Group):
    """Used for the program and for commands that have commands of their own."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        # While a shell completes a line, half of a name is no mistake.
        if (
            not ctx.resilient_parsing
            and self.get_command(ctx, name) is None
            and not name.startswith("-")
        ):
            from difflib import get_close_matches

            near = get_close_matches(name, self.commands, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no command {one_line(name)!r}{hint}")
        return super().resolve_command(ctx, args)
