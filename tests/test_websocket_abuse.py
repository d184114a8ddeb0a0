"""What strangers do to the peer port: each attempt ends, is counted, and tells them nothing.

First everything up to the upgrade, against the listener; then frames, against the data plane's
own codec behind a link.
"""

from __future__ import annotations

import socket
import ssl
import struct

import gevent
import pytest

from shadowmesh import listener as listener_module
from shadowmesh import tls
from shadowmesh.admission import Limits
from tests.peerport import KEY, PATIENCE_S, PeerPort, read_all, read_head, request


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    return tls.load_or_create_certificate(directory / "cert.pem", directory / "key.pem")


@pytest.fixture
def port(certificate):
    with gevent.Timeout(3 * PATIENCE_S):
        port = PeerPort(certificate, limits=Limits(64, 64, new_per_second=1000))
        yield port
        # Whatever a test did, a proper peer still gets in.
        client = port.connect_tls()
        client.sendall(request())
        assert read_head(client)[0].startswith("HTTP/1.1 101 ")
        port.close()


ABUSE = {
    "plain GET /": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "a browser at the path": (b"GET /shadowmesh HTTP/1.1\r\nHost: x\r\n\r\n", 426),
    "another path": (request(path="/other"), 404),
    "the path with a query": (request(path="/shadowmesh?x=1"), 404),
    "the path in absolute form": (request(path="https://x/shadowmesh"), 404),
    "an encoded path": (request(path="/%73hadowmesh"), 404),
    "POST": (request(method="POST"), 405),
    "HEAD": (request(method="HEAD"), 405),
    "lower-case method": (request(method="get"), 405),
    "HTTP/1.0": (request(version="HTTP/1.0"), 505),
    "HTTP/2.0": (request(version="HTTP/2.0"), 505),
    "HTTP/0.9": (b"GET /shadowmesh\r\n\r\n", 400),
    "no key": (request(without={"Sec-WebSocket-Key"}), 400),
    "empty key": (request(replace={"Sec-WebSocket-Key": ""}), 400),
    "short key": (request(replace={"Sec-WebSocket-Key": "dGhlIHNhbXBsZQ=="}), 400),
    "key that is no base64": (request(replace={"Sec-WebSocket-Key": "*" * 24}), 400),
    "two keys": (request(extra=[("Sec-WebSocket-Key", KEY)]), 400),
    "version 8": (request(replace={"Sec-WebSocket-Version": "8"}), 426),
    "no version": (request(without={"Sec-WebSocket-Version"}), 426),
    "two versions": (request(extra=[("Sec-WebSocket-Version", "13")]), 426),
    "no upgrade": (request(without={"Upgrade"}), 426),
    "two upgrades": (request(extra=[("Upgrade", "websocket")]), 426),
    "upgrade to h2c": (request(replace={"Upgrade": "h2c"}), 426),
    "no connection": (request(without={"Connection"}), 426),
    "connection close": (request(replace={"Connection": "close"}), 426),
    "no host": (request(without={"Host"}), 400),
    "two hosts": (request(extra=[("Host", "y")]), 400),
    "origin of a web page": (request(extra=[("Origin", "https://evil.example")]), 403),
    "no subprotocol": (request(without={"Sec-WebSocket-Protocol"}), 400),
    "another subprotocol": (request(replace={"Sec-WebSocket-Protocol": "chat"}), 400),
    "subprotocol as a part": (request(replace={"Sec-WebSocket-Protocol": "shadowmesh.v10"}), 400),
    "body": (request(extra=[("Content-Length", "5")]) + b"hello", 400),
    "chunked body": (request(extra=[("Transfer-Encoding", "chunked")]) + b"0\r\n\r\n", 400),
    "two lengths": (request(extra=[("Content-Length", "0"), ("Content-Length", "5")]), 400),
    "negative length": (request(extra=[("Content-Length", "-1")]), 400),
    "space before the colon": (request(extra=[("X ", "y")]), 400),
    "NUL in a value": (request(extra=[("X", "a\x00b")]), 400),
    "bytes above ASCII in the target": (request(path="/\xff"), 400),
    "head of 9 KiB": (request(extra=[("X", "a" * 9216)]), 431),
    "many small headers": (request(extra=[("X", "a")] * 1500), 431),
    "head that never ends": (b"GET /shadowmesh HTTP/1.1\r\n" + b"a" * 20_000, 431),
    "one bare line feed": (request(extra=[("X", "y\nZ: z")]), 400),
    "line feeds only": (request().replace(b"\r\n", b"\n") + b"\r\n\r\n", 400),
    "binary": (bytes(range(256)) + b"\r\n\r\n", 400),
    "TLS in TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", ABUSE)
