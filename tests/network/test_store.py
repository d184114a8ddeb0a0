"""Tests of the files of a network. Source: mesh-rules B3, C2."""

from __future__ import annotations

import stat
from datetime import UTC, datetime

import pytest

from shadowmesh.base.errors import BadCertificate, IssuerRefused, KeyFileError
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import backup, revocation, trust
from shadowmesh.network.authority import make_authority
from shadowmesh.network.certificate import Profile
from shadowmesh.network.ledger import FILE, Ledger, Terms
from shadowmesh.network.revocation import Reason, Revocations
from shadowmesh.network.store import Secret, Store
from tests.words import faults

NOW = datetime(2026, 12, 1, tzinfo=UTC)
HOME = make_authority("home", NOW)
RECOVERY = Identity.from_seed(bytes(range(32)))
TRUST = trust.make(RECOVERY, HOME.authority.key_id, 1, (HOME.authority,), HOME)
INVITATION = b"8 bytes."


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    made.save_facts({"name": "home"})
    return made


def test_a_join_that_was_killed_goes_on_with_the_same_key(store, tmp_path):
    key = store.begin_joining(INVITATION).public_key
    assert Store(tmp_path).begin_joining(INVITATION).public_key == key
    assert Store(tmp_path).begin_joining(b"another.").public_key != key


def test_a_key_whose_invitation_did_not_reach_the_disk_is_made_anew(store):
    store.begin_joining(INVITATION)
    (store.path / "joining").unlink()
    assert store.begin_joining(INVITATION).public_key


def test_who_is_in_a_network_joins_no_other(store):
    identity = store.begin_joining(INVITATION)
    made = HOME.issue(Profile("laptop", "home"), identity.public_key, NOW, HOME.authority.not_after)
    store.save_certificate(made.der)
    assert store.joined
    assert store.certificate() == made.der
    assert store.identity().public_key == made.public_key
    with pytest.raises(IssuerRefused, match="leave"):
        store.begin_joining(INVITATION)
    store.leave()
    assert not store.path.exists()
    store.leave()


def test_everything_comes_back_and_is_private(store):
    secrets = [Secret(n, bytes([n]) * 32, bytes(64)) for n in (1, 3, 2)]
    store.save_secrets(secrets)
    store.save_trust_list(TRUST.data)
    store.save_members([HOME.authority.der, b"x" * 9])
    store.save_authority(HOME, "correct horse battery")
    assert [one.epoch for one in store.secrets()] == [3, 2]
    assert store.secrets()[0].value == b"\3" * 32
    assert "\\x03" not in repr(store.secrets())
    assert store.trust_list() == TRUST
    assert store.members() == [HOME.authority.der, b"x" * 9]
    assert store.facts() == {"name": "home"}
    assert store.authority("correct horse battery").authority == HOME.authority
    assert {stat.S_IMODE(one.stat().st_mode) for one in store.path.iterdir()} == {0o600}
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o700


def test_what_was_revoked_is_revoked_after_a_restart(store):
    key = sodium.public_key(bytes(range(32)))
    gone = HOME.issue(Profile("laptop", "home"), key, NOW, HOME.authority.not_after)
    known = Revocations()
    for number, entries in ((1, {gone.serial: Reason.REMOVED}), (2, {7: Reason.SUPERSEDED})):
        data = revocation.make(HOME, number, NOW, entries)
        known.take(revocation.read(data, [HOME.authority]))
    store.save_revocations(known)
    again = store.revocations([HOME.authority])
    assert again.numbers == known.numbers
    assert again.remembered == known.remembered
    with pytest.raises(BadCertificate):
        again.check(gone)
    assert store.revocations([make_authority("home", NOW).authority]).numbers == {}


def test_an_exported_authority_leaves_a_revoker(store):
    store.save_authority(HOME)
    store.export_authority(HOME.make_revoker("home", NOW))
    assert store.authority() is None
    assert store.revoker(HOME.authority).certificate.roles == {"revoker"}


def test_a_backup_brings_the_issuer_back_on_another_machine(store, tmp_path):
    store.save_trust_list(TRUST.data)
    store.save_authority(HOME)
    store.save_secrets([Secret(1, bytes(32), bytes(64))])
    ledger = Ledger.create(store.path / FILE)
    ledger.add_invitation(INVITATION, bytes(32), Terms(), 1, NOW, NOW)
    with pytest.raises(IssuerRefused, match="another network"):
        store.backup_files(ledger, bytes(range(1, 33)))
    files = store.backup_files(ledger, bytes(range(32)))
    ledger.close()
    assert backup.lacking(files) == []
    sealed = backup.seal(files, "correct horse battery", cost=2)
    other = Store(tmp_path / "other")
    other.restore(backup.open_backup(sealed, "correct horse battery"))
    assert other.authority().authority == HOME.authority
    assert other.trust_list() == TRUST
    assert not (other.path / "recovery.key").exists()
    again = Ledger(other.path / FILE)
    assert [one.id for one in again.invitations()] == [INVITATION]
    assert again.cancel(None, NOW) == 1
    again.close()


READ = {
    "member.key": lambda store: store.identity(),
    "trust.list": lambda store: store.trust_list(),
    "revocation.lists": lambda store: store.revocations([HOME.authority]),
    "revoked": lambda store: store.revocations([HOME.authority]),
    "secrets": lambda store: store.secrets(),
    "members": lambda store: store.members(),
    "network.json": lambda store: store.facts(),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("content", [b"garbage", b"\0\0\0\3abc", b"[]", bytes(1 << 20)])
def test_a_broken_file_is_named_with_what_to_do(store, name, content):
    path = store.path / name
    path.write_bytes(content)
    path.chmod(0o600)
    if (name, content) == ("members", b"\0\0\0\3abc"):
        return
    if name == "members" and len(content) == 1 << 20:
        content = b""
    with pytest.raises(KeyFileError) as refused:
        READ[name](store)
    assert str(path) in str(refused.value)
    assert "backup" in str(refused.value)


@pytest.mark.parametrize("name", READ)
def test_a_file_that_others_can_read_is_refused(store, name):
    path = store.path / name
    path.write_bytes(b"")
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="0644") as refused:
        READ[name](store)
    assert not faults(str(refused.value))


@pytest.mark.parametrize("name", ["member.key", "trust.list", "secrets", "network.json"])
def test_a_missing_file_is_named_with_what_to_do(tmp_path, name):
    with pytest.raises(KeyFileError, match="no such file"):
        READ[name](Store(tmp_path))


def test_what_has_not_changed_is_not_written_again(store, monkeypatch):
    written = []
    write = Store._write
    monkeypatch.setattr(
        Store, "_write", lambda self, name, data: (written.append(name), write(self, name, data))
    )
    for _ in range(3):
        store.save_members([b"x"])
        store.save_facts({"name": "home", "port": 1})
        store.save_revocations(Revocations())
    assert written == ["members", "network.json", "revoked", "revocation.lists"]
    store.save_members([b"y"])
    (store.path / "members").unlink()
    store.save_members([b"y"])
    assert written[4:] == ["members", "members"]
    assert store.members() == [b"y"]
