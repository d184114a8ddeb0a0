"""Tests of issuer and ledger. Source: mesh-rules B, C2 to C7, D1."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from shadowmesh.base.errors import BadCertificate, IssuerRefused, KeyFileError
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import certificate as certificates
from shadowmesh.network import founding, trust
from shadowmesh.network import issuer as issuers
from shadowmesh.network.authority import make_authority
from shadowmesh.network.issuer import Issuer, Request
from shadowmesh.network.ledger import FILE, Ledger, Terms
from shadowmesh.network.revocation import Reason, Revocations, Taken
from shadowmesh.wire.mesh import identifiers
from tests.words import faults

NOW = datetime(2026, 12, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SERVER = Identity.from_seed(bytes(range(32)))
SUBNETS = (ip_network("10.77.0.0/24"), ip_network("fd01::/64"))


def key(number: int) -> bytes:
    return sodium.public_key(bytes([number]) * 32)


class Net:
    """A network with its issuer, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.ledger = Ledger.create(self.path)
        self.new = founding.found_network("home", SERVER, "server", SUBNETS, self.ledger, NOW)
        self.id = self.new.authority.authority.key_id
        self.known = Revocations()
        self.known.take(self.new.first_list)
        self.issuer = self.with_key(self.new.authority)

    def with_key(self, signer, **options) -> Issuer:
        return Issuer(self.ledger, "home", self.id, SUBNETS, signer, self.known, **options)

    def invite(self, now=NOW, uses=1, expires=HOUR, **terms):
        return self.issuer.invite(Terms(**terms), now, expires, uses)

    def request(self, invitation, number=1, name="laptop", source="192.0.2.1", secret=None):
        k = identifiers.invitation_key(secret or invitation.secret)
        h = bytes(32)
        proof = identifiers.join_proof(
            k, self.id, invitation.id, key(number), SERVER.public_key, h, name
        )
        return Request(invitation.id, key(number), SERVER.public_key, h, name, proof, source)

    def join(self, invitation, number=1, name="laptop", now=NOW):
        return self.issuer.redeem(self.request(invitation, number, name), now)

    def refusal(self, *arguments, **options) -> str:
        with pytest.raises(IssuerRefused) as refused:
            self.join(*arguments, **options)
        assert not faults(str(refused.value))
        return refused.value.reason


@pytest.fixture
def net(tmp_path):
    made = Net(tmp_path)
    yield made
    made.ledger.close()


# --- a network begins -------------------------------------------------------------------------


def test_a_new_network_has_a_relay_that_issues_and_an_empty_list(net):
    own = net.new.certificate
    assert own.roles == {"relay", "issuer"}
    assert own.addresses == (ip_address("10.77.0.1"), ip_address("fd01::1"))
    assert net.new.first_list.number == 0
    assert net.new.first_list.entries == {}
    net.known.check(own)
    assert net.new.trust_list.network_id == net.id
    trust.check_secret(own, net.id, 1, net.new.secret, net.new.secret_signature)
    assert net.new.secret.hex() not in repr(net.new)
    assert str(net.new.recovery_seed) not in repr(net.new)


def test_a_network_that_would_take_other_traffic_is_not_made(tmp_path):
    with pytest.raises(IssuerRefused, match="private"):
        founding.found_network(
            "home", SERVER, "server", (ip_network("8.8.8.0/24"),), Ledger.create(tmp_path / FILE), NOW
        )  # fmt: skip


# --- joining ----------------------------------------------------------------------------------


def test_a_joiner_gets_name_addresses_roles_and_tags_of_its_invitation(net):
    made = net.join(net.invite(name="nas", tags=("factory",), roles=("bridge",)), name="")
    assert (made.name, made.tags, made.roles) == ("nas", {"factory"}, {"bridge"})
    assert made.addresses == (ip_address("10.77.0.2"), ip_address("fd01::2"))
    assert made.issuer_key_id == net.id
    net.known.check(made)


def test_the_address_of_who_was_removed_goes_to_nobody_else_by_itself(net):
    first = net.join(net.invite())
    net.issuer.remove(net.ledger.named("laptop"), NOW)
    second = net.join(net.invite(), number=2)
    assert first.addresses[0] == ip_address("10.77.0.2")
    assert second.addresses == (ip_address("10.77.0.3"), ip_address("fd01::3"))
    # An operator may want it again.
    third = net.join(net.invite(addresses=(first.addresses[0],)), number=3, name="third")
    assert third.addresses == (ip_address("10.77.0.2"), ip_address("fd01::4"))
    assert net.refusal(net.invite(addresses=(first.addresses[0],)), 4, "x") == "address_taken"


