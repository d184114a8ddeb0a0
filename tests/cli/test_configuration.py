"""`shadowmesh config init`, `check` and `show`."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from shadowmesh.cli.commands import configuration
from shadowmesh.config import as_json, load, redacted
from shadowmesh.config.schema import KEYS
from shadowmesh.keys.identity import Identity, format_public_key
from shadowmesh.service.daemon import run
from tests.cli.test_program import assert_failed, invoke
from tests.control.fake_control import TOKEN, FakeControl, make_app, serving

PUBLIC = format_public_key(Identity.from_seed(bytes(range(32))).public_key)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "daemon.yaml"


# --- init -------------------------------------------------------------------------------------


def test_init_writes_every_key_with_its_default(path, tmp_path):
    result = invoke("config", "init", path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"written: {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    empty = tmp_path / "empty.yaml"
    empty.touch(0o600)
    environ = {"HOME": "/root"}
    assert load(path, {}, environ).config == load(empty, {}, environ).config
    text = path.read_text()
    assert all(f"{key.attribute}:" in text for key in KEYS.values())
    assert text.count("#") > len(KEYS)


def test_init_says_what_is_still_missing(path):
    assert (
        "neither peer.public_key nor encryption.key is set" in invoke("config", "init", path).stdout
    )


def test_init_fills_in_what_it_is_given(path):
    arguments = ("--psk", "--peer", "[2001:db8::7]:9001", "--public-key", PUBLIC,
                 "--local-ip", "10.0.0.2/24")  # fmt: skip
    result = invoke("config", "init", path, *arguments)
    assert result.exit_code == 0, result.output
    config = load(path, {}, {}).config
    assert str(config.peer.address) == "[2001:db8::7]:9001"
    assert format_public_key(config.peer.public_key) == PUBLIC
    assert str(config.network.local_ip) == "10.0.0.2/24"
    assert config.encryption.key.reveal().hex() in path.read_text()
    assert config.encryption.key.reveal().hex() not in result.output
    assert config.peer.auto_connect


def test_two_pre_shared_keys_differ(tmp_path):
    for name in ("one", "two"):
        invoke("config", "init", tmp_path / name, "--psk")
    one, two = (load(tmp_path / name, {}, {}).config for name in ("one", "two"))
    assert one.encryption.key.reveal() != two.encryption.key.reveal()


def test_init_never_overwrites(path):
    path.parent.mkdir()
    path.write_text("precious")
    assert_failed(invoke("config", "init", path, "--psk"), 1, str(path), "not overwritten")
    assert path.read_text() == "precious"
    assert list(path.parent.iterdir()) == [path]


def test_init_fills_in_the_example_that_was_installed(path):
    path.parent.mkdir()
    path.write_text((Path(__file__).parents[2] / "conf" / "daemon.yaml").read_text())
    assert invoke("config", "init", path, "--public-key", PUBLIC).exit_code == 0
    assert format_public_key(load(path, {}, {}).config.peer.public_key) == PUBLIC
    assert_failed(invoke("config", "init", path), 1, "not overwritten")


def test_init_does_not_follow_a_dangling_link(path, tmp_path):
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    assert_failed(invoke("config", "init", path), 1, "not overwritten")
    assert not (tmp_path / "elsewhere").exists()


def test_init_names_the_option_that_was_typed(path):
    result = invoke("config", "init", path, "--public-key", "KEY_OF_LEFT")
    assert_failed(result, 7, "--public-key: a public key is 44 characters of base64")
    assert "peer.public_key" not in result.stderr


@pytest.mark.parametrize(
    ("problem", "told"), [(None, True), (PermissionError, True), (FileNotFoundError, False)]
)
def test_init_says_that_the_file_of_the_service_comes_before_one_s_own(
    monkeypatch, tmp_path, problem, told
):
    """Also when it stands in a directory that this user may not search, as the service's does."""
    system, real = str(tmp_path / "system.yaml"), os.lstat
    Path(system).touch()

    def lstat(path, **options):
        if path == system and problem is not None:
            raise problem
        return real(path, **options)

    monkeypatch.setattr(configuration, "SYSTEM_CONFIG_FILE", system)
    monkeypatch.setattr(os, "geteuid", lambda: 4001)
    monkeypatch.setattr(os, "lstat", lstat)
    result = invoke("config", "init", environment={"HOME": str(tmp_path)})
    assert result.exit_code == 0, result.output
    advice = f"next: name it by --config {tmp_path / '.shadowmesh/config.yaml'};"
    assert (advice in result.stdout) is told


