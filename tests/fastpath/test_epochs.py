"""Key epochs of a session: reserve, install, switch, retire, exhaust."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shadowmesh._fastpath import DROP_NAMES, REFUSAL_NAMES, Pipe, Port, Session
from shadowmesh.base import constants
from shadowmesh.base.constants import ControlCode, Inner
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.fast.hooks import records as hooks
from tests.fastpath.rig import (
    CIPHERS,
    KEYS,
    NO_OFFLOAD,
    Node,
    Peer,
    carry,
    frame,
    ingest,
    plain,
    unpack,
)
from tests.twins import records, websocket

ACCEPT = bytes([ControlCode.ACCEPT]) + bytes(6)
NEW_KEYS = {
    name: bytes([number]) * 32 for number, name in enumerate(("out", "in", "uout", "uin"), 9)
}
GOOD = plain(frame(b"good"))


# --- Key ids ------------------------------------------------------------------------------------


def test_the_low_half_of_a_key_id_is_its_slot_and_a_session_has_eight(make):
    node = make(tap=False)
    ids = [node.session.reserve_key_id() for _ in range(8)]
    assert [key_id & 0xFFFF for key_id in ids] == list(range(8))
    with pytest.raises(LocalProtocolError, match="no key epoch is free"):
        node.session.reserve_key_id()
    other = Session(node.plane)
    assert other.reserve_key_id() & 0xFFFF == 8
    node.session.retire(ids[5])
    assert other.reserve_key_id() & 0xFFFF == 5
    assert other.reserve_key_id() & 0xFFFF == 9
    other.close()


def test_every_slot_can_be_used(make):
    node = make(tap=False)
    ports = [Port(node.plane) for _ in range(1023)]
    sessions = [Session(node.plane) for _ in range(3000)]
    used = {one.reserve_key_id() & 0xFFFF for one in sessions for _ in range(8)}
    assert used == set(range(24_000))
    for one in (*sessions, *ports):
        one.close()


def test_key_ids_are_random_above_the_slot(make):
    node = make(tap=False)
    seen = set()
    for _ in range(200):
        key_id = node.session.reserve_key_id()
        node.session.retire(key_id)
        assert key_id & 0xFFFF == 0
        assert key_id != 0
        seen.add(key_id)
    # 200 of 2^16 values: some 0.3 pairs are the same, nine are never
    assert len(seen) > 190
    assert {bit for bit in range(16, 32) if any(key_id >> bit & 1 for key_id in seen)} == set(
        range(16, 32)
    )


@pytest.mark.parametrize("wanted", [1, 0x55, 0x100, 0x11223344, 0xFFFFFFFF])
def test_a_wanted_key_id_is_given_or_refused(make, wanted):
    node = make(tap=False)
    assert node.session.reserve_key_id(wanted) == wanted
    with pytest.raises(LocalProtocolError):
        node.session.reserve_key_id(wanted)
    with pytest.raises(LocalProtocolError):  # another one in the same slot
        node.session.reserve_key_id(wanted ^ 0x420000)


def test_closing_a_session_gives_its_epochs_back(make):
    node = make(tap=False)
    for _ in range(3):
        session = Session(node.plane)
        for _ in range(8):
            session.reserve_key_id()
        session.close()
    assert node.session.reserve_key_id() & 0xFFFF == 0


def test_eighty_sessions_and_three_for_each_port_are_all(make):
    node = make(tap=False)
    others = [Session(node.plane) for _ in range(82)]
    assert len({one.number for one in (node.session, *others)}) == 83
    with pytest.raises(LocalProtocolError, match="83 sessions"):
        Session(node.plane)
    others[3].close()
    others.append(Session(node.plane))
    assert others[-1].number not in {one.number for one in (node.session, *others[:-1])}
    for one in others:
        one.close()


# --- Order of calls -----------------------------------------------------------------------------


def test_keys_go_only_where_an_id_was_reserved(make):
    node, stranger = make(tap=False), make(tap=False)
    key_id = node.session.reserve_key_id()
    with pytest.raises(LocalProtocolError):
        node.install(key_id ^ 0x100, 1)
    with pytest.raises(LocalProtocolError):
        stranger.install(key_id, 1)
    other = Session(node.plane)
    for call in (other.retire, other.send_under):
        with pytest.raises(LocalProtocolError):
            call(key_id)
    other.close()
    with pytest.raises(LocalProtocolError, match="no keys yet"):
        node.session.send_under(key_id)
    node.install(key_id, 1)
    with pytest.raises(LocalProtocolError, match="keys already"):
        node.install(key_id, 1)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_size_is_refused(make, size):
    node = make(tap=False)
    key_id = node.session.reserve_key_id()
    for name in KEYS:
        with pytest.raises(ValueError, match="32 bytes"):
            node.install(key_id, 1, keys=KEYS | {name: bytes(size)})


def test_an_unknown_cipher_is_refused(make):
    node = make(tap=False)
    key_id = node.session.reserve_key_id()
    with pytest.raises((KeyError, ValueError)):
        node.install(key_id, 1, "rot13")
    node.install(key_id, 1)  # and nothing was changed


def test_nothing_is_sealed_without_keys_or_link(make):
    node = make(tap=False)
    with pytest.raises(LocalProtocolError, match="not_connected"):
        node.session.send_record(Inner.PADDING, b"")
    key_id = node.session.reserve_key_id()
    node.install(key_id, 1)
    with pytest.raises(LocalProtocolError, match="link_lost"):
        node.session.send_under(key_id, Inner.CONTROL, ACCEPT)
    with pytest.raises(LocalProtocolError, match="not_connected"):  # and nothing was changed
        node.session.send_record(Inner.PADDING, b"")
    node.session.bind(node.pipe)
    node.session.send_under(key_id, Inner.CONTROL, ACCEPT)
    assert unpack(node.take_outgoing(), node) == [(1, 0, [b"\x02" + ACCEPT])]


@pytest.mark.parametrize(("inner_type", "size"), [(-1, 0), (256, 0), (2, 2049)])
def test_a_record_that_cannot_be_is_refused(make, inner_type, size):
    node = make(tap=False).start()
    with pytest.raises(LocalProtocolError, match="not allowed"):
        node.session.send_record(inner_type, bytes(size))
    assert node.pipe.outgoing() is None


def test_a_closed_session_does_nothing_more(make):
    node = make(tap=False).start()
    session, key_id = node.session, node.local_id
    session.close()
    session.close()
    assert session.number == -1
    for call in (
        session.reserve_key_id,
        lambda: session.retire(key_id),
        lambda: session.send_under(key_id),
        lambda: session.send_record(0, b""),
        lambda: session.bind(node.pipe),
        lambda: session.bind(None),
        session.activity,
        session.udp_activity,
        session.records_sealed,
        session.use_wss,
        lambda: session.use_udp("127.0.0.1", 9, 1400),
        lambda: session.send_udp_record(0, b"", "127.0.0.1", 9),
        lambda: node.port.activate(session),
    ):
        with pytest.raises(LocalProtocolError):
            call()


def test_a_pipe_of_another_plane_or_session_is_refused(make):
    node, other = make(tap=False), make(tap=False)
    with pytest.raises(LocalProtocolError):
        node.session.bind(other.pipe)
    with pytest.raises(LocalProtocolError):
        node.port.activate(other.session)
    node.session.bind(node.pipe)
    second = Session(node.plane)
    with pytest.raises(LocalProtocolError):
        second.bind(node.pipe)
    second.close()
    node.session.bind(None)
    closed = Pipe(node.plane, False)
    closed.close()
    with pytest.raises(LocalProtocolError):
        node.session.bind(closed)


# --- Rekey --------------------------------------------------------------------------------------


def rekey(initiator: Node, responder: Node, cipher: str) -> None:
    """New keys on both sides, as after message 3, before ACCEPT."""
    for node in (initiator, responder):
        node.old_id, node.local_id = node.local_id, node.session.reserve_key_id()
    for node, peer, swap in ((initiator, responder, False), (responder, initiator, True)):
        node.remote_id = peer.local_id
        node.install(node.local_id, node.remote_id, cipher, swap=swap, keys=NEW_KEYS)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_rekey_under_load_loses_and_reorders_no_frame(linked, cipher):
    one, other = linked(cipher)
    numbers = iter(range(10_000))
    sent = {one: [], other: []}

    def feed() -> None:
        for node in (one, other):
            for _ in range(20):
                data = frame(next(numbers).to_bytes(4, "big"))
                sent[node].append(data)
                node.tap.feed(data)

    got = {one: [], other: []}

    def move() -> list[tuple]:
        events = []
        for sender, receiver in ((one, other), (other, one)):
            events += carry(sender, receiver, [997] * 50)
            got[receiver] += [data[10:] for data in receiver.tap.take()]
        return events

    feed()
    rekey(one, other, cipher)  # both accept both from now on
    feed()
    move()
    other.session.send_under(other.local_id, Inner.CONTROL, ACCEPT)
    feed()  # the responder under the new keys, the initiator still under the old
    for node in (one, other):
        node.settle()
    assert ("record", one.local_id, Inner.CONTROL, ACCEPT) in move()
    one.session.send_under(one.local_id)
    feed()
    for node in (one, other):
        node.settle()
    move()
    for node in (one, other):
        node.session.retire(node.old_id)
    feed()
    for node in (one, other):
        node.settle()
    move()
    assert got[other] == sent[one]
    assert got[one] == sent[other]


def test_the_accept_is_the_first_record_under_the_new_keys(make):
    node = make().start()
    node.feed([frame(b"old")] * 30)
    new = node.session.reserve_key_id()
    node.install(new, 0x0A0B0C0D, keys=NEW_KEYS)
    node.session.send_under(new, Inner.CONTROL, ACCEPT)
    node.feed([frame(b"new")] * 30)
    node.settle()
    stream = node.take_outgoing()
    under_new = False
    firsts = []
    for one in websocket.decode_all(stream, masked=False)[0]:
        key_id = int.from_bytes(one.payload[4:8], "little")
        under_new = under_new or key_id == 0x0A0B0C0D
        keys = NEW_KEYS if under_new else KEYS
        opened = records.open_message("chacha20-poly1305", keys["out"], one.payload)
        assert opened is not None
        assert opened[0] == (0x0A0B0C0D if under_new else node.remote_id)
        if under_new:
            firsts += opened[2]
    assert firsts[0] == b"\x02" + ACCEPT
    assert firsts.count(plain(frame(b"new"))) == 30


def test_the_old_receive_key_goes_with_the_first_new_record(make):
    node = make().start()
    peer = Peer(node)
    old = node.local_id
    new = node.session.reserve_key_id()
    node.install(new, 1, keys=NEW_KEYS)
    peer.send(GOOD)  # both are accepted
    late = peer.message([GOOD])
    fresh = peer.message([GOOD], key_id=new, key=NEW_KEYS["in"], first_counter=0)
    ingest(node.pipe, peer.frame(fresh))
    assert len(node.tap.take()) == 2
    with pytest.raises(RemoteProtocolError) as caught:
        ingest(node.pipe, peer.frame(late))
    assert caught.value.close_code == 4400
    assert node.tap.take() == []
    node.session.retire(old)


def test_a_new_record_that_is_forged_does_not_end_the_old_key(make):
    # the link ends, but a new one of the same session may go on under the old keys
    node = make().start()
    peer = Peer(node)
    new = node.session.reserve_key_id()
    node.install(new, 1, keys=NEW_KEYS)
    forged = peer.message([GOOD], key_id=new, key=bytes(32), first_counter=0)
    with pytest.raises(RemoteProtocolError):
        ingest(node.pipe, peer.frame(forged))
    node.pipe.close()
    node.pipe = Pipe(node.plane, False)
    node.session.bind(node.pipe)
    peer.counter = 0
    peer.send(GOOD)
    assert node.tap.take() == [NO_OFFLOAD + GOOD[1:]]


def test_retired_keys_neither_open_nor_seal(make):
    node = make().start()
    node.session.retire(node.local_id)
    with pytest.raises(RemoteProtocolError):
        Peer(node).send(GOOD)
    node.feed([frame()])
    assert node.settle()["tx_dropped"]["not_connected"] == 1
    with pytest.raises(LocalProtocolError, match="not_connected"):
        node.session.send_record(Inner.PADDING, b"")
    with pytest.raises(LocalProtocolError):
        node.session.retire(node.local_id)


def test_retiring_other_keys_leaves_the_sending_ones_alone(make):
    node = make().start()
    node.session.retire(node.session.reserve_key_id())
    node.session.send_record(Inner.PADDING, b"")
    assert len(unpack(node.take_outgoing(), node)) == 1


#: Looks for keys in all the writable memory of its process, through one buffer that it leaves out.
WATCHER = """
import ctypes, mmap, os, socket
from shadowmesh._fastpath import DataPlane, Pipe, Port, Session

