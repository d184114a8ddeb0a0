"""The standard streams of a program, whatever they were opened to.

Owns: what becomes of a write to a full disk, to a pipe that nobody reads, to a stream that was
closed before we began. Does not know: what is written.

::

    stdout   full, closed     OutputFailed, once; what comes after it goes nowhere
             nobody reads     BrokenPipeError, once, which ends a program without a word
    stderr   any of them      goes nowhere: there is no place left to say so
    stdin    closed           is empty

Without this the interpreter says the same as a traceback, a second time while it ends, and gives the
numbers 0 to 2 of closed streams to the first sockets that it opens.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

from shadowmesh.base.errors import ShadowMeshError

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class OutputFailed(ShadowMeshError):
    """What a program had to say could not be written; what it did is done."""


class _Stream(io.FileIO):
    """A descriptor that is not ours to close, and that fails at most once."""

    def __init__(self, descriptor: int, *, closed: bool, quiet: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._was_closed = closed
        self._quiet = quiet
        self._failed = False

    def write(self, data: Any) -> int:
        """Write, or raise what this stream raises once; then take everything."""
        if self._failed:
            return memoryview(data).nbytes
        try:
            if not self._was_closed:
                return super().write(data)
            failure = OSError(errno.EBADF, "it is closed")
        except OSError as error:
            failure = error
        self._failed = True
        if self._quiet:
            return memoryview(data).nbytes
        if isinstance(failure, BrokenPipeError):
            raise failure
        raise OutputFailed(f"standard output cannot be written: {failure.strerror}")


def guard() -> None:
    """Make the three streams of this process behave as described above; call it once, first."""
    closed = _fill_closed()
    sys.stdout = _text(sys.stdout, _STDOUT, closed=_STDOUT in closed, quiet=False)
    sys.stderr = _text(sys.stderr, _STDERR, closed=_STDERR in closed, quiet=True)
    if sys.stdin is None:
        sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115 - for ever


def _fill_closed() -> set[int]:
    """Open the null device in the place of each standard stream that is closed."""
    filled = set()
    # The lowest free number is the one that is given.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
        filled.add(descriptor)
    os.close(descriptor)
    return filled


def _text(old: TextIO | None, descriptor: int, *, closed: bool, quiet: bool) -> TextIO:
    raw = _Stream(descriptor, closed=closed, quiet=quiet)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if old is None else old.encoding,
        errors="backslashreplace" if old is None else old.errors,
        line_buffering=raw.isatty() or descriptor == _STDERR,
    )
