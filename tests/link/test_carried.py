"""Links whose bytes a thread of the data plane moves: real planes, TLS over loopback, fake devices."""

from __future__ import annotations

import gc
import os
import socket
import struct
import time
from dataclasses import dataclass, field

import gevent
import gevent.socket as gsocket
import pytest

from shadowmesh.base.constants import Inner
from shadowmesh.base.errors import DeviceError, LocalProtocolError
from shadowmesh.link import tls
from shadowmesh.link.link import Link, Upgraded
from shadowmesh.link.stream import TlsStream
from tests.fastpath import rig
from tests.fastpath.rig import NO_OFFLOAD
from tests.link.keyupdates import DO_NOT_ASK, KeyUpdater
from tests.twins import websocket

PATIENCE_S = 10.0
#: as in fast/link.pxd: records that may wait for the hub
LINK_EVENTS = 8
CLOSE = 0x8


@pytest.fixture(autouse=True)
def patience():
    with gevent.Timeout(4 * PATIENCE_S):
        yield


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    made = tls.load_or_create_certificate(directory / "cert.pem", directory / "key.pem")
    return tls.server_context(made), tls.client_context()


def frame(size, fill=0):
    """A frame of `size` bytes whose body is one byte again and again."""
    return rig.frame(bytes([fill]) * (size - 14))


def until(condition, what="it"):
    """Let the hub run until the condition is true; return what it is."""
    with gevent.Timeout(PATIENCE_S, TimeoutError(f"waited for {what}")):
        while not (found := condition()):
            gevent.sleep(0.001)
    return found


def connected_sockets(send_buffer=None):
    """Two ends of a TCP connection; with send_buffer the first sends and the other takes little."""
    with gsocket.socket() as listening, gsocket.socket() as client:
        if send_buffer is not None:
            listening.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_SNDBUF, send_buffer)
            client.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_RCVBUF, 8192)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        client.connect(listening.getsockname())
        server, _ = listening.accept()
        return server, gsocket.socket(fileno=client.detach())


def streams(contexts, send_buffer=None):
    raw_server, raw_client = connected_sockets(send_buffer)
    server, client = TlsStream(raw_server, contexts[0]), TlsStream(raw_client, contexts[1])
    serving = gevent.spawn(server.do_handshake)
    client.do_handshake()
    serving.get()
    return server, client


@dataclass
class End:
    """A node and its link, and what the owner of both would see."""

    node: rig.Node
    stream: TlsStream
    server: bool
    write_timeout_s: float = PATIENCE_S
    events: list = field(default_factory=list)
    closings: list = field(default_factory=list)

    def __post_init__(self):
        upgraded = Upgraded(
            self.stream, ("127.0.0.1", 9), b"", self.server, bytes(32), 0.0, lambda: None
        )
        self.link = Link(
            upgraded,
            self.node.pipe,
            on_events=self.events.extend,
            on_closed=lambda *what: self.closings.append(what),
            write_timeout_s=self.write_timeout_s,
        )
        self.link.start()

    def carry(self):
        self.link.carry()
        until(lambda: self.link._carried, "the data plane to have the bytes")

    def closing(self):
        assert self.link.wait_closed(PATIENCE_S)
        [closing] = self.closings
        return closing


@pytest.fixture
def two_ends(contexts):
    """Makes two nodes with a link between them; the first serves."""
    ends = []

    def make(*, carried=True, **options):
        client, server = rig.pair(**options)
        streams_of = streams(contexts)
        made = [End(server, streams_of[0], True), End(client, streams_of[1], False)]
        ends.extend(made)
        if carried:
            for end in made:
                end.carry()
        return made

    yield make
    take_down(ends)


@pytest.fixture
def end_and_peer(contexts):
    """Makes one node with a carried link, and what is at its other end: a TLS stream, a twin."""
    made = []

    def make(*, send_buffer=None, **options):
        node = rig.Node().start()
        server, client = streams(contexts, send_buffer)
        end = End(node, server, True, **options)
        end.carry()
        made.append((end, client))
        return end, client, rig.Peer(node)

    yield make
    take_down([end for end, _ in made])
    for _, client in made:
        client.close()


