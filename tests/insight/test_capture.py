"""GET /capture: what is told, when it ends, and that nobody waits for it."""

from __future__ import annotations

import contextlib
import gc
import http.client
import logging
import socket
import time

import gevent
import gevent.socket
import pytest

from shadowmesh.base.constants import CAPTURE_DAEMON_STOPS
from shadowmesh.base.errors import CaptureRunning, DeviceUnavailable
from shadowmesh.control import server
from shadowmesh.insight import capture
from shadowmesh.insight.capture import Captures
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.insight.pcapng import (
    INBOUND,
    OUTBOUND,
    Interface,
    Packet,
    Reader,
    Section,
    Statistics,
)
from tests.control.fake_control import TOKEN, FakeControl, make_app, serving
from tests.fakes import FakePlane

AUTHORISATION = {"Authorization": f"Bearer {TOKEN}"}
ENTRY_BYTES = 14
DEADLINE_S = 10.0


def frame(number: int = 0, direction: int = OUTBOUND, segment_bytes: int = 0, size: int = 60):
    """A frame that crosses now."""
    data = (number.to_bytes(4, "little") * (size // 4 + 1))[:size]
    return time.time_ns(), direction, size, segment_bytes, data


def blocks_of(stream) -> list:
    reader = Reader()
    return [block for piece in stream for _, block in reader.receive(piece)]


def packets(blocks) -> list[Packet]:
    return [block for block in blocks if isinstance(block, Packet)]


@pytest.fixture
def plane():
    return FakePlane()


@pytest.fixture
def recorder():
    return FlightRecorder()


@pytest.fixture
def captures(plane, recorder):
    return Captures(plane, lambda: "tap7", recorder)


@pytest.fixture
def ends():
    """Two ends of a connection: the daemon's and the reader's."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def start(captures, ends):
    """Start a capture; closed after the test."""
    with contextlib.ExitStack() as stack:

        def begin(count=None, duration_s=None, snap_bytes=262_144):
            stream = captures.start(
                snap_bytes=snap_bytes,
                count=count,
                duration_s=duration_s,
                sock=ends[0],
                who="127.0.0.1:1",
            )
            stack.callback(stream.close)
            return stream

        yield begin


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(capture, "STATISTICS_INTERVAL_S", 0.05)


# --- What is told -----------------------------------------------------------------------------


def test_where_there_is_no_device_there_is_nothing_to_capture(plane, recorder):
    headless = Captures(plane, lambda: None, recorder)
    with pytest.raises(DeviceUnavailable, match="without a device"):
        headless.start(snap_bytes=96, count=None, duration_s=None, sock=None, who="127.0.0.1:1")
    assert plane.captured == 0
    assert headless.report() is None


def test_a_capture_says_who_made_it_where_and_how_it_ended(start, plane):
    stream = start(count=2, snap_bytes=96)
    assert plane.snap_bytes == 96
    plane.add(frame(1), frame(2, INBOUND))
    blocks = blocks_of(stream)
    section, interface, first, second, last = blocks
    assert isinstance(section, Section)
    assert section.application.startswith("shadowmesh ")
    assert "checksum" in section.comment
    assert interface == Interface("tap7", 96)
    assert (first.direction, first.data) == (OUTBOUND, frame(1)[4])
    assert (second.direction, second.data) == (INBOUND, frame(2)[4])
    assert isinstance(last, Statistics)
    assert (last.received, last.dropped, last.comment) == (2, 0, "count reached")
    assert last.started_ns <= first.time_ns <= last.ended_ns


def test_a_super_frame_says_so(start, plane):
    stream = start(count=2)
    plane.add(frame(segment_bytes=1448, size=20_000), frame())
    big, small = packets(blocks_of(stream))
    assert "1448" in big.comment
    assert small.comment == ""


def test_exactly_as_many_frames_as_asked_for(start, plane):
    stream = start(count=700)
    plane.add(*map(frame, range(2000)))
    found = packets(blocks_of(stream))
    assert [one.data for one in found] == [frame(number)[4] for number in range(700)]


def test_what_was_dropped_is_in_the_statistics(start, plane):
    stream = start(count=1)
    plane.dropped = 5
    plane.add(frame())
    last = blocks_of(stream)[-1]
    assert (last.received, last.dropped) == (6, 5)


def test_statistics_come_while_nothing_else_does(start):
    stream = iter(start())
    next(stream)
    began = time.monotonic()
    reader = Reader()
    for _ in range(2):
        ((_, block),) = reader.receive(next(stream))
        assert (block.received, block.ended_ns) == (0, None)
    assert time.monotonic() - began >= 0.08


# --- When it ends -----------------------------------------------------------------------------


def test_the_time_ends_it_and_what_came_before_is_kept(start, plane):
    stream = start(duration_s=0.1)
    plane.add(frame(1))
    began = time.monotonic()
    blocks = blocks_of(stream)
    assert 0.05 < time.monotonic() - began < 5
    assert len(packets(blocks)) == 1
    assert blocks[-1].comment == "time is over"


def test_frames_after_the_end_do_not_belong_to_it(start, plane):
    stream = start()
    plane.add(frame(1))
    stream.end("asked")
    late = (time.time_ns() + 10_000_000_000, *frame(2)[1:])
    plane.add(late)
    blocks = blocks_of(stream)
    assert [one.data for one in packets(blocks)] == [frame(1)[4]]
    assert blocks[-1].comment == "asked"


def test_a_clock_that_was_set_back_does_not_make_it_endless(start, plane, monkeypatch):
    monkeypatch.setattr(capture, "LAST_S", 0.1)
    stream = start()
    stream.end("asked")
    early = (time.time_ns() - 10_000_000_000, *frame()[1:])
    refill = plane.read_capture
    monkeypatch.setattr(plane, "read_capture", lambda *limits: plane.add(early) or refill(*limits))
    assert blocks_of(stream)[-1].comment == "asked"


def test_a_reader_that_sends_no_more_ends_it(start, plane, ends):
    stream = iter(start())
    next(stream)
    plane.add(frame(1))
    gevent.spawn_later(0.02, ends[1].shutdown, socket.SHUT_WR)
    blocks = blocks_of(stream)
    assert len(packets(blocks)) == 1
    assert blocks[-1].comment == "asked to end"


def test_a_reader_that_sends_no_more_ends_it_while_frames_come_all_the_time(
    start, plane, ends, monkeypatch
):
    read = plane.read_capture
    monkeypatch.setattr(plane, "read_capture", lambda *limits: plane.add(frame()) or read(*limits))
    stream = iter(start(duration_s=5))
    next(stream)
    next(stream)
    ends[1].shutdown(socket.SHUT_WR)
    assert blocks_of(stream)[-1].comment == "asked to end"


def test_a_reader_that_is_gone_ends_it(start, ends):
    stream = iter(start())
    next(stream)
    ends[1].close()
    assert blocks_of(stream)[-1].comment == "asked to end"


def test_bytes_from_the_reader_do_not_end_it_and_cost_nothing(start, plane, ends):
    stream = iter(start(count=1))
    next(stream)
    ends[1].sendall(b"GET /status HTTP/1.1\r\n")
    turns = []
    read = plane.read_capture
    plane.read_capture = lambda *limits: turns.append(1) or read(*limits)
    next(stream)
    next(stream)
    assert len(turns) < 10  # no busy loop over bytes that are not ours to read
    plane.add(frame())
    assert blocks_of(stream)[-1].comment == "count reached"


def test_a_daemon_that_stops_ends_it(start, captures, plane):
    stream = iter(start())
    next(stream)
    gevent.spawn_later(0.02, captures.stop)
    began = time.monotonic()
    assert blocks_of(stream)[-1].comment == CAPTURE_DAEMON_STOPS
    assert time.monotonic() - began < 5


# --- One at a time ----------------------------------------------------------------------------


def test_a_second_capture_is_refused_until_the_first_has_ended(start, plane):
    first = start()
    with pytest.raises(CaptureRunning, match="status"):
        start()
    assert plane.captured == 1
    first.close()
    start()
    assert plane.captured == 2


def test_a_capture_whose_bytes_nobody_asks_for_gives_everything_back(start, captures, plane):
    start().close()
    assert plane.snap_bytes is None
    assert captures.report() is None


def test_start_and_end_are_logged_and_recorded(start, plane, recorder, caplog):
    caplog.set_level(logging.INFO, logger="shadowmesh")
    stream = start(count=1, snap_bytes=64)
    plane.dropped = 3
    plane.add(frame())
    blocks_of(stream)
    stream.close()
    stream.close()
    assert [one.getMessage() for one in caplog.records] == ["capture started", "capture ended"]
    started, ended = recorder.recent()
    assert (started.kind, started.message) == ("capture", "capture started")
    assert started.fields["remote"] == "127.0.0.1:1"
    assert started.fields["snaplen"] == 64
    assert ended.fields["cause"] == "count reached"
    assert (ended.fields["frames"], ended.fields["dropped"]) == (1, 3)


def test_the_status_tells_of_it(start, captures, plane):
    assert captures.report() is None
    stream = iter(start(snap_bytes=64))
    plane.add(frame(), frame())
    next(stream)
    next(stream)
    report = captures.report()
    assert (report.snaplen, report.frames, report.dropped) == (64, 2, 0)
    assert report.to_dict()["since"].endswith("Z")


def test_a_capture_under_load_leaves_most_of_the_time_to_others(start, plane, monkeypatch):
    slept, read = [], plane.read_capture

    def slowly(*limits):
        time.sleep(0.01)  # work, as far as the capture knows
        return read(*limits)

    monkeypatch.setattr(plane, "read_capture", slowly)
    monkeypatch.setattr(capture.gevent, "sleep", slept.append)
    stream = start(count=3 * capture.TURN_FRAMES)
    plane.add(*map(frame, range(3 * capture.TURN_FRAMES)))
    blocks_of(stream)
    assert len(slept) == 3
    assert min(slept) >= 3 * 0.01


# --- Over HTTP --------------------------------------------------------------------------------


class Request:
    """GET /capture by hand; `status` and `headers` are there once the answer begins."""

    def __init__(self, address, query="", headers=AUTHORISATION, receive_buffer=None):
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect((address.host, address.port))
        lines = [f"{name}: {value}" for name, value in {"Host": address, **headers}.items()]
        self.sock.sendall("\r\n".join([f"GET /capture{query} HTTP/1.0", *lines, "", ""]).encode())
        self.answer = http.client.HTTPResponse(self.sock)

    def __enter__(self):
        self.answer.begin()
        return self

    def __exit__(self, *exception):
        self.answer.close()
        self.sock.close()


@pytest.fixture
def served(plane, captures):
    with serving(lambda address: make_app(FakeControl(), address, captures=captures)) as address:
        yield address
    gc.collect()


def eventually(condition) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_answer_is_pcapng_up_to_the_end(served, plane):
    with Request(served, "?count=2&snaplen=100") as request:
        assert request.answer.status == 200
        assert request.answer.headers["Content-Type"] == "application/x-pcapng"
        assert plane.snap_bytes == 100
        plane.add(frame(1), frame(2, INBOUND))
        blocks = blocks_of([request.answer.read()])
    assert [one.direction for one in packets(blocks)] == [OUTBOUND, INBOUND]
    assert blocks[-1].comment == "count reached"
    assert plane.snap_bytes is None


def test_a_client_of_http_1_1_gets_chunks(served, plane):
    connection = http.client.HTTPConnection(served.host, served.port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        plane.add(frame())
        connection.request("GET", "/capture?duration_ms=100", headers=AUTHORISATION)
        answer = connection.getresponse()
        assert answer.headers["Transfer-Encoding"] == "chunked"
        blocks = blocks_of([answer.read()])
        assert blocks[-1].comment == "time is over"
        connection.request("GET", "/status", headers=AUTHORISATION)
        assert connection.getresponse().read().startswith(b"{")


def test_the_first_bytes_come_before_the_first_frame(served, plane):
    with Request(served) as request:
        section, interface = blocks_of([request.answer.read1(1000)])[:2]
        assert isinstance(section, Section)
        assert interface.name == "tap7"
        request.sock.shutdown(socket.SHUT_WR)
        assert blocks_of([request.answer.read()])[-1].comment == "asked to end"


def test_the_second_of_two_clients_is_refused(served, plane):
    with Request(served), Request(served) as second:
        assert second.answer.status == 409
        assert b"capture_running" in second.answer.read()
    eventually(lambda: plane.snap_bytes is None)
    with Request(served, "?duration_ms=1") as third:
        assert third.answer.status == 200


def test_nobody_captures_without_the_token(served, plane):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {**AUTHORISATION, "Origin": "null"}):
        with Request(served, headers=headers) as request:
            assert request.answer.status in (401, 403)
    assert plane.captured == 0


@pytest.mark.parametrize(
    "query", ["?snaplen=0", "?snaplen=262145", "?count=-1", "?duration_ms=86400001", "?x=1"]
)
def test_wrong_parameters_start_nothing(served, plane, query):
    with Request(served, query) as request:
        assert request.answer.status == 400
    assert plane.captured == 0


@pytest.mark.parametrize(
    ("remote", "code"),
    [("127.0.0.9", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("192.0.2.1", 403),
     ("2001:db8::1", 403), ("::ffff:192.0.2.1", 403), ("", 403)],
)  # fmt: skip
def test_frames_are_for_this_machine_only(captures, plane, remote, code):
    client = make_app(FakeControl(), captures=captures).test_client()
    answer = client.get(
        "/capture?duration_ms=1",
        base_url="http://127.0.0.1:9090",
        headers=AUTHORISATION,
        environ_base={"REMOTE_ADDR": remote},
    )
    assert answer.status_code == code
    assert plane.captured == (code == 200)
    answer.get_data()
    answer.close()
    assert plane.snap_bytes is None


def test_a_request_for_the_head_only_leaves_no_capture_behind(served, plane):
    connection = http.client.HTTPConnection(served.host, served.port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("HEAD", "/capture", headers=AUTHORISATION)
        assert connection.getresponse().status == 200
    eventually(lambda: plane.snap_bytes is None)


def test_a_client_that_takes_nothing_is_given_up_and_keeps_nobody_waiting(
    served, plane, captures, recorder, monkeypatch
):
    monkeypatch.setattr(server, "SEND_TIMEOUT_S", 0.2)
    with Request(served, receive_buffer=4096):
        plane.add(*(frame(number, size=60_000) for number in range(200)))
        eventually(lambda: plane.snap_bytes is None)
    assert plane.frames == type(plane.frames)()
    ended = recorder.recent()[-1]
    assert ended.fields["cause"] == "connection lost"
    assert ended.fields["frames"] < 200
    assert captures.report() is None


def test_a_server_that_stops_lets_the_capture_end(plane, recorder):
    captures = Captures(plane, lambda: "tap0", recorder)
    with contextlib.ExitStack() as stack:
        with serving(lambda address: make_app(FakeControl(), address, captures=captures)) as at:
            request = stack.enter_context(Request(at))
            captures.stop()
            eventually(lambda: captures.report() is None)
        assert blocks_of([request.answer.read()])[-1].comment == CAPTURE_DAEMON_STOPS
