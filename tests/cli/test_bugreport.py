"""`shadowmesh bugreport`: what is in the archive, and what never is."""
# ruff: noqa: F811

from __future__ import annotations

import base64
import json
import secrets
import tarfile

import pytest

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.cli import evidence
from shadowmesh.cli.redaction import Redactor
from shadowmesh.config import redacted
from tests.cli.test_program import (  # noqa: F401
    NOBODY,
    assert_failed,
    control,
    invoke,
    run,
    served,
    token_file,
)
from tests.control.fake_control import CONNECTED, TOKEN

FAILED = ".failed.txt"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(evidence, "COMMAND_TIMEOUT_S", 5.0)


def read(path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        entries = list(tar)
        assert {(entry.mode, entry.uid, entry.isfile()) for entry in entries} == {(0o600, 0, True)}
        assert len({entry.name.partition("/")[0] for entry in entries}) == 1
        return {
            entry.name.partition("/")[2]: tar.extractfile(entry).read().decode()
            for entry in entries
        }


@pytest.fixture
def canaries(tmp_path):
    """A configuration and a state directory that are full of secrets, each known by its name."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    seed, psk = secrets.token_bytes(32), secrets.token_hex(32)
    token = secrets.token_urlsafe(32)
    (state / "identity.key").write_bytes(seed)
    (state / "api.token").write_text(token)
    for file in state.iterdir():
        file.chmod(0o600)
    config = tmp_path / "daemon.yaml"
    config.write_text(
        f"daemon: {{state_dir: '{state}', listen_address: '127.0.0.1:1'}}\n"
        f"encryption: {{key: '{psk}'}}\n"
    )
    config.chmod(0o600)
    return config, {
        "psk": psk,
        "token": token,
        "seed in hex": seed.hex(),
        "seed in base64": base64.b64encode(seed).decode(),
    }


def leaking(canaries) -> str:
    """A text that holds every secret, as a log of a daemon with a bug would."""
    return "".join(f"{name}={secret} {secret.upper()}\n" for name, secret in canaries.items())


def test_no_secret_is_in_the_archive_although_every_source_leaks(canaries, tmp_path, monkeypatch):
    config, secret = canaries
    text = leaking(secret)
    monkeypatch.setattr(evidence, "run", lambda command: text)
    monkeypatch.setattr(evidence, "kernel", lambda: text)
    monkeypatch.setattr(evidence, "versions", lambda command: text)

    def fail(*_arguments):
        raise ShadowMeshError(f"it failed: {text}")

    monkeypatch.setattr(evidence, "files", fail)
    file = tmp_path / "report.tar.gz"
    result = invoke("--config", config, "bugreport", "--output", file)
    assert result.exit_code == 0, result.output
    parts = read(file)
    assert "seed in hex=[identity]" in parts["kernel.txt"]
    assert "psk=[encryption.key]" in parts["interfaces.txt"]
    assert "token=[" in parts[f"files.txt{FAILED}"]
    for name, value in secret.items():
        for part, content in parts.items():
            assert value not in content, f"{name} is in {part}"
        assert value.encode() not in file.read_bytes()
        assert value not in result.output


def test_an_identity_file_of_text_is_taken_out_in_both_forms(tmp_path):
    seed = secrets.token_bytes(32)
    (tmp_path / "identity.key").write_text(base64.b64encode(seed).decode() + "\n")
    redact = Redactor(evidence.secrets_of(None, tmp_path, {}))
    assert redact(seed.hex()) == redact(base64.b64encode(seed).decode()) == "[identity]"


def test_a_key_in_the_environment_is_taken_out(tmp_path):
    found = evidence.secrets_of(None, None, {"SHADOWMESH_ENCRYPTION_KEY": "a-typed-key"})
    assert Redactor(found)("x a-typed-key") == "x [SHADOWMESH_ENCRYPTION_KEY]"
    assert evidence.environment({"SHADOWMESH_ENCRYPTION_KEY": "k"}) == (
        "SHADOWMESH_ENCRYPTION_KEY is set\n"
    )


def test_without_a_daemon_there_is_a_report_that_says_so(canaries, tmp_path):
    config, _ = canaries
    file = tmp_path / "report.tar.gz"
    result = invoke("--config", config, "bugreport", "-o", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"written: {file} (")
    assert "IP and MAC addresses, host names, public keys" in result.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    parts = read(file)
    for name in (
        "configuration-in-force.yaml", "status.json", "health.json", "explain.json", "events.json",
        "metrics.txt", "peers.json", "fdb.json",
    ):  # fmt: skip
        assert "no daemon answers" in parts[f"{name}{FAILED}"]
        assert name not in parts
        assert name in result.stdout
    assert 'key: "***"' in parts["configuration.yaml"]
    assert "shadowmesh   " in parts["versions.txt"]
    assert "net/core/rmem_max" in parts["kernel.txt"]
    assert "identity.key" in parts["files.txt"]
    assert parts["README.txt"]


def test_a_running_daemon_is_asked_for_everything(run, control, tmp_path):
    control.snapshot = CONNECTED
    file = tmp_path / "report.tar.gz"
    result = run("--json", "bugreport", "-o", file)
    assert result.exit_code == 0
    parts = read(file)
    assert json.loads(parts["status.json"])["state"] == "connected"
    assert parts["configuration-in-force.yaml"] == redacted(control.loaded)
    assert json.loads(parts["explain.json"])["steps"]
    assert json.loads(parts["events.json"]) == {"events": []}
    assert json.loads(parts["peers.json"])["peers"][0]["name"] == "peer"
    assert json.loads(parts["fdb.json"]) == {"entries": []}
    assert "metrics_enabled is false" in parts[f"metrics.txt{FAILED}"]
    answer = json.loads(result.stdout)
    assert (answer["schema"], answer["file"]) == (1, str(file))
    by_name = {part["name"]: part for part in answer["parts"]}
    assert by_name["status.json"] == {
        "name": "status.json", "file": "status.json", "ok": True, "problem": None,
    }  # fmt: skip
    assert by_name["metrics.txt"]["ok"] is False
    assert not [text for text in parts.values() if TOKEN in text]


def test_an_invalid_configuration_is_in_the_report_as_its_problems(tmp_path):
    config = tmp_path / "daemon.yaml"
    config.write_text("daemon: {log_levle: info}\n")
    file = tmp_path / "report.tar.gz"
    assert invoke("--config", config, "bugreport", "-o", file).exit_code == 0
    assert "log_levle" in read(file)[f"configuration.yaml{FAILED}"]


def test_a_report_replaces_no_file(tmp_path):
    file = tmp_path / "report.tar.gz"
    file.write_text("mine")
    assert_failed(invoke("bugreport", "-o", file), 1, str(file), "--output")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert_failed(invoke("bugreport", "-o", file), 1, str(file))
    assert not (tmp_path / "elsewhere").exists()


def test_a_report_that_cannot_be_written_is_one_line(tmp_path):
    assert_failed(
        invoke("bugreport", "-o", tmp_path / "nowhere" / "report.tar.gz"), 1, "cannot be written"
    )


def test_a_long_part_keeps_its_end(monkeypatch):
    monkeypatch.setattr(evidence, "MAX_PART_BYTES", 10)
    [part] = evidence.collect({"log.txt": lambda: "x" * 90 + "0123456789"}, Redactor({}))
    assert part.text.splitlines() == ["(the first 90 characters are left out)", "0123456789"]


def test_a_program_that_is_missing_fails_or_hangs_costs_its_own_part_only(monkeypatch):
    monkeypatch.setattr(evidence, "COMMAND_TIMEOUT_S", 0.2)
    sources = {
        "missing": lambda: evidence.commands(["no-such-program-here"]),
        "failing": lambda: evidence.commands(["sh", "-c", "echo why >&2; exit 3"]),
        "hanging": lambda: evidence.run(["sleep", "5"]),
        "half": lambda: evidence.commands(["no-such-program-here"], ["echo", "there"]),
    }
    parts = {part.name: part for part in evidence.collect(sources, Redactor({}))}
    assert "no-such-program-here is not installed" in parts["missing"].problem
    assert "exit 3: why" in parts["failing"].problem
    assert "timed out" in parts["hanging"].problem
    assert parts["half"].problem is None
    assert "there" in parts["half"].text
