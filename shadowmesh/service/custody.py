"""The keys of a network and what its operator has in files, as the API asks for them.

Owns: backup and restore, the file that was sent for one of them. Does not know: HTTP, the form of
those files (`network`), who may ask. Loaded by the first who asks for one of them.

Passphrases come in and go no further: not into a log, an error or a file. What is derived from them
takes a third of a second, and is done in another thread meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import gevent

from shadowmesh.base import log
from shadowmesh.base.clock import utc_now
from shadowmesh.base.errors import (
    AlreadyInNetwork,
    BadRequest,
    ConfigError,
    ConfigurationWrong,
    IssuerRefused,
)
from shadowmesh.insight.custody import Backup, Received, Restored, as_text
from shadowmesh.network import backup, offline, trust
from shadowmesh.service.member import as_member, need
from shadowmesh.service.networks import report

if TYPE_CHECKING:
    from shadowmesh.service.networks import Networks

#: of a file that is sent
MAX_FILE_BYTES: Final = 32 << 20
#: it is forgotten when so long no piece of it has come
FILE_AGE_S: Final = 60.0

Result = TypeVar("Result")

_log = log.get("network")


class Custody:
    """The operations of one life of the daemon.

    Attributes:
        networks: whose operations are done one after the other with these.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._place = networks.place
        self._file = bytearray()
        self._forgetting: gevent.Greenlet | None = None

    # --- a file that is larger than a request may be --------------------------------------------

    def receive(self, offset: int, data: bytes) -> Received:
        """Take a piece of a file; offset 0 begins another one.

        Raises:
            BadRequest: the piece before it is missing, or the file is too large.
        """
        if offset == 0:
            self._file.clear()
        if offset != len(self._file):
            raise BadRequest(f"this piece begins at {offset}, and {len(self._file)} bytes are here")
        if offset + len(data) > MAX_FILE_BYTES:
            raise BadRequest(f"a file has at most {MAX_FILE_BYTES >> 20} MiB")
        self._file += data
        if self._forgetting is not None:
            self._forgetting.kill(block=False)
        self._forgetting = gevent.spawn_later(FILE_AGE_S, self._file.clear)
        return Received(len(self._file))

    def _taken(self, digest: str) -> bytes:
        """Return the file with that SHA-256, and forget it."""
        data = bytes(self._file)
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadRequest("the file that is meant was not sent, or not all of it; send it again")
        self._file.clear()
        return data

    # --- backup ---------------------------------------------------------------------------------

    def back_up(self, passphrase: str, recovery_key: str | None) -> Backup:
        """Return the network as one file.

        Raises:
            IssuerRefused: this machine has no ledger, the passphrase is too short, or the recovery
                key is that of another network.
        """
        with self._place.changing():
            seed = None if recovery_key is None else _recovery_seed(recovery_key)
            files = need(self._place.member).issuing().backup_files(seed)
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
        data = self._taken(digest)
        with place.changing():
            files = _elsewhere(partial(backup.open_backup, data, passphrase))
            membership, cancelled = offline.restore(place.store, files, utc_now())
            try:
                as_member(place.loaded, membership)
            except ConfigError as error:
                place.store.leave()
                raise ConfigurationWrong(str(error.problems[0])) from None
            name = membership.facts.name
            _log.info("a network was restored from its backup", network=name, cancelled=cancelled)
            place.begin_again()
            return Restored(report(membership, issuer=True), cancelled)


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
        raise BadRequest(str(error)) from None
