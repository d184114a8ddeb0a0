"""`shadowmesh capture`, against a daemon that pretends."""
# ruff: noqa: F811

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from shadowmesh.base.constants import CAPTURE_DAEMON_STOPS
from shadowmesh.insight import pcapng
from shadowmesh.insight.capture import Captures
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.insight.pcapng import INBOUND, OUTBOUND, Packet, Reader, Statistics
from tests.cli.test_program import (  # noqa: F401
    NOBODY,
    answering,
    assert_failed,
    control,
    invoke,
    run,
    token_file,
)
from tests.control.fake_control import TOKEN, make_app, serving
from tests.fakes import FakePlane
from tests.insight.test_capture import eventually

#: 03:04:05.678901234 in UTC
NOW_NS = 1_767_323_045_678_901_234
MAC_1, MAC_2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
MACS = bytes.fromhex("020000000002020000000001")
IPV4 = MACS + b"\x81\x00\x00\x0c\x08\x00" + b"echo" * 21
ARP = (
    b"\xff" * 6
    + MACS[6:]
    + b"\x08\x06"
    + bytes.fromhex("00010800060400010200000000010a0000010000000000000a000002")
)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-pcapng\r\n\r\n"


@pytest.fixture
def plane():
    return FakePlane()


@pytest.fixture
def captures(plane):
    return Captures(plane, lambda: "tap0", FlightRecorder())


@pytest.fixture
def served(control, captures):
    with serving(lambda address: make_app(control, address, captures=captures)) as address:
        yield address


@pytest.fixture
def program(served, token_file):
    """Start the program as a process of its own."""
    started = []

    def begin(*arguments, **options):
        command = [sys.executable, "-m", "shadowmesh.cli", "--api", f"http://{served}"]
        process = subprocess.Popen(
            [*command, "--token-file", str(token_file), *arguments],
            stderr=subprocess.PIPE,
            **options,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def blocks_of(data: bytes) -> list:
    return [block for _, block in Reader().receive(data)]


def packets(data: bytes) -> list[Packet]:
    return [block for block in blocks_of(data) if isinstance(block, Packet)]


# --- Lines ------------------------------------------------------------------------------------


def test_a_line_for_each_frame(run, plane, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    plane.add(
        (NOW_NS, OUTBOUND, len(ARP), 0, ARP),
        (NOW_NS + 1, INBOUND, 20_000, 1448, IPV4),
        (NOW_NS + 2, INBOUND, 1500, 0, MACS + b"\x12\x34"),
        (NOW_NS + 3, INBOUND, 1500, 0, MACS),
    )
    result = run("capture", "-c", "4")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"03:04:05.678901234 out {MAC_1} > ff:ff:ff:ff:ff:ff ARP 42 10.0.0.1 asks for 10.0.0.2",
        f"03:04:05.678901235 in  {MAC_1} > {MAC_2} VLAN 12 IPv4 20000 no IPv4 header (segments of 1448 bytes)",
        f"03:04:05.678901236 in  {MAC_1} > {MAC_2} 0x1234 1500",
        "03:04:05.678901237 in  ? > ? no Ethernet frame 1500 cut short",
    ]
    assert result.stderr.splitlines() == ["capturing on tap0", "4 frames captured"]


def test_a_line_of_json_for_each_frame_and_one_at_the_end(run, plane):
    plane.dropped = 7
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
    result = run("--json", "capture", "-c", "1")
    frame, end = map(json.loads, result.stdout.splitlines())
    assert frame == {
        "schema": 1,
        "time_ns": NOW_NS,
        "direction": "out",
        "source": "02:00:00:00:00:01",
        "destination": "ff:ff:ff:ff:ff:ff",
        "ethertype": "0x0806",
        "vlans": [],
        "inner_ethertype": "0x0806",
        "detail": "10.0.0.1 asks for 10.0.0.2",
        "length": 42,
        "remark": None,
    }
    assert end["schema"] == 1
    assert end["summary"]["frames"] == 1
    assert end["summary"]["dropped"] == 7
    assert end["summary"]["cause"] == "count reached"


def test_what_was_left_out_is_told_at_the_end(run, plane):
    plane.dropped = 1234
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
    result = run("capture", "-c", "1")
    assert "1 frame captured, 1,234 left out" in result.stderr
    assert "--snaplen" in result.stderr


def test_the_options_reach_the_daemon(run, plane):
    result = run("capture", "--snaplen", "96", "--duration", "10ms")
    assert result.exit_code == 0
    assert "0 frames captured" in result.stderr
    assert plane.captured == 1


# --- Files ------------------------------------------------------------------------------------


def test_a_file_holds_the_capture_and_is_for_its_owner_only(run, plane, tmp_path):
    path = tmp_path / "tunnel.pcapng"
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP), (NOW_NS, INBOUND, len(IPV4), 0, IPV4))
    result = run("capture", "-w", path, "-c", "2")
    assert (result.exit_code, result.stdout) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = packets(path.read_bytes())
    assert [(one.direction, one.data) for one in found] == [(OUTBOUND, ARP), (INBOUND, IPV4)]


