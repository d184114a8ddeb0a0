"""One UDP socket for several peers: what each may keep waiting, and what counts as its activity."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from fcntl import ioctl
from select import select
from termios import FIONREAD

import pytest

from shadowmesh._fastpath import DataPlane, Port, Session
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import Caps, Inner
from tests.fastpath.rig import CHACHA, KEYS, NO_OFFLOAD, FakeTap, eventually
from tests.twins import records

BROADCAST = b"\xff" * 6
OWN = b"\x02\0\0\0\0\x99"
MAX_PARTIALS = 64
MAX_SIGNALS = 128
#: datagrams that a socket holds
BATCH = 50
ATTEMPTS = 50


class Far:
    """A peer on the other side of the plane's socket."""

    def __init__(self, hub: Hub, number: int) -> None:
        self.mac = bytes([2, 0, 0, 0, 1, number])
        self.port, self.session = Port(hub.plane, self.mac), Session(hub.plane)
        self.session.belongs_to(self.port)
        self._key_id = self.session.reserve_key_id()
        self.session.install(
            self._key_id, 0x5000_0000 + number, CHACHA,
            wss_tx=KEYS["out"], wss_rx=KEYS["in"], udp_tx=KEYS["uout"], udp_rx=KEYS["uin"],
            peer_mtu_bytes=1500, peer_caps=int(Caps.UDP),
        )  # fmt: skip
        self.session.send_under(self._key_id)
        self.session.use_udp(*hub.theirs.getsockname(), 1472)
        self.port.activate(self.session)
        self._counter = 0

    def datagram(self, inner: bytes) -> bytes:
        self._counter += 1
        return records.seal_datagram(CHACHA, KEYS["uin"], self._key_id, self._counter, inner)

    def halves(self, number: int) -> tuple[bytes, bytes, bytes]:
        """Return a frame and the datagrams with its two fragments."""
        frame = OWN + self.mac + b"\x88\xb5" + struct.pack("<I", number) + bytes(200)
        inner = bytes([Inner.FRAME]) + frame
        first, second = (
            self.datagram(struct.pack("<BHBB", Inner.FRAGMENT, number, index, 2) + piece)
            for index, piece in enumerate((inner[:100], inner[100:]))
        )
        return frame, first, second

    def close(self) -> None:
        self.session.close()
        self.port.close()


class Hub:
    """A plane with a device, a socket and some peers."""

    def __init__(self, count: int) -> None:
        self.plane, self.tap = DataPlane(), FakeTap()
        self.plane.own_mac(OWN)
        self.plane.attach_tap([self.tap.fd], 1500)
        self.ours, self.theirs = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
        for one in (self.ours, self.theirs):
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
        self.plane.attach_udp(self.ours.fileno(), socket.AF_INET)
        self.far = [Far(self, number) for number in range(1, count + 1)]

    def hear(self, *datagrams: bytes) -> None:
        """Let the plane have datagrams of peers; back when it has fetched them."""
        for start in range(0, len(datagrams), BATCH):
            for one in datagrams[start : start + BATCH]:
                self.theirs.sendto(one, self.ours.getsockname())
            eventually(lambda: ioctl(self.ours, FIONREAD, bytes(4)) == bytes(4))

    def say(self, to: bytes) -> None:
        """Let the host send a frame; back when it has left."""
        self.tap.feed(to + OWN + b"\x88\xb5" + bytes(46))

        def left() -> bool:
            counters = self.plane.counters()
            done = counters["frames_sent"] + sum(counters["tx_dropped"].values())
            return done == self.tap.fed + counters["frames_copied"]

        eventually(left)

    def close(self) -> None:
        self.plane.detach_tap()
        self.plane.detach_udp()
        while self.far:
            self.far.pop().close()
        for one in (self.ours, self.theirs, self.tap):
            one.close()
        del self.plane


