"""A daemon without a device between two ordinary ones: without root, it serves and carries nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from shadowmesh.netlab import Net, wait_until
from tests.lab.frames import Canaries, Wire
from tests.lab.mesh import PATIENCE_S, assert_pings, fdb, running_mesh, tap_mac
from tests.lab.pair import make_pair

pytestmark = pytest.mark.netns

NOBODY = 65534
PORT = 443
#: CAP_NET_BIND_SERVICE
BIND_SERVICE = 1 << 10
#: in a mount namespace of its own, where there is no /dev/net/tun
CONFINED = 'chown -R "$0" "$1" && mount --bind /dev/null /dev/net/tun && shift && exec "$@"'


def confine(daemon, *capabilities):
    """Have a daemon run as nobody, with these capabilities alone and without /dev/net/tun."""
    allowed = ",".join(("-all", *(f"+{name}" for name in capabilities)))
    daemon.wrapper = (
        "unshare", "--mount", "sh", "-c", CONFINED, f"{NOBODY}:{NOBODY}", str(daemon.directory),
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        f"--inh-caps={allowed}", f"--ambient-caps={allowed}", f"--bounding-set={allowed}",
        "--no-new-privs",
    )  # fmt: skip


def behead(daemon):
    daemon.settings["network.tap_device"] = ""
    del daemon.settings["network.local_ip"]


@pytest.fixture(scope="module")
def open_directory():
    """One in which every user may look around, unlike pytest's."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def in_the_middle(mesh):
    """h1 dials h2, which has no device and dials h3; h3 stays on the WebSocket path."""
    relay = mesh[2]
    behead(relay)
    relay.settings["websocket.listen_address"] = f"[::]:{PORT}"
    relay.settings["nat.udp_port"] = PORT
    confine(relay, "net_bind_service")
    for daemon in mesh:
        del daemon.settings["encryption.key"]
        for peer in daemon.settings["peers"]:
            if peer["name"] == relay.host.label:
                peer["tunnel_ips"] = []
                if "address" in peer:
                    peer["address"] = peer["address"].replace("9001", str(PORT))


@pytest.fixture(scope="module")
def mesh(open_directory):
    with running_mesh(open_directory, 3, in_the_middle) as mesh:
        yield mesh


@pytest.fixture
def relay(mesh):
    return mesh[2]


def tap_gone(daemon):
    return daemon.status()["counters"]["dropped"]["tap_gone"]


def proc_status(pid, field):
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1:] for line in text.splitlines() if line.startswith(f"{field}:"))


# --- It serves --------------------------------------------------------------------------------


def test_it_has_a_session_over_each_kind_of_path(mesh, relay):
    def paths():
        return {name: peer["path"] for name, peer in relay.peers().items()}

    wait_until(lambda: paths() == {"h1": "udp", "h3": "wss"}, PATIENCE_S, "each on its path")
    for daemon in (mesh[1], mesh[3]):
        assert daemon.peers()["h2"]["state"] == "connected"


@pytest.mark.parametrize(("source", "target"), [(1, 2), (3, 2), (2, 1), (2, 3)])
def test_a_ping_through_the_daemons_is_answered_both_ways(mesh, source, target):
    done = mesh[source].cli("ping", f"h{target}", "--count", "3")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if " ms" in line]) >= 3


def test_the_two_others_have_their_ethernet_as_without_it(mesh):
    assert_pings(mesh[1], mesh[3])
    assert_pings(mesh[3], mesh[1])


def test_frames_for_it_are_dropped_under_their_name_and_it_sends_none(mesh, relay):
    before = tap_gone(relay)
    canaries = Canaries()
    for daemon in (mesh[1], mesh[3]):
        with Wire(daemon.host, daemon.tap) as wire:
            for _ in range(5):
                wire.send(canaries.frame(wire.address))
    wait_until(lambda: tap_gone(relay) >= before + 10, PATIENCE_S, "both came and were dropped")
    counted = relay.status()["counters"]
    assert counted["frames_in"] == counted["frames_out"] == 0
    assert {name for name, number in counted["dropped"].items() if number} == {"tap_gone"}


def test_it_learns_who_is_where(mesh, relay):
    assert fdb(relay)[tap_mac(mesh[1]), None]["peer"] == "h1"


# --- What is told -----------------------------------------------------------------------------


def test_the_status_has_no_device_and_misses_none(relay):
    status = relay.status()
    tap = status["tap"]
    assert tap["device"] is tap["mtu"] is tap["address"] is None
    assert tap["addresses"] == tap["queues"] == []
    checks = {check["name"]: check for check in status["health"]}
    assert checks["tap"]["ok"]
    assert checks["tap"]["text"] == "none is wanted: network.tap_device is empty"
    assert relay.api("GET", "/health", authorize=False)[0] == 200
    shown = relay.cli("status").stdout
    assert "tap       none is wanted" in shown


