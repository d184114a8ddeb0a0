"""What a daemon must not do, and how it says so."""

from __future__ import annotations

import base64
import os
import secrets

import pytest

from shadowmesh.netlab import Daemon, Net, wait_until
from tests.lab.pair import assert_log_clean, make_pair

pytestmark = pytest.mark.netns


@pytest.fixture
def net():
    with Net() as net:
        yield net


def other_key() -> str:
    """A public key of nobody here."""
    from shadowmesh.keys.identity import Identity, format_public_key

    return format_public_key(Identity.from_seed(secrets.token_bytes(32)).public_key)


@pytest.mark.parametrize(
    ("side", "settings", "cause"),
    [
        ("left", {"encryption.key": secrets.token_hex(32)}, "another encryption.key"),
        ("left", {"peer.public_key": other_key()}, "a peer.public_key that is not ours"),
        ("right", {"peer.public_key": other_key()}, "is not the pinned peer.public_key"),
        ("right", {"encryption.key": ""}, "only one side uses encryption.key: the peer does"),
        ("left", {"encryption.key": ""}, "only one side uses encryption.key: we do"),
    ],
    ids=["wrong key", "wrong pin here", "wrong pin there", "no key there", "no key here"],
)
def test_peers_with_other_keys_are_refused(net, tmp_path, side, settings, cause):
    pair = make_pair(net, tmp_path)
    changed = getattr(pair, side)
    changed.settings.update(settings)
    if not changed.settings["encryption.key"]:
        del changed.settings["encryption.key"]
    pair.start()
    done = pair.left.cli("connect")
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "encryption.key" in done.stderr
    assert "peer.public_key" in done.stderr
    left, right = pair.left.status(), pair.right.status()
    assert left["state"] == "error"
    assert "refused" in left["last_error"]
    assert left["handshakes"] == right["handshakes"] == {"refused": 1}
    assert right["state"] == "disconnected"
    assert right["path"] is None
    assert pair.left.host.taps() == pair.right.host.taps() == []
    # The peer learns nothing but "refused"; the operator of the refusing side finds the cause.
    wait_until(lambda: cause in pair.right.log(), 15, "the cause is logged")
    pair.assert_logs_clean()


def test_a_refused_peer_is_not_dialled_in_a_hot_loop(net, tmp_path):
    pair = make_pair(net, tmp_path, left={"peer.auto_connect": True})
    pair.left.settings["encryption.key"] = secrets.token_hex(32)
    pair.start()
    wait_until(lambda: _tries(pair.left), 15, "a first try")
    first = _tries(pair.left)
    with pytest.raises(TimeoutError):
        wait_until(lambda: _tries(pair.left) > first + 4, 15, "many tries")


def _tries(daemon: Daemon) -> int:
    return sum(daemon.status()["handshakes"].values())


def test_a_daemon_without_any_key_starts_and_refuses_to_connect(net, tmp_path):
    pair = make_pair(net, tmp_path, psk=False, pins=False)
    pair.start()
    code, answer = pair.left.api("POST", "/connect")
    assert (code, answer["error"]["code"]) == (503, "not_configured")
    for word in ("peer.public_key", "encryption.key", "shadowmesh reload"):
        assert word in answer["error"]["message"]
    for daemon in pair:
        assert daemon.terminate()[0] == 0


def test_keys_come_change_and_go_with_a_reload(net, tmp_path):
    pair = make_pair(net, tmp_path, psk=False, pins=False, left={"peer.auto_connect": True}).start()
    assert _peer_ports(pair.right) == ""
    for key in (secrets.token_hex(32), secrets.token_hex(32)):
        for daemon in (pair.right, pair.left):
            daemon.settings["encryption.key"] = key
            _reload(daemon)
        pair.await_connected()
        pair.assert_pings()
    del pair.right.settings["encryption.key"]
    _reload(pair.right)
    pair.right.wait_for(15, state="disconnected")
    wait_until(lambda: _peer_ports(pair.right) == "", 2, "the peer port is closed")
    pair.left.wait_for(15, state="connecting")
    pair.assert_logs_clean()


def _reload(daemon: Daemon) -> None:
    daemon.write_config()
    done = daemon.cli("reload")
    assert done.returncode == 0, done.stderr


def _peer_ports(daemon: Daemon) -> str:
    return daemon.host.run("ss", "-Hlnt", "sport", "=", ":9001").stdout


def test_each_of_the_three_modes_connects(net, tmp_path):
    for number, (psk, pins) in enumerate([(True, True), (True, False), (False, True)]):
        with Net() as own:
            pair = make_pair(own, tmp_path / str(number), psk=psk, pins=pins)
            pair.start().connect()
            pair.assert_pings()
            assert pair.left.status()["peer"]["pinned"] is pins
            assert pair.left.status()["peer"]["public_key"] == pair.right.public_key
            pair.assert_logs_clean()


def fails_to_start(daemon: Daemon, code: int, *words: str) -> None:
    """The daemon ends with `code` and its last line says why, in one line, with these words."""
    process = daemon.spawn()
    assert process.wait(15) == code, daemon.log()
    lines = daemon.log().strip().splitlines()
    assert lines, "nothing was said"
    for word in words:
        assert word in lines[-1], daemon.log()
    assert_log_clean(daemon)
    assert daemon.host.taps() == []


