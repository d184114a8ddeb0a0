"""A daemon that ends, begins, stands still."""

from __future__ import annotations

import os
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from shadowmesh.netlab import Daemon, Net, wait_until
from tests.lab.pair import Pair, make_pair

from ..bench import Bench, assert_logs_clean, beside, until
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Sequence


@row(
    "peer crash",
    "noticed <= 5 s (RST), new session <= 5 s after the restart",
    bound_s=330,
    short=(
        "netns/test_faults.py::a_killed_listener_is_found_again_after_its_restart",
        "netns/test_faults.py::a_killed_dialler_takes_its_place_again",
    ),
)
def peer_crash(bench: Bench) -> None:
    # The dialler comes back at once; the listener waits for a back-off of up to 30 s.
    for victim, pauses in (("left", (0, 2, 30)), ("right", (0, 2))):
        with bench.pair(left={"peer.auto_connect": True}) as pair:
            killed = pair.left if victim == "left" else pair.right
            other = pair.right if victim == "left" else pair.left
            for pause_s in (*pauses, *((200,) if bench.long and victim == "left" else ())):
                killed.kill()
                noticed = until("noticed", lambda o=other: o.status()["state"] != "connected", 5)
                time.sleep(pause_s)
                began = time.monotonic()
                killed.start()
                pair.await_connected(40)
                pair.await_pings(5)
                took = time.monotonic() - began
                bench.figure(f"{victim} away {pause_s} s: missed {noticed:.1f}, back {took:.1f} s")
                assert victim == "right" or took <= 8, "the restarted dialler took too long"


@row(
    "clean stop",
    "exit 0 in 3 s, the peer is told, nothing is left",
    bound_s=90,
    short=(
        "netns/test_faults.py::a_clean_stop_is_quick_and_leaves_nothing",
        "netns/test_faults.py::a_disconnect_is_not_undone_by_the_other_side",
    ),
)
def clean_stop(bench: Bench) -> None:
    slowest = 0.0
    with bench.pair() as pair:
        for daemon, other in ((pair.left, pair.right), (pair.right, pair.left)) * 3:
            code, seconds = daemon.terminate()
            slowest = max(slowest, seconds)
            assert code == 0, f"exit {code}"
            assert seconds <= 3, f"the exit took {seconds:.1f} s"
            assert daemon.host.taps() == [], "a TAP is left"
            assert not (daemon.directory / "daemon.pid").exists(), "the pid file is left"
            until("the peer is told", lambda o=other: o.status()["state"] != "connected", 3)
            daemon.start()
            if daemon is pair.left:
                daemon.connect()
            pair.await_connected(40)
        pair.disconnect()
        assert not any(daemon.host.taps() for daemon in pair), "a TAP is left"
        pair.connect()
    bench.figure(f"slowest exit {slowest:.2f} s, leftovers 0")


@row(
    "both restart at once, both dial",
    "exactly one session in every round",
    bound_s=420,
    long_bound_s=3600,
    short=(
        "netns/test_faults.py::both_sides_dial_at_once_and_one_session_stays",
        "netns/test_faults.py::daemons_that_both_dial_for_ever_settle_on_one_session",
    ),
)
def both_dial(bench: Bench) -> None:
    rounds, slowest = bench.amount(20, 200), 0.0
    with Net() as net:
        pair = make_pair(net, bench.place())
        pair.right.settings["peer.address"] = pair.left.host.peer_endpoint
        for daemon in pair:
            daemon.settings["peer.auto_connect"] = True
        try:
            for _ in range(rounds):
                began = time.monotonic()
                pair.start()
                pair.await_connected(20)
                pair.await_pings(10)
                until("one session is left", lambda: pair.peer_connections() == 1, 10)
                slowest = max(slowest, time.monotonic() - began)
                for daemon in pair:
                    daemon.kill()
        finally:
            for daemon in pair:
                daemon.kill()
        assert_logs_clean(pair)
    bench.figure(f"{rounds} rounds, 0 without exactly one session, slowest {slowest:.1f} s")


@row(
    "slow reader",
    "queue bounded, memory flat, goes on after SIGCONT",
    bound_s=150,
    loads=True,
    short=("netns/test_pressure.py::test_a_peer_that_reads_nothing_costs_frames_and_no_memory",),
)
def slow_reader(bench: Bench) -> None:
    most = 0
    with bench.pair(udp=False) as pair, beside(partial(_load, pair)):
        time.sleep(1)  # the load is at its rate
        pair.right.pause()
        try:
            ends = time.monotonic() + bench.amount(20, 60)
            while time.monotonic() < ends:
                most = max(most, pair.left.status()["queue_bytes"])
                time.sleep(0.5)
        finally:
            pair.right.resume()
        pair.await_pings(30)
    bench.figure(f"queue at most {most >> 10} KiB")
    # The ring and the backlog of the data plane: shadowmesh/fast/ring.pxd, backlog.pxd.
    assert most <= (512 + 1024 + 65) * 1024, "the queue has grown past its bounds"


