"""Two daemons on one LAN: the way to UDP, back to WSS, and what strangers may do meanwhile.

Every scenario has a pair of its own and most of its time is waiting, so they run side by side;
each test reports the outcome of one.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from shadowmesh.netlab import Daemon, wait_until
from tests.lab import faults
from tests.lab.capture import Capture
from tests.lab.pair import Pair, running_pair, streams
from tests.lab.relay import (
    DATA_PORT,
    Relay,
    one_datagram_a_frame,
    udp_of,
    with_payload,
    without_ipv6,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


pytestmark = pytest.mark.netns

AT_ONCE = 3
#: 2 s on an idle machine, which tests/wire holds in its own time and `make faults` in real time
GAP_S = 6
UDP = {"nat.enabled": True, "nat.stun_server": "", "peer.auto_connect": False}
SCENARIOS: dict[str, Callable[[Path], None]] = {}


def scenario(function: Callable[[Path], None]) -> Callable[[Path], None]:
    SCENARIOS[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def outcomes(directory):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {}
        for name, run in SCENARIOS.items():
            place = directory / name
            place.mkdir()
            futures[name] = pool.submit(run, place)
        try:
            yield futures
        finally:
            for future in futures.values():
                future.cancel()


@contextlib.contextmanager
def udp_pair(directory: Path, **changes: object) -> Iterator[Pair]:
    """A pair that is connected and on UDP."""
    with running_pair(directory, {**UDP, **changes}) as pair:
        pair.connect()
        await_path(pair, "udp", 15)
        yield pair


def await_path(pair: Pair, path: str, timeout_s: float) -> None:
    for daemon in pair:
        daemon.wait_for(timeout_s, state="connected", path=path)


def switches(pair: Pair) -> list[int]:
    return [daemon.status()["path_switches"] for daemon in pair]


def active(daemon: Daemon) -> dict[str, Any]:
    return next(path for path in daemon.status()["paths"] if path["active"])


def udp_sockets(daemon: Daemon) -> str:
    return daemon.host.run("ss", "-Hlnup").stdout


# --- The way to UDP -----------------------------------------------------------------------------


@scenario
def a_lan_without_stun_server_uses_udp(directory: Path) -> None:
    with running_pair(directory, UDP) as pair:
        pair.left.connect()
        await_path(pair, "udp", 15)
        pair.assert_pings()
        for daemon, other in ((pair.left, pair.right), (pair.right, pair.left)):
            status = daemon.status()
            assert status["path_switches"] == 1
            assert "answers" in status["path_reason"]
            first, *others = status["paths"]
            assert first["address"] == f"{other.host.ipv4}:{DATA_PORT}"
            assert first["kind"] == "host"
            assert first["rtt_ms"] > 0
            assert first["seen_as"] == f"{daemon.host.ipv4}:{DATA_PORT}"
            assert {"wss", "udp"} == {path["path"] for path in others}
            assert status["link"]["remote_address"]
            assert "path changed peer=" in daemon.log()


@scenario
def hosts_with_ipv6_alone_meet_over_it(directory: Path) -> None:
    with running_pair(directory, UDP) as pair:
        for daemon in pair:
            daemon.host.ip(f"address del {daemon.host.ipv4}/24 dev eth0")
        pair.left.connect(f"[{pair.right.host.ipv6}]:{DATA_PORT}")
        await_path(pair, "udp", 15)
        assert active(pair.left)["address"] == f"[{pair.right.host.ipv6}]:{DATA_PORT}"
        wait_until(lambda: active(pair.left)["payload_bytes"] == 1452, 15, "the path's size")
        pair.assert_pings()


@scenario
def a_bridge_with_the_tunnel_in_it_is_no_path(directory: Path) -> None:
    """Each end puts its TAP into a bridge with an address: the other's bridge answers, inside."""
    with running_pair(directory, UDP) as pair, faults.drop_udp(pair.net):
        pair.connect()
        for daemon in pair:
            daemon.host.ip(
                "link add br1 type bridge forward_delay 0",
                f"link set {daemon.tap} master br1",
                "link set br1 up",
                f"address add 10.5.0.{daemon.host.number}/24 dev br1",
            )
        wait_until(lambda: pair.left.host.ping("10.5.0.2", count=1).complete, 5, "bridged")
        time.sleep(3)  # the change is noticed, told and tried
        for daemon in pair:
            status = daemon.status()
            assert status["path"] == "wss"
            inside = [p for p in status["paths"] if p["address"].startswith("10.5.")]
            assert not any(path["proven"] for path in inside), inside
        assert pair.left.host.ping("10.5.0.2").complete


