"""The Unix socket of the control API: its place in the file system.

Owns: the name, its mode, that it does not take the place of another daemon's, its end. Does not
know: what is spoken there, who may do what (`rights`).

Everybody may connect: who it is, and so what it may do, is the kernel's to tell. The name appears
when the socket already listens, with its final mode, so that nobody meets half of it; one that a
killed daemon has left is replaced.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import gevent.socket

from shadowmesh.base.errors import NotPermitted, ShadowMeshError

if TYPE_CHECKING:
    from pathlib import Path

_SOCKET_MODE: Final = 0o666
_DIRECTORY_MODE: Final = 0o755
_BACKLOG: Final = 64
#: whoever listens there takes a connection at once, or its backlog is full: then it is alive too
_LOOK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ApiSocket:
    """A socket that listens under a name.

    Attributes:
        sock: the caller's to close.
        path: its name.
        identity: device and inode of the name, by which a later daemon's is told from ours.
    """

    sock: Any
    path: Path
    identity: tuple[int, int]

    def remove(self) -> None:
        """Remove the name, unless it belongs to somebody else by now."""
        with contextlib.suppress(OSError):
            if _identity(self.path) == self.identity:
                self.path.unlink()


def listen(path: Path) -> ApiSocket:
    """Return a socket that listens at path; its directory is made when it is missing.

    Raises:
        NotPermitted: this user may not make it.
        ShadowMeshError: another daemon listens there, the directory is not safe, or there is
            something that is no socket.
    """
    temporary = path.with_name(f".{os.getpid():x}")  # no longer than the name, which just fits
    sock = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
    try:
        _make_directory(path.parent)
        _refuse_what_is_there(path)
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        sock.bind(str(temporary))
        try:
            temporary.chmod(_SOCKET_MODE)
            sock.listen(_BACKLOG)
            identity = _identity(temporary)
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise
    except OSError as error:
        sock.close()
        kind = NotPermitted if isinstance(error, PermissionError) else ShadowMeshError
        raise kind(f"cannot make the socket {path}: {error.strerror or error}") from None
    except ShadowMeshError:
        sock.close()
        raise
    return ApiSocket(sock, path, identity)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir()
    except FileExistsError:
        pass
    else:
        directory.chmod(_DIRECTORY_MODE)  # whatever the umask has left of it
    found = directory.stat()
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ShadowMeshError(
            f"others may replace what is in {directory} (owner {found.st_uid}, mode"
            f" {stat.S_IMODE(found.st_mode):04o}), so that commands would ask them"
        )


def _refuse_what_is_there(path: Path) -> None:
    """Raise when the name is taken by more than a socket at which nobody listens any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ShadowMeshError(f"{path} is there, and is no socket")
    except FileNotFoundError:
        return
    with gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM) as probe:
        probe.settimeout(_LOOK_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            raise ShadowMeshError(
                f"{path} is there, and whether somebody listens at it is not known:"
                f" {error.strerror or error}"
            ) from None
    raise ShadowMeshError(f"another daemon listens at {path}")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
