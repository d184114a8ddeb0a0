"""The peer port opens with the first key and closes with the last."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
from dataclasses import replace

import gevent
import pytest

from shadowmesh.base.errors import KeyFileError, ShadowMeshError
from shadowmesh.config import HostPort, load
from shadowmesh.config.model import Secret
from shadowmesh.link import tls
from shadowmesh.link.dial import dial
from shadowmesh.link.peer_port import PeerPort

LOOPBACK = HostPort("127.0.0.1", 0)


@pytest.fixture
def certificate(tmp_path):
    return tls.load_or_create_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")


@pytest.fixture
def port(certificate):
    port = PeerPort(certificate, lambda upgraded: None)
    yield port
    port.stop()


@pytest.fixture
def config(tmp_path):
    """Without any key; with_key() has one."""
    (tmp_path / "empty.yaml").write_text("")
    config = load(tmp_path / "empty.yaml", {"daemon.state_dir": str(tmp_path)}, {}).config
    return replace(config, websocket=replace(config.websocket, listen_address=LOOPBACK))


def with_key(config):
    return replace(config, encryption=replace(config.encryption, key=Secret(bytes(range(32)))))


def answers(bound):
    with contextlib.suppress(OSError), socket.create_connection(bound, 5):
        return True
    return False


def test_without_a_key_nothing_listens_and_the_log_says_so(port, config, caplog):
    caplog.set_level("INFO", "shadowmesh")
    port.follow(config)
    assert port.listener is None
    assert "peer port stays closed" in caplog.text


def test_the_first_key_opens_the_port_and_the_last_one_gone_closes_it(port, config):
    port.follow(config)
    port.follow(with_key(config))
    bound = port.listener.bound
    assert answers(bound)
    port.follow(config)
    assert port.listener is None
    assert not answers(bound)


def test_a_change_of_the_key_leaves_the_port_alone(port, config):
    port.follow(with_key(config))
    listener = port.listener
    other = with_key(config)
    other = replace(
        other, encryption=replace(other.encryption, key=Secret(bytes(range(32, 64)))),
        websocket=replace(other.websocket, path="/other"),
    )  # fmt: skip
    port.follow(other)
    assert port.listener is listener


def test_a_side_that_does_not_listen_opens_nothing(port, config):
    silent = replace(config, websocket=replace(config.websocket, listen_address=None))
    port.follow(with_key(silent))
    assert port.listener is None


def test_a_port_that_is_taken_can_be_opened_by_the_next_reload(port, config):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = HostPort(*other.getsockname())
        wanted = replace(config, websocket=replace(config.websocket, listen_address=address))
        with pytest.raises(ShadowMeshError, match="is taken"):
            port.follow(with_key(wanted))
        assert port.listener is None
    port.follow(with_key(wanted))
    assert answers(port.listener.bound)


# --- The certificate --------------------------------------------------------------------------


def served(port):
    """Return the hash of the certificate that somebody sees who connects now."""
    with socket.create_connection(port.listener.bound, 5) as raw:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(raw) as sock:
            return hashlib.sha256(sock.getpeercert(binary_form=True)).digest()


def in_thread(call, *arguments):
    """Run what blocks beside the hub."""
    return gevent.get_hub().threadpool.apply(call, arguments)


def replace_pair(certificate, directory, *names):
    """Put the files of another pair in the place of these; return its hash."""
    other = tls.load_or_create_certificate(directory / "cert2.pem", directory / "key2.pem")
    for name in names or ("cert", "key"):
        getattr(other, f"{name}_path").replace(getattr(certificate, f"{name}_path"))
    return other.sha256


def test_a_renewed_certificate_is_served_to_those_who_come_and_told_to_nobody_else(
    certificate, config, tmp_path
):
    arrived = []
    port = PeerPort(certificate, arrived.append)
    try:
        port.follow(with_key(config))
        client = tls.client_context()
        address = HostPort(*port.listener.bound)
        before = dial(address, config.websocket.path, client)
        renewed = replace_pair(certificate, tmp_path)
        assert in_thread(served, port) == certificate.sha256, "nobody said reload"
        assert port.renew_certificate()
        assert port.certificate.sha256 == renewed
        after = dial(address, config.websocket.path, client)
        told = [upgraded.certificate_sha256 for upgraded in arrived]
        assert told == [before.certificate_sha256, after.certificate_sha256]
        assert told == [certificate.sha256, renewed]
        arrived[0].sock.sendall(b"x")
        assert before.sock.recv(1) == b"x", "who is connected stays so"
        assert not port.renew_certificate(), "nothing new"
        for upgraded in (before, after, *arrived):
            upgraded.sock.close()
            upgraded.release()
    finally:
        port.stop()


@pytest.mark.parametrize("half", ["cert", "key"])
def test_a_pair_that_does_not_fit_is_refused_and_the_old_one_is_served_on(
    port, config, certificate, tmp_path, half
):
    port.follow(with_key(config))
    replace_pair(certificate, tmp_path, half)
    with pytest.raises(KeyFileError, match="is not the key of"):
        port.renew_certificate()
    assert port.certificate == certificate
    assert in_thread(served, port) == certificate.sha256


def test_a_certificate_that_is_gone_is_refused_and_none_is_made(port, config, certificate):
    port.follow(with_key(config))
    certificate.cert_path.unlink()
    with pytest.raises(KeyFileError, match="No such file"):
        port.renew_certificate()
    assert not certificate.cert_path.exists()
    assert in_thread(served, port) == certificate.sha256


def test_a_certificate_that_is_replaced_while_it_is_read_is_not_taken(
    certificate, tmp_path, monkeypatch
):
    other = tls.load_or_create_certificate(tmp_path / "cert2.pem", tmp_path / "key2.pem")
    load = tls.server_context

    def slow(pair):
        context = load(pair)
        other.cert_path.replace(certificate.cert_path)
        return context

    monkeypatch.setattr(tls, "server_context", slow)
    with pytest.raises(KeyFileError, match="changed while it was read"):
        tls.load_renewed(certificate)


def test_a_port_that_opens_later_serves_the_renewed_certificate(
    port, config, certificate, tmp_path
):
    renewed = replace_pair(certificate, tmp_path)
    assert port.renew_certificate()
    port.follow(with_key(config))
    assert in_thread(served, port) == renewed
