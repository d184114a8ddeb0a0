"""`shadowmesh netcheck`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.settings import Settings

EXIT_UNREACHABLE = 5
_LABEL_WIDTH = 10
_VARIES = {True: "varies with the destination", False: "the same for all destinations"}


@click.command(cls=Command)
@click.option(
    "--server", "servers", multiple=True, metavar="HOST:PORT",
    help="STUN server to ask; may be given several times.  [default: nat.stun_server]",
)  # fmt: skip
@click.pass_obj
def netcheck(settings: Settings, servers: tuple[str, ...]) -> int:
    """Find out what kind of NAT this machine is behind; the daemon need not run.

    Without the right to read the configuration the default servers and port are taken.

    Exit code 5 when no STUN server answered.
    """
    # Not at the top: no other command needs sockets of its own.
    from shadowmesh.config.values import remotes
    from shadowmesh.path.netcheck import check

    config, hidden = settings.load_readable()
    try:
        wanted = remotes(",".join(servers)) if servers else config.nat.stun_server
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server") from None
    if hidden is not None and not servers:
        click.echo(
            f"{click.style('note:', fg='yellow')} {hidden} may not be read by this user; the default"
            " STUN servers are asked",
            err=True,
        )
    report = check(
        wanted, config.nat.udp_port, config.nat.detection_timeout, config.network.tap_device or None
    ).to_dict()
    if settings.json:
        print_json(report)
    else:
        click.echo("\n".join(f"{label:<{_LABEL_WIDTH}}{line}" for label, line in _rows(report)))
    return 0 if report["udp_out"] else EXIT_UNREACHABLE


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    blocked = report["udp_out"] is False
    kind = click.style(text(report["type"]), fg="red" if blocked else "green", bold=True)
    yield "NAT", f"{kind}: {text(report['detail'])}"
    yield "mapping", _VARIES.get(report["mapping_varies"], "not known")
    yield "UDP out", {True: "yes", False: "no"}.get(report["udp_out"], "not known")
    yield "UDP in", text(report["udp_in"] or ("no" if blocked else "not known"))
    yield "public", ", ".join(map(text, report["public_addresses"])) or "not known"
    yield "local", text(report["local_address"])
    label = "servers"
    for server in report["servers"]:
        name = text(server["name"])
        if server["address"] not in (None, server["name"]):
            name += f" ({text(server['address'])})"
        if server["saw"] is not None:
            outcome = f"answered in {server['rtt_ms']:.1f} ms, saw {text(server['saw'])}"
        else:
            outcome = text(server["detail"])
        yield label, f"{name}: {outcome}"
        label = ""
