"""Logging: what a line looks like, what never appears in one, and that it harms nobody."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from enum import Enum, StrEnum
from ipaddress import ip_interface
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.base import log
from shadowmesh.base.constants import Caps, CloseReason
from shadowmesh.base.errors import RemoteProtocolError
from shadowmesh.config import HostPort
from shadowmesh.config.model import Secret

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


class Pipe:
    """A pipe to log into."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def lines(self) -> list[str]:
        data = b""
        while True:
            try:
                part = os.read(self.reader, 1 << 16)
            except BlockingIOError:
                break
            if not part:
                break
            data += part
        assert data == b"" or data.endswith(b"\n")
        return data.decode().splitlines()

    def fill(self) -> None:
        os.set_blocking(self.writer, False)
        for size in (4096, 1):
            try:
                while True:
                    os.write(self.writer, b"x" * size)
            except BlockingIOError:
                pass
        os.set_blocking(self.writer, True)

    def empty(self) -> None:
        try:
            while os.read(self.reader, 1 << 16):
                pass
        except BlockingIOError:
            pass


@pytest.fixture(autouse=True)
def restored_logging():
    root = logging.getLogger()
    ours = logging.getLogger("shadowmesh")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    for fd in (pipe.reader, pipe.writer):
        with contextlib.suppress(OSError):  # the test closed it
            os.close(fd)


@pytest.fixture
def text(pipe):
    log.configure("info", "text", fd=pipe.writer)
    return pipe


@pytest.fixture
def objects(pipe):
    log.configure("debug", "json", fd=pipe.writer)
    return lambda: [json.loads(line) for line in pipe.lines()]


# --- Form -------------------------------------------------------------------------------------


def test_a_text_line_has_time_level_logger_message_and_fields(text):
    log.get("link").info("peer connected", address=HostPort("::1", 9001), rekeys=3)
    (line,) = text.lines()
    assert re.fullmatch(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z "
        r"INFO  link: peer connected address=\[::1\]:9001 rekeys=3",
        line,
    )


def test_a_json_line_is_one_object(objects):
    log.get("link").warning("link lost", code=1006, reason=None, ok=False, paths=["udp", "wss"])
    (line,) = objects()
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z", line.pop("time"))
    assert line == {
        "level": "warn", "logger": "link", "message": "link lost",
        "code": 1006, "reason": None, "ok": False, "paths": ["udp", "wss"],
    }  # fmt: skip


def test_json_fields_do_not_hide_the_fixed_members(objects):
    log.get("x").info("m", message="mine", level=5, time=1, logger="l")
    (line,) = objects()
    assert (line["message"], line["level"], line["logger"]) == ("m", "info", "x")
    assert (line["message_"], line["level_"], line["time_"], line["logger_"]) == ("mine", 5, 1, "l")


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["d", "i", "w", "e"]),
        ("info", ["i", "w", "e"]),
        ("warn", ["w", "e"]),
        ("error", ["e"]),
    ],
)
def test_the_level_decides_what_is_heard(pipe, level, heard):
    log.configure(level, "json", fd=pipe.writer)
    part = log.get("x")
    part.debug("d")
    part.info("i")
    part.warning("w")
    part.error("e")
    assert [json.loads(line)["message"] for line in pipe.lines()] == heard


def test_configuring_again_replaces_and_does_not_repeat(text):
    log.configure("info", "json", fd=text.writer)
    log.get("x").info("once")
    (line,) = text.lines()
    assert json.loads(line)["message"] == "once"


@pytest.mark.parametrize(("level", "fmt"), [("warning", "text"), ("info", "xml")])
def test_unknown_levels_and_forms_are_refused(level, fmt):
    with pytest.raises(ValueError, match="is not one of"):
        log.configure(level, fmt)


