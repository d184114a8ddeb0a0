"""Whether a handshake that reaches us is one of our own: we have dialled ourselves.

Owns: the first messages of our dials that may still be on their way, as hashes. Does not know:
what is in a message, sessions, what is done about it.

A first message carries a fresh ephemeral key, so nobody has the same by chance. Whoever sends us
back one of ours learns nothing and changes nothing but the words in which that dial fails.
"""

from __future__ import annotations

import hashlib
from typing import Final

#: one dial at a time has one of them; a few more are kept for those that were given up
MAX_HELLOS: Final = 8
#: where there are so many peers that this is more
HELLOS_PER_PEER: Final = 2


class Hellos:
    """The first messages of our own dials."""

    def __init__(self) -> None:
        self._limit = MAX_HELLOS
        #: in order
        self._sent: dict[bytes, None] = {}
        self._returned: dict[bytes, None] = {}

    def dialled_are(self, peers: int) -> None:
        """So many peers may be dialled at the same time."""
        self._limit = max(MAX_HELLOS, HELLOS_PER_PEER * peers)

    def sent(self, message: bytes) -> None:
        """This one leaves now."""
        self._keep(self._sent, _digest(message))

    def is_own(self, message: bytes) -> bool:
        """Whether a first message that came is one of ours; its dial can ask for that later."""
        digest = _digest(message)
        if digest not in self._sent:
            return False
        self._keep(self._returned, digest)
        return True

    def came_back(self, message: bytes) -> bool:
        """Whether this first message of ours has reached ourselves."""
        return _digest(message) in self._returned

    def _keep(self, digests: dict[bytes, None], digest: bytes) -> None:
        digests[digest] = None
        while len(digests) > self._limit:
            del digests[next(iter(digests))]


def _digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()
