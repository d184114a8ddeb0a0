"""A thousand starts: in one process, and as real ones."""

from __future__ import annotations

import time

from ..bench import Bench
from ..catalogue import row

FIRST_FRAME_S = 3.0


@row(
    "a thousand starts",
    "first frame <= 3 s in each",
    bound_s=1500,
    long_bound_s=3600,
    short=(
        "netns/test_api.py::test_ten_connections_leave_no_tap_no_fd_and_no_thread_behind",
        "netns/test_tunnel.py::test_a_ping_crosses_in_both_directions",
    ),
)
def thousand_starts(bench: Bench) -> None:
    worst = slow = 0.0
    reconnects, starts = 1000, bench.amount(100, 1000)
    with bench.pair(canaries=False, flat=False) as pair:
        for _ in range(reconnects):
            pair.left.api("POST", "/disconnect")
            began = time.monotonic()
            pair.left.connect()
            _first_frame(pair)
            worst = max(worst, time.monotonic() - began)
        bench.figure(f"{reconnects} reconnects, worst {worst:.2f} s")
        for _ in range(starts):
            pair.left.kill()
            pair.left.spawn()
            pair.left.await_healthy()
            began = time.monotonic()
            pair.left.connect()
            _first_frame(pair)
            slow = max(slow, time.monotonic() - began)
        bench.figure(f"{starts} starts, worst {slow:.2f} s")
    assert max(worst, slow) <= FIRST_FRAME_S, "a first frame took too long"


def _first_frame(pair) -> None:
    """The first is to come soon: it may wait for an answer to ARP, which may be lost."""
    began = time.monotonic()
    while not pair.left.host.ping(pair.right.tunnel_ip, count=1, timeout_s=0.2).complete:
        assert time.monotonic() - began < 10, "no frame in 10 s"
