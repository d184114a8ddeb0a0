"""`shadowmesh genkey`, `pubkey` and `genpsk`: used like `wg genkey` and its kin."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from shadowmesh.base.constants import IDENTITY_FILE, SEED_BYTES
from shadowmesh.base.errors import KeyFileError, NotPermitted
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, warn_when_others_can_read
from shadowmesh.cli.settings import NoSuchFile, Settings

#: more than any private key, so that a wrong file is never read whole
_READ_LIMIT = 128


@click.command(cls=Command)
@click.pass_obj
def genkey(settings: Settings) -> None:
    """Print a new private key (the base64 of an Ed25519 seed)."""
    from shadowmesh.keys.identity import generate_seed

    warn_when_others_can_read("the key")
    _print_key(settings, "private_key", generate_seed())


@click.command(cls=Command)
@click.pass_obj
def genpsk(settings: Settings) -> None:
    """Print a new pre-shared key for encryption.key (64 hexadecimal digits)."""
    from shadowmesh.keys.psk import generate_psk

    warn_when_others_can_read("the key")
    _print_key(settings, "psk", generate_psk())


@click.command(cls=Command)
@click.option(
    "--identity", type=click.Path(path_type=Path), metavar="FILE",
    help="Read the key from this file instead of standard input.",
)  # fmt: skip
@click.pass_obj
def pubkey(settings: Settings, identity: Path | None) -> None:
    """Print the public key of a private key on standard input, as genkey or the daemon wrote it.

    Without --identity and with a terminal as standard input: the public key of this machine's
    daemon, from identity.key in daemon.state_dir. The peer needs it as peer.public_key.
    """
    from shadowmesh.keys import identity as keys
    from shadowmesh.keys import sodium

    if identity is not None and not os.path.lexists(identity):
        raise NoSuchFile(f"there is no file {identity}; name another one with --identity")
    if identity is None and sys.stdin.isatty():
        identity = settings.load_config().daemon.state_dir / IDENTITY_FILE
    if identity is None:
        seed = _seed_of(sys.stdin.buffer.read(_READ_LIMIT), "standard input")
    else:
        seed = _read_identity(identity)
    _print_key(settings, "public_key", keys.format_public_key(sodium.public_key(seed)))


def _read_identity(path: Path) -> bytes:
    """Return the seed in a file: 32 raw bytes, or their text form."""
    try:
        with path.open("rb") as file:
            content = file.read(_READ_LIMIT)
    except PermissionError:
        raise NotPermitted(
            f"{path} may not be read by this user; run as the daemon's user or root"
        ) from None
    except OSError as error:
        raise KeyFileError(
            f"{path} cannot be read: {error.strerror}; start shadowmesh-daemon once to get an"
            " identity, or name another file with --identity"
        ) from None
    return _seed_of(content, str(path))


def _seed_of(content: bytes, source: str) -> bytes:
    from shadowmesh.keys.identity import seed_of

    try:
        # People paste keys with spaces around them; 32 raw bytes may begin or end like a space.
        return seed_of(content if len(content) == SEED_BYTES else content.strip())
    except ValueError as error:
        raise KeyFileError(f"no private key on {source}: {error}") from None


def _print_key(settings: Settings, name: str, key: str) -> None:
    if settings.json:
        print_json({"schema": 1, name: key})
    else:
        click.echo(key)
