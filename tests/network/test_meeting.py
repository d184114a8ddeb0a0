"""Members who talk about their network: who is told what, and what counts from whom."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest

from shadowmesh.base.errors import IssuerRefused, RemoteProtocolError
from shadowmesh.keys import sodium
from shadowmesh.network import trust
from shadowmesh.network.certificate import Profile
from shadowmesh.network.meeting import MEMBERS_AT_ONCE, Meeting
from shadowmesh.network.membership import Membership
from shadowmesh.network.registrar import Registrar
from shadowmesh.wire.mesh.chunks import cut
from shadowmesh.wire.mesh.messages import (
    Attach,
    Gone,
    Hello,
    Lists,
    Member,
    Members,
    Renewed,
    Trust,
    Version,
    decode,
)
from tests.network.disks import NOW, Disk, invite


class Talker:
    """A machine with its meeting, and what it has sent and nobody has taken yet."""

    def __init__(self, disk, name):
        self.disk = disk
        self.name = name
        self.moment = 0.0
        self.meeting = Meeting(
            disk.membership,
            software="test",
            boot_id=name.encode().ljust(16, b"\0"),
            now=lambda: NOW,
            seconds=lambda: self.moment,
        )
        disk.membership.on_change = self.meeting.look

    def knows(self):
        return sorted(one.name for one in self.disk.membership.members)

    def peers(self):
        return {one.name: one.address and str(one.address) for one in self.disk.membership.peers()}


class Link:
    """A judged session between two talkers; what one says waits here for the other."""

    def __init__(self, one, other, *, room=10_000):
        self.room = room
        self.ends = (one, other)
        self.said = {one: [], other: []}
        self.met = {}
        for here, there in (self.ends, self.ends[::-1]):
            here.disk.membership.learn(there.disk.membership.certificate, NOW)
        for here, there in (self.ends, self.ends[::-1]):
            shown = there.disk.membership.certificate.der
            self.met[here] = here.meeting.meet(
                shown, lambda body, here=here: self._send(here, body)
            )

    def _send(self, here, body):
        if len(self.said[here]) >= self.room:
            return False
        self.said[here].append(body)
        return True

    def carry(self):
        """Bring everything over, both ways; return how many records that were."""
        count = 0
        for here, there in (self.ends, self.ends[::-1]):
            while self.said[here]:
                self.met[there].receive(self.said[here].pop(0))
                count += 1
        return count

    def end(self):
        for met in self.met.values():
            met.left()


def settle(links, talkers):
    """Let all talk until nobody has anything to say."""
    for _ in range(200):
        for one in talkers:
            one.moment += 1.0
            one.meeting.tick()
        if not sum(link.carry() for link in links):
            return
    raise AssertionError("they talk for ever")


@pytest.fixture
def talker(tmp_path):
    made = []

    def build(name, hub=None, **terms):
        disk = Disk(tmp_path / name)
        made.append(disk)
        if hub is None:
            disk.found(name=name)
        else:
            disk.join(hub.disk, invite(hub.disk, **terms), name)
        return Talker(disk, name)

    yield build
    for disk in made:
        if hasattr(disk, "registrar"):
            disk.registrar.close()


@pytest.fixture
def hub(talker):
    return talker("hub")


def announce(one, address):
    membership = one.disk.membership
    membership.facts = replace(membership.facts, announce=(address,))
    return one


def test_members_learn_of_each_other_and_of_addresses_from_the_relay(hub, talker):
    left = announce(talker("left", hub), "left.example:9001")
    links = [Link(left, hub)]
    settle(links, [left, hub])
    right = talker("right", hub)
    links.append(Link(right, hub))
    settle(links, [left, right, hub])
    assert left.knows() == right.knows() == ["hub", "left", "right"]
    assert right.peers() == {"hub": "relay.example.org:443", "left": "left.example:9001"}
    assert left.peers() == {"hub": "relay.example.org:443", "right": None}


def test_who_joins_later_is_told_to_those_who_are_here(hub, talker):
    left = talker("left", hub)
    links = [Link(left, hub)]
    settle(links, [left, hub])
    right = talker("right", hub)
    settle(links, [left, hub])
    assert left.knows() == ["hub", "left", "right"]
    assert right.knows() == ["hub", "left", "right"]


def test_a_removed_member_is_out_everywhere_at_once_also_behind_another_member(hub, talker):
    left, right, far = (talker(name, hub) for name in ("left", "right", "far"))
    links = [Link(left, hub), Link(right, hub), Link(left, far)]
    settle(links, [left, right, far, hub])
    hub.disk.registrar.remove("right", NOW)
    # No tick: nobody has to wait for one.
    for _ in range(3):
        for link in links:
            link.carry()
    assert hub.knows() == left.knows() == ["far", "hub", "left"]
    assert "right" not in far.knows()
    assert "removed" in right.disk.membership.problem


def test_a_list_that_somebody_missed_comes_with_the_next_session(hub, talker):
    left, right = talker("left", hub), talker("right", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    link.end()
    hub.disk.registrar.remove("right", NOW)
    assert "right" in left.knows()
    settle([Link(left, hub)], [left, hub])
    assert "right" not in left.knows()
    assert right.disk.membership.problem is None


def test_a_list_is_not_sent_back_to_whom_it_came_from(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    talker("right", hub)
    hub.disk.registrar.remove("right", NOW)
    link.carry()
    assert not any(isinstance(decode(body), Lists) for body in link.said[left])


def test_only_a_relay_may_tell_of_members(hub, talker):
    left, right = talker("left", hub), talker("right", hub)
    stranger = talker("stranger", hub).disk.membership.certificate
    link = Link(left, right)
    settle([link], [left, right])
    told = Members(
        version=Version(relay=bytes(32), boot_id=bytes(16), number=1),
        entries=(Member(node_id=stranger.node_id, certificate=stranger.der, online=True),),
    )
    link.said[left] += cut(told)
    link.carry()
    assert "stranger" not in right.knows()
    assert right.meeting.refused == {"members": 1}


def test_a_lying_relay_gives_nobody_a_certificate_and_moves_no_relay(hub, talker, tmp_path):
    left = talker("left", hub)
    other = Disk(tmp_path / "foreign").found(name="foreign")
    foreign = other.membership.certificate
    own = hub.disk.membership.certificate
    link = Link(left, hub)
    settle([link], [left, hub])
    link.said[hub] += cut(
        Members(
            version=Version(relay=bytes(32), boot_id=bytes(16), number=9),
            entries=(
                Member(node_id=foreign.node_id, certificate=foreign.der, online=True),
                Member(node_id=own.node_id, online=True, addresses=("evil.example:1",)),
                Member(node_id=bytes(8), online=True, addresses=("evil.example:1",)),
            ),
        )
    )
    link.carry()
    other.registrar.close()
    assert left.knows() == ["hub", "left"]
    assert left.peers() == {"hub": "relay.example.org:443"}
    assert left.meeting.refused == {"certificate": 1}


def test_a_member_that_attaches_to_one_that_is_no_relay_is_told_nothing(hub, talker):
    left, right = talker("left", hub), talker("right", hub)
    link = Link(left, right)
    settle([link], [left, right])
    link.said[left] += cut(Attach(kind="home"))
    assert link.carry() == 1
    assert right.meeting.refused == {"attach": 1}
    assert right.meeting.attached == 0


def test_what_this_version_does_not_use_is_counted_and_harms_nothing(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    link.said[hub] += cut(Gone(node_id=bytes(8), reason="lost"))
    link.carry()
    assert left.meeting.refused == {"gone": 1}


def test_who_talks_without_end_loses_the_session(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    hello = cut(Attach(kind="home", addresses=("a.example:1",)))[0]
    with pytest.raises(RemoteProtocolError, match="more about the network"):
        for _ in range(100_000):
            link.met[hub].receive(hello)
    hub.moment += 3600
    link.met[hub].receive(hello)


def test_what_has_no_room_waits_and_nothing_is_lost(hub, talker):
    many = [talker(f"m{number}", hub) for number in range(6)]
    left = talker("left", hub)
    link = Link(left, hub, room=1)
    settle([link], [left, hub])
    assert left.knows() == hub.knows()
    assert len(left.knows()) == len(many) + 2


def test_a_large_directory_comes_in_parts(hub, talker, monkeypatch):
    monkeypatch.setattr("shadowmesh.network.meeting.MEMBERS_AT_ONCE", 2)
    for number in range(5):
        talker(f"m{number}", hub)
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    assert left.knows() == hub.knows()
    assert MEMBERS_AT_ONCE > 2


def test_a_member_that_leaves_is_not_dialled_any_more(hub, talker):
    left = announce(talker("left", hub), "left.example:9001")
    right = talker("right", hub)
    ways = [Link(left, hub), Link(right, hub)]
    settle(ways, [left, right, hub])
    assert right.peers()["left"] == "left.example:9001"
    ways[0].end()
    # Its last address stays known: it may be reachable, with every relay away.
    settle(ways[1:], [right, hub])
    assert right.peers()["left"] == "left.example:9001"


def test_a_new_secret_reaches_all_and_the_one_before_counts_beside_it(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    before = left.disk.membership.psks
    assert hub.disk.registrar.rotate_secret(NOW) == 2
    settle([link], [left, hub])
    assert left.disk.membership.psks == hub.disk.membership.psks
    assert left.disk.membership.psks[1:] == before
    hub.disk.registrar.rotate_secret(NOW)
    settle([link], [left, hub])
    assert before[0] not in left.disk.membership.psks
    assert Membership.load(left.disk.store, NOW).psks == left.disk.membership.psks


def test_a_secret_that_no_issuer_has_signed_is_nobodys(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    link.said[hub] += cut(
        Renewed(network_secret=bytes(32), secret_epoch=9, secret_signature=bytes(64))
    )
    link.carry()
    assert left.disk.membership.newest_secret.epoch == 1
    assert left.meeting.refused == {"renewed_foreign": 1}


def test_only_a_relay_may_renew(hub, talker):
    left, right = talker("left", hub), talker("right", hub)
    link = Link(left, right)
    settle([link], [left, right])
    link.said[left] += cut(Renewed(certificate=right.disk.membership.certificate.der))
    link.carry()
    assert right.meeting.refused == {"renewed": 1}


def test_a_member_gets_its_new_certificate_and_takes_no_older_one(hub, talker):
    left, right = talker("left", hub), talker("right", hub)
    links = [Link(left, hub), Link(right, hub)]
    settle(links, [left, right, hub])
    old = left.disk.membership.certificate
    made = hub.disk.registrar.issuer.reissue(hub.disk.ledger_member("left"), NOW, name="lapis")
    hub.disk.membership.learn(made, NOW)
    settle(links, [left, right, hub])
    assert left.disk.membership.certificate.name == "lapis"
    assert "lapis" in right.knows()
    assert "left" not in right.knows()
    links[0].said[hub] += cut(Renewed(certificate=old.der))
    links[0].said[hub] += cut(Renewed(certificate=right.disk.membership.certificate.der))
    links[0].carry()
    assert left.disk.membership.certificate.name == "lapis"
    assert left.meeting.refused == {"renewed_other_key": 1}
    assert Membership.load(left.disk.store, NOW).certificate.name == "lapis"


def test_a_replaced_authority_reaches_all_and_the_old_one_can_be_dropped(hub, talker):
    left, right = talker("left", hub), talker("right", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    seed = trust.recovery_seed(hub.disk.recovery)
    old = left.disk.membership.certificate
    assert hub.disk.registrar.replace_authority(seed, NOW) == 3
    settle([link], [left, hub])
    # Who has not heard of the new one knows the old one only, so that is shown on.
    assert left.disk.membership.certificate == old
    assert Membership.load(left.disk.store, NOW)._next is not None
    assert len(left.disk.membership.trust_list.authorities) == 2
    # Who has not heard of it yet is a member all the same.
    late = Link(right, hub)
    settle([link, late], [left, right, hub])
    assert hub.disk.registrar.drop_authorities(seed, NOW) == ()
    settle([link, late], [left, right, hub])
    for one in (left, right, hub):
        assert len(one.disk.membership.trust_list.authorities) == 1
        assert one.disk.membership.problem is None
        assert one.disk.membership.certificate.issuer_key_id != old.issuer_key_id
        assert one.knows() == ["hub", "left", "right"]
        again = Membership.load(one.disk.store, NOW)
        assert again.problem is None
    Registrar(hub.disk.store, Membership.load(hub.disk.store, NOW)).close()


def test_an_authority_that_is_dropped_at_once_takes_nobodys_relay_away(hub, talker):
    second = talker("second", hub, roles=("relay",))
    left, right = talker("left", hub), talker("right", hub)
    links = [Link(left, hub), Link(second, hub), Link(right, second)]
    settle(links, [left, right, second, hub])
    seen = []

    def looked(one, relay):
        one.meeting.look()
        seen.append(relay in one.knows())

    left.disk.membership.on_change = lambda: looked(left, "hub")
    right.disk.membership.on_change = lambda: looked(right, "second")
    seed = trust.recovery_seed(hub.disk.recovery)
    hub.disk.registrar.replace_authority(seed, NOW)
    hub.disk.registrar.drop_authorities(seed, NOW)
    settle(links, [left, right, second, hub])
    assert seen
    assert all(seen)
    for one in (left, right, second, hub):
        assert one.knows() == ["hub", "left", "right", "second"]
        assert one.disk.membership.problem is None


def test_a_certificate_beside_a_trust_list_counts_by_it_only(hub, talker):
    left, stranger = talker("left", hub), talker("stranger")
    seed = trust.recovery_seed(hub.disk.recovery)
    hub.disk.registrar.replace_authority(seed, NOW)
    new, foreign = hub.disk.membership.trust_list.data, stranger.disk.membership.certificate.der
    for beside in (b"junk", foreign):
        left.disk.membership.take_trust_list(new, NOW, beside=beside)
        assert left.knows() == ["hub", "left"]


def test_another_recovery_key_replaces_nothing(hub):
    with pytest.raises(IssuerRefused, match="not the recovery key"):
        hub.disk.registrar.replace_authority(bytes(31) + b"\1", NOW)
    assert len(hub.disk.membership.trust_list.authorities) == 1


def test_a_trust_list_of_another_recovery_key_is_nobodys(hub, talker, tmp_path):
    left = talker("left", hub)
    other = Disk(tmp_path / "foreign").found(name="foreign")
    link = Link(left, hub)
    settle([link], [left, hub])
    link.said[hub] += cut(Trust(trust_list=other.membership.trust_list.data))
    link.said[hub] += cut(Trust(trust_list=b"junk"))
    link.carry()
    other.registrar.close()
    assert left.meeting.refused == {"trust_foreign": 1, "trust_malformed": 1}
    assert left.disk.membership.problem is None


def test_the_issuer_signs_a_list_each_day_and_it_reaches_all(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    number = max(left.disk.membership.revocations.numbers.values())
    hub.disk.registrar.look(NOW + timedelta(hours=23))
    settle([link], [left, hub])
    assert max(left.disk.membership.revocations.numbers.values()) == number
    hub.disk.registrar.look(NOW + timedelta(hours=25))
    settle([link], [left, hub])
    assert max(left.disk.membership.revocations.numbers.values()) == number + 1


def test_a_guest_whose_time_is_over_is_out_everywhere_whatever_clocks_say(hub, talker):
    talker("guest", hub, lifetime_s=3600)
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    assert "guest" in left.knows()
    hub.disk.registrar.look(NOW + timedelta(hours=2))
    settle([link], [left, hub])
    assert left.knows() == ["hub", "left"]


def test_an_identity_on_two_machines_is_named_at_the_relay_and_on_both(hub, talker):
    left = talker("left", hub)
    twin = Talker(left.disk, "twin")
    for one in (left, twin) * 2:
        link = Link(one, hub)
        settle([link], [one, hub])
        link.end()
        if one is left:
            assert hub.meeting.problem is None or one.meeting.problem
    for one in (left, twin):
        link = Link(one, hub)
        settle([link], [one, hub])
        link.end()
        assert "SM-IDENTITY-TWICE: the identity of left is on two machines" in one.meeting.problem
    assert "SM-IDENTITY-TWICE" in hub.meeting.problem
    hub.disk.registrar.remove("left", NOW)
    assert hub.meeting.problem is None


def test_a_hello_that_is_repeated_brings_no_list_again(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    for _ in range(20):
        link.met[hub].receive(cut(Hello(software="x", boot_id=bytes(16)))[0])
    assert link.said[hub] == []
    assert hub.meeting.refused == {"hello": 20}


def test_an_attach_that_is_repeated_is_answered_with_all_others(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    settle([link], [left, hub])
    for number in range(40):
        told = Attach(kind="home", addresses=(f"a.example:{1 + number % 2}",))
        link.met[hub].receive(cut(told)[0])
    assert link.said[hub] == []
    hub.meeting.tick()
    assert len(link.said[hub]) == 1


def test_who_is_removed_before_it_has_said_anything_hears_that_and_no_secret(hub, talker):
    left = talker("left", hub)
    link = Link(left, hub)
    link.said[hub].clear()
    hub.disk.registrar.remove("left", NOW)
    told = [decode(body) for body in link.said[hub]]
    assert [type(one) for one in told] == [Lists]
    link.carry()
    assert "removed" in left.disk.membership.problem
    assert not link.said[hub]


def test_who_was_let_in_by_a_stolen_key_gets_nothing_of_the_authority_that_replaces_it(hub, talker):
    left = talker("left", hub)
    seed = trust.recovery_seed(hub.disk.recovery)
    forged = hub.disk.store.authority().issue(
        Profile("forged", "home", addresses=(ip_address("10.77.0.99"),)),
        sodium.public_key(bytes(range(32))),
        NOW,
        NOW + timedelta(days=30),
    )
    hub.disk.membership.learn(forged, NOW)
    hub.disk.registrar.look(NOW + timedelta(days=2))
    assert "forged" in hub.knows()
    assert hub.disk.registrar.replace_authority(seed, NOW + timedelta(days=2)) == 2
    link = Link(left, hub)
    settle([link], [left, hub])
    assert hub.disk.registrar.drop_authorities(seed, NOW + timedelta(days=2)) == ("forged",)
    settle([link], [left, hub])
    assert left.knows() == hub.knows() == ["hub", "left"]


def test_the_address_of_a_removed_member_is_erased_and_no_invitation_names_a_removed_relay(
    hub, talker
):
    left = announce(talker("left", hub, roles=("relay",)), "left.example:9001")
    right = announce(talker("right", hub), "right.example:9001")
    links = [Link(left, hub), Link(right, hub)]
    settle(links, [left, right, hub])
    assert {str(one.address) for one in right.disk.membership.facts.relays} == {
        "relay.example.org:443",
        "left.example:9001",
    }
    for name in ("left", "right"):
        hub.disk.registrar.remove(name, NOW)
    settle(links[1:], [right, hub])
    for one in (hub, right):
        facts = one.disk.membership.facts
        assert [str(known.address) for known in facts.relays] == ["relay.example.org:443"]
        assert not any("left" in str(known.address) for known in facts.announced)
    assert "left.example" not in (hub.disk.store.path / "network.json").read_text()
    assert len(invite(hub.disk).relays) == 1
