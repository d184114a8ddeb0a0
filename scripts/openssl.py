"""Find the OpenSSL that the data plane is linked with: the system's shared libssl and libcrypto.

None is built or carried: Python's own ssl module needs the same libraries, and the distribution
keeps them safe.
"""

from __future__ import annotations

from dataclasses import dataclass

from pkg_config import pkg_config

PARTS = ("libssl", "libcrypto")
SINCE = "3.0"


@dataclass(frozen=True, slots=True)
class OpenSSL:
    """How to compile and link against the libraries that were found."""

    version: str
    cflags: tuple[str, ...]
    ldflags: tuple[str, ...]

    @property
    def summary(self) -> str:
        return f"OpenSSL {self.version}"


def find() -> OpenSSL:
    """Return the system's.

    Raises:
        SystemExit: there is none, or an older one; the message is one line that says what to install.
    """
    version = pkg_config("--modversion", PARTS[0])
    if not version:
        raise SystemExit(
            "openssl: no headers found; install them (Debian: apt-get install libssl-dev pkg-config)"
        )
    if not pkg_config("--modversion", *(f"{part} >= {SINCE}" for part in PARTS)):
        raise SystemExit(
            f"openssl: {version} is too old; install {SINCE} or newer with its headers"
        )
    return OpenSSL(
        version=version,
        cflags=tuple(pkg_config("--cflags", *PARTS).split()),
        # A module that calls none of the two does not load it.
        ldflags=("-Wl,--as-needed", *pkg_config("--libs", *PARTS).split()),
    )
