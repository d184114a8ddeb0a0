"""`shadowmesh explain`: what is printed, and the exit code."""
# ruff: noqa: F811

from __future__ import annotations

import json

import pytest

from tests.cli.test_program import (  # noqa: F401
    NOBODY,
    assert_failed,
    control,
    invoke,
    run,
    served,
    token_file,
)
from tests.control.fake_control import CONNECTED


def test_a_frame_that_passes_exits_with_0(run, control):
    control.snapshot = CONNECTED
    result = run("explain")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "ok    tap         tap0 is up, 10.0.0.1/24, MTU 1500"
    assert lines[-1] == "a frame is delivered over udp"
    assert control.calls == [("explain", "None")]


def test_a_frame_that_does_not_pass_exits_with_5_and_says_what_to_do(run):
    result = run("explain", "10.0.0.2")
    assert result.exit_code == 5
    assert "fail  connection  disconnected: nobody has asked for a tunnel\n" in result.stdout
    assert "                  do: `shadowmesh connect HOST:PORT`\n" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("no frame is delivered: disconnected")


def test_the_json_is_what_the_daemon_says(run, control):
    result = run("--json", "explain", "02:00:5e:10:00:01")
    answer = json.loads(result.stdout)
    assert (answer["schema"], answer["target"]) == (1, "02:00:5e:10:00:01")
    assert answer["delivered"] is False
    assert {step["name"] for step in answer["steps"]} >= {"tap", "target", "connection"}
    assert control.calls == [("explain", "02:00:5e:10:00:01")]


@pytest.mark.parametrize("target", ["tap0", "10.0.0.0/24", "a&b=c", "\x1b[2J"])
def test_a_target_that_is_none_is_a_usage_error(run, control, target):
    assert_failed(run("explain", target), 2, "neither a MAC")
    assert control.calls == []


def test_without_a_daemon_the_exit_code_is_3(token_file):
    result = invoke("--api", NOBODY, "--token-file", token_file, "explain")
    assert_failed(result, 3, "systemctl start shadowmesh")
