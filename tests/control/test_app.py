from __future__ import annotations

import contextlib
import errno
import http.client
import json
import re
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmesh.base import errors, log
from shadowmesh.config import HostPort
from shadowmesh.control import app, guard, server
from shadowmesh.control.guard import AUTHORISED_RATE, FAILED_RATE, OPEN_RATE, OWN_RATE, Guard
from shadowmesh.control.rights import Right
from shadowmesh.control.routes import NEEDED, ROUTES, right_for
from shadowmesh.insight import metrics, status
from tests.control.fake_control import (
    CONNECTED,
    LISTEN,
    MESH,
    TOKEN,
    FakeControl,
    make_app,
    serving,
)

AUTHORISATION = {"Authorization": f"Bearer {TOKEN}"}
BASE_URL = "http://127.0.0.1:9090"


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def client(control):
    return make_client(control)


def make_client(control, **extra):
    client = make_app(control, LISTEN, **extra).test_client()
    client.environ_base["HTTP_HOST"] = "127.0.0.1:9090"
    return client


def ask(client, method="GET", path="/status", headers=None, **extra):
    return client.open(
        path,
        method=method,
        base_url=BASE_URL,
        headers={**AUTHORISATION, **(headers or {})},
        **extra,
    )


def assert_refused(answer, http_status, code):
    """The answer is an error in the documented form, and tells no secret."""
    assert answer.status_code == http_status
    assert answer.content_type == "application/json"
    error = json.loads(answer.data)["error"]
    assert set(error) == {"code", "message"}
    assert error["code"] == code
    assert error["message"]
    assert TOKEN not in answer.get_data(as_text=True)
    assert TOKEN not in str(answer.headers)
    return error["message"]


# --- Routes -----------------------------------------------------------------------------------


def test_the_history_of_the_tunnel_is_told_in_columns(client, control):
    answer = ask(client, "GET", "/history")
    assert answer.status_code == 200
    [stretch] = answer.get_json()["stretches"]
    assert (stretch["interval_s"], stretch["bits_in"]) == (1, [None, 8e6])
    assert control.calls == [("history",)]


def test_status_answers_the_snapshot(client, control):
    control.snapshot = CONNECTED
    answer = ask(client)
    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    assert answer.get_json() == CONNECTED.to_dict()


def test_connect_hands_the_peer_over_and_answers_the_snapshot(client, control):
    answer = ask(client, "POST", "/connect", json={"peer": "peer.example:9001"})
    assert answer.status_code == 200
    assert answer.get_json()["state"] == "connected"
    assert control.calls == [("connect", "peer.example:9001")]


@pytest.mark.parametrize("body", [{}, {"json": {}}, {"json": {"peer": None}}])
def test_connect_without_a_peer_means_the_configured_one(client, control, body):
    assert ask(client, "POST", "/connect", **body).status_code == 200
    assert control.calls == [("connect", "None")]


@pytest.mark.parametrize("peer", ["[2001:db8::1]:9001", "203.0.113.7:1", "a.example:65535"])
def test_connect_takes_every_form_of_address(client, control, peer):
    assert ask(client, "POST", "/connect", json={"peer": peer}).status_code == 200
    assert control.calls == [("connect", peer)]


def test_disconnect_answers_the_snapshot(client, control):
    answer = ask(client, "POST", "/disconnect")
    assert answer.status_code == 200
    assert answer.get_json()["state"] == "disconnected"
    assert control.calls == [("disconnect",)]


