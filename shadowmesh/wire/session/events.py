"""What a session, or the conversation with who joins, tells its owner to do or to know.

Owns: the event classes. Does not know: when each is said (`machine` does).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shadowmesh.base.constants import WS_NORMAL

if TYPE_CHECKING:
    from shadowmesh.base.constants import CloseReason, Inner
    from shadowmesh.wire import control
    from shadowmesh.wire.handshake.agreement import HandshakeResult
    from shadowmesh.wire.mesh.joining import Answer, Question


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send a binary WebSocket message; only before the first InstallKeys."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SendRecord:
    """Seal a record under the keys that are sent under now, and send it over WSS."""

    inner_type: Inner
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class InstallKeys:
    """Open records that carry result.local_key_id from now on; do not seal under it yet.

    The only event whose result holds traffic keys; in all others they are blank.
    """

    result: HandshakeResult


@dataclass(frozen=True, slots=True)
class SendUnder:
    """Seal everything under the installed keys with this local key id from now on.

    A SendRecord may follow at once (ACCEPT or padding) and must be the first record sealed under
    them on WSS: carry out both under the lock that keeps frames out.
    """

    key_id: int


@dataclass(frozen=True, slots=True)
class RetireKeys:
    """Erase the installed keys with this local key id, and give the id back."""

    key_id: int


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The peer's identity is verified; first handshake only.

    Responder: nothing is sent until accept() or reject(). Initiator: message 3 is on its way,
    the responder has not answered it; close() if this peer is not wanted.

    Between members it says what has to be judged, and the initiator has to say accept() as well:
    without that the session is never established.

    Attributes:
        certificate: what the peer has shown, DER, not looked into; empty but between members.
    """

    result: HandshakeResult
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class Established:
    """The session is up on both sides; frames may pass."""

    result: HandshakeResult


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """Sending has moved to new keys."""

    result: HandshakeResult


@dataclass(frozen=True, slots=True)
class RekeyAborted:
    """A rekey did not finish in time; the session goes on under the old keys and tries again."""

    detail: str


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer ended the session. `reason` is a CloseReason or an unknown number. Last event."""

    reason: int
    text: str


@dataclass(frozen=True, slots=True)
class Control:
    """A control record that belongs to somebody else: CANDIDATES, PUNCH_NOW or ABILITIES."""

    message: control.Candidates | control.PunchNow | control.Able


@dataclass(frozen=True, slots=True)
class MeshMessage:
    """A message of the network, or a piece of one, from a member that is judged; not looked into.

    `wire.mesh.chunks.Gathering` makes messages of them.
    """

    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The session is over. Last event.

    Attributes:
        detail: for log and status, never for the wire.
        close_code: for the close frame of the link.
        local: our own decision (a deadline, expired keys, reject()); False: the peer's doing.
        reason: the same in one word.
        rejected: the byte of the peer's REJECT, or of our own; None otherwise.
    """

    detail: str
    close_code: int
    local: bool
    reason: CloseReason
    rejected: int | None = None


Event = (
    SendMessage
    | SendRecord
    | InstallKeys
    | SendUnder
    | RetireKeys
    | Authenticated
    | Established
    | Rekeyed
    | RekeyAborted
    | PeerClosed
    | Control
    | MeshMessage
    | Failed
)


# --- Joining: no session, one question and one answer -------------------------------------------


@dataclass(frozen=True, slots=True)
class Reached:
    """The relay has proved its key; `result.h` and both keys go into the proof."""

    result: HandshakeResult


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody who has proved the key `result.peer_public_key` asks to be let in."""

    result: HandshakeResult
    question: Question


@dataclass(frozen=True, slots=True)
class Answered:
    """What the relay says; nothing of it is verified."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Finished:
    """The conversation has come to its end; the link is to be closed. Last event."""

    close_code: int = WS_NORMAL


JoiningEvent = (
    SendMessage
    | SendRecord
    | InstallKeys
    | SendUnder
    | RetireKeys
    | Reached
    | Asked
    | Answered
    | Finished
    | Failed
)