def test_under_systemd_a_line_begins_with_the_priority(pipe, monkeypatch):
    status = os.fstat(pipe.writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log.configure("debug", "text", fd=pipe.writer)
    part = log.get("link")
    part.debug("d")
    part.info("i", n=1)
    part.warning("w")
    part.error("e")
    assert pipe.lines() == [
        "<7>DEBUG link: d", "<6>INFO  link: i n=1", "<4>WARN  link: w", "<3>ERROR link: e",
    ]  # fmt: skip


def test_a_redirected_stderr_under_systemd_keeps_the_time(pipe, monkeypatch):
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    log.configure("info", "text", fd=pipe.writer)
    log.get("link").info("i")
    assert pipe.lines()[0].startswith("20")


def test_other_libraries_are_heard_from_warnings_on(objects):
    logging.getLogger("elsewhere").info("not this")
    broken = OSError(5, "broken")
    logging.getLogger("elsewhere").error("failed %d times", 3, exc_info=broken)
    (line,) = objects()
    assert (line["logger"], line["message"]) == ("elsewhere", "failed 3 times")
    assert "OSError: [Errno 5] broken" in line["traceback"]


def test_a_percent_sign_in_a_message_is_text(text):
    log.get("x").info("100 %s done")
    assert text.lines()[0].endswith("x: 100 %s done")


# --- Values -----------------------------------------------------------------------------------


class Colour(Enum):
    RED = 1


class State(StrEnum):
    IDLE = "idle"


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("line\nbreak", '"line\\nbreak"'),
        ("\x1b[2J", '"\\x1b[2J"'),
        (None, "-"),
        (True, "true"),
        (7, "7"),
        (0.1234567, "0.123457"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (b"payload", '"<7 bytes>"'),
        (memoryview(b"xy"), '"<2 bytes>"'),
        (Secret(bytes(32)), "***"),
        ([], "-"),
        ({}, "-"),
        (["10.0.0.1/24"], "10.0.0.1/24"),
        ([1, "a b", None, Secret(b"k" * 32), b"xx"], '"1, a b, -, ***, <2 bytes>"'),
        ({"n": 1, "key": Secret(b"k" * 32)}, '"n 1, key ***"'),
        ([1, ["x"], []], '"1, (x), (-)"'),
        ([[[["deep"]]]], "((...))"),
        (Colour.RED, "red"),
        (State.IDLE, "idle"),
        (CloseReason.TIMEOUT, "timeout"),
        (Caps.AEGIS256 | Caps.UDP, "aegis256|udp"),
        (Caps(0), "0"),
        (Path("/a/b"), "/a/b"),
        (ip_interface("10.0.0.1/24"), "10.0.0.1/24"),
        (RemoteProtocolError("too short"), '"too short"'),
        (OSError(5, "Input/output error", "/a"), '"Input/output error"'),
        (ValueError("no number"), '"ValueError: no number"'),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_values_print_as_one_word_without_content_that_must_not_be_seen(text, value, word):
    log.get("x").info("m", v=value)
    assert text.lines()[0].endswith(f"x: m v={word}")


def test_long_values_are_cut(text):
    log.get("x").info("m", v="a" * 5000, n=2)
    (line,) = text.lines()
    assert line.endswith("aaa... n=2")
    assert len(line) < 700


def test_a_long_line_fits_a_pipes_buffer_in_both_forms(pipe):
    fields = {f"field{i}": "ü" * 500 for i in range(30)}
    log.configure("info", "text", fd=pipe.writer)
    log.get("x").info("m", **fields)
    (line,) = pipe.lines()
    assert len(line.encode()) < log.MAX_LINE_BYTES
    log.configure("info", "json", fd=pipe.writer)
    log.get("x").info("m", **fields)
    (line,) = pipe.lines()
    assert json.loads(line)["truncated"] is True


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_value_that_cannot_be_printed_harms_nobody(text):
    log.get("x").info("m", v=Broken(), n=1)
    assert text.lines()[0].endswith('m v="<Broken: RuntimeError>" n=1')


def test_a_record_that_cannot_be_formatted_is_told(text):
    (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, log._Handler))
    handler.handle(logging.LogRecord("elsewhere", 30, "", 0, "%d", ("no number",), None))
    (line,) = text.lines()
    assert "could not be formatted: TypeError" in line


def test_an_exception_comes_with_its_traceback_in_one_line(text):
    try:
        {}["absent"]
    except KeyError:
        log.get("x").exception("bug", where="here")
    (line,) = text.lines()
    assert re.search(r"ERROR x: bug where=here remedy=\"report it, [^\"]+\" traceback=", line)
    assert "KeyError: 'absent'" in line


def test_the_same_traceback_comes_once_in_a_while(text):
    for _ in range(1000):
        try:
            bytearray(1 << 62)
        except MemoryError:
            log.get("x").exception("no memory for that")
    assert len(text.lines()) == 1


@settings(max_examples=80)
@given(
    # Of names that are made, none is thrown away: with a filter most tries would be.
    st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,7}", fullmatch=True), VALUES, max_size=5)
)
def test_any_fields_give_exactly_one_line(fields):
    pipe = Pipe()
    try:
        for fmt in ("text", "json"):
            log.configure("info", fmt, fd=pipe.writer)
            log.get("x").info("m", **fields)
            (line,) = pipe.lines()
            assert line.isprintable()
            assert "could not be formatted" not in line
            if fmt == "json":
                json.loads(line)
    finally:
        os.close(pipe.reader)
        os.close(pipe.writer)


