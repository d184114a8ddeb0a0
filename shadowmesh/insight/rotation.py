"""What came of replacing what a network rests on, as operators are told.

Owns: what is said, and its JSON form. Does not know: how it was done (`network`), HTTP. Nothing of it
is secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shadowmesh.insight.form import SCHEMA


@dataclass(frozen=True, slots=True)
class Rotated:
    """A network has another secret.

    Attributes:
        epoch: its number; that of the first secret of a network is 1.
    """

    epoch: int

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "epoch": self.epoch}


@dataclass(frozen=True, slots=True)
class Replaced:
    """A network has another authority, beside those before.

    Attributes:
        authority: fingerprint of the new one.
        issued: how many members have a certificate of it.
        trusted: how many authorities count now.
        cancelled: how many invitations were open, and named one before.
    """

    authority: str
    issued: int
    trusted: int
    cancelled: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "authority": self.authority,
            "issued": self.issued,
            "trusted": self.trusted,
            "cancelled": self.cancelled,
        }


@dataclass(frozen=True, slots=True)
class Dropped:
    """A network trusts one authority alone.

    Attributes:
        authority: its fingerprint.
        dropped: how many others were trusted before.
        out: names of the members that have no certificate of it.
    """

    authority: str
    dropped: int
    out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "authority": self.authority,
            "dropped": self.dropped,
            "out": list(self.out),
        }


#: each is an answer by itself, with the number of its schema
ANSWERS: Final = (Rotated, Replaced, Dropped)