def take_down(ends):
    gevent.joinall([gevent.spawn(end.link.close) for end in ends], raise_error=True)
    for end in ends:
        end.node.close()


def taken(end, count):
    """The next frames that the node writes to its device."""
    got = []

    def enough():
        got.extend(end.node.tap.take())
        return len(got) >= count

    until(enough, f"{count} frames")
    return [data[len(NO_OFFLOAD) :] for data in got]


def test_frames_cross_both_ways_and_keep_their_order(two_ends):
    one, other = two_ends()
    for number in range(10):
        frames = [frame(64 + size, number) for size in range(0, 1400, 35)]
        one.node.feed(frames)
        other.node.feed(frames)
        assert taken(other, len(frames)) == taken(one, len(frames)) == frames


def test_a_link_is_handed_over_while_frames_cross_without_losing_one(two_ends):
    one, other = two_ends(carried=False)
    for number in range(30):
        frames = [frame(1000, number)] * 40
        one.node.feed(frames)
        other.node.feed(frames)
        if number in (10, 20):
            (one if number == 10 else other).link.carry()  # soon, with the frames on their way
        assert taken(other, 40) == taken(one, 40) == frames
    assert one.link._carried
    assert other.link._carried


def test_records_for_the_hub_come_in_order_however_many_come_at_once(end_and_peer):
    end, client, twin = end_and_peer()
    bodies = [struct.pack("!I", number) * 100 for number in range(10 * LINK_EVENTS)]
    message = twin.message([bytes([Inner.CONTROL]) + body for body in bodies])
    client.sendall(twin.frame(message))
    until(lambda: len(end.events) == len(bodies), "all records")
    assert [event[3] for event in end.events] == bodies


def test_a_hub_that_takes_no_records_holds_up_their_sender_and_nobody_else(two_ends, end_and_peer):
    end, client, twin = end_and_peer()
    one, other = two_ends()
    inners = [bytes([Inner.CONTROL]) + bytes(2000)] * 100
    for _ in range(20):
        client.write(twin.frame(twin.message(inners[:5])))
    one.node.feed([frame(100)] * 10)
    deadline = time.monotonic() + PATIENCE_S
    arrived = 0
    # The hub does nothing but this.
    while arrived < 10 or client.unsent:
        client.flush()
        arrived += len(other.node.tap.take())
        assert time.monotonic() < deadline
    assert not end.events
    until(lambda: len(end.events) == 100, "the records after all")


def test_a_web_socket_ping_is_answered(end_and_peer):
    end, client, twin = end_and_peer()
    client.sendall(twin.frame(b"are you there", 0x9))
    assert client.recv(100)[2:] == b"are you there"
    assert not end.events


def test_the_close_of_the_peer_is_answered_with_its_code(end_and_peer):
    end, client, twin = end_and_peer()
    client.sendall(twin.frame(struct.pack("!H", 4001) + b"good bye", CLOSE))
    assert client.recv(100) == b"\x88\x02" + struct.pack("!H", 4001)
    assert client.recv(100) == b""
    client.close()
    assert end.closing() == ("the peer closed the link with code 4001: good bye", 4001)


def test_close_sends_what_is_queued_then_a_close_frame_then_the_end(end_and_peer):
    end, client, _ = end_and_peer()
    end.node.feed([frame(1000)] * 100)
    end.node.settle()
    closing = gevent.spawn(end.link.close, 1001, "the daemon stops")
    stream = b""
    while part := client.recv(65536):
        stream += part
    client.close()
    closing.get()
    frames, rest = websocket.decode_all(stream, masked=False)
    assert rest == b""
    assert frames[-1].opcode == CLOSE
    assert frames[-1].payload == struct.pack("!H", 1001)
    sent = b"".join(websocket.encode(one) for one in frames[:-1])
    inners = [inner for *_, inners in rig.unpack(sent, end.node) for inner in inners]
    assert len(inners) == 100
    assert end.closing() == ("the daemon stops", 1001)


