"""What keeps a daemon from being asked.

Owns: these errors and their exit codes. Does not know: who asks, what is asked.
"""

from __future__ import annotations

from typing import ClassVar, Final

from shadowmesh.base.errors import ShadowMeshError

#: how long the daemon may take to answer what it knows
REQUEST_TIMEOUT_S: Final = 10.0


class DaemonNotRunning(ShadowMeshError):
    """Nobody answers at the API's address, or it went away while it answered."""

    exit_code: ClassVar[int] = 3


class NoAnswer(ShadowMeshError):
    """The daemon did not answer in time."""

    exit_code: ClassVar[int] = 6


class ForeignAnswer(ShadowMeshError):
    """What answers is not a ShadowMesh daemon."""
