"""The probes of one WSS link: they keep it alive, and measure its round trip.

Owns: the tokens on their way and the smoothed round trip. Does not know: when a probe is due
(`wire.liveness` says so), how a record is sent, UDP (`wire.path` has its own).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import PROBE_TOKEN_BYTES, Inner
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.path.pings import Pings
from shadowmesh.path.stopwatch import Stopwatch
from shadowmesh.wire import control

if TYPE_CHECKING:
    from shadowmesh._fastpath import Session
    from shadowmesh.insight.events import Recorder

#: weight of a new round trip in the smoothed one, as TCP does it (RFC 6298, section 2)
RTT_GAIN: Final = 1 / 8
#: the same for a shorter one: what is longer has waited somewhere, often for this very process
RTT_FAST_GAIN: Final = 1 / 2
#: probes whose answer is awaited; the oldest is forgotten for a new one
MAX_PROBES: Final = 8

_log = log.get("tunnel")


def try_to_send(session: Session, inner_type: Inner, body: bytes) -> bool:
    """Send a record that may be missed: a full link proves life, or its silence ends it."""
    try:
        session.send_record(inner_type, body)
    except LocalProtocolError as error:
        _log.debug("record not sent", kind=inner_type.name, cause=error)
        return False
    return True


class Probes:
    """Sends probes, answers the peer's, takes the answers. Belongs to the hub's thread.

    Attributes:
        rtt_s: smoothed round trip, None before the first answer.
    """

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self.rtt_s: float | None = None
        self._session = session
        self._recorder = recorder
        self._pings = Pings()
        self._stopwatch = Stopwatch()
        self._sent_at: dict[bytes, float] = {}

    @property
    def awaited(self) -> int:
        """Probes whose answer is awaited."""
        return len(self._sent_at)

    def send(self, now: float) -> None:
        """Send one probe."""
        token = os.urandom(PROBE_TOKEN_BYTES)
        if not self._send(token):
            return
        while len(self._sent_at) >= MAX_PROBES:
            del self._sent_at[next(iter(self._sent_at))]
        self._sent_at[token] = now

    def ping(self) -> float | None:
        """Measure one round trip; waits for the answer. None when none came."""
        return self._pings.round_trip(self._send)

    def _send(self, token: bytes) -> bool:
        self._stopwatch.departs(token)
        return try_to_send(self._session, Inner.PROBE, control.encode_probe(token))

    def answer(self, body: bytes, seen: control.Endpoint, came_at: float) -> None:
        """Answer a probe of the peer's, whom we see at this address, that came at that moment.

        Raises:
            RemoteProtocolError: it is no probe.
        """
        answer = control.answer_probe(control.decode_probe(body), seen, boottime() - came_at)
        if answer is not None:
            try_to_send(self._session, Inner.PROBE_ANSWER, answer)

    def answered(self, body: bytes, now: float) -> None:
        """Take an answer.

        Raises:
            RemoteProtocolError: it is none.
        """
        answer = control.decode_probe_answer(body)
        token = answer.token
        rtt_s = self._stopwatch.stop(token, now, answer.held_s)
        self._pings.answered(token, rtt_s)
        if self._sent_at.pop(token, None) is not None and rtt_s is not None:
            self._recorder.round_trip("wss", rtt_s)
            before = rtt_s if self.rtt_s is None else self.rtt_s
            gain = RTT_GAIN if rtt_s > before else RTT_FAST_GAIN
            self.rtt_s = before + gain * (rtt_s - before)
