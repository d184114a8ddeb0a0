"""The switch's table of addresses: who is behind which peer.

Owns: what is said of one entry, and how an entry is told in words. Does not know: how addresses are
learned (the data plane does), HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shadowmesh.base.units import duration
from shadowmesh.device.facts import format_mac
from shadowmesh.insight.form import rounded


@dataclass(frozen=True, slots=True)
class Entry:
    """One address of the table.

    Attributes:
        mac: as the kernel writes it.
        vlan: number of the VLAN that it was heard in; 0: without a tag.
        peer: name of the peer that it is behind; None: it is on this host's side.
        age_s: seconds since a frame came from it; None: it has not been heard.
        static: it is known from the peer's key and does not age.
        moves: how often it was heard from another side than before.
    """

    mac: str
    vlan: int
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
    """How much is in the table: entries of the peers' own devices, learned ones, and their moves."""

    static: int = 0
    learned: int = 0
    moves: int = 0


def entries_of(table: Sequence[Entry], mac: bytes) -> tuple[Entry, ...]:
    """Return the entries of an address, one for each VLAN, the one that was heard last first."""
    name = format_mac(mac)
    return tuple(sorted((entry for entry in table if entry.mac == name), key=_freshness))


def _freshness(entry: Entry) -> tuple[bool, float]:
    return entry.age_s is None, entry.age_s or 0.0


def learned(entry: Entry) -> str:
    """Return how and when an entry came about: ``learned 3s ago, VLAN 20``."""
    if entry.age_s is None:
        words = "known from its key, not heard yet" if entry.static else "not heard yet"
    else:
        how = "heard" if entry.static else "learned"
        words = f"{how} {duration(entry.age_s)} ago"
    return f"{words}, VLAN {entry.vlan}" if entry.vlan else words
