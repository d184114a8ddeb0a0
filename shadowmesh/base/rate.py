"""Token buckets: how often something may happen.

Owns: the arithmetic. Does not know: clocks (the caller passes `now`), HTTP, what is limited.
"""

from __future__ import annotations

from collections import OrderedDict


class TokenBucket:
    """Allows `rate_per_s` on average and `burst` at once; starts full."""

    __slots__ = ("_burst", "_last", "_rate_per_s", "_tokens")

    def __init__(self, rate_per_s: float, burst: float) -> None:
        """Args: rate_per_s above 0; burst at least 1."""
        if rate_per_s <= 0 or burst < 1:
            raise ValueError(f"a bucket of {rate_per_s}/s with burst {burst} allows nothing")
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._last: float | None = None

    def take(self, now: float) -> bool:
        """Take one token; False when there is none.

        Args:
            now: monotonic seconds; a value before the last one counts as no time passed.
        """
        if self._last is not None:
            gained = max(0.0, now - self._last) * self._rate_per_s
            self._tokens = min(self._burst, self._tokens + gained)
        self._last = now if self._last is None else max(now, self._last)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def owe(self, tokens: float) -> None:
        """Take more, be they there or not: for work whose size is known only when it is done."""
        self._tokens -= tokens


class FairRate:
    """One rate for all, beside which each client has a little that others cannot use up.

    What is in use at most is the common rate and the own rate of every client.
    """

    __slots__ = ("_common", "_own", "_shares")

    #: clients remembered; who was forgotten begins anew
    MAX_CLIENTS = 256

    def __init__(self, common: tuple[float, float], own: tuple[float, float]) -> None:
        """Args: rate per second and burst of all together, and of each client beside that."""
        self._common = TokenBucket(*common)
        self._own = own
        self._shares: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, client: str, now: float) -> bool:
        """Take one token for a client; False when there is none. `now` as for `TokenBucket`."""
        share = self._shares.get(client)
        if share is None:
            share = self._shares[client] = TokenBucket(*self._own)
            if len(self._shares) > self.MAX_CLIENTS:
                self._shares.popitem(last=False)
        self._shares.move_to_end(client)
        return share.take(now) or self._common.take(now)
