"""The published records, to the byte, in both directions, through the real data plane."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from shadowmesh._fastpath import build_info
from shadowmesh.base.constants import Caps, Inner
from tests.fastpath.rig import FRAME_MAX, MTU, NO_OFFLOAD, VECTORS, Node, eventually, ingest
from tests.twins import websocket

DATA = json.loads(VECTORS.read_text())
KEYS = {name: bytes.fromhex(text) for name, text in DATA["keys"].items()}
MESSAGES = ("accept_wss_message", "wss_batch", "wss_batch_aegis")
DATAGRAMS = ("udp_frame", "udp_frame_aegis")
#: I -> R: sealed by the initiator, opened by the responder
DIRECTION = {"wss i2r": True, "udp i2r": True, "wss r2i": False, "udp r2i": False}


@pytest.fixture(autouse=True)
def _needs_the_cipher(request):
    vector = request.getfixturevalue("name") if "name" in request.fixturenames else ""
    if "aegis" in vector and not build_info()["aegis256"]:
        pytest.skip("this libsodium or processor has no AEGIS-256")


def inners_of(vector: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(text) for text in vector.get("inners", [vector.get("inner", "")])]


def connected(make: Any, vector: dict[str, Any], *, sends: bool) -> Node:
    """A node that seals (or opens) what the vector's sender (or receiver) does."""
    initiator = DIRECTION[vector["key"]] == sends
    node = make(client=initiator)
    out, back = ("i2r", "r2i") if initiator else ("r2i", "i2r")
    local, remote = (0x77000001, vector["key_id"]) if sends else (vector["key_id"], 0x77000001)
    assert node.session.reserve_key_id(local) == local
    keys = {
        "out": KEYS[f"wss {out}"],
        "in": KEYS[f"wss {back}"],
        "uout": KEYS[f"udp {out}"],
        "uin": KEYS[f"udp {back}"],
    }
    node.install(local, remote, vector["cipher"], keys=keys, caps=Caps.OFFLOAD)
    node.session.bind(node.pipe)
    node.session.send_under(local)
    node.port.activate(node.session)
    return node


def forward(node: Node, count: int) -> None:
    """Let a node seal `count` records that nobody looks at."""
    for _ in range(count):
        node.session.send_record(Inner.PADDING, b"")
        node.take_outgoing()


def payloads(node: Node) -> list[bytes]:
    frames, rest = websocket.decode_all(node.take_outgoing(), masked=node.client)
    assert rest == b""
    return [one.payload for one in frames]


def frames_of(inners: list[bytes]) -> list[bytes]:
    """What the device gets: virtio header and frame.

    The offload frames of the vectors are not among them: behind their virtio headers is no packet.
    """
    return [NO_OFFLOAD + inner[1:] for inner in inners if inner[0] == Inner.FRAME]


def test_the_accept_message_is_sealed_to_the_byte(make):
    vector = DATA["accept_wss_message"]
    node = connected(make, vector, sends=True)
    (inner,) = inners_of(vector)
    node.session.send_record(inner[0], inner[1:])
    assert payloads(node) == [bytes.fromhex(vector["message"])]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_opened(make, name):
    vector = DATA[name]
    node = connected(make, vector, sends=False)
    inners = inners_of(vector)
    # the vector does not begin at counter 0: what comes before is sealed by the other side's code
    other = connected(make, vector, sends=True)
    for _ in range(vector["first_counter"]):
        other.session.send_record(Inner.PADDING, b"")
    ingest(node.pipe, other.take_outgoing())
    mask = None if node.client else b"\x9a\x01\x7f\x33"
    message = websocket.encode(
        websocket.Frame(websocket.BINARY, bytes.fromhex(vector["message"]), mask=mask)
    )
    assert ingest(node.pipe, message) == [
        ("record", vector["key_id"], inner[0], inner[1:])
        for inner in inners
        if inner[0] not in (Inner.FRAME, Inner.OFFLOAD_FRAME)
    ]
    assert node.tap.take() == frames_of(inners)
    offered = sum(inner[0] == Inner.OFFLOAD_FRAME for inner in inners)
    assert node.plane.counters()["rx_dropped"]["bad_offload"] == offered


@pytest.mark.parametrize("name", ["wss_batch", "wss_batch_aegis"])
def test_the_records_of_a_batch_are_sealed_to_the_byte(make, name):
    # frames come from the device and padding from the hub, so the batch leaves as messages of
    # one record: the records are the same, only the headers are not
    vector = DATA[name]
    node = connected(make, vector, sends=True)
    forward(node, vector["first_counter"])
    message = bytes.fromhex(vector["message"])
    sealed = message[16:]
    for place, inner in enumerate(inners_of(vector)):
        if inner[0] == Inner.FRAME:
            node.tap.feed(inner[1:])
            node.settle()
        elif inner[0] == Inner.OFFLOAD_FRAME:  # no packet, so the device cannot come up with it
            forward(node, 1)
            sealed = sealed[4 + int.from_bytes(sealed[:4], "little") :]
            continue
        else:
            node.session.send_record(inner[0], inner[1:])
        (payload,) = payloads(node)
        counter = vector["first_counter"] + place
        assert payload[:4] == b"\x81\x00\x01\x00"
        assert payload[4:8] == message[4:8]
        assert int.from_bytes(payload[8:16], "little") == counter
        assert sealed.startswith(payload[16:])
        sealed = sealed[len(payload) - 16 :]
    assert sealed == b""


def test_frames_that_wait_together_leave_as_one_message(make):
    vector = DATA["wss_batch"]
    frames = frames_of(inners_of(vector))
    node = connected(make, vector, sends=True)
    node.plane.detach_tap()
    for one in frames:
        node.tap.feed(one[10:], one[:10])
    node.plane.attach_tap([node.tap.fd], MTU)
    node.settle()
    (payload,) = payloads(node)
    assert payload[2:4] == len(frames).to_bytes(2, "little")


# --- UDP ----------------------------------------------------------------------------------------


@pytest.fixture
def sockets():
    pair = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for one in pair:
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
    yield pair
    for one in pair:
        one.close()


def received(sock: socket.socket) -> bytes:
    def receive() -> bytes | None:
        try:
            return sock.recv(70_000)
        except BlockingIOError:
            return None

    return eventually(receive, "a datagram")


@pytest.mark.parametrize("name", DATAGRAMS)
def test_a_datagram_is_opened(make, sockets, name):
    vector = DATA[name]
    node = connected(make, vector, sends=False)
    ours, theirs = sockets
    node.plane.attach_udp(ours.fileno(), socket.AF_INET)
    theirs.sendto(bytes.fromhex(vector["datagram"]), ours.getsockname())
    assert eventually(node.tap.take, "the frame") == frames_of(inners_of(vector))
    node.plane.detach_udp()


def test_a_datagram_is_sealed_to_the_byte(make, sockets):
    # the vector with AEGIS has a counter that no test can count up to; its twin is checked, and
    # the twin checks the plane, in test_udp.py
    vector = DATA["udp_frame"]
    node = connected(make, vector, sends=True)
    ours, theirs = sockets
    host, port = theirs.getsockname()
    node.plane.attach_udp(ours.fileno(), socket.AF_INET)
    for _ in range(vector["counter"]):
        assert node.session.send_udp_record(Inner.PADDING, b"", host, port) == 0
        received(theirs)
    (inner,) = inners_of(vector)
    assert len(inner) - 1 <= FRAME_MAX
    node.session.use_udp(host, port, 1400)
    node.tap.feed(inner[1:])
    assert received(theirs) == bytes.fromhex(vector["datagram"])
    node.settle()
    node.plane.detach_udp()