def test_the_secret_of_an_invitation_is_nowhere_on_the_disk(net):
    invitation = net.invite()
    assert invitation.secret not in net.ledger.image()
    assert str(invitation.secret) not in repr(invitation)
    on_disk = b"".join(path.read_bytes() for path in net.path.parent.iterdir())
    assert invitation.secret not in on_disk


def test_the_same_key_may_ask_again_and_gets_the_same(net):
    invitation = net.invite()
    first = net.join(invitation)
    assert net.join(invitation, now=NOW + HOUR * 3) == first
    assert net.ledger.invitations()[0].used == 1


def test_another_key_hears_who_used_the_invitation(net):
    invitation = net.invite()
    net.join(invitation)
    with pytest.raises(IssuerRefused, match=r"2026-12-01 .* from 192\.0\.2\.1") as refused:
        net.join(invitation, 2, "nas")
    assert refused.value.reason == "used"
    assert key(1)[:8].hex() in str(refused.value)


def test_the_order_of_checks_is_removed_cancelled_same_key_expired_used(net):
    invitation, late = net.invite(), NOW + 2 * HOUR
    assert net.refusal(invitation, now=late) == "expired"
    first = net.join(invitation)
    assert net.refusal(invitation, 2, now=late) == "expired"
    assert net.join(invitation, now=late) == first
    net.ledger.cancel(invitation.id, late)
    assert net.refusal(invitation, now=late) == "cancelled"
    net.issuer.remove(net.ledger.named("laptop"), late)
    assert net.refusal(invitation, now=late) == "removed"


def test_a_refused_joiner_burns_nothing(net):
    invitation = net.invite()
    for name in ("server", "", "Not a label"):
        with pytest.raises(IssuerRefused):
            net.join(invitation, name=name)
    assert net.ledger.invitations()[0].used == 0
    assert net.join(invitation).name == "laptop"


@pytest.mark.parametrize("part", ["invitation_id", "id_i", "id_r", "h", "name", "proof"])
def test_a_proof_is_for_one_invitation_one_joiner_one_relay_one_session_and_one_name(net, part):
    request = net.request(net.invite())
    value = getattr(request, part)
    wrong = "other" if part == "name" else value[:-1] + bytes([value[-1] ^ 1])
    with pytest.raises(IssuerRefused) as refused:
        net.issuer.redeem(issuers.replace(request, **{part: wrong}), NOW)
    assert refused.value.reason == "proof"
    assert net.issuer.redeem(request, NOW)


def test_wrong_proofs_slow_their_source_down_and_burn_nothing(net):
    invitation = net.invite()
    wrong = net.request(invitation, secret=bytes(16), source="198.51.100.7")
    for _ in range(3):
        with pytest.raises(IssuerRefused) as refused:
            net.issuer.redeem(wrong, NOW)
        assert refused.value.reason == "proof"
    for request in (wrong, net.request(invitation, source="198.51.100.7")):
        with pytest.raises(IssuerRefused) as refused:
            net.issuer.redeem(request, NOW)
        assert refused.value.reason == "wait"
    later = NOW + timedelta(seconds=2)
    assert net.issuer.redeem(net.request(invitation, source="198.51.100.7"), later)


def test_sources_of_wrong_proofs_take_bounded_room(net):
    invitation = net.invite()
    for number in range(5000):
        with pytest.raises(IssuerRefused):
            net.issuer.redeem(
                net.request(invitation, secret=bytes(16), source=f"source {number}"), NOW
            )
    assert len(net.issuer._wrong) == 4096


def test_an_invitation_ends_a_day_after_its_last_use(net):
    invitation = net.invite()
    net.join(invitation)
    net.ledger.sweep(NOW + 24 * HOUR)
    assert net.ledger.gate_open()
    net.ledger.sweep(NOW + 26 * HOUR)
    assert not net.ledger.gate_open()
    assert net.refusal(invitation, now=NOW + 26 * HOUR) == "proof"


