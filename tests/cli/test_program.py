from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base import errors, units
from shadowmesh.cli import client, http10, render
from shadowmesh.cli.group import Commands
from shadowmesh.cli.program import program
from shadowmesh.cli.settings import Settings
from shadowmesh.insight import status
from shadowmesh.keys import sodium
from tests.control.fake_control import (
    CONNECTED,
    DISCONNECTED,
    NOW,
    TOKEN,
    FakeControl,
    make_app,
    serving,
)

#: RFC 8032 section 7.1, test 1
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
#: nobody listens on port 1
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def served(control):
    with serving(lambda address: make_app(control, address)) as address:
        yield address


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "api.token"
    path.write_text(TOKEN)
    return path


@pytest.fixture
def run(served, token_file):
    """Run the program against the served daemon."""

    def run_program(*args, **extra):
        return invoke("--api", f"http://{served}", "--token-file", str(token_file), *args, **extra)

    return run_program


def invoke(*args, environment=None, **extra):
    runner = CliRunner(env={"NO_COLOR": None, "HOME": "/nonexistent", **(environment or {})})
    return runner.invoke(program, [str(arg) for arg in args], catch_exceptions=False, **extra)


def assert_failed(result, exit_code, *words):
    """One line on stderr with the words in it, the exit code, and no secret anywhere."""
    assert result.exit_code == exit_code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    for word in words:
        assert word in result.stderr
    assert TOKEN not in result.output
    assert "Traceback" not in result.output


# --- Commands against a daemon ----------------------------------------------------------------


def test_connect_waits_and_says_how(run, control):
    result = run("connect", "203.0.113.7:9001")
    assert result.exit_code == 0
    assert result.stdout == "connected to 203.0.113.7:9001 over udp (aegis-256, post-quantum)\n"
    assert control.calls == [("connect", "203.0.113.7:9001")]


def test_connect_warns_of_a_network_that_the_lan_has_too(run, control, monkeypatch):
    found = status.Check(
        "underlay", False, "warning", "eth0 is in 10.0.0.0/24, and so is the tunnel",
        "another network", "subnet_overlap",
    )  # fmt: skip
    snapshot = dataclasses.replace(CONNECTED, health=(found,))
    monkeypatch.setattr(control, "connect", lambda peer, name: snapshot)
    result = run("connect")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: eth0 is in 10.0.0.0/24, and so is the tunnel; another network\n"
    )


def test_connect_without_a_peer_uses_the_configured_one(run, control):
    assert run("connect").exit_code == 0
    assert control.calls == [("connect", "None")]


@pytest.fixture
def busy(control, monkeypatch):
    """A daemon that connects by itself; the list says what it answers, the last one for ever."""
    monkeypatch.setattr(client, "CONNECTING_PAUSE_S", 0.01)
    answers = [errors.AlreadyConnecting("already connecting")]

    def before():
        asked_to_connect = control.calls[-1][0] == "connect"
        control.error = answers[0] if asked_to_connect else None
        if asked_to_connect and len(answers) > 1:
            del answers[0]

    control.before = before
    return answers


def test_connect_waits_for_a_dial_that_runs_already(run, control, busy):
    busy[1:] = [busy[0], errors.AlreadyConnected("already connected")]
    result = run("connect")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "connected to 203.0.113.7:9001" in result.stdout
    assert [call[0] for call in control.calls] == ["connect", "connect", "connect", "status"]


def test_connect_dials_itself_when_the_dial_that_ran_failed(run, busy):
    busy.append(errors.PeerUnreachable("nobody there"))
    assert_failed(run("connect"), 5, "nobody there")


def test_connect_to_one_peer_while_another_is_dialled_fails(run, busy):
    busy.append(errors.AlreadyConnected("already connected"))
    assert_failed(run("connect", "192.0.2.9:9001"), 1, "already connected")


def test_connect_does_not_wait_for_ever_for_another_dial(run, busy, monkeypatch):
    class Clock:
        """All the time there is goes by in the first pause, and an answer may take its own."""

        slept_s = 0.0

        def monotonic(self):
            return time.monotonic() + self.slept_s

        def sleep(self, _seconds):
            self.slept_s += client.CONNECT_TIMEOUT_S

    monkeypatch.setattr(client, "time", Clock())
    assert_failed(run("connect"), 1, "already connecting")


def test_disconnect_says_so(run, control):
    result = run("disconnect")
    assert (result.exit_code, result.stdout) == (0, "disconnected\n")
    assert control.calls == [("disconnect",)]


def test_disconnect_says_how_the_peer_is_let_in_again(run, control, monkeypatch):
    held = dataclasses.replace(DISCONNECTED, held=True)
    monkeypatch.setattr(control, "disconnect", lambda name: held)
    assert run("disconnect").stdout.split("\n")[1] == (
        "the peer is refused until `shadowmesh connect`"
    )


