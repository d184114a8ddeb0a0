"""One link between two real TLS sockets on loopback, with a plain Python pipe in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import struct
import time

import gevent
import gevent.event
import gevent.queue
import gevent.socket as gsocket
import pytest

from shadowmesh.base.errors import DeviceError, LocalProtocolError, RemoteProtocolError
from shadowmesh.link import tls
from shadowmesh.link.link import Link, Upgraded
from shadowmesh.link.stream import TlsStream
from tests.fakes import BINARY, CLOSE, PING, PONG, FakePipe, decode_frame, encode_frame
from tests.link import othertls

PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    made = tls.load_or_create_certificate(directory / "cert.pem", directory / "key.pem")
    return tls.server_context(made), tls.client_context()


@pytest.fixture(autouse=True)
def patience():
    with gevent.Timeout(4 * PATIENCE_S):
        yield


@pytest.fixture
def sockets(contexts):
    """A connected pair: (stream of the server, TLS socket or stream of the client)."""
    opened = []

    def connect(send_buffer=None, *, streams=False):
        """With send_buffer the server's buffer has that size, the client's receives little."""
        with gsocket.socket() as listening, contextlib.ExitStack() as undo:
            raw_client = undo.enter_context(gsocket.socket())
            if send_buffer is not None:
                listening.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_SNDBUF, send_buffer)
                raw_client.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_RCVBUF, 8192)
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            raw_client.connect(listening.getsockname())
            raw_server, _ = listening.accept()
            undo.pop_all()
        server = TlsStream(raw_server, contexts[0])
        serving = gevent.spawn(server.do_handshake)
        if streams:
            client = TlsStream(raw_client, contexts[1])
            client.do_handshake()
        else:
            client = othertls.client_context().wrap_socket(raw_client)
        serving.get()
        opened.extend((server, client))
        return server, client

    yield connect
    for sock in opened:
        sock.close()


class End:
    """One link with a fake pipe, and everything that its owner would see."""

    def __init__(self, sock, *, server, leftover=b"", write_timeout_s=PATIENCE_S, **pipe):
        self.released = 0
        self.pipe = FakePipe(client=not server, **pipe)
        self.events = gevent.queue.Queue()
        self.closings = []
        self.handle = lambda events: [self.events.put(event) for event in events]
        upgraded = Upgraded(
            sock=sock,
            remote_address=("127.0.0.1", 9),
            leftover=leftover,
            server=server,
            certificate_sha256=bytes(32),
            authenticate_by=time.monotonic() + PATIENCE_S,
            release=self.release,
        )
        self.link = Link(
            upgraded,
            self.pipe,
            on_events=self._on_events,
            on_closed=lambda reason, code: self.closings.append((reason, code)),
            write_timeout_s=write_timeout_s,
        )
        self.link.start()

    def release(self):
        self.released += 1

    def _on_events(self, events):
        self.handle(events)  # looked up now: tests replace it

    def message(self):
        kind, payload = self.events.get(timeout=PATIENCE_S)
        assert kind == "message"
        return payload

    def closing(self):
        """Wait for the end; return (reason, code), checking that it came once and left nothing."""
        assert self.link.wait_closed(PATIENCE_S)
        assert self.pipe.closed
        assert self.released == 1
        [closing] = self.closings
        return closing


class RawPeer:
    """The client end of a link, driven frame by frame over its TLS socket."""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""

    def send(self, opcode, payload=b""):
        self.sock.sendall(encode_frame(opcode, payload, mask=b"mask"))

    def receive(self):
        """Return (opcode, payload) of the next frame; None at the end of the connection."""
        with gevent.Timeout(PATIENCE_S):
            while (frame := decode_frame(self.buffer, masked=False)) is None:
                data = self.sock.recv(65536)
                if not data:
                    assert not self.buffer
                    return None
                self.buffer += data
        opcode, payload, length = frame
        self.buffer = self.buffer[length:]
        return opcode, payload


@pytest.fixture
def link_and_peer(sockets):
    ends = []

    def make(**options):
        server, client = sockets(options.pop("send_buffer", None))
        ends.append((End(server, server=True, **options), RawPeer(client)))
        return ends[-1]

    yield make
    for end, peer in ends:
        peer.sock.close()
        end.link.close()


@pytest.fixture
def two_links(sockets):
    server, client = sockets(streams=True)
    ends = End(server, server=True), End(client, server=False)
    yield ends
    closers = [gevent.spawn(end.link.close) for end in ends]
    gevent.joinall(closers, raise_error=True)


def code_of(payload):
    return struct.unpack("!H", payload)[0]


def test_messages_arrive_in_order(two_links):
    server, client = two_links
    sent = [os.urandom(size) for size in (0, 1, 125, 126, 65535, 65536, 200_000)]
    for payload in sent:
        client.pipe.send_message(payload)
    assert [server.message() for _ in sent] == sent


def test_both_directions_run_at_full_load_at_the_same_time_without_losing_a_byte(two_links):
    count, payload = 200, os.urandom(100_000)

    def feed(end):
        for number in range(count):
            while end.pipe.queued_bytes > 500_000:
                gevent.sleep(0)
            end.pipe.send_message(struct.pack("!I", number) + payload)

    feeders = [gevent.spawn(feed, end) for end in two_links]
    for end in two_links:
        for number in range(count):
            assert end.message() == struct.pack("!I", number) + payload
    gevent.joinall(feeders, raise_error=True)


def test_bytes_that_came_with_the_upgrade_are_read_first(link_and_peer):
    first = encode_frame(BINARY, b"first" * 100, mask=b"1234")
    end, peer = link_and_peer(leftover=first[:-1], recv_bytes=64)
    peer.sock.sendall(first[-1:])
    peer.send(BINARY, b"second")
    assert [end.message(), end.message()] == [b"first" * 100, b"second"]


def test_a_pipe_that_stops_at_each_message_is_asked_again(link_and_peer):
    end, peer = link_and_peer()
    real, held = end.pipe.ingest, []

    def one_at_a_time(count):
        held.extend(real(count))
        return [held.pop(0)] if held else []

    end.pipe.ingest = one_at_a_time
    frames = [encode_frame(BINARY, bytes([number]), mask=b"mask") for number in range(5)]
    peer.sock.sendall(b"".join(frames))
    assert [end.message() for _ in frames] == [bytes([number]) for number in range(5)]


def test_a_pong_that_finds_no_room_is_left_out(link_and_peer):
    end, peer = link_and_peer()
    real = end.pipe.send_ws_control

    def full(opcode, payload):
        end.pipe.send_ws_control = real
        raise LocalProtocolError("the link takes no more bytes")

    end.pipe.send_ws_control = full
    peer.send(PING, b"one")
    peer.send(PING, b"two")
    assert peer.receive() == (PONG, b"two")


def test_a_ping_is_answered_and_the_owner_does_not_see_it(link_and_peer):
    end, peer = link_and_peer()
    peer.send(PING, b"are you there")
    peer.send(PONG, b"nobody asked")
    peer.send(BINARY, b"message")
    assert peer.receive() == (PONG, b"are you there")
    assert end.message() == b"message"


def test_the_close_of_the_peer_is_answered_with_its_code(link_and_peer):
    end, peer = link_and_peer()
    peer.send(BINARY, b"last words")
    peer.send(CLOSE, struct.pack("!H", 4001) + b"good bye")
    assert peer.receive() == (CLOSE, struct.pack("!H", 4001))
    assert peer.receive() is None
    peer.sock.close()
    reason, code = end.closing()
    assert code == 4001
    assert "good bye" in reason
    assert end.message() == b"last words"


def test_a_close_without_a_code_is_answered_too(link_and_peer):
    end, peer = link_and_peer()
    peer.send(CLOSE)
    assert peer.receive() == (CLOSE, struct.pack("!H", 1000))
    peer.sock.close()
    assert end.closing()[1] == 1005


@pytest.mark.parametrize("payload", [b"\x03", struct.pack("!H", 1006), struct.pack("!H", 999)])
def test_a_close_that_may_not_be_sent_is_a_violation(link_and_peer, payload):
    end, peer = link_and_peer()
    peer.send(CLOSE, payload)
    assert peer.receive() == (CLOSE, struct.pack("!H", 1002))
    peer.sock.close()
    assert end.closing()[1] == 1002


def test_close_sends_what_is_queued_then_a_close_frame_then_the_end(link_and_peer):
    end, peer = link_and_peer()
    payload = os.urandom(200_000)
    end.pipe.send_message(payload)
    closing = gevent.spawn(end.link.close, 1001, "the daemon stops")
    assert peer.receive() == (BINARY, payload)
    assert peer.receive() == (CLOSE, struct.pack("!H", 1001))
    assert peer.receive() is None
    peer.sock.close()
    closing.get()
    assert end.closing() == ("the daemon stops", 1001)


def test_close_with_unread_bytes_is_no_reset(link_and_peer):
    end, peer = link_and_peer()
    end.handle = lambda events: end.link.close(1008)
    for _ in range(20):
        peer.send(BINARY, bytes(100_000))
    assert peer.receive() == (CLOSE, struct.pack("!H", 1008))
    assert peer.receive() is None
    assert peer.sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_ERROR) == 0
    gsocket.socket.send(peer.sock, b"x")  # after a reset: EPIPE


def test_close_says_nothing_about_the_reason_on_the_wire(link_and_peer):
    end, peer = link_and_peer()
    gevent.spawn(end.link.close, 4400, "signature of message 3 is wrong")
    assert peer.receive() == (CLOSE, struct.pack("!H", 4400))


def test_only_the_first_close_counts(link_and_peer):
    end, peer = link_and_peer()
    closers = [gevent.spawn(end.link.close, 1000 + n, f"close {n}") for n in range(3)]
    assert peer.receive() == (CLOSE, struct.pack("!H", 1000))
    assert peer.receive() is None
    peer.sock.close()
    gevent.joinall(closers, raise_error=True)
    end.link.close(1003, "once more")
    assert end.closing() == ("close 0", 1000)


def test_the_owner_may_close_from_its_own_callback(link_and_peer):
    end, peer = link_and_peer()
    seen = []

    def handle(events):
        end.link.close(1008, "not wanted")
        for _ in range(5):
            gevent.sleep(0)  # the end is under way in another greenlet
        seen.extend(events)

    end.handle = handle
    peer.send(BINARY, b"one")
    peer.send(BINARY, b"two")
    assert peer.receive() == (CLOSE, struct.pack("!H", 1008))
    peer.sock.close()
    assert end.closing() == ("not wanted", 1008)
    assert ("message", b"one") in seen  # the callback itself was not cut off


def test_a_link_that_was_never_started_can_be_closed(sockets):
    server, client = sockets()
    pipe, closings = FakePipe(client=False), []
    upgraded = Upgraded(server, ("::1", 1), b"", True, bytes(32), 0.0, lambda: None)
    link = Link(
        upgraded,
        pipe,
        on_events=lambda events: None,
        on_closed=lambda *what: closings.append(what),
        write_timeout_s=1.0,
    )
    client.close()
    link.close(1000, "not needed")
    assert closings == [("not needed", 1000)]
    assert pipe.closed


def test_a_connection_that_ends_without_a_close_frame_is_1006(link_and_peer):
    end, peer = link_and_peer()
    peer.sock.close()
    reason, code = end.closing()
    assert code == 1006
    assert "without a close frame" in reason


def test_a_reset_is_1006(link_and_peer):
    end, peer = link_and_peer()
    peer.sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sock.close()
    assert end.closing()[1] == 1006


def test_garbage_below_tls_ends_the_link(link_and_peer):
    end, peer = link_and_peer()
    peer.sock._sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    reason, code = end.closing()
    assert code == 1006
    assert "connection lost while reading" in reason


def test_a_violation_is_answered_with_its_code_and_no_detail(link_and_peer):
    end, peer = link_and_peer()
    peer.send(0x1, b"text")
    assert peer.receive() == (CLOSE, struct.pack("!H", 1003))
    assert peer.receive() is None
    peer.sock.close()
    assert end.closing()[1] == 1003


def test_a_violation_found_by_the_owner_counts_like_one_of_the_pipe(link_and_peer):
    end, peer = link_and_peer()

    def handle(events):
        raise RemoteProtocolError("message 1 has the wrong length")

    end.handle = handle
    peer.send(BINARY, b"short")
    assert peer.receive() == (CLOSE, struct.pack("!H", 4400))
    peer.sock.close()
    reason, code = end.closing()
    assert code == 4400
    assert "wrong length" in reason


@pytest.mark.parametrize("bug", [ZeroDivisionError("bug"), OSError(5, "bug"), KeyError("bug")])
def test_a_bug_of_the_owner_ends_the_link_and_is_reported(link_and_peer, bug, caplog):
    end, peer = link_and_peer()

    def handle(events):
        raise bug

    end.handle = handle
    peer.send(BINARY, b"boom")
    assert peer.receive() == (CLOSE, struct.pack("!H", 1011))
    peer.sock.close()
    reason, code = end.closing()
    assert code == 1011
    assert_reported(bug, reason, caplog)


def assert_reported(bug, reason, caplog):
    """The log has the bug; who reads the reason is told where to look."""
    assert "internal error" in reason
    assert "shadowmesh logs" in reason
    (record,) = (record for record in caplog.records if "by a bug" in record.message)
    assert f"{type(bug).__name__}: {bug}" in record.fields["traceback"]


def test_a_bug_in_the_writer_ends_the_link_and_is_reported(link_and_peer, caplog):
    end, _ = link_and_peer()
    end.pipe.sent = lambda count: 1 // 0
    end.pipe.send_message(b"boom")
    reason, code = end.closing()
    assert code == 1011
    assert_reported(ZeroDivisionError("integer division or modulo by zero"), reason, caplog)


def test_a_machine_without_a_thread_for_the_link_says_so(link_and_peer):
    end, peer = link_and_peer()

    def refuse(tls, fd):
        raise DeviceError("the thread of the links could not be started: out of threads")

    end.pipe.carry = refuse
    end.link.carry()
    assert peer.receive() == (CLOSE, struct.pack("!H", 1001))
    peer.sock.close()
    reason, code = end.closing()
    assert code == 1001
    assert "cannot carry the link: the thread of the links could not be started" in reason


def test_a_bug_in_on_closed_does_not_keep_waiters_waiting(link_and_peer):
    end, peer = link_and_peer()
    end.closings = None
    peer.sock.close()
    assert end.link.wait_closed(PATIENCE_S)


def test_a_peer_that_takes_nothing_is_given_up_after_the_write_timeout(link_and_peer):
    end, _ = link_and_peer(write_timeout_s=0.3, send_buffer=8192)
    for _ in range(50):
        end.pipe.send_message(bytes(100_000))
    began = time.monotonic()
    reason, code = end.closing()
    assert 0.3 <= time.monotonic() - began < 3.0
    assert code == 1006
    assert "took nothing for 0.3 s" in reason


def test_a_slow_peer_that_takes_a_little_is_kept(link_and_peer):
    # One write waits for about 0.5 s here until a third of the send buffer is free again.
    end, peer = link_and_peer(write_timeout_s=0.25, send_buffer=65536)
    payload = os.urandom(250_000)
    end.pipe.send_message(payload)
    began = time.monotonic()
    while (frame := decode_frame(peer.buffer, masked=False)) is None:
        peer.buffer += peer.sock.recv(4096)
        if end.pipe.queued_bytes:
            gevent.sleep(0.05)  # the pace is what is tested
    assert time.monotonic() - began > 1.0
    assert frame[:2] == (BINARY, payload)
    assert not end.link.closed


def test_close_does_not_wait_for_a_peer_that_takes_nothing(link_and_peer):
    end, _ = link_and_peer(send_buffer=8192)
    for _ in range(50):
        end.pipe.send_message(bytes(100_000))
    gevent.sleep(0)
    began = time.monotonic()
    end.link.close(1001, "stop")
    assert time.monotonic() - began < 2.5
    assert end.closing() == ("stop", 1001)


def test_a_blocked_write_does_not_stop_reading(link_and_peer):
    end, peer = link_and_peer(send_buffer=8192)
    for _ in range(10):
        end.pipe.send_message(bytes(100_000))
    for number in range(50):
        peer.send(BINARY, struct.pack("!I", number) * 1000)
    assert [end.message() for _ in range(50)] == [
        struct.pack("!I", number) * 1000 for number in range(50)
    ]
    assert end.pipe.queued_bytes > 0


def test_a_write_that_blocks_is_repeated_with_the_same_bytes(link_and_peer):
    end, peer = link_and_peer(send_buffer=8192)
    digest, sent = hashlib.sha256(), hashlib.sha256()
    for size in (1, 100_000, 17, 256_000, 16_384, 131_072, 131_073):
        payload = os.urandom(size)
        sent.update(payload)
        end.pipe.send_message(payload)
    for _ in range(7):
        digest.update(peer.receive()[1])
    assert digest.digest() == sent.digest()


def test_other_greenlets_run_while_the_link_is_busy(two_links):
    server, client = two_links
    deadline = time.monotonic() + 1.0
    gaps, moved = [], 0

    def feed(end):
        while time.monotonic() < deadline:
            if end.pipe.queued_bytes < 500_000:
                end.pipe.send_message(bytes(64_000))
            gevent.sleep(0)

    def tick():
        last = time.monotonic()
        while last < deadline:
            gevent.sleep(0)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    def drop(events):
        nonlocal moved
        moved += sum(len(event[1]) for event in events)

    server.handle = client.handle = drop
    gevent.joinall(
        [gevent.spawn(feed, server), gevent.spawn(feed, client), gevent.spawn(tick)],
        raise_error=True,
    )
    gaps.sort()
    assert moved > 1_000_000
    assert gaps[len(gaps) // 2] < 0.050  # generous: the machine may be busy with something else


class EagerStream:
    """Always has data and takes data; counts the calls."""

    FRAMES = 3 * encode_frame(BINARY, bytes(1000), mask=None)
    ready = True
    ended = False
    unsent = False

    def __init__(self, stream):
        self.stream = stream
        self.reads = self.writes = 0

    def read_into(self, buffer):
        self.reads += 1
        buffer[: len(self.FRAMES)] = self.FRAMES
        return len(self.FRAMES)

    def write(self, data):
        self.writes += 1

    def flush(self):
        return True

    def __getattr__(self, name):
        return getattr(self.stream, name)


def test_a_stream_that_never_makes_the_link_wait_does_not_keep_others_from_running(sockets):
    eager = EagerStream(sockets(streams=True)[1])
    end = End(eager, server=False)
    for _ in range(3000):
        end.pipe.send_message(bytes(10))
    for _ in range(20):
        gevent.sleep(0)
    assert 20 <= eager.reads < 2000
    assert 20 <= eager.writes < 2000
    end.link.close()


def test_an_ended_link_leaves_no_descriptor_and_no_greenlet(link_and_peer):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    end, peer = link_and_peer()
    peer.sock.close()
    end.closing()
    before = descriptors()
    for _ in range(5):
        end, peer = link_and_peer()
        peer.send(BINARY, b"x")
        assert end.message() == b"x"
        peer.sock.close()
        end.closing()
        assert end.link._reader.ready()
        assert end.link._writer.ready()
        assert end.link._stream.fileno() == -1
    assert descriptors() <= before


def test_a_tls_close_without_a_close_frame_is_1006(link_and_peer):
    end, peer = link_and_peer()
    peer.sock.settimeout(0.0)
    with pytest.raises(ssl.SSLWantReadError):
        peer.sock.unwrap()  # sends close_notify and does not wait for the answer
    assert end.closing()[1] == 1006