@scenario
def switched_off_no_udp_socket_is_opened(directory: Path) -> None:
    for number, left_only in enumerate((True, False)):
        place = directory / str(number)
        place.mkdir()
        other = {"nat.enabled": left_only}
        with running_pair(place, UDP, left={"nat.enabled": False}, right=other) as pair:
            pair.connect()
            time.sleep(1)
            pair.assert_pings()
            assert udp_sockets(pair.left) == ""
            assert bool(udp_sockets(pair.right)) is left_only
            left, right = (daemon.status() for daemon in pair)
            assert (left["path"], right["path"]) == ("wss", "wss")
            assert "nat.enabled" in left["path_reason"]
            if left_only:
                assert right["path_reason"] == "the peer does not want UDP"


@scenario
def a_reload_switches_udp_off(directory: Path) -> None:
    with udp_pair(directory) as pair:
        pair.left.settings["nat.enabled"] = False
        pair.left.write_config()
        pair.left.process.send_signal(1)
        await_path(pair, "wss", 15)
        assert udp_sockets(pair.left) == ""
        pair.assert_pings()


# --- Back to WSS, and to UDP again ----------------------------------------------------------------


@scenario
def udp_that_is_blocked_in_mid_flow_is_replaced_within_two_seconds(directory: Path) -> None:
    with udp_pair(directory) as pair:
        with streams(pair, per_second=300, size=400) as collectors:
            time.sleep(1.5)
            for collector in collectors:
                assert collector.arrived
                collector.longest_gap_s = 0.0
            with faults.drop_udp(pair.net):
                # The frames move to WSS at the second unanswered probe, about a second from here.
                wait_until(lambda: all(c.longest_gap_s > 0.3 for c in collectors), 15, "blocked")
                await_path(pair, "wss", 15)
                reason = pair.left.status()["path_reason"]
                assert "3 probes unanswered" in reason
                time.sleep(1)
            gaps = [collector.longest_gap_s for collector in collectors]
            assert max(gaps) <= GAP_S, gaps
            began = time.monotonic()
            await_path(pair, "udp", 15)
            print(f"blocked UDP: longest gaps {gaps}, UDP back {time.monotonic() - began:.1f} s")
            time.sleep(1)
        for collector in collectors:
            collector.assert_sound()
        assert switches(pair) == [3, 3]
        for daemon in pair:
            assert "UDP is back" in daemon.log()


@contextlib.contextmanager
def tcp_stream(pair: Pair) -> Iterator[list[float]]:
    """TCP through the tunnel at full speed; gives the times at which something arrived."""
    times: list[float] = []
    with pair.right.host.listen((pair.right.tunnel_ip, 5001)) as listener:
        sender = pair.left.host.connect((pair.right.tunnel_ip, 5001))
        receiver, _ = listener.accept()

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sender.sendall(bytes(1 << 16))

        def take() -> None:
            while receiver.recv(1 << 20):
                times.append(time.monotonic())

        sender.settimeout(30)
        threads = [threading.Thread(target=send), threading.Thread(target=take)]
        for thread in threads:
            thread.start()
        try:
            yield times
        finally:
            sender.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
            sender.close()
            receiver.close()


@scenario
def a_tcp_connection_flows_again_within_two_seconds(directory: Path) -> None:
    """TCP repeats itself ever more rarely, so it needs the other path before it slows down."""
    with udp_pair(directory) as pair, tcp_stream(pair) as times:
        time.sleep(2)
        with faults.drop_udp(pair.net):
            time.sleep(4)
        await_path(pair, "udp", 15)
        gap = max(late - early for early, late in pairwise(list(times)))
        print(f"TCP through blocked UDP: longest gap {gap:.2f} s")
        assert 0.5 < gap <= GAP_S


