"""Records as datagrams, over loopback: the same bytes as the twin's, in order or not at all."""

from __future__ import annotations

import random
import socket
import struct
from dataclasses import replace
from fcntl import ioctl
from termios import FIONREAD
from typing import Any

import pytest

from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import Caps, Inner
from shadowmesh.base.errors import LocalProtocolError
from tests.fastpath.rig import (
    CHACHA,
    CIPHERS,
    FRAME_MAX,
    KEYS,
    NO_OFFLOAD,
    Node,
    eventually,
    frame,
    offload,
    plain,
    stun,
    vnet,
)
from tests.twins import mix, records
from tests.twins import offload as twin
from tests.twins.offload import Packet

FRAME = frame(b"over UDP")
PAYLOAD = 1232  # what every IPv6 path carries
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


class Wire:
    """A node with a UDP socket, and the twin's socket on the other side."""

    def __init__(self, node: Node, cipher: str = CHACHA, family: int = socket.AF_INET) -> None:
        self.node = node
        self.cipher = cipher
        self.family = family
        self.loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
        self.ours = socket.socket(family, socket.SOCK_DGRAM)
        self.theirs = socket.socket(family, socket.SOCK_DGRAM)
        for one in (self.ours, self.theirs):
            one.bind((self.loopback, 0))
            one.setblocking(False)
        self.port = self.theirs.getsockname()[1]
        node.plane.attach_udp(self.ours.fileno(), family)
        self.counter = 0

    def close(self) -> None:
        self.node.plane.detach_udp()
        self.ours.close()
        self.theirs.close()

    def use(self, payload_bytes: int = PAYLOAD) -> None:
        self.node.session.use_udp(self.loopback, self.port, payload_bytes)

    def datagram(self, inner: bytes, counter: int | None = None, **changes: Any) -> bytes:
        if counter is None:
            counter, self.counter = self.counter, self.counter + 1
        key = changes.pop("key", KEYS["uin"])
        key_id = changes.pop("key_id", self.node.local_id)
        return records.seal_datagram(self.cipher, key, key_id, counter, inner)

    def send(self, *datagrams: bytes, sock: socket.socket | None = None) -> None:
        """Send them and wait until the UDP thread has fetched them: none is lost."""
        for one in datagrams:
            (sock or self.theirs).sendto(one, self.ours.getsockname()[:2])
        eventually(lambda: ioctl(self.ours, FIONREAD, bytes(4)) == bytes(4), "an empty socket")

    def opened(self, count: int) -> list[bytes]:
        """Wait for that many frames on the device."""
        frames: list[bytes] = []

        def enough() -> bool:
            frames.extend(self.node.tap.take())
            return len(frames) >= count

        eventually(enough, f"{count} frames")
        return frames

    def received(self, count: int) -> list[tuple[int, bytes]]:
        """Wait for that many datagrams; returns (counter, inner) of each."""
        datagrams: list[bytes] = []

        def enough() -> bool:
            try:
                while True:
                    datagrams.append(self.theirs.recv(70_000))
            except BlockingIOError:
                return len(datagrams) >= count

        eventually(enough, f"{count} datagrams")
        opened = [records.open_datagram(self.cipher, KEYS["uout"], one) for one in datagrams]
        assert all(one is not None and one[0] == self.node.remote_id for one in opened)
        return [(counter, inner) for _, counter, inner in opened]

    def refused(self, reason: str) -> int:
        return self.node.plane.counters()["udp_refused"][reason]


@pytest.fixture
def wired(make):
    wires: list[Wire] = []

    def build(cipher: str = CHACHA, family: int = socket.AF_INET, **options: Any) -> Wire:
        wires.append(Wire(make().start(cipher, **options), cipher, family))
        return wires[-1]

    yield build
    for one in wires:
        one.close()


# --- In -----------------------------------------------------------------------------------------