@pytest.mark.parametrize(
    ("option", "value"),
    [("--peer", "no where"), ("--public-key", "short"), ("--local-ip", "10.0.0.0/24"),
     ("--peer", 'a:1"\nx: y'), ("--peer", "10.0.0.9:9001")],
)  # fmt: skip
def test_init_writes_nothing_that_the_daemon_would_refuse(path, option, value):
    assert_failed(invoke("config", "init", path, option, value), 7)
    assert not path.exists()


def test_init_takes_the_file_of_the_program_s_option(path):
    assert invoke("--config", path, "config", "init").exit_code == 0
    assert path.exists()


def test_init_does_not_mind_what_else_is_configured_on_this_machine(monkeypatch, tmp_path):
    broken = tmp_path / "etc.yaml"
    broken.write_text("nonsense: 1\n")
    monkeypatch.setattr("shadowmesh.config.loader.SYSTEM_CONFIG_FILE", str(broken))
    path = tmp_path / "new.yaml"
    assert invoke("config", "init", path, "--local-ip", "10.3.0.1/24").exit_code == 0
    assert 'local_ip: "10.3.0.1/24"' in path.read_text()


def test_init_for_a_user_without_home_wants_a_file(monkeypatch):
    monkeypatch.setattr("shadowmesh.cli.commands.configuration.os.geteuid", lambda: 1000)
    assert_failed(invoke("config", "init", environment={"HOME": ""}), 2, "name a file")


def test_init_for_a_user_writes_below_the_home(monkeypatch, tmp_path):
    monkeypatch.setattr("shadowmesh.cli.commands.configuration.os.geteuid", lambda: 1000)
    assert invoke("config", "init", environment={"HOME": str(tmp_path)}).exit_code == 0
    assert (tmp_path / ".shadowmesh" / "config.yaml").exists()
    assert stat.S_IMODE((tmp_path / ".shadowmesh").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_the_service_s_group_may_read_what_init_writes(tmp_path):
    os.chown(tmp_path, 0, 65534)
    tmp_path.chmod(0o2750)
    path = tmp_path / "daemon.yaml"
    result = invoke("config", "init", path, "--psk")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_gid == 65534
    assert "others may read" not in result.output


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert_failed(invoke("config", "init", tmp_path / "file" / "daemon.yaml"), 1, "file")


def test_init_in_json(path):
    answer = json.loads(invoke("--json", "config", "init", path).stdout)
    assert (answer["schema"], answer["file"]) == (1, str(path))
    assert len(answer["warnings"]) == 1


# --- check ------------------------------------------------------------------------------------


def test_check_of_a_good_file(path):
    invoke("config", "init", path, "--psk", "--public-key", PUBLIC)
    for result in (invoke("config", "check", path), invoke("--config", path, "config", "check")):
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"ok: {path}\n", "")


def test_check_passes_warnings_on(path):
    invoke("config", "init", path)
    result = invoke("config", "check", path)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: neither peer.public_key")
    answer = json.loads(invoke("--json", "config", "check", path).stdout)
    assert (answer["ok"], answer["problems"], len(answer["warnings"])) == (True, [], 1)


def test_check_prints_each_problem_on_a_line(path):
    path.parent.mkdir()
    path.write_text("network:\n  mtu: 100\n  colour: red\n")
    result = invoke("config", "check", path)
    assert result.exit_code == 7
    lines = result.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error", "error"]
    assert any(f"{path}:2: network.mtu" in line for line in lines)
    assert any(f"{path}:3" in line and "colour" in line for line in lines)
    answer = json.loads(invoke("--json", "config", "check", path).stdout)
    assert answer["ok"] is False
    assert {problem["line"] for problem in answer["problems"]} == {2, 3}


def test_check_names_the_lines_of_both_peers_that_have_one_key(path):
    path.parent.mkdir()
    item = "  - name: {}\n    public_key: " + PUBLIC + "\n"
    path.write_text("peers:\n" + item.format("nas") + item.format("laptop"))
    assert_failed(
        invoke("config", "check", path), 7,
        f"{path}:5: peers.laptop.public_key: is the key of peer nas on line 3, too",
    )  # fmt: skip


