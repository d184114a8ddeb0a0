"""The WebSocket side of the way in: any cutting gives the same, any violation its close code."""

from __future__ import annotations

import struct
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shadowmesh.base.constants import (
    MAX_MESSAGE,
    MAX_MESSAGE_UNAUTHENTICATED,
    MAX_WS_FRAGMENTS,
    Inner,
)
from shadowmesh.base.errors import RemoteProtocolError
from shadowmesh.fast.hooks import records as hooks
from tests.fastpath.rig import NO_OFFLOAD, Node, Peer, frame, ingest, plain
from tests.twins import websocket
from tests.twins.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT

ROLES = pytest.mark.parametrize("client", [True, False], ids=["client", "server"])
GOOD = plain(frame(b"good"))


@contextmanager
def refused(code: int):
    with pytest.raises(RemoteProtocolError) as caught:
        yield
    assert caught.value.close_code == code


# --- Any sequence, cut anywhere -----------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """What a peer sends, and into what pieces somebody on the way cuts it."""

    client: bool
    handshake: list[bytes]
    messages: list[list[bytes]]  # inner records
    cuts: list[list[float]]  # of each message, where it is cut into fragments
    masks: list[bytes]
    controls: dict[int, tuple[int, bytes]]  # before which WebSocket frame
    pieces: list[int]

    def payloads(self, peer: Peer) -> list[bytes]:
        return [*self.handshake, *(peer.message(inners) for inners in self.messages)]

    def stream(self, peer: Peer) -> bytes:
        frames = []
        for index, payload in enumerate(self.payloads(peer)):
            cuts = self.cuts[index] if index < len(self.cuts) else []
            places = [0, *sorted(round(cut * len(payload)) for cut in cuts), len(payload)]
            for place, (start, end) in enumerate(pairwise(places)):
                frames.append(
                    websocket.Frame(
                        BINARY if place == 0 else CONTINUATION,
                        payload[start:end],
                        fin=place == len(places) - 2,
                    )
                )
        for place, (opcode, payload) in sorted(self.controls.items(), reverse=True):
            frames.insert(place % (len(frames) + 1), websocket.Frame(opcode, payload))
        masks = [None] if self.client else self.masks
        return b"".join(
            websocket.encode(
                websocket.Frame(one.opcode, one.payload, one.fin, masks[i % len(masks)])
            )
            for i, one in enumerate(frames)
        )

    def expected(self, node: Node) -> tuple[list[bytes], list[Any], list[Any]]:
        """(frames on the device, events of the handshake and records, control events)."""
        events: list[Any] = [("message", payload) for payload in self.handshake]
        frames = []
        for inners in self.messages:
            for inner in inners:
                if inner[0] == Inner.FRAME:
                    frames.append(NO_OFFLOAD + inner[1:])
                elif inner[0] == Inner.OFFLOAD_FRAME:
                    frames.append(inner[1:])
                else:
                    body = b"" if inner[0] == Inner.PADDING else inner[1:]
                    events.append(("record", node.local_id, inner[0], body))
        return frames, events, list(self.controls.values())


bodies = st.one_of(st.binary(max_size=60), st.integers(0, 1500).map(bytes))
inners = st.one_of(
    bodies.map(lambda body: plain(frame(body))),
    bodies.map(lambda body: bytes([Inner.OFFLOAD_FRAME]) + NO_OFFLOAD + frame(body)),
    bodies.map(lambda body: bytes([Inner.PADDING]) + body),
    st.tuples(
        st.sampled_from([Inner.CONTROL, Inner.PROBE, Inner.PROBE_ANSWER, Inner.HANDSHAKE, 7]),
        bodies,
    ).map(lambda record: bytes([record[0]]) + record[1]),
)
control_frames = st.tuples(st.sampled_from([PING, PONG, CLOSE]), st.binary(max_size=125))
scripts = st.builds(
    Script,
    client=st.booleans(),
    handshake=st.lists(st.binary(max_size=200), max_size=3),
    messages=st.lists(st.lists(inners, min_size=1, max_size=5), max_size=6),
    cuts=st.lists(st.lists(st.floats(0, 1), max_size=6), max_size=9),
    masks=st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=3),
    controls=st.dictionaries(st.integers(0, 30), control_frames, max_size=10),
    pieces=st.lists(st.one_of(st.integers(1, 20), st.integers(1, 2000)), max_size=40),
)


def play(node: Node, script: Script, stream: bytes) -> list[Any]:
    """Feed a stream; the session takes over when the handshake messages have come."""
    events: list[Any] = []
    handshakes = 0
    if not script.handshake:
        node.session.bind(node.pipe)
    view = memoryview(stream)
    sizes = list(script.pieces)
    while view:
        room = node.pipe.recv_buffer()
        n = min(len(view), sizes.pop(0) if sizes else len(view), len(room))
        room[:n] = view[:n]
        view = view[n:]
        found = node.pipe.ingest(n)
        while found:
            events += found
            handshakes += sum(event[0] == "message" for event in found)
            if handshakes == len(script.handshake):
                node.session.bind(node.pipe)
            found = node.pipe.ingest(0)
    return events