def test_a_file_that_others_may_read_is_replaced_and_not_written_to(run, plane, tmp_path):
    path, other_name = tmp_path / "tunnel.pcapng", tmp_path / "other"
    path.write_text("of another time")
    path.chmod(0o644)
    other_name.hardlink_to(path)
    with path.open() as held:
        plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
        assert run("capture", "-w", path, "-c", "1").exit_code == 0
        assert held.read() == "of another time"
    assert other_name.read_text() == "of another time"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(packets(path.read_bytes())) == 1
    assert {entry.name for entry in tmp_path.iterdir()} >= {"tunnel.pcapng", "other"}
    assert not list(tmp_path.glob(".*"))


def test_a_symbolic_link_is_not_followed(run, plane, captures, tmp_path):
    target = tmp_path / "target"
    for content in ("precious", None):
        link = tmp_path / f"link-{content}"
        link.symlink_to(target)
        if content is None:
            target.unlink()
        else:
            target.write_text(content)
        assert_failed(run("capture", "-w", link), 1, str(link), "symbolic link")
        assert (target.read_text() if target.exists() else None) == content
    eventually(lambda: captures.report() is None)


def test_a_pipe_is_written_to_as_it_is(run, plane, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert run("capture", "-w", pipe, "-c", "1").exit_code == 0
    reader.join(10)
    assert len(packets(read[0])) == 1
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_json_with_a_file_is_the_summary_alone(run, plane, tmp_path):
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
    result = run("--json", "capture", "-w", tmp_path / "file", "-c", "1")
    assert json.loads(result.stdout)["frames"] == 1


def test_a_file_that_cannot_be_written_leaves_no_capture_behind(run, plane, captures, tmp_path):
    assert_failed(run("capture", "-w", tmp_path / "none" / "x"), 1, "none/x", "No such file")
    eventually(lambda: captures.report() is None)


def test_a_full_disk_is_told(run, plane):
    result = run("capture", "-w", "/dev/full")
    assert result.exit_code == 1
    assert "error: cannot write to /dev/full: No space left on device" in result.stderr


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_tcpdump_reads_what_comes_through_the_pipe(program, plane):
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
    capture = program("capture", "-w", "-", stdout=subprocess.PIPE)
    tcpdump = subprocess.run(
        ["tcpdump", "-c", "1", "-en", "-r", "-"],
        stdin=capture.stdout,
        capture_output=True,
        check=True,
    )
    assert b"02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff, ethertype ARP" in tcpdump.stdout
    capture.stdout.close()
    # tcpdump is gone; that nobody reads any more is found out with the next statistics.
    _, said = capture.communicate(timeout=10)
    assert said.decode().splitlines() == ["capturing on tap0", "1 frame captured"]
    assert capture.returncode == 0


def test_a_terminal_gets_no_pcapng(program, plane):
    ours, theirs = pty.openpty()
    try:
        process = program("capture", "-w", "-", stdout=theirs)
        _, said = process.communicate(timeout=10)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 2
    assert b"terminal" in said
    assert plane.captured == 0


# --- The end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_all_that_was_seen(program, plane, captures, number):
    process = program("capture", "-w", "-", stdout=subprocess.PIPE)
    eventually(lambda: plane.snap_bytes is not None)
    assert process.stderr.readline() == b"capturing on tap0\n"
    plane.add((time.time_ns(), OUTBOUND, len(ARP), 0, ARP))
    process.send_signal(number)
    data, said = process.communicate(timeout=10)
    assert process.returncode == 0
    *_, packet, last = [b for b in blocks_of(data) if isinstance(b, Packet | Statistics)]
    assert packet.data == ARP
    assert last.comment == "asked to end"
    assert said == b"1 frame captured\n"
    eventually(lambda: captures.report() is None)


def test_a_program_that_is_killed_leaves_whole_blocks_and_no_capture(
    program, plane, captures, tmp_path
):
    path = tmp_path / "file"
    process = program("capture", "-w", str(path))
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
    eventually(lambda: path.exists() and packets(path.read_bytes()))
    process.kill()
    eventually(lambda: captures.report() is None)
    assert packets(path.read_bytes())[0].data == ARP


def test_a_daemon_that_stops_is_told_and_the_file_is_whole(program, plane, captures, tmp_path):
    path = tmp_path / "file"
    process = program("capture", "-w", str(path))
    eventually(lambda: plane.snap_bytes is not None)
    captures.stop()
    _, said = process.communicate(timeout=10)
    assert process.returncode == 3
    assert said.decode().splitlines()[-1].startswith("error: the capture ended early")
    assert blocks_of(path.read_bytes())[-1].comment == CAPTURE_DAEMON_STOPS


def test_an_answer_that_is_cut_off_is_told(token_file, tmp_path):
    begin = pcapng.section(pcapng.Section()) + pcapng.packet(NOW_NS, OUTBOUND, 42, ARP)
    path = tmp_path / "file"
    with answering(OK + begin + pcapng.packet(NOW_NS, OUTBOUND, 42, ARP)[:50]) as url:
        result = invoke("--api", url, "--token-file", token_file, "capture", "-w", path)
    assert result.exit_code == 3
    assert "cut off" in result.stderr
    assert path.read_bytes() == begin


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}" * 100])
def test_an_answer_that_is_no_capture_is_told(token_file, body):
    with answering(OK + body) as url:
        assert_failed(
            invoke("--api", url, "--token-file", token_file, "capture"), 1, "no capture", "--api"
        )


