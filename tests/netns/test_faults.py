"""What is done to a running tunnel, and how soon it must carry traffic again.

Every scenario has a pair of its own and most of its time is waiting, so they run side by side;
each test reports the outcome of one.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from shadowmesh.netlab import Daemon, wait_until
from shadowmesh.netlab.transfer import transfer
from tests.lab import faults
from tests.lab.pair import Pair, connected_pair, running_pair, streams

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.netns

AT_ONCE = 6
#: 3 s on an idle machine, which `make faults` holds
EXIT_S = 8
LEFT = "198.51.100.1:9001"
AUTO = {"peer.auto_connect": True}
UDP = {"nat.enabled": True, "nat.stun_server": ""}
SCENARIOS: list[Callable[[Path], None]] = []


def scenario(function: Callable[[Path], None]) -> Callable[[Path], None]:
    SCENARIOS.append(function)
    return function


@pytest.fixture(scope="module")
def outcomes(directory):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {}
        for run in SCENARIOS:
            place = directory / run.__name__
            place.mkdir()
            futures[run] = pool.submit(run, place)
        try:
            yield futures
        finally:
            for future in futures.values():
                future.cancel()


@contextlib.contextmanager
def traffic(pair: Pair):
    """Pings in both directions four times a second, answered or not."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.25):
            for source, target in ((pair.left, pair.right), (pair.right, pair.left)):
                with contextlib.suppress(OSError):
                    source.host.ping(target.tunnel_ip, count=1, timeout_s=0.01)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@scenario
def a_link_that_is_down_for_three_seconds_is_not_redialled(directory: Path) -> None:
    with connected_pair(directory) as pair, traffic(pair):
        with faults.link_down(pair.net, pair.left.host):
            time.sleep(3)
        pair.await_pings(15)
        pair.await_connected()
        assert pair.left.status()["reconnects"] == 0
        pair.assert_pings()


@scenario
def a_link_that_is_down_for_twenty_seconds_comes_back(directory: Path) -> None:
    with connected_pair(directory) as pair, traffic(pair):
        with faults.link_down(pair.net, pair.right.host):
            time.sleep(20)
        pair.await_pings(20)
        pair.await_connected()
        pair.assert_pings()
        assert pair.peer_connections() == 1


def long_pings(pair: Pair) -> bool:
    """Frames that fill an Ethernet packet's 1,400 bytes cross both ways."""
    return all(
        source.host.ping(target.tunnel_ip, count=1, size=1350, timeout_s=0.5).complete
        for source, target in ((pair.left, pair.right), (pair.right, pair.left))
    )


def connects_over_a_path_that_swallows(directory: Path, longest_bytes: int) -> None:
    with running_pair(directory, UDP) as pair:
        faults.without_offload(pair.net, pair.left.host, pair.right.host)
        with faults.swallow(pair.net, longest_bytes):
            pair.connect()
            wait_until(lambda: long_pings(pair), 20, "long frames cross")
            pair.left.wait_for(20, path="udp")
            assert long_pings(pair)


@scenario
def a_path_that_swallows_packets_above_1400_bytes_connects(directory: Path) -> None:
    connects_over_a_path_that_swallows(directory, 1400)


@scenario
def a_path_that_swallows_packets_above_1280_bytes_connects(directory: Path) -> None:
    connects_over_a_path_that_swallows(directory, 1280)


def heals_on_a_path_that_begins_to_swallow(
    directory: Path, both: dict[str, object], path: str, longest_bytes: int
) -> None:
    with connected_pair(directory, both) as pair:
        faults.without_offload(pair.net, pair.left.host, pair.right.host)
        pair.left.wait_for(10, path=path)
        wait_until(lambda: long_pings(pair), 10, "long frames cross")
        with faults.swallow(pair.net, longest_bytes):
            wait_until(lambda: long_pings(pair), 20, "long frames cross again")
            assert pair.left.status()["path"] == path
            assert long_pings(pair)


@scenario
def a_wss_session_whose_path_begins_to_swallow_long_packets_heals(directory: Path) -> None:
    heals_on_a_path_that_begins_to_swallow(directory, {}, "wss", 1280)


@scenario
def a_udp_session_whose_path_begins_to_swallow_long_packets_heals(directory: Path) -> None:
    heals_on_a_path_that_begins_to_swallow(directory, UDP, "udp", 1280)


def goes_on_when_the_uplink_of_the_receiver_narrows(
    directory: Path, both: dict[str, object]
) -> None:
    with connected_pair(directory, both) as pair:
        wait_until(lambda: long_pings(pair), 10, "long frames cross")
        pair.right.host.ip("link set eth0 mtu 1300")
        wait_until(lambda: long_pings(pair), 15, "long frames cross again")
        rate, received = transfer(pair.left.host, pair.right.host, pair.right.tunnel_ip, 1.0)
        assert rate > 1e6, received


