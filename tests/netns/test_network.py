"""A network of machines that join: real daemons, from nothing to one Ethernet."""

from __future__ import annotations

import pytest

from shadowmesh.netlab import API_PORT, wait_until
from shadowmesh.netlab.daemon import program
from tests.control.test_openapi import validate
from tests.lab.browser import browser, find_chromium
from tests.lab.network import running_network
from tests.netns.test_dashboard import PICTURES, SCREENS

pytestmark = pytest.mark.netns

NETWORK = "document.querySelector('#network').innerText"


def shown_by(daemon, *command):
    """What a command prints that knows the daemon and not its file."""
    token_file = str(daemon.state_dir / "api.token")
    options = ("--api", f"http://127.0.0.1:{API_PORT}", "--token-file", token_file)
    return daemon.host.run(program("shadowmesh"), *options, *command).stdout


def happened(daemon):
    """Message and name of what the flight recorder has of the network, refusals apart."""
    _, told = daemon.api("GET", "/events/recent")
    return [
        (one["message"], one["fields"].get("name"))
        for one in told["events"]
        if one["kind"] == "network" and "refused" not in one["message"]
    ]


def refusals(daemon):
    _, told = daemon.api("GET", "/events/recent")
    return sum("refused by its certificate" in one["message"] for one in told["events"])


def outside(daemon):
    """It has begun anew without a network."""
    try:
        code, status = daemon.api("GET", "/status")
    except OSError:
        return False
    return code == 200 and status["network"] is None


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


def test_a_member_shows_its_network_and_what_it_made_of_the_configuration(network):
    network.found()
    alone = network["hub"].status()
    validate(alone, "Snapshot")
    assert [check["name"] for check in alone["health"] if not check["ok"]] == []
    network.join("laptop")
    network.await_session("laptop", "hub")
    told = network["laptop"].status()
    validate(told, "Snapshot")
    assert told["network"]["members_known"] == 2
    (relay,) = told["network"]["relays"]
    endpoint = network["hub"].host.peer_endpoint
    assert (relay["name"], relay["address"], relay["session"]) == ("hub", endpoint, True)
    wait_until(lambda: network["hub"].status()["network"]["attached"] == 1, 5, "it is attached")
    assert {check["name"]: check["ok"] for check in told["health"]}["member_certificate"]
    shown = network["laptop"].cli("status").stdout
    assert f"network   home as laptop, {network.address('laptop')}" in shown
    assert f"relay hub at {endpoint} (connected), list" in shown
    in_force = shown_by(network["laptop"], "config", "show").splitlines()
    own = next(line for line in in_force if "local_ip" in line)
    assert network.address("laptop") in own
    assert own.endswith("# joined home")


def test_a_removed_member_is_out_at_once_and_stays_out(network):
    network.found()
    network.join("laptop")
    network.await_session("hub", "laptop")
    # Who has not said yet which lists it has is given none on its way out.
    wait_until(lambda: network["hub"].status()["network"]["attached"] == 1, 5, "it is attached")
    assert happened(network["laptop"])[0] == ("joined a network", "laptop")
    assert network.remove("laptop")["removed"] == ["laptop"]
    wait_until(lambda: "laptop" not in network["hub"].peers(), 5, "the end at the hub")
    wait_until(
        lambda: network["laptop"].peers()["hub"]["state"] != "connected", 5, "the end at the laptop"
    )
    assert happened(network["hub"]) == [
        ("made a network", "hub"), ("a member has joined", "laptop"),
        ("a revocation list was taken", None), ("a member was removed", "laptop"),
    ]  # fmt: skip
    wait_until(
        lambda: refusals(network["hub"]) >= 1,
        20,
        "the hub tells that it was refused by its certificate",
    )
    checks = {check["name"]: check for check in network["laptop"].status()["health"]}
    assert checks["member_certificate"]["code"] == "certificate_removed"


def test_members_that_announce_an_address_speak_directly(network):
    network.found()
    nas = network.join("nas", announce=["198.51.100.2:9001"])
    assert nas.host.peer_endpoint == "198.51.100.2:9001"
    network.join("laptop")
    network.await_session("laptop", "nas")
    assert network["laptop"].host.ping(network.address("nas"), count=3).complete
    # Without the relay they go on, and one that begins anew comes back by what it remembers.
    network["hub"].kill()
    assert network["laptop"].host.ping(network.address("nas"), count=3).complete
    network["laptop"].kill()
    network["laptop"].start()
    network.await_session("laptop", "nas")


def test_a_second_relay_is_found_and_serves_when_the_first_is_away(network):
    network.found()
    network.join("second", network.invite(name="second", roles=["relay"]),
                 announce=["198.51.100.2:9001"])  # fmt: skip
    network.await_session("hub", "second")
    network.join("laptop")
    for relay in ("hub", "second"):
        network.await_session("laptop", relay)
    network["hub"].kill()
    assert network["laptop"].host.ping(network.address("second"), count=3).complete
    network["laptop"].kill()
    network["laptop"].start()
    network.await_session("laptop", "second")


def test_what_a_removed_member_knows_opens_nothing(network):
    network.found()
    network.join("nas", announce=["198.51.100.2:9001"])
    network.join("laptop")
    network.await_session("laptop", "nas")
    network.remove("laptop")
    wait_until(lambda: "laptop" not in network["nas"].peers(), 5, "the end at another member")
    for name in ("hub", "nas"):
        network["laptop"].api("POST", "/connect", {"name": name}, timeout_s=40)
        assert network["laptop"].peers()[name]["state"] != "connected"


def test_who_has_left_shows_no_network_any_more(network):
    network.found()
    laptop = network.join("laptop")
    network.await_session("laptop", "hub")
    network.ask(laptop, "POST", "/leave")
    wait_until(lambda: outside(laptop), 20, "it has begun anew")
    lines = laptop.cli("status").stdout.splitlines()
    assert not [line for line in lines if line.startswith("network")]
    assert happened(laptop)[-1][0] == "left the network"


@pytest.mark.skipif(find_chromium() is None, reason="needs chromium (Debian: chromium)")
def test_the_dashboard_names_the_network_and_has_a_table_of_its_members(network, tmp_path):
    PICTURES.mkdir(parents=True, exist_ok=True)
    network.found()
    hub = network["hub"]
    rows = "[...document.querySelectorAll('#peers tr')].map((row) => row.innerText)"
    with browser(tmp_path / "profile", ["ip", "netns", "exec", hub.host.namespace]) as chromium:
        page = chromium.page()
        page.show_as(1280, 900)
        page.open(hub.cli("dashboard").stdout.strip())
        page.wait_for("document.querySelectorAll('#peers tr').length === 1")
        assert page.text("#h-mesh") == "Members of home"
        assert "this machine" in page.run(rows)[0]
        network.join("laptop")
        network.await_session("hub", "laptop")
        page.wait_for("document.querySelectorAll('#peers tr').length === 2")
        assert page.run(rows)[1].startswith("laptop")
        facts = page.text("#network")
        assert "this machine alone" in facts
        page.wait_for(f"{NETWORK}.includes('2 known, 1 attached here')")
        for name, (width, height, scheme, phone) in SCREENS.items():
            page.show_as(width, height, scheme=scheme, phone=phone)
            assert page.run("document.documentElement.scrollWidth <= window.innerWidth"), name
            page.screenshot(PICTURES / f"network-{name}.png")
        assert page.problems == []
