"""When the peer was last here, remembered over restarts.

Owns: the file `last_seen` of the state directory, a date and nothing else. Does not know: sessions,
whether anybody is missed. A file that cannot be read or written costs the date, never the tunnel.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.clock import boottime, wall_time
from shadowmesh.base.errors import KeyFileError
from shadowmesh.insight.form import format_time
from shadowmesh.keys.private_file import write_private_file

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "last_seen"
#: after a crash or a power cut the date is at most so old
WRITE_INTERVAL_S: Final = 600.0
#: a date has 24 bytes
_READ_LIMIT: Final = 64

_log = log.get("connection")


class LastSeen:
    """The one peer of this daemon.

    Attributes for reading only:
        moment: when it was last here in this run, boot-time seconds; None when it was not.
        date: when in the run before, seconds since 1970; None when that is not known.
    """

    def __init__(self, directory: Path) -> None:
        self.moment: float | None = None
        self._path = directory / NAME
        self._written_at: float | None = None
        self.date = self._read()

    def here(self) -> None:
        """There is a session now; called again and again it writes seldom."""
        self.moment = now = boottime()
        if self._written_at is None or now >= self._written_at + WRITE_INTERVAL_S:
            self._write()

    def gone(self) -> None:
        """There was one until now."""
        self.moment = boottime()
        self._write()

    def _read(self) -> float | None:
        try:
            with self._path.open("rb") as file:
                found = datetime.fromisoformat(file.read(_READ_LIMIT).decode().strip())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning(
                "when the peer was last here is not known",
                file=self._path,
                cause=error,
                remedy="none is needed: the next session writes the file anew",
            )
            return None
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()

    def _write(self) -> None:
        self._written_at = boottime()
        try:
            # Like a secret: when somebody is at home is nobody else's business, and what root
            # tries beside the service stays the service's.
            write_private_file(
                self._path, f"{format_time(wall_time())}\n".encode("ascii"), replace=True
            )
        except KeyFileError as error:
            _log.limited(WRITE_INTERVAL_S).warning(
                "when the peer was last here cannot be written",
                file=self._path,
                cause=error,
                remedy="make room, or give the directory to the user of the daemon",
            )
