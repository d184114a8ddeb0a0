"""The switch's table of addresses: who is behind which peer.

Owns: what is said of one entry, and how an entry is told in words. Does not know: how addresses are
learned (the data plane does), HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shadowmesh.base.units import duration
from shadowmesh.insight.form import rounded


@dataclass(frozen=True, slots=True)
class Entry:
    """One address of the table.

    Attributes:
        mac: as the kernel writes it.
        vlan: number of the VLAN that it was heard in; 0: without a tag; None: it is so in all.
        peer: name of the peer that it is behind; None: it is on this host's side.
        age_s: seconds since a frame came from it; None of a static one.
        static: it is of a peer's own device, or ours: known from the key, it does not age.
        moves: how often it was lately heard from another side than before.
    """

    mac: str
    vlan: int | None
    peer: str | None
    age_s: float | None
    static: bool
    moves: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "mac": self.mac,
            "vlan": self.vlan,
            "peer": self.peer,
            "age_s": rounded(self.age_s, 1),
            "static": self.static,
            "moves": self.moves,
        }


@dataclass(frozen=True, slots=True)
class Size:
    """How much is in the table, and what became of addresses since the start of the daemon.

    Attributes:
        entries: in the table now.
        moves: of an address from one side to another.
        unlearned: frames whose source address found no place.
    """

    entries: int = 0
    moves: int = 0
    unlearned: int = 0


def freshest_first(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Sort the entries of an address, of which there is one for each VLAN: last heard first."""
    return tuple(sorted(entries, key=_freshness))


def _freshness(entry: Entry) -> tuple[bool, float]:
    return entry.age_s is None, entry.age_s or 0.0


def learned(entry: Entry) -> str:
    """Return how and when an entry came about: ``learned 3s ago, VLAN 20``."""
    words = "its own device" if entry.static else f"learned {duration(entry.age_s or 0.0)} ago"
    return f"{words}, VLAN {entry.vlan}" if entry.vlan else words
