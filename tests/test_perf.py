"""How the measurements of perf/ are read and judged; nothing here is timed."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf import __main__ as perf_program
from perf import ablation, beside, many, others, report, soak, targets, uring
from perf.lab import Lab, Lane, cpu_seconds
from perf.latency import RoundTrips, parse_round_trips
from perf.report import FAIL, PASS, SHOWN, SKIP, Failure, compared, percentile, unread
from perf.targets import at_least, at_most
from perf.tunnel import Readings, Trial, best_rate, by_path, parse_trial
from shadowmesh._fastpath import CIPHER_NAMES
from shadowmesh.fast.bench import Bench
from shadowmesh.link.tls import load_or_create_certificate
from shadowmesh.netlab import Host, NetlabError
from shadowmesh.service import switches


def test_a_ratio_is_judged_when_there_is_one_and_the_value_when_not():
    assert compared("g", "n", "u", [6], "vxlan", [10], at_least(0.6)).verdict == PASS
    assert compared("g", "n", "u", [6], "vxlan", [11], at_least(0.6)).verdict == FAIL
    assert compared("g", "n", "u", [3.0], target=at_most(3)).verdict == PASS
    assert compared("g", "n", "u", [3.1], target=at_most(3)).verdict == FAIL
    assert compared("g", "n", "u", [3.1]).verdict == SHOWN


def test_the_ratio_is_the_median_of_the_rounds_ratios_so_that_drift_cancels_out():
    # The machine slowed down by half in the last round, for both alike.
    row = compared("g", "n", "u", [40, 44, 20], "vxlan", [80, 80, 40])
    assert row.ratio == 0.5
    assert (row.value, row.reference_value) == (40, 80)


def test_a_reference_of_zero_does_not_stop_the_report():
    row = compared("g", "n", "u", [1.0], "vxlan", [0.0], at_most(3))
    assert row.ratio == math.inf
    assert row.verdict == FAIL
    assert "inf" in report.table([row])


def test_what_cannot_be_measured_here_is_skipped_and_what_broke_is_a_failure():
    missing = unread("g", "n", "u", Failure("no AEGIS-256 here"), at_least(1))
    broken = unread("g", "n", "u", Failure("fell back to wss", broken=True), at_least(1))
    assert (missing.verdict, broken.verdict) == (SKIP, FAIL)
    assert not report.failed([missing])
    assert report.failed([missing, broken])
    assert "no AEGIS-256 here" in report.table([missing])


def test_a_target_without_a_must_never_fails_but_tells_how_far_the_moonshot_is():
    near = compared("g", "n", "u", [0.6], "libsodium", [1.0], targets.SEAL_BESIDE_CIPHER)
    assert near.verdict == SHOWN
    assert near.moonshot == "1.50x to go"


@pytest.mark.parametrize(
    ("value", "target", "said"),
    [
        (0.8, at_least(0.5, 0.75), "reached"),
        (0.5, at_least(0.5, 0.75), "1.50x to go"),
        (2.0, at_most(3, 1), "2.00x to go"),
        (1.0, at_most(3, 1), "reached"),
        (1.0, at_most(3), ""),
        (0.0, at_least(0.5, 0.75), "0.75 to go"),
        (12, at_most(100, 0), "12 to go"),
    ],
)
def test_the_distance_to_the_moonshot_is_a_factor_unless_one_is_zero(value, target, said):
    assert compared("g", "n", "u", [value], target=target).moonshot == said


def test_the_table_names_target_value_ratio_and_verdict():
    row = compared("TCP", "udp aegis-256", "Gbit/s", [6.6], "vxlan", [11.0], at_least(0.55, 0.75))
    heading, group, line = report.table([row]).splitlines()
    assert group == "TCP"
    assert [*report.HEADINGS] == heading.split()
    for text in ("udp aegis-256", "6.6 Gbit/s", "vxlan 11", "0.60", ">= 0.55 x vxlan", PASS):
        assert text in line
    assert ">= 0.75 x vxlan" in line


def test_the_table_shows_how_far_the_rounds_differed_in_what_is_judged():
    of_ratios = compared("g", "n", "u", [4, 6, 5], "vxlan", [10, 10, 10], at_least(0.5))
    of_values = compared("g", "n", "u", [4, 6, 5], target=at_least(5))
    assert report.spread(of_ratios) == "0.4..0.6"
    assert report.spread(of_values) == "4..6"
    assert report.spread(compared("g", "n", "u", [4])) == ""


def test_the_json_file_has_every_round(tmp_path):
    path = tmp_path / "new" / "perf.json"
    report.write_json(path, [compared("g", "n", "u", [1, 2, 4], target=at_least(1))], quick=True)
    written = json.loads(path.read_text())
    assert written["rows"][0]["rounds"] == [1, 2, 4]
    assert written["rows"][0]["verdict"] == PASS
    assert written["rows"][0]["target"]["must"] == 1
    assert written["quick"] is True


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_has_that_share_of_the_values_at_or_below_it(values, percent):
    found = percentile(values, percent)
    assert found in values
    share = sum(value <= found for value in values) / len(values)
    assert share >= percent / 100 - 1e-9
    below = sum(value < found for value in values) / len(values)
    assert below <= percent / 100 or found == min(values)


def test_a_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.1234, "0.123"),
        (345_720, "346 k"),
        (2.5e6, "2.5 M"),
        (1234, "1234"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert report.number(value) == text


def test_round_trips_are_read_in_microseconds():
    assert parse_round_trips(["80000", "81500", "lost", "2"]) == ([80.0, 81.5], 2)


@pytest.mark.parametrize("words", [["lost", "3"], ["1", "2"], ["10", "found", "0"]])
def test_round_trips_that_are_none_are_an_error(words):
    with pytest.raises(ValueError, match=r"round trips|unpack"):
        parse_round_trips(words)


def test_a_trial_is_good_with_one_percent_lost_and_not_with_more():
    assert parse_trial(["10000", "9900", "0.5"], 0.5).good
    assert not parse_trial(["10000", "9899", "0.5"], 0.5).good
    assert not parse_trial(["0", "0", "0.0"], 0.5).good


def test_the_rate_of_a_trial_is_what_the_receiver_saw():
    trial = parse_trial(["10000", "9990", "1.0"], 0.5)
    assert (trial.sent_rate, trial.received_rate) == (20000, 9990)


def link(capacity, sender=math.inf):
    """A tunnel that carries `capacity` frames a second and drops the rest."""
    tried = []

    def trial(rate):
        tried.append(rate)
        sent = min(rate, sender)
        received = min(sent, capacity)
        return Trial(int(sent), int(received), received, sent)

    return trial, tried


@given(st.floats(5e3, 3e6), st.floats(10e3, 300e3))
def test_the_search_comes_close_to_what_a_link_can_carry(capacity, start):
    trial, tried = link(capacity)
    found = best_rate(trial, start)
    assert found <= capacity
    assert len(tried) < 30
    # A start far above the truth ends early, which the next round's start makes up for.
    if start <= capacity:
        assert found >= 0.9 * capacity


def test_the_search_ends_where_the_sender_is_the_limit():
    trial, tried = link(capacity=1e6, sender=100e3)
    assert best_rate(trial, 50e3) == 100e3
    assert tried[-1] <= 100e3 * 1.5 * 1.5


def test_the_search_gives_zero_when_every_frame_is_lost():
    assert best_rate(link(0)[0], 40e3) == 0


def test_each_lane_of_the_design_has_its_targets():
    lanes = {
        f"{path} {cipher}" for path in ("udp", "wss") for cipher in (targets.CHACHA, targets.AEGIS)
    }
    assert set(targets.STREAM) == lanes
    found = [
        target
        for one in vars(targets).values()
        for target in (one.values() if isinstance(one, dict) else [one])
        if isinstance(target, targets.Target) and None not in (target.must, target.moonshot)
    ]
    assert len(found) > 30
    for target in found:
        assert target.met(target.moonshot), target


def test_what_has_a_target_for_each_path_has_one_for_each_tunnel():
    assert by_path(targets.RTT_IDLE) == {
        f"{path} {cipher}": targets.RTT_IDLE[path]
        for path in ("wss", "udp")
        for cipher in (targets.CHACHA, targets.AEGIS)
    }


def test_without_pillow_everything_is_printed_and_the_picture_is_said_to_be_left_out(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "perf.picture", raising=False)
    row = compared("TCP, 1 stream", "udp", "Gbit/s", [6], "vxlan", [11], at_least(0.5))
    monkeypatch.setattr(perf_program.fps, "measure", lambda quick: iter([row]))
    assert perf_program.main(["--only", "fps", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "6 Gbit/s" in printed
    assert "no picture: Pillow is not installed" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["perf.json"]


def test_another_build_is_compared_only_when_it_is_what_runs(tmp_path, capsys):
    assert perf_program.main(["--beside", str(tmp_path)]) == 1
    assert f"{tmp_path}: no build there; run `make build` in it" in capsys.readouterr().err
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "shadowmesh-daemon").touch()
    kinds = beside.tunnels(tmp_path)
    assert len({kind.name for kind in kinds}) == len(kinds) == 12
    assert [kind.programs for kind in kinds[:3]] == [None, None, tmp_path / ".venv" / "bin"]
    host, lab = Stage(1), Lab(tmp_path)
    for title in (beside.AGAIN, beside.BEFORE):
        # this process has our data plane, so it is the one and not the other
        lane = Lane(f"udp {title}", host, host, ("", ""), daemons=(Running(),))
        lab.lanes = {lane.name: lane}
        if title == beside.AGAIN:
            beside.check(lab, tmp_path)
        else:
            with pytest.raises(NetlabError, match="runs another build's data plane"):
                beside.check(lab, tmp_path)


class Running:
    """A process that runs: this one."""

    pid = os.getpid()


def test_a_plain_cable_cuts_and_joins_neither_tcp_nor_udp(tmp_path):
    host, lab = Stage(1), Lab(tmp_path)
    lab.lanes["veth"] = Lane("veth", host, host, ("", ""))
    with pytest.raises(RuntimeError), lab.plain_cables():
        raise RuntimeError
    off, on = (command[3:] for command in host.ran)
    assert " ".join(off) == "tso off gso off gro off tx-udp-segmentation off"
    assert on == [word.replace("off", "on") for word in off]


def test_each_round_has_its_percentile_and_its_ratio_to_the_reference_of_that_round(tmp_path):
    lab, trips = Lab(tmp_path), RoundTrips()
    for name, rounds in {"vxlan": [(10, 20), (30, 40)], "udp": [(30, 60), (60, 80)]}.items():
        lane = lab.lanes[name] = Lane(name, Stage(1), Stage(2), ("", ""))
        for times in rounds:
            trips.add(lane, [*(f"{us}000" for us in times), "lost", "0"])
    readings = Readings(lab).derived(trips.percentiles(99, "us"))
    row = readings.row("g", "udp", "us", "vxlan", at_most(2.5))
    assert row.rounds == (60, 80)
    assert row.ratios == (3, 2)
    assert (row.ratio, row.spread, row.verdict) == (2.5, (2, 3), PASS)


def test_the_picture_is_a_png(tmp_path):
    picture = pytest.importorskip("perf.picture", reason="needs Pillow: make perf installs it")
    group = picture.SHOWN[0]
    rows = [
        compared(group, "veth", "Gbit/s", [15], "vxlan", [11]),
        compared(group, "udp aegis-256", "Gbit/s", [6], "vxlan", [11], at_least(0.55, 0.75)),
        unread(group, "wss aegis-256", "Gbit/s", Failure("no AEGIS-256 here")),
    ]
    picture.draw(tmp_path / "perf.png", rows)
    assert (tmp_path / "perf.png").read_bytes().startswith(b"\x89PNG")
    picture.draw(tmp_path / "none.png", [])
    assert not (tmp_path / "none.png").exists()


def test_the_ablation_leaves_out_only_what_exists_and_each_thing_once():
    kinds = ablation.TUNNELS
    assert {kind.without for kind in kinds} - {""} == set(switches.MEANING)
    assert len({kind.name for kind in kinds}) == len(kinds)


def test_what_is_compared_is_read_in_alternating_order():
    order = []
    reads = {name: lambda name=name: order.append(name) or len(order) for name in ("one", "many")}
    assert many.in_turns(3, reads) == {"one": [1, 4, 5], "many": [2, 3, 6]}
    assert order == ["one", "many", "many", "one", "one", "many"]


def test_a_reading_that_fails_is_the_failure_of_all_beside_it():
    def fail() -> float:
        raise NetlabError("no session\nand a log")

    found = many.in_turns(2, {"one": lambda: 1.0, "many": fail})
    assert found == Failure("many: no session", broken=True)
    rows = list(many.shown("g", "us", found, ["one", "many"], "one", at_most(1.1)))
    assert [row.verdict for row in rows] == [FAIL, FAIL]


def test_only_what_stands_beside_the_reference_is_judged():
    found = {"one": [10.0, 20.0], "many": [12.0, 24.0]}
    one, beside = many.shown("g", "us", found, ["one", "many"], "one", at_most(1.1))
    assert (one.verdict, one.ratio) == (SHOWN, None)
    assert (beside.verdict, beside.ratio) == (FAIL, 1.2)


def test_the_table_of_the_switch_is_timed_with_so_many_addresses_as_it_holds():
    fresh, known = Bench(CIPHER_NAMES["chacha20-poly1305"], True).switch(8192, 2, 1)
    assert fresh > 0
    assert known > 0
    for addresses, turns in ((0, 1), (8193, 1), (8, 0)):
        with pytest.raises(ValueError, match="out of range"):
            Bench(CIPHER_NAMES["chacha20-poly1305"], True).switch(addresses, turns, 0)


class Relay:
    """A lane whose streams go through a thread that may alter one byte."""

    name = "relay"

    def __init__(self, altered: int | None) -> None:
        self._altered = altered

    def streams(self, count: int) -> list[socket.socket]:
        out, ours = socket.socketpair()
        theirs, into = socket.socketpair()
        threading.Thread(target=self._carry, args=(ours, theirs), daemon=True).start()
        return [out, into]

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        seen = 0
        with source, sink:
            while data := bytearray(source.recv(1 << 16)):
                if self._altered is not None and 0 <= self._altered - seen < len(data):
                    data[self._altered - seen] ^= 1
                seen += len(data)
                sink.sendall(data)


@pytest.mark.parametrize("altered", [None, 0, 3 * soak.BLOCK_BYTES - 1])
def test_a_soak_notices_one_altered_bit(altered):
    sent, received = soak.send(Relay(altered), 3 * soak.BLOCK_BYTES)
    assert (sent == received) == (altered is None)


def test_the_cpu_time_of_a_process_counts_threads_that_have_ended():
    code = (
        "import threading, sys\n"
        "thread = threading.Thread(target=lambda: sum(range(3_000_000)))\n"
        "thread.start(); thread.join()\n"
        "print('done', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        main = int(Path(f"/proc/{child.pid}/schedstat").read_text().split()[0]) / 1e9
        assert cpu_seconds(child.pid) > main


def test_the_heap_of_a_process_can_be_read():
    before = soak.heap_bytes(os.getpid())
    with mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE) as fresh:
        fresh.write(b"\1" * len(fresh))
        # what the garbage of other tests gives back meanwhile is not counted against it
        assert soak.heap_bytes(os.getpid()) >= before + len(fresh) // 2


def name_of(way: object) -> str:
    return f"{way.word}-{way.depth}" if isinstance(way, uring.Way) else str(way)


def moved(verb: str, seconds: float, *more: object) -> uring.Reading:
    """Move frames for so long, or longer where the machine stood still and none came through."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("needs a C compiler")
    try:
        for factor in (1, 10):
            with contextlib.suppress(ValueError):
                return uring.run(verb, factor * seconds, *more)
        return uring.run(verb, 100 * seconds, *more)
    except uring.Unsupported as error:
        pytest.skip(f"needs io_uring: {error}")


