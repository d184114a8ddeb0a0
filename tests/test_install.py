"""What `make install` puts where, and that the daemon runs as the user whom the unit names."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shadowmesh import netlab
from shadowmesh.base.errors import ConfigError
from shadowmesh.config import load, loader
from shadowmesh.keys import sodium
from shadowmesh.keys.api_token import load_or_create_token
from shadowmesh.keys.identity import load_or_create_identity
from shadowmesh.keys.private_file import hands_on_its_group
from shadowmesh.link.tls import load_or_create_certificate
from tests.lab.pair import make_pair

NOBODY = 65534
PSK = bytes(range(3, 35)).hex()


# --- Defaults under systemd -------------------------------------------------------------------


def defaults(environ, text="", tmp_path=None):
    path = None
    if text:
        path = tmp_path / "daemon.yaml"
        path.write_text(text)
        path.chmod(0o600)
    return load(path, {}, {"HOME": "/nonexistent", **environ}, is_root=False).config


@pytest.fixture
def etc(tmp_path, monkeypatch):
    """What stands for /etc/shadowmesh, where this machine may have a pair."""
    etc = tmp_path / "etc"
    etc.mkdir()
    for name in ("cert", "key"):
        key = loader.KEYS[f"websocket.tls_{name}"]
        path = str(etc / f"{name}.pem")
        monkeypatch.setitem(loader.KEYS, key.name, dataclasses.replace(key, default=path))
    return etc


@pytest.mark.usefixtures("etc")
def test_a_service_keeps_its_state_and_certificate_where_systemd_lets_it(tmp_path):
    config = defaults({"STATE_DIRECTORY": f"{tmp_path}:/other"})
    assert config.daemon.state_dir == tmp_path
    assert config.websocket.tls_cert == tmp_path / "cert.pem"
    assert config.websocket.tls_key == tmp_path / "key.pem"


def test_the_file_beats_the_directories_of_systemd(tmp_path):
    text = (
        "daemon:\n  state_dir: /srv/state\n"
        "websocket:\n  tls_cert: /srv/cert.pem\n  tls_key: /srv/key.pem\n"
    )
    config = defaults({"STATE_DIRECTORY": str(tmp_path)}, text, tmp_path)
    assert str(config.daemon.state_dir) == "/srv/state"
    assert str(config.websocket.tls_cert) == "/srv/cert.pem"


@pytest.mark.parametrize("present", ["cert.pem", "key.pem"])
def test_a_certificate_at_the_usual_place_is_used_by_a_service_too(etc, present):
    (etc / present).touch()
    config = defaults({"STATE_DIRECTORY": "/var/lib/shadowmesh"})
    assert config.websocket.tls_cert == etc / "cert.pem"
    assert config.websocket.tls_key == etc / "key.pem"


@pytest.mark.parametrize("value", ["", "relative"])
def test_outside_of_a_service_nothing_changes(value):
    config = defaults({"STATE_DIRECTORY": value, "HOME": "/home/me"})
    assert str(config.daemon.state_dir) == "/home/me/.shadowmesh"
    assert str(config.websocket.tls_cert) == "/etc/shadowmesh/cert.pem"


# --- Who may read the configuration -----------------------------------------------------------


@pytest.fixture
def own_group(shared_directory):
    """A directory that hands its group to new files, as the package makes /etc/shadowmesh."""
    os.chown(shared_directory, 0, NOBODY)
    shared_directory.chmod(0o2750)
    return shared_directory


def write_secret(directory, mode):
    path = directory / "daemon.yaml"
    path.write_text(f'encryption:\n  key: "{PSK}"\n')
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("mode", "refused"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_for_the_service_s_group_is_private(own_group, mode, refused):
    path = write_secret(own_group, mode)
    assert path.stat().st_gid == NOBODY
    with pytest.raises(ConfigError, match="chmod 640") if refused else contextlib.nullcontext():
        load(path, {}, {})


def test_the_group_of_root_is_nobody_s_own(own_group):
    os.chown(own_group, 0, 0)
    own_group.chmod(0o2750)
    assert not hands_on_its_group(own_group, 0)
    assert not hands_on_its_group(own_group / "missing", 0)


def test_the_service_is_told_how_its_group_gets_the_file(own_group, as_user):
    path = write_secret(own_group, 0o600)
    with as_user(998, NOBODY), pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert f"as root: `chgrp nogroup {path} && chmod 640 {path}`" in str(caught.value)


def test_a_person_is_not_told_to_take_the_file_from_the_service(shared_directory, as_user):
    path = write_secret(shared_directory, 0o600)
    with as_user(4321, 4321), pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert "chgrp" not in str(caught.value)
    assert "run the command as root" in str(caught.value)


@pytest.mark.parametrize("owner", [0, NOBODY], ids=["group of the directory", "its owner"])
def test_what_root_makes_in_a_directory_of_the_service_is_the_service_s_to_read(
    shared_directory, as_user, owner
):
    os.chown(shared_directory, owner, NOBODY)
    shared_directory.chmod(0o2750 if owner == 0 else 0o700)
    cert, key = shared_directory / "cert.pem", shared_directory / "key.pem"
    made = load_or_create_certificate(cert, key)
    identity = load_or_create_identity(shared_directory)
    token = load_or_create_token(shared_directory)
    # Root reads it again, too: a second try is as good as the first.
    assert load_or_create_identity(shared_directory).public_key == identity.public_key
    with as_user(NOBODY, NOBODY):
        assert load_or_create_certificate(cert, key).sha256 == made.sha256
        assert load_or_create_identity(shared_directory).public_key == identity.public_key
        assert load_or_create_token(shared_directory) == token
    assert {path.stat().st_mode & 0o007 for path in shared_directory.iterdir()} == {0}


# --- The daemon as a user of its own ----------------------------------------------------------


@pytest.fixture
def service(shared_directory):
    """A daemon as its unit runs it: no root, one capability, and systemd's directories."""
    with netlab.Net() as net:
        pair = make_pair(net, shared_directory)
        left = pair.left
        for key in ("daemon.state_dir", "websocket.tls_cert", "websocket.tls_key"):
            del left.settings[key]
        for directory in (left.directory, left.state_dir):
            os.chown(directory, NOBODY, NOBODY)
        for path in left.state_dir.iterdir():
            os.chown(path, NOBODY, NOBODY)
        # udev lets everybody open the device (CAP_NET_ADMIN decides); a machine without it may not.
        node = shared_directory / "tun"
        os.mknod(node, stat.S_IFCHR | 0o666, os.stat("/dev/net/tun").st_rdev)
        node.chmod(0o666)
        inside = f'mount --bind {node} /dev/net/tun && exec "$@"'
        left.wrapper = (
            "unshare", "--mount", "sh", "-c", inside, "sh",
            "env", f"STATE_DIRECTORY={left.state_dir}",
            "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin",
            "--bounding-set=-all,+net_admin", "--no-new-privs",
        )  # fmt: skip
        try:
            yield pair
        finally:
            for daemon in pair:
                daemon.kill()


