"""The commands about keys and files: what is asked, what is written, that no secret shows."""
# ruff: noqa: F811

from __future__ import annotations

import hashlib
import stat

import click
import pytest

from shadowmesh.base import errors
from shadowmesh.cli import asking, files, settling
from tests.cli.test_program import (  # noqa: F401
    assert_failed,
    control,
    invoke,
    run,
    served,
    token_file,
)
from tests.control.fake_control import HOME
from tests.control.fake_custody import SEALED

PASSPHRASE = "correct horse battery"


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    """Nobody waits for long here."""
    monkeypatch.setattr(settling, "RESTART_S", 0.3)
    monkeypatch.setattr(settling, "PAUSE_S", 0.01)


@pytest.fixture
def secret(tmp_path):
    """The option that names a file with the passphrase."""
    path = tmp_path / "secret"
    path.write_text(f"{PASSPHRASE}\nand more\n")
    path.chmod(0o600)
    return "--passphrase-file", path


@pytest.fixture
def home(control):
    control.joined = HOME
    return control


@pytest.fixture
def terminal(monkeypatch):
    """Somebody sits at standard input; the prompts that were shown, and what they are answered."""
    shown, said = [], []

    def prompt(text, **more):
        shown.append((text, more.get("hide_input"), more.get("confirmation_prompt", False)))
        return said.pop(0)

    monkeypatch.setattr(asking, "is_terminal", lambda: True)
    monkeypatch.setattr(click, "prompt", prompt)
    return shown, said


def calls(control, name):
    return [call[1:] for call in control.calls if call[0] == name]


def assert_private(path, content):
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- backup -------------------------------------------------------------------------------------


def test_a_backup_is_written_for_its_owner_and_what_it_lacks_is_said(run, home, tmp_path, secret):
    home.kept.lacking = ("the recovery key: without it much is lost",)
    file = tmp_path / "home.backup"
    result = run("network", "backup", file, *secret)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {file}, {len(SEALED)} bytes\n"
    assert result.stderr == "warning: it does not hold the recovery key: without it much is lost\n"
    assert_private(file, SEALED)
    assert calls(home, "back_up") == [(PASSPHRASE, "None")]


def test_a_file_is_overwritten_only_when_that_is_said(run, home, tmp_path, secret):
    file = tmp_path / "home.backup"
    file.write_bytes(b"the one of yesterday")
    assert_failed(run("network", "backup", file, *secret), 2, "--yes")
    assert file.read_bytes() == b"the one of yesterday"
    assert home.calls == []
    assert run("network", "backup", file, *secret, "--yes").exit_code == 0
    assert_private(file, SEALED)


def test_at_a_terminal_the_passphrase_is_asked_for_twice_and_the_recovery_key_once(
    run, home, tmp_path, terminal
):
    shown, said = terminal
    said += ["smr1-abcd", PASSPHRASE]
    result = run("network", "backup", tmp_path / "one")
    assert result.exit_code == 0, result.output
    assert shown == [
        ("recovery key (nothing: leave it out)", True, False),
        ("passphrase of the backup", True, True),
    ]
    assert calls(home, "back_up") == [(PASSPHRASE, "smr1-abcd")]
    said += ["", PASSPHRASE, PASSPHRASE]
    run("network", "backup", tmp_path / "two")
    run("network", "backup", tmp_path / "three", "--without-recovery-key")
    assert calls(home, "back_up")[1:] == [(PASSPHRASE, "None")] * 2


def test_without_a_terminal_a_passphrase_must_be_given(run, home, tmp_path):
    assert_failed(run("network", "backup", tmp_path / "x"), 2, "--passphrase-file")
    assert home.calls == []


def test_both_secrets_can_come_from_files_one_of_them_standard_input(run, home, tmp_path, secret):
    asked = ("network", "backup", tmp_path / "x", *secret, "--recovery-key-file", "-")
    assert run(*asked, input="smr1-efgh\n").exit_code == 0
    assert calls(home, "back_up") == [(PASSPHRASE, "smr1-efgh")]
    both = ("--passphrase-file", "-", "--recovery-key-file", "-", "--yes")
    assert_failed(run("network", "backup", tmp_path / "x", *both, input="a"), 2, "only one")


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "no passphrase"), (b"\nsecond line", "no passphrase"), (b"\xff\xfe", "no passphrase"),
     (b"p" * 1025, "more than 1024")],
)  # fmt: skip
def test_a_file_without_a_passphrase_is_named_and_not_quoted(run, home, tmp_path, content, word):
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    result = run("network", "backup", tmp_path / "x", "--passphrase-file", path)
    assert_failed(result, 1, word, str(path))
    assert "second" not in result.output


def test_a_passphrase_that_others_may_read_is_warned_of(run, home, tmp_path, secret):
    secret[1].chmod(0o644)
    result = run("network", "backup", tmp_path / "x", *secret)
    assert (result.exit_code, "others may read" in result.stderr) == (0, True)


def test_what_the_daemon_refuses_is_no_file(run, home, tmp_path, secret):
    home.error = errors.IssuerRefused("this machine has no ledger")
    file = tmp_path / "x"
    assert_failed(run("network", "backup", file, *secret), 1, "no ledger")
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_said(run, home, tmp_path, secret):
    assert_failed(run("network", "backup", tmp_path / "no" / "x", *secret), 1, "cannot be written")


# --- restore ------------------------------------------------------------------------------------


def test_a_backup_goes_to_the_daemon_in_pieces(run, control, tmp_path, secret, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 1000)
    file = tmp_path / "home.backup"
    whole = bytes(range(256)) * 11
    file.write_bytes(whole)
    result = run("network", "restore", file, *secret, "--yes")
    assert result.exit_code == 0, result.output
    assert control.kept.file == whole
    assert calls(control, "restore") == [(hashlib.sha256(whole).hexdigest(), PASSPHRASE)]
    lines = result.stdout.splitlines()
    assert lines[0].startswith("this machine is laptop of home again, ")
    assert lines[1] == "2 invitations made before will let nobody in any more"


def test_a_restore_is_confirmed(run, control, tmp_path, secret, terminal, monkeypatch):
    file = tmp_path / "home.backup"
    file.write_bytes(SEALED)
    monkeypatch.setattr(asking, "is_terminal", lambda: False)
    assert_failed(run("network", "restore", file, *secret), 2, "--yes")
    monkeypatch.setattr(asking, "is_terminal", lambda: True)
    result = run("network", "restore", file, *secret, input="n\n")
    assert (result.exit_code, "nothing was restored" in result.stderr) == (1, True)
    assert control.calls == []
    assert run("network", "restore", file, *secret, input="y\n").exit_code == 0


def test_a_backup_that_is_not_there_is_said(run, control, tmp_path, secret):
    result = run("network", "restore", tmp_path / "none", *secret, "--yes")
    assert_failed(result, 2, "there is no file")
    assert control.calls == []