@pytest.mark.parametrize(
    ("error", "http_status", "code"),
    [
        (errors.AlreadyConnected("already"), 409, "already_connected"),
        (errors.AlreadyConnecting("busy"), 409, "connecting"),
        (errors.NotConnected("not"), 409, "not_connected"),
        (errors.NotConfigured("no key"), 503, "not_configured"),
        (errors.BadRequest("no"), 400, "bad_request"),
        (errors.PeerUnreachable("no route"), 502, "peer_unreachable"),
        (errors.PeerRefused("refused"), 502, "peer_refused"),
        (errors.ConnectTimeout("late"), 504, "timeout"),
        (errors.DeviceUnavailable("no tun"), 503, "device_unavailable"),
        (errors.CaptureRunning("one at a time"), 409, "capture_running"),
        (errors.ConfigurationWrong("not reloaded"), 422, "configuration_invalid"),
        (errors.NotInNetwork("in none"), 409, "no_network"),
        (errors.AlreadyInNetwork("in one"), 409, "in_network"),
        (errors.IssuerRefused("the name is taken", "name"), 409, "issuer_refused"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_failures_of_the_daemon_have_their_status_and_code(
    client, control, error, http_status, code
):
    control.error = error
    answer = ask(client, "POST", "/connect")
    assert assert_refused(answer, http_status, code) == str(error)


def test_without_descriptors_the_answer_says_so_and_the_log_has_no_traceback(
    client, control, caplog
):
    control.error = OSError(errno.EMFILE, "Too many open files", "/proc/1/fd")
    answer = ask(client, "GET", "/status")
    text = assert_refused(answer, 503, "no_descriptors")
    assert "LimitNOFILE" in text
    assert "/proc" not in text
    assert "Traceback" not in caplog.text


def test_a_bug_is_logged_and_leaks_nothing(client, control, caplog):
    control.error = RuntimeError("seed=0123456789 in /root/secret")
    answer = ask(client)
    assert_refused(answer, 500, "internal")
    text = answer.get_data(as_text=True)
    assert "Traceback" not in text
    assert "seed" not in text
    assert "RuntimeError" not in text
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("shadowmesh.api", "request failed")
    assert "RuntimeError" in record.fields["traceback"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/status", {"GET", "HEAD"}),
        ("GET", "/connect", {"POST"}),
        ("DELETE", "/disconnect", {"POST"}),
        ("OPTIONS", "/status", {"GET", "HEAD"}),
        ("TRACE", "/health", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_refused_as_json(client, control, method, path, allowed):
    answer = ask(client, method, path)
    assert_refused(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed
    assert control.calls == []


@pytest.mark.parametrize("path", ["/nothing", "/health/", "/status/", "/static/x", "/Status"])
def test_an_unknown_route_is_refused_as_json(client, path):
    assert_refused(ask(client, path=path), 404, "not_found")


# --- Health -----------------------------------------------------------------------------------


def test_health_needs_no_token_and_then_tells_no_texts(client):
    answer = client.get("/health", base_url=BASE_URL)
    assert answer.status_code == 200
    assert answer.get_json()["status"] == "ok"
    assert answer.get_json()["checks"] == {"tap": {"ok": True, "severity": "error", "code": "ok"}}


def test_health_with_the_token_tells_texts(client):
    checks = ask(client, path="/health").get_json()["checks"]
    assert checks["tap"]["text"] == "tap0 is up"


def test_health_without_a_token_may_only_be_read(client, control):
    assert client.head("/health", base_url=BASE_URL).status_code == 200
    control.calls.clear()
    for method in ("POST", "DELETE", "OPTIONS"):
        answer = client.open("/health", method=method, base_url=BASE_URL)
        assert_refused(answer, 401, "unauthorized")
    assert control.calls == []


def test_health_with_a_wrong_token_is_refused(client):
    answer = client.get("/health", base_url=BASE_URL, headers={"Authorization": "Bearer x"})
    assert_refused(answer, 401, "unauthorized")


def test_failing_health_is_503_and_names_the_check(client, control):
    control.report = status.Health(
        [status.Check("tap", ok=False, text="gone"), status.Check("hub", ok=True)]
    )
    answer = client.get("/health", base_url=BASE_URL)
    assert answer.status_code == 503
    body = answer.get_json()
    assert body["status"] == "failing"
    assert body["failing"] == ["tap"]
    assert body["error"] == {"code": "unhealthy", "message": "failing: tap"}


# --- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.swapcase()}",
        f"Bearer {TOKEN},Bearer {TOKEN}",
        "Bearer \xe9\xff",
    ],
)
@pytest.mark.parametrize("path", ["/status", "/connect", "/metrics", "/nothing"])
def test_a_request_without_the_right_token_is_refused(client, control, path, header):
    headers = {} if header is None else {"Authorization": header}
    answer = client.open(path, base_url=BASE_URL, headers=headers)
    assert_refused(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert control.calls == []


def test_a_refused_token_is_logged_without_it(client, caplog):
    log._limiter._seen.clear()
    client.get("/status", base_url=BASE_URL, headers={"Authorization": f"Bearer {TOKEN}x"})
    assert [record.getMessage() for record in caplog.records] == [
        "request without a valid token refused"
    ]
    assert all(TOKEN not in str(vars(record)) for record in caplog.records)


def test_the_scheme_of_the_token_is_not_case_sensitive(client):
    assert ask(client, headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200


def test_a_short_token_is_a_mistake_of_the_daemon(control):
    with pytest.raises(ValueError, match="at least 32"):
        app.create_app(control, "short", LISTEN, recorder=None, feed=None, captures=None)


@pytest.mark.parametrize("name", ["Origin", "Referer"])
@pytest.mark.parametrize("value", ["http://127.0.0.1:9090", "null", ""])
@pytest.mark.parametrize("path", ["/status", "/health"])
def test_requests_of_web_pages_are_refused(client, control, name, value, path):
    answer = ask(client, path=path, headers={name: value})
    assert_refused(answer, 403, "forbidden_origin")
    assert control.calls == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9090", "127.0.0.1", "localhost", "LOCALHOST:9090", "[::1]", "[::1]:9090",
     # `ssh -L 19090:127.0.0.1:9090` gives it another port at the browser's end
     "127.0.0.1:19090", "localhost:1", "[::1]:65535"],
)  # fmt: skip
def test_our_own_names_are_accepted(client, host):
    assert ask(client, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:9090", "evil.example:19090", "localhost.evil.example",
     "127.0.0.1:9090,evil.example", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:9090:1", "[::1]x",
     "[localhost]", "localhost:9090@evil.example", "localhost:123456", "127.0.0.1.:9090", "::1", "0.0.0.0:9090", "127.0.0.2:9090"],
)  # fmt: skip
def test_foreign_hosts_are_refused_before_the_token_is_looked_at(client, control, host):
    for path in ("/status", "/health"):
        answer = ask(client, path=path, headers={"Host": host})
        assert_refused(answer, 403, "forbidden_host")
    assert control.calls == []


def test_a_listen_address_other_than_loopback_is_a_name_of_ours(control):
    client = make_app(control, HostPort("fd00::1", 80)).test_client()
    for host in ("[fd00::1]:80", "[FD00::1]", "localhost:80"):
        assert client.get("/status", headers={**AUTHORISATION, "Host": host}).status_code == 200
    answer = client.get("/status", headers={**AUTHORISATION, "Host": "[fd00::2]:80"})
    assert_refused(answer, 403, "forbidden_host")


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_a_body_that_is_not_json_by_its_type_is_refused(client, control, content_type):
    for method, path in (("POST", "/connect"), ("POST", "/disconnect"), ("GET", "/status")):
        answer = ask(client, method, path, data=b"{}", content_type=content_type)
        assert_refused(answer, 415, "unsupported_media_type")
    assert control.calls == []


def test_a_charset_behind_the_type_is_accepted(client):
    answer = ask(
        client, "POST", "/connect", data=b"{}", content_type="application/json; charset=utf-8"
    )
    assert answer.status_code == 200


def test_a_large_body_is_refused(client, control):
    padding = " " * (64 * 1024 - 2)
    fits = ask(client, "POST", "/connect", data="{}" + padding, content_type="application/json")
    assert fits.status_code == 200
    control.calls.clear()
    answer = ask(client, "POST", "/connect", data="{} " + padding, content_type="application/json")
    assert_refused(answer, 413, "too_large")
    assert control.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b'"x"', b"1", b"null", b"\xff", b"{'peer': 1}", b"[" * 60000,
        b'{"peer": 1}', b'{"peer": ["a:1"]}', b'{"peer": ""}', b'{"peer": "host:"}',
        b'{"peer": "host:0"}', b'{"peer": "host:65536"}', b'{"peer": "::1:9001"}',
        b'{"peer": "a b:1"}', b'{"peer": "0.0.0.0:9001"}', b'{"peer": "a:1\\u0000"}',
        b'{"peer": "a:1", "peer": "b:1"}', b'{"Peer": "a:1"}', b'{"peer": "a:1", "x": 1}',
        b'{"peer": NaN}', b"1" * 5000,
    ],
)  # fmt: skip
def test_a_body_that_is_no_connect_request_is_refused(client, control, body):
    answer = ask(client, "POST", "/connect", data=body, content_type="application/json")
    assert_refused(answer, 400, "bad_request")
    assert control.calls == []


def test_disconnect_takes_no_fields(client, control):
    answer = ask(client, "POST", "/disconnect", json={"peer": "a:1"})
    assert_refused(answer, 400, "bad_request")
    assert control.calls == []


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    body=st.binary(max_size=200)
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | JSON_VALUES.map(lambda value: json.dumps({"peer": value}).encode())
)
def test_any_body_is_either_understood_or_a_bad_request(body):
    control = FakeControl()
    app = make_app(control)
    answer = ask(app.test_client(), "POST", "/connect", data=body, content_type="application/json")
    if answer.status_code == 200:
        assert control.calls[0][0] == "connect"
    else:
        assert_refused(answer, 400, "bad_request")
        assert control.calls == []


