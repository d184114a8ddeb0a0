"""One daemon at a time: the pid file.

Owns: making it, its lock, its end. Does not know: what the daemon does.

::

    a temporary file with our pid, locked -- link --> the name is ours
        the name is taken: by a daemon that holds the lock, or left by one that is gone, and removed

Nothing is written to a file that exists, whatever it is, and the name never stands for half a pid.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn

from shadowmesh.base import log
from shadowmesh.base.errors import ConfigError, NotPermitted, Problem, ShadowMeshError
from shadowmesh.keys import sodium

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: everybody may know the pid; nobody else may lock the file or write to it
_MODE: Final = 0o644
#: more than any pid and its line feed
_READ_LIMIT: Final = 32
#: others that come and go while we start
_TRIES: Final = 10
_REMEDY: Final = 'set daemon.pid_file to another path, or to "" for none'

_log = log.get("daemon")


@contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Hold the pid file, locked, and remove it at the end.

    Raises:
        ShadowMeshError: another daemon holds it, or it cannot be written; nothing has changed.
        ConfigError: something else has that name, and stays as it is.
    """
    if path is None:
        yield
        return
    with ExitStack() as undo:
        try:
            _take(path, undo)
        except OSError as error:
            kind = NotPermitted if isinstance(error, PermissionError) else ShadowMeshError
            raise kind(f"cannot write the pid file {path}: {error.strerror}; {_REMEDY}") from None
        yield


def _take(path: Path, undo: ExitStack) -> None:
    """Give the name to a file with our pid; `undo` takes it back and ends the lock."""
    temporary = path.parent / f".{path.name}.{sodium.random_bytes(8).hex()}.tmp"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    ours = os.open(temporary, flags, _MODE)
    undo.callback(os.close, ours)
    try:
        fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(ours, _MODE)
        os.write(ours, f"{os.getpid()}\n".encode("ascii"))
        for _ in range(_TRIES):
            with suppress(FileExistsError):
                path.hardlink_to(temporary)
                undo.callback(_give_back, path, ours)
                return
            _clear(path)
    finally:
        temporary.unlink()
    raise ShadowMeshError(f"the pid file {path} comes and goes; do several daemons start?")


def _clear(path: Path) -> None:
    """Remove the pid file of a daemon that is gone; refuse everything else."""
    try:
        # Looked at first: to open a device can be to use it.
        if not stat.S_ISREG(path.lstat().st_mode):
            _not_ours(path, "is not a regular file")
        left = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    with ExitStack() as undo:
        undo.callback(os.close, left)
        content = os.read(left, _READ_LIMIT)
        if not re.fullmatch(rb"\d{0,10}\n?", content):
            _not_ours(path, "holds something else than a process id")
        try:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = content.decode("ascii").strip()
            raise ShadowMeshError(
                f"another daemon (pid {pid}) holds {path}; stop it or set another daemon.pid_file"
            ) from None
        # Whoever removes it holds its lock, so that it is still this file.
        _remove_if(path, left)


def _give_back(path: Path, descriptor: int) -> None:
    try:
        _remove_if(path, descriptor)
    except OSError as error:
        _log.warning("the pid file stays", path=str(path), cause=error, remedy="remove it by hand")


def _remove_if(path: Path, descriptor: int) -> None:
    """Remove the name when it still stands for the open file."""
    with suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), os.fstat(descriptor)):
            path.unlink()


def _not_ours(path: Path, why: str) -> NoReturn:
    raise ConfigError([Problem(str(path), None, "daemon.pid_file", f"{why}; {_REMEDY}")])
