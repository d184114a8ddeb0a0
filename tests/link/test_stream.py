"""TLS one record at a time: what moves, what is bounded, what ends it."""

from __future__ import annotations

import os
import socket
import ssl

import gevent
import gevent.socket as gsocket
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.fast.openssl import TlsError, TlsFlood
from shadowmesh.link import tls
from shadowmesh.link.stream import TlsStream
from tests.link import othertls
from tests.link.keyupdates import DO_NOT_ASK, KeyUpdater, Sealer, secret_from

PATIENCE_S = 10.0
#: as in fast/tls.pxd
BARREN_BYTES, BARREN_RECORDS = 64 * 1024, 32


@pytest.fixture(autouse=True)
def patience():
    with gevent.Timeout(4 * PATIENCE_S):
        yield


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    return tls.server_context(certificate_in(directory)), tls.client_context()


def certificate_in(directory):
    return tls.load_or_create_certificate(directory / "cert.pem", directory / "key.pem")


@pytest.fixture
def tcp():
    """Makes connected pairs of TCP sockets: (server side, client side)."""
    opened = []

    def connect():
        with gsocket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            client = gsocket.create_connection(listening.getsockname())
            server, _ = listening.accept()
        opened.extend((server, client))
        return server, client

    yield connect
    for sock in opened:
        sock.close()


@pytest.fixture
def streams(tcp, contexts):
    """A connected pair: (server side, client side)."""
    raw_server, raw_client = tcp()
    server = TlsStream(raw_server, contexts[0])
    client = TlsStream(raw_client, contexts[1])
    serving = gevent.spawn(server.do_handshake)
    client.do_handshake()
    serving.get()
    yield server, client
    server.close()
    client.close()


@pytest.fixture
def attacked(tcp, contexts, tmp_path):
    """A server's stream, and a client that seals its records itself."""
    raw_server, raw_client = tcp()
    server = TlsStream(raw_server, contexts[0])
    client = KeyUpdater(raw_client)
    serving = gevent.spawn(server.do_handshake)
    client.handshake(tmp_path / "keys")
    serving.get()
    yield server, client
    server.close()


def read(stream, count):
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        assert part, f"ended after {len(data)} bytes"
        data += part
    return data


def test_bytes_arrive_in_order_whatever_the_sizes(streams):
    server, client = streams
    pieces = [os.urandom(size) for size in (1, 16384, 3, 70_000, 16383, 1, 200_000)]
    sending = gevent.spawn(lambda: [server.sendall(piece) for piece in pieces])
    assert read(client, sum(map(len, pieces))) == b"".join(pieces)
    sending.get()


@settings(deadline=None)
@given(st.lists(st.integers(1, 20_000), max_size=6), st.integers(50, 20_000))
def test_a_reader_with_any_buffer_gets_every_byte(contexts, sizes, room):
    left, right = socket.socketpair()
    one, other = (gsocket.socket(fileno=sock.detach()) for sock in (left, right))
    server = TlsStream(one, contexts[0])
    client = TlsStream(other, contexts[1])
    try:
        serving = gevent.spawn(server.do_handshake)
        client.do_handshake()
        serving.get()
        sent = [bytes([n]) * size for n, size in enumerate(sizes)]
        sending = gevent.spawn(lambda: [client.sendall(data) for data in sent])
        got = b""
        while len(got) < sum(sizes):
            got += server.recv(room)
        assert got == b"".join(sent)
        sending.get()
    finally:
        server.close()
        client.close()


def test_a_read_takes_one_record_and_says_whether_there_is_more(streams):
    server, client = streams
    for _ in range(3):
        client.write(b"x" * 10)
    client.flush()
    server.wait_readable()
    buffer = memoryview(bytearray(100))
    assert server.read_into(buffer) == 10
    assert server.ready
    assert server.read_into(buffer) == server.read_into(buffer) == 10
    assert not server.ready
    assert server.read_into(buffer) == 0
    assert not server.ended


def test_a_write_is_sealed_at_once_and_sent_as_tcp_takes_it(streams):
    server, client = streams
    server.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    data = os.urandom(190_000)
    server.write(data)
    assert server.unsent
    assert not server.flush()
    reading = gevent.spawn(read, client, len(data))
    while not server.flush():
        server.wait_writable()
    assert reading.get() == data
    assert not server.unsent


def test_the_large_buffer_of_a_bulk_transfer_is_given_back(streams):
    server, client = streams
    sending = gevent.spawn(client.sendall, bytes(500_000))
    read(server, 500_000)
    sending.get()
    assert server.tls.buffer_bytes > 4096
    for _ in range(40):
        client.sendall(b"x")
        read(server, 1)
    assert server.tls.buffer_bytes == 0  # and an idle connection has none


def test_a_goodbye_ends_the_other_side_after_the_last_byte(streams):
    server, client = streams
    server.write(b"last")
    ending = gevent.spawn(server.goodbye)
    assert client.recv(10) == b"last"
    assert client.recv(10) == b""
    assert client.ended
    client.close()
    ending.get()


def test_a_connection_that_is_cut_ends_without_an_exception(streams):
    server, client = streams
    client.close()
    assert server.recv(1) == b""
    assert server.ended


def test_an_aborted_stream_ends_for_both(streams):
    server, client = streams
    server.abort()
    assert server.recv(1) == client.recv(1) == b""


