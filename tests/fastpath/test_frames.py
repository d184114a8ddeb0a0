"""Which frames pass, under which name the others are counted, and that every one is counted."""

from __future__ import annotations

import os
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh._fastpath import DROP_NAMES, REFUSAL_NAMES, Pipe
from shadowmesh.base.constants import MAX_SEGMENTS, Caps
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.fast.hooks import queues, records
from tests.fastpath.rig import (
    FRAME_MAX,
    MTU,
    NO_OFFLOAD,
    Node,
    Peer,
    eventually,
    frame,
    ingest,
    offload,
    pair,
    plain,
    unpack,
    vnet,
)
from tests.twins import mix
from tests.twins.admit import admit
from tests.twins.offload import ACK, Ipv4, Ipv6, Packet, Tcp, Udp

MULTICAST = b"\x01\0\0\0\0\1"
FRAME = frame(bytes(1000))
STREAM = Packet(
    Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2"),
    Tcp(40000, 5201, 1, 2, 0, ACK, 500, 0, b""),
    bytes(60_000),
    FRAME[:12],
)
DATAGRAMS = replace(STREAM, l4=Udp(40000, 53))
STREAM6 = replace(STREAM, ip=Ipv6(bytes(15) + b"\1", bytes(15) + b"\2"))
SUPER, SUPER6, SUPER_UDP = STREAM.build(), STREAM6.build(), DATAGRAMS.build()
TSO = {
    "flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1400, "csum_start": 34, "csum_offset": 16,
}  # fmt: skip
TSO6 = TSO | {"gso_type": 4, "hdr_len": 74, "csum_start": 54}
USO = TSO | {"gso_type": 5, "hdr_len": 42, "csum_offset": 6}
TAGS = (b"\x88\xa8\0\1", b"\x81\0\0\2")
LARGEST = replace(STREAM, tags=TAGS, payload=bytes(65535 - 40)).build()
TSO_TAGGED = TSO | {"hdr_len": 62, "csum_start": 42}
SINGLE = replace(STREAM, payload=bytes(1000))
PLACE = {"flags": 1, "csum_start": 34, "csum_offset": 16}
ARP = frame(bytes(40)).replace(b"\x08\x00", b"\x08\x06", 1)
SPLIT = replace(STREAM, ip=replace(STREAM.ip, flags=0x2000)).build()


def sized(size: int) -> bytes:
    return frame(bytes(size))[:size]


def cut_to(packet: Packet, payload_bytes: int) -> bytes:
    return replace(packet, payload=bytes(payload_bytes)).build()


