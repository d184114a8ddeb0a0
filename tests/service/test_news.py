"""What the flight recorder hears of a network."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from shadowmesh.base.errors import BadCertificate
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.keys import sodium
from shadowmesh.network.certificate import Profile
from shadowmesh.service.news import NAMED, News
from tests.network.disks import DAY, NOW, Disk, invite


@pytest.fixture
def hub(tmp_path):
    disk = Disk(tmp_path / "hub").found()
    yield disk
    disk.registrar.close()


class Told:
    """A machine whose news is recorded."""

    def __init__(self, disk):
        self.recorder = FlightRecorder()
        self.news = News(disk.membership, self.recorder)
        disk.membership.on_change = self.news.look

    def events(self):
        return [(one.message, dict(one.fields)) for one in self.recorder.recent()]


def test_what_is_known_from_the_start_is_no_news(hub):
    told = Told(hub)
    told.news.look()
    assert told.events() == []


def test_members_that_come_and_go_are_named(hub, tmp_path):
    told = Told(hub)
    Disk(tmp_path / "laptop").join(hub, invite(hub), "laptop")
    assert told.events() == [("a member has joined", {"name": "laptop"})]
    hub.registrar.remove("laptop", NOW)
    assert told.events()[1:] == [
        ("a revocation list was taken", {"number": 1}),
        ("a member was removed", {"name": "laptop"}),
    ]


def test_a_certificate_that_ended_is_no_removal(hub):
    authority = hub.store.authority()
    guest = Profile("guest", "home", addresses=(ip_address("10.77.0.99"),))
    hub.membership.learn(
        authority.issue(guest, sodium.public_key(bytes(range(32))), NOW, NOW + DAY), NOW
    )
    told = Told(hub)
    hub.membership.sift(NOW + 2 * DAY)
    assert ("the certificate of a member counts no more", {"name": "guest"}) in told.events()


def test_of_a_whole_directory_few_are_named(hub, monkeypatch):
    told = Told(hub)
    own = hub.membership.certificate
    many = [own] + [
        replace(own, public_key=number.to_bytes(32, "big"), name=f"m{number}")
        for number in range(1, 101)
    ]
    monkeypatch.setattr(News, "_known", lambda _self: {one.public_key: one for one in many})
    told.news.look()
    assert len(told.events()) == NAMED + 1
    assert told.events()[-1] == ("more members have joined", {"count": 100 - NAMED})


def test_two_members_that_claim_one_name_are_told_with_who_keeps_it(hub, tmp_path):
    told = Told(hub)
    first = Disk(tmp_path / "laptop").join(hub, invite(hub), "laptop").certificate
    later = replace(
        first, public_key=bytes(31) + b"\x02", addresses=(), not_before=first.not_before + DAY
    )
    with pytest.raises(BadCertificate, match="keeps it"):
        hub.membership.members.take(later)
    message, fields = told.events()[-1]
    assert message == "two members have one identity"
    assert fields == {
        "code": "SM-IDENTITY-CLASH", "what": "name", "name": "laptop", "kept_by": "laptop",
    }  # fmt: skip
