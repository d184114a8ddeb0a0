"""`shadowmesh explain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.settings import Settings

EXIT_NOT_DELIVERED = 5
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_VERDICT_WIDTH, _NAME_WIDTH = 6, 12


@click.command(cls=Command)
@click.argument("target", metavar="[MAC|IP]", required=False)
@click.pass_obj
def explain(settings: Settings, target: str | None) -> int:
    """Explain step by step what happens to a frame: device, target, session, path, MTU, drops.

    Without MAC or IP any frame is meant that leaves through the TAP device. Nothing is sent. Exit
    code 5 when a frame would not reach the far TAP device.
    """
    answer = settings.client().explain(target)
    if settings.json:
        print_json(answer)
    else:
        click.echo("\n".join(_lines(answer)))
    return 0 if answer.get("delivered") is True else EXIT_NOT_DELIVERED


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