# --- Rate limit -------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(log, "_limiter", log._Limiter())
    monkeypatch.setattr(log.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_limited_message_passes_once_per_interval_and_counts_the_rest(objects, clock):
    part = log.get("link")
    for _ in range(5):
        part.limited(10).warning("bad frame", n=1)
    clock.now += 9.9
    part.limited(10).warning("bad frame")
    clock.now += 0.2
    part.limited(10).warning("bad frame")
    clock.now += 20
    part.limited(10).warning("bad frame")
    assert [line.get("suppressed") for line in objects()] == [None, 5, None]


def test_messages_and_loggers_are_limited_each_for_itself(objects, clock):
    for name in ("a", "b"):
        for message in ("one", "two", "one"):
            log.get(name).limited(10).info(message)
    assert [(line["logger"], line["message"]) for line in objects()] == [
        ("a", "one"), ("a", "two"), ("b", "one"), ("b", "two"),
    ]  # fmt: skip


def test_a_message_below_the_level_does_not_use_up_the_interval(pipe, clock):
    log.configure("info", "json", fd=pipe.writer)
    log.get("a").limited(10).debug("m")
    log.get("a").limited(10).info("m")
    assert len(pipe.lines()) == 1


def test_the_memory_of_the_limiter_is_bounded(objects, clock):
    limited = log.get("a").limited(10)
    for number in range(3000):
        limited.debug(f"m{number}")
        objects()
    assert len(log._limiter._seen) <= 1024


# --- A stderr in trouble ----------------------------------------------------------------------


def test_a_full_pipe_costs_lines_and_no_time_and_is_told_afterwards(text):
    before = log.dropped()
    text.fill()
    for _ in range(3):
        log.get("x").info("lost")  # a blocking write would hang the test here
    assert log.dropped() - before == 3
    text.empty()
    log.get("x").info("back")
    notice, line = text.lines()
    assert "log: stderr was blocked, lines are lost count=3" in notice
    assert line.endswith("x: back")


def test_a_line_may_go_out_in_pieces(text, monkeypatch):
    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(log.os, "write", lambda fd, data: real_write(fd, data[:7]))
        log.get("x").info("whole", n=1)
    (line,) = text.lines()
    assert line.startswith("20")
    assert line.endswith("INFO  x: whole n=1")


def test_a_line_that_was_cut_does_not_swallow_the_next(text, monkeypatch):
    real_write = os.write
    chunks = iter([10])

    def write(fd: int, data: bytes) -> int:
        try:
            return real_write(fd, data[: next(chunks)])
        except StopIteration:
            raise BlockingIOError from None

    with monkeypatch.context() as patch:
        patch.setattr(log.os, "write", write)
        log.get("x").info("cut")
    log.get("x").info("whole")
    first, notice, line = text.lines()
    assert len(first) == 10
    assert notice.endswith("lines are lost count=1")
    assert line.endswith("x: whole")


def test_a_pipe_whose_reader_went_away_costs_lines_only(text):
    before = log.dropped()
    os.close(text.reader)
    log.get("x").info("lost")
    assert log.dropped() - before == 1


def test_a_closed_descriptor_costs_lines_only(text):
    before = log.dropped()
    os.close(text.writer)
    log.get("x").info("lost")
    assert log.dropped() - before == 1


def test_a_full_disk_costs_lines_only():
    before = log.dropped()
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        log.configure("info", "text", fd=fd)
        log.get("x").info("lost")
    finally:
        os.close(fd)
    assert log.dropped() - before == 1


def test_stderr_is_the_way_out(capfd):
    log.configure("info", "text")
    log.get("x").info("here")
    assert capfd.readouterr().err.endswith("INFO  x: here\n")


def test_a_missing_stderr_is_descriptor_two(monkeypatch):
    monkeypatch.setattr(log.sys, "stderr", None)
    assert log._stderr_fd() == 2