@pytest.mark.parametrize("way", uring.READS, ids=name_of)
@pytest.mark.parametrize("rate", [20_000, 0, -1])
def test_each_way_of_reading_finds_the_frames_of_each_sender(way, rate):
    # A pair of sockets stands in for the TAP: no io_uring is told what kind of file it has.
    device, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with device, sender:
        device.setblocking(False)
        reading = moved("read", 0.05, way, [64, rate], [device.fileno(), sender.fileno()])
    assert reading.frames_per_second > 0
    assert reading.cpu_ns > 0


@pytest.mark.parametrize("way", uring.WRITES, ids=name_of)
def test_each_way_of_writing_writes_whole_frames(way):
    with open("/dev/null", "wb") as device:
        assert moved("write", 0.02, way, [], [device.fileno()], bytes(64)).frames_per_second > 0


@pytest.mark.parametrize("way", uring.WRITES, ids=name_of)
def test_a_write_that_fails_is_an_error_and_not_a_figure(way):
    with open("/dev/null", "rb") as device, pytest.raises(NetlabError, match="Bad file descriptor"):
        moved("write", 0.02, way, [], [device.fileno()], bytes(64))


def test_what_a_run_of_uring_printed_is_frames_and_their_cost():
    assert uring.parse("1000 500000 2000000") == uring.Reading(2e6, 2000)
    with pytest.raises(ValueError, match="no frame"):
        uring.parse("0 500000 2000000")


