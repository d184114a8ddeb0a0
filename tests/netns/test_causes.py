"""Whatever is wrong, status, explain and /health name the real cause; one pair, one fault each.

Every fault is mended before the next, and the pair connects again.
"""

from __future__ import annotations

import http
import json
import secrets
import signal
import tarfile
from dataclasses import dataclass

import pytest

from shadowmesh.keys.identity import Identity, format_public_key
from shadowmesh.keys.mac import stable_mac
from shadowmesh.netlab import Daemon, wait_until
from tests.lab import faults
from tests.lab.pair import Pair, connected_pair, secrets_of

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def pair(directory):
    small = faults.small_disk(directory / "left" / "state")
    settings = {"nat.enabled": True, "nat.stun_server": ""}
    with small, connected_pair(directory, settings) as pair:
        for daemon in pair:
            daemon.wait_for(15, path="udp")
        yield pair


@pytest.fixture
def well(pair: Pair) -> Pair:
    """The pair, connected over UDP whatever was done to it before."""
    if pair.left.status()["state"] != "connected":
        pair.disconnect()
        pair.connect()
    for daemon in pair:
        daemon.wait_for(15, state="connected", path="udp")
    return pair


@dataclass(frozen=True)
class Told:
    """What one daemon says about itself, by the three ways."""

    status: str
    explain: str
    health: str
    delivered: bool
    healthy: bool
    codes: frozenset[str]

    def names(self, *words: str) -> None:
        """Each of the three has each of the words."""
        for word in words:
            for text in (self.status, self.explain, self.health):
                assert word in text, f"{word!r} is missing:\n{text}"


def tell(daemon: Daemon, *target: str) -> Told:
    status, explain = daemon.cli("status"), daemon.cli("explain", *target)
    code, health = daemon.api("GET", "/health")
    failed = [check for check in health["checks"].values() if not check["ok"]]
    # True on a machine that runs more than this test.
    failed = [check for check in failed if check["code"] != "hub_late"]
    assert explain.returncode in (0, 5), explain.stderr
    return Told(
        status.stdout,
        explain.stdout,
        "\n".join(check["text"] for check in failed),
        delivered=explain.returncode == 0,
        healthy=code == http.HTTPStatus.OK,
        codes=frozenset(check["code"] for check in failed),
    )


def step(daemon: Daemon, name: str, *target: str) -> dict[str, object]:
    answer = json.loads(daemon.cli("--json", "explain", *target).stdout)
    return next(each for each in answer["steps"] if each["name"] == name)


# --- All is well --------------------------------------------------------------------------------


def test_a_tunnel_without_a_fault_is_called_well(well):
    well.assert_pings()
    for daemon in well:
        told = tell(daemon)
        assert (told.delivered, told.healthy, told.codes) == (True, True, frozenset())
        assert "a frame is delivered over udp" in told.explain
        assert "is cut into 2 fragments" in told.explain
        assert "health    ok" in told.status


def test_the_way_to_a_host_is_told_as_the_kernel_sees_it(well):
    left, right = well
    well.assert_pings()
    mac = stable_mac(Identity.from_seed((right.state_dir / "identity.key").read_bytes()).public_key)
    found = step(left, "target", right.tunnel_ip)
    assert found["verdict"] == "ok"
    assert f"answered with {mac.hex(':')}, the peer's own TAP device" in found["text"]
    assert "the peer's own TAP device" in step(left, "target", mac.hex(":"))["text"]
    assert not left.host.ping("10.0.0.99", count=1, timeout_s=0.2).received
    wait_until(
        lambda: step(left, "target", "10.0.0.99")["verdict"] == "fail", 5, "nobody answers ARP"
    )
    assert "nobody there answers" in step(left, "target", "10.0.0.99")["text"]
    for target, words in (
        (left.tunnel_ip, "is an address of this host (tap0)"),
        (right.host.ipv4, "out of eth0, not into the tunnel"),
        ("203.0.113.9", "no route to 203.0.113.9"),
    ):
        found = step(left, "target", target)
        assert found["verdict"] == "fail"
        assert words in found["text"]
    assert left.cli("explain", left.tunnel_ip).returncode == 5


# --- The five faults ----------------------------------------------------------------------------


def test_a_full_disk_is_named_and_stops_no_frame(well):
    with faults.full_disk(well.left.state_dir):
        told = tell(well.left)
        told.names(f"{well.left.state_dir} has 0 B left")
        assert (told.delivered, told.healthy) == (True, True)
        assert told.codes == {"disk_full"}
        assert "do: make room" in told.explain
    assert tell(well.left).codes == frozenset()


def test_blocked_udp_is_named_and_stops_no_frame(well):
    with faults.drop_udp(well.net):
        wait_until(lambda: on_wss(well), 15, "both on WSS")
        told = tell(well.left)
        told.names("UDP to ", ":9001 is silent")
        assert (told.delivered, told.healthy) == (True, True)
        assert told.codes == {"udp_unavailable"}
        assert "do: let UDP pass between the two machines" in told.explain
        well.assert_pings()


