"""The keys of one session: previous, current, next, and when each of them ends.

Owns: which local key ids are installed in the data plane, the age of their keys, and that secrets
are forgotten here once the data plane has them. Does not know: handshakes, links, when to rekey.

::

    offer()   nothing -> next       the peer may use them, it has not yet said so
    confirm() next -> current -> previous
    retired   previous: 10 s after the peer was heard under the current ones

Source: protocol section 7.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import KEY_LIFETIME_S
from shadowmesh.wire.handshake.agreement import TrafficKeys
from shadowmesh.wire.session.events import InstallKeys, RetireKeys, SendUnder

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.wire.handshake.agreement import HandshakeResult
    from shadowmesh.wire.session.events import Event

_BLANK: Final = TrafficKeys(b"", b"", b"", b"", b"")


def without_secrets(result: HandshakeResult) -> HandshakeResult:
    """Return a result whose traffic keys are blank."""
    return replace(result, keys=_BLANK)


@dataclass(slots=True)
class Keys:
    """One installed set of keys, without the secrets.

    Attributes:
        result: what the handshake agreed, blanked.
        created_at: when it was agreed, in seconds of the session's clock.
        retire_at: for the previous keys: when they go; None while that is not known.
        used: we seal under them.
    """

    result: HandshakeResult
    created_at: float
    retire_at: float | None = None
    used: bool = False

    @property
    def local_key_id(self) -> int:
        return self.result.local_key_id

    @property
    def expires_at(self) -> float:
        return self.created_at + KEY_LIFETIME_S


class KeyTable:
    """At most three sets of keys; every change is said as an event.

    Args:
        emit: takes the events, in order.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self.previous: Keys | None = None
        self.current: Keys | None = None
        self.next: Keys | None = None

    def live(self) -> list[Keys]:
        """Return what is installed, oldest first."""
        every = (self.previous, self.current, self.next)
        return [keys for keys in every if keys is not None]

    def find(self, key_id: int) -> Keys | None:
        """Return the installed keys with this local key id."""
        return next((keys for keys in self.live() if keys.local_key_id == key_id), None)

    def offer(self, result: HandshakeResult, created_at: float) -> None:
        """Install the next keys, in place of older ones that were never confirmed."""
        if self.next is not None:
            self._emit(RetireKeys(self.next.local_key_id))
        self.retire_previous()
        self._emit(InstallKeys(result))
        self.next = Keys(without_secrets(result), created_at)

    def use_next(self) -> None:
        """Send under the next keys, which are not the current ones yet: the peer is not judged."""
        if self.next is not None and not self.next.used:
            self.next.used = True
            self._emit(SendUnder(self.next.local_key_id))

    def confirm(self) -> None:
        """Send under the next keys from now on."""
        if self.next is None:
            return
        self.use_next()
        self.previous, self.current, self.next = self.current, self.next, None

    def retire_previous_at(self, when: float) -> None:
        """Plan the end of the previous keys: the peer has been heard under the current ones.

        Not 10 s after our own switch: while the link stands still, the peer may send under the
        old keys for longer than that, and WSS may lose no frame.
        """
        if self.previous is not None and self.previous.retire_at is None:
            self.previous.retire_at = when

    def retire_previous(self) -> None:
        """Retire the previous keys now."""
        if self.previous is not None:
            self._emit(RetireKeys(self.previous.local_key_id))
            self.previous = None

    def retire_due(self, now: float) -> None:
        """Retire the previous keys if their time or their life is over."""
        previous = self.previous
        if previous is not None and now >= min(self._ends(previous)):
            self.retire_previous()

    def retire_all(self) -> None:
        """Retire everything: the session is over."""
        for keys in self.live():
            self._emit(RetireKeys(keys.local_key_id))
        self.previous = self.current = self.next = None

    def deadlines(self) -> list[float]:
        """Return every moment at which something here ends."""
        return [end for keys in self.live() for end in self._ends(keys)]

    @staticmethod
    def _ends(keys: Keys) -> list[float]:
        return [keys.expires_at] if keys.retire_at is None else [keys.expires_at, keys.retire_at]
