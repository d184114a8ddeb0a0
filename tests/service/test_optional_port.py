"""A port that the daemon can do without."""

from __future__ import annotations

import gevent
import gevent.socket
import pytest

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.config import HostPort
from shadowmesh.control.ports import listen, serve
from shadowmesh.netlab import wait_until
from shadowmesh.service import optional_port
from shadowmesh.service.optional_port import OptionalPort

KEY = "monitoring.prometheus_port"


def hello(_environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


@pytest.fixture
def taken():
    with gevent.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


@pytest.fixture
def port(taken, monkeypatch):
    monkeypatch.setattr(optional_port, "RETRY_S", 0.01)
    address = HostPort("127.0.0.1", taken.getsockname()[1])
    port = OptionalPort(KEY, lambda undo: serve(undo, listen(address, KEY), hello))
    yield port
    port.stop()


def answers(address):
    with gevent.socket.create_connection(address, 5) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        return sock.recv(12) == b"HTTP/1.1 200"


def test_a_free_port_is_open_at_once(taken, port):
    address = taken.getsockname()
    taken.close()
    port.start()
    assert port.problem is None
    assert answers(address)


def test_a_taken_port_is_told_with_its_key_and_opened_when_it_is_free(taken, port):
    address = taken.getsockname()
    port.start()
    assert f"port {address[1]} is taken" in port.problem
    assert KEY in port.problem
    taken.close()
    wait_until(lambda: gevent.sleep(0.01) or port.problem is None, 10, "the port is open")
    assert answers(address)
    port.stop()
    with pytest.raises(ConnectionRefusedError):
        answers(address)


def test_who_stops_meanwhile_does_not_try_any_more(taken, port):
    port.start()
    port.stop()
    taken.close()
    gevent.sleep(0.05)
    assert port.problem is not None


def test_the_port_of_the_control_api_says_who_has_it_and_which_key_to_set(taken):
    address = HostPort("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ShadowMeshError) as caught:
        listen(address, "daemon.listen_address")
    assert f"`ss -ltnp 'sport = :{address.port}'`" in str(caught.value)
    assert "set daemon.listen_address" in str(caught.value)
