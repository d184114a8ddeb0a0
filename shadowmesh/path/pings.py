"""Round trips that somebody waits for: the probes of `shadowmesh ping`.

Owns: the tokens that are on the way and who waits for each. Does not know: how a probe is sent,
which path it takes; the probes that keep a path alive are not among them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from gevent import Timeout
from gevent.event import AsyncResult

from shadowmesh.base.constants import PROBE_TOKEN_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

#: an answer that takes longer counts as lost
PING_TIMEOUT_S: Final = 2.0


class Pings:
    """The pings over one kind of path of one session. Belongs to the hub's thread."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, AsyncResult] = {}

    def round_trip(
        self, send: Callable[[bytes], bool], timeout_s: float = PING_TIMEOUT_S
    ) -> float | None:
        """Send one probe and return the seconds that it was on the way; None when none came back.

        Args:
            send: sends a probe with this token; False when it cannot.
        """
        token = os.urandom(PROBE_TOKEN_BYTES)
        answered: AsyncResult = AsyncResult()
        self._waiting[token] = answered
        try:
            if not send(token):
                return None
            rtt_s: float = answered.get(timeout=timeout_s)
            return rtt_s
        except Timeout:
            return None
        finally:
            del self._waiting[token]

    def answered(self, token: bytes, rtt_s: float | None) -> None:
        """An answer came, after so many seconds on the way; tokens of nobody are ignored."""
        waiting = self._waiting.get(token)
        if waiting is not None and rtt_s is not None:
            waiting.set(rtt_s)
