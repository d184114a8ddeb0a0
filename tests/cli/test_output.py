"""What becomes of a command whose output cannot be written: no traceback, and a code of its own."""
# ruff: noqa: F811

from __future__ import annotations

import base64
import os
import subprocess
import sys

import pytest

from tests.cli.test_program import (  # noqa: F401
    PUBLIC,
    SEED,
    control,
    every_command,
    served,
    token_file,
)
from tests.control.fake_control import CONNECTED, HOME, INVITATION, MESH

#: the key comes from standard input
RECOVERY = ["--yes", "--recovery-key-file", "-"]
#: FILE is one that there is, NEW one that there is not
SECRET = ["--passphrase-file", "FILE"]
#: what a command needs to print something; the others need nothing
ARGUMENTS = {"completion": ["bash"], "ping": ["--count", "1"], "bench": ["--quick"],
             "capture": ["-w", "-", "--duration", "1s"], "network create": ["home"],
             "join": [INVITATION, "--yes"], "leave": ["--yes"], "peer remove": ["nas", "--yes"],
             "invite cancel": ["--all"], "network secret rotate": ["--yes"],
             "network authority replace": RECOVERY, "network authority drop": RECOVERY,
             "network compact": RECOVERY, "network delete": ["--yes"],
             "network backup": ["NEW", *SECRET], "network restore": ["FILE", "--yes", *SECRET],
             "network authority export": ["NEW", "--yes", *SECRET],
             "network authority import": ["FILE", *SECRET],
             "network adopt": ["FILE", "--certificate", "FILE", "--crl", "FILE", "--subnet", "10.0.0.0/8"],
             "cert sign": ["FILE", "--name", "nas"], "cert bundle": ["FILE"],
             "cert install": ["FILE", "--authority", "ab", "--yes"], "cert crl": ["FILE"],
             "peer rename": ["nas", "box"], "peer tag": ["nas", "--add", "x"],
             "peer rekey": ["nas", "--yes"]}  # fmt: skip
#: what a machine does that is in no network
OUTSIDE = {
    "network create", "network restore", "network adopt", "join", "cert install", "cert request"
}  # fmt: skip
#: loads another program, which has its own words, or needs a network
NOT_WALKED = {"logs", "netcheck", "bugreport", "config init", "config", "reload", "network", "peer",
              "cert", "network authority", "network secret"}  # fmt: skip
COMMANDS = [words for words in every_command() if " ".join(words) not in NOT_WALKED]
CLI = [sys.executable, "-m", "shadowmesh.cli"]
DAEMON = [sys.executable, "-m", "shadowmesh.service.daemon"]


def typed(command, redirection, **more):
    """Run a command as a shell does, with its output redirected."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" "$@" {redirection}', *command],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False, **more,
    )  # fmt: skip


@pytest.fixture
def asked(served, control, token_file, tmp_path):
    """Return the words of a command that asks the served daemon."""
    control.snapshot, control.mesh = CONNECTED, MESH
    file = tmp_path / "file"
    file.write_bytes(b"what is given\n")
    file.chmod(0o600)
    names = {"FILE": str(file), "NEW": str(tmp_path / "new")}
    control.rotating.trusted = 2

    def ask(words):
        control.joined = None if " ".join(words) in OUTSIDE else HOME
        rest = [names.get(word, word) for word in ARGUMENTS.get(" ".join(words), [])]
        return [*CLI, "--api", f"http://{served}", "--token-file", str(token_file), *words, *rest]

    return ask


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_says_in_a_sentence_that_the_disk_is_full(asked, words):
    done = typed(asked(words), ">/dev/full", input=base64.b64encode(SEED).decode())
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("cannot be written: No space left on device")
    assert done.returncode == 1


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize("option", ["--help", "--version", "status --help"])
def test_help_is_output_too(option, redirection):
    done = typed([*CLI, *option.split()], redirection)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "standard output cannot be written" in done.stderr


@pytest.mark.parametrize("option", ["--help", "--version", "--check"])
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_the_daemon_says_in_a_sentence_that_it_cannot_print(tmp_path, option, redirection):
    config = tmp_path / "daemon.yaml"
    config.write_text("network:\n  mtu: 1400\n")
    done = typed([*DAEMON, "--config", str(config), option], redirection)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "shadowmesh-daemon: standard output cannot be written"
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("command", [[*CLI, "genkey"], [*CLI, "--help"], [*DAEMON, "--check"]])
def test_a_reader_that_left_is_no_word_and_code_1(command):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        done = subprocess.run(
            [*command], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
            env={**os.environ, "SHADOWMESH_PEER_PUBLIC_KEY": base64.b64encode(PUBLIC).decode()},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&- >&-", "0<&- 2>&- >&-"])
def test_an_error_that_cannot_be_told_keeps_its_exit_code(redirection):
    assert typed([*CLI, "nonsense"], redirection).returncode == 2
    assert typed([*CLI, "--config", "/none", "status"], redirection).returncode == 7
    assert typed([*DAEMON, "--nonsense"], redirection).returncode == 2
    assert typed([*DAEMON, "--config", "/none"], redirection).returncode == 7


def test_a_closed_standard_input_is_an_empty_one():
    done = typed([*CLI, "pubkey"], "<&-")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no private key on standard input")
