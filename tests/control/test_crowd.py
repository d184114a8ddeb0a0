"""Many connections at once: who keeps a place, and that nobody is kept out by somebody else."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import threading

import pytest
from gevent._socketcommon import cancel_wait_ex
from gevent.pywsgi import WSGIHandler
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.rate import FairRate
from shadowmesh.control import callers, metrics_port, server
from shadowmesh.control.places import Places
from shadowmesh.insight import metrics
from tests.control.fake_control import TOKEN, FakeControl, make_app, serving
from tests.control.strangers import flood, needs_root

AUTHORISATION = {"Authorization": f"Bearer {TOKEN}"}

# --- The rule ---------------------------------------------------------------------------------


def test_a_newcomer_takes_the_place_of_the_oldest_of_whoever_has_the_most():
    places = Places(4, held=2)
    assert [places.enter(name, name[0]) for name in ("a1", "b1", "a2", "b2")] == [None] * 4
    places.asks("a1")  # which is then not the one that has waited longest
    assert places.enter("a3", "a") == "b1"
    assert places.enter("c1", "c") == "a2"
    assert places.enter("a4", "a") == "a1"
    assert len(places) == 4


def test_one_client_alone_takes_its_own_places():
    places = Places(3, held=1)
    lost = [places.enter(number, "a") for number in range(6)]
    assert lost == [None, None, None, 0, 1, 2]


def test_who_holds_a_place_leaves_only_for_another_holder_and_only_at_rest():
    places = Places(3, held=1)
    places.enter("root", "r")
    assert places.hold("root") == (True, None)
    for number in range(5):
        assert places.enter(number, "a") != "root"
    assert places.hold(4) == (False, None)  # it is being answered
    places.rests("root")
    assert places.hold(4) == (True, "root")
    assert places.hold(4) == (True, None)
    assert places.hold("gone") == (False, None)


def test_holders_leave_places_for_guests():
    with pytest.raises(ValueError, match="leave none"):
        Places(2, held=2)


@given(st.lists(st.tuples(st.sampled_from("ecrhl"), st.integers(0, 9)), max_size=80))
def test_places_are_never_too_many_and_a_newcomer_always_gets_one(steps):
    places = Places(4, held=2)
    there = set()
    for what, number in steps:
        leaves = None
        if what == "e" and number not in there:
            leaves = places.enter(number, str(number % 3))
            there.add(number)
        elif what == "c":
            places.asks(number)
        elif what == "r":
            places.rests(number)
        elif what == "h":
            _, leaves = places.hold(number)
        elif what == "l":
            places.leave(number)
            there.discard(number)
        if leaves is not None:
            assert leaves in there
            assert leaves != number
            there.discard(leaves)
        assert len(places) == len(there) <= 4


def test_a_client_keeps_its_own_rate_when_others_use_up_the_common_one():
    rate = FairRate((10, 5), own=(1, 2))
    assert [rate.take("a", 0.0) for _ in range(8)] == [True] * 7 + [False]
    assert [rate.take("b", 0.0) for _ in range(3)] == [True, True, False]
    assert rate.take("a", 0.1)  # of the common rate


def test_clients_without_number_are_not_remembered_for_ever():
    rate = FairRate((1, 1), own=(1, 1))
    for number in range(3 * FairRate.MAX_CLIENTS):
        assert rate.take(str(number), 0.0)
    assert len(rate._shares) == FairRate.MAX_CLIENTS


# --- Who is who -------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_user_at_the_other_end_of_a_local_connection_is_known(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        with socket.create_connection(listener.getsockname()[:2]) as one:
            other, address = listener.accept()
            caller = callers.identify(other, address, None)
            assert (caller.client, caller.local) == (f"uid {os.geteuid()}", True)
            assert caller.right is None
            assert caller.name.endswith(f":{one.getsockname()[1]}")
        # its program is gone: whose it was is not known, and above all it was not root's
        with other:
            assert callers.identify(other, address, None).client == host


def test_an_ipv4_client_of_an_ipv6_listener_is_known_too():
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            other, address = listener.accept()
            with other:
                caller = callers.identify(other, address, None)
    assert (caller.client, caller.local) == (f"uid {os.geteuid()}", True)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.9", True), ("192.0.2.1", False),
     ("::ffff:192.0.2.1", False), ("fe80::1%eth0", False), ("", False), ("localhost", False)],
)  # fmt: skip
def test_loopback_is_known_in_every_form(host, local):
    assert callers.of_address(host).local is local


# --- On a real server -------------------------------------------------------------------------


def get(address, path, headers=None):
    connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


@needs_root
@pytest.mark.parametrize("path", ["/health", "/", "/nothing"])
def test_another_user_who_pipelines_and_never_reads_keeps_nobody_out(path):
    control = FakeControl()
    with serving(lambda address: make_app(control, address)) as address:
        with flood(str(address), path):
            for _ in range(5):
                assert get(address, "/health")[0] == 200
                assert get(address, "/status", AUTHORISATION)[0] == 200
        assert get(address, "/health")[0] == 200


@needs_root
def test_metrics_are_there_beside_such_a_one():
    registry = metrics.make_registry(metrics.Sources(FakeControl().status))
    with (
        serving(lambda address: metrics_port.make_metrics_app(registry, address)) as address,
        flood(str(address), "/metrics"),
    ):
        for _ in range(5):
            status, body = get(address, "/metrics")
            assert status == 200
            assert b"shadowmesh_state" in body


def test_a_server_answers_one_request_a_turn_of_the_hub_whoever_asks():
    import gevent

    others_asked = threading.Event()
    turns, answered_in = [0], []
    watchers = []

    def make_counting_app(_address):
        def count():
            turns[0] += 1

        watchers.append(gevent.get_hub().loop.check())
        watchers[0].start(count)

        def app(_environ, start_response):
            if not answered_in:
                assert others_asked.wait(10)  # the hub with it: now all have asked before it looks
            answered_in.append(turns[0])
            start_response("204 No Content", [])
            return []

        return app

    asked = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = asked.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with serving(make_counting_app) as address, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(20):
            sock = stack.enter_context(socket.create_connection((address.host, address.port), 10))
            sock.sendall(asked * 2 + last)
            clients.append(sock)
        others_asked.set()
        for sock in clients:
            while sock.recv(1 << 16):
                pass
        assert len(answered_in) == 60
        assert len(set(answered_in)) == 60


def test_one_s_own_connections_make_room_for_one_s_next(monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(server, "MAX_HELD", 2)
    asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
    with (
        serving(lambda address: make_app(FakeControl(), address)) as address,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(20):
            sock = stack.enter_context(socket.create_connection((address.host, address.port)))
            sock.sendall(asked)
        assert get(address, "/health")[0] == 200


def test_a_connection_that_is_being_answered_for_the_token_keeps_its_place(monkeypatch):
    import gevent.event

    monkeypatch.setattr(server, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(server, "MAX_HELD", 2)
    control = FakeControl()
    with serving(lambda address: make_app(control, address)) as address:
        asked, answered = threading.Event(), []
        done = gevent.event.Event()

        def before():
            if control.calls[-1][0] == "disconnect":
                asked.set()
                assert done.wait(10)
            elif control.calls[-1][0] == "status":
                done.set()

        control.before = before

        def disconnect():
            connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
            with contextlib.closing(connection):
                connection.request("POST", "/disconnect", headers=AUTHORISATION)
                answered.append(connection.getresponse().status)

        thread = threading.Thread(target=disconnect)
        thread.start()
        assert asked.wait(10)
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(socket.create_connection((address.host, address.port)))
            assert get(address, "/status", AUTHORISATION)[0] == 200
        thread.join(10)
        assert answered == [200]


def test_places_that_are_all_held_are_told(monkeypatch):
    import gevent.event

    monkeypatch.setattr(server, "MAX_HELD", 1)
    control = FakeControl()
    with serving(lambda address: make_app(control, address)) as address:
        asked, done = threading.Event(), gevent.event.Event()

        def before():
            if control.calls[-1][0] == "disconnect":
                asked.set()
                assert done.wait(10)
            elif control.calls[-1][0] == "health":
                done.set()

        control.before = before
        connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", "/disconnect", headers=AUTHORISATION)
            assert asked.wait(10)
            status, body = get(address, "/status", AUTHORISATION)
            assert status == 503
            assert b"too_many_connections" in body
            assert get(address, "/health")[0] == 200
            assert connection.getresponse().status == 200


def test_what_is_not_read_fills_no_more_than_the_buffers(monkeypatch):
    """A whole page is asked for again and again; the server gives up when none is taken."""
    monkeypatch.setattr(server, "SEND_TIMEOUT_S", 0.2)
    with serving(lambda address: make_app(FakeControl(), address)) as address:
        with socket.create_connection((address.host, address.port), 20) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):  # the end, which is what is wanted
                while True:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        assert get(address, "/health")[0] == 200


@pytest.mark.parametrize("seed", range(3))
def test_connections_that_come_and_go_in_any_order_leave_none_behind(monkeypatch, seed):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(server, "MAX_HELD", 2)
    choice = random.Random(seed)
    requests = [
        b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
        + TOKEN.encode() + b"\r\n\r\n",
    ]  # fmt: skip
    there = []
    with serving(lambda address: make_app(FakeControl(), address)) as address:
        for _ in range(100):
            if there and choice.random() < 0.4:
                there.pop(choice.randrange(len(there))).close()
            else:
                there.append(socket.create_connection((address.host, address.port), 20))
                there[-1].sendall(choice.choice(requests))
        assert get(address, "/health")[0] == 200
        for sock in there:
            sock.close()


def test_who_is_given_up_in_the_middle_of_an_answer_is_as_one_who_left(monkeypatch):
    # closing a socket wakes whoever waits to write to it with EBADF, which pywsgi takes for a bug
    def closed_meanwhile(_handler, _data):
        raise cancel_wait_ex

    monkeypatch.setattr(WSGIHandler, "_sendall", closed_meanwhile)
    with pytest.raises(BrokenPipeError):
        server.LimitedHandler._sendall(object.__new__(server.LimitedHandler), b"answer")
