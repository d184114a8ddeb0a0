"""Certificates that go by hand: requests, bundles, another CA, and what the issuer does to members.

Owns: the operations of the API about them. Does not know: HTTP, what a certificate is worth
(`network`). A part of `custody`.

What changes who this machine is takes effect when the daemon begins anew, which `begin_again` asks
for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.clock import utc_now
from shadowmesh.base.errors import (
    AlreadyInNetwork,
    BadCertificate,
    BadList,
    BadRequest,
    ConfigError,
    ConnectTimeout,
    ControlError,
    FileRefused,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.config import check_beside_network, joined, values
from shadowmesh.insight.custody import (
    CertificateReport,
    CertificateRequest,
    Installation,
    Received,
    Renewal,
    Signed,
)
from shadowmesh.insight.network import Founded, Invited
from shadowmesh.keys.identity import format_public_key
from shadowmesh.network import adoption, bundle, joining, pem, trust
from shadowmesh.network import certificate as certificates
from shadowmesh.network.membership import Membership
from shadowmesh.service.member import ASK_TIMEOUT_S, as_member, need, tunnel_addresses
from shadowmesh.service.networks import fingerprint, host_label, invited, report
from shadowmesh.service.received import ReceivedFile
from shadowmesh.wire.mesh.messages import Joined, Renew

if TYPE_CHECKING:
    from shadowmesh.network.certificate import Address, Certificate
    from shadowmesh.network.trust import TrustList
    from shadowmesh.service.member import Member
    from shadowmesh.service.networks import Networks

FINGERPRINT_BYTES: Final = 16
#: as long as an invitation for a relay may be valid
REKEY_INVITATION: Final = timedelta(hours=1)

_log = log.get("network")


class Certificates:
    """The operations of one life of the daemon.

    Attributes:
        networks: whose operations are done one after the other with these.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._place = networks.place
        self._received = ReceivedFile()

    def receive(self, offset: int, data: bytes) -> Received:
        """Take a piece of a file, as `ReceivedFile.receive`."""
        return self._received.receive(offset, data)

    # --- certificates by hand ---------------------------------------------------------------------

    def request(self, name: str | None) -> CertificateRequest:
        """Return a request for this machine's certificate."""
        with self._place.changing():
            der = self._place.store.request(name or host_label())
        key = certificates.requested_key(der)
        return CertificateRequest(format_public_key(key), pem.armor(pem.REQUESTS[0], der))

    def sign(
        self,
        request: bytes,
        name: str,
        roles: Sequence[str] | None,
        tags: Sequence[str] | None,
        addresses: Sequence[str],
        expires_s: int | None,
    ) -> Signed:
        """Sign a request, of which nothing but the key is believed. Raises IssuerRefused."""
        with self._place.changing():
            member = need(self._place.member)
            with _of_a_file():
                key = certificates.requested_key(pem.content(request, *pem.REQUESTS))
            made = member.issuing().sign(
                key,
                name,
                utc_now(),
                roles=roles,
                tags=tags,
                addresses=_addresses(addresses),
                lifetime=None if expires_s is None else timedelta(seconds=expires_s),
            )
            _log.info("a certificate was signed by hand", name=made.name)
            return self._signed(member.membership, made)

    def bundle(self, certificate: bytes) -> Signed:
        """Make the file for a machine whose certificate another CA has signed."""
        with self._place.changing(), _of_a_file():
            membership = need(self._place.member).membership
            shown = certificates.parse(pem.content(certificate, pem.CERTIFICATE))
            return self._signed(membership, membership.learn(shown, utc_now()))

    @staticmethod
    def _signed(membership: Membership, made: Certificate) -> Signed:
        told = bundle.answer(membership, made)
        return Signed(described(made), bundle.seal(told, made.public_key))

    def install(self, digest: str, authority: str | None, accept: bool) -> Installation:
        """Take a bundle, or find out what is in it.

        Raises:
            AlreadyInNetwork: it is of another network than this machine is in.
            FileRefused: it is not what it should be.
        """
        place = self._place
        data = self._received.taken(digest)
        with place.changing(), _of_a_file():
            told = bundle.unseal(data, place.store.identity())
            wanted = None if authority is None else _fingerprint(authority)
            shown = trust.read(told.trust_list)
            vouching = shown.vouched_by or shown.authorities[0]
            if place.member is not None:
                return self._renewed_by(place.member, told, shown, accept=accept)
            if accept and wanted is None:
                raise BadRequest("authority is missing: its fingerprint has to be compared first")
            judged = joining.judge(
                joining.Answer(
                    told.certificate, told.trust_list, told.revocation_lists, told.subnets
                ),
                network_id=b"",
                fingerprint=wanted or vouching.fingerprint,
                public_key=place.store.identity().public_key,
                local=utc_now(),
                own_networks=place.own_networks(),
                alone=True,
            )
            if accept:
                self._become(told, judged)
            own = judged.certificate
            return Installation(
                network=own.network_name,
                authority=fingerprint(vouching.fingerprint),
                name=own.name,
                addresses=tuple(map(str, own.addresses)),
                subnets=tuple(map(str, judged.subnets)),
                doubts=judged.doubts,
                member=False,
                taken=accept,
            )

    def _become(self, told: Joined, judged: joining.Membership) -> None:
        place = self._place
        own = judged.certificate
        name, file = own.network_name, place.file()
        check_beside_network(file)
        planned = joined(file, name, tunnel_addresses(own, judged.subnets), ())
        place.check_listens(planned.config)
        identity = place.store.identity()
        announce = file.config.mesh.announce
        Membership.take_in(
            place.store, identity, told, judged, None, utc_now(), announce=tuple(announce)
        )
        _log.info("this machine is a member by a bundle", network=name, name=own.name)
        place.recorder.record("network", "joined a network", network=name, name=own.name)
        place.begin_again()

    def _renewed_by(
        self, member: Member, told: Joined, shown: TrustList, *, accept: bool
    ) -> Installation:
        membership = member.membership
        if shown.network_id != membership.trust_list.network_id:
            raise AlreadyInNetwork(
                f"this machine is in the network {membership.facts.name}, and the bundle is of"
                " another; `shadowmesh leave` comes first"
            )
        if accept:
            self._catch_up(member, told)
        own = membership.certificate if accept else certificates.parse(told.certificate)
        return Installation(
            network=membership.facts.name,
            authority=fingerprint(membership.trust_list.authorities[0].fingerprint),
            name=own.name,
            addresses=tuple(map(str, own.addresses)),
            subnets=tuple(map(str, membership.facts.subnets)),
            doubts=(),
            member=True,
            taken=accept,
        )

    def _catch_up(self, member: Member, told: Joined) -> bool:
        """Let an answer count; return whether our certificate is another then."""
        membership = member.membership
        before = membership.certificate
        membership.catch_up(told, utc_now())
        if membership.certificate.addresses != before.addresses:
            # The device has the addresses of the certificate that the daemon began with.
            self._place.begin_again()
        return membership.certificate.der != before.der

    def _check_fits(self, membership: Membership) -> None:
        """Take back what was written when the daemon could not live with it, and raise that."""
        place = self._place
        try:
            place.check_listens(as_member(place.file(), membership).config)
        except (ConfigError, ControlError):
            place.store.leave()
            raise

    def certificate(self) -> CertificateReport | None:
        """Tell of our certificate."""
        member = self._place.member
        if member is None:
            return None
        return described(member.membership.certificate, member.membership.problem)

    def renew(self) -> Renewal:
        """Ask for the certificate of today.

        Raises:
            PeerUnreachable, ConnectTimeout, PeerRefused: no relay gives one.
        """
        with self._place.changing():
            member = need(self._place.member)
            membership = member.membership
            before = membership.certificate
            if member.registrar is not None:
                member.registrar.renew_own(utc_now())
                renewed = membership.certificate.der != before.der
            else:
                renewed = self._catch_up(member, self._asked(membership))
            return Renewal(described(membership.certificate, membership.problem), renewed)

    def _asked(self, membership: Membership) -> Joined:
        failure: ControlError = PeerUnreachable("no relay of the network has a known address")
        for relay in membership.facts.relays:
            if relay.public_key == membership.identity.public_key:
                continue
            try:
                answer = self._place.ask(
                    relay.address,
                    membership.identity,
                    relay.public_key,
                    lambda _result: Renew(certificate=membership.certificate.der),
                    ASK_TIMEOUT_S,
                )
            except (PeerUnreachable, ConnectTimeout, PeerRefused) as error:
                failure = error
                continue
            if isinstance(answer, Joined):
                return answer
            said = getattr(answer, "detail", "") or answer.reason
            failure = PeerRefused(f"{relay.address} gives no certificate: {said}")
        raise failure

    # --- members change ---------------------------------------------------------------------------

    def reissue(
        self,
        name: str,
        new_name: str | None,
        add_tags: Sequence[str],
        drop_tags: Sequence[str],
        at_once: bool,
    ) -> Renewal:
        """Give a member another name or other tags. Raises IssuerRefused."""
        with self._place.changing():
            made = (
                need(self._place.member)
                .issuing()
                .reissue(
                    name,
                    utc_now(),
                    new_name=new_name,
                    add_tags=add_tags,
                    drop_tags=drop_tags,
                    at_once=at_once,
                )
            )
            _log.info("a member has another certificate", name=name, new_name=made.name)
            return Renewal(described(made), renewed=True)

    def rekey(self, name: str) -> Invited:
        """Put a member's key out, and invite its machine with a new one. Raises IssuerRefused."""
        with self._place.changing():
            member = need(self._place.member)
            _, token = member.issuing().rekey(name, utc_now(), REKEY_INVITATION)
            if member.desk is not None:
                member.desk.look()
            _log.info("a member has to come back with a new key", name=name)
            return invited(member.issuing(), token)

    # --- another CA -------------------------------------------------------------------------------

    def adopt(
        self,
        authority: bytes,
        certificate: bytes,
        revoked: bytes,
        subnets: Sequence[str],
        address: str | None,
    ) -> Founded:
        """Make a network whose authority is a CA that is not ours."""
        place = self._place
        if place.member is not None:
            raise AlreadyInNetwork(
                f"this machine is in the network {place.member.membership.facts.name};"
                " `shadowmesh leave` comes first"
            )
        with place.changing(), _of_a_file():
            check_beside_network(place.file())
            try:
                networks = tuple(ip_network(one) for one in subnets)
                where = None if address is None else values.peer(address)
            except ValueError as error:
                raise BadRequest(str(error)) from None
            membership, recovery_key = adoption.adopt(
                place.store,
                pem.content(authority, pem.CERTIFICATE),
                pem.content(certificate, pem.CERTIFICATE),
                pem.content(revoked, pem.LIST),
                networks,
                where,
                utc_now(),
            )
            self._check_fits(membership)
            name = membership.facts.name
            _log.info("made, under a CA that is not ours", network=name)
            place.recorder.record("network", "made a network under another CA", network=name)
            place.begin_again()
            return Founded(report(membership, issuer=False), recovery_key)

    def take_list(self, digest: str) -> Sequence[str]:
        """Let a revocation list count; return the names of all that are out by it."""
        with self._place.changing(), _of_a_file():
            membership = need(self._place.member).membership
            data = self._received.taken(digest)
            before = {one.name for one in membership.members}
            membership.take_list(membership.read_list(pem.content(data, pem.LIST)), utc_now())
            return sorted(before - {one.name for one in membership.members})


