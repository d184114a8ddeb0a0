"""A CA as an administrator has it: the openssl program and some files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from shadowmesh.network.certificate import USAGE


class Openssl:
    """The CA below a directory, which it makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.run(
            "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "ca.key"
        )
        self.run(
            "req", "-x509", "-new", "-key", "ca.key", "-out", "ca.pem", "-days", "3650", "-subj",
            "/O=home/CN=our CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        (path / "index").touch()
        (path / "number").write_text("01\n")
        (path / "ca.conf").write_text(
            "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\n"
            "certificate=ca.pem\nprivate_key=ca.key\ndefault_crl_days=3650\ncrl_extensions=e\n"
            "[e]\nauthorityKeyIdentifier=keyid\n"
        )

    def run(self, *arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=self.path, capture_output=True, check=True, timeout=60
        )

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def certificate(self, request: bytes, subject: str, address: str, serial: int) -> bytes:
        """PEM for the key of a request in PEM."""
        (self.path / "csr").write_bytes(request)
        (self.path / "rules").write_text(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
            f"extendedKeyUsage={USAGE.dotted_string}\nsubjectAltName=IP:{address}\n"
        )
        self.run("req", "-in", "csr", "-noout", "-pubkey", "-out", "pub")
        self.run(
            "x509", "-new", "-force_pubkey", "pub", "-subj", subject, "-CA", "ca.pem", "-CAkey",
            "ca.key", "-set_serial", str(serial), "-days", "365", "-extfile", "rules", "-out", "crt",
        )  # fmt: skip
        return self.read("crt")

    def list(self, *revoked: bytes) -> bytes:
        for one in revoked:
            (self.path / "out").write_bytes(one)
            self.run("ca", "-config", "ca.conf", "-revoke", "out")
        self.run("ca", "-config", "ca.conf", "-gencrl", "-out", "crl")
        return self.read("crl")
