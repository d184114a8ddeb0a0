"""`shadowmesh config init`, `check` and `show`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from shadowmesh.base.constants import SYSTEM_CONFIG_FILE, USER_CONFIG_FILE
from shadowmesh.base.errors import ConfigError, KeyFileError, Problem, ShadowMeshError
from shadowmesh.cli.failures import DaemonNotRunning
from shadowmesh.cli.group import Commands
from shadowmesh.cli.output import print_json
from shadowmesh.cli.settings import Settings


class Exists(ShadowMeshError):
    """There is a configuration, which is not ours to overwrite."""


@click.group(cls=Commands, name="config")
def configuration() -> None:
    """Make, check or show the configuration of the daemon."""


@configuration.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--psk", is_flag=True, help="Put a fresh pre-shared key into encryption.key.")
@click.option("--peer", metavar="HOST:PORT", help="peer.address: whom to dial.")
@click.option("--public-key", metavar="KEY", help="peer.public_key: whom to expect.")
@click.option(
    "--local-ip",
    metavar="IP/PREFIX",
    help="network.local_ip: our address inside, or several with commas.",
)
@click.pass_obj
def init(
    settings: Settings,
    file: Path | None,
    psk: bool,
    peer: str | None,
    public_key: str | None,
    local_ip: str | None,
) -> None:
    """Write a commented configuration with all defaults; never over a file with changes.

    FILE is --config, or /etc/shadowmesh/daemon.yaml for root, or ~/.shadowmesh/config.yaml. It gets
    mode 0600; in a directory that hands its group on (setgid) that group may read it too.
    """
    from shadowmesh.config import load

    path = file or settings.config or _default_file()
    values = {"peer.address": peer, "peer.public_key": public_key, "network.local_ip": local_ip}
    if psk:
        from shadowmesh.keys.psk import generate_psk

        values["encryption.key"] = generate_psk()
    # Checked before it is written, as the daemon will read it, and without the file that this
    # machine may have: it may be the one that is wrong.
    try:
        load(
            Path(os.devnull),
            {
                key: value
                for key, value in values.items()
                if value is not None and key != "encryption.key"
            },
            {"HOME": "/nonexistent"},
        )
    except ConfigError as error:
        raise ConfigError([_as_typed(problem) for problem in error.problems]) from None
    _write(path, _filled(_template(), {k: v for k, v in values.items() if v is not None}))
    warnings = load(path, {}, {"HOME": os.environ.get("HOME", "")}).warnings
    if settings.json:
        print_json({"schema": 1, "file": str(path), "warnings": list(warnings)})
        return
    click.echo(f"written: {path}")
    if psk:
        click.echo("next: put the same encryption.key into the peer's file, by a safe way")
    for warning in warnings:
        click.echo(f"next: {warning}")
    hidden = path not in (file, settings.config, Path(SYSTEM_CONFIG_FILE))
    if hidden and _is_there(SYSTEM_CONFIG_FILE):
        click.echo(
            f"next: name it by --config {path}; without that {SYSTEM_CONFIG_FILE} is read instead"
        )


@configuration.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.pass_obj
def check(settings: Settings, file: Path | None) -> int:
    """Check the configuration as the daemon would; print every problem on a line.

    Exit code 7 when it is invalid. Warnings do not count.
    """
    settings.config = file or settings.config
    try:
        loaded = settings.load()
    except ConfigError as error:
        if settings.json:
            problems = [
                {"source": p.source, "line": p.line, "key": p.key, "message": p.message}
                for p in error.problems
            ]
            print_json({"schema": 1, "ok": False, "problems": problems, "warnings": []})
        for problem in error.problems:
            click.echo(f"{click.style('error:', fg='red')} {problem}", err=True)
        return error.exit_code
    if settings.json:
        print_json({"schema": 1, "ok": True, "problems": [], "warnings": list(loaded.warnings)})
        return 0
    for warning in loaded.warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)
    click.echo(f"ok: {loaded.path or 'no file, only defaults'}")
    return 0


@configuration.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.pass_obj
def show(settings: Settings, file: Path | None) -> None:
    """Print every key with its value and where that comes from; never a secret.

    Without FILE and --config: what the daemon that runs goes by. With one of them, or without a
    daemon: what a daemon that this user starts would go by.
    """
    settings.config = file or settings.config
    found = _of_the_daemon(settings) if settings.config is None else _of_the_file(settings)
    if settings.json:
        print_json({name: value for name, value in found.items() if name != "text"})
    else:
        click.echo(found["text"], nl=False)


def _of_the_daemon(settings: Settings) -> dict[str, Any]:
    """Return the configuration of the daemon that runs, and without one that of the files."""
    try:
        return settings.client().configuration()
    except DaemonNotRunning:
        pass
    found = _of_the_file(settings)
    click.echo(
        "note: no daemon answers; this is what one that this user starts would go by, and the"
        " service has directories of its own (`systemctl cat shadowmesh`)",
        err=True,
    )
    return found


def _of_the_file(settings: Settings) -> dict[str, Any]:
    from shadowmesh.config import as_json, redacted

    loaded = settings.load()
    return {"schema": 1, "pid": None, **as_json(loaded), "text": redacted(loaded)}


def _is_there(path: str) -> bool:
    """Whether there is a file; one in a directory that this user may not search is."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _as_typed(problem: Problem) -> Problem:
    """Return a problem of `init` with the option that was typed instead of the daemon's flag."""
    option = {
        "peer.address": "--peer", "peer.public_key": "--public-key", "network.local_ip": "--local-ip",
    }.get(problem.key or "")  # fmt: skip
    return problem if option is None else Problem(option, None, None, problem.message)


def _default_file() -> Path:
    home = os.environ.get("HOME")
    if os.geteuid() == 0:
        return Path(SYSTEM_CONFIG_FILE)
    if not home:
        raise click.UsageError("this user has no home directory; name a file")
    return Path(home) / USER_CONFIG_FILE


def _template() -> str:
    """Return the manual of the configuration, which is a configuration of all defaults."""
    import shadowmesh.config

    return Path(shadowmesh.config.__file__).with_name("daemon.yaml").read_text(encoding="utf-8")


def _filled(template: str, values: dict[str, str]) -> str:
    """Return the template with values for some of its keys."""
    lines, section = [], ""
    for line in template.splitlines():
        if match := re.fullmatch(r"([a-z]+):", line):
            section = match[1]
        match = re.match(r"  #?([a-z_]+): ", line)
        value = values.get(f"{section}.{match[1]}") if match else None
        # None of the values can hold a quote or a backslash: they have been checked.
        lines.append(line if value is None or match is None else f'  {match[1]}: "{value}"')
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    from shadowmesh.keys.private_file import write_private_file

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private_file(path, text.encode(), replace=_is_untouched(path))
    except FileExistsError:
        raise Exists(
            f"{path} exists and is not overwritten; name another file or move it away"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from None


def _is_untouched(path: Path) -> bool:
    """Tell whether the file is the example as `make install` puts it there."""
    try:
        return not path.is_symlink() and path.read_bytes() == _template().encode()
    except OSError:
        return False