@scenario
def udp_that_is_blocked_one_way_is_given_up_by_both(directory: Path) -> None:
    with udp_pair(directory) as pair:
        there, back = pair.net.port(pair.right.host), pair.net.port(pair.left.host)
        with streams(pair, per_second=300) as collectors:
            time.sleep(1)
            for collector in collectors:
                collector.longest_gap_s = 0.0
            rule = f'iifname "{there}" oifname "{back}" meta l4proto udp drop'
            with faults.forwarding(pair.net, rule):
                await_path(pair, "wss", 15)
                time.sleep(1)
                gaps = [collector.longest_gap_s for collector in collectors]
                print(f"UDP blocked one way: longest gaps {gaps}")
                assert max(gaps) <= GAP_S, gaps
            await_path(pair, "udp", 15)
        for collector in collectors:
            collector.assert_sound()


@scenario
def a_lost_link_does_not_touch_the_frames_on_udp(directory: Path) -> None:
    with udp_pair(directory) as pair:
        with streams(pair, per_second=300, size=400) as collectors:
            time.sleep(1)
            for victim in (pair.left, pair.right):
                before = pair.left.status()["reconnects"]
                faults.kill_sockets(victim.host, 9001)
                states = set()

                def back(states=states, before=before) -> bool:
                    states.update(daemon.status()["state"] for daemon in pair)
                    return pair.left.status()["reconnects"] > before

                wait_until(back, 15, "the link is back")
                assert states == {"connected"}
                await_path(pair, "udp", 15)
        for collector in collectors:
            collector.assert_sound()
            assert collector.vanished == 0
        wait_until(lambda: pair.peer_connections() == 1, 15, "one connection is left")
        assert "WSS link lost, UDP goes on" in pair.left.log()


@scenario
def a_link_that_stays_away_is_missed_by_nobody_but_status(directory: Path) -> None:
    with udp_pair(directory) as pair:
        with streams(pair, per_second=200) as collectors:
            with faults.reset_tcp(pair.net, pair.left.host, pair.right.host, port=9001):
                for daemon in pair:
                    faults.kill_sockets(daemon.host, 9001)
                time.sleep(6)
                left, right = (daemon.status() for daemon in pair)
                assert (left["state"], left["path"]) == ("connected", "udp")
                assert (right["state"], right["path"]) == ("connected", "udp")
                assert "WSS link is lost" in left["path_reason"]
                assert "dialled again" in left["path_reason"]
                assert "the peer has to dial" in right["path_reason"]
                assert left["next_retry_at"]
                assert left["link"]["remote_address"] is None
            wait_until(lambda: pair.left.status()["reconnects"] == 1, 20, "the link is back")
            await_path(pair, "udp", 15)
        for collector in collectors:
            collector.assert_sound()
            assert collector.vanished == 0


@scenario
def a_link_that_falls_silent_is_dialled_again_beside_udp(directory: Path) -> None:
    timing = {"websocket.read_timeout": "12s", "websocket.keepalive_interval": "4s"}
    with udp_pair(directory, **timing) as pair, streams(pair, per_second=200) as collectors:
        silence = faults.forwarding(pair.net, "tcp dport 9001 drop", "tcp sport 9001 drop")
        with silence:
            for daemon in pair:

                def missed(daemon=daemon) -> bool:
                    return daemon.status()["link"]["remote_address"] is None

                wait_until(missed, 25, "the silence is noticed", interval_s=0.3)
            assert [d.status()["state"] for d in pair] == ["connected", "connected"]
            await_path(pair, "udp", 15)
        wait_until(lambda: pair.left.status()["reconnects"] == 1, 20, "the link is back")
        await_path(pair, "udp", 15)
    for collector in collectors:
        collector.assert_sound()
        assert collector.vanished == 0


