"""What strangers do to the peer port: each attempt ends, is counted, and tells them nothing.

First everything up to the upgrade, against the listener; then frames, against the data plane's
own codec behind a link.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct

import gevent
import gevent.queue
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh._fastpath import DataPlane, Pipe
from shadowmesh.config import HostPort
from shadowmesh.link import listener as listener_module
from shadowmesh.link import tls
from shadowmesh.link.admission import Limits
from shadowmesh.link.dial import dial
from shadowmesh.link.link import Link
from shadowmesh.link.upgrade import upgrade
from shadowmesh.wire.websocket import UpgradeRefused
from tests.fakes import BINARY, CLOSE, PING, PONG, decode_frame, encode_frame
from tests.link import othertls
from tests.link.keyupdates import KeyUpdater
from tests.link.peerport import KEY, PATH, PATIENCE_S, PeerPort, read_all, read_head, request


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
    "head that never ends": (b"GET /shadowmesh HTTP/1.1\r\n" + b"a" * 12_000, 431),
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


class FakeSocket:
    """Gives its bytes in pieces, then the end of the connection."""

    def __init__(self, data, piece):
        self.data = data
        self.piece = piece
        self.sent = b""

    def recv(self, count):
        taken = self.data[: min(count, self.piece)]
        self.data = self.data[len(taken) :]
        return taken

    def sendall(self, data):
        self.sent += data


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 4), st.binary(max_size=4)), max_size=4
)


@given(st.binary(max_size=4), MUTATIONS, st.integers(1, 9000))
def test_no_bytes_bring_the_upgrade_out_of_step(prefix, mutations, piece):
    data = bytearray(request())
    for at, removed, inserted in mutations:
        data[at : at + removed] = inserted
    sock = FakeSocket(prefix + data + b"frames", piece)
    try:
        leftover = upgrade(sock, ("192.0.2.1", 1), PATH)
    except (UpgradeRefused, OSError):
        assert not sock.sent.startswith(b"HTTP/1.1 101")
        assert sock.sent.count(b"HTTP/1.1 ") <= 1
    else:
        assert sock.sent.startswith(b"HTTP/1.1 101 ")
        assert (leftover + sock.data).endswith(b"frames")


def test_the_refusal_of_a_method_or_version_says_what_is_taken(port):
    assert b"\r\nAllow: GET\r\n" in port.answer(request(method="POST"))
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in port.answer(
        request(replace={"Sec-WebSocket-Version": "8"})
    )


def test_a_refusal_is_read_even_if_most_of_the_request_was_not(port):
    sock = port.connect_tls()
    sock.sendall(b"GET /shadowmesh HTTP/1.1\r\n" + b"a" * 10_000)
    sock.sendall(b"a" * 200_000)
    assert read_head(sock)[0].startswith("HTTP/1.1 431 ")
    assert sock.recv(1) == b""
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    gevent.socket.socket.send(sock, b"x")  # after a reset: EPIPE


def test_more_input_than_a_request_can_be_is_not_even_read(port):
    sock = port.connect_tls()
    sock.sendall(b"a" * 16_384)  # one TLS record: nothing of it can be had before all is there
    with contextlib.suppress(ConnectionResetError):
        assert read_all(sock) == b""
    port.wait_for(tls_flood=1)


def test_key_updates_before_the_upgrade_end_the_connection(port, tmp_path):
    client = KeyUpdater(port.connect())
    client.handshake(tmp_path / "keys")
    client.send_key_updates(500)
    client.await_end()
    port.wait_for(tls_flood=1)


def test_pipelined_requests_get_one_answer(port):
    wrong = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = port.answer(wrong + wrong + request())
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.fixture
def short_deadlines(monkeypatch):
    monkeypatch.setattr(listener_module, "FIRST_BYTE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(listener_module, "TLS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(listener_module, "UPGRADE_TIMEOUT_S", 0.3)


def test_a_client_that_connects_and_says_nothing_is_dropped(port, short_deadlines):
    assert read_all(port.connect()) == b""
    port.wait_for(silent=1)


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
    context = othertls.client_context(ssl.TLSVersion.TLSv1_2)
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
        # Ten sources of fifty, 20 a second: whatever the pace, nobody came further than to wait.
        assert port.counters["refused_rate"] > 0
        assert port.listener.held["tls"] == port.listener.held["handshake"] == 0
        client = port.connect_tls()
        client.sendall(request())
        assert read_head(client)[0].startswith("HTTP/1.1 101 ")
        assert len(flood) == 500
        port.close()


# --- Frames, after the upgrade and before authentication --------------------------------------


class Stranger:
    """A client that was upgraded and now sends whatever it likes to a link with a real pipe."""

    def __init__(self, port):
        self.events = gevent.queue.Queue()
        self.closings = []
        self.sock = port.connect_tls()
        self.sock.sendall(request())
        self.received = read_head(self.sock)[2]
        upgraded = port.upgraded.get(timeout=PATIENCE_S)
        self.pipe = Pipe(DataPlane(), client=False)
        self.link = Link(
            upgraded,
            self.pipe,
            on_events=lambda events: [self.events.put(event) for event in events],
            on_closed=lambda *closing: self.closings.append(closing),
            write_timeout_s=PATIENCE_S,
        )
        self.link.start()

    def send(self, data):
        """Send as much of data as the other side takes before it closes."""
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def frames(self):
        """Return every frame until the end of the connection, as (opcode, payload)."""
        with gevent.Timeout(PATIENCE_S), contextlib.suppress(OSError):
            while part := self.sock.recv(65536):
                self.received += part
        self.sock.close()
        frames = []
        while (frame := decode_frame(self.received, masked=False)) is not None:
            frames.append(frame[:2])
            self.received = self.received[frame[2] :]
        assert not self.received
        return frames

    def close_code(self):
        """Return the close code that was sent; nothing else may have been."""
        [(opcode, payload)] = self.frames()
        assert opcode == CLOSE
        assert len(payload) == 2  # no reason: it would tell a stranger what to try next
        assert self.link.wait_closed(PATIENCE_S)
        [(_, code)] = self.closings
        assert struct.pack("!H", code) == payload
        return code


@pytest.fixture
def stranger(port):
    stranger = Stranger(port)
    yield stranger
    stranger.sock.close()
    stranger.link.close()


def masked(opcode, payload=b"", *, fin=True):
    frame = encode_frame(opcode, payload, mask=b"\x01\x02\x03\x04")
    return frame if fin else bytes([frame[0] & 0x7F]) + frame[1:]


TEXT = 0x1
FRAMES = {
    "unmasked frame": (encode_frame(BINARY, b"x", mask=None), 1002),
    "unmasked ping": (encode_frame(PING, b"x", mask=None), 1002),
    "RSV1, a compressed frame": (b"\xc2" + masked(BINARY, b"x")[1:], 1002),
    "RSV2": (b"\xa2" + masked(BINARY, b"x")[1:], 1002),
    "RSV3": (b"\x92" + masked(BINARY, b"x")[1:], 1002),
    "reserved data opcode": (masked(0x3), 1002),
    "reserved control opcode": (masked(0xB), 1002),
    "text": (masked(TEXT, b"hello"), 1003),
    "empty text": (masked(TEXT), 1003),
    "length 2^62": (b"\x82\xff" + struct.pack("!Q", 1 << 62) + bytes(4), 1009),
    "length 2^63": (b"\x82\xff" + struct.pack("!Q", 1 << 63) + bytes(4), 1002),
    "length 2^64 - 1": (b"\x82\xff" + b"\xff" * 8 + bytes(4), 1002),
    "length 2^31": (b"\x82\xff" + struct.pack("!Q", 1 << 31) + bytes(4), 1009),
    "one byte over 2 KiB": (masked(BINARY, bytes(2049)), 1009),
    "2 KiB exceeded by fragments": (
        masked(BINARY, bytes(2000), fin=False) + masked(0, bytes(49)),
        1009,
    ),
    "length overflow by fragments": (
        masked(BINARY, b"x", fin=False) + b"\x80\xff" + struct.pack("!Q", (1 << 63) - 1) + bytes(4),
        1009,
    ),
    "length of 16 bits that fits into 7": (b"\x82\xfe\x00\x05" + bytes(9), 1002),
    "length of 64 bits that fits into 16": (
        b"\x82\xff" + struct.pack("!Q", 500) + bytes(504),
        1002,
    ),
    "10^5 empty fragments": (
        masked(BINARY, fin=False) + masked(0, fin=False) * 100_000,
        1008,
    ),
    "10^5 empty messages' beginnings": (masked(BINARY, fin=False) * 100_000, 1002),
    "continuation of nothing": (masked(0, b"x"), 1002),
    "a message within a message": (masked(BINARY, b"x", fin=False) + masked(BINARY, b"x"), 1002),
    "fragmented ping": (masked(PING, b"x", fin=False), 1002),
    "ping of 126 bytes": (b"\x89\xfe\x00\x7e" + bytes(130), 1002),
    "close with a 1-byte body": (masked(CLOSE, b"\x03"), 1002),
    "close with code 0": (masked(CLOSE, b"\x00\x00"), 1002),
    "close with code 1005": (masked(CLOSE, struct.pack("!H", 1005)), 1002),
    "close with code 65535": (masked(CLOSE, b"\xff\xff"), 1002),
    "close with a text that is no UTF-8": (masked(CLOSE, b"\x03\xe8\xff\xfe"), 1002),
    "HTTP again": (request() * 3, 1002),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_against_the_rules_ends_the_link_with_its_code(stranger, name):
    data, code = FRAMES[name]
    stranger.send(data)
    assert stranger.close_code() == code
    assert stranger.events.empty()


@pytest.mark.parametrize("name", ["unmasked frame", "text", "length 2^62", "fragmented ping"])
def test_it_makes_no_difference_that_the_frame_comes_byte_by_byte(stranger, name):
    data, code = FRAMES[name]
    for byte in data:
        stranger.send(bytes([byte]))
    assert stranger.close_code() == code


@pytest.mark.parametrize("opcode", [PING, PONG])
def test_a_flood_of_control_frames_ends_the_link(stranger, opcode):
    stranger.send(masked(opcode, b"flood") * 10_000)
    frames = stranger.frames()
    assert frames[-1] == (CLOSE, struct.pack("!H", 1008))
    # Ten a second are allowed; a second may end in between. Those that came in one read with
    # the one too many are not answered.
    assert frames[:-1] == [(PONG, b"flood")] * (len(frames) - 1)
    assert len(frames) - 1 <= (0 if opcode == PONG else 20)
    assert stranger.link.wait_closed(PATIENCE_S)
    assert stranger.closings[0][1] == 1008


def test_what_the_rules_allow_passes(stranger):
    largest = bytes(range(256)) * 8
    stranger.send(masked(BINARY, largest))
    stranger.send(masked(BINARY, b"in ", fin=False) + masked(0, b"", fin=False))
    stranger.send(masked(PING, b"p" * 125) + masked(0, b"three", fin=False) + masked(0, b" parts"))
    stranger.send(masked(BINARY))
    stranger.send(masked(CLOSE, struct.pack("!H", 1001) + "au revoir \u2014".encode()))
    assert stranger.frames() == [(PONG, b"p" * 125), (CLOSE, struct.pack("!H", 1001))]
    assert stranger.link.wait_closed(PATIENCE_S)
    assert [stranger.events.get_nowait() for _ in range(3)] == [
        ("message", largest),
        ("message", b"in three parts"),
        ("message", b""),
    ]
    assert stranger.events.empty()


def test_sixty_four_fragments_are_allowed_and_one_more_is_not(stranger):
    stranger.send(
        masked(BINARY, b"a", fin=False) + masked(0, b"a", fin=False) * 62 + masked(0, b"a")
    )
    assert stranger.events.get(timeout=PATIENCE_S) == ("message", b"a" * 64)
    stranger.send(masked(BINARY, b"a", fin=False) + masked(0, b"a", fin=False) * 64)
    assert stranger.close_code() == 1008


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_end_the_link_or_wait_for_more(stranger, seed):
    stranger.send(random.Random(seed).randbytes(4096))
    with contextlib.suppress(OSError):
        stranger.sock.settimeout(0.0)
        stranger.sock.unwrap()
    stranger.sock.close()
    assert stranger.link.wait_closed(PATIENCE_S)
    [(_, code)] = stranger.closings
    assert code in (1002, 1003, 1006, 1008, 1009)
    assert stranger.events.empty()


def test_two_real_pipes_understand_each_other(port):
    """The client's side too: masked one way, unmasked the other."""
    plane, received = DataPlane(), gevent.queue.Queue()
    client_side = dial(HostPort("127.0.0.1", port.port), PATH, port.client_context)
    links = []
    for upgraded in (client_side, port.upgraded.get(timeout=PATIENCE_S)):
        pipe = Pipe(plane, client=not upgraded.server)
        pipe.send_message(b"from the server" if upgraded.server else b"from the client")
        links.append(
            Link(
                upgraded,
                pipe,
                on_events=received.put,
                on_closed=lambda reason, code: received.put(code),
                write_timeout_s=PATIENCE_S,
            )
        )
        links[-1].start()
    first = [received.get(timeout=PATIENCE_S) for _ in range(2)]
    assert sorted(first) == [[("message", b"from the client")], [("message", b"from the server")]]
    links[0].close(1001)
    assert [received.get(timeout=PATIENCE_S) for _ in range(2)] == [1001, 1001]
    links[1].close()


def client_hello():
    """Return the first flight of a TLS 1.3 client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    side = ssl.SSLContext.wrap_bio(othertls.client_context(), incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        side.do_handshake()
    return outgoing.read()
