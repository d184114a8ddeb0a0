"""Threads, descriptors and memory come and go with their owners, in any order of calls."""

from __future__ import annotations

import errno
import gc
import os
import random
import socket
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from shadowmesh._fastpath import DataPlane, Pipe, Port, Session
from shadowmesh.base.errors import LocalProtocolError
from tests.fastpath.rig import (
    MTU,
    FakeTap,
    Node,
    carry,
    eventually,
    frame,
    open_files,
    pair,
    threads,
)


@pytest.fixture
def tap():
    tap = FakeTap()
    yield tap
    tap.close()


# --- The TAP thread -----------------------------------------------------------------------------


def test_a_device_is_one_thread_from_attach_to_detach(tap):
    before = threads()
    plane = DataPlane()
    assert eventually(lambda: threads() == before)
    for _ in range(20):
        plane.attach_tap([tap.fd], MTU)
        assert eventually(lambda: threads() == before + 1)
        plane.detach_tap()
        assert eventually(lambda: threads() == before)
    plane.detach_tap()


def test_a_second_device_is_refused(tap):
    plane = DataPlane()
    plane.attach_tap([tap.fd], MTU)
    with pytest.raises(LocalProtocolError, match="attached already"):
        plane.attach_tap([tap.fd], MTU)
    plane.detach_tap()
    plane.attach_tap([tap.fd], MTU)


# --- Real-time priority ---------------------------------------------------------------------------