def test_check_and_the_daemon_s_own_take_a_list_of_peers(path, capfd):
    path.parent.mkdir()
    path.write_text(f"peers:\n  - name: nas\n    public_key: {PUBLIC}\n")
    result = invoke("config", "check", path)
    assert (result.exit_code, result.output) == (0, f"ok: {path}\n")
    assert run(["--config", str(path), "--check"], {"HOME": "/root"}) == 0
    assert f'  - name: "nas"  # {path}:2\n    public_key: "{PUBLIC}"\n' in capfd.readouterr().out


def test_check_of_a_missing_file_exits_with_7(tmp_path):
    assert_failed(invoke("config", "check", tmp_path / "none"), 7, "no such file")


# --- show -------------------------------------------------------------------------------------


def test_show_names_the_source_of_each_value_and_no_secret(path):
    invoke("config", "init", path, "--psk", "--local-ip", "10.0.0.2/24")
    secret = load(path, {}, {}).config.encryption.key.reveal().hex()
    result = invoke("config", "show", path, environment={"SHADOWMESH_NETWORK_MTU": "1400"})
    assert result.exit_code == 0
    assert "  mtu: 1400  # environment SHADOWMESH_NETWORK_MTU" in result.stdout
    assert secret not in result.output
    assert "***" in result.stdout


def test_show_in_json_has_plain_values(path):
    invoke("config", "init", path, "--psk")
    secret = load(path, {}, {}).config.encryption.key.reveal().hex()
    result = invoke("--json", "config", "show", path)
    assert secret not in result.output
    answer = json.loads(result.stdout)
    assert (answer["schema"], answer["file"]) == (1, str(path))
    values = {name: one["value"] for name, one in answer["values"].items()}
    assert values.keys() == KEYS.keys()
    assert values["network.mtu"] == 1500
    assert values["network.offload"] is True
    assert values["daemon.log_level"] == "info"
    assert values["nat.stun_server"] == ["stun.l.google.com:19302"]
    assert values["encryption.rotation_interval"] == "120s"
    assert values["encryption.key"] == "***"
    assert str(path) in answer["values"]["network.mtu"]["source"]


def test_an_unknown_command_of_config_suggests_the_nearest():
    assert_failed(invoke("config", "chek"), 2, "did you mean 'check'")


@pytest.fixture
def daemon(path, tmp_path):
    """A daemon with a configuration that is no default; returns the options for its API."""
    invoke("config", "init", path, "--psk", "--local-ip", "10.0.0.2/24")
    control = FakeControl()
    control.loaded = load(path, {}, {"STATE_DIRECTORY": "/var/lib/of-the-service"})
    token = tmp_path / "api.token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    with serving(lambda address: make_app(control, address)) as address:
        yield control, ("--api", f"http://{address}", "--token-file", token)


def test_show_prints_what_the_running_daemon_goes_by(daemon):
    control, options = daemon
    result = invoke(*options, "config", "show")
    assert result.exit_code == 0, result.output
    assert result.stdout == redacted(control.loaded)
    assert 'state_dir: "/var/lib/of-the-service"' in result.stdout
    assert control.loaded.config.encryption.key.reveal().hex() not in result.output
    answer = json.loads(invoke(*options, "--json", "config", "show").stdout)
    assert answer == {"schema": 1, "pid": os.getpid(), **as_json(control.loaded)}


def test_show_prints_a_file_that_is_named_also_beside_a_daemon(daemon, tmp_path):
    other = tmp_path / "other.yaml"
    invoke("config", "init", other, "--local-ip", "10.7.0.1/24")
    control, options = daemon
    for result in (
        invoke(*options, "config", "show", other),
        invoke(*options, "--config", other, "config", "show"),
    ):
        assert "10.7.0.1/24" in result.stdout
    assert not control.calls


def test_show_without_a_daemon_says_whose_directories_it_prints(monkeypatch, tmp_path):
    monkeypatch.setattr("shadowmesh.config.loader.SYSTEM_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("shadowmesh.cli.settings.SYSTEM_API_SOCKET", str(tmp_path / "none.sock"))
    environment = {"HOME": str(tmp_path), "SHADOWMESH_DAEMON_LISTEN_ADDRESS": "127.0.0.1:1"}
    result = invoke("config", "show", environment=environment)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("# file: none\n")
    assert "no daemon answers; this is what one that this user starts would go by" in result.stderr
