"""The commands about keys and files: what is asked, what is written, that no secret shows."""
# ruff: noqa: F811

from __future__ import annotations

import dataclasses
import hashlib
import stat

import click
import pytest

from shadowmesh.base import errors
from shadowmesh.base.clock import utc_now
from shadowmesh.cli import asking, files, settling
from tests.cli.test_program import (  # noqa: F401
    assert_failed,
    control,
    invoke,
    run,
    served,
    token_file,
)
from tests.control.fake_control import HOME, INVITATION, RECOVERY_KEY
from tests.control.fake_custody import BUNDLE, CERTIFICATE, FINGERPRINT, KEY, REQUEST, SEALED

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


# --- the authority's key ------------------------------------------------------------------------


def test_a_key_is_removed_only_when_the_file_that_keeps_it_was_read_back(
    run, home, tmp_path, secret
):
    file = tmp_path / "key.pem"
    result = run("network", "authority", "export", file, *secret, "--yes")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"the key of home is in {file}, and not here any more\n"
    assert_private(file, KEY.encode())
    assert [call for call in home.calls if "authority" in call[0]] == [
        ("export_authority", PASSPHRASE),
        ("release_authority", KEY, PASSPHRASE),
    ]


def test_a_key_that_cannot_be_written_stays_where_it_is(run, home, tmp_path, secret):
    file = tmp_path / "no" / "key.pem"
    assert_failed(run("network", "authority", "export", file, *secret, "--yes"), 1, "be written")
    assert calls(home, "release_authority") == []


def test_the_way_of_the_key_is_confirmed(run, home, tmp_path, secret, terminal):
    file = tmp_path / "key.pem"
    result = run("network", "authority", "export", file, *secret, input="n\n")
    assert (result.exit_code, "nothing was changed" in result.stderr) == (1, True)
    assert (home.calls, file.exists()) == ([], False)


def test_a_key_comes_back(run, home, tmp_path, secret):
    file = tmp_path / "key.pem"
    file.write_text(KEY)
    result = run("network", "authority", "import", file, *secret)
    assert (result.exit_code, result.stdout) == (0, "this machine issues for home again\n")
    assert calls(home, "import_authority") == [(KEY, PASSPHRASE)]


# --- certificates by hand -----------------------------------------------------------------------


def test_a_request_is_printed_or_written(run, control, tmp_path):
    result = run("cert", "request", "--name", "laptop")
    assert (result.exit_code, result.stdout) == (0, REQUEST)
    assert calls(control, "request") == [("laptop",)]
    file = tmp_path / "laptop.csr"
    assert run("cert", "request", "-o", file).stdout == ""
    assert_private(file, REQUEST.encode())
    assert_failed(run("cert", "request", "-o", file), 2, "--yes")


def test_a_request_is_signed_as_it_is_said(run, home, tmp_path):
    file = tmp_path / "laptop.csr"
    file.write_text(REQUEST)
    result = run("cert", "sign", file, "--name", "nas", "--role", "relay", "--tag", "a", "--tag",
                 "b", "--ip", "10.77.0.9", "--expires", "30d")  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, BUNDLE)
    assert result.stderr == "signed for nas, 10.77.0.2 and fd42::2\n"
    assert calls(home, "sign") == [
        (REQUEST, "nas", "['relay']", "['a', 'b']", "['10.77.0.9']", "2592000")
    ]
    assert run("cert", "sign", file, "--name", "nas").exit_code == 0
    assert calls(home, "sign")[1] == (REQUEST, "nas", "None", "None", "[]", "None")


@pytest.mark.parametrize(
    "more", [["--expires", "59m"], ["--expires", "8000d"], ["--name", "list"], []]
)
def test_what_cannot_be_signed_is_not_asked_for(run, home, tmp_path, more):
    file = tmp_path / "laptop.csr"
    file.write_text(REQUEST)
    name = [] if not more else ["--name", "nas"]
    assert_failed(run("cert", "sign", file, *name, *more), 2)
    assert home.calls == []


def test_an_empty_file_is_no_request(run, home, tmp_path):
    (tmp_path / "csr").touch()
    assert_failed(run("cert", "sign", tmp_path / "csr", "--name", "nas"), 2, "is empty")


def test_the_bundle_of_another_ca_is_written(run, home, tmp_path):
    file, out = tmp_path / "laptop.crt", tmp_path / "laptop.bundle"
    file.write_text(CERTIFICATE.pem)
    assert run("cert", "bundle", file, "-o", out).exit_code == 0
    assert_private(out, BUNDLE.encode())
    assert calls(home, "bundle") == [(CERTIFICATE.pem,)]


@pytest.fixture
def bundle(tmp_path):
    file = tmp_path / "laptop.bundle"
    file.write_text(BUNDLE)
    return file


