"""The names of networks and members, and the keys that come from their secrets.

Owns: the fixed derivations of mesh-rules A2, A4, B1 and B2, and the labels that keep them apart.
Does not know: where a secret comes from, who compares a proof (in constant time).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from shadowmesh.base.constants import HASH_BYTES, IDENTITY_BYTES
from shadowmesh.base.errors import LocalProtocolError

#: SHA-256 of the SubjectPublicKeyInfo of the network's first authority
NETWORK_ID_BYTES: Final = HASH_BYTES
#: what invitations and proofs carry of it
SHORT_NETWORK_ID_BYTES: Final = 16
NODE_ID_BYTES: Final = 8
NETWORK_SECRET_BYTES: Final = 32
INVITATION_ID_BYTES: Final = 8
INVITATION_SECRET_BYTES: Final = 16
INVITATION_KEY_BYTES: Final = 32
PROOF_BYTES: Final = 32
#: a DNS label, or nothing: then the issuer chooses
NAME_MAX_BYTES: Final = 63

_MEMBER: Final = b"ShadowMesh/1 member"
_INVITATION: Final = b"ShadowMesh/1 invitation"
_JOIN: Final = b"ShadowMesh/1 join"


def network_id(authority_spki_der: bytes) -> bytes:
    """Return the 32 bytes that name a network for good.

    Args:
        authority_spki_der: SubjectPublicKeyInfo of its first authority; later ones change nothing.
    Source: mesh-rules A4.
    """
    return hashlib.sha256(authority_spki_der).digest()


def node_id(public_key: bytes) -> bytes:
    """Return the 8 bytes that name a member on the wire; sessions and tables go by the whole key.

    Source: mesh section 1, mesh-rules D1.
    """
    _check("a member's public key", public_key, IDENTITY_BYTES)
    return hashlib.sha256(public_key).digest()[:NODE_ID_BYTES]


def member_psk(network_secret: bytes, network_id: bytes) -> bytes:
    """Return the pre-shared key of mode 7, 32 bytes.

    Never the secret itself: one that somebody copied into `encryption.key` opens nothing.
    Source: mesh-rules A2.
    """
    _check("a network secret", network_secret, NETWORK_SECRET_BYTES)
    _check("a network id", network_id, NETWORK_ID_BYTES)
    return hmac.digest(network_secret, _MEMBER + network_id, "sha256")


def invitation_key(secret: bytes) -> bytes:
    """Return K, 32 bytes: what the issuer's ledger keeps of an invitation instead of its secret.

    Source: mesh-rules B1.
    """
    _check("an invitation's secret", secret, INVITATION_SECRET_BYTES)
    return hmac.digest(secret, _INVITATION, "sha256")


def join_proof(
    key: bytes,
    network_id: bytes,
    invitation_id: bytes,
    id_i: bytes,
    id_r: bytes,
    h: bytes,
    name: str,
) -> bytes:
    """Return what shows the issuer that this joiner, on this session, holds the invitation.

    Args:
        key: K of the invitation, 32 bytes.
        network_id: all 32 bytes or the first 16, which are what counts.
        invitation_id: 8 bytes.
        id_i, id_r: public keys of the joiner and of the relay that it has reached, 32 bytes each.
        h: hash of their handshake, 32 bytes.
        name: that the joiner wants; "" for none; at most 63 bytes of ASCII.
    Returns:
        32 bytes.
    Raises:
        LocalProtocolError: a size that cannot be.
    Source: mesh-rules B2.
    """
    _check("an invitation's key", key, INVITATION_KEY_BYTES)
    if len(network_id) not in (NETWORK_ID_BYTES, SHORT_NETWORK_ID_BYTES):
        raise LocalProtocolError(f"a network id is 32 or 16 bytes, not {len(network_id)}")
    _check("an invitation id", invitation_id, INVITATION_ID_BYTES)
    _check("the joiner's public key", id_i, IDENTITY_BYTES)
    _check("the relay's public key", id_r, IDENTITY_BYTES)
    _check("the hash of a handshake", h, HASH_BYTES)
    if not name.isascii() or len(name) > NAME_MAX_BYTES:
        raise LocalProtocolError(f"a name is at most {NAME_MAX_BYTES} characters of ASCII")
    text = name.encode("ascii")
    short_id = network_id[:SHORT_NETWORK_ID_BYTES]
    said = _JOIN + short_id + invitation_id + id_i + id_r + h + bytes([len(text)]) + text
    return hmac.digest(key, said, "sha256")


def _check(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise LocalProtocolError(f"{what} is {size} bytes, not {len(value)}")
