"""The dashboard: one HTML page, served as it is.

Owns: reading the page and the policy under which a browser runs it. Does not know: HTTP, what the
page shows. The page holds no data and no secret; it gets both over `GET /events`.

The policy names the page's own style and script by their hashes, so that nothing else runs even
if something is injected, and lets it connect to this server only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).with_name("dashboard.html")

_ELEMENT: Final = re.compile(rb"<(style|script)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """The page and the headers that it must be sent with."""

    body: bytes
    headers: tuple[tuple[str, str], ...]


def load() -> Page:
    """Read the page. It is asked for once in a while, so nothing is kept."""
    body = PAGE.read_bytes()
    headers = (
        ("Content-Security-Policy", content_security_policy(body)),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), usb=()"),
        ("X-Frame-Options", "DENY"),
    )
    return Page(body, headers)


def content_security_policy(body: bytes) -> str:
    """Return a policy that allows what is in the page and nothing else."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for name, text in _ELEMENT.findall(body):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode("ascii")
        hashes[name.decode("ascii")].append(f"'sha256-{digest}'")
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {' '.join(hashes['style'])}",
            f"script-src {' '.join(hashes['script'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    )
