"""`shadowmesh network authority export` and `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from shadowmesh.cli import asking, files
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.group import Commands
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.settings import Settings
from shadowmesh.cli.settling import Progress, await_network

_MAX_KEY_BYTES: Final = 8192


@click.group(cls=Commands)
def authority() -> None:
    """The key that signs certificates: let it leave this machine, come back, or be replaced."""


@authority.command("export")
@click.argument("file", type=files.FILE, metavar="FILE")
@files.passphrase_file
@click.option("--yes", is_flag=True, help="Do it without asking; overwrite FILE.")
@click.pass_obj
def export(settings: Settings, file: Path, passphrase_file: Path | None, yes: bool) -> None:
    """Write the authority's key into FILE, under a passphrase, and remove it from this machine.

    A key stays that can put members out and nothing else: this machine does not invite, sign or
    rename until `network authority import` brings it back. It is removed only when FILE was read back
    and opened; what a disk keeps of a removed file is not wiped.
    """
    asking.need_answer(yes=yes, what="removing the key of the authority")
    files.check_free(file, yes=yes)
    client = settings.client()
    if not yes:
        asking.ask(
            "let the key of the authority leave this machine?",
            otherwise="the key stays here; nothing was changed",
        )
    passphrase = files.new_passphrase(passphrase_file, "the key")
    told = client.post("/network/authority/export", {"passphrase": passphrase}, "key")
    files.write_secret(file, str(told["key"]).encode("ascii"), yes=yes)
    network = _change(client, settings, "release", file, passphrase)
    if settings.json:
        print_json({"schema": 1, "file": str(file), "authority": told.get("authority")})
        return
    click.echo(f"the key of {text(network.get('name'))} is in {file}, and not here any more")


@authority.command("import")
@click.argument("file", type=files.FILE, metavar="FILE")
@files.passphrase_file
@click.pass_obj
def import_(settings: Settings, file: Path, passphrase_file: Path | None) -> None:
    """Bring the authority's key in FILE back to the machine that it was exported from."""
    client = settings.client()
    passphrase = files.passphrase(passphrase_file, "the key")
    network = _change(client, settings, "import", file, passphrase)
    if settings.json:
        print_json({"schema": 1, "network": network})
        return
    click.echo(f"this machine issues for {text(network.get('name'))} again")


def _change(
    client: ApiClient, settings: Settings, what: str, file: Path, passphrase: str
) -> dict[str, Any]:
    """Ask for a change that takes what is in the file, and wait until the daemon is back."""
    key = files.read_file(file, _MAX_KEY_BYTES).decode("ascii", "replace")
    body = {"key": key, "passphrase": passphrase}
    progress = Progress(shown=not settings.json)
    with progress.step("authority"):
        network: dict[str, Any] = (
            client.post(f"/network/authority/{what}", body, "network")["network"] or {}
        )
    with progress.step("beginning anew"):
        await_network(client, network.get("name"))
    return network
