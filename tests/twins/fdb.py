"""The forwarding database as a dictionary: the slow twin of `shadowmesh/fast/fdb.pxd`.

Without sets and ways: what it keeps is right as long as no set of the other is full.
"""

from __future__ import annotations

from dataclasses import dataclass, field

AGE_S, HOLD_S, DUPLICATE_S, DUPLICATE_MOVES = 300, 30, 180, 5


@dataclass
class Entry:
    port: int | None
    heard: int
    moves: int = 0
    frozen: bool = False


@dataclass
class Fdb:
    """Ports are numbers, None is this host's side."""

    most: int = 8192
    most_macs: int = 256
    entries: dict[tuple[bytes, int], Entry] = field(default_factory=dict)
    owners: dict[bytes, int | None] = field(default_factory=dict)

    def macs(self, port: int | None) -> int:
        learned = sum(entry.port == port for entry in self.entries.values())
        return learned + sum(owner == port for owner in self.owners.values())

    def learn(self, mac: bytes, vlan: int, port: int | None, now: int) -> str:
        entry = self.entries.get((mac, vlan))
        if entry is not None and entry.port == port:
            entry.heard = now
            return "keep"
        if mac in self.owners and self.owners[mac] != port:
            return "foreign_mac"
        if entry is not None:
            return self._move(entry, port, now)
        if port is not None and self.macs(port) >= self.most_macs:
            return "mac_limit"
        if len(self.entries) + len(self.owners) < self.most:
            self.entries[mac, vlan] = Entry(port, now)
        return "keep"

    def _move(self, entry: Entry, port: int | None, now: int) -> str:
        age = now - entry.heard
        if port is not None and (age < HOLD_S or (entry.frozen and age < DUPLICATE_S)):
            return "mac_elsewhere"
        entry.moves = entry.moves + 1 if age < DUPLICATE_S else 1
        entry.port, entry.heard = port, now
        entry.frozen = entry.moves >= DUPLICATE_MOVES
        return "keep"

    def lookup(self, mac: bytes, vlan: int, now: int) -> tuple[bool, int | None]:
        """(known, port)."""
        entry = self.entries.get((mac, vlan))
        if entry is not None and now - entry.heard < AGE_S:
            return True, entry.port
        return mac in self.owners, self.owners.get(mac)

    def own(self, mac: bytes, port: int | None) -> bool:
        if mac not in self.owners:
            self.entries = {key: entry for key, entry in self.entries.items() if key[0] != mac}
            self.owners[mac] = port
        return self.owners[mac] == port

    def forget(self, port: int) -> None:
        self.entries = {key: one for key, one in self.entries.items() if one.port != port}
        self.owners = {mac: owner for mac, owner in self.owners.items() if owner != port}

    def sweep(self, now: int) -> None:
        self.entries = {k: one for k, one in self.entries.items() if now - one.heard < AGE_S}
