"""The machine with the ledger as others meet it: it makes the network, invites, and answers joiners.

Owns: that what the issuer decides is what this machine, as a member, goes by from then on, and what
a joiner is told. Does not know: the link that a question came by, who may ask for an invitation.

As `membership`: one thread, short waits for the disk, times of the local clock. Source: mesh sections
2 and 5, mesh-rules B2 to B5, C5.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from shadowmesh.base.errors import BadCertificate, IssuerRefused, KeyFileError
from shadowmesh.config import HostPort
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import bundle, ledger, revocation, trust
from shadowmesh.network import certificate as certificates
from shadowmesh.network.authority import AuthorityKey, make_authority
from shadowmesh.network.certificate import Address, Authority, Certificate
from shadowmesh.network.facts import Facts, KnownRelay
from shadowmesh.network.founding import found_network
from shadowmesh.network.issuer import Issuer, Request
from shadowmesh.network.ledger import Ledger, Member, Terms
from shadowmesh.network.membership import Membership
from shadowmesh.network.store import MAX_SECRETS, Secret, Store
from shadowmesh.network.subnet import Network
from shadowmesh.network.trust import TrustList
from shadowmesh.wire.handshake.agreement import HandshakeResult
from shadowmesh.wire.mesh.messages import Join, Joined, Refused, Renew
from shadowmesh.wire.mesh.token import MAX_RELAYS, Relay, Token

_FIRST_EPOCH: Final = 1
#: what a joiner is told of a refusal that is about us: what is wrong here is not its business
_OURS: Final = {
    "clock": "the issuer's clock is wrong; tell who runs the network",
    "no_authority": "this relay cannot issue; tell who runs the network",
}
_WAIT_S: Final = 30


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


class Registrar:
    """Invitations and answers of one network, on the machine that has its ledger.

    Raises:
        KeyFileError: this machine has no ledger, or a file is wrong.
        IssuerRefused: the authority's key is under a passphrase, which nobody is here to type.
    """

    def __init__(self, store: Store, membership: Membership) -> None:
        self._membership = membership
        self._store = store
        key = store.authority()
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
            clock_is_right=store.clock_is_right,
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
        relays = self._relays()
        made = self.issuer.invite(terms, local, expires_in, uses)
        return Token(
            relays=tuple(Relay(str(one.address), one.public_key) for one in relays),
            network_id=made.network_id[:16],
            authority_fingerprint=made.authority_fingerprint,
            invitation_id=made.id,
            secret=made.secret,
            expires_at=int(made.expires_at.timestamp()),
        )

    def _relays(self) -> tuple[KnownRelay, ...]:
        relays = self._membership.facts.relays[:MAX_RELAYS]
        if not relays:
            raise IssuerRefused(
                "no relay of this network has an address that others could join by; set"
                " mesh.announce to this machine's",
                "no_relay",
            )
        return relays

    def _named(self, name: str) -> Member:
        member = self._ledger.named(name)
        if member is None:
            raise IssuerRefused(f"the network has no member {name}", "unknown")
        return member

    def remove(self, name: str, local: datetime) -> tuple[bytes, tuple[Certificate, ...]]:
        """Put a member out.

        Returns:
            The new revocation list, which is to reach everybody, and the members that it puts out.
        Raises:
            IssuerRefused: there is no such member, or it cannot be.
        """
        member = self._named(name)
        if member.public_key == self._membership.identity.public_key:
            raise IssuerRefused(
                "this machine issues the certificates of the network, and stays a member", "self"
            )
        self.issuer.remove(member, local)
        made = self.issuer.make_list(local)
        return made.data, self._membership.sift(local)

    def reissue(
        self,
        name: str,
        local: datetime,
        *,
        new_name: str | None = None,
        add_tags: Collection[str] = (),
        drop_tags: Collection[str] = (),
        at_once: bool = False,
    ) -> Certificate:
        """Give a member another name or other tags, and return its new certificate.

        The member gets it from the directory. The old one counts until it has it, at most for a
        week; not any more when that is asked for.

        Raises:
            IssuerRefused: there is no such member, or it cannot be.
        """
        member = self._named(name)
        tags = None
        if add_tags or drop_tags:
            old = certificates.parse(self._ledger.current(member.public_key))
            tags = (old.tags | set(add_tags)) - set(drop_tags)
        made = self.issuer.reissue(member, local, name=new_name, tags=tags, at_once=at_once)
        self._has_now(made, local)
        if at_once:
            self.issuer.make_list(local)
            self._membership.sift(local)
        return made

    def rekey(
        self, name: str, local: datetime, expires_in: timedelta
    ) -> tuple[tuple[Certificate, ...], Token]:
        """Put the key of a member out, and invite its machine with a new one (mesh-rules D2).

        Returns:
            Who is out, and an invitation that gives name, roles, tags and addresses back.
        Raises:
            IssuerRefused: there is no such member, or it cannot be. Then nobody is out.
        """
        old = certificates.parse(self._ledger.current(self._named(name).public_key))
        terms = Terms(name, tuple(sorted(old.roles)), tuple(sorted(old.tags)), old.addresses)
        # Whatever would be wrong with the invitation is wrong before anybody is out.
        self._relays()
        self.issuer.check_terms(terms, local, expires_in, 1)
        _, out = self.remove(name, local)
        return out, self.invite(terms, local, expires_in)

    def sign(
        self,
        public_key: bytes,
        name: str,
        local: datetime,
        *,
        roles: Collection[str] | None = None,
        tags: Collection[str] | None = None,
        addresses: tuple[Address, ...] = (),
        lifetime: timedelta | None = None,
    ) -> Certificate:
        """Give a key a certificate without an invitation, as `Issuer.sign`."""
        self._learn_what_was_decided(local)
        made = self.issuer.sign(
            public_key, name, local, roles=roles, tags=tags, addresses=addresses, lifetime=lifetime
        )
        self._has_now(made, local)
        return made

    def renew_own(self, local: datetime) -> Certificate:
        """Return the certificate of today of this machine, a new one if it is time for one."""
        own = self._membership.certificate
        made = self.issuer.renew(own.der, own.public_key, local)
        self._membership.renew(made.der, local)
        return made

    def backup_files(self, recovery_seed: bytes | None) -> dict[str, bytes]:
        """Return what belongs into a backup, as `Store.backup_files`."""
        return self._store.backup_files(self._ledger, recovery_seed)

    def look(self, local: datetime) -> None:
        """Sign the list that is due, each day and for guests whose time is over; call it each minute.

        Raises:
            IssuerRefused: the clock is wrong, or the key is elsewhere and cannot sign lists.
        """
        self._learn_what_was_decided(local)
        self._renew_what_is_due(local)
        if self.issuer.list_is_due(local):
            self.issuer.make_list(local)
            self._membership.sift(local)

    def _learn_what_was_decided(self, local: datetime) -> None:
        """Bring the ledger up to date: who was put out elsewhere, and of a restored one who came since.

        Others show that: with certificates and lists of this network's authorities. A ledger that
        never was away has everybody: whom it does not know has a certificate of a stolen key, and
        must not get one of the authority that takes its place.
        """
        known = self._membership.revocations.remembered
        removed = [serial for serial, why in known.items() if why is revocation.Reason.REMOVED]
        self._ledger.note_removed(removed, local)
        if not self._store.restored:
            return
        for one in self._membership.members:
            if self._ledger.member(one.public_key) is None:
                # Another may have got its name meanwhile: then it stays one that the ledger does
                # not know, and the operator sees both.
                with suppress(IssuerRefused):
                    self._ledger.adopt(one, local)

    def _renew_what_is_due(self, local: datetime) -> None:
        """Renew certificates at two thirds of their time, those of guests apart."""
        try:
            for member in self.issuer.due(local):
                self._has_now(self.issuer.reissue(member, local), local)
        except IssuerRefused:
            # The authority is elsewhere; `cert show` on that member warns.
            return

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
        self._store.forget_restored()
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
        own = self._membership.identity.public_key
        # All others at once: else members would be written as often as there are any.
        self._membership.learn_all((one.der for one in issued if one.public_key != own), local)
        for one in issued:
            if one.public_key == own:
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
        return bundle.answer(self._membership, certificate)

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