def policies() -> dict[str, int]:
    """How each thread of a data plane is scheduled, by its name."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # of another test, and over
            name = (task / "comm").read_text().strip()
            if name.startswith("sm-"):
                found[name] = os.sched_getscheduler(int(task.name))
    return found


def run_both_kinds(plane, tap, sock):
    """Start the threads of the device and of UDP, and return how they are scheduled."""
    plane.attach_tap([tap.fd], MTU)
    plane.attach_udp(sock.fileno(), socket.AF_INET)
    assert eventually(lambda: policies().keys() == {"sm-tap-0", "sm-udp"})
    return policies()


@pytest.fixture
def sock():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def may_be_realtime() -> bool:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, *before)
    return True


def test_by_itself_no_thread_runs_before_others(tap, sock):
    plane = DataPlane()
    found = run_both_kinds(plane, tap, sock)
    assert found == {"sm-tap-0": os.SCHED_OTHER, "sm-udp": os.SCHED_OTHER}
    assert plane.realtime_error() == 0


@pytest.mark.skipif(not may_be_realtime(), reason="needs CAP_SYS_NICE or RLIMIT_RTPRIO")
def test_all_threads_run_before_others_until_that_is_ended_for_good(tap, sock):
    plane = DataPlane(realtime=True)
    found = run_both_kinds(plane, tap, sock)
    assert found == {"sm-tap-0": os.SCHED_RR, "sm-udp": os.SCHED_RR}
    assert plane.realtime_error() == 0
    # The hub, which makes them, has the same as ever.
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    plane.end_realtime()
    assert policies() == {"sm-tap-0": os.SCHED_OTHER, "sm-udp": os.SCHED_OTHER}
    assert plane.realtime_error() == errno.ETIME
    plane.detach_tap()
    plane.attach_tap([tap.fd], MTU)
    assert eventually(lambda: "sm-tap-0" in policies())
    assert policies()["sm-tap-0"] == os.SCHED_OTHER


def test_threads_that_may_not_run_before_others_work_and_say_why(tmp_path):
    code = (
        "import errno, resource, sys\n"
        "from shadowmesh._fastpath import DataPlane\n"
        "from tests.fastpath.rig import MTU, FakeTap\n"
        "tap = FakeTap()\n"
        "plane = DataPlane(realtime=True)\n"
        "plane.attach_tap([tap.fd], MTU)\n"
        "assert plane.realtime_error() == errno.EPERM, plane.realtime_error()\n"
        "plane.detach_tap()\n"
    )
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        command = ["prlimit", "--rtprio=0", "setpriv", "--bounding-set=-sys_nice", *command]
    elif may_be_realtime():
        pytest.skip("this user may have real-time threads, and is not root to drop that")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mtu", [0, 67, 65_536])
def test_an_mtu_out_of_range_is_refused(tap, mtu):
    with pytest.raises(ValueError, match="out of range"):
        DataPlane().attach_tap([tap.fd], mtu)


def test_a_negative_descriptor_is_refused():
    with pytest.raises(ValueError, match="out of range"):
        DataPlane().attach_tap([-1], MTU)


def test_a_blocking_descriptor_is_refused(tap):
    # the thread would wait in read() for ever, and detach_tap() for the thread
    os.set_blocking(tap.fd, True)
    with pytest.raises(ValueError, match="non-blocking"):
        DataPlane().attach_tap([tap.fd], MTU)


def test_frames_after_detach_wait_for_the_next_attach(tap):
    plane = DataPlane()
    plane.attach_tap([tap.fd], MTU)
    plane.detach_tap()
    tap.feed(frame())
    assert plane.counters()["frames_read"] == 0
    plane.attach_tap([tap.fd], MTU)
    eventually(lambda: plane.counters()["frames_read"] == 1)


def test_detach_does_not_wait_for_a_stalled_link(make):
    node = make().start()
    while node.plane.counters()["frames_queued"] < 400:
        node.feed([frame(bytes(1000))] * 32)
    node.feed([frame(bytes(1000))] * 100)  # the thread now waits for room, or soon will
    node.plane.detach_tap()
    counters = node.plane.counters()
    accounted = counters["frames_queued"] + sum(counters["tx_dropped"].values())
    assert counters["frames_read"] == accounted


def test_a_plane_that_is_dropped_stops_its_threads(tap):
    files, running = open_files(), threads()
    plane = DataPlane()
    plane.attach_tap([tap.fd], MTU)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        plane.attach_udp(sock.fileno(), socket.AF_INET)
        assert eventually(lambda: threads() == running + 2)
        del plane
        gc.collect()
        assert eventually(lambda: threads() == running)
    assert open_files() == files


def test_sessions_and_pipes_keep_their_plane(tap):
    running = threads()
    plane = DataPlane()
    plane.attach_tap([tap.fd], MTU)
    port, session, pipe = Port(plane), Session(plane), Pipe(plane, client=True)
    session.belongs_to(port)
    del plane
    gc.collect()
    assert eventually(lambda: threads() == running + 1)
    port.activate(session)
    pipe.send_message(b"still there")
    assert pipe.outgoing() is not None
    del port, session, pipe
    gc.collect()
    assert eventually(lambda: threads() == running)


def test_a_session_keeps_the_pipe_that_it_is_bound_to():
    # the TAP thread writes into its ring
    plane = DataPlane()
    session = Session(plane)
    session.bind(Pipe(plane, client=False))
    gc.collect()
    key_id = session.reserve_key_id()
    keys = dict.fromkeys(("wss_tx", "wss_rx", "udp_tx", "udp_rx"), bytes(32))
    session.install(key_id, 1, "chacha20-poly1305", **keys, peer_mtu_bytes=MTU, peer_caps=0)
    session.send_under(key_id, 0, b"")
    session.close()


def all_sessions(plane: DataPlane) -> list[Session]:
    """Make as many as there may be."""
    sessions = []
    with suppress(LocalProtocolError):
        while True:
            sessions.append(Session(plane))
    return sessions


def test_a_session_that_is_dropped_makes_room_for_another():
    plane = DataPlane()
    port = Port(plane)
    for _ in range(100):
        session = Session(plane)
        session.bind(Pipe(plane, client=False))
        session.belongs_to(port)
        port.activate(session)
        del session
    gc.collect()
    port.close()
    assert len(all_sessions(plane)) == 80


class Owner(Session):
    """A session that knows itself."""


class Manager:
    """Something with callbacks that has a session."""


@pytest.mark.parametrize("kind", [Owner, Manager])
def test_sessions_in_a_cycle_are_collected(kind):
    files = open_files()
    plane = DataPlane()
    owner = Owner(plane) if kind is Owner else Manager()
    session = owner if kind is Owner else Session(plane)
    session.bind(Pipe(plane, client=False))
    owner.me, owner.session = owner, session
    gone = weakref.ref(owner)
    del owner, session
    gc.collect()
    assert gone() is None
    assert len(all_sessions(plane)) == 80
    del plane
    gc.collect()
    assert open_files() == files


# --- The UDP thread -----------------------------------------------------------------------------


def test_a_socket_is_one_thread_from_attach_to_detach():
    before = threads()
    plane = DataPlane()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        for _ in range(20):
            plane.attach_udp(sock.fileno(), socket.AF_INET6)
            assert eventually(lambda: threads() == before + 1)
            with pytest.raises(LocalProtocolError):
                plane.attach_udp(sock.fileno(), socket.AF_INET6)
            plane.detach_udp()
            assert eventually(lambda: threads() == before)
    plane.detach_udp()


def test_another_family_is_refused():
    with pytest.raises(ValueError, match="neither"):
        DataPlane().attach_udp(0, socket.AF_UNIX)


def test_the_device_goes_on_after_the_socket_is_gone(make):
    node = make().start()
    before = threads()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        node.plane.attach_udp(sock.fileno(), socket.AF_INET)
        node.plane.detach_udp()
    assert eventually(lambda: threads() == before)
    node.feed([frame()])
    assert node.settle()["frames_queued"] == 1


# --- Pipes --------------------------------------------------------------------------------------


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_pipe_costs_the_pages_that_it_uses_also_after_others_are_gone():
    plane = DataPlane()
    for _ in range(2):  # what the first pipes used must not be what the next ones are made of
        before = resident_bytes()
        pipes = [Pipe(plane, False) for _ in range(40)]
        for pipe in pipes:
            pipe.send_message(bytes(1000))
        assert resident_bytes() - before < 40 * 64 * 1024
        del pipes, pipe


def test_a_closed_pipe_is_silent():
    plane = DataPlane()
    pipe = Pipe(plane, client=True)
    pipe.send_message(b"queued")
    pipe.close()
    pipe.close()
    assert pipe.closed
    assert pipe.outgoing() is None
    pipe.sent(5)
    assert pipe.ingest(0) == []
    with pytest.raises(LocalProtocolError):
        pipe.send_message(b"more")
    with pytest.raises(LocalProtocolError):
        pipe.send_ws_control(9, b"")


def test_more_than_was_outgoing_cannot_be_sent():
    pipe = Pipe(DataPlane(), client=False)
    with pytest.raises(LocalProtocolError):
        pipe.sent(1)
    pipe.send_message(b"four")
    with pytest.raises(LocalProtocolError):
        pipe.sent(7)
    pipe.sent(6)
    assert pipe.outgoing() is None


def test_more_than_there_was_room_for_cannot_be_ingested():
    pipe = Pipe(DataPlane(), client=False)
    room = len(pipe.recv_buffer())
    with pytest.raises(LocalProtocolError):
        pipe.ingest(room + 1)
    with pytest.raises((OverflowError, ValueError)):
        pipe.ingest(-1)


@pytest.mark.parametrize(("opcode", "size"), [(1, 0), (2, 0), (7, 0), (8, 126), (10, 1000)])
def test_what_is_no_control_frame_is_refused(opcode, size):
    with pytest.raises(ValueError, match="no control frame"):
        Pipe(DataPlane(), client=False).send_ws_control(opcode, bytes(size))


@pytest.mark.parametrize("opcode", [11, 15, 16, 137, 255])
def test_a_reserved_opcode_is_no_control_frame(opcode):
    with pytest.raises(ValueError, match="no control frame"):
        Pipe(DataPlane(), client=False).send_ws_control(opcode, b"")


def test_the_buffer_is_the_pipes_memory_until_the_next_ingest():
    pipe = Pipe(DataPlane(), client=True)
    room = pipe.recv_buffer()
    assert not room.readonly
    with pytest.raises(TypeError):
        Pipe(DataPlane(), client=True).outgoing()[0] = 1  # type: ignore[index]
    pipe.send_message(b"x")
    assert pipe.outgoing().readonly


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [(Session, (None,)), (Session, ()), (Session, (1,)), (Pipe, (None, True)), (Pipe, ())],
)
def test_none_is_no_plane(cls, arguments):
    with pytest.raises(TypeError):
        cls(*arguments)


def test_none_is_no_argument(make):
    node = make(tap=False).start()
    for call in (
        lambda: node.pipe.send_message(None),
        lambda: node.pipe.send_ws_control(9, None),
        lambda: node.session.send_record(0, None),
        lambda: node.session.install(
            1,
            1,
            None,
            wss_tx=None,
            wss_rx=None,
            udp_tx=None,
            udp_rx=None,
            peer_mtu_bytes=1,
            peer_caps=1,
        ),
        lambda: node.plane.send_datagram(None, "127.0.0.1", 1),
        lambda: node.session.use_udp(None, 1, 1400),
    ):
        with pytest.raises((TypeError, LocalProtocolError)):
            call()


# --- Anything in any order ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_calls_in_any_order_never_hang_or_leak(seed):
    files, running = open_files(), threads()
    source = random.Random(seed)
    nodes = pair()
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    actions = [
        lambda n, _: n.feed([frame(bytes(source.randrange(1400)))] * source.randrange(20)),
        lambda n, _: n.take_outgoing(),
        carry,
        lambda n, _: n.plane.attach_tap([n.tap.fd], MTU),
        lambda n, _: n.plane.detach_tap(),
        lambda n, _: n.plane.attach_udp(sockets[n is nodes[1]].fileno(), socket.AF_INET),
        lambda n, _: n.plane.detach_udp(),
        lambda n, _: n.session.use_udp(*sockets[n is nodes[0]].getsockname(), 1400),
        lambda n, _: n.session.use_wss(),
        lambda n, _: n.session.bind(None),
        lambda n, _: n.session.bind(n.pipe),
        lambda n, _: n.pipe.close(),
        lambda n, _: setattr(n, "pipe", Pipe(n.plane, n.client)),
        lambda n, _: n.session.close(),
        lambda n, _: n.start(remote_id=1),
        lambda n, _: setattr(n, "session", n.another_session()),
        lambda n, _: n.session.retire(n.local_id),
        lambda n, _: n.port.activate(None),
        lambda n, _: n.plane.udp_signals(),
        lambda n, _: n.session.send_record(0, b""),
        lambda n, _: n.tap.take(),
    ]
    for _ in range(150):
        node, peer = nodes if source.random() < 0.5 else nodes[::-1]
        try:
            source.choice(actions)(node, peer)
        except Exception as error:  # noqa: BLE001  (named below: anything else is a fault)
            assert type(error).__name__ in (
                "LocalProtocolError",
                "RemoteProtocolError",
                "ValueError",
            ), error
        if source.random() < 0.3:
            drain(nodes[0])
            drain(nodes[1])
    for node in nodes:
        node.plane.detach_udp()
        node.close()
    for sock in sockets:
        sock.close()
    del node, peer
    nodes = ()
    gc.collect()
    # A thread of the test before may still have been in the list, joined but not yet gone.
    assert eventually(lambda: threads() <= running)
    assert open_files() == files


def drain(node: Node) -> None:
    node.take_outgoing()
    node.tap.take()


def test_an_interpreter_that_ends_with_everything_attached_ends():
    code = """
import socket
from tests.fastpath.rig import pair, frame, FakeTap
one, other = pair()
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setblocking(False)
one.plane.attach_udp(sock.fileno(), socket.AF_INET)
one.feed([frame()] * 100)
one.circle = (one, other)
"""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (child.returncode, child.stderr) == (0, "")