@pytest.mark.parametrize("command", ["connect", "disconnect", "status"])
def test_json_is_the_snapshot_with_its_schema(run, control, command):
    control.snapshot = CONNECTED
    result = run("--json", command)
    answer = json.loads(result.stdout)
    assert answer["schema"] == 1
    assert answer == control.snapshot.to_dict()
    assert result.exit_code == 0


@pytest.mark.parametrize("state", ["disconnected", "connecting", "error", "connected"])
def test_status_exits_with_0_only_when_connected(run, control, state):
    control.snapshot = dataclasses.replace(DISCONNECTED, state=state)
    result = run("status")
    assert result.exit_code == (0 if state == "connected" else 5)
    assert result.stdout.startswith(f"state     {state} for ")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.AlreadyConnected("connected already; disconnect first"), 1),
        (errors.NotConnected("not connected"), 1),
        (errors.NotConfigured("no key; set one"), 1),
        (errors.BadRequest("no such form"), 2),
        (errors.PeerUnreachable("no route to host"), 5),
        (errors.PeerRefused("handshake refused"), 1),
        (errors.ConnectTimeout("no answer in 10 s"), 6),
        (errors.DeviceUnavailable("no /dev/net/tun"), 4),
        (RuntimeError("a bug"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_of_the_daemon_have_their_exit_code(run, control, error, exit_code):
    control.error = error
    result = run("connect", "a:1")
    assert_failed(result, exit_code)
    if isinstance(error, errors.ControlError):
        assert result.stderr == f"error: {error}\n"


def test_an_error_is_json_on_stdout_too_when_asked(run, control):
    control.error = errors.PeerUnreachable("no route to host")
    result = run("--json", "connect", "a:1")
    assert_failed(result, 5, "no route")
    assert json.loads(result.stdout) == {
        "schema": 1, "error": {"code": "peer_unreachable", "message": "no route to host"},
    }  # fmt: skip


def test_a_peer_that_is_no_address_is_a_usage_error(run, control):
    assert_failed(run("connect", "nonsense:"), 2, "port must be")
    assert control.calls == []


@pytest.mark.parametrize(
    ("typed", "dialled"),
    [("peer.example", "peer.example:9001"), ("192.0.2.1", "192.0.2.1:9001"),
     ("2001:db8::1", "[2001:db8::1]:9001"), ("[2001:db8::1]", "[2001:db8::1]:9001"),
     ("peer.example:443", "peer.example:443")],
)  # fmt: skip
def test_a_peer_without_a_port_gets_the_default_one(run, control, typed, dialled):
    assert run("connect", typed).exit_code == 0
    assert control.calls == [("connect", dialled)]


def test_a_url_given_as_an_address_is_answered_with_what_to_write(run):
    assert_failed(run("connect", "https://peer.example/x"), 2, '"peer.example:443"')


@pytest.mark.parametrize(("command", "words"), [("connect", "goes on"), ("disconnect", "interr")])
def test_ctrl_c_is_one_line_and_says_what_goes_on(token_file, monkeypatch, command, words):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(client.ApiClient, command, interrupt)
    # click ends the line on which the terminal shows ^C
    result = invoke("--api", NOBODY, "--token-file", token_file, command)
    assert result.exit_code == 1
    assert words in result.stderr.strip()
    assert "Traceback" not in result.output


# --- The daemon cannot be asked ---------------------------------------------------------------


@pytest.mark.parametrize("command", ["connect", "disconnect", "status"])
def test_without_a_daemon_the_exit_code_is_3(token_file, command):
    result = invoke("--api", NOBODY, "--token-file", token_file, command)
    assert_failed(result, 3, NOBODY, "refused", "systemctl start shadowmesh")


def test_a_wrong_token_is_not_permitted(served, tmp_path):
    path = tmp_path / "other.token"
    path.write_text("x" * 43)
    result = invoke("--api", f"http://{served}", "--token-file", path, "status")
    assert_failed(result, 4, "token", "--token-file")


@pytest.mark.parametrize("content", ["", "short", "x" * 4000, "\xff" * 43, "a b" + "x" * 40])
def test_a_token_that_cannot_be_used_is_not_permitted(tmp_path, content):
    path = tmp_path / "bad.token"
    path.write_text(content, encoding="latin-1")
    result = invoke("--api", NOBODY, "--token-file", path, "status")
    assert_failed(result, 4, str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_token_that_may_not_be_read_is_not_permitted(token_file):
    token_file.chmod(0)
    assert_failed(invoke("--api", NOBODY, "--token-file", token_file, "status"), 4, "root")


def test_a_token_that_may_not_be_read_is_not_permitted_for_root_either(token_file, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shadowmesh.keys.api_token.os.open", refuse)
    assert_failed(invoke("--api", NOBODY, "--token-file", token_file, "status"), 4, "root")


def test_without_a_daemon_a_missing_token_is_no_news(tmp_path):
    config = tmp_path / "daemon.yaml"
    config.write_text(f"daemon:\n  listen_address: 127.0.0.1:1\n  state_dir: {tmp_path}\n")
    assert_failed(invoke("--config", config, "status"), 3, "systemctl start shadowmesh")


def test_with_a_daemon_a_missing_token_is_not_permitted(served, tmp_path):
    config = tmp_path / "daemon.yaml"
    config.write_text(f"daemon:\n  listen_address: {served}\n  state_dir: {tmp_path}\n")
    assert_failed(invoke("--config", config, "status"), 4, "api.token", "--token-file")


def test_an_answer_that_does_not_come_is_a_timeout(token_file, monkeypatch):
    monkeypatch.setattr(client.ApiClient.__init__, "__kwdefaults__", {
        "request_timeout_s": 0.1, "connect_timeout_s": 0.1,
    })  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for command in ("status", "connect"):
            result = invoke("--api", url, "--token-file", token_file, command)
            assert_failed(result, 6, "did not answer", "0.1 s")


def test_the_deadline_covers_an_answer_in_drops():
    with answering(b"HTTP/1.1 200 OK\r\n" + b"X" * 200, drop_every_s=0.02) as url:
        slow = client.ApiClient(url, TOKEN, request_timeout_s=0.2)
        began = time.monotonic()
        with pytest.raises(client.NoAnswer):
            slow.status()
        assert time.monotonic() - began < 2


class answering:  # noqa: N801 (used as a function)
    """A server that reads one request and sends the given bytes."""

    def __init__(self, answer, *, drop_every_s=0.0):
        self._answer, self._drop_every_s = answer, drop_every_s

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self):
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            connection.recv(65536)
            if not self._drop_every_s:
                connection.sendall(self._answer)
                return
            for drop in self._answer:
                connection.sendall(bytes([drop]))
                if self._done.wait(self._drop_every_s):
                    return

    def __exit__(self, *_):
        self._done.set()
        self._thread.join(10)
        self._listener.close()


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        (b"", 3),
        (b"SSH-2.0-OpenSSH\r\n", 1),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", 1),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", 1),
        (b'HTTP/1.1 200 OK\r\n\r\n{"state": "connected"}', 1),
        (b'HTTP/1.1 200 OK\r\n\r\n{"schema": 1}', 1),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"schema": 1, "state": "x"}', 1),
        (b"HTTP/1.1 404 Not Found\r\n\r\n{}", 1),
        (b'HTTP/1.1 500 X\r\n\r\n{"error": "text"}', 1),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100000, 1),
        (b'HTTP/1.1 403 X\r\n\r\n{"error": {"code": "forbidden_host", "message": "m"}}', 4),
        (b'HTTP/1.1 429 X\r\n\r\n{"error": {"code": "rate_limited", "message": "m"}}', 1),
        (b'HTTP/1.1 400 X\r\n\r\n{"error": {"code": "x", "message": "\\u001b[2J\\nforged"}}', 1),
    ],
)
def test_what_is_not_a_daemon_is_told_in_one_line(token_file, answer, exit_code):
    with answering(answer) as url:
        result = invoke("--api", url, "--token-file", token_file, "status")
    assert_failed(result, exit_code)
    assert "\x1b" not in result.output


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_none(answer):
    try:
        http_status, body = http10.parse_answer(answer)
    except ValueError:
        return
    assert 0 <= http_status <= 999
    assert answer.endswith(body) or body in answer


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_an_answer_is_cut_at_its_length(body, behind):
    head = b"HTTP/1.1 409 Conflict\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert http10.parse_answer(head + body + behind) == (409, body)


