"""Addresses behind which a peer was, or is said to be.

Owns: which they are and for how long. Does not know: sockets, what being known is worth
(`admission`). An address proves nothing: whoever shares it with the peer is known as well.
Source: protocol section 9.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: protocol section 9: "authenticated in the last 24 h"
REMEMBERED_S: Final = 24 * 3600.0
#: Peers roam; the address heard of longest ago goes.
MAX_REMEMBERED: Final = 1024


class KnownAddresses:
    """A set of IP addresses, as people write them."""

    def __init__(self) -> None:
        self._named: frozenset[str] = frozenset()
        #: boot-time seconds of the last time, oldest first
        self._authenticated: OrderedDict[str, float] = OrderedDict()

    def name(self, hosts: Iterable[str]) -> None:
        """Replace the hosts that the configuration names; names that are no addresses never match.

        A peer that is named by its name is known once it was reached.
        """
        self._named = frozenset(hosts)

    def authenticated(self, ip: str, now: float) -> None:
        """A peer has just authenticated from `ip`, or there.

        Args:
            now: boot-time seconds, never less than in the call before.
        """
        self._authenticated[ip] = now
        self._authenticated.move_to_end(ip)
        if len(self._authenticated) > MAX_REMEMBERED:
            self._authenticated.popitem(last=False)

    def holds(self, ip: str, now: float) -> bool:
        """Whether a connection from `ip` has the places that are kept for peers."""
        if ip in self._named:
            return True
        last = self._authenticated.get(ip)
        return last is not None and now - last <= REMEMBERED_S