@scenario
def a_wss_session_goes_on_when_the_uplink_of_the_receiver_narrows(directory: Path) -> None:
    goes_on_when_the_uplink_of_the_receiver_narrows(directory, {})


@scenario
def a_udp_session_goes_on_when_the_uplink_of_the_receiver_narrows(directory: Path) -> None:
    goes_on_when_the_uplink_of_the_receiver_narrows(directory, UDP)


@scenario
def a_black_hole_is_noticed_within_25_seconds_under_traffic(directory: Path) -> None:
    with connected_pair(directory) as pair, traffic(pair):
        pair.assert_pings()
        with faults.black_hole(pair.net, pair.left.host, pair.right.host):
            wait_until(
                lambda: all(daemon.status()["state"] != "connected" for daemon in pair),
                27,
                "noticed",
            )
            assert pair.left.status()["last_error"]
        pair.await_pings(15)
        pair.await_connected()
        pair.assert_pings()
        assert pair.left.status()["reconnects"] >= 1


@scenario
def a_black_hole_without_traffic_is_noticed_within_the_read_timeout(directory: Path) -> None:
    times = {"websocket.keepalive_interval": "5s", "websocket.read_timeout": "20s"}
    with connected_pair(directory, times) as pair:
        for daemon in pair:  # nothing of the kernel's own, either
            daemon.host.run("sysctl", "-qw", "net.ipv6.conf.tap0.disable_ipv6=1")
        time.sleep(7)  # an idle session lives on keepalives
        for daemon in pair:
            assert daemon.status()["state"] == "connected"
        with faults.black_hole(pair.net, pair.left.host, pair.right.host):
            for daemon in pair:
                wait_until(
                    lambda daemon=daemon: daemon.status()["state"] != "connected", 23, "noticed"
                )
        pair.await_pings(15)
        pair.await_connected()
        assert pair.left.status()["reconnects"] == 1


@scenario
def a_daemon_in_a_black_hole_stops_in_time(directory: Path) -> None:
    with connected_pair(directory) as pair, traffic(pair):
        with faults.black_hole(pair.net, pair.left.host, pair.right.host):
            time.sleep(1)
            code, seconds = pair.left.terminate()
        assert code == 0
        assert seconds <= EXIT_S
        assert pair.left.host.taps() == []


@scenario
def a_daemon_that_stands_still_half_of_the_time_keeps_its_session(directory: Path) -> None:
    with connected_pair(directory) as pair:
        for _ in range(30):
            pair.right.pause()
            time.sleep(0.1)
            pair.right.resume()
            time.sleep(0.1)
        pair.await_pings(15)
        assert pair.left.status()["reconnects"] == 0
        assert pair.left.status()["state"] == "connected"


@scenario
def a_second_daemon_with_the_same_key_is_told_apart(directory: Path) -> None:
    """Two of one identity throw each other out: seldom, and with a cause that names it."""
    with connected_pair(directory) as pair:
        twin = Daemon(pair.net.host("twin"), directory / "twin", {**pair.left.settings})
        for key in ("daemon.pid_file", "daemon.state_dir"):
            twin.settings[key] = str(twin.directory / key.rpartition(".")[2])
        twin.state_dir = directory / "left" / "state"
        twin.settings["daemon.state_dir"] = str(twin.state_dir)
        twin.settings["network.local_ip"] = "10.0.0.3/24"
        with twin:
            twin.connect()
            error = pair.left.wait_for(15, state="error")["last_error"]
            assert "identity.key" in error
            changes = len(pair.right.log().split("replaced=true")) - 1
            time.sleep(10)
            assert len(pair.right.log().split("replaced=true")) - 1 <= changes + 6
            assert pair.right.status()["state"] == "connected"


@scenario
def a_reload_without_the_peer_ends_its_session_at_once(directory: Path) -> None:
    with connected_pair(directory) as pair:
        key = pair.right.settings["peer.public_key"]
        pair.right.settings["peer.public_key"] = pair.right.public_key  # nobody: its own
        pair.right.settings["daemon.log_level"] = "info"
        pair.right.write_config()
        pair.right.process.send_signal(signal.SIGHUP)
        wait_until(lambda: pair.left.status()["state"] != "connected", 15, "the session ended")
        assert pair.right.status()["state"] == "disconnected"
        pair.right.config_path.write_text("network: [\n")
        pair.right.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "configuration not reloaded" in pair.right.log(), 15, "refused")
        pair.right.settings["peer.public_key"] = key
        pair.right.write_config()
        pair.right.process.send_signal(signal.SIGHUP)
        pair.await_pings(25)
        pair.await_connected()