# --- Addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("HTTP://localhost:1/", ("localhost", 1)),
        ("http://[::1]:9090", ("::1", 9090)),
    ],
)
def test_a_url_of_an_api_is_understood(url, address):
    assert http10.parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:9090", "https://localhost:1", "http://localhost", "http://localhost:",
     "http://:9090", "http://::1:9090", "http://a:b@localhost:1", "http://localhost:1/path",
     "http://localhost:0", "http://localhost:65536", "http://localhost:\u0661", "http://a b:1",
     "http://a\r\nX: y:1", "http://\xe4:1", "ftp://localhost:1"],
)  # fmt: skip
def test_another_url_is_a_usage_error(url, token_file):
    result = invoke("--api", url, "--token-file", token_file, "status")
    assert_failed(result, 2, "http://127.0.0.1:9090")


@pytest.mark.parametrize(
    ("listen", "url"),
    [("0.0.0.0:{}", "http://127.0.0.1:{}"), ("127.0.0.1:{}", "http://127.0.0.1:{}"),
     ("[::]:{}", "http://[::1]:{}")],
)  # fmt: skip
def test_the_api_is_found_through_the_configuration(tmp_path, listen, url):
    (tmp_path / "api.token").write_text(TOKEN)
    config = tmp_path / "daemon.yaml"
    config.write_text(f'daemon:\n  listen_address: "{listen.format(1)}"\n  state_dir: {tmp_path}\n')
    assert_failed(invoke("--config", config, "status"), 3, url.format(1))


