"""Local users of the control API: many, slow, mute, at odds with each other."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from shadowmesh.netlab import API_PORT, NetlabError

from ..bench import Bench, answers, beside, until
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadowmesh.netlab import Daemon
    from tests.lab.pair import Pair

#: connections that ask, each waiting for its answer
ASKING = 8


@contextlib.contextmanager
def requests(daemon: Daemon, per_second: int, codes: dict[int, int]) -> Iterator[None]:
    """Ask so often, with and without the token, counting the codes of the answers."""
    host = f"HTTP/1.1\r\nHost: 127.0.0.1:{API_PORT}\r\n"
    heads = (
        f"GET /health/live {host}\r\n".encode(),
        f"GET /status {host}Authorization: Bearer {daemon.token()}\r\n\r\n".encode(),
    )

    def ask(head: bytes, stop: threading.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                sock = daemon.host.connect(("127.0.0.1", API_PORT))
                with sock, sock.makefile("rb") as file:
                    while not stop.wait(ASKING / per_second):
                        sock.sendall(head)
                        line = file.readline().split()
                        if not line:  # another connection has taken this one's place
                            break
                        codes[int(line[1])] = codes.get(int(line[1]), 0) + 1
                        length = 0
                        while (line := file.readline().strip().lower()) != b"":
                            if line.startswith(b"content-length:"):
                                length = int(line.split()[1])
                        file.read(length)

    with beside(*(partial(ask, heads[n % 2]) for n in range(ASKING))):
        yield


@row(
    "API flood",
    "429, tunnel unharmed, /health p99 <= 100 ms",
    bound_s=150,
    loads=True,
    short=(
        "control/test_app.py::test_requests_above_the_rate_are_refused_until_time_has_passed",
        "control/test_app.py::test_health_answers_while_everything_else_is_flooded",
        "control/test_app.py::test_idle_connections_do_not_keep_a_new_one_out",
        "control/test_app.py::test_a_request_that_does_not_arrive_is_given_up",
    ),
)
def api_flood(bench: Bench) -> None:
    codes: dict[int, int] = {}
    with bench.pair() as pair, contextlib.ExitStack() as idle:
        left = pair.left
        for number in range(bench.amount(300, 2000)):
            sock = left.host.open_socket(socket.AF_INET, socket.SOCK_STREAM)
            idle.enter_context(sock)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", API_PORT))
            if number % 3 == 0:
                with contextlib.suppress(OSError):
                    sock.send(b"POST /connect HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{")
        with requests(left, 1000, codes):
            seconds = bench.amount(15, 60)
            pings, slow = [], []
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                slow += answers_unauthorised(left, 10)
                pings.append(left.host.ping(pair.right.tunnel_ip, count=5))
        slow.sort()
        p99 = 1000 * slow[len(slow) * 99 // 100]
        received = sum(ping.received for ping in pings)
        sent = sum(ping.sent for ping in pings)
        bench.figure(f"codes {codes}, /health p99 {p99:.0f} ms, {received} of {sent} pings")
        assert codes.get(429), "nobody was told to come back later"
        assert received >= 0.95 * sent
        assert p99 <= 300, "/health is slow"  # 100 ms on an idle machine
        idle.close()
        time.sleep(3)  # the daemon lets go of them, before descriptors are counted


def answers_unauthorised(daemon: Daemon, times: int) -> list[float]:
    took = []
    for _ in range(times):
        began = time.monotonic()
        code, _ = daemon.api("GET", "/health", authorize=False, timeout_s=20)
        assert code in (200, 429), f"/health answers {code}"
        took.append(time.monotonic() - began)
        time.sleep(0.02)
    return took


@row(
    "concurrent API",
    "legal states, one TAP at most, no deadlock",
    bound_s=150,
    long_bound_s=900,
    short=("netns/test_faults.py::any_order_of_connects_and_disconnects_leaves_one_tap_or_none",),
)
def concurrent(bench: Bench) -> None:
    until_s = time.monotonic() + bench.amount(30, 600)
    codes: dict[int, int] = {}
    with bench.pair() as pair:

        def pester(seed: int) -> None:
            choice = random.Random(seed)
            while time.monotonic() < until_s:
                daemon = choice.choice((pair.left, pair.left, pair.right))
                route = choice.choice(("/connect", "/connect", "/disconnect"))
                code, answer = daemon.api("POST", route)
                codes[code] = codes.get(code, 0) + 1
                assert code in (200, 409, 429, 502, 503, 504), f"{route} gave {code}: {answer}"
                assert len(daemon.host.taps()) <= 1, "two TAPs"

        with ThreadPoolExecutor(bench.amount(12, 50)) as pool:
            seeds = [bench.random.randrange(1 << 30) for _ in range(bench.amount(12, 50))]
            for future in [pool.submit(pester, seed) for seed in seeds]:
                future.result()
        time.sleep(2)  # the daemon lets go of all, before descriptors are counted
        pair.disconnect()
        assert not any(daemon.host.taps() for daemon in pair)
        pair.connect()
        illegal = sum(daemon.log().count("illegal") for daemon in pair)
    bench.figure(f"codes {codes}, illegal transitions {illegal}")
    assert illegal == 0


@row(
    "unread API answers",
    "CLI, /health and metrics answer beside 64 mute clients",
    bound_s=90,
    short=(
        "control/test_crowd.py::test_another_user_who_pipelines_and_never_reads_keeps_nobody_out",
    ),
)
def unread(bench: Bench) -> None:
    failures = []
    with bench.pair() as pair, contextlib.ExitStack() as mute:
        left = pair.left
        mute.enter_context(_mute_clients(left))
        time.sleep(20)  # the fault lasts
        for what, ask in {
            "/health": lambda: left.api("GET", "/health", authorize=False, timeout_s=5)[0] == 200,
            "/metrics": lambda: left.api("GET", "/metrics", timeout_s=5)[0] == 200,
            "status": lambda: left.cli("status", timeout_s=10).returncode == 0,
        }.items():
            began = time.monotonic()
            try:
                right = ask()
            except (OSError, NetlabError) as error:
                failures.append(f"{what}: {type(error).__name__}")
                continue
            except Exception as error:  # noqa: BLE001 - subprocess.TimeoutExpired, http.client's
                failures.append(f"{what}: {type(error).__name__}")
                continue
            bench.figure(f"{what} {1000 * (time.monotonic() - began):.0f} ms")
            if not right:
                failures.append(f"{what} does not answer well")
        pings = left.host.ping(pair.right.tunnel_ip, count=10)
        bench.figure(f"{pings.received} of 10 pings")
        mute.close()
        until("well again", lambda: _answers(pair), 15)
    assert not failures, "; ".join(failures)


@contextlib.contextmanager
def _mute_clients(daemon: Daemon) -> Iterator[None]:
    """64 connections that ask for the page again and again, never read, and come again."""
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{API_PORT}\r\n\r\n".encode() * 20

    def connected() -> socket.socket:
        sock = daemon.host.open_socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", API_PORT))
        sock.setblocking(False)
        return sock

    def ask(stop: threading.Event) -> None:
        clients = [connected() for _ in range(64)]
        while not stop.wait(0.1):
            for number, sock in enumerate(clients):
                try:
                    sock.send(request)
                except BlockingIOError:  # stuck, as it should be
                    continue
                except OSError:
                    sock.close()
                    clients[number] = connected()
        for sock in clients:
            sock.close()

    with beside(ask):
        yield


def _answers(pair: Pair) -> bool:
    with contextlib.suppress(OSError, NetlabError):
        return answers(pair.left, 1)[0] < 1
    return False