def test_a_wrong_request_gets_a_plain_error_and_nothing_else(port, name):
    data, status = ABUSE[name]
    answer = port.answer(data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert body == b""
    assert b"Connection: close" in head
    for word in (b"shadow", b"gevent", b"python", b"wsgi", b"server:"):
        assert word not in head.lower()
    port.wait_for(upgrade_refused=1)
    assert port.upgraded.empty()
    assert port.listener.unauthenticated == 0


def test_the_refusal_of_a_method_or_version_says_what_is_taken(port):
    assert b"\r\nAllow: GET\r\n" in port.answer(request(method="POST"))
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in port.answer(
        request(replace={"Sec-WebSocket-Version": "8"})
    )


def test_pipelined_requests_get_one_answer(port):
    wrong = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = port.answer(wrong + wrong + request())
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.fixture
def short_deadlines(monkeypatch):
    monkeypatch.setattr(listener_module, "TLS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(listener_module, "UPGRADE_TIMEOUT_S", 0.3)


def test_a_client_that_connects_and_says_nothing_is_dropped(port, short_deadlines):
    assert read_all(port.connect()) == b""
    port.wait_for(timed_out=1)


def test_a_client_that_stalls_within_the_tls_handshake_is_dropped(port, short_deadlines):
    sock = port.connect()
    sock.sendall(client_hello()[:100])
    assert read_all(sock) == b""
    port.wait_for(timed_out=1)


def test_a_client_that_says_nothing_after_tls_is_dropped(port, short_deadlines):
    assert read_all(port.connect_tls()) == b""
    port.wait_for(timed_out=1)


def test_a_head_that_comes_in_drops_does_not_extend_the_deadline(port, short_deadlines):
    sock = port.connect_tls()
    sent = 0
    with gevent.Timeout(PATIENCE_S), pytest.raises(OSError):
        for byte in request(extra=[("X", "a" * 4000)]):
            sock.sendall(bytes([byte]))
            sent += 1
            gevent.sleep(0.02)  # the pace of the attack
    assert sent < 100
    port.wait_for(timed_out=1)


def test_a_client_that_does_not_read_the_refusal_is_dropped(port):
    sock = port.connect_tls()
    sock.sendall(request(path="/other"))
    port.wait_for(upgrade_refused=1)  # without our reading or closing anything
    assert port.listener.unauthenticated == 0


def test_a_client_with_tls_12_only_is_refused(port):
    context = tls.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version"):
        port.connect_tls(context=context)
    port.wait_for(tls_failed=1)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 1000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\xff\xff" + b"\x01" * 1000,
        b"\x80\x2e\x01\x00\x02" + bytes(50),  # SSL 2
        b"\x15\x03\x03\x00\x02\x02\x28",  # an alert
    ],
)
def test_something_else_than_tls_is_refused_without_a_word_of_http(port, data):
    sock = port.connect()
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    try:
        answer = read_all(sock)
    except ConnectionError:
        answer = b""
    assert b"HTTP" not in answer
    assert len(answer) <= 64  # a TLS alert at most
    port.wait_for(tls_failed=1)


def test_half_closed_and_reset_connections_in_every_step_are_freed(port):
    for data in (b"", client_hello()[:50], client_hello()):
        for reset in (False, True):
            sock = port.connect()
            if data:
                sock.sendall(data)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
    for data in (b"", b"GET /shadow", request(path="/other")):
        sock = port.connect_tls()
        if data:
            sock.sendall(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    with gevent.Timeout(PATIENCE_S):
        while port.listener.unauthenticated:
            gevent.sleep(0)
    counters = port.counters
    assert counters.pop("accepted") == 9 == sum(counters.values())


def test_a_flood_of_silent_connections_leaves_room_for_others(certificate):
    with gevent.Timeout(3 * PATIENCE_S):
        port = PeerPort(certificate)
        flood = [port.connect(source=(f"127.0.1.{1 + n // 50}", 0)) for n in range(500)]
        port.wait_for(accepted=500)
        # Ten sources of fifty: 4 connections each, 20 a second counted, the rest over the rate.
        assert port.counters == {"accepted": 500, "refused_source": 160, "refused_rate": 300}
        assert port.listener.unauthenticated == 40
        client = port.connect_tls()
        client.sendall(request())
        assert read_head(client)[0].startswith("HTTP/1.1 101 ")
        assert len(flood) == 500
        port.close()


def client_hello():
    """Return the first flight of a TLS 1.3 client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    side = ssl.SSLContext.wrap_bio(tls.client_context(), incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        side.do_handshake()
    return outgoing.read()