def test_who_is_not_judged_yet_is_not_heard_over_udp(wired):
    wire = wired(udp=False)
    probe = bytes([Inner.PROBE]) + bytes(31)
    wire.send(*(wire.datagram(inner) for inner in (plain(FRAME), probe, b"\x07\x01")))
    eventually(lambda: wire.refused("key_id") == 3)
    assert wire.node.tap.take() == []
    assert wire.node.plane.udp_signals() == []
    wire.node.session.hear_udp(wire.node.local_id)
    wire.send(wire.datagram(plain(FRAME)))
    assert wire.opened(1) == [bytes(10) + FRAME]


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_frame_from_the_twin_is_delivered(wired, cipher):
    wire = wired(cipher)
    wire.send(wire.datagram(plain(FRAME)))
    assert wire.opened(1) == [NO_OFFLOAD + FRAME]


def test_datagrams_may_come_in_any_order_but_once(wired):
    wire = wired()
    counters = list(range(300))
    random.Random(1).shuffle(counters)
    frames = {counter: frame(struct.pack("<I", counter)) for counter in counters}
    got = []
    for counter in counters:  # one by one, so that the fake device cannot overflow
        datagram = wire.datagram(plain(frames[counter]), counter)
        wire.send(datagram, datagram)
        got += wire.opened(1)
    assert got == [NO_OFFLOAD + frames[counter] for counter in counters]
    eventually(lambda: wire.refused("replay") == 300)


@pytest.mark.parametrize("behind", [65_471, 65_472, 65_473])
def test_the_edge_of_the_replay_window(wired, behind):
    wire = wired()
    wire.send(wire.datagram(plain(FRAME), 200_000))
    wire.send(wire.datagram(plain(FRAME), 200_000 - behind))
    if behind <= 65_472:
        assert len(wire.opened(2)) == 2
        assert wire.refused("replay") == 0
    else:
        eventually(lambda: wire.refused("replay") == 1)
        assert len(wire.opened(1)) == 1


def test_a_forged_counter_does_not_move_the_window(wired):
    wire = wired()
    wire.send(wire.datagram(plain(FRAME), 10))
    forged = bytearray(wire.datagram(plain(FRAME), 11))
    forged[8:16] = struct.pack("<Q", 2**40)
    wire.send(bytes(forged))
    eventually(lambda: wire.refused("forged") == 1)
    wire.send(wire.datagram(plain(FRAME), 9))
    assert len(wire.opened(2)) == 2
    assert wire.node.session.open_failures() == 1


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        pytest.param(lambda w: b"", None, id="empty"),
        pytest.param(lambda w: b"\x80" + bytes(31), "unknown", id="too short"),
        pytest.param(lambda w: b"\x81" + w.datagram(plain(FRAME))[1:], "unknown", id="WSS"),
        pytest.param(lambda w: b"\x04" + bytes(40), "unknown", id="neither STUN nor ours"),
        pytest.param(
            lambda w: b"\x80\x00\x01\x00" + w.datagram(plain(FRAME))[4:], "unknown", id="reserved"
        ),
        pytest.param(
            lambda w: w.datagram(plain(FRAME), key_id=w.node.local_id ^ 256), "key_id", id="key id"
        ),
        pytest.param(
            lambda w: w.datagram(plain(FRAME), key_id=w.node.local_id ^ 1), "key_id", id="slot"
        ),
        pytest.param(lambda w: w.datagram(plain(FRAME))[:-1], "forged", id="cut off"),
        pytest.param(lambda w: w.datagram(plain(FRAME), key=KEYS["in"]), "forged", id="WSS key"),
        pytest.param(lambda w: w.datagram(plain(FRAME), key=KEYS["uout"]), "forged", id="reflect"),
        pytest.param(lambda w: w.datagram(plain(FRAME), 2**64 - 1), "replay", id="last counter"),
        pytest.param(lambda w: w.datagram(b"\x02\x01" + bytes(6)), "inner_type", id="control"),
        pytest.param(lambda w: w.datagram(b"\x06" + bytes(60)), "inner_type", id="handshake"),
        pytest.param(lambda w: w.datagram(b"\x08"), "inner_type", id="type 8"),
        pytest.param(lambda w: w.datagram(b"\xff"), "inner_type", id="type 255"),
    ],
)
def test_what_is_no_record_of_ours_is_dropped_and_counted(wired, what, reason):
    wire = wired()
    wire.send(what(wire), wire.datagram(plain(FRAME)))
    assert wire.opened(1) == [NO_OFFLOAD + FRAME]
    counted = {key: n for key, n in wire.node.plane.counters()["udp_refused"].items() if n}
    assert counted == ({reason: 1} if reason else {})


