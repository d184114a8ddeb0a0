"""The issuer's ledger: everything that it ever decided, in SQLite.

Owns: invitations, members with their keys, certificates, the last number and date; that what is
decided twice is decided alike, and that a decision is on the disk whole or not at all. Does not
know: the authority's key, what a certificate is made of (`issuer` gives both), the clock.

Each change is one transaction (`BEGIN IMMEDIATE`), synced to the disk before it returns. Rows of
members are never deleted: a removed one is the tombstone of its key, and its node id and MAC go to
nobody else. Dates are whole seconds since 1970. Source: mesh section 5, mesh-rules B3, D1.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from shadowmesh.base.errors import IssuerRefused, KeyFileError
from shadowmesh.keys.private_file import open_private_file, write_private_file
from shadowmesh.network.certificate import Address, Certificate
from shadowmesh.network.revocation import Reason

FILE: Final = "issuer.db"
#: an invitation stays open for repeats so long after its last use, and to say "expired"
REPEATS: Final = timedelta(hours=24)
_VERSION: Final = 1
_BUSY_MS: Final = 2000
_REMEDY: Final = "restore it with `shadowmesh network restore FILE`"
_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE invitations (
    id BLOB PRIMARY KEY, key BLOB, terms TEXT NOT NULL, uses INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0, made_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    last_use INTEGER, cancelled_at INTEGER
) STRICT;
CREATE TABLE uses (
    invitation BLOB NOT NULL REFERENCES invitations, public_key BLOB NOT NULL,
    at INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (invitation, public_key)
) STRICT;
CREATE TABLE members (
    public_key BLOB PRIMARY KEY, node_id BLOB NOT NULL UNIQUE, mac BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL, guest INTEGER NOT NULL, added_at INTEGER NOT NULL, removed_at INTEGER
) STRICT;
CREATE UNIQUE INDEX names ON members (name) WHERE removed_at IS NULL;
CREATE TABLE addresses (
    address TEXT PRIMARY KEY, public_key BLOB NOT NULL REFERENCES members
) STRICT;
CREATE TABLE certificates (
    issuer BLOB NOT NULL, serial TEXT NOT NULL, public_key BLOB NOT NULL REFERENCES members,
    not_before INTEGER NOT NULL, not_after INTEGER NOT NULL, der BLOB NOT NULL,
    supersede_at INTEGER, reason TEXT, PRIMARY KEY (issuer, serial)
) STRICT;
CREATE INDEX certificates_of ON certificates (public_key, not_before);
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """What whoever redeems an invitation gets. `name` None: the joiner chooses."""

    name: str | None = None
    roles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()
    #: seconds that the certificate lives; None: as long as the authority
    lifetime_s: int | None = None


@dataclass(frozen=True, slots=True)
class Invitation:
    """One invitation as the ledger has it. Its secret is nowhere, K only inside of the ledger."""

    id: bytes
    terms: Terms
    uses: int
    used: int
    made_at: datetime
    expires_at: datetime
    last_use: datetime | None
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A key that ever was in the network. `removed_at` makes it a tombstone."""

    public_key: bytes
    node_id: bytes
    mac: bytes
    name: str
    guest: bool
    added_at: datetime
    removed_at: datetime | None


#: what makes the certificate inside of a transaction: the terms, and the earliest notBefore
Maker = Callable[[Terms, datetime], Certificate]


