"""What the service manager hears from us: systemd's notification protocol.

Owns: the datagrams to $NOTIFY_SOCKET, when the watchdog is fed. Does not know: what the daemon's
states mean, who calls it how often, which descriptors are kept (`device.fdstore`).

::

    NOTIFY_SOCKET unset (no systemd): every call does nothing
    started:  READY=1      the control API has answered and the TAP device can be made
    reload:   RELOADING=1 ... READY=1
    beat:     WATCHDOG=1   twice per WATCHDOG_USEC, from the hub: a stuck hub is restarted
              STATUS=...   one line of `systemctl status`, when it has changed
    stop:     STOPPING=1

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: `systemctl status` shows one line
MAX_STATUS_CHARS: Final = 300

_log = log.get("notify")


class Notifier:
    """Tells the service manager about one daemon. Nothing here waits or fails."""

    def __init__(
        self, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: clock: seconds; the kernel's monotonic one, which RELOADING=1 names."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._clock = clock
        self._watchdog_s = _watchdog_s(environ)
        self._fed_at = clock()
        self._status = ""

    def ready(self, status: str) -> None:
        """The daemon does its work from now on."""
        self._status = status
        self.send("READY=1", _status_line(status))

    def reloading(self) -> None:
        """A reload begins; ready() ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={int(self._clock() * 1e6)}")

    def stopping(self) -> None:
        """The daemon ends, and undoes what it has started."""
        self.send("STOPPING=1", "STATUS=stopping")

    def beat(self, status: str) -> None:
        """The hub turns: feed the watchdog when it is due, tell a status that has changed.

        To be called at least every half of WATCHDOG_USEC, by the hub itself.
        """
        words = []
        now = self._clock()
        if self._watchdog_s is not None and now >= self._fed_at + self._watchdog_s / 2:
            self._fed_at = now
            words.append("WATCHDOG=1")
        if status != self._status:
            self._status = status
            words.append(_status_line(status))
        if words:
            self.send(*words)

    def send(self, *assignments: str, fds: Sequence[int] = ()) -> bool:
        """Send one message, with descriptors if need be; False when the manager was not told."""
        if not self._address:
            return False
        # A leading @ names a socket without a file.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(address)
                socket.send_fds(sock, ["\n".join(assignments).encode()], list(fds))
        except OSError as error:
            _log.limited(60).warning(
                "the service manager was not told",
                said=assignments,
                cause=error,
                remedy="look at NOTIFY_SOCKET and NotifyAccess= of the service",
            )
            return False
        return True


def _status_line(status: str) -> str:
    return f"STATUS={one_line(status)[:MAX_STATUS_CHARS]}"


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Return the watchdog's limit in seconds; None without one, or when it is another process's."""
    pid, limit = environ.get("WATCHDOG_PID", ""), environ.get("WATCHDOG_USEC", "")
    if not limit.isdecimal() or int(limit) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(limit) / 1e6