def test_the_frames_that_are_written_are_whole_packets():
    for title, data in uring.frames(bytes(6)).items():
        ethernet = data[10:]
        packet = ethernet[14:]
        assert int.from_bytes(packet[2:4]) == len(packet)
        assert uring.internet_checksum(packet[:20]) == 0
        assert (len(ethernet) == 64) == title.startswith("64-byte")


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("tinc version 1.0.36\nCopyright (C) 1998-2019 Ivo Timmermans", "1.0.36"),
        ("OpenVPN 2.6.14 x86_64-pc-linux-gnu [SSL (OpenSSL)]", "2.6.14"),
        ("fastd v22", "22"),
        ("Welcome to n2n v.1.3.2 for unknown\nBuilt on 04/17/18", "1.3.2"),
        ("wireguard-go v0.0.20220316\n\nUserspace WireGuard daemon", "0.0.20220316"),
        ("usage: edge", ""),
    ],
)
def test_the_version_of_another_program_is_read_from_its_banner(banner, version):
    assert others.parse_version(banner) == version


def test_a_program_that_is_not_installed_is_skipped_with_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in others.PROGRAMS:
        row = unread("g", program.name, "u", program.missing())
        assert row.verdict == SKIP
        assert row.why == f"{program.banner[0]} is not installed"
    (tmp_path / "fastd").touch(mode=0o755)
    assert [p.name for p in others.PROGRAMS if p.missing() is None] == ["fastd"]


