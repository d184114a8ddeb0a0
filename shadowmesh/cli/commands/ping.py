"""`shadowmesh ping`."""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any, ClassVar

import click

from shadowmesh.base.errors import NotConnected, ShadowMeshError
from shadowmesh.base.units import count as number_of
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.parameters import PeerName
from shadowmesh.cli.settings import Settings

EXIT_UNREACHABLE = 5


class NoSession(ShadowMeshError):
    """There is nobody to ping: unlike for disconnect, that is what the answer is."""

    exit_code: ClassVar[int] = EXIT_UNREACHABLE


@click.command(cls=Command)
@click.argument("name", metavar="[NAME]", type=PeerName(), required=False)
@click.option(
    "--count", "-c", type=click.IntRange(1, 1_000_000), metavar="N",
    help="Stop after N probes.  [default: at Ctrl-C]",
)  # fmt: skip
@click.option(
    "--interval", "-i", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True,
    metavar="SECONDS", help="Time between two probes.",
)  # fmt: skip
@click.pass_obj
def ping(settings: Settings, name: str | None, count: int | None, interval: float) -> int:
    """Measure the round trip to the peer's daemon, on the path that carries the data.

    NAME is that of one of several peers; of a pair it is not needed.

    Exit code 5 when not connected, or when nothing was answered.
    """
    client = settings.client()
    pongs: list[dict[str, Any]] = []
    try:
        for number in itertools.count(1) if count is None else range(1, count + 1):
            if number > 1:
                time.sleep(interval)
            _one(settings, client, name, number, pongs)
    except KeyboardInterrupt:
        pass
    except NotConnected as error:
        if not pongs:
            raise NoSession(str(error)) from None
        click.echo(f"{click.style('error:', fg='red')} {error}", err=True)
    _summarise(settings, pongs)
    return 0 if any(pong["rtt_ms"] is not None for pong in pongs) else EXIT_UNREACHABLE


def _one(
    settings: Settings,
    client: ApiClient,
    name: str | None,
    number: int,
    pongs: list[dict[str, Any]],
) -> None:
    pong = client.ping(name)
    rtt_ms = pong.get("rtt_ms")
    pongs.append({**pong, "rtt_ms": rtt_ms if isinstance(rtt_ms, int | float) else None})
    if settings.json:
        return
    where = f"{text(pong.get('path'))} {text(pong.get('address'))}"
    if pongs[-1]["rtt_ms"] is None:
        click.echo(f"{click.style('lost', fg='red')} {number} over {where}")
    else:
        click.echo(f"pong {number} over {where} in {rtt_ms:.2f} ms")
    sys.stdout.flush()  # the reader of a pipe wants each line when it is due


def _summarise(settings: Settings, pongs: list[dict[str, Any]]) -> None:
    times = [pong["rtt_ms"] for pong in pongs if pong["rtt_ms"] is not None]
    paths: dict[str, int] = {}
    for pong in pongs:
        paths[text(pong.get("path"))] = paths.get(text(pong.get("path")), 0) + 1
    summary = {
        "sent": len(pongs),
        "answered": len(times),
        "min_ms": min(times, default=None),
        "mean_ms": round(sum(times) / len(times), 3) if times else None,
        "max_ms": max(times, default=None),
        "paths": paths,
    }
    if settings.json:
        print_json({"schema": 1, "answers": pongs, "summary": summary})
        return
    line = f"{number_of(len(pongs), 'probe')}, {len(times)} answered"
    if times:
        line += (
            f", round trip {summary['min_ms']:.2f} / {summary['mean_ms']:.2f} /"
            f" {summary['max_ms']:.2f} ms (least, mean, most)"
        )
    if len(paths) > 1:
        line += ", " + ", ".join(f"{name} {used}" for name, used in paths.items())
    click.echo(line)