@pytest.fixture
def make_hub() -> Iterator[Callable[[int], Hub]]:
    made: list[Hub] = []

    def build(count: int) -> Hub:
        made.append(Hub(count))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def hub(make_hub) -> Hub:
    return make_hub(3)


# --- What may wait --------------------------------------------------------------------------------


def test_fragments_of_a_peer_come_together_beside_one_that_floods_fragments(hub):
    honest, hostile, other = hub.far
    for _ in range(ATTEMPTS):
        began = boottime()
        frames = [honest.halves(number) for number in range(20)]
        frames.append(other.halves(100))
        hub.hear(*(first for _, first, _ in frames))
        hub.hear(*(hostile.halves(number)[1] for number in range(2 * MAX_PARTIALS)))
        hub.hear(*(second for _, _, second in frames), *honest.halves(21)[1:])
        got: list[bytes] = []
        last = NO_OFFLOAD + honest.halves(21)[0]
        eventually(lambda got=got, last=last: got.extend(hub.tap.take()) or last in got)
        if got == [*(NO_OFFLOAD + frame for frame, _, _ in frames), last]:
            return
        # They live for a second, which a test machine may not keep to.
        assert boottime() >= began + 1, "lost to the flood"
    pytest.fail("no attempt was through within a second")


def test_signals_of_a_peer_have_room_beside_one_that_sends_more_than_the_hub_takes(hub):
    hostile, honest, other = hub.far
    probe = bytes([Inner.PROBE])
    # The first datagram of each is a signal as well: whence it came.
    hub.hear(*(hostile.datagram(probe + bytes([number])) for number in range(MAX_SIGNALS)))
    hub.hear(*(honest.datagram(probe + bytes([200 + number])) for number in range(8)))
    hub.hear(*(other.datagram(probe + bytes([250])) for _ in range(1)))
    told = hub.plane.counters()["udp_refused"]
    eventually(
        lambda: told.update(hub.plane.counters()["udp_refused"]) or told["signals_full"] == 65
    )
    taken = hub.plane.udp_signals()
    bodies = [(one[0], one[3][0]) for one in taken if one[2] == Inner.PROBE]
    numbers = [far.session.number for far in hub.far]
    assert [body for number, body in bodies if number == numbers[1]] == list(range(200, 208))
    assert [body for number, body in bodies if number == numbers[2]] == [250]
    flooded = [body for number, body in bodies if number == numbers[0]]
    assert flooded == list(range(len(flooded)))
    assert len(flooded) == MAX_SIGNALS // 2 - 1


def test_what_more_signals_there_are_than_one_call_returns_is_told_again(make_hub):
    hub = make_hub(8)
    for far in hub.far:  # each leaves half of what is free
        hub.hear(*(far.datagram(bytes([Inner.PROBE]) + b"12345678") for _ in range(MAX_SIGNALS)))
    eventually(
        lambda: sum(hub.plane.counters()["udp_refused"].values()) == 7 * MAX_SIGNALS + len(hub.far)
    )
    assert len(hub.plane.udp_signals()) == MAX_SIGNALS
    assert select([hub.plane.udp_event_fd], [], [], 0)[0]
    assert hub.plane.udp_signals() == []
    assert not select([hub.plane.udp_event_fd], [], [], 0)[0]


# --- What counts as activity ----------------------------------------------------------------------


def test_flooded_frames_make_a_path_no_busier_than_one_in_a_while_does(hub):
    far = hub.far[0]
    hub.say(BROADCAST)
    first, _ = far.session.udp_activity()
    assert first > 0  # its way may be dead: what asks for an address comes before all else
    for _ in range(10):
        hub.say(BROADCAST)
    assert far.session.udp_activity()[0] == first


def test_a_frame_for_a_peer_alone_counts_at_once(hub):
    far, other, _ = hub.far
    hub.say(BROADCAST)
    flooded = [one.session.udp_activity()[0] for one in (far, other)]
    hub.say(far.mac)
    assert far.session.udp_activity()[0] > flooded[0]
    assert other.session.udp_activity()[0] == flooded[1]