#: what, virtio header or None for a plain frame, frame, reason or None when it passes
CHECKS: list[tuple[str, bytes | None, bytes, str | None]] = [
    ("empty", None, b"", "runt"),
    ("13 bytes", None, sized(13), "runt"),
    ("14 bytes", None, sized(14), None),
    ("mtu and 22 bytes", None, sized(FRAME_MAX), None),
    ("mtu and 23 bytes", None, sized(FRAME_MAX + 1), "too_long"),
    ("65557 bytes", None, LARGEST, "too_long"),
    ("multicast source", None, frame(source=MULTICAST), "multicast_source"),
    ("broadcast source", None, frame(source=b"\xff" * 6), "multicast_source"),
    ("multicast destination", None, b"\xff" * 6 + FRAME[6:], None),
    ("offload, no frame", vnet(), b"", "runt"),
    ("offload, 13 bytes", vnet(), sized(13), "runt"),
    ("offload, 14 bytes", vnet(), sized(14), None),
    ("offload, mtu and 22 bytes", vnet(), sized(FRAME_MAX), None),
    ("offload, mtu and 23 bytes", vnet(), sized(FRAME_MAX + 1), "too_long"),
    ("offload, multicast source", vnet(), frame(source=MULTICAST), "multicast_source"),
    ("checksum of TCP", vnet(**PLACE), SINGLE.build(), None),
    ("checksum of UDP", vnet(1, 0, 0, 0, 34, 6), replace(SINGLE, l4=Udp(1, 2)).build(), None),
    ("checksum of TCP, header junk", vnet(**PLACE | {"hdr_len": 9}), SINGLE.build(), None),
    ("checksum of TCP in the payload", vnet(1, 0, 0, 0, 100, 16), SINGLE.build(), None),
    ("checksum of TCP where UDP has it", vnet(1, 0, 0, 0, 34, 6), SINGLE.build(), None),
    ("checksum of no protocol", vnet(**PLACE), FRAME, None),
    ("checksum of ARP", vnet(**PLACE), ARP, None),
    ("checksum known to be good", vnet(flags=2), FRAME, None),
    ("no checksum, header junk", vnet(0, 0, 2000, 1, 2, 3), FRAME, None),
    ("flags 4", vnet(flags=4), FRAME, "bad_offload"),
    ("flags 0x80", vnet(flags=0x80), FRAME, "bad_offload"),
    ("checksum in the Ethernet header", vnet(flags=1, csum_start=13), FRAME, "bad_offload"),
    ("checksum at 14", vnet(flags=1, csum_start=14), FRAME, None),
    ("checksum at the end", vnet(flags=1, csum_start=1000, csum_offset=12), FRAME, None),
    ("checksum past the end", vnet(1, csum_start=1000, csum_offset=13), FRAME, "bad_offload"),
    ("checksum start past it", vnet(1, csum_start=1013), FRAME, "bad_offload"),
    ("checksum sum overflow", vnet(1, csum_start=65535, csum_offset=65535), FRAME, "bad_offload"),
    ("TCP over IPv4", vnet(**TSO), SUPER, None),
    ("TCP over IPv6", vnet(**TSO6), SUPER6, None),
    ("UDP", vnet(**USO), SUPER_UDP, None),
    ("TCP with ECN", vnet(**TSO | {"gso_type": 0x81}), SUPER, None),
    ("TCP that is IPv6", vnet(**TSO | {"gso_type": 4}), SUPER, "bad_offload"),
    ("TCP that is UDP", vnet(**TSO | {"gso_type": 5}), SUPER, "bad_offload"),
    ("UDP that is TCP", vnet(**USO | {"gso_type": 1}), SUPER_UDP, "bad_offload"),
    ("TCP that is ARP", vnet(**TSO), ARP, "bad_offload"),
    ("TCP that is a fragment", vnet(**TSO), SPLIT, "bad_offload"),
    ("TCP that ends early", vnet(**TSO), SUPER[:-1], "bad_offload"),
    ("TCP with its checksum elsewhere", vnet(**TSO | {"csum_offset": 6}), SUPER, "bad_offload"),
    ("TCP that begins elsewhere", vnet(**TSO | {"csum_start": 35}), SUPER, "bad_offload"),
    ("largest", vnet(**TSO_TAGGED), LARGEST, None),
    ("one byte more", vnet(**TSO_TAGGED), LARGEST + b"x", "too_long"),
    ("UDP with ECN", vnet(**USO | {"gso_type": 0x85}), SUPER_UDP, "bad_offload"),
    ("ECN alone", vnet(gso_type=0x80), FRAME, "bad_offload"),
    *(
        (f"type {kind}", vnet(**TSO | {"gso_type": kind}), SUPER, "bad_offload")
        for kind in (2, 3, 6, 7, 0x10, 0x40, 0x83)
    ),
    ("super-frame without its checksum", vnet(**TSO | {"flags": 0}), SUPER, "bad_offload"),
    ("super-frame said to be good", vnet(**TSO | {"flags": 2}), SUPER, "bad_offload"),
    ("segments of 0", vnet(**TSO | {"gso_size": 0}), SUPER, "bad_offload"),
    ("segments of 1", vnet(**TSO | {"gso_size": 1}), SUPER, "bad_offload"),
    ("128 segments", vnet(**TSO | {"gso_size": 469}), SUPER, None),
    ("129 segments", vnet(**TSO | {"gso_size": 468}), SUPER, "bad_offload"),
    ("128 segments of 1", vnet(**USO | {"gso_size": 1}), cut_to(DATAGRAMS, 128), None),
    ("129 segments of 1", vnet(**USO | {"gso_size": 1}), cut_to(DATAGRAMS, 129), "bad_offload"),
    ("segments of the mtu", vnet(**TSO | {"gso_size": FRAME_MAX - 54}), SUPER, None),
    ("segments above the mtu", vnet(**TSO | {"gso_size": FRAME_MAX - 53}), SUPER, "too_long"),
    ("one segment, not full", vnet(**TSO | {"gso_size": 9000}), SINGLE.build(), None),
    ("no payload", vnet(**TSO), cut_to(STREAM, 0), None),
    ("no header length", vnet(**TSO | {"hdr_len": 0}), SUPER, None),
    ("another header length", vnet(**TSO | {"hdr_len": 1000}), SUPER, None),
    ("headers past the end", vnet(**TSO | {"hdr_len": 1055}), SINGLE.build(), "bad_offload"),
    ("super-frame, 13 bytes", vnet(**TSO), sized(13), "runt"),
    ("super-frame, 14 bytes", vnet(**TSO), sized(14), "bad_offload"),
    (
        "super-frame, multicast",
        vnet(**TSO),
        SUPER[:6] + MULTICAST + SUPER[12:],
        "multicast_source",
    ),
]
IDS = [what for what, *_ in CHECKS]
TABLE = pytest.mark.parametrize(("header", "data", "reason"), [row[1:] for row in CHECKS], ids=IDS)


