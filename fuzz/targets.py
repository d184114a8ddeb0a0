"""The targets: one function for each parser, and the bytes to begin with.

A target takes any bytes. It may refuse them with the error that its parser documents; everything
else that it raises, a crash of the C code and a hang are findings. Nothing here knows the fuzzer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shadowmesh.base.constants import Inner
from shadowmesh.base.errors import RemoteProtocolError
from shadowmesh.config import yamlfile
from shadowmesh.fast.hooks import offload, records
from shadowmesh.keys.identity import Identity
from shadowmesh.wire import control
from shadowmesh.wire.handshake.agreement import Offer, Policy
from shadowmesh.wire.handshake.machines import Initiator, Responder
from shadowmesh.wire.nat import stun
from tests.fastpath import rig
from tests.fastpath.test_udp import Wire
from tests.twins import admit, packed

from . import network, switch

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "tests" / "vectors"


@dataclass(frozen=True, slots=True)
class Target:
    """What is tried with each input, and the inputs that are known to lead somewhere."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def try_stun(data: bytes) -> None:
    """Datagrams that are no records. Source: RFC 8489."""
    with suppress(RemoteProtocolError):
        message = stun.parse(data)
        stun.interpret_response(message, message.transaction_id)


def stun_seeds() -> Iterable[bytes]:
    yield stun.binding_request(bytes(range(12)))
    yield stun.binding_request(bytes(12), stun.ChangeRequest(ip=True, port=True))
    yield bytes.fromhex(  # RFC 5769, section 2.2
        "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220"
        "002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
        "80280004c07d4c96"
    )


def try_control(data: bytes) -> None:
    """Bodies of the records that a peer may send beside frames."""
    for decode in (
        control.decode_control,
        control.decode_close,
        control.decode_probe,
        control.decode_probe_answer,
    ):
        with suppress(RemoteProtocolError):
            decode(data)


def control_seeds() -> Iterable[bytes]:
    yield control.encode_control(control.PunchNow())
    yield control.encode_close(1, "bye")
    yield control.encode_probe(bytes(8))


@cache
def _policies() -> tuple[Policy, Policy, Offer]:
    left, right = Identity(bytes(range(32))), Identity(bytes(range(1, 33)))
    psk = bytes(range(32, 64))
    offer = Offer(caps=0, tap_mtu=1500, tls_cert_sha256=bytes(32), key_id=0x01020304)
    return Policy(left, psk, right.public_key), Policy(right, psk, left.public_key), offer


def try_handshake(data: bytes) -> None:
    """Any bytes as each of the three messages: the first byte says which."""
    ours, theirs, offer = _policies()
    which, message = data[:1], data[1:]
    with suppress(RemoteProtocolError):
        if which == b"\x02":
            initiator = Initiator(ours, offer)
            initiator.first_message()
            initiator.receive_msg2(message)
        elif which == b"\x03":
            initiator, responder = Initiator(ours, offer), Responder(theirs, offer)
            responder.receive_msg1(initiator.first_message())
            responder.receive_msg3(message)
        else:
            Responder(theirs, offer).receive_msg1(message)


def handshake_seeds() -> Iterable[bytes]:
    ours, theirs, offer = _policies()
    initiator, responder = Initiator(ours, offer), Responder(theirs, offer)
    first = initiator.first_message()
    second = responder.receive_msg1(first)
    yield b"\x01" + first
    yield b"\x02" + second
    yield b"\x03" + initiator.receive_msg2(second)
    vector = json.loads((VECTORS / "handshake.json").read_text())
    for number in (1, 2, 3):
        yield bytes([number]) + bytes.fromhex(vector[f"msg{number}"])


def try_websocket(data: bytes) -> None:
    """A link's bytes after the upgrade; bit 0: the role, bit 1: with keys, the rest: the cut."""
    head, stream = (data[0], data[1:]) if data else (0, b"")
    node = rig.Node(client=bool(head & 1), tap=False)
    try:
        if head & 2:
            node.start()
        pieces = [1 + (head >> 2)] * 64
        with suppress(RemoteProtocolError):
            rig.ingest(node.pipe, stream, pieces)
    finally:
        node.close()


def websocket_seeds() -> Iterable[bytes]:
    for head in range(4):
        node = rig.Node(client=bool(head & 1), tap=False).start()
        peer = rig.Peer(node)
        yield bytes([head]) + peer.frame(bytes(100))
        yield bytes([head | 0xFC]) + peer.frame(peer.message([rig.plain(rig.frame(bytes(60)))]))
        node.close()


class _UdpSide:
    """One node for the whole run: what arrives is sealed under its own keys or is not."""

    def __init__(self) -> None:
        self.node = rig.Node().start()
        self.wire = Wire(self.node)

    def take(self, data: bytes) -> None:
        head, body = data[:1], data[1:1500]
        self.wire.send(body if head == b"\x00" else self.wire.datagram(body or b"\x00"))
        self.node.plane.udp_signals()
        self.node.tap.take()

    def close(self) -> None:
        self.wire.close()
        self.node.close()


@cache
def _udp_side() -> _UdpSide:
    return _UdpSide()


def close() -> None:
    """Let go of what `try_datagram` and `try_packed` keep for the next input."""
    for side in (_udp_side, _packed_side):
        if side.cache_info().currsize:
            side().close()
            side.cache_clear()


