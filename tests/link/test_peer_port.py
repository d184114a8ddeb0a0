"""The peer port opens with the first key and closes with the last."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

import pytest

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.config import HostPort, load
from shadowmesh.config.model import Secret
from shadowmesh.link import tls
from shadowmesh.link.peer_port import PeerPort

LOOPBACK = HostPort("127.0.0.1", 0)


@pytest.fixture
def port(tmp_path):
    certificate = tls.load_or_create_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
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


def test_without_a_key_nothing_listens_and_the_log_says_what_to_do(port, config, caplog):
    port.follow(config)
    assert port.listener is None
    assert "shadowmesh reload" in caplog.text


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
