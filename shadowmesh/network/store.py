"""The files of a network below ``state_dir/network``: what a member, and an issuer, must not forget.

Owns: names and forms of the files, their caps, that each is written whole (0600, synced, renamed)
and read only when it is private. Does not know: whether what they say is true: certificates and
lists are verified by whoever loads them, as if they had come from the wire.

==================  ===============================================================
member.key          seed of the identity in this network, 32 bytes
joining             invitation id, 8 bytes, zeros for a request: written before anything is sent
member.crt          our certificate, DER
next.crt            another of a newer authority, shown once the one before is dropped
trust.list          the trust list as it travels
revocation.lists    the newest list of each signer, one behind the other
revoked             serials ever seen revoked
secrets             the newest two network secrets with epoch and the issuer's signature
members             certificates of members, one behind the other
network.json        name, network id, subnets, relays, last addresses: nothing secret
authority.key/.crt  of the issuer: PKCS#8 in PEM, DER
revoker.key/.crt    of an issuer whose authority is elsewhere
issuer.db           the ledger
restored            empty: the ledger came from a backup
clock-is-right      empty: made by the operator, see `clock`
==================  ===============================================================

Source: mesh sections 2, 3 and 6, mesh-rules B3, C2.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shadowmesh.base.errors import BadCertificate, BadList, IssuerRefused, KeyFileError
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.keys.private_file import open_private_file, write_private_file
from shadowmesh.network import authority, backup, revocation, trust
from shadowmesh.network import certificate as certificates
from shadowmesh.network.authority import AuthorityKey, RevokerKey
from shadowmesh.network.certificate import Authority
from shadowmesh.network.clock import RIGHT_FILE
from shadowmesh.network.ledger import Ledger
from shadowmesh.network.revocation import Reason, Serial

DIRECTORY: Final = "network"
#: a responder tries no more at its gate (mesh-rules C6)
MAX_SECRETS: Final = 2
MAX_MEMBERS: Final = 1024
_MAX_JSON_BYTES: Final = 256 << 10
_AGAIN: Final = "restore it from a backup, or `shadowmesh leave` and join again"
_BACKUP: Final = "restore it with `shadowmesh network restore FILE`"

#: stands in `joining` for the invitation that there is none of
_BY_REQUEST: Final = bytes(8)

#: SHA-256 of the issuer, length of the serial, why
_REVOKED: Final = struct.Struct("!32sBB")
_REASONS: Final = (Reason.SUPERSEDED, Reason.REMOVED)
_SECRET: Final = struct.Struct("!I32s64s")
_LENGTH: Final = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Secret:
    """A network secret with what vouches for it (mesh-rules C6)."""

    epoch: int
    value: bytes = field(repr=False)
    signature: bytes = field(repr=False)


class Store:
    """The folder of one network."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / DIRECTORY
        #: SHA-256 of what this object has written into files that are written again and again
        self._written: dict[str, bytes] = {}

    @property
    def joined(self) -> bool:
        """Tell whether this machine is in a network. Nothing else has to be read to know."""
        return (self.path / "member.crt").exists()

    def begin_joining(self, invitation_id: bytes) -> Identity:
        """Return the key to join with: a new one, or the one that a join with it began with.

        Key and invitation are on the disk when this returns, so that a join that is killed at any
        later moment is repeated with the same key. With a new key nothing else stays: what a network
        that was left or made half-way has forgotten here would count in the next one.

        Raises:
            IssuerRefused: this machine is in a network already.
            KeyFileError: the disk.
        """
        if self.joined:
            raise IssuerRefused(
                "this machine is in a network; `shadowmesh leave` comes first", "joined"
            )
        self._make()
        seed = self._read("member.key", 32, _AGAIN)
        if seed is None or self._read("joining", 8, _AGAIN) != invitation_id:
            seed = sodium.random_bytes(32)
            self.leave()
            self._make()
            # The mark comes last: a key without it was never shown to anybody.
            self._write("member.key", seed)
            self._write("joining", invitation_id)
        return self._identity(seed)

    def request(self, name: str) -> bytes:
        """Return a certificate request (DER) for our key: the one of today, or a new one.

        It is made once, so that a request is repeated with the same key until an invitation is taken.
        """
        if not self.joined:
            self.begin_joining(_BY_REQUEST)
        return certificates.request(self._need("member.key", 32, _AGAIN), name)

    def identity(self) -> Identity:
        """Return our key in this network."""
        return self._identity(self._need("member.key", 32, _AGAIN))

    def save_identity(self, seed: bytes) -> None:
        """Keep the seed of our key, as `network create` makes it."""
        self._make()
        self._write("member.key", seed)

    def _identity(self, seed: bytes) -> Identity:
        if len(seed) != 32 or not any(seed):
            raise KeyFileError(f"{self.path / 'member.key'}: holds no key; {_AGAIN}")
        return Identity.from_seed(seed)

    # --- what a member knows ---

    def certificate(self) -> bytes:
        """Return our certificate, not verified."""
        return self._need("member.crt", certificates.MAX_BYTES, _AGAIN)

    def save_certificate(self, der: bytes) -> None:
        """Keep our certificate. With it this machine is in the network: written last by a join."""
        self._write("member.crt", der)
        self._remove("joining")
        self._remove("next.crt")

    def next_certificate(self) -> bytes | None:
        """Return the certificate that is shown once the authority before is dropped, or None."""
        return self._read("next.crt", certificates.MAX_BYTES, _AGAIN)

    def save_next_certificate(self, der: bytes) -> None:
        """Keep it."""
        self._write("next.crt", der)

    def trust_list(self) -> trust.TrustList:
        """Return the trust list. Raises KeyFileError when its signatures do not hold."""
        data = self._need("trust.list", trust.MAX_BYTES, _AGAIN)
        try:
            return trust.read(data)
        except BadList as error:
            raise KeyFileError(f"{self.path / 'trust.list'}: {error}; {_AGAIN}") from None

    def save_trust_list(self, data: bytes) -> None:
        """Keep the trust list."""
        self._write("trust.list", data)

    def revocations(self, authorities: Iterable[Authority]) -> revocation.Revocations:
        """Return all lists and remembered serials.

        A list of a signer that is no longer trusted is left out. Raises KeyFileError for a file
        that is no such file.
        """
        known = revocation.Revocations(self._remembered())
        trusted = tuple(authorities)
        for data in self._pieces("revocation.lists", revocation.MAX_SIGNERS, revocation.MAX_BYTES):
            try:
                known.take(revocation.read(data, trusted))
            except BadList as error:
                if error.kind != "foreign":
                    raise KeyFileError(
                        f"{self.path / 'revocation.lists'}: {error}; {_AGAIN}"
                    ) from None
        known.keep(trusted)
        return known

    def save_revocations(self, known: revocation.Revocations) -> None:
        """Keep what is revoked; serials first, so that no moment is without them."""
        rows = []
        for (issuer, serial), why in known.remembered.items():
            number = serial.to_bytes((serial.bit_length() + 7) // 8, "big")
            rows.append(_REVOKED.pack(issuer, len(number), _REASONS.index(why)) + number)
        self._write_news("revoked", b"".join(rows))
        self._write_pieces("revocation.lists", (one.data for one in known.lists))

    def _remembered(self) -> dict[Serial, Reason]:
        cap = revocation.MAX_REMEMBERED * (_REVOKED.size + 20)
        data = self._read("revoked", cap, _AGAIN) or b""
        found: dict[Serial, Reason] = {}
        place = 0
        while place < len(data):
            number = place + _REVOKED.size
            issuer, length, why = _REVOKED.unpack(data[place:number].ljust(_REVOKED.size, b"\xff"))
            place = number + length
            if place > len(data) or why >= len(_REASONS):
                raise KeyFileError(f"{self.path / 'revoked'}: is damaged; {_AGAIN}")
            found[issuer, int.from_bytes(data[number:place], "big")] = _REASONS[why]
        return found

    def secrets(self) -> tuple[Secret, ...]:
        """Return the network secrets, the newest first."""
        data = self._need("secrets", MAX_SECRETS * _SECRET.size, _AGAIN)
        if not data or len(data) % _SECRET.size:
            raise KeyFileError(f"{self.path / 'secrets'}: is damaged; {_AGAIN}")
        found = [Secret(*row) for row in _SECRET.iter_unpack(data)]
        return tuple(sorted(found, key=lambda one: -one.epoch))

    def save_secrets(self, secrets: Iterable[Secret]) -> None:
        """Keep the newest two secrets."""
        newest = sorted(secrets, key=lambda one: -one.epoch)[:MAX_SECRETS]
        rows = (_SECRET.pack(one.epoch, one.value, one.signature) for one in newest)
        self._write("secrets", b"".join(rows))

    def members(self) -> list[bytes]:
        """Return the certificates of members that are known, not verified."""
        return self._pieces("members", MAX_MEMBERS, certificates.MAX_BYTES)

    def save_members(self, ders: Iterable[bytes]) -> None:
        """Keep the certificates of members."""
        self._write_pieces("members", ders)

    def facts(self) -> dict[str, Any]:
        """Return what is known beside that: an object of JSON, as `save_facts` got it."""
        data = self._need("network.json", _MAX_JSON_BYTES, _AGAIN)
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise KeyFileError(f"{self.path / 'network.json'}: is damaged; {_AGAIN}")
        return found

    def save_facts(self, facts: Mapping[str, Any]) -> None:
        """Keep name, network id, subnets, relays and last addresses. Nothing secret."""
        self._make()
        self._write_news("network.json", json.dumps(facts, indent=1).encode())

    # --- what an issuer has beside that ---

    def save_authority(self, key: AuthorityKey, passphrase: str | None = None) -> None:
        """Keep the key of the authority; the certificate first, since a key alone is no use."""
        self._write("authority.crt", key.authority.der)
        self._write("authority.key", key.pem(passphrase))

    def authority(self, passphrase: str | None = None) -> AuthorityKey | None:
        """Return the authority, None when its key is not on this machine.

        Raises:
            IssuerRefused: "passphrase", or key and certificate do not belong together.
            KeyFileError: a file is wrong.
        """
        pem = self._read("authority.key", 4096, _BACKUP)
        if pem is None:
            return None
        der = self._need("authority.crt", certificates.MAX_BYTES, _BACKUP)
        try:
            return authority.load_authority(pem, der, passphrase)
        except BadCertificate as error:
            raise KeyFileError(f"{self.path / 'authority.crt'}: {error}; {_BACKUP}") from None

    def export_authority(self, revoker: RevokerKey) -> None:
        """Leave a revoker in the place of the authority, whose key goes from this disk."""
        self._write("revoker.crt", revoker.certificate.der)
        self._write("revoker.key", revoker.pem())
        self._remove("authority.key")

    def revoker(self, issued_by: Authority) -> RevokerKey | None:
        """Return the revoker, None without one. Raises as `authority`."""
        pem = self._read("revoker.key", 4096, _BACKUP)
        if pem is None:
            return None
        der = self._need("revoker.crt", certificates.MAX_BYTES, _BACKUP)
        try:
            return authority.load_revoker(pem, der, issued_by)
        except BadCertificate as error:
            raise KeyFileError(f"{self.path / 'revoker.crt'}: {error}; {_BACKUP}") from None

    def backup_files(self, ledger: Ledger, recovery_seed: bytes | None) -> dict[str, bytes]:
        """Return what belongs into a backup: all of it that is on this machine.

        Args: recovery_seed: typed by the operator, since it is nowhere on the disk.
        Raises:
            IssuerRefused: that is the recovery key of another network.
        """
        files = {name: self._read(name, backup.MAX_BYTES, _BACKUP) for name in sorted(backup.FILES)}
        found = {name: data for name, data in files.items() if data is not None}
        found["issuer.db"] = ledger.image()
        if recovery_seed is not None:
            if sodium.public_key(recovery_seed) != self.trust_list().recovery_key:
                raise IssuerRefused("this is the recovery key of another network", "recovery")
            found["recovery.key"] = recovery_seed
        return found

    @property
    def clock_is_right(self) -> bool:
        """Tell whether the operator says so, whatever dates the ledger has."""
        return (self.path / RIGHT_FILE).exists()

    @property
    def restored(self) -> bool:
        """Tell whether the ledger came from a backup, so that others may know more than it does."""
        return (self.path / "restored").exists()

    def forget_restored(self) -> None:
        """The ledger knows all members; whom it does not know was never let in."""
        self._remove("restored")

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Write the files of an opened backup; the recovery key stays in the backup.

        Our certificate comes last: a restore that was killed is repeated. Behind it the issuer has
        to collect the lists of all relays and to cancel all invitations (mesh-rules C2).

        Raises:
            IssuerRefused: this machine is in a network.
        """
        if self.joined:
            raise IssuerRefused(
                "this machine is in a network; `shadowmesh leave` comes first", "joined"
            )
        self._make()
        names = files.keys() - {"recovery.key"}
        # A log of an earlier ledger would be played into the restored one.
        for name in ("issuer.db", "issuer.db-wal", "issuer.db-shm", "joining"):
            self._remove(name)
        self._write("restored", b"")
        for name in sorted(names, key=lambda one: (one == "member.crt", one)):
            self._write(name, files[name])

    def leave(self) -> None:
        """Remove everything of the network. Our certificate goes first: then we are out."""
        self._remove("member.crt")
        if self.path.exists():
            try:
                shutil.rmtree(self.path)
            except OSError as error:
                raise KeyFileError(
                    f"{self.path}: cannot be removed: {error.strerror}; remove it by hand"
                ) from None

    # --- files ---

    def _make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                # What root makes in the daemon's directory is the daemon's.
                owner = self.path.parent.stat()
                os.chown(self.path, owner.st_uid, owner.st_gid)
        except OSError as error:
            raise KeyFileError(
                f"{self.path}: cannot be made: {error.strerror}; set daemon.state_dir to a"
                " directory of yours"
            ) from None

    def _write(self, name: str, data: bytes) -> None:
        write_private_file(self.path / name, data, replace=True)

    def _write_news(self, name: str, data: bytes) -> None:
        """Write a file unless it is as we have written it: a sync may take a slow disk 50 ms."""
        digest = hashlib.sha256(data).digest()
        if self._written.get(name) != digest or not (self.path / name).exists():
            self._write(name, data)
            self._written[name] = digest

    def _remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def _need(self, name: str, cap: int, remedy: str) -> bytes:
        data = self._read(name, cap, remedy)
        if data is None:
            raise KeyFileError(f"{self.path / name}: no such file; {remedy}")
        return data

    def _read(self, name: str, cap: int, remedy: str) -> bytes | None:
        path = self.path / name
        try:
            descriptor = open_private_file(path, remedy)
        except FileNotFoundError:
            return None
        try:
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(cap + 1)
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None
        if len(data) > cap:
            raise KeyFileError(f"{path}: has more than {cap} bytes; {remedy}")
        return data

    def _pieces(self, name: str, most: int, largest: int) -> list[bytes]:
        data = self._read(name, most * (largest + _LENGTH.size), _AGAIN) or b""
        found: list[bytes] = []
        place = 0
        while place < len(data):
            if place + _LENGTH.size > len(data) or len(found) == most:
                raise KeyFileError(f"{self.path / name}: is damaged; {_AGAIN}")
            (length,) = _LENGTH.unpack_from(data, place)
            place += _LENGTH.size + length
            if place > len(data) or length > largest:
                raise KeyFileError(f"{self.path / name}: is damaged; {_AGAIN}")
            found.append(data[place - length : place])
        return found

    def _write_pieces(self, name: str, pieces: Iterable[bytes]) -> None:
        self._write_news(name, b"".join(_LENGTH.pack(len(one)) + one for one in pieces))
