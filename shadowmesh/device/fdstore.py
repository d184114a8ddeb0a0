"""Descriptors that outlive this process: the file descriptor store of systemd.

Owns: the names under which the service manager keeps descriptors for the next start of this
service, and what it has given us of the last one. Does not know: what they are for, whether they
still fit the configuration.

::

    start   LISTEN_FDS, LISTEN_FDNAMES ----> take(), whose caller looks whether it still fits
    open    keep()    --FDSTORE=1---------> the manager holds a duplicate
    close   forget()  --FDSTOREREMOVE=1---> it closes that, and forget() returns when it has
    stop    leave()                         what is kept now is for the next start

A restart, a crash and a watchdog's SIGABRT leave the store alone; a full stop of the service
empties it. Without a service manager nothing is given, and every call does nothing.

Source: sd_listen_fds(3), sd_notify(3), sd_notify_barrier(3), FileDescriptorStoreMax= in
systemd.service(5).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, Protocol

from gevent.socket import wait_read

from shadowmesh.base import log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TAP: Final = "tap"
PEER: Final = "peer"
UDP: Final = "udp"
NAMES: Final = (TAP, PEER, UDP)

#: sd_listen_fds(3)
FIRST_FD: Final = 3
#: a manager that does not close its duplicate within this is busy; what comes next may fail once
BARRIER_TIMEOUT_S: Final = 1.0

_log = log.get("fdstore")


class Notifier(Protocol):
    """The way to the service manager."""

    def send(self, *assignments: str, fds: Sequence[int] = ()) -> bool:
        """Send one message, with descriptors if need be; False when the manager was not told."""


class FdStore:
    """The descriptors of one service, by name; at most one for each."""

    def __init__(self, environ: Mapping[str, str], notifier: Notifier | None) -> None:
        """Take over what the manager gives us; call it once in a process.

        Args:
            notifier: the way to the manager; None: keep nothing.
        """
        self._notifier = notifier
        self._received = _received(environ)
        self._kept = set(self._received)
        self._left = False

    def take(self, name: str) -> int | None:
        """Return the descriptor of the last run, None without one.

        The caller owns it from now on; the manager has its own duplicate until forget().
        """
        return self._received.pop(name, None)

    def keep(self, name: str, fd: int) -> None:
        """Let the manager hold a duplicate; of what was taken it has one already.

        The caller's own descriptor stays the caller's.
        """
        if name in self._kept:
            return
        # FDPOLL=0: a pending error, such as an ICMP message, is no reason to throw a socket away.
        words = ("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0")
        if self._notifier is not None and self._notifier.send(*words, fds=(fd,)):
            self._kept.add(name)

    def forget(self, name: str) -> None:
        """Let the manager close its duplicate, and wait until it has; not after leave()."""
        if self._left or name not in self._kept or self._notifier is None:
            return
        self._kept.discard(name)
        if self._notifier.send("FDSTOREREMOVE=1", f"FDNAME={name}"):
            self._wait_until_done(self._notifier)

    def drop_unclaimed(self) -> None:
        """Close and forget what nobody took: it belongs to another configuration."""
        for name in tuple(self._received):
            fd = self.take(name)
            assert fd is not None
            os.close(fd)
            self.forget(name)
            _log.info("a descriptor of the last run is not needed any more", name=name)

    def leave(self) -> None:
        """The daemon ends: what is kept now stays kept."""
        self._left = True

    def _wait_until_done(self, notifier: Notifier) -> None:
        """The manager closes the descriptor of a barrier when it has read all that came before."""
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            sent = notifier.send("BARRIER=1", fds=(theirs,))
        finally:
            os.close(theirs)
        try:
            if sent:
                wait_read(ours, BARRIER_TIMEOUT_S)
        except TimeoutError:
            _log.limited(60).warning(
                "the service manager still holds an old descriptor",
                remedy="`shadowmesh connect` again if a device or a port is said to be in use",
            )
        finally:
            os.close(ours)


def _received(environ: Mapping[str, str]) -> dict[str, int]:
    """Return what was passed to this process by name; what is not ours by name is closed."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, int] = {}
    for number in range(int(count)):
        fd = FIRST_FD + number
        name = names[number] if number < len(names) else ""
        if name in NAMES and name not in found:
            os.set_inheritable(fd, False)
            found[name] = fd
        else:
            with contextlib.suppress(OSError):
                os.close(fd)
            _log.warning(
                "a descriptor that the service manager passed is not used",
                name=name,
                remedy="remove the socket unit: the daemon opens its ports itself",
            )
    return found


#: keeps nothing
NO_STORE: Final = FdStore({}, None)
