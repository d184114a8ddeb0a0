"""GET /events: who may listen, what is heard, and how it ends."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
import time

import gevent
import pytest

from shadowmesh.control import feed, guard
from shadowmesh.insight.events import FlightRecorder
from tests.control.fake_control import TOKEN, FakeControl, make_app, serving

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Listener:
    """A WebSocket client of nothing but a socket."""

    def __init__(self, address, *, headers=None, upgrade="websocket", path="/events"):
        self.key = base64.b64encode(os.urandom(16)).decode()
        self.sock = socket.create_connection((address.host, address.port), 10)
        fields = {
            "Host": str(address),
            "Upgrade": upgrade,
            "Connection": "keep-alive, Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": self.key,
            **(headers or {}),
        }
        lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
        self.sock.sendall("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode())
        self.file = self.sock.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers = dict(self._headers())

    def _headers(self):
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(": ")
            yield name.lower(), value

    def frame(self):
        """Return (opcode, payload); None at the end of the connection."""
        head = self.file.read(2)
        if len(head) < 2:
            return None
        assert head[0] & 0xF0 == 0x80, "one unfragmented frame without extensions"
        assert head[1] < 128, "the server masked a frame"
        length = head[1]
        if length == 126:
            (length,) = struct.unpack("!H", self.file.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.file.read(8))
        return head[0] & 0x0F, self.file.read(length)

    def message(self):
        opcode, payload = self.frame()
        assert opcode == TEXT
        return json.loads(payload)

    def next(self, kind):
        for _ in range(1000):
            if (message := self.message())["type"] == kind:
                return message
        raise AssertionError(f"no message of type {kind} among 1000")

    def ended(self):
        """Read to the end; return the close code, None without a close frame."""
        code = None
        with contextlib.suppress(ConnectionResetError):
            while (frame := self.frame()) is not None:
                if frame[0] == CLOSE:
                    (code,) = struct.unpack("!H", frame[1][:2])
        return code

    def send(self, opcode, payload=b"", *, mask=True, fin=0x80, length=None):
        length = len(payload) if length is None else length
        head = bytes([fin | opcode])
        bit = 0x80 if mask else 0
        head += (
            bytes([bit | length])
            if length < 126
            else bytes([bit | 127]) + length.to_bytes(8, "big")
        )
        key = os.urandom(4) if mask else b""
        if mask:
            payload = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
        self.sock.sendall(head + key + payload)

    def close(self):
        self.file.close()
        self.sock.close()


@pytest.fixture
def recorder():
    return FlightRecorder()


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def served(control, recorder, monkeypatch):
    monkeypatch.setattr(feed, "SNAPSHOT_INTERVAL_S", 0.05)
    with serving(lambda address: make_app(control, address, recorder=recorder)) as address:
        yield address


@pytest.fixture
def open_listener(served):
    with contextlib.ExitStack() as stack:

        def listen(**extra):
            headers = {"Authorization": f"Bearer {TOKEN}", **extra.pop("headers", {})}
            listener = Listener(served, headers=headers, **extra)
            stack.callback(listener.close)
            return listener

        yield listen


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- Who may listen ---------------------------------------------------------------------------


def test_the_answer_to_the_upgrade_is_the_one_of_the_rfc(open_listener):
    listener = open_listener()
    digest = hashlib.sha1((listener.key + GUID).encode()).digest()
    assert listener.status == 101
    assert listener.headers["sec-websocket-accept"] == base64.b64encode(digest).decode()
    assert "sec-websocket-protocol" not in listener.headers


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("port", [None, 19090], ids=["here", "ssh -L"])
def test_our_own_page_may_listen_with_the_token_as_a_subprotocol(served, open_listener, name, port):
    host = f"{name}:{port or served.port}"
    listener = open_listener(
        headers={
            "Authorization": None,
            "Host": host,
            "Origin": f"http://{host}",
            "Sec-WebSocket-Protocol": f"shadowmesh.events.v1, bearer.{TOKEN}",
        }
    )
    assert listener.status == 101
    # the token is not sent back, where a log could hold it
    assert listener.headers["sec-websocket-protocol"] == "shadowmesh.events.v1"
    assert TOKEN not in str(listener.headers)
    assert listener.message()["type"] == "snapshot"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": None}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": None, "Sec-WebSocket-Protocol": "shadowmesh.events.v1"}, 401),
        ({"Authorization": None, "Sec-WebSocket-Protocol": "bearer."}, 401),
        ({"Authorization": None, "Sec-WebSocket-Protocol": f"bearer.{TOKEN}x"}, 401),
        ({"Authorization": None, "Sec-WebSocket-Protocol": TOKEN}, 401),
        # a wrong Authorization is not healed by a right subprotocol
        ({"Authorization": "Bearer x", "Sec-WebSocket-Protocol": f"bearer.{TOKEN}"}, 401),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "https://{host}"}, 403),
        ({"Origin": "http://{host}/"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),  # asked as 127.0.0.1
        ({"Origin": "http://{host}", "Referer": "http://{host}/"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, 403),
        # a page of another program on this machine
        ({"Host": "localhost:{port}", "Origin": "http://localhost:8080"}, 403),
        ({"Host": "localhost:19090", "Origin": "http://localhost:{port}"}, 403),
    ],
)
def test_nobody_else_may_listen(served, open_listener, headers, status):
    filled = {
        name: value and value.format(host=served, port=served.port)
        for name, value in headers.items()
    }
    listener = open_listener(headers=filled)
    assert listener.status == status
    assert TOKEN not in str(listener.headers)


@pytest.mark.parametrize("path", ["/status", "/events/recent", "/health", "/connect", "/"])
def test_an_origin_is_let_in_on_the_feed_only(served, open_listener, path):
    listener = open_listener(path=path, headers={"Origin": f"http://{served}"})
    assert listener.status == 403


def test_the_origin_of_our_page_does_not_open_the_feed_to_a_plain_request(served, open_listener):
    assert open_listener(upgrade="h2c", headers={"Origin": f"http://{served}"}).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Upgrade": None},
        {"Connection": "keep-alive"},
        {"Sec-WebSocket-Version": "8"},
        {"Sec-WebSocket-Key": None},
        {"Sec-WebSocket-Key": "c2hvcnQ="},
        {"Sec-WebSocket-Key": "%%%"},
    ],
    ids=str,
)
def test_a_request_that_is_no_right_upgrade_is_told_what_is_wanted(open_listener, headers):
    listener = open_listener(headers=headers)
    assert listener.status == 426
    assert listener.headers["upgrade"] == "websocket"
    assert listener.headers["sec-websocket-version"] == "13"


# --- What is heard ----------------------------------------------------------------------------


def test_a_listener_hears_a_snapshot_and_the_last_events_at_once(open_listener, recorder):
    recorder.record("path", "path changed", after="udp")
    listener = open_listener()
    first, second = listener.message(), listener.message()
    assert first["type"] == "snapshot"
    assert first["snapshot"]["state"] == "disconnected"
    assert [event["message"] for event in second["events"]] == ["path changed"]


def test_snapshots_keep_coming(open_listener):
    listener = open_listener()
    for _ in range(5):
        listener.next("snapshot")


def test_an_event_is_heard_when_it_happens(open_listener, served, control, recorder):
    listener = open_listener()
    assert listener.next("events")["events"] == []

    def happen():  # in the thread of the server, as in the daemon
        if control.calls[-1] == ("health",):
            recorder.record("config", "configuration reloaded", applied=["nat.enabled"])

    control.before = happen
    plain = {"Authorization": f"Bearer {TOKEN}", "Upgrade": None}
    Listener(served, path="/health", headers=plain).close()
    (event,) = listener.next("events")["events"]
    assert (event["number"], event["kind"]) == (1, "config")
    assert event["fields"] == {"applied": ["nat.enabled"]}


# --- How it ends ------------------------------------------------------------------------------


def test_a_ping_is_answered(open_listener):
    listener = open_listener()
    listener.send(PING, b"are you there")
    while (frame := listener.frame())[0] != PONG:
        pass
    assert frame[1] == b"are you there"


def test_a_close_is_answered_with_a_close(open_listener):
    listener = open_listener()
    listener.send(CLOSE, struct.pack("!H", 1000))
    assert listener.ended() == 1000


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"opcode": TEXT, "payload": b"hello"}, 1003),
        ({"opcode": BINARY, "payload": b"x" * 100}, 1003),
        ({"opcode": BINARY, "length": 2**62}, 1003),
        ({"opcode": 0, "payload": b"x"}, 1003),
        ({"opcode": 3}, 1003),
        ({"opcode": PING, "payload": b"x", "mask": False}, 1002),
        ({"opcode": PING, "fin": 0}, 1002),
        ({"opcode": PING, "fin": 0xC0}, 1002),
        ({"opcode": PING, "length": 126}, 1002),
    ],
    ids=str,
)
def test_a_client_that_breaks_the_rules_is_closed(open_listener, frame, code):
    listener = open_listener()
    listener.send(**frame)
    assert listener.ended() == code


def test_a_flood_of_pings_is_closed(open_listener):
    listener = open_listener()
    with contextlib.suppress(OSError):
        for _ in range(1000):
            listener.send(PING)
    assert listener.ended() in (1008, None)  # None: our own sending met the closed socket


def test_a_ninth_listener_finds_no_room_until_one_leaves(open_listener):
    listeners = [open_listener() for _ in range(feed.MAX_LISTENERS)]
    assert feed.MAX_LISTENERS == 8
    assert [listener.status for listener in listeners] == [101] * 8
    assert open_listener().status == 503
    listeners[3].close()
    wait_for(lambda: open_listener().status == 101)


class Socket:
    """A connection of which nothing is wanted but its end."""

    def __init__(self):
        self.ended = False

    def setsockopt(self, *option):
        pass

    def settimeout(self, seconds):
        pass

    def sendall(self, data):
        pass

    def shutdown(self, how):
        self.ended = True


def test_a_listener_of_who_has_many_makes_room_for_one_of_who_has_few():
    one = feed.Feed(dict, FlightRecorder())
    sockets = {(client, number): Socket() for client in "ab" for number in range(4)}
    for (client, _), sock in sockets.items():
        assert one.make_room(client)
        one._listeners[feed._Listener(sock, None)] = client
    assert not one.make_room("a")
    assert one.make_room("c")
    assert [key for key, sock in sockets.items() if sock.ended] == [("a", 0)]
    one._listeners[feed._Listener(Socket(), None)] = "c"
    assert one.make_room("c")  # a has 3, b has 4, c has 1
    assert sockets["b", 0].ended


def test_a_listener_that_does_not_read_is_dropped_and_the_others_are_not(
    served, open_listener, monkeypatch
):
    due = threading.Semaphore(0)

    class Paced:
        """A snapshot is sent when the test wants one, so that the quick one is never behind."""

        spawn = gevent.spawn

        @staticmethod
        def sleep(_seconds):
            while not due.acquire(blocking=False):
                gevent.sleep(0.001)

    monkeypatch.setattr(feed, "gevent", Paced)
    monkeypatch.setattr(feed, "SEND_BUFFER_BYTES", 4096)
    slow, quick = open_listener(), open_listener()
    quick.next("snapshot")
    for _ in range(5000):  # more than the buffers of any kernel hold
        due.release()
        quick.next("snapshot")
        if slow_is_gone(slow):
            break
    else:
        pytest.fail("the one that does not read was never dropped")
    due.release()
    quick.next("snapshot")


def slow_is_gone(listener):
    """Whether the server has ended the connection, without reading what it sent before."""
    info = listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    return info[0] != 1  # TCP_ESTABLISHED


def test_nothing_runs_while_nobody_listens(monkeypatch):
    import gevent

    taken = []
    recorder = FlightRecorder()
    one = feed.Feed(lambda: taken.append(1) or {}, recorder)
    assert one.listening == 0
    assert one._ticker is None
    assert recorder._listeners == []
    gevent.sleep(0)
    assert taken == []


def test_the_prefix_of_a_token_is_what_the_dashboard_sends():
    from shadowmesh.control.dashboard import PAGE

    page = PAGE.read_text()
    assert f'"{guard.BEARER_PREFIX}" + token' in page
    assert f'"{feed.Feed.subprotocol}"' in page