def test_configuration_and_token_make_a_whole_command(served, control, tmp_path):
    (tmp_path / "api.token").write_text(f"{TOKEN}\n")
    config = tmp_path / "daemon.yaml"
    config.write_text(f"daemon:\n  listen_address: {served}\n  state_dir: {tmp_path}\n")
    control.snapshot = CONNECTED
    assert invoke("--config", config, "status").exit_code == 0


def test_an_invalid_configuration_exits_with_7(tmp_path):
    config = tmp_path / "daemon.yaml"
    config.write_text("daemon:\n  listen_adress: 127.0.0.1:9090\n")
    assert_failed(invoke("--config", config, "status"), 7, f"{config}:2", "listen_address")


@pytest.mark.parametrize("place", ["none.yaml", "."])
@pytest.mark.parametrize("args", [["--config", "{}", "status"], ["status", "--config", "{}"],
                                  ["config", "check", "{}"], ["config", "show", "{}"]])  # fmt: skip
def test_a_configuration_that_is_not_there_exits_with_7(tmp_path, place, args):
    path = tmp_path / place
    assert_failed(invoke(*[arg.format(path) for arg in args]), 7, str(path))


@pytest.mark.parametrize("args", [["status", "--token-file"], ["pubkey", "--identity"]])
def test_another_file_that_is_named_and_not_there_exits_with_2(tmp_path, args):
    assert_failed(invoke("--api", NOBODY, *args, tmp_path / "none"), 2, "there is no file", args[1])


def test_a_configuration_that_may_not_be_read_is_not_permitted(tmp_path, monkeypatch):
    config = tmp_path / "daemon.yaml"
    config.write_text("")

    def refuse(path, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shadowmesh.cli.settings.Path.open", refuse)
    assert_failed(invoke("--config", config, "status"), 4, "root", str(config))


# --- Usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"), [("conect", "connect"), ("statsu", "status"), ("disconect", "disconnect")]
)
def test_an_unknown_command_suggests_the_nearest(typed, meant):
    assert_failed(invoke(typed), 2, f"did you mean '{meant}'? See `shadowmesh --help`")


def test_an_unknown_option_suggests_the_nearest_also_of_those_that_all_commands_take():
    assert_failed(invoke("status", "--jsn"), 2, "--json", "? See `shadowmesh status --help`")


@pytest.mark.parametrize("group", [[], ["config"], ["network"], ["network", "secret"], ["peer"]])
def test_a_group_alone_prints_its_help_as_an_error(group):
    result = invoke(*group)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == invoke(*group, "--help").stdout
    assert len(result.stderr.splitlines()) > 7


@pytest.mark.parametrize("group", [[], ["config"]])
def test_a_group_alone_with_json_is_an_object(group):
    result = invoke("--json", *group)
    assert_failed(result, 2, "a command is missing")
    assert json.loads(result.stdout)["error"]["code"] == "usage"


@pytest.mark.parametrize("args", [["--json", "conect"], ["conect", "--json"],
                                  ["status", "-x", "--json"], ["config", "--json", "chek"]])  # fmt: skip
def test_wrong_usage_is_json_too_wherever_the_option_stands(args):
    result = invoke(*args)
    assert_failed(result, 2)
    assert json.loads(result.stdout)["error"]["code"] == "usage"


def every_command(group=program, path=()):
    """The words of each command, groups included."""
    for name, command in group.commands.items():
        yield [*path, name]
        if isinstance(command, Commands):
            yield from every_command(command, (*path, name))


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_command_takes_the_options_of_the_program(words):
    command = program
    for word in words:
        command = command.commands[word]
    settings = Settings(color=None)
    given = ["--api", "http://h:1", "--token-file", "t", "--config", "c", "--json", "--color",
             "never"]  # fmt: skip
    rest = {"completion": ["bash"], "network create": ["home"], "peer remove": ["nas"],
            "network backup": ["f"], "network restore": ["f"], "network authority export": ["f"],
            "network authority import": ["f"], "cert sign": ["f", "--name", "n"], "cert bundle": ["f"],
            "cert install": ["f"], "cert crl": ["f"], "peer rename": ["n", "m"], "peer tag": ["n"],
            "peer rekey": ["n"],
            "network adopt": ["f", "--certificate", "f", "--crl", "f", "--subnet", "p"]}  # fmt: skip
    given += rest.get(" ".join(words), [])
    with command.make_context(words[-1], given, obj=settings):
        pass
    assert settings == Settings("http://h:1", Path("t"), Path("c"), True, False)


