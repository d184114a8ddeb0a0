"""A device that others changed: what is wrong, and a remedy that breaks nothing."""

from __future__ import annotations

import pytest

from shadowmesh.device.facts import Device, Held
from shadowmesh.insight import surroundings

ADDRESS = "10.0.0.1/24"
LAN = Held("eth0", "192.0.2.7/24")


def device(*, addresses=(ADDRESS,), mtu=1500, bridge=None):
    return Device("tap0", "tun", b"", mtu, True, True, addresses, bridge)


@pytest.mark.parametrize(
    ("found", "others", "code", "severity", "says", "remedy"),
    [
        (device(addresses=()), [], "tap_address_gone", "error", "10.0.0.1/24 was taken off it",
         "ip address add 10.0.0.1/24 dev tap0"),
        (device(mtu=1400), [], "tap_mtu", "warning", "its MTU is 1400 now and the daemon was told 1500",
         "ip link set tap0 mtu 1500"),
        (device(bridge="br0"), [], "tap_in_bridge", "error", "10.0.0.1/24 on it receives nothing",
         "ip address del 10.0.0.1/24 dev tap0 && ip address add 10.0.0.1/24 dev br0; and set"),
        (device(bridge="br0"), [Held("br0", ADDRESS, inside=True)], "tap_in_bridge", "error",
         "receives nothing", "ip address del 10.0.0.1/24 dev tap0; and set network.local_ip"),
        (device(addresses=(), bridge="br0"), [Held("br0", ADDRESS, inside=True)], "tap_address_moved",
         "warning", "is on br0 by now, which works", 'set network.local_ip to ""'),
        (device(addresses=(), bridge="br0"), [], "tap_address_gone", "warning",
         "nothing of this host has 10.0.0.1/24", "ip address add 10.0.0.1/24 dev br0, if"),
        (device(addresses=()), [Held("mv0", ADDRESS, inside=True)], "tap_address_moved", "warning",
         "is on mv0 by now", "network.local_ip"),
        (device(addresses=()), [Held("eth1", ADDRESS)], "tap_address_elsewhere", "error",
         "is on eth1, which does not lead into the tunnel", "dev eth1 && ip address add"),
    ],
)  # fmt: skip
def test_each_change_has_its_cause_and_its_remedy(found, others, code, severity, says, remedy):
    check = surroundings.device(found, [LAN, *others], (ADDRESS,), 1500)
    assert (check.name, check.code, check.severity) == ("tap", code, severity)
    assert says in check.text
    assert remedy in check.remedy


def test_a_device_as_it_was_made_and_one_that_was_to_be_bridged_are_well():
    assert surroundings.device(device(), [LAN], (ADDRESS,), 1500) is None
    assert surroundings.device(device(addresses=(), bridge="br0"), [LAN], (), 1500) is None


def test_nobody_is_told_to_put_an_address_on_a_port_of_a_bridge():
    for others in ([], [Held("br0", ADDRESS, inside=True)]):
        for addresses in ((), (ADDRESS,)):
            found = device(addresses=addresses, bridge="br0")
            check = surroundings.device(found, others, (ADDRESS,), 1500)
            assert "add 10.0.0.1/24 dev tap0" not in check.remedy
            assert "nomaster" not in check.remedy


def test_a_way_into_the_tunnel_is_an_error_unless_frames_go_another_way():
    inside, advice = (
        "198.51.100.2 leads into the tunnel itself (tap0)",
        "ip route add X via Y dev Z",
    )
    check = surroundings.way(inside, advice, [], (ADDRESS,), carried=False)
    assert (check.code, check.severity) == ("tunnel_loop", "error")
    assert inside in check.text
    assert check.remedy.startswith(advice)
    assert surroundings.way(inside, advice, [], (), carried=True).severity == "warning"


@pytest.mark.parametrize(
    ("other", "ok"),
    [
        (Held("eth0", "10.0.0.7/24"), False),
        (Held("eth0", "10.0.0.7/8"), False),
        (Held("eth0", "10.0.1.7/24"), True),
        (Held("eth0", "2001:db8::7/64"), True),
        (Held("br0", "10.0.0.7/24", inside=True), True),
        (Held("eth0", "10.0.0.7/24", up=False), True),
    ],
)
def test_a_lan_with_the_tunnels_network_is_a_warning(other, ok):
    check = surroundings.way(None, None, [other], (ADDRESS,), carried=True)
    assert check.ok is ok
    if not ok:
        assert (check.code, check.severity) == ("subnet_overlap", "warning")
        assert "eth0 is in" in check.text
