"""pcapng: the bytes of each block, what is read back, and what tcpdump makes of them."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.insight import pcapng
from shadowmesh.insight.pcapng import (
    INBOUND,
    OUTBOUND,
    Interface,
    Packet,
    Reader,
    Section,
    Statistics,
)

#: 2026-01-02T03:04:05.678901234Z
NOW_NS = 1_767_323_045_678_901_234
HIGH, LOW = NOW_NS >> 32, NOW_NS & 0xFFFFFFFF
ECHO = bytes.fromhex(
    "0200000000020200000000010800"
    "4500002000014000400126d90a0000010a000002"
    "0800a85b1234000161626364"
)  # fmt: skip


def written(block) -> bytes:
    if isinstance(block, Section):
        return pcapng.section(block)
    if isinstance(block, Interface):
        return pcapng.interface(block)
    if isinstance(block, Statistics):
        return pcapng.statistics(block)
    return pcapng.packet(
        block.time_ns, block.direction, block.frame_bytes, block.data, block.comment
    )


def read(data: bytes) -> list:
    return [block for _, block in Reader().receive(data)]


# --- Bytes ------------------------------------------------------------------------------------


def test_a_section_begins_with_the_byte_order_and_has_no_length():
    assert pcapng.section(Section("ab")) == bytes.fromhex(
        "0a0d0d0a280000004d3c2b1a01000000ffffffffffffffff"
        "04000200616200000000000028000000"
    )  # fmt: skip


def test_an_interface_is_ethernet_in_nanoseconds():
    assert pcapng.interface(Interface("tap0", 96)) == bytes.fromhex(
        "01000000280000000100000060000000"
        "020004007461703009000100090000000000000028000000"
    )  # fmt: skip


@pytest.mark.parametrize(("direction", "flags"), [(INBOUND, 1), (OUTBOUND, 2)])
def test_a_packet_carries_its_direction(direction, flags):
    assert pcapng.packet(NOW_NS, direction, 1500, b"12345") == struct.pack(
        "<7I5s3xHHIII", 6, 52, 0, HIGH, LOW, 5, 1500, b"12345", 2, 4, flags, 0, 52
    )


def test_statistics_count_what_was_dropped():
    block = Statistics(NOW_NS, received=12, dropped=2, started_ns=NOW_NS - 1)
    assert pcapng.statistics(block) == struct.pack(
        "<5IHHIIHHQHHQII",
        5, 64, 0, HIGH, LOW, 2, 8, HIGH, LOW - 1, 4, 8, 12, 5, 8, 2, 0, 64,
    )  # fmt: skip


# --- Back again -------------------------------------------------------------------------------

TIMES = st.integers(0, 2**64 - 1)
TEXTS = st.text(max_size=20).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
BLOCKS = st.one_of(
    st.builds(Section, TEXTS, TEXTS),
    st.builds(Interface, TEXTS, st.integers(0, 2**32 - 1)),
    st.builds(
        Packet,
        TIMES,
        st.sampled_from([0, INBOUND, OUTBOUND]),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=100),
        TEXTS,
    ),
    st.builds(
        Statistics,
        TIMES,
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        TIMES,
        st.none() | TIMES,
        TEXTS,
    ),
)


@given(st.lists(BLOCKS, max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_what_is_written_is_read_in_pieces_of_any_size(blocks, sizes):
    data = b"".join(map(written, blocks))
    reader, found, raws = Reader(), [], []
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        for raw, block in reader.receive(data[at : at + size]):
            raws.append(raw)
            found.append(block)
        at, number = at + size, number + 1
    assert found == blocks
    assert b"".join(raws) == data


def test_unknown_blocks_and_options_are_skipped():
    unknown = struct.pack("<II4sI", 0x0BAD, 16, b"data", 16)
    packet = bytearray(pcapng.packet(NOW_NS, INBOUND, 4, b"1234"))
    packet[32:34] = struct.pack("<H", 99)  # where the flags were
    assert read(unknown + packet) == [None, Packet(NOW_NS, 0, 4, b"1234")]


def test_half_a_block_waits_for_the_rest():
    reader = Reader()
    data = pcapng.packet(NOW_NS, INBOUND, 4, b"1234")
    assert list(reader.receive(data[:-1])) == []
    assert [block for _, block in reader.receive(data[-1:])] == [
        Packet(NOW_NS, INBOUND, 4, b"1234")
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n",
        struct.pack("<III", 6, 11, 11),
        struct.pack("<III", 6, 12, 16),
        struct.pack("<III", 6, 13, 13),
        struct.pack("<II", 6, pcapng.MAX_BLOCK_BYTES + 4),
        struct.pack("<III", 6, 12, 12),
        struct.pack("<III", 5, 12, 12),
        struct.pack("<8I", 6, 32, 0, 0, 0, 5, 5, 32),
        struct.pack(">IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28),
        struct.pack("<IIHHII", 1, 20, 113, 0, 0, 20),
        struct.pack("<IIHHII", 1, 20, 1, 0, 0, 20),
        struct.pack("<5IHHI", 5, 28, 0, 0, 0, 2, 9, 28),
        struct.pack("<5IHHIII", 5, 36, 0, 0, 0, 4, 4, 0, 0, 36),
    ],
    ids=range(13),
)
def test_what_is_no_pcapng_of_ours_is_refused(data):
    with pytest.raises(ValueError):
        read(data)


@given(st.binary(max_size=200))
def test_no_bytes_harm_the_reader(data):
    with contextlib.suppress(ValueError):
        read(pcapng.section(Section()) + data)


# --- tcpdump ----------------------------------------------------------------------------------

tcpdump = pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")


@tcpdump
def test_tcpdump_reads_all_of_it():
    reply = bytearray(ECHO[6:12] + ECHO[:6] + ECHO[12:26] + ECHO[30:34] + ECHO[26:30] + ECHO[34:])
    reply[34] = 0
    data = b"".join(
        [
            pcapng.section(Section("shadowmesh 1", "a remark")),
            pcapng.interface(Interface("tap0", 262_144)),
            pcapng.packet(NOW_NS, OUTBOUND, len(ECHO), ECHO, "segments"),
            pcapng.statistics(Statistics(NOW_NS, 1, 0, NOW_NS)),
            pcapng.packet(NOW_NS + 1, INBOUND, len(reply), bytes(reply)),
            pcapng.packet(NOW_NS + 2, OUTBOUND, 1514, ECHO[:20]),
            pcapng.statistics(Statistics(NOW_NS, 3, 0, NOW_NS, NOW_NS, "the end")),
        ]
    )
    done = subprocess.run(
        ["tcpdump", "-r", "-", "-n", "-tt", "--nano"], input=data, capture_output=True, check=True
    )
    lines = done.stdout.decode().splitlines()
    assert "10.0.0.1 > 10.0.0.2: ICMP echo request, id 4660, seq 1, length 12" in lines[0]
    assert lines[0].startswith("1767323045.678901234 IP ")
    assert "10.0.0.2 > 10.0.0.1: ICMP echo reply, id 4660, seq 1, length 12" in lines[1]
    assert "[|ip]" in lines[2]
    assert len(lines) == 3
    assert b"EN10MB" in done.stderr