def _load(pair: Pair, stop: threading.Event) -> None:
    """Send UDP through the tunnel from left to right, 2,000 datagrams a second of 1,400 bytes."""
    with pair.left.host.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        while not stop.wait(0.01):
            for _ in range(20):
                try:
                    sock.sendto(bytes(1400), (pair.right.tunnel_ip, 9))
                except OSError:  # the TAP is full: that is the point
                    break


@row(
    "CPU starvation",
    "no reconnect while stalls are short",
    bound_s=120,
    loads=True,
    short=(
        "netns/test_faults.py::a_daemon_that_stands_still_half_of_the_time_keeps_its_session",
        "netns/test_faults.py::a_stopped_process_is_waited_for",
    ),
)
def cpu_starvation(bench: Bench) -> None:
    with bench.pair() as pair:
        core = {min(os.sched_getaffinity(0))}
        for daemon in pair:
            os.sched_setaffinity(daemon.pid, core)
        busy = pair.left.host.popen(
            "sh", "-c", "while :; do :; done", log=bench.directory / "busy.log"
        )
        try:
            os.sched_setaffinity(busy.pid, core)
            _stutter((pair.right,), rounds=bench.amount(100, 300))
            pair.right.pause()
            time.sleep(8)  # the fault lasts
            pair.right.resume()
            pair.await_pings(10)
            reconnects = pair.left.status()["reconnects"]
        finally:
            busy.kill()
            busy.wait()
    bench.figure(f"{reconnects} reconnects after stalls of 0.1 s at 5 Hz and one of 8 s")
    assert reconnects == 0


def _stutter(daemons: Sequence[Daemon], rounds: int) -> None:
    for _ in range(rounds):
        for daemon in daemons:
            daemon.pause()
        time.sleep(0.1)
        for daemon in daemons:
            daemon.resume()
        time.sleep(0.1)


@row(
    "duplicate identity",
    "error within 60 s that names identity.key",
    bound_s=90,
    short=("netns/test_faults.py::a_second_daemon_with_the_same_key_is_told_apart",),
)
def duplicate_identity(bench: Bench) -> None:
    with bench.pair(flat=False) as pair:
        twin = Daemon(pair.net.host("twin"), bench.place(), dict(pair.left.settings))
        twin.state_dir = pair.left.state_dir
        twin.settings["daemon.pid_file"] = str(twin.directory / "daemon.pid")
        twin.settings["network.local_ip"] = "10.0.0.3/24"
        with twin:
            twin.connect()
            began = time.monotonic()
            error = pair.left.wait_for(60, state="error")["last_error"]
            bench.figure(f"error after {time.monotonic() - began:.1f} s")
            assert "identity.key" in error, error
            before = pair.right.log().count("replaced=true")
            time.sleep(20)  # two that replace each other would do so many times
            per_minute = 3 * (pair.right.log().count("replaced=true") - before)
        bench.figure(f"{per_minute} replacements a minute")
        assert per_minute <= 36, "the two throw each other out all the time"
        pair.left.api("POST", "/disconnect")
        pair.left.connect()


@row(
    "cyclic reconnects",
    "descriptors and memory flat, nothing waits for the collector",
    bound_s=400,
    long_bound_s=1200,
    short=(
        "netns/test_api.py::test_ten_connections_leave_no_tap_no_fd_and_no_thread_behind",
        "peer/test_tunnel.py::test_nothing_is_left_to_the_garbage_collector",
        "path/test_paths.py::test_stopped_paths_hold_nobody_and_are_held_by_nobody",
        "peer/test_peer.py::test_connections_leave_no_descriptor_behind",
    ),
)
def cyclic_reconnects(bench: Bench) -> None:
    rounds, most = bench.amount(100, 300), 0
    with bench.pair(udp=True) as pair:
        begin = max(daemon.open_fds() for daemon in pair)
        for _ in range(rounds):
            pair.disconnect()
            pair.connect()
            most = max(most, *(daemon.open_fds() for daemon in pair))
        wait_until(lambda: pair.left.status()["path"] == "udp", 15, "on UDP again")
    bench.figure(f"{rounds} reconnects, descriptors {begin}, at most {most}")
    # A session that is ending and one that begins may overlap; a third is one nobody has freed.
    assert most <= begin + 12, f"descriptors grew from {begin} to {most}"
