"""`shadowmesh capture` on real daemons: what tcpdump makes of it, and what it does to the tunnel."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from shadowmesh.insight.pcapng import INBOUND, OUTBOUND, Packet, Reader, Statistics
from shadowmesh.netlab import wait_until
from shadowmesh.netlab.daemon import program
from tests.lab.pair import connected_pair

pytestmark = pytest.mark.netns

PINGS = 3
#: more frames than a kernel sends by itself when a device comes up (ARP, neighbours, MLD)
COUNT = 100
REQUEST, REPLY = 8, 0


@pytest.fixture(scope="module")
def pair(directory):
    # On the WebSocket path, where the hub carries the frames and the capture.
    with connected_pair(directory) as pair:
        pair.await_pings(15)
        yield pair


@contextmanager
def running(daemon, log: Path, *command: str):
    """Run a command that captures; the block begins once it does, the end is for it to find."""
    process = daemon.host.popen(*command, log=log)
    try:
        wait_until(lambda: daemon.status()["capture"]["since"], 15, "a capture runs")
        yield process
        process.wait(20)
    finally:
        process.kill()
        process.wait()


def cli(daemon, *arguments: object) -> list[str]:
    return [program("shadowmesh"), "--config", str(daemon.config_path), *map(str, arguments)]


def blocks_of(path: Path) -> list:
    return [block for _, block in Reader().receive(path.read_bytes())]


def echoes(blocks) -> Counter[tuple[int, int]]:
    """Count direction and ICMP type."""
    return Counter(
        (block.direction, block.data[34])
        for block in blocks
        if isinstance(block, Packet) and block.data[12:14] == b"\x08\x00" and block.data[23] == 1
    )


def test_tcpdump_shows_the_echoes_of_both_directions(pair, tmp_path):
    log, saved = tmp_path / "log", tmp_path / "saved"
    capture = shlex.join(cli(pair.left, "capture", "-w", "-"))
    pipeline = f"{capture} | tee {saved} | tcpdump -l -n -c {2 * PINGS} -r - icmp"
    with running(pair.left, log, "sh", "-c", pipeline):
        assert pair.left.host.ping(pair.right.tunnel_ip, count=PINGS).complete
    left, right, text = pair.left.tunnel_ip, pair.right.tunnel_ip, log.read_text()
    assert text.count(f"{left} > {right}: ICMP echo request") == PINGS, text
    assert text.count(f"{right} > {left}: ICMP echo reply") == PINGS, text
    assert echoes(blocks_of(saved)) == {(OUTBOUND, REQUEST): PINGS, (INBOUND, REPLY): PINGS}
    wait_until(lambda: not pair.left.status()["capture"]["since"], 15, "the daemon is told")


def test_the_count_ends_it_and_a_second_one_is_refused(pair, tmp_path):
    saved = tmp_path / "saved"
    command = cli(pair.right, "capture", "-w", saved, "-s", "60", "-c", COUNT)
    with running(pair.right, tmp_path / "log", *command) as process:
        second = pair.right.cli("capture")
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert "running already" in second.stderr
        assert pair.right.cli("status").stdout.count("somebody has been reading the frames") == 1
        assert pair.left.host.ping(pair.right.tunnel_ip, count=COUNT, size=1400).complete
    assert process.returncode == 0
    *_, last = blocks = blocks_of(saved)
    packets = [block for block in blocks if isinstance(block, Packet)]
    assert len(packets) == COUNT
    assert max(block.frame_bytes for block in packets) == 1442
    assert max(len(block.data) for block in packets) == 60
    assert (last.comment, last.received, last.dropped) == ("count reached", COUNT, 0)
    seen = [
        (event["message"], event["fields"].get("cause"))
        for event in pair.right.api("GET", "/events/recent")[1]["events"]
        if event["kind"] == "capture"
    ]
    assert seen[-2:] == [("capture started", None), ("capture ended", "count reached")]


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_a_capture_under_load_leaves_the_tunnel_alone(pair, tmp_path):
    saved = tmp_path / "saved"
    left, right = pair
    server = right.host.popen("iperf3", "-s", "-1", "-B", right.tunnel_ip, log=tmp_path / "server")
    listening = ("ss", "-Hlnt", "sport", "=", ":5201")
    before = left.status()
    load = None
    try:
        wait_until(lambda: right.host.run(*listening).stdout, 15, "iperf3 listens")
        with running(left, tmp_path / "log", *cli(left, "capture", "-w", saved)) as process:
            command = ["iperf3", "-c", right.tunnel_ip, "-t", "5", "-J"]
            load = left.host.popen(*command, log=tmp_path / "client")
            wait_until(lambda: left.status()["capture"]["frames"] > 100, 15, "frames are captured")
            process.send_signal(signal.SIGINT)
        assert load.poll() is None, "the capture ended while frames came all the time"
        assert load.wait(20) == 0
    finally:
        for child in (server, load):
            if child is not None:
                child.kill()
                child.wait()
    assert process.returncode == 0
    report = json.loads((tmp_path / "client").read_text())
    assert report["end"]["sum_received"]["bytes"] > 1_000_000
    *_, last = blocks = blocks_of(saved)
    assert isinstance(last, Statistics)
    assert last.comment == "asked to end"
    packets = [block for block in blocks if isinstance(block, Packet)]
    assert last.received == len(packets) + last.dropped
    assert any("segments of" in block.comment for block in packets)
    after = left.status()
    assert after["path"] == before["path"]
    assert after["session"]["established_at"] == before["session"]["established_at"]
    crossed = sum(
        after["counters"][name] - before["counters"][name] for name in ("frames_in", "frames_out")
    )
    assert last.received <= crossed
    pair.assert_pings()


def test_a_daemon_that_stops_ends_the_capture(pair, tmp_path):  # and stays down: the last test
    saved = tmp_path / "saved"
    with running(pair.right, tmp_path / "log", *cli(pair.right, "capture", "-w", saved)) as process:
        pair.right.terminate()
    assert process.returncode == 3
    assert "the daemon stops" in (tmp_path / "log").read_text()
    assert blocks_of(saved)[-1].ended_ns is not None