def test_of_an_option_that_is_given_twice_the_later_wins(served, token_file, control):
    control.snapshot = CONNECTED
    args = ("--api", NOBODY, "--color", "always", "status", "--api", f"http://{served}")
    result = invoke(*args, "--token-file", token_file, "--color", "never")
    assert (result.exit_code, "\x1b" in result.stdout) == (0, False)


def test_an_error_has_the_colours_that_were_asked_for():
    assert "\x1b" in invoke("--color", "always", "--config", "/none", "status").stderr
    assert "\x1b" not in invoke("--color", "never", "--config", "/none", "status").stderr


@pytest.mark.parametrize("words", [[], *every_command()], ids=" ".join)
@pytest.mark.parametrize("columns", [50, 60, 80])
def test_no_help_is_cut_and_no_word_of_it_broken(words, columns):
    wide = invoke(*words, "--help", environment={"COLUMNS": "500"}).stdout
    result = invoke(*words, "-h", environment={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    assert sorted(result.stdout.split()) == sorted(wide.split())
    assert "..." not in result.stdout.replace("[ARGS]...", "").replace("[COMMAND]...", "")
    assert result.stdout == invoke("help", *words, environment={"COLUMNS": str(columns)}).stdout


def test_help_of_what_is_no_command_says_so():
    assert_failed(invoke("help", "conect"), 2, "did you mean 'connect'?")
    assert_failed(invoke("help", "ping", "x"), 2, "shadowmesh ping has no commands of its own")


@pytest.mark.parametrize(
    "args",
    [["xyzzy"], ["--nonsense", "status"], ["status", "--nonsense"], ["connect", "a:1", "b:1"],
     ["--color", "blue", "status"], ["status", "--interval", "0"], ["--api"], ["\x1b[2J"]],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_exits_with_2(args):
    result = invoke(*args)
    assert_failed(result, 2, "--help")
    assert "\x1b" not in result.output


def test_version_and_help_exit_with_0():
    from shadowmesh import __version__

    assert invoke("--version").stdout == f"shadowmesh {__version__}\n"
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("connect", "disconnect", "status", "genkey", "pubkey", "genpsk"):
        assert command in result.stdout
        assert invoke(command, "--help").exit_code == 0


# --- The text of status -----------------------------------------------------------------------


def plain(snapshot, previous=None):
    """Return the rendered lines without colours."""
    text = render.render(snapshot.to_dict(), NOW, previous)
    return re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")


def test_the_status_of_a_connection_is_told_in_full():
    assert plain(CONNECTED) == [
        "state     connected for 2m 13s",
        "peer      203.0.113.7:9001  dGhlIHBlZXIncyBwdWJsaWMga2V5LCAzMiBieXRlcyE=  (pinned)",
        "path      udp, 0.84 ms round trip, MTU 1420: hole punched",
        "security  aegis-256, post-quantum yes, TLS direct",
        "session   established 2m 12s ago, 1 rekey, last 12s ago",
        "link      203.0.113.7:9001 up for 2m 12s, 2 reconnects",
        "nat       full cone, seen as 198.51.100.4:9001, 2m 10s ago",
        "tap       tap0, 10.0.0.1/24, fd00::1/64, MTU 1500, 2 queues",
        "traffic   in   12,345 frames  3.0 GiB",
        "          out  12,001 frames  1.0 MiB",
        "drops     queue_full 10, replay 2",
        "daemon    version 0.1.0, 0.3 % CPU, 43.0 MiB, 5 threads, 27 open files",
        "          public key b3VyIG93biBwdWJsaWMga2V5LCB0aGlydHktdHdvIGI=",
        "health    ok, 2 checks passed",
    ]


def test_the_status_says_of_a_daemon_without_a_device_that_none_is_wanted():
    check = status.Check("tap", ok=True, text="none is wanted")
    headless = dataclasses.replace(CONNECTED, tap=status.Tap(realtime=True), health=(check,))
    assert "tap       none is wanted, real-time priority" in plain(headless)
    # A device that is missed is told among the failed checks, one that is not wanted yet nowhere.
    gone = dataclasses.replace(CONNECTED, tap=None, health=(dataclasses.replace(check, ok=False),))
    for other in (gone, dataclasses.replace(headless, state="disconnected")):
        assert not [line for line in plain(other) if line.startswith("tap ")]


@pytest.mark.parametrize(
    ("realtime", "problem", "said"),
    [
        (None, None, "2 queues"),
        (True, None, "2 queues, real-time priority"),
        (False, "not permitted: x", "2 queues, no real-time priority: not permitted: x"),
    ],
)
def test_the_status_says_whether_the_threads_have_real_time_priority(realtime, problem, said):
    tap = dataclasses.replace(CONNECTED.tap, realtime=realtime, realtime_problem=problem)
    [line] = [
        line for line in plain(dataclasses.replace(CONNECTED, tap=tap)) if line.startswith("tap ")
    ]
    assert line.endswith(f"MTU 1500, {said}")


def test_the_status_says_that_somebody_reads_the_frames():
    running = status.Capture(NOW - 5, 262_144, 1234, 0)
    snapshot = dataclasses.replace(CONNECTED, capture=running)
    line = "capture   somebody has been reading the frames since 5s ago, 1,234 frames"
    assert [one for one in plain(snapshot) if one not in plain(CONNECTED)] == [line]


def test_the_status_without_a_connection_leaves_out_what_there_is_not():
    assert plain(DISCONNECTED) == [
        "state     disconnected for 10s",
        "peer      none",
        "traffic   in   0 frames  0 B",
        "          out  0 frames  0 B",
        "drops     none",
        "daemon    version 0.1.0",
        "health    ok, 0 checks passed",
    ]


def test_a_failure_is_told_with_its_age_and_the_next_attempt():
    snapshot = dataclasses.replace(
        DISCONNECTED, state="error", last_error="no route to host", last_error_at=NOW - 3,
        next_retry_at=NOW + 4,
    )  # fmt: skip
    lines = plain(snapshot)
    assert "error     no route to host (3s ago)" in lines
    assert "retry     in 4s" in lines


@pytest.mark.parametrize(
    ("name", "shown"), [(None, "a:1"), ("a:1", "a:1"), ("office", "office  a:1")]
)
def test_a_peer_called_by_its_address_is_named_once(name, shown):
    snapshot = dataclasses.replace(CONNECTED, peer=status.Peer("a:1", None, name))
    assert plain(snapshot)[1] == f"peer      {shown}"


def test_the_step_of_connecting_is_told():
    snapshot = dataclasses.replace(DISCONNECTED, state="connecting", phase="handshake")
    assert plain(snapshot)[0] == "state     connecting (handshake) for 10s"


def test_every_failed_check_has_its_remedy():
    checks = (
        status.Check("tap", ok=False, text="tap0 is down", remedy="ip link set tap0 up"),
        status.Check("stun", ok=False, severity="warning", text="no answer", remedy="wait"),
        status.Check("hub", ok=True),
    )
    lines = plain(dataclasses.replace(CONNECTED, health=checks))
    assert lines[-4:] == [
        "health    FAIL tap: tap0 is down",
        "               do: ip link set tap0 up",
        "          warn stun: no answer",
        "               do: wait",
    ]


def test_a_path_that_is_silent_now_is_not_told_by_what_it_was():
    udp = status.Path("udp", "192.0.2.1:9001", "host", proven=True, rtt_ms=0.3, loss=0.0)
    for unanswered, told in ((1, "0.30 ms"), (3, "silent now, 3 probes without an answer")):
        paths = (*CONNECTED.paths, dataclasses.replace(udp, unanswered=unanswered))
        [line] = [
            line
            for line in plain(dataclasses.replace(CONNECTED, paths=paths))
            if "192.0.2.1:9001" in line
        ]
        assert told in line
        assert (" % lost" in line) == (unanswered == 1)


def test_who_was_disconnected_reads_how_the_peer_is_let_in_again():
    lines = plain(dataclasses.replace(DISCONNECTED, held=True, wanted=False))
    assert lines[1].strip() == "the peer is refused until `shadowmesh connect`"


def test_ages_are_counted_by_the_clock_of_the_daemon(control, run):
    control.snapshot = dataclasses.replace(CONNECTED, now=NOW)
    assert "connected for 2m 13s" in run("status").stdout


def test_rates_come_from_two_snapshots():
    counters = dataclasses.replace(CONNECTED.counters, frames_in=12345 - 2000, bytes_in=0)
    before = dataclasses.replace(CONNECTED, counters=counters).to_dict()
    lines = plain(CONNECTED, (2.0, before))
    assert "traffic   in   12,345 frames  3.0 GiB  1,000 frames/s  1.5 GiB/s" in lines
    assert "          out  12,001 frames  1.0 MiB      0 frames/s      0 B/s" in lines


def test_a_restart_of_the_daemon_is_no_negative_rate():
    lines = plain(DISCONNECTED, (NOW - 1, CONNECTED.to_dict()))
    assert not any(re.search(r"-\d", line) for line in lines)


def test_what_a_peer_says_cannot_move_the_cursor():
    evil = "\x1b[2Jgone\r\n\u202eforged"
    snapshot = dataclasses.replace(
        CONNECTED, last_error=evil, path_reason=evil, cipher=evil, nat=status.Nat(evil, evil),
        peer=status.Peer(evil, evil, evil), tap=status.Tap(evil, 1, evil), version=evil,
        health=(status.Check(evil, ok=False, text=evil, remedy=evil),), tls_path=evil,
        counters=status.Counters(dropped={evil: 1}), state=evil, public_key=evil, phase=evil,
        link=status.Link(evil, 1.0),
    )  # fmt: skip
    text = "\n".join(plain(snapshot))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\u202e" not in text
    assert not any(line.startswith("gone") for line in text.split("\n"))


@given(
    st.fixed_dictionaries(
        {"schema": st.just(1), "state": st.text(max_size=5)},
        optional={
            name: st.none() | st.dictionaries(st.text(max_size=5), st.none(), max_size=2)
            for name in ("peer", "tap", "nat", "session", "link", "counters", "resources")
        } | {"health": st.none() | st.lists(st.none() | st.just({}), max_size=2)},
    )
)  # fmt: skip
def test_a_status_with_holes_is_shown_all_the_same(snapshot):
    assert render.render(snapshot, NOW).startswith("state ")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1048575, "1.0 MiB"),
     (1 << 30, "1.0 GiB"), (5 << 40, "5.0 TiB"), (1 << 60, "1048576.0 TiB")],
)  # fmt: skip
def test_sizes_are_human(number, text):
    assert units.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m 0s"), (133, "2m 13s"), (3600, "1h 0m"),
     (86399, "23h 59m"), (90061, "1d 1h")],
)  # fmt: skip
def test_durations_are_human(seconds, text):
    assert units.duration(seconds) == text


