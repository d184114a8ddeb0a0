"""What all that the daemon says about itself has in common: the schema's number, times, paths.

Owns: how a moment and a rounded figure are written, the names of the paths. Does not know: what is
told with them, who asks.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal

#: grows only when a name in the JSON form changes its meaning or goes away
SCHEMA: Final = 1

PATHS: Final = ("wss", "udp")

PathName = Literal["wss", "udp"]
TlsPath = Literal["direct", "proxied-or-intercepted"]


def format_time(unix_s: float | None) -> str | None:
    """Return unix_s (seconds since 1970, wall clock) as RFC 3339 in UTC, to the millisecond."""
    if unix_s is None:
        return None
    moment = datetime.fromtimestamp(unix_s, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rounded(value: float | None, digits: int) -> float | None:
    """Return a figure with so many digits behind the point; None stays None."""
    return None if value is None else round(value, digits)
