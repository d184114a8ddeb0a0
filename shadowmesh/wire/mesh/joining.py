"""Joining a network: a handshake in mode 10, one question, one answer, and the end.

Owns: that conversation over one WSS link, for both sides, and its 10 s. Does not know: what makes
a proof good or an answer true, sealing, links, clocks (`now` is CLOCK_BOOTTIME in seconds). It is
no session: there is no rekey, no key for UDP and no ACCEPT, and it never enters peers or switch.
Source: mesh section 4, mesh-rules B2.

::

    joiner                                          relay
    start        SendMessage(msg1)  ----------->
                                    <-----------    SendMessage(msg2)
    SendMessage(msg3) InstallKeys   ----------->    InstallKeys
    Reached; the owner says ask():
    SendUnder SendRecord(Join)      ===========>    Asked; the owner says answer():
                                                    SendUnder SendRecord(Joined), in pieces
                                    <===========    SendRecord(close) Finished
    Answered Finished                                           ==== sealed under the wss keys
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from shadowmesh.base.constants import (
    HANDSHAKE_TIMEOUT_S,
    JOIN_MODE,
    WS_GOING_AWAY,
    WS_HANDSHAKE_FAILED,
    WS_NORMAL,
    CloseReason,
    Inner,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire import control
from shadowmesh.wire.handshake.machines import Initiator, Responder
from shadowmesh.wire.mesh.chunks import Gathering, cut
from shadowmesh.wire.mesh.messages import (
    LARGE_MESSAGE_MAX_BYTES,
    Busy,
    Join,
    Joined,
    Refused,
    Renew,
)
from shadowmesh.wire.session.events import (
    Answered,
    Asked,
    Failed,
    Finished,
    InstallKeys,
    JoiningEvent,
    Reached,
    RetireKeys,
    SendMessage,
    SendRecord,
    SendUnder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shadowmesh.wire.handshake.agreement import Entropy, HandshakeResult, Offer, Policy

#: a Renew with the largest certificate
QUESTION_MAX_BYTES: Final = 4096
#: pieces of a question
QUESTION_MAX_RECORDS: Final = 8

Question = Join | Renew
Answer = Joined | Refused | Busy


class JoiningMachine:
    """One conversation, either role; driven as `wire.session.machine.SessionMachine` is.

    The result of InstallKeys has no keys for UDP. Calls that take the peer's bytes raise
    RemoteProtocolError when those break the protocol; the queue then ends with Failed. Once it is
    over every call is ignored.

    Args:
        initiator: we want to join.
        policy: with `join` and nothing else of a network: a pin who joins, none who is asked.
        offer: what we announce; its key_id is replaced.
        reserve_key_id: returns a local key id, not 0, that nobody uses.
        release_key_id: takes back one that was reserved and never installed.
        entropy: where the handshake takes its secrets; None is the system.
    """

    def __init__(
        self,
        initiator: bool,
        policy: Policy,
        offer: Offer,
        *,
        reserve_key_id: Callable[[], int],
        release_key_id: Callable[[int], None],
        entropy: Entropy | None = None,
    ) -> None:
        if policy.mode != JOIN_MODE:
            raise LocalProtocolError(f"joining is mode {JOIN_MODE}, not {policy.mode}")
        self.initiator = initiator
        self._policy = policy
        self._offer = offer
        self._reserve_key_id = reserve_key_id
        self._release_key_id = release_key_id
        self._entropy = entropy
        self._machine: Initiator | Responder | None = None
        #: reserved, and not installed
        self._reserved = 0
        #: agreed, without the keys; theirs are installed
        self._result: HandshakeResult | None = None
        #: relay: message 1 has come
        self._met = False
        self._sending = False
        self._asked = False
        self._records = 0
        self._gathering = Gathering(LARGE_MESSAGE_MAX_BYTES if initiator else QUESTION_MAX_BYTES)
        self._deadline: float | None = None
        self._over = False
        self._events: deque[JoiningEvent] = deque()

    @property
    def over(self) -> bool:
        """Whether it has ended; what is left in the queue still has to be done."""
        return self._over

    def next_event(self) -> JoiningEvent | None:
        """Return what to do or know next, None when there is nothing."""
        return self._events.popleft() if self._events else None

    def next_timeout(self) -> float | None:
        """Return when handle_timeout() is due; None before start() and after the end."""
        return None if self._over else self._deadline

    # --- the owner's wishes -------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: the joiner sends message 1, the relay waits for it; 10 s from now it is over."""
        if self._deadline is not None:
            raise LocalProtocolError("the conversation was started before")
        kind = Initiator if self.initiator else Responder
        key_id = self._reserve_key_id()
        try:
            machine = kind(self._policy, replace(self._offer, key_id=key_id), entropy=self._entropy)
        except BaseException:
            self._release_key_id(key_id)
            raise
        self._machine, self._reserved = machine, key_id
        self._deadline = now + HANDSHAKE_TIMEOUT_S
        if isinstance(machine, Initiator):
            self._emit(SendMessage(machine.first_message()))

    def ask(self, question: Question, now: float) -> None:
        """Send the only question there is; the joiner's reply to Reached."""
        if self._expired(now):
            return
        if not self.initiator or self._result is None or self._asked:
            raise LocalProtocolError("there is nobody to ask, or it was asked already")
        self._asked = True
        self._send(question)

    def answer(self, answer: Answer, now: float) -> None:
        """Send the only answer there is, and end; the relay's reply to Asked."""
        if self._expired(now):
            return
        if self.initiator or not self._asked:
            raise LocalProtocolError("nothing was asked")
        self._send(answer)
        self._end(Finished(), CloseReason.DISCONNECT)

    def close(self, reason: CloseReason, text: str, now: float) -> None:
        """End it, telling the peer if it can be told."""
        if not self._expired(now):
            self._end(Finished(WS_GOING_AWAY), reason, text)

    def link_lost(self, now: float) -> None:
        """Without its link it is over."""
        if not self._expired(now):
            self._fail("link lost while joining", WS_GOING_AWAY, CloseReason.TIMEOUT)

    # --- input from the peer and the clock ----------------------------------------------------

    def receive_message(self, data: bytes, now: float) -> None:
        """Take a binary WebSocket message, which can only be a handshake's.

        Raises:
            RemoteProtocolError: refused or unsolicited; it is over.
            LocalProtocolError: called before start().
        """
        if self._deadline is None:
            raise LocalProtocolError("a message came before start()")
        if self._expired(now):
            return
        with self._judging():
            machine = self._machine
            if isinstance(machine, Initiator):
                self._emit(SendMessage(machine.receive_msg2(data)))
                self._agree(machine.result)
                self._emit(Reached(self._agreed()))
            elif machine is not None and not self._met:
                self._met = True
                self._emit(SendMessage(machine.receive_msg1(data)))
            elif machine is not None:
                self._agree(machine.receive_msg3(data))
            else:
                raise RemoteProtocolError("a bare message after keys were agreed")

    def receive_record(self, key_id: int, inner_type: int, body: bytes, now: float) -> None:
        """Take an opened record.

        Args:
            key_id: the local key id under which it was opened.
            inner_type: a piece of the question or the answer, padding or close.
        Raises:
            RemoteProtocolError: anything else; it is over.
        """
        if self._expired(now) or self._result is None or key_id != self._result.local_key_id:
            return
        with self._judging():
            if inner_type == Inner.CLOSE:
                close = control.decode_close(body)
                detail = f"peer ended it, reason {close.reason}"
                self._fail(detail, WS_NORMAL, CloseReason.PROTOCOL, local=False)
            elif inner_type == Inner.MESH:
                self._receive_mesh(body)
            elif inner_type != Inner.PADDING:
                raise RemoteProtocolError(f"record of type {inner_type} while joining")

    def handle_timeout(self, now: float) -> None:
        """Do what is due; harmless when called early or late."""
        self._expired(now)

    # --- inside -------------------------------------------------------------------------------

    def _receive_mesh(self, body: bytes) -> None:
        if self.initiator != self._asked:
            raise RemoteProtocolError("a second question, or an answer before one")
        self._records += 1
        if not self.initiator and self._records > QUESTION_MAX_RECORDS:
            raise RemoteProtocolError("a question without end")
        message = self._gathering.receive(body)
        if message is None:
            return
        if self.initiator:
            if not isinstance(message, Answer):
                raise RemoteProtocolError(f"{type(message).__name__} is no answer to a joiner")
            self._emit(Answered(message))
            self._end(Finished(), CloseReason.DISCONNECT)
        else:
            if not isinstance(message, Question):
                raise RemoteProtocolError(f"{type(message).__name__} from a joiner")
            self._asked = True
            self._emit(Asked(self._agreed(), message))

    def _agree(self, result: HandshakeResult) -> None:
        """Let the data plane open what comes under the keys of the link, and forget all keys."""
        self._machine, self._reserved = None, 0
        wss_only = replace(result.keys, udp_i2r=b"", udp_r2i=b"", exporter=b"")
        self._emit(InstallKeys(replace(result, keys=wss_only)))
        self._result = replace(result, keys=replace(wss_only, wss_i2r=b"", wss_r2i=b""))

    def _agreed(self) -> HandshakeResult:
        assert self._result is not None
        return self._result

    def _send(self, message: Question | Answer) -> None:
        bodies = cut(message)
        if not self._sending:
            self._sending = True
            self._emit(SendUnder(self._agreed().local_key_id))
        for body in bodies:
            self._emit(SendRecord(Inner.MESH, body))

    def _expired(self, now: float) -> bool:
        """End it when its time is over; return whether it has ended."""
        if not self._over and self._deadline is not None and now >= self._deadline:
            self._fail(
                f"joining took longer than {HANDSHAKE_TIMEOUT_S:.0f} s",
                WS_HANDSHAKE_FAILED,
                CloseReason.TIMEOUT,
            )
        return self._over

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Run what reads the peer's bytes; a refusal ends it."""
        try:
            yield
        except RemoteProtocolError as error:
            self._fail(str(error), error.close_code, CloseReason.PROTOCOL, local=False)
            raise

    def _fail(
        self, detail: str, close_code: int, reason: CloseReason, *, local: bool = True
    ) -> None:
        self._end(Failed(detail, close_code, local, reason), None)

    def _end(self, last: Finished | Failed, told: CloseReason | None, text: str = "") -> None:
        """Let go of everything; `told`: what a close record says, if there are keys for one."""
        if self._over:
            return
        self._over = True
        self._machine = None
        if self._reserved:
            self._release_key_id(self._reserved)
            self._reserved = 0
        if self._result is not None:
            if told is not None and self._sending:
                self._emit(SendRecord(Inner.CLOSE, control.encode_close(told, text)))
            self._emit(RetireKeys(self._result.local_key_id))
        self._emit(last)

    def _emit(self, event: JoiningEvent) -> None:
        self._events.append(event)