def new_node(script: Script) -> Node:
    node = Node(client=script.client).start()
    node.session.bind(None)
    return node


@given(scripts)
@settings(max_examples=60, deadline=None)
def test_any_cutting_gives_the_same_frames_and_events(script):
    with closing(new_node(script)) as node:
        events = play(node, script, script.stream(Peer(node)))
        frames, records, controls = script.expected(node)
        assert node.tap.take() == frames
        names = {"ping": PING, "pong": PONG, "close": CLOSE}
        got_controls = [event for event in events if event[0] in names]
        assert [event for event in events if event[0] not in names] == records
        assert sorted((names[event[0]], event[1]) for event in got_controls) == sorted(controls)


@given(scripts, st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_stream_never_gives_more_than_a_part_of_what_was_sent(script, data):
    # what the keys protect: frames and records arrive in order, unchanged, or not at all
    with closing(new_node(script)) as node:
        stream = script.stream(Peer(node))
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(stream)))
            length = data.draw(st.integers(0, 8))
            stream = stream[:place] + data.draw(st.binary(max_size=8)) + stream[place + length :]
        events = []
        try:
            events = play(node, script, stream)
        except RemoteProtocolError as error:
            assert error.close_code in (1002, 1003, 1008, 1009, 4400)
        frames, records, _ = script.expected(node)
        records = [event for event in records if event[0] == "record"]
        got = node.tap.take()
        assert got == frames[: len(got)]
        got = [event for event in events if event[0] == "record"]
        assert got == records[: len(got)]


@given(st.booleans(), st.booleans(), st.lists(st.binary(max_size=300), max_size=8))
@settings(max_examples=100, deadline=None)
def test_junk_gives_nothing_or_a_close_code(client, connected, pieces):
    with closing(Node(client=client).start()) as node:
        if not connected:
            node.session.bind(None)
        try:
            for piece in pieces:
                ingest(node.pipe, piece)
        except RemoteProtocolError as error:
            assert error.close_code in (1002, 1003, 1008, 1009, 4400)
        assert node.tap.take() == []


def test_one_byte_at_a_time_is_enough(make):
    node = make().start()
    peer = Peer(node)
    stream = peer.frame(peer.message([GOOD, plain(frame(b"x" * 300))]))
    assert ingest(node.pipe, stream, [1] * len(stream)) == []
    assert len(node.tap.take()) == 2


def test_a_message_of_the_largest_size_in_64_fragments_is_taken(make):
    node = make().start()
    peer = Peer(node)
    body = bytes(range(256)) * 250
    payload = peer.message([bytes([Inner.PADDING]) + body] * 4)
    step = len(payload) // 63
    frames = [
        peer.frame(payload[at : at + step], BINARY if at == 0 else CONTINUATION, fin=False)
        for at in range(0, 63 * step, step)
    ]
    frames.append(peer.frame(payload[63 * step :], CONTINUATION))
    assert len(ingest(node.pipe, b"".join(frames), [7000] * 40)) == 4


def test_many_large_messages_pass_through_the_buffer(make):
    # more than the buffer holds, so that it is moved to its front at every possible place
    node = make(tap=False).start()
    peer = Peer(node)
    for number in range(0, 40, 2):
        payload = peer.message([bytes([Inner.PADDING]) + bytes(4000 + 37 * number)] * 9)
        half = peer.frame(payload[:5000], BINARY, fin=False)
        stream = half + peer.frame(payload[5000:], CONTINUATION)
        assert len(ingest(node.pipe, stream, [1000 + 211 * number] * 50)) == 9


# --- Frame headers against the twin -------------------------------------------------------------


@given(st.binary(min_size=14, max_size=14), st.booleans())
@settings(max_examples=150, deadline=None)
@example(b"\x82\xfe\x00\x7dmask______", True)
@example(b"\x82\xfe\x00\x7emask______", True)
@example(b"\x82\x7f" + bytes(5) + b"\x01\x00\x00mask", False)
def test_a_header_is_read_as_the_twin_reads_it(data, from_client):
    got = hooks.read_ws_header(data, from_client)
    room = 70_000  # the twin wants whole frames
    try:
        found = websocket.decode(data + bytes(room), masked=from_client)
    except websocket.FrameError:
        assert got == -1002
        return
    if data[0] & 0x0F == TEXT:
        assert got == -1003
        return
    opcode, fin, length, mask, header_bytes = got
    if found is None:
        assert length + header_bytes > len(data) + room
        return
    twin, used = found
    assert (opcode, fin, length, mask) == (twin.opcode, twin.fin, len(twin.payload), twin.mask)
    assert used == header_bytes + length


