"""Revocation lists: what no longer counts, and how a member keeps track of it.

Owns: a list as bytes (a CRL, RFC 5280), who may sign one, which of two lists counts, what stays
revoked. Does not know: how lists travel, what the issuer puts on one (`issuer`), files.

A list of an authority is its CRL in DER. A list of a revoker (mesh-rules C4) is the certificate of
the revoker with its CRL behind it; it revokes certificates of the authority that signed the
revoker. The number decides which list is newer; dates never do. Source: mesh section 3, mesh-rules
C2 to C5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtensionOID

from shadowmesh.base.errors import BadCertificate, BadList
from shadowmesh.network import certificate as certificates
from shadowmesh.network.authority import AuthorityKey, RevokerKey
from shadowmesh.network.certificate import Authority, Certificate, Usage

#: bytes of a list; with 39 for each entry there is room for 6,700
MAX_BYTES: Final = 256 << 10
#: share of that at which the issuer warns, and at which it issues no more (it always revokes)
WARN_SHARE: Final = 0.7
FULL_SHARE: Final = 0.9
#: an entry leaves the signed list so long after its certificate has ended
KEPT_AFTER_END: Final = timedelta(days=30)
#: revoked serials that a member remembers: ten full lists
MAX_REMEMBERED: Final = 65_536
#: signing keys that a member follows: 4 authorities and their revokers
MAX_SIGNERS: Final = 16

_NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_MAX_NUMBER: Final = 1 << 63


class Reason(Enum):
    """Why a certificate is on a list. Source: mesh-rules C5."""

    #: there is a later one for the same key
    SUPERSEDED = "superseded"
    #: the key is out
    REMOVED = "removed"


#: (SHA-256 of the issuer's SPKI, serial number) names a certificate
Serial = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A list whose signature was checked.

    Attributes:
        data: as it travels.
        signer: names the key that signed it: SHA-256 of an authority's SPKI, or of the public key
            of a revoker. Numbers are compared within one signer.
        issuer_key_id: of the authority whose certificates it is about.
        content: the signed part: what two lists of one number are compared by, since an ECDSA
            signature can be written in two ways by anybody.
        entries: by serial number.
    """

    data: bytes
    signer: bytes
    issuer_key_id: bytes
    number: int
    made_at: datetime
    content: bytes
    entries: Mapping[int, Reason]


# --- One list ---------------------------------------------------------------------------------


def make(
    key: AuthorityKey | RevokerKey, number: int, now: datetime, entries: Mapping[int, Reason]
) -> bytes:
    """Return a signed list as it travels.

    Raises:
        BadList: it would be larger than a list may be.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .last_update(now)
        .next_update(_NEVER)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in sorted(entries):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        if entries[serial] is Reason.SUPERSEDED:
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.superseded), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    data = key.sign_list(builder)
    if isinstance(key, RevokerKey):
        data = key.certificate.der + data
    if len(data) > MAX_BYTES:
        raise BadList(
            f"the revocation list would have {len(data)} bytes, {MAX_BYTES} are possible; give all"
            " members new certificates with `shadowmesh network compact`"
        )
    return data


def read(data: bytes, authorities: Iterable[Authority]) -> RevocationList:
    """Return a list that an authority of the network, or a revoker of it, signed.

    Raises:
        BadList: "malformed", or "foreign": nobody signed it who may.
    """
    if len(data) > MAX_BYTES:
        raise BadList(f"this revocation list has {len(data)} bytes, {MAX_BYTES} are possible")
    try:
        with certificates.strictly():
            return _read(data, tuple(authorities))
    except (BadList, BadCertificate) as error:
        raise BadList(str(error), getattr(error, "kind", "malformed")) from None
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        OverflowError,
        Warning,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
    ):
        # What the library says of it is about its own parser.
        raise BadList("this is not a revocation list that can be read") from None


def _read(data: bytes, authorities: tuple[Authority, ...]) -> RevocationList:
    first, rest = _split(data)
    loaded = x509.load_der_x509_crl(rest or first)
    signer: Authority | Certificate
    if rest:
        revoker = certificates.parse(first, Usage.REVOKER)
        authority = certificates.signer(first, authorities)
        signer, name = revoker, revoker.public_key
        if not _signed(loaded, signer):
            raise BadList("the revoker did not sign this revocation list", "foreign")
    else:
        for authority in authorities:
            if _signed(loaded, authority):
                signer, name = authority, authority.key_id
                break
        else:
            raise BadList("no authority of this network signed this revocation list", "foreign")
    for extension in loaded.extensions:
        if extension.critical:
            raise BadList(
                f"the revocation list has the critical extension {extension.oid.dotted_string},"
                " which is not understood here"
            )
    number = loaded.extensions.get_extension_for_oid(ExtensionOID.CRL_NUMBER).value
    assert isinstance(number, x509.CRLNumber)
    if not 0 <= number.crl_number < _MAX_NUMBER:
        raise BadList("the number of this revocation list is out of range")
    return RevocationList(
        data=data,
        signer=name,
        issuer_key_id=authority.key_id,
        number=number.crl_number,
        made_at=loaded.last_update_utc,
        content=loaded.tbs_certlist_bytes,
        entries={one.serial_number: _reason(one) for one in loaded},
    )


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Return the first DER element, and what stands behind it."""
    if len(data) < 4:
        raise BadList("this is not a revocation list")
    length, header = data[1], 2
    if length & 0x80:
        octets = length & 0x7F
        length, header = int.from_bytes(data[2 : 2 + octets], "big"), 2 + octets
    end = header + length
    return data[:end], data[end:]


