"""A peer that is authenticated, and hostile or broken; keys that wear out, clocks that jump."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shadowmesh.base.constants import KEY_LIFETIME_S, REFUSE_AFTER_RECORDS, REKEY_AFTER_RECORDS
from shadowmesh.fast.hooks.records import REASONS, Life
from shadowmesh.netlab import Daemon, Net, NetlabError
from tests.lab.pair import Pair, counters, make_pair, streams

from ..bench import WARM_UP_S, Bench, answers, assert_logs_clean, cpu_seconds, until
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Callable

#: what a session that may seal has in its way
KEEP = -1


def sabotage(daemon: Daemon, way: str) -> None:
    """Let a daemon that is not started yet be changed in one respect (`faults.saboteur`)."""
    own = daemon.command()[1:]
    daemon.command = lambda: [sys.executable, "-m", "faults.saboteur", way, *own]  # type: ignore[method-assign]


def both_ways(way: str) -> Callable[[Pair], None]:
    return lambda pair: [sabotage(daemon, way) for daemon in pair] and None


@row(
    "rekey under load",
    "0 frames lost on WSS and UDP, kills leave the old keys",
    bound_s=200,
    long_bound_s=3700,
    short=(
        "netns/test_faults.py::no_frame_is_lost_while_keys_change_under_traffic",
        "netns/test_paths.py::keys_change_under_traffic_without_losing_a_frame",
        "wire/test_session.py::test_a_rekey_whose_message_is_lost_leaves_the_keys_and_is_tried_again",
    ),
)
def rekey_under_load(bench: Bench) -> None:
    for udp in (False, True):
        with bench.pair(udp=udp, change=both_ways("rekey_every_2_s")) as pair:
            with streams(pair, per_second=300, size=600) as collectors:
                time.sleep(bench.amount(30, 1800))
            rekeys = pair.left.status()["session"]["rekeys"]
            lost = sum(collector.vanished for collector in collectors)
            sent = sum(collector._canaries.sent for collector in collectors)
            for collector in collectors:
                collector.assert_sound()
            bench.figure(f"{'UDP' if udp else 'WSS'}: {rekeys} rekeys, {lost} of {sent} lost")
            assert rekeys >= bench.amount(8, 600), "too few rekeys to tell"
            assert lost <= (sent // 1000 if udp else 0), f"{lost} frames were lost"
            assert pair.left.status()["reconnects"] == 0
    with bench.pair(change=both_ways("rekey_every_2_s"), settle_s=60) as pair:
        for _ in range(bench.amount(5, 50)):
            victim = bench.random.choice((pair.left, pair.right))
            time.sleep(bench.random.uniform(1.9, 2.2))
            victim.kill()
            victim.start()
            if victim is pair.left:
                victim.connect()
            pair.await_connected(40)
            pair.await_pings(10)
        bench.figure("kills in a rekey: back each time")


@row(
    "rekey impossible",
    "stops at 180 s, erases, dials again",
    bound_s=300,
    short=(
        "wire/test_session.py::test_a_rekey_whose_messages_are_always_dropped_stops_at_180_s",
        "wire/test_session.py::test_keys_are_over_after_180_s_without_a_rekey",
    ),
)
def rekey_impossible(bench: Bench) -> None:
    change = both_ways("no_rekey")
    with bench.pair(both={"encryption.rotation_interval": "10s"}, change=change) as pair:
        began = time.monotonic() - WARM_UP_S
        before = pair.left.status()["reconnects"]
        until("it ends", lambda: "keys expired" in pair.left.log() + pair.right.log(), 200)
        took = time.monotonic() - began
        bench.figure(f"stopped after {took:.1f} s")
        assert KEY_LIFETIME_S - 2 <= took <= KEY_LIFETIME_S + 8
        until("dialled again", lambda: pair.left.status()["reconnects"] > before, 40)


@row(
    "counter at limits",
    "rekey at 2^60, no seal at 2^64 - 2^13 - 1",
    bound_s=60,
    short=(
        "fastpath/test_epochs.py::test_nothing_is_sealed_near_the_end_of_the_counter",
        "wire/test_session.py::test_2_to_60_records_rekey_at_once",
    ),
)
def counter_limits(bench: Bench) -> None:
    with bench.pair(change=both_ways("worn_keys")) as pair:
        took = until("a rekey", lambda: pair.left.status()["session"]["rekeys"] > 0, 15)
        pair.assert_pings()
    bench.figure(f"2^60 records: rekeyed after {took:.1f} s")
    for path in ("wss_next", "udp_next"):
        assert Life(0, **{path: REKEY_AFTER_RECORDS}).obstacle() == KEEP
        assert Life(0, **{path: REFUSE_AFTER_RECORDS}).obstacle() == REASONS["seal_refused"]
    bench.figure("the data plane seals at 2^60 and not at 2^64 - 2^13 - 1")


@row(
    "clock jump",
    "no reconnect for +-1 h, +-10 y; after 200 s of SIGSTOP dialled again",
    bound_s=320,
    short=(
        "peer/test_peer.py::test_a_clock_that_is_set_by_years_changes_no_age_and_no_timer",
        "wire/test_session.py::test_after_a_suspend_expired_keys_are_not_used_by_whatever_comes_first",
        "wire/test_liveness.py::test_a_process_that_was_stopped_asks_before_it_gives_up",
    ),
)
def clock_jump(bench: Bench) -> None:
    library, offset = _clock(bench)

    def own_clock(pair: Pair) -> None:
        pair.left.environment = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(offset)}

    with bench.pair(udp=True, change=own_clock, settle_s=90) as pair:
        year = 365 * 86400
        for jump in (3600, -3600, 10 * year, -10 * year, 0):
            offset.write_text(str(jump))
            time.sleep(3)
            status = pair.left.status()
            assert status["state"] == "connected", f"a jump of {jump} s ended it"
            assert status["reconnects"] == 0
            assert status["session"]["rekeys"] < 5, "keys changed because of it"
            pair.assert_pings()
        bench.figure("0 reconnects in 5 jumps")
        pair.right.pause()
        time.sleep(200)
        pair.right.resume()
        began = time.monotonic()
        pair.await_connected(60)
        pair.await_pings(30)
        bench.figure(f"after 200 s of SIGSTOP back {time.monotonic() - began:.1f} s")


def _clock(bench: Bench) -> tuple[Path, Path]:
    place = bench.place()
    library, offset = place / "clock.so", place / "offset"
    offset.write_text("0")
    source = Path(__file__).resolve().parent.parent / "clock.c"
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise NetlabError("no C compiler for faults/clock.c")
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True
    )
    return library, offset


@row(
    "hostile virtio header",
    "refused with a named counter, <= 0.1 ms per record",
    bound_s=90,
    loads=True,
    short=(
        "fastpath/test_frames.py::test_a_frame_from_the_peer_is_judged",
        "fastpath/test_frames.py::test_what_reaches_the_device_is_that_of_the_twin",
    ),
)
def hostile_virtio(bench: Bench) -> None:
    with Net() as net:
        pair = make_pair(net, bench.place(), {"peer.auto_connect": False})
        sabotage(pair.left, "hostile_virtio")
        try:
            pair.start().connect()
            before, idle = counters(pair.right), cpu_seconds(pair.right)
            time.sleep(1)
            idle = cpu_seconds(pair.right) - idle
            until("the TAP is down", lambda: not _up(pair.left), 10)
            busy, began = cpu_seconds(pair.right), time.monotonic()
            time.sleep(bench.amount(5, 60))
            span, busy = time.monotonic() - began, cpu_seconds(pair.right) - busy
            slow = answers(pair.right, 20)
            after = counters(pair.right)
            dropped = {n: v for n, v in after["dropped"].items() if v > before["dropped"].get(n, 0)}
            refused, passed = sum(dropped.values()), after["frames_in"] - before["frames_in"]
            cost = 1000 * max(0.0, busy - idle * span) / max(1, refused + passed)
            bench.figure(
                f"refused {dropped}, passed {passed}, {cost:.2f} ms each with TLS and opening, "
                f"/health worst {1000 * slow[-1]:.0f} ms"
            )
            assert refused > 0, "none was refused"
            # One in six is no super-frame: its checksum is filled in, wherever it is said to be.
            assert passed <= refused / 4, f"{passed} frames with lying headers were delivered"
            assert cost <= 1, "a record keeps the receiver busy"
        finally:
            for daemon in pair:
                daemon.kill()
        assert_logs_clean(pair)


def _up(daemon: Daemon) -> bool:
    return "UP" in daemon.host.interfaces()["tap0"]["flags"]


@row(
    "forged records of an authenticated peer",
    "ended or ignored, no traceback, hub in time, back again",
    bound_s=120,
    short=(
        "wire/test_session.py::test_malformed_records_end_the_session_and_the_peer_is_told_no_detail",
        "peer/test_tunnel.py::test_garbage_instead_of_a_handshake_ends_the_link_alone",
    ),
)
def forged(bench: Bench) -> None:
    def change(pair: Pair) -> None:
        sabotage(pair.left, "forged_records")
        pair.left.environment = {"FAULTS_SEED": str(bench.random.randrange(1 << 30))}

    for udp in (True, False):
        with bench.pair(udp=udp, flat=False, change=change, settle_s=60) as pair:
            slow = answers(pair.right, bench.amount(200, 4000))
            dropped = {name: n for name, n in counters(pair.right)["dropped"].items() if n}
            bench.figure(
                f"{'UDP' if udp else 'WSS'}: {pair.left.status()['reconnects']} reconnects, "
                f"dropped {dropped}, /health worst {1000 * slow[-1]:.0f} ms"
            )
            assert pair.right.running
            pair.left.kill()
            pair.left.command = Daemon.command.__get__(pair.left)  # type: ignore[method-assign]
            pair.left.start()
            pair.left.connect()


@row(
    "upgrade",
    "version 1 session with a peer that knows version 2, both ways",
    bound_s=60,
    short=("wire/test_handshake.py::test_a_later_version_that_still_speaks_ours_is_accepted",),
)
def upgrade(bench: Bench) -> None:
    for newer in ("left", "right"):
        with bench.pair(change=lambda p, n=newer: sabotage(getattr(p, n), "newer_version")) as pair:
            pair.assert_pings()
        bench.figure(f"{newer} newer: connected")


def authenticated_updates(bench: Bench) -> list[str]:
    """TLS key updates without end on an authenticated link, both roles; what went wrong."""
    failures = []
    for hostile in ("left", "right"):
        with Net() as net:
            pair = make_pair(net, bench.place(), {"peer.auto_connect": False})
            sabotage(getattr(pair, hostile), "key_updates")
            victim = pair.right if hostile == "left" else pair.left
            try:
                pair.start().connect()
                time.sleep(2)  # the hostile one is at its work
                slow: list[float] = []
                ends = time.monotonic() + bench.amount(8, 60)
                while time.monotonic() < ends:
                    try:
                        slow += answers(victim, 1)
                    except (OSError, NetlabError):
                        slow.append(20.0)
                worst = 1000 * max(slow)
                bench.figure(f"authenticated {hostile}: /health worst {worst:.0f} ms")
                if worst > 1000:
                    failures.append(f"an authenticated {hostile} stops the hub {worst:.0f} ms")
            finally:
                for daemon in pair:
                    daemon.kill()
            assert_logs_clean(pair)
    return failures
