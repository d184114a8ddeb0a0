"""TLS for the peer port: the certificate, the two contexts, the hash that a handshake reports.

Owns: how the certificate comes to be and is checked, TLS versions and ALPN. Does not know:
WebSocket, sockets being dialled or accepted, who trusts whom.

TLS is transport and camouflage here, not trust: the peer is authenticated inside, and each side
reports in that handshake which certificate it served or saw. So nothing here verifies a chain.
Source: protocol section 5.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from shadowmesh.base.constants import TLS_ALPN
from shadowmesh.base.errors import KeyFileError
from shadowmesh.fast.openssl import Tls, TlsContext, TlsError
from shadowmesh.keys.private_file import open_private_file, why_not_opened, write_private_file

#: What countless self-signed certificates say; the real host name would tell every scanner more
#: about this machine than it needs to know.
CERTIFICATE_NAME: Final = "localhost"
#: No client checks it, so an expiry could only cause an outage.
CERTIFICATE_VALID_DAYS: Final = 20 * 365
#: A clock that is behind at first start must not make the certificate lie in the future.
CERTIFICATE_BACKDATE_DAYS: Final = 365


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key on disk, checked to belong together.

    Attributes:
        sha256: 32 bytes, the hash of the DER form of the first certificate of the file.
        not_before, not_after: from when to when it is valid, wall-clock seconds.
    """

    cert_path: Path
    key_path: Path
    sha256: bytes
    not_before: float
    not_after: float


def load_or_create_certificate(cert_path: Path, key_path: Path) -> Certificate:
    """Return the certificate to serve; both files are made when neither exists.

    Files that exist are used as they are and never changed: the operator may have put a chain
    from a real authority there. Both may be symbolic links, as certbot makes them.

    Raises:
        KeyFileError: only one of the two exists; one is unreadable, no PEM, or needs a
            password; the key is not private or not the certificate's; a file cannot be made.
    Source: protocol sections 5 and 10.
    """
    have_cert, have_key = _exists(cert_path), _exists(key_path)
    if not have_cert and not have_key:
        _create(cert_path, key_path)
    elif not (have_cert and have_key):
        there, missing = (cert_path, key_path) if have_cert else (key_path, cert_path)
        raise KeyFileError(
            f"{missing}: missing, but {there} exists; restore it, or move {there} away to get a"
            " new pair"
        )
    certificate = _look_at(cert_path, key_path)
    server_context(certificate)
    return certificate


def load_renewed(certificate: Certificate) -> tuple[Certificate, TlsContext]:
    """Return what the files of a certificate hold by now, and the context to serve it with.

    Nothing is made: files that are gone are a mistake.

    Raises:
        KeyFileError: as for `load_or_create_certificate`, or they are being replaced right now.
    """
    renewed = _look_at(certificate.cert_path, certificate.key_path)
    context = server_context(renewed)
    # What is told to the peer has to be what is served: the context has read the file anew.
    if _look_at(certificate.cert_path, certificate.key_path) != renewed:
        raise KeyFileError(
            f"{certificate.cert_path}: changed while it was read; reload again when it is complete"
        )
    return renewed, context


def _look_at(cert_path: Path, key_path: Path) -> Certificate:
    _check_private(key_path)
    first = _read_first(cert_path)
    return Certificate(
        cert_path,
        key_path,
        hashlib.sha256(first.public_bytes(Encoding.DER)).digest(),
        first.not_valid_before_utc.timestamp(),
        first.not_valid_after_utc.timestamp(),
    )


def server_context(certificate: Certificate) -> TlsContext:
    """Return a context for accepting peers: TLS 1.3 only, no client certificate, no tickets.

    Raises:
        KeyFileError: the files cannot be loaded or do not belong together.
    """
    context = TlsContext(True, TLS_ALPN)
    cert_path, key_path = certificate.cert_path, certificate.key_path
    try:
        context.load(cert_path, key_path)
    except PermissionError:
        raise KeyFileError(
            f"{key_path}: is protected by a password; store the key without one"
        ) from None
    except TlsError as error:
        if error.strerror == "key values mismatch":
            problem = f"{key_path}: is not the key of {cert_path}"
        else:
            problem = f"{cert_path}, {key_path}: cannot be loaded: {error.strerror}"
        raise KeyFileError(
            f"{problem}; restore the pair, or move both away to get a new one"
        ) from None
    return context


def client_context() -> TlsContext:
    """Return a context for dialling peers: TLS 1.3 only, any certificate."""
    return TlsContext(False, TLS_ALPN)


def peer_certificate_sha256(connection: Tls) -> bytes:
    """Return the 32-byte hash of the DER certificate that the server of this connection served.

    Args:
        connection: client side, TLS handshake done.
    """
    der = connection.peer_certificate()
    if not der:
        raise ValueError("the server of this connection showed no certificate")
    return hashlib.sha256(der).digest()


def _exists(path: Path) -> bool:
    """True if anything has this name, a dangling symbolic link included."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KeyFileError(
            f"{path}: cannot be looked at: {error.strerror}; set websocket.tls_cert and"
            " websocket.tls_key to files that this user may read"
        ) from None
    return True


def _check_private(key_path: Path) -> None:
    """Refuse a key that others may read, like every file with a secret."""
    remedy = "get a new certificate with a new key"
    try:
        os.close(open_private_file(key_path, remedy, follow=True))
    except FileNotFoundError:
        raise KeyFileError(
            f"{key_path}: is a symbolic link to nothing; see `ls -l {key_path}`"
        ) from None


def _read_first(cert_path: Path) -> x509.Certificate:
    """Return the first certificate in a PEM file."""
    try:
        return x509.load_pem_x509_certificate(cert_path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"{cert_path}: {why_not_opened(cert_path, error)}") from None
    except ValueError:
        raise KeyFileError(
            f"{cert_path}: holds no PEM certificate; restore it, or move it and the key away to"
            " get a new pair"
        ) from None


def _create(cert_path: Path, key_path: Path) -> None:
    """Write a new key and its self-signed certificate; the key first, both mode 0600.

    A crash between the two leaves a key alone, which the next start refuses by name.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CERTIFICATE_NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=CERTIFICATE_BACKDATE_DAYS))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(CERTIFICATE_NAME)]), False)
        .sign(key, hashes.SHA256())
    )
    pem_key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, data in ((key_path, pem_key), (cert_path, certificate.public_bytes(Encoding.PEM))):
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_private_file(path, data)
        except FileExistsError:
            raise KeyFileError(
                f"{path}: appeared while it was being made; is another daemon starting? If not,"
                f" move {cert_path} and {key_path} away and start again"
            ) from None
        except (OSError, KeyFileError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise KeyFileError(
                f"{path.parent}: no certificate can be stored there: {why}; set"
                " websocket.tls_cert and websocket.tls_key to files that this user may write"
            ) from None
