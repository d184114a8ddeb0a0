"""What of a network lies in files of its operator, as operators are told.

Owns: what is said, and its JSON form. Does not know: where it comes from (`network`), HTTP, files.
What is secret in it says so.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Final

from shadowmesh.insight.form import SCHEMA, format_time
from shadowmesh.insight.network import NetworkReport


@dataclass(frozen=True, slots=True)
class Received:
    """How much of a file is here. `bytes` counts from its beginning."""

    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Backup:
    """A network in one file, under a passphrase.

    Attributes:
        backup: base64 of the file.
        lacking: sentences about what should be in it and is not on this machine.
    """

    backup: str = field(repr=False)
    lacking: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "backup": self.backup, "lacking": list(self.lacking)}


@dataclass(frozen=True, slots=True)
class Restored:
    """A network that came out of a backup. `cancelled` counts its open invitations, which are void."""

    network: NetworkReport
    cancelled: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "network": self.network.to_dict(),
            "cancelled": self.cancelled,
        }


@dataclass(frozen=True, slots=True)
class ExportedKey:
    """The authority's key. `key` is PEM under a passphrase, with the certificate behind it."""

    authority: str
    key: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "authority": self.authority, "key": self.key}


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """What a CA signs. `request` is PEM (PKCS#10), `public_key` the base64 of the key that it is for."""

    public_key: str
    request: str

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "public_key": self.public_key, "request": self.request}


@dataclass(frozen=True, slots=True)
class CertificateReport:
    """A certificate of a member; moments are unix time.

    Attributes:
        public_key: base64.
        serial: hexadecimal.
        authority: fingerprint of who signed it; empty while nobody is known to have.
        problem: why it counts no more; None: it does.
        pem: the certificate itself.
    """

    name: str
    network: str
    public_key: str
    serial: str
    authority: str
    roles: tuple[str, ...]
    tags: tuple[str, ...]
    addresses: tuple[str, ...]
    begins_at: float
    expires_at: float
    problem: str | None
    pem: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "network": self.network,
            "public_key": self.public_key,
            "serial": self.serial,
            "authority": self.authority,
            "roles": list(self.roles),
            "tags": list(self.tags),
            "addresses": list(self.addresses),
            "begins_at": format_time(self.begins_at),
            "expires_at": format_time(self.expires_at),
            "problem": self.problem,
            "pem": self.pem,
        }


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate, and the file for its machine. Only that can read the secret in `bundle`."""

    certificate: CertificateReport
    bundle: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "certificate": self.certificate.to_dict(),
            "bundle": self.bundle,
        }


@dataclass(frozen=True, slots=True)
class Renewal:
    """The certificate of today. `renewed`: it is another than before."""

    certificate: CertificateReport
    renewed: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "certificate": self.certificate.to_dict(),
            "renewed": self.renewed,
        }


@dataclass(frozen=True, slots=True)
class Installation:
    """What a bundle makes of this machine.

    Attributes:
        authority: fingerprint, for comparing with that of the network.
        doubts: sentences to think about before it is taken.
        member: this machine is a member of that network already.
        taken: it is now; else nothing has changed.
    """

    network: str
    authority: str
    name: str
    addresses: tuple[str, ...]
    subnets: tuple[str, ...]
    doubts: tuple[str, ...]
    member: bool
    taken: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "network": self.network,
            "authority": self.authority,
            "name": self.name,
            "addresses": list(self.addresses),
            "subnets": list(self.subnets),
            "doubts": list(self.doubts),
            "member": self.member,
            "taken": self.taken,
        }


#: each of them is an answer by itself
ANSWERS: Final = (
    Received, Backup, Restored, ExportedKey, CertificateRequest, Signed, Renewal, Installation,
)  # fmt: skip


def as_text(data: bytes) -> str:
    """Return bytes as JSON carries them."""
    return base64.b64encode(data).decode("ascii")
