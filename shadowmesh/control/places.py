"""The places of a server, and who has to leave when all are taken.

Owns: how many may be there at once, who goes. Does not know: connections, HTTP, how somebody is made
to go. Kept apart from them so that the rule can be read and tested.

A newcomer always gets in as long as one guest is there: the guest leaves of whom the most are
there, so that nobody can take from others what they did not have too much of. Somebody who holds
its place (it has shown that it may change something) leaves for another one who does, and only
while it asks nothing; a part of the places is not theirs to hold, so that there are always some for
who asks whether the daemon is healthy.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Guest = TypeVar("Guest", bound=Hashable)


class Places(Generic[Guest]):
    """Everybody who is there, each with its client."""

    def __init__(self, total: int, held: int) -> None:
        """Args: total: places; held: how many of them can be held, fewer than all."""
        if not 0 <= held < total:
            raise ValueError(f"{held} of {total} places leave none for guests")
        self._total = total
        self._held = held
        #: the one first whose last request is the longest ago
        self._guests: OrderedDict[Guest, str] = OrderedDict()
        self._holders: OrderedDict[Guest, bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._guests) + len(self._holders)

    def enter(self, guest: Guest, client: str) -> Guest | None:
        """Give a place; return who has lost its own for it and has to go now."""
        leaves = None
        if len(self) >= self._total:
            leaves = self._of_the_most()
            del self._guests[leaves]
        self._guests[guest] = client
        return leaves

    def asks(self, guest: Guest) -> None:
        """A whole request has come; the answer is on its way until rests()."""
        if guest in self._guests:
            self._guests.move_to_end(guest)
        elif guest in self._holders:
            self._holders[guest] = True

    def rests(self, guest: Guest) -> None:
        """The answer is sent; a guest's turn stays what it was."""
        if guest in self._holders:
            self._holders[guest] = False
            self._holders.move_to_end(guest)

    def hold(self, guest: Guest) -> tuple[bool, Guest | None]:
        """Let somebody hold its place; return whether it does, and who has to go for that."""
        if guest in self._holders:
            return True, None
        if guest not in self._guests:
            return False, None  # it is on its way out
        leaves = None
        if len(self._holders) >= self._held:
            leaves = next((one for one, busy in self._holders.items() if not busy), None)
            if leaves is None:
                return False, None
            del self._holders[leaves]
        del self._guests[guest]
        self._holders[guest] = True
        return True, leaves

    def leave(self, guest: Guest) -> None:
        """Free a place; nothing when it was lost before."""
        self._guests.pop(guest, None)
        self._holders.pop(guest, None)

    def _of_the_most(self) -> Guest:
        counts = Counter(self._guests.values())
        most = max(counts.values())
        return next(guest for guest, client in self._guests.items() if counts[client] == most)
