"""What of a network lies in files of its operator, as operators are told.

Owns: what is said, and its JSON form. Does not know: where it comes from (`network`), HTTP, files.
What is secret in it says so.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Final

from shadowmesh.insight.form import SCHEMA
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


#: each of them is an answer by itself
ANSWERS: Final = (Received, Backup, Restored)


def as_text(data: bytes) -> str:
    """Return bytes as JSON carries them."""
    return base64.b64encode(data).decode("ascii")
