"""A network whose authority is a CA that is not ours: openssl, step-ca, Vault.

Owns: what has to be there for that, and what such a network consists of. Does not know: how the CA
makes certificates and lists, files. Its machines get certificates by `cert request`, the network by
`bundle`, lists by hand; there is no ledger, so nobody is invited. Source: mesh section 3, mesh-rules
B5.
"""

from __future__ import annotations

from datetime import datetime

from shadowmesh.base.errors import BadCertificate, IssuerRefused
from shadowmesh.config import HostPort
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import certificate as certificates
from shadowmesh.network import revocation, subnet, trust
from shadowmesh.network.facts import Facts, KnownRelay
from shadowmesh.network.membership import Membership
from shadowmesh.network.store import Secret, Store
from shadowmesh.network.subnet import Network
from shadowmesh.wire.mesh import identifiers

_FIRST_EPOCH = 1


def adopt(
    store: Store,
    authority_der: bytes,
    certificate_der: bytes,
    list_der: bytes,
    subnets: tuple[Network, ...],
    address: HostPort | None,
    local: datetime,
) -> tuple[Membership, str]:
    """Make a network under a CA, with this machine as the one that vouches for its secret.

    Args:
        certificate_der: for the key of this machine's request, with role:issuer.
        list_der: the newest of the CA.
        address: where others reach this machine.
    Returns:
        What this machine is now, and the text of the recovery key, which is kept nowhere.
    Raises:
        BadCertificate, BadList, IssuerRefused: something does not fit. Nothing is written.
    """
    if store.joined:
        raise IssuerRefused(
            "this machine is in a network; `shadowmesh leave` comes first", "joined"
        )
    for wanted in subnets:
        problem = subnet.why_unusable(wanted)
        if problem is not None:
            raise IssuerRefused(problem, "subnet")
    identity = store.identity()
    authority = certificates.parse_authority(authority_der)
    shown = certificates.parse(certificate_der)
    own = certificates.verify(shown, [authority], local)
    if own.public_key != identity.public_key:
        raise BadCertificate(
            "this certificate is for another key than `shadowmesh cert request` wrote", "other_key"
        )
    needed = {"issuer"} if address is None else {"issuer", "relay"}
    missing = sorted(needed - own.roles)
    if missing:
        raise BadCertificate(
            f"the first machine of a network has role:{missing[0]} among the OUs of its certificate"
        )
    if not own.addresses:
        raise BadCertificate("this certificate has no address in the tunnel (subjectAltName, IP)")
    for given in own.addresses:
        subnet.check_host(subnets, given)
    known = revocation.Revocations()
    known.take(revocation.read(list_der, [authority]))
    known.check(own)
    recovery_seed, secret = (
        sodium.random_bytes(32),
        sodium.random_bytes(identifiers.NETWORK_SECRET_BYTES),
    )
    network_id = authority.key_id
    membership = Membership(
        store,
        identity,
        own,
        trust.make(Identity.from_seed(recovery_seed), network_id, 1, (authority,), None),
        known,
        (
            Secret(
                _FIRST_EPOCH,
                secret,
                trust.vouch_for_secret(identity.sign, network_id, _FIRST_EPOCH, secret),
            ),
        ),
        Facts(
            own.network_name,
            network_id,
            subnets,
            () if address is None else (KnownRelay(address, own.public_key),),
            announce=() if address is None else (str(address),),
            port=None if address is None else address.port,
        ),
    )
    membership.learn(own, local)
    membership.save()
    return membership, trust.recovery_text(recovery_seed)