class Stage(Host):
    """A host on which nothing is started, only noted: command lines, and files at that time."""

    def __init__(self, number: int) -> None:
        super().__init__("nowhere", "stage", number)
        self.commands: list[list[str]] = []
        self.ran: list[list[str]] = []

    def popen(self, *command, log, env=None):
        self.commands.append(list(command))
        self.environment = env

    def run(self, *command, **_):
        self.ran.append(list(command))
        return subprocess.CompletedProcess(command, 0, stdout=f"0.0.0.0:{others.N2N_PORT}")

    def interfaces(self):
        return {"tunnel1": {}, "tunnel2": {}}


@pytest.fixture
def sides(tmp_path):
    """Two sides of a tunnel of others; their directories are `1` and `2`."""
    hosts = Stage(1), Stage(2)
    for host in hosts:
        (tmp_path / str(host.number)).mkdir()
    return tuple(
        others.Side(host, peer, tmp_path / str(host.number), f"tunnel{host.number}")
        for host, peer in zip(hosts, reversed(hosts), strict=True)
    )


def written(side):
    """The files of a side by name, all of which must be for their owner alone."""
    files = [path for path in side.directory.rglob("*") if path.is_file()]
    assert not [path for path in files if path.stat().st_mode & 0o077 and path.name != "cert.pem"]
    return {str(path.relative_to(side.directory)): path.read_text() for path in files}