@pytest.mark.parametrize(
    "terms",
    [
        {"roles": ("issuer",)}, {"roles": ("revoker",)}, {"roles": ("relay",), "uses": 2},
        {"roles": ("relay",), "expires": 2 * HOUR}, {"uses": 0}, {"uses": 10_000},
        {"expires": 91 * DAY}, {"expires": 0 * DAY}, {"uses": 2, "name": "nas"}, {"name": "Nas"},
        {"name": "server"}, {"addresses": (ip_address("10.78.0.1"),)}, {"tags": ("a b",)},
    ],
)  # fmt: skip
def test_an_invitation_that_nobody_should_have_is_not_made(net, terms):
    with pytest.raises(IssuerRefused) as refused:
        net.invite(**terms)
    assert not faults(str(refused.value))
    assert net.ledger.invitations() == []


def test_a_key_whose_node_id_another_ever_had_is_refused(net, monkeypatch):
    net.join(net.invite())
    net.issuer.remove(net.ledger.named("laptop"), NOW)
    ground = net.ledger.member(key(1)).node_id
    monkeypatch.setattr(certificates.identifiers, "node_id", lambda _: ground)
    assert net.refusal(net.invite(), 2) == "clash"


def test_one_use_is_one_member_however_many_ask_at_once(net):
    invitation = net.invite()
    requests = [net.request(invitation, number, f"host-{number}") for number in range(1, 9)]
    results: list = []
    start = threading.Barrier(len(requests))

    def ask(request) -> None:
        ledger = Ledger(net.path)
        issuer = Issuer(ledger, "home", net.id, SUBNETS, net.new.authority, net.known)
        start.wait()
        try:
            results.append(issuer.redeem(request, NOW).name)
        except IssuerRefused as refused:
            results.append(refused.reason)
        ledger.close()

    threads = [threading.Thread(target=ask, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results)[1:] == ["used"] * 7
    assert len(net.ledger.members()) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.network.test_issuer import *
ledger = Ledger(Path(sys.argv[1]))
steps = iter(range(100))
def step(*_):
    if next(steps) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
ledger._db.set_trace_callback(step)
made = certificates.parse(bytes.fromhex(sys.argv[4]))
ledger.redeem(bytes.fromhex(sys.argv[3]), made.public_key, "here", NOW, lambda *_: made)
"""


def test_a_redeeming_that_is_killed_at_any_statement_is_whole_or_not_at_all(net):
    invitation = net.invite()
    profile = certificates.Profile("laptop", "home", addresses=(ip_address("10.77.0.2"),))
    made = net.new.authority.issue(profile, key(1), NOW, NOW + DAY)
    killed = 0
    for at in range(0, 40, 4):
        arguments = [sys.executable, "-c", KILLED, str(net.path), str(at), invitation.id.hex(), made.der.hex()]  # fmt: skip
        done = subprocess.run(arguments, check=False, timeout=120)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        killed += 1
        used = net.ledger.invitations()[0].used
        assert used == (net.ledger.named("laptop") is not None)
        assert used == len([one for one in net.ledger.given() if str(one) == "10.77.0.2"])
    assert killed > 2
    # Run again, it works, and what was made is made.
    assert net.join(invitation).name == "laptop"


# --- members change ---------------------------------------------------------------------------


def test_a_renamed_member_has_two_valid_certificates_for_a_week(net):
    old = net.join(net.invite())
    new = net.issuer.reissue(net.ledger.named("laptop"), NOW, name="desk")
    assert (new.name, new.addresses, new.public_key) == ("desk", old.addresses, old.public_key)
    assert new.not_before > old.not_before
    assert net.issuer.make_list(NOW + 6 * DAY).entries == {}
    due = net.issuer.make_list(NOW + 7 * DAY)
    assert due.entries == {old.serial: Reason.SUPERSEDED}
    net.known.check(new)


def test_the_old_certificate_goes_when_the_member_has_the_new_one(net):
    old = net.join(net.invite())
    new = net.issuer.reissue(net.ledger.named("laptop"), NOW, tags=("x",))
    net.issuer.confirm(old, NOW)
    assert net.issuer.make_list(NOW).entries == {}
    net.issuer.confirm(new, NOW)
    assert set(net.issuer.make_list(NOW).entries) == {old.serial}


def test_a_role_is_taken_away_at_once(net):
    old = net.join(net.invite(roles=("bridge",)))
    net.issuer.reissue(net.ledger.named("laptop"), NOW, roles=())
    assert set(net.issuer.make_list(NOW).entries) == {old.serial}


def test_a_name_goes_to_one_member_only(net):
    net.join(net.invite())
    with pytest.raises(IssuerRefused) as refused:
        net.issuer.reissue(net.ledger.named("laptop"), NOW, name="server")
    assert refused.value.reason == "name_taken"


def test_a_removed_member_has_all_its_certificates_revoked_and_its_name_is_free(net):
    old = net.join(net.invite())
    new = net.issuer.reissue(net.ledger.named("laptop"), NOW, name="desk")
    net.issuer.remove(net.ledger.named("desk"), NOW)
    gone = net.issuer.make_list(NOW).entries
    assert gone == {old.serial: Reason.REMOVED, new.serial: Reason.REMOVED}
    with pytest.raises(IssuerRefused) as refused:
        net.issuer.renew(new.der, key(1), NOW)
    assert refused.value.reason == "removed"
    assert net.join(net.invite(), 2, "desk").name == "desk"


def test_who_has_an_old_certificate_gets_the_current_one_and_nobody_else(net):
    old = net.join(net.invite())
    new = net.issuer.reissue(net.ledger.named("laptop"), NOW, name="desk")
    assert net.issuer.renew(old.der, key(1), NOW) == new
    with pytest.raises(BadCertificate) as refused:
        net.issuer.renew(old.der, key(2), NOW)
    assert refused.value.kind == "other_key"
    other = make_authority("home", NOW)
    foreign = other.issue(certificates.Profile("laptop", "home"), key(1), NOW, NOW + DAY)
    with pytest.raises(BadCertificate) as refused:
        net.issuer.renew(foreign.der, key(1), NOW)
    assert refused.value.kind == "foreign"


def test_a_guest_is_out_at_its_date(net):
    guest = net.join(net.invite(lifetime_s=86_400))
    assert guest.not_after == NOW + DAY
    with pytest.raises(IssuerRefused) as refused:
        net.issuer.renew(guest.der, key(1), NOW + 2 * DAY)
    assert refused.value.reason == "guest"
    assert net.issuer.make_list(NOW + 2 * DAY).entries == {guest.serial: Reason.REMOVED}
    assert net.issuer.make_list(NOW + 40 * DAY).entries == {}
    with pytest.raises(BadCertificate):
        net.known.check(guest)


def signed(net, number, name="nas", now=NOW, **wanted):
    rest = {"roles": None, "tags": None, "addresses": (), "lifetime": None, **wanted}
    return net.issuer.sign(key(number), name, now, **rest)


def test_a_key_gets_a_certificate_by_hand_and_another_one_keeps_what_is_not_said(net):
    first = signed(net, 5, roles=("relay",), tags=("x",), addresses=(ip_address("10.77.0.9"),))
    assert (first.name, first.roles, first.tags) == ("nas", {"relay"}, {"x"})
    assert ip_address("10.77.0.9") in first.addresses
    again = signed(net, 5, "box", lifetime=30 * DAY)
    assert (again.name, again.roles, again.tags) == ("box", {"relay"}, {"x"})
    assert (again.addresses, again.not_after) == (first.addresses, again.not_before + 30 * DAY)
    moved = signed(net, 5, "box", addresses=(ip_address("10.77.0.10"),), tags=())
    assert (ip_address("10.77.0.10") in moved.addresses, moved.tags) == (True, frozenset())
    assert len(moved.addresses) == len(first.addresses)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [({"roles": ("issuer",)}, "role"), ({"roles": ("revoker",)}, "role"), ({"name": "server"}, "name_taken"),
     ({"addresses": (ip_address("192.0.2.1"),)}, "address"), ({"roles": ("a b",)}, "terms"),
     ({"addresses": (ip_address("10.77.0.8"), ip_address("10.77.0.9"))}, "terms"), ({"name": "A"}, "name")],
)  # fmt: skip
def test_by_hand_nobody_gets_what_nobody_may_have(net, wanted, reason):
    with pytest.raises(IssuerRefused) as refused:
        signed(net, 5, **wanted)
    assert refused.value.reason == reason
    assert net.ledger.member(key(5)) is None


def test_by_hand_a_removed_key_does_not_come_back(net):
    signed(net, 5)
    net.issuer.remove(net.ledger.named("nas"), NOW)
    with pytest.raises(IssuerRefused) as refused:
        signed(net, 5)
    assert refused.value.reason == "removed"


def test_a_certificate_is_renewed_at_two_thirds_of_its_time(net):
    old = signed(net, 5, lifetime=30 * DAY)
    assert net.issuer.due(NOW + 19 * DAY) == []
    assert net.issuer.renew(old.der, key(5), NOW + 19 * DAY) == old
    assert [one.name for one in net.issuer.due(NOW + 20 * DAY)] == ["nas"]
    new = net.issuer.renew(old.der, key(5), NOW + 20 * DAY)
    assert new.not_after == NOW + 50 * DAY
    assert net.issuer.due(NOW + 20 * DAY) == []


# --- lists ------------------------------------------------------------------------------------


def test_a_list_has_a_number_above_all_seen_and_the_entries_of_everybody(net):
    restored = net.ledger.image()
    member = net.join(net.invite())
    net.issuer.remove(net.ledger.named("laptop"), NOW)
    for _ in range(3):
        net.issuer.make_list(NOW)
    older = net.path.parent / "restored.db"
    older.write_bytes(restored)
    older.chmod(0o600)
    ledger = Ledger(older)
    issuer = Issuer(ledger, "home", net.id, SUBNETS, net.new.authority, net.known)
    made = issuer.make_list(NOW)
    ledger.close()
    assert made.number == 4
    assert made.entries == {member.serial: Reason.REMOVED}


def test_without_a_key_nothing_is_issued_or_revoked_and_it_is_said(net):
    net.join(net.invite())
    bare = net.with_key(None)
    with pytest.raises(IssuerRefused, match="cannot issue"):
        bare.invite(Terms(), NOW, HOUR)
    with pytest.raises(IssuerRefused, match="revoke nothing"):
        bare.remove(net.ledger.named("laptop"), NOW)
    assert net.ledger.named("laptop")


def test_a_revoker_removes_and_does_not_issue(net):
    member = net.join(net.invite())
    issuer = net.with_key(net.new.authority.make_revoker("home", NOW))
    with pytest.raises(IssuerRefused, match="cannot issue"):
        issuer.invite(Terms(), NOW, HOUR)
    issuer.remove(net.ledger.named("laptop"), NOW)
    made = issuer.make_list(NOW)
    assert made.signer != net.id
    assert made.entries == {member.serial: Reason.REMOVED}
    assert net.known.take(made) is Taken.KNOWN


def test_nothing_is_signed_by_a_clock_that_the_ledger_contradicts(net):
    invitation = net.invite()
    for wrong in (NOW - DAY, NOW + 500 * DAY):
        assert net.refusal(invitation, now=wrong) == "clock"
        with pytest.raises(IssuerRefused, match="clock"):
            net.issuer.make_list(wrong)
    net.issuer = net.with_key(net.new.authority, clock_is_right=True)
    assert net.join(invitation, now=NOW - DAY)


def test_a_full_list_stops_issuing_and_never_revoking(net, monkeypatch):
    invitation = net.invite()
    net.join(net.invite(), 2, "nas")
    monkeypatch.setattr(net.issuer, "share_of_list", lambda: 0.9)
    assert net.refusal(invitation) == "list_full"
    net.issuer.remove(net.ledger.named("nas"), NOW)
    assert len(net.issuer.make_list(NOW).entries) == 1


def test_compact_gives_all_a_certificate_of_a_new_authority(net):
    old = net.join(net.invite())
    authority = make_authority("home", NOW)
    made = {one.name: one for one in net.issuer.compact(authority, NOW)}
    assert set(made) == {"laptop", "server"}
    assert made["laptop"].addresses == old.addresses
    assert made["laptop"].issuer_key_id == authority.authority.key_id
    assert net.issuer.make_list(NOW).entries == {}


def test_compact_makes_room_although_the_full_list_is_still_there(net):
    full = net.issuer.share_of_list()
    assert full > 0
    authority = make_authority("home", NOW)
    net.issuer.compact(authority, NOW)
    assert net.issuer.share_of_list() == 0
    net.issuer.make_list(NOW)
    assert len(net.known.lists) == 2
    assert net.issuer.share_of_list() <= full


# --- the file ---------------------------------------------------------------------------------


def test_the_ledger_is_private_and_a_broken_one_is_named_with_what_to_do(tmp_path):
    path = tmp_path / FILE
    Ledger.create(path).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(FileExistsError):
        Ledger.create(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="0644"):
        Ledger(path)
    path.write_bytes(b"garbage" * 1000)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="network restore"):
        Ledger(path)
    path.unlink()
    with pytest.raises(KeyFileError, match="no such file"):
        Ledger(path)


def test_a_ledger_of_a_newer_version_is_left_alone(tmp_path):
    path = tmp_path / FILE
    Ledger.create(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 2")
    other.close()
    with pytest.raises(KeyFileError, match="newer version"):
        Ledger(path)
