"""Super-frames against the slow twin: cutting, joining, checksums, and what is refused."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from shadowmesh.fast.hooks import offload as fast
from tests.twins import offload as twin
from tests.twins.offload import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG, Frame, Ipv4, Ipv6, Packet

E_TRUNCATED, E_UNSUPPORTED_HEADER, E_LENGTHS, E_VNET, E_NO_ROOM = -1, -2, -3, -4, -5
ANY_SIZE = 1 << 20


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# --- Frames -----------------------------------------------------------------------------------

ADDRESS4, ADDRESS6 = st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)
WORD = st.integers(0, 2**16 - 1) | st.sampled_from([0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
LONG = st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**32 - 1, 2**32 - 1448])
BYTE = st.integers(0, 255)
OPTIONS = st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n))
TAG = st.builds(
    lambda tpid, tci: tpid + tci.to_bytes(2), st.sampled_from([b"\x81\0", b"\x88\xa8"]), WORD
)
EXTENSION = st.tuples(
    st.sampled_from(twin.EXTENSIONS),
    st.integers(0, 4).flatmap(
        lambda n: st.binary(min_size=6 + 8 * n, max_size=6 + 8 * n).map(lambda b: bytes([n]) + b)
    ),
)
IPV4 = st.builds(
    Ipv4, ADDRESS4, ADDRESS4, BYTE, WORD, st.sampled_from([0, 0x4000, 0xC000]), BYTE, OPTIONS
)
IPV6 = st.builds(
    Ipv6,
    ADDRESS6,
    ADDRESS6,
    st.integers(0, 2**28 - 1),
    BYTE,
    st.just(()) | st.lists(EXTENSION, max_size=2).map(tuple),
)
DATA_FLAGS = st.lists(st.sampled_from([ACK, PSH, FIN, ECE, CWR]), max_size=4).map(
    lambda chosen: sum(set(chosen))
)
TCP = st.builds(
    twin.Tcp, WORD, WORD, LONG, LONG, st.integers(0, 15), DATA_FLAGS, WORD, WORD, OPTIONS
)
UDP = st.builds(twin.Udp, WORD, WORD)
SEGMENT_BYTES = st.integers(1, 9000) | st.sampled_from([1, 7, 536, 1220, 1448, 1460, 65535])
PACKETS = st.builds(
    Packet,
    IPV4 | IPV6,
    TCP | UDP,
    st.just(b""),
    st.binary(min_size=12, max_size=12),
    st.lists(TAG, max_size=2).map(tuple),
)


@st.composite
def super_frames(draw: st.DrawFn, most_segments: int = 40) -> tuple[Packet, int]:
    """Draw a packet and the size of its segments; half of the packets end with a whole one."""
    packet, segment_bytes = draw(PACKETS), draw(SEGMENT_BYTES)
    room = twin.MAX_IP_BYTES - packet.ip_bytes
    segments = draw(st.integers(0, most_segments))
    size = segments * segment_bytes + draw(st.just(0) | st.integers(0, segment_bytes - 1))
    return replace(packet, payload=payload(min(size, room), size)), segment_bytes


STREAM = Packet(
    Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", id=65530),
    twin.Tcp(40000, 5201, 2**32 - 3000, 99, 0, ACK | PSH, 502, 0, b"\1\1\x08\x0a" + bytes(8)),
    payload(64000),
    bytes.fromhex("020000000002020000000001"),
)
STREAM6 = replace(STREAM, ip=Ipv6(bytes(15) + b"\1", bytes(15) + b"\2", 0x0ABCDEF))
DATAGRAMS = replace(STREAM, l4=twin.Udp(40000, 53))
MIXES = [
    replace(packet, tags=tuple([b"\x88\xa8\0\x64", b"\x81\0\0\x07"][2 - tags :]))
    for packet, tags in itertools.product(
        [STREAM, STREAM6, DATAGRAMS, replace(STREAM6, l4=DATAGRAMS.l4)], [0, 1, 2]
    )
]


def is_tcp(packet: Packet) -> bool:
    return isinstance(packet.l4, twin.Tcp)


# --- Checksums --------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.integers(0, 9))
@example(b"", 0)
@example(bytes(100), 1)
@example(b"\xff" * 99, 3)
@example(b"\xff\xfe\0\1", 0)
def test_the_sum_of_any_bytes_at_any_alignment_is_that_of_the_twin(data: bytes, skip: int) -> None:
    assert fast.sum_of(data, skip) == twin.ones_sum(data[skip:])


def test_the_sum_of_64_kib_of_ones_loses_no_carry() -> None:
    assert fast.sum_of(b"\xff" * 65535) == twin.ones_sum(b"\xff" * 65535)


@given(super_frames(most_segments=1))
def test_a_checksum_left_to_the_device_is_filled_in(case: tuple[Packet, int]) -> None:
    packet, _ = case
    completed = fast.complete(*packet.plain())
    assert completed is not None
    assert completed[1] == packet.build(finished=True)
    assert completed[0] == bytes(1) + packet.plain_vnet()[1:]


@pytest.mark.parametrize("packet", [STREAM, DATAGRAMS])
def test_a_checksum_of_zero_is_written_as_ffff(packet: Packet) -> None:
    at = 34 + packet.l4.checksum_at
    without = replace(packet, payload=bytes(2)).build(finished=True)[at : at + 2]
    packet = replace(packet, payload=without)  # which brings the sum to 0xFFFF
    assert fast.complete(*packet.plain())[1][at : at + 2] == b"\xff\xff"
    assert fast.complete(*packet.plain())[1] == packet.build(finished=True)


@pytest.mark.parametrize(("start", "offset"), [(34, 65), (99, 0), (13, 16), (65535, 65535), (0, 0)])
def test_a_checksum_outside_of_the_frame_is_not_filled_in(start: int, offset: int) -> None:
    assert fast.complete(twin.VNET.pack(1, 0, 0, 0, start, offset), bytes(100)) is None


def test_a_finished_frame_is_left_alone() -> None:
    frame = STREAM.build(finished=True)
    assert fast.complete(bytes(10), frame) == (bytes(10), frame)


# --- Cutting ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(super_frames(), st.integers(60, 3000) | st.just(ANY_SIZE))
def test_segments_are_those_of_the_twin(case: tuple[Packet, int], most_bytes: int) -> None:
    packet, segment_bytes = case
    expected = twin.segment(packet, segment_bytes, most_bytes)
    assume(expected is None or len(expected) < 2000)
    got = fast.segment(*packet.super_frame(segment_bytes), most_bytes)
    assert got == (E_NO_ROOM if expected is None else expected)


@settings(deadline=None)
@given(super_frames(most_segments=3), st.integers(60, 3000))
def test_finished_segments_are_those_of_the_twin(case: tuple[Packet, int], most_bytes: int) -> None:
    packet, segment_bytes = case
    packet = replace(packet, payload=packet.payload[:8000])
    expected = twin.segment(packet, segment_bytes, most_bytes, finished=True)
    assume(expected is None or len(expected) < 500)
    got = fast.segment(*packet.super_frame(segment_bytes), most_bytes, True)
    assert got == (E_NO_ROOM if expected is None else expected)


@pytest.mark.parametrize("packet", MIXES)
@pytest.mark.parametrize("most_bytes", [ANY_SIZE, 1514, 1300])
def test_every_mix_of_headers_is_cut_and_joined(packet: Packet, most_bytes: int) -> None:
    segments = fast.segment(*packet.super_frame(1200), most_bytes)
    assert segments == twin.segment(packet, 1200, most_bytes)
    joined = fast.join(segments)
    assert [count for _, _, count in joined] == [len(segments)]
    assert joined[0][:2] == packet.super_frame(len(segments[0][1]) - packet.header_bytes)


def test_push_and_fin_are_on_the_last_segment_and_cwr_on_the_first() -> None:
    packet = replace(STREAM, l4=replace(STREAM.l4, flags=ACK | PSH | FIN | ECE | CWR))
    flags = [frame[34 + 13] for _, frame in fast.segment(*packet.super_frame(20000), ANY_SIZE)]
    assert flags == [ACK | ECE | CWR, ACK | ECE, ACK | ECE, ACK | ECE | PSH | FIN]


def test_frames_are_as_large_as_the_path_takes_and_no_larger() -> None:
    sizes = {len(frame) for _, frame in fast.segment(*STREAM.super_frame(1448), 1400)[:-1]}
    assert sizes == {1400}


def test_datagrams_keep_their_size_on_a_narrow_path() -> None:
    sizes = {len(frame) for _, frame in fast.segment(*DATAGRAMS.super_frame(8000), 1400)}
    assert sizes == {8000 + 42}


def test_a_super_frame_of_one_segment_stays_one_frame() -> None:
    packet = replace(STREAM, payload=b"all")
    assert fast.segment(*packet.super_frame(1448), 1514) == [packet.plain()]


def test_a_path_with_room_for_one_byte_of_payload_is_the_narrowest() -> None:
    packet = replace(STREAM, payload=payload(20))
    room = packet.header_bytes
    assert fast.segment(*packet.super_frame(10), room - 1) == E_NO_ROOM
    assert fast.segment(*packet.super_frame(10), room) == E_NO_ROOM
    assert len(fast.segment(*packet.super_frame(10), room + 1)) == 20


# --- What is not cut --------------------------------------------------------------------------


def vnet_of(packet: Packet, **change: int) -> bytes:
    names = ("flags", "gso", "header", "size", "start", "offset")
    fields = dict(zip(names, twin.VNET.unpack(packet.super_frame(1448)[0]), strict=True))
    return twin.VNET.pack(*(fields | change).values())


@pytest.mark.parametrize(
    "change",
    [
        {"flags": 0},
        {"flags": 2},
        {"flags": 5},
        {"gso": 0},
        {"gso": 4},
        {"gso": 5},
        {"gso": 3},
        {"size": 0},
        {"start": 35},
        {"start": 14},
        {"offset": 6},
        {"offset": 18},
    ],
)
def test_a_virtio_header_that_contradicts_the_frame_is_refused(change: dict[str, int]) -> None:
    assert fast.segment(vnet_of(STREAM, **change), STREAM.build(), 1514) == E_VNET


@pytest.mark.parametrize("header", [0, 14, 54, 66, 65535])
def test_the_header_length_of_the_virtio_header_is_only_a_hint(header: int) -> None:
    assert fast.segment(vnet_of(STREAM, header=header), STREAM.build(), 1514) == twin.segment(
        STREAM, 1448, 1514
    )


def altered(packet: Packet, at: int, value: bytes) -> bytes:
    frame = packet.build()
    return frame[:at] + value + frame[at + len(value) :]


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (altered(STREAM, 14 + 6, b"\x20\0"), E_UNSUPPORTED_HEADER),  # more fragments
        (altered(STREAM, 14 + 6, b"\x40\1"), E_UNSUPPORTED_HEADER),  # a later fragment
        (altered(STREAM, 14, b"\x44"), E_UNSUPPORTED_HEADER),  # header of 16 bytes
        (altered(STREAM, 14, b"\x65"), E_UNSUPPORTED_HEADER),  # version 6 in an IPv4 frame
        (altered(STREAM, 14 + 9, b"\x01"), E_UNSUPPORTED_HEADER),  # ICMP
        (altered(STREAM, 34 + 12, b"\x40"), E_UNSUPPORTED_HEADER),  # TCP header of 16 bytes
        (altered(STREAM, 12, b"\x08\x06"), E_UNSUPPORTED_HEADER),  # ARP
        (altered(STREAM6, 14 + 6, b"\x2c"), E_UNSUPPORTED_HEADER),  # fragment header
        (altered(STREAM6, 14 + 6, b"\x33"), E_UNSUPPORTED_HEADER),  # authentication header
        (altered(STREAM6, 14, b"\x40"), E_UNSUPPORTED_HEADER),  # version 4 in an IPv6 frame
        (altered(STREAM, 14 + 2, b"\0\0"), E_LENGTHS),
        (altered(STREAM6, 14 + 4, b"\0\0"), E_LENGTHS),  # jumbogram
        (altered(DATAGRAMS, 34 + 4, b"\0\0"), E_LENGTHS),
        (STREAM.build() + b"\0", E_LENGTHS),  # padding
        (STREAM.build()[:-1], E_LENGTHS),
        (STREAM6.build()[:-1], E_LENGTHS),
    ],
)
def test_frames_that_cannot_be_cut_safely_are_refused(frame: bytes, error: int) -> None:
    assert fast.segment(STREAM.super_frame(1448)[0], frame, 1514) == error


def test_an_ipv4_header_of_16_bytes_is_refused() -> None:
    content = STREAM.l4.build(STREAM.payload)
    header = b"\x44\0" + (16 + len(content)).to_bytes(2) + bytes(5) + b"\x06" + bytes(6)
    frame = STREAM.macs + b"\x08\0" + header + content
    assert fast.segment(vnet_of(STREAM, start=30), frame, 1514) == E_UNSUPPORTED_HEADER


def test_three_vlan_tags_are_too_many() -> None:
    packet = replace(STREAM, tags=(b"\x81\0\0\1",) * 3)
    assert fast.segment(*packet.super_frame(1448), 1514) == E_UNSUPPORTED_HEADER


def test_a_long_chain_of_extension_headers_is_refused() -> None:
    hops = ((0, b"\x1f" + bytes(254)),)
    packet = replace(STREAM6, ip=replace(STREAM6.ip, extensions=hops))
    assert fast.segment(*packet.super_frame(1448), 1514) == E_UNSUPPORTED_HEADER


@pytest.mark.parametrize("packet", MIXES)
def test_a_frame_that_ends_within_its_headers_is_refused(packet: Packet) -> None:
    packet = replace(packet, payload=b"")
    vnet, frame = packet.super_frame(1448)
    for size in range(len(frame)):
        assert fast.segment(vnet, frame[:size], 1514) in (
            E_TRUNCATED,
            E_LENGTHS,
            E_UNSUPPORTED_HEADER,
        )
        assert fast.segment(vnet, _with_right_length(packet, frame[:size]), 1514) in (
            E_TRUNCATED,
            E_LENGTHS,
            E_UNSUPPORTED_HEADER,
        )


def _with_right_length(packet: Packet, frame: bytes) -> bytes:
    """Write the length of a frame that has been cut off into its IP header, if that is left."""
    l3 = 14 + 4 * len(packet.tags)
    at, length = (
        (l3 + 2, len(frame) - l3)
        if isinstance(packet.ip, Ipv4)
        else (
            l3 + 4,
            len(frame) - l3 - 40,
        )
    )
    if length < 0 or at + 2 > len(frame):
        return frame
    return frame[:at] + length.to_bytes(2) + frame[at + 2 :]


@settings(max_examples=150)
@given(st.binary(min_size=10, max_size=10), st.binary(max_size=200), st.integers(0, 300))
def test_random_bytes_are_refused_or_cut_within_their_bounds(
    vnet: bytes, frame: bytes, most_bytes: int
) -> None:
    fast.segment(vnet, frame, most_bytes)
    fast.complete(vnet, frame)
    fast.join([(vnet, frame)] * 3)


@settings(max_examples=80, deadline=None)
@given(super_frames(most_segments=2), st.data())
def test_a_broken_super_frame_is_refused_or_cut_within_its_bounds(
    case: tuple[Packet, int], data: st.DataObject
) -> None:
    packet, segment_bytes = case
    packet = replace(packet, payload=packet.payload[:500])
    whole = bytearray(b"".join(packet.super_frame(segment_bytes)))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 150)))] = data.draw(BYTE)
    size = data.draw(st.just(len(whole)) | st.integers(10, len(whole)))
    vnet, frame = bytes(whole[:10]), bytes(whole[10:size])
    got = fast.segment(vnet, frame, 1514)
    if isinstance(got, int):
        assert got < 0
        return
    headers = fast.parse(vnet, frame)["header_bytes"]
    assert b"".join(cut[headers:] for _, cut in got) == frame[headers:]


# --- Joining ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(super_frames(), st.integers(300, 3000) | st.just(ANY_SIZE))
def test_what_was_cut_is_joined_to_what_it_was(case: tuple[Packet, int], most_bytes: int) -> None:
    packet, segment_bytes = case
    segments = twin.segment(packet, segment_bytes, most_bytes)
    assume(segments is not None and len(segments) <= twin.MAX_JOINED[packet.l4.protocol])
    assume(packet.header_bytes <= twin.MAX_HEADERS)
    joined = fast.join(segments)
    if len(segments) == 1:
        assert joined == [(*packet.plain(), 1)]
        return
    segment_bytes = len(segments[0][1]) - packet.header_bytes
    assert joined == [(*packet.super_frame(segment_bytes), len(segments))]


CHANGES = st.sampled_from(["none"] * 4 + ["drop", "twice", "byte", "header", "packet", "swap"])
OTHERS = [
    lambda p: replace(p, macs=bytes(12)),
    lambda p: replace(p, tags=(b"\x81\0\0\5", *p.tags)[:2]),
    lambda p: replace(p, payload=p.payload[:-1]),
    lambda p: replace(p, payload=p.payload + b"x"),
    lambda p: replace(p, payload=b""),
    lambda p: replace(p, ip=replace(p.ip, source=p.ip.target, target=p.ip.source)),
    lambda p: replace(
        p,
        ip=replace(p.ip, tos=p.ip.tos ^ 3)
        if isinstance(p.ip, Ipv4)
        else replace(p.ip, class_and_label=p.ip.class_and_label ^ 0x300000),
    ),
    lambda p: replace(
        p,
        ip=replace(p.ip, id=(p.ip.id + 1) % 2**16)
        if isinstance(p.ip, Ipv4)
        else replace(p.ip, hop_limit=p.ip.hop_limit ^ 1),
    ),
    lambda p: replace(p, l4=replace(p.l4, source=p.l4.source ^ 1)),
] + [
    lambda p, change=change: replace(p, l4=replace(p.l4, **change(p.l4)) if is_tcp(p) else p.l4)
    for change in (
        lambda tcp: {"flags": tcp.flags ^ PSH},
        lambda tcp: {"flags": tcp.flags ^ FIN},
        lambda tcp: {"flags": tcp.flags ^ SYN},
        lambda tcp: {"flags": tcp.flags ^ RST},
        lambda tcp: {"flags": tcp.flags ^ URG},
        lambda tcp: {"flags": tcp.flags ^ ACK},
        lambda tcp: {"flags": tcp.flags ^ ECE},
        lambda tcp: {"flags": tcp.flags ^ CWR},
        lambda tcp: {"reserved": tcp.reserved ^ 1},
        lambda tcp: {"window": tcp.window ^ 1},
        lambda tcp: {"urgent": tcp.urgent ^ 1},
        lambda tcp: {"acknowledgement": tcp.acknowledgement ^ 1},
        lambda tcp: {"sequence": (tcp.sequence + 1) % 2**32},
        lambda tcp: {"options": b"\1\1\1\1"},
        lambda tcp: {"options": tcp.options[:-1] + b"\xaa" if tcp.options else b""},
    )
]


@st.composite
def neighbours(draw: st.DrawFn) -> list[Frame]:
    """Draw segments of up to three packets, in order, with some of them spoiled."""
    frames: list[Frame] = []
    for packet, segment_bytes in draw(st.lists(super_frames(most_segments=5), max_size=3)):
        short = replace(packet, payload=packet.payload[:3000])
        cut = twin.cut(short, min(segment_bytes, 700))[:8]
        for part in cut:
            change = draw(CHANGES)
            one = draw(st.sampled_from(OTHERS))(part) if change == "packet" else part
            vnet, frame = one.plain()
            if change == "byte":
                at = draw(st.integers(0, min(len(frame), one.header_bytes + 2) - 1))
                frame = frame[:at] + bytes([draw(BYTE)]) + frame[at + 1 :]
            if change == "header":
                at = draw(st.integers(0, 9))
                vnet = vnet[:at] + bytes([draw(st.integers(0, 6))]) + vnet[at + 1 :]
            if change == "swap" and frames:
                frames.insert(-1, (vnet, frame))
            elif change != "drop":
                frames += [(vnet, frame)] * (2 if change == "twice" else 1)
    return frames


@settings(deadline=None, max_examples=80)
@given(neighbours(), st.booleans())
def test_only_what_cutting_would_give_back_is_joined(frames: list[Frame], join_udp: bool) -> None:
    assert fast.join(frames, join_udp) == twin.join(frames, join_udp=join_udp)


@pytest.mark.parametrize("change", range(len(OTHERS)))
@pytest.mark.parametrize("packet", [STREAM, STREAM6, DATAGRAMS])
def test_a_difference_in_any_field_ends_the_train(packet: Packet, change: int) -> None:
    first, second, third = twin.cut(replace(packet, payload=packet.payload[:3000]), 1000)
    for cut in ([OTHERS[change](first), second, third], [first, OTHERS[change](second), third]):
        frames = [part.plain() for part in cut]
        assert fast.join(frames) == twin.join(frames)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("packet", MIXES)
def test_no_byte_of_a_header_may_differ_unnoticed(packet: Packet, which: int) -> None:
    cut = [part.plain() for part in twin.cut(replace(packet, payload=bytes(999)), 500)]
    assert len(fast.join(cut)) == 1
    vnet, frame = cut[which]
    for at in range(packet.header_bytes):
        spoiled = frame[:at] + bytes([frame[at] ^ 0x40]) + frame[at + 1 :]
        frames = [*cut[:which], (vnet, spoiled), *cut[which + 1 :]]
        assert fast.join(frames) == [(*one, 1) for one in frames], at


@pytest.mark.parametrize("words", [*itertools.permutations([0, 2, 4, 6, 8, 12, 14, 16, 18, 20], 2)])
def test_changes_that_cancel_out_in_the_checksum_are_noticed(words: tuple[int, int]) -> None:
    """One word of the IPv4 header more, another one less: the checksum stays right."""
    packet = replace(STREAM, ip=replace(STREAM.ip, tos=4, options=b"\1\1\1\1"), payload=bytes(999))
    first, second = (part.plain() for part in twin.cut(packet, 500))
    frame = bytearray(second[1])
    for at, step in zip(words, (1, -1), strict=True):
        value = int.from_bytes(frame[14 + at : 16 + at]) + step
        frame[14 + at : 16 + at] = value.to_bytes(2)
    assert twin.checksum(frame[14:38]) == 0
    frames = [first, (second[0], bytes(frame))]
    assert fast.join(frames) == [(*one, 1) for one in frames]


@pytest.mark.parametrize("flag", [SYN, RST, URG])
def test_segments_that_all_have_an_odd_flag_are_not_joined(flag: int) -> None:
    packet = replace(STREAM, l4=replace(STREAM.l4, flags=ACK | flag))
    frames = [part.plain() for part in twin.cut(packet, 20000)]
    assert fast.join(frames) == [(*one, 1) for one in frames]


def test_frames_with_a_finished_checksum_are_not_joined() -> None:
    frames = [(bytes(10), part.build(finished=True)) for part in twin.cut(STREAM, 1448)]
    assert fast.join(frames) == [(*frame, 1) for frame in frames]


def test_a_super_frame_is_not_joined_to_what_came_before() -> None:
    first, second = twin.cut(replace(STREAM, payload=payload(2896)), 1448)
    frames = [first.plain(), second.super_frame(1000)]
    assert fast.join(frames) == [(*frame, 1) for frame in frames]


def test_super_frames_are_not_joined_to_each_other() -> None:
    frames = [
        part.super_frame(1000) for part in twin.cut(replace(STREAM, payload=bytes(6000)), 3000)
    ]
    assert fast.join(frames) == [(*frame, 1) for frame in frames]


def test_datagrams_are_joined_only_where_the_kernel_takes_them() -> None:
    frames = [part.plain() for part in twin.cut(DATAGRAMS, 8000)]
    assert [count for *_, count in fast.join(frames, True)] == [8]
    assert fast.join(frames, False) == [(*frame, 1) for frame in frames]


@pytest.mark.parametrize("packet", [STREAM, STREAM6, DATAGRAMS])
def test_a_train_has_no_more_frames_than_may_be(packet: Packet) -> None:
    frames = [part.plain() for part in twin.cut(replace(packet, payload=bytes(300)), 1)]
    most = twin.MAX_JOINED[packet.l4.protocol]
    counts = [count for *_, count in fast.join(frames)]
    assert counts == [most] * (300 // most) + [300 % most]


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("packet", MIXES)
def test_a_train_fits_one_ip_packet(packet: Packet, extra: int) -> None:
    """The last frame of the train fills the packet to 65,535 bytes, or would overfill it."""
    if is_tcp(packet):
        packet = replace(packet, l4=replace(packet.l4, flags=ACK))
    room = twin.MAX_IP_BYTES - replace(packet, payload=b"").ip_bytes
    whole = twin.cut(replace(packet, payload=bytes(room)), 5000)
    last = replace(whole[-1], payload=bytes(len(whole[-1].payload) + extra))
    joined = fast.join([part.plain() for part in [*whole[:-1], last]])
    assert [count for *_, count in joined] == ([len(whole) - 1, 1] if extra else [len(whole)])
