"""Addresses behind which peers were, or are said to be.

Owns: which they are, for how long, and how many peers are behind each. Does not know: sockets, what
being known is worth (`admission`). An address proves nothing: whoever shares it with a peer is known
as well. Source: protocol section 9.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import MAX_PEERS

if TYPE_CHECKING:
    from collections.abc import Iterable

#: protocol section 9: "authenticated in the last 24 h"
REMEMBERED_S: Final = 24 * 3600.0
#: Peers roam; the address heard of longest ago goes.
MAX_REMEMBERED: Final = 2 * MAX_PEERS


class KnownAddresses:
    """A set of IP addresses, as people write them."""

    def __init__(self) -> None:
        self._named: Counter[str] = Counter()
        #: address and peer, with the boot-time seconds of the last time, oldest first
        self._authenticated: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        #: how many of those there are at an address
        self._behind: Counter[str] = Counter()

    def name(self, hosts: Iterable[str]) -> None:
        """Replace the hosts that the configuration names; names that are no addresses never match.

        A peer that is named by its name is known once it was reached.

        Args:
            hosts: one for each peer; several may be behind one.
        """
        self._named = Counter(hosts)

    def authenticated(self, ip: str, now: float, peer: bytes = b"") -> None:
        """A peer has just authenticated from `ip`, or there.

        Args:
            now: boot-time seconds, never less than in the call before.
            peer: which, so that several behind one address are told apart.
        """
        if (ip, peer) not in self._authenticated:
            self._behind[ip] += 1
        self._authenticated[ip, peer] = now
        self._authenticated.move_to_end((ip, peer))
        if len(self._authenticated) > MAX_REMEMBERED:
            self._forget_oldest()

    def peers(self, ip: str, now: float) -> int:
        """How many peers there are behind `ip`, as far as we know: 0, if it is not known at all."""
        while self._authenticated and next(iter(self._authenticated.values())) < now - REMEMBERED_S:
            self._forget_oldest()
        return max(self._named[ip], self._behind[ip])

    def holds(self, ip: str, now: float) -> bool:
        """Whether a connection from `ip` has the places that are kept for peers."""
        return self.peers(ip, now) > 0

    def _forget_oldest(self) -> None:
        (ip, _), _ = self._authenticated.popitem(last=False)
        self._behind[ip] -= 1
        if not self._behind[ip]:
            del self._behind[ip]
