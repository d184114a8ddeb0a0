"""The keys of a network and what its operator has in files, as the API asks for them.

Owns: backup and restore, the way of the authority's key out and back. Does not know: HTTP, the form
of those files (`network`), who may ask. Loaded by the first who asks for one of them.

Passphrases come in and go no further: not into a log, an error or a file. What is derived from them
takes a third of a second, and is done in another thread meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import gevent

from shadowmesh.base import log
from shadowmesh.base.clock import utc_now
from shadowmesh.base.errors import (
    AlreadyInNetwork,
    BadRequest,
    IssuerRefused,
)
from shadowmesh.config import check_beside_network
from shadowmesh.insight.custody import Backup, ExportedKey, Restored, as_text
from shadowmesh.network import backup, offline, trust
from shadowmesh.service.certificates import Certificates
from shadowmesh.service.member import need
from shadowmesh.service.networks import fingerprint, report
from shadowmesh.service.received import MAX_FILE_BYTES

if TYPE_CHECKING:
    from shadowmesh.insight.network import NetworkReport

Result = TypeVar("Result")

_log = log.get("network")


class Custody(Certificates):
    """The operations of one life of the daemon, those on certificates among them."""

    # --- backup ---------------------------------------------------------------------------------

    def back_up(self, passphrase: str, recovery_key: str | None) -> Backup:
        """Return the network as one file.

        Raises:
            IssuerRefused: this machine has no ledger, the passphrase is too short, or the recovery
                key is that of another network.
        """
        with self._place.changing():
            issuing = need(self._place.member).issuing()
            seed = None if recovery_key is None else _recovery_seed(recovery_key)
            files = issuing.backup_files(seed)
            # In this thread the disk and the ledger, in the other what takes long.
            data = _elsewhere(partial(backup.seal, files, passphrase))
        if len(data) > MAX_FILE_BYTES:
            raise BadRequest(
                f"the backup has {len(data) >> 20} MiB, and more than {MAX_FILE_BYTES >> 20} could"
                " not be restored; copy state_dir/network instead"
            )
        _log.info("a backup of the network was made", bytes=len(data))
        return Backup(as_text(data), tuple(backup.lacking(files)))

    def restore(self, digest: str, passphrase: str) -> Restored:
        """Be the machine that a backup was made of.

        Raises:
            AlreadyInNetwork, IssuerRefused: it does not open, or is of no issuer. Nothing changed.
        """
        place = self._place
        if place.member is not None:
            raise AlreadyInNetwork(
                f"this machine is in the network {place.member.membership.facts.name};"
                " `shadowmesh leave` comes first"
            )
        data = self._received.taken(digest)
        with place.changing():
            check_beside_network(place.file())
            files = _elsewhere(partial(backup.open_backup, data, passphrase))
            membership, cancelled = offline.restore(place.store, files, utc_now())
            self._check_fits(membership)
            name = membership.facts.name
            _log.info("a network was restored from its backup", network=name, cancelled=cancelled)
            place.recorder.record("network", "restored a network", network=name)
            place.begin_again()
            return Restored(report(membership, issuer=True), cancelled)

    # --- the authority's key ----------------------------------------------------------------------

    def export_authority(self, passphrase: str) -> ExportedKey:
        """Return the authority's key under a passphrase. Raises IssuerRefused."""
        with self._place.changing():
            key = need(self._place.member).issuing().issuer.authority(utc_now())
            # PKCS#8 by the library: some milliseconds.
            told = offline.exported(key, passphrase)
        _log.info("the key of the authority was exported")
        return ExportedKey(fingerprint(key.authority.fingerprint), told)

    def release_authority(self, kept: str, passphrase: str) -> NetworkReport:
        """Remove the authority's key from this machine.

        Raises:
            IssuerRefused: what is kept elsewhere does not open, or is another key.
        """
        place, now = self._place, utc_now()
        with place.changing():
            member = need(place.member)
            key, name = member.issuing().issuer.authority(now), member.membership.facts.name
            offline.release(place.store, key, name, kept.encode(), passphrase, now)
            _log.info("the key of the authority was removed from this machine", network=name)
            place.begin_again()
            return report(member.membership, issuer=True)

    def import_authority(self, kept: str, passphrase: str) -> NetworkReport:
        """Bring the authority's key back. Raises IssuerRefused: it does not open, or is another."""
        place = self._place
        with place.changing():
            member = need(place.member)
            member.issuing()
            authority = member.membership.trust_list.authorities[0]
            offline.bring_back(place.store, authority, kept.encode(), passphrase)
            _log.info("the key of the authority is on this machine again")
            place.begin_again()
            return report(member.membership, issuer=True)


def _elsewhere(work: Callable[[], Result]) -> Result:
    """Do what takes long in another thread, and raise here what it refuses."""

    def tried() -> Result | IssuerRefused:
        try:
            return work()
        except IssuerRefused as error:
            # What leaves the thread as an exception is reported as a bug.
            return error

    found: Result | IssuerRefused = gevent.get_hub().threadpool.apply(tried)
    if isinstance(found, IssuerRefused):
        raise found
    return found


def _recovery_seed(text: str) -> bytes:
    try:
        return trust.recovery_seed(text)
    except ValueError as error:
        raise IssuerRefused(str(error), "recovery") from None