def test_junk_changes_nothing(wired):
    wire = wired()
    source = random.Random(5)
    for _ in range(500):
        wire.send(source.randbytes(source.randint(0, 80)))
        good = bytearray(wire.datagram(plain(FRAME), 0))
        good[source.randrange(len(good))] ^= 1 << source.randrange(8)
        wire.send(bytes(good))
    wire.send(wire.datagram(plain(FRAME), 0))
    assert wire.opened(1) == [NO_OFFLOAD + FRAME]


def test_probes_and_stun_answers_reach_the_hub_as_signals(wired):
    wire = wired()
    here = (wire.loopback, wire.port)
    wire.node.plane.send_datagram(stun(), *here)
    wire.send(wire.datagram(plain(FRAME)), stun(0x101), wire.datagram(b"\x04" + b"12345678"))
    wire.opened(1)
    signals: list[Any] = []
    eventually(lambda: signals.extend(wire.node.plane.udp_signals()) or len(signals) >= 2)
    key_id, number = wire.node.local_id, wire.node.session.number
    assert all(0 <= boottime() - one[6] < 60 for one in signals)
    assert [one[:6] for one in signals if one[0] is None or one[3]] == [
        (None, 0, 0, stun(0x101), 20, here),
        (number, key_id, Inner.PROBE, b"12345678", 8, here),
    ]


@pytest.mark.parametrize(
    "junk",
    [b"\0", b"\1\1", bytes(20), stun(0x101)[:-1], stun(0x101, b"12 byte  ids"), stun(0, bytes(12))],
)
def test_strangers_do_not_reach_the_hub(wired, junk):
    # STUN answers need no key: whoever knows the address can send what looks like one
    wire = wired()
    wire.node.plane.send_datagram(stun(), wire.loopback, wire.port)
    for _ in range(15):
        wire.send(*[junk] * 20)
    wire.send(wire.datagram(plain(FRAME)))
    wire.opened(1)
    assert [one for one in wire.node.plane.udp_signals() if one[0] is None] == []
    assert wire.refused("unknown") == 300


def test_of_a_stun_request_only_the_first_answers_are_told(wired):
    wire = wired()
    for transaction in (b"12 bytes ids", b"another one!"):
        wire.node.plane.send_datagram(stun(1, transaction), wire.loopback, wire.port)
        wire.send(*[stun(0x101, transaction)] * 50, wire.datagram(plain(FRAME)))
        wire.opened(1)
        told = [one[3] for one in wire.node.plane.udp_signals() if one[0] is None]
        assert told == [stun(0x101, transaction)] * 4
    for number in range(32):
        wire.node.plane.send_datagram(stun(1, b"%12d" % number), wire.loopback, wire.port)
    wire.send(stun(0x101), wire.datagram(plain(FRAME)))
    wire.opened(1)
    assert wire.node.plane.udp_signals() == []


def test_a_peer_cannot_keep_the_hub_busy(wired):
    wire = wired()
    told = 0
    for _ in range(5):  # within at most two seconds of the clock
        wire.send(*[wire.datagram(b"\x04" + b"12345678") for _ in range(100)])
        wire.send(wire.datagram(plain(FRAME)))
        wire.opened(1)
        told += sum(one[2] == Inner.PROBE for one in wire.node.plane.udp_signals())
    assert 0 < told <= 400
    assert told + wire.refused("signals_full") >= 500


