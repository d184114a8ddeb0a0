"""The life of a network by what its operator types: real daemons, and the command line alone."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

from shadowmesh.netlab import wait_until
from shadowmesh.network import trust
from tests.lab.network import PATIENCE_S, running_network

pytestmark = pytest.mark.netns

#: a recovery key of nobody
ANOTHER = trust.recovery_text(bytes(range(32)))


@pytest.fixture
def network(directory, request):
    with running_network(directory / request.node.name) as network:
        yield network


def typed(daemon, *words, code=0, text=None):
    """What a command prints, with the exit code that it has to have."""
    done = daemon.cli(*words, text=text)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + (done.stderr if code else "")


def recovery_key_of(said):
    return re.search(r"^recovery +(\S+)$", said, re.MULTILINE)[1]


def join(network, name, *words):
    """Let a fresh machine join by an invitation that the hub's operator sends."""
    token = typed(network["hub"], "invite", name, *words).strip()
    daemon = network.machine(name)
    announce = ("--announce", daemon.host.peer_endpoint)
    said = typed(daemon, "join", "-", "--yes", *announce, text=token)
    assert re.search(rf"joined home as {name}, 10\.77\.0\.\d+, connected to \d peer", said)
    return daemon


def assert_all_talk(network, *names):
    for one in names:
        for other in names:
            if one != other:
                typed(network[one], "wait", "--peer", other, "--timeout", "30s")
                answers = partial(network[one].host.ping, network.address(other), count=3)
                # An address may have been another's, whom a kernel asks first for some seconds.
                wait_until(lambda answers=answers: answers().complete, PATIENCE_S, "an answer")


def test_a_network_lives_by_what_is_typed(network):
    hub = network.machine("hub")
    made = typed(hub, "network", "create", "home", "--as", "hub", "--subnet", "10.77.0.0/24",
                 "--address", hub.host.peer_endpoint)  # fmt: skip
    key = recovery_key_of(made)
    laptop, nas = join(network, "laptop"), join(network, "nas")
    assert_all_talk(network, "hub", "laptop", "nas")

    told = typed(laptop, "relays").splitlines()
    assert told[0].split() == ["NAME", "ADDRESS", "SESSION", "RTT", "HOME"]
    assert re.fullmatch(rf"hub +{re.escape(hub.host.peer_endpoint)} +yes +.* home", told[1])
    assert told[-1].startswith("home is hub: ")
    assert json.loads(typed(hub, "relays", "--json"))["relays"] == []

    first = sessions(network)
    assert "the network has secret 2" in typed(hub, "network", "secret", "rotate", "--yes")
    assert "not have the ledger" in typed(laptop, "network", "secret", "rotate", "--yes", code=1)
    before = authorities(laptop)
    by_file = ("--yes", "--recovery-key-file", "-")
    assert "3 certificates issued" in typed(
        hub, "network", "authority", "replace", *by_file, text=key
    )
    wait_until(lambda: len(authorities(laptop)) == 2, PATIENCE_S, "the new authority")
    wait_until(lambda: len(authorities(nas)) == 2, PATIENCE_S, "the new authority")
    said = typed(hub, "network", "authority", "drop", *by_file, text=key)
    assert "out of the network" not in said
    for one in (laptop, nas):
        wait_until(lambda one=one: len(authorities(one)) == 1, PATIENCE_S, "the end of the first")
        assert authorities(one) != before
    assert_all_talk(network, "hub", "laptop", "nas")
    assert sessions(network) == first, "no session ended"

    assert "secret rotate" in typed(hub, "peer", "remove", "nas", "--yes")
    wait_until(lambda: "nas" not in laptop.peers(), 5, "the end at the laptop")
    assert "has secret 3" in typed(hub, "network", "secret", "rotate", "--yes")
    assert_all_talk(network, "hub", "laptop")
    # Whoever joins now gets the third secret, of the second authority.
    join(network, "desk")
    assert_all_talk(network, "hub", "laptop", "desk")

    assert "`shadowmesh leave`" in typed(laptop, "network", "delete", "--yes", code=1)
    assert typed(laptop, "leave", "--yes").startswith("left home, ")
    assert typed(hub, "network", "delete", "--yes").startswith("left home, ")
    assert "no network" in typed(hub, "network", "show", code=1)
    assert key not in hub.log()


def test_a_wrong_recovery_key_replaces_nothing_and_stands_nowhere(network):
    hub = network.machine("hub")
    typed(hub, "network", "create", "home", "--address", hub.host.peer_endpoint)
    before = authorities(hub)
    replace = ("network", "authority", "replace", "--yes", "--recovery-key-file", "-")
    mistyped = "smr1-" + "-".join(["aaaa"] * 14)
    for text, code, why in (
        (mistyped, 2, "mistyped"), ("x", 2, "characters behind smr1-"), ("k" * 4000, 1, "more than 1024 bytes"), ("k" * 900, 2, "longer than"),
        (ANOTHER, 1, "not the recovery key of this network"), ("", 1, "no recovery key"),
    ):  # fmt: skip
        said = typed(hub, *replace, code=code, text=text)
        assert why in said
        assert not text or len(text) < 2 or text not in said + hub.log()
    assert "none to drop" in typed(
        hub,
        "network",
        "authority",
        "drop",
        "--yes",
        "--recovery-key-file",
        "-",
        text=ANOTHER,
        code=1,
    )
    assert authorities(hub) == before


def authorities(daemon):
    return daemon.network()["authorities"]


def sessions(network):
    """When the sessions of all with all were established."""
    return {
        (name, other): peer["session"]["established_at"]
        for name, daemon in network.daemons.items()
        for other, peer in daemon.peers().items()
    }
