"""Who a daemon is: an Ed25519 key pair, its text forms, and the file that keeps it.

Owns: what is refused as a private or a public key, and what may stand in ``identity.key``. Does not
know: how a private file is written and read (`private_file`), the network, the configuration, who
uses a key.

Text forms, both ASCII:

======================  ==========================================================
identity (private)      base64 of the 32-byte seed, 44 characters
public key              base64 of 32 bytes, 44 characters
======================  ==========================================================

``identity.key`` holds the seed either as exactly 32 raw bytes (what the daemon writes) or in its
text form with an optional line feed, so that ``shadowmesh genkey > identity.key`` installs one.
Source: protocol sections 2 and 10.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final, NoReturn

from shadowmesh.base.constants import IDENTITY_BYTES, IDENTITY_FILE, SEED_BYTES
from shadowmesh.base.errors import KeyFileError
from shadowmesh.keys import sodium
from shadowmesh.keys.private_file import read_or_create

if TYPE_CHECKING:
    from pathlib import Path

_BASE64_LENGTH: Final = 44


class Identity:
    """Who we are: an Ed25519 key pair made from a 32-byte seed.

    Neither repr nor str nor pickling shows the seed.
    """

    __slots__ = ("_public_key", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._public_key = sodium.public_key(seed)
        self._seed = seed

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """Return the identity of a 32-byte seed. Raises TypeError or ValueError for others."""
        return cls(seed)

    @property
    def public_key(self) -> bytes:
        """The 32-byte public key."""
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of message."""
        return sodium.sign(self._seed, message)

    def unseal(self, sealed: bytes) -> bytes:
        """Return what was sealed for us by `sodium.seal`. Raises ValueError: it was not."""
        return sodium.unseal(self._seed, sealed)

    def __repr__(self) -> str:
        return f"Identity(public_key={format_public_key(self._public_key)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Identity does not leave its process")


# --- Text forms -------------------------------------------------------------------------------


def generate_seed() -> str:
    """Return a new private key in its text form, as ``shadowmesh genkey`` prints it."""
    return base64.b64encode(sodium.random_bytes(SEED_BYTES)).decode("ascii")


def format_public_key(public: bytes) -> str:
    """Return a 32-byte public key as 44 characters of base64."""
    return base64.b64encode(public).decode("ascii")


def parse_public_key(text: str) -> bytes:
    """Return the 32 bytes of a public key.

    Raises:
        ValueError: not 44 characters of canonical base64, or no valid Ed25519 key (small order,
            not canonical, not in the prime-order group).
    Source: protocol section 2.
    """
    public = _decode_base64(text, "a public key")
    if not sodium.is_valid_public_key(public):
        raise ValueError("this is not a valid Ed25519 public key; ask the peer for it again")
    return public


def parse_seed(text: str) -> bytes:
    """Return the 32 bytes of a private key in its text form; one final line feed is allowed.

    Raises:
        ValueError: not 44 characters of canonical base64, or all zero. Never names the key.
    """
    seed = _decode_base64(text.removesuffix("\n"), "a private key")
    if not any(seed):
        raise ValueError("a private key of zeros is no secret; make one with `shadowmesh genkey`")
    return seed


def seed_of(content: bytes) -> bytes:
    """Return the private key that is written somewhere: 32 raw bytes, or its text form.

    Raises:
        ValueError: it is neither, or all zero. Never names the key.
    """
    if len(content) != SEED_BYTES:
        # latin-1 takes every byte; what is not ASCII is refused as base64
        return parse_seed(content.decode("latin-1"))
    if not any(content):
        # What a file system may leave of a file whose data did not reach the disk.
        raise ValueError("a private key of zeros is no secret; make one with `shadowmesh genkey`")
    return content


def _decode_base64(text: str, what: str) -> bytes:
    """Return the 32 bytes that text encodes in the one canonical way; else ValueError."""
    problem = f"{what} is {_BASE64_LENGTH} characters of base64"
    if len(text) != _BASE64_LENGTH:
        raise ValueError(f"{problem}, this has {len(text)} characters")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        # `from None`: the decoder's text may quote the input, which may be a private key.
        raise ValueError(f"{problem}, this is not base64") from None
    # 44 characters leave two bits over; a second spelling of one key would break comparisons.
    if len(data) != IDENTITY_BYTES or base64.b64encode(data).decode("ascii") != text:
        raise ValueError(f"{problem} of {IDENTITY_BYTES} bytes, this is not")
    return data


# --- The file ---------------------------------------------------------------------------------


def load_or_create_identity(state_dir: Path) -> Identity:
    """Return the identity in ``state_dir/identity.key``, made on the first start.

    Raises:
        KeyFileError: the file is wrong or cannot be made; the text says what to do. Nothing was
            changed.
    Source: protocol section 10.
    """
    path = state_dir / IDENTITY_FILE
    remedy = "restore it from a backup, or move it away to get a new identity (peers pin the old)"
    content = read_or_create(path, lambda: sodium.random_bytes(SEED_BYTES), remedy)
    try:
        return Identity.from_seed(seed_of(content))
    except ValueError:
        form = f"{SEED_BYTES} bytes, or {_BASE64_LENGTH} characters of base64"
        zeros = content and not any(content)
        what = "holds only zeros" if zeros else f"holds no identity ({form})"
        raise KeyFileError(f"{path}: {what}; {remedy}") from None
