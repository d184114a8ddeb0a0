"""The control API and the CLI, against real daemons and over real HTTP."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from shadowmesh.netlab import API_PORT, wait_until
from tests.control.strangers import flood
from tests.lab.pair import running_pair

pytestmark = pytest.mark.netns

ROUTES = [("POST", "/connect"), ("POST", "/disconnect"), ("GET", "/status"), ("GET", "/metrics")]


@pytest.fixture(scope="module")
def pair(directory):
    with running_pair(directory) as pair:
        yield pair


@pytest.fixture
def connected(pair):
    if pair.left.status()["state"] != "connected":
        pair.connect()
    return pair


@pytest.fixture
def apart(pair):
    pair.disconnect()
    pair.let_in()
    return pair


@pytest.mark.parametrize(("method", "route"), ROUTES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic eDp5", "Bearer "])
def test_no_route_works_without_the_token(pair, method, route, header):
    headers = {} if header is None else {"Authorization": header}
    code, answer = pair.left.api(method, route, authorize=False, headers=headers)
    assert code == 401
    assert answer["error"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "http://localhost:9090"}, 403),
        ({"Referer": "http://evil.example/"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": f"localhost:{API_PORT}"}, 200),
    ],
    ids=str,
)
def test_requests_of_web_pages_are_refused(pair, headers, code):
    assert pair.left.api("GET", "/status", headers=headers)[0] == code


@pytest.mark.parametrize(
    ("raw", "content_type", "code"),
    [
        (b'{"peer": "198.51.100.2:9001"}', "text/plain", 415),
        (b'{"peer": "198.51.100.2:9001"}', "application/x-www-form-urlencoded", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"peer": 9001}', "application/json", 400),
        (b'{"peer": "no sense"}', "application/json", 400),
        (b'{"peer": "host:99999"}', "application/json", 400),
        (b'{"pear": "198.51.100.2:9001"}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
    ],
)
def test_a_bad_connect_request_changes_nothing(apart, raw, content_type, code):
    headers = {"Content-Type": content_type}
    got, answer = apart.left.api("POST", "/connect", raw=raw, headers=headers)
    assert got == code
    assert answer["error"]["message"]
    assert apart.left.status()["state"] == "disconnected"


def test_unknown_routes_and_methods_are_named(pair):
    assert pair.left.api("GET", "/nothing")[0] == 404
    assert pair.left.api("GET", "/connect")[0] == 405
    assert pair.left.api("DELETE", "/status")[0] == 405


def test_health_needs_no_token_and_tells_no_details(pair):
    code, answer = pair.left.api("GET", "/health", authorize=False)
    assert code == 200
    assert answer["status"] == "ok"
    assert pair.right.host.ipv4 not in json.dumps(answer)


def test_a_second_connect_and_a_second_disconnect_are_conflicts(connected):
    code, answer = connected.left.api("POST", "/connect")
    assert (code, answer["error"]["code"]) == (409, "already_connected")
    assert connected.left.api("POST", "/disconnect")[0] == 200
    code, answer = connected.left.api("POST", "/disconnect")
    assert (code, answer["error"]["code"]) == (409, "not_connected")


def test_connecting_to_nobody_says_so(apart):
    code, answer = apart.left.api("POST", "/connect", {"peer": "198.51.100.2:9"})
    assert (code, answer["error"]["code"]) == (502, "peer_unreachable")
    assert "198.51.100.2:9" in answer["error"]["message"]
    status = apart.left.status()
    assert status["state"] in {"error", "connecting"}
    assert status["last_error"]


def test_neither_port_of_a_daemon_is_reachable_from_the_network(pair):
    for port in (API_PORT, 9091):
        with pytest.raises(ConnectionRefusedError):
            pair.right.host.connect((pair.left.host.ipv4, port))


def test_metrics_are_the_same_with_the_token_and_on_the_loopback_port(connected):
    code, with_token = connected.left.api("GET", "/metrics")
    assert code == 200
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost:9091\r\nConnection: close\r\n\r\n"
    with connected.left.host.connect(("127.0.0.1", 9091)) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert " 200 " in answer.splitlines()[0]

    def names(text: str) -> set[str]:
        return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}

    assert names(with_token)
    assert names(with_token) == names(answer)


def test_the_cli_connects_tells_and_disconnects(apart):
    left = apart.left
    assert left.cli("status").returncode == 5
    done = left.cli("connect")
    assert (done.returncode, done.stderr) == (0, "")
    done = left.cli("status")
    assert done.returncode == 0
    assert "connected" in done.stdout
    assert "post-quantum yes" in done.stdout
    snapshot = json.loads(left.cli("--json", "status").stdout)
    assert snapshot["schema"] == 1
    assert snapshot["peer"]["public_key"] == apart.right.public_key
    assert left.cli("connect").returncode == 1
    assert left.cli("disconnect").returncode == 0
    assert left.cli("disconnect").returncode == 1


def test_the_cli_names_an_unreachable_peer_and_exits_5(apart):
    done = apart.left.cli("connect", "198.51.100.2:9")
    assert done.returncode == 5
    assert "198.51.100.2:9" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_cli_without_a_daemon_exits_3(pair):
    done = pair.left.cli("--api", "http://127.0.0.1:1", "status")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


def test_ten_connections_leave_no_tap_no_fd_and_no_thread_behind(apart):
    def footprint() -> tuple[int, int]:
        resources = apart.left.status()["resources"]
        return resources["open_fds"], resources["threads"]

    apart.connect()
    apart.disconnect()  # what is made once and kept exists from here on
    before = footprint()
    for _ in range(10):
        apart.connect()
        assert apart.left.host.taps() == ["tap0"]
        apart.disconnect()
        assert apart.left.host.taps() == apart.right.host.taps() == []
    assert footprint() == before
    apart.connect()
    apart.assert_pings()


def test_no_secret_is_in_any_answer(connected):
    from tests.lab.pair import secrets_of

    for daemon in connected:
        answers = [json.dumps(daemon.api(m, r)[1]) for m, r in ROUTES if m == "GET"]
        answers += [daemon.cli("--json", "status").stdout, daemon.cli("status").stdout]
        for name, secret in secrets_of(daemon).items():
            assert not any(secret in answer for answer in answers), name


def test_a_user_who_asks_over_64_connections_and_never_reads_locks_nobody_out(connected):
    left = connected.left
    inside = ("ip", "netns", "exec", left.host.namespace)
    with (
        flood(f"127.0.0.1:{API_PORT}", wrapper=inside),
        flood("127.0.0.1:9091", "/metrics", wrapper=inside),
    ):
        for _ in range(3):
            assert left.cli("status").returncode == 0
            assert left.api("GET", "/status")[0] == 200
            assert left.api("GET", "/health", authorize=False)[0] == 200
            with left.host.connect(("127.0.0.1", 9091), 20) as scraper:
                scraper.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
                answer = b"".join(iter(lambda: scraper.recv(65536), b""))
            assert b" 200 " in answer.partition(b"\r\n")[0]
    connected.await_pings(15)  # the hub may have the last of the crowd to do with
    assert "Traceback" not in left.log()


def test_the_command_line_needs_no_token_where_the_kernel_knows_it(connected):
    left = connected.left
    token = left.state_dir / "api.token"
    hidden = token.rename(left.state_dir / "hidden")
    try:
        assert left.cli("status").returncode == 0
    finally:
        hidden.rename(token)


def test_a_daemon_that_is_told_to_end_tells_whoever_waits(apart):
    left, right = apart.left, apart.right
    with right.host.listen((right.host.ipv4, 4433)), ThreadPoolExecutor(2) as pool:
        by_cli = pool.submit(left.cli, "connect", f"{right.host.ipv4}:4433")
        wait_until(lambda: left.status()["state"] == "connecting", 10, "the dial has begun")
        watching = pool.submit(left.cli, "wait", "--for", "connected", "--timeout", "20s")
        assert left.terminate()[0] == 0
        done = by_cli.result(30)
        assert (done.returncode, done.stderr) == (3, "error: the daemon is stopping\n")
        left.start()  # whoever polls outlives the restart
        apart.connect()
        assert watching.result(30).returncode == 0
    assert "Traceback" not in left.log()