@scenario
def a_renewed_certificate_is_taken_by_a_reload_and_ends_no_session(directory: Path) -> None:
    with connected_pair(directory) as pair:
        old = pair.right.status()["certificate"]["sha256"]
        session = pair.right.status()["session"]["established_at"]
        cert, key = (pair.right.directory / name for name in ("cert.pem", "key.pem"))
        other = pair.left.directory / "cert.pem"
        mine = cert.read_bytes()
        cert.write_bytes(other.read_bytes())  # without its key
        pair.right.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "old certificate is served on" in pair.right.log(), 5, "refused")
        assert pair.right.status()["certificate"]["sha256"] == old
        key.write_bytes((pair.left.directory / "key.pem").read_bytes())
        pair.right.process.send_signal(signal.SIGHUP)
        wait_until(lambda: pair.right.status()["certificate"]["sha256"] != old, 5, "renewed")
        assert cert.read_bytes() != mine
        pair.assert_pings()
        assert pair.right.status()["session"]["established_at"] == session
        pair.disconnect()
        pair.connect()
        assert pair.left.status()["tls_path"] == "direct"


@scenario
def any_order_of_connects_and_disconnects_leaves_one_tap_or_none(directory: Path) -> None:
    with running_pair(directory) as pair:

        def pester(seed: int) -> None:
            choice = random.Random(seed)
            for _ in range(15):
                daemon = choice.choice((pair.left, pair.left, pair.right))
                route = choice.choice(("/connect", "/connect", "/disconnect"))
                code, answer = daemon.api("POST", route)
                assert code in (200, 409, 502, 503), answer
                assert len(daemon.host.taps()) <= 1

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(pester, seed) for seed in range(4)]:
                future.result()
        pair.disconnect()
        assert pair.left.host.taps() == pair.right.host.taps() == []
        pair.connect()
        pair.assert_pings()


@scenario
def a_killed_listener_is_found_again_after_its_restart(directory: Path) -> None:
    with connected_pair(directory) as pair:
        for _ in range(3):
            pair.right.kill()
            wait_until(lambda: pair.left.status()["state"] != "connected", 15, "loss noticed")
            pair.right.start()
            pair.await_pings(20)
            pair.await_connected()
            pair.assert_pings()
        assert pair.left.host.taps() == ["tap0"]


@scenario
def a_killed_dialler_takes_its_place_again(directory: Path) -> None:
    with running_pair(directory, left=AUTO) as pair:
        pair.await_connected()
        for _ in range(3):
            pair.left.kill()
            pair.right.wait_for(15, state="connecting", phase="waiting_for_peer")
            assert pair.right.host.taps() == ["tap0"]
            pair.left.start()
            pair.await_pings(15)
            pair.await_connected()
            pair.assert_pings()
        assert pair.peer_connections() == 1


@scenario
def a_peer_that_was_away_for_thirty_seconds_is_found_again(directory: Path) -> None:
    with connected_pair(directory) as pair:
        pair.right.kill()
        time.sleep(30)
        status = pair.left.status()
        assert status["state"] == "error"
        assert status["next_retry_at"]
        assert "Connection refused" in status["last_error"]
        assert pair.left.host.taps() == ["tap0"]
        pair.right.start()
        pair.await_pings(40)  # the back-off has reached its 16 or 30 seconds
        pair.await_connected()


@scenario
def reset_tcp_connections_are_dialled_again(directory: Path) -> None:
    with connected_pair(directory) as pair, traffic(pair):
        for daemon in (pair.left, pair.right):
            faults.kill_sockets(daemon.host, 9001)
            wait_until(lambda: pair.left.status()["reconnects"], 15, "a reconnect")
            pair.await_pings(15)
            pair.await_connected()
            pair.assert_pings()
        before = pair.left.status()["reconnects"]
        with faults.reset_tcp(pair.net, pair.left.host, pair.right.host, port=9001):
            wait_until(lambda: pair.left.status()["state"] != "connected", 10, "loss noticed")
        pair.await_pings(15)
        pair.await_connected()
        assert pair.left.status()["reconnects"] > before


@scenario
def both_sides_dial_at_once_and_one_session_stays(directory: Path) -> None:
    right = {"peer.address": LEFT, "peer.auto_connect": False}
    with running_pair(directory, right=right) as pair:
        for _ in range(15):
            start = threading.Barrier(2)

            def dial(daemon, start=start) -> None:
                start.wait()
                code, answer = daemon.api("POST", "/connect")
                # The peer may have been faster: then there is nothing left to dial. Or slower: it
                # lets nobody in before its own operator connects, and then it dials.
                faster_or_slower = ("already_connected", "peer_refused")
                assert code == 200 or answer["error"]["code"] in faster_or_slower, answer

            with ThreadPoolExecutor(2) as pool:
                for future in [pool.submit(dial, daemon) for daemon in pair]:
                    future.result()
            pair.await_connected()
            wait_until(lambda: pair.peer_connections() == 1, 15, "one connection is left")
            pair.assert_pings()
            pair.disconnect()