def test_signals_that_nobody_fetches_are_dropped_and_counted(wired):
    wire = wired()
    wire.send(*[wire.datagram(b"\x04%8d" % number) for number in range(150)])
    wire.send(wire.datagram(plain(FRAME)))
    wire.opened(1)
    assert wire.refused("signals_full") == 87  # of them and the change of address
    signals = wire.node.plane.udp_signals()
    assert [one[3] for one in signals[1:]] == [b"%8d" % number for number in range(63)]


def test_a_signal_of_a_session_that_is_gone_is_not_taken_for_its_successors(wired):
    wire = wired()
    wire.send(wire.datagram(b"\x04" + b"12345678"), wire.datagram(plain(FRAME)))
    wire.opened(1)
    before = wire.node.session.number
    wire.node.session.close()
    assert wire.node.session.number == -1
    successor = wire.node.another_session()
    assert {one[0] for one in wire.node.plane.udp_signals()} == {before}
    assert successor.number != before
    successor.close()


def test_a_new_source_of_authentic_datagrams_is_told_to_the_hub(wired):
    wire = wired()
    wire.send(wire.datagram(plain(FRAME)))
    wire.opened(1)
    wire.node.plane.udp_signals()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.bind((wire.loopback, 0))
        wire.send(wire.datagram(plain(FRAME)), sock=elsewhere)
        wire.opened(1)
        sources = [one[5] for one in wire.node.plane.udp_signals()]
        assert sources == [elsewhere.getsockname()]


def test_datagrams_and_messages_have_separate_counters_and_keys(wired):
    wire = wired()
    wire.node.session.send_record(Inner.PADDING, b"")
    assert wire.node.session.send_udp_record(Inner.PROBE, b"x" * 8, wire.loopback, wire.port) == 0
    assert wire.received(1) == [(0, b"\x04" + b"x" * 8)]


# --- Fragments ----------------------------------------------------------------------------------


def slices(wire: Wire, inner: bytes, count: int, frag_id: int = 7) -> list[bytes]:
    """Datagrams with the fragments of a record, under the next counters."""
    step = -(-len(inner) // count)
    return [
        wire.datagram(struct.pack("<BHBB", 3, frag_id, i, count) + inner[i * step : (i + 1) * step])
        for i in range(count)
    ]


def test_fragments_of_a_frame_come_together_in_any_order(wired):
    wire = wired()
    data = frame(random.Random(2).randbytes(1486))
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        parts = slices(wire, plain(data), 3)
        wire.send(*(parts[i] for i in order))
        assert wire.opened(1) == [NO_OFFLOAD + data]


def test_a_fragmented_offload_frame_keeps_its_header(wired):
    wire = wired()
    header, data = some_tcp(1400).plain()
    wire.send(*slices(wire, offload(header, data), 2))
    assert wire.opened(1) == [header + data]


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_super_frame_does_not_come_over_udp(wired, pieces):
    # whole ones would cost the receiver a hundred times what they cost whoever sends them
    wire = wired()
    record = offload(*some_tcp(1200).super_frame(100))
    wire.send(*([wire.datagram(record)] if pieces == 1 else slices(wire, record, pieces)))
    wire.send(wire.datagram(plain(FRAME)))
    assert wire.opened(1) == [NO_OFFLOAD + FRAME]
    assert wire.node.plane.counters()["rx_dropped"]["bad_offload"] == 1


def test_fragments_of_two_frames_do_not_mix(wired):
    wire = wired()
    one, other = frame(b"1" * 900), frame(b"2" * 900)
    first, second = slices(wire, plain(one), 2, 1), slices(wire, plain(other), 2, 1)
    wire.send(first[0], second[0], second[1], first[1])
    assert wire.opened(2) == [NO_OFFLOAD + other, NO_OFFLOAD + one]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param((7, 0, 0), id="of none"),
        pytest.param((7, 0, 1), id="of one"),
        pytest.param((7, 2, 2), id="beyond the last"),
        pytest.param((7, 0, 17), id="of too many"),
        pytest.param((7, 255, 255), id="largest numbers"),
    ],
)
def test_a_bad_fragment_is_refused(wired, head):
    wire = wired()
    wire.send(wire.datagram(struct.pack("<BHBB", 3, *head) + bytes(100), 1000))
    eventually(lambda: wire.refused("fragment") == 1)
    wire.send(wire.datagram(struct.pack("<BHBB", 3, 1, 0, 2), 1001))  # without a slice
    eventually(lambda: wire.refused("fragment") == 2)
    wire.send(wire.datagram(struct.pack("<BHBB", 3, 1, 0, 2) + bytes(2001), 1002))
    eventually(lambda: wire.refused("fragment") == 3)


