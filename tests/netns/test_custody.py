"""Keys and certificates of a network in files: real daemons, and commands as people type them."""

from __future__ import annotations

import json
import shutil
import stat

import pytest

from shadowmesh.netlab import wait_until
from tests.lab.network import running_network
from tests.network.openssl import Openssl

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


# --- the authority's key ------------------------------------------------------------------------


def test_the_key_of_the_authority_leaves_and_comes_back(network, passphrase, tmp_path):
    network.found()
    hub = network["hub"]
    network.join("laptop")
    network.await_session("hub", "laptop")
    file = tmp_path / "authority.pem"
    told = run(hub, "network", "authority", "export", file, *passphrase, "--yes")
    assert (told["file"], stat.S_IMODE(file.stat().st_mode)) == (str(file), 0o600)
    assert not (hub.state_dir / "network" / "authority.key").exists()
    refused = run(hub, "invite", "nas", code=1)["error"]
    assert refused["code"] == "issuer_refused"
    assert "this machine cannot issue" in refused["message"]
    assert run(hub, "peer", "rename", "laptop", "desk", code=1)["error"]["code"] == "issuer_refused"
    network.await_session("hub", "laptop")
    assert run(hub, "peer", "remove", "laptop", "--yes")["removed"] == ["laptop"]
    wait_until(
        lambda: network["laptop"].peers()["hub"]["state"] != "connected", 5, "the end at the laptop"
    )
    wrong = run(hub, "network", "authority", "import", file, "--passphrase-file", "-", code=1,
                text="some other passphrase")  # fmt: skip
    assert "passphrase" in wrong["error"]["message"]
    run(hub, "network", "authority", "import", file, *passphrase)
    network.join("nas")
    network.await_session("nas", "hub")


# --- certificates by hand -----------------------------------------------------------------------


def show(daemon, code=0):
    return run(daemon, "cert", "show", code=code)["certificate"]


def test_a_machine_becomes_a_member_by_files_alone(network, tmp_path):
    network.found()
    hub = network["hub"]
    authority = network.network(hub)["authorities"][0]
    laptop = network.machine("laptop")
    csr, bundle = tmp_path / "laptop.csr", tmp_path / "laptop.bundle"
    run(laptop, "cert", "show", code=1)
    run(laptop, "cert", "request", "-o", csr)
    assert b"BEGIN CERTIFICATE REQUEST" in csr.read_bytes()
    signed = run(hub, "cert", "sign", csr, "--name", "laptop", "--tag", "x", "--ip", "10.250.0.9",
                 "-o", bundle, code=1)  # fmt: skip
    assert "not in the network" in signed["error"]["message"]
    signed = run(hub, "cert", "sign", csr, "--name", "laptop", "--tag", "x", "-o", bundle)
    assert signed["certificate"]["tags"] == ["x"]
    stranger = network.machine("stranger")
    run(stranger, "cert", "request")
    asked = ("cert", "install", bundle, "--authority", authority, "--yes")
    assert "another machine" in run(stranger, *asked, code=1)["error"]["message"]
    wrong = ("cert", "install", bundle, "--authority", "0000" * 8, "--yes")
    assert "vouch" in run(laptop, *wrong, code=1)["error"]["message"]
    assert run(laptop, "cert", "install", bundle, "--yes", code=2)["error"]["code"] == "usage"
    assert run(laptop, *asked)["taken"] is True
    network.await_session("laptop", "hub")
    assert laptop.host.ping(network.address("hub"), count=3).complete
    assert show(laptop)["serial"] == signed["certificate"]["serial"]
    assert show(hub)["name"] == "hub"
    # Another one for the same key: it is taken by the member, without beginning anew.
    pid = laptop.status()["since"]
    for time, code in (("20d", 8), ("6d", 9), ("1h", 10)):
        run(hub, "cert", "sign", csr, "--name", "laptop", "--expires", time, "-o", bundle, "--yes")
        assert run(laptop, "cert", "install", bundle, "--yes")["member"] is True
        assert show(laptop, code)["tags"] == ["x"]
    assert laptop.status()["since"] == pid