def described(certificate: Certificate, problem: str | None = None) -> CertificateReport:
    """Return what operators are told of a certificate."""
    return CertificateReport(
        name=certificate.name,
        network=certificate.network_name,
        public_key=format_public_key(certificate.public_key),
        serial=f"{certificate.serial:x}",
        authority=fingerprint(certificate.issuer_key_id) if certificate.issuer_key_id else "",
        roles=tuple(sorted(certificate.roles)),
        tags=tuple(sorted(certificate.tags)),
        addresses=tuple(map(str, certificate.addresses)),
        begins_at=certificate.not_before.timestamp(),
        expires_at=certificate.not_after.timestamp(),
        problem=problem,
        pem=pem.armor(pem.CERTIFICATE, certificate.der),
    )


@contextmanager
def _of_a_file() -> Iterator[None]:
    """Let what a file is worth come out as such."""
    try:
        yield
    except (BadCertificate, BadList) as error:
        raise FileRefused(str(error)) from None


def _addresses(texts: Sequence[str]) -> tuple[Address, ...]:
    try:
        return tuple(ip_address(one) for one in texts)
    except ValueError as error:
        raise BadRequest(f"addresses: {error}") from None


def _fingerprint(text: str) -> bytes:
    """Return a fingerprint as people type it: with dashes, colons, blanks or without."""
    try:
        found = bytes.fromhex(re.sub(r"[-: ]", "", text))
    except ValueError:
        found = b""
    if len(found) != FINGERPRINT_BYTES:
        raise BadRequest(f"the fingerprint of an authority has {2 * FINGERPRINT_BYTES} digits")
    return found
