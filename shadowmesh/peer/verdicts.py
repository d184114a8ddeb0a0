"""Who is taken in and who is not, and how a failure is told to the operator.

Owns: the rule for an authenticated peer that wants in, and the words and codes for handshakes
that failed. Does not know: states, links, what is done about a verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.constants import RejectReason
from shadowmesh.base.errors import ConnectTimeout, ControlError, PeerRefused, PeerUnreachable
from shadowmesh.keys.identity import format_public_key
from shadowmesh.wire.peer.collision import resolve_collision

if TYPE_CHECKING:
    from shadowmesh.config import Config, HostPort
    from shadowmesh.peer.endings import Ended
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.wire.handshake.agreement import HandshakeResult

WHY_INTERCEPTED: Final = "TLS is proxied or intercepted, and websocket.require_direct_tls is set"
#: what to do about it
DIRECTLY: Final = "dial the peer itself, or set it to false"
INTERCEPTED: Final = f"{WHY_INTERCEPTED}; {DIRECTLY}"
SELF: Final = (
    "this is the daemon itself; give the address at which the other machine listens, or dial from"
    " there"
)
DUPLICATE: Final = (
    "another daemon connected there with the key of this one; give each its own identity.key"
)
#: what to do about the peer's REJECT
_REJECT_HINTS: Final[dict[int, str]] = {
    RejectReason.COLLISION: "both sides dialled and the peer's own connection did not come through,"
    " try again",
    RejectReason.BUSY: "it has a session with another daemon, or no TAP; see its log",
    RejectReason.POLICY: "see its log and its websocket.require_direct_tls",
}

_log = log.get("connection")


def intercepted(config: Config, result: HandshakeResult) -> bool:
    """Whether somebody on the way ends the TLS of a link, and the configuration forbids that."""
    return config.websocket.require_direct_tls and not result.tls_matches


def objection(
    incoming: Tunnel,
    peer_key: bytes,
    own_key: bytes,
    *,
    current: Tunnel | None,
    dialled: Tunnel | None,
) -> RejectReason | None:
    """Why an authenticated incoming peer is not taken in; None when it is.

    Args:
        peer_key, own_key: the identities, 32 bytes.
        current: the live session, if any.
        dialled: our own dial whose handshake is on its way, if any.
    Source: protocol section 8.
    """
    if current is not None and current.peer_public_key != peer_key:
        # Only possible with a pre-shared key and no pin: the seat is taken.
        _log.limited(60).warning(
            "another holder of the pre-shared key was refused",
            peer=incoming.peer_name,
            public_key=format_public_key(peer_key),
            remedy="pin the right one by peer.public_key, or give the other another encryption.key",
        )
        return RejectReason.BUSY
    own = dialled or current
    if (
        own is not None
        and own.initiator
        and own.peer_public_key == peer_key
        # An established dial wins against connections from before it; one from after it is a
        # peer that has restarted.
        and (own.established_boottime is None or incoming.started_at < own.established_boottime)
        and resolve_collision(own_key, peer_key, own_dial_authenticated=True)
    ):
        return RejectReason.COLLISION
    return None


def compare_keys(config: Config) -> str:
    """What to do where two sides do not know each other's keys."""
    if config.in_network:
        return (
            "one of the two may have been removed from the network, or have made itself anew: compare"
            " `shadowmesh network show` on both"
        )
    keys = "the keys in peers" if config.listed else "peer.public_key"
    return f"compare encryption.key and {keys} on both sides"


def failed_dial(target: HostPort | None, ended: Ended, config: Config) -> ControlError:
    """The failed handshake of our own dial in the words of the control API."""
    text = f"{target}: {ended.detail}"
    if ended.kind == "closed":
        return PeerRefused(text)
    if ended.rejected == RejectReason.ADMIN_DOWN:
        return PeerRefused(
            f"{target}: its operator has disconnected; `shadowmesh connect` there lets this side in"
        )
    if ended.rejected is not None:
        return PeerRefused(f"{text}; {_REJECT_HINTS.get(ended.rejected, 'see its log')}")
    if ended.kind == "refused":
        return PeerRefused(f"{text}; {compare_keys(config)}, and the peer's log")
    if ended.kind == "timeout":
        return ConnectTimeout(f"{text}; see the peer's log")
    return PeerUnreachable(f"{text}; see the peer's log")


def trust_of(config: Config) -> tuple[object, ...]:
    """What a session of `peer:` rests on: whom we dial, and how it proves itself."""
    return config.peer.address, config.peer.public_key, config.encryption.key