# --- Colours ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "environment", "coloured"),
    [
        ("always", {}, True),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {}, False),
        ("auto", {}, False),
    ],
)
def test_colours_follow_the_option(run, control, option, environment, coloured):
    control.snapshot = CONNECTED
    result = run("--color", option, "status", environment=environment)
    assert ("\x1b[" in result.stdout) is coloured


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_colours_are_for_terminals_and_no_color_is_honoured(
    served, control, token_file, no_color, coloured
):
    control.snapshot = CONNECTED
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    if no_color is not None:
        environment["NO_COLOR"] = no_color
    main_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "shadowmesh.cli", "--api", f"http://{served}",
               "--token-file", str(token_file), "status"]  # fmt: skip
    try:
        with subprocess.Popen(command, stdout=terminal, env=environment) as process:
            assert process.wait(20) == 0
        shown = os.read(main_end, 65536)
    finally:
        os.close(terminal)
        os.close(main_end)
    assert (b"\x1b[" in shown) is coloured


# --- Watching ---------------------------------------------------------------------------------


def watch(served, token_file, *before):
    command = [sys.executable, "-m", "shadowmesh.cli", "--api", f"http://{served}",
               "--token-file", str(token_file), *before, "status", "--watch",
               "--interval", "0.1"]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def stop(process):
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=20)
    return process.returncode, complaints


