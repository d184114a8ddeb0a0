"""The options that every command takes, before its name and after it.

Owns: their names, and that the one nearest to the end of the line wins. Does not know: what they
are for (`settings`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from shadowmesh.cli.settings import Settings

#: what a choice of --color is to click; None leaves colours out when the output is no terminal
_COLOURS: Final[dict[str, bool | None]] = {"always": True, "never": False}


def automatic_colour() -> bool | None:
    """Return what stands for --color auto. Source: no-color.org."""
    return False if os.environ.get("NO_COLOR") else None


def shared_options(*, hidden: bool) -> list[click.Parameter]:
    """Return the options.

    Args:
        hidden: not in the help; that of the program describes them once for all.
    """
    path = click.Path(path_type=Path)
    return [
        _option(
            "--api", "api", hidden, metavar="URL",
            help="Address of the daemon's API, http://host:port or unix:/path.",
        ),
        _option(
            "--token-file", "token_file", hidden, type=path, metavar="FILE",
            help="File with the API token.  [default: api.token in daemon.state_dir]",
        ),
        _option(
            "--config", "config", hidden, type=path, metavar="FILE",
            help="Configuration of the daemon, for the defaults of the two above.",
        ),
        _option("--json", "json", hidden, is_flag=True, help="Print JSON."),
        _option(
            "--color", "color", hidden, type=click.Choice(["auto", "always", "never"]),
            help="Colours; auto: on a terminal, unless NO_COLOR is set.  [default: auto]",
        ),
    ]  # fmt: skip


def _option(flag: str, name: str, hidden: bool, **more: Any) -> click.Option:
    return click.Option(
        [flag, f"of_all_{name}"], expose_value=False, hidden=hidden, callback=_keep, **more
    )


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Put what was given into the settings; a later one replaces an earlier."""
    if value is None or value is False:
        return
    name = str(param.name).removeprefix("of_all_")
    settings = ctx.ensure_object(Settings)
    if name == "color":
        value = ctx.color = _COLOURS.get(value, automatic_colour())
    setattr(settings, name, value)