keys = [bytes((i * 37 + n * 101) % 251 for n in range(32)) for i in range(5, 9)]
buffer = mmap.mmap(-1, 1 << 20)
ours = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
memory = os.open("/proc/self/mem", os.O_RDONLY)

def copies():
    found = 0
    with open("/proc/self/maps") as maps:
        spans = [line.split() for line in maps]
    for span, rights, *rest in spans:
        start, end = (int(place, 16) for place in span.split("-"))
        if rights[:2] != "rw" or start <= ours < end:
            continue
        while start < end:
            count = os.preadv(memory, [memoryview(buffer)[: end - start]], start)
            found += sum(find(key, count) for key in keys)
            start += count - 31 if start + count < end else count
    return found

def find(key, end):
    found, at = 0, buffer.find(key, 0, end)
    while at >= 0:
        found, at = found + 1, buffer.find(key, at + 1, end)
    return found
"""
KEYS_GO = (
    WATCHER
    + """
def install():
    key_id = session.reserve_key_id()
    session.install(key_id, 1, "chacha20-poly1305", wss_tx=keys[0], wss_rx=keys[1],
                    udp_tx=keys[2], udp_rx=keys[3], peer_mtu_bytes=1500, peer_caps=0)
    return key_id

plane = DataPlane()
session = Session(plane)
without = copies()
assert without >= 4
key_id = install()
assert copies() == without + 4, "the watcher does not see the keys"
session.retire(key_id)
assert copies() == without, "after retire"
install()
session.close()
assert copies() == without, "after close"
session = Session(plane)
install()
del session
assert copies() == without, "after the session went"
"""
)
#: Two planes, each with all its threads: frames cross over both paths, and then the keys go.
USED_KEYS_GO = (
    WATCHER
    + """
