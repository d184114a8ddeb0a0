"""Logging: constant messages, facts as fields, one line each, on stderr.

Owns: the form of a line (text or JSON), what may not appear in one, and that logging never
harms the caller: a full, blocked or closed stderr costs lines, which are counted, and no time.
Does not know: who logs. Standard library logging lies underneath, so other libraries' records
take the same way out.

::

    2026-11-23T21:00:00.123Z INFO  link: peer connected address=192.0.2.7:9001
    {"time": "...", "level": "info", "logger": "link", "message": "peer connected", ...}

Under systemd a text line begins with the priority (`<6>`) in place of the time, which the
journal knows. Values are escaped, secrets print as `***` and bytes as their length, because
bytes here are keys or payload.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from shadowmesh.base.errors import ShadowMeshError, one_line

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
FORMATS: Final = ("text", "json")

#: a write of at most PIPE_BUF bytes to a pipe that polls as writable does not block
MAX_LINE_BYTES: Final = 4096
_MAX_VALUE_CHARS = 512
_MAX_TRACEBACK_CHARS = 2400
_MAX_ITEMS = 32
_MAX_DEPTH = 3
#: messages are constants of the program, so this is never reached unless one is not
_MAX_LIMITED = 1024

#: how often one message may bring a traceback
TRACEBACK_INTERVAL_S: Final = 10.0

_BUG_REMEDY = "report it, with the archive that `shadowmesh bugreport` writes"

_ROOT = "shadowmesh"
#: sd-daemon(3)
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_NAMES = {number: name for name, number in LEVELS.items()}


class Log:
    """Writes records of one logger. Made by `get`.

    A message is a constant of the program; what varies goes into fields. The fields' values
    may be of any type and are turned into text only when the level is on.
    """

    __slots__ = ("_interval_s", "_logger")

    def __init__(self, logger: logging.Logger, interval_s: float = 0.0) -> None:
        self._logger = logger
        self._interval_s = interval_s

    def debug(self, message: str, /, **fields: object) -> None:
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, /, **fields: object) -> None:
        """Log an error with the traceback of the exception being handled: a bug of ours.

        Once in `TRACEBACK_INTERVAL_S` for each message: without memory or descriptors, or because
        a stranger found it, the same one comes again and again.
        """
        text = traceback.format_exc()[-_MAX_TRACEBACK_CHARS:]
        limited = self if self._interval_s else self.limited(TRACEBACK_INTERVAL_S)
        more = {"remedy": _BUG_REMEDY, "traceback": _Long(text)}
        limited._log(logging.ERROR, message, {**fields, **more})  # noqa: SLF001

    def limited(self, interval_s: float) -> Log:
        """Return a log that lets each message through once in interval_s seconds.

        The first line after a pause carries `suppressed=N` when N like it were held back.
        For what a peer or a broken device can cause at any rate.
        """
        return Log(self._logger, interval_s)

    def _log(self, level: int, message: str, fields: dict[str, object]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        if self._interval_s:
            suppressed = _limiter.pass_through(
                (self._logger.name, message), self._interval_s, time.monotonic()
            )
            if suppressed is None:
                return
            if suppressed:
                fields["suppressed"] = suppressed
        self._logger.log(level, message, extra={"fields": fields})


class _Limiter:
    """When each (logger, message) last passed, and how many were held back since."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def pass_through(self, key: tuple[str, str], interval_s: float, now: float) -> int | None:
        """Return how many were held back before this one; None: hold this one back too."""
        with self._lock:
            passed_at, suppressed = self._seen.get(key, (-interval_s, 0))
            if key in self._seen and now - passed_at < interval_s:
                self._seen[key] = (passed_at, suppressed + 1)
                return None
            if len(self._seen) >= _MAX_LIMITED:
                self._seen.clear()
            self._seen[key] = (now, 0)
            return suppressed


_limiter = _Limiter()


class _Long(str):
    """A text that is allowed more than the usual length of a value."""

    __slots__ = ()


