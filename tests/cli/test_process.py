"""Commands around the running service: version, wait, reload, logs, completion."""
# ruff: noqa: F811

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from shadowmesh import __version__
from shadowmesh.base.errors import ConfigurationWrong
from shadowmesh.cli import process
from shadowmesh.cli.commands import logs
from shadowmesh.cli.commands.completion import SHELLS, script
from shadowmesh.cli.program import program
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.insight.status import Reloaded
from tests.cli.test_program import (  # noqa: F401
    NOBODY,
    assert_failed,
    control,
    invoke,
    run,
    served,
    token_file,
)
from tests.control.fake_control import CONNECTED, DISCONNECTED, make_app, serving

# --- version ----------------------------------------------------------------------------------


def test_version_names_the_program_s_and_the_daemon_s(run, control):
    control.snapshot = dataclasses.replace(CONNECTED, version=__version__)
    result = run("version")
    assert result.stdout == f"program  {__version__}\ndaemon   {__version__}\n"
    assert (result.exit_code, result.stderr) == (0, "")


def test_version_warns_when_they_differ(run, control):
    control.snapshot = dataclasses.replace(CONNECTED, version="0.0.9")
    result = run("version")
    assert result.exit_code == 0
    assert "the daemon is 0.0.9" in result.stderr
    assert "systemctl restart shadowmesh" in result.stderr
    answer = json.loads(run("--json", "version").stdout)
    assert answer == {
        "schema": 1, "program": __version__, "daemon": "0.0.9", "same": False, "detail": None,
    }  # fmt: skip


def test_version_needs_no_daemon(token_file):
    result = invoke("--api", NOBODY, "--token-file", token_file, "version")
    assert result.exit_code == 0
    assert result.stdout.endswith("daemon   not running\n")
    answer = json.loads(
        invoke("--api", NOBODY, "--token-file", token_file, "--json", "version").stdout
    )
    assert (answer["daemon"], answer["same"]) == (None, None)


def test_version_says_why_a_daemon_could_not_be_asked(served, tmp_path):
    result = invoke("--api", f"http://{served}", "--token-file", tmp_path / "none", "version")
    assert result.exit_code == 0
    assert "daemon   not known: there is no file" in result.stdout


# --- wait -------------------------------------------------------------------------------------


def test_wait_returns_when_it_is_there_already(run, control):
    control.snapshot = CONNECTED
    result = run("wait")
    assert (result.exit_code, result.stdout) == (0, "connected\n")


@pytest.mark.parametrize(
    ("goal", "snapshot", "said"),
    [("running", DISCONNECTED, "disconnected"), ("disconnected", DISCONNECTED, "disconnected"),
     ("udp", CONNECTED, "connected over udp"), ("connected", CONNECTED, "connected")],
)  # fmt: skip
def test_wait_knows_its_goals(run, control, goal, snapshot, said):
    control.snapshot = snapshot
    assert run("wait", "--for", goal).stdout == f"{said}\n"


def test_wait_goes_on_until_it_comes(run, control):
    seen = []

    def third_time():
        seen.append(1)
        control.snapshot = CONNECTED if len(seen) == 3 else DISCONNECTED

    control.before = third_time
    assert json.loads(run("--json", "wait", "--timeout", "10s").stdout)["state"] == "connected"
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("goal", "snapshot"),
    [("connected", dataclasses.replace(DISCONNECTED, state="error", last_error="no route to host")),
     ("udp", dataclasses.replace(CONNECTED, path="wss", last_error="no route to host"))],
)  # fmt: skip
def test_wait_gives_up_with_exit_code_6_and_the_last_error(run, control, goal, snapshot):
    control.snapshot = snapshot
    assert_failed(run("wait", "--for", goal, "--timeout", "50ms"), 6, "0.05 s", "no route to host")


def test_wait_outlives_a_daemon_that_is_not_there_yet(token_file):
    arguments = ("--api", NOBODY, "--token-file", token_file, "wait", "--timeout", "50ms")
    assert_failed(invoke(*arguments), 6, "refused")


@pytest.mark.parametrize("timeout", ["30", "soon", "-1s", "2d", ""])
def test_a_timeout_needs_a_number_and_a_unit(run, timeout):
    assert_failed(run("wait", "--timeout", timeout), 2, "--timeout")


# --- reload -----------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "daemon.yaml"
    path.touch(0o600)
    return path


@pytest.mark.parametrize(
    ("applied", "restart", "said"),
    [
        ((), (), "nothing has changed\n"),
        (("a.b", "c.d", "e.f"), (), "applied: a.b, c.d and e.f\n"),
        ((), ("a.b", "c.d"), "a.b and c.d wait for a restart: `systemctl restart shadowmesh`\n"),
        (("a.b",), ("c.d",),
         "applied: a.b\nc.d waits for a restart: `systemctl restart shadowmesh`\n"),
    ],
)  # fmt: skip
def test_reload_tells_in_sentences_what_the_daemon_did(
    run, control, config, applied, restart, said
):
    control.reloaded = Reloaded(4711, applied, restart)
    assert run("--config", config, "reload").stdout == said
    assert control.calls == [("reload",)]
    assert json.loads(run("--config", config, "--json", "reload").stdout) == {
        "schema": 1, "pid": 4711, "applied": list(applied), "restart": list(restart),
    }  # fmt: skip


