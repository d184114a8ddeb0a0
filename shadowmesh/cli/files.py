"""Files and secrets that a command is given, and files that it writes.

Owns: how they are read under a bound, that a secret comes from a terminal, a file or standard input
and never from the command line, how a file with a secret is written. Does not know: what is in them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Final

import click

from shadowmesh.base.errors import KeyFileError, NotPermitted, ShadowMeshError
from shadowmesh.cli import asking
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.output import warn
from shadowmesh.cli.settings import NoSuchFile

#: of a file that is sent to the daemon, and of a piece of it
MAX_FILE_BYTES: Final = 32 << 20
PIECE_BYTES: Final = 40 << 10
#: so many pieces a second: half of what the API answers to all
_PIECES_PER_S: Final = 50
_MAX_SECRET_BYTES: Final = 1024

#: for options and arguments that name a file
FILE: Final = click.Path(path_type=Path, dir_okay=False)

passphrase_file = click.option(
    "--passphrase-file", "passphrase_file", type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE", help="Read the passphrase from its first line; - is standard input.",
)  # fmt: skip


class FileThere(ShadowMeshError):
    """A file would be overwritten, and nobody has said that it may be."""

    exit_code: ClassVar[int] = 2


def read_file(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """Return what is in a file; - is standard input.

    Raises:
        NoSuchFile, NotPermitted, KeyFileError: it cannot be read, or has more than `most` bytes.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(most + 1)
        else:
            with path.open("rb") as file:
                data = file.read(most + 1)
    except FileNotFoundError:
        raise NoSuchFile(f"there is no file {path}") from None
    except PermissionError:
        raise NotPermitted(f"{path} may not be read by this user") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise KeyFileError(f"{path} has more than {most} bytes, so it is not what is meant")
    return data


def check_free(path: Path, *, yes: bool) -> None:
    """Refuse to overwrite a file, unless that was said. Raises FileThere."""
    if not yes and os.path.lexists(path):
        raise FileThere(f"{path} is there already; name another file, or overwrite it with --yes")


def write_secret(path: Path, data: bytes, *, yes: bool) -> None:
    """Write a file for its owner alone, whole or not at all.

    Raises:
        FileThere, KeyFileError: it is there, or cannot be written.
    """
    # Not at the top: it loads libsodium, which most commands do without.
    from shadowmesh.keys.private_file import write_private_file

    try:
        write_private_file(path.absolute(), data, replace=yes)
    except FileExistsError:
        check_free(path, yes=False)


def send_file(client: ApiClient, data: bytes) -> str:
    """Send a file to the daemon in pieces; return the digest that names it there."""
    import base64

    for number, at in enumerate(range(0, len(data), PIECE_BYTES)):
        if number >= _PIECES_PER_S:
            time.sleep(1 / _PIECES_PER_S)
        piece = base64.b64encode(data[at : at + PIECE_BYTES]).decode("ascii")
        client.post("/files", {"offset": at, "data": piece}, "bytes")
    return hashlib.sha256(data).hexdigest()


def new_passphrase(file: Path | None, what: str) -> str:
    """Return a passphrase that is to be remembered: it is asked for twice."""
    return _passphrase(file, what, twice=True)


def passphrase(file: Path | None, what: str) -> str:
    """Return the passphrase of something."""
    return _passphrase(file, what, twice=False)


def _passphrase(file: Path | None, what: str, *, twice: bool) -> str:
    if file is not None:
        return secret_of(file, "passphrase")
    if not asking.is_terminal():
        raise click.UsageError(
            f"the passphrase of {what} is missing, and there is no terminal to ask at; give it"
            " with --passphrase-file"
        )
    found: Any = click.prompt(
        f"passphrase of {what}", hide_input=True, confirmation_prompt=twice, err=True
    )
    return str(found)


def secret_of(file: Path, what: str) -> str:
    """Return the secret on the first line of a file; - is standard input."""
    data = read_file(file, _MAX_SECRET_BYTES)
    if str(file) != "-" and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        warn(f"others may read the {what} in {file}; `chmod 600 {file}`")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    text = text.partition("\n")[0].rstrip("\r")
    if not text:
        # What is in it is not said: it may be a part of the secret.
        raise KeyFileError(f"there is no {what} on the first line of {file}")
    return text
