"""The fault catalogue is whole: each row is done, bounded, and has a short case in `make test`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from faults import __main__ as program
from faults import report, runner
from faults.canaries import Watch
from faults.catalogue import NAMES, Row, rows
from faults.nonces import HEADER, NonceWatch
from faults.report import FAIL, PASS, Outcome
from shadowmesh.netlab import wait_until
from tests.lab import faults
from tests.lab.pair import connected_pair

TESTS = Path(__file__).parent
ROWS = {row.name: row for row in rows()}


def outcome(**changed):
    values = {
        "row": "peer crash", "piece": 0, "seed": 7, "verdict": PASS, "expected": "back",
        "measured": "1 s", "failure": "", "seconds": 3.0,
    }  # fmt: skip
    return Outcome(**{**values, **changed})


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_row_of_the_catalogue_is_done_and_has_a_short_case(name):
    row = ROWS[name]
    assert row.short
    for case in row.short:
        path, _, function = case.partition("::")
        assert function in names_in(TESTS / path), case
    assert 0 < row.bound_s <= row.long_bound_s
    assert row.long_bound_s <= 3600 + 600, "a piece of a long run is an hour"


def test_no_row_has_vanished():
    assert len(NAMES) == len(set(NAMES)) >= 52
    assert {"soak", "a thousand starts", "tunnel inside itself", "TLS key updates"} <= set(NAMES)


def a_row(**changed) -> Row:
    values = {
        "name": "peer crash", "expected": "back", "bound_s": 30.0, "long_bound_s": 30.0,
        "run": lambda bench: None, "loads": False, "short": (), "pieces": 1,
    }  # fmt: skip
    return Row(**{**values, **changed})


def test_an_outcome_survives_its_line_of_json(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    both = [outcome(), outcome(row="soak", piece=3, verdict=FAIL, failure="lost")]
    for one in both:
        report.append(path, one)
    assert report.read(path) == both
    assert report.read(tmp_path / "none") == []


def test_the_table_has_a_line_for_each_row_and_says_why_one_failed():
    text = report.table(
        [outcome(), outcome(row="soak", piece=3, verdict=FAIL, failure="lost " * 30)]
    )
    assert "peer crash" in text
    assert "soak 3" in text
    assert text.count("lost") == 30
    assert max(map(len, text.splitlines())) < 150
    assert report.judgement([outcome(), outcome(verdict=FAIL)]) == "1 rows hold, 1 do not"


def test_rows_are_chosen_by_a_part_of_their_name_or_a_pattern(capsys):
    assert program.main(["--list", "--only", "tap"]) == 0
    assert "TAP deleted" in capsys.readouterr().out
    assert program.main(["--list", "--only", "*starts"]) == 0
    assert capsys.readouterr().out.startswith("a thousand starts")
    assert program.main(["--list", "--only", "no such row"]) == 2


def run_fake(monkeypatch, tmp_path, row, script):
    """Run a job whose process is a line of shell instead of `python -m faults.one`."""
    monkeypatch.setattr(runner, "NAMESPACES", ("sh", "-c", script, "sh"))
    told = []
    jobs = [runner.Job(row, 0, 7, long=False)]
    outcomes = runner.run(jobs, tmp_path / "logs", 2, told.append)
    assert outcomes == told
    return outcomes[0]


def test_a_row_that_writes_its_result_is_read(monkeypatch, tmp_path):
    result = json.dumps({"figures": ["1 s", "2 s"], "failure": ""})
    # the words after `sh`: python -m faults.one ROW PLACE SEED LONG
    found = run_fake(monkeypatch, tmp_path, a_row(), f"echo '{result}' > \"$5/result.json\"")
    assert (found.verdict, found.measured) == (PASS, "1 s; 2 s")


def test_a_row_that_dies_fails_with_its_last_words(monkeypatch, tmp_path):
    found = run_fake(monkeypatch, tmp_path, a_row(), "echo out of luck >&2; exit 3")
    assert found.verdict == FAIL
    assert "out of luck" in found.failure


def test_a_row_that_does_not_end_is_ended(monkeypatch, tmp_path):
    script = 'echo "1 s" > "$5/figures.txt"; exec sleep 600'
    found = run_fake(monkeypatch, tmp_path, a_row(bound_s=3.0), script)
    assert (found.verdict, found.measured) == (FAIL, "1 s")
    assert found.failure == "not through after 3 s"


def test_rows_that_load_the_machine_come_last_and_alone(monkeypatch, tmp_path):
    script = 'echo "begin $4" >> order; sleep 0.3; echo "end $4" >> order; exit 1'
    monkeypatch.setattr(runner, "NAMESPACES", ("sh", "-c", script, "sh"))
    monkeypatch.chdir(tmp_path)
    rows_of_two = [a_row(name="loud", loads=True), a_row(name="one"), a_row(name="two")]
    jobs = [runner.Job(row, 0, 7, long=False) for row in rows_of_two]
    found = runner.run(jobs, tmp_path / "logs", 2, lambda one: None)
    assert [one.row for one in found] == ["loud", "one", "two"]
    assert (tmp_path / "order").read_text().splitlines()[-2:] == ["begin loud", "end loud"]


def test_a_repeated_nonce_is_seen_and_a_repeated_datagram_is_not():
    watch = NonceWatch.__new__(NonceWatch)
    watch.seen, watch.repeated = {}, []
    watch._thread = threading.current_thread()

    def datagram(counter: int, body: bytes) -> bytes:
        payload = HEADER.pack(0x80, 7, counter) + body
        size = (28 + len(payload)).to_bytes(2)
        ip = b"\x45\0" + size + bytes(5) + b"\x11" + bytes(2) + bytes([198, 51, 100, 1]) + bytes(4)
        udp = b"\x23\x29\x23\x29" + (8 + len(payload)).to_bytes(2) + bytes(2)
        return bytes(12) + b"\x08\x00" + ip + udp + payload

    watch.note(datagram(1, b"one"))
    watch.note(datagram(1, b"one"))
    watch.note(datagram(2, b"two"))
    watch.assert_sound()
    watch.note(datagram(2, b"other"))
    with pytest.raises(AssertionError, match="nonce"):
        watch.assert_sound()


@pytest.mark.netns
def test_a_row_runs_in_namespaces_that_leave_nothing(tmp_path):
    """The shortest row, by the real program, with a table and a line of JSON."""
    command = [sys.executable, "-m", "faults", "--only", "TAP down", "--output", str(tmp_path)]
    done = subprocess.run(
        command, cwd=TESTS.parent, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rows hold, 0 do not" in done.stdout
    [found] = report.read(tmp_path / "outcomes.jsonl")
    assert (found.row, found.verdict) == ("TAP down", PASS)


@pytest.mark.netns
def test_nonces_are_watched_on_after_a_link_was_down(tmp_path):
    settings = {"nat.enabled": True, "nat.stun_server": ""}
    with connected_pair(tmp_path, settings) as pair, NonceWatch(pair) as watch:
        with faults.link_down(pair.net, pair.left.host):
            # Told to the socket of that port at once; the daemons would notice after seconds.
            wait_until(
                lambda: (
                    not pair.left.host.ping(pair.right.host.ipv4, count=1, timeout_s=0.2).complete
                ),
                10,
                "down",
            )
        for daemon in pair:
            daemon.wait_for(30, state="connected", path="udp")
        seen = len(watch.seen)
        pair.await_pings(10)
        wait_until(lambda: len(watch.seen) > seen, 10, "nonces are seen again")
        watch.assert_sound()


@pytest.mark.netns
def test_canaries_outlive_the_tap_and_notice_what_comes_twice(tmp_path):
    with connected_pair(tmp_path) as pair, Watch(pair, per_second=50) as watch:
        wait_until(lambda: watch.arrived > 10, 20, "canaries arrive")
        pair.left.host.ip("link del tap0")
        pair.await_pings(20)
        seen = watch.arrived
        wait_until(lambda: watch.arrived > seen + 10, 20, "canaries arrive over the new TAP")
        watch.assert_sound()
        end = watch._ends[1]
        number = next(iter(end.arrived))
        end.arrived[number] += 1
        with pytest.raises(AssertionError, match="twice"):
            watch.assert_sound()
