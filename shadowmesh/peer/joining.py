"""Joining a network over a link: who asks, and who answers.

Owns: the dial of a machine that wants to join, and that its conversation ends. Does not know: what
proves an invitation, what an answer is worth (`network`), the messages (`wire.mesh.joining`).

::

    joiner:  dial -> Tunnel with Terms.asking -> the relay's answer, or why there is none
    relay:   Incoming -> Tunnel with Terms.desk, which answers whoever wants to join
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import AsyncResult

from shadowmesh.base.constants import CloseReason
from shadowmesh.base.errors import (
    ConnectTimeout,
    ControlError,
    LocalProtocolError,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.link.route import Route
from shadowmesh.peer.terms import Asking
from shadowmesh.peer.verdicts import DIRECTLY, WHY_INTERCEPTED, intercepted

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.config import HostPort
    from shadowmesh.keys.identity import Identity
    from shadowmesh.peer.common import Common
    from shadowmesh.peer.endings import Ended
    from shadowmesh.peer.terms import Desk
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.wire.handshake.agreement import HandshakeResult
    from shadowmesh.wire.mesh.joining import Answer, Question


_NO_ANSWER: Final = "{} did not answer in {:g} s; try again, which uses up nothing, or see its log"


class DirectDesk:
    """A desk of a relay that takes nobody through a proxy that ends TLS: not as a joiner either."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def open(self) -> bool:
        return self._desk.open

    def answer(self, question: Question, result: HandshakeResult, source: str) -> Answer:
        if result.tls_matches:
            return self._desk.answer(question, result, source)
        # Not at the top: a pair needs neither this nor the library behind it.
        from shadowmesh.wire.mesh.messages import Refused

        return Refused(
            reason="tls", detail=f"at the relay {WHY_INTERCEPTED}; dial the relay itself"
        )


def ask(
    common: Common,
    address: HostPort,
    identity: Identity,
    relay_key: bytes,
    question: Callable[[HandshakeResult], Question],
    timeout_s: float,
) -> Answer:
    """Ask a relay to be let in; waits for the answer.

    Args:
        identity, relay_key: as in `Asking`.
        question: what is asked of a relay that has proved its key.
    Raises:
        ControlError: the relay is not there, does not prove its key, or does not answer in time.
    """
    answered: AsyncResult = AsyncResult()
    with gevent.Timeout(timeout_s, ConnectTimeout(_NO_ANSWER.format(address, timeout_s))):
        upgraded = common.dial(address, Route())
        owner = _Joiner(common, address, answered, question)
        asking = Asking(identity, relay_key, owner.question, answered.set)
        try:
            tunnel = common.start_tunnel(upgraded, owner, asking=asking)
        except (LocalProtocolError, OSError, MemoryError) as error:
            upgraded.sock.close()
            raise PeerUnreachable(f"cannot start to join: {error or 'no memory'}") from None
        try:
            answer: Answer = answered.get()
        finally:
            tunnel.close(CloseReason.DISCONNECT, "nobody waits for an answer any more")
    return answer


class _Joiner:
    """Whose the conversation is. Satisfies `tunnel.HandshakeOwner`."""

    def __init__(
        self,
        common: Common,
        address: HostPort,
        answered: AsyncResult,
        question: Callable[[HandshakeResult], Question],
    ) -> None:
        self._common = common
        self._address = address
        self._answered = answered
        self._question = question

    def question(self, result: HandshakeResult) -> Question | None:
        """Return what the relay, which has proved its key, is asked."""
        if intercepted(self._common.config, result):
            self._fail(PeerRefused(f"{self._address}: {WHY_INTERCEPTED}; {DIRECTLY}"))
            return None
        return self._question(result)

    def post(self, message: Callable[[], None]) -> None:
        self._common.mailbox.post(message)

    def authenticated(self, tunnel: Tunnel, result: HandshakeResult) -> None:
        """That is for sessions: nobody is taken in here."""

    def link_lost(self, tunnel: Tunnel) -> None:
        """Nothing of it goes over UDP."""

    def link_stands(self, tunnel: Tunnel, stands: bool) -> None:
        """Its time is short enough."""

    def ended(self, tunnel: Tunnel, ended: Ended) -> None:
        """Behind the answer, or in place of it."""
        if tunnel.dialled_itself:
            why = f"{self._address} is this machine itself"
        elif ended.kind == "refused":
            why = (
                f"{self._address} did not let this machine join: the invitation is used up, cancelled"
                " or of another network, or something else answers there; ask for a new one"
            )
        else:
            why = f"{self._address}: {ended.detail}"
        self._fail(PeerRefused(why))

    def _fail(self, error: ControlError) -> None:
        if not self._answered.ready():
            self._answered.set_exception(error)
