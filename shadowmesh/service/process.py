"""This process among others: one daemon at a time, and nobody reads its memory.

Owns: the pid file, what the process forbids itself. Does not know: what the daemon does.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.errors import KeyFileError, NotPermitted, ShadowMeshError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: linux/prctl.h
_PR_SET_DUMPABLE: Final = 4

_log = log.get("daemon")


def forbid_core_dumps() -> None:
    """No core file and no debugger of another user sees the keys. Source: protocol section 10."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        _log.warning(
            "core dumps could not be forbidden",
            errno=ctypes.get_errno(),
            remedy="forbid them outside: LimitCORE=0 in the unit, or ulimit -c 0",
        )


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
