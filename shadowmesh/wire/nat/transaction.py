"""One STUN request: when it is sent again, which answer counts, when it is given up.

Owns: the client transaction of RFC 8489 section 6.2.1 over UDP. Does not know: sockets, clocks,
why the question is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shadowmesh.base.errors import RemoteProtocolError
from shadowmesh.wire.control import Endpoint
from shadowmesh.wire.nat import stun
from shadowmesh.wire.nat.stun import BindingResponse, ChangeRequest, MessageClass, StunError

#: first retransmission timeout, seconds; doubles each time (RFC 8489 section 6.2.1)
INITIAL_RTO_S: Final = 0.5
#: Rc: requests sent before giving up
MAX_REQUESTS: Final = 7
#: Rm: how many initial timeouts the last request is given
LAST_WAIT_FACTOR: Final = 16


class Outcome(StrEnum):
    """How a transaction ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # an error response
    UNUSABLE = "unusable"  # a response of this transaction that cannot be used
    SILENT = "silent"  # no response in time


@dataclass(frozen=True, slots=True)
class Finished:
    """A transaction ended.

    Attributes:
        outcome: how.
        response: only when answered.
        source: where the response came from; None when silent.
        rtt_s: seconds since the last request sent, so after a retransmission a lower bound:
            both requests carry one id and the answer does not say which it meant.
        ignored: datagrams that came from where an answer was wanted and were none.
        detail: one line for people; empty when answered.
    """

    outcome: Outcome
    response: BindingResponse | None = None
    source: Endpoint | None = None
    rtt_s: float | None = None
    ignored: int = 0
    detail: str = ""


class Transaction:
    """One binding request to one server, sent until it is answered or time is up.

    A datagram counts only when it comes from an address that was asked to answer and carries
    the transaction id; everything else is left alone, so that nobody who merely knows the
    addresses can end the transaction. `ignored` counts what came from the right address and
    was not a response (garbage, a wrong fingerprint, another transaction).

    Source: RFC 8489, section 6.2.1; protocol section 8.
    """

    def __init__(
        self,
        server: Endpoint,
        transaction_id: bytes,
        now: float,
        *,
        deadline: float,
        change: ChangeRequest | None = None,
        answer_from: Iterable[Endpoint] = (),
        max_requests: int = MAX_REQUESTS,
        last_wait_factor: int = LAST_WAIT_FACTOR,
    ) -> None:
        """Make a transaction whose first request is ready in `data_to_send`.

        Args:
            server: where requests go.
            transaction_id: 12 random bytes, drawn for this transaction only.
            now: monotonic seconds.
            deadline: monotonic seconds at which the transaction is over whatever the schedule.
            change: ask to be answered from elsewhere (RFC 5780).
            answer_from: addresses whose answers count; the server itself when empty.
            max_requests: Rc.
            last_wait_factor: Rm.
        """
        self.server = server
        self.transaction_id = transaction_id
        self.ignored = 0
        self._request = stun.binding_request(transaction_id, change)
        self._sources = frozenset(answer_from) or frozenset([server])
        self._deadline = deadline
        self._max_requests = max_requests
        self._last_wait_factor = last_wait_factor
        self._sent = 0
        self._sent_at = now
        self._timeout: float | None = None
        self._outgoing: deque[bytes] = deque()
        self._events: deque[Finished] = deque()
        self._send(now)

    @property
    def finished(self) -> bool:
        """True once the outcome is known, whether or not its event was taken."""
        return self._timeout is None

    def data_to_send(self) -> list[bytes]:
        """Return the datagrams to send to `server` now; each is returned once."""
        data = list(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes, source: Endpoint, now: float) -> bool:
        """Take a datagram; return False when it is none of this transaction's business."""
        if self.finished or source not in self._sources:
            return False
        try:
            message = stun.parse(data)
        except RemoteProtocolError:
            # The id cannot be trusted in what does not parse, so this does not end the wait.
            self.ignored += 1
            return False
        if message.transaction_id != self.transaction_id:
            self.ignored += 1
            return False
        if message.message_class not in (MessageClass.SUCCESS, MessageClass.ERROR):
            self.ignored += 1
            return False
        rtt_s = now - self._sent_at
        try:
            response = stun.interpret_response(message, self.transaction_id)
        except StunError as error:
            self._finish(Outcome.REFUSED, None, source, rtt_s, str(error))
        except RemoteProtocolError as error:
            self._finish(Outcome.UNUSABLE, None, source, rtt_s, str(error))
        else:
            self._finish(Outcome.ANSWERED, response, source, rtt_s)
        return True

    def next_event(self) -> Finished | None:
        """Return the outcome, once."""
        return self._events.popleft() if self._events else None

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` wants to be called; None when finished."""
        return self._timeout

    def handle_timeout(self, now: float) -> None:
        """Send again or give up. Does nothing when called early."""
        if self._timeout is None or now < self._timeout:
            return
        if now >= self._deadline or self._sent >= self._max_requests:
            self._finish(Outcome.SILENT, detail=f"no answer to {self._sent} requests")
        else:
            self._send(now)

    def _send(self, now: float) -> None:
        self._outgoing.append(self._request)
        self._sent_at = now
        # 0, 500, 1500, 3500, 7500, 15500, 31500 ms, and the end 16 initial timeouts later.
        wait = INITIAL_RTO_S * 2.0**self._sent
        self._sent += 1
        if self._sent >= self._max_requests:
            wait = INITIAL_RTO_S * self._last_wait_factor
        self._timeout = min(now + wait, self._deadline)

    def _finish(
        self,
        outcome: Outcome,
        response: BindingResponse | None = None,
        source: Endpoint | None = None,
        rtt_s: float | None = None,
        detail: str = "",
    ) -> None:
        self._events.append(Finished(outcome, response, source, rtt_s, self.ignored, detail))
        self._outgoing.clear()
        self._timeout = None