def test_reload_fails_when_the_daemon_finds_its_own_file_wrong(run, control, config):
    control.error = ConfigurationWrong("not reloaded: network.mtu: 100 is below 1280")
    assert_failed(run("--config", config, "reload"), 7, "not reloaded: network.mtu")


def test_reload_leaves_the_daemon_alone_when_the_file_is_wrong(run, control, config):
    config.write_text("network:\n  mtu: 100\n")
    assert_failed(run("--config", config, "reload"), 7, "network.mtu")
    assert control.calls == []


def test_reload_of_a_given_process_signals_it_and_asks_nobody(control, config, monkeypatch):
    told = []
    monkeypatch.setattr(os, "kill", lambda *what: told.append(what))
    result = invoke("--config", config, "reload", "--pid", 4711)
    assert result.exit_code == 0, result.output
    assert "`shadowmesh logs` has the outcome" in result.stdout
    assert told == [(4711, signal.SIGHUP)]
    assert control.calls == []


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [(ProcessLookupError(3, "no"), 1, "no process"), (PermissionError(1, "no"), 4, "root")],
)
def test_a_process_that_cannot_be_signalled_is_told(config, monkeypatch, error, code, word):
    def fail(*_what):
        raise error

    monkeypatch.setattr(os, "kill", fail)
    assert_failed(invoke("--config", config, "reload", "--pid", 4711), code, word)


# --- logs -------------------------------------------------------------------------------------


@pytest.fixture
def executed(monkeypatch):
    commands = []
    monkeypatch.setattr(
        "shadowmesh.cli.commands.logs.os.execvp", lambda _name, command: commands.append(command)
    )
    return commands


@pytest.fixture
def child(control):
    """A process with a log file that poses as the daemon."""

    def start(log):
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()", "shadowmesh-daemon"],
            stdin=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        control.snapshot = dataclasses.replace(CONNECTED, pid=process.pid)
        started.append(process)

    started = []
    yield start
    for child in started:
        child.communicate()


def test_logs_shows_the_file_that_the_daemon_writes_to(run, child, executed, tmp_path):
    with (tmp_path / "log").open("w") as log:
        child(log)
    run("logs", "-n", "7")
    run("logs", "-f")
    path = str(tmp_path / "log")
    assert executed == [
        ["tail", "--lines=7", path], ["tail", "--lines=50", "--follow=name", path],
    ]  # fmt: skip


def test_logs_asks_the_journal_for_a_unit(run, child, executed, monkeypatch):
    child(subprocess.DEVNULL)
    monkeypatch.setattr(logs, "unit_of", lambda _pid: "shadowmesh@left.service")
    monkeypatch.setattr(logs, "_has_journal", lambda: True)
    run("logs", "-f", "-n", "9")
    run("--json", "logs")
    assert executed == [
        ["journalctl", "--unit=shadowmesh@left.service", "--lines=9", "--output=short-iso",
         "--follow"],
        ["journalctl", "--unit=shadowmesh@left.service", "--lines=50", "--output=json",
         "--no-pager"],
    ]  # fmt: skip


@pytest.fixture
def recorder():
    found = FlightRecorder(clock=lambda: 0.0)
    for number in range(3):
        found.record("path", "path changed", before="wss", after=f"udp 192.0.2.{number}:9001")
    return found


@pytest.fixture
def only_look(control, recorder, child, executed, token_file, monkeypatch):
    """Run `logs` as somebody who may look at the daemon and read neither journal nor file."""
    child(subprocess.DEVNULL)

    def refuse(_pid):
        raise PermissionError

    monkeypatch.setattr(logs, "log_file_of", refuse)
    monkeypatch.setattr(logs, "unit_of", lambda _pid: "shadowmesh.service")
    monkeypatch.setattr(logs, "_has_journal", lambda: True)
    monkeypatch.setattr(logs, "_may_read_journal", lambda: False)
    with serving(lambda address: make_app(control, address, recorder=recorder)) as address:
        yield lambda *more: invoke(
            "--api", f"http://{address}", "--token-file", token_file, "logs", *more
        )
    assert executed == []


def test_logs_shows_who_may_only_look_the_events(only_look):
    result = only_look("-n", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        '1970-01-01T00:00:00.000Z path: path changed before=wss after="udp 192.0.2.1:9001"',
        '1970-01-01T00:00:00.000Z path: path changed before=wss after="udp 192.0.2.2:9001"',
    ]
    assert "the events that the daemon keeps" in result.stderr
    assert "systemd-journal" in result.stderr
    assert only_look("-n", "0").stdout == ""
    assert len(only_look().stdout.splitlines()) == 3


