"""The daemon is told to end while something is asked of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading

import gevent
import pytest

from tests.control.fake_control import TOKEN, FakeControl, make_app, serving

HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


class Asked(threading.Thread):
    """One request, whose answer is looked at when the server has ended."""

    def __init__(self, address, method, path):
        super().__init__()
        self.request = (method, path)
        self.connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
        self.answer = None
        self.start()

    def run(self):
        with contextlib.closing(self.connection):
            method, path = self.request
            body = b"{}" if method == "POST" else None
            self.connection.request(method, path, body=body, headers=HEADERS)
            answer = self.connection.getresponse()
            self.answer = answer.status, json.loads(answer.read())


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/connect"), ("POST", "/disconnect"), ("POST", "/ping"), ("GET", "/status"),
     ("GET", "/explain"), ("GET", "/health")],
)  # fmt: skip
def test_a_request_that_waits_is_told_so_and_nothing_else_is(method, path, caplog, capfd):
    control, waiting = FakeControl(), threading.Event()

    def before():
        waiting.set()
        gevent.sleep(60)

    control.before = before
    with serving(lambda address: make_app(control, address)) as address:
        asked = Asked(address, method, path)
        assert waiting.wait(10)
    asked.join(20)
    status, body = asked.answer
    assert status == 503
    assert body["error"] == {"code": "stopping", "message": "the daemon is stopping"}
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_a_connection_that_rests_ends_without_a_word():
    with serving(lambda address: make_app(FakeControl(), address)) as address:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
        connection.request("GET", "/status", headers=HEADERS)
        assert connection.getresponse().read()
    with contextlib.closing(connection):
        assert connection.sock.recv(1) == b""