def test_a_fragment_whose_frame_would_begin_before_counter_0_is_refused(wired):
    wire = wired()
    wire.send(wire.datagram(struct.pack("<BHBB", 3, 1, 1, 2) + bytes(10), 0))
    eventually(lambda: wire.refused("fragment") == 1)


@pytest.mark.parametrize("inner_type", [0, 2, 3, 4, 7, 8])
def test_only_frames_are_made_of_fragments(wired, inner_type):
    wire = wired()
    wire.send(*slices(wire, bytes([inner_type]) + bytes(100), 2))
    eventually(lambda: wire.refused("fragment") == 1)


def test_more_than_64_partial_frames_push_out_the_oldest(wired):
    wire = wired()
    frames = [frame(struct.pack("<I", i) + bytes(200)) for i in range(65)]
    parts = [slices(wire, plain(data), 2, i) for i, data in enumerate(frames)]
    wire.send(*(first for first, _ in parts))
    wire.send(*(second for _, second in parts[1:]))
    # within the second that partial frames live, which a test machine may not keep to
    eventually(lambda: wire.refused("fragment") >= 1)
    got = wire.opened(1)
    eventually(
        lambda: got.extend(wire.node.tap.take()) or len(got) + wire.refused("fragment") >= 65
    )
    assert NO_OFFLOAD + frames[0] not in got


# --- Out ----------------------------------------------------------------------------------------


def test_frames_leave_as_datagrams_the_twin_can_open(wired):
    wire = wired()
    wire.use()
    frames = [frame(bytes([i]) * (i * 5)) for i in range(200)]
    got = []
    for first in range(0, 200, 20):  # no more at once than the receiving socket holds
        wire.node.feed(frames[first : first + 20])
        got += wire.received(20)
    assert got == [(i, plain(data)) for i, data in enumerate(frames)]
    counters = wire.node.settle()
    assert counters["frames_sent"] == 200


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("payload", [PAYLOAD, 1400, 1452])
def test_a_frame_above_the_path_leaves_as_fragments(wired, cipher, payload):
    wire = wired(cipher)
    wire.use(payload)
    data = frame(random.Random(3).randbytes(FRAME_MAX - 14))
    wire.node.tap.feed(data)
    got = wire.received(2)
    assert [counter for counter, _ in got] == [0, 1]
    heads = [struct.unpack("<BHBB", inner[:5]) for _, inner in got]
    assert heads == [(3, 0, 0, 2), (3, 0, 1, 2)]
    assert b"".join(inner[5:] for _, inner in got) == plain(data)
    assert all(16 + len(inner) + records.TAG_BYTES[cipher] <= payload for _, inner in got)


def test_the_first_frame_of_a_batch_may_be_an_offload_frame_in_fragments(wired):
    # a fragment's header is written in front of its slice: in front of the first slot there has
    # to be room for one. Memory that is not ours shows when it is given back.
    wire = wired()
    wire.use()
    header, data = some_tcp(1446).plain()
    wire.node.tap.feed(data, header)
    got = wire.received(2)
    assert b"".join(inner[5:] for _, inner in got) == offload(header, data)
    wire.node.settle()


