"""`shadowmesh network backup` and `restore`."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

import click

from shadowmesh.base.units import count
from shadowmesh.cli import asking, files
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text, texts, warn
from shadowmesh.cli.settings import Settings
from shadowmesh.cli.settling import Progress, await_network

#: of an answer that holds the base64 of a file, and a little more
_ROOM: Final = files.MAX_FILE_BYTES // 3 * 4 + (1 << 20)


@click.command(cls=Command)
@click.argument("file", type=files.FILE, metavar="FILE")
@files.passphrase_file
@click.option(
    "--recovery-key-file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
    help="Put the recovery key in it into the backup; - is standard input.",
)  # fmt: skip
@click.option("--without-recovery-key", is_flag=True, help="Do not ask for the recovery key.")
@click.option("--yes", is_flag=True, help="Overwrite FILE.")
@click.pass_obj
def backup(
    settings: Settings,
    file: Path,
    passphrase_file: Path | None,
    recovery_key_file: Path | None,
    without_recovery_key: bool,
    yes: bool,
) -> None:
    """Write all of the network that cannot be made again into FILE, under a passphrase.

    On the machine that made the network: the authority's key, the ledger of members and invitations,
    this machine's own key and the secret of the network. FILE can be read by its owner alone. The
    recovery key is on no machine; it is in the backup when it is typed now.
    """
    files.check_free(file, yes=yes)
    if str(passphrase_file) == str(recovery_key_file) == "-":
        raise click.UsageError("only one of the two secrets can come from standard input")
    client = settings.client()
    recovery_key = _recovery_key(recovery_key_file, left_out=without_recovery_key)
    passphrase = files.new_passphrase(passphrase_file, "the backup")
    body = {"passphrase": passphrase, "recovery_key": recovery_key}
    answer = client.post("/network/backup", body, "lacking", _ROOM)
    data = base64.b64decode(str(answer.get("backup")))
    files.write_secret(file, data, yes=yes)
    lacking = texts(answer["lacking"])
    if settings.json:
        print_json({"schema": 1, "file": str(file), "bytes": len(data), "lacking": lacking})
        return
    click.echo(f"wrote {file}, {count(len(data), 'byte')}")
    for one in lacking:
        warn(f"it does not hold {one}")


def _recovery_key(file: Path | None, *, left_out: bool) -> str | None:
    if file is not None:
        return files.secret_of(file, "recovery key")
    if left_out or not asking.is_terminal():
        return None
    found = click.prompt(
        "recovery key (nothing: leave it out)",
        default="",
        show_default=False,
        hide_input=True,
        err=True,
    )
    return str(found) or None


@click.command(cls=Command)
@click.argument("file", type=files.FILE, metavar="FILE")
@files.passphrase_file
@click.option("--yes", is_flag=True, help="Restore without asking.")
@click.pass_obj
def restore(settings: Settings, file: Path, passphrase_file: Path | None, yes: bool) -> None:
    """Let this machine be the one that the backup in FILE was made of.

    It must be in no network, and the other machine must not run any more: two with one key take
    their sessions away from each other. All invitations are void; what was decided after the backup
    comes from the other members. Exit code 6 when the daemon does not come back in time.
    """
    asking.need_answer(yes=yes, what="being another machine")
    data = files.read_file(file)
    client = settings.client()
    passphrase = files.passphrase(passphrase_file, "the backup")
    if not yes:
        asking.ask(
            "is the machine of this backup gone for good, and shall this one take its place?",
            otherwise="nothing was restored",
        )
    progress = Progress(shown=not settings.json)
    with progress.step("backup"):
        body = {"file": files.send_file(client, data), "passphrase": passphrase}
        answer = client.post("/network/restore", body, "network")
    network = answer["network"] or {}
    with progress.step("device"):
        await_network(client, network.get("name"))
    if settings.json:
        print_json(answer)
        return
    cancelled = answer.get("cancelled")
    click.echo(
        f"this machine is {text(network.get('own'))} of {text(network.get('name'))} again,"
        f" {progress.spent_s:.1f} s"
    )
    if isinstance(cancelled, int) and cancelled:
        click.echo(f"{count(cancelled, 'invitation')} made before will let nobody in any more")
