"""PEM: how certificates, requests and keys stand in files that people and openssl read.

Owns: that form, alone or among other text. Does not know: what is in it. Source: RFC 7468.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from shadowmesh.base.errors import BadCertificate

CERTIFICATE: Final = "CERTIFICATE"
LIST: Final = "X509 CRL"
#: older programs write the second
REQUESTS: Final = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
PRIVATE_KEYS: Final = ("ENCRYPTED PRIVATE KEY", "PRIVATE KEY")

_LINE: Final = 64
_BLOCK: Final = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\r?\n([A-Za-z0-9+/=\r\n \t]*)-----END \1-----"
)


def armor(label: str, data: bytes) -> str:
    """Return data as a block of PEM, with a final line break."""
    text = base64.b64encode(data).decode("ascii")
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def find(data: bytes, *labels: str) -> str | None:
    """Return the first block with one of these labels as it is written, None without one."""
    for match in _BLOCK.finditer(data):
        if match[1].decode("ascii") in labels:
            return match[0].decode("ascii") + "\n"
    return None


def content(data: bytes, *labels: str) -> bytes:
    """Return what the first block with one of these labels holds; data that is no PEM as it is.

    Raises:
        BadCertificate: there is PEM in it, and no such block.
    """
    for match in _BLOCK.finditer(data):
        if match[1].decode("ascii") in labels:
            try:
                return base64.b64decode(b"".join(match[2].split()), validate=True)
            except ValueError:
                break
    if b"-----BEGIN" in data:
        raise BadCertificate(f"there is no whole block {labels[0]} in this file")
    return data
