"""The recovery key of a network, as a command is given it.

Owns: when it is asked for. Does not know: how a secret is read (`files`), whether it is the right one,
which the daemon finds out.
"""

from __future__ import annotations

from pathlib import Path

import click

from shadowmesh.cli import asking, files

recovery_key_file = click.option(
    "--recovery-key-file", "file", type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE", help="Read the recovery key from its first line; - is standard input.",
)  # fmt: skip


def need_recovery_key(file: Path | None) -> None:
    """Refuse to go on where the recovery key is in no file and nobody can be asked for it.

    Raises:
        click.UsageError: so it is.
    """
    if file is None and not asking.is_terminal():
        raise click.UsageError(
            "the recovery key is missing, and there is no terminal to ask at; give it with"
            " --recovery-key-file"
        )


def recovery_key(file: Path | None) -> str:
    """Return the recovery key, typed without an echo or from the first line of a file.

    Raises:
        NoSuchFile, NotPermitted, KeyFileError: the file cannot be read, or there is none in it.
    """
    if file is not None:
        return files.secret_of(file, "recovery key")
    return str(click.prompt("recovery key", hide_input=True, err=True))
