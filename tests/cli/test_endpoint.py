"""Where commands find the daemon, and to whom they tell the token."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from shadowmesh.cli import client, endpoint, settings
from shadowmesh.control.rights import Right, Rights
from tests.cli.test_program import assert_failed, invoke
from tests.control.fake_control import TOKEN, FakeControl, make_app, serving
from tests.control.strangers import NOBODY, as_nobody, common_place, needs_root

RIGHTS = Rights(os.geteuid(), {Right.LOOK: 4001, Right.CHANGE: 4002})

#: listens, says where, and writes down what it is told
_STRANGER = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0)) if sys.argv[1] == "tcp" else socket.socket(socket.AF_UNIX)
if sys.argv[1] != "tcp":
    sock.bind(sys.argv[1])
    sock.listen()
print(sock.getsockname()[1] if sys.argv[1] == "tcp" else "ready", flush=True)
while True:
    connection, _ = sock.accept()
    connection.settimeout(5)
    try:
        data = connection.recv(65536)
    except OSError:
        data = b""
    print(f"heard {len(data)}", flush=True)
    connection.close()
"""


class Stranger:
    """Another user of this machine, at a port or a path where the daemon could be."""

    def __init__(self, where="tcp"):
        self.process = subprocess.Popen(
            [*as_nobody(), sys._base_executable, "-I", "-c", _STRANGER, str(where)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = self.process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def heard(self):
        """What came over one connection, in bytes."""
        return int(self.process.stdout.readline().split()[1])


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "api.token"
    path.write_text(TOKEN)
    return path


@pytest.fixture
def config(tmp_path):
    """A daemon's configuration, whose API is nowhere but at a Unix socket."""
    path = tmp_path / "daemon.yaml"
    path.write_text(f"daemon:\n  listen_address: 127.0.0.1:1\n  state_dir: {tmp_path}\n")
    path.chmod(0o600)
    return path


@needs_root
@pytest.mark.parametrize("command", [["status"], ["capture"], ["connect"], ["version"]])
def test_the_token_is_not_told_to_whoever_has_the_port(token_file, command):
    with Stranger() as stranger:
        url = f"http://127.0.0.1:{stranger.said}"
        result = invoke("--api", url, "--token-file", token_file, *command)
        if command == ["version"]:
            assert "not sent" in result.stdout
        else:
            assert_failed(result, 4, "not sent", "nobody", f"sport = :{stranger.said}")
        assert stranger.heard() == 0


@needs_root
def test_a_listener_at_all_addresses_is_looked_at_too(token_file):
    with Stranger() as stranger:
        url = f"http://localhost:{stranger.said}"
        assert_failed(invoke("--api", url, "--token-file", token_file, "status"), 4, "not sent")
        assert stranger.heard() == 0


@needs_root
def test_whoever_owns_the_token_may_be_told_it(token_file):
    os.chown(token_file, NOBODY, NOBODY)
    with Stranger() as stranger:
        url = f"http://127.0.0.1:{stranger.said}"
        result = invoke("--api", url, "--token-file", token_file, "status")
        assert_failed(result, 3, "closed without an answer")
        assert stranger.heard() > len(TOKEN)


def test_a_listener_that_has_changed_meanwhile_is_not_told(monkeypatch):
    from shadowmesh.device import sock_diag

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        real = sock_diag.listeners_on
        answers = iter([frozenset(), real(port)])
        monkeypatch.setattr(sock_diag, "listeners_on", lambda _port: next(answers))
        with pytest.raises(client.NotPermitted, match="not sent"):
            endpoint.parse(f"http://127.0.0.1:{port}").connect(5, secret=True)


def test_a_kernel_that_does_not_say_who_listens_gets_no_token_out_of_us(monkeypatch):
    from shadowmesh.device import sock_diag

    def silent(_port):
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(sock_diag, "listeners_on", silent)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = endpoint.parse(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(client.NotPermitted, match="api_socket"):
            where.connect(5, secret=True)
        where.connect(5, secret=False).close()


# --- The Unix socket --------------------------------------------------------------------------


def test_commands_use_the_socket_of_the_configuration_and_need_no_token(config, tmp_path):
    control = FakeControl()
    with serving(
        lambda address: make_app(control, address), path=tmp_path / "api.sock", rights=RIGHTS
    ):
        assert invoke("--config", config, "disconnect").exit_code == 0
        assert invoke("--config", config, "status").exit_code == 5
        assert invoke("--api", f"unix:{tmp_path}/api.sock", "status").exit_code == 5
    assert [call for call, *_ in control.calls] == ["disconnect", "status", "status"]


def test_a_socket_at_which_nobody_listens_is_as_good_as_none(config, tmp_path, token_file):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "api.sock"))
    assert_failed(invoke("--config", config, "status"), 3, "http://127.0.0.1:1")
    assert_failed(
        invoke("--api", f"unix:{tmp_path}/api.sock", "status"), 3, f"unix:{tmp_path}/api.sock"
    )


def test_who_names_a_token_means_the_port(config, tmp_path, token_file):
    with serving(
        lambda address: make_app(FakeControl(), address), path=tmp_path / "api.sock", rights=RIGHTS
    ):
        result = invoke("--config", config, "--token-file", token_file, "status")
        assert_failed(result, 3, "http://127.0.0.1:1")


@needs_root
def test_a_socket_of_somebody_else_is_not_believed():
    with common_place() as shared:
        shared.chmod(0o1777)
        with Stranger(shared / "api.sock") as stranger:
            result = invoke("--api", f"unix:{shared}/api.sock", "status")
            assert_failed(result, 4, "nobody", "nothing was asked")
            assert stranger.heard() == 0


def test_the_dashboard_s_link_is_of_the_port(config, tmp_path, token_file):
    with serving(
        lambda address: make_app(FakeControl(), address), path=tmp_path / "api.sock", rights=RIGHTS
    ) as address:
        config.write_text(f"daemon:\n  listen_address: {address}\n  state_dir: {tmp_path}\n")
        result = invoke("--config", config, "dashboard")
        assert result.stdout == f"http://{address}/#token={TOKEN}\n"


def test_a_user_without_a_daemon_of_its_own_asks_the_one_of_the_machine(monkeypatch, tmp_path):
    path = tmp_path / "system.sock"
    monkeypatch.setattr(settings, "SYSTEM_API_SOCKET", str(path))
    empty = tmp_path / "empty.yaml"
    empty.touch(mode=0o600)
    with serving(lambda address: make_app(FakeControl(), address), path=path, rights=RIGHTS):
        environment = {"SHADOWMESH_DAEMON_STATE_DIR": str(tmp_path / "mine")}
        assert invoke("status", environment=environment).exit_code == 5
        # but not when it says which daemon it means
        result = invoke("--config", empty, "status", environment=environment)
        assert result.exit_code in (3, 4)


def test_a_daemon_that_stops_is_one_that_does_not_run(tmp_path):
    import gevent

    control, waiting = FakeControl(), threading.Event()
    path = tmp_path / "api.sock"
    results = []

    def before():
        waiting.set()
        gevent.sleep(60)

    control.before = before
    with serving(lambda address: make_app(control, address), path=path, rights=RIGHTS):
        asked = client.ApiClient(f"unix:{path}", None)

        def connect():
            with pytest.raises(client.DaemonNotRunning, match="is stopping") as caught:
                asked.connect(None)
            results.append(caught.value.exit_code)

        thread = threading.Thread(target=connect)
        thread.start()
        assert waiting.wait(10)
    thread.join(20)
    assert results == [3]