@pytest.mark.parametrize(
    "command",
    ["status", "peers", "peers h1", "fdb", "config show", "wait --for connected", "netcheck",
     "explain", "explain h1", "explain 10.0.0.1", "explain 02:00:5e:10:00:01", "dashboard"],
)  # fmt: skip
def test_no_command_shows_an_empty_name_or_fails_in_an_unknown_way(relay, command):
    for extra in ((), ("--json",)):
        done = relay.cli(*command.split(), *extra)
        assert "Traceback" not in done.stderr
        assert "internal" not in done.stderr
        assert (done.returncode == 5) == command.startswith(("explain", "netcheck")), done.stdout
        for words in (" ,", "  is ", "dev ;", "dev `", "of 14 bytes"):
            assert words not in done.stdout


def test_an_explanation_says_that_no_frame_goes_from_here_and_how_the_session_is(relay):
    code, told = relay.api("GET", "/explain?peer=h1")
    assert code == 200
    steps = {step["name"]: step for step in told["steps"]}
    assert not told["delivered"]
    assert "network.tap_device is empty" in told["summary"]
    assert [name for name, step in steps.items() if step["verdict"] == "fail"] == ["tap"]
    assert steps["session"]["verdict"] == steps["path"]["verdict"] == "ok"
    assert steps["drops"]["verdict"] == "ok"


def test_a_capture_is_refused_where_no_frame_crosses(relay):
    done = relay.cli("capture", "--count", "1")
    assert done.returncode == 4, done.stderr
    assert "runs without a device" in done.stderr


def test_dropped_frames_are_no_news_where_all_are_dropped(relay):
    code, told = relay.api("GET", "/events/recent?limit=1000")
    assert code == 200
    assert told["events"]
    assert not [event for event in told["events"] if event["kind"] == "drops"]


def test_a_device_waits_for_a_restart(relay):
    text = relay.config_path.read_text()
    other = "network:\n  local_ip: 10.7.0.2/24\n  tap_device: tap7\n"
    relay.config_path.write_text(text.replace("network:\n  tap_device: ''\n", other))
    try:
        code, answer = relay.api("POST", "/reload")
        assert code == 200, answer
        assert answer["restart"] == ["network.tap_device", "network.local_ip"]
        assert relay.status()["tap"]["device"] is None
    finally:
        relay.config_path.write_text(text)
    assert relay.api("POST", "/reload")[1]["restart"] == []


# --- What it may and has ----------------------------------------------------------------------


def test_it_has_one_capability_no_device_and_no_thread_for_one(relay):
    pid = relay.pid
    for field in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(proc_status(pid, field)[0], 16) == BIND_SERVICE
    assert set(proc_status(pid, "Uid")) == {str(NOBODY)}
    threads = {(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()}
    assert "sm-udp" in threads
    assert not [name for name in threads if name.startswith("sm-tap")]
    opened = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    assert not [path for path in opened if "tun" in path]
    assert set(relay.host.interfaces()) == {"lo", "eth0"}


def test_a_disconnect_and_a_connect_work_as_with_a_device(mesh, relay):
    assert relay.cli("disconnect").returncode == 0
    assert relay.status()["peers"]["sessions"] == 0
    assert relay.cli("connect").returncode == 0
    mesh.await_peers(relay, {"h1", "h3"}, "connected")


def test_nothing_is_left_when_it_ends(mesh, relay):
    code, seconds = relay.terminate()
    assert code == 0
    assert seconds < 4
    assert set(relay.host.interfaces()) == {"lo", "eth0"}
    left = {path.name for path in relay.directory.rglob("*") if path.is_file() or path.is_socket()}
    assert left == {
        "daemon.yaml", "daemon.log", "cert.pem", "key.pem", "identity.key", "api.token", "last_seen.peers",
    }  # fmt: skip
    mesh.await_peers(mesh[1], {"h3"}, "connected")
    relay.start()
    mesh.await_peers(relay, {"h1", "h3"}, "connected")


def test_with_ports_above_1023_it_needs_no_capability_at_all(open_directory):
    with Net() as net:
        pair = make_pair(net, open_directory / "pair", psk=False)
        right = pair.right
        behead(right)
        confine(right)
        try:
            pair.start().connect()
            assert int(proc_status(right.pid, "CapBnd")[0], 16) == 0
            assert pair.left.cli("ping", "--count", "2").returncode == 0
            assert right.cli("ping", "--count", "2").returncode == 0
            assert pair.left.host.ping("10.0.0.2", count=1, timeout_s=0.5).received == 0
            wait_until(lambda: tap_gone(right), 5, "what came is counted")
            assert "tap       none is wanted" in right.cli("status").stdout
            assert right.cli("explain").returncode == 5
            assert right.terminate()[0] == 0
        finally:
            for daemon in pair:
                daemon.kill()
        pair.assert_logs_clean()