@scenario
def a_disconnect_without_link_reaches_the_peer_over_udp(directory: Path) -> None:
    with (
        udp_pair(directory) as pair,
        faults.reset_tcp(pair.net, pair.left.host, pair.right.host, port=9001),
    ):
        for daemon in pair:
            faults.kill_sockets(daemon.host, 9001)
        wait_until(lambda: pair.right.status()["link"]["remote_address"] is None, 15, "lost")
        began = time.monotonic()
        assert pair.left.api("POST", "/disconnect")[0] == 200
        assert time.monotonic() - began < 10
        pair.right.wait_for(15, state="connecting", phase="waiting_for_peer")
        assert "disconnect" in pair.right.status()["last_error"]


@scenario
def a_peer_that_crashes_on_udp_is_missed_soon_and_found_again(directory: Path) -> None:
    with udp_pair(directory) as pair:
        for victim, other in ((pair.right, pair.left), (pair.left, pair.right)):
            victim.kill()
            wait_until(lambda other=other: other.status()["state"] != "connected", 4, "missed")
            victim.start()
            if victim is pair.left:
                victim.connect()
            pair.await_pings(15)
            await_path(pair, "udp", 15)
            pair.assert_pings()


@scenario
def keys_change_under_traffic_without_losing_a_frame(directory: Path) -> None:
    # with several threads that seal
    changes = {"encryption.rotation_interval": "10s", "network.queues": 4}
    with udp_pair(directory, **changes) as pair:
        with streams(pair, per_second=400, size=600) as collectors:
            wait_until(
                lambda: all(d.status()["session"]["rekeys"] >= 2 for d in pair),
                45, "two rekeys", interval_s=0.5,
            )  # fmt: skip
        for collector in collectors:
            collector.assert_sound()
            assert collector.vanished == 0
        assert switches(pair) == [1, 1]


# --- The network changes ----------------------------------------------------------------------------


@scenario
def a_new_address_moves_both_paths_within_three_seconds(directory: Path) -> None:
    with udp_pair(directory) as pair:
        # One family only: the other one's address would stay.
        pair.left.host.ip("address del 2001:db8::1/64 dev eth0")
        with streams(pair, per_second=200) as collectors:
            time.sleep(1)
            for collector in collectors:
                collector.longest_gap_s = 0.0
            pair.left.host.ip(
                "address del 198.51.100.1/24 dev eth0", "address add 198.51.100.61/24 dev eth0"
            )

            def moved() -> bool:
                return active(pair.right)["address"] == f"198.51.100.61:{DATA_PORT}"

            wait_until(moved, 15, "the peer sends to the new address")
            time.sleep(1)
            gaps = [collector.longest_gap_s for collector in collectors]
            assert max(gaps) <= GAP_S, gaps
            print(f"new address: longest gaps {gaps}")
        wait_until(lambda: pair.left.status()["reconnects"] == 1, 15, "the link is back")
        for collector in collectors:
            collector.assert_sound()
        await_path(pair, "udp", 15)


@scenario
def an_interface_that_shrinks_makes_smaller_datagrams(directory: Path) -> None:
    with udp_pair(directory) as pair:
        wait_until(lambda: active(pair.left)["payload_bytes"] == 1472, 15, "the path's size")
        for daemon in pair:
            daemon.host.ip("link set eth0 mtu 1300")
        for size in (1000, 1472):
            assert pair.left.host.ping(pair.right.tunnel_ip, size=size, count=5).received >= 3

        def smaller() -> bool:
            found = active(pair.left)["payload_bytes"]  # None while no way is proven
            return found is not None and found <= 1272

        wait_until(smaller, 15, "smaller datagrams")
        assert pair.left.host.ping(pair.right.tunnel_ip, size=1472).complete
        # Both sides see to a new WSS link, which may come with a new session; UDP is not given up.
        for daemon in pair:
            assert "after=wss" not in daemon.log()