cipher, size = os.environ["CIPHER"], int(os.environ["FRAME_BYTES"])
frame = bytes.fromhex("020000000002 020000000001 88b5") + bytes(size - 14)

class Node:
    def __init__(self, client):
        self.kernel, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setblocking(False)
        self.device.setblocking(False)
        self.kernel.settimeout(20)
        self.plane = DataPlane()
        self.plane.attach_tap([self.device.fileno()], 1500)
        self.plane.attach_udp(self.udp.fileno(), socket.AF_INET)
        self.port, self.session = Port(self.plane), Session(self.plane)
        self.session.belongs_to(self.port)
        self.pipe = Pipe(self.plane, client)
        self.key_id = self.session.reserve_key_id()

    def start(self, peer, order):
        names = ("wss_tx", "wss_rx", "udp_tx", "udp_rx")
        self.session.install(self.key_id, peer.key_id, cipher, peer_mtu_bytes=1500, peer_caps=0,
                             **dict(zip(names, (keys[i] for i in order))))
        self.session.bind(self.pipe)
        self.session.send_under(self.key_id)
        self.port.activate(self.session)

    def frame_to(self, peer):
        self.kernel.send(bytes(10) + frame)
        return peer.kernel.recv(2000)

one, other = Node(True), Node(False)
without = copies()
one.start(other, (0, 1, 2, 3))
other.start(one, (1, 0, 3, 2))
assert copies() == without + 8, "the watcher does not see the keys"
one.kernel.send(bytes(10) + frame)
while (ready := one.pipe.outgoing()) is None:
    os.sched_yield()
