"""What a new member is told of its network, and the file that brings it where no relay does.

Owns: which part of what this machine knows that is, the form of the file, for whom it can be read.
Does not know: who may be told, what is believed of it (`joining`), files.

::

    -----BEGIN SHADOWMESH BUNDLE-----
    base64 of: "SMCB" | u8 1 | sealed for the key of the certificate: the message Joined
    -----END SHADOWMESH BUNDLE-----

The network's secret is in it, so it is sealed; that says nothing about who made it, which the
signatures inside do. Source: mesh section 3, mesh-rules B4, B5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shadowmesh.base.errors import BadCertificate, RemoteProtocolError
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import pem
from shadowmesh.network.certificate import Certificate
from shadowmesh.network.membership import Membership
from shadowmesh.wire.mesh.messages import (
    LARGE_MESSAGE_MAX_BYTES,
    Joined,
    RelayInfo,
    decode,
    encode,
)

LABEL: Final = "SHADOWMESH BUNDLE"
#: its base64 and the lines around it
MAX_BYTES: Final = LARGE_MESSAGE_MAX_BYTES * 3 // 2
_MAGIC: Final = b"SMCB\x01"
#: of certificates in one answer; whoever is left out comes with the directory
_MEMBERS_BYTES: Final = 64 << 10


def answer(membership: Membership, certificate: Certificate) -> Joined:
    """Return all that the holder of a certificate has to know; the network's secret is in it."""
    secret = membership.newest_secret
    return Joined(
        certificate=certificate.der,
        authorities=tuple(one.der for one in membership.trust_list.authorities),
        trust_list=membership.trust_list.data,
        revocation_lists=tuple(one.data for one in membership.revocations.lists),
        network_secret=secret.value,
        secret_epoch=secret.epoch,
        secret_signature=secret.signature,
        relays=tuple(_relays(membership)),
        members=tuple(_some_members(membership)),
        subnets=tuple(map(str, membership.facts.subnets)),
    )


def seal(told: Joined, public_key: bytes) -> str:
    """Return an answer as the text of a file that only the owner of a key can read."""
    return pem.armor(LABEL, _MAGIC + sodium.seal(public_key, encode(told)))


def unseal(data: bytes, identity: Identity) -> Joined:
    """Return the answer in a file; nothing of it is true yet.

    Raises:
        BadCertificate: it is no bundle, or "other_key": it is for another machine, or damaged.
    """
    found = pem.content(data, LABEL)
    if not found.startswith(_MAGIC[:4]):
        raise BadCertificate("this file is no bundle of `shadowmesh cert sign`")
    if not found.startswith(_MAGIC):
        raise BadCertificate("this bundle is of a newer version of ShadowMesh")
    try:
        told = decode(identity.unseal(found[len(_MAGIC) :]), LARGE_MESSAGE_MAX_BYTES)
    except ValueError:
        raise BadCertificate(
            "this bundle is for the key of another machine, or damaged; sign the newest request of"
            " this machine",
            "other_key",
        ) from None
    except RemoteProtocolError:
        told = None
    if not isinstance(told, Joined):
        raise BadCertificate("this bundle cannot be read; it may be of a newer version")
    return told


def _relays(membership: Membership) -> Iterator[RelayInfo]:
    addresses = {one.public_key: str(one.address) for one in membership.facts.relays}
    for one in membership.members:
        if one.public_key in addresses:
            yield RelayInfo(certificate=one.der, addresses=(addresses[one.public_key],))


def _some_members(membership: Membership) -> Iterator[bytes]:
    """Issuers first: without one the secret is nobody's."""
    left = _MEMBERS_BYTES
    for one in sorted(membership.members, key=lambda one: "issuer" not in one.roles):
        left -= len(one.der)
        if left < 0:
            return
        yield one.der
