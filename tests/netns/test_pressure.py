"""What happens when something runs short: a reader, descriptors, processor time."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import socket
import statistics
import time

import pytest

from shadowmesh.netlab import PEER_PORT, wait_until
from tests.lab.pair import connected_pair, counters, link_statistics, streams

pytestmark = pytest.mark.netns

#: of the data plane: the ring (shadowmesh/fast/ring.pxd) and what waits to be sealed (backlog.pxd)
QUEUE_BYTES = (512 + 1024 + 65) * 1024
ADDRESSES = 20


@pytest.fixture(scope="module")
def pair(directory):
    with connected_pair(directory) as pair:
        yield pair


def rss(daemon) -> int:
    return daemon.status()["resources"]["rss_bytes"]


def lost(daemon) -> int:
    """Frames that found no room: in front of the TAP, or behind it."""
    kernel = link_statistics(daemon.host, daemon.tap)["tx"]["dropped"]
    return kernel + counters(daemon)["dropped"].get("queue_full", 0)


def test_a_peer_that_reads_nothing_costs_frames_and_no_memory(pair):
    left, right = pair
    with streams(pair, per_second=2500, size=1400):
        time.sleep(1)
        before, dropped = rss(left), lost(left)
        right.pause()
        try:
            wait_until(lambda: lost(left) > dropped, 15, "drops")
            for _ in range(10):
                status = left.status()
                assert status["queue_bytes"] <= QUEUE_BYTES
                assert status["resources"]["rss_bytes"] <= 1.1 * before + (5 << 20)
                time.sleep(0.3)
        finally:
            right.resume()
        pair.await_pings(15)
    assert left.status()["state"] == "connected"
    assert left.status()["reconnects"] == 0
    pair.assert_pings()


def test_a_flood_of_connections_without_descriptors_leaves_the_tunnel_alone(pair):
    left, right = pair
    addresses = [f"198.51.100.{100 + number}" for number in range(ADDRESSES)]
    left.host.ip(*(f"address add {address}/24 dev eth0" for address in addresses))
    limit = resource.prlimit(right.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(right.pid, resource.RLIMIT_NOFILE, (right.open_fds() + 6, limit[1]))
    with contextlib.ExitStack() as flood:
        for address in addresses:
            for _ in range(3):
                one = flood.enter_context(left.host.open_socket(socket.AF_INET, socket.SOCK_STREAM))
                one.bind((address, 0))
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect((right.host.ipv4, PEER_PORT))
        wait_until(lambda: "accepting peers is paused" in right.log(), 15, "no descriptor is left")
        started = time.process_time()
        pair.assert_pings()
        assert time.process_time() - started < 5
    resource.prlimit(right.pid, resource.RLIMIT_NOFILE, limit)
    wait_until(lambda: right.open_fds() < 40, 15, "what came in is gone")
    assert right.status()["state"] == "connected"
    assert right.status()["reconnects"] == 0
    pair.assert_pings()


@contextlib.contextmanager
def bulk(pair, directory, seconds: int, *options: str):
    """One TCP stream from left to right; yields its process."""
    left, right = pair
    server = right.host.popen("iperf3", "-s", "-1", "-B", right.tunnel_ip, log=directory / "server")
    listening = ("ss", "-Hlnt", "sport", "=", ":5201")
    try:
        wait_until(lambda: right.host.run(*listening).stdout, 15, "iperf3 listens")
        command = ("iperf3", "-c", right.tunnel_ip, "-t", str(seconds), "-J", *options)
        yield left.host.popen(*command, log=directory / "client")
    finally:
        server.kill()
        server.wait()


def received_bytes(directory) -> int:
    """What the bulk stream carried; its client has ended."""
    return json.loads((directory / "client").read_text())["end"]["sum_received"]["bytes"]


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_on_a_full_slow_link_pings_do_not_wait_for_the_bulk(pair, tmp_path):
    """In one queue with it they waited 650 ms, and every eighth was lost; the limit is loose."""
    left, right = pair
    shape = ("rate", "20mbit", "burst", "16kb", "latency", "50ms")
    left.host.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *shape)
    try:
        # Cubic, because it is what hosts have, and fills whatever queue there is.
        with bulk(pair, tmp_path, 4, "-C", "cubic") as client:
            wait_until(lambda: counters(left)["dropped"]["queue_full"], 15, "the queue is long")
            pings = left.host.ping(right.tunnel_ip, count=30)
            client.wait()
    finally:
        left.host.run("tc", "qdisc", "del", "dev", "eth0", "root")
    assert pings.received >= 28
    assert statistics.median(pings.rtts_ms) < 200
    assert received_bytes(tmp_path) > 4_000_000  # of 10 MB


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_the_hub_answers_while_the_tunnel_is_full(pair, tmp_path):
    """The control API must not wait for the frames; the limit is loose, machines differ."""
    left = pair.left
    answers = []
    with bulk(pair, tmp_path, 4) as client:
        while client.poll() is None:
            started = time.monotonic()
            assert left.api("GET", "/health", authorize=False)[0] == 200
            answers.append(time.monotonic() - started)
            time.sleep(0.1)
    assert received_bytes(tmp_path) > 10_000_000
    answers.sort()
    assert answers[len(answers) // 2] < 0.1, answers
    for daemon in pair:
        assert daemon.status()["state"] == "connected"
