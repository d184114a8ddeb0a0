"""What a user gets who is not root, may not read the configuration and is in no group."""

from __future__ import annotations

import os

import pytest

from shadowmesh.cli import settings
from shadowmesh.cli.program import program
from shadowmesh.config import loader
from shadowmesh.control.rights import Right, Rights
from tests.cli.test_program import assert_failed, invoke
from tests.control.fake_control import INVITATION, FakeControl, make_app, serving


class _NobodyIsAnybody(Rights):
    """Root, who runs the tests, is no more than others here."""

    def of(self, credentials):
        return Right.NONE


NOBODY_S_RIGHTS = _NobodyIsAnybody(4000, {})

#: what each command is given, what it exits with beside a daemon and without one, and a word of
#: what it says. None: it needs no right, and does the same as for root.
COMMANDS = {
    "network": (["show"], 4, 3, "shadowmesh-view"),
    "invite": ([], 4, 3, "shadowmesh-admin"),
    "join": ([INVITATION, "--yes"], 4, 3, "shadowmesh-admin"),
    "leave": (["--yes"], 4, 3, "shadowmesh-view"),
    "peer": (["remove", "nas", "--yes"], 4, 3, "shadowmesh-admin"),
    "cert": (["show"], 4, 3, "shadowmesh-view"),
    "relays": ([], 4, 3, "shadowmesh-view"),
    "connect": ([], 4, 3, "shadowmesh-admin"),
    "disconnect": ([], 4, 3, "shadowmesh-admin"),
    "capture": (["-c", "1"], 4, 3, "shadowmesh-admin"),
    "status": ([], 4, 3, "shadowmesh-view"),
    "peers": ([], 4, 3, "shadowmesh-view"),
    "fdb": ([], 4, 3, "shadowmesh-view"),
    "explain": ([], 4, 3, "shadowmesh-view"),
    "ping": (["-c", "1"], 4, 3, "shadowmesh-view"),
    "wait": (["--timeout", "10ms"], 4, 6, "shadowmesh-view"),
    "logs": ([], 4, 3, "shadowmesh-view"),
    "dashboard": ([], 4, 3, "token"),
    "reload": ([], 4, 3, "shadowmesh-admin"),
    "config": (["check"], 4, 4, "file of your own"),
    "version": ([], 0, 0, None),
    "netcheck": (["--server", "127.0.0.1:1"], 5, 5, None),
    "genkey": ([], 0, 0, None),
    "genpsk": ([], 0, 0, None),
    "pubkey": (["--identity", "/dev/null"], 1, 1, None),
    "bugreport": (["-o", "{}/report.tar.gz"], 0, 0, None),
    "bench": (["--help"], 0, 0, None),
    "completion": (["bash"], 0, 0, None),
    "help": ([], 0, 0, None),
}


@pytest.fixture
def somebody(monkeypatch, tmp_path):
    """Run commands as somebody who may not read the file of the machine, in which nothing is right."""
    forbidden = tmp_path / "daemon.yaml"
    forbidden.write_text("nonsense: [")
    monkeypatch.setattr(settings, "SYSTEM_CONFIG_FILE", str(forbidden))
    monkeypatch.setattr(loader, "SYSTEM_CONFIG_FILE", str(forbidden))
    monkeypatch.setattr(settings, "SYSTEM_API_SOCKET", str(tmp_path / "api.sock"))
    monkeypatch.setattr(settings, "_is_readable", lambda path: path != forbidden)
    monkeypatch.setattr("shadowmesh.cli.commands.logs._has_journal", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 4001)
    environment = {"SHADOWMESH_NAT_DETECTION_TIMEOUT": "500ms"}
    return lambda *command: invoke(*command, environment=environment)


def test_every_command_is_in_the_table():
    assert COMMANDS.keys() == program.commands.keys()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("running", [True, False], ids=["daemon", "no daemon"])
def test_a_command_works_or_says_in_one_sentence_what_is_missing(
    somebody, tmp_path, monkeypatch, name, running
):
    options, beside, without, word = COMMANDS[name]
    options = [option.format(tmp_path) for option in options]
    if running:
        with serving(
            lambda address: make_app(FakeControl(), address),
            path=tmp_path / "api.sock",
            rights=NOBODY_S_RIGHTS,
        ) as address:
            monkeypatch.setenv("SHADOWMESH_DAEMON_LISTEN_ADDRESS", str(address))
            result = somebody(name, *options)
    else:
        monkeypatch.setenv("SHADOWMESH_DAEMON_LISTEN_ADDRESS", "127.0.0.1:1")
        result = somebody(name, *options)
    code = beside if running else without
    if code in (3, 4, 6):
        assert_failed(result, code, word if code == 4 else "no daemon answers")
    else:
        assert result.exit_code == code, result.output
        assert "may not be read" not in result.stdout


def test_one_s_own_configuration_can_be_made_and_checked(somebody, tmp_path):
    path = tmp_path / "own" / "config.yaml"
    assert somebody("config", "init", "--local-ip", "10.9.0.1/24", path).exit_code == 0
    assert somebody("config", "check", path).exit_code == 0
    assert "10.9.0.1/24" in somebody("config", "show", path).stdout
    path.write_text("nonsense: [")
    assert somebody("config", "check", path).exit_code == 7


def test_netcheck_says_that_it_asks_the_default_servers(somebody, monkeypatch):
    from shadowmesh.path import netcheck

    asked = []
    real = netcheck.check
    monkeypatch.setattr(
        netcheck, "check", lambda servers, *rest: asked.append(servers) or real((), *rest)
    )
    result = somebody("netcheck")
    assert result.stderr.startswith("note: ")
    assert "default STUN servers" in result.stderr
    assert [str(server) for server in asked[0]] == ["stun.l.google.com:19302"]


def test_no_refusal_advises_to_open_a_secret(somebody):
    for name, (options, *_, word) in COMMANDS.items():
        if word is not None:
            text = somebody(name, *options).output
            assert "chmod" not in text
            assert "chgrp" not in text
