"""Which relay is a member's home: by which others find it, and which carries what cannot go direct.

Owns: the choice among relays by measured round trips, its hysteresis and its reason. Does not know:
sessions, how a round trip is measured, relays without a session. Moments are monotonic seconds.
Source: mesh section 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: the best round trip of so long counts: a queue that came and went does not move anybody
WINDOW_S: Final = 300.0
#: another relay becomes home when it is nearer by both
GAIN_S: Final = 0.010
GAIN_SHARE: Final = 1 / 3


@dataclass(frozen=True, slots=True)
class Choice:
    """The home relay, by its public key, and why; for people."""

    home: bytes | None
    reason: str


class HomeChooser:
    """Chooses among the relays that this machine has sessions with."""

    def __init__(self) -> None:
        self._measured: dict[bytes, deque[tuple[float, float]]] = {}
        self.choice = Choice(None, "there is no session with any relay")

    def look(self, relays: Mapping[bytes, float | None], now: float) -> bool:
        """Take in what is there now; return whether the home is another.

        Args:
            relays: with a session, by public key, with the round trip last measured, in seconds;
                None while there is none.
        """
        for key in self._measured.keys() - relays.keys():
            del self._measured[key]
        for key, rtt_s in relays.items():
            known = self._measured.setdefault(key, deque())
            if rtt_s is not None:
                # Only what may yet be the best is kept: in the order of time the values rise.
                while known and known[-1][1] >= rtt_s:
                    known.pop()
                known.append((now, rtt_s))
            while len(known) > 1 and known[0][0] < now - WINDOW_S:
                known.popleft()
        before = self.choice.home
        self.choice = self._choose()
        return self.choice.home != before

    def best_s(self, key: bytes) -> float | None:
        """Return the best round trip of the window."""
        known = self._measured.get(key)
        return known[0][1] if known else None

    def _choose(self) -> Choice:
        if not self._measured:
            return Choice(None, "there is no session with any relay")
        home = self.choice.home
        found = {key: self.best_s(key) for key in sorted(self._measured)}
        near = {key: rtt_s for key, rtt_s in found.items() if rtt_s is not None}
        nearest = min(near, key=lambda key: near[key]) if near else next(iter(found))
        if len(found) == 1:
            return Choice(nearest, "the only relay with a session")
        if home is None or home not in found:
            why = "the nearest" if home is None else "the nearest, since the one before is away"
            return Choice(nearest, why if near else "the first that answered")
        now_s, then_s = near.get(nearest), near.get(home)
        if now_s is None or then_s is None or nearest == home:
            return Choice(home, self.choice.reason if nearest != home else "the nearest")
        gain_s = then_s - now_s
        if gain_s >= GAIN_S and gain_s >= then_s * GAIN_SHARE:
            return Choice(nearest, f"nearer by {gain_s * 1000:.0f} ms than the one before")
        return Choice(
            home, f"another is nearer, but by {gain_s * 1000:.0f} ms only: not worth a move"
        )
