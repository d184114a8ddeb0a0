"""The backup of a network: one file, under a passphrase, with all that cannot be made again.

Owns: its form, what must be in it. Does not know: where the file lies, who types the passphrase.

::

    "SMBK" | u8 1 | u8 log2 N of scrypt | 16 salt | 12 nonce | ChaCha20-Poly1305 of:
        n x (u8 length | name | u32 length | content)

The key is scrypt(passphrase, salt, N, r=8, p=1); the 34 bytes in front are authenticated. Source:
mesh section 5, mesh-rules C1, C2; RFC 7914, RFC 8439.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from shadowmesh.base.errors import IssuerRefused
from shadowmesh.keys import sodium
from shadowmesh.network.authority import PASSPHRASE_MIN_CHARACTERS

#: files of `store` that are copied as they are
FILES: Final = frozenset(
    {
        "authority.crt", "authority.key", "member.crt", "member.key", "network.json",
        "revocation.lists", "revoked", "revoker.crt", "revoker.key", "secrets", "trust.list",
    }
)  # fmt: skip
#: without these a backup is none
REQUIRED: Final = frozenset({"authority.crt", "issuer.db", "trust.list"})
ALLOWED: Final = FILES | REQUIRED | {"recovery.key"}
#: what an operator is told who makes a backup without it
_WANTED: Final = {
    "authority.key": "the authority's key, which is not on this machine: keep its own backup",
    "recovery.key": "the recovery key: without it no lost authority can be replaced",
}
MAX_BYTES: Final = 64 << 20

_MAGIC: Final = b"SMBK\x01"
#: 128 MiB and a third of a second
_COST: Final = 17
#: a file that asks for more is no backup of ours: 1 GiB
_HIGHEST_COST: Final = 20
_HEAD: Final = struct.Struct("!5sB16s12s")


def seal(files: Mapping[str, bytes], passphrase: str, cost: int = _COST) -> bytes:
    """Return a backup of files.

    Args: cost: log2 of scrypt's N; lower in tests.
    Raises:
        IssuerRefused: the passphrase is too short, or something that must be in it is missing.
    """
    if len(passphrase) < PASSPHRASE_MIN_CHARACTERS:
        raise IssuerRefused(
            f"the passphrase of a backup has {PASSPHRASE_MIN_CHARACTERS} characters or more",
            "passphrase",
        )
    missing = REQUIRED - files.keys()
    if missing:
        raise IssuerRefused(f"a backup without {', '.join(sorted(missing))} is none", "incomplete")
    foreign = files.keys() - ALLOWED
    if foreign:
        raise IssuerRefused(f"{', '.join(sorted(foreign))} cannot be in a backup", "foreign")
    plain = b"".join(
        bytes([len(name)]) + name.encode() + struct.pack("!I", len(data)) + data
        for name, data in sorted(files.items())
    )
    head = _HEAD.pack(_MAGIC, cost, sodium.random_bytes(16), sodium.random_bytes(12))
    return head + _cipher(head, passphrase).encrypt(head[-12:], plain, head)


def lacking(files: Mapping[str, bytes]) -> list[str]:
    """Say what should be in a backup and is not; an empty list when it has everything."""
    return [text for name, text in _WANTED.items() if name not in files]


def open_backup(data: bytes, passphrase: str) -> dict[str, bytes]:
    """Return the files of a backup: only names of `ALLOWED`, all of `REQUIRED`.

    Raises:
        IssuerRefused: "backup" when it is none, cut or of a newer version; "passphrase" when it
            does not open: the passphrase is wrong, or a byte is.
    """
    if not _HEAD.size < len(data) <= MAX_BYTES or not data.startswith(_MAGIC[:4]):
        raise IssuerRefused("this file is no backup of a network", "backup")
    if not data.startswith(_MAGIC):
        raise IssuerRefused("this backup is of a newer version of ShadowMesh", "backup")
    head, sealed = data[: _HEAD.size], data[_HEAD.size :]
    if not 1 <= head[5] <= _HIGHEST_COST:
        raise IssuerRefused("this file is no backup of a network", "backup")
    try:
        plain = _cipher(head, passphrase).decrypt(head[-12:], sealed, head)
    except InvalidTag:
        raise IssuerRefused(
            "the backup does not open: the passphrase is another, or the file is damaged",
            "passphrase",
        ) from None
    files = _files(plain)
    if not files.keys() >= REQUIRED or not files.keys() <= ALLOWED:
        raise IssuerRefused("the backup is not complete, or of a newer version", "backup")
    return files


def _files(plain: bytes) -> dict[str, bytes]:
    files, place = {}, 0
    while place < len(plain):
        name_end = place + 1 + plain[place]
        (length,) = struct.unpack_from("!I", plain, name_end)
        name = plain[place + 1 : name_end].decode()
        place = name_end + 4 + length
        files[name] = plain[name_end + 4 : place]
    return files


def _cipher(head: bytes, passphrase: str) -> ChaCha20Poly1305:
    salt = head[6:22]
    key = Scrypt(salt=salt, length=32, n=1 << head[5], r=8, p=1).derive(passphrase.encode())
    return ChaCha20Poly1305(key)