def test_a_certificate_is_renewed_by_asking_a_relay(network, tmp_path):
    network.found()
    hub = network["hub"]
    network.join("laptop")
    laptop = network["laptop"]
    network.await_session("laptop", "hub")
    assert run(hub, "cert", "renew")["renewed"] is False
    # A relay hears who asks while an invitation is open.
    network.invite(name="nas")
    assert run(laptop, "cert", "renew")["renewed"] is False
    before = show(laptop)
    laptop.pause()
    run(hub, "peer", "tag", "laptop", "--add", "factory")
    laptop.resume()
    wait_until(lambda: show(laptop)["tags"] == ["factory"], 20, "the certificate of today")
    assert show(laptop)["serial"] != before["serial"]


def test_members_get_names_tags_and_keys(network):
    network.found()
    hub = network["hub"]
    network.join("laptop")
    laptop = network["laptop"]
    network.await_session("hub", "laptop")
    before = show(laptop)
    made = run(hub, "peer", "rename", "laptop", "desk")["certificate"]
    assert made["name"] == "desk"
    wait_until(lambda: show(laptop)["serial"] == made["serial"], 10, "the new certificate")
    assert run(hub, "peer", "tag", "desk", "--add", "b", "--now")["certificate"]["tags"] == ["b"]
    wait_until(lambda: show(laptop)["tags"] == ["b"], 20, "the new tag")
    wait_until(lambda: hub.peers()["desk"]["state"] == "connected", 30, "a session")
    assert show(laptop)["addresses"] == before["addresses"]
    token = run(hub, "peer", "rekey", "desk", "--yes")["token"]
    assert "desk" not in hub.peers()
    run(laptop, "leave", "--yes")
    joined = run(laptop, "join", "-", "--yes", text=token)
    assert (joined["name"], joined["addresses"]) == ("desk", before["addresses"])
    assert show(laptop)["public_key"] != before["public_key"]
    wait_until(lambda: hub.peers()["desk"]["state"] == "connected", 30, "a session")


# --- another CA ---------------------------------------------------------------------------------


def test_a_network_under_the_ca_of_the_openssl_program(network, tmp_path):
    ca = Openssl(tmp_path / "ca")
    files = {name: tmp_path / name for name in ("ca.pem", "crl", "hub.crt", "laptop.crt", "bundle")}
    hub = network.machine("hub")
    laptop = network.machine("laptop")

    def issued(daemon, name, subject, address, serial):
        csr = tmp_path / f"{name}.csr"
        run(daemon, "cert", "request", "-o", csr)
        made = ca.certificate(csr.read_bytes(), f"/CN={name}/O=home{subject}", address, serial)
        files[f"{name}.crt"].write_bytes(made)
        return made

    files["ca.pem"].write_bytes(ca.read("ca.pem"))
    files["crl"].write_bytes(ca.list())
    issued(hub, "hub", "/OU=role:issuer/OU=role:relay", "10.77.0.1", 1)
    founded = run(
        hub, "network", "adopt", files["ca.pem"], "--certificate", files["hub.crt"], "--crl",
        files["crl"], "--subnet", "10.77.0.0/24", "--address", hub.host.peer_endpoint,
    )  # fmt: skip
    network.await_member(hub)
    assert founded["network"]["name"] == "home"
    authority = founded["network"]["authorities"][0]
    refused = run(hub, "invite", "laptop", code=1)["error"]["message"]
    assert "made by a CA" in refused
    crt = issued(laptop, "laptop", "/OU=tag:x", "10.77.0.2", 2)
    run(hub, "cert", "bundle", files["laptop.crt"], "-o", files["bundle"])
    run(laptop, "cert", "install", files["bundle"], "--authority", authority, "--yes")
    network.await_session("laptop", "hub")
    assert laptop.host.ping("10.77.0.1", count=3).complete
    assert show(laptop)["tags"] == ["x"]
    files["crl"].write_bytes(ca.list(crt))
    assert run(hub, "cert", "crl", files["crl"])["removed"] == ["laptop"]
    wait_until(lambda: "laptop" not in hub.peers(), 5, "the end at the hub")
    assert show(laptop, 10)["problem"]
