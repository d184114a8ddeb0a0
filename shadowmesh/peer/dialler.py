"""One dial at a time.

Owns: the greenlet of a dial, and that what arrives after it was given up goes nowhere. Does not
know: states, when to dial, the handshake that follows.

::

    start(target) --> greenlet: dial --post--> on_upgraded / on_failed, unless aborted
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import gevent

from shadowmesh.base import log
from shadowmesh.base.errors import REPORT_BUG, ControlError, PeerUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.config import HostPort
    from shadowmesh.link.link import Upgraded

_log = log.get("connection")


class Dialler:
    """Dials once per start(), and hands over one outcome or none.

    Args:
        post: carries out a call later, in its owner's greenlet, one after the other.
        dial: blocks, and returns the connection or raises ControlError.
        on_upgraded, on_failed: called through `post`.
    """

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        dial: Callable[[HostPort], Upgraded],
        on_upgraded: Callable[[Upgraded], None],
        on_failed: Callable[[ControlError], None],
    ) -> None:
        self._post = post
        self._dial = dial
        self._on_upgraded = on_upgraded
        self._on_failed = on_failed
        self._greenlet: gevent.Greenlet | None = None

    @property
    def running(self) -> bool:
        """A dial has neither had its outcome nor been aborted."""
        return self._greenlet is not None

    def start(self, target: HostPort) -> None:
        """Dial once."""
        self._greenlet = gevent.spawn(self._run, target)

    def abort(self) -> None:
        """Forget the dial; harmless without one."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)

    def _run(self, target: HostPort) -> None:
        """Dial and post the outcome; ends with it or when killed by abort()."""
        this = gevent.getcurrent()
        try:
            upgraded = self._dial(target)
        except ControlError as error:
            self._post(partial(self._failed, this, error))
        except gevent.GreenletExit:
            return  # as the greenlet's value it would hold this stack, which holds the greenlet
        except Exception:  # noqa: BLE001 - the owner must hear of every end
            _log.exception("a dial failed by a bug")
            failure = PeerUnreachable(f"internal error while dialling {target}; {REPORT_BUG}")
            self._post(partial(self._failed, this, failure))
        else:
            self._post(partial(self._upgraded, this, upgraded))

    def _upgraded(self, greenlet: gevent.Greenlet, upgraded: Upgraded) -> None:
        if greenlet is not self._greenlet:
            upgraded.sock.close()
            return
        self._greenlet = None
        self._on_upgraded(upgraded)

    def _failed(self, greenlet: gevent.Greenlet, error: ControlError) -> None:
        if greenlet is self._greenlet:
            self._greenlet = None
            self._on_failed(error)