def test_logs_prints_an_event_on_each_line_for_programs(only_look):
    first, *_, last = map(json.loads, only_look("--json").stdout.splitlines())
    assert (first["schema"], first["number"], last["number"]) == (1, 1, 3)
    assert last["kind"] == "path"
    assert last["fields"] == {"before": "wss", "after": "udp 192.0.2.2:9001"}


def test_logs_goes_on_with_the_events_that_come_also_after_a_restart(
    only_look, recorder, monkeypatch
):
    def pause(_seconds):
        pauses.append(1)
        if len(pauses) == 1:
            recorder.record("state", "came later")
        elif len(pauses) == 3:
            recorder.__init__()  # as a daemon that has started again
            recorder.record("state", "came after a restart")
        elif len(pauses) == 4:
            raise KeyboardInterrupt

    pauses = []
    monkeypatch.setattr(logs.time, "sleep", pause)
    said = [line.split(": ")[1] for line in only_look("-f", "-n", "1").stdout.splitlines()]
    assert said == [
        'path changed before=wss after="udp 192.0.2.2:9001"', "came later", "came after a restart",
    ]  # fmt: skip


def test_logs_come_from_the_journal_for_who_may_read_it_and_not_ask_the_daemon(
    token_file, served, executed, monkeypatch
):
    token_file.write_text("wrong" * 10)
    monkeypatch.setattr(logs, "_has_journal", lambda: True)
    monkeypatch.setattr(logs, "_may_read_journal", lambda: True)
    invoke("--api", f"http://{served}", "--token-file", token_file, "logs")
    assert executed[0][:2] == ["journalctl", "--unit=shadowmesh.service"]


def test_whether_the_journal_may_be_read_is_asked_of_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "JOURNALS", (tmp_path / "none", tmp_path / "journal"))
    assert not logs._may_read_journal()
    journal = tmp_path / "journal" / "4711" / "system.journal"
    journal.parent.mkdir(parents=True)
    journal.touch()
    assert logs._may_read_journal()
    monkeypatch.setattr(logs.os, "access", lambda *_: False)
    assert not logs._may_read_journal()


def test_logs_of_a_daemon_that_has_failed_come_from_the_journal(token_file, executed, monkeypatch):
    monkeypatch.setattr(logs, "_has_journal", lambda: True)
    invoke("--api", NOBODY, "--token-file", token_file, "logs")
    assert executed[0][:2] == ["journalctl", "--unit=shadowmesh.service"]


def test_logs_without_daemon_and_journal_say_so(token_file, monkeypatch):
    monkeypatch.setattr(logs, "_has_journal", lambda: False)
    assert_failed(invoke("--api", NOBODY, "--token-file", token_file, "logs"), 3, NOBODY)


def test_a_log_that_goes_to_a_pipe_cannot_be_shown(run, child, monkeypatch):
    monkeypatch.setattr(logs, "_has_journal", lambda: False)
    child(subprocess.DEVNULL)
    assert_failed(run("logs"), 1, "terminal")


def test_a_missing_reader_of_the_log_is_one_line(run, child, monkeypatch, tmp_path):
    with (tmp_path / "log").open("w") as log:
        child(log)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_failed(run("logs"), 1, "tail cannot be started")


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [("0::/system.slice/shadowmesh.service\n", "shadowmesh.service"),
     ("0::/user.slice/user-0.slice/session-1.scope\n", None), ("0::/\n", None), ("", None)],
)  # fmt: skip
def test_the_unit_of_a_process_is_in_its_cgroup(monkeypatch, cgroup, unit):
    monkeypatch.setattr(process.Path, "read_text", lambda _self, **_: cgroup)
    assert process.unit_of(1) == unit


# --- completion -------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_is_printed_for_each_shell(shell):
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_SHADOWMESH_COMPLETE" in result.stdout
    assert json.loads(invoke("--json", "completion", shell).stdout)["script"] == result.stdout


def test_another_shell_is_a_usage_error():
    assert_failed(invoke("completion", "csh"), 2, "bash")


@pytest.mark.parametrize(
    ("words", "offered"),
    [("shadowmesh wa", {"wait"}), ("shadowmesh config ", {"init", "check", "show"}),
     ("shadowmesh wait --for u", {"udp"}), ("shadowmesh nonsense sta", {"status"})],
)  # fmt: skip
def test_bash_is_answered(words, offered):
    environment = {
        "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_SHADOWMESH_COMPLETE": "bash_complete", "PATH": os.environ["PATH"],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "shadowmesh.cli"], env=environment, capture_output=True, text=True,
        check=False, timeout=30,
    )  # fmt: skip
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_accepts_its_completion():
    done = subprocess.run(
        ["bash", "-c", f"{script(program, 'bash')}\ncomplete -p shadowmesh"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert "-F _shadowmesh_completion shadowmesh" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