def try_datagram(data: bytes) -> None:
    """Raw datagrams (first byte 0), or the plaintext of records that authenticate."""
    if len(data) > 1:
        _udp_side().take(data)


def datagram_seeds() -> Iterable[bytes]:
    vectors = json.loads((VECTORS / "records.json").read_text())
    for name in ("udp_frame", "udp_frame_aegis"):
        yield b"\x00" + bytes.fromhex(vectors[name]["datagram"])
    yield b"\x01" + rig.plain(rig.frame(bytes(60)))
    yield b"\x01" + rig.offload(rig.vnet(1, 1, 54, 1000, 34, 16), rig.frame(bytes(1200)))
    yield bytes([1, Inner.FRAGMENT, 1, 0, 0, 2]) + bytes(200)


class _PackedSide(_UdpSide):
    """As _UdpSide, for datagrams of packed frames of which the twin says what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = self.frames = 0

    def take(self, data: bytes) -> None:
        """Cut what is given into datagrams, some of which are lost, as its first bytes say."""
        size, lost = 3 + data[0], data[1]
        pieces = [data[at : at + size] for at in range(2, min(len(data), 2 + 40 * size), size)]
        first = self.wire.counter
        self.wire.counter += len(pieces) + 1
        kept = {
            first + number: bytes([Inner.PACKED]) + piece
            for number, piece in enumerate(pieces)
            if not lost >> number % 8 & 1
        }
        self.opened += len(kept)
        self.frames += len([one for one in packed.unpack(kept) if one[0] in packed.FRAMES])
        self.wire.send(*(self.wire.datagram(inner, at) for at, inner in kept.items()))
        rig.eventually(self._taken)
        self.node.tap.take()

    def _taken(self) -> bool:
        counters = self.node.plane.counters()
        done = counters["records_opened"] == self.opened
        return done and counters["frames_opened"] == self.frames


@cache
def _packed_side() -> _PackedSide:
    return _PackedSide()


def try_packed(data: bytes) -> None:
    """Packed frames, cut anywhere and with gaps: as many come out as the twin finds."""
    if len(data) > 2:
        _packed_side().take(data)


def packed_seeds() -> Iterable[bytes]:
    records = [rig.plain(rig.frame(bytes(size))) for size in (60, 200, 90, 250, 60)]
    records.append(rig.offload(rig.vnet(1, 0, 0, 0, 34, 16), rig.frame(bytes(90))))
    for room in (200, 252):
        inners = packed.pack(records, room)
        for lost in (0, 2):
            yield bytes([room - 1, lost]) + b"".join(inner[1:] for inner in inners)


def try_offload(data: bytes) -> None:
    """A virtio header and a frame: admitted as by the twin, cut, and joined again."""
    header, frame = data[:10], data[10:]
    if len(header) < 10:
        return
    for most_segments in (0, 128, 65535):
        admitted = records.admit(header, frame, 1500, most_segments)
        wanted = admit.admit(header, frame, 1500, most_segments)
        assert wanted == (None if isinstance(admitted, int) else admitted)
    for finished in (False, True):
        cut = offload.segment(header, frame, 1400, finished)
        if not isinstance(cut, int):
            offload.join(cut)


def offload_seeds() -> Iterable[bytes]:
    tcp = bytes.fromhex("4500052800014000400600000a0000010a000002") + bytes.fromhex(
        "0400005000000001000000015010ffff00000000"
    )
    yield rig.vnet(1, 1, 54, 500, 34, 16) + rig.frame(tcp + bytes(1280))
    yield rig.vnet(1, 5, 42, 500, 34, 6) + rig.frame(tcp[:9] + b"\x11" + tcp[10:] + bytes(1280))


def try_config(data: bytes) -> None:
    """A configuration file of any content."""
    content = yamlfile.parse(data, "fuzz")
    assert len(content.problems) <= 2 * yamlfile.MAX_PROBLEMS


def config_seeds() -> Iterable[bytes]:
    yield (ROOT / "conf" / "daemon.yaml").read_bytes()
    yield b"network: {mtu: 1500, tap_device: 'tap0'}\nnat:\n  stun_server: [a:1, b:2]\n"
    yield b"peers:\n- {name: a, allowed_macs: [02:00:00:00:00:01]}\n- name: b\n- [x]\n"
    yield b"a: &a [*a, *a]\n"


TARGETS: dict[str, Target] = {
    "certificate": Target(network.try_certificate, network.certificate_seeds),
    "config": Target(try_config, config_seeds),
    "control": Target(try_control, control_seeds),
    "datagram": Target(try_datagram, datagram_seeds),
    "handshake": Target(try_handshake, handshake_seeds),
    "lists": Target(network.try_lists, network.lists_seeds),
    "meeting": Target(network.try_meeting, network.meeting_seeds),
    "mesh": Target(network.try_mesh, network.mesh_seeds),
    "offload": Target(try_offload, offload_seeds),
    "packed": Target(try_packed, packed_seeds),
    "stun": Target(try_stun, stun_seeds),
    "switch": Target(switch.run, switch.seeds),
    "token": Target(network.try_token, network.token_seeds),
    "websocket": Target(try_websocket, websocket_seeds),
}
