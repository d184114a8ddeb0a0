"""Where whoever wants to join a network is answered, as sessions meet it.

Owns: whether anybody is heard, the time of an answer, what is told of it. Does not know: links, what
an invitation is worth (`registrar`). Satisfies `peer.joining.Desk`. Source: mesh-rules B2, B3.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shadowmesh.base import log
from shadowmesh.base.clock import utc_now
from shadowmesh.base.errors import BadList, IssuerRefused, KeyFileError
from shadowmesh.wire.mesh.messages import Joined

if TYPE_CHECKING:
    from shadowmesh.network.registrar import Registrar
    from shadowmesh.wire.handshake.agreement import HandshakeResult
    from shadowmesh.wire.mesh.joining import Answer, Question

_log = log.get("network")


class Desk:
    """The one of a daemon that has the ledger.

    Attributes:
        answers: how many of which kind: `joined`, or the reason of a refusal.
    """

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self._open = False
        self.answers: Counter[str] = Counter()
        self.look()

    @property
    def open(self) -> bool:
        """Whether any invitation may be shown; as of the last look()."""
        return self._open

    def look(self) -> None:
        """Ask the ledger what is due: after a change, and now and then."""
        try:
            self._registrar.look(utc_now())
        except (IssuerRefused, KeyFileError, BadList) as error:
            _log.limited(3600).warning(
                "no revocation list is signed",
                cause=error,
                remedy="what was removed lately may still be a member of the others until it is",
            )
        self._open = self._registrar.gate_open(utc_now())

    def answer(self, question: Question, result: HandshakeResult, source: str) -> Answer:
        """Return what somebody is told who has proved a key and asks to be let in."""
        answer = self._registrar.answer(question, result, source, utc_now())
        if isinstance(answer, Joined):
            self.answers["joined"] += 1
            _log.info("a machine has joined, or asked again", source=source)
        else:
            self.answers[answer.reason] += 1
            _log.limited(10).warning(
                "a machine that wants to join was refused",
                source=source,
                cause=answer.detail or answer.reason,
                remedy="none, unless it is one of yours: then `shadowmesh invite` it again",
            )
        return answer