@pytest.mark.netns
def test_the_daemon_carries_frames_without_root(service):
    left, right = service
    left.write_config()
    left.config_path.chmod(0o640)
    os.chown(left.config_path, 0, NOBODY)
    left.process = left.host.popen(*left.wrapper, *left.command(), log=left.log_path)
    left.await_healthy()
    right.start()
    left.settings["daemon.state_dir"] = str(left.state_dir)
    service.connect()
    service.assert_pings()
    status = left.status()
    assert status["resources"]["open_fds"] > 0
    assert {path.name for path in left.state_dir.iterdir()} == {
        "identity.key", "api.token", "cert.pem", "key.pem", "last_seen", "api.sock",
    }  # fmt: skip
    for path in left.state_dir.iterdir():
        # The kernel tells the socket who asks: everybody may.
        mode = 0o666 if path.name == "api.sock" else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.stat().st_uid == NOBODY
    assert left.terminate()[0] == 0
    assert "Permission" not in left.log()


# --- libsodium --------------------------------------------------------------------------------


def test_a_machine_without_libsodium_does_with_the_one_we_carry():
    if not (Path(sodium.__file__).parents[1] / "_libsodium.so").exists():
        pytest.skip("built with the system's libsodium")
    code = (
        "import ctypes.util\n"
        "def missing(name): return None\n"
        "ctypes.util.find_library = missing\n"
        "from shadowmesh.keys import sodium\n"
        "assert sodium._lib._name.endswith('_libsodium.so'), sodium._lib._name\n"
        "assert ctypes.util.find_library is missing\n"
        "assert len(sodium.random_bytes(32)) == 32\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- OpenSSL ----------------------------------------------------------------------------------


def test_a_build_without_openssls_headers_says_in_one_line_what_to_install():
    scripts = Path(__file__).parents[1] / "scripts"
    asked = subprocess.run(
        [sys.executable, "-c", "import openssl; openssl.find()"],
        cwd=scripts,
        env={**os.environ, "PKG_CONFIG_LIBDIR": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert asked.returncode == 1
    assert asked.stderr.count("\n") == 1
    assert "apt-get install libssl-dev" in asked.stderr
