"""Who may do what: the two rights, and the groups that give them over the Unix socket.

Owns: the rights, from credentials that the kernel vouches for to a right. Does not know: routes
(their table says which right each needs), HTTP, tokens.

::

    root, the daemon's own user, shadowmesh-admin   CHANGE: connect, disconnect, see the frames
    shadowmesh-view                                 LOOK: status, explain, ping, events, metrics
    anybody                                         NONE: whether it is healthy

The service's own group, `shadowmesh`, gives none of them: it can read the file with the pre-shared
key, so nobody but the service should be in it.
"""

from __future__ import annotations

import grp
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Right(IntEnum):
    """What a caller may do; a higher one includes the lower ones."""

    NONE = 0
    LOOK = 1
    CHANGE = 2


#: the group that gives a right
GROUPS: Final = {Right.LOOK: "shadowmesh-view", Right.CHANGE: "shadowmesh-admin"}

_WORDS: Final = {Right.LOOK: "look at the daemon", Right.CHANGE: "do this"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """A process as the kernel knew it when it connected: user, and all groups that it was in."""

    uid: int
    gids: frozenset[int]


class Rights:
    """From credentials to a right."""

    def __init__(self, uid: int, groups: dict[Right, int]) -> None:
        """Args: uid: the daemon's own; groups: the number of each group that there is."""
        self._uid = uid
        self._groups = groups

    def of(self, credentials: Credentials) -> Right:
        """Return the highest right that the credentials give."""
        if credentials.uid in (0, self._uid):
            return Right.CHANGE
        found = (right for right, gid in self._groups.items() if gid in credentials.gids)
        return max(found, default=Right.NONE)


def rights_of_this_process() -> Rights:
    """Return the rights at a socket of this process; a group that is missing gives none.

    The names are looked up once, for a directory service may take seconds to answer.
    """
    groups = {}
    for right, name in GROUPS.items():
        try:
            groups[right] = grp.getgrnam(name).gr_gid
        except KeyError:
            continue
    return Rights(os.geteuid(), groups)


def refusal(needed: Right) -> str:
    """Return what somebody hears whose groups do not give the right: one sentence."""
    group = GROUPS[needed]
    return (
        f"only root and members of the group {group} may {_WORDS[needed]}: ask an administrator"
        f" for `usermod -aG {group} YOUR-NAME`, and log in again"
    )
