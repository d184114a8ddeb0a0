"""What of a pretended daemon's network lies in files."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shadowmesh.base import errors
from shadowmesh.insight import custody, network

if TYPE_CHECKING:
    from tests.control.fake_control import FakeControl

#: what a backup is made of
SEALED = b"SMBK" + bytes(range(64))

#: the end of the certificates of HOME, and of what is offered
END = 1767323045.678 + 20 * 365 * 86400
CERTIFICATE = custody.CertificateReport(
    "laptop", "home", "b3VyIG93biBwdWJsaWMga2V5LCB0aGlydHktdHdvIGI=", "7b", "abab-cdcd",
    ("relay",), ("factory",), ("10.77.0.2", "fd42::2"), 1767323045.678, END, None,
    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
)  # fmt: skip
REQUEST = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
BUNDLE = "-----BEGIN SHADOWMESH BUNDLE-----\nAAAA\n-----END SHADOWMESH BUNDLE-----\n"
KEY = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
FINGERPRINT = "abab-cdcd"
OFFER = custody.Installation(
    "home", FINGERPRINT, "laptop", ("10.77.0.2",), ("10.77.0.0/24",), (), member=False, taken=False
)


class FakeCustody:
    """Notes what was asked in `control.calls`, secrets as they came."""

    def __init__(self, control: FakeControl) -> None:
        self._control = control
        self.file = b""
        self.lacking: tuple[str, ...] = ()
        self.own = CERTIFICATE
        self.offer = OFFER
        self.renewed = True
        #: whom a list of another CA puts out
        self.out: tuple[str, ...] = ("nas",)

    def _asked(self, *call: str) -> None:
        self._control._answer(*call)

    def receive(self, offset: int, data: bytes) -> custody.Received:
        self._asked("receive", str(offset), str(len(data)))
        if offset == 0:
            self.file = b""
        if offset != len(self.file):
            raise errors.BadRequest("a piece is missing")
        self.file += data
        return custody.Received(len(self.file))

    def back_up(self, passphrase: str, recovery_key: str | None) -> custody.Backup:
        self._asked("back_up", passphrase, str(recovery_key))
        self._control._be_in_one()
        return custody.Backup(base64.b64encode(SEALED).decode(), self.lacking)

    def restore(self, digest: str, passphrase: str) -> custody.Restored:
        self._asked("restore", digest, passphrase)
        self._control._be_in_none()
        self._control.joined = self._control.restored
        return custody.Restored(self._control.restored, 2)

    def export_authority(self, passphrase: str) -> custody.ExportedKey:
        self._asked("export_authority", passphrase)
        self._control._be_in_one()
        return custody.ExportedKey(FINGERPRINT, KEY)

    def release_authority(self, kept: str, passphrase: str) -> network.NetworkReport:
        return self._with_key("release_authority", kept, passphrase)

    def import_authority(self, kept: str, passphrase: str) -> network.NetworkReport:
        return self._with_key("import_authority", kept, passphrase)

    def _with_key(self, *call: str) -> network.NetworkReport:
        self._asked(*call)
        self._control._be_in_one()
        assert self._control.joined is not None
        return self._control.joined

    def request(self, name: str | None) -> custody.CertificateRequest:
        self._asked("request", str(name))
        return custody.CertificateRequest(CERTIFICATE.public_key, REQUEST)

    def sign(
        self,
        request: bytes,
        name: str,
        roles: Sequence[str] | None,
        tags: Sequence[str] | None,
        addresses: Sequence[str],
        expires_s: int | None,
    ) -> custody.Signed:
        lists = [str(None if one is None else list(one)) for one in (roles, tags, addresses)]
        self._asked("sign", request.decode(), name, *lists, str(expires_s))
        self._control._be_in_one()
        return custody.Signed(dataclasses.replace(CERTIFICATE, name=name), BUNDLE)

    def bundle(self, certificate: bytes) -> custody.Signed:
        self._asked("bundle", certificate.decode())
        self._control._be_in_one()
        return custody.Signed(CERTIFICATE, BUNDLE)

    def install(self, digest: str, authority: str | None, accept: bool) -> custody.Installation:
        self._asked("install", str(authority), str(accept))
        if accept and not self.offer.member:
            self._control.joined = self._control.restored
        return dataclasses.replace(self.offer, taken=accept)

    def certificate(self) -> custody.CertificateReport | None:
        self._asked("certificate")
        return None if self._control.joined is None else self.own

    def renew(self) -> custody.Renewal:
        self._asked("renew")
        self._control._be_in_one()
        return custody.Renewal(self.own, self.renewed)

    def reissue(
        self,
        name: str,
        new_name: str | None,
        add_tags: Sequence[str],
        drop_tags: Sequence[str],
        at_once: bool,
    ) -> custody.Renewal:
        self._asked("reissue", name, str(new_name), *add_tags, "-", *drop_tags, str(at_once))
        self._control._be_in_one()
        made = dataclasses.replace(CERTIFICATE, name=new_name or name, tags=tuple(add_tags))
        return custody.Renewal(made, renewed=True)

    def rekey(self, name: str) -> network.Invited:
        self._asked("rekey", name)
        self._control._be_in_one()
        return self._control.invite(name, 3600, 1, (), (), ())

    def adopt(
        self,
        authority: bytes,
        certificate: bytes,
        revoked: bytes,
        subnets: Sequence[str],
        address: str | None,
    ) -> network.Founded:
        given = (authority, certificate, revoked)
        self._asked("adopt", *(one.decode() for one in given), *subnets, str(address))
        return self._control.create_network("home", None, subnets, address)

    def take_list(self, digest: str) -> Sequence[str]:
        self._asked("take_list", digest)
        self._control._be_in_one()
        return self.out
