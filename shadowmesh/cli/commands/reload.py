"""`shadowmesh reload`."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import click

from shadowmesh.base.errors import NotPermitted, ShadowMeshError, one_line
from shadowmesh.base.services import service_of
from shadowmesh.base.units import listed
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings


class NoProcess(ShadowMeshError):
    """There is none of that number."""


@click.command(cls=Command)
@click.option(
    "--pid", type=click.IntRange(2), metavar="N",
    help="Process to signal instead; its outcome is then in the log only.",
)  # fmt: skip
@click.pass_obj
def reload(settings: Settings, pid: int | None) -> None:
    """Make the daemon read its configuration again, and tell what it did.

    Exit code 7 when it is invalid: the daemon then goes on as before. Keys that wait for a restart
    are named, and do not change the exit code.
    """
    settings.load_readable()  # a ConfigError ends it here: it lists every mistake
    if pid is None:
        answer = settings.client().reload()
        if settings.json:
            print_json(answer)
        else:
            applied, restart = _keys(answer["applied"]), _keys(answer["restart"])
            click.echo("\n".join(_sentences(applied, restart, service_of(settings.config))))
        return
    # It is not looked at: the service's sandbox hides the process, not the right to signal it.
    _signal(pid)
    if settings.json:
        print_json({"schema": 1, "pid": pid, "applied": None, "restart": None})
    else:
        click.echo(
            f"process {pid} reads its configuration again; `shadowmesh logs` has the outcome"
        )


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        raise NoProcess(f"there is no process {pid}; see `shadowmesh status`") from None
    except PermissionError:
        raise NotPermitted(
            f"process {pid} may not be signalled by this user; run as its user or root"
        ) from None


def _keys(found: Any) -> list[str]:
    return [one_line(str(key)) for key in found] if isinstance(found, list) else []


def _sentences(applied: Sequence[str], restart: Sequence[str], service: str) -> list[str]:
    lines = []
    if applied:
        lines.append(f"applied: {listed(applied)}")
    if restart:
        waits = "waits" if len(restart) == 1 else "wait"
        lines.append(f"{listed(restart)} {waits} for a restart: `systemctl restart {service}`")
    return lines or ["nothing has changed"]