def test_watch_repeats_plain_blocks_and_ends_well_on_ctrl_c(served, control, token_file):
    control.snapshot = CONNECTED
    process = watch(served, token_file)
    blocks = 0
    for line in process.stdout:
        assert "\x1b" not in line
        blocks += line == "\n"
        if blocks == 3:
            break
    assert stop(process) == (0, "")


def test_watch_with_json_prints_one_object_per_line(served, control, token_file):
    control.snapshot = CONNECTED
    process = watch(served, token_file, "--json")
    for _ in range(2):
        assert json.loads(process.stdout.readline()) == CONNECTED.to_dict()
    assert stop(process) == (0, "")


def test_watch_fails_like_status_when_there_is_no_daemon(token_file):
    result = invoke("--api", NOBODY, "--token-file", token_file, "status", "--watch")
    assert_failed(result, 3)


def test_watch_outlives_a_restart_of_the_daemon(control, token_file):
    with serving(lambda address: make_app(control, address)) as address:
        process = watch(address, token_file)
        assert process.stdout.readline().startswith("state     disconnected")
    for line in process.stdout:
        if line.startswith("error: no daemon answers"):
            break
    else:
        pytest.fail("the failure was not shown")
    assert stop(process) == (0, "")


def test_a_reader_that_has_seen_enough_is_no_error(served, control, token_file):
    process = watch(served, token_file)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) == 1


# --- Keys -------------------------------------------------------------------------------------


