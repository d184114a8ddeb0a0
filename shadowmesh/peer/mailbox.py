"""One thing after the other: what is posted from anywhere is carried out in one greenlet.

Owns: the queue, its greenlet, and that a bug in one message does not make it deaf. Does not know:
what a message does.

Everything that changes the state of a peer happens there, so that no two of them can meet half way;
a message that is late (its session ended, its dial was given up) has to look whether what it is
about is still there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent
from gevent.queue import SimpleQueue

from shadowmesh.base import log

if TYPE_CHECKING:
    from collections.abc import Callable

_log = log.get("connection")


class Mailbox:
    """Belongs to the hub's thread."""

    def __init__(self, on_bug: Callable[[Exception], None]) -> None:
        """Nothing is carried out before start().

        Args:
            on_bug: called with what a message raised, which is logged already; must not raise.
        """
        self._on_bug = on_bug
        self._messages: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._greenlet = gevent.Greenlet(self._run)

    @property
    def started(self) -> bool:
        """Whether start() was called and stop() was not."""
        return bool(self._greenlet.started)

    def start(self) -> None:
        """Begin to carry out what was posted."""
        self._greenlet.start()

    def stop(self) -> None:
        """Carry out nothing any more; what waits is forgotten."""
        self._greenlet.kill()

    def post(self, message: Callable[[], None]) -> None:
        """Carry out `message` after all that was posted before."""
        self._messages.put(message)

    def _run(self) -> None:
        """Carry out one message after another; ends when killed by stop()."""
        while True:
            message = self._messages.get()
            try:
                message()
            except Exception as error:  # noqa: BLE001 - or the daemon would be deaf for ever
                _log.exception("a message to the connection manager failed")
                self._on_bug(error)
            del message  # while we wait for the next one it would hold a tunnel that has ended