@scenario
def a_hole_for_long_datagrams_is_found(directory: Path) -> None:
    with running_pair(directory, UDP) as pair, faults.mtu_hole(pair.net, 1360):
        for daemon in pair:
            one_datagram_a_frame(daemon.host)
        pair.connect()
        await_path(pair, "udp", 15)
        # Full frames pass at once, in fragments: nobody waits for the search.
        assert pair.left.host.ping(pair.right.tunnel_ip, size=1472, dont_fragment=True).complete

        def found() -> bool:
            return all(1336 <= active(d)["payload_bytes"] <= 1352 for d in pair)

        wait_until(found, 20, "the path's size", interval_s=0.3)
        assert pair.left.host.ping(pair.right.tunnel_ip, size=1472, dont_fragment=True).complete
        assert switches(pair) == [1, 1]


@scenario
def a_jumbo_lan_gets_jumbo_datagrams(directory: Path) -> None:
    with running_pair(directory, UDP) as pair:
        for daemon in pair:
            daemon.host.ip("link set eth0 mtu 9000")
            pair.net.switch.ip(f"link set {pair.net.port(daemon.host)} mtu 9000")
        pair.connect()
        await_path(pair, "udp", 15)
        wait_until(lambda: all(active(d)["payload_bytes"] == 8972 for d in pair), 15, "jumbo")
        pair.assert_pings()


@scenario
def a_sender_whose_own_firewall_drops_udp_goes_back_to_wss(directory: Path) -> None:
    with udp_pair(directory) as pair:
        pair.left.host.nft(
            "table inet f {\nchain o {\ntype filter hook output priority 0\n"
            "meta l4proto udp drop\n}\n}\n"
        )
        pair.await_pings(15)
        await_path(pair, "wss", 15)
        assert pair.left.status()["counters"]["udp_errors"]["EPERM"] > 0
        pair.left.host.run("nft", "delete", "table", "inet", "f")
        await_path(pair, "udp", 15)


# --- Strangers ----------------------------------------------------------------------------------------


def refused(daemon: Daemon) -> dict[str, int]:
    return dict(daemon.status()["counters"]["udp_refused"])


@scenario
def replayed_reordered_cut_and_altered_datagrams_do_no_harm(directory: Path) -> None:
    dice = random.Random(7)
    held: list[bytes] = []
    old: list[bytes] = []
    done = {"replayed": 0, "altered": 0}

    def treat(frame: bytes) -> list[bytes]:
        start, payload = udp_of(frame)
        held.append(frame)
        if len(held) < 20:
            return []
        out, held[:] = list(held), []
        dice.shuffle(out)
        again = out[:5] + dice.sample(old, min(5, len(old)))
        done["replayed"] += len(again)
        old.extend(out[:3])
        broken = [
            with_payload(frame, start, payload[: dice.randrange(1, len(payload))]),
            with_payload(frame, start, payload + b"\0"),
            with_payload(frame, start, bytes([*payload[:-1], payload[-1] ^ 1])),
            with_payload(frame, start, os.urandom(dice.randrange(1, 64))),
            with_payload(frame, start, payload[:8] + b"\xff" * 7 + b"\x7f" + payload[16:]),
        ]
        done["altered"] += len(broken)
        return [*out, *again, *broken]

    with running_pair(directory, UDP) as pair:
        without_ipv6(pair)
        pair.connect()
        await_path(pair, "udp", 15)
        before = refused(pair.right)
        with streams(pair, per_second=500, size=300) as collectors:
            with Relay(pair.net, pair.left.host, pair.right.host, treat) as relay:
                wait_until(lambda: relay.seen > 1500, 20, "datagrams are relayed")
            time.sleep(0.5)
        for collector in collectors:
            collector.assert_sound()
        # What the relay held at its end, and a second of doubt at most.
        assert collectors[0].vanished < 100
        assert collectors[1].vanished == 0
        after = refused(pair.right)
        assert after["replay"] - before["replay"] >= done["replayed"]
        strange = sum(
            after[name] - before[name] for name in ("forged", "unknown", "key_id", "replay")
        )
        assert strange >= done["replayed"] + done["altered"] - 5
        assert [d.status()["state"] for d in pair] == ["connected", "connected"]
        assert pair.left.status()["reconnects"] == 0


