"""Whether one identity runs on two machines: a copied disk, a cloned virtual machine.

Owns: which starts of a daemon a key has shown lately, and from where. Does not know: sessions, who
is told. Source: mesh-rules D2.

A machine that roams keeps its boot id, one that restarts has a new one each time; only two that
throw each other out bring old ones back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

#: so many changes to and fro within so many seconds
CHANGES: Final = 3
WITHIN_S: Final = 60.0
#: what was found is told for so long behind the last sign of it: their dials are up to 36 s apart
TOLD_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Shown:
    boot_id: bytes
    source: str
    at: float


class Twins:
    """The boot ids of all members; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._shown: dict[bytes, deque[_Shown]] = {}
        self._found: dict[bytes, tuple[float, tuple[str, ...]]] = {}

    def shown(self, public_key: bytes, boot_id: bytes, source: str, now: float) -> bool:
        """Note what a session begins with; tell whether the key is one of two machines.

        Args: source: where the session comes from, for people.
        """
        seen = self._shown.setdefault(public_key, deque(maxlen=CHANGES + 1))
        if not seen or seen[-1].boot_id != boot_id:
            seen.append(_Shown(boot_id, source, now))
        boots = [one.boot_id for one in seen]
        if (
            len(seen) == CHANGES + 1
            and now - seen[1].at <= WITHIN_S
            and len(set(boots)) < len(boots)
        ):
            last = {one.boot_id: one.source for one in seen}
            self._found[public_key] = now, tuple(last.values())
        return self.sources(public_key, now) != ()

    def sources(self, public_key: bytes, now: float) -> tuple[str, ...]:
        """Return where the machines of a key are; empty while it is of one only, as far as we know."""
        found = self._found.get(public_key)
        if found is None or now - found[0] > TOLD_S:
            return ()
        return found[1]

    def found(self, now: float) -> tuple[bytes, ...]:
        """Return the keys that are of two machines."""
        return tuple(key for key in self._found if self.sources(key, now))

    def keep(self, public_keys: set[bytes]) -> None:
        """Forget all but these."""
        for kept in (self._shown, self._found):
            for key in kept.keys() - public_keys:
                del kept[key]
