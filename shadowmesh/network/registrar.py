"""The machine with the ledger as others meet it: it makes the network, invites, and answers joiners.

Owns: that what the issuer decides is what this machine, as a member, goes by from then on, and what
a joiner is told. Does not know: the link that a question came by, who may ask for an invitation.

As `membership`: one thread, short waits for the disk, times of the local clock. Source: mesh sections
2 and 5, mesh-rules B2 to B5, C5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from shadowmesh.base.errors import BadCertificate, IssuerRefused, KeyFileError
from shadowmesh.config import HostPort
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import ledger, revocation, trust
from shadowmesh.network.authority import AuthorityKey, make_authority
from shadowmesh.network.certificate import Authority, Certificate
from shadowmesh.network.issuer import Issuer, Request, found_network
from shadowmesh.network.ledger import Ledger, Terms
from shadowmesh.network.membership import Facts, KnownRelay, Membership
from shadowmesh.network.store import MAX_SECRETS, Secret, Store
from shadowmesh.network.subnet import Network
from shadowmesh.network.trust import TrustList
from shadowmesh.wire.handshake.agreement import HandshakeResult
from shadowmesh.wire.mesh.messages import Join, Joined, Refused, RelayInfo, Renew
from shadowmesh.wire.mesh.token import MAX_RELAYS, Relay, Token

_FIRST_EPOCH: Final = 1
#: of certificates in one answer; whoever is left out comes with the directory
_MEMBERS_BYTES: Final = 64 << 10
#: what a joiner is told of a refusal that is about us: what is wrong here is not its business
_OURS: Final = {
    "clock": "the issuer's clock is wrong; tell who runs the network",
    "no_authority": "this relay cannot issue; tell who runs the network",
}
_WAIT_S: Final = 30
#: an issuer signs a list so often although nothing has changed (mesh-rules C2)
_LIST_AGE: Final = timedelta(days=1)


def found(
    store: Store,
    name: str,
    member_name: str,
    subnets: tuple[Network, ...],
    address: HostPort | None,
    local: datetime,
    algorithm: str = "ed25519",
) -> tuple[Membership, str]:
    """Make a network, with this machine as its relay and issuer.

    Args:
        address: where others reach this machine; None: nowhere yet, so nobody can be invited.
    Returns:
        What this machine is now, and the text of the recovery key, which is kept nowhere.
    Raises:
        IssuerRefused, BadCertificate: a name or a subnet that cannot be, or it is in a network.
        KeyFileError: the disk. What is half made counts for nothing, and is made anew.
    """
    if store.joined:
        raise IssuerRefused(
            "this machine is in a network; `shadowmesh leave` comes first", "joined"
        )
    store.leave()
    seed = sodium.random_bytes(32)
    store.save_identity(seed)
    identity = Identity.from_seed(seed)
    book = Ledger.create(store.path / ledger.FILE)
    try:
        made = found_network(name, identity, member_name, subnets, book, local, algorithm)
    finally:
        book.close()
    store.save_authority(made.authority)
    known = revocation.Revocations()
    known.take(made.first_list)
    key = made.certificate.public_key
    relays = () if address is None else (KnownRelay(address, key),)
    announce = () if address is None else (str(address),)
    facts = Facts(
        name,
        made.trust_list.network_id,
        subnets,
        relays,
        announce=announce,
        port=None if address is None else address.port,
    )
    secret = Secret(_FIRST_EPOCH, made.secret, made.secret_signature)
    membership = Membership(
        store, identity, made.certificate, made.trust_list, known, (secret,), facts
    )
    membership.learn(made.certificate, local)
    membership.save()
    return membership, trust.recovery_text(made.recovery_seed)


def restore(store: Store, files: Mapping[str, bytes], local: datetime) -> tuple[Membership, int]:
    """Be the machine that a backup was made of; return also how many invitations are void now.

    Our certificate comes last: a restore that was killed is repeated. Lists, and what was decided
    after the backup, come from the other members (`Registrar.look`). Source: mesh-rules C2.

    Raises:
        IssuerRefused: this machine is in a network, or the backup is of no member.
        KeyFileError: the disk, or a file in the backup is wrong. This machine is in no network then.
    """
    own = files.get("member.crt")
    if own is None or "member.key" not in files:
        raise IssuerRefused("this backup is of no member of a network", "backup")
    store.restore({name: data for name, data in files.items() if name != "member.crt"})
    try:
        book = Ledger(store.path / ledger.FILE)
        try:
            cancelled = book.cancel(None, local)
            store.save_members(book.current(one.public_key) for one in book.members())
        finally:
            book.close()
        store.save_certificate(own)
        membership = Membership.load(store, local)
        assert membership is not None
    except KeyFileError:
        store.leave()
        raise
    return membership, cancelled


class Registrar:
    """Invitations and answers of one network, on the machine that has its ledger.

    Args:
        passphrase: of the authority's key, if it has one.
        clock_is_right: the operator said so.
    Raises:
        KeyFileError: this machine has no ledger, or a file is wrong.
        IssuerRefused: the passphrase.
    """

    def __init__(
        self,
        store: Store,
        membership: Membership,
        *,
        passphrase: str | None = None,
        clock_is_right: bool = False,
    ) -> None:
        self._membership = membership
        self._store = store
        key = store.authority(passphrase)
        signer = store.revoker(membership.trust_list.authorities[0]) if key is None else key
        self._ledger = Ledger(store.path / ledger.FILE)
        facts = membership.facts
        self.issuer = Issuer(
            self._ledger,
            facts.name,
            facts.network_id,
            facts.subnets,
            signer,
            membership.revocations,
            clock_is_right=clock_is_right,
        )

    def close(self) -> None:
        """Close the ledger; everything is in it already."""
        self._ledger.close()

    # --- for the operator ---------------------------------------------------------------------

    def gate_open(self, local: datetime) -> bool:
        """Tell whether anybody may have to ask: else nobody who wants to join is heard.

        That is whoever holds an invitation, and members that missed the certificate that replaced
        theirs, or two secrets.
        """
        self._ledger.sweep(local)
        return (
            self._ledger.gate_open()
            or self._ledger.has_superseded()
            or self._membership.newest_secret.epoch > MAX_SECRETS
        )

    def invitations(self) -> list[ledger.Invitation]:
        """Return all invitations, the newest first; their secrets are nowhere."""
        return self._ledger.invitations()

    def cancel(self, id_: bytes | None, local: datetime) -> int:
        """Cancel one invitation, or all with None. Return how many were open."""
        return self._ledger.cancel(id_, local)

    def invite(self, terms: Terms, local: datetime, expires_in: timedelta, uses: int = 1) -> Token:
        """Make an invitation; its text is the secret, and this is the only time that it is known.

        Raises:
            IssuerRefused: as `Issuer.invite`, or no relay has an address.
        """
        relays = self._membership.facts.relays[:MAX_RELAYS]
        if not relays:
            raise IssuerRefused(
                "no relay of this network has an address that others could join by; set"
                " mesh.announce to this machine's",
                "no_relay",
            )
        made = self.issuer.invite(terms, local, expires_in, uses)
        return Token(
            relays=tuple(Relay(str(one.address), one.public_key) for one in relays),
            network_id=made.network_id[:16],
            authority_fingerprint=made.authority_fingerprint,
            invitation_id=made.id,
            secret=made.secret,
            expires_at=int(made.expires_at.timestamp()),
        )

    def remove(self, name: str, local: datetime) -> tuple[bytes, tuple[Certificate, ...]]:
        """Put a member out.

        Returns:
            The new revocation list, which is to reach everybody, and the members that it puts out.
        Raises:
            IssuerRefused: there is no such member, or it cannot be.
        """
        member = self._ledger.named(name)
        if member is None:
            raise IssuerRefused(f"the network has no member {name}", "unknown")
        if member.public_key == self._membership.identity.public_key:
            raise IssuerRefused(
                "this machine issues the certificates of the network, and stays a member", "self"
            )
        self.issuer.remove(member, local)
        made = self.issuer.make_list(local)
        return made.data, self._membership.sift(local)

    def backup_files(self, recovery_seed: bytes | None) -> dict[str, bytes]:
        """Return what belongs into a backup, as `Store.backup_files`."""
        return self._store.backup_files(self._ledger, recovery_seed)

    def look(self, local: datetime) -> None:
        """Sign the list that is due, each day and for guests whose time is over; call it each minute.

        Raises:
            IssuerRefused: the clock is wrong, or the key is elsewhere and cannot sign lists.
        """
        self._learn_what_was_decided(local)
        newest = self._membership.revocations.newest
        due = self._ledger.settle(local)
        if due or newest is None or local - newest >= _LIST_AGE:
            self.issuer.make_list(local)
            self._membership.sift(local)

    def _learn_what_was_decided(self, local: datetime) -> None:
        """Bring the ledger up to date, when it came from a backup: who came and who went since.

        Others show that: with certificates and lists of this network's authorities.
        """
        known = self._membership.revocations.remembered
        removed = [serial for serial, why in known.items() if why is revocation.Reason.REMOVED]
        self._ledger.note_removed(removed, local)
        for one in self._membership.members:
            if self._ledger.member(one.public_key) is None:
                # Another may have got its name meanwhile: then it stays one that the ledger does
                # not know, and the operator sees both.
                with suppress(IssuerRefused):
                    self._ledger.adopt(one, local)

    def rotate_secret(self, local: datetime) -> int:
        """Give the network another secret, beside which the one before counts; return its epoch.

        Raises:
            BadList: this machine is no issuer of the network.
        """
        epoch = self._membership.newest_secret.epoch + 1
        value, signature = self.issuer.rotate_secret(self._membership.identity, epoch)
        self._membership.take_secret(Secret(epoch, value, signature))
        return epoch

    def replace_authority(self, recovery_seed: bytes, local: datetime) -> int:
        """Make a new authority, and give every member a certificate of it.

        The old ones are trusted until `drop_authorities`. Killed half-way it is repeated.

        Returns:
            How many certificates were issued.
        Raises:
            IssuerRefused: that is not the recovery key, or the list of authorities is full.
        """
        authority = make_authority(self._membership.facts.name, local.replace(microsecond=0))
        trusted = self._membership.trust_list
        if len(trusted.authorities) >= trust.MAX_AUTHORITIES:
            raise IssuerRefused(
                "the trust list is full; `shadowmesh network authority drop` the old ones first",
                "full",
            )
        made = self._trust((authority.authority, *trusted.authorities), recovery_seed, authority)
        self._store.save_authority(authority)
        self._membership.take_trust_list(made.data, local)
        number = self._ledger.next_number(authority.authority.key_id, -1, local)
        first = revocation.make(authority, number, local, {})
        self._membership.take_list(self._membership.read_list(first), local)
        issued = self.issuer.compact(authority, local)
        for one in issued:
            self._has_now(one, local)
        return len(issued)

    def drop_authorities(self, recovery_seed: bytes, local: datetime) -> tuple[str, ...]:
        """Trust the authority of this machine alone; return who is out, by name.

        Raises:
            IssuerRefused: that is not the recovery key, or the key is not here.
        """
        key = self.issuer.authority(local)
        made = self._trust((key.authority,), recovery_seed, key)
        before = {one.name for one in self._membership.members}
        self._membership.take_trust_list(made.data, local)
        return tuple(sorted(before - {one.name for one in self._membership.members}))

    def _trust(
        self, authorities: tuple[Authority, ...], recovery_seed: bytes, voucher: AuthorityKey
    ) -> TrustList:
        trusted = self._membership.trust_list
        recovery = Identity.from_seed(recovery_seed)
        if recovery.public_key != trusted.recovery_key:
            raise IssuerRefused("this is not the recovery key of this network", "recovery")
        return trust.make(recovery, trusted.network_id, trusted.epoch + 1, authorities, voucher)

    def _has_now(self, certificate: Certificate, local: datetime) -> None:
        """Let a certificate that was issued count here; the member gets it from the directory."""
        if certificate.public_key == self._membership.identity.public_key:
            self._membership.renew(certificate.der, local)
        else:
            self._membership.learn(certificate, local)

    # --- for who asks -------------------------------------------------------------------------

    def answer(
        self, question: Join | Renew, result: HandshakeResult, source: str, local: datetime
    ) -> Joined | Refused:
        """Return what somebody is told that has proved the key of a session and asks to be let in.

        Args:
            source: where it came from, for limits and for the operator.
        """
        try:
            if isinstance(question, Join):
                certificate = self._redeem(question, result, source, local)
            else:
                certificate = self.issuer.renew(question.certificate, result.peer_public_key, local)
            self._membership.learn(certificate, local)
        except IssuerRefused as error:
            detail = _OURS.get(error.reason, str(error))
            retry_after = _WAIT_S if error.reason in ("wait", *_OURS) else None
            return Refused(reason=error.reason, retry_after=retry_after, detail=detail[:200])
        except BadCertificate as error:
            return Refused(reason=error.kind, detail=str(error)[:200])
        except KeyFileError:
            # Which of our files is wrong is told to the operator, by whoever asks for the health.
            return Refused(reason="disk", retry_after=_WAIT_S, detail="the issuer cannot write")
        return self._joined(certificate)

    def _redeem(
        self, question: Join, result: HandshakeResult, source: str, local: datetime
    ) -> Certificate:
        return self.issuer.redeem(
            Request(
                invitation_id=question.invitation_id,
                id_i=result.peer_public_key,
                id_r=self._membership.identity.public_key,
                h=result.h,
                name=question.name,
                proof=question.proof,
                source=source,
            ),
            local,
        )

    def _joined(self, certificate: Certificate) -> Joined:
        membership = self._membership
        secret = membership.newest_secret
        return Joined(
            certificate=certificate.der,
            authorities=tuple(one.der for one in membership.trust_list.authorities),
            trust_list=membership.trust_list.data,
            revocation_lists=tuple(one.data for one in membership.revocations.lists),
            network_secret=secret.value,
            secret_epoch=secret.epoch,
            secret_signature=secret.signature,
            relays=tuple(self._relays()),
            members=tuple(self._some_members()),
            subnets=tuple(map(str, membership.facts.subnets)),
        )

    def _relays(self) -> Iterator[RelayInfo]:
        addresses = {one.public_key: str(one.address) for one in self._membership.facts.relays}
        for one in self._membership.members:
            if one.public_key in addresses:
                yield RelayInfo(certificate=one.der, addresses=(addresses[one.public_key],))

    def _some_members(self) -> Iterator[bytes]:
        """Issuers first: without one the secret is nobody's."""
        left = _MEMBERS_BYTES
        for one in sorted(self._membership.members, key=lambda one: "issuer" not in one.roles):
            left -= len(one.der)
            if left < 0:
                return
            yield one.der
