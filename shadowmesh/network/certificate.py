"""Certificates: who is a member, by which name, with which addresses and roles.

Owns: what stands in a certificate and how it is read, what makes one belong to a network, how one
is made. Does not know: revocation lists (`revocation`), which authorities a network has (`trust`),
files, the clock.

A certificate is X.509 v3, so that openssl shows it and another CA can make it::

    subject   CN = name (a DNS label)   O = network   OU = role:relay, tag:factory, ...
    key       Ed25519: the identity of the member
    SAN       iPAddress: its addresses in the tunnel
    CA:false, key usage digitalSignature, extended key usage 2.25.286141315530172541520614882016769892044

An authority has CA:true, keyCertSign and cRLSign; a revoker (mesh-rules C4) is a leaf with
role:revoker that may sign lists (cRLSign) and nothing else. Unknown OUs mean nothing, unknown
critical extensions are refused. Source: mesh section 3, mesh-rules A4, B5, C4.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from shadowmesh.base.constants import CERTIFICATE_MAX_BYTES
from shadowmesh.base.errors import BadCertificate
from shadowmesh.keys import sodium
from shadowmesh.keys.mac import stable_mac
from shadowmesh.network.clock import spell
from shadowmesh.wire.mesh import identifiers

#: bytes of a certificate in DER, an authority's too: what fits the record that carries it
MAX_BYTES: Final = CERTIFICATE_MAX_BYTES
#: extended key usage of members: below 2.25 everybody may draw a number (ITU-T X.667)
USAGE: Final = x509.ObjectIdentifier("2.25.286141315530172541520614882016769892044")

MAX_UNITS: Final = 32
MAX_ADDRESSES: Final = 8
#: roles that mean something today; a certificate may name others
ROLES: Final = frozenset({"bridge", "gateway", "issuer", "relay", "revoker"})

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
#: of roles and tags; "role:" and it are 64 characters at most, as X.520 has it
_WORD: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,31})", re.ASCII)
_SIGNATURE_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_UNDERSTOOD: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)

Address = IPv4Address | IPv6Address
#: of an authority or a revoker
SigningKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
VerifyingKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
Kind = TypeVar("Kind", bound=x509.ExtensionType)
Read = TypeVar("Read")


class Usage(Enum):
    """What a leaf is for; no certificate is for both."""

    MEMBER = "member"
    REVOKER = "revoker"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says; true only once `verify` has returned it.

    Attributes:
        public_key: Ed25519, 32 bytes.
        network_name: for people; what network it belongs to, its signature tells.
        addresses: in the tunnel, in the order of the certificate.
        issuer_key_id: SHA-256 of the SubjectPublicKeyInfo of the authority whose signature it has;
            empty before `verify`. With `serial` it names the certificate for good.
    """

    der: bytes
    public_key: bytes
    name: str
    network_name: str
    roles: frozenset[str]
    tags: frozenset[str]
    addresses: tuple[Address, ...]
    serial: int
    not_before: datetime
    not_after: datetime
    issuer_key_id: bytes = b""

    @property
    def node_id(self) -> bytes:
        """8 bytes that name the member on the wire."""
        return identifiers.node_id(self.public_key)

    @property
    def mac(self) -> bytes:
        """6 bytes that no other member can own."""
        return stable_mac(self.public_key)


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate of an authority: a key that a network may trust.

    Attributes:
        spki: SubjectPublicKeyInfo in DER.
        key_id: SHA-256 of it; of a network's first authority it is the network id.
    """

    der: bytes
    name: str
    spki: bytes
    key_id: bytes
    not_before: datetime
    not_after: datetime

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that an invitation carries."""
        return self.key_id[:16]


# --- Reading ----------------------------------------------------------------------------------


def parse(der: bytes, usage: Usage = Usage.MEMBER) -> Certificate:
    """Return what a certificate says, without asking whether it is true.

    Raises:
        BadCertificate: too large, not X.509 v3, or not what a member (a revoker) of a network has.
    """
    return _guarded(lambda: _parse(der, usage))