@scenario
def copies_from_another_address_do_not_move_the_traffic(directory: Path) -> None:
    """A stranger on the way lets some datagrams come from its own address, before the real ones."""
    with running_pair(directory, UDP) as pair:
        stranger = pair.net.host("stranger")
        without_ipv6(pair)
        pair.connect()
        await_path(pair, "udp", 15)
        number = 0

        def treat(frame: bytes) -> list[bytes]:
            nonlocal number
            number += 1
            if number % 4:
                return [frame]
            start, payload = udp_of(frame)
            return [with_payload(frame, start, payload, stranger.ipv4), frame]

        began = time.monotonic()
        with Capture(pair.net, stranger, directory) as capture:
            with (
                streams(pair, per_second=150) as collectors,
                Relay(pair.net, pair.left.host, pair.right.host, treat) as relay,
            ):
                wait_until(lambda: relay.seen > 600, 30, "datagrams are relayed")
                assert active(pair.right)["address"] == f"{pair.left.host.ipv4}:{DATA_PORT}"
            for collector in collectors:
                collector.assert_sound()
                assert collector.vanished == 0
            took_s = time.monotonic() - began
            paths = pair.right.status()["paths"]
            mine = [path for path in paths if path["address"].startswith(stranger.ipv4)]
            assert not any(path["proven"] or path["active"] for path in mine)
            got = [
                f
                for f in capture.frames()
                if udp_of(f) and f[30:34] == socket.inet_aton(stranger.ipv4)
            ]
        # Hardly any probe, fewer than five in two seconds, and no frame, whose records are longer.
        assert len(got) <= 10 + 2.5 * took_s, len(got)
        assert all(len(udp_of(frame)[1]) < 100 for frame in got)


@scenario
def nobody_gets_an_answer_without_keys(directory: Path) -> None:
    with running_pair(directory, UDP) as pair:
        stranger = pair.net.host("stranger")
        pair.connect()
        await_path(pair, "udp", 15)
        binding = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + os.urandom(12)
        before = refused(pair.left)
        with Capture(pair.net, stranger, directory) as capture:
            with stranger.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("0.0.0.0", DATA_PORT))
                for target in (pair.left.host.ipv4, pair.right.host.ipv4):
                    for size in range(1, 1400, 7):
                        sock.sendto(os.urandom(size), (target, DATA_PORT))
                        sock.sendto(b"\x80\0\0\0" + os.urandom(size), (target, DATA_PORT))
                    for _ in range(50):
                        sock.sendto(binding, (target, DATA_PORT))
                    sock.sendto(b"the end of it", (target, DATA_PORT))
            wait_until(lambda: capture.count(b"the end of it") == 2, 5, "the capture caught up")
            pair.assert_pings()
            own = bytes.fromhex(stranger.interfaces()["eth0"]["address"].replace(":", ""))
            answers = [f for f in capture.frames() if f[6:12] != own and f[12:14] == b"\x08\x00"]
        assert answers == []
        after = refused(pair.left)
        assert sum(after.values()) - sum(before.values()) >= 380
        assert [d.status()["path"] for d in pair] == ["udp", "udp"]


@scenario
def a_flood_of_junk_does_not_end_the_path(directory: Path) -> None:
    with running_pair(directory, UDP) as pair:
        stranger = pair.net.host("stranger")
        pair.connect()
        await_path(pair, "udp", 15)
        stop = threading.Event()

        def flood() -> None:
            junk = [b"\x00" + os.urandom(99), b"\x80\0\0\0" + os.urandom(100)]
            with stranger.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                while not stop.is_set():
                    for data in junk * 10:
                        sock.sendto(data, (pair.left.host.ipv4, DATA_PORT))
                    time.sleep(0.002)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            with streams(pair, per_second=200) as collectors:
                time.sleep(4)
                began = time.monotonic()
                assert pair.left.api("GET", "/health", authorize=False)[0] == 200
                assert time.monotonic() - began < 10
        finally:
            stop.set()
            thread.join()
        for collector in collectors:
            collector.assert_sound()
        assert [d.status()["path"] for d in pair] == ["udp", "udp"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_paths(outcomes, name):
    outcomes[name].result()
