"""A daemon whose service manager keeps its descriptors: the interface outlives the process."""

from __future__ import annotations

import signal

import pytest

from shadowmesh.netlab import Net, wait_until
from tests.lab.pair import link_statistics, make_pair
from tests.lab.service_manager import ServiceManager

pytestmark = pytest.mark.netns

EXTRA = "192.0.2.77/32"
SOCKETS = ("( sport = :9001 )", "-Hlnt"), ("( sport = :9002 )", "-Hlnu")


@pytest.fixture(scope="module")
def manager(directory):
    with ServiceManager(directory / "manager") as manager:
        yield manager


@pytest.fixture(scope="module")
def pair(directory, manager):
    """The left one dials; the right one is the service."""
    with Net() as net:
        udp = {"nat.enabled": True, "nat.stun_server": [], "nat.udp_port": 9002}
        pair = make_pair(net, directory, udp, left={"peer.auto_connect": True})
        pair.right.wrapper = manager.wrapper
        try:
            pair.start()
            yield pair
        finally:
            for daemon in pair:
                daemon.kill()
        pair.assert_logs_clean()


@pytest.fixture
def connected(pair):
    pair.await_connected(20)
    pair.await_pings(15)
    return pair


def index_of(daemon):
    return daemon.host.interfaces()[daemon.tap]["ifindex"]


def inodes(host):
    """Of the listening peer port and the UDP socket: the same socket has the same inode."""
    found = []
    for match, kind in SOCKETS:
        [line] = host.run("ss", "-e", kind, match).stdout.splitlines()
        found += [word for word in line.split() if word.startswith("ino:")]
    return found


def resume(pair):
    """Do not wait for the pause of the automatic dialler."""
    pair.left.api("POST", "/connect")
    pair.await_pings(15)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_interface_and_the_sockets_outlive_the_daemon(connected, manager, number):
    right = connected.right
    wait_until(lambda: sorted(manager.stored) == ["peer", "tap", "udp"], 5, "all is stored")
    # Something that nobody would restore on a new interface.
    right.host.ip(f"address replace {EXTRA} dev {right.tap}")
    index, sockets = index_of(right), inodes(right.host)
    right.process.send_signal(number)
    right.process.wait(10)
    assert index_of(right) == index, "it is there while nobody runs"
    right.start()
    resume(connected)
    assert index_of(right) == index
    assert EXTRA.partition("/")[0] in right.host.ip(f"address show dev {right.tap}")
    assert inodes(right.host) == sockets
    assert connected.left.wait_for(15, path="udp")
    connected.assert_pings()


def test_a_disconnect_takes_the_interface_down_all_the_same(connected, manager):
    right = connected.right
    assert right.cli("disconnect").returncode == 0
    assert right.host.taps() == []
    assert "tap" not in manager.stored
    right.connect(connected.left.host.peer_endpoint)
    connected.assert_pings()
    wait_until(lambda: "tap" in manager.stored, 15, "stored again")


def test_an_operator_may_disconnect_what_was_only_taken_over(connected):
    left, right = connected
    right.kill()
    assert left.cli("disconnect").returncode == 0
    right.start()
    assert right.host.taps() == [right.tap]
    right.cli("disconnect")
    assert right.host.taps() == []
    connected.connect()
    connected.assert_pings()


def test_what_does_not_fit_the_configuration_any_more_is_replaced(connected):
    right = connected.right
    index, sockets = index_of(right), inodes(right.host)
    right.settings.update({"network.mtu": 1400, "nat.udp_port": 9003})
    right.terminate()
    right.start()
    resume(connected)
    assert index_of(right) != index
    assert right.host.interfaces()[right.tap]["mtu"] == 1400
    assert "has an MTU of 1500, not 1400" in right.log()
    udp = right.host.run("ss", "-Hlnu").stdout
    assert ":9003" in udp
    assert ":9002" not in udp
    [peer] = [
        w for w in right.host.run("ss", "-Hlnte", SOCKETS[0][0]).stdout.split() if "ino:" in w
    ]
    assert peer == sockets[0], "the peer port has not changed"


def test_a_full_stop_leaves_nothing(connected, manager):
    right = connected.right
    assert link_statistics(right.host, right.tap)
    assert right.terminate()[0] == 0
    manager.empty()
    wait_until(lambda: right.host.taps() == [], 15, "the interface is gone")
    assert right.host.run("ss", "-Hlntu").stdout == ""
