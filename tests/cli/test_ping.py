"""`shadowmesh ping`, against a daemon that pretends and against real ones."""
# ruff: noqa: F811

from __future__ import annotations

import json

import pytest

from shadowmesh.base import errors
from shadowmesh.cli import client
from shadowmesh.insight.peers import Pong
from tests.cli.test_program import (  # noqa: F401
    NOBODY,
    answering,
    assert_failed,
    control,
    invoke,
    run,
    served,
    token_file,
)
from tests.control.fake_control import PONG
from tests.lab.pair import running_pair

LOST = Pong("wss", "203.0.113.7:9001", None)


def pong(path, rtt_ms):
    return Pong(path, "203.0.113.7:9001", rtt_ms)


def test_ping_shows_each_answer_with_its_path_and_a_summary(run, control):
    control.pongs = [pong("wss", 2.0), LOST, pong("udp", 1.0)]
    result = run("ping", "-c", "3", "-i", "0.1")
    assert result.stdout.splitlines() == [
        "pong 1 over wss 203.0.113.7:9001 in 2.00 ms",
        "lost 2 over wss 203.0.113.7:9001",
        "pong 3 over udp 203.0.113.7:9001 in 1.00 ms",
        "3 probes, 2 answered, round trip 1.00 / 1.50 / 2.00 ms (least, mean, most), wss 2, udp 1",
    ]
    assert (result.exit_code, result.stderr) == (0, "")
    assert control.calls == [("ping", "1")] * 3


def test_ping_in_json_is_one_object(run, control):
    control.pongs = [pong("udp", 1.0), LOST]
    answer = json.loads(run("--json", "ping", "-c", "2", "-i", "0.1").stdout)
    assert answer == {
        "schema": 1,
        "answers": [pong("udp", 1.0).to_dict(), LOST.to_dict()],
        "summary": {
            "sent": 2, "answered": 1, "min_ms": 1.0, "mean_ms": 1.0, "max_ms": 1.0,
            "paths": {"udp": 1, "wss": 1},
        },
    }  # fmt: skip


def test_ping_without_an_answer_exits_with_5(run, control):
    control.pongs = [LOST]
    result = run("ping", "-c", "1")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (5, "1 probe, 0 answered")


def test_ping_without_a_session_exits_with_5(run, control):
    control.error = errors.NotConnected("not connected; `shadowmesh connect` first")
    assert_failed(run("ping", "-c", "3"), 5, "not connected", "shadowmesh connect")


def test_a_session_that_ends_meanwhile_leaves_the_summary(run, control):
    def end():
        if len(control.calls) == 2:
            control.error = errors.NotConnected("not connected; `shadowmesh connect` first")

    control.before = end
    result = run("ping", "-i", "0.1")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("1 probe, 1 answered")
    assert "not connected" in result.stderr


def test_ctrl_c_ends_ping_with_the_summary(run, monkeypatch):
    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("shadowmesh.cli.commands.ping.time.sleep", interrupt)
    result = run("ping")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("1 probe, 1 answered")


def test_ping_without_a_daemon_exits_with_3(token_file):
    assert_failed(invoke("--api", NOBODY, "--token-file", token_file, "ping", "-c", "1"), 3, NOBODY)


@pytest.mark.parametrize("arguments", [["-c", "0"], ["-c", "x"], ["-i", "0"], ["nas", "extra"]])
def test_wrong_options_of_ping_are_usage_errors(run, arguments):
    assert_failed(run("ping", *arguments), 2)


@pytest.mark.parametrize(
    "body",
    [b'{"schema": 1}', b'{"schema": 1, "answers": []}', b'{"schema": 1, "answers": [1]}',
     b'{"answers": [{}]}', b'{"schema": 1, "answers": "x"}'],
)  # fmt: skip
def test_an_answer_that_is_no_ping_is_told_in_one_line(token_file, body):
    with answering(b"HTTP/1.1 200 OK\r\n\r\n" + body) as url:
        assert_failed(invoke("--api", url, "--token-file", token_file, "ping", "-c", "1"), 1)


# --- The route --------------------------------------------------------------------------------


def test_the_route_pings_as_often_as_it_is_asked(served, control):
    control.pongs = [LOST]
    asked = client.ApiClient(f"http://{served}", "tokentokentokentokentokentokentokentoken123")
    answer = asked._ask("POST", "/ping", {"count": 3}, 5, "answers")
    assert answer["answers"] == [LOST.to_dict(), PONG.to_dict(), PONG.to_dict()]
    assert control.calls == [("ping", "3")]


@pytest.mark.parametrize("count", [0, 11, "3", True, None, 1.5])
def test_the_route_refuses_other_counts(served, control, count):
    asked = client.ApiClient(f"http://{served}", "tokentokentokentokentokentokentokentoken123")
    with pytest.raises(errors.BadRequest, match="count"):
        asked._ask("POST", "/ping", {"count": count}, 5, "answers")
    assert control.calls == []


# --- Two real daemons -------------------------------------------------------------------------


@pytest.mark.netns
@pytest.mark.parametrize("udp", [False, True], ids=["wss", "udp"])
def test_ping_takes_the_path_of_the_data(tmp_path, udp):
    with running_pair(tmp_path, {"nat.enabled": udp, "nat.stun_server": ""}) as pair:
        done = pair.left.cli("ping", "-c", "1")
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr.count("\n") == 1
        pair.connect()
        if udp:
            assert pair.left.cli("wait", "--for", "udp", "--timeout", "10s").returncode == 0
        for daemon in pair:
            done = daemon.cli("ping", "-c", "2", "-i", "0.1")
            assert done.returncode == 0, done.stderr
            lines = done.stdout.splitlines()
            assert lines[0].startswith("pong 1 over udp " if udp else "pong 1 over wss ")
            assert lines[-1].startswith("2 probes, 2 answered, round trip ")
        pair.right.pause()
        try:
            done = pair.left.cli("ping", "-c", "1")
        finally:
            pair.right.resume()
        assert done.returncode == 5
        assert done.stdout.splitlines()[-1] == "1 probe, 0 answered"
