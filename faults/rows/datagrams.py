"""What becomes of datagrams between two hosts."""

from __future__ import annotations

import heapq
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from shadowmesh.netlab import wait_until
from tests.lab import faults
from tests.lab.pair import Pair, counters, streams
from tests.lab.relay import Relay, udp_of, with_payload, without_ipv6

from ..bench import Bench, await_path, until
from ..catalogue import row

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.netlab import Daemon

#: where the counter stands in a record, and how long it is (protocol section 6)
COUNTER_AT, COUNTER_BYTES = 8, 8
WINDOW: Final = 65536 - 64


def refused(daemon: Daemon) -> dict[str, int]:
    return dict(counters(daemon)["udp_refused"])


def grown(daemon: Daemon, before: dict[str, int]) -> dict[str, int]:
    now = refused(daemon)
    return {
        name: now[name] - before.get(name, 0) for name in now if now[name] > before.get(name, 0)
    }


@row(
    "UDP send errors",
    "counted by errno, fall back, never exit",
    bound_s=120,
    short=(
        "netns/test_paths.py::a_sender_whose_own_firewall_drops_udp_goes_back_to_wss",
        "netns/test_paths.py::an_interface_that_shrinks_makes_smaller_datagrams",
    ),
)
def send_errors(bench: Bench) -> None:
    with bench.pair(udp=True) as pair:
        host = pair.left.host
        host.nft(
            "table inet f {\nchain o {\ntype filter hook output priority 0\n"
            "meta l4proto udp drop\n}\n}\n"
        )
        await_path(pair, "wss", 10)
        host.run("nft", "delete", "table", "inet", "f")
        await_path(pair, "udp", 60)
        for daemon in pair:
            daemon.host.ip("link set eth0 mtu 1300")
        pair.left.host.ping(pair.right.tunnel_ip, size=1472, count=3)
        for daemon in pair:
            daemon.host.ip("link set eth0 mtu 1500")
        host.run(
            "tc",
            *[
                "qdisc",
                "add",
                "dev",
                "eth0",
                "root",
                "tbf",
                "rate",
                "1mbit",
                "burst",
                "3000",
                "limit",
                "3000",
            ],
        )
        with streams(pair, per_second=300, size=1000):
            time.sleep(3)
        host.run("tc", *["qdisc", "del", "dev", "eth0", "root"])
        host.ip("address del 198.51.100.1/24 dev eth0")
        time.sleep(2)  # long enough to dial in vain
        host.ip("address add 198.51.100.1/24 dev eth0")
        pair.await_pings(20)
        errors = {name: n for name, n in counters(pair.left)["udp_errors"].items() if n}
    bench.figure(f"counted {errors}")
    assert "EPERM" in errors


@row(
    "loss, delay, reorder, duplicate",
    "goodput degrades smoothly, no duplicate on the TAP",
    bound_s=240,
    short=(
        "netns/test_paths.py::replayed_reordered_cut_and_altered_datagrams_do_no_harm",
        "wire/test_path.py::test_five_stalls_of_a_second_do_not_leave_udp",
    ),
)
def bad_cable(bench: Bench) -> None:
    with bench.pair(udp=True, change=without_ipv6) as pair:
        for percent in (1, 5, 20):
            with faults.lose(pair.net, percent), streams(pair, per_second=300) as collectors:
                time.sleep(bench.amount(8, 60))
            for collector in collectors:
                collector.assert_sound()
            sent = sum(c._canaries.sent for c in collectors)
            lost = sum(c.lost for c in collectors)
            bench.figure(f"{percent} %: lost {100 * lost / sent:.1f} %")
            assert lost <= sent * (2 * percent + 5) / 100, f"far more than {percent} % is lost"
        await_path(pair, "udp", 60)
        before = refused(pair.right).get("replay", 0)
        with (
            Delayed(pair, bench, copies=0.05) as delayed,
            streams(pair, per_second=300) as collectors,
        ):
            time.sleep(bench.amount(8, 60))
        for collector in collectors:
            collector.assert_sound()
        dropped = refused(pair.right).get("replay", 0) - before
        bench.figure(f"50 +- 20 ms: {delayed.copied} copies, {dropped} dropped as replay")
        assert delayed.copied > 10
        assert dropped >= delayed.copied - 5, "copies were not dropped as replay"


