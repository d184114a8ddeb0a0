"""When the keys of a session are to be replaced: by age, by use, because the peer asks.

Owns: the moment at which the next rekey, or the request for one, is due, and what brings it forward
or puts it off. Does not know: what is done then (`machine`), handshakes, when keys end
(`key_table`). Times are seconds of the session's clock.

The initiator begins a rekey; the responder asks for one when that is late. Source: protocol
section 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import (
    REKEY_AFTER_FAILED,
    REKEY_AFTER_RECORDS,
    REKEY_JITTER_S,
    REKEY_REQUEST_DELAY_S,
    UDP_OLD_KEY_S,
)

if TYPE_CHECKING:
    from collections.abc import Callable

#: pause after an aborted rekey; three attempts of 5 s still fit between a rotation_interval of
#: 120 s and the end of the keys at 180 s
REKEY_RETRY_S: Final = 10.0
#: a REKEY_REQUEST is ignored while the keys are younger, so that no peer keeps us rekeying
REKEY_REQUEST_MIN_AGE_S: Final = 10.0


class RekeyTimer:
    """One deadline, `due`; None while nothing is planned: before the first keys, without a link.

    Args:
        initiator: whether we begin rekeys or ask for them.
        rotation_interval_s: encryption.rotation_interval.
        jitter: returns a float in [0, 1).
    """

    def __init__(
        self, initiator: bool, rotation_interval_s: float, jitter: Callable[[], float]
    ) -> None:
        self._initiator = initiator
        self._rotation_interval_s = rotation_interval_s
        self._jitter = jitter
        self.due: float | None = None
        self._created_at = 0.0
        #: these keys already reached a limit that asks for a rekey
        self._worn = False

    def keys_switched(self, created_at: float) -> None:
        """Plan anew: keys made then are sent under from now on."""
        self._worn = False
        self._created_at = created_at
        self.due = created_at + self._rotation_interval_s
        if self._initiator:
            self.due += REKEY_JITTER_S * self._jitter()
        else:
            self.due += REKEY_REQUEST_DELAY_S

    def records_sealed(self, count: int, now: float) -> None:
        """So many records were sealed under the current keys: 2^60 ask for a rekey."""
        if count >= REKEY_AFTER_RECORDS:
            self._wear_out(now)

    def opens_failed(self, count: int, now: float) -> None:
        """So many AEADs failed under one key: 2^20 ask for a rekey.

        Right after a rekey that may be the key that it replaced, which needs no other.
        """
        if count >= REKEY_AFTER_FAILED and now >= self._created_at + UDP_OLD_KEY_S:
            self._wear_out(now)

    def peer_asked(self, created_at: float, now: float) -> None:
        """The responder wants a rekey of keys made then."""
        if now - created_at >= REKEY_REQUEST_MIN_AGE_S:
            self._wear_out(now)

    def request_sent(self, now: float) -> None:
        """The initiator was asked; if that is in vain, it is asked again."""
        self.due = now + REKEY_REQUEST_DELAY_S

    def aborted(self, now: float) -> None:
        """The initiator gave up on a rekey that was due."""
        self.due = now + REKEY_RETRY_S

    def stop(self) -> None:
        """Plan nothing any more: there is no link to rekey over."""
        self.due = None

    def _wear_out(self, now: float) -> None:
        """Make the next rekey, or the request for one, due at once; once for each set of keys."""
        if self.due is not None and not self._worn:
            self._worn = True
            self.due = min(self.due, now)
