"""Is the peer still there behind the WSS link? A pure machine of clock readings.

Owns: when to send a keepalive, when to ask with a probe, when to give the link up. Does not
know: links, records, or how a probe is sealed; a WebSocket ping proves nothing end to end and
plays no part. Source: protocol section 8, "Liveness of WSS".

::

    we sent nothing for keepalive_interval ............... keepalive
    data sent, nothing heard for 15 s .................... probe; nothing for 10 s more: dead
    nothing heard for read_timeout - 10 s ................ probe; nothing at read_timeout: dead

Nobody is declared dead without a probe that stayed unanswered for 10 s: our own process may have
been stopped (SIGSTOP, suspend, a starved CPU) while the answer waits in the socket's buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shadowmesh.base.clock import next_tick
from shadowmesh.base.constants import WSS_DEAD_AFTER_PROBE_S, WSS_PROBE_AFTER_S

#: how often the clock readings are looked at; bounds how late unanswered data is noticed
CHECK_INTERVAL_S: Final = 1.0
#: a check that comes this much later than asked for means that our own process stood still
_STALL_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class SendKeepalive:
    """Send an empty record of inner type 0."""


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send a probe over WSS; any record heard after it counts as an answer."""


@dataclass(frozen=True, slots=True)
class Dead:
    """The peer is gone. `reason` is a sentence for log and status."""

    reason: str


Action = SendKeepalive | SendProbe | Dead


class Liveness:
    """Liveness of one WSS link, from Established on.

    Args:
        keepalive_interval_s, read_timeout_s: websocket.keepalive_interval, .read_timeout.
        now: seconds, monotonic; the moment at which the session was established.
    """

    def __init__(self, keepalive_interval_s: float, read_timeout_s: float, now: float) -> None:
        self._keepalive_interval_s = keepalive_interval_s
        self._read_timeout_s = read_timeout_s
        self._checked_at = now
        self._spoke_at = now
        self._heard_at = now
        #: not later than the first data sent since the peer was heard; None: all is answered
        self._waiting_since: float | None = None
        self._probed_at: float | None = None
        self._dead = False

    def check(self, now: float, *, data_sent_at: float, heard_at: float) -> list[Action]:
        """Look at the clock readings and say what to do, in order.

        To be called at next_timeout(), earlier or oftener at will.

        Args:
            now: seconds, the same clock as everywhere here.
            data_sent_at: when the data plane last sealed a frame onto this link; anything in
                the past when it never did. Keepalives and probes asked for here do not count.
            heard_at: when a record of this link last opened, of whatever type.
        """
        if self._dead:
            return []
        stalled = now - self._checked_at > CHECK_INTERVAL_S + _STALL_S
        self._note(data_sent_at, heard_at)
        self._checked_at = now
        if self._probed_at is not None and stalled:
            self._probed_at = None  # the time in which we could not listen does not count
        actions: list[Action] = []
        if self._probed_at is not None:
            if now >= self._death_at(self._probed_at):
                self._dead = True
                return [Dead(f"nothing heard for {now - self._heard_at:.0f} s, probe unanswered")]
        elif now >= self._probe_at():
            self._probed_at = self._spoke_at = now
            actions.append(SendProbe())
        if now >= self._spoke_at + self._keepalive_interval_s:
            self._spoke_at = now
            actions.append(SendKeepalive())
        return actions

    def quiet(self, now: float) -> bool:
        """Whether check() would do nothing, with the readings of its last call; then it is done."""
        if self._dead or self._probed_at is not None or self._waiting_since is not None:
            return False
        if now >= min(self._probe_at(), self._spoke_at + self._keepalive_interval_s):
            return False
        self._checked_at = now
        return True

    def next_timeout(self) -> float | None:
        """Return when check() or quiet() is due, None once dead."""
        if self._dead:
            return None
        due = [
            next_tick(self._checked_at, CHECK_INTERVAL_S),
            self._spoke_at + self._keepalive_interval_s,
        ]
        if self._probed_at is None:
            due.append(self._probe_at())
        else:
            due.append(self._death_at(self._probed_at))
        return min(due)

    def _note(self, data_sent_at: float, heard_at: float) -> None:
        if heard_at > self._heard_at:
            self._heard_at = heard_at
            if self._probed_at is not None and heard_at >= self._probed_at:
                self._probed_at = None
            if self._waiting_since is not None and heard_at >= self._waiting_since:
                self._waiting_since = None
        self._spoke_at = max(self._spoke_at, data_sent_at)
        if self._waiting_since is None and data_sent_at > self._heard_at:
            # The readings tell the last frame, not the first one that went unanswered. That one
            # came after the peer was last heard and after the check before this one.
            self._waiting_since = max(self._heard_at, min(self._checked_at, data_sent_at))

    def _probe_at(self) -> float:
        # Half of a read_timeout below 20 s: otherwise each answer would ask for the next probe.
        before = max(self._read_timeout_s - WSS_DEAD_AFTER_PROBE_S, self._read_timeout_s / 2)
        idle = self._heard_at + before
        if self._waiting_since is None:
            return idle
        return min(idle, self._waiting_since + WSS_PROBE_AFTER_S)

    def _death_at(self, probed_at: float) -> float:
        return probed_at + WSS_DEAD_AFTER_PROBE_S
