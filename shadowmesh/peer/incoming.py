"""Connections that the listener has accepted, until it is known who came.

Owns: their handshakes, and the count and the words of those that fail. Does not know: which
sessions a peer has; whether somebody who has proved who it is may come in is for its peer to say.

::

    listener --take--> handshake --authenticated--> Peer.admit --yes--> the peer's from now on
                           |                            |
                           '------- failed -------------'--no--> ended, counted, told
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import RejectReason
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.insight.status import Refused
from shadowmesh.peer.verdicts import DIRECTLY, WHY_INTERCEPTED, compare_keys, intercepted

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.base.constants import CloseReason
    from shadowmesh.link.link import Upgraded
    from shadowmesh.peer.common import Common
    from shadowmesh.peer.endings import Ended
    from shadowmesh.peer.peer import Peer
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.wire.handshake.agreement import HandshakeResult

_log = log.get("connection")


class Incoming:
    """The sessions that no peer owns yet. Satisfies `tunnel.HandshakeOwner`."""

    def __init__(self, common: Common, peer_of: Callable[[bytes], Peer | None]) -> None:
        """Args: peer_of: who has this public key; None: nobody any more."""
        self._common = common
        self._peer_of = peer_of
        self._tunnels: set[Tunnel] = set()

    def __len__(self) -> int:
        return len(self._tunnels)

    def take(self, upgraded: Upgraded) -> None:
        """Give an upgraded connection its handshake, or close it."""
        if not self._common.stopping and self._common.config.mode:
            try:
                self._tunnels.add(self._common.start_tunnel(upgraded, self))
                return
            except (LocalProtocolError, OSError, MemoryError) as error:
                _log.limited(10).warning(
                    "incoming connection dropped",
                    cause="no memory" if isinstance(error, MemoryError) else error,
                    remedy="let the daemon have more memory (MemoryMax=) or open more descriptors"
                    " (LimitNOFILE=)",
                )
        upgraded.sock.close()
        upgraded.release()

    def close(self, reason: CloseReason, detail: str) -> None:
        """End all of them; they are gone a little later."""
        for tunnel in tuple(self._tunnels):
            tunnel.close(reason, detail, wait=False)

    # --- tunnel.HandshakeOwner ----------------------------------------------------------------

    def post(self, message: Callable[[], None]) -> None:
        """Carry out what a session has to tell, in turn."""
        self._common.mailbox.post(message)

    def authenticated(self, tunnel: Tunnel, result: HandshakeResult) -> None:
        """Refuse it, or let its peer decide."""
        if tunnel.over:
            return
        if self._common.stopping:
            tunnel.reject(RejectReason.ADMIN_DOWN)
        elif intercepted(self._common.config, result):
            _log.limited(10).warning(
                "peer refused",
                peer=tunnel.peer_name,
                cause=WHY_INTERCEPTED,
                remedy=f"let the peer {DIRECTLY}",
            )
            tunnel.reject(RejectReason.POLICY)
        elif (peer := self._peer_of(result.peer_public_key)) is None:
            tunnel.reject(RejectReason.POLICY)  # its handshake began before it was taken off
        else:
            try:
                peer.admit(tunnel, result)
            finally:
                # Also after a bug: whose the session is hears of its end, and we shall not.
                if tunnel.owner is not self:
                    self._tunnels.discard(tunnel)

    def link_lost(self, tunnel: Tunnel) -> None:
        """Only an accepted session goes on over UDP, and that has another owner."""

    def link_stands(self, tunnel: Tunnel, stands: bool) -> None:
        """Only an accepted session is watched for that, and that has another owner."""

    def ended(self, tunnel: Tunnel, ended: Ended) -> None:
        """It was not taken in."""
        self._tunnels.discard(tunnel)
        self._common.handshakes[ended.kind] += 1
        if ended.kind == "joined":
            return  # what came of it is told by whoever answered
        if ended.rejected == RejectReason.ADMIN_DOWN:
            return  # the operator, or the end of the daemon, has refused it: nobody need be told
        if tunnel.dialled_itself:
            return  # the other end of it, which is ours as well, tells the operator
        say = _log.limited(10).warning if ended.kind == "refused" else _log.limited(10).info
        if ended.kind in ("refused", "rejected"):
            self._common.refused = Refused(tunnel.peer_name, ended.detail, boottime())
        self._common.tell(
            say,
            "incoming handshake failed",
            peer=tunnel.peer_name,
            cause=ended.detail,
            remedy=f"if that was the peer, {compare_keys(self._common.config)}",
        )
