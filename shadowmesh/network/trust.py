"""The trust list: which authorities a network has; and what vouches for its secrets.

Owns: the list as bytes, who must have signed it, when a newer one takes its place; the text form of
the recovery key; the statement by which the issuer vouches for a network secret. Does not know: how
they travel, files. Source: mesh-rules C1, C6.

::

    "SMTL" | u8 1 | network id (32) | u32 epoch | recovery key (32) | u8 n (1 to 4)
    n x (u16 length | certificate of an authority)
    u8 index | u16 length | signature of that authority     (length 0: none)
    signature of the recovery key (64)

Both signatures are over "ShadowMesh/1 trust list" and everything up to the authorities; the one of
an authority is for machines that join: their invitation names an authority, not the recovery key,
so without it a relay could add an authority of its own to the list that it hands on.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from shadowmesh.base.errors import BadCertificate, BadList
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import certificate as certificates
from shadowmesh.network.authority import AuthorityKey
from shadowmesh.network.certificate import Authority, Certificate

MAX_AUTHORITIES: Final = 4
#: 4 authorities of 2 KiB, and their signatures
MAX_BYTES: Final = 9 << 10

_MAGIC: Final = b"SMTL\x01"
_LABEL: Final = b"ShadowMesh/1 trust list"
_SECRET_LABEL: Final = b"ShadowMesh/1 network secret"
_HEAD: Final = struct.Struct("!5s32sI32sB")
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class TrustList:
    """Which authorities a network has, as its recovery key says.

    Attributes:
        data: as it travels.
        network_id: 32 bytes; stays through every replacement of authorities.
        epoch: only rises.
        recovery_key: Ed25519, 32 bytes; stays for the life of the network.
        vouched_by: the authority whose signature stands in the list too, None without.
    """

    data: bytes
    network_id: bytes
    epoch: int
    authorities: tuple[Authority, ...]
    recovery_key: bytes
    vouched_by: Authority | None


def make(
    recovery: Identity,
    network_id: bytes,
    epoch: int,
    authorities: tuple[Authority, ...],
    voucher: AuthorityKey | None,
) -> TrustList:
    """Return a new list, signed by the recovery key and by an authority of it.

    Args: voucher: None for an authority whose key is elsewhere; then nobody can join by invitation.
    """
    body = _HEAD.pack(_MAGIC, network_id, epoch, recovery.public_key, len(authorities))
    body += b"".join(struct.pack("!H", len(one.der)) + one.der for one in authorities)
    index, vouch = 0, b""
    if voucher is not None:
        index = [one.key_id for one in authorities].index(voucher.authority.key_id)
        vouch = voucher.sign(_LABEL + body)
    tail = struct.pack("!BH", index, len(vouch)) + vouch
    return read(body + tail + recovery.sign(_LABEL + body))


def read(data: bytes) -> TrustList:
    """Return a list whose own signatures hold. Whether it is of this network is asked elsewhere.

    Raises:
        BadList: "malformed", or "foreign": a signature is wrong.
    """
    if len(data) > MAX_BYTES:
        raise BadList(f"this trust list has {len(data)} bytes, {MAX_BYTES} are possible")
    try:
        magic, network_id, epoch, recovery_key, count = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise BadList("this is not a trust list, or one of a newer version")
        if not 1 <= count <= MAX_AUTHORITIES:
            raise BadList(f"a trust list has 1 to {MAX_AUTHORITIES} authorities, not {count}")
        place, authorities = _HEAD.size, []
        for _ in range(count):
            (length,) = struct.unpack_from("!H", data, place)
            place += 2
            authorities.append(certificates.parse_authority(data[place : place + length]))
            place += length
        body = data[:place]
        index, length = struct.unpack_from("!BH", data, place)
        vouch, signature = data[place + 3 : place + 3 + length], data[place + 3 + length :]
    except struct.error:
        raise BadList("this trust list is cut") from None
    except BadCertificate as error:
        raise BadList(f"an authority of this trust list is none: {error}") from None
    if len({one.key_id for one in authorities}) != count or index >= count:
        raise BadList("this trust list names an authority twice, or one that it has not")
    if len(signature) != _SIGNATURE_BYTES or not sodium.verify(
        recovery_key, _LABEL + body, signature
    ):
        raise BadList("the recovery key did not sign this trust list", "foreign")
    vouched_by = None
    if length:
        vouched_by = authorities[index]
        if not _signed(vouched_by, _LABEL + body, vouch):
            raise BadList("the authority did not sign this trust list", "foreign")
    return TrustList(data, network_id, epoch, tuple(authorities), recovery_key, vouched_by)


def first(data: bytes, network_id: bytes, fingerprint: bytes, *, alone: bool = False) -> TrustList:
    """Return the list that a machine joins with.

    Args:
        network_id: the first 16 bytes, of the invitation.
        fingerprint: of the authority that the invitation names, 16 bytes.
        alone: it may be the only one of the list, and none vouches for it: a CA that is not ours.
    Raises:
        BadList: as `read`; "foreign" when it is of another network or that authority does not vouch
            for it.
    """
    found = read(data)
    if found.network_id[: len(network_id)] != network_id:
        raise BadList("the answer is of another network than the invitation", "foreign")
    if (
        alone
        and found.vouched_by is None
        and [fingerprint] == [one.fingerprint for one in found.authorities]
    ):
        return found
    if found.vouched_by is None or found.vouched_by.fingerprint != fingerprint:
        raise BadList(
            "the authority that the invitation names does not vouch for the answer; ask for a new"
            " invitation, and tell who sent it",
            "foreign",
        )
    return found


def follow(current: TrustList, data: bytes) -> TrustList:
    """Return the list that counts now: a newer one of the same network, or the current.

    Raises:
        BadList: as `read`; "foreign" for another network or recovery key, "old" for a lower epoch
            or other content under the same.
    """
    found = read(data)
    if found.network_id != current.network_id or found.recovery_key != current.recovery_key:
        raise BadList("this trust list is of another network or recovery key", "foreign")
    if found.epoch > current.epoch:
        return found
    if found.epoch == current.epoch and found.authorities == current.authorities:
        return current
    raise BadList(
        f"this trust list has epoch {found.epoch}, and {current.epoch} is known here", "old"
    )


def _signed(by: Authority, message: bytes, signature: bytes) -> bool:
    key = certificates.key_of(by)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            hash_ = hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()
            key.verify(signature, message, ec.ECDSA(hash_))
    except InvalidSignature:
        return False
    return True


# --- The recovery key as text -----------------------------------------------------------------


_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PREFIX: Final = "smr1"
_SEED_BYTES: Final = 32
_CHECK_BYTES: Final = 3
_TEXT_LENGTH: Final = (_SEED_BYTES + _CHECK_BYTES) * 8 // 5
_LIKE: Final = str.maketrans("oil", "011", " -\n\t")


def recovery_text(seed: bytes) -> str:
    """Return a recovery key (32-byte seed) as people keep it: smr1- and 14 groups of 4."""
    number = int.from_bytes(seed + hashlib.sha256(seed).digest()[:_CHECK_BYTES], "big")
    digits = "".join(_DIGITS[number >> 5 * n & 31] for n in reversed(range(_TEXT_LENGTH)))
    groups = (digits[n : n + 4] for n in range(0, _TEXT_LENGTH, 4))
    return "-".join((_PREFIX, *groups))


def recovery_seed(text: str) -> bytes:
    """Return the 32-byte seed of a recovery key.

    Case, blanks and dashes do not matter, nor o for 0 and i or l for 1.

    Raises:
        ValueError: something is mistyped or missing. Never names the key.
    """
    plain = text.lower().translate(_LIKE).removeprefix(_PREFIX.translate(_LIKE))
    if len(plain) != _TEXT_LENGTH:
        raise ValueError(f"a recovery key has {_TEXT_LENGTH} characters behind smr1-")
    number = 0
    for character in plain:
        value = _DIGITS.find(character)
        if value < 0:
            raise ValueError("a recovery key has letters and digits only")
        number = number << 5 | value
    data = number.to_bytes(_SEED_BYTES + _CHECK_BYTES, "big")
    seed, check = data[:_SEED_BYTES], data[_SEED_BYTES:]
    if not sodium.equal(check, hashlib.sha256(seed).digest()[:_CHECK_BYTES]):
        raise ValueError("this recovery key is mistyped: its checksum does not fit")
    return seed


# --- Secrets ----------------------------------------------------------------------------------


def vouch_for_secret(
    sign: Callable[[bytes], bytes], network_id: bytes, epoch: int, secret: bytes
) -> bytes:
    """Return the issuer's signature, 64 bytes, for a network secret. Source: mesh-rules C6."""
    return sign(_secret_statement(network_id, epoch, secret))


def check_secret(
    issuer: Certificate, network_id: bytes, epoch: int, secret: bytes, signature: bytes
) -> None:
    """Refuse a network secret that the issuer does not vouch for.

    Args: issuer: a certificate that was verified and is on no list.
    Raises:
        BadList: "foreign".
    """
    if "issuer" not in issuer.roles or not issuer.issuer_key_id:
        raise BadList(f"{issuer.name} is no issuer and vouches for no secret", "foreign")
    statement = _secret_statement(network_id, epoch, secret)
    if len(signature) != _SIGNATURE_BYTES or not sodium.verify(
        issuer.public_key, statement, signature
    ):
        raise BadList("the issuer did not sign this network secret", "foreign")


def _secret_statement(network_id: bytes, epoch: int, secret: bytes) -> bytes:
    digest = hashlib.sha256(secret).digest()
    return _SECRET_LABEL + network_id + struct.pack("!I", epoch) + digest
