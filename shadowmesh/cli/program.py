"""The program: options before the command, the list of commands, errors and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from shadowmesh import __version__
from shadowmesh.base import stdio
from shadowmesh.base.errors import ControlError, ShadowMeshError, one_line
from shadowmesh.cli.commands.authority import authority
from shadowmesh.cli.commands.authority_replace import compact
from shadowmesh.cli.commands.bench import bench
from shadowmesh.cli.commands.bugreport import bugreport
from shadowmesh.cli.commands.capture import capture
from shadowmesh.cli.commands.cert import cert
from shadowmesh.cli.commands.completion import completion
from shadowmesh.cli.commands.configuration import configuration
from shadowmesh.cli.commands.connect import connect
from shadowmesh.cli.commands.dashboard import dashboard
from shadowmesh.cli.commands.disconnect import disconnect
from shadowmesh.cli.commands.explain import explain
from shadowmesh.cli.commands.fdb import fdb
from shadowmesh.cli.commands.help import show_help
from shadowmesh.cli.commands.invite import invite
from shadowmesh.cli.commands.join import join
from shadowmesh.cli.commands.keys import genkey, genpsk, pubkey
from shadowmesh.cli.commands.leave import leave
from shadowmesh.cli.commands.logs import logs
from shadowmesh.cli.commands.netcheck import netcheck
from shadowmesh.cli.commands.network import network
from shadowmesh.cli.commands.network_adopt import adopt
from shadowmesh.cli.commands.network_backup import backup, restore
from shadowmesh.cli.commands.network_delete import delete
from shadowmesh.cli.commands.network_secret import secret
from shadowmesh.cli.commands.peer import peer
from shadowmesh.cli.commands.peer_change import rekey, rename, tag
from shadowmesh.cli.commands.peers import peers
from shadowmesh.cli.commands.ping import ping
from shadowmesh.cli.commands.relays import relays
from shadowmesh.cli.commands.reload import reload
from shadowmesh.cli.commands.status import status
from shadowmesh.cli.commands.version import version
from shadowmesh.cli.commands.wait import wait
from shadowmesh.cli.group import Commands, MissingCommand
from shadowmesh.cli.options import automatic_colour
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings

EXIT_FAILED = 1
EXIT_USAGE = 2


class Program(Commands):
    """A group whose errors are one line, and whose commands return their exit code."""

    describes_shared = True

    def main(  # type: ignore[override]  # standalone_mode means nothing here
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,
    ) -> NoReturn:
        """Run a command and end the process with its exit code."""
        settings = Settings(color=automatic_colour())
        given = list(sys.argv[1:] if args is None else args)
        extra.pop("standalone_mode", None)
        try:
            code = super().main(
                given,
                prog_name or "shadowmesh",
                standalone_mode=False,
                obj=settings,
                color=settings.color,
                **extra,
            )
        except click.UsageError as error:
            # What was wrong may stand before it.
            settings.json = settings.json or "--json" in given
            code = _report_usage(settings, error)
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


def _report_usage(settings: Settings, error: click.UsageError) -> int:
    where = "shadowmesh" if error.ctx is None else error.ctx.command_path
    if isinstance(error, MissingCommand) and error.ctx is not None and not settings.json:
        click.echo(error.ctx.get_help(), err=True, color=settings.color)
        return EXIT_USAGE
    text = error.format_message().strip().removesuffix(".")
    see = " See" if text.endswith("?") else "; see"
    return _report(settings, f"{text}{see} `{where} --help`", "usage", EXIT_USAGE)


def _report(settings: Settings, message: str, code: str, exit_code: int) -> int:
    message = one_line(" ".join(message.split()))
    if settings.json:
        print_json({"schema": 1, "error": {"code": code, "message": message}})
    line = f"{click.style('error:', fg='red')} {message}"
    click.echo(line, err=True, color=settings.color)
    return exit_code


@click.group("shadowmesh", cls=Program)
@click.version_option(__version__, message="shadowmesh %(version)s")
def program() -> None:
    """Control the ShadowMesh daemon of this machine.

    Exit codes: 0 done, 1 failed, 2 usage, 3 daemon not running, 4 not permitted, 5 not connected
    or unreachable, 6 timeout, 7 configuration invalid.
    """


for _command in (
    network, invite, join, leave, peer, cert, relays, connect, disconnect, status, peers, fdb, explain, dashboard, ping, wait, netcheck, capture, configuration,
    reload, logs, bugreport, bench, genkey, pubkey, genpsk, version, completion,
    show_help,
):  # fmt: skip
    program.add_command(_command)
for _command in (backup, compact, delete, restore, secret, adopt, authority):
    network.add_command(_command)
for _command in (rename, tag, rekey):
    peer.add_command(_command)


def main() -> NoReturn:
    """Entry point of the installed script."""
    stdio.guard()
    program.main()
