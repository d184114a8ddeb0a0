"""What kind of NAT stands between us and the world, found by asking STUN servers.

Owns: which question is asked when, and what the answers mean. Does not know: sockets, clocks,
names (servers come resolved), what the result is used for.

::

    every server at once:  binding request -> the address it saw        event Mapped
    one that offers RFC 5780 (its alternate address is A', its alternate port P'):
      filtering, first:    "answer from A':P'"   answered -> endpoint-independent
                           "answer from A:P'"    answered -> address-dependent, else both
      mapping, after it:   to A':P, then to A':P'; the same address seen -> endpoint-independent
    otherwise:             two servers compared; filtering stays unknown
    then, or when time is up                                            event Detected

Filtering is asked before mapping, because the questions about mapping open the filter for the
alternate address. The questions travel from the socket that carries the data, so the answers
are about that socket. What cannot be told is "unknown", with what is known beside it.
Source: RFC 5780 section 4, RFC 4787; the names of the types are those of RFC 3489.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final

from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.wire.control import Candidate, CandidateKind, Endpoint, is_usable
from shadowmesh.wire.nat.result import (
    Filtering,
    Mapping,
    NatResult,
    NatType,
    Server,
    ServerReport,
    compare_answers,
    describe,
    name_type,
)
from shadowmesh.wire.nat.stun import TRANSACTION_ID_BYTES, ChangeRequest
from shadowmesh.wire.nat.transaction import Finished, Outcome, Transaction

#: once the type is known, servers that have not answered are waited for until this long after
#: the start: two requests were lost by then
SETTLE_S: Final = 1.5
#: a filter answers by silence; three requests at 0, 0.5 and 1.5 s, and 1 s for the last
FILTER_REQUESTS: Final = 3
FILTER_LAST_WAIT_FACTOR: Final = 2
#: share of the whole time after which filtering is left unknown, so that mapping gets its turn
FILTER_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Mapped:
    """A server answered: a reflexive candidate, at once, long before the type is known."""

    server: Server
    mapped: Endpoint
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Detected:
    """The end of the detection."""

    result: NatResult


@dataclass(frozen=True, slots=True)
class Datagram:
    """Bytes for the data socket to send."""

    destination: Endpoint
    data: bytes


class _Phase(StrEnum):
    """Where the tests of RFC 5780 are."""

    FILTERING = "filtering"
    MAPPING_ADDRESS = "mapping, alternate address"
    MAPPING_PORT = "mapping, alternate address and port"
    DONE = "done"


#: which phase may follow which
_NEXT: Final = {
    _Phase.FILTERING: (_Phase.MAPPING_ADDRESS, _Phase.DONE),
    _Phase.MAPPING_ADDRESS: (_Phase.MAPPING_PORT, _Phase.DONE),
    _Phase.MAPPING_PORT: (_Phase.DONE,),
    _Phase.DONE: (),
}

_ANY_SENDER: Final = ChangeRequest(ip=True, port=True)
_ANY_PORT: Final = ChangeRequest(port=True)


@dataclass(slots=True)
class _Tests:
    """The tests of RFC 5780 with one server.

    Attributes:
        server: its address, A:P.
        other: its alternate, A':P'.
        first, second, third: where A:P, A':P and A':P' saw us.
        arrived: did the answer come from elsewhere; None when that cannot be told.
    """

    server: Endpoint
    other: Endpoint
    first: Endpoint
    second: Endpoint | None = None
    third: Endpoint | None = None
    arrived: dict[ChangeRequest, bool | None] = field(default_factory=dict)
    phase: _Phase = _Phase.FILTERING

    def enter(self, phase: _Phase) -> None:
        if phase not in _NEXT[self.phase]:
            raise LocalProtocolError(f"{self.phase} cannot be followed by {phase}")
        self.phase = phase

    def mapping(self, local: Collection[Endpoint]) -> Mapping:
        if self.first in local:
            return Mapping.NONE
        if self.second is None:
            return Mapping.UNKNOWN
        if self.second == self.first:
            return Mapping.ENDPOINT_INDEPENDENT
        if self.third is None:
            return Mapping.DESTINATION_DEPENDENT
        if self.third == self.second:
            return Mapping.ADDRESS_DEPENDENT
        return Mapping.ADDRESS_AND_PORT_DEPENDENT

    def filtering(self) -> Filtering:
        if self.arrived.get(_ANY_SENDER):
            return Filtering.ENDPOINT_INDEPENDENT
        # Silence means a filter only when the alternate address is alive.
        if self.second is None or None in (
            self.arrived.get(_ANY_SENDER),
            self.arrived.get(_ANY_PORT),
        ):
            return Filtering.UNKNOWN
        if self.arrived[_ANY_PORT]:
            return Filtering.ADDRESS_DEPENDENT
        return Filtering.ADDRESS_AND_PORT_DEPENDENT


@dataclass(slots=True)
class _Question:
    """A transaction and what is to be done with its end."""

    transaction: Transaction
    then: Callable[[Finished, float], None]


@dataclass(slots=True)
class _Asked:
    """A configured server and what it answered."""

    server: Server
    report: ServerReport | None = None
    heard: bool = field(default=False)


class NatDetector:
    """Finds out the type of the NAT, once; make another one to ask again.

    The five verbs: `receive`, `data_to_send`, `next_event`, `next_timeout`, `handle_timeout`.
    """

    def __init__(
        self,
        servers: Iterable[Server],
        local: Sequence[Endpoint],
        now: float,
        *,
        detection_timeout_s: float,
        random: Callable[[int], bytes],
    ) -> None:
        """Make a detector whose first requests are ready in `data_to_send`.

        Args:
            servers: asked all at once; of several with one address the first counts.
            local: the addresses of the data socket, the main one first; an address that a
                server names and that is among them means that there is no NAT.
            now: monotonic seconds.
            detection_timeout_s: upper bound of the whole, seconds.
            random: gives that many random bytes.
        """
        self._local = tuple(local)
        self._random = random
        self._start = now
        self._deadline = now + detection_timeout_s
        self._filter_deadline = now + detection_timeout_s * FILTER_SHARE
        self._questions: list[_Question] = []
        self._outgoing: deque[Datagram] = deque()
        self._events: deque[Mapped | Detected] = deque()
        self._tests: _Tests | None = None
        self._result: NatResult | None = None
        self._asked: list[_Asked] = []
        for server in servers:
            if all(server.endpoint != asked.server.endpoint for asked in self._asked):
                self._asked.append(_Asked(server))
        for asked in self._asked:
            self._ask(asked.server.endpoint, partial(self._on_binding, asked), now)
        self._settle(now)

    @property
    def result(self) -> NatResult | None:
        """The result; None while the detection runs."""
        return self._result

    def data_to_send(self) -> list[Datagram]:
        """Return the datagrams to send now, from the data socket; each is returned once."""
        data = list(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes, source: Endpoint, now: float) -> bool:
        """Take a datagram that is no record; return False when no question was answered by it."""
        for question in self._questions:
            if question.transaction.receive(data, source, now):
                self._advance(now)
                return True
        return False

    def next_event(self) -> Mapped | Detected | None:
        """Return what happened, oldest first; None when there is nothing."""
        return self._events.popleft() if self._events else None

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` wants to be called; None once the result is known."""
        if self._result is not None:
            return None
        times = [question.transaction.next_timeout() for question in self._questions]
        if self._is_tested():
            times.append(self._start + SETTLE_S)
        return min((time for time in times if time is not None), default=self._deadline)

    def handle_timeout(self, now: float) -> None:
        """Send again, go on, or conclude. Does nothing when called early."""
        if self._result is None:
            for question in self._questions:
                question.transaction.handle_timeout(now)
            self._advance(now)

    # --- Asking ------------------------------------------------------------------------------

    def _ask(
        self,
        server: Endpoint,
        then: Callable[[Finished, float], None],
        now: float,
        *,
        change: ChangeRequest | None = None,
        answer_from: Collection[Endpoint] = (),
    ) -> None:
        transaction_id = self._random(TRANSACTION_ID_BYTES)
        if change is None:
            transaction = Transaction(server, transaction_id, now, deadline=self._deadline)
        else:
            transaction = Transaction(
                server,
                transaction_id,
                now,
                deadline=self._filter_deadline,
                change=change,
                answer_from=answer_from,
                max_requests=FILTER_REQUESTS,
                last_wait_factor=FILTER_LAST_WAIT_FACTOR,
            )
        self._questions.append(_Question(transaction, then))

    def _advance(self, now: float) -> None:
        """Take the ends of questions, which may ask new ones, then send and perhaps conclude."""
        for question in list(self._questions):
            if (end := question.transaction.next_event()) is not None:
                question.then(end, now)
        self._questions = [q for q in self._questions if not q.transaction.finished]
        self._settle(now)

    def _settle(self, now: float) -> None:
        for question in self._questions:
            for data in question.transaction.data_to_send():
                self._outgoing.append(Datagram(question.transaction.server, data))
        if self._result is None and self._is_over(now):
            self._outgoing.clear()
            self._questions.clear()
            self._result = self._conclude(now)
            self._events.append(Detected(self._result))

    def _is_over(self, now: float) -> bool:
        if not self._questions or now >= self._deadline:
            return True
        return self._is_tested() and now >= self._start + SETTLE_S

    def _is_tested(self) -> bool:
        """Tell whether the tests told the mapping: no server has more to say."""
        tests = self._tests
        return (
            tests is not None
            and tests.phase is _Phase.DONE
            and tests.mapping(self._local) is not Mapping.UNKNOWN
        )

    # --- Answers -----------------------------------------------------------------------------

    def _on_binding(self, asked: _Asked, end: Finished, now: float) -> None:
        server, rtt_ms = asked.server, None if end.rtt_s is None else end.rtt_s * 1000.0
        asked.heard = end.outcome is not Outcome.SILENT or end.ignored > 0
        if end.response is None or end.rtt_s is None:
            asked.report = ServerReport(server, None, rtt_ms, end.detail)
            return
        mapped = end.response.mapped
        if not self._may_be_ours(mapped):
            detail = f"named {mapped}, which cannot be ours"
            asked.report = ServerReport(server, None, rtt_ms, detail)
            return
        asked.report = ServerReport(server, mapped, rtt_ms)
        self._events.append(Mapped(server, mapped, end.rtt_s))
        other = end.response.other
        if self._tests is None and other is not None and _is_alternate(server.endpoint, other):
            self._tests = _Tests(server.endpoint, other, mapped)
            self._ask_filtering(self._tests, now)

    def _may_be_ours(self, mapped: Endpoint) -> bool:
        return mapped in self._local or is_usable(Candidate(CandidateKind.REFLEXIVE, mapped))

    def _ask_filtering(self, tests: _Tests, now: float) -> None:
        sources = {
            _ANY_SENDER: tests.other,
            _ANY_PORT: Endpoint(tests.server.address, tests.other.port),
        }
        for change, source in sources.items():
            # A server that offers the tests and then ignores CHANGE-REQUEST answers from where
            # it was asked: heard, but no answer about the filter.
            self._ask(
                tests.server,
                partial(self._on_filtering, tests, change, source),
                now,
                change=change,
                answer_from=(source, tests.server),
            )

    def _on_filtering(
        self, tests: _Tests, change: ChangeRequest, source: Endpoint, end: Finished, now: float
    ) -> None:
        if end.outcome is Outcome.ANSWERED and end.source == source:
            tests.arrived[change] = True
        elif end.outcome is Outcome.SILENT and now < self._filter_deadline:
            tests.arrived[change] = False
        else:
            tests.arrived[change] = None
        # What lets anybody in lets other ports in, too: no need to wait for the second answer.
        if tests.phase is _Phase.FILTERING and (
            len(tests.arrived) == 2 or tests.arrived.get(_ANY_SENDER)
        ):
            tests.enter(_Phase.MAPPING_ADDRESS)
            alternate = Endpoint(tests.other.address, tests.server.port)
            self._ask(alternate, partial(self._on_mapping, tests), now)

    def _on_mapping(self, tests: _Tests, end: Finished, now: float) -> None:
        mapped = None if end.response is None else end.response.mapped
        if tests.phase is _Phase.MAPPING_PORT:
            tests.third = mapped
            tests.enter(_Phase.DONE)
            return
        tests.second = mapped
        if mapped is None or mapped == tests.first:
            tests.enter(_Phase.DONE)
        else:
            tests.enter(_Phase.MAPPING_PORT)
            self._ask(tests.other, partial(self._on_mapping, tests), now)

    # --- Conclusion --------------------------------------------------------------------------

    def _conclude(self, now: float) -> NatResult:
        reports = tuple(
            asked.report or ServerReport(asked.server, detail="no answer in time")
            for asked in self._asked
        )
        mapped = [report.mapped for report in reports if report.mapped is not None]
        if self._tests is not None:
            mapped.insert(0, self._tests.first)
        # Stable: IPv4 first, then what was tested, then the order of the configuration.
        public = tuple(dict.fromkeys(sorted(mapped, key=lambda seen: seen.address.version)))
        mapping, filtering = Mapping.UNKNOWN, Filtering.UNKNOWN
        if public:
            mapping, filtering, detail = self._judge(reports, public)
            kind = name_type(mapping, filtering)
        elif not self._asked:
            kind, detail = NatType.UNKNOWN, "no STUN server is configured"
        elif any(asked.heard for asked in self._asked):
            kind, detail = NatType.UNKNOWN, "UDP passes, but no STUN server gave our address"
        else:
            kind = NatType.UDP_BLOCKED
            waited_s = self._deadline - self._start
            detail = f"no STUN server answered in {waited_s:g} s: UDP is blocked, or all are down"
        return NatResult(
            type=kind,
            mapping=mapping,
            filtering=filtering,
            public_address=public[0] if public else None,
            local_address=self._local[0] if self._local else None,
            public_addresses=public,
            servers=reports,
            detected_at=now,
            detail=detail,
        )

    def _judge(
        self, reports: Sequence[ServerReport], public: Sequence[Endpoint]
    ) -> tuple[Mapping, Filtering, str]:
        filtering, tests = Filtering.UNKNOWN, self._tests
        if tests is not None and tests.first == public[0]:
            filtering = tests.filtering()
            mapping = tests.mapping(self._local)
            if mapping is not Mapping.UNKNOWN:
                # The tests with one server say more than a comparison that they contradict.
                said = describe(mapping, filtering)
                one_port = mapping in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT)
                version = public[0].address.version
                if one_port and any(seen.address.version == version for seen in public[1:]):
                    said += "; a STUN server disagrees"
                return mapping, filtering, said
        mapping, remark = compare_answers(reports, public[0].address.version, self._local)
        if mapping is Mapping.UNKNOWN:
            return mapping, filtering, remark
        said = describe(mapping, filtering)
        return mapping, filtering, f"{said}; {remark}" if remark else said


def _is_alternate(server: Endpoint, other: Endpoint) -> bool:
    """Tell whether OTHER-ADDRESS can be used for the tests. Source: RFC 5780, section 7.4."""
    return (
        other.address != server.address
        and other.port != server.port
        and other.address.version == server.address.version
        and is_usable(Candidate(CandidateKind.HOST, other))
    )