def test_the_other_node_gets_what_was_sent_over_udp(wired, make):
    one, other = wired(), wired()
    for node in (one.node, other.node):
        node.session.retire(node.local_id)
    ids = [node.session.reserve_key_id() for node in (one.node, other.node)]
    one.node.install(ids[0], ids[1])
    other.node.install(ids[1], ids[0], swap=True)
    one.node.session.send_under(ids[0])
    one.node.session.use_udp("127.0.0.1", other.ours.getsockname()[1], PAYLOAD)
    frames = [frame(random.Random(i).randbytes(1486)) for i in range(40)]
    one.node.feed(frames)
    assert other.opened(40) == [NO_OFFLOAD + data for data in frames]


def test_ipv6_and_mapped_ipv4_addresses_work_on_a_dual_stack_socket(make):
    wire = Wire(make().start(), family=socket.AF_INET6)
    try:
        wire.ours.close()
        wire.node.plane.detach_udp()
        wire.ours = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        wire.ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        wire.ours.bind(("::", 0))
        wire.node.plane.attach_udp(wire.ours.fileno(), socket.AF_INET6)
        assert wire.node.session.send_udp_record(4, b"12345678", "::1", wire.port) == 0
        assert wire.received(1)[0][1] == b"\x0412345678"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain_ipv4:
            plain_ipv4.bind(("127.0.0.1", 0))
            host, port = plain_ipv4.getsockname()
            assert wire.node.plane.send_datagram(stun(), host, port) == 0
            data, source = plain_ipv4.recvfrom(100)
            assert (data, source[0]) == (stun(), "127.0.0.1")
            plain_ipv4.sendto(stun(0x101), source)
            signals = eventually(wire.node.plane.udp_signals)
            assert [one[5] for one in signals] == [("127.0.0.1", port)]
    finally:
        wire.close()


def test_the_zone_of_an_address_may_be_a_name_or_a_number(wired):
    wire = wired(family=socket.AF_INET6)
    number = socket.if_nametoindex("lo")
    for zone in ("lo", str(number)):
        wire.node.session.use_udp(f"fe80::1%{zone}", 9001, PAYLOAD)
    for zone in ("nowhere", "4000000000", "99999999999999999999", f"{number}x"):
        with pytest.raises(OSError, match=zone):
            wire.node.session.use_udp(f"fe80::1%{zone}", 9001, PAYLOAD)


def test_a_closed_port_costs_the_frame_and_says_so(wired):
    wire = wired()
    wire.use()
    wire.theirs.close()
    wire.node.feed([FRAME] * 20)
    counters = wire.node.settle()
    lost = counters["tx_dropped"]["udp_send"]
    assert counters["frames_sent"] + lost == 20
    # which of them the kernel tells about with ECONNREFUSED is its own business
    assert sum(wire.node.plane.udp_errors().values()) <= 20


def test_without_a_socket_there_is_no_udp(make):
    node = make().start()
    with pytest.raises(LocalProtocolError):
        node.session.use_udp("127.0.0.1", 9, PAYLOAD)
    with pytest.raises(LocalProtocolError):
        node.session.send_udp_record(4, b"", "127.0.0.1", 9)
    with pytest.raises(LocalProtocolError):
        node.plane.send_datagram(b"", "127.0.0.1", 9)
    assert node.plane.udp_signals() == []


def test_wrong_arguments_are_refused(wired):
    wire = wired()
    session = wire.node.session
    for payload in (0, PAYLOAD - 1, 65_508):
        with pytest.raises(ValueError):
            session.use_udp("127.0.0.1", 9, payload)
    for port in (0, -1, 65_536):
        with pytest.raises(ValueError):
            session.use_udp("127.0.0.1", port, PAYLOAD)
    with pytest.raises(OSError):
        session.use_udp("example.invalid", 9, PAYLOAD)
    with pytest.raises(ValueError):
        session.send_udp_record(4, bytes(9001), "127.0.0.1", 9)
    with pytest.raises(ValueError):
        session.send_udp_record(256, b"", "127.0.0.1", 9)
    with pytest.raises(LocalProtocolError):
        wire.node.plane.attach_udp(wire.ours.fileno(), socket.AF_INET)


def test_after_the_socket_is_gone_frames_go_to_the_link_again(wired):
    wire = wired()
    wire.use()
    wire.node.plane.detach_udp()
    wire.node.feed([FRAME])
    assert wire.node.settle()["frames_queued"] == 1