@pytest.mark.parametrize(
    ("method", "path", "extra"),
    [
        ("GET", "/status", {}),
        ("GET", "/health", {}),
        ("GET", "/nothing", {}),
        ("GET", "/status", {"headers": {"Authorization": ""}}),
        ("GET", "/status", {"headers": {"Host": "evil"}}),
        ("POST", "/connect", {"data": b"x"}),
    ],
)
def test_every_answer_has_the_security_headers_and_no_version(client, method, path, extra):
    answer = ask(client, method, path, **extra)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Server" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers
    if answer.status_code != 200:
        assert "0.1.0" not in answer.get_data(as_text=True)


def test_health_without_a_token_tells_no_version(client):
    assert "version" not in client.get("/health", base_url=BASE_URL).get_data(as_text=True)


# --- Rates ------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def ask_guard(guarded, path="/status", token=TOKEN, remote="127.0.0.1"):
    answers = []
    environ = {
        "HTTP_HOST": "localhost", "PATH_INFO": path, "REQUEST_METHOD": "GET",
        "REMOTE_ADDR": remote,
        **({"HTTP_AUTHORIZATION": f"Bearer {token}"} if token else {}),
    }  # fmt: skip
    guarded(environ, lambda line, _headers: answers.append(int(line[:3])))
    return answers[0]