def admitted(header: bytes | None, data: bytes) -> tuple[bytes, bytes]:
    """Return what of a frame that passes the device gets."""
    passed = (NO_OFFLOAD, data) if header is None else admit(header, data, MTU)
    assert passed is not None
    return passed


def dropped(counters: dict[str, Any], direction: str) -> dict[str, int]:
    return {name: number for name, number in counters[direction].items() if number}


# --- Frames from the peer -----------------------------------------------------------------------


@TABLE
def test_a_frame_from_the_peer_is_judged(make, header, data, reason):
    node = make().start()
    peer = Peer(node)
    record = plain(data) if header is None else offload(header, data)
    assert peer.send(record, plain(FRAME)) == []
    wanted = [] if reason else [b"".join(admitted(header, data))]
    assert node.tap.take() == [*wanted, NO_OFFLOAD + FRAME]
    counters = node.plane.counters()
    assert dropped(counters, "rx_dropped") == ({reason: 1} if reason else {})
    assert counters["records_opened"] == counters["frames_opened"] == 2
    assert counters["frames_written"] == 2 - bool(reason)
    assert counters["bytes_written"] == len(FRAME) + (0 if reason else len(data))


@pytest.mark.parametrize("size", range(10))
def test_an_offload_record_without_a_whole_header_is_a_runt(make, size):
    node = make().start()
    assert Peer(node).send(b"\x09" + bytes(size)) == []
    assert dropped(node.plane.counters(), "rx_dropped") == {"runt": 1}
    assert node.tap.take() == []


@TABLE
def test_the_judge_reads_nothing_outside_of_the_frame(header, data, reason):
    # the hook gives it memory of just that size, for the sanitizer to watch
    if header is None:
        verdict = records.judge(data, MTU)
        assert verdict == (-1 if reason is None else DROP_NAMES.index(reason))
    else:
        wanted = DROP_NAMES.index(reason) if reason else admitted(header, data)
        assert records.admit(header, data, MTU) == wanted


def test_super_frames_are_for_one_of_the_paths_only():
    refused = DROP_NAMES.index("bad_offload")
    for header, data in ((vnet(**TSO), SUPER), (vnet(**USO), SUPER_UDP)):
        assert records.admit(header, data, MTU) == (header, data)
        assert records.admit(header, data, MTU, 0) == refused
    assert records.admit(vnet(**PLACE), SINGLE.build(), MTU, 0) == (
        vnet(**PLACE),
        SINGLE.build(),
    )


def test_the_device_is_told_what_a_super_frame_may_come_to():
    assert queues.SIZES["MAX_SEGMENTS"] == MAX_SEGMENTS


FRAMES = st.sampled_from(
    [SUPER, SUPER6, SUPER_UDP, SINGLE.build(), LARGEST, ARP, SPLIT, FRAME, sized(14), b""]
)
HEADERS = st.builds(
    vnet,
    st.sampled_from([0, 1, 1, 1, 2, 3, 4]),
    st.sampled_from([0, 1, 4, 5, 0x80, 0x81, 0x84, 0x85, 3]),
    st.sampled_from([0, 42, 54, 62, 74, 1000, 65535]),
    st.integers(0, 65535) | st.sampled_from([1, 468, 469, 1400, FRAME_MAX - 54]),
    st.integers(0, 100) | st.sampled_from([34, 42, 54]),
    st.integers(0, 100) | st.sampled_from([6, 16]),
)


LIMITS = st.sampled_from([0, 128, 65535])


