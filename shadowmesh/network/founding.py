"""A new network: its authority, its first member, its first list, its secret.

Owns: what these are at the beginning. Does not know: files, what comes later (`issuer`). Source: mesh
sections 2 and 3, mesh-rules C1, C2, C6.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from shadowmesh.base.errors import IssuerRefused
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import revocation, subnet, trust
from shadowmesh.network.authority import AuthorityKey, make_authority
from shadowmesh.network.certificate import Certificate, Profile
from shadowmesh.network.ledger import Ledger
from shadowmesh.network.revocation import RevocationList
from shadowmesh.network.subnet import Network
from shadowmesh.wire.mesh import identifiers


@dataclass(frozen=True, slots=True)
class Founding:
    """A new network: what has to be written before anything of it is used.

    Attributes:
        recovery_seed: shown once, kept nowhere but in the backup.
        certificate: of the machine that made the network: relay and issuer.
    """

    authority: AuthorityKey
    trust_list: trust.TrustList
    certificate: Certificate
    first_list: RevocationList
    subnets: tuple[Network, ...]
    recovery_seed: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    secret_signature: bytes = field(repr=False)


def found_network(
    name: str,
    identity: Identity,
    member_name: str,
    subnets: tuple[Network, ...],
    ledger: Ledger,
    now: datetime,
    algorithm: str = "ed25519",
) -> Founding:
    """Make a network, with this machine as its relay and issuer.

    Args:
        subnets: at most one of IPv4 and one of IPv6; this machine gets the first address of each.
        ledger: a new one.
    Raises:
        BadCertificate, IssuerRefused: a name or a subnet that cannot be.
    """
    for one in subnets:
        problem = subnet.why_unusable(one)
        if problem is not None:
            raise IssuerRefused(problem, "subnet")
    now = now.replace(microsecond=0)
    authority = make_authority(name, now, algorithm)
    network_id = authority.authority.key_id
    recovery_seed = sodium.random_bytes(32)
    addresses = tuple(subnet.next_address(one, ()) for one in subnets)
    profile = Profile(member_name, name, roles=("issuer", "relay"), addresses=addresses)
    end = authority.authority.not_after
    own = authority.issue(profile, identity.public_key, now, end)
    with ledger.change(now):
        ledger.add_member(own, now)
    number = ledger.next_number(network_id, -1, now)
    secret = sodium.random_bytes(identifiers.NETWORK_SECRET_BYTES)
    known = (authority.authority,)
    return Founding(
        authority=authority,
        trust_list=trust.make(Identity.from_seed(recovery_seed), network_id, 1, known, authority),
        certificate=own,
        first_list=revocation.read(revocation.make(authority, number, now, {}), known),
        subnets=subnets,
        recovery_seed=recovery_seed,
        secret=secret,
        secret_signature=trust.vouch_for_secret(identity.sign, network_id, 1, secret),
    )
