"""A network of machines that join: real daemons, from nothing to one Ethernet."""

from __future__ import annotations

import pytest

from shadowmesh.netlab import wait_until
from tests.lab.network import running_network

pytestmark = pytest.mark.netns


@pytest.fixture
def network(directory, request):
    with running_network(directory / request.node.name) as network:
        yield network


def test_three_machines_become_one_ethernet_with_two_invitations(network):
    said = network.found()
    assert said["recovery_key"]
    network.join("laptop")
    network.join("nas")
    for one, other in (("laptop", "hub"), ("nas", "hub")):
        network.await_session(one, other)
        assert network[one].host.ping(network.address(other), count=3).complete


def test_a_removed_member_is_out_at_once_and_stays_out(network):
    network.found()
    network.join("laptop")
    network.await_session("hub", "laptop")
    assert network.remove("laptop")["removed"] == ["laptop"]
    wait_until(lambda: "laptop" not in network["hub"].peers(), 5, "the end at the hub")
    wait_until(
        lambda: network["laptop"].peers()["hub"]["state"] != "connected", 5, "the end at the laptop"
    )