other.pipe.recv_buffer()[: len(ready)] = ready
other.pipe.ingest(len(ready))
assert other.kernel.recv(2000) == bytes(10) + frame
for a, b in ((one, other), (other, one)):
    a.session.use_udp(*b.udp.getsockname(), 1472)
    assert a.frame_to(b) == bytes(10) + frame
    a.session.send_udp_record(4, bytes(size), *b.udp.getsockname())
for node in (one, other):
    node.session.retire(node.key_id)
assert copies() == without, f"{copies() - without} copies after retire"
"""
)
no_sanitizer = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="the shadow memory of the sanitizer has terabytes to look through",
)


def watch(program: str, **environment: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr


@no_sanitizer
def test_retired_and_closed_keys_leave_no_copy_in_memory():
    watch(KEYS_GO)


@no_sanitizer
@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("frame_bytes", [64, 1400])
def test_keys_that_sealed_and_opened_leave_no_copy_in_any_thread(cipher, frame_bytes):
    watch(USED_KEYS_GO, CIPHER=cipher, FRAME_BYTES=str(frame_bytes))


def test_records_sealed_counts_the_busier_path(make):
    node = make().start()
    assert node.session.records_sealed() == 0
    for _ in range(5):
        node.session.send_record(Inner.PADDING, b"")
    assert node.session.records_sealed() == 5
    node.session.retire(node.local_id)
    assert node.session.records_sealed() == 0


def test_both_ends_reach_the_same_counters(linked):
    one, other = linked()
    one.feed([frame(bytes(100))] * 50)
    one.settle()
    carry(one, other)
    sent, got = one.plane.counters(), other.plane.counters()
    assert sent["frames_sent"] == got["frames_opened"] == got["frames_written"] == 50
    assert sent["bytes_read"] == got["bytes_written"] == 50 * 114
    assert one.session.activity()[0] > 0.0
    assert other.session.activity()[1] > 0.0


# --- Age and limits -------------------------------------------------------------------------------

LIFETIME_NS = round(constants.KEY_LIFETIME_S * 1e9)
LIMIT = constants.REFUSE_AFTER_RECORDS
#: the most records that are sealed after one look at the counter: an outbox full by each of four
#: TAP threads, and the hub's
BATCH_MAX = 5 * 256 * 64
KEEP = -1


def reason(name: str) -> int:
    return DROP_NAMES.index(name)


@pytest.mark.parametrize(
    ("age_ns", "alive"), [(0, True), (LIFETIME_NS, True), (LIFETIME_NS + 1, False)]
)
def test_keys_live_for_180_seconds(age_ns, alive):
    keys = hooks.Life(age_ns)
    assert keys.obstacle() == (KEEP if alive else reason("key_expired"))
    assert keys.opens() is alive
    refusal = "forged" if alive else "expired"  # the datagram is never authentic
    assert keys.refuses_datagram(5) == REFUSAL_NAMES.index(refusal)


def test_keys_that_were_installed_after_the_clock_was_read_are_not_old():
    keys = hooks.Life(2**64 - 500)  # half a microsecond before they were born
    assert keys.obstacle() == KEEP
    assert keys.opens()


@pytest.mark.parametrize("path", ["wss_next", "udp_next"])
def test_nothing_is_sealed_near_the_end_of_the_counter(path):
    assert hooks.Life(0, **{path: LIMIT - BATCH_MAX - 1}).obstacle() == KEEP
    for counter in (LIMIT - BATCH_MAX, LIMIT, 2**64 - 1):
        assert hooks.Life(0, **{path: counter}).obstacle() == reason("seal_refused")


def test_a_datagram_past_the_limit_is_not_even_tried():
    keys = hooks.Life(0)
    assert keys.refuses_datagram(LIMIT) == REFUSAL_NAMES.index("forged")
    assert keys.refuses_datagram(LIMIT + 1) == REFUSAL_NAMES.index("replay")


def test_the_life_and_the_limit_are_those_of_the_protocol():
    assert hooks.SIZES["SM_KEY_LIFETIME_NS"] == LIFETIME_NS
    assert hooks.SIZES["SM_SEAL_LIMIT"] == LIMIT == 2**64 - 2**13 - 1