def parse_authority(der: bytes) -> Authority:
    """Return what the certificate of an authority says.

    Raises:
        BadCertificate: too large, not X.509 v3, no CA that signs certificates and lists, or its key
            is none of Ed25519, P-256 and P-384.
    """
    return _guarded(lambda: _parse_authority(der))


def verify(
    certificate: Certificate, authorities: Iterable[Authority], now: datetime
) -> Certificate:
    """Return the certificate as one of this network, with `issuer_key_id`.

    Args:
        authorities: of the network that this certificate is to belong to, and of no other.
        now: the time of `clock.checking_time`. When it begins to be valid is not asked.
    Raises:
        BadCertificate: "foreign" or "expired". Whether it is revoked the lists tell.
    """
    authority = signer(certificate.der, authorities)
    not_after = min(certificate.not_after, authority.not_after)
    if now > not_after:
        whose = "the certificate" if not_after == certificate.not_after else "the authority"
        raise BadCertificate(
            f"{whose} of {certificate.name} in network {certificate.network_name} expired on"
            f" {spell(not_after)} and it is {spell(now)} here; renew it, or set the clock if that"
            " is wrong",
            "expired",
        )
    return replace(certificate, issuer_key_id=authority.key_id)


def signer(der: bytes, authorities: Iterable[Authority]) -> Authority:
    """Return the authority whose signature a certificate has.

    Raises:
        BadCertificate: "foreign": none of them, or signed in a way that is not taken.
    """
    loaded = _guarded(lambda: _load(der))
    for authority in authorities:
        if _signed_by(loaded, authority):
            return authority
    raise BadCertificate(
        "the certificate is of another network: no authority of this network signed it", "foreign"
    )


def key_of(authority: Authority | Certificate) -> VerifyingKey:
    """Return the key that checks what an authority or a revoker signs."""
    if isinstance(authority, Certificate):
        return ed25519.Ed25519PublicKey.from_public_bytes(authority.public_key)
    return _verifying_key(_load(authority.der).public_key())


def _signed_by(loaded: x509.Certificate, authority: Authority) -> bool:
    try:
        algorithm = loaded.signature_hash_algorithm
        if algorithm is not None and not isinstance(algorithm, _SIGNATURE_HASHES):
            return False
        loaded.verify_directly_issued_by(_load(authority.der))
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _guarded(work: Callable[[], Read]) -> Read:
    """Do what reads foreign bytes: whatever the library says of them is one kind of error."""
    try:
        with strictly():
            return work()
    except BadCertificate:
        raise
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        OverflowError,
        Warning,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        # What the library says of it is about its own parser.
        raise BadCertificate("this is not an X.509 certificate that can be read") from None


