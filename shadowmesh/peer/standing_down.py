"""That an operator has disconnected all peers of a list, remembered over restarts.

Owns: the file `disconnected` of the state directory, which says so by being there. Does not know:
peers, the device. A file that cannot be written costs the memory, never the disconnect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.errors import KeyFileError
from shadowmesh.keys.private_file import write_private_file

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "disconnected"

_log = log.get("connection")


class StandingDown:
    """Whether all peers are held.

    Attributes for reading only:
        now: they are.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self.now = self._path.exists()

    def begin(self) -> None:
        """An operator has disconnected all."""
        self.now = True
        try:
            write_private_file(self._path, b"", replace=True)
        except KeyFileError as error:
            _log.warning(
                "that all peers are disconnected will be forgotten at the next start",
                file=self._path,
                cause=error,
                remedy="make room, or give the directory to the user of the daemon",
            )

    def end(self) -> None:
        """An operator has connected somebody."""
        if not self.now:
            return
        self.now = False
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning(
                "at the next start all peers will be disconnected again",
                file=self._path,
                cause=error,
                remedy="delete the file",
            )