def make_guard(clock):
    def application(_environ, start_response):
        start_response("200 OK", [])
        return [b""]

    return Guard(application, LISTEN, token=TOKEN, needed=right_for, clock=clock)


def test_requests_above_the_rate_are_refused_until_time_has_passed():
    clock = Clock()
    guarded = make_guard(clock)
    burst = int(AUTHORISED_RATE[1] + OWN_RATE[1])
    assert [ask_guard(guarded) for _ in range(burst)] == [200] * burst
    assert ask_guard(guarded) == 429
    clock.now += 1.5 / (AUTHORISED_RATE[0] + OWN_RATE[0])
    assert ask_guard(guarded) == 200
    assert ask_guard(guarded) == 429


def test_failed_tokens_are_limited_more_strictly_and_never_lock_the_operator_out():
    guarded = make_guard(Clock())
    answers = [ask_guard(guarded, token="wrong") for _ in range(int(FAILED_RATE[1]) + 5)]
    assert answers == [401] * int(FAILED_RATE[1]) + [429] * 5
    assert FAILED_RATE[1] < AUTHORISED_RATE[1]
    assert ask_guard(guarded) == 200


def test_health_answers_while_everything_else_is_flooded():
    guarded = make_guard(Clock())
    for _ in range(1000):
        ask_guard(guarded)
        ask_guard(guarded, token="wrong")
    assert ask_guard(guarded, "/health", token=None) == 200


def test_health_is_limited_too():
    guarded = make_guard(Clock())
    burst = int(OPEN_RATE[1] + OWN_RATE[1])
    answers = [ask_guard(guarded, "/health", token=None) for _ in range(burst + 1)]
    assert answers[-2:] == [200, 429]


@pytest.mark.parametrize(("path", "token"), [("/health", None), ("/status", TOKEN)])
def test_one_client_s_flood_is_not_the_other_s_429(path, token):
    guarded = make_guard(Clock())
    while ask_guard(guarded, path, token, "192.0.2.1") == 200:
        pass
    assert ask_guard(guarded, path, token, "192.0.2.2") == 200
    assert ask_guard(guarded, path, token, "192.0.2.1") == 429


