"""This machine in its network: what it is, who else is a member, and what it remembers of both.

Owns: which certificates and lists count here, that everything is on the disk before it counts, and
what members mean as a list of peers. Does not know: how anything of it came or leaves, the issuer's
decisions (`registrar`), sessions.

All methods belong to one thread and wait for nothing but the disk. Times come in: they are of the
local clock, and what of it counts `clock` says. Source: mesh sections 2 and 6, mesh-rules A3, B4, C,
D1, E1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final

from shadowmesh.base.errors import BadCertificate, BadList, KeyFileError
from shadowmesh.config import HostPort, PeerEntry
from shadowmesh.keys.identity import Identity
from shadowmesh.network import certificate as certificates
from shadowmesh.network import clock, joining, revocation, trust
from shadowmesh.network.certificate import Certificate
from shadowmesh.network.facts import Facts, KnownRelay
from shadowmesh.network.members import Change, Members
from shadowmesh.network.revocation import RevocationList, Revocations, Taken
from shadowmesh.network.store import MAX_SECRETS, Secret, Store
from shadowmesh.network.trust import TrustList
from shadowmesh.wire.mesh import identifiers
from shadowmesh.wire.mesh.messages import Joined, RelayInfo

_AGAIN: Final = "restore it from a backup, or `shadowmesh leave` and join again"


class Membership:
    """What this machine has to know as a member; made by `load`, `take_in` or `Registrar.found`.

    Attributes:
        identity: our key in this network, which is the daemon's while it is a member.
        fault: why our own certificate counts no more; None while it does.
        disk_problem: why what others have told since cannot be written, and would be forgotten by a
            restart; None when it was.
        on_change: called when members or lists are others than before.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        certificate: Certificate,
        trust_list: TrustList,
        revocations: Revocations,
        secrets: tuple[Secret, ...],
        facts: Facts,
    ) -> None:
        self._store = store
        self.identity = identity
        self.certificate = certificate
        self.trust_list = trust_list
        self.revocations = revocations
        self.facts = facts
        self.fault: BadCertificate | None = None
        self.disk_problem: str | None = None
        self.on_change: Callable[[], None] = _nobody
        self._secrets = secrets
        #: of a newer authority, while ours is of one before it
        self._next: Certificate | None = None
        self._members = Members()

    @classmethod
    def load(cls, store: Store, local: datetime) -> Membership | None:
        """Return what this machine remembers; None when it is in no network.

        Members whose certificates count no more are left out. Our own may have expired: then
        `fault` says so, and it can still be renewed.

        Raises:
            KeyFileError: a file is wrong, missing or not private.
        """
        if not store.joined:
            return None
        trusted = store.trust_list()
        shown = _own(store, trusted)
        try:
            facts = Facts.from_json(store.facts())
        except (ValueError, TypeError, KeyError):
            raise KeyFileError(f"{store.path / 'network.json'}: is damaged; {_AGAIN}") from None
        known = store.revocations(trusted.authorities)
        identity = store.identity()
        found = cls(store, identity, shown, trusted, known, store.secrets(), facts)
        try:
            found.certificate = found._checked(shown, local)
            found._check_end(local)
        except BadCertificate as error:
            found.fault = error
        found._remember(store.members(), local)
        newer = store.next_certificate()
        if newer is not None:
            found._take_next(newer, local)
        return found

    @classmethod
    def take_in(
        cls,
        store: Store,
        identity: Identity,
        answer: Joined,
        judged: joining.Membership,
        reached: KnownRelay | None,
        local: datetime,
        announce: tuple[HostPort, ...] = (),
    ) -> Membership:
        """Become a member: write all of an answer that was judged, our certificate last.

        Args:
            identity: the key of `Store.begin_joining`.
            reached: the relay that gave the answer; None: it came in a file.
            announce: where others may dial this machine.
        Raises:
            BadList: no issuer vouches for the network secret. Nothing is written.
            KeyFileError: the disk; the join can be repeated.
        """
        network_id = judged.trust_list.network_id
        secret = Secret(answer.secret_epoch, answer.network_secret, answer.secret_signature)
        relays = () if reached is None else (reached,)
        facts = Facts(judged.certificate.network_name, network_id, judged.subnets, relays)
        made = cls(
            store,
            identity,
            judged.certificate,
            judged.trust_list,
            judged.revocations,
            (secret,),
            facts,
        )
        made._remember([*answer.members, *(one.certificate for one in answer.relays)], local)
        made._check_secret(secret)
        made._note_relays(answer.relays)
        if announce:
            made.announce(announce)
        made.save()
        return made

    # --- what we are --------------------------------------------------------------------------

    @property
    def psks(self) -> tuple[bytes, ...]:
        """Pre-shared keys of mode 7, the newest first; at most two (mesh-rules A2, C6)."""
        network_id = self.trust_list.network_id
        return tuple(identifiers.member_psk(one.value, network_id) for one in self._secrets)

    @property
    def newest_secret(self) -> Secret:
        """The one that a joiner gets."""
        return self._secrets[0]

    @property
    def problem(self) -> str | None:
        """Why our own certificate counts no more, one sentence; None while it does."""
        return None if self.fault is None else str(self.fault)

    @property
    def members(self) -> Members:
        """All members that are known, also this one."""
        return self._members

    @property
    def relays(self) -> Iterator[Certificate]:
        """Return the other members that are relays."""
        own = self.identity.public_key
        return (one for one in self._members if "relay" in one.roles and one.public_key != own)

    def named(self, name: str) -> Certificate | None:
        """Return the member of that name."""
        return self._members.owner("name", name)

    def peers(self) -> tuple[PeerEntry, ...]:
        """Return all other members as peers: who has an address is dialled, others come.

        Once this machine was removed nobody is dialled: whoever hears of it refuses us.
        """
        out = self.fault is not None and self.fault.kind == "revoked"
        known = (*self.facts.announced, *self.facts.relays)
        addresses = {one.public_key: one.address for one in known}
        return tuple(
            PeerEntry(
                name=one.name,
                public_key=one.public_key,
                address=addresses.get(one.public_key),
                auto_connect=not out and one.public_key in addresses,
                tunnel_ips=one.addresses,
                allowed_macs="any" if "bridge" in one.roles else "own",
            )
            for one in sorted(self._members, key=lambda one: one.name)
            if one.public_key != self.identity.public_key
        )

    # --- what others show us ------------------------------------------------------------------

    def judge(self, public_key: bytes, der: bytes, local: datetime) -> Certificate:
        """Return what a certificate says of whom a session has proved to be `public_key`.

        It is remembered, so that its member can be reached later.

        Raises:
            BadCertificate: it does not count here (mesh-rules A3).
        """
        shown = certificates.parse(der)
        if shown.public_key != public_key:
            raise BadCertificate("the certificate that was shown is for another key", "other_key")
        return self.learn(shown, local)

    def learn(self, shown: Certificate, local: datetime) -> Certificate:
        """Remember a member, whoever told of it. Raises BadCertificate as `judge`."""
        found = self._checked(shown, local)
        if self._members.take(found) not in (Change.KNOWN, Change.OLDER):
            self._save_what_others_told()
            self.on_change()
        return found

    def learn_all(self, ders: Iterable[bytes], local: datetime) -> int:
        """Remember members that a relay tells of; return how many of its certificates count not."""
        refused, changed = 0, False
        for der in ders:
            try:
                found = self._checked(certificates.parse(der), local)
                changed |= self._members.take(found) not in (Change.KNOWN, Change.OLDER)
            except BadCertificate:
                refused += 1
        if changed:
            self._save_what_others_told()
            self.on_change()
        return refused

    def of_node(self, node_id: bytes) -> Certificate | None:
        """Return the member that a node id names."""
        return self._members.owner("node id", node_id)

    def announce(self, addresses: tuple[HostPort, ...]) -> None:
        """Let others dial this machine by these addresses; a relay's invitations name the first."""
        own = self.identity.public_key
        relays = self.facts.relays
        if "relay" in self.certificate.roles:
            relays = tuple(one for one in relays if one.public_key != own)
            relays = (*(KnownRelay(one, own) for one in addresses[:1]), *relays)
        self.facts = replace(self.facts, announce=tuple(map(str, addresses)), relays=relays)

    def note_addresses(self, told: Mapping[bytes, str | None]) -> None:
        """Remember where members are: a hint of a relay, by public key; None: nowhere any more.

        A relay keeps the address that it is known by, so that a wrong hint loses no way to it.
        """
        before = self.facts
        relays = {one.public_key: one for one in before.relays}
        others = {one.public_key: one for one in before.announced}
        for public_key, text in told.items():
            address = None if text is None else _host_port(text)
            member = self._members.of_key(public_key)
            if member is None or public_key == self.identity.public_key:
                continue
            if "relay" in member.roles:
                if address is not None:
                    relays.setdefault(public_key, KnownRelay(address, public_key))
            elif address is None:
                others.pop(public_key, None)
            else:
                others[public_key] = KnownRelay(address, public_key)
        self.facts = replace(
            before, relays=tuple(relays.values()), announced=tuple(others.values())
        )
        if self.facts != before:
            self._save_what_others_told()
            self.on_change()

    def of_key(self, public_key: bytes) -> Certificate | None:
        """Return the member with that key."""
        return self._members.of_key(public_key)

    def read_list(self, data: bytes) -> RevocationList:
        """Return a revocation list whose signature was checked.

        Raises:
            BadList: it is not of this network.
        """
        return revocation.read(data, self.trust_list.authorities)

    def take_list(self, offered: RevocationList, local: datetime) -> None:
        """Let a list of `read_list` count, if it is newer than what is known of its signer.

        Raises:
            BadList: there are too many.
        """
        if self.revocations.take(offered) in (Taken.NEWER, Taken.FORK):
            self.sift(local)

    def take_trust_list(self, data: bytes, local: datetime, beside: bytes | None = None) -> None:
        """Let a newer trust list count; whom no authority of it vouches for is out.

        Args:
            beside: a certificate that came with it, DER: of a member that stays by it.
        Raises:
            BadList: the recovery key did not sign it, or it is older than ours.
        """
        found = trust.follow(self.trust_list, data)
        if found is self.trust_list:
            return
        self.trust_list = found
        self.revocations.keep(found.authorities)
        self._write(lambda: self._store.save_trust_list(found.data))
        if beside is not None:
            with suppress(BadCertificate):
                self._members.take(self._checked(certificates.parse(beside), local))
        self.sift(local)

    def take_secret(self, secret: Secret) -> bool:
        """Let a newer network secret count beside the one before; return whether it was newer.

        Raises:
            BadList: no issuer vouches for it.
        """
        if secret.epoch <= self.newest_secret.epoch:
            return False
        self._check_secret(secret)
        self._secrets = (secret, *self._secrets)[:MAX_SECRETS]
        self._write(lambda: self._store.save_secrets(self._secrets))
        self.on_change()
        return True

    def renew(self, der: bytes, local: datetime) -> bool:
        """Let a newer certificate for our own key count; return whether it was newer.

        Raises:
            BadCertificate: it does not count here, or is for another key.
        """
        shown = certificates.parse(der)
        if shown.public_key != self.identity.public_key:
            raise BadCertificate("a renewed certificate is for the key of another", "other_key")
        found = self._checked(shown, local)
        newest = self.certificate if self._next is None else self._next
        if found.not_before <= newest.not_before:
            return False
        self._members.take(found)
        if self.fault is None and found.issuer_key_id != self.certificate.issuer_key_id:
            # Shown once the authority before is dropped: till then some know only that one.
            self._next = found
            self._write(lambda: self._store.save_next_certificate(found.der))
        else:
            self._be(found)
        self._save_what_others_told()
        self.on_change()
        return True

    def catch_up(self, answer: Joined, local: datetime) -> None:
        """Let count what a member is told that was away for too long (mesh-rules C5, C6).

        Raises:
            BadCertificate, BadList: something of it does not count; what came before it does.
        """
        self.take_trust_list(answer.trust_list, local)
        for data in answer.revocation_lists:
            self.take_list(self.read_list(data), local)
        self.learn_all([*answer.members, *(one.certificate for one in answer.relays)], local)
        self.renew(answer.certificate, local)
        self.take_secret(
            Secret(answer.secret_epoch, answer.network_secret, answer.secret_signature)
        )

    def _take_next(self, der: bytes, local: datetime) -> None:
        """Have the certificate that is shown later; one that counts no more is nothing."""
        with suppress(BadCertificate):
            found = self._checked(certificates.parse(der), local)
            if found.public_key == self.identity.public_key:
                self._next = found
                self.look_at_own(local)

    def _be(self, found: Certificate) -> None:
        """Show this certificate from now on."""
        self.certificate, self._next, self.fault = found, None, None
        self._write(lambda: self._store.save_certificate(found.der))

    def sift(self, local: datetime) -> tuple[Certificate, ...]:
        """Forget whom the lists put out, or whose time is over, and return them.

        Call it when a list is there that `take_list` has not taken.
        """
        out = self._members.sift(lambda one: self._check(one, local))
        gone = {one.public_key for one, _ in out}
        if gone:
            self.facts = replace(
                self.facts,
                relays=tuple(one for one in self.facts.relays if one.public_key not in gone),
                announced=tuple(one for one in self.facts.announced if one.public_key not in gone),
            )
        self._save_what_others_told()
        self.look_at_own(local)
        self.on_change()
        return tuple(one for one, _ in out)

    # --- within -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write all of it, our certificate last: with it this machine is in the network."""
        self._store.save_trust_list(self.trust_list.data)
        self._store.save_revocations(self.revocations)
        self._store.save_secrets(self._secrets)
        self._store.save_facts(self.facts.to_json())
        self._store.save_members(one.der for one in self._members)
        self._store.save_certificate(self.certificate.der)

    def _save_what_others_told(self) -> None:
        """Write lists and members."""

        def save() -> None:
            self._store.save_revocations(self.revocations)
            self._store.save_members(one.der for one in self._members)
            self._store.save_facts(self.facts.to_json())

        self._write(save)

    def _write(self, save: Callable[[], None]) -> None:
        """Write something. A full disk shuts nobody out, and lets nobody in again."""
        self.disk_problem = None
        try:
            save()
        except KeyFileError as error:
            self.disk_problem = str(error)

    def _checked(self, shown: Certificate, local: datetime) -> Certificate:
        found = certificates.verify(shown, self.trust_list.authorities, self._now(shown, local))
        self.revocations.check(found)
        return found

    def _check(self, one: Certificate, local: datetime) -> None:
        self._checked(one, local)

    def look_at_own(self, local: datetime) -> None:
        """Find out whether our own certificate counts: after a change, and as time goes by."""
        self.fault = None
        try:
            self._check(self.certificate, local)
            self._check_end(local)
        except BadCertificate as error:
            self.fault = error
            if self._next is not None:
                self._be(self._next)

    def _check_end(self, local: datetime) -> None:
        """Raises BadCertificate: by the local clock, which may be wrong, ours has expired."""
        certificates.verify(self.certificate, self.trust_list.authorities, local)

    def _now(self, shown: Certificate, local: datetime) -> datetime:
        signer = certificates.signer(shown.der, self.trust_list.authorities)
        return clock.checking_time(
            local,
            newest_list=self.revocations.newest,
            own_not_before=self.certificate.not_before,
            authority_not_after=signer.not_after,
            own_not_after=self.certificate.not_after,
        )

    def _remember(self, ders: Iterable[bytes], local: datetime) -> None:
        """Take what counts of certificates that nobody has checked; what does not is forgotten."""
        if self.certificate.issuer_key_id:  # it was checked, whatever its end
            self._members.take(self.certificate)
        for der in ders:
            try:
                self._members.take(self._checked(certificates.parse(der), local))
            except BadCertificate:
                # Expired, replaced or removed meanwhile; whoever it is shows what counts now.
                continue

    def _note_relays(self, told: Iterable[RelayInfo]) -> None:
        """Remember where relays are: a hint, of those whose certificates say that they are some."""
        found = {one.public_key: one for one in self.facts.relays}
        relays = {one.der: one for one in self._members if "relay" in one.roles}
        for one in told:
            relay = relays.get(one.certificate)
            address = _host_port(one.addresses[0]) if one.addresses else None
            if relay is not None and address is not None:
                found.setdefault(relay.public_key, KnownRelay(address, relay.public_key))
        self.facts = replace(self.facts, relays=tuple(found.values()))

    def _check_secret(self, secret: Secret) -> None:
        issuers = [one for one in self._members if "issuer" in one.roles]
        why = BadList(
            "the answer names no issuer of the network, so nobody vouches for it", "foreign"
        )
        for one in issuers:
            try:
                trust.check_secret(
                    one, self.trust_list.network_id, secret.epoch, secret.value, secret.signature
                )
            except BadList as error:
                why = error
            else:
                return
        raise why


def _own(store: Store, trusted: TrustList) -> Certificate:
    try:
        shown = certificates.parse(store.certificate())
        certificates.signer(shown.der, trusted.authorities)
    except BadCertificate as error:
        raise KeyFileError(f"{store.path / 'member.crt'}: {error}; {_AGAIN}") from None
    if shown.public_key != store.identity().public_key:
        raise KeyFileError(
            f"{store.path / 'member.crt'}: is for another key than member.key; {_AGAIN}"
        )
    return shown


def _host_port(text: str) -> HostPort | None:
    """Return host:port as two; None when there is no such port."""
    host, _, port = text.rpartition(":")
    return HostPort(host.strip("[]"), int(port)) if 1 <= int(port) <= 0xFFFF else None


def _nobody() -> None:
    """Whom a change would be told."""
