"""`shadowmesh bench`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final

import click

from shadowmesh.base.errors import NotPermitted, ShadowMeshError
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.settings import Settings

if TYPE_CHECKING:
    from shadowmesh.cli.benchmark import Rates

ROUNDS: Final = 9
QUICK_ROUNDS: Final = 3
_COLUMNS: Final = ("seal_wss", "open_wss", "seal_udp", "open_udp", "seal_alone", "open_alone")


class BenchFailed(ShadowMeshError):
    """A figure could not be read."""

    exit_code: ClassVar[int] = 1


@click.command(cls=Command)
@click.option(
    "--tunnel", is_flag=True,
    help="Also start two daemons in namespaces of their own and measure their tunnel; root.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds: figures only roughly right.")
@click.pass_obj
def bench(settings: Settings, tunnel: bool, quick: bool) -> int:
    """Measure what this machine can do: frames per second of each cipher, and a whole tunnel.

    Frames are sealed and opened on one core as the daemon does it, beside the cipher alone. With
    --tunnel two real daemons share this machine; the network of the machine and a running daemon
    are left alone. For figures that mean something the machine has to be idle.
    """
    # Not at the top: the data plane and its hooks.
    from shadowmesh.cli import benchmark

    began = time.monotonic()
    rates = list(benchmark.read_all(QUICK_ROUNDS if quick else ROUNDS, _progress))
    streams = list(_tunnel(benchmark.ciphers(), 0.7 if quick else 3.0)) if tunnel else []
    _progress("")
    if settings.json:
        print_json({
            "schema": 1, "machine": benchmark.machine(), "quick": quick,
            "duration_s": round(time.monotonic() - began, 1),
            "frames_per_second": [
                {"cipher": one.cipher, "frame_bytes": one.frame_bytes}
                | {call: round(value) for call, value in _medians(one).items()}
                for one in rates
            ],
            "tunnel": streams if tunnel else None,
        })  # fmt: skip
        # An error would be a second object; `detail` says it.
        return 1 if any(stream["detail"] is not None for stream in streams) else 0
    click.echo("\n".join(_lines(benchmark.machine(), rates, streams)))
    broken = [stream for stream in streams if stream["detail"] is not None]
    if broken:
        raise BenchFailed(f"{broken[0]['path']} {broken[0]['cipher']}: {broken[0]['detail']}")
    return 0


def _progress(what: str) -> None:
    """Show on a terminal what is being measured; nothing once it is over."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{what and f'measuring {what} ...'}", nl=False, err=True)


def _medians(rates: Rates) -> dict[str, float]:
    import statistics  # loads a quarter of what the other commands need in all

    return {call: statistics.median(values) for call, values in rates.rounds.items()}


def _tunnel(ciphers: tuple[str, ...], seconds: float) -> Iterator[dict[str, Any]]:
    """Give the figures of each path and cipher as they come.

    Raises:
        NotPermitted: no right to make namespaces.
        BenchFailed: it ended without all of them.
    """
    import subprocess

    command = [
        sys.executable,
        "-m",
        "shadowmesh.netlab.tunnelbench",
        f"--seconds={seconds:g}",
        *ciphers,
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            for line in child.stdout:
                told = json.loads(line)
                if "about" in told:
                    _progress(f"the tunnel, {told['about']}")
                else:
                    yield told
            said = child.stderr.read().strip().replace("\n", " ")
        except BaseException:
            # It removes its namespaces before it ends.
            child.terminate()
            raise
    if child.returncode == NotPermitted.exit_code:
        raise NotPermitted(f"the tunnel cannot be measured: {said}")
    if child.returncode not in (0, 1):
        raise BenchFailed(f"the tunnel was not measured to the end: {said or child.returncode}")


def _lines(machine: str, rates: list[Rates], streams: list[dict[str, Any]]) -> Iterator[str]:
    yield machine
    yield ""
    yield f"{'frames per second, one core':<30}{'WSS':>17}{'UDP':>20}{'cipher alone':>20}"
    yield f"{'cipher':<20}{'bytes':>6}    " + "      seal      open" * 3
    for one in rates:
        medians = _medians(one)
        cells = "".join(f"{_short(medians[call]):>10}" for call in _COLUMNS)
        yield f"{one.cipher:<20}{one.frame_bytes:>6}    {cells}"
    if streams:
        yield ""
        yield f"{'two daemons, one machine':<30}{'TCP':>17}{'round trip':>20}"
    for stream in streams:
        name = f"{text(stream['path'])} {text(stream['cipher'])}"
        if stream["detail"] is not None:
            yield f"{name:<30}{text(stream['detail'])}"
            continue
        speed = f"{stream['tcp_bits_per_second'] / 1e9:.2f} Gbit/s"
        trip = f"{stream['round_trip_ms']:.2f} ms"
        yield f"{name:<30}{speed:>17}{trip:>20}"


def _short(number: float) -> str:
    """Return a rate with three digits that count."""
    if number >= 1e6:
        return f"{number / 1e6:.3g} M"
    return f"{number / 1e3:.3g} k"
