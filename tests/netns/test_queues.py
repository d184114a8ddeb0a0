"""Four queues of the TAP: real daemons, and what the tun driver does with flows."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shadowmesh.netlab import wait_until
from tests.lab.faults import drop_udp
from tests.lab.pair import running_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadowmesh.netlab import Daemon

pytestmark = pytest.mark.netns

QUEUES = 4
SETTINGS = {"network.queues": QUEUES, "nat.enabled": True, "nat.stun_server": ""}
#: a flow is shorter than the smallest queue: nothing of it is lost
BURST = 60


@pytest.fixture(scope="module")
def pair(directory):
    with running_pair(directory, SETTINGS) as pair:
        pair.connect()
        for daemon in pair:
            daemon.wait_for(15, state="connected", path="udp")
        yield pair


def queues(daemon: Daemon) -> list[tuple[int, int]]:
    """(frames in, frames out) of each queue."""
    return [(q["frames_in"], q["frames_out"]) for q in daemon.status()["tap"]["queues"]]


def tap_threads(daemon: Daemon) -> list[str]:
    tasks = Path(f"/proc/{daemon.pid}/task").iterdir()
    names = ((task / "comm").read_text().strip() for task in tasks)
    return sorted(name for name in names if name.startswith("sm-"))


@contextmanager
def echo(daemon: Daemon, port: int) -> Iterator[None]:
    """Send every datagram to that port back, until the block ends."""
    with daemon.host.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((daemon.tunnel_ip, port))
        sock.settimeout(0.1)
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                try:
                    sock.sendto(*sock.recvfrom(2000))
                except TimeoutError:
                    continue

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def converse(sock: socket.socket, numbers: range) -> list[int]:
    """Send numbered datagrams and return the numbers that came back, in order of arrival."""
    for number in numbers:
        sock.send(struct.pack(">I", number))
    return [struct.unpack(">I", sock.recv(100))[0] for _ in numbers]


def test_each_queue_has_a_thread(pair):
    for daemon in pair:
        assert tap_threads(daemon) == [f"sm-tap-{n}" for n in range(QUEUES)] + ["sm-udp", "sm-wss"]
    pair.assert_pings()


def test_a_flow_stays_in_one_queue_both_ways_and_flows_use_them_all(pair):
    used: dict[Daemon, list[int]] = {daemon: [] for daemon in pair}
    with echo(pair.right, 5300), ExitStack() as stack:
        for _ in range(16):
            sock = stack.enter_context(
                pair.left.host.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
            )
            sock.settimeout(3)
            sock.connect((pair.right.tunnel_ip, 5300))
            before = {daemon: queues(daemon) for daemon in pair}
            assert converse(sock, range(1)) == [0]
            for _ in range(3):
                assert converse(sock, range(BURST)) == list(range(BURST))
            for daemon in pair:
                grown = [
                    (now[0] - then[0], now[1] - then[1])
                    for now, then in zip(queues(daemon), before[daemon], strict=True)
                ]
                # besides the flow there may be a frame or two of the kernel's own
                [busy] = [n for n, (into, out) in enumerate(grown) if max(into, out) > 10]
                # All in that one queue; a burst that came in one train is one super-frame.
                assert max(grown[busy]) >= 3 * BURST, grown
                assert min(grown[busy]) > 10, grown
                used[daemon].append(busy)
    for daemon in pair:
        assert len(set(used[daemon])) > 1


def test_flows_of_all_queues_at_once_keep_their_order(pair):
    flows, rounds = 12, 60
    with ExitStack() as stack:
        links = []
        for number in range(flows):
            source, target = tuple(pair) if number % 2 else tuple(pair)[::-1]
            ends = [
                stack.enter_context(daemon.host.open_socket(socket.AF_INET, socket.SOCK_DGRAM))
                for daemon in (source, target)
            ]
            for end, daemon in zip(ends, (source, target), strict=True):
                end.bind((daemon.tunnel_ip, 6000 + number))
            ends[0].connect(ends[1].getsockname())
            ends[1].settimeout(1)
            links.append(ends)
        got: list[list[int]] = [[] for _ in links]
        for turn in range(rounds):
            for source, _ in links:
                for place in range(8):
                    source.send(struct.pack(">I", turn * 8 + place))
            for found, (_, target) in zip(got, links, strict=True):
                while not found or found[-1] < turn * 8 + 7:
                    found.append(struct.unpack(">I", target.recv(100))[0])
        assert got == [list(range(rounds * 8))] * flows


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
@pytest.mark.parametrize("extra", [[], ["-R"]], ids=["out", "in"])
def test_four_streams_move_data_either_way(pair, extra, tmp_path):
    server = pair.right.host.popen(
        "iperf3", "-s", "-1", "-B", pair.right.tunnel_ip, log=tmp_path / "server"
    )
    try:
        listening = ("ss", "-Hlnt", "sport", "=", ":5201")
        wait_until(lambda: pair.right.host.run(*listening).stdout, 15, "iperf3 listens")
        command = ["iperf3", "-c", pair.right.tunnel_ip, "-t", "1", "-J", "-P4", *extra]
        report = json.loads(pair.left.host.run(*command, timeout_s=30).stdout)
    finally:
        server.kill()
        server.wait()
    assert report["end"]["sum_received"]["bytes"] > 1_000_000
    for daemon in pair:
        daemon.wait_for(15, state="connected", path="udp")


def test_a_deleted_tap_is_made_again_with_all_its_queues(pair):
    for daemon in pair:
        before = daemon.host.interfaces()["tap0"]["ifindex"]
        daemon.host.ip("link delete tap0")
        started = time.monotonic()
        wait_until(lambda d=daemon: "tap0" in d.host.interfaces(), 15, "the TAP is back")
        assert time.monotonic() - started < 10
        pair.await_pings(15)
        assert daemon.host.interfaces()["tap0"]["ifindex"] != before
        assert len(queues(daemon)) == QUEUES
        assert tap_threads(daemon) == [f"sm-tap-{n}" for n in range(QUEUES)] + ["sm-udp", "sm-wss"]
    pair.await_connected()
    pair.assert_pings()


def test_over_wss_all_queues_share_the_link(pair):
    with drop_udp(pair.net):

        def moved() -> bool:
            pair.left.host.ping(pair.right.tunnel_ip, count=1, timeout_s=0.2)
            return all(daemon.status()["path"] == "wss" for daemon in pair)

        wait_until(moved, 15, "both are on WSS")
        pair.assert_pings()
        with echo(pair.right, 5301), ExitStack() as stack:
            for _ in range(8):
                sock = stack.enter_context(
                    pair.left.host.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
                )
                sock.settimeout(3)
                sock.connect((pair.right.tunnel_ip, 5301))
                assert converse(sock, range(BURST)) == list(range(BURST))


def test_disconnect_leaves_no_queue_behind(pair):
    pair.disconnect()
    for daemon in pair:
        wait_until(
            lambda d=daemon: tap_threads(d) == ["sm-udp", "sm-wss"], 15, "the threads are gone"
        )
        assert "tap0" not in daemon.host.interfaces()
        holders = Path(f"/proc/{daemon.pid}/fd").iterdir()
        assert not [fd for fd in holders if str(fd.readlink()) == "/dev/net/tun"]
    pair.connect()
    pair.assert_pings()
