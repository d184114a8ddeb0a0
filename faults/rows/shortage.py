"""Something runs short: descriptors, memory."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shadowmesh.netlab import PEER_PORT, NetlabError
from tests.lab.pair import streams

from ..bench import Bench, answers, cpu_seconds, until
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadowmesh.netlab import Daemon


@row(
    "fd exhaustion",
    "accept pauses, no spin, tunnel and API live",
    bound_s=120,
    short=(
        "netns/test_pressure.py::test_a_flood_of_connections_without_descriptors_leaves_the_tunnel_alone",
        "link/test_listener.py::test_real_exhaustion_of_descriptors_is_survived_without_spinning",
    ),
)
def descriptors(bench: Bench) -> None:
    failures = []
    with bench.pair(udp=True, settle_s=60) as pair:
        left, right = pair
        addresses = [f"198.51.100.{100 + number}" for number in range(20)]
        left.host.ip(*(f"address add {address}/24 dev eth0" for address in addresses))
        limit = resource.prlimit(right.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(right.pid, resource.RLIMIT_NOFILE, (right.open_fds() + 4, limit[1]))
        with contextlib.ExitStack() as flood:
            for number in range(80):
                one = flood.enter_context(left.host.open_socket(socket.AF_INET, socket.SOCK_STREAM))
                one.bind((addresses[number % len(addresses)], 0))
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect((right.host.ipv4, PEER_PORT))
            time.sleep(1)  # the flood has taken the descriptors
            began, before = time.monotonic(), cpu_seconds(right)
            pings = left.host.ping(right.tunnel_ip, count=20)
            codes = {}
            for route in ("/health", "/status"):
                try:
                    codes[route] = right.api("GET", route, timeout_s=3)[0]
                except (OSError, NetlabError) as error:
                    codes[route] = type(error).__name__
            time.sleep(max(0.0, began + 5 - time.monotonic()))
            busy = 100 * (cpu_seconds(right) - before) / (time.monotonic() - began)
        resource.prlimit(right.pid, resource.RLIMIT_NOFILE, limit)
        bench.figure(f"{pings.received} of 20 pings, CPU {busy:.0f} %, API {codes}")
        if pings.received < 20:
            failures.append("frames were lost")
        if busy > 30:
            failures.append("it spins")
        if 500 in codes.values():
            failures.append(f"the API answers {codes}")
        until("what came in is gone", lambda: right.open_fds() < 60, 20)
    assert not failures, "; ".join(failures)


@row(
    "memory limit",
    "drops, not MemoryError in the loop; no traceback without end",
    bound_s=150,
    short=("peer/test_peer.py::test_a_session_that_cannot_be_made_is_a_failed_attempt",),
)
def memory(bench: Bench) -> None:
    with bench.pair(flat=False, settle_s=60) as pair:
        right = pair.right
        # Address space: no new thread, mapping or pipe; what runs goes on.
        used = _address_space(right)
        limit = resource.prlimit(right.pid, resource.RLIMIT_AS)
        resource.prlimit(right.pid, resource.RLIMIT_AS, (used + (1 << 20), limit[1]))
        with streams(pair, per_second=300, size=1000) as collectors:
            for _ in range(10):
                with contextlib.suppress(OSError, NetlabError):
                    right.api("GET", "/status", timeout_s=3)
            time.sleep(3)  # frames pass without memory
        for collector in collectors:
            collector.assert_sound()
        # It needs a new device now, and the memory of new sessions; what the pair's own canaries
        # see of that is looked at in the end.
        right.host.ip("link del tap0")
        time.sleep(2)  # it is made again, or cannot be
        for _ in range(3):
            pair.left.api("POST", "/disconnect")
            pair.left.api("POST", "/connect")
        resource.prlimit(right.pid, resource.RLIMIT_AS, limit)
        pair.left.api("POST", "/connect")  # what was refused for want of memory is had now
        lines = right.log().count("MemoryError")
        bench.figure(f"RLIMIT_AS: runs {right.running}, MemoryError {lines} times in the log")
        assert right.running, "it ended"
        assert lines < 5, "MemoryError again and again"
        _in_group(bench, right)
        pair.await_connected(60)


def _in_group(bench: Bench, daemon: Daemon) -> None:
    """Resident memory, by cgroup: pages are taken back, and the daemon may be slow but not wrong."""
    with _group(bench) as group:
        if group is None:
            bench.figure("no cgroup of memory here")
            return
        (group / "cgroup.procs").write_text(str(daemon.pid))
        limit = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
        rss = daemon.status()["resources"]["rss_bytes"]
        with contextlib.suppress(OSError):  # EBUSY: cannot be pressed below
            (group / limit).write_text(str(rss + (4 << 20)))
        slowest = answers(daemon, 20, route="/status")[-1]
        (group.parent / "cgroup.procs").write_text(str(daemon.pid))
        bench.figure(f"cgroup at RSS + 4 MiB: slowest answer {1000 * slowest:.0f} ms")
        assert daemon.running, "the kernel ended it"


@contextlib.contextmanager
def _group(bench: Bench) -> Iterator[Path | None]:
    """A control group with a limit of memory; None where there is none to be had."""
    mount = bench.place()
    made = None
    for kind, options in (("cgroup", ("-o", "memory")), ("cgroup2", ())):
        if os.spawnlp(os.P_WAIT, "mount", "mount", "-t", kind, *options, "none", str(mount)):
            continue
        group = mount / f"faults-{os.getpid()}-{bench.random.randrange(1 << 30):x}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / "memory.max").exists() or (group / "memory.limit_in_bytes").exists():
                made = group
                break
            group.rmdir()
    try:
        yield made
    finally:
        if made is not None:
            made.rmdir()


def _address_space(daemon: Daemon) -> int:
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()