class Ledger:
    """One open ledger; for one thread."""

    def __init__(self, path: Path) -> None:
        """Open a ledger.

        Raises:
            KeyFileError: it is missing, not private, broken, or of a newer version.
        """
        self._path = path
        try:
            os.close(open_private_file(path, _REMEDY))
        except FileNotFoundError:
            raise KeyFileError(f"{path}: no such file; {_REMEDY}") from None
        self._db = sqlite3.connect(path, timeout=_BUSY_MS / 1000, isolation_level=None)
        try:
            with self._named():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                (state,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            self._check(version, state)
        except BaseException:
            self._db.close()
            raise

    def _check(self, version: int, state: str) -> None:
        if version != _VERSION:
            newer = "of a newer version of ShadowMesh" if version > _VERSION else "no ledger"
            raise KeyFileError(f"{self._path}: is {newer}; {_REMEDY}")
        if state != "ok":
            raise KeyFileError(f"{self._path}: is damaged; {_REMEDY}")

    @classmethod
    def create(cls, path: Path) -> Ledger:
        """Make a new ledger, 0600, whole or not at all.

        Raises:
            FileExistsError: there is one.
            KeyFileError: it cannot be written.
        """
        memory = sqlite3.connect(":memory:", isolation_level=None)
        memory.executescript(_SCHEMA)
        memory.execute(f"PRAGMA user_version = {_VERSION}")
        write_private_file(path, memory.serialize())
        memory.close()
        return cls(path)

    def close(self) -> None:
        """Close the file; everything is in it already."""
        self._db.close()

    def image(self) -> bytes:
        """Return the whole ledger as the bytes of one file, for a backup."""
        with self._named():
            memory = sqlite3.connect(":memory:")
            self._db.backup(memory)
            memory.execute("PRAGMA journal_mode = DELETE")
            image = memory.serialize()
            memory.close()
            return image

    @contextmanager
    def change(self, now: datetime | None = None) -> Iterator[None]:
        """Do several changes as one: all are on the disk behind it, or none.

        Args: now: noted as the last date of the ledger.
        """
        with self._named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if now is not None:
                    self._note_date(now)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise KeyFileError(
                f"{self._path}: cannot be used: {error}; see to room and rights on the disk,"
                " then repeat it"
            ) from None
        except sqlite3.DatabaseError as error:
            raise KeyFileError(f"{self._path}: is damaged: {error}; {_REMEDY}") from None

    # --- numbers and dates ---

    @property
    def last_date(self) -> datetime | None:
        """When the ledger was last written, by the issuer's clock."""
        value = self._meta("last_date")
        return None if value is None else _date(value)

    def _meta(self, name: str) -> int | None:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def _note(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _note_date(self, now: datetime) -> None:
        self._note("last_date", max(_seconds(now), self._meta("last_date") or 0))

    def next_number(self, signer: bytes, seen: int, now: datetime) -> int:
        """Return the number of the next list of a signer, and note it as used.

        Args: seen: the largest number seen from anybody, -1 for none.
        Source: mesh-rules C2.
        """
        with self.change(now):
            key = f"list {signer.hex()}"
            last = self._meta(key)
            number = max(-1 if last is None else last, seen) + 1
            self._note(key, number)
            return number

    # --- invitations ---

    def add_invitation(
        self, id_: bytes, key: bytes, terms: Terms, uses: int, now: datetime, expires_at: datetime
    ) -> None:
        """Note an invitation: K of its secret, never the secret."""
        with self.change(now):
            if terms.name is not None:
                self._check_name(terms.name)
            self._db.execute(
                "INSERT INTO invitations (id, key, terms, uses, made_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (id_, key, _pack(terms), uses, _seconds(now), _seconds(expires_at)),
            )

    def invitation_key(self, id_: bytes) -> bytes | None:
        """Return K of an invitation that has not ended; None for any other."""
        row = self._db.execute("SELECT key FROM invitations WHERE id = ?", (id_,)).fetchone()
        return None if row is None else row[0]

    def gate_open(self) -> bool:
        """Tell whether any invitation may still be shown. Call `sweep` now and then."""
        found = self._db.execute("SELECT 1 FROM invitations WHERE key IS NOT NULL LIMIT 1")
        return found.fetchone() is not None

    def has_superseded(self) -> bool:
        """Tell whether any member may have missed that its certificate was replaced."""
        found = self._db.execute(
            "SELECT 1 FROM certificates JOIN members USING (public_key)"
            " WHERE reason = ? AND removed_at IS NULL LIMIT 1",
            (Reason.SUPERSEDED.value,),
        )
        return found.fetchone() is not None

    def sweep(self, now: datetime) -> None:
        """Forget K of the invitations that have ended."""
        with self.change():
            self._db.execute(
                "UPDATE invitations SET key = NULL WHERE key IS NOT NULL"
                " AND max(expires_at, coalesce(last_use, 0)) < ?",
                (_seconds(now - REPEATS),),
            )

    def invitations(self) -> list[Invitation]:
        """Return all invitations, the newest first."""
        rows = self._db.execute(
            "SELECT id, terms, uses, used, made_at, expires_at, last_use, cancelled_at"
            " FROM invitations ORDER BY made_at DESC, id"
        )
        return [
            Invitation(
                id_, _unpack(terms), uses, used, _date(made), _date(end),
                None if last is None else _date(last), cancelled is not None,
            )
            for id_, terms, uses, used, made, end, last, cancelled in rows
        ]  # fmt: skip

    def cancel(self, id_: bytes | None, now: datetime) -> int:
        """Cancel one invitation, or all with None. Return how many were open."""
        with self.change(now):
            done = self._db.execute(
                "UPDATE invitations SET cancelled_at = ? WHERE cancelled_at IS NULL"
                " AND (id = ? OR ? IS NULL)",
                (_seconds(now), id_, id_),
            )
            return done.rowcount

    def redeem(
        self, id_: bytes, public_key: bytes, source: str, now: datetime, make: Maker
    ) -> Certificate | bytes:
        """Give a key that has proved an invitation its certificate, in one transaction.

        Returns:
            The new certificate, or the DER of the current one for a key that is a member already.
        Raises:
            IssuerRefused: with the reason "removed", "cancelled", "expired", "used", or what `make`
                or `add_member` refuse. Nothing is burnt then.
        Source: mesh-rules B3, D1.
        """
        with self.change(now):
            row = self._db.execute(
                "SELECT terms, uses, used, expires_at, cancelled_at FROM invitations WHERE id = ?",
                (id_,),
            ).fetchone()
            if row is None:
                raise IssuerRefused("there is no such invitation", "unknown")
            terms, uses, used, expires_at, cancelled_at = row
            member = self.member(public_key)
            if member is not None and member.removed_at is not None:
                raise IssuerRefused(
                    f"this key was removed from the network as {member.name}; join with a new one",
                    "removed",
                )
            if cancelled_at is not None:
                raise IssuerRefused("this invitation was cancelled; ask for a new one", "cancelled")
            if member is not None:
                self._db.execute(
                    "UPDATE invitations SET last_use = ? WHERE id = ?", (_seconds(now), id_)
                )
                return self.current(public_key)
            if _seconds(now) > expires_at:
                raise IssuerRefused("this invitation has expired; ask for a new one", "expired")
            if used >= uses:
                raise IssuerRefused(self._who_used(id_), "used")
            made = make(_unpack(terms), now)
            self.add_member(made, now, guest=_unpack(terms).lifetime_s is not None)
            self._db.execute(
                "INSERT INTO uses VALUES (?, ?, ?, ?)", (id_, public_key, _seconds(now), source)
            )
            self._db.execute(
                "UPDATE invitations SET used = used + 1, last_use = ? WHERE id = ?",
                (_seconds(now), id_),
            )
            return made

    def _who_used(self, id_: bytes) -> str:
        at, key, source = self._db.execute(
            "SELECT at, public_key, source FROM uses WHERE invitation = ? ORDER BY at DESC", (id_,)
        ).fetchone()
        return (
            f"this invitation was used on {_date(at):%Y-%m-%d %H:%M:%S} UTC by key"
            f" {key[:8].hex()} from {source}; ask for a new one, and if that was not you, tell who"
            " sent it"
        )

    # --- members and certificates ---

    def member(self, public_key: bytes) -> Member | None:
        """Return what is known of a key, removed or not."""
        rows = self._members("WHERE public_key = ?", (public_key,))
        return rows[0] if rows else None

    def named(self, name: str) -> Member | None:
        """Return the member that has a name now."""
        rows = self._members("WHERE name = ? AND removed_at IS NULL", (name,))
        return rows[0] if rows else None

    def members(self) -> list[Member]:
        """Return all members of today, by name."""
        return self._members("WHERE removed_at IS NULL ORDER BY name", ())

    def _members(self, where: str, values: tuple[object, ...]) -> list[Member]:
        rows = self._db.execute(
            "SELECT public_key, node_id, mac, name, guest, added_at, removed_at FROM members "  # noqa: S608
            + where,
            values,
        )
        return [
            Member(
                key, node, mac, name, bool(guest), _date(added),
                None if removed is None else _date(removed),
            )
            for key, node, mac, name, guest, added, removed in rows
        ]  # fmt: skip

    def _check_name(self, name: str) -> None:
        if self.named(name) is not None:
            raise IssuerRefused(
                f"the name {name} is taken; choose another, or remove that member first",
                "name_taken",
            )

    def add_member(self, made: Certificate, now: datetime, *, guest: bool = False) -> None:
        """Note a new member with its first certificate; inside of `change`.

        Raises:
            IssuerRefused: "name_taken", "address_taken", or "clash": another key ever had this node
                id or MAC (they can be ground). Source: mesh-rules D1.
        """
        self._check_name(made.name)
        clash = self._members("WHERE node_id = ? OR mac = ?", (made.node_id, made.mac))
        if clash:
            raise IssuerRefused(
                f"this key has the node id or the MAC address of {clash[0].name}; make a new key",
                "clash",
            )
        self._db.execute(
            "INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, NULL)",
            (made.public_key, made.node_id, made.mac, made.name, guest, _seconds(now)),
        )
        self.add_certificate(made)

    def add_certificate(self, made: Certificate) -> None:
        """Note a certificate of a member, its name and addresses; inside of `change`."""
        holder = self.named(made.name)
        if holder is not None and holder.public_key != made.public_key:
            self._check_name(made.name)
        self._db.execute(
            "UPDATE members SET name = ? WHERE public_key = ?", (made.name, made.public_key)
        )
        self._db.execute("DELETE FROM addresses WHERE public_key = ?", (made.public_key,))
        for address in made.addresses:
            taken = self._db.execute(
                "SELECT name FROM addresses JOIN members USING (public_key)"
                " WHERE address = ? AND removed_at IS NULL",
                (str(address),),
            ).fetchone()
            if taken is not None:
                raise IssuerRefused(f"{taken[0]} has the address {address}", "address_taken")
            self._db.execute(
                "INSERT OR REPLACE INTO addresses VALUES (?, ?)", (str(address), made.public_key)
            )
        self._db.execute(
            "INSERT INTO certificates (issuer, serial, public_key, not_before, not_after, der)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                made.issuer_key_id, f"{made.serial:x}", made.public_key,
                _seconds(made.not_before), _seconds(made.not_after), made.der,
            ),
        )  # fmt: skip

    def admit(
        self, public_key: bytes, now: datetime, make: Callable[[], Certificate]
    ) -> Certificate:
        """Give a key that is no member its first certificate, in one transaction.

        Raises:
            IssuerRefused: "removed", or as `add_member`.
        """
        with self.change(now):
            member = self.member(public_key)
            if member is not None:
                raise IssuerRefused(
                    f"this key was removed from the network as {member.name}; make a new one",
                    "removed",
                )
            made = make()
            self.add_member(made, now)
            return made

    def due(self, now: datetime, end: datetime) -> list[Member]:
        """Return the members, no guests, two thirds of whose newest certificate's time are over.

        Args: end: none can get a later one than this.
        """
        rows = self._db.execute(
            "SELECT public_key, max(not_before) AS begin, not_after FROM certificates"
            " JOIN members USING (public_key) WHERE removed_at IS NULL AND NOT guest"
            " GROUP BY public_key"
            " HAVING not_after < ?2 AND 3 * (?1 - begin) >= 2 * (not_after - begin)",
            (_seconds(now), _seconds(end)),
        )
        keys = {public_key for public_key, _, _ in rows}
        return [one for one in self.members() if one.public_key in keys] if keys else []

    def adopt(self, shown: Certificate, now: datetime) -> None:
        """Note a member whose certificate was issued elsewhere. Raises as `add_member`."""
        with self.change(now):
            self.add_member(shown, now)

    def note_removed(self, serials: Iterable[tuple[bytes, int]], now: datetime) -> None:
        """Put out whose certificates somebody has revoked as removed."""
        members = {
            (issuer, int(serial, 16)): public_key
            for issuer, serial, public_key in self._db.execute(
                "SELECT issuer, serial, public_key FROM certificates JOIN members USING (public_key)"
                " WHERE removed_at IS NULL"
            )
        }
        for public_key in {members[one] for one in serials if one in members}:
            self.remove(public_key, now)

    def given(self) -> list[Address]:
        """Return all addresses that members have."""
        rows = self._db.execute(
            "SELECT address FROM addresses JOIN members USING (public_key) WHERE removed_at IS NULL"
        )
        return [ip_address(text) for (text,) in rows]

    def ever_given(self) -> list[Address]:
        """Return these, and those of members that were removed, until somebody else has them."""
        return [ip_address(text) for (text,) in self._db.execute("SELECT address FROM addresses")]

    def current(self, public_key: bytes) -> bytes:
        """Return the DER of the newest certificate of a member: the latest notBefore counts."""
        (der,) = self._db.execute(
            "SELECT der FROM certificates WHERE public_key = ? ORDER BY not_before DESC LIMIT 1",
            (public_key,),
        ).fetchone()
        assert isinstance(der, bytes)
        return der

    def next_not_before(self, public_key: bytes, now: datetime) -> datetime:
        """Return when the next certificate of a key begins: later than all that it has."""
        (latest,) = self._db.execute(
            "SELECT max(not_before) FROM certificates WHERE public_key = ?", (public_key,)
        ).fetchone()
        return _date(_seconds(now) if latest is None else max(_seconds(now), latest + 1))

    def supersede(self, public_key: bytes, at: datetime) -> None:
        """Let all certificates of a key but the newest be revoked at a date; inside of `change`."""
        self._db.execute(
            "UPDATE certificates SET supersede_at = min(coalesce(supersede_at, ?1), ?1)"
            " WHERE public_key = ?2 AND reason IS NULL AND not_before <"
            " (SELECT max(not_before) FROM certificates WHERE public_key = ?2)",
            (_seconds(at), public_key),
        )

    def settle(self, now: datetime) -> bool:
        """Revoke what is due: superseded certificates, and guests whose time is over.

        Returns:
            Whether something was revoked, so that a new list has to go out.
        """
        moment = _seconds(now)
        with self.change():
            done = self._db.execute(
                "UPDATE certificates SET reason = ? WHERE reason IS NULL AND supersede_at <= ?",
                (Reason.SUPERSEDED.value, moment),
            ).rowcount
            guests = self._db.execute(
                "SELECT public_key FROM members JOIN certificates USING (public_key)"
                " WHERE guest AND removed_at IS NULL GROUP BY public_key HAVING max(not_after) < ?",
                (moment,),
            ).fetchall()
            for (public_key,) in guests:
                self._remove(public_key, moment)
            if done or guests:
                self._note_date(now)
            return bool(done or guests)

    def remove(self, public_key: bytes, now: datetime) -> None:
        """Put a key out for good: every certificate of it is revoked, its name is free again.

        Its addresses are, too, and the last that go to somebody else.
        """
        with self.change(now):
            self._remove(public_key, _seconds(now))

    def _remove(self, public_key: bytes, moment: int) -> None:
        self._db.execute(
            "UPDATE members SET removed_at = ? WHERE public_key = ?", (moment, public_key)
        )
        self._db.execute(
            "UPDATE certificates SET reason = ? WHERE public_key = ?",
            (Reason.REMOVED.value, public_key),
        )

    def revoked(self, issuer_key_id: bytes, ended_before: datetime) -> dict[int, Reason]:
        """Return what a list has to name: all revoked that did not end before a date."""
        rows = self._db.execute(
            "SELECT serial, reason FROM certificates"
            " WHERE issuer = ? AND reason IS NOT NULL AND not_after >= ?",
            (issuer_key_id, _seconds(ended_before)),
        )
        return {int(serial, 16): Reason(reason) for serial, reason in rows}

    def ended(self, issuer_key_id: bytes, before: datetime) -> set[int]:
        """Return the serials of certificates that ended before a date: no list needs them."""
        rows = self._db.execute(
            "SELECT serial FROM certificates WHERE issuer = ? AND not_after < ?",
            (issuer_key_id, _seconds(before)),
        )
        return {int(serial, 16) for (serial,) in rows}


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _date(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _pack(terms: Terms) -> str:
    return json.dumps(
        [terms.name, terms.roles, terms.tags, _texts(terms.addresses), terms.lifetime_s]
    )


def _texts(addresses: Iterable[Address]) -> list[str]:
    return [str(one) for one in addresses]


def _unpack(text: str) -> Terms:
    name, roles, tags, addresses, lifetime_s = json.loads(text)
    return Terms(
        name, tuple(roles), tuple(tags), tuple(ip_address(one) for one in addresses), lifetime_s
    )