def test_tinc_is_told_both_keys_and_keeps_one_of_its_own(sides):
    others.tinc(sides)
    left, right = map(written, sides)
    assert left["rsa_key.priv"] != right["rsa_key.priv"]
    for number in (1, 2):
        assert left[f"hosts/host{number}"] == right[f"hosts/host{number}"]
        assert (
            f"Address = 198.51.100.{number}\n-----BEGIN RSA PUBLIC" in left[f"hosts/host{number}"]
        )
    assert "Name = host1\nConnectTo = host2\nMode = switch\n" in left["tinc.conf"]


def test_openvpn_trusts_the_certificate_of_the_other_side_alone(sides):
    others.openvpn(sides)
    for own, other in (sides, reversed(sides)):
        certificate = other.directory / "cert.pem"
        fingerprint = load_or_create_certificate(certificate, other.directory / "key.pem").sha256
        config = written(own)["openvpn.conf"]
        assert f"peer-fingerprint {fingerprint.hex(':')}\n" in config
        assert f"local {own.host.ipv4}\nremote {other.host.ipv4}\n" in config
    assert "tls-server" in written(sides[0])["openvpn.conf"]
    assert "tls-client" in written(sides[1])["openvpn.conf"]


def test_fastd_has_the_other_sides_key_and_one_side_dials(sides, monkeypatch):
    keys = iter([("secret1", "public1"), ("secret2", "public2")])
    monkeypatch.setattr(others, "fastd_keys", lambda: next(keys))
    others.fastd(sides)
    left, right = (written(side)["fastd.conf"] for side in sides)
    assert 'secret "secret1"' in left
    assert 'key "public2"' in left
    assert 'secret "secret2"' in right
    assert 'key "public1"; remote 198.51.100.1:10000;' in right
    assert "remote" not in left


