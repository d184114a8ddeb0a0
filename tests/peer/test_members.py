"""Members of one network in one process: who knows whom by certificate has a session with it."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import gevent
import pytest

from shadowmesh.base.errors import ConnectTimeout, NoSuchPeer, NotConfigured, PeerRefused
from shadowmesh.config import HostPort
from shadowmesh.network.facts import KnownRelay
from shadowmesh.service.desk import Desk
from shadowmesh.wire.mesh.messages import Joined, Refused, Renew
from tests.network.disks import Disk, invite
from tests.peer.machines import Machine, wait_for


class Member(Machine):
    """A daemon that is in a network, or makes one, or wants to join."""

    def __init__(self, directory):
        super().__init__(directory)
        self.disk = Disk(directory / "disk")

    def found(self):
        """Make the network; its address is known once it listens."""
        self.disk.found(name=self.name)
        self.desk = Desk(self.disk.registrar)
        return self._be()

    def join(self, hub):
        # A bridge: the frames of a test have sources of their own.
        self.disk.join(hub.disk, invite(hub.disk, roles=("bridge",)), self.name)
        return self._be()

    def is_answered(self, hub, token, *, dialled=None, timeout_s=10):
        """Ask the hub over a link to be let in."""
        hub.desk.look()
        self.disk.begin(token)
        return self.manager.ask_to_join(
            dialled or hub.address,
            self.disk.identity,
            token.relays[0].public_key,
            lambda result: self.disk.question(token, result.h, self.name),
            timeout_s,
        )

    def asks(self, hub, token):
        """Join over a link; this daemon goes on as it was."""
        self.disk.take(self.is_answered(hub, token), token)
        return self

    def becomes(self, other):
        """Be the member that another daemon has made of its machine."""
        self.disk = other.disk
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


@contextmanager
def silent_port():
    """Something that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield HostPort(*listening.getsockname())


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


def test_a_machine_joins_over_a_link_and_then_has_a_session(hub, member):
    laptop = member("laptop").start()
    token = invite(hub.disk, roles=("bridge",))
    laptop.asks(hub, token)
    assert laptop.disk.membership.certificate.name == "laptop"
    laptop.stop()
    again = member("again").becomes(laptop).start().meets(hub)
    again.has(hub)
    sent = again.send(b"from who has joined")
    assert hub.receive() == sent


def test_an_invitation_that_was_altered_is_refused_with_a_sentence_and_nothing_is_burnt(
    hub, member
):
    laptop = member("laptop").start()
    token = invite(hub.disk)
    answer = laptop.is_answered(hub, replace(token, secret=bytes(16)))
    assert (type(answer), answer.reason) == (Refused, "proof")
    assert isinstance(laptop.is_answered(hub, token), Joined)


def test_without_an_open_invitation_nobody_who_wants_to_join_is_heard(hub, member):
    laptop = member("laptop").start()
    other = member("other").found()
    token = invite(other.disk)
    token = replace(token, relays=(replace(token.relays[0], public_key=hub.identity.public_key),))
    with pytest.raises(PeerRefused, match="ask for a new one"):
        laptop.is_answered(hub, token)
    assert hub.desk.answers == {}


def test_a_relay_that_has_another_key_than_the_invitation_says_is_told_nothing(hub, member):
    laptop = member("laptop").start()
    token = invite(hub.disk)
    other = replace(token, relays=(replace(token.relays[0], public_key=bytes(31) + b"\1"),))
    with pytest.raises(PeerRefused):
        laptop.is_answered(hub, other)
    assert hub.desk.answers == {}


def test_a_relay_that_does_not_answer_ends_the_wait(hub, member):
    laptop = member("laptop").start()
    token = invite(hub.disk)
    with silent_port() as nobody, pytest.raises(ConnectTimeout, match="did not answer in"):
        laptop.is_answered(hub, token, dialled=nobody, timeout_s=0.2)


def test_the_name_of_this_machine_is_nobody_to_be_asked_for(hub, member):
    laptop = member("laptop").join(hub).start()
    for ask in (laptop.manager.ping, laptop.manager.disconnect, laptop.manager.peer_named):
        with pytest.raises(NoSuchPeer, match='"laptop"; that is this machine itself'):
            ask("laptop")
        with pytest.raises(NoSuchPeer, match='did you mean "hub"'):
            ask("hob")


def test_whom_nobody_can_dial_is_told_as_that(hub, member):
    member("laptop").join(hub)
    hub.reload()
    with pytest.raises(NotConfigured, match=r"laptop announces no address.*connect laptop HOST"):
        hub.manager.connect(None, "laptop")


def test_who_missed_a_new_secret_is_reached_with_the_one_before(hub, member):
    laptop = member("laptop").join(hub).start()
    hub.disk.registrar.rotate_secret(datetime.now(UTC))
    hub.meets(laptop)
    hub.has(laptop)
    assert laptop.knows(hub).current.result.mode == 7


def test_who_missed_a_new_secret_reaches_who_has_it(hub, member):
    laptop = member("laptop").join(hub).start()
    hub.disk.registrar.rotate_secret(datetime.now(UTC))
    laptop.meets(hub).has(hub)


def catches_up(laptop, hub):
    """Let a member ask the hub for what it has missed, once it is refused."""
    hub.desk.look()

    def ask(_peer, address):
        def wait():
            answer = laptop.manager.ask_to_join(
                address,
                laptop.membership.identity,
                hub.identity.public_key,
                lambda _result: Renew(certificate=laptop.membership.certificate.der),
                10,
            )
            laptop.membership.catch_up(answer, datetime.now(UTC))

        gevent.spawn(wait)

    laptop.on_out_of_date = ask
    return laptop


def test_who_missed_two_secrets_asks_for_the_third_and_is_in(hub, member):
    laptop = member("laptop").join(hub)
    for _ in range(2):
        hub.disk.registrar.rotate_secret(datetime.now(UTC))
    catches_up(laptop, hub).start().meets(hub).has(hub)
    assert laptop.membership.psks[0] == hub.membership.psks[0]


def test_who_missed_that_its_certificate_was_replaced_gets_the_new_one(hub, member):
    laptop = member("laptop").join(hub)
    now = datetime.now(UTC)
    registrar = hub.disk.registrar
    registrar.issuer.reissue(hub.disk.ledger_member("laptop"), now, name="lapis", at_once=True)
    registrar.issuer.make_list(now)
    hub.membership.sift(now)
    catches_up(laptop, hub).start().meets(hub).has(hub)
    assert laptop.membership.certificate.name == "lapis"


def test_who_was_removed_is_given_nothing(hub, member):
    laptop = member("laptop").join(hub)
    hub.disk.registrar.rotate_secret(datetime.now(UTC))
    hub.disk.registrar.rotate_secret(datetime.now(UTC))
    hub.disk.registrar.remove("laptop", datetime.now(UTC))
    hub.desk.look()
    laptop.start()
    answer = laptop.manager.ask_to_join(
        hub.address,
        laptop.membership.identity,
        hub.identity.public_key,
        lambda _result: Renew(certificate=laptop.membership.certificate.der),
        10,
    )
    assert answer.reason == "removed"


def test_a_member_of_another_network_is_not_let_in(hub, member):
    other = member("other").found().start()
    stranger = member("stranger").join(other).start()
    stranger._has_relay(KnownRelay(hub.address, other.identity.public_key))
    stranger._changed()
    wait_for(lambda: stranger.knows(other).last_error, "its attempt to fail")
    assert len(hub.manager.peers) == 0
