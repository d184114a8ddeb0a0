"""One thing that happens in a while: the wait before the next dial.

Owns: the timer, and that what was cancelled does not happen. Does not know: what happens then, how
long to wait (`wire.peer.backoff` does).

::

    plan(delay) --> timer --post--> the action, unless cancelled
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shadowmesh.base.clock import boottime

if TYPE_CHECKING:
    from collections.abc import Callable

    import gevent


class Pause:
    """At most one thing that happens in a while.

    Attributes:
        ends_at: boot-time seconds, None without one.
    """

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        later: Callable[[float, Callable[[], None]], gevent.Greenlet],
    ) -> None:
        """Nothing is planned.

        Args:
            post: carries out a call later, in its owner's greenlet, one after the other.
            later: calls a function in so many seconds.
        """
        self.ends_at: float | None = None
        self._post = post
        self._later = later
        self._timer: gevent.Greenlet | None = None

    def plan(self, delay_s: float, action: Callable[[], None]) -> None:
        """Carry out `action` in a while, instead of what was planned before."""
        self.cancel()
        mark = self.ends_at = boottime() + delay_s
        self._timer = self._later(delay_s, lambda: self._post(partial(self._due, mark, action)))

    def cancel(self) -> None:
        """Forget what was planned; harmless without."""
        timer, self._timer = self._timer, None
        self.ends_at = None
        if timer is not None:
            timer.kill(block=False)

    def _due(self, mark: float, action: Callable[[], None]) -> None:
        if mark == self.ends_at:  # else it was cancelled while this message waited
            self.cancel()
            action()
