"""What a snapshot and the health checks say of a member of a network."""

from __future__ import annotations

import pytest

from shadowmesh.insight.network import MeasuredRelay, Relays
from shadowmesh.network.meeting import Meeting
from shadowmesh.service.member_view import MemberView
from tests.network.disks import DAY, NOW, Disk, invite

DATE = NOW.timestamp()
AROUND = Relays(
    (MeasuredRelay("hub", "relay.example.org:443", True, 1.5, True),), "it is the only one"
)


class Shown:
    """A machine of a network, and what is seen of it."""

    def __init__(self, disk):
        self.disk = disk
        self.membership = disk.membership
        self.registrar = getattr(disk, "registrar", None)
        self.desk = None
        self.meeting = Meeting(
            self.membership,
            software="test",
            boot_id=bytes(16),
            now=lambda: NOW,
            seconds=lambda: 0.0,
        )
        self.relays = lambda: AROUND
        self.view = MemberView(self)

    def check(self, name, days=0):
        return next(one for one in self.view.checks(DATE + days * 86400.0) if one.name == name)


@pytest.fixture
def hub(tmp_path):
    disk = Disk(tmp_path / "hub").found()
    yield Shown(disk)
    disk.registrar.close()


@pytest.fixture
def laptop(tmp_path, hub):
    disk = Disk(tmp_path / "laptop")
    disk.join(hub.disk, invite(hub.disk), "laptop")
    return Shown(disk)


def test_a_member_says_who_it_is_and_what_relays_there_are(laptop):
    told = laptop.view.status().to_dict()
    assert told["relays"] == [AROUND.relays[0].to_dict()]
    assert told["home_reason"] == AROUND.reason
    assert (told["name"], told["own"], told["addresses"]) == ("home", "laptop", ["10.77.0.2"])
    assert (told["issuer"], told["members_known"], told["directory_version"]) == (False, 2, None)
    assert told["lists"][0]["issued_at"] == "2026-12-01T00:00:00.000Z"
    assert told["problem"] is None


def test_a_relay_says_how_much_it_keeps_for_others(hub):
    told = hub.view.status().to_dict()
    assert (told["issuer"], told["members_known"], told["roles"]) == (True, 1, ["issuer", "relay"])
    assert told["directory_version"] > 0
    assert told["attached"] == 0


def test_of_the_newest_list_the_age_is_told(hub, laptop):
    hub.registrar.issuer.make_list(NOW + 3 * DAY)
    laptop.membership.take_list(
        laptop.membership.read_list(hub.membership.revocations.lists[0].data), NOW
    )
    newest = laptop.view.status().newest_list
    assert newest.issued_at == (NOW + 3 * DAY).timestamp()
    assert laptop.check("revocation_list", days=10).ok
    assert laptop.check("revocation_list", days=11).code == "list_old"


def test_a_member_alone_is_well_and_only_the_issuer_has_an_issuer_s_checks(hub, laptop):
    of_all = ["member_certificate", "revocation_list", "network_saved", "identities"]
    assert [one.name for one in laptop.view.checks(DATE)] == of_all
    assert [one.name for one in hub.view.checks(DATE)] == [*of_all, "authority", "list_room"]
    assert all(one.ok for shown in (hub, laptop) for one in shown.view.checks(DATE))


def test_a_removed_member_sees_that_it_was(hub, laptop):
    data, _ = hub.registrar.remove("laptop", NOW)
    laptop.membership.take_list(laptop.membership.read_list(data), NOW)
    check = laptop.check("member_certificate")
    assert (check.code, check.severity) == ("certificate_removed", "error")
    assert laptop.view.status().problem == check.text


def test_a_disk_that_is_full_is_told(hub, laptop, monkeypatch):
    from shadowmesh.base.errors import KeyFileError

    def fail(*_given):
        raise KeyFileError("members: no space left")

    monkeypatch.setattr(laptop.disk.store, "save_members", fail)
    data, _ = hub.registrar.remove("laptop", NOW)
    laptop.membership.take_list(laptop.membership.read_list(data), NOW)
    assert laptop.check("network_saved").code == "network_not_saved"


def test_an_issuer_whose_authority_was_moved_away_says_so(hub, monkeypatch):
    monkeypatch.setattr(hub.registrar.issuer, "_key", None)
    assert hub.check("authority").code == "authority_missing"
