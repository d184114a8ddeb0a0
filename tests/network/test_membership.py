"""Tests of a machine in its network, and of the one that lets others in. Source: mesh 2, 5, 6."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from types import SimpleNamespace

import msgspec
import pytest

from shadowmesh.base.errors import BadCertificate, BadList, IssuerRefused, KeyFileError
from shadowmesh.config import HostPort
from shadowmesh.keys import sodium
from shadowmesh.network.certificate import Profile
from shadowmesh.network.facts import KnownRelay
from shadowmesh.network.ledger import Terms
from shadowmesh.network.membership import Membership
from shadowmesh.network.registrar import Registrar
from shadowmesh.wire.mesh.messages import Refused, RelayInfo, Renew
from tests.network.disks import DAY, HUB, NOW, Disk, invite, reached

PROFILE = Profile("guest", "home", addresses=(ip_address("10.77.0.99"),))


@pytest.fixture
def machine(tmp_path):
    names = iter(range(100))
    made = []

    def build():
        made.append(Disk(tmp_path / f"m{next(names)}"))
        return made[-1]

    yield build
    for one in made:
        if hasattr(one, "registrar"):
            one.registrar.close()


@pytest.fixture
def hub(machine):
    return machine().found()


def test_a_network_begins_with_one_member_who_is_its_relay_and_issuer(hub):
    found = hub.membership
    assert found.certificate.roles == {"issuer", "relay"}
    assert found.certificate.addresses == (ip_address("10.77.0.1"),)
    assert found.peers() == ()
    assert hub.recovery.startswith("smr1-")
    assert found.problem is None


def test_what_a_machine_is_it_is_again_after_a_restart(hub):
    again = Membership.load(hub.store, NOW + DAY)
    assert again.certificate == hub.membership.certificate
    assert again.identity.public_key == hub.membership.identity.public_key
    assert again.psks == hub.membership.psks
    assert again.facts == hub.membership.facts
    assert {one.name for one in again.members} == {"hub"}


def test_a_machine_in_no_network_has_nothing_to_load(machine):
    assert Membership.load(machine().store, NOW) is None


def test_a_machine_makes_no_second_network(hub):
    with pytest.raises(IssuerRefused, match="leave"):
        hub.found()


def test_a_joiner_becomes_a_member_that_dials_the_relay(hub, machine):
    laptop = machine()
    found = laptop.join(hub, invite(hub), "laptop")
    assert found.certificate.name == "laptop"
    assert found.certificate.addresses == (ip_address("10.77.0.2"),)
    assert found.psks == hub.membership.psks
    (relay,) = found.peers()
    assert (relay.name, relay.address, relay.auto_connect) == ("hub", HUB, True)
    assert relay.public_key == hub.membership.identity.public_key
    assert relay.allowed_macs == "own"
    (joiner,) = hub.membership.peers()
    assert (joiner.name, joiner.address, joiner.auto_connect) == ("laptop", None, False)
    assert joiner.tunnel_ips == found.certificate.addresses
    assert Membership.load(laptop.store, NOW).peers() == found.peers()


def test_a_bridge_may_have_the_macs_of_others_behind_it(hub, machine):
    machine().join(hub, invite(hub, "attic", roles=("bridge",)))
    assert hub.membership.peers()[0].allowed_macs == "any"


def test_members_judge_each_other_though_they_never_met(hub, machine):
    token = invite(hub, uses=2)
    left, right = machine(), machine()
    left.join(hub, token, "left")
    told = []
    left.membership.on_change = lambda: told.append(1)
    right.join(hub, token, "right")
    shown = right.membership.certificate
    found = left.membership.judge(shown.public_key, shown.der, NOW)
    assert found.name == "right"
    assert told == [1]
    assert [one.name for one in left.membership.peers()] == ["hub", "right"]
    assert left.membership.judge(shown.public_key, shown.der, NOW) == found
    assert told == [1], "nothing new"
    with pytest.raises(BadCertificate, match="another key"):
        left.membership.judge(left.membership.certificate.public_key, shown.der, NOW)


def test_a_member_of_another_network_of_the_same_name_is_foreign(hub, machine):
    other = machine().found()
    shown = other.membership.certificate
    with pytest.raises(BadCertificate) as refused:
        hub.membership.judge(shown.public_key, shown.der, NOW)
    assert refused.value.kind == "foreign"


def take(machine, data):
    """Let a revocation list count."""
    machine.membership.take_list(machine.membership.read_list(data), NOW)


def test_a_removed_member_is_out_wherever_the_list_has_come(hub, machine):
    token = invite(hub, uses=2)
    left, right = machine(), machine()
    left.join(hub, token, "left")
    right.join(hub, token, "right")
    shown = right.membership.certificate
    left.membership.judge(shown.public_key, shown.der, NOW)
    data, out = hub.registrar.remove("right", NOW)
    assert [one.name for one in out] == ["right"]
    assert [one.name for one in hub.membership.peers()] == ["left"]
    take(left, data)
    assert left.membership.named("right") is None
    take(left, data)
    with pytest.raises(BadCertificate) as refused:
        left.membership.judge(shown.public_key, shown.der, NOW)
    assert refused.value.kind == "revoked"
    again = Membership.load(left.store, NOW)
    with pytest.raises(BadCertificate):
        again.judge(shown.public_key, shown.der, NOW)
    take(right, data)
    assert "removed" in right.membership.problem
    # It does not knock at doors that are closed for good.
    assert not any(peer.auto_connect for peer in right.membership.peers())


def test_the_issuer_is_not_removed_and_nobody_is_nobody(hub):
    for name in ("hub", "nobody"):
        with pytest.raises(IssuerRefused):
            hub.registrar.remove(name, NOW)


def test_a_wrong_proof_is_refused_and_burns_nothing(hub, machine):
    token = invite(hub)
    said = machine().ask(
        hub, token, "thief", change=lambda one: msgspec.structs.replace(one, name="x")
    )
    assert isinstance(said, Refused)
    assert said.reason == "proof"
    assert machine().join(hub, token, "laptop").certificate.name == "laptop"


def test_a_second_machine_is_told_that_the_invitation_was_used(hub, machine):
    token = invite(hub)
    machine().join(hub, token, "laptop")
    said = machine().ask(hub, token, "thief")
    assert (said.reason, said.retry_after) == ("used", None)
    assert "was used on" in said.detail


def test_a_join_that_was_killed_is_repeated_with_the_same_key_and_answer(hub, machine):
    token, laptop = invite(hub), machine()
    first = laptop.ask(hub, token, "laptop")
    assert laptop.ask(hub, token, "laptop").certificate == first.certificate
    assert laptop.join(hub, token, "laptop").certificate.der == first.certificate


def test_a_member_fetches_its_certificate_again(hub, machine):
    laptop = machine()
    laptop.join(hub, invite(hub), "laptop")
    proved = SimpleNamespace(peer_public_key=laptop.identity.public_key, h=bytes(32))
    shown = laptop.membership.certificate.der
    said = hub.registrar.answer(Renew(certificate=shown), proved, "192.0.2.1", NOW)
    assert said.certificate == shown
    other = SimpleNamespace(peer_public_key=hub.membership.identity.public_key, h=bytes(32))
    said = hub.registrar.answer(Renew(certificate=shown), other, "192.0.2.1", NOW)
    assert said.reason == "other_key"


def test_an_answer_whose_secret_no_issuer_vouches_for_makes_nobody_a_member(hub, machine):
    token, laptop = invite(hub), machine()
    answer = laptop.ask(hub, token, "laptop")
    for forged in (
        msgspec.structs.replace(answer, network_secret=bytes(range(32))),
        msgspec.structs.replace(answer, members=(), relays=()),
    ):
        with pytest.raises(BadList):
            Membership.take_in(
                laptop.store, laptop.identity, forged, laptop.judged(answer, token),
                reached(token), NOW,
            )  # fmt: skip
        assert not laptop.store.joined


def test_without_an_address_of_a_relay_nobody_can_be_invited(machine):
    hub = machine().found(address=None)
    with pytest.raises(IssuerRefused, match=r"mesh\.announce"):
        invite(hub)


def test_the_gate_is_open_while_an_invitation_is(hub):
    assert not hub.registrar.gate_open(NOW)
    invite(hub)
    assert hub.registrar.gate_open(NOW)
    assert not hub.registrar.gate_open(NOW + 3 * DAY)
    assert hub.registrar.cancel(None, NOW) == 1
    assert hub.registrar.invitations()[0].cancelled


def test_a_certificate_that_ended_is_told_and_not_the_end_of_the_daemon(hub):
    late = hub.membership.certificate.not_after + DAY
    found = Membership.load(hub.store, late)
    assert "expired" in found.problem


@pytest.mark.parametrize("years", [-50, 21, 50])
def test_a_wrong_clock_makes_a_member_forget_nobody(hub, machine, years):
    token, wrong = invite(hub, uses=2), NOW + years * 365 * DAY
    left, right = machine(), machine()
    right.join(hub, token, "right")
    left.join(hub, token, "left")
    found = Membership.load(left.store, wrong)
    assert {one.name for one in found.members} == {"hub", "left", "right"}
    shown = right.membership.certificate
    assert found.judge(shown.public_key, shown.der, wrong).name == "right"
    data, _ = hub.registrar.remove("right", NOW)
    found.take_list(found.read_list(data), wrong)
    assert {one.name for one in found.members} == {"hub", "left"}
    assert {one.name for one in Membership.load(left.store, NOW).members} == {"hub", "left"}
    # It is told, and over when the clock is set.
    assert (found.problem is not None) == (years > 20)
    found.look_at_own(NOW)
    assert found.problem is None


def test_a_guest_is_out_by_the_clocks_of_all_who_are_not(hub, machine):
    guest = hub.registrar.issuer.authority(NOW).issue(
        replace(PROFILE, name="guest"), sodium.public_key(bytes(range(32))), NOW, NOW + DAY
    )
    assert hub.membership.judge(guest.public_key, guest.der, NOW).name == "guest"
    with pytest.raises(BadCertificate) as refused:
        hub.membership.judge(guest.public_key, guest.der, NOW + 2 * DAY)
    assert refused.value.kind == "expired"


@pytest.mark.parametrize("name", ["network.json", "member.crt", "trust.list"])
def test_a_damaged_file_is_named_with_what_to_do(hub, name):
    path = hub.store.path / name
    path.write_bytes(b"{}")
    with pytest.raises(KeyFileError, match=f"{name}.*leave"):
        Membership.load(hub.store, NOW)


def test_a_certificate_for_another_key_than_ours_is_a_damage(hub):
    hub.store.save_identity(sodium.random_bytes(32))
    with pytest.raises(KeyFileError, match="another key"):
        Membership.load(hub.store, NOW)


def test_facts_are_the_same_when_they_come_back(hub):
    facts = replace(hub.membership.facts, relays=(KnownRelay(HostPort("::1", 9001), bytes(32)),))
    with pytest.raises(ValueError, match="key"):
        type(facts).from_json(facts.to_json())  # no valid key
    assert type(facts).from_json(hub.membership.facts.to_json()) == hub.membership.facts


def test_of_the_relays_of_an_answer_only_those_count_whose_certificates_do(hub, machine):
    token, laptop = invite(hub, uses=2), machine()
    desk = machine()
    desk.join(hub, token, "desk")
    answer = laptop.ask(hub, token, "laptop")
    told = (
        RelayInfo(certificate=b"no certificate", addresses=("a.example:1",)),
        RelayInfo(certificate=desk.membership.certificate.der, addresses=("b.example:1",)),
        RelayInfo(certificate=hub.membership.certificate.der, addresses=("c.example:99999",)),
    )
    answer = msgspec.structs.replace(answer, relays=told)
    found = Membership.take_in(
        laptop.store, laptop.identity, answer, laptop.judged(answer, token), reached(token), NOW
    )
    assert found.facts.relays == (reached(token),)


def test_a_full_disk_shuts_no_member_out_and_lets_none_in_again(hub, machine, monkeypatch):
    token = invite(hub, uses=2)
    left, right = machine(), machine()
    left.join(hub, token, "left")
    right.join(hub, token, "right")

    def full(_ders):
        raise KeyFileError("members: cannot be written: No space left on device")

    monkeypatch.setattr(left.store, "save_members", full)
    shown = right.membership.certificate
    assert left.membership.judge(shown.public_key, shown.der, NOW).name == "right"
    assert "No space left" in left.membership.disk_problem
    data, _ = hub.registrar.remove("right", NOW)
    take(left, data)
    assert left.membership.named("right") is None
    monkeypatch.undo()
    left.membership.sift(NOW)
    assert left.membership.disk_problem is None


def test_an_operator_may_say_that_the_clock_is_right_and_the_ledger_is_not(hub):
    late = NOW + timedelta(days=500)
    with pytest.raises(IssuerRefused, match=r"empty file clock-is-right beside the ledger"):
        hub.registrar.invite(Terms("laptop"), late, DAY)
    hub.registrar.close()
    (hub.store.path / "clock-is-right").touch(mode=0o600)
    hub.registrar = Registrar(hub.store, hub.membership)
    assert hub.registrar.invite(Terms("laptop"), late, DAY)
