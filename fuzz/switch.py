"""Frames of several hostile peers and of the host's, into a plane of several ports, beside the twin.

An input is a row of commands, each a byte for who sends and what, then what that needs:

    0 to 2 who: a peer, or the host     frame: two addresses, tags, maybe cut short
                                        raw: any bytes
                                        storm: one frame, over and over
                                        sweep: a frame from each of many addresses

After each frame: it went where the twin says, and to nobody else. After all: every frame is
accounted for, and the table is that of the twin.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from shadowmesh.base.clock import boottime
from tests.fastpath.hub import BROADCAST, Hub, mac
from tests.fastpath.rig import NO_OFFLOAD, eventually
from tests.twins.switch import FLOOD, FLOOD_FRAMES, KEEP, Switch, is_group

PORTS = 3
HOST = PORTS
MOST_FRAMES = 2500
FRAME, RAW, STORM, SWEEP = range(4)
CUT = 0x80
PEERS = [mac(100 + number) for number in range(PORTS)]
OWN = mac(99)
#: what addresses are chosen from: of peers, of this host, of nobody yet, of groups
ADDRESSES = [
    *PEERS, OWN, *(mac(1 + number) for number in range(6)), BROADCAST, b"\x33\x33\0\0\0\1",
    b"\x01\x80\xc2\0\0\0", b"\x01\x80\xc2\0\0\x10", b"\x01\0\x5e\0\0\1", bytes(6),
]  # fmt: skip
TAGS = [
    b"\x81\0\0\0", b"\x81\0\0\1", b"\x81\0\0\x14", b"\x81\0\xe0\x14",
    b"\x88\xa8\0\5", b"\x81\0\x0f\xff", b"\x88\xa8\x0f\xff", b"\x81\0\x0f\xfe",
]  # fmt: skip

Sent = tuple[int, bytes]


def command(who: int, what: int, tags: int = 0, cut: int = 0) -> int:
    return who | what << 2 | tags << 4 | cut


def frames(data: bytes) -> Iterator[Sent]:
    """Who sends what, in order."""
    words = iter(data)
    for head in words:
        who, what = head & 3, head >> 2 & 3
        if what == RAW:
            length = next(words, 0) * 6
            yield who, bytes(word for _, word in zip(range(length), words, strict=False))
            continue
        choice = next(words, 0)
        to, source = ADDRESSES[choice & 15], ADDRESSES[choice >> 4]
        tags = b"".join(TAGS[next(words, 0) % len(TAGS)] for _ in range(min(head >> 4 & 7, 4)))
        body = tags + b"\x08\0" + bytes(46)
        times = 4 * next(words, 0) if what in (STORM, SWEEP) else 1
        cut = next(words, 0) if head & CUT else 1 << 16
        for number in range(times):
            source = mac(1000 + number) if what == SWEEP else source
            yield who, (to + source + body)[:cut]


class Bench:
    """One plane and its twin, for one input."""

    def __init__(self) -> None:
        self.hub = Hub(PORTS)
        self.twin = Switch()
        self.began = time.monotonic()
        self.twin.fdb.own(OWN, None)
        for number, address in enumerate(PEERS):
            self.twin.fdb.own(address, number)
        self.counted = [far.port.counters() for far in self.hub.far]

    def of_peer(self, number: int, frame: bytes) -> None:
        far = self.hub.far[number]
        wanted = self.twin.inward(number, frame, int(boottime()))
        before = self.counted[number]
        far.send(frame)
        after = self.counted[number] = far.port.counters()
        found = _outcome(before, after)
        assert found in wanted, (number, frame, found, wanted)
        if found == KEEP and is_group(frame):
            self.twin.flooded(number, frame)
        assert self.hub.tap.take() == ([NO_OFFLOAD + frame] if found == KEEP else [])

    def of_host(self, frame: bytes) -> None:
        wanted = self.twin.outward(frame, int(boottime()))
        assert self.hub.heard() == [0] * PORTS, "from peer to peer"
        before = self.hub.dropped("tx_dropped")
        self.hub.tap.feed(frame)
        self.hub.settle()
        after = self.hub.dropped("tx_dropped")
        reasons = {why for why, count in after.items() if count != before.get(why, 0)}
        [verdict] = wanted & (reasons or {FLOOD, *range(PORTS)}) or [None]
        assert verdict is not None and len(reasons) <= 1, (frame, wanted, reasons)
        right = [[frame] if verdict in (FLOOD, number) else [] for number in range(PORTS)]
        got: list[list[bytes]] = [[] for _ in range(PORTS)]

        def arrived() -> bool:
            # What waits for a link is queued, and goes when that is read from.
            for taken, far in zip(got, self.hub.far, strict=True):
                taken.extend(far.got())
            return sum(map(len, got)) >= sum(map(len, right))

        eventually(arrived, "the frame where it goes")
        assert got == right, (frame, verdict)
        if verdict == FLOOD:
            self.twin.flooded(None, frame)
        assert self.hub.tap.take() == [], "back to the host"

    def assert_whole(self) -> None:
        """Every frame is accounted for, and the table is the twin's."""
        assert self.hub.heard() == [0] * PORTS, "from peer to peer"
        counters = self.hub.plane.counters()
        ports = [far.port.counters() for far in self.hub.far]
        dropped = sum(counters["rx_dropped"].values())
        assert counters["frames_opened"] == counters["frames_written"] + dropped
        assert dropped == sum(sum(port["rx_dropped"].values()) for port in ports)
        most = FLOOD_FRAMES * (1 + time.monotonic() - self.began) + 1
        assert all(count <= most for count, _ in self.twin.floods.values())
        sides = {None: None, **{far.port.number: at for at, far in enumerate(self.hub.far)}}
        table = {(mac, vlan): sides[port] for mac, vlan, port, *_ in self.hub.plane.fdb()}
        entries = {key: entry.port for key, entry in self.twin.fdb.entries.items()}
        owners = {(mac, None): port for mac, port in self.twin.fdb.owners.items()}
        assert table == entries | owners
        assert [port["macs"] for port in ports] == [
            self.twin.fdb.macs(number) for number in range(PORTS)
        ]

    def close(self) -> None:
        self.hub.close()


