"""A network comes back from its backup, and learns what was decided since. Source: mesh-rules C2."""

from __future__ import annotations

import pytest

from shadowmesh.base.errors import IssuerRefused
from shadowmesh.network import offline, trust
from shadowmesh.network.membership import Membership
from shadowmesh.network.registrar import Registrar
from tests.network.disks import DAY, NOW, Disk, invite


@pytest.fixture
def hub(tmp_path):
    return Disk(tmp_path / "hub").found()


def restored(tmp_path, files, name="again"):
    """The machine that a backup was made of, on another disk."""
    disk = Disk(tmp_path / name)
    disk.membership, disk.cancelled = offline.restore(disk.store, files, NOW)
    disk.registrar = Registrar(disk.store, disk.membership)
    return disk


def test_the_machine_is_the_same_and_its_invitations_are_void(tmp_path, hub):
    Disk(tmp_path / "laptop").join(hub, invite(hub, "laptop"))
    token = invite(hub, "nas")
    again = restored(tmp_path, hub.registrar.backup_files(trust.recovery_seed(hub.recovery)))
    assert again.cancelled == 2
    assert again.membership.identity.public_key == hub.membership.identity.public_key
    assert {one.name for one in again.membership.members} == {"hub", "laptop"}
    assert Disk(tmp_path / "nas").ask(again, token).reason == "cancelled"
    assert not (again.store.path / "recovery.key").exists()
    # It goes on as the issuer of the network.
    assert Disk(tmp_path / "tv").join(again, invite(again, "tv")).certificate.name == "tv"


def test_who_was_removed_after_the_backup_stays_out(tmp_path, hub):
    laptop = Disk(tmp_path / "laptop")
    laptop.join(hub, invite(hub, "laptop"))
    files = hub.registrar.backup_files(None)
    list_, _ = hub.registrar.remove("laptop", NOW)
    again = restored(tmp_path, files)
    assert again.membership.named("laptop") is not None
    # Any member shows the list, and the ledger learns that the key is out for good.
    again.membership.take_list(again.membership.read_list(list_), NOW + DAY)
    again.registrar.look(NOW + DAY)
    assert again.membership.named("laptop") is None
    with pytest.raises(IssuerRefused, match="removed"):
        again.registrar.issuer.renew(
            laptop.membership.certificate.der, laptop.identity.public_key, NOW + DAY
        )
    number = again.membership.read_list(list_).number
    assert again.registrar.issuer.make_list(NOW + DAY).number > number


def test_who_came_after_the_backup_keeps_name_and_addresses(tmp_path, hub):
    files = hub.registrar.backup_files(None)
    laptop = Disk(tmp_path / "laptop").join(hub, invite(hub, "laptop"))
    again = restored(tmp_path, files)
    again.membership.learn(laptop.certificate, NOW)
    again.registrar.look(NOW)
    with pytest.raises(IssuerRefused, match="laptop is taken"):
        invite(again, "laptop")
    other = Disk(tmp_path / "other").join(again, invite(again, "other"))
    assert not set(other.certificate.addresses) & set(laptop.certificate.addresses)


def test_a_restore_that_was_killed_is_repeated(tmp_path, hub, monkeypatch):
    files = hub.registrar.backup_files(None)
    disk = Disk(tmp_path / "again")
    with monkeypatch.context() as patched:
        patched.setattr(type(disk.store), "save_certificate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            offline.restore(disk.store, files, NOW)
    assert Membership.load(disk.store, NOW) is None
    assert offline.restore(disk.store, files, NOW)[0].certificate.name == "hub"


@pytest.mark.parametrize("missing", ["member.crt", "member.key", "secrets", "network.json"])
def test_a_backup_that_makes_no_member_leaves_nothing(tmp_path, hub, missing):
    files = hub.registrar.backup_files(None)
    del files[missing]
    disk = Disk(tmp_path / "again")
    with pytest.raises(Exception, match=r"no member|no such file") as refused:
        offline.restore(disk.store, files, NOW)
    assert type(refused.value).__name__ in ("IssuerRefused", "KeyFileError")
    assert not disk.store.joined


def test_the_recovery_key_of_another_network_is_refused(tmp_path, hub):
    other = Disk(tmp_path / "other").found(name="other")
    with pytest.raises(IssuerRefused, match="another network"):
        hub.registrar.backup_files(trust.recovery_seed(other.recovery))
