"""Slow, obvious twin of the replay window: remember every counter, forget none.

The oracle for the C ring. RFC 6479 with a ring of 65536 bits in words of 64: one word is always
the one being cleared, so 65536 - 64 = 65472 counters behind the newest can still be told apart.
Source: protocol section 6, RFC 6479 section 3.
"""

from __future__ import annotations

RING_BITS = 65536
WORD_BITS = 64
WINDOW = RING_BITS - WORD_BITS


class ReplayWindow:
    """Test before the tag is verified, mark after it: a forged counter must not move the window."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.newest = 0

    def test(self, counter: int) -> bool:
        """Tell whether counter is new and not too old. Changes nothing."""
        if counter > self.newest:
            return True
        if self.newest - counter > WINDOW:
            return False
        return counter not in self.seen

    def mark(self, counter: int) -> bool:
        """Note a counter that authenticated; returns what test said before."""
        fresh = self.test(counter)
        if fresh:
            self.seen.add(counter)
            self.newest = max(self.newest, counter)
        return fresh