def get(name: str) -> Log:
    """Return the log of one part of the program, like `link`."""
    return Log(logging.getLogger(f"{_ROOT}.{name}"))


def configure(level: str, fmt: str, *, fd: int | None = None) -> None:
    """Send all logging of the process to stderr; may be called again to change level or form.

    Args:
        level: debug, info, warn or error. Other libraries are heard from warn on.
        fmt: text or json.
        fd: for tests, another file descriptor than stderr's. Not closed.
    Raises:
        ValueError: an unknown level or format.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is not one of {', '.join(LEVELS)}")
    if fmt not in FORMATS:
        raise ValueError(f"log format {fmt!r} is not one of {', '.join(FORMATS)}")
    fd = _stderr_fd() if fd is None else fd
    handler = _Handler(fd)
    handler.setFormatter(
        _JsonFormatter() if fmt == "json" else _TextFormatter(journal=_is_journal(fd))
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, LEVELS[level]))
    logging.getLogger(_ROOT).setLevel(LEVELS[level])


def dropped() -> int:
    """Return how many lines were lost since the start because stderr did not take them."""
    return _Handler.dropped


def _stderr_fd() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2  # replaced by something without a descriptor, or closed


def _is_journal(fd: int) -> bool:
    """Tell whether fd is the connection to the journal that systemd made.

    Only then: a shell in a service may have sent its stderr elsewhere. Source: systemd.exec(5).
    """
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


# --- The way out ------------------------------------------------------------------------------


class _Handler(logging.Handler):
    """Writes lines to a descriptor without ever waiting for it.

    A blocking write would stop every greenlet of the process, so a line is written only when
    the descriptor polls as writable, and is lost otherwise.
    """

    #: of all handlers since the start; the process has one at a time
    dropped = 0

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._unreported = 0
        self._inside_line = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a caller must survive its log line
            line = f"log record could not be formatted: {type(error).__name__}"
        data = line.encode("utf-8", "backslashreplace")
        if len(data) >= MAX_LINE_BYTES:
            data = data[: MAX_LINE_BYTES - 1].decode("utf-8", "ignore").encode()
        data += b"\n"
        if self._unreported:
            notice = self._notice()
            if not self._write(notice):
                self._drop()
                return
            self._unreported = 0
        if not self._write(data):
            self._drop()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Count what emit could not even begin; the library would print to stderr."""
        del record
        self._drop()

    def _drop(self) -> None:
        self._unreported += 1
        _Handler.dropped += 1

    def _notice(self) -> bytes:
        record = logging.LogRecord(
            f"{_ROOT}.log", logging.WARNING, "", 0, "stderr was blocked, lines are lost", (), None
        )
        record.fields = {"count": self._unreported}
        return self.format(record).encode() + b"\n"

    def _write(self, data: bytes) -> bool:
        if self._inside_line:
            data = b"\n" + data
        written = 0
        try:
            while written < len(data):
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                events = poller.poll(0)
                if not events or not events[0][1] & select.POLLOUT:
                    break
                written += os.write(self._fd, data[written : written + MAX_LINE_BYTES])
        except OSError:
            pass  # full disk, closed pipe or descriptor: counted by the caller as a lost line
        if written:
            self._inside_line = written < len(data)
        return written == len(data)


# --- Forms ------------------------------------------------------------------------------------


def _time_of(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _name_of(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{_ROOT}.")


def _level_of(record: logging.LogRecord) -> int:
    """Return the nearest of our four levels, not above the record's own."""
    return max((level for level in _NAMES if level <= record.levelno), default=logging.DEBUG)


def _message_of(record: logging.LogRecord) -> str:
    return one_line(_cut(record.getMessage(), _MAX_VALUE_CHARS))


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields with values that JSON has; other libraries' tracebacks as one."""
    fields: Mapping[str, object] = getattr(record, "fields", {})
    shown = {name: plain(value) for name, value in fields.items()}
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info))
        shown["traceback"] = text[-_MAX_TRACEBACK_CHARS:]
    return shown


