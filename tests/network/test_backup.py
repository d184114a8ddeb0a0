"""Tests of the backup of a network. Source: mesh section 5, mesh-rules C1."""

from __future__ import annotations

import pytest

from shadowmesh.base.errors import IssuerRefused
from shadowmesh.network import backup
from tests.words import faults

FILES = {name: name.encode() * 9 for name in backup.ALLOWED} | {"secrets": b"", "revoked": b"\0"}
PASSPHRASE = "correct horse battery"


def sealed() -> bytes:
    return backup.seal(FILES, PASSPHRASE, cost=2)


def test_a_backup_gives_back_what_was_put_in():
    assert backup.open_backup(sealed(), PASSPHRASE) == FILES
    assert b"authority" not in sealed()


def test_no_altered_or_cut_backup_opens():
    data = sealed()
    for place in range(len(data)):
        if place != 5:
            forged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises(IssuerRefused):
                backup.open_backup(forged, PASSPHRASE)
        with pytest.raises(IssuerRefused):
            backup.open_backup(data[:place], PASSPHRASE)
    for cost in (0, 3, 21, 255):
        with pytest.raises(IssuerRefused):
            backup.open_backup(data[:5] + bytes([cost]) + data[6:], PASSPHRASE)


def test_a_wrong_passphrase_is_named_and_not_quoted():
    with pytest.raises(IssuerRefused) as refused:
        backup.open_backup(sealed(), "wrong horse battery")
    assert refused.value.reason == "passphrase"
    assert "horse" not in str(refused.value)
    assert not faults(str(refused.value))


@pytest.mark.parametrize("missing", sorted(backup.REQUIRED))
def test_a_backup_without_something_that_cannot_be_made_again_is_not_made(missing):
    with pytest.raises(IssuerRefused, match=missing.replace(".", r"\.")):
        backup.seal({k: v for k, v in FILES.items() if k != missing}, PASSPHRASE, cost=2)


def test_a_short_passphrase_and_a_foreign_file_are_refused():
    with pytest.raises(IssuerRefused, match="12"):
        backup.seal(FILES, "short", cost=2)
    with pytest.raises(IssuerRefused, match="passwd"):
        backup.seal(FILES | {"../../etc/passwd": b""}, PASSPHRASE, cost=2)


def test_what_a_backup_lacks_is_said():
    assert backup.lacking(FILES) == []
    without = {name: FILES[name] for name in backup.REQUIRED}
    assert len(backup.lacking(without)) == 2
    assert backup.open_backup(backup.seal(without, PASSPHRASE, cost=2), PASSPHRASE) == without
