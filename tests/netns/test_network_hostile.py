"""A relay at which somebody knocks who is not invited, as fast as it can."""

from __future__ import annotations

import http
import json
import sys
import time
from pathlib import Path

import pytest

from shadowmesh.netlab import wait_until
from tests.lab.network import running_network

pytestmark = pytest.mark.netns

FLOOD_S = 6.0
CHECKOUT = Path(__file__).parents[2]


def late(daemon, bound_s):
    """How often its hub was later than so many seconds."""
    text = daemon.api("GET", "/metrics")[1]
    counts = {
        line.split('le="')[1].split('"')[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("shadowmesh_hub_lag_seconds_bucket")
    }
    return counts["+Inf"] - counts[str(bound_s)]


def test_a_flood_of_joiners_burns_nothing_and_members_feel_little(directory):
    with running_network(directory) as network:
        network.found()
        network.join("laptop")
        network.await_session("hub", "laptop")
        token = network.invite()
        hub, laptop = network["hub"], network["laptop"]
        host = network.net.host("intruder")
        log = directory / "intruder.log"
        flood = host.popen(
            sys.executable, "-m", "tests.lab.intruder", token, str(FLOOD_S),
            log=log, env={"PYTHONPATH": str(CHECKOUT)},
        )  # fmt: skip
        try:
            wait_until(lambda: "refused" in hub.log() or flood.poll() is not None, 20, "the first")
            slowest_s, began, late_before = 0.0, time.monotonic(), late(hub, 0.25)
            while time.monotonic() - began < FLOOD_S - 1:
                asked = time.monotonic()
                assert hub.status()["state"] == "connected"
                slowest_s = max(slowest_s, time.monotonic() - asked)
                time.sleep(0.1)
            assert laptop.host.ping(network.address("hub"), count=5).complete
            # Whoever is invited comes in meanwhile.
            guest = network.machine("guest")
            body = {"token": token, "name": "guest", "accept": True}
            code, answer = guest.api("POST", "/join", body)
            assert code == http.HTTPStatus.OK, answer
            network.await_member(guest)
            network.await_session("guest", "hub")
            assert flood.wait(30) == 0, log.read_text()
        finally:
            flood.kill()
        came = json.loads(log.read_text().splitlines()[-1])
        print(f"{came}, slowest answer of the hub {slowest_s:.3f} s")
        assert sum(came.values()) > 20
        assert "joined" not in came
        assert slowest_s < 1
        assert late(hub, 0.25) <= late_before
        (listed,) = network.ask(hub, "GET", "/invitations")["invitations"][:1]
        assert (listed["used"], listed["state"]) == (1, "used")
        assert hub.peers().keys() == {"laptop", "guest"}
        assert hub.open_fds() < 200
