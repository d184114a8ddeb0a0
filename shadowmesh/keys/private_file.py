"""Files that hold a secret: written whole or not at all, read only when they are private.

Owns: mode, owner and kind of such a file, that it survives a power cut, and that two daemons
starting at once end with the same one. Does not know: what is in it.

A private file is a regular file of ours, mode 0600 or 0400, reached without a final symbolic
link. Anything else refuses the start; a file that exists is never made anew or overwritten, unless
the caller of `write_private_file` asks for that. Source: protocol section 10.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from shadowmesh.base.errors import KeyFileError
from shadowmesh.keys import sodium

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: more than any private file of ours, so that a wrong file is never read whole
_READ_LIMIT: Final = 128


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


def read_or_create(path: Path, make: Callable[[], bytes], remedy: str) -> bytes:
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


def read_bounded(descriptor: int) -> bytes:
    """Return at most 128 bytes of a file and close it."""
    try:
        return os.read(descriptor, _READ_LIMIT)
    finally:
        os.close(descriptor)


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
        return read_bounded(descriptor)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None


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
