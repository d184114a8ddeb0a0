"""`shadowmesh reload`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from shadowmesh.base.constants import EVENT_NOT_RELOADED, EVENT_RELOADED
from shadowmesh.base.errors import NotPermitted, ShadowMeshError, one_line
from shadowmesh.base.units import listed
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.process import OtherProcess, daemon_pid
from shadowmesh.cli.settings import Settings

#: the daemon does it between two turns of its hub
_OUTCOME_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.05
#: events that may come between the signal and our look
_EVENTS: Final = 50


class Refused(ShadowMeshError):
    """The daemon reads another configuration than we do, and that one is wrong."""

    exit_code = 7


@click.command(cls=Command)
@click.option(
    "--pid", type=click.IntRange(2), metavar="N",
    help="Process to tell; its outcome is then in the log only.  [default: the one whose API answers]",
)  # fmt: skip
@click.pass_obj
def reload(settings: Settings, pid: int | None) -> None:
    """Check the configuration, make the daemon read it again, and tell what it did.

    Exit code 7 when it is invalid: the daemon then goes on as before. Keys that wait for a restart
    are named, and do not change the exit code.
    """
    settings.load()  # a ConfigError ends it here
    if pid is not None:
        # It is not looked at: the service's sandbox hides the process, not the right to signal it.
        _signal(pid)
        if settings.json:
            print_json({"schema": 1, "pid": pid, "applied": None, "restart": None})
        else:
            click.echo(
                f"process {pid} reads its configuration again; `shadowmesh logs` has the outcome"
            )
        return
    pid = daemon_pid(settings)
    client = settings.client()
    last = max((_number(event) for event in client.recent_events(1)), default=0)
    _signal(pid)
    fields = _outcome(client, last)
    applied, restart = (
        None if fields is None else [one_line(str(key)) for key in fields.get(name) or ()]
        for name in ("applied", "restart")
    )
    if settings.json:
        print_json({"schema": 1, "pid": pid, "applied": applied, "restart": restart})
    elif applied is None or restart is None:
        click.echo(
            f"process {pid} was told to read its configuration again and has not said that it did;"
            " `shadowmesh logs` has the outcome"
        )
    else:
        click.echo("\n".join(_sentences(applied, restart)))


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        raise OtherProcess(f"there is no process {pid}; see `shadowmesh status`") from None
    except PermissionError:
        raise NotPermitted(
            f"the daemon (process {pid}) may not be signalled by this user; run as its user or root"
        ) from None


def _outcome(client: ApiClient, last: int) -> dict[str, Any] | None:
    """Return what the daemon tells of the reload that came after event `last`; None: nothing.

    Raises:
        Refused: it found its configuration to be wrong.
    """
    deadline = time.monotonic() + _OUTCOME_TIMEOUT_S
    while True:
        for event in client.recent_events(_EVENTS):
            if _number(event) > last and event.get("message") in (
                EVENT_RELOADED,
                EVENT_NOT_RELOADED,
            ):
                if event["message"] == EVENT_NOT_RELOADED:
                    raise Refused(
                        "the daemon found its own configuration to be wrong and goes on as before;"
                        " `shadowmesh logs` has every mistake"
                    )
                fields = event.get("fields")
                return fields if isinstance(fields, dict) else None
        if time.monotonic() >= deadline:
            return None
        time.sleep(_PAUSE_S)


def _number(event: Any) -> int:
    number = event.get("number") if isinstance(event, dict) else None
    return number if isinstance(number, int) else 0


def _sentences(applied: Sequence[str], restart: Sequence[str]) -> list[str]:
    lines = []
    if applied:
        lines.append(f"applied: {listed(applied)}")
    if restart:
        waits = "waits" if len(restart) == 1 else "wait"
        lines.append(f"{listed(restart)} {waits} for a restart: `systemctl restart shadowmesh`")
    return lines or ["nothing has changed"]