@given(st.binary(min_size=14, max_size=14), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_part_of_a_header_is_waited_with_or_refused_as_the_whole_is(data, from_client):
    whole = hooks.read_ws_header(data, from_client)
    for size in range(14):
        part = hooks.read_ws_header(data[:size], from_client)
        if isinstance(whole, tuple) and size < whole[4]:
            assert part == 0
        else:
            assert part in (0, whole)


@given(
    st.sampled_from([BINARY, PING, PONG, CLOSE]),
    st.sampled_from([0, 1, 125, 126, 127, 0xFFFF, 0x10000, 0x10001, MAX_MESSAGE]),
    st.none() | st.binary(min_size=4, max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_a_header_is_written_as_the_twin_writes_it(opcode, size, mask):
    twin = websocket.encode(websocket.Frame(opcode, bytes(size), mask=mask))
    assert hooks.write_ws_header(opcode, size, mask) == twin[: len(twin) - size]


# --- Violations ---------------------------------------------------------------------------------

MASK = b"\1\2\3\4"
HEADERS = [
    # what, first byte, second byte without mask bit, extended length, code
    ("reserved bit 1", 0xC2, 0, b"", 1002),
    ("reserved bit 2", 0xA2, 0, b"", 1002),
    ("reserved bit 3", 0x92, 0, b"", 1002),
    ("text", 0x81, 1, b"", 1003),
    ("text, first fragment", 0x01, 1, b"", 1003),
    *((f"opcode {opcode}", 0x80 | opcode, 0, b"", 1002) for opcode in (3, 4, 5, 6, 7)),
    *((f"opcode {opcode}", 0x80 | opcode, 0, b"", 1002) for opcode in (11, 12, 13, 14, 15)),
    ("long ping", 0x89, 126, b"\x00\x7e", 1002),
    ("long close", 0x88, 127, bytes(8), 1002),
    ("fragmented ping", 0x09, 0, b"", 1002),
    ("fragmented close", 0x08, 0, b"", 1002),
    ("16 bits for 125", 0x82, 126, b"\x00\x7d", 1002),
    ("64 bits for 65535", 0x82, 127, struct.pack(">Q", 0xFFFF), 1002),
    ("length bit 63", 0x82, 127, struct.pack(">Q", 1 << 63), 1002),
    ("all length bits", 0x82, 127, b"\xff" * 8, 1002),
    ("all length bits but the highest", 0x82, 127, struct.pack(">Q", (1 << 63) - 1), 1009),
    ("continuation of nothing", 0x80, 0, b"", 1002),
]


@ROLES
@pytest.mark.parametrize(
    ("first", "second", "extended", "code"),
    [pytest.param(*rest, id=what) for what, *rest in HEADERS],
)
def test_a_bad_frame_header_has_its_close_code(make, client, first, second, extended, code):
    node = make(client=client).start()
    mask_bit, mask = (0, b"") if client else (0x80, MASK)
    with refused(code):
        ingest(node.pipe, bytes([first, mask_bit | second]) + extended + mask + bytes(8))
    # and again in the middle of a message, with what is possible there
    if first & 0x0F != CONTINUATION and code != 1009:
        node = make(client=client).start()
        peer = Peer(node)
        begun = peer.frame(peer.message([GOOD]), BINARY, fin=False)
        with refused(code):
            ingest(node.pipe, begun + bytes([first, mask_bit | second]) + extended + mask)


@pytest.mark.parametrize("opcode", [BINARY, PING, CLOSE])
def test_an_unmasked_frame_from_a_client_is_refused(make, opcode):
    node = make(client=False).start()
    with refused(1002):
        ingest(node.pipe, websocket.encode(websocket.Frame(opcode, b"x")))


@pytest.mark.parametrize("opcode", [BINARY, PING, CLOSE])
def test_a_masked_frame_from_a_server_is_refused(make, opcode):
    node = make(client=True).start()
    with refused(1002):
        ingest(node.pipe, websocket.encode(websocket.Frame(opcode, b"x", mask=MASK)))


@ROLES
def test_a_new_message_inside_another_is_refused(make, client):
    node = make(client=client).start()
    peer = Peer(node)
    message = peer.message([GOOD])
    with refused(1002):
        ingest(node.pipe, peer.frame(message[:9], fin=False) + peer.frame(message))


@ROLES
def test_messages_before_authentication_have_2_kib_at_most(make, client):
    node = make(client=client)
    peer = Peer(node)
    largest = bytes(MAX_MESSAGE_UNAUTHENTICATED)
    assert ingest(node.pipe, peer.frame(largest)) == [("message", largest)]
    header_only = peer.frame(largest + b"x")[:8]
    with refused(1009):  # at the header: not a byte of it is waited for
        ingest(node.pipe, header_only)


def test_fragments_before_authentication_count_together(make):
    node = make()
    peer = Peer(node)
    half = bytes(MAX_MESSAGE_UNAUTHENTICATED // 2)
    whole = peer.frame(half, fin=False) + peer.frame(half, CONTINUATION)
    assert ingest(node.pipe, whole) == [("message", half + half)]
    with refused(1009):
        ingest(node.pipe, peer.frame(half + b"x", fin=False) + peer.frame(half, CONTINUATION))


@ROLES
def test_messages_after_authentication_have_256_kib_at_most(make, client):
    node = make(client=client).start()
    peer = Peer(node)
    with refused(1009):
        ingest(node.pipe, peer.frame(bytes(MAX_MESSAGE + 1))[:14])


def test_fragments_after_authentication_count_together(make):
    node = make().start()
    peer = Peer(node)
    message = peer.message([bytes([Inner.PADDING]) + bytes(MAX_MESSAGE - 16 - 4 - 1 - 16)])
    assert len(message) == MAX_MESSAGE
    begun = peer.frame(message[:1000], fin=False)
    with refused(1009):
        ingest(node.pipe, begun + peer.frame(message[1000:] + b"x", CONTINUATION)[:14])


def test_an_empty_message_before_authentication_is_a_message(make):
    node = make()
    assert ingest(node.pipe, Peer(node).frame(b"")) == [("message", b"")]


def test_an_empty_message_after_authentication_is_refused(make):
    node = make().start()
    with refused(4400):
        ingest(node.pipe, Peer(node).frame(b""))


@pytest.mark.parametrize("authenticated", [True, False])
def test_more_than_64_fragments_are_refused(make, authenticated):
    node = make()
    if authenticated:
        node.start()
    peer = Peer(node)
    message = peer.message([GOOD]) if authenticated else bytes(100)
    frames = [peer.frame(message[:1], fin=False)]
    frames += [peer.frame(b"", CONTINUATION, fin=False)] * (MAX_WS_FRAGMENTS - 1)
    assert ingest(node.pipe, b"".join(frames)) == []
    with refused(1008):
        ingest(node.pipe, peer.frame(b"", CONTINUATION))


@ROLES
@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_more_than_10_control_frames_in_a_second_are_refused(make, client, opcode):
    # one call has one time, so no clock can pass a second in the middle of it
    node = make(client=client).start()
    peer = Peer(node)
    assert len(ingest_once(node, peer.frame(b"x", opcode) * 10)) == 10
    node = make(client=client).start()
    assert len(ingest_once(node, peer.frame(b"x", opcode) * 11)) == 10
    with refused(1008):
        node.pipe.ingest(0)


def test_more_than_200_records_for_the_hub_in_a_second_are_refused(make):
    node = make().start()
    peer = Peer(node)
    probe = bytes([Inner.PROBE]) + bytes(8)
    frames = b"".join(peer.frame(peer.message([probe] * 50)) for _ in range(5))
    assert len(ingest_once(node, frames)) == 200  # one call has one time
    with refused(1008):
        node.pipe.ingest(0)


def test_more_than_512_mesh_messages_in_a_second_are_refused(make):
    node = make().start()
    peer = Peer(node)
    probe, mesh = bytes([Inner.PROBE]) + bytes(8), bytes([Inner.MESH]) + bytes(8)
    frames = peer.frame(peer.message([probe] * 200))
    frames += b"".join(peer.frame(peer.message([mesh] * 64)) for _ in range(9))
    assert len(ingest_once(node, frames)) == 200 + 512  # each kind has a limit of its own
    with refused(1008):
        node.pipe.ingest(0)


def ingest_once(node: Node, data: bytes) -> list[Any]:
    room = node.pipe.recv_buffer()
    room[: len(data)] = data
    return node.pipe.ingest(len(data))


def test_what_came_before_a_violation_is_told_first(make):
    node = make().start()
    peer = Peer(node)
    stream = peer.frame(b"still here", PING) + peer.frame(b"text", TEXT)
    assert ingest_once(node, stream) == [("ping", b"still here")]
    with refused(1003):
        node.pipe.ingest(0)
    with refused(1003):  # for good
        node.pipe.ingest(0)


def test_messages_wait_for_what_the_caller_makes_of_the_one_before(make):
    # message 1 may be a handshake that installs the keys of message 2
    node = make()
    peer = Peer(node)
    node.local_id = node.session.reserve_key_id()
    stream = peer.frame(b"handshake") + peer.frame(peer.message([GOOD]))
    assert ingest_once(node, stream) == [("message", b"handshake")]
    node.install(node.local_id, 1)
    node.session.bind(node.pipe)
    assert node.pipe.ingest(0) == []
    assert node.tap.take() == [NO_OFFLOAD + GOOD[1:]]