def plain(value: object) -> object:
    """Return a field's value as something that JSON has, as a log line would hold it.

    Secrets become `***`, bytes their length, long texts are cut.
    """
    return _plain(value, _MAX_DEPTH)


def _plain(value: object, depth: int) -> object:
    """Return value as something that JSON has, without content that must not be logged."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        # an unnamed combination of flags has no name
        return value.value if isinstance(value, str) else (value.name or str(value.value)).lower()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if value - value == 0 else str(value)  # not nan or inf
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return _plain_collection(value, depth - 1)
    return _plain_text(value)


def _plain_collection(
    value: Mapping[object, object]
    | list[object]
    | tuple[object, ...]
    | set[object]
    | frozenset[object],
    depth: int,
) -> object:
    if depth < 0:
        return "..."
    first = list(value)[:_MAX_ITEMS]
    if isinstance(value, Mapping):
        return {str(_plain(name, 0)): _plain(value[name], depth) for name in first}
    return [_plain(item, depth) for item in first]


def _plain_text(value: object) -> str:
    if isinstance(value, _Long):
        return value
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001 - a value's bug must not end its reader
        return f"<{type(value).__name__}: {type(error).__name__}>"
    if isinstance(value, BaseException):
        text = _why(value, text)
    return _cut(text, _MAX_VALUE_CHARS)


def _why(error: BaseException, text: str) -> str:
    """Return what an exception says to people; the name of a kind of ours is no news to them."""
    if isinstance(error, ShadowMeshError):
        return text
    if isinstance(error, OSError) and error.strerror:
        # Without "[Errno 2]"; what it was about stands in a field beside it.
        return str(error.strerror)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def as_word(value: object) -> str:
    """Return a plain value for `key=value`: quoted when it would not be one word.

    A list is what it holds, separated by commas; an empty one, like None, is a dash.
    """
    if isinstance(value, Mapping):
        value = [f"{name} {_inside(item)}" for name, item in value.items()]
    if isinstance(value, list):
        value = ", ".join(_inside(item) for item in value) or None
    if isinstance(value, str):
        safe = one_line(value)
        if safe == value and value and not set(value) & set(' "=\\'):
            return value
        return '"' + _escaped(value) + '"'
    if value is None:
        return "-"
    return one_line(json.dumps(value, ensure_ascii=False))


def _inside(item: object) -> str:
    """Return what stands for one item of a list; a list in it is in brackets."""
    if isinstance(item, str):
        return item
    return f"({as_word(item)})" if isinstance(item, (list, Mapping)) else as_word(item)


def _escaped(text: str) -> str:
    """Return text for inside double quotes."""
    return one_line(text.replace("\\", "\\\\").replace('"', '\\"'))


class _TextFormatter(logging.Formatter):
    """Lines for people: `time LEVEL logger: message key=value`."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        level = _level_of(record)
        head = f"<{_PRIORITIES[level]}>" if self._journal else f"{_time_of(record)} "
        line = f"{head}{_NAMES[level].upper():5} {_name_of(record)}: {_message_of(record)}"
        for name, value in _fields_of(record).items():
            line += f" {name}={as_word(value)}"
        return line


class _JsonFormatter(logging.Formatter):
    """Lines for programs: one object each. A field never hides one of the four fixed members."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, object] = {
            "time": _time_of(record),
            "level": _NAMES[_level_of(record)],
            "logger": _name_of(record),
            "message": _message_of(record),
        }
        fixed = len(members)
        for name, value in _fields_of(record).items():
            members[f"{name}_" if name in list(members)[:fixed] else name] = value
        # ASCII only: every control and direction character is escaped
        line = json.dumps(members)
        if len(line) >= MAX_LINE_BYTES:
            kept = dict(list(members.items())[:fixed])
            line = json.dumps({**kept, "truncated": True})
        return line