def test_a_script_names_the_authority_that_a_bundle_must_have(run, control, bundle):
    assert_failed(run("cert", "install", bundle), 2, "--yes")
    assert_failed(run("cert", "install", bundle, "--yes"), 2, "--authority")
    assert control.joined is None
    result = run("cert", "install", bundle, "--yes", "--authority", "ab:ab")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["network   home", f"authority {FINGERPRINT}"]
    assert lines[-1] == "this machine is laptop of home"
    assert calls(control, "install")[-2:] == [("ab:ab", "False"), (FINGERPRINT, "True")]
    assert control.kept.file == BUNDLE.encode()


def test_at_a_terminal_the_fingerprint_is_asked_about(run, control, bundle, terminal):
    control.kept.offer = dataclasses.replace(control.kept.offer, doubts=("it overlaps eth0",))
    result = run("cert", "install", bundle, input="n\n")
    assert result.exit_code == 1
    assert f"authority {FINGERPRINT}" in result.stdout
    assert "warning: it overlaps eth0" in result.stderr
    assert "is this the authority of the network?" in result.stderr
    assert control.joined is None
    assert run("cert", "install", bundle, input="y\n").exit_code == 0
    assert control.joined is not None


def test_a_member_takes_another_certificate_without_a_fingerprint(run, home, bundle):
    home.kept.offer = dataclasses.replace(home.kept.offer, member=True)
    assert run("cert", "install", bundle, "--yes").exit_code == 0
    assert run("cert", "install", "-", "--yes", input=BUNDLE).exit_code == 0


@pytest.mark.parametrize(
    ("days", "problem", "code", "words"),
    [(31, None, 0, "30 more days"), (29.5, None, 8, "29 more days"), (6.5, None, 9, "6 more days"),
     (1.5, None, 9, "1 more day"), (0.5, None, 10, "less than a day"), (-1, None, 10, "expired on"),
     (99, "it was revoked", 10, "it was revoked")],
)  # fmt: skip
def test_the_exit_code_says_how_long_a_certificate_lasts(run, home, days, problem, code, words):
    end = utc_now().timestamp() + days * 86400
    home.kept.own = dataclasses.replace(CERTIFICATE, expires_at=end, problem=problem)
    result = run("cert", "show")
    assert (result.exit_code, words in result.stdout) == (code, True), result.output
    assert run("--json", "cert", "show").exit_code == code


def test_without_a_network_there_is_no_certificate(run, control):
    assert_failed(run("cert", "show"), 1, "in no network")
    assert_failed(run("cert", "renew"), 1, "in no network")


@pytest.mark.parametrize(("renewed", "words"), [(True, "renewed"), (False, "the newest there is")])
def test_a_certificate_is_asked_for(run, home, renewed, words):
    home.kept.renewed = renewed
    assert words in run("cert", "renew").stdout


@pytest.mark.parametrize(
    ("out", "said"),
    [(("nas",), "nas is out of the network"), (("a", "b"), "a and b are out of the network"),
     ((), "nobody was put out by it")],
)  # fmt: skip
def test_a_list_of_another_ca_says_who_is_out(run, home, tmp_path, out, said):
    home.kept.out = out
    (tmp_path / "crl").write_bytes(b"list")
    assert run("cert", "crl", tmp_path / "crl").stdout == f"{said}\n"


def test_a_network_is_adopted(run, control, tmp_path):
    names = ("ca", "crt", "crl")
    ca, crt, crl = (tmp_path / name for name in names)
    for path in (ca, crt, crl):
        path.write_text(path.name)
    result = run("network", "adopt", ca, "--certificate", crt, "--crl", crl, "--subnet",
                 "10.77.0.0/24", "--address", "vpn.example.com")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert RECOVERY_KEY in result.stdout
    assert calls(control, "adopt") == [(*names, "10.77.0.0/24", "vpn.example.com:9001")]


# --- members change -----------------------------------------------------------------------------


def test_a_member_gets_another_name_and_other_tags(run, home):
    assert run("peer", "rename", "nas", "box").stdout == "nas is box now\n"
    assert run("peer", "tag", "box", "--add", "a", "--drop", "b", "--now").stdout == "box has a\n"
    assert run("peer", "tag", "box", "--drop", "a").stdout == "box has no tags\n"
    assert calls(home, "reissue") == [
        ("nas", "box", "-", "False"),
        ("box", "None", "a", "-", "b", "True"),
        ("box", "None", "-", "a", "False"),
    ]
    assert_failed(run("peer", "tag", "nas"), 2, "--add")
    assert_failed(run("peer", "rename", "nas", "list"), 2, "list")


def test_a_new_key_comes_by_an_invitation(run, home, terminal):
    assert_failed(run("peer", "rekey", "nas", "--yes", "extra"), 2)
    result = run("peer", "rekey", "nas", input="n\n")
    assert (result.exit_code, calls(home, "rekey")) == (1, [])
    result = run("peer", "rekey", "nas", "--yes")
    assert (result.exit_code, result.stdout) == (0, f"{INVITATION}\n")
    assert calls(home, "rekey") == [("nas",)]
