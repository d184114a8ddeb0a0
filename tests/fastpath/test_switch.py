"""The switch: the forwarding database beside its twin, and planes of several ports."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shadowmesh._fastpath import DataPlane, Port
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.fast.hooks import switch as hooks
from tests.fastpath.hub import BROADCAST, Far, Hub, mac
from tests.fastpath.rig import CHACHA, eventually, ingest
from tests.twins import fdb as twin
from tests.twins import records

MACS = [b"\x02\0\0\0\1" + bytes([number]) for number in range(6)]
PORTS = st.sampled_from([None, 0, 1, 2])
VLANS = st.sampled_from([0, 1, 20])


# --- The forwarding database ----------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """The table beside its slow twin; time only goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.fdb = hooks.Fdb(3, most=12, most_macs=4)
        self.twin = twin.Fdb(most=12, most_macs=4)
        self.now = 1000

    @rule(mac=st.sampled_from(MACS), vlan=VLANS, port=PORTS)
    def learn(self, mac: bytes, vlan: int, port: int | None) -> None:
        assert self.fdb.learn(mac, vlan, port, self.now) == self.twin.learn(
            mac, vlan, port, self.now
        )

    @rule(mac=st.sampled_from(MACS), vlan=VLANS)
    def lookup(self, mac: bytes, vlan: int) -> None:
        known, port = self.twin.lookup(mac, vlan, self.now)
        wanted = None if not known else hooks.LOCAL if port is None else port
        assert self.fdb.lookup(mac, vlan, self.now) == wanted

    @rule(mac=st.sampled_from(MACS), port=PORTS)
    def own(self, mac: bytes, port: int | None) -> None:
        assert self.fdb.own(mac, port) == self.twin.own(mac, port)

    @rule(port=st.integers(0, 2))
    def forget(self, port: int) -> None:
        self.fdb.forget(port)
        self.twin.forget(port)

    @rule(seconds=st.sampled_from([1, 10, 29, 31, 100, 299]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        if self.fdb.entries < 11:  # else it makes room, which the twin does not
            self.fdb.sweep(self.now)
            self.twin.sweep(self.now)

    @invariant()
    def counts_agree(self) -> None:
        assert self.fdb.entries == len(self.twin.entries) + len(self.twin.owners)
        for port in (None, 0, 1, 2):
            assert self.fdb.macs(port) == self.twin.macs(port)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_a_flood_of_addresses_hurts_the_port_alone_that_makes_it():
    fdb = hooks.Fdb(2)
    assert [fdb.learn(mac(number), 0, 1, 1) for number in range(5)] == ["keep"] * 5
    verdicts = [fdb.learn(mac(1000 + number), 0, 0, 1) for number in range(100_000)]
    assert verdicts.count("keep") == 256
    assert verdicts.count("mac_limit") == 100_000 - 256
    assert [fdb.lookup(mac(number), 0, 1) for number in range(5)] == [1] * 5
    assert fdb.learn(mac(7), 0, 1, 1) == "keep"


def test_a_crowded_table_makes_room_at_the_cost_of_the_port_that_has_most():
    fdb = hooks.Fdb(2, most=320, most_macs=300)
    for number in range(300):
        fdb.learn(mac(number), 0, 0, number // 10)
    for number in range(10):
        fdb.learn(mac(1000 + number), 0, 1, 1)
    assert (fdb.macs(0), fdb.macs(1)) == (300, 10)
    fdb.sweep(30)
    assert fdb.macs(1) == 10
    assert fdb.macs(0) == 300 - (300 // 8 + 1)
    # of the forty that were heard least lately
    assert sum(fdb.lookup(mac(number), 0, 30) == 0 for number in range(40)) == 2
    assert all(fdb.lookup(mac(number), 0, 30) == 0 for number in range(40, 300))


def test_what_finds_no_place_is_counted_and_not_refused():
    fdb = hooks.Fdb(1, most=3)
    assert [fdb.learn(mac(number), 0, 0, 1) for number in range(5)] == ["keep"] * 5
    assert (fdb.entries, fdb.unlearned) == (3, 2)


def test_threads_that_learn_the_same_addresses_agree_in_the_end():
    fdb = hooks.Fdb(4)

    def learn(port: int) -> None:
        for number in range(64):
            fdb.learn_often(mac(number), port, 1 + 31 * port, 2000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(learn, range(4)))
    found = [fdb.lookup(mac(number), 0, 100) for number in range(64)]
    assert None not in found
    assert sum(fdb.macs(port) for port in range(4)) == fdb.entries
    for port in range(4):
        fdb.forget(port)
    assert (fdb.entries, [fdb.macs(port) for port in range(4)]) == (0, [0] * 4)


@pytest.mark.parametrize(
    ("tags", "vlan"),
    [
        (b"", 0),
        (b"\x81\0\0\x14", 20),
        (b"\x81\0\xe0\x14", 20),
        (b"\x81\0\xe0\0", 0),
        (b"\x88\xa8\0\x05\x81\0\0\x14", 5),
        (b"\x81\0\0\x05\x81\0\0\x14\x81\0\0\x01", None),
        (b"\x81\0\x0f\xff", None),
    ],
)
def test_the_vlan_of_a_frame_is_that_of_its_outer_tag(tags, vlan):
    assert hooks.vlan_of(bytes(12) + tags + b"\x08\0" + bytes(46)) == vlan


@pytest.mark.parametrize("length", range(12, 22))
def test_a_tag_that_does_not_end_in_the_frame_is_refused(length):
    frame = (bytes(12) + b"\x81\0\0\x05\x81\0\0\x14\x08\0")[:length]
    if length >= 14:
        assert hooks.vlan_of(frame) == (5 if length == 22 else None)


def test_reserved_addresses_are_the_sixteen_of_the_bridge_group():
    base = b"\x01\x80\xc2\0\0"
    assert [hooks.reserved(base + bytes([last])) for last in range(0x12)] == [True] * 16 + [
        False
    ] * 2
    assert not hooks.reserved(BROADCAST)


def test_a_second_brings_a_thousand_floods_or_a_mebibyte():
    for size, most in ((60, 1000), (1500, 699)):
        bucket = hooks.Bucket()
        start = 10_000_000_000
        assert sum(bucket.take(size, start) for _ in range(3000)) == most
        assert sum(bucket.take(size, start + 500_000_000) for _ in range(3000)) == pytest.approx(
            most / 2, abs=1
        )
        assert not bucket.take(size, start - 1_000_000_000)  # another thread's clock


@pytest.mark.parametrize("step_ns", [1, 700, 40_000])
def test_what_a_storm_leaves_of_a_moment_is_not_lost(step_ns):
    bucket = hooks.Bucket()
    start, steps = 10_000_000_000, 50_000
    for _ in range(3000):
        bucket.take(1500, start)
    taken = sum(bucket.take(1500, start + step_ns * number) for number in range(1, steps + 1))
    assert taken == pytest.approx((1 << 20) / 1500 * step_ns * steps / 1e9, abs=1)


# --- A plane of several ports ---------------------------------------------------------------------


@pytest.fixture
def make_hub() -> Iterator[Callable[[int], Hub]]:
    made: list[Hub] = []

    def build(count: int) -> Hub:
        made.append(Hub(count))
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_a_frame_for_a_peer_goes_to_it_alone(make_hub):
    hub = make_hub(3)
    for number in (1, 0, 2, 2):
        hub.say(hub.far[number].mac)
    assert hub.heard() == [1, 1, 2]


def test_broadcasts_and_frames_for_nobody_known_go_to_all(make_hub):
    hub = make_hub(3)
    hub.say(BROADCAST)
    hub.say(b"\x33\x33\0\0\0\1")
    hub.say(mac(7))
    assert hub.heard() == [3, 3, 3]
    assert hub.plane.counters()["frames_copied"] == 6


def test_large_and_offloaded_broadcasts_reach_all_unharmed(make_hub):
    hub = make_hub(3)
    body = bytes(range(256)) * 5
    hub.say(BROADCAST, body=body)
    frame = BROADCAST + hub.own + b"\x08\0" + body
    assert [one.got() for one in hub.far] == [[frame]] * 3


def test_an_address_is_learned_from_the_frames_of_its_peer(make_hub):
    hub = make_hub(3)
    hub.far[1].send(hub.own + mac(7) + b"\x08\0" + bytes(46))
    hub.say(mac(7))
    assert hub.heard() == [0, 1, 0]
    table = {(entry[0], entry[1]): entry[2:] for entry in hub.plane.fdb()}
    assert table[mac(7), 0][0] == hub.far[1].port.number
    assert table[hub.far[2].mac, None] == (hub.far[2].port.number, None, True, 0)
    assert table[hub.own, None][0] is None
    assert hub.far[1].port.counters()["macs"] == 2


def test_vlans_are_apart(make_hub):
    hub = make_hub(2)
    tag = b"\x81\0\0\x14"
    hub.far[1].send(hub.own + mac(7) + tag + b"\x08\0" + bytes(46))
    hub.say(mac(7))
    assert hub.heard() == [1, 1]
    hub.tap.feed(mac(7) + hub.own + tag + b"\x08\0" + bytes(46))
    hub.settle()
    assert hub.heard() == [0, 1]


def test_a_frame_for_this_hosts_side_goes_nowhere(make_hub):
    hub = make_hub(2)
    hub.say(BROADCAST, source=mac(8))
    hub.say(mac(8))
    assert hub.heard() == [1, 1]
    assert hub.dropped("tx_dropped") == {"split_horizon": 1}


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (lambda hub: hub.own + hub.own + b"\x08\0", "foreign_mac"),
        (lambda hub: hub.own + hub.far[1].mac + b"\x08\0", "foreign_mac"),
        (lambda hub: hub.own + mac(8) + b"\x08\0", "mac_elsewhere"),
        (lambda hub: hub.own + BROADCAST + b"\x08\0", "multicast_source"),
        (lambda hub: b"\x01\x80\xc2\0\0\0" + mac(7) + b"\x08\0", "reserved_address"),
        (lambda hub: hub.own + mac(7) + b"\x81\0\0\1" * 3 + b"\x08\0", "bad_vlan"),
    ],
)
def test_what_a_peer_may_not_send_is_dropped_under_its_own_reason(make_hub, frame, why):
    hub = make_hub(2)
    hub.far[1].send(hub.own + mac(8) + b"\x08\0" + bytes(46))
    hub.tap.take()
    hub.far[0].send(frame(hub) + bytes(46))
    assert hub.tap.take() == []
    assert hub.dropped("rx_dropped") == {why: 1}
    theirs = {
        name: count for name, count in hub.far[0].port.counters()["rx_dropped"].items() if count
    }
    assert theirs == {why: 1}
    assert not any(hub.far[1].port.counters()["rx_dropped"].values())


def test_a_storm_of_one_peer_is_cut_and_leaves_the_others_theirs(make_hub):
    hub = make_hub(2)
    frame = BROADCAST + hub.far[0].mac + b"\x08\0" + bytes(46)
    storm = [hub.far[0].sealed(frame) for _ in range(5000)]
    started, came = time.monotonic(), 0
    for at in range(0, len(storm), 100):
        ingest(hub.far[0].pipe, b"".join(storm[at : at + 100]))
        came += len(hub.tap.take())
    allowed = 1000 * (1 + time.monotonic() - started)
    assert 1000 <= came <= allowed + 1
    assert hub.dropped("rx_dropped") == {"flood_limit": 5000 - came}
    hub.far[1].send(BROADCAST + hub.far[1].mac + b"\x08\0" + bytes(46))
    assert len(hub.tap.take()) == 1


def test_ports_may_have_lists_and_limits(make_hub):
    hub = make_hub(1)
    plane = hub.plane
    listed = Port(plane, mac(200), macs=[mac(201)])
    with pytest.raises(ValueError, match="256"):
        Port(plane, macs=[mac(number) for number in range(257)])
    with pytest.raises(ValueError, match="no MAC"):
        Port(plane, b"\x02")
    with pytest.raises(LocalProtocolError, match="another one's"):
        Port(plane, mac(200))
    with pytest.raises(LocalProtocolError, match="another one's"):
        plane.own_mac(mac(200))
    listed.close()
    Port(plane, mac(200)).close()


def test_without_a_session_a_few_frames_wait_for_one(make_hub):
    hub = make_hub(2)
    hub.far[0].port.activate(None)
    for _ in range(80):
        hub.tap.feed(hub.far[0].mac + hub.own + b"\x08\0" + bytes(46))
    eventually(lambda: hub.dropped("tx_dropped") == {"not_connected": 80 - 64})
    hub.say(hub.far[1].mac)
    assert hub.heard() == [0, 1]
    hub.far[0].port.activate(hub.far[0].session)
    eventually(lambda: hub.plane.counters()["frames_queued"] == 64)
    assert eventually(lambda: hub.heard()[0]) == 64


def test_a_peer_that_takes_nothing_keeps_no_other_from_its_frames(make_hub):
    hub = make_hub(2)
    stuck, well = hub.far
    large = bytes(1486)
    for _ in range(4000):  # far more than a ring, an arena and a lane hold
        hub.tap.feed(stuck.mac + hub.own + b"\x08\0" + large)
    for _ in range(20):
        hub.tap.feed(well.mac + hub.own + b"\x08\0" + large)
    got: list[Any] = []
    eventually(lambda: got.extend(well.got()) or len(got) == 20, "the frames for the other")
    assert stuck.port.counters()["bytes_queued"] <= 2 << 20


def test_a_port_that_is_closed_leaves_nothing_behind(make_hub):
    hub = make_hub(3)
    gone = hub.far.pop(0)
    hub.far[0].send(hub.own + mac(7) + b"\x08\0" + bytes(46))
    gone.send(hub.own + mac(8) + b"\x08\0" + bytes(46))
    number = gone.port.number
    gone.close()
    assert {entry[2] for entry in hub.plane.fdb()} == {None, *(one.port.number for one in hub.far)}
    hub.say(mac(8))
    hub.say(mac(7))
    assert hub.heard() == [2, 1]
    assert Port(hub.plane).number == number


def test_the_last_of_several_ports_is_a_wire(make_hub):
    hub = make_hub(2)
    hub.far.pop().close()
    reserved = b"\x01\x80\xc2\0\0\x0e"
    hub.say(reserved)
    hub.far[0].send(reserved + mac(7) + b"\x88\xcc" + bytes(46))
    assert (hub.heard(), len(hub.tap.take())) == ([1], 1)


def test_a_thousand_and_twenty_four_ports_are_all():
    plane = DataPlane()
    ports = [Port(plane) for _ in range(1024)]
    assert sorted(port.number for port in ports) == list(range(1024))
    with pytest.raises(LocalProtocolError, match="1024 ports"):
        Port(plane)
    ports[5].close()
    assert Port(plane).number == 5


def test_frames_of_a_session_that_is_nobodys_are_dropped(make_hub):
    hub = make_hub(1)
    [far] = hub.far
    stranger = Far(hub, 1, belongs=False)
    hub.far.append(stranger)
    stranger.send(hub.own + stranger.mac + b"\x08\0" + bytes(46))
    assert hub.dropped("rx_dropped") == {"not_connected": 1}
    with pytest.raises(LocalProtocolError, match="another port's"):
        stranger.port.activate(stranger.session)
    stranger.session.belongs_to(stranger.port)
    stranger.send(hub.own + stranger.mac + b"\x08\0" + bytes(46))
    assert len(hub.tap.take()) == 1
    with pytest.raises(LocalProtocolError, match="another port's"):
        stranger.session.belongs_to(far.port)


def test_a_capture_may_be_of_one_peer_alone(make_hub):
    hub = make_hub(2)
    hub.plane.start_capture(1500, hub.far[1].port)
    hub.say(BROADCAST)
    hub.say(hub.far[0].mac)
    hub.far[0].send(hub.own + hub.far[0].mac + b"\x08\0" + bytes(46))
    hub.far[1].send(hub.own + hub.far[1].mac + b"\x08\0" + bytes(46))
    taken = hub.plane.read_capture(10, 1 << 20)
    assert [(direction, data[:12]) for _, direction, _, _, data in taken] == [
        (2, BROADCAST + hub.own),
        (1, hub.own + hub.far[1].mac),
    ]
    hub.far.pop().close()
    hub.say(BROADCAST)
    assert hub.plane.read_capture(10, 1 << 20) == []
    hub.plane.stop_capture()


def test_what_one_peer_has_packed_is_not_taken_for_anothers(make_hub):
    """The tail of a datagram waits for the end of the batch, when another peer's was opened last."""
    hub = make_hub(2)
    one, other = hub.far
    frame = hub.own + one.mac + b"\x08\0" + bytes(range(200))
    record = b"\x01" + frame
    stream = len(record).to_bytes(2, "little") + record
    halves = [
        b"\x0c\0\0" + stream[:90],
        b"\x0c" + (len(stream) - 90).to_bytes(2, "little") + stream[90:],
    ]
    plain = b"\x01" + hub.own + other.mac + b"\x08\0" + bytes(46)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
    ):
        ours.bind(("127.0.0.1", 0))
        ours.setblocking(False)
        # all of them before anybody reads: one batch, the second half in front of the first
        for far, counter, inner in ((one, 1, halves[1]), (one, 0, halves[0]), (other, 0, plain)):
            theirs.sendto(
                records.seal_datagram(CHACHA, far.keys["uin"], far.local_id, counter, inner),
                ours.getsockname(),
            )
        hub.plane.attach_udp(ours.fileno(), socket.AF_INET)
        eventually(lambda: hub.plane.counters()["frames_opened"] == 2)
        eventually(lambda: one.port.counters()["frames_received"] == 1)
        hub.plane.detach_udp()
    assert hub.dropped("rx_dropped") == {}
    assert other.port.counters()["frames_received"] == 1


def test_a_datagram_for_one_peer_does_not_go_into_the_tunnel_to_another(make_hub):
    hub = make_hub(2)
    one, other = hub.far
    inner = struct.pack("<IIQ", records.KIND_UDP, one.remote_id, 7) + bytes(40)
    udp = struct.pack(">HHHH", 9001, 9001, 8 + len(inner), 0) + inner
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), bytes(4))
    hub.tap.feed(other.mac + hub.own + b"\x08\0" + ip + udp)
    hub.settle()
    assert hub.dropped("tx_dropped") == {"own_datagram": 1}
    assert hub.heard() == [0, 0]