class Delayed(Relay):
    """A cable from left to right that takes 50 +- 20 ms, which reorders, and copies some."""

    def __init__(self, pair: Pair, bench: Bench, *, copies: float) -> None:
        super().__init__(pair.net, pair.left.host, pair.right.host, self._delay)
        self.copied = 0
        self._chance = bench.random
        self._share = copies
        self._heap: list[tuple[float, int, bytes]] = []
        self._number = 0
        self._due = threading.Thread(target=self._deliver, daemon=True)

    def __enter__(self) -> Delayed:
        super().__enter__()
        self._due.start()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._due.join()

    def _delay(self, frame: bytes) -> list[bytes]:
        times = 1
        if self._chance.random() < self._share:
            self.copied += 1
            times = 2
        for _ in range(times):
            self._number += 1
            at = time.monotonic() + self._chance.uniform(0.03, 0.07)
            heapq.heappush(self._heap, (at, self._number, frame))
        return []

    def _deliver(self) -> None:
        while not self._stop.wait(0.002):
            while self._heap and self._heap[0][0] <= time.monotonic():
                self._out.send(heapq.heappop(self._heap)[2])


@row(
    "replay",
    "0 delivered, during, after a rekey, after a restart",
    bound_s=180,
    short=(
        "netns/test_paths.py::replayed_reordered_cut_and_altered_datagrams_do_no_harm",
        "netns/test_paths.py::copies_from_another_address_do_not_move_the_traffic",
    ),
)
def replay(bench: Bench) -> None:
    recorded: list[bytes] = []

    def record(frame: bytes) -> list[bytes]:
        recorded.append(frame)
        return [frame]

    with bench.pair({"encryption.rotation_interval": "10s"}, udp=True, change=without_ipv6) as pair:
        with (
            Relay(pair.net, pair.left.host, pair.right.host, record),
            streams(pair, per_second=300) as collectors,
        ):
            time.sleep(12)
            for collector in collectors:
                collector.assert_sound()
        _replay(bench, pair, recorded, "after the period")
        rekeys = pair.left.status()["session"]["rekeys"]
        until("a rekey", lambda: pair.left.status()["session"]["rekeys"] > rekeys + 1, 60)
        _replay(bench, pair, recorded, "after two rekeys")
        pair.right.kill()
        pair.right.start()
        pair.await_connected(60)
        await_path(pair, "udp", 60)
        _replay(bench, pair, recorded, "after a restart")


def _replay(bench: Bench, pair: Pair, recorded: list[bytes], when: str) -> None:
    """Put it all on the cable again, from its true source; the canaries see what gets through."""
    before, delivered = refused(pair.right), counters(pair.right)["frames_in"]
    with pair.net.switch.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((pair.net.port(pair.right.host), 0))
        for number, frame in enumerate(recorded):
            sock.send(frame)
            if number % 50 == 0:
                time.sleep(0.005)
    expected = len(recorded) - 10  # the last may have come in the meantime for the first time
    until("all are refused", lambda: sum(grown(pair.right, before).values()) >= expected, 10)
    bench.figure(f"{when}: {len(recorded)} replayed, refused {grown(pair.right, before)}")
    assert counters(pair.right)["frames_in"] - delivered < len(recorded) / 2 + 500
    assert pair.right.status()["state"] == "connected"


