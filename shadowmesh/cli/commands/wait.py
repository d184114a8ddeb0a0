"""`shadowmesh wait`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import click

from shadowmesh.base.errors import NoSuchPeer, ShadowMeshError
from shadowmesh.cli.failures import DaemonNotRunning, NoAnswer
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.parameters import Duration, PeerName
from shadowmesh.cli.settings import Settings

#: a status costs the daemon about a millisecond
_PAUSE_S = 0.2
LONGEST_S = 86400.0

_REACHED: Final[dict[str, Callable[[Mapping[str, Any]], bool]]] = {
    "running": lambda _snapshot: True,
    "connected": lambda snapshot: snapshot["state"] == "connected",
    "disconnected": lambda snapshot: snapshot["state"] == "disconnected",
    "udp": lambda snapshot: snapshot["state"] == "connected" and _is_direct(snapshot),
}


def _is_direct(snapshot: Mapping[str, Any]) -> bool:
    """Whether all that have a session are reached by the direct path."""
    peers = snapshot.get("peers")
    if snapshot.get("path") is None and isinstance(peers, dict):
        return peers.get("sessions") == peers.get("direct")
    return snapshot.get("path") == "udp"


class NotReached(ShadowMeshError):
    """What was waited for did not come in time."""

    exit_code: ClassVar[int] = 6


@click.command(cls=Command)
@click.option(
    "--for", "goal", type=click.Choice(tuple(_REACHED)), default="connected", show_default=True,
    help="What to wait for; udp: connected by the direct path.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=Duration(LONGEST_S), default="30s", show_default=True,
    metavar="DURATION", help="Give up after this time, such as 500ms, 30s or 2m.",
)  # fmt: skip
@click.option(
    "--peer", "name", type=PeerName(), metavar="NAME",
    help="Wait for this one of several peers.  [default: any of them]",
)  # fmt: skip
@click.pass_obj
def wait(settings: Settings, goal: str, timeout_s: float, name: str | None) -> None:
    """Wait until the tunnel is in a state, for scripts; the daemon may still be starting.

    In a network a member that is not known yet is waited for, too. Exit code 6 when it does not come
    in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer, seen = _look(settings, name)
        if answer is not None:
            one = answer if name is None else answer["peer"]
            if _REACHED[goal](one):
                break
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise NotReached(f"not {goal} within {timeout_s:g} s: {seen}; see `shadowmesh status`")
        time.sleep(min(_PAUSE_S, left_s))
    if settings.json:
        print_json(answer)
    else:
        click.echo(one["state"] if goal != "udp" else "connected over udp")


def _look(settings: Settings, name: str | None) -> tuple[dict[str, Any] | None, str]:
    """Return what the daemon tells, of itself or a peer, and what to say of it; None: nothing yet."""
    try:
        # A new client each time: a daemon that starts for the first time makes its token then.
        client = settings.client()
        answer = client.status() if name is None else client.peer(name)
    except (DaemonNotRunning, NoAnswer) as error:
        return None, str(error).partition(";")[0]
    except NoSuchPeer as error:
        if not _may_come(settings):
            raise
        return None, str(error).partition(";")[0]
    one = answer if name is None else answer["peer"]
    words = f"the state is {one['state']}"
    if one.get("phase"):
        words += f" ({one['phase']})"
    if one.get("last_error"):
        words += f", the last error was: {one['last_error']}"
    return answer, words


def _may_come(settings: Settings) -> bool:
    """Whether a peer that is not known may be tomorrow: relays tell members of each other."""
    try:
        return settings.client().network() is not None
    except (DaemonNotRunning, NoAnswer):
        return True