def _signed(loaded: x509.CertificateRevocationList, by: Authority | Certificate) -> bool:
    try:
        algorithm = loaded.signature_hash_algorithm
        if algorithm is not None and not isinstance(algorithm, _HASHES):
            return False
        return loaded.is_signature_valid(certificates.key_of(by))
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False


def _reason(entry: x509.RevokedCertificate) -> Reason:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return Reason.REMOVED
    return Reason.SUPERSEDED if reason is x509.ReasonFlags.superseded else Reason.REMOVED


# --- All lists --------------------------------------------------------------------------------


class Taken(Enum):
    """What became of a list that arrived."""

    NEWER = "newer"
    KNOWN = "known"
    OLDER = "older"
    #: two lists of one number: SM-CRL-FORK; the entries of both count
    FORK = "fork"


class Revocations:
    """All lists that a member knows, and every serial that it has ever seen revoked."""

    def __init__(self, remembered: Mapping[Serial, Reason] | None = None) -> None:
        self._lists: dict[bytes, RevocationList] = {}
        self._revoked: dict[Serial, Reason] = dict(remembered or {})

    def take(self, offered: RevocationList) -> Taken:
        """Let a list count if it is newer than what is known of its signer.

        Raises:
            BadList: more signers or entries than a network can have; nothing changed.
        """
        known = self._lists.get(offered.signer)
        if known is None:
            if len(self._lists) >= MAX_SIGNERS:
                raise BadList(f"more than {MAX_SIGNERS} keys sign lists of this network")
            taken = Taken.NEWER
        elif offered.number < known.number:
            return Taken.OLDER
        elif offered.number == known.number:
            if offered.content == known.content:
                return Taken.KNOWN
            taken = Taken.FORK
        else:
            taken = Taken.NEWER
        merged = union(
            self._revoked,
            {(offered.issuer_key_id, serial): why for serial, why in offered.entries.items()},
        )
        if len(merged) > MAX_REMEMBERED:
            raise BadList(f"more than {MAX_REMEMBERED} certificates would be remembered as revoked")
        self._revoked = merged
        if taken is Taken.NEWER:
            self._lists[offered.signer] = offered
        return taken

    def check(self, certificate: Certificate) -> None:
        """Refuse a verified certificate that is on a list, or whose authority has no list.

        Raises:
            BadCertificate: "revoked", "superseded" or "unlisted".
        """
        reason = self._revoked.get((certificate.issuer_key_id, certificate.serial))
        if reason is Reason.SUPERSEDED:
            raise BadCertificate(
                f"the certificate of {certificate.name} was replaced by a newer one; its holder"
                " fetches that by itself",
                "superseded",
            )
        if reason is Reason.REMOVED:
            raise BadCertificate(
                f"{certificate.name} was removed from network {certificate.network_name}; only a"
                " new invitation lets that machine in again",
                "revoked",
            )
        if certificate.issuer_key_id not in self._lists:
            raise BadCertificate(
                "no revocation list of the authority is known yet, so nobody is let in by its"
                " certificates; join again, or wait until a relay sends one",
                "unlisted",
            )

    @property
    def lists(self) -> tuple[RevocationList, ...]:
        """The newest list of each signer."""
        return tuple(self._lists.values())

    @property
    def remembered(self) -> Mapping[Serial, Reason]:
        """Every serial ever seen revoked: what must survive a restart."""
        return self._revoked

    @property
    def numbers(self) -> dict[bytes, int]:
        """The number of the newest list by signer."""
        return {signer: one.number for signer, one in self._lists.items()}

    @property
    def newest(self) -> datetime | None:
        """The latest date on a list."""
        return max((one.made_at for one in self._lists.values()), default=None)

    def of(self, issuer_key_id: bytes) -> dict[int, Reason]:
        """Return everything revoked of one authority: what its next list is the union of."""
        return {
            serial: why
            for (issuer, serial), why in self._revoked.items()
            if issuer == issuer_key_id
        }

    def keep(self, authorities: Iterable[Authority]) -> None:
        """Forget lists and serials of authorities that the network no longer has."""
        kept = {one.key_id for one in authorities}
        self._lists = {key: one for key, one in self._lists.items() if one.issuer_key_id in kept}
        self._revoked = {key: why for key, why in self._revoked.items() if key[0] in kept}


def union(one: Mapping[Serial, Reason], other: Mapping[Serial, Reason]) -> dict[Serial, Reason]:
    """Return the entries of both; once removed is removed, whatever another list says."""
    merged = dict(one)
    for serial, why in other.items():
        if merged.get(serial) is not Reason.REMOVED:
            merged[serial] = why
    return merged
