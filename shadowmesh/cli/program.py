"""The program: options before the command, the list of commands, errors and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from shadowmesh import __version__
from shadowmesh.base.errors import ControlError, ShadowMeshError, one_line
from shadowmesh.cli.commands.bench import bench
from shadowmesh.cli.commands.bugreport import bugreport
from shadowmesh.cli.commands.capture import capture
from shadowmesh.cli.commands.completion import completion
from shadowmesh.cli.commands.configuration import configuration
from shadowmesh.cli.commands.connect import connect
from shadowmesh.cli.commands.dashboard import dashboard
from shadowmesh.cli.commands.disconnect import disconnect
from shadowmesh.cli.commands.explain import explain
from shadowmesh.cli.commands.keys import genkey, genpsk, pubkey
from shadowmesh.cli.commands.logs import logs
from shadowmesh.cli.commands.netcheck import netcheck
from shadowmesh.cli.commands.ping import ping
from shadowmesh.cli.commands.reload import reload
from shadowmesh.cli.commands.status import status
from shadowmesh.cli.commands.version import version
from shadowmesh.cli.commands.wait import wait
from shadowmesh.cli.group import Commands
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings

EXIT_FAILED = 1
EXIT_USAGE = 2


class Program(Commands):
    """A group whose errors are one line, and whose commands return their exit code."""

    def main(  # type: ignore[override]  # standalone_mode means nothing here
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,
    ) -> NoReturn:
        """Run a command and end the process with its exit code."""
        settings = Settings()
        extra.pop("standalone_mode", None)
        try:
            code = super().main(
                args, prog_name or "shadowmesh", standalone_mode=False, obj=settings, **extra
            )
        except click.UsageError as error:
            text = error.format_message().removesuffix(".")
            code = _report(settings, f"{text}; see `shadowmesh --help`", "usage", EXIT_USAGE)
        except click.ClickException as error:
            code = _report(settings, error.format_message(), "failed", EXIT_FAILED)
        except click.Abort:
            code = _report(settings, "interrupted", "interrupted", EXIT_FAILED)
        except ControlError as error:
            code = _report(settings, str(error), error.code, error.exit_code)
        except ShadowMeshError as error:
            code = _report(settings, str(error), _code_of(error), error.exit_code)
        sys.exit(code or 0)


def _code_of(error: ShadowMeshError) -> str:
    """Return the error's class as a code: NotPermitted is ``not_permitted``."""
    name = type(error).__name__
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


def _report(settings: Settings, message: str, code: str, exit_code: int) -> int:
    message = one_line(" ".join(message.split()))
    if settings.json:
        print_json({"schema": 1, "error": {"code": code, "message": message}})
    click.echo(f"{click.style('error:', fg='red')} {message}", err=True)
    return exit_code


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--api", metavar="URL", help="Address of the daemon's API, http://host:port or unix:/path."
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE",
    help="File with the API token.  [default: api.token in daemon.state_dir]",
)  # fmt: skip
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE",
    help="Configuration of the daemon, for the defaults of the two above.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
    help="Colours; auto: on a terminal, unless NO_COLOR is set.",
)  # fmt: skip
@click.version_option(__version__, message="shadowmesh %(version)s")
@click.pass_context
def program(
    ctx: click.Context,
    api: str | None,
    token_file: Path | None,
    config: Path | None,
    as_json: bool,
    color: str,
) -> None:
    """Control the ShadowMesh daemon of this machine.

    Exit codes: 0 done, 1 failed, 2 usage, 3 daemon not running, 4 not permitted, 5 not connected
    or unreachable, 6 timeout, 7 configuration invalid.
    """
    settings = ctx.ensure_object(Settings)
    settings.api = api
    settings.token_file = token_file
    settings.config = config
    settings.json = as_json
    # None: click leaves colours out when the output is not a terminal
    automatic = False if os.environ.get("NO_COLOR") else None
    ctx.color = {"always": True, "never": False}.get(color, automatic)


for _command in (
    connect, disconnect, status, explain, dashboard, ping, wait, netcheck, capture, configuration,
    reload, logs, bugreport, bench, genkey, pubkey, genpsk, version, completion,
):  # fmt: skip
    program.add_command(_command)


def main() -> NoReturn:
    """Entry point of the installed script."""
    program.main()