@contextmanager
def strictly() -> Iterator[None]:
    """Refuse what the library would warn of and read: a later version of it may refuse that.

    Else a stranger's bytes would also write into the log. Nothing in it may switch to another
    greenlet, which would find the same rule.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _load(der: bytes) -> x509.Certificate:
    if len(der) > MAX_BYTES:
        raise BadCertificate(f"this certificate has {len(der)} bytes; {MAX_BYTES} are possible")
    loaded = x509.load_der_x509_certificate(der)
    if loaded.version is not x509.Version.v3:
        raise BadCertificate("this certificate is not of version 3")
    if der[-len(loaded.signature) - 1] != 0:
        # The library ignores how many bits of a signature are said to be unused.
        raise BadCertificate("the signature of this certificate is written in a second way")
    return loaded


def _parse(der: bytes, usage: Usage) -> Certificate:
    loaded = _load(der)
    extensions = _extensions(loaded)
    constraints = _one(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise BadCertificate("this is the certificate of an authority, not of a member")
    _check_usage(extensions, usage)
    roles, tags = _units(loaded.subject)
    if ("revoker" in roles) is not (usage is Usage.REVOKER):
        raise BadCertificate(
            "a revoker signs lists and is nobody's member: its certificate stands for nothing else"
        )
    key = loaded.public_key()
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise BadCertificate("the key of a member is Ed25519, this one is another kind")
    public = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    if not sodium.is_valid_public_key(public):
        raise BadCertificate("the key in this certificate is no valid Ed25519 public key")
    if loaded.serial_number <= 0:
        raise BadCertificate("the serial number of this certificate is not positive")
    if loaded.not_valid_after_utc < loaded.not_valid_before_utc:
        raise BadCertificate("this certificate ends before it begins")
    return Certificate(
        der=der,
        public_key=public,
        name=_label(loaded.subject, NameOID.COMMON_NAME, "CN"),
        network_name=_label(loaded.subject, NameOID.ORGANIZATION_NAME, "O"),
        roles=roles,
        tags=tags,
        addresses=_addresses(extensions),
        serial=loaded.serial_number,
        not_before=loaded.not_valid_before_utc,
        not_after=loaded.not_valid_after_utc,
    )


def _parse_authority(der: bytes) -> Authority:
    loaded = _load(der)
    extensions = _extensions(loaded)
    constraints = _one(extensions, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise BadCertificate("this is not the certificate of an authority (no CA:true)")
    usage = _one(extensions, x509.KeyUsage)
    if usage is None or not (usage.key_cert_sign and usage.crl_sign):
        raise BadCertificate(
            "an authority has the key usages keyCertSign and cRLSign, this certificate has not"
        )
    key = _verifying_key(loaded.public_key())
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Authority(
        der=der,
        name=loaded.subject.rfc4514_string(),
        spki=spki,
        key_id=identifiers.network_id(spki),
        not_before=loaded.not_valid_before_utc,
        not_after=loaded.not_valid_after_utc,
    )


def _verifying_key(key: CertificatePublicKeyTypes) -> VerifyingKey:
    if isinstance(key, ed25519.Ed25519PublicKey):
        if sodium.is_valid_public_key(key.public_bytes(Encoding.Raw, PublicFormat.Raw)):
            return key
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        return key
    raise BadCertificate("the key of an authority is Ed25519, P-256 or P-384, this one is not")


def _extensions(loaded: x509.Certificate) -> x509.Extensions:
    for extension in loaded.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise BadCertificate(
                f"this certificate has the critical extension {extension.oid.dotted_string}, which"
                " is not understood here"
            )
    return loaded.extensions


def _one(extensions: x509.Extensions, kind: type[Kind]) -> Kind | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _check_usage(extensions: x509.Extensions, usage: Usage) -> None:
    found = _one(extensions, x509.KeyUsage)
    member = usage is Usage.MEMBER
    if (
        found is None
        or found.key_cert_sign
        or found.crl_sign is member
        or found.digital_signature is not member
    ):
        wanted = "digitalSignature" if member else "cRLSign"
        raise BadCertificate(f"the certificate of a {usage.value} has the key usage {wanted} alone")
    extended = _one(extensions, x509.ExtendedKeyUsage)
    if extended is None or USAGE not in extended:
        raise BadCertificate(
            f"this certificate is for something else: it lacks the extended key usage"
            f" {USAGE.dotted_string}"
        )


def _label(subject: x509.Name, oid: x509.ObjectIdentifier, what: str) -> str:
    values = [one.value for one in subject.get_attributes_for_oid(oid)]
    if len(values) == 1 and isinstance(values[0], str) and is_label(values[0]):
        return values[0]
    raise BadCertificate(f"the subject of a certificate has one {what}, a DNS label in lower case")


def _units(subject: x509.Name) -> tuple[frozenset[str], frozenset[str]]:
    units = subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    if len(units) > MAX_UNITS:
        raise BadCertificate(f"this certificate has {len(units)} OUs; {MAX_UNITS} are possible")
    found: dict[str, set[str]] = {"role": set(), "tag": set()}
    for unit in units:
        kind, _, word = str(unit.value).partition(":")
        if kind in found and is_word(word):
            found[kind].add(word)
    return frozenset(found["role"]), frozenset(found["tag"])


def _addresses(extensions: x509.Extensions) -> tuple[Address, ...]:
    names = _one(extensions, x509.SubjectAlternativeName)
    found = [] if names is None else names.get_values_for_type(x509.IPAddress)
    if len(found) > MAX_ADDRESSES:
        raise BadCertificate(
            f"this certificate has {len(found)} addresses; {MAX_ADDRESSES} are possible"
        )
    if len(set(found)) != len(found):
        raise BadCertificate("this certificate has an address twice")
    addresses = []
    for address in found:
        if not isinstance(address, IPv4Address | IPv6Address) or is_special(address):
            raise BadCertificate(f"{address} is no address that a member can have")
        addresses.append(address)
    return tuple(addresses)


def is_special(address: Address) -> bool:
    """Tell whether no machine of a network can have this address."""
    return (
        address.is_multicast
        or address.is_loopback
        or address.is_unspecified
        or address.is_link_local
        or (address.is_reserved and address.version == 4)
        or (isinstance(address, IPv6Address) and address.ipv4_mapped is not None)
    )


def is_label(text: str) -> bool:
    """Tell whether text is a DNS label in lower case, as names of members and networks are."""
    return _LABEL.fullmatch(text) is not None


def is_word(text: str) -> bool:
    """Tell whether text may be a role or a tag: 1 to 32 of a-z, 0-9, dot, dash, underscore."""
    return _WORD.fullmatch(text) is not None


# --- Making -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Profile:
    """What the issuer lets a certificate say. Source: mesh-rules B5."""

    name: str
    network_name: str
    roles: Collection[str] = ()
    tags: Collection[str] = ()
    addresses: tuple[Address, ...] = ()


def issue(
    key: SigningKey,
    authority: Authority,
    profile: Profile,
    public_key: bytes,
    not_before: datetime,
    not_after: datetime,
    usage: Usage = Usage.MEMBER,
) -> Certificate:
    """Return a new certificate, read back by the rules that everybody reads it by.

    Args:
        key: of the authority.
        public_key: Ed25519, 32 bytes.
        not_after: cut at the end of the authority.
    Raises:
        BadCertificate: the profile or the key cannot be in a certificate of this network.
    """
    if not is_label(profile.name) or not is_label(profile.network_name):
        raise BadCertificate("the names in a certificate are DNS labels in lower case")
    for word in (*profile.roles, *profile.tags):
        if not is_word(word):
            raise BadCertificate(f"{word} is no role or tag: a-z, 0-9, dot, dash, at most 32")
    if not sodium.is_valid_public_key(public_key):
        raise BadCertificate("this is not a valid Ed25519 public key")
    member = usage is Usage.MEMBER
    units = [f"role:{one}" for one in sorted(profile.roles)]
    units += [f"tag:{one}" for one in sorted(profile.tags)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, profile.name),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, profile.network_name),
                    *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, one) for one in units),
                ]
            )
        )
        .issuer_name(_load(authority.der).subject)
        .public_key(ed25519.Ed25519PublicKey.from_public_bytes(public_key))
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(min(not_after, authority.not_after))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=member, crl_sign=not member), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USAGE]), critical=False)
    )
    if profile.addresses:
        names = x509.SubjectAlternativeName([x509.IPAddress(one) for one in profile.addresses])
        builder = builder.add_extension(names, critical=False)
    signed = builder.sign(key, hash_for(key))
    return verify(parse(signed.public_bytes(Encoding.DER), usage), [authority], not_before)


def key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """Return a key usage with these and no other."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def hash_for(key: SigningKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash that goes with a signing key; None for Ed25519, which has its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    return hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()


# --- Requests ---------------------------------------------------------------------------------


def request(seed: bytes, name: str) -> bytes:
    """Return a certificate request (PKCS#10, DER) for the identity of a 32-byte seed."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, None)
    return signed.public_bytes(Encoding.DER)


def requested_key(der: bytes) -> bytes:
    """Return the public key that a request is for: nothing else of it is believed.

    Raises:
        BadCertificate: no request, not signed by its key, or the key is no valid Ed25519.
    Source: mesh-rules B5.
    """
    return _guarded(lambda: _requested_key(der))


def _requested_key(der: bytes) -> bytes:
    if len(der) > MAX_BYTES:
        raise BadCertificate(f"this request has {len(der)} bytes; {MAX_BYTES} are possible")
    loaded = x509.load_der_x509_csr(der)
    key = loaded.public_key()
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise BadCertificate("the key of a member is Ed25519, this request has another kind")
    public = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    if not sodium.is_valid_public_key(public) or not loaded.is_signature_valid:
        raise BadCertificate("this request is not signed by the key that it is for")
    return public
