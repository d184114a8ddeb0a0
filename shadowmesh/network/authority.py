"""The keys that sign: an authority, and the revoker that it leaves behind when it goes offline.

Owns: how such a key is made, written (PKCS#8, under a passphrase or not) and read, and what it
signs. Does not know: what to sign (`issuer`), where the files lie (`store`).
Source: mesh section 3, mesh-rules C4.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from shadowmesh.base.errors import BadCertificate, IssuerRefused
from shadowmesh.network import certificate
from shadowmesh.network.certificate import Authority, Certificate, Profile, SigningKey, Usage

#: certificates live as long, so that nothing expires by surprise
LIFETIME: Final = timedelta(days=20 * 365)
ALGORITHMS: Final = ("ed25519", "p256", "p384")
#: the library derives keys of PKCS#8 by 2,048 rounds of PBKDF2: the passphrase has to be good
PASSPHRASE_MIN_CHARACTERS: Final = 12
#: a PEM with a P-384 key under a passphrase has less than 500 bytes
_MAX_PEM_BYTES: Final = 4096


class AuthorityKey:
    """The private key of an authority, with its certificate. No repr, str or pickle shows it."""

    __slots__ = ("_key", "authority")

    def __init__(self, key: SigningKey, authority: Authority) -> None:
        self._key = key
        self.authority = authority

    def issue(
        self, profile: Profile, public_key: bytes, not_before: datetime, not_after: datetime
    ) -> Certificate:
        """Return a new certificate of a member. Raises BadCertificate."""
        return certificate.issue(
            self._key, self.authority, profile, public_key, not_before, not_after
        )

    def make_revoker(self, network_name: str, now: datetime) -> RevokerKey:
        """Return a new key that may sign lists of this network and nothing else."""
        key = ed25519.Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        profile = Profile("revoker", network_name, roles=("revoker",))
        end = self.authority.not_after
        issued = certificate.issue(
            self._key, self.authority, profile, public, now, end, Usage.REVOKER
        )
        return RevokerKey(key, issued, self.authority)

    def sign_list(self, builder: x509.CertificateRevocationListBuilder) -> bytes:
        """Return a revocation list in DER."""
        return _sign_list(self._key, self.authority.der, builder)

    def sign(self, message: bytes) -> bytes:
        """Return a signature of message, as `signed_by` checks it."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        hash_ = certificate.hash_for(self._key)
        assert hash_ is not None
        return self._key.sign(message, ec.ECDSA(hash_))

    def pem(self, passphrase: str | None = None) -> bytes:
        """Return the key as PKCS#8, under a passphrase when there is one.

        Raises:
            IssuerRefused: the passphrase is too short.
        """
        return _pem(self._key, passphrase)

    def __reduce__(self) -> NoReturn:
        raise TypeError("the key of an authority does not leave its process")


class RevokerKey:
    """A key that signs revocation lists only, with the certificate that says so."""

    __slots__ = ("_key", "certificate", "issued_by")

    def __init__(
        self, key: ed25519.Ed25519PrivateKey, certificate: Certificate, issued_by: Authority
    ) -> None:
        self._key = key
        self.certificate = certificate
        self.issued_by = issued_by

    def sign_list(self, builder: x509.CertificateRevocationListBuilder) -> bytes:
        """Return a revocation list in DER."""
        return _sign_list(self._key, self.certificate.der, builder)

    def pem(self) -> bytes:
        """Return the key as PKCS#8."""
        return _pem(self._key, None)

    def __reduce__(self) -> NoReturn:
        raise TypeError("the key of a revoker does not leave its process")


def make_authority(
    network_name: str, now: datetime, algorithm: str = "ed25519", lifetime: timedelta = LIFETIME
) -> AuthorityKey:
    """Return a new authority: a key and its self-signed certificate.

    Args: algorithm: "ed25519", "p256" or "p384".
    """
    key: SigningKey
    if algorithm == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    elif algorithm in ALGORITHMS:
        key = ec.generate_private_key(ec.SECP256R1() if algorithm == "p256" else ec.SECP384R1())
    else:
        raise IssuerRefused(f"an authority is one of {', '.join(ALGORITHMS)}, not {algorithm}")
    if not certificate.is_label(network_name):
        raise BadCertificate("the name of a network is a DNS label in lower case")
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"{network_name} authority"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, network_name),
        ]
    )
    public = key.public_key()
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(certificate.key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, certificate.hash_for(key))
    )
    return AuthorityKey(key, certificate.parse_authority(signed.public_bytes(Encoding.DER)))


def load_authority(pem: bytes, certificate_der: bytes, passphrase: str | None) -> AuthorityKey:
    """Return an authority out of its two files.

    Raises:
        IssuerRefused: "passphrase" when there is none or a wrong one; else "key": no key of a kind
            that signs, or of another certificate.
        BadCertificate: the certificate is no authority's.
    """
    authority = certificate.parse_authority(certificate_der)
    key = _load_key(pem, passphrase)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki != authority.spki:
        raise IssuerRefused(
            "the key and the certificate of the authority do not belong together; restore both"
            " from one backup",
            "key",
        )
    return AuthorityKey(key, authority)


def load_revoker(pem: bytes, certificate_der: bytes, authority: Authority) -> RevokerKey:
    """Return a revoker out of its two files, and the authority that made it.

    Raises as `load_authority`.
    """
    issued = replace(
        certificate.parse(certificate_der, Usage.REVOKER),
        issuer_key_id=certificate.signer(certificate_der, [authority]).key_id,
    )
    key = _load_key(pem, None)
    if not isinstance(key, ed25519.Ed25519PrivateKey) or issued.public_key != (
        key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    ):
        raise IssuerRefused("the key and the certificate of the revoker are not of one", "key")
    return RevokerKey(key, issued, authority)


def needs_passphrase(pem: bytes) -> bool:
    """Tell whether a key lies under a passphrase."""
    return b"ENCRYPTED PRIVATE KEY" in pem


def _load_key(pem: bytes, passphrase: str | None) -> SigningKey:
    if needs_passphrase(pem) and not passphrase:
        raise IssuerRefused("the key of the authority is under a passphrase: give it", "passphrase")
    try:
        secret = passphrase.encode() if passphrase and needs_passphrase(pem) else None
        key = load_pem_private_key(pem[:_MAX_PEM_BYTES], secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # `from None`: what a parser says may quote what it has read
        if needs_passphrase(pem):
            raise IssuerRefused("this is not the authority's passphrase", "passphrase") from None
        raise IssuerRefused(
            "the file holds no private key in PEM; restore it from the backup", "key"
        ) from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        return key
    raise IssuerRefused("the key of an authority is Ed25519, P-256 or P-384", "key")


def _pem(key: SigningKey, passphrase: str | None) -> bytes:
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        if len(passphrase) < PASSPHRASE_MIN_CHARACTERS:
            raise IssuerRefused(
                f"a passphrase of an authority has {PASSPHRASE_MIN_CHARACTERS} characters or more",
                "passphrase",
            )
        encryption = BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _sign_list(
    key: SigningKey, signer_der: bytes, builder: x509.CertificateRevocationListBuilder
) -> bytes:
    subject = x509.load_der_x509_certificate(signer_der).subject
    signed = builder.issuer_name(subject).sign(key, certificate.hash_for(key))
    return signed.public_bytes(Encoding.DER)