def test_429_says_when_to_come_back(control, monkeypatch):
    monkeypatch.setattr(guard, "AUTHORISED_RATE", (0.01, 2))
    monkeypatch.setattr(guard, "OWN_RATE", (0.01, 1))
    client = make_client(control)
    for _ in range(4):
        answer = ask(client)
    assert_refused(answer, 429, "rate_limited")
    assert answer.headers["Retry-After"] == "1"


# --- Rights -----------------------------------------------------------------------------------


def test_the_table_says_for_every_route_which_right_it_takes(control):
    """And who may ask without any is written down here once more, so that it is no accident."""
    rules = {
        (method, rule.rule.replace("<", "{").replace(">", "}"))
        for rule in make_app(control).url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert rules == NEEDED.keys() == {(route.method, route.path) for route in ROUTES}
    by_right = {
        right: {" ".join(asked) for asked in NEEDED if NEEDED[asked] is right} for right in Right
    }
    assert by_right == {
        Right.NONE: {"GET /", "GET /health", "GET /health/live", "GET /health/ready"},
        Right.LOOK: {
            "GET /status", "GET /configuration", "GET /explain", "POST /ping", "GET /events",
            "GET /events/recent", "GET /metrics", "GET /history", "GET /openapi.json", "GET /peers",
            "GET /peers/{name}", "GET /fdb", "GET /network", "GET /relays", "GET /invitations", "GET /certificate",
        },
        Right.CHANGE: {
            "POST /connect", "POST /disconnect", "POST /reload", "GET /capture", "POST /network",
            "POST /invitations", "DELETE /invitations", "DELETE /invitations/{id}", "POST /join",
            "POST /leave", "DELETE /peers/{name}", "POST /files", "POST /network/backup",
            "POST /network/restore", "POST /network/adopt", "POST /network/lists",
            "POST /network/authority/export", "POST /network/authority/release",
            "POST /network/authority/import", "POST /certificate/request", "POST /certificates",
            "POST /certificates/bundle", "POST /certificate", "POST /certificate/renew",
            "POST /peers/{name}/reissue", "POST /peers/{name}/rekey",
            "POST /network/secret",
            "POST /network/authority/replace", "POST /network/authority/drop",
        },
    }  # fmt: skip


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_the_right_of_a_route_is_found_whatever_varies_in_its_path(route):
    path = re.sub(r"{\w+}", "n\u00e4s \n%2F", route.path)
    assert right_for(route.method, path) is route.right
    if route.method == "GET":
        assert right_for("HEAD", path) is route.right


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/health"), ("OPTIONS", "/health"), ("get", "/health"), ("", "/health"),
     ("GET", "/health/"), ("GET", "//health"), ("GET", "/peers/a/b"), ("GET", "/peers/"), ("GET", ""),
     ("GET", "/connect"), ("GET", "/nothing")],
)  # fmt: skip
def test_what_is_no_route_is_for_whoever_may_look(method, path):
    assert right_for(method, path) is Right.LOOK


# --- Metrics route ----------------------------------------------------------------------------


def test_metrics_need_the_token_and_are_a_404_when_off(control):
    registry = metrics.make_registry(metrics.Sources(control.status))
    client = make_client(control, metrics_registry=registry)
    answer = ask(client, path="/metrics")
    assert answer.status_code == 200
    assert answer.content_type == metrics.CONTENT_TYPE
    assert b"shadowmesh_frames_total" in answer.data
    assert client.get("/metrics", base_url=BASE_URL).status_code == 401
    assert_refused(ask(make_client(control), path="/metrics"), 404, "not_found")


# --- On a real server -------------------------------------------------------------------------


def exchange(address, request):
    """Send bytes on a connection of their own and return all that comes back."""
    with socket.create_connection((address.host, address.port), 10) as connection:
        connection.sendall(request)
        return read_to_end(connection)


def read_to_end(connection):
    connection.settimeout(10)
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            answer += part
    return answer


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer else None


def request_bytes(address, *lines, first="GET /status HTTP/1.1", body=b""):
    head = [first, f"Host: {address}", f"Authorization: Bearer {TOKEN}", "Connection: close"]
    return "\r\n".join([*head, *lines, "", ""]).encode() + body


@pytest.fixture
def served(control):
    with serving(lambda address: make_app(control, address)) as address:
        yield address


def test_a_real_server_answers(served):
    answer = exchange(served, request_bytes(served))
    assert status_of(answer) == 200
    assert b'"schema": 1' in answer
    assert b"Server:" not in answer


