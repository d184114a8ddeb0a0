"""Machines that lose their power between any two steps of joining, making and leaving a network."""

from __future__ import annotations

import pytest

from shadowmesh.base.errors import BadCertificate
from shadowmesh.network.ledger import FILE
from shadowmesh.network.membership import Membership
from shadowmesh.network.registrar import Registrar
from shadowmesh.network.store import Store
from tests.network.disks import DAY, NOW, Disk, invite


class PowerCut(BaseException):
    """Nothing handles it."""


class Steps:
    """Counts what changes the disk of a store, and ends before the one that is said."""

    def __init__(self, monkeypatch):
        self.left = None
        self.done = 0
        for name in ("_write", "_remove"):
            monkeypatch.setattr(Store, name, self._counted(getattr(Store, name)))

    def _counted(self, step):
        def counted(store, *arguments):
            if self.left == 0:
                raise PowerCut
            if self.left is not None:
                self.left -= 1
            self.done += 1
            step(store, *arguments)

        return counted

    def cut_before(self, number, what):
        """Do something, and cut it off before a step; tell whether there was such a step."""
        self.left = number
        try:
            what()
        except PowerCut:
            return True
        else:
            return False
        finally:
            self.left = None


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


@pytest.fixture
def hub(tmp_path):
    made = Disk(tmp_path / "hub").found()
    yield made
    made.registrar.close()


def again(disk):
    """The same disk after the power is back."""
    found = Disk.__new__(Disk)
    found.store, found.membership = Store(disk.store.path.parent), None
    return found


def test_a_join_that_was_cut_off_anywhere_is_repeated_with_the_same_outcome(hub, tmp_path, steps):
    number, cut = 0, True
    while cut:
        laptop = Disk(tmp_path / f"laptop{number}")
        token = invite(hub)
        name = f"laptop{number}"
        cut = steps.cut_before(number, lambda: laptop.join(hub, token, name))  # noqa: B023
        back = again(laptop)
        found = Membership.load(back.store, NOW)
        if found is None:
            found = back.join(hub, token, name)
        (issued,) = [one for one in hub.registrar.issuer._ledger.members() if one.name == name]
        assert found.certificate.public_key == issued.public_key
        assert found.certificate.der == hub.membership.named(name).der
        assert Membership.load(back.store, NOW).peers() == found.peers()
        number += 1
    assert number > 8, "key, mark, six files, and the mark again"
    assert all(one.used <= 1 for one in hub.registrar.invitations())


def test_a_network_that_was_cut_off_while_it_was_made_is_made_anew(tmp_path, steps):
    number, cut = 0, True
    while cut:
        disk = Disk(tmp_path / f"hub{number}")
        cut = steps.cut_before(number, disk.found)
        back = again(disk)
        if Membership.load(back.store, NOW) is None:
            back.found()
            back.registrar.close()
        else:
            assert not cut or back.store.joined
        assert Membership.load(back.store, NOW).certificate.roles == {"issuer", "relay"}
        if hasattr(disk, "registrar"):
            disk.registrar.close()
        number += 1
    assert number > 8


def test_what_was_half_made_or_half_left_does_not_make_a_joiner_an_issuer(hub, tmp_path, steps):
    number, cut = 0, True
    while cut:
        disk = Disk(tmp_path / f"m{number}")
        cut = steps.cut_before(number, disk.found)
        if hasattr(disk, "registrar"):
            disk.registrar.close()
        # As a leave that was killed behind its first step.
        (disk.store.path / "member.crt").unlink(missing_ok=True)
        back = again(disk)
        back.join(hub, invite(hub), f"m{number}")
        left = {one.name for one in back.store.path.iterdir()}
        assert not left & {FILE, "authority.key", "authority.crt"}
        number += 1


@pytest.mark.parametrize("behind", ["the ledger", "the number of the list"])
def test_a_removal_behind_which_the_power_went_is_told_to_all_at_the_next_start(
    hub, tmp_path, behind
):
    laptop = Disk(tmp_path / "laptop")
    laptop.join(hub, invite(hub), "laptop")
    shown = laptop.membership.certificate
    issuer = hub.registrar.issuer
    issuer.remove(issuer._ledger.named("laptop"), NOW)
    if behind != "the ledger":
        issuer._ledger.next_number(shown.issuer_key_id, 0, NOW)
    hub.registrar.close()
    loaded = Membership.load(hub.store, NOW)
    assert loaded.named("laptop") is not None
    hub.registrar = Registrar(hub.store, loaded)
    hub.registrar.look(NOW)
    assert loaded.named("laptop") is None
    with pytest.raises(BadCertificate, match="removed"):
        loaded.judge(shown.public_key, shown.der, NOW)
    number = loaded.revocations.lists[0].number
    hub.registrar.look(NOW)
    assert loaded.revocations.lists[0].number == number, "once is enough"
    hub.registrar.look(NOW + DAY)
    assert loaded.revocations.lists[0].number == number + 1, "and one a day"