@given(st.data(), HEADERS | st.binary(min_size=10, max_size=10), FRAMES, LIMITS)
@settings(max_examples=300, deadline=None)
def test_what_reaches_the_device_is_that_of_the_twin(draw, header, data, most_segments):
    for _ in range(draw.draw(st.integers(0, 3))):
        at = draw.draw(st.integers(0, min(len(data), 80)))
        data = data[:at] + bytes([draw.draw(st.integers(0, 255))]) + data[at + 1 :]
    verdict = records.admit(header, data, MTU, most_segments)
    wanted = admit(header, data, MTU, most_segments)
    assert wanted == (None if isinstance(verdict, int) else verdict)


def test_a_full_device_costs_the_frame_and_says_so(make):
    node = make().start()
    peer = Peer(node)
    sent = 0
    while not dropped(node.plane.counters(), "rx_dropped"):
        peer.send(plain(FRAME))
        sent += 1
        assert sent < 10_000
    counters = node.plane.counters()
    assert dropped(counters, "rx_dropped") == {"tap_full": 1}
    assert counters["frames_opened"] == sent == counters["frames_written"] + 1
    assert len(node.tap.take()) == sent - 1
    assert peer.send(plain(FRAME)) == []
    assert len(node.tap.take()) == 1


def test_frames_without_a_device_are_counted(make):
    node = make(tap=False).start()
    Peer(node).send(plain(FRAME), plain(FRAME))
    assert dropped(node.plane.counters(), "rx_dropped") == {"tap_gone": 2}


# --- Frames from the device ---------------------------------------------------------------------


@TABLE
def test_a_frame_from_the_device_is_judged(make, header, data, reason):
    if reason == "multicast_source" and header in (None, NO_OFFLOAD):
        reason = None  # the peer would drop it; here it is not looked at
    node = make().start()
    node.tap.feed(data, header or NO_OFFLOAD)
    node.tap.feed(FRAME)
    counters = node.settle()
    inners = [inner for _, _, some in unpack(node.take_outgoing(), node) for inner in some]
    record = (
        plain(data) if header in (None, NO_OFFLOAD) or reason else offload(*admitted(header, data))
    )
    flags_only = header is not None and header[0] & 1 == 0 and header[1] == 0
    if flags_only:
        record, reason = plain(data), None if 14 <= len(data) <= FRAME_MAX else reason
    assert inners == ([] if reason else [record]) + [plain(FRAME)]
    assert dropped(counters, "tx_dropped") == ({reason: 1} if reason else {})
    assert counters["bytes_read"] == len(data) + len(FRAME)


def test_a_peer_without_offload_gets_no_offload_frames(make):
    node = make().start(caps=Caps.UDP)
    unfinished = frame(bytes(range(100)))
    node.tap.feed(unfinished, vnet(**PLACE))
    node.tap.feed(SUPER, vnet(**TSO))
    node.tap.feed(FRAME)
    counters = node.settle()
    inners = [inner for _, _, some in unpack(node.take_outgoing(), node) for inner in some]
    assert inners == [plain(mix.finished(unfinished, 34, 16)), plain(FRAME)]
    assert dropped(counters, "tx_dropped") == {"bad_offload": 1}


def test_the_mtu_of_the_peer_limits_what_is_sent(make):
    node = make().start(mtu=1280)
    node.tap.feed(sized(1302))
    node.tap.feed(sized(1303))
    counters = node.settle()
    assert dropped(counters, "tx_dropped") == {"too_long": 1}


def test_frames_leave_in_the_order_in_which_they_came(make):
    node = make().start()
    frames = [frame(number.to_bytes(4, "big")) for number in range(300)]
    node.feed(frames)
    node.settle()
    messages = unpack(node.take_outgoing(), node)
    assert [inner for _, _, some in messages for inner in some] == [plain(one) for one in frames]
    counter = 0
    for key_id, first, some in messages:
        assert (key_id, first) == (node.remote_id, counter)
        counter += len(some)


def test_without_an_active_session_frames_are_dropped_as_not_connected(make):
    node = make()
    node.feed([FRAME] * 3)
    assert dropped(node.settle(), "tx_dropped") == {"not_connected": 3}
    node.port.activate(node.session)  # active, but without keys
    node.feed([FRAME])
    assert dropped(node.settle(), "tx_dropped") == {"not_connected": 4}


def test_frames_that_come_just_before_a_session_wait_for_it(make):
    node = make()
    for _ in range(3):
        node.feed([FRAME])
    counters = node.start().settle()
    assert counters["frames_queued"] == 3
    assert dropped(counters, "tx_dropped") == {}


