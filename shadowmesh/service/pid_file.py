"""One daemon at a time: the pid file.

Owns: making it, its lock, its end. Does not know: what the daemon does.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shadowmesh.base.errors import KeyFileError, NotPermitted, ShadowMeshError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Hold the pid file, locked, and remove it at the end.

    Raises:
        ShadowMeshError: another daemon holds it, or it cannot be written.
    """
    if path is None:
        yield
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        kind = NotPermitted if isinstance(error, PermissionError) else KeyFileError
        raise kind(
            f"cannot write the pid file {path}: {error.strerror};"
            ' set daemon.pid_file to another path, or to "" for none'
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(descriptor, 32).decode("ascii", "replace").strip()
            raise ShadowMeshError(
                f"another daemon (pid {other}) holds {path}; stop it or set another daemon.pid_file"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
