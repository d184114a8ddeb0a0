"""Members of one network in one process: who knows whom by certificate has a session with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from shadowmesh.network.membership import KnownRelay
from tests.network.disks import Disk, invite
from tests.peer.machines import Machine, wait_for


class Member(Machine):
    """A daemon that is in a network, or makes one."""

    def __init__(self, directory):
        super().__init__(directory)
        self.disk = Disk(directory / "disk")

    def found(self):
        """Make the network; its address is known once it listens."""
        self.disk.found(name=self.name)
        return self._be()

    def join(self, hub):
        # A bridge: the frames of a test have sources of their own.
        self.disk.join(hub.disk, invite(hub.disk, roles=("bridge",)), self.name)
        return self._be()

    def _be(self):
        membership = self.disk.membership
        self.identity, self.membership = membership.identity, membership
        membership.on_change = self._changed
        self._apply()
        return self

    def _apply(self):
        peers = self.membership.peers()
        self.config = replace(self.config, peer_list=peers, in_network=True)

    def _changed(self):
        self._apply()
        if self.manager is not None:
            self.manager.reload(self.config)

    def meets(self, other):
        """Learn where another member is, and that it is one."""
        self._has_relay(KnownRelay(other.address, other.identity.public_key))
        self.membership.learn(other.membership.certificate, datetime.now(UTC))
        self._changed()
        return self

    def _has_relay(self, relay):
        self.membership.facts = replace(self.membership.facts, relays=(relay,))

    def has(self, *others):
        for other in others:
            wait_for(
                lambda other=other: self.state_of(other) == "connected",
                f"a session of {self.name} with {other.name}",
            )
        return self

    def state_of(self, other):
        states = {peer.name: str(peer.machine.state) for peer in self.manager.peers}
        return states.get(other.name, "unknown")


@pytest.fixture
def member(tmp_path):
    made = []

    def build(name):
        made.append(Member(tmp_path / name))
        return made[-1]

    yield build
    for one in made:
        one.stop()
        if hasattr(one.disk, "registrar"):
            one.disk.registrar.close()


@pytest.fixture
def hub(member):
    return member("hub").found().start()


def test_a_joiner_has_a_session_with_the_relay_that_let_it_in(hub, member):
    laptop = member("laptop").join(hub).start().meets(hub)
    laptop.has(hub)
    hub.has(laptop)
    sent = laptop.send(b"from the laptop")
    assert hub.receive() == sent
    assert laptop.knows(hub).current.result.mode == 7


def test_a_member_that_nobody_has_told_of_is_let_in_by_its_certificate(hub, member):
    left = member("left").join(hub).start()
    right = member("right").join(hub).start().meets(left)
    right.has(left)
    left.has(right)
    sent = right.send(b"hello")
    assert left.receive() == sent


def test_a_removed_member_loses_its_session_and_does_not_come_back(hub, member):
    laptop = member("laptop").join(hub).start().meets(hub)
    laptop.has(hub)
    hub.has(laptop)
    hub.disk.registrar.remove("laptop", datetime.now(UTC))
    wait_for(lambda: hub.state_of(laptop) == "unknown", "the hub to forget it")
    wait_for(lambda: laptop.state_of(hub) != "connected", "the end of the session")
    wait_for(lambda: laptop.knows(hub).last_error, "its next attempt to fail")
    assert hub.state_of(laptop) == "unknown"
    assert hub.membership.peers() == ()


def test_a_member_of_another_network_is_not_let_in(hub, member):
    other = member("other").found().start()
    stranger = member("stranger").join(other).start()
    stranger._has_relay(KnownRelay(hub.address, other.identity.public_key))
    stranger._changed()
    wait_for(lambda: stranger.knows(other).last_error, "its attempt to fail")
    assert len(hub.manager.peers) == 0
