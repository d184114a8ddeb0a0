"""What a joiner believes of the answer that it got.

Owns: the checks before anything of an answer is written or a device is made. Does not know: the
message that brought it, the question to the operator, files. Source: mesh-rules B4, C1, C2, C7.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_network
from typing import Final

from shadowmesh.base.errors import BadCertificate, BadList
from shadowmesh.network import certificate as certificates
from shadowmesh.network import clock, revocation, subnet, trust
from shadowmesh.network.certificate import Certificate
from shadowmesh.network.revocation import Revocations
from shadowmesh.network.subnet import Network

#: one of IPv4 and one of IPv6
MAX_SUBNETS: Final = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came, nothing of it true yet. `subnets` as text, like 10.77.0.0/24."""

    certificate: bytes
    trust_list: bytes
    revocation_lists: Collection[bytes]
    subnets: Collection[str]


@dataclass(frozen=True, slots=True)
class Membership:
    """What an answer makes of this machine.

    Attributes:
        doubts: sentences that end a join without `--yes`: the subnet is none that a network should
            have, or this machine has it already.
    """

    certificate: Certificate
    trust_list: trust.TrustList
    revocations: Revocations = field(repr=False)
    subnets: tuple[Network, ...]
    doubts: tuple[str, ...]


def judge(
    answer: Answer,
    *,
    network_id: bytes,
    fingerprint: bytes,
    public_key: bytes,
    local: datetime,
    own_networks: Iterable[tuple[str, Network]],
    alone: bool = False,
) -> Membership:
    """Return what this machine becomes, once all of the answer that can be verified is.

    Args:
        network_id, fingerprint: of the invitation, 16 bytes each.
        public_key: ours.
        local: this machine's clock.
        own_networks: (interface, network) of this machine.
        alone: as for `trust.first`; then its recovery key is a doubt.
    Raises:
        BadCertificate, BadList: the answer is not what the invitation promised.
    """
    trusted = trust.first(answer.trust_list, network_id, fingerprint, alone=alone)
    known = Revocations()
    for data in answer.revocation_lists:
        known.take(revocation.read(data, trusted.authorities))
    shown = certificates.parse(answer.certificate)
    if shown.public_key != public_key:
        raise BadCertificate("the answer is a certificate for the key of another", "other_key")
    authority = certificates.signer(shown.der, trusted.authorities)
    now = clock.checking_time(
        local,
        newest_list=known.newest,
        own_not_before=shown.not_before,
        authority_not_after=authority.not_after,
        own_not_after=shown.not_after,
    )
    if known.newest is not None and known.newest > shown.not_after:
        now = known.newest  # by the issuer's clock, which has just answered
    certificate = certificates.verify(shown, trusted.authorities, now)
    if authority.fingerprint != fingerprint:
        raise BadCertificate(
            "the certificate is signed by another authority than the invitation names", "foreign"
        )
    known.check(certificate)
    subnets = _subnets(answer.subnets, certificate)
    own = tuple(own_networks)
    doubts = [
        why
        for one in subnets
        for why in (subnet.why_unusable(one), subnet.overlapping(one, own))
        if why is not None
    ]
    if trusted.vouched_by is None:
        doubts.append(
            "the authority is a CA that does not vouch for the recovery key"
            f" {trusted.recovery_key.hex()[:32]}, which can replace it: compare that as well"
        )
    return Membership(certificate, trusted, known, subnets, tuple(doubts))


def _subnets(texts: Collection[str], certificate: Certificate) -> tuple[Network, ...]:
    if len(texts) > MAX_SUBNETS:
        raise BadList(f"the answer has {len(texts)} subnets, {MAX_SUBNETS} are possible")
    try:
        subnets = tuple(ip_network(one) for one in texts)
    except ValueError:
        raise BadList("the answer has a subnet that is none") from None
    if len({one.version for one in subnets}) != len(subnets):
        raise BadList("the answer has two subnets of one kind")
    for address in certificate.addresses:
        if not any(address in one for one in subnets):
            raise BadList(f"the certificate has the address {address}, which is in no subnet")
    return subnets