def on_wss(pair: Pair) -> bool:
    """Whether both have given UDP up; they find out by what they send."""
    for one, other in ((pair.left, pair.right), (pair.right, pair.left)):
        one.host.ping(other.tunnel_ip, count=1, timeout_s=0.05)
    return all(daemon.status()["path"] == "wss" for daemon in pair)


def test_a_peer_that_is_gone_is_named(well):
    left, right = well
    right.kill()
    try:
        wait_until(lambda: "cannot reach" in (left.status()["last_error"] or ""), 15, "the cause")
        told = tell(left)
        told.names(f"cannot reach {right.host.peer_endpoint}", "check the address")
        assert not told.delivered
        assert told.codes == {"cannot_connect"}
    finally:
        right.start()


def test_a_daemon_that_was_told_its_own_address_is_told_so(well):
    """The daemon's own port, and one at which nobody listens; IPv4 and IPv6."""
    left = well.left
    well.disconnect()
    for host in (left.host.ipv4, f"[{left.host.ipv6}]"):
        answer = left.cli("connect", f"{host}:9001")
        assert answer.returncode == 1, answer.stderr
        assert "this is the daemon itself; give the address" in answer.stderr
        assert "this is the daemon itself" in tell(left).explain
        answer = left.cli("connect", f"{host}:9005")
        assert answer.returncode == 5, answer.stderr
        assert f"{host.strip('[]')} is an address of this machine" in answer.stderr
    assert "incoming handshake failed" not in left.log()


def test_a_wrong_key_is_named_on_both_sides(well):
    left, right = well
    good = left.settings["peer.public_key"]
    wrong = format_public_key(Identity.from_seed(secrets.token_bytes(32)).public_key)
    try:
        reload(left, wrong)
        left.wait_for(15, state="disconnected")
        assert left.cli("connect").returncode == 1
        told = tell(left)
        told.names("the peer refused the handshake", "compare encryption.key and peer.public_key")
        assert not told.delivered
        wait_until(lambda: right.status()["refused"]["cause"], 15, "right knows")
        told = tell(right)
        told.names("a peer.public_key that is not ours")
        assert not told.delivered
        assert "peer_refused" in told.codes
        assert told.healthy  # a stranger must not be able to make it unhealthy
    finally:
        reload(left, good)


def reload(daemon: Daemon, key: object) -> None:
    daemon.settings["peer.public_key"] = key
    daemon.write_config()
    assert daemon.process is not None
    lines = daemon.log().count("configuration reloaded")
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.log().count("configuration reloaded") > lines, 5, "a reload")


def test_a_deleted_tap_that_cannot_be_made_again_is_named(well):
    left = well.left
    left.pause()  # or it would be made again at once
    left.host.ip("link delete tap0", "link add tap0 type bridge")
    left.resume()
    try:
        left.wait_for(15, state="error")
        told = tell(left)
        told.names("tap0")
        assert "cannot be made again" in told.status
        assert "tap0 is another interface, a bridge device" in told.explain
        assert "not a TAP device" in told.health
        assert (told.delivered, told.healthy) == (False, False)
        assert "tap_unavailable" in told.codes
    finally:
        left.host.ip("link delete tap0")


def test_a_tap_that_is_down_is_named(well):
    well.right.host.ip("link set tap0 down")
    try:
        told = tell(well.right)
        told.names("tap0 is down")
        assert (told.delivered, told.healthy) == (False, False)
        assert "do: ip link set tap0 up" in told.explain
    finally:
        well.right.host.ip("link set tap0 up")


# --- The bug report -----------------------------------------------------------------------------


def test_a_report_of_a_running_daemon_has_every_part_and_no_secret(well, tmp_path):
    for daemon in well:
        file = tmp_path / f"{daemon.host.label}.tar.gz"
        done = daemon.cli("bugreport", "-o", str(file))
        assert done.returncode == 0, done.stderr
        with tarfile.open(file) as tar:
            texts = {
                entry.name.rpartition("/")[2]: tar.extractfile(entry).read().decode()
                for entry in tar
            }
        assert json.loads(texts["status.json"])["state"] == "connected"
        assert json.loads(texts["explain.json"])["delivered"]
        assert json.loads(texts["events.json"])["events"]
        assert "shadowmesh_state" in texts["metrics.txt"]
        assert "daemon is ready" in texts["log.txt"]
        assert "tap0" in texts["interfaces.txt"]
        assert daemon.host.ipv4 in texts["interfaces.txt"]
        for name, secret in secrets_of(daemon).items():
            for part, text in texts.items():
                assert secret not in text, f"{name} is in {part}"
