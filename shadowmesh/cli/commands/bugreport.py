"""`shadowmesh bugreport`."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from shadowmesh.base.errors import KeyFileError, ShadowMeshError
from shadowmesh.base.services import service_of
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings

if TYPE_CHECKING:
    from shadowmesh.config import LoadedConfig

_UNIT_PROPERTIES: Final = (
    "ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts", "ActiveEnterTimestamp",
    "MemoryCurrent", "FragmentPath",
)  # fmt: skip
#: the peer port, to and from, and the two ports of the API and the metrics
_OUR_SOCKETS: Final = "( sport = :9001 or dport = :9001 or sport = :9090 or sport = :9091 )"


class Exists(ShadowMeshError):
    """There is a file of this name, which is not ours to overwrite."""


@click.command(cls=Command)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where to.  [default: shadowmesh-bugreport-HOST-TIME.tar.gz here]",
)  # fmt: skip
@click.pass_obj
def bugreport(settings: Settings, output: Path | None) -> None:
    """Write one archive with everything that helps to find a fault, and no secret.

    Versions, configuration, status, health, events, metrics, the end of the log, and what the
    kernel says; also while the daemon is down. The file has mode 0600 and replaces none. IP and
    MAC addresses, host names and public keys are in it.
    """
    # Not at the top: no other command needs them.
    from shadowmesh.cli import evidence
    from shadowmesh.cli.redaction import Redactor
    from shadowmesh.keys.private_file import write_private_file

    stem = f"shadowmesh-bugreport-{socket.gethostname()}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    path = output or Path(f"{stem}.tar.gz")
    if path.is_symlink() or path.exists():
        raise _exists(path)
    load = cache(settings.load)
    parts = []
    for part in evidence.collect(_sources(settings, load), Redactor(*_secrets(settings, load))):
        parts.append(part)
        _progress(part.name)
    _progress("")
    try:
        write_private_file(path, evidence.archive(parts, stem))
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from None
    failed = [part.name for part in parts if part.problem is not None]
    if settings.json:
        print_json({
            "schema": 1, "file": str(path), "size": path.stat().st_size,
            "parts": [
                {"name": part.name, "file": part.file, "ok": part.problem is None,
                 "problem": part.problem}
                for part in parts
            ],
            "contains": evidence.REMAINS,
        })  # fmt: skip
        return
    click.echo(f"written: {path} ({len(parts)} parts)")
    if failed:
        click.echo(f"not to be had, the archive says why: {', '.join(failed)}")
    click.echo(
        f"secrets are taken out; {evidence.REMAINS} are in it: look through it before you send it"
    )


def _exists(path: Path) -> Exists:
    return Exists(f"{path} exists and is not overwritten; name another file with --output")


def _progress(name: str) -> None:
    """Show on a terminal what is being done; nothing once it is over."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{name}", nl=False, err=True)


def _secrets(
    settings: Settings, load: Callable[[], LoadedConfig]
) -> tuple[dict[str, bytes | str], list[str]]:
    """Return the secrets that may be in a part, and 64 hex digits that are none."""
    from shadowmesh.cli import evidence

    psk, state_dir = None, None
    try:
        config = load().config
        state_dir = config.daemon.state_dir
        psk = None if config.encryption.key is None else config.encryption.key.reveal()
    except ShadowMeshError:
        pass  # the part "configuration" says why; what looks like a key goes nevertheless
    found = evidence.secrets_of(psk, state_dir, os.environ)
    if settings.token_file is not None:
        # What cannot be read is in no part either.
        with contextlib.suppress(OSError):
            found["API token"] = settings.token_file.read_text(encoding="latin-1")[:4096]
    return found, _public(settings)


def _public(settings: Settings) -> list[str]:
    """Return the fingerprint of the TLS certificate, which is told in status."""
    try:
        certificate = settings.client().status().get("certificate")
    except ShadowMeshError:
        return []
    digest = certificate.get("sha256") if isinstance(certificate, dict) else None
    return [digest] if isinstance(digest, str) else []


def _sources(settings: Settings, load: Callable[[], LoadedConfig]) -> dict[str, Callable[[], str]]:
    """Return how each part is made, by its name."""
    from shadowmesh.cli import evidence
    from shadowmesh.cli.commands.logs import reader
    from shadowmesh.config import redacted

    def configuration() -> str:
        loaded = load()
        return redacted(loaded) + "".join(f"# warning: {text}\n" for text in loaded.warnings)

    def events() -> str:
        found = settings.client().recent_events(evidence.EVENTS)
        return evidence.as_json({"events": found})

    def files() -> str:
        config = load().config
        return evidence.files(
            dict.fromkeys((
                config.daemon.state_dir, config.websocket.tls_cert.parent,
                config.websocket.tls_cert, config.websocket.tls_key, Path("/etc/shadowmesh"),
            ))
        )  # fmt: skip

    daemon = Path(sys.executable).with_name("shadowmesh-daemon")
    unit = f"{service_of(settings.config)}.service"
    return {
        "versions.txt": lambda: evidence.versions([str(daemon)]),
        "configuration.yaml": configuration,
        # The daemon's own: with the directories of the service, and without what waits for a restart.
        "configuration-in-force.yaml": lambda: settings.client().configuration()["text"],
        "environment.txt": lambda: evidence.environment(os.environ),
        "status.json": lambda: evidence.as_json(settings.client().status()),
        "peers.json": lambda: evidence.as_json(settings.client().peers()),
        "fdb.json": lambda: evidence.as_json({"entries": settings.client().table()}),
        "health.json": lambda: evidence.as_json(settings.client().health()),
        "explain.json": lambda: evidence.as_json(settings.client().explain(None)),
        "events.json": events,
        "metrics.txt": lambda: settings.client().metrics(),
        "log.txt": lambda: evidence.run(reader(settings, evidence.LOG_LINES)),
        "service.txt": lambda: evidence.commands(
            ["systemctl", "status", "--no-pager", "--lines=0", unit],
            ["systemctl", "show", unit, f"--property={','.join(_UNIT_PROPERTIES)}"],
        ),
        "files.txt": files,
        "kernel.txt": evidence.kernel,
        "interfaces.txt": lambda: evidence.commands(
            ["ip", "-details", "-statistics", "link"], ["ip", "address"], ["bridge", "link"]
        ),
        "routes.txt": lambda: evidence.commands(
            ["ip", "route", "show", "table", "all"], ["ip", "-6", "route", "show", "table", "all"],
            ["ip", "rule"], ["ip", "neighbour"],
        ),
        # The names alone say whether there is a firewall; its rules are nobody's business.
        "firewall.txt": lambda: evidence.commands(["nft", "list", "tables"]),
        "sockets.txt": lambda: evidence.commands(["ss", "-tuanp", _OUR_SOCKETS]),
    }  # fmt: skip
