"""A port that the daemon can do without: opened when it is free, tried again while it is not.

Owns: when it is tried, what is said meanwhile. Does not know: what is served there, HTTP.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import gevent

from shadowmesh.base import log
from shadowmesh.base.errors import ShadowMeshError

if TYPE_CHECKING:
    from collections.abc import Callable

#: a program that has our port is stopped by a person, who may wait and look
RETRY_S: Final = 15.0

_log = log.get("daemon")


class OptionalPort:
    """Serves something as soon as its port is free. The owner calls `start` once, then `stop`.

    Attributes:
        problem: why it is not open, one line with the remedy; None while it is, or before `start`.
    """

    def __init__(self, key: str, serve: Callable[[ExitStack], object]) -> None:
        """Args:
        key: of the configuration, for the log.
        serve: opens the port and leaves its end in the stack; raises ShadowMeshError.
        """
        self.problem: str | None = None
        self._key = key
        self._serve = serve
        self._undo = ExitStack()
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Open the port, or go on trying in a greenlet."""
        if not self._try():
            _log.warning(
                "a port cannot be opened, the daemon runs without it",
                key=self._key,
                cause=self.problem,
                remedy="none is needed if it is free soon: it is tried again",
            )
            self._greenlet = gevent.spawn(self._keep_trying)

    def stop(self) -> None:
        """Close the port, or end trying."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self._undo.close()

    def _try(self) -> bool:
        try:
            self._serve(self._undo)
        except ShadowMeshError as error:
            self.problem = str(error)
            return False
        self.problem = None
        return True

    def _keep_trying(self) -> None:
        """Ends when the port is open, or by `stop`."""
        while True:
            gevent.sleep(RETRY_S)
            if self._try():
                _log.info("the port is free, it is open now", key=self._key)
                return
