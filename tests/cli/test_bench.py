"""`shadowmesh bench`: figures that are read for real, in rounds that are too short to mean much."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from shadowmesh.cli import benchmark
from shadowmesh.cli.commands import bench
from tests.cli.test_program import assert_failed, invoke


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUND_S", 0.0005)


def test_every_cipher_and_size_is_read_in_every_round():
    said: list[str] = []
    found = list(benchmark.read_all(2, said.append))
    assert [(one.cipher, one.frame_bytes) for one in found] == [
        (cipher, size) for cipher in benchmark.ciphers() for size in benchmark.SIZES
    ]
    for one in found:
        assert one.rounds.keys() == {*benchmark.CALLS, *benchmark.ALONE}
        assert all(len(rates) == 2 and min(rates) > 1000 for rates in one.rounds.values())
    assert said == [f"{one.cipher}, {one.frame_bytes} bytes" for one in found]


def test_the_figures_are_a_table_and_no_progress_goes_into_a_pipe():
    result = invoke("bench", "--quick")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "cores" in lines[0]
    rows = [line.split() for line in lines if line.startswith("chacha20-poly1305 ")]
    assert [row[1] for row in rows] == ["64", "512", "1400"]
    assert all(len(row) == 2 + 2 * 6 for row in rows)  # six rates, each with its unit
    assert "two daemons" not in result.stdout


STREAM = {
    "path": "udp", "cipher": "aegis-256", "tcp_bits_per_second": 3_210_000_000,
    "round_trip_ms": 0.125, "detail": None,
}  # fmt: skip


def test_the_figures_of_a_tunnel_stand_below(monkeypatch):
    monkeypatch.setattr(bench, "_tunnel", lambda *_: [STREAM])
    line = invoke("bench", "--quick", "--tunnel").stdout.splitlines()[-1]
    assert line.split() == ["udp", "aegis-256", "3.21", "Gbit/s", "0.12", "ms"]


def test_a_path_that_could_not_be_measured_is_named_and_the_others_are_shown(monkeypatch):
    broken = {**STREAM, "path": "wss", "detail": "no ping was answered"}
    monkeypatch.setattr(bench, "_tunnel", lambda *_: [STREAM, broken])
    result = invoke("bench", "--quick", "--tunnel")
    assert_failed(result, 1, "wss aegis-256: no ping was answered")
    assert "3.21 Gbit/s" in result.stdout
    result = invoke("--json", "bench", "--quick", "--tunnel")
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout)["tunnel"] == [STREAM, broken]


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [(4, 4, "cannot be measured"), (7, 1, "not measured to the end")],
)
def test_a_tunnel_that_cannot_be_made_is_one_line(monkeypatch, code, exit_code, words):
    child = f"import sys; print('no right\\nat all', file=sys.stderr); sys.exit({code})"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda _, **more: popen([sys.executable, "-c", child], **more)
    )
    assert_failed(invoke("bench", "--quick", "--tunnel"), exit_code, words, "no right at all")


@pytest.mark.netns
def test_two_daemons_are_measured_on_both_paths_and_leave_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "shadowmesh.netlab.tunnelbench", "--seconds", "0.2", "chacha20-poly1305"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["about"] for one in told[::2]] == [
        "udp chacha20-poly1305", "wss chacha20-poly1305",
    ]  # fmt: skip
    for one in told[1::2]:
        assert one["detail"] is None
        assert one["tcp_bits_per_second"] > 1e6
        assert 0 < one["round_trip_ms"] < 1000
