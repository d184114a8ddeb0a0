"""When each peer of a list was last here, remembered over restarts.

Owns: the file `last_seen.peers` of the state directory, a public key and a date in each line. Does
not know: sessions, names, whether anybody is missed. As with `last_seen`, which is for a pair, a
file that cannot be read or written costs the dates, never the tunnel.

One file for all, written a little later: when the network of this host goes, a thousand sessions
end in one second, and the disk of a small machine takes some 20 ms for each file.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.clock import Dates, boottime
from shadowmesh.base.constants import IDENTITY_BYTES, MAX_PEERS
from shadowmesh.base.errors import KeyFileError
from shadowmesh.insight.status import format_time
from shadowmesh.keys.private_file import write_private_file
from shadowmesh.peer.last_seen import WRITE_INTERVAL_S

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

NAME: Final = "last_seen.peers"
#: who has come or gone is written down so much later at most
SOON_S: Final = 10.0
#: a line has 70 bytes
_READ_LIMIT: Final = MAX_PEERS * 80

_log = log.get("connection")


class SeenPeer:
    """One peer of the list; like `last_seen.LastSeen`.

    Attributes for reading only:
        moment: when it was last here in this run, boot-time seconds; None when it was not.
        date: when in the run before, seconds since 1970; None when that is not known.
    """

    def __init__(self, seen: SeenList, date: float | None) -> None:
        self.moment: float | None = None
        self.date = date
        self._seen = seen

    def here(self) -> None:
        """There is a session now."""
        if self.moment is None:
            self._seen.changed = True
        self.moment = boottime()

    def gone(self) -> None:
        """There was one until now."""
        self.moment = boottime()
        self._seen.changed = True


class SeenList:
    """All peers of the list.

    Attributes:
        changed: somebody has come or gone since the file was written.
    """

    def __init__(self, directory: Path) -> None:
        self.changed = False
        self._path = directory / NAME
        self._written_at = boottime()
        self._dates = Dates()
        self._peers = {key: SeenPeer(self, date) for key, date in self._read().items()}

    def of(self, public_key: bytes) -> SeenPeer:
        """Return what is known of the peer with this key."""
        return self._peers.setdefault(public_key, SeenPeer(self, None))

    def keep(self, public_keys: Collection[bytes]) -> None:
        """Forget all others."""
        for public_key in self._peers.keys() - public_keys:
            del self._peers[public_key]
            self.changed = True

    def beat(self) -> None:
        """Write if that is due; now and then."""
        since_s = boottime() - self._written_at
        if since_s >= (SOON_S if self.changed else WRITE_INTERVAL_S):
            self.write()

    def write(self) -> None:
        """Write what is known now."""
        self.changed = False
        self._written_at = boottime()
        lines = [
            f"{base64.b64encode(key).decode()} {format_time(date)}\n"
            for key, peer in self._peers.items()
            if (date := self._date(peer)) is not None
        ]
        try:
            write_private_file(self._path, "".join(lines).encode("ascii"), replace=True)
        except KeyFileError as error:
            _log.limited(WRITE_INTERVAL_S).warning(
                "when the peers were last here cannot be written",
                file=self._path,
                cause=error,
                remedy="make room, or give the directory to the user of the daemon",
            )

    def _date(self, peer: SeenPeer) -> float | None:
        return peer.date if peer.moment is None else self._dates.of(peer.moment)

    def _read(self) -> dict[bytes, float]:
        try:
            with self._path.open("rb") as file:
                lines = file.read(_READ_LIMIT).decode().splitlines()
            return dict(map(_parse, lines))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning(
                "when the peers were last here is not known",
                file=self._path,
                cause=error,
                remedy="none is needed: the next session writes the file anew",
            )
            return {}


def _parse(line: str) -> tuple[bytes, float]:
    """Raises ValueError: it is not a key and a date."""
    text, _, date = line.partition(" ")
    try:
        public_key = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if len(public_key) != IDENTITY_BYTES:
        raise ValueError(f"a key of {len(public_key)} bytes")
    found = datetime.fromisoformat(date.strip())
    return public_key, found.replace(tzinfo=found.tzinfo or UTC).timestamp()
