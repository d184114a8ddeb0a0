"""From `peers:` of the file to the peers, one `PeerEntry` for each item.

Owns: what every item must have, the default that depends on its other keys, and what no two peers
may share. Does not know: the form of the file (`yamlfile`), the value of one key (`schema`), nor
the other sections, with which `loader` compares the peers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shadowmesh.base.errors import Problem
from shadowmesh.base.words import nearest
from shadowmesh.config.model import PeerEntry
from shadowmesh.config.schema import PEER_KEYS, PEERS
from shadowmesh.config.values import show
from shadowmesh.config.yamlfile import Item, Section

#: of the keys of an item, those without which there is no peer
_NEEDED = {
    "name": "a DNS label that commands call it by",
    "public_key": "which `shadowmesh pubkey` prints on its machine",
}
#: of its other keys; that of auto_connect depends on the address
_DEFAULTS = {
    name: key.parse(key.default) for name, key in PEER_KEYS.items() if key.default is not None
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A peer of the list, and where it stands.

    Attributes:
        line: on which its item begins.
        lines: of those of its keys that stand in the file.
    """

    entry: PeerEntry
    source: str
    line: int
    lines: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.source}:{self.line}"

    def problem(self, attribute: str, message: str) -> Problem:
        """Return what is wrong with a key of this peer."""
        line = self.lines.get(attribute, self.line)
        return Problem(self.source, line, f"{PEERS}.{self.entry.name}.{attribute}", message)


@dataclass(frozen=True, slots=True)
class PeerList:
    """`peers:` of a file, and the line of that name."""

    source: str
    line: int
    peers: tuple[Listed, ...]

    def __str__(self) -> str:
        return f"{self.source}:{self.line}"


def read(source: str, section: Section) -> tuple[PeerList, list[Problem]]:
    """Return the peers of a section that is a list, and what is wrong with them.

    A wrong item gives no peer.

    Args:
        source: the file, as problems name it.
    """
    peers: list[Listed] = []
    problems: list[Problem] = []
    for item in section.items:
        found = _peer(source, item)
        if isinstance(found, Listed):
            peers.append(found)
        else:
            problems += found
    problems += _clashes(peers)
    return PeerList(source, section.line, tuple(peers)), problems


def _peer(source: str, item: Item) -> Listed | list[Problem]:
    """Return the peer that an item describes, or everything that is wrong with the item."""
    if item.entries is None:
        message = "must be a peer with its keys, which begins with `- name:`"
        return [Problem(source, item.line, PEERS, message)]
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    wrong: list[tuple[int, str | None, str]] = []
    for given in item.entries:
        lines[given.key] = given.line
        key = PEER_KEYS.get(given.key)
        if key is None:
            near = nearest(given.key, PEER_KEYS)
            hint = "" if near is None else f'; did you mean "{near}"?'
            wrong.append((given.line, None, f"unknown key {show(given.key)}{hint}"))
            continue
        try:
            values[given.key] = key.checked(given.raw)
        except ValueError as error:
            wrong.append((given.line, given.key, str(error)))
    wrong += [
        (item.line, None, f"has no {name}, {what}")
        for name, what in _NEEDED.items()
        if name not in lines
    ]
    if wrong:
        # Its name says which peer is meant, where it has one.
        prefix = f"{PEERS}.{values['name']}" if "name" in values else PEERS
        return [
            Problem(source, line, prefix if key is None else f"{prefix}.{key}", message)
            for line, key, message in wrong
        ]
    values = {**_DEFAULTS, **values}
    values.setdefault("auto_connect", values["address"] is not None)
    peer = Listed(PeerEntry(**values), source, item.line, lines)
    if peer.entry.auto_connect and peer.entry.address is None:
        return [peer.problem("auto_connect", "is true, but the peer has no address to dial")]
    return peer


def _clashes(listed: Sequence[Listed]) -> Iterator[Problem]:
    """Name, after its first owner, everybody else who has what only one peer can have."""
    owners: dict[tuple[str, Hashable], Listed] = {}
    for peer in listed:
        for attribute, value, what in _own(peer.entry):
            owner = owners.setdefault((attribute, value), peer)
            if owner is not peer:
                line = owner.lines[attribute]
                whose = f"of peer {owner.entry.name} on line {line}"
                yield peer.problem(attribute, f"{what} {whose}, too; each peer has its own")


def _own(entry: PeerEntry) -> Iterator[tuple[str, Hashable, str]]:
    """Give what only this peer may have: key, value, words."""
    yield "name", entry.name, "is the name"
    yield "public_key", entry.public_key, "is the key"
    if entry.address is not None:
        # names are the same in capitals
        place = (entry.address.host.lower(), entry.address.port)
        yield "address", place, f"{entry.address} is the address"
    for ip in entry.tunnel_ips:
        yield "tunnel_ips", ip, f"{ip} is the address"
