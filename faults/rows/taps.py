"""What happens to the TAP and to the frames on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shadowmesh.netlab import Daemon, Net, NetlabError, introduce
from tests.lab.frames import Wire
from tests.lab.pair import Pair, assert_log_clean, counters

from ..bench import Bench, answers, cpu_seconds, until
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Callable


def _busy(daemon: Daemon, seconds: float, work: Callable[[], object] = lambda: None) -> float:
    """Return the share of a core that a daemon takes for so long, in percent."""
    began, before = time.monotonic(), cpu_seconds(daemon)
    work()
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    return 100 * (cpu_seconds(daemon) - before) / (time.monotonic() - began)


@row(
    "TAP deleted",
    "there again <= 1 s with address and MTU, CPU <= 5 %",
    bound_s=90,
    short=(
        "netns/test_devices.py::test_a_deleted_tap_is_made_again_with_its_address",
        "netns/test_devices.py::test_a_tap_whose_name_is_taken_meanwhile_is_an_error_and_not_a_loop",
    ),
)
def tap_deleted(bench: Bench) -> None:
    slowest = busiest = 0.0
    with bench.pair(both={"network.mtu": 1400}) as pair:
        for daemon in (pair.left, pair.right) * bench.amount(3, 20):
            daemon.host.ip("link del tap0")
            took = until("the TAP is there", lambda d=daemon: _right_tap(d), 5)
            slowest = max(slowest, took)
            pair.await_pings(5)
        # Somebody has the name: no way back, no loop.
        pair.left.host.ip("link add tap9 type bridge", "link del tap0")
        pair.left.host.ip("link set tap9 name tap0") if not pair.left.host.taps() else None
        busiest = _busy(pair.left, 3)
        if "tap0" not in pair.left.host.taps():
            until("an error", lambda: pair.left.status()["state"] == "error", 10)
            pair.left.host.ip("link del tap0")
            pair.left.api("POST", "/connect")
    bench.figure(f"slowest {slowest:.2f} s, CPU {busiest:.1f} %")
    assert slowest <= 1.5, "the TAP came back too late"
    assert busiest <= 5, "it burns processor time"


def _right_tap(daemon: Daemon) -> bool:
    interface = daemon.host.interfaces().get("tap0", {})
    addresses = [address["local"] for address in interface.get("addr_info", [])]
    return interface.get("mtu") == 1400 and daemon.tunnel_ip in addresses


@row(
    "TAP down",
    "drops are counted, CPU <= 5 %, goes on when it is up",
    bound_s=60,
    short=("netns/test_devices.py::test_a_tap_that_is_down_drops_and_counts_and_burns_no_cpu",),
)
def tap_down(bench: Bench) -> None:
    with bench.pair() as pair:
        pair.right.host.ip("link set tap0 down")
        busiest = _busy(pair.right, 5)
        dropped = {name: n for name, n in counters(pair.right)["dropped"].items() if n}
        pair.right.host.ip("link set tap0 up")
        pair.await_pings(5)
    bench.figure(f"CPU {busiest:.1f} %, dropped {dropped}")
    assert busiest <= 5
    assert dropped, "no drop was counted"


@row(
    "namespace or /dev/net/tun gone",
    "a clear error at the start, `error` at run time",
    bound_s=240,
    short=(
        "netns/test_refusals.py::test_without_the_right_to_make_a_tap_the_daemon_does_not_start",
        "netns/test_refusals.py::test_a_file_in_the_place_of_the_driver_stops_the_start",
        "netns/test_causes.py::test_a_deleted_tap_that_cannot_be_made_again_is_named",
    ),
)
def no_tun(bench: Bench) -> None:
    cases = {
        "removed": "mount -t tmpfs tmpfs /dev/net",
        "plain file": "mount -t tmpfs tmpfs /dev/net && touch /dev/net/tun",
        "another node": "mount -t tmpfs tmpfs /dev/net && mknod /dev/net/tun c 1 3",
    }
    failures = []
    for name, script in cases.items():
        with Net() as net:
            daemon = _alone(net, bench)
            daemon.wrapper = ("unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh")
            daemon.spawn()
            try:
                until("the daemon ends", lambda d=daemon: not d.running, 40)
            except AssertionError:
                failures.append(f"{name}: the daemon runs all the same")
                daemon.kill()
            assert_log_clean(daemon)
            if "/dev/net/tun" not in daemon.log():
                failures.append(f"{name}: /dev/net/tun is not named")
    with Net() as net:
        daemon = _alone(net, bench)
        daemon.wrapper = ("setpriv", "--bounding-set", "-net_admin", "--")
        try:
            daemon.start()
            failures.append("without CAP_NET_ADMIN it starts")
        except NetlabError:
            assert_log_clean(daemon)
        finally:
            daemon.kill()
    bench.figure(f"{len(cases) + 1} cases")
    assert not failures, "; ".join(failures)


def _alone(net: Net, bench: Bench) -> Daemon:
    daemon = Daemon(net.host("alone"), bench.place())
    introduce(daemon, Daemon(net.host("nobody"), bench.place()))
    return daemon


@row(
    "device changed by others",
    "health and status notice <= 2 s, the remedy is right",
    bound_s=120,
    short=(
        "netns/test_underlay.py::test_what_others_do_to_the_device_is_noticed_and_undone_by_nobody",
        "netns/test_causes.py::test_a_tap_that_is_down_is_named",
    ),
)
def changed_by_others(bench: Bench) -> None:
    changes = {
        "address flushed": (("address flush dev tap0",), ("address add 10.0.0.1/24 dev tap0",)),
        "MTU changed": (("link set tap0 mtu 1300",), ("link set tap0 mtu 1500",)),
        "put into a bridge": (
            ("link add br7 type bridge", "link set br7 up", "link set tap0 master br7"),
            ("link set tap0 nomaster", "link del br7"),
        ),
        "address moved": (
            (
                "link add br7 type bridge",
                "link set br7 up",
                "address flush dev tap0",
                "link set tap0 master br7",
                "address add 10.0.0.1/24 dev br7",
            ),
            (
                "link set tap0 nomaster",
                "link del br7",
                "address add 10.0.0.1/24 dev tap0",
            ),
        ),
    }
    failures = []
    with bench.pair() as pair:
        before = _checks(pair.left)
        for name, (done, undone) in changes.items():
            for command in done:
                pair.left.host.ip(command)
            try:
                took = until("noticed", lambda: _checks(pair.left) != before, 4)
                bench.figure(f"{name}: noticed {took:.1f} s")
            except AssertionError:
                failures.append(f"{name}: health still says {before}")
            for command in undone:
                pair.left.host.ip(command)
            until("well again", lambda: _checks(pair.left) == before, 15)
    assert not failures, "; ".join(failures)


def _checks(daemon: Daemon) -> dict[str, str]:
    """What health says, but for what a loaded machine does to it."""
    _, health = daemon.api("GET", "/health")
    moody = {"hub_lag", "clock", "queue", "path"}
    return {name: c["code"] for name, c in health["checks"].items() if name not in moody}


@row(
    "peer floods L2",
    "tables bounded, no amplification, the tunnel lives",
    bound_s=120,
    loads=True,
    short=("fastpath/test_frames.py::test_every_frame_is_accounted_for_whatever_happens",),
)
def l2_flood(bench: Bench) -> None:
    sent, loop_frames = bench.amount(100_000, 500_000), 0
    with bench.pair() as pair, Wire(pair.left.host, "tap0") as wire:
        for number in range(sent):
            source = b"\x02\x00" + number.to_bytes(4)
            try:
                wire.send(b"\xff" * 6 + source + b"\x88\xb6" + bytes(50))
            except OSError:
                continue
        pair.await_pings(10)
        loop_frames = _loop(pair)
        pair.await_pings(10)
    bench.figure(f"{sent} broadcasts from as many addresses; loop: {loop_frames} frames/s")


def _loop(pair: Pair) -> int:
    """Close a loop of tunnel and cable with a bridge on either side; one broadcast goes round."""
    hosts = (pair.left.host, pair.right.host)
    pair.left.host.ip(f"link add x0 type veth peer name x0 netns {pair.right.host.namespace}")
    for host in hosts:
        host.ip(
            "link add br7 type bridge forward_delay 0",
            "link set x0 up",
            "link set br7 up",
            "link set x0 master br7",
            "link set tap0 master br7",
        )
    before = counters(pair.right)["frames_in"]
    time.sleep(2)  # the storm goes round
    answers(pair.left, 3, route="/status")  # the hub lives beside the storm
    went_round = counters(pair.right)["frames_in"] - before
    for host in hosts:
        host.ip("link set tap0 nomaster", "link del br7")
    pair.left.host.ip("link del x0")
    return went_round // 2