@scenario
def daemons_that_both_dial_for_ever_settle_on_one_session(directory: Path) -> None:
    with running_pair(directory, AUTO, right={"peer.address": LEFT}) as pair:
        for number in range(5):
            pair.await_connected(15)
            pair.await_pings(15)
            wait_until(lambda: pair.peer_connections() == 1, 15, "one connection is left")
            pair.assert_pings()
            victims = [(pair.left,), (pair.right,), (pair.left, pair.right)][number % 3]
            for daemon in victims:
                daemon.kill()
            for daemon in victims:
                daemon.spawn()
            for daemon in victims:
                daemon.await_healthy()


@scenario
def no_frame_is_lost_while_keys_change_under_traffic(directory: Path) -> None:
    with connected_pair(directory, {"encryption.rotation_interval": "10s"}) as pair:
        with streams(pair, per_second=400, size=600) as collectors:
            wait_until(
                lambda: all(d.status()["session"]["rekeys"] >= 2 for d in pair),
                45, "two rekeys", interval_s=0.5,
            )  # fmt: skip
        for collector in collectors:
            collector.assert_sound()
            assert collector.vanished == 0
            assert collector.longest_gap_s < 5
        assert pair.left.status()["reconnects"] == 0


@scenario
def a_stopped_process_is_waited_for(directory: Path) -> None:
    """SIGSTOP of the peer for less than the limits is a pause, not a loss."""
    with connected_pair(directory) as pair, traffic(pair):
        pair.right.pause()
        time.sleep(6)
        pair.right.resume()
        pair.await_pings(15)
        pair.await_connected()
        assert pair.left.status()["reconnects"] == 0


@scenario
def a_clean_stop_is_quick_and_leaves_nothing(directory: Path) -> None:
    with connected_pair(directory) as pair:
        for daemon, other in ((pair.left, pair.right), (pair.right, pair.left)):
            code, seconds = daemon.terminate()
            assert code == 0
            assert seconds <= EXIT_S
            assert daemon.host.taps() == []
            assert not (daemon.directory / "daemon.pid").exists()
            # An authenticated close, not a time-out: the other side knows at once.
            wait_until(lambda other=other: other.status()["state"] != "connected", 10, "told")
            daemon.start()
            if daemon is pair.left:
                daemon.connect()
            pair.await_connected(15)
            pair.await_pings(15)
        for daemon in pair:
            started = time.monotonic()
            assert daemon.terminate()[0] == 0  # also with the peer gone, while redialling
            assert time.monotonic() - started <= EXIT_S


@scenario
def terminating_during_a_dial_is_quick(directory: Path) -> None:
    with running_pair(directory, left={**AUTO, "peer.address": "198.51.100.77:9001"}) as pair:
        pair.left.wait_for(state="connecting")
        code, seconds = pair.left.terminate()
        assert code == 0
        assert seconds <= EXIT_S
        assert pair.left.host.taps() == []


@scenario
def a_disconnect_is_not_undone_by_the_other_side(directory: Path) -> None:
    with running_pair(directory, left=AUTO) as pair:
        pair.await_connected()
        assert pair.left.api("POST", "/disconnect")[0] == 200
        pair.right.wait_for(15, state="connecting", phase="waiting_for_peer")
        assert pair.left.host.taps() == []
        pair.left.connect()
        pair.await_connected()
        assert pair.right.cli("disconnect").returncode == 0
        assert pair.right.host.taps() == []
        assert "the peer is refused until `shadowmesh connect`" in pair.right.cli("status").stdout
        # Not waiting for the 30 s after which it would dial by itself.
        assert pair.left.api("POST", "/connect")[0] == 502
        assert "its operator has disconnected" in pair.left.cli("status").stdout
        assert pair.right.status()["state"] == "disconnected"
        pair.let_in()
        pair.await_connected(15)
        assert [daemon.status()["reconnects"] for daemon in pair] == [0, 0]


@scenario
def a_listener_misses_its_peer_after_a_restart(directory: Path) -> None:
    with connected_pair(directory) as pair:
        pair.left.kill()
        pair.right.wait_for(5, state="connecting", phase="waiting_for_peer")
        pair.right.kill()
        pair.right.start()
        status = pair.right.status()
        assert (status["state"], status["phase"]) == ("disconnected", "waiting_for_peer")
        assert status["wanted"]
        assert status["peer"]["last_seen_at"]
        explained = pair.right.cli("explain").stdout
        assert "waiting for the peer, last seen 20" in explained
        assert "TCP port 9001" in explained
        metrics = pair.right.api("GET", "/metrics")[1]
        assert "shadowmesh_wanted 1.0" in str(metrics)


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_fault(run, outcomes):
    outcomes[run].result()