def test_the_device_is_let_go_at_once_while_frames_wait_for_a_session(make):
    node = make()
    node.feed([FRAME])
    began = time.monotonic()
    node.plane.detach_tap()
    assert time.monotonic() - began < 0.5  # of the second that they may wait
    counters = node.plane.counters()  # whether the thread had begun to wait is its own business
    assert counters["frames_read"] == counters["tx_dropped"]["not_connected"]


def test_without_a_link_frames_are_dropped_as_link_lost(make):
    node = make().start()
    node.session.bind(None)
    node.feed([FRAME] * 3)
    assert dropped(node.settle(), "tx_dropped") == {"link_lost": 3}


def fill(node: Node) -> None:
    """Feed frames until the link takes no more."""
    while not node.plane.counters()["tx_dropped"]["link_stalled"]:
        node.feed([FRAME] * 64)
        if node.plane.counters()["frames_queued"] < 450:
            node.settle()
    node.settle()


def test_a_link_that_takes_nothing_costs_frames_but_no_control_record(make):
    node = make().start()
    fill(node)
    counters = node.settle()
    assert set(dropped(counters, "tx_dropped")) == {"link_stalled", "queue_full"}
    assert node.pipe.queued_bytes >= queues.SIZES["FIRST_LIMIT"]
    for number in range(3):  # 3 * 2 KiB fit into what frames have to leave free
        node.session.send_record(6, bytes([number]) * 2000)
    node.pipe.send_ws_control(9, b"ping")
    queued = counters["frames_queued"]
    stream = node.take_outgoing()
    assert node.settle()["frames_sent"] == queued
    assert stream.endswith(b"\x89\x04ping")
    inners = [inner for _, _, some in unpack(stream[:-6], node) for inner in some]
    assert [inner[:2] for inner in inners[-3:]] == [b"\x06\x00", b"\x06\x01", b"\x06\x02"]
    assert len(inners) == queued + 3


def test_a_stalled_link_goes_on_when_it_takes_bytes_again(make):
    node = make().start()
    fill(node)
    before = node.plane.counters()["tx_dropped"]["link_stalled"]
    node.take_outgoing()
    node.feed([FRAME])
    assert node.settle()["tx_dropped"]["link_stalled"] == before
    assert len(unpack(node.take_outgoing(), node)) == 1


def test_a_link_that_is_full_for_ever_refuses_control_records_as_well(make):
    node = make(tap=False).start()
    with pytest.raises(LocalProtocolError, match="no more bytes"):
        for _ in range(1000):
            node.session.send_record(6, bytes(2000))
    with pytest.raises(LocalProtocolError, match="no more bytes"):
        node.pipe.send_message(bytes(2000))


# --- Every frame is accounted for ---------------------------------------------------------------


@dataclass
class Story:
    """Two nodes, what happened to them, and what may still arrive."""

    one: Node
    other: Node
    sent: list[bytes] = field(default_factory=list)
    wire: bytes = b""
    number: int = 0

    def frames(self, count: int, size: int) -> None:
        for _ in range(count):
            self.number += 1
            data = frame(self.number.to_bytes(4, "big") + bytes(size))
            self.sent.append(data)
            self.one.tap.feed(data)

    def junk(self, size: int) -> None:
        self.one.tap.feed(sized(size))

    def multicast(self) -> None:
        self.one.tap.feed(frame(source=MULTICAST))

    def send_some(self, limit: int) -> None:
        if (ready := self.one.pipe.outgoing()) is not None:
            part = bytes(ready[:limit])
            self.one.pipe.sent(len(part))
            self.wire += part

    def deliver(self) -> None:
        ingest(self.other.pipe, self.wire)
        self.wire = b""

    def control(self) -> None:
        with suppress(LocalProtocolError):
            self.one.session.send_record(0, b"")

    def unbind(self) -> None:
        self.one.session.bind(None)

    def bind_again(self) -> None:
        if not self.one.pipe.closed:
            self.one.session.bind(self.one.pipe)

    def new_link(self) -> None:
        # both ends get a new link; what was on the old one is lost
        for node in (self.one, self.other):
            node.pipe.close()
            node.pipe = Pipe(node.plane, node.client)
            with suppress(LocalProtocolError):
                node.session.retire(node.local_id)
            node.local_id = node.session.reserve_key_id()
        self.wire = b""
        for node, peer in ((self.one, self.other), (self.other, self.one)):
            node.remote_id = peer.local_id
            node.install(node.local_id, node.remote_id, swap=node is self.other)
            node.session.bind(node.pipe)
            node.session.send_under(node.local_id)

    def close_link(self) -> None:
        self.one.pipe.close()
        self.wire = b""

    def retire(self) -> None:
        self.new_link()
        self.one.session.retire(self.one.local_id)

    def device_gone(self) -> None:
        self.other.plane.detach_tap()

    def device_back(self) -> None:
        self.other.plane.detach_tap()
        self.other.plane.attach_tap([self.other.tap.fd], MTU)


