"""Work that is due at a time, or when somebody has news: a greenlet that is there only meanwhile.

Owns: the timer, and that the work is done once at a time and again after news. Does not know: what
the work is, when it is due next.

A greenlet that waits holds 9 KiB, which a thousand sessions would have twice each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable


class Alarm:
    """Belongs to the hub's thread.

    Attributes:
        dead: stop() was called.
    """

    def __init__(self) -> None:
        """Nothing is due, and there is no work."""
        self.dead = False
        self._work: Callable[[], None] = _nothing
        self._passes: Callable[[], bool] = _never
        self._news = False
        self._greenlet: gevent.Greenlet | None = None
        self._timer: Any = None

    def does(self, work: Callable[[], None], passes: Callable[[], bool] | None = None) -> None:
        """Say what is to be done.

        Args:
            work: called in a greenlet; must not raise.
            passes: called by the loop when the time has come: whether there is nothing to do,
                after all, and the next time is set. Must neither wait nor raise.
        """
        self._work = work
        self._passes = passes or _never

    def set(self) -> None:
        """There is news: do the work soon. Of what the work itself does it need not be told."""
        if self._greenlet is None:
            self._news = True
            if not self.dead:
                self._greenlet = gevent.spawn(self._run)
        elif self._greenlet is not gevent.getcurrent():
            self._news = True

    def ring_in(self, seconds: float | None) -> None:
        """Do the work after so long, instead of at the time set before; None: not at any time."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        if seconds is not None and not self.dead:
            self._timer = gevent.get_hub().loop.timer(max(0.0, seconds))
            self._timer.start(self._ring)

    def stop(self) -> None:
        """Do nothing any more; what is being done is cut short unless it is the caller."""
        self.dead = True
        self.ring_in(None)
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill(block=False)
        # They lead back to the owner, and what is over must not wait for the collector.
        self.does(_nothing)

    def _ring(self) -> None:
        if not self._passes():
            self.set()

    def _run(self) -> None:
        """Work until there is no news; ends with that, or when killed by stop()."""
        try:
            while self._news and not self.dead:
                self._news = False
                self._work()
        except gevent.GreenletExit:
            return  # as the greenlet's value it would hold this stack, and with it the owner
        finally:
            if self._greenlet is gevent.getcurrent():
                self._greenlet = None


def _nothing() -> None:
    """The work of an owner that has not begun, or has ended."""


def _never() -> bool:
    """Nothing passes: there is always something to do."""
    return False