def test_a_violation_is_told_after_what_came_before_it(end_and_peer):
    end, client, twin = end_and_peer()
    client.sendall(
        twin.frame(twin.message([bytes([Inner.CONTROL]) + b"first"])) + twin.frame(b"text", 0x1)
    )
    assert client.recv(100) == b"\x88\x02" + struct.pack("!H", 1003)
    client.close()
    assert end.closing()[1] == 1003
    assert [event[3] for event in end.events] == [b"first"]


def test_a_forged_record_ends_the_link(end_and_peer):
    end, client, twin = end_and_peer()
    message = bytearray(twin.message([rig.plain(frame(100))]))
    message[-1] ^= 1
    client.sendall(twin.frame(bytes(message)))
    assert end.closing()[1] == 4400
    assert end.node.tap.take() == []


def test_a_connection_that_ends_without_a_close_frame_is_1006(end_and_peer):
    end, client, _ = end_and_peer()
    client.close()
    assert end.closing() == ("the connection ended without a close frame", 1006)


def test_a_reset_is_1006(end_and_peer):
    end, client, _ = end_and_peer()
    client.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    reason, code = end.closing()
    assert code == 1006
    assert "Connection reset by peer" in reason


def test_garbage_below_tls_ends_the_link(end_and_peer):
    end, client, _ = end_and_peer()
    client.tcp.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    reason, code = end.closing()
    assert code == 1006
    assert "decryption failed or bad record mac" in reason


def fill(end, count=400):
    """Give the device more than the connection takes."""
    gevent.get_hub().threadpool.apply(end.node.feed, ([frame(1400)] * count,))


def test_a_peer_that_takes_nothing_is_given_up_after_the_write_timeout(end_and_peer):
    end, _, _ = end_and_peer(send_buffer=8192, write_timeout_s=0.3)
    began = time.monotonic()
    fill(end)
    reason, code = end.closing()
    assert time.monotonic() - began >= 0.3
    assert code == 1006
    assert "took nothing for 0.3 s" in reason


def test_a_peer_that_takes_a_little_is_kept(end_and_peer):
    end, client, _ = end_and_peer(send_buffer=65536, write_timeout_s=1.0)
    fill(end)
    until = time.monotonic() + 2.5
    while time.monotonic() < until and not end.link.closed:
        client.recv(16384)  # one TLS record
        gevent.sleep(0.1)  # the pace is what is tested
    assert not end.link.closed
    assert end.node.pipe.blocked


def test_a_blocked_write_does_not_stop_reading(end_and_peer):
    end, client, twin = end_and_peer(send_buffer=8192)
    fill(end)
    until(lambda: end.node.pipe.blocked, "the connection to be full")
    for number in range(20):
        client.sendall(twin.frame(twin.message([rig.plain(frame(100, number))])))
    assert taken(end, 20) == [frame(100, number) for number in range(20)]
    assert end.node.pipe.blocked


def test_close_does_not_wait_for_a_peer_that_takes_nothing(end_and_peer):
    end, _, _ = end_and_peer(send_buffer=8192)
    fill(end)
    until(lambda: end.node.pipe.blocked, "the connection to be full")
    end.link.close(1001, "stop")
    assert end.closing() == ("stop", 1001)


def test_frames_go_on_while_the_hub_does_something_else(two_ends):
    one, other = two_ends()
    one.node.feed([frame(100)] * 50)
    arrived = 0
    deadline = time.monotonic() + PATIENCE_S
    while arrived < 50:  # without ever letting the hub run
        arrived += len(other.node.tap.take())
        assert time.monotonic() < deadline


