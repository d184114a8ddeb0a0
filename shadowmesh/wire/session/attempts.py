"""The handshakes of a session: the one on its way, and those given up whose messages may still come.

Owns: what that handshake waits for and until when, its reserved key id, and which late message is
taken for what it is. Does not know: keys that are installed (`key_table`), when a rekey is due
(`rekey_timer`), how a message travels, what its end means for the session (`machine`).

::

    initiator   first_message() -> MSG2, receive_msg2() -> ACCEPT, forget()
    responder   wait_for_msg1() -> MSG1, receive_msg1() -> MSG3, receive_msg3() -> OWNER, settle()
                a rekey: receive_msg1() -> MSG3, receive_msg3() settles it
    members     CERTIFICATE stands before ACCEPT and OWNER, and OWNER may come after ACCEPT:
                receive_certificate(), receive_accept()

A `base` is what the handshake agreed whose keys a rekey replaces; None stands for the first one.
Source: protocol section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from shadowmesh.base.constants import (
    HANDSHAKE_MESSAGE_TIMEOUT_S,
    HANDSHAKE_TIMEOUT_S,
    MEMBER_MODE,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire.handshake.machines import Initiator, Responder

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.wire.handshake.agreement import Entropy, HandshakeResult, Offer, Policy


class Due(Enum):
    """What a handshake waits for."""

    MSG1 = auto()
    MSG2 = auto()
    MSG3 = auto()
    OWNER = auto()
    ACCEPT = auto()
    CERTIFICATE = auto()


@dataclass(slots=True)
class Attempt:
    """One handshake on its way."""

    due: Due
    started_at: float
    step_at: float
    machine: Initiator | Responder | None = None
    #: reserved and not installed; 0 when there is none
    key_id: int = 0
    #: agreed, while the owner is asked
    result: HandshakeResult | None = None
    #: initiator, between members: ACCEPT has come
    accepted: bool = False

    @property
    def deadline(self) -> float:
        """5 s per message, 10 s in all. Source: protocol section 4."""
        whole = self.started_at + HANDSHAKE_TIMEOUT_S
        if self.due is Due.OWNER:
            return whole
        return min(whole, self.step_at + HANDSHAKE_MESSAGE_TIMEOUT_S)


class Attempts:
    """At most one handshake on its way. What takes the peer's bytes raises RemoteProtocolError
    when they break the protocol, and the handshake then stays until it is dropped.

    Args:
        policy, offer: of every handshake; the key_id of the offer is replaced.
        reserve_key_id: returns a local key id, not 0, that nobody uses.
        release_key_id: takes back one that was reserved and never installed.
        entropy: where handshakes take their secrets; None is the system.
    """

    def __init__(
        self,
        policy: Policy,
        offer: Offer,
        *,
        reserve_key_id: Callable[[], int],
        release_key_id: Callable[[int], None],
        entropy: Entropy | None,
    ) -> None:
        self._policy = policy
        self._offer = offer
        self._reserve_key_id = reserve_key_id
        self._release_key_id = release_key_id
        self._entropy = entropy

        self.current: Attempt | None = None
        #: initiator: handshakes given up before their message 2 came, oldest first
        self._abandoned: list[Initiator] = []
        #: responder: a message 3 may still come for a rekey that was given up
        self._late_msg3 = False

    # --- the initiator ------------------------------------------------------------------------

    def first_message(self, base: HandshakeResult | None, now: float) -> bytes:
        """Begin a handshake; return its message 1."""
        key_id = self._reserve_key_id()
        machine = Initiator(
            self._policy,
            replace(self._offer, key_id=key_id),
            _prev_h(base),
            entropy=self._entropy,
        )
        self.current = Attempt(Due.MSG2, now, now, machine, key_id)
        return machine.first_message()

    def receive_msg2(
        self, data: bytes, base: HandshakeResult | None, now: float
    ) -> tuple[bytes, HandshakeResult] | None:
        """Return message 3 and what is agreed; None for the answer to one that was given up."""
        # The link keeps order, so an answer to a handshake that was given up comes before the
        # answer to a later one. Which of them an answer is for, only its AEAD can tell.
        while self._abandoned:
            try:
                self._abandoned.pop(0).receive_msg2(data)
            except RemoteProtocolError:
                continue  # that one was never answered
            return None
        attempt = self.current
        if attempt is None or not isinstance(attempt.machine, Initiator):
            raise RemoteProtocolError("message 2 without a message 1")
        reply = attempt.machine.receive_msg2(data)
        result = attempt.machine.result
        _check_same_peer(base, result)
        due = Due.CERTIFICATE if base is None and result.mode == MEMBER_MODE else Due.ACCEPT
        self.current = Attempt(due, attempt.started_at, now)
        return reply, result

    # --- the responder ------------------------------------------------------------------------

    def wait_for_msg1(self, now: float) -> None:
        """Begin the first handshake: the initiator has so long for its message 1."""
        self.current = Attempt(Due.MSG1, now, now)

    def receive_msg1(self, data: bytes, base: HandshakeResult | None, now: float) -> bytes:
        """Return message 2."""
        attempt = self.current
        if base is None:
            if attempt is None or attempt.due is not Due.MSG1:
                raise RemoteProtocolError("a second message 1 in one handshake")
            started_at = attempt.started_at
        else:
            # A rekey that the initiator gave up on before our message 2 came is forgotten.
            self.drop()
            started_at = now
        self._late_msg3 = False
        key_id = self._reserve_key_id()
        machine = Responder(
            self._policy,
            replace(self._offer, key_id=key_id),
            _prev_h(base),
            mode=None if base is None else base.mode,
            entropy=self._entropy,
        )
        self.current = Attempt(Due.MSG3, started_at, now, machine, key_id)
        return machine.receive_msg1(data)

    def receive_msg3(
        self, data: bytes, base: HandshakeResult | None, now: float
    ) -> HandshakeResult | None:
        """Return what is agreed, None for the end of a rekey that was given up.

        A rekey is settled by it; the first handshake then waits for the owner.
        """
        attempt = self.current
        if attempt is None or not isinstance(attempt.machine, Responder):
            if self._late_msg3:
                self._late_msg3 = False
                return None
            raise RemoteProtocolError("message 3 without a message 2")
        result = attempt.machine.receive_msg3(data)
        _check_same_peer(base, result)
        if base is None:
            attempt.due, attempt.step_at = Due.OWNER, now
            attempt.machine, attempt.result = None, result
            if result.mode == MEMBER_MODE:
                # Its keys are installed already: the certificate comes under them.
                attempt.due, attempt.key_id = Due.CERTIFICATE, 0
        else:
            self.current = None
        return result

    # --- between members ----------------------------------------------------------------------

    def receive_certificate(self, initiator: bool, now: float) -> None:
        """The peer has shown its certificate: the owner is asked, and the other side perhaps."""
        attempt = self.current
        if attempt is not None:
            attempt.due = Due.OWNER if attempt.accepted or not initiator else Due.ACCEPT
            attempt.step_at = now

    def receive_accept(self, now: float) -> None:
        """The responder has accepted us; the certificate or our owner may be waited for still."""
        attempt = self.current
        if attempt is not None and not attempt.accepted:
            attempt.accepted = True
            attempt.step_at = now
            if attempt.due is Due.ACCEPT:
                attempt.due = Due.OWNER

    # --- the end of both ----------------------------------------------------------------------

    def agreed(self) -> tuple[Attempt, HandshakeResult]:
        """Return the handshake that waits for the owner, and what it agreed at its last step.

        Raises:
            LocalProtocolError: there is none.
        """
        attempt = self.current
        if attempt is None or attempt.result is None or attempt.due is not Due.OWNER:
            raise LocalProtocolError("there is no authenticated peer to accept or reject")
        return attempt, attempt.result

    def settle(self) -> None:
        """The owner has answered: the reserved key id belongs to the keys that were agreed."""
        self.current = None

    # --- the end ------------------------------------------------------------------------------

    def give_up(self) -> None:
        """Drop a rekey whose time is over; its messages may still come."""
        if self.current is not None and self.current.due is Due.MSG3:
            self._late_msg3 = True
        self.drop()

    def drop(self) -> None:
        """Let go of the handshake on its way, and give back the key id reserved for it."""
        attempt, self.current = self.current, None
        if attempt is None:
            return
        if attempt.key_id:
            self._release_key_id(attempt.key_id)
        if isinstance(attempt.machine, Initiator):
            self._abandoned.append(attempt.machine)

    def forget(self) -> None:
        """Drop it, and wait for no answers to those given up either."""
        self.drop()
        self._abandoned.clear()


def _prev_h(base: HandshakeResult | None) -> bytes:
    return bytes(32) if base is None else base.h


def _check_same_peer(base: HandshakeResult | None, result: HandshakeResult) -> None:
    if base is not None and base.peer_public_key != result.peer_public_key:
        raise RemoteProtocolError("a rekey came from another identity")
