"""Keys: their text forms, what is refused as a key, and the private files that hold them.

Owns: the identity (Ed25519), the rules for pre-shared keys, and how a private file is written and
read. Does not know: the network, the configuration, who uses a key.

Text forms, all ASCII:

======================  ==========================================================
identity (private)      base64 of the 32-byte seed, 44 characters
public key              base64 of 32 bytes, 44 characters
pre-shared key          64 hexadecimal digits
API token               43 URL-safe characters (32 random bytes, base64url, no padding)
======================  ==========================================================

``identity.key`` holds the seed either as exactly 32 raw bytes (what the daemon writes) or in its
text form with an optional line feed, so that ``shadowmesh genkey > identity.key`` installs one.

A private file is a regular file of ours, mode 0600 or 0400, reached without a final symbolic
link. Anything else refuses the start; a file that exists is never made anew or overwritten.
Source: protocol sections 2 and 10.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import os
import stat
import string
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from shadowmesh.base.constants import (
    IDENTITY_BYTES,
    IDENTITY_FILE,
    PSK_BYTES,
    PSK_MIN_DISTINCT_BYTES,
    SEED_BYTES,
    TOKEN_FILE,
)
from shadowmesh.base.errors import KeyFileError, NotPermitted
from shadowmesh.keys import sodium

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_LENGTH: Final = 43
_TOKEN_CHARACTERS: Final = frozenset((string.ascii_letters + string.digits + "-_").encode())
_BASE64_LENGTH: Final = 44
#: the key printed in the document that described this program; everybody knows it
_SAMPLE_PSK: Final = bytes.fromhex("0123456789abcdef" * 4)
#: more than any private file of ours, so that a wrong file is never read whole
_READ_LIMIT: Final = 128


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

    def __repr__(self) -> str:
        return f"Identity(public_key={format_public_key(self._public_key)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Identity does not leave its process")


# --- Text forms -------------------------------------------------------------------------------


def generate_seed() -> str:
    """Return a new private key in its text form, as ``shadowmesh genkey`` prints it."""
    return base64.b64encode(sodium.random_bytes(SEED_BYTES)).decode("ascii")


def generate_psk() -> str:
    """Return a new pre-shared key in its text form, as ``shadowmesh genpsk`` prints it."""
    return sodium.random_bytes(PSK_BYTES).hex()


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


def parse_psk(text: str) -> bytes:
    """Return the 32 bytes of a pre-shared key.

    Raises:
        ValueError: not 64 hexadecimal digits, all zero, the sample key of the documentation, or
            fewer than 16 distinct byte values. The text never holds the key or a part of it.
    Source: protocol section 2.
    """
    hint = "make one with `shadowmesh genpsk`"
    if len(text) != 2 * PSK_BYTES:
        raise ValueError(
            f"a pre-shared key is {2 * PSK_BYTES} hexadecimal digits, this has {len(text)}"
            f" characters; {hint}"
        )
    if not set(text) <= set(string.hexdigits):
        raise ValueError(f"a pre-shared key has only the characters 0-9, a-f and A-F; {hint}")
    psk = bytes.fromhex(text)
    if not any(psk):
        raise ValueError(f"a pre-shared key of zeros is no secret; {hint}")
    if psk == _SAMPLE_PSK:
        raise ValueError(f"this is the sample key of the documentation; {hint}")
    if len(set(psk)) < PSK_MIN_DISTINCT_BYTES:
        # 32 random bytes have fewer than 16 distinct values about once in 10**13 draws.
        raise ValueError(
            f"this pre-shared key has fewer than {PSK_MIN_DISTINCT_BYTES} distinct byte values,"
            f" so it was not drawn at random; {hint}"
        )
    return psk


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


# --- Private files ----------------------------------------------------------------------------


def load_or_create_identity(state_dir: Path) -> Identity:
    """Return the identity in ``state_dir/identity.key``, made on the first start.

    Raises:
        KeyFileError: the file is wrong or cannot be made; the text says what to do. Nothing was
            changed.
    Source: protocol section 10.
    """
    path = state_dir / IDENTITY_FILE
    remedy = "restore it from a backup, or move it away to get a new identity (peers pin the old)"
    content = _read_or_create(path, lambda: sodium.random_bytes(SEED_BYTES), remedy)
    if len(content) == SEED_BYTES:
        seed = content
    else:
        try:
            seed = parse_seed(content.decode("ascii"))
        except ValueError:
            raise KeyFileError(
                f"{path}: holds no identity (32 bytes, or 44 characters of base64); {remedy}"
            ) from None
    if not any(seed):
        # What a file system may leave of a file whose data did not reach the disk.
        raise KeyFileError(f"{path}: holds only zeros; {remedy}")
    return Identity.from_seed(seed)


def load_or_create_token(state_dir: Path) -> str:
    """Return the API token in ``state_dir/api.token``, made on the first start.

    Raises:
        KeyFileError: the file is wrong or cannot be made; nothing was changed.
    """
    path = state_dir / TOKEN_FILE
    content = _read_or_create(path, _new_token, "delete it to get a new token")
    return _parse_token(path, content)


def read_token(path: str | Path) -> str:
    """Return the API token in a file, for a client.

    Owner and mode are the daemon's concern: a client uses what it is allowed to read.

    Raises:
        NotPermitted: this user may not read the file.
        KeyFileError: there is no such file, or it holds no token.
    """
    path = Path(path)
    try:
        content = _read_bounded(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError:
        raise NotPermitted(
            f"{path}: may not be read by this user; run as the daemon's user or root,"
            " or name a token file with --token-file"
        ) from None
    except FileNotFoundError:
        raise KeyFileError(
            f"{path}: no such file; start shadowmesh-daemon once, or name the token file"
            " with --token-file"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    return _parse_token(path, content)


def write_private_file(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a new file of mode 0600, whole or not at all, and safe against a power cut.

    The data goes to a temporary name in the same directory, to the disk, and then gets its name.
    Without replace a file (or link) that has the name already stays as it is.

    Raises:
        FileExistsError: the name is taken and replace is false.
        KeyFileError: the directory or the file cannot be written, a full disk included; the
            temporary file is gone.
    Source: protocol section 10.
    """
    temporary = path.parent / f".{path.name}.{sodium.random_bytes(8).hex()}.tmp"
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                # The umask may have taken bits away; it can never add one.
                os.fchmod(descriptor, 0o600)
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if replace:
                temporary.replace(path)
            else:
                # A rename that cannot overwrite: two daemons starting at once must not end with
                # one of them using an identity that is no longer on the disk.
                path.hardlink_to(temporary)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_directory(directory: Path) -> None:
    """Make a new name in directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_or_create(path: Path, make: Callable[[], bytes], remedy: str) -> bytes:
    """Return the content of a private file, which is made when the name is free."""
    content = _read_private_file(path, remedy)
    if content is None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyFileError(
                f"{path.parent}: cannot be made: {error.strerror}; set daemon.state_dir to a"
                " directory of yours"
            ) from None
        with contextlib.suppress(FileExistsError):  # another daemon was quicker: use its file
            write_private_file(path, make())
        content = _read_private_file(path, remedy)
    if content is None:
        raise KeyFileError(f"{path}: vanished while it was made; start again")
    return content


def _read_private_file(path: Path, remedy: str) -> bytes | None:
    """Return the content (cut at 128 bytes) of a private file, None when the name is free.

    Raises:
        KeyFileError: a symbolic link, not a regular file, another owner, another mode, or it
            cannot be read.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KeyFileError(
                f"{path}: is a symbolic link; put the file itself there, or {remedy}"
            ) from None
        raise KeyFileError(
            f"{path}: cannot be opened: {error.strerror}; see `ls -l {path}`"
        ) from None
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = f"is not a regular file; {remedy}"
    elif status.st_uid != os.geteuid():
        problem = (
            f"belongs to user {status.st_uid}, the daemon runs as {os.geteuid()};"
            f" check where it comes from, then `chown {os.geteuid()} {path}`"
        )
    elif mode & ~0o600:
        problem = (
            f"has mode {mode:04o}, so others may have read it; if nobody did,"
            f" `chmod 600 {path}`, else {remedy}"
        )
    if problem is not None:
        os.close(descriptor)
        raise KeyFileError(f"{path}: {problem}")
    try:
        return _read_bounded(descriptor)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None


def _read_bounded(descriptor: int) -> bytes:
    """Return at most 128 bytes of a file and close it."""
    try:
        return os.read(descriptor, _READ_LIMIT)
    finally:
        os.close(descriptor)


def _new_token() -> bytes:
    return base64.urlsafe_b64encode(sodium.random_bytes(32)).rstrip(b"=")


def _parse_token(path: Path, content: bytes) -> str:
    token = content.removesuffix(b"\n")
    if len(token) != TOKEN_LENGTH or not set(token) <= _TOKEN_CHARACTERS:
        raise KeyFileError(
            f"{path}: holds no API token ({TOKEN_LENGTH} URL-safe characters); delete it and"
            " restart the daemon to get a new one"
        )
    return token.decode("ascii")
