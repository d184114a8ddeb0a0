"""What the daemon forbids itself, so that nobody reads its memory, and what it allows itself.

Owns: limits and flags of the process. Does not know: what is in that memory, what is opened.
"""

from __future__ import annotations

import ctypes
import resource
from typing import Final

from shadowmesh.base import log

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


def allow_descriptors() -> None:
    """Let this process open as many descriptors as it may: with each peer come up to four.

    The limit that a process starts with is for programs that use select(), which we do not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