def test_pubkey_gives_the_public_key_of_what_genkey_made():
    made = invoke("genkey")
    assert made.exit_code == 0
    assert len(base64.b64decode(made.stdout)) == 32
    assert invoke("genkey").stdout != made.stdout
    first, second = (invoke("pubkey", input=made.stdout).stdout for _ in range(2))
    assert first == second
    assert first != made.stdout


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_pubkey_agrees_with_the_standard(end):
    result = invoke("pubkey", input=base64.b64encode(SEED).decode() + end)
    assert result.stdout == base64.b64encode(PUBLIC).decode() + "\n"
    assert result.exit_code == 0


@pytest.mark.parametrize("seed", [SEED, b" " + SEED[2:] + b"\n"])
def test_pubkey_takes_the_file_of_the_daemon_on_standard_input(seed):
    result = invoke("pubkey", input=seed)
    public = sodium.public_key(seed)
    assert (result.exit_code, result.stdout) == (0, base64.b64encode(public).decode() + "\n")


@pytest.mark.parametrize("content", [SEED, base64.b64encode(SEED), base64.b64encode(SEED) + b"\n"])
def test_pubkey_reads_an_identity_file_in_both_forms(tmp_path, content):
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    result = invoke("pubkey", "--identity", path)
    assert result.stdout == base64.b64encode(PUBLIC).decode() + "\n"


def test_pubkey_on_a_terminal_tells_the_key_of_the_daemon(tmp_path):
    (tmp_path / "identity.key").write_bytes(SEED)
    config = tmp_path / "daemon.yaml"
    config.write_text(f"daemon:\n  state_dir: {tmp_path}\n")
    main_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "shadowmesh.cli", "--config", str(config), "pubkey"]
    try:
        done = subprocess.run(
            command, stdin=terminal, capture_output=True, text=True, check=True, timeout=20
        )
    finally:
        os.close(terminal)
        os.close(main_end)
    assert done.stdout == base64.b64encode(PUBLIC).decode() + "\n"


@pytest.mark.parametrize("typed", ["", "nonsense", "A" * 43 + "=", "\xff\xfe" * 22, "x" * 5000])
def test_what_is_no_private_key_is_refused_and_not_repeated(typed):
    result = invoke("pubkey", input=typed.encode("latin-1"))
    assert_failed(result, 1, "standard input")
    if typed:
        assert typed not in result.output


def test_an_identity_that_is_missing_or_forbidden_is_told(tmp_path, monkeypatch):
    path = tmp_path / "identity.key"
    assert_failed(invoke("pubkey", "--identity", path), 2, str(path), "--identity")
    path.write_bytes(SEED)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shadowmesh.cli.commands.keys.Path.open", refuse)
    assert_failed(invoke("pubkey", "--identity", path), 4, str(path))


def test_genpsk_gives_a_key_that_the_configuration_takes():
    from shadowmesh.keys.psk import parse_psk

    result = invoke("genpsk")
    assert re.fullmatch(r"[0-9a-f]{64}\n", result.stdout)
    assert parse_psk(result.stdout.strip())
    assert invoke("genpsk").stdout != result.stdout


@pytest.mark.parametrize(
    ("command", "name"), [("genkey", "private_key"), ("genpsk", "psk"), ("pubkey", "public_key")]
)
def test_keys_as_json_carry_the_schema(command, name):
    answer = json.loads(invoke("--json", command, input=base64.b64encode(SEED)).stdout)
    assert answer.keys() == {"schema", name}
    assert answer["schema"] == 1


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True), (0o640, True)])
def test_a_key_that_goes_to_an_open_file_is_warned_about(tmp_path, mode, warned):
    path = tmp_path / "key"
    path.touch()
    path.chmod(mode)
    with path.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "shadowmesh.cli", "genkey"],
            stdout=file, stderr=subprocess.PIPE, text=True, check=True, timeout=20,
        )  # fmt: skip
    assert ("warning" in done.stderr) is warned
    assert len(path.read_text()) == 45
    assert path.read_text().strip() not in done.stderr


# --- Weight -----------------------------------------------------------------------------------


def test_asking_for_a_status_loads_no_server_and_no_cryptography(token_file):
    code = (
        "import sys\n"
        "from shadowmesh.cli.program import program\n"
        "try:\n"
        f"    program.main(['--api', '{NOBODY}', '--token-file', '{token_file}', 'status'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 3, end.code\n"
        "print(*sorted(sys.modules))\n"
    )
    # Measuring the child's coverage would load gevent into it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    modules = done.stdout.split()
    loaded = {name.partition(".")[0] for name in modules} | set(modules)
    heavy = {"flask", "werkzeug", "gevent", "cryptography", "prometheus_client", "psutil", "yaml",
             "http", "ssl", "pyroute2", "statistics", "decimal", "shadowmesh.insight.status",
             "shadowmesh._fastpath", "shadowmesh.wire", "segno"}  # fmt: skip
    assert loaded & heavy == set()
