"""Who comes to a relay and is not what it says: joiners, strangers, members that lie."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import gevent
import msgspec
import pytest

from shadowmesh.base.errors import ControlError
from shadowmesh.network.meeting import Meeting
from shadowmesh.wire.mesh import joining as conversation
from shadowmesh.wire.mesh.chunks import cut
from shadowmesh.wire.mesh.messages import (
    PART_MAX_BYTES,
    Attach,
    Busy,
    Error,
    Gone,
    Hello,
    Here,
    Join,
    Lists,
    Members,
    Part,
    Renewed,
    Version,
    Where,
    encode,
)
from tests.network.disks import invite
from tests.peer.machines import wait_for
from tests.peer.test_members import Member, hub, member  # noqa: F401 - fixtures

VERSION = Version(relay=bytes(32), boot_id=bytes(16), number=1)
HELLO = encode(Hello(software="x", boot_id=bytes(16)))


def part(size, offset, length):
    """One that our own side would not send, where it is too large."""
    return msgspec.msgpack.encode(Part(size=size, offset=offset, data=bytes(length)))


#: what a joiner sends in place of its question
JUNK = {
    "nothing in a record": [b""],
    "no MessagePack": [b"\xc1"],
    "zeros": [bytes(2048)],
    "another message": [HELLO],
    "a message of relays": [encode(Members(version=VERSION))],
    "too large": [part(conversation.QUESTION_MAX_BYTES + 1, 0, 100)],
    "as large as a directory": [part(384 * 1024, 0, PART_MAX_BYTES)],
    "parts that do not fit": [part(4096, 0, 100), part(4096, 200, 100)],
    "parts without end": [part(4096, 10 * number, 10) for number in range(400)],
    "hellos without end": [HELLO] * 100,
}


@pytest.fixture
def says(monkeypatch):
    """Lets joiners send other records than their question."""

    def say(records):
        monkeypatch.setattr(
            conversation,
            "cut",
            lambda message: records if isinstance(message, Join) else cut(message),
        )

    yield say
    monkeypatch.setattr(conversation, "cut", cut)


def nobody_is_left(relay):
    wait_for(lambda: not len(relay.manager._incoming), "the end of what came")
    wait_for(lambda: not relay.listener.unauthenticated, "its place given back")


@pytest.mark.parametrize("records", JUNK.values(), ids=JUNK)
def test_a_joiner_that_says_anything_else_is_closed_and_burns_nothing(hub, member, says, records):  # noqa: F811
    laptop = member("laptop").start()
    token = invite(hub.disk)
    says(records)
    with pytest.raises(ControlError):
        laptop.is_answered(hub, token, timeout_s=5)
    nobody_is_left(hub)
    assert hub.desk.answers == {}
    says(cut(Join(invitation_id=bytes(8), proof=bytes(32))))
    answer = laptop.is_answered(hub, token)
    assert answer.reason == "proof"
    assert [one.used for one in hub.disk.registrar.invitations()] == [0]


def test_a_joiner_that_never_asks_is_closed_in_time(hub, member, says, monkeypatch):  # noqa: F811
    laptop = member("laptop").start()
    token = invite(hub.disk)
    monkeypatch.setattr(conversation, "HANDSHAKE_TIMEOUT_S", 0.5)
    says([])
    began = time.monotonic()
    with pytest.raises(ControlError):
        laptop.is_answered(hub, token, timeout_s=5)
    nobody_is_left(hub)
    assert time.monotonic() - began < 3
    assert hub.desk.answers == {}


def test_wrong_proofs_of_one_source_slow_it_down_and_burn_nothing(hub, member):  # noqa: F811
    laptop = member("laptop").start()
    token = invite(hub.disk)
    wrong = replace(token, secret=bytes(16))
    reasons = [laptop.is_answered(hub, wrong).reason for _ in range(12)]
    assert reasons[:3] == ["proof"] * 3
    assert set(reasons[3:]) <= {"proof", "wait"}
    assert reasons.count("wait") >= 5
    (listed,) = hub.disk.registrar.invitations()
    assert (listed.used, listed.cancelled) == (0, False)


@pytest.mark.parametrize("shown", ["nothing", "junk", "another's", "the relay's"])
def test_a_stranger_with_the_secret_and_a_certificate_that_is_not_its_own_gets_nothing(
    hub, member, shown  # noqa: F811
):  # fmt: skip
    victim = member("victim").join(hub).start().meets(hub)
    victim.has(hub)
    hub.has(victim)
    session = hub.knows(victim).current
    stranger = member("stranger").join(hub)
    hub.disk.registrar.remove("stranger", datetime.now(UTC))
    wait_for(lambda: hub.state_of(stranger) == "unknown", "it is no member any more")
    own = stranger.membership.certificate
    der = {
        "nothing": b"\x30\x00",
        "junk": b"\xff" * 1000,
        "another's": victim.membership.certificate.der,
        "the relay's": hub.membership.certificate.der,
    }[shown]
    stranger.membership.certificate = replace(own, der=der)
    stranger.start().meets(hub)
    wait_for(lambda: stranger.knows(hub).last_error, "its dial to fail")
    assert stranger.state_of(hub) != "connected"
    assert hub.knows(victim).current is session
    assert {peer.name for peer in hub.manager.peers} == {"victim"}
    nobody_is_left(hub)


class Talking(Member):
    """A member that speaks of the network."""

    def start(self):
        if self.membership is not None:
            self.meeting = Meeting(
                self.membership, software="test", boot_id=self.name.encode().ljust(16, b"\0"),
                now=lambda: datetime.now(UTC), seconds=time.monotonic,
            )  # fmt: skip
            self.meet = self.meeting.meet
        return super().start()

    def _changed(self):
        if hasattr(self, "meeting"):
            self.meeting.look()
        super()._changed()


@pytest.fixture
def talking(tmp_path):
    made = []

    def build(name):
        made.append(Talking(tmp_path / name))
        return made[-1]

    yield build
    for one in made:
        one.stop()
        if hasattr(one.disk, "registrar"):
            one.disk.registrar.close()


def test_what_a_member_may_not_say_is_counted_and_changes_nothing(talking):
    relay = talking("relay").found().start()
    liar = talking("liar").join(relay).start().meets(relay)
    liar.has(relay)
    relay.has(liar)
    foreign = relay.membership.certificate
    tunnel = liar.knows(relay).current
    for message in (
        Members(version=VERSION, snapshot=True),
        Where(node_id=bytes(8)),
        Here(asked=Where(node_id=bytes(8))),
        Gone(node_id=bytes(8), reason="lost"),
        Busy(retry_after=5),
        Error(reason="identity_twice", detail="a lie"),
        Renewed(certificate=foreign.der),
        Join(invitation_id=bytes(8), proof=bytes(32)),
    ):
        for body in cut(message):
            assert tunnel.send_mesh(body)
    for body in cut(Lists(lists=(b"x" * 100, foreign.der))):
        assert tunnel.send_mesh(body)
    refused = relay.meeting.refused
    wait_for(
        lambda: refused["join"] and sum(n for k, n in refused.items() if k[:4] == "list"), "all"
    )
    for word in ("members", "where", "here", "gone", "busy", "error", "renewed", "join"):
        assert refused[word] == 1, word
    assert relay.meeting.problem is None
    assert liar.state_of(relay) == "connected"
    assert {one.name for one in relay.membership.members} == {"relay", "liar"}


def test_a_member_that_attaches_with_the_address_of_another_moves_only_itself(talking):
    relay = talking("relay").found().start()
    liar, other = (talking(name).join(relay).start().meets(relay) for name in ("liar", "other"))
    for one in (liar, other):
        one.has(relay)
        relay.has(one)
    address = str(relay.address)
    for body in cut(Attach(kind="home", addresses=(address,))):
        liar.knows(relay).current.send_mesh(body)

    def told():
        for one in (relay, liar, other):
            one.meeting.tick()
        known = {one.name: one for one in other.membership.peers()}
        return "liar" in known and str(known["liar"].address) == address

    wait_for(told, "what it says of itself")
    known = {one.name: one for one in other.membership.peers()}
    assert str(known["relay"].address) == address
    assert known["relay"].public_key == relay.identity.public_key
    # Whoever believes it meets another key there, and no session comes of it.
    wait_for(lambda: other.knows(liar).last_error, "the dial to fail")
    assert other.state_of(liar) != "connected"
    assert other.state_of(relay) == "connected"


@pytest.mark.parametrize(
    "records",
    [[b"\xc1"], [b""], [part(384 * 1024 + 1, 0, 10)], [part(100, 50, 10)], [HELLO] * 20_000],
    ids=["no MessagePack", "nothing", "oversize", "a part of nothing", "a flood"],
)
def test_a_member_that_breaks_the_rules_loses_its_session_and_others_keep_theirs(talking, records):
    relay = talking("relay").found().start()
    liar, other = (talking(name).join(relay).start().meets(relay) for name in ("liar", "other"))
    for one in (liar, other):
        one.has(relay)
        relay.has(one)
    kept, lost = relay.knows(other).current, liar.knows(relay).current
    for body in records:
        if lost.over:
            break
        if not lost.send_mesh(body):
            gevent.sleep(0.001)
    wait_for(lambda: lost.over, "the end of its session")
    assert relay.knows(other).current is kept
    assert not kept.over
