"""Mixed traffic for a long time, and a fault every now and then."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from tests.lab import faults

from ..bench import Bench, await_verdict, beside
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.pair import Pair

HOUR_S: Final = 3600
#: by the length of a run: for how long, and a fault how often
SHORT: Final = (180.0, 15.0)
LONG: Final = (float(HOUR_S), 60.0)
RECOVERY_S: Final = 60.0


def _flap(pair: Pair, bench: Bench) -> None:
    with faults.link_down(pair.net, bench.random.choice((pair.left, pair.right)).host):
        time.sleep(bench.random.uniform(0.1, 12))


def _black_hole(pair: Pair, bench: Bench) -> None:
    with faults.black_hole(pair.net, pair.left.host, pair.right.host):
        time.sleep(bench.random.uniform(1, 30))


def _reset(pair: Pair, bench: Bench) -> None:
    faults.kill_sockets(bench.random.choice((pair.left, pair.right)).host, 9001)


def _no_udp(pair: Pair, bench: Bench) -> None:
    with faults.drop_udp(pair.net):
        time.sleep(bench.random.uniform(1, 10))


def _loss(pair: Pair, bench: Bench) -> None:
    with faults.lose(pair.net, bench.random.choice((1, 5, 20))):
        time.sleep(bench.random.uniform(1, 10))


def _crash(pair: Pair, bench: Bench) -> None:
    daemon = bench.random.choice((pair.left, pair.right))
    daemon.kill()
    time.sleep(bench.random.choice((0, 0, 2)))
    daemon.start()
    if daemon is pair.left:
        daemon.connect()


def _stop(pair: Pair, bench: Bench) -> None:
    daemon = bench.random.choice((pair.left, pair.right))
    daemon.terminate()
    daemon.start()
    if daemon is pair.left:
        daemon.connect()


def _pause(pair: Pair, bench: Bench) -> None:
    daemon = bench.random.choice((pair.left, pair.right))
    daemon.pause()
    time.sleep(bench.random.uniform(0.1, 8))
    daemon.resume()


def _tap_deleted(pair: Pair, bench: Bench) -> None:
    bench.random.choice((pair.left, pair.right)).host.run("ip", "link", "del", "tap0", check=False)


def _tap_down(pair: Pair, bench: Bench) -> None:
    host = bench.random.choice((pair.left, pair.right)).host
    host.run("ip", "link", "set", "tap0", "down", check=False)
    time.sleep(bench.random.uniform(0.1, 5))
    host.run("ip", "link", "set", "tap0", "up", check=False)


def _reload(pair: Pair, bench: Bench) -> None:
    bench.random.choice((pair.left, pair.right)).process.send_signal(signal.SIGHUP)


def _again(pair: Pair, _bench: Bench) -> None:
    pair.left.api("POST", "/disconnect")
    pair.left.api("POST", "/connect")


def _junk(pair: Pair, bench: Bench) -> None:
    target = bench.random.choice((pair.left, pair.right)).host
    with pair.net.switch.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(2000):
            sock.sendto(bench.random.randbytes(bench.random.randrange(1, 200)), (target.ipv4, 9001))


FAULTS: Final[tuple[Callable[[Pair, Bench], None], ...]] = (
    _flap, _black_hole, _reset, _no_udp, _loss, _crash, _stop, _pause, _tap_deleted, _tap_down,
    _reload, _again, _junk,
)  # fmt: skip


@row(
    "soak",
    "all invariants after each fault of a long day",
    bound_s=420,
    long_bound_s=HOUR_S + 600,
    pieces=8,
    short=(
        "netns/test_faults.py::a_killed_listener_is_found_again_after_its_restart",
        "netns/test_tunnel.py::test_no_frame_is_lost_doubled_or_altered_at_a_steady_rate",
    ),
)
def soak(bench: Bench) -> None:
    seconds, every_s = LONG if bench.long else SHORT
    done, worst = 0, 0.0
    settings = {"encryption.rotation_interval": "10s"}
    with (
        (bench.directory / "soak.jsonl").open("w") as lines,
        bench.pair(both=settings, udp=True, settle_s=RECOVERY_S) as pair,
        _Traffic(pair),
    ):
        pair.net.switch.ip("address add 198.51.100.99/24 dev br0")
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            fault = bench.random.choice(FAULTS)
            name, began = fault.__name__.strip("_"), time.monotonic()
            fault(pair, bench)
            over = time.monotonic()
            states = await_verdict(pair, RECOVERY_S)
            took = time.monotonic() - over
            done, worst = done + 1, max(worst, took)
            line = {"fault": name, "at": round(began), "recovery_s": round(took, 2)}
            line["states"] = states
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            assert states == ["connected", "connected"], f"after {name}: {states}"
            time.sleep(max(0.0, min(every_s - (time.monotonic() - began), ends - time.monotonic())))
        bench.figure(f"{done} faults in {seconds:.0f} s, slowest recovery {worst:.1f} s")


class _Traffic:
    """A TCP stream that begins anew when it breaks, and pings of every size, while it runs."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._listener = pair.right.host.listen(("0.0.0.0", 5001))
        self._listener.settimeout(0.5)
        self._running = contextlib.ExitStack()

    def __enter__(self) -> None:
        self._running.enter_context(self._listener)
        self._running.enter_context(beside(self._send, self._take, self._ping))

    def __exit__(self, *exception: object) -> None:
        self._running.close()

    def _send(self, stop: threading.Event) -> None:
        while not stop.wait(0.5):
            try:
                with self._pair.left.host.connect((self._pair.right.tunnel_ip, 5001), 2) as sock:
                    while not stop.wait(0.02):  # 25 Mbit/s: the row is not about speed
                        sock.sendall(bytes(1 << 16))
            except OSError:  # what the faults are for
                continue

    def _take(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(3)
                try:
                    while connection.recv(1 << 18):
                        pass
                except OSError:
                    continue

    def _ping(self, stop: threading.Event) -> None:
        size = 56
        while not stop.wait(0.2):
            size = size * 7 % 1400
            try:
                self._pair.left.host.ping(
                    self._pair.right.tunnel_ip, count=1, size=size, timeout_s=0.2
                )
            except OSError:
                continue
