"""What gevent itself has to complain about, in our log and our words.

Owns: the end of every exception that no greenlet of ours has dealt with. Does not know: whose
greenlet it was.

gevent writes a traceback to stderr for each: without descriptors its servers fail at every
connection, and each failure would be ten lines that no log level and no format holds back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from shadowmesh.base import log
from shadowmesh.base.errors import MORE_DESCRIPTORS, OUT_OF_DESCRIPTORS

if TYPE_CHECKING:
    from types import TracebackType

    from gevent.hub import Hub

_log = log.get("hub")


def report_errors_of(hub: Hub) -> None:
    """Log from now on what this hub would print."""
    hub.print_exception = _report


def _report(
    _context: object,
    kind: type[BaseException] | None,
    error: BaseException | str | None,
    trace: TracebackType | None,
) -> None:
    if isinstance(error, OSError) and error.errno in OUT_OF_DESCRIPTORS:
        _log.limited(60).warning(
            "something could not be opened", cause=error, remedy=MORE_DESCRIPTORS
        )
        return
    if not isinstance(error, BaseException):
        error = RuntimeError(f"{kind}: {error}")
    try:
        _raise(error.with_traceback(trace))
    except BaseException:  # noqa: BLE001 - raised here, to be logged with its stack
        _log.exception("a greenlet failed by a bug")


def _raise(error: BaseException) -> NoReturn:
    raise error
