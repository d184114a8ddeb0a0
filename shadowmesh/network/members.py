"""All members that a machine knows, by certificates that were verified.

Owns: which certificate of a key counts, and who owns a node id, MAC, address or name that two keys
claim. Does not know: where a certificate came from: handshake, directory and disk are alike.
Source: mesh-rules C5, D1, E1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

from shadowmesh.base.errors import BadCertificate
from shadowmesh.network.certificate import Certificate

MAX_MEMBERS: Final = 1024


class Change(Enum):
    """What became of a certificate."""

    NEW = "new"
    #: takes the place of an older one of the same key
    RENEWED = "renewed"
    KNOWN = "known"
    #: a later one of the same key is known
    OLDER = "older"
    #: took something from members that had claimed it later (SM-IDENTITY-CLASH); they are gone
    WON = "won"


class Members:
    """Members by public key; no two of them share a node id, MAC, address or name.

    Attributes:
        on_clash: told of two that claim one thing (SM-IDENTITY-CLASH): who keeps it, who does not,
            what it is.
    """

    def __init__(self, most: int = MAX_MEMBERS) -> None:
        self.on_clash: Callable[[Certificate, Certificate, str], None] = _nobody
        self._most = most
        self._by_key: dict[bytes, Certificate] = {}
        self._owners: dict[tuple[str, object], bytes] = {}

    def take(self, offered: Certificate) -> Change:
        """Let a verified certificate, which is on no list, count.

        Raises:
            BadCertificate: "clash": another key owns something of it (SM-IDENTITY-CLASH), since its
                certificate began earlier, or as early and its key is smaller; "full": there are too
                many members.
        """
        assert offered.issuer_key_id, "only a verified certificate counts"
        known = self._by_key.get(offered.public_key)
        if known is not None:
            if known.der == offered.der:
                return Change.KNOWN
            if _later(offered) <= _later(known):
                return Change.OLDER
        losers: dict[bytes, str] = {}
        for claim in _claims(offered):
            owner = self._owners.get(claim, offered.public_key)
            if owner == offered.public_key:
                continue
            other = self._by_key[owner]
            if _earlier(other) < _earlier(offered):
                self.on_clash(other, offered, claim[0])
                raise BadCertificate(
                    f"{offered.name} and {other.name} have certificates with the same {claim[0]};"
                    f" {other.name} had it first and keeps it: issue one of them another",
                    "clash",
                )
            losers.setdefault(owner, claim[0])
        if known is None and len(self._by_key) - len(losers) >= self._most:
            raise BadCertificate(f"more than {self._most} members are known", "full")
        for loser, what in losers.items():
            self.on_clash(offered, self._by_key[loser], what)
            self.drop(loser)
        self.drop(offered.public_key)
        self._by_key[offered.public_key] = offered
        for claim in _claims(offered):
            self._owners[claim] = offered.public_key
        if losers:
            return Change.WON
        return Change.NEW if known is None else Change.RENEWED

    def drop(self, public_key: bytes) -> None:
        """Forget a member."""
        known = self._by_key.pop(public_key, None)
        if known is not None:
            for claim in _claims(known):
                del self._owners[claim]

    def sift(
        self, check: Callable[[Certificate], None]
    ) -> list[tuple[Certificate, BadCertificate]]:
        """Forget every member that a check refuses, and return them with the reason.

        Args: check: raises BadCertificate: a new revocation list, another trust list.
        """
        refused = []
        for one in list(self._by_key.values()):
            try:
                check(one)
            except BadCertificate as error:
                self.drop(one.public_key)
                refused.append((one, error))
        return refused

    def __iter__(self) -> Iterator[Certificate]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def of_key(self, public_key: bytes) -> Certificate | None:
        """Return the certificate of a key."""
        return self._by_key.get(public_key)

    def owner(self, kind: str, value: object) -> Certificate | None:
        """Return who owns a thing: "node id", "MAC address", "address" or "name"."""
        key = self._owners.get((kind, value))
        return None if key is None else self._by_key[key]


def _claims(certificate: Certificate) -> Iterator[tuple[str, object]]:
    yield "node id", certificate.node_id
    yield "MAC address", certificate.mac
    yield "name", certificate.name
    for address in certificate.addresses:
        yield "address", address


def _later(certificate: Certificate) -> tuple[object, ...]:
    """Order of two certificates of one key. With one notBefore every machine decides alike."""
    return certificate.not_before, certificate.issuer_key_id, certificate.serial


def _earlier(certificate: Certificate) -> tuple[object, ...]:
    """Order of two keys that claim one thing."""
    return certificate.not_before, certificate.public_key


def _nobody(_keeps: Certificate, _loses: Certificate, _what: str) -> None:
    """Whom a clash would be told."""