def test_a_second_capture_is_refused(run, captures, served):
    stream = captures.start(snap_bytes=64, count=None, duration_s=None, sock=None, who="us")
    try:
        assert_failed(run("capture"), 1, "running already")
    finally:
        stream.close()


def test_a_capture_without_a_daemon_exits_with_3(token_file):
    assert_failed(invoke("--api", NOBODY, "--token-file", token_file, "capture"), 3, NOBODY)


def test_a_wrong_token_is_refused(served, plane, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("x" * len(TOKEN))
    result = invoke("--api", f"http://{served}", "--token-file", wrong, "capture")
    assert_failed(result, 4, "token")
    assert plane.captured == 0


@pytest.mark.parametrize(
    "arguments", [["-s", "0"], ["-s", "262145"], ["-c", "0"], ["--duration", "x"], ["extra"]]
)
def test_wrong_options_of_capture_are_usage_errors(run, plane, arguments):
    assert_failed(run("capture", *arguments), 2)
    assert plane.captured == 0


def test_the_frames_of_one_peer_are_asked_for_by_its_name(control, token_file, plane):
    ports = {"nas": object()}
    recorder = FlightRecorder()
    captures = Captures(plane, lambda: "tap0", recorder, port_of=ports.__getitem__)
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
    with serving(lambda address: make_app(control, address, captures=captures)) as address:
        result = invoke("--api", f"http://{address}", "--token-file", token_file,
                        "capture", "--peer", "nas", "-c", "1")  # fmt: skip
    assert result.exit_code == 0
    assert plane.port is ports["nas"]
    assert recorder.recent()[0].fields["name"] == "nas"


def test_without_a_name_the_frames_of_all_are_captured(run, plane):
    plane.add((NOW_NS, OUTBOUND, len(ARP), 0, ARP))
    assert run("capture", "-c", "1").exit_code == 0
    assert plane.port is None


def test_a_capture_of_a_peer_that_there_is_not_is_refused(run, plane):
    assert_failed(run("capture", "--peer", "nsa"), 1, 'no peer "nsa"')
    assert plane.captured == 0