def some_tcp(size: int, **change: int) -> Packet:
    """A packet of a stream with `size` bytes of payload."""
    return Packet(
        twin.Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2"),
        twin.Tcp(40000, 5201, **change),
        random.Random(size).randbytes(size),
        bytes.fromhex("020000000002020000000001"),
    )


def test_a_peer_without_offload_gets_complete_frames(wired):
    # what was in the device's queue when its offloads were switched off
    wire = wired(caps=Caps.UDP)
    wire.use()
    packet = some_tcp(100)
    wire.node.tap.feed(packet.build(), packet.plain_vnet())
    wire.node.tap.feed(FRAME, vnet(flags=1, csum_start=20, csum_offset=1))  # beyond its end
    wire.node.tap.feed(*reversed(packet.super_frame(50)))
    wire.node.tap.feed(FRAME)
    assert wire.received(2) == [(0, plain(packet.build(finished=True))), (1, plain(FRAME))]
    assert wire.node.settle()["tx_dropped"]["bad_offload"] == 2


# --- Super-frames -------------------------------------------------------------------------------


def enlarge(sock: socket.socket, size: int) -> None:
    """Let a socket hold a burst of that many bytes, with what the kernel adds."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    except PermissionError:
        pytest.skip("only root may have a receive buffer that holds such a burst")


def segments_of(wire: Wire, count: int) -> list[bytes]:
    """Wait for so many offload records; returns the frames in them, with finished checksums."""
    inners = [inner for _, inner in wire.received(count)]
    assert all(inner[0] == Inner.OFFLOAD_FRAME for inner in inners)
    return [wire for inner in inners for wire in mix.flat((inner[1:11], inner[11:]))]


@pytest.mark.parametrize(
    ("size", "segment_bytes", "segments"),
    [
        pytest.param(300, 1, 300, id="of one byte"),
        pytest.param(129 * 8, 8, 129, id="one more than a train joins"),
        pytest.param(257 * 64, 64, 257, id="more than there are trains"),
        pytest.param(64_000, 80, 800, id="64 KiB of small ones"),
    ],
)
def test_a_super_frame_of_many_segments_is_sent(wired, size, segment_bytes, segments):
    wire = wired()
    enlarge(wire.theirs, 8 << 20)
    wire.use()
    packet = some_tcp(size)
    wire.node.tap.feed(*reversed(packet.super_frame(segment_bytes)))
    expected = [part.build(finished=True) for part in twin.cut(packet, segment_bytes)]
    assert segments_of(wire, segments) == expected
    assert wire.node.settle()["frames_sent"] == 1


@pytest.mark.parametrize("payload", [1500, 8972, 65_000])
def test_a_super_frame_leaves_on_a_wide_path(wired, payload):
    wire = wired(mtu=9000)
    wire.use(payload)
    packet = some_tcp(64_000)
    wire.node.tap.feed(*reversed(packet.super_frame(8000)))
    room = payload - 16 - 11 - records.TAG_BYTES[CHACHA]
    expected = mix.flat(packet.super_frame(8000), room)
    assert segments_of(wire, len(expected)) == expected


def test_a_super_frame_that_no_outbox_holds_is_dropped_and_the_next_frame_is_sent(wired):
    # 65,000 segments of a byte would be 6 MB of datagrams
    wire = wired()
    wire.use()
    wire.node.tap.feed(*reversed(some_tcp(65_000).super_frame(1)))
    wire.node.tap.feed(FRAME)
    assert wire.received(1) == [(0, plain(FRAME))]
    assert wire.node.settle()["tx_dropped"]["too_long"] == 1


def test_super_frames_that_fill_the_outbox_wait_for_the_next_one(wired):
    wire = wired()
    enlarge(wire.theirs, 32 << 20)
    wire.use()
    packets = [some_tcp(30_000, sequence=seed) for seed in range(3)]
    for packet in packets:  # each takes more than half of an outbox
        wire.node.tap.feed(*reversed(packet.super_frame(12)))
    expected = [part.build(finished=True) for packet in packets for part in twin.cut(packet, 12)]
    assert segments_of(wire, len(expected)) == expected


def test_a_jumbo_frame_crosses_a_plain_path_in_fragments(wired):
    wire = wired(mtu=9000)
    wire.use(1472)
    data = frame(random.Random(9).randbytes(9000))
    wire.node.tap.feed(data)
    got = wire.received(7)
    assert b"".join(inner[5:] for _, inner in got) == plain(data)
    assert {struct.unpack("<BHBB", inner[:5])[3] for _, inner in got} == {7}


def test_no_slice_of_a_frame_is_larger_than_a_receiver_takes(wired):
    wire = wired(mtu=9000)
    wire.use(8972)
    data = frame(random.Random(9).randbytes(9000))
    wire.node.tap.feed(data)
    inners = [inner for _, inner in wire.received(5)]
    assert b"".join(inner[5:] for inner in inners) == plain(data)
    assert max(len(inner) for inner in inners) <= 5 + 2000


def test_a_frame_of_more_fragments_than_there_may_be_is_too_long(wired):
    wire = wired(mtu=65_000)
    wire.use(1472)
    wire.node.tap.feed(frame(bytes(30_000)))
    wire.node.tap.feed(FRAME)
    assert wire.received(1) == [(0, plain(FRAME))]
    assert wire.node.settle()["tx_dropped"]["too_long"] == 1


def test_the_last_datagram_of_a_super_frame_may_fit_where_the_others_do_not(wired):
    wire = wired(mtu=9000)
    wire.use(1472)
    packet = replace(some_tcp(2 * 8000 + 100), l4=twin.Udp(40000, 53))
    wire.node.tap.feed(*reversed(packet.super_frame(8000)))
    got = wire.received(2 * 6 + 1)
    assert [counter for counter, _ in got] == list(range(13))
    whole = got[-1][1]
    assert mix.flat((whole[1:11], whole[11:])) == [twin.cut(packet, 8000)[-1].build(finished=True)]


def test_jumbo_datagrams_of_a_super_frame_cross_a_plain_path_in_fragments(wired):
    wire = wired(mtu=9000)
    wire.use(1472)
    packet = replace(some_tcp(5 * 8000), l4=twin.Udp(40000, 53))
    wire.node.tap.feed(*reversed(packet.super_frame(8000)))
    got = [inner[5:] for _, inner in wire.received(5 * 6)]
    whole = [b"".join(got[i : i + 6]) for i in range(0, 30, 6)]
    assert [mix.flat((one[1:11], one[11:])) for one in whole] == [
        [part.build(finished=True)] for part in twin.cut(packet, 8000)
    ]
    assert wire.node.settle()["frames_sent"] == 1


def test_a_super_frame_with_headers_that_nobody_cuts_is_not_sent(wired):
    wire = wired()
    wire.use()
    packet = replace(some_tcp(9_000), tags=(b"\x81\0\0\1",) * 3)
    wire.node.tap.feed(*reversed(packet.super_frame(1400)))
    wire.node.tap.feed(FRAME)
    assert wire.received(1) == [(0, plain(FRAME))]
    assert wire.node.settle()["tx_dropped"]["bad_offload"] == 1


def test_super_frames_of_datagrams_go_whole_only_to_who_takes_them(wired):
    wire = wired(caps=Caps.OFFLOAD)
    packet = replace(some_tcp(3000), l4=twin.Udp(40000, 53))
    expected = [part.build(finished=True) for part in twin.cut(packet, 1000)]
    wire.node.tap.feed(*reversed(packet.super_frame(1000)))
    counters = wire.node.settle()
    assert counters["tx_dropped"]["bad_offload"] == 1
    assert counters["frames_queued"] == 0
    wire.use()  # cut on the way, so that nobody has to take a super-frame
    wire.node.tap.feed(*reversed(packet.super_frame(1000)))
    assert segments_of(wire, 3) == expected
