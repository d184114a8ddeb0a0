"""Why a session ended, in words and codes.

Owns: the one value that log, status and the counters of handshakes get, and what it says for each
way a link or a peer can end a session. Does not know: what follows from it (`peer` decides).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shadowmesh.base.constants import (
    WS_ABNORMAL,
    WS_GOING_AWAY,
    WS_HANDSHAKE_FAILED,
    WS_NORMAL,
    CloseReason,
)

#: ends of a link that say nothing against the session
LINK_ONLY: Final = (WS_ABNORMAL, WS_GOING_AWAY, WS_NORMAL)
#: what the reason of the peer's close record means here
_BY_PEER: Final[dict[int, str]] = {
    CloseReason.DISCONNECT: "the peer's operator has disconnected; `shadowmesh connect` there lets"
    " this side in",
    CloseReason.SHUTDOWN: "the peer's daemon has stopped",
    CloseReason.REPLACED: "the peer has a newer session",
    CloseReason.TIMEOUT: "the peer has heard nothing from this side for too long",
    CloseReason.PROTOCOL: "the peer says that this side broke the protocol; see its log",
    CloseReason.KEYS_EXPIRED: "the keys of the session ran out at the peer",
    CloseReason.POLICY: "the peer has ended the session by its policy; see its log",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a session ended.

    Attributes:
        detail: one line for log and status.
        kind: one word for the counter of handshakes: `refused` (one side would not talk to the
            other), `rejected` (it said why), `timeout`, `link_lost`, `closed` (by us),
            `closed_by_peer`, `joined` (it was no session: who wanted to join has its answer).
        rejected: the byte of REJECT, the peer's or our own; None without one.
        peer_reason: the CloseReason of the peer's close record; None without one.
    """

    detail: str
    kind: str
    rejected: int | None = None
    peer_reason: int | None = None


def with_link(reason: str, code: int, *, established: bool) -> Ended:
    """Say why a session ended that did not end itself: its link did, with this close code."""
    if code == WS_HANDSHAKE_FAILED and not established:
        return Ended("the peer refused the handshake", "refused")
    if code in LINK_ONLY or established:
        return Ended(reason, "link_lost")
    return Ended(reason, "refused")


def by_peer(reason: int, text: str) -> Ended:
    """Say that the peer has closed the session, with the reason and the text of its close record."""
    detail = _BY_PEER.get(reason, f"the peer ended the session (reason {reason})")
    if text:
        detail += f" ({text})"
    return Ended(detail, "closed_by_peer", peer_reason=reason)