@pytest.fixture
def daemon(net, tmp_path):
    settings = {"encryption.key": secrets.token_hex(32)}
    daemon = Daemon(net.host("left"), tmp_path, settings)
    yield daemon
    daemon.kill()


@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("daemon.listen_address", ("127.0.0.1", 9090)),
        ("websocket.listen_address", ("0.0.0.0", 9001)),
    ],
)
def test_a_port_in_use_is_named(daemon, key, address):
    with daemon.host.listen(address):
        fails_to_start(daemon, 1, str(address[1]))


def test_a_taken_metrics_port_does_not_stop_the_start(daemon):
    with daemon.host.listen(("127.0.0.1", 9091)):
        daemon.settings["monitoring.prometheus_port"] = 9091
        daemon.start()
        check = daemon.api("GET", "/health")[1]["checks"]["metrics_port"]
    assert not check["ok"]
    assert "port 9091 is taken" in check["text"]
    assert "monitoring.prometheus_port" in check["text"]
    assert "monitoring.prometheus_port" in daemon.log()


def test_a_file_in_the_place_of_the_driver_stops_the_start(daemon, tmp_path):
    (tmp_path / "plain").touch()
    inside = f'mount --bind {tmp_path}/plain /dev/net/tun && exec "$@"'
    daemon.wrapper = ("unshare", "--mount", "sh", "-c", inside, "sh")
    fails_to_start(daemon, 1, "/dev/net/tun", "modprobe tun", "--device")


def test_a_fifo_in_the_place_of_the_pid_file_stops_the_start(daemon):
    os.mkfifo(daemon.directory / "daemon.pid")
    daemon.settings["daemon.pid_file"] = str(daemon.directory / "daemon.pid")
    fails_to_start(daemon, 7, "daemon.pid_file", "not a regular file")


def test_two_daemons_with_one_pid_file_do_not_run_together(daemon, tmp_path):
    daemon.start()
    twin = Daemon(
        daemon.host,
        tmp_path / "twin",
        {
            **daemon.settings,
            "daemon.listen_address": "127.0.0.1:9190",
            "monitoring.prometheus_port": 0,
            "websocket.listen_address": "",
            "nat.udp_port": 0,
        },
    )
    process = twin.spawn()
    assert process.wait(15) != 0
    assert "pid" in twin.log().strip().splitlines()[-1]
    assert daemon.running


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda path: path.chmod(0o644), "chmod 600"),
        (lambda path: path.write_bytes(b""), "identity.key"),
        (lambda path: path.write_bytes(bytes(31)), "identity.key"),
        (lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")), "link"),
        (lambda path: (path.unlink(), path.mkdir()), "identity.key"),
    ],
    ids=["mode 0644", "empty", "short", "symbolic link", "directory"],
)
def test_a_spoilt_identity_stops_the_start_and_is_left_alone(daemon, spoil, word):
    assert daemon.public_key
    path = daemon.state_dir / "identity.key"
    spoil(path)
    before = sorted((p.name, p.lstat().st_mode) for p in daemon.state_dir.iterdir())
    fails_to_start(daemon, 7, word)
    after = sorted((p.name, p.lstat().st_mode) for p in daemon.state_dir.iterdir())
    assert [entry for entry in after if entry[0] in {"identity.key", "x"}] == [
        entry for entry in before if entry[0] in {"identity.key", "x"}
    ]


@pytest.mark.parametrize(
    "text",
    [
        "network:\n  mtu: huge\n  colour: red\n",
        "network: [\n",
        "daemon:\n  log_level: info\n  log_level: debug\n",
        "encryption:\n  key: " + "0123456789abcdef" * 4 + "\n",
    ],
    ids=["wrong values", "not YAML", "key twice", "sample key"],
)
def test_a_bad_configuration_exits_7_and_names_the_place(daemon, text):
    daemon.write_config()
    daemon.config_path.write_text(text)
    done = daemon.host.run(
        *daemon.command(), "--daemon.state_dir", str(daemon.state_dir), check=False
    )
    assert done.returncode == 7
    assert "daemon.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    assert "0123456789abcdef0123456789abcdef" not in done.stderr


def test_the_check_prints_the_configuration_without_secrets(daemon):
    daemon.write_config()
    done = daemon.host.run(*daemon.command(), "--check", check=False)
    assert done.returncode == 0, done.stderr
    assert str(daemon.settings["encryption.key"]) not in done.stdout + done.stderr
    assert str(daemon.settings["network.local_ip"]) in done.stdout
    assert f"{daemon.config_path}" in done.stdout


def test_without_the_right_to_make_a_tap_the_daemon_does_not_start(daemon):
    daemon.wrapper = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    fails_to_start(daemon, 4, "CAP_NET_ADMIN", "root")
    assert not (daemon.directory / "daemon.pid").exists()


def test_base64_of_a_file_that_genkey_made_is_taken_as_identity(daemon):
    text = daemon.cli("genkey").stdout
    assert len(base64.b64decode(text)) == 32
    path = daemon.state_dir / "identity.key"
    path.write_text(text)
    path.chmod(0o600)
    public = daemon.cli("pubkey", text=text).stdout.strip()
    daemon.start()
    assert daemon.status()["public_key"] == public == daemon.public_key
    assert_log_clean(daemon)
