"""Waiting for a daemon that begins anew, as it does once it has made, joined or left a network.

Owns: how long it is waited for and what for, the lines of progress. Does not know: what was asked
of it before.

::

    answer --> the API is away --> GET /network says what was asked for --> a peer has a session
               at most 15 s                                                  at most 20 s
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import click

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.output import text

#: in which the daemon has to be back; it takes about one
RESTART_S: Final = 15.0
#: in which somebody has to be reached: name look-up, TCP, TLS, handshake, and one more attempt
PEER_S: Final = 20.0
#: between two looks, each of which costs the daemon about a millisecond
PAUSE_S: Final = 0.1


class NotBack(ShadowMeshError):
    """The daemon does not say that it is what it was asked to be."""

    exit_code: ClassVar[int] = 6


class NobodyYet(ShadowMeshError):
    """No peer has a session."""


class Progress:
    """A line on stderr for each step that was done, and how long they took together.

    On a terminal the line begins with the step. Elsewhere it comes when the step is done, so that of a
    failure there is the error's own line alone.

    Attributes:
        spent_s: in all steps; what the user thinks in between does not count.
    """

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self.spent_s = 0.0

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what is done meanwhile, and after it how long it took."""
        began = time.monotonic()
        label, live = f"{what:<20}", self._shown and sys.stderr.isatty()
        if live:
            click.echo(label, nl=False, err=True)
        try:
            yield
        except BaseException:
            if live:
                click.echo(err=True)
            raise
        took_s = time.monotonic() - began
        self.spent_s += took_s
        if self._shown:
            click.echo(f"{'' if live else label}{took_s:.1f} s", err=True)


def await_network(client: ApiClient, name: str | None) -> None:
    """Wait until the daemon says that it is in the network of this name; None: in none.

    Raises:
        NotBack: it does not say so in time.
    """
    deadline = time.monotonic() + RESTART_S
    seen = "nothing was asked"
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            network = client.network(left_s)
        except ShadowMeshError as error:
            # It stops, or it starts: whatever it says of that will pass.
            seen = str(error).partition(";")[0]
        else:
            found = None if network is None else network.get("name")
            if found == name:
                return
            seen = f"it says that it is in {_network(found)}"
        time.sleep(PAUSE_S)
    raise NotBack(
        f"it is done, but the daemon does not say within {RESTART_S:g} s that it is in"
        f" {_network(name)}: {seen}; see `shadowmesh logs`"
    )


def await_first_peer(client: ApiClient) -> int:
    """Wait until a peer has a session, and return how many have one then.

    Raises:
        NobodyYet: none has one in time; with what the daemon knows about it.
    """
    deadline = time.monotonic() + PEER_S
    seen, told = "no peer is known yet", False
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            peers = [one for one in client.peers(left_s)["peers"] if isinstance(one, dict)]
        except ShadowMeshError as error:
            # The last question has hardly any time left: what was told before says more.
            seen = seen if told else str(error).partition(";")[0]
        else:
            told = True
            number: int = sum(peer.get("state") == "connected" for peer in peers)
            if number:
                return number
            seen = _hindrance(peers) or seen
        time.sleep(PAUSE_S)
    raise NobodyYet(
        f"no peer has a session after {PEER_S:g} s: {seen}; it is tried on and on, and"
        " `shadowmesh peers` shows who has one"
    )


def _network(name: object) -> str:
    return "no network" if name is None else f"the network {text(name)}"


def _hindrance(peers: list[dict[str, Any]]) -> str | None:
    """Return why the peers that could have a session have none."""
    for peer in peers:
        if peer.get("last_error"):
            return f"{text(peer.get('name'))}: {text(peer['last_error'])}"
    return "nobody has been reached yet" if peers else None
