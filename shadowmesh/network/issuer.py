"""The issuer: what the machine with the ledger decides.

Owns: invitations, who gets which certificate, what is revoked, when a new list is
due. Does not know: the wire, the token's text, files; `now` and randomness of keys aside, what it
returns follows from ledger and arguments. Source: mesh sections 2, 3 and 5, mesh-rules B, C, D1.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from shadowmesh.base.errors import BadCertificate, IssuerRefused
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import certificate as certificates
from shadowmesh.network import revocation, subnet, trust
from shadowmesh.network.authority import AuthorityKey, RevokerKey
from shadowmesh.network.certificate import Address, Authority, Certificate, Profile
from shadowmesh.network.clock import check_issuer_clock
from shadowmesh.network.ledger import Ledger, Member, Terms
from shadowmesh.network.revocation import Reason, RevocationList, Revocations
from shadowmesh.network.subnet import Network
from shadowmesh.wire.mesh import identifiers

#: a member has so long to fetch a certificate that takes the place of its old one
SUPERSEDE_AFTER: Final = timedelta(days=7)
#: an invitation for a relay is used once, within an hour
RELAY_INVITATION: Final = timedelta(hours=1)
#: a list is signed so often although nothing has changed, so that its age says something
LIST_EVERY: Final = timedelta(days=1)
LONGEST_INVITATION: Final = timedelta(days=90)
MOST_USES: Final = 1024
#: wrong proofs of one source before it has to wait, the first wait, and the longest
_FREE_TRIES: Final = 3
_LONGEST_WAIT_S: Final = 300
_MOST_SOURCES: Final = 4096


@dataclass(frozen=True, slots=True)
class NewInvitation:
    """What a token is made of, beside relays."""

    id: bytes
    network_id: bytes
    authority_fingerprint: bytes
    expires_at: datetime
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """A joiner's message and the session that it came by. Source: mesh-rules B2.

    Attributes:
        id_i: what the handshake proved; a certificate is issued to it only.
        id_r: of the relay whose session that is.
        h: hash of the handshake, 32 bytes.
        name: wanted by the joiner, "" for none.
        source: for people and limits: where it came from.
    """

    invitation_id: bytes
    id_i: bytes
    id_r: bytes
    h: bytes
    name: str
    proof: bytes = field(repr=False)
    source: str = ""


class Issuer:
    """The decisions of one network.

    Args:
        key: the authority's; a revoker's after `network authority export`; None for neither.
        revocations: what this machine knows, also of others' lists.
        clock_is_right: the operator said so.
    """

    def __init__(
        self,
        ledger: Ledger,
        network_name: str,
        network_id: bytes,
        subnets: Collection[Network],
        key: AuthorityKey | RevokerKey | None,
        revocations: Revocations,
        *,
        clock_is_right: bool = False,
    ) -> None:
        self._ledger = ledger
        self._name = network_name
        self._network_id = network_id
        self._subnets = tuple(subnets)
        self._key = key
        self._revocations = revocations
        self._clock_is_right = clock_is_right
        self._wrong: dict[str, tuple[int, datetime]] = {}

    # --- invitations ---

    def invite(
        self, terms: Terms, now: datetime, expires_in: timedelta, uses: int = 1
    ) -> NewInvitation:
        """Make an invitation; its secret is returned here and kept nowhere.

        Raises:
            IssuerRefused: this machine cannot issue, or the terms cannot be. Source: mesh-rules B4.
        """
        self.check_terms(terms, now, expires_in, uses)
        secret = sodium.random_bytes(identifiers.INVITATION_SECRET_BYTES)
        id_ = sodium.random_bytes(identifiers.INVITATION_ID_BYTES)
        end = now + expires_in
        self._ledger.add_invitation(id_, identifiers.invitation_key(secret), terms, uses, now, end)
        fingerprint = self.authority(now).authority.fingerprint
        return NewInvitation(id_, self._network_id, fingerprint, end, secret)

    def check_terms(self, terms: Terms, now: datetime, expires_in: timedelta, uses: int) -> None:
        """Refuse an invitation that nobody should have. Raises as `invite`."""
        self.authority(now)
        relay = "relay" in terms.roles
        if "issuer" in terms.roles or "revoker" in terms.roles:
            raise IssuerRefused("no invitation gives the role issuer or revoker", "role")
        if relay and (uses != 1 or expires_in > RELAY_INVITATION):
            raise IssuerRefused(
                "an invitation for a relay is used once and expires within an hour", "role"
            )
        if not 1 <= uses <= MOST_USES or not timedelta(0) < expires_in <= LONGEST_INVITATION:
            raise IssuerRefused(
                f"an invitation has 1 to {MOST_USES} uses and at most {LONGEST_INVITATION.days} days",
                "terms",
            )
        if uses > 1 and (terms.name is not None or terms.addresses):
            raise IssuerRefused(
                "a name or an address is for one machine: leave it away, or give one use", "terms"
            )
        if terms.name is not None and not certificates.is_label(terms.name):
            raise IssuerRefused("the name of a member is a DNS label in lower case", "terms")
        for word in (*terms.roles, *terms.tags):
            if not certificates.is_word(word):
                raise IssuerRefused(f"{word} is no role or tag", "terms")
        for address in terms.addresses:
            subnet.check_host(self._subnets, address)

    def redeem(self, request: Request, now: datetime) -> Certificate:
        """Return the certificate of a joiner that proves an invitation.

        Raises:
            IssuerRefused: "proof" for an unknown invitation or a wrong proof alike, "wait" for a
                source with too many of them; else as `Ledger.redeem`. Nothing is burnt then.
        Source: mesh-rules B2, B3.
        """
        self._check_source(request.source, now)
        key = self._ledger.invitation_key(request.invitation_id)
        said = identifiers.join_proof(
            key or bytes(identifiers.INVITATION_KEY_BYTES),
            self._network_id,
            request.invitation_id,
            request.id_i,
            request.id_r,
            request.h,
            request.name,
        )
        if not sodium.equal(said, request.proof) or key is None:
            self._count_wrong(request.source, now)
            raise IssuerRefused(
                "the invitation is unknown, or the proof of it is wrong; ask for a new one", "proof"
            )
        self._wrong.pop(request.source, None)
        self.authority(now)

        def make(terms: Terms, at: datetime) -> Certificate:
            return self._make(terms, request.name, request.id_i, at)

        made = self._ledger.redeem(request.invitation_id, request.id_i, request.source, now, make)
        return made if isinstance(made, Certificate) else self._read(made)

    def _make(self, terms: Terms, wanted: str, public_key: bytes, now: datetime) -> Certificate:
        key = self.authority(now)
        self._check_room()
        name = terms.name or wanted
        if not certificates.is_label(name):
            raise IssuerRefused(
                "this invitation has no name in it: join with one, a DNS label in lower case",
                "name",
            )
        given, before = self._ledger.given(), self._ledger.ever_given()
        chosen = {one.version: one for one in terms.addresses}
        addresses = tuple(
            chosen.get(one.version) or subnet.next_address(one, given, before)
            for one in self._subnets
        )
        profile = Profile(name, self._name, terms.roles, terms.tags, addresses)
        end = key.authority.not_after
        if terms.lifetime_s is not None:
            end = min(end, now + timedelta(seconds=terms.lifetime_s))
        try:
            return key.issue(profile, public_key, now.replace(microsecond=0), end)
        except BadCertificate as error:
            raise IssuerRefused(str(error), "terms") from None

    def _check_source(self, source: str, now: datetime) -> None:
        count, last = self._wrong.get(source, (0, now))
        if count >= _FREE_TRIES:
            wait_s = min(2 ** min(count - _FREE_TRIES, 16), _LONGEST_WAIT_S)
            if timedelta(0) <= now - last < timedelta(seconds=wait_s):
                raise IssuerRefused(f"too many wrong proofs from {source}; wait {wait_s} s", "wait")

    def _count_wrong(self, source: str, now: datetime) -> None:
        count, _ = self._wrong.pop(source, (0, now))
        if len(self._wrong) >= _MOST_SOURCES:
            del self._wrong[next(iter(self._wrong))]  # whoever was wrong the longest ago
        self._wrong[source] = (count + 1, now)

    # --- members ---

    def sign(
        self,
        public_key: bytes,
        name: str,
        now: datetime,
        *,
        roles: Collection[str] | None,
        tags: Collection[str] | None,
        addresses: tuple[Address, ...],
        lifetime: timedelta | None,
    ) -> Certificate:
        """Give a key a certificate without an invitation, or a member another one.

        Args:
            roles, tags, addresses, lifetime: None or empty: those that the member has; of a new one
                no roles and no tags, chosen addresses, the time of the authority.
        Raises:
            IssuerRefused: this machine cannot issue, the key was removed, or the terms cannot be.
        Source: mesh-rules B5.
        """
        self.authority(now)
        member = self._ledger.member(public_key)
        if roles is not None and {"issuer", "revoker"} & set(roles):
            raise IssuerRefused("the roles issuer and revoker are nobody's to give", "role")
        for address in addresses:
            subnet.check_host(self._subnets, address)
        if len({one.version for one in addresses}) != len(addresses):
            raise IssuerRefused("a member has one address of IPv4 and one of IPv6", "terms")
        if member is not None and member.removed_at is None:
            return self.reissue(
                member, now, name=name, tags=tags, roles=roles, addresses=addresses,
                lifetime=lifetime,
            )  # fmt: skip
        lifetime_s = None if lifetime is None else int(lifetime.total_seconds())
        terms = Terms(name, tuple(roles or ()), tuple(tags or ()), addresses, lifetime_s)
        return self._ledger.admit(public_key, now, lambda: self._make(terms, name, public_key, now))

    def renew(self, der: bytes, id_i: bytes, now: datetime) -> Certificate:
        """Return the current certificate of a member that shows an old one. Source: mesh-rules C5.

        Raises:
            BadCertificate: not of this network, or not for the key of the session.
            IssuerRefused: "removed": the key is out; "guest": its time is over.
        """
        key = self.authority(now)
        shown = certificates.parse(der)
        certificates.signer(shown.der, [key.authority])
        if shown.public_key != id_i:
            raise BadCertificate("this certificate is for another key", "other_key")
        member = self._ledger.member(id_i)
        if member is None or member.removed_at is not None:
            raise IssuerRefused("this key was removed from the network", "removed")
        current = certificates.parse(self._ledger.current(id_i))
        if now <= current.not_after and member not in self.due(now):
            return self._read(current.der)
        if member.guest:
            raise IssuerRefused(f"the time of the guest {member.name} is over", "guest")
        return self.reissue(member, now)

    def due(self, now: datetime) -> list[Member]:
        """Return the members whose certificate is to be renewed: at two thirds of its time."""
        return self._ledger.due(now, self.authority(now).authority.not_after)

    def reissue(
        self,
        member: Member,
        now: datetime,
        *,
        name: str | None = None,
        tags: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        addresses: tuple[Address, ...] = (),
        lifetime: timedelta | None = None,
        at_once: bool = False,
    ) -> Certificate:
        """Give a member a certificate with another name, tags, roles or so; the rest stays.

        The old one is superseded after 7 days or when the member is known to have the new one
        (`confirm`); at once if asked, or if a role is taken away. Source: mesh-rules C5.
        """
        key = self.authority(now)
        self._check_room()
        old = certificates.parse(self._ledger.current(member.public_key))
        profile = Profile(
            old.name if name is None else name,
            self._name,
            old.roles if roles is None else roles,
            old.tags if tags is None else tags,
            _replaced(old.addresses, addresses),
        )
        lost = old.roles - set(profile.roles)
        with self._ledger.change(now):
            begin = self._ledger.next_not_before(member.public_key, now)
            end = begin + (lifetime or old.not_after - old.not_before)
            try:
                made = key.issue(profile, member.public_key, begin, end)
            except BadCertificate as error:
                raise IssuerRefused(str(error), "terms") from None
            self._ledger.add_certificate(made)
            due = now if at_once or lost else now + SUPERSEDE_AFTER
            self._ledger.supersede(member.public_key, due)
        return made

    def confirm(self, shown: Certificate, now: datetime) -> None:
        """Note that a member uses its newest certificate: what it had before may be revoked."""
        if shown.der == self._ledger.current(shown.public_key):
            with self._ledger.change(now):
                self._ledger.supersede(shown.public_key, now)

    def remove(self, member: Member, now: datetime) -> None:
        """Put a key out; the next list (`make_list`) says so to all.

        Raises:
            IssuerRefused: "cannot_revoke": this machine has neither authority nor revoker.
        """
        self._list_key()
        self._check_clock(now)
        self._ledger.remove(member.public_key, now)

    @property
    def issues(self) -> bool:
        """Whether this machine has the authority's key, and so makes certificates."""
        return isinstance(self._key, AuthorityKey)

    @property
    def revokes(self) -> bool:
        """Whether it has that or a revoker's, and so puts members out."""
        return self._key is not None

    # --- lists ---

    def make_list(self, now: datetime) -> RevocationList:
        """Sign the next list: the union of the ledger and of all that anybody has seen.

        Source: mesh-rules C2, C3.
        """
        key = self._list_key()
        self._check_clock(now)
        self._ledger.settle(now)
        authority = self._list_authority(key)
        limit = now - revocation.KEPT_AFTER_END
        ended = self._ledger.ended(authority, limit)
        entries = revocation.union(
            {(authority, one): why for one, why in self._revocations.of(authority).items()},
            {(authority, one): why for one, why in self._ledger.revoked(authority, limit).items()},
        )
        kept: dict[int, Reason] = {
            one: why for (_, one), why in entries.items() if one not in ended
        }
        signer = authority if isinstance(key, AuthorityKey) else key.certificate.public_key
        seen = self._revocations.numbers.get(signer, -1)
        number = self._ledger.next_number(signer, seen, now)
        data = revocation.make(key, number, now, kept)
        made = revocation.read(data, [self._authority_of(key)])
        self._revocations.take(made)
        return made

    def list_is_due(self, now: datetime) -> bool:
        """Tell whether a new list has to go out: something is not on it, or it is a day old.

        What is not on it may be what became due, or a removal behind which the power went.

        Raises:
            IssuerRefused: "clock": nobody knows what is due by it.
        """
        if self._key is None:
            return False
        self._check_clock(now)
        self._ledger.settle(now)
        authority = self._list_authority(self._key)
        known = self._revocations.of(authority)
        wanted = self._ledger.revoked(authority, now - revocation.KEPT_AFTER_END)
        lacks = any(
            serial not in known or (why is Reason.REMOVED and known[serial] is not why)
            for serial, why in wanted.items()
        )
        newest = self._revocations.newest
        return lacks or newest is None or now - newest >= LIST_EVERY

    def share_of_list(self) -> float:
        """Return how full the newest list is, 0 to 1: warn from 0.7, no new members from 0.9.

        Lists about certificates of an authority before do not grow any more.
        """
        about = None if self._key is None else self._list_authority(self._key)
        return max(
            (
                len(one.data) / revocation.MAX_BYTES
                for one in self._revocations.lists
                if about in (None, one.issuer_key_id)
            ),
            default=0.0,
        )

    def _check_room(self) -> None:
        if self.share_of_list() >= revocation.FULL_SHARE:
            raise IssuerRefused(
                "the revocation list is nearly full; give all members new certificates with"
                " `shadowmesh network compact`",
                "list_full",
            )

    # --- secrets ---

    def rotate_secret(self, identity: Identity, epoch: int) -> tuple[bytes, bytes]:
        """Return a new network secret for an epoch, and the issuer's signature for it."""
        secret = sodium.random_bytes(identifiers.NETWORK_SECRET_BYTES)
        return secret, trust.vouch_for_secret(identity.sign, self._network_id, epoch, secret)

    # --- what it all rests on ---

    def compact(self, authority: AuthorityKey, now: datetime) -> list[Certificate]:
        """Issue every member a certificate under a new authority, which begins with an empty list.

        The old authority stays in the trust list until the members have them. Source: mesh-rules C3.
        """
        self._check_clock(now)
        made = []
        with self._ledger.change(now):
            for member in self._ledger.members():
                old = certificates.parse(self._ledger.current(member.public_key))
                profile = Profile(old.name, self._name, old.roles, old.tags, old.addresses)
                begin = self._ledger.next_not_before(member.public_key, now)
                new = authority.issue(
                    profile, member.public_key, begin, begin + (old.not_after - old.not_before)
                )
                self._ledger.add_certificate(new)
                made.append(new)
        self._key = authority
        return made

    def _read(self, der: bytes) -> Certificate:
        found = certificates.parse(der)
        key = self._key
        assert isinstance(key, AuthorityKey)
        return replace(found, issuer_key_id=certificates.signer(der, [key.authority]).key_id)

    def authority(self, now: datetime) -> AuthorityKey:
        """Return the key that certificates are signed with.

        Raises:
            IssuerRefused: it is elsewhere, or the clock is wrong.
        """
        if not isinstance(self._key, AuthorityKey):
            raise IssuerRefused(
                "this machine cannot issue: the key of the authority is elsewhere; import it, or"
                " sign there with `shadowmesh cert sign`",
                "no_authority",
            )
        self._check_clock(now)
        return self._key

    def _check_clock(self, now: datetime) -> None:
        check_issuer_clock(now, self._ledger.last_date, trusted=self._clock_is_right)

    def _list_key(self) -> AuthorityKey | RevokerKey:
        if self._key is None:
            raise IssuerRefused(
                "this machine can revoke nothing: it has neither the authority's key nor a"
                " revoker; do it where the authority is",
                "cannot_revoke",
            )
        return self._key

    def _list_authority(self, key: AuthorityKey | RevokerKey) -> bytes:
        if isinstance(key, AuthorityKey):
            return key.authority.key_id
        return key.certificate.issuer_key_id

    def _authority_of(self, key: AuthorityKey | RevokerKey) -> Authority:
        return key.authority if isinstance(key, AuthorityKey) else key.issued_by


def _replaced(old: tuple[Address, ...], new: tuple[Address, ...]) -> tuple[Address, ...]:
    """Return addresses, each replaced by the new one of its kind, if there is one."""
    chosen = {one.version: one for one in (*old, *new)}
    return tuple(chosen[version] for version in sorted(chosen))
