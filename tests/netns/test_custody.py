"""Keys and certificates of a network in files: real daemons, and commands as people type them."""

from __future__ import annotations

import json
import shutil
import stat

import pytest

from shadowmesh.netlab import wait_until
from tests.lab.network import running_network

pytestmark = pytest.mark.netns

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def network(directory, request):
    with running_network(directory / request.node.name) as network:
        yield network


@pytest.fixture
def passphrase(tmp_path):
    """The option that names a file with the passphrase."""
    path = tmp_path / "passphrase"
    path.write_text(f"{PASSPHRASE}\n")
    path.chmod(0o600)
    return "--passphrase-file", str(path)


def run(daemon, *arguments, code=0, text=None):
    """What a command prints with --json."""
    done = daemon.cli("--json", *map(str, arguments), text=text)
    assert done.returncode == code, done.stdout + done.stderr
    assert PASSPHRASE not in done.stdout + done.stderr + daemon.log()
    return json.loads(done.stdout)


def start_as_a_fresh_machine(daemon):
    """The disk is lost; a new machine stands at the same address."""
    daemon.kill()
    shutil.rmtree(daemon.state_dir)
    daemon.start()


def test_a_network_outlives_the_machine_that_made_it(network, passphrase, tmp_path):
    recovery = network.found()["recovery_key"]
    hub = network["hub"]
    network.join("laptop")
    network.join("nas")
    network.await_session("hub", "nas")
    token = network.invite(name="tv")
    file = tmp_path / "home.backup"
    key = tmp_path / "recovery"
    key.write_text(recovery)
    made = run(hub, "network", "backup", file, *passphrase, "--recovery-key-file", key)
    assert (made["bytes"], made["lacking"]) == (file.stat().st_size, [])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert run(hub, "network", "backup", file, *passphrase, code=2)["error"]["code"] == "file_there"
    assert file.read_bytes() == before
    # What is decided after the backup comes back from the others.
    network.remove("nas")
    wait_until(lambda: "nas" not in network["laptop"].peers(), 10, "the list at the laptop")
    start_as_a_fresh_machine(hub)
    wrong = run(hub, "network", "restore", file, "--passphrase-file", "-", "--yes", code=1,
                text="some other passphrase")  # fmt: skip
    assert wrong["error"]["code"] == "issuer_refused"
    restored = run(hub, "network", "restore", file, *passphrase, "--yes")
    assert restored["cancelled"] >= 1
    network.await_session("laptop", "hub")
    assert network["laptop"].host.ping(network.address("hub"), count=3).complete
    wait_until(lambda: "nas" not in hub.peers(), 10, "the list at the hub")
    joiner = network.machine("tv")
    code, answer = joiner.api("POST", "/join", {"token": token, "name": "tv", "accept": True})
    assert (code, answer["error"]["code"]) == (502, "peer_refused")
    body = {"token": network.invite(name="tv"), "name": "tv", "accept": True}
    network.ask(joiner, "POST", "/join", body)
    network.await_member(joiner)
    network.await_session("tv", "hub")