def _outcome(before: dict, after: dict) -> str:
    """The one reason that one more frame was dropped for, KEEP when it was delivered."""
    drops = before["rx_dropped"]
    changed = [why for why, count in after["rx_dropped"].items() if count != drops[why]]
    changed += [KEEP] * (after["frames_received"] - before["frames_received"])
    assert len(changed) == 1, changed
    return changed[0]


def run(data: bytes) -> None:
    """Frames from several sides, judged as by the twin."""
    bench = Bench()
    try:
        for (who, frame), _ in zip(frames(data), range(MOST_FRAMES), strict=False):
            if who == HOST:
                bench.of_host(frame)
            else:
                bench.of_peer(who, frame)
        bench.assert_whole()
    finally:
        bench.close()


def seeds() -> Iterator[bytes]:
    everybody = [(to | source << 4) for to in range(16) for source in range(16)]
    for who in range(HOST + 1):
        yield bytes(b for choice in everybody for b in (command(who, FRAME), choice))
    for tags in range(1, 5):
        words = [(number + 3 * tags) % len(TAGS) for number in range(tags)]
        yield b"".join(
            bytes([command(who, FRAME, tags), to | source << 4, *words])
            for who in range(HOST + 1)
            for to, source in ((3, 0), (0, 3), (4, 5), (5, 4), (10, 6))
        )
    # one after the other with the same address: the host has it then, and nobody else
    yield bytes(b for who in (0, 1, HOST, 0, 1, 2, HOST) for b in (command(who, FRAME), 3 | 4 << 4))
    storm, sweep = command(1, STORM), command(1, SWEEP)
    yield bytes([storm, 10 | 1 << 4, 255, storm, 10 | 1 << 4, 20, command(2, FRAME), 10 | 2 << 4])
    yield bytes([command(HOST, STORM), 10 | 3 << 4, 255, command(HOST, STORM), 10 | 3 << 4, 20])
    yield bytes([sweep, 3, 80, command(0, FRAME), 3, command(HOST, SWEEP), 1, 80])
    for length in (0, 5, 13, 14, 17):
        yield bytes(
            b for who in range(HOST + 1)
            for b in (command(who, FRAME, 1, CUT), 3 | 4 << 4, 2, length)
        )  # fmt: skip
    yield bytes([command(0, RAW), 10]) + OWN + PEERS[0] + b"\x81\0\0\1" * 12