@row(
    "truncated, extended, bit-flipped datagrams",
    "dropped and counted, no change of state",
    bound_s=90,
    short=(
        "netns/test_paths.py::replayed_reordered_cut_and_altered_datagrams_do_no_harm",
        "netns/test_paths.py::nobody_gets_an_answer_without_keys",
        "netns/test_paths.py::a_flood_of_junk_does_not_end_the_path",
    ),
)
def altered(bench: Bench) -> None:
    chance, made = bench.random, 0

    def spoil(frame: bytes) -> list[bytes]:
        nonlocal made
        start, payload = udp_of(frame)
        flipped = bytearray(payload)
        flipped[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
        spoilt = (
            payload[: chance.randrange(len(payload))],
            payload + os.urandom(chance.randrange(1, 64)),
            bytes(flipped),
            os.urandom(chance.randrange(65)),
        )
        made += len(spoilt)
        return [*(with_payload(frame, start, data) for data in spoilt), frame]

    with bench.pair(udp=True, change=without_ipv6) as pair:
        before = refused(pair.right)
        with (
            Relay(pair.net, pair.left.host, pair.right.host, spoil) as relay,
            streams(pair, per_second=300) as collectors,
        ):
            wanted = bench.amount(3000, 100_000)
            wait_until(lambda: relay.seen > wanted, bench.amount(40, 600), "datagrams are relayed")
        for collector in collectors:
            collector.assert_sound()
        found = grown(pair.right, before)
        bench.figure(f"{made} spoilt, refused {found}")
        # Cut to nothing, or a first byte that makes it STUN, is counted elsewhere or nowhere.
        assert sum(found.values()) >= 0.9 * made
        assert pair.left.status()["reconnects"] == 0
        assert [daemon.status()["path"] for daemon in pair] == ["udp", "udp"]


@row(
    "window edge",
    "accepted within the window, forged counters move nothing",
    bound_s=240,
    short=(
        "fastpath/test_ciphers.py::test_the_edges_of_the_window",
        "fastpath/test_ciphers.py::test_looking_does_not_move_the_window",
    ),
)
def window_edge(bench: Bench) -> None:
    """Hold one datagram until the counter is as far ahead as the edge; then let it go."""
    with bench.pair(udp=True, change=without_ipv6) as pair:
        # What is under way when it is enough comes on top; the unit tests have the last bit.
        for wanted, passes in ((WINDOW - 5000, True), (WINDOW + 300, False)):
            behind, dropped = _held(pair, wanted)
            bench.figure(f"{behind} behind: {'dropped' if dropped else 'taken'}")
            assert bool(dropped) is not passes
        forged = _forge(pair)
        bench.figure(f"{forged} forged far ahead")
        assert pair.left.host.ping(pair.right.tunnel_ip, count=5).complete


def _held(pair: Pair, behind: int) -> tuple[int, int]:
    """Hold a datagram until it is so far behind, and let it go.

    Returns how far it was, and how many datagrams were then refused as replay.
    """
    kept: list[tuple[int, bytes]] = []
    newest = first = 0

    def hold(frame: bytes) -> list[bytes]:
        nonlocal newest, first
        counter, first = _counter(frame), first + 1
        # What was seen before the switch drops it was delivered as well.
        if not kept and first > 500:
            kept.append((counter, frame))
            return []
        newest = max(newest, counter)
        return [frame]

    with Relay(pair.net, pair.left.host, pair.right.host, hold):
        _burst(pair, lambda: bool(kept) and newest - kept[0][0] >= behind)
    time.sleep(1)  # the relay's end lets some through twice
    before = refused(pair.right).get("replay", 0)
    with pair.net.switch.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((pair.net.port(pair.right.host), 0))
        sock.send(kept[0][1])
    time.sleep(1)  # the counters are read when it has come
    return newest - kept[0][0], refused(pair.right).get("replay", 0) - before


def _counter(frame: bytes) -> int:
    _, payload = udp_of(frame)
    return int.from_bytes(payload[COUNTER_AT : COUNTER_AT + COUNTER_BYTES], "little")


def _burst(pair: Pair, enough: Callable[[], bool]) -> None:
    """Send small datagrams through the tunnel, as fast as they pass the relay, until enough."""
    with pair.left.host.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ends = time.monotonic() + 60
        while not enough():
            assert time.monotonic() < ends, "the burst does not get through"
            for _ in range(40):
                sock.sendto(bytes(20), (pair.right.tunnel_ip, 9))
            time.sleep(0.005)


def _forge(pair: Pair) -> int:
    """Send datagrams of the true source with a far counter; they cannot be authentic."""
    forged = 0

    def treat(frame: bytes) -> list[bytes]:
        nonlocal forged
        start, payload = udp_of(frame)
        far = payload[:COUNTER_AT] + b"\xff" * 7 + b"\x0f" + payload[16:]
        forged += 1
        return [with_payload(frame, start, far), frame]

    with Relay(pair.net, pair.left.host, pair.right.host, treat):
        assert pair.left.host.ping(pair.right.tunnel_ip, count=20).received >= 19
    return forged