def step(name: str, *arguments: Any) -> Any:
    return st.tuples(st.just(name), *arguments)


steps = st.one_of(
    step("frames", st.integers(1, 70), st.integers(0, 1400)),
    step("junk", st.sampled_from([0, 5, 13, FRAME_MAX + 1, 9000])),
    step("send_some", st.integers(1, 5000)),
    step("send_some", st.integers(1, 600_000)),
    *(
        step(name)
        for name in [
            "multicast",
            "control",
            "deliver",
            "unbind",
            "bind_again",
            "new_link",
            "close_link",
            "retire",
            "device_gone",
            "device_back",
        ]
    ),
)


@given(st.lists(steps, max_size=25))
@settings(max_examples=120, deadline=None)
def test_every_frame_is_accounted_for_whatever_happens(story):
    one, other = pair()
    with closing(one), closing(other):
        told = Story(one, other)
        for name, *arguments in story:
            getattr(told, name)(*arguments)
            counters = one.settle()  # frames_read = sent + queued + dropped
            assert counters["frames_queued"] <= counters["frames_read"]
            received = other.plane.counters()
            written = received["frames_written"] + sum(received["rx_dropped"].values())
            assert received["frames_opened"] == written
            assert (
                received["frames_opened"]
                <= counters["frames_sent"]
                + counters["frames_queued"]
                + (counters["tx_dropped"]["link_lost"])
            )
        arrived = [data[10:] for data in other.tap.take() if len(data) > 30 or data[16] & 1 == 0]
        places = [told.sent.index(data) for data in arrived if data in told.sent]
        assert places == sorted(set(places))  # in order and none twice


def test_what_a_closed_link_held_is_lost_and_what_it_sent_is_sent(make):
    node = make().start()
    node.feed([FRAME] * 10)
    node.settle()
    ready = node.pipe.outgoing()
    node.pipe.sent(len(ready) - 1)
    sent = node.settle()["frames_sent"]
    assert sent < 10
    node.pipe.close()
    counters = node.settle()
    assert (counters["frames_sent"], counters["frames_queued"]) == (sent, 0)
    assert dropped(counters, "tx_dropped") == {"link_lost": 10 - sent}


@pytest.mark.parametrize("end", ["close the pipe", "unbind", "close the session", "rebind"])
def test_frames_in_the_ring_are_counted_once_however_the_link_ends(make, end):
    node = make().start()
    node.feed([FRAME] * 10)
    node.settle()
    if end == "close the pipe":
        node.pipe.close()
    elif end == "unbind":
        node.session.bind(None)
    elif end == "close the session":
        node.session.close()
    else:
        node.session.bind(node.pipe)
    node.settle()
    # the writer may still be at it, with bytes that it had before
    node.take_outgoing()
    node.settle()
    node.pipe.close()
    assert node.settle()["frames_read"] == 10


# --- The same names on both sides of the language border ------------------------------------------


def test_the_names_of_reasons_stand_in_the_order_of_their_numbers():
    assert tuple(sorted(records.REASONS, key=records.REASONS.__getitem__)) == DROP_NAMES
    assert len(DROP_NAMES) == records.SIZES["DROP_REASONS"]
    assert tuple(sorted(records.REFUSED, key=records.REFUSED.__getitem__)) == REFUSAL_NAMES
    assert len(REFUSAL_NAMES) == records.SIZES["REFUSALS"]


def test_a_device_that_fails_is_reported_once(make):
    node = make(tap=False)
    node.start()
    write_only = os.open(os.devnull, os.O_WRONLY | os.O_NONBLOCK)
    try:
        node.plane.attach_tap([write_only], MTU)
        assert eventually(node.plane.device_error) == 9  # EBADF: it cannot be read
        node.plane.detach_tap()
    finally:
        os.close(write_only)
