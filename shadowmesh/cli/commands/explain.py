"""`shadowmesh explain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import click

from shadowmesh.base.errors import NoSuchPeer, ShadowMeshError
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.parameters import PeerName
from shadowmesh.cli.settings import Settings

EXIT_NOT_DELIVERED = 5
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_VERDICT_WIDTH, _NAME_WIDTH = 6, 12


class NoTarget(ShadowMeshError):
    """What was typed names nothing that a frame could be for."""

    exit_code: ClassVar[int] = 2


@click.command(cls=Command)
@click.argument("target", metavar="[MAC|IP|NAME]", type=PeerName(), required=False)
@click.pass_obj
def explain(settings: Settings, target: str | None) -> int:
    """Explain step by step what happens to a frame: device, target, session, path, MTU, drops.

    With several peers the steps are those of the peer that MAC or IP is behind, or of the one named.
    Without either any frame is meant that leaves through the TAP device. Nothing is sent. Exit code 5
    when a frame would not reach the far TAP device.
    """
    answer = _ask(settings.client(), target)
    if settings.json:
        print_json(answer)
    else:
        click.echo("\n".join(_lines(answer)))
    return 0 if answer.get("delivered") is True else EXIT_NOT_DELIVERED


def _ask(client: ApiClient, target: str | None) -> dict[str, Any]:
    # Not at the top: it brings the questions to the kernel, which are for the daemon.
    from shadowmesh.device.facts import parse_target

    if target is None:
        return client.explain(None)
    try:
        parse_target(target)
    except ValueError as error:
        try:
            return client.explain(None, target)
        except NoSuchPeer as nobody:
            near = str(nobody).partition("; ")[2]
            raise NoTarget(f"{error} nor the name of a peer; {near}") from None
    return client.explain(target)


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    indent = " " * (_VERDICT_WIDTH + _NAME_WIDTH)
    for step in answer["steps"]:
        if not isinstance(step, dict):
            continue
        verdict = str(step.get("verdict"))
        # Padded before it is coloured: codes have a length, and no width.
        mark = click.style(
            f"{text(verdict):<{_VERDICT_WIDTH}}", fg=_COLOURS.get(verdict), bold=verdict == "fail"
        )
        yield f"{mark}{text(step.get('name')):<{_NAME_WIDTH}}{text(step.get('text'))}"
        if step.get("remedy"):
            yield f"{indent}do: {text(step['remedy'])}"
        details = step.get("details")
        for line in details if isinstance(details, list) else ():
            yield f"{indent}- {text(line)}"
    colour = "green" if answer.get("delivered") is True else "red"
    yield click.style(text(answer.get("summary")), fg=colour)
