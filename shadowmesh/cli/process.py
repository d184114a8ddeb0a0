"""The daemon as a process of this machine: for commands that the API cannot serve.

Owns: which process it is, and what the kernel tells about it. Does not know: what is done with it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.cli.failures import DaemonNotRunning

if TYPE_CHECKING:
    from shadowmesh.cli.settings import Settings


class OtherProcess(ShadowMeshError):
    """The number that was found belongs to something else."""


def daemon_pid(settings: Settings) -> int:
    """Return the process id of the running daemon, as it says itself.

    Raises:
        DaemonNotRunning, NotPermitted: it cannot be asked.
        OtherProcess: it runs where its numbers mean nothing to us, such as in a container.
    """
    pid = settings.client().status().get("pid")
    if not isinstance(pid, int):
        pid = _from_file(settings)
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        command = b""
    if b"shadowmesh" not in command:
        raise OtherProcess(
            f"the daemon says it is process {pid}, which is another one here: does it run in a"
            " container, or on another machine? run the command there"
        )
    return pid


def unit_of(pid: int) -> str | None:
    """Return the systemd unit that a process belongs to, None outside of one."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    except OSError:
        return None
    last = groups.strip().rpartition("/")[2]
    return last if last.endswith(".service") else None


def log_file_of(pid: int) -> Path | None:
    """Return the file that a process's standard error goes to, None when it is no file.

    Raises:
        PermissionError: it is another user's process, and the kernel does not tell.
    """
    try:
        path = Path(f"/proc/{pid}/fd/2").readlink()
    except PermissionError:
        raise
    except OSError:
        return None
    return path if path.is_file() else None


def _from_file(settings: Settings) -> int:
    path = settings.load_config().daemon.pid_file
    with contextlib.suppress(OSError, ValueError):
        if path is not None:
            return int(path.read_text(encoding="ascii"))
    raise DaemonNotRunning(
        f"the daemon does not tell its process id, and {path or 'no daemon.pid_file'} does not"
        " either; update it, or send the signal yourself"
    )