def test_a_device_that_goes_away_under_load_is_let_go_of(two_ends):
    one, other = two_ends()
    feeding = gevent.get_hub().threadpool.spawn(one.node.feed, [frame(500)] * 2000)
    taken(other, 10)
    other.node.plane.detach_tap()
    os.close(os.dup(other.node.tap.fd))  # its number stays ours: nothing is written there any more
    other.node.tap.take()
    feeding.get()
    until(lambda: other.node.plane.counters()["rx_dropped"]["tap_gone"], "frames for nobody")
    assert other.node.tap.take() == []


@pytest.fixture
def attacked(contexts, tmp_path):
    """A node with a carried link whose other end seals its TLS records itself."""
    node = rig.Node().start()
    raw_server, raw_client = connected_sockets()
    server, client = TlsStream(raw_server, contexts[0]), KeyUpdater(raw_client)
    serving = gevent.spawn(server.do_handshake)
    client.handshake(tmp_path / "keys")
    serving.get()
    end = End(node, server, True)
    end.carry()
    yield end, client
    take_down([end])
    raw_client.close()


def test_key_updates_between_frames_are_followed(attacked):
    end, client = attacked
    twin = rig.Peer(end.node)
    for number in range(5):
        client.send_key_updates(1)
        client.send(twin.frame(twin.message([rig.plain(frame(100, number))])))
    assert taken(end, 5) == [frame(100, number) for number in range(5)]


@pytest.mark.parametrize("ask", [DO_NOT_ASK, b"\x01"])
def test_nothing_but_key_updates_ends_the_link(attacked, ask):
    end, client = attacked
    client.send_key_updates(500, ask)
    reason, code = end.closing()
    assert code == 1006
    assert "TLS records without data" in reason


def test_the_hub_cannot_move_bytes_that_the_data_plane_moves(two_ends):
    pipe = two_ends()[0].node.pipe
    for call in (pipe.outgoing, lambda: pipe.ingest(0)):
        with pytest.raises(LocalProtocolError, match="the data plane moves"):
            call()


def test_a_pipe_of_no_session_is_not_carried(contexts):
    node = rig.Node()
    server, client = streams(contexts)
    with pytest.raises(LocalProtocolError, match="no session's"):
        node.pipe.carry(server.tls, server.fileno())
    server.close()
    client.close()
    node.close()


def carry_one_frame(contexts):
    client, server = rig.pair()
    made = zip((server, client), streams(contexts), strict=True)
    ends = [End(node, stream, node is server) for node, stream in made]
    for end in ends:
        end.carry()
    client.feed([frame(64)])
    taken(ends[0], 1)
    take_down(ends)


def test_many_links_one_after_the_other_leave_nothing(contexts):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(60):
        carry_one_frame(contexts)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_two_hundred_links_are_carried_by_one_thread(contexts):
    """A list of peers may have more than a thousand."""
    before = rig.named_threads()
    node = rig.Node().start()
    server, client = streams(contexts)
    fds = []
    pipes = []
    try:
        for _ in range(200):
            pipe = rig.Pipe(node.plane, False)
            node.session.bind(pipe)
            pipes.append(pipe)
            fds.append(os.dup(server.fileno()))
            pipe.carry(tls.Tls(contexts[0]), fds[-1])
        assert rig.plane_threads(before).count("sm-wss") == 1
    finally:
        for pipe in pipes:
            pipe.close()
        for fd in fds:
            os.close(fd)
        server.close()
        client.close()
        node.close()


def test_a_link_that_cannot_be_watched_stays_the_hubs(contexts, tmp_path):
    node = rig.Node().start()
    with open(tmp_path / "file", "w", encoding="utf-8") as file:  # epoll takes no plain file
        with pytest.raises(DeviceError, match="cannot be watched: Operation not permitted"):
            node.pipe.carry(tls.Tls(contexts[0]), file.fileno())
        node.pipe.send_message(b"by hand")
        assert node.take_outgoing()
    node.close()