def test_a_close_in_the_handshake_is_a_reset(tcp, contexts):
    raw_server, raw_client = tcp()
    stream = TlsStream(raw_server, contexts[0])
    raw_client.close()
    with pytest.raises(ConnectionResetError):
        stream.do_handshake()
    stream.close()


def test_what_is_no_tls_is_named_by_openssl(tcp, contexts):
    raw_server, raw_client = tcp()
    stream = TlsStream(raw_server, contexts[0])
    raw_client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TlsError, match="http request"):
        stream.do_handshake()
    stream.close()


def test_a_refused_handshake_is_answered_with_an_alert(tcp, contexts):
    raw_server, raw_client = tcp()
    stream = TlsStream(raw_server, contexts[0])
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.check_hostname = False
    refused = gevent.spawn(stream.do_handshake)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = old.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    raw_client.sendall(outgoing.read())
    assert raw_client.recv(100)[0] == 21  # RFC 8446 section 5.1: alert
    with pytest.raises(TlsError):
        refused.get()
    stream.close()


def test_no_more_input_than_allowed_is_taken_before_the_limit_is_lifted(tcp, contexts):
    raw_server, raw_client = tcp()
    server = TlsStream(raw_server, contexts[0], allowance=4096)
    client = TlsStream(raw_client, contexts[1])
    serving = gevent.spawn(server.do_handshake)
    client.do_handshake()
    serving.get()
    client.sendall(b"x" * 5000)
    with pytest.raises(TlsFlood, match="too much"):
        server.recv(5000)
    client.close()
    server.close()


def test_a_lifted_limit_is_none(tcp, contexts):
    raw_server, raw_client = tcp()
    server = TlsStream(raw_server, contexts[0], allowance=4096)
    client = TlsStream(raw_client, contexts[1])
    serving = gevent.spawn(server.do_handshake)
    client.do_handshake()
    serving.get()
    server.unlimited()
    sending = gevent.spawn(client.sendall, b"x" * 50_000)
    read(server, 50_000)
    sending.get()
    client.close()
    server.close()


def test_key_updates_between_data_are_followed_and_answered(attacked):
    server, client = attacked
    for _ in range(5):
        client.send_key_updates(1)
        client.send(b"data")
        assert read(server, 4) == b"data"
        server.sendall(b"thanks")
        with gevent.Timeout(PATIENCE_S):  # two records: OpenSSL answers before it sends anything
            records = client.sock.recv(100)
            while len(records) < 27 + 28:
                records += client.sock.recv(100)
        assert records[3:5] == b"\x00\x16"


def test_one_read_works_on_one_key_update(attacked):
    server, client = attacked
    client.send_key_updates(10)
    server.wait_readable()
    answers = []
    buffer = memoryview(bytearray(100))
    for _ in range(3):
        before = server.tls.unsent_bytes
        assert server.read_into(buffer) == 0
        answers.append(server.tls.unsent_bytes - before)
    assert max(answers) < 50


@pytest.mark.parametrize("ask", [DO_NOT_ASK, b"\x01"])
def test_nothing_but_key_updates_ends_the_connection_after_a_few(attacked, ask):
    server, client = attacked
    client.send_key_updates(500, ask)
    with pytest.raises(TlsFlood, match="without data"):
        server.recv(1)
    assert server.tls.unsent_bytes <= 50 * BARREN_RECORDS


def test_key_updates_hidden_between_data_end_the_connection_too(attacked):
    server, client = attacked
    for _ in range(4 * BARREN_RECORDS):
        client.send_key_updates(1, DO_NOT_ASK)
        client.send(b"x")
    got = 0
    with pytest.raises(TlsFlood):
        while server.recv(1):
            got += 1
    assert 0 < got < 2 * BARREN_RECORDS


def test_large_records_without_data_end_the_connection(attacked):
    server, client = attacked
    for _ in range(BARREN_BYTES // 16_000 + 2):
        # Padding, RFC 8446 section 5.4: zeros after the type are no data.
        client.sock.sendall(client.sealer.seal(0, b"\x17" + bytes(16_000)))
    with pytest.raises(TlsFlood):
        server.recv(1)


def test_a_server_that_sends_nothing_but_key_updates_is_left_as_well(tcp, contexts, tmp_path):
    raw_server, raw_client = tcp()
    context = othertls.server_context(certificate_in(tmp_path))
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE  # the suite that the sealer knows
    context.num_tickets = 0  # they would be records before those of the sealer
    context.keylog_filename = str(tmp_path / "keys")
    client = TlsStream(raw_client, contexts[1])
    serving = gevent.spawn(context.wrap_socket, raw_server, server_side=True)
    client.do_handshake()
    server = serving.get()
    sealer = Sealer(secret_from(tmp_path / "keys", "SERVER_TRAFFIC_SECRET_0"))
    gsocket.socket.send(server, b"".join(sealer.key_update() for _ in range(100)))
    with pytest.raises(TlsFlood):
        while not client.recv(1):
            pass
    server.close()
    client.close()


def test_close_leaves_no_descriptor(tcp, contexts):
    raw_server, _ = tcp()
    before = len(os.listdir("/proc/self/fd"))
    stream = TlsStream(raw_server, contexts[0])
    assert len(os.listdir("/proc/self/fd")) == before
    stream.close()
    stream.close()
    assert stream.fileno() == -1
    assert len(os.listdir("/proc/self/fd")) == before - 1