@pytest.mark.parametrize("banner", ["Welcome to n2n v.1.3.2", "Welcome to n2n v.3.1.1"])
def test_the_key_of_n2n_is_not_in_its_arguments(sides, monkeypatch, banner):
    told = subprocess.CompletedProcess((), 0, stdout=banner, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)
    others.n2n(sides)
    (supernode, left), (right,) = (side.host.commands for side in sides)
    key = sides[0].host.environment["N2N_KEY"]
    assert sides[1].host.environment["N2N_KEY"] == key
    assert key not in " ".join([*supernode, *left, *right])
    assert ("-f" in left) == ("-f" in supernode) == ("v.3" in banner)


def test_wireguard_go_gets_its_keys_by_its_socket(sides, monkeypatch, tmp_path):
    monkeypatch.setattr(others, "WIREGUARD_SOCKETS", tmp_path)
    taken = []

    def answer(control):
        with control, control.accept()[0] as connection:
            taken.append(dict(line.split("=") for line in connection.recv(4096).decode().split()))
            connection.sendall(b"errno=0\n\n")

    threads = []
    for side in sides:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(str(tmp_path / f"{side.device}.sock"))
        control.listen()
        threads.append(threading.Thread(target=answer, args=(control,), daemon=True))
        threads[-1].start()
    others.wireguard_go(sides)
    for thread in threads:
        thread.join(5)
    endpoints = {words["endpoint"] for words in taken}
    assert endpoints == {"198.51.100.1:51820", "198.51.100.2:51820"}
    privates = {words["private_key"] for words in taken}
    assert len(privates) == 2
    commands = [word for side in sides for line in side.host.commands for word in line]
    assert not privates & set(commands)
    assert not any(map(written, sides))


def test_another_program_that_breaks_fails_no_target_of_ours(tmp_path):
    host = Stage(1)
    lab = Lab(tmp_path)
    lab.lanes["ours"] = Lane("ours", host, host, ("", ""))
    lab.lanes["theirs"] = Lane("theirs", host, host, ("", ""), programs=(subprocess.Popen("true"),))
    lab.lanes["theirs"].programs[0].wait()
    readings = Readings(lab)

    def read(lane):
        if lane.name == "ours":
            raise NetlabError("no answer")
        return 1.0

    readings.take(1, read)
    rows = [readings.row("g", name, "u") for name in lab.lanes]
    assert [row.verdict for row in rows] == [FAIL, SKIP]
    assert rows[1].why == "theirs: exit 0"