def test_a_chunked_body_is_read_like_any_other(served, control):
    chunked = b'e\r\n{"peer": "a:1"\r\n1\r\n}\r\n0\r\n\r\n'
    request = request_bytes(
        served, "Content-Type: application/json", "Transfer-Encoding: chunked",
        first="POST /connect HTTP/1.1", body=chunked,
    )  # fmt: skip
    assert status_of(exchange(served, request)) == 200
    assert control.calls == [("connect", "a:1")]


def test_a_chunked_body_of_a_wrong_type_is_refused(served, control):
    request = request_bytes(
        served, "Content-Type: text/plain", "Transfer-Encoding: chunked",
        first="POST /connect HTTP/1.1", body=b"2\r\n{}\r\n0\r\n\r\n",
    )  # fmt: skip
    assert status_of(exchange(served, request)) == 415
    assert control.calls == []


def test_connections_that_ended_are_not_counted(served):
    for _ in range(server.MAX_CONNECTIONS + 20):
        assert status_of(exchange(served, request_bytes(served))) == 200


def test_a_body_without_end_is_refused_without_being_kept(served, control):
    request = request_bytes(
        served, "Content-Type: application/json", "Content-Length: 600000",
        first="POST /connect HTTP/1.1", body=b" " * 600000,
    )  # fmt: skip
    assert status_of(exchange(served, request)) == 413
    assert control.calls == []


def test_a_head_without_end_is_refused(served, control):
    lines = [f"X-{number}: {'x' * 1000}" for number in range(50)]
    assert status_of(exchange(served, request_bytes(served, *lines))) == 400
    assert control.calls == []


@pytest.mark.parametrize(
    "request_head",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"GET /status HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n",
     b"GET /status HTTP/1.1\r\nno colon\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
     b"GET /status HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n", b"x" * 9000],
)  # fmt: skip
def test_what_is_not_http_is_refused_without_a_traceback(served, control, request_head, capfd):
    answer = exchange(served, request_head)
    assert status_of(answer) in (400, 403, 414)
    assert control.calls == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_request_that_does_not_arrive_is_given_up(control, monkeypatch):
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.2)
    with serving(lambda address: make_app(control, address)) as address:
        for start in (
            b"", b"GET /sta", b"GET /status HTTP/1.1\r\nHost:",
            request_bytes(
                address, "Content-Type: application/json", "Content-Length: 100",
                first="POST /connect HTTP/1.1", body=b"{",
            ),
        ):  # fmt: skip
            began = time.monotonic()
            assert exchange(address, start) == b""
            assert 0.1 < time.monotonic() - began < 5
    assert control.calls == []


def test_a_slow_answer_is_not_given_up(control, monkeypatch):
    import gevent

    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.1)
    control.before = lambda: gevent.sleep(0.3)
    with serving(lambda address: make_app(control, address)) as address:
        assert status_of(exchange(address, request_bytes(address))) == 200


def test_idle_connections_do_not_keep_a_new_one_out(served):
    with contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection((served.host, served.port), 10))
            for _ in range(server.MAX_CONNECTIONS + 20)
        ]
        assert status_of(exchange(served, request_bytes(served))) == 200
        assert read_to_end(idle[0]) == b""  # the longest idle made room


def test_one_connection_may_carry_many_requests(served, control):
    connection = http.client.HTTPConnection(served.host, served.port, timeout=10)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("GET", "/status", headers=AUTHORISATION)
            local = connection.sock.getsockname()
            assert connection.getresponse().read().startswith(b"{")
            assert connection.sock.getsockname() == local
    assert len(control.calls) == 3


def test_long_lists_are_told_less_often_than_short_ones(control):
    """The hub, which also carries the WebSocket paths, has better things to do."""
    client = make_app(control).test_client()

    def answers(path):
        return {
            client.get(path, base_url=BASE_URL, headers=AUTHORISATION).status_code
            for _ in range(30)
        }

    assert answers("/peers") == {200}
    control.mesh = MESH * 334
    assert answers("/peers") == {200, 429}
    last = client.get("/fdb", base_url=BASE_URL, headers=AUTHORISATION)
    assert (last.status_code, last.headers["Retry-After"]) == (429, "1")
    assert client.get("/status", base_url=BASE_URL, headers=AUTHORISATION).status_code == 200
