"""What serves the routes about keys of a network and its operator's files.

Owns: what each of them hands over and answers. Does not know: gevent, how the daemon does what it is
asked. A part of the handlers of `app`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from shadowmesh.control.answers import json_answer
from shadowmesh.insight.form import SCHEMA

if TYPE_CHECKING:
    from flask import Response

    from shadowmesh.insight.custody import (
        Backup,
        CertificateReport,
        CertificateRequest,
        ExportedKey,
        Installation,
        Received,
        Renewal,
        Restored,
        Signed,
    )
    from shadowmesh.insight.network import Founded, Invited, NetworkReport


class Custody(Protocol):
    """What is asked of the daemon. Failures are `ControlError`s; none repeats a secret."""

    def receive(self, offset: int, data: bytes) -> Received:
        """Take a piece of a file; offset 0 begins another one."""
        ...

    def back_up(self, passphrase: str, recovery_key: str | None) -> Backup: ...

    def restore(self, digest: str, passphrase: str) -> Restored:
        """Be what a backup says, which was received; the daemon begins anew after the answer."""
        ...

    def adopt(
        self,
        authority: bytes,
        certificate: bytes,
        revoked: bytes,
        subnets: Sequence[str],
        address: str | None,
    ) -> Founded:
        """Make a network under a CA that is not ours; the daemon begins anew after the answer."""
        ...

    def take_list(self, digest: str) -> Sequence[str]:
        """Let a revocation list count that was received; return who is out."""
        ...

    def export_authority(self, passphrase: str) -> ExportedKey: ...

    def release_authority(self, kept: str, passphrase: str) -> NetworkReport:
        """Remove the key; the daemon begins anew after the answer."""
        ...

    def import_authority(self, kept: str, passphrase: str) -> NetworkReport:
        """Bring it back; the daemon begins anew after the answer."""
        ...

    def request(self, name: str | None) -> CertificateRequest: ...

    def sign(
        self,
        request: bytes,
        name: str,
        roles: Sequence[str] | None,
        tags: Sequence[str] | None,
        addresses: Sequence[str],
        expires_s: int | None,
    ) -> Signed: ...

    def bundle(self, certificate: bytes) -> Signed: ...

    def install(self, digest: str, authority: str | None, accept: bool) -> Installation: ...

    def certificate(self) -> CertificateReport | None: ...

    def renew(self) -> Renewal: ...

    def reissue(
        self,
        name: str,
        new_name: str | None,
        add_tags: Sequence[str],
        drop_tags: Sequence[str],
        at_once: bool,
    ) -> Renewal: ...

    def rekey(self, name: str) -> Invited:
        """Put a key out, and invite its machine with a new one."""
        ...


class Custodian(Protocol):
    """Who has one."""

    def custody(self) -> Custody:
        """Who keeps the keys of the network, and what its operator has in files."""
        ...


class CustodyHandlers:
    """One method for each route, of the route's name."""

    _control: Custodian

    def receive_file(self, offset: int, data: str) -> Response:
        return json_answer(self._custody.receive(offset, base64.b64decode(data)).to_dict())

    def back_up(self, passphrase: str, recovery_key: str | None) -> Response:
        return json_answer(self._custody.back_up(passphrase, recovery_key).to_dict())

    def restore(self, file: str, passphrase: str) -> Response:
        return json_answer(self._custody.restore(file, passphrase).to_dict())

    def adopt(
        self,
        authority: str,
        certificate: str,
        revoked: str,
        subnets: Sequence[str],
        address: str | None,
    ) -> Response:
        ca, own, crl = (base64.b64decode(one) for one in (authority, certificate, revoked))
        return json_answer(self._custody.adopt(ca, own, crl, subnets, address).to_dict())

    def take_list(self, file: str) -> Response:
        removed = self._custody.take_list(file)
        return json_answer({"schema": SCHEMA, "removed": [*removed]})

    def export_authority(self, passphrase: str) -> Response:
        return json_answer(self._custody.export_authority(passphrase).to_dict())

    def release_authority(self, key: str, passphrase: str) -> Response:
        return _network(self._custody.release_authority(key, passphrase))

    def import_authority(self, key: str, passphrase: str) -> Response:
        return _network(self._custody.import_authority(key, passphrase))

    def request_certificate(self, name: str | None) -> Response:
        return json_answer(self._custody.request(name).to_dict())

    def sign_certificate(
        self,
        request: str,
        name: str,
        roles: Sequence[str] | None,
        tags: Sequence[str] | None,
        addresses: Sequence[str],
        expires_s: int | None,
    ) -> Response:
        der = base64.b64decode(request)
        signed = self._custody.sign(der, name, roles, tags, addresses, expires_s)
        return json_answer(signed.to_dict())

    def bundle_certificate(self, certificate: str) -> Response:
        return json_answer(self._custody.bundle(base64.b64decode(certificate)).to_dict())

    def install_certificate(self, file: str, authority: str | None, accept: bool) -> Response:
        return json_answer(self._custody.install(file, authority, accept).to_dict())

    def certificate(self) -> Response:
        found = self._custody.certificate()
        told = None if found is None else found.to_dict()
        return json_answer({"schema": SCHEMA, "certificate": told})

    def renew_certificate(self) -> Response:
        return json_answer(self._custody.renew().to_dict())

    def reissue(
        self,
        name: str,
        new_name: str | None,
        add_tags: Sequence[str],
        drop_tags: Sequence[str],
        at_once: bool,
    ) -> Response:
        renewal = self._custody.reissue(name, new_name, add_tags, drop_tags, at_once)
        return json_answer(renewal.to_dict())

    def rekey(self, name: str) -> Response:
        return json_answer(self._custody.rekey(name).to_dict())

    @property
    def _custody(self) -> Custody:
        return self._control.custody()


def _network(found: NetworkReport) -> Response:
    return json_answer({"schema": SCHEMA, "network": found.to_dict()})
