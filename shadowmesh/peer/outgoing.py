"""Our own attempt to reach a peer: dial, then handshake.

Owns: the dial and the session that comes of it, until the peer has accepted it; the count of those
that fail. Does not know: when to try and what follows (`peer` does), who came to us (`incoming`).

::

    start --> dial --> handshake --authenticated--> --established--> on_established
                '----------------------'--- failed ----------------> on_failed
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import HANDSHAKE_MESSAGE_TIMEOUT_S, CloseReason, RejectReason
from shadowmesh.base.errors import LocalProtocolError, PeerRefused, PeerUnreachable
from shadowmesh.link.route import SMALL_PACKET_BYTES, Route
from shadowmesh.peer.dialler import Dialler
from shadowmesh.peer.verdicts import INTERCEPTED, SELF, failed_dial, intercepted
from shadowmesh.wire.peer.states import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh._fastpath import Port
    from shadowmesh.base.errors import ControlError
    from shadowmesh.config import HostPort, PeerEntry
    from shadowmesh.link.link import Upgraded
    from shadowmesh.peer.common import Common
    from shadowmesh.peer.endings import Ended
    from shadowmesh.peer.tunnel import Tunnel
    from shadowmesh.wire.handshake.agreement import HandshakeResult

#: a handshake that ends after so long has ended because a message did not come
SILENCE_S: Final = HANDSHAKE_MESSAGE_TIMEOUT_S - 1.0

_log = log.get("connection")


class Outgoing:
    """At most one attempt, with one outcome or none. Satisfies `tunnel.DiallingOwner`.

    Attributes for reading only:
        tunnel: the session whose handshake is on its way; None before, and without one.
        route: what the attempts so far have taught.
    """

    def __init__(
        self,
        common: Common,
        post: Callable[[Callable[[], None]], None],
        *,
        on_phase: Callable[[Phase], None],
        on_established: Callable[[Tunnel], None],
        on_failed: Callable[[ControlError, bool], None],
    ) -> None:
        """Nothing is tried yet.

        Args:
            post: carries out a call later, in the owner's greenlet, one after the other.
            on_phase: how far the attempt is.
            on_established: the session is the owner's from now on.
            on_failed: why, and whether the peer says that its own connection is on its way.
        """
        self.tunnel: Tunnel | None = None
        self.post = post
        self._common = common
        self._target: HostPort | None = None
        self._peer: PeerEntry | None = None
        self._port: Port | None = None
        self._on_phase = on_phase
        self._on_established = on_established
        self._on_failed = on_failed
        self.route = Route()
        #: a member that has not heard of the newest secret is silent to it (mesh-rules C6)
        self._older_secret = False
        dial = partial(common.dial, route=self.route)
        self._dialler = Dialler(post, dial, self._upgraded, self._failed)

    @property
    def running(self) -> bool:
        """An attempt has neither had its outcome nor been aborted."""
        return self._dialler.running or self.tunnel is not None

    def start(self, target: HostPort, peer: PeerEntry, port: Port) -> None:
        """Try once.

        Args:
            peer: whom we want to reach there.
            port: that of its frames.
        """
        self._target, self._peer, self._port = target, peer, port
        self._dial()

    def _dial(self) -> None:
        assert self._target is not None
        self._on_phase(Phase.DIALLING)
        self._dialler.start(self._target)

    def abort(self, reason: CloseReason, detail: str) -> None:
        """Forget the attempt; harmless without one."""
        self._dialler.abort()
        tunnel, self.tunnel = self.tunnel, None
        if tunnel is not None:
            tunnel.close(reason, detail, wait=False)

    def _upgraded(self, upgraded: Upgraded) -> None:
        self._on_phase(Phase.HANDSHAKE)
        try:
            self.tunnel = self._common.start_tunnel(
                upgraded, self, self._peer, older_secret=self._older_secret
            )
        except (LocalProtocolError, OSError, MemoryError) as error:
            upgraded.sock.close()
            self._failed(PeerUnreachable(f"cannot start a session: {error or 'no memory'}"))
            return
        # Whose it will be is known already, and the first frame comes right behind ACCEPT. A
        # member may be anybody until its certificate was judged.
        assert self._port is not None
        if not self.tunnel.judges:
            self.tunnel.session.belongs_to(self._port)
        if self._common.config.listed and self._peer is not None:
            self.tunnel.called(self._peer.name)

    def _failed(self, error: ControlError, collision: bool = False) -> None:
        if self.route.take_retry():
            _log.info(
                "dialling again with short segments: the path may swallow longer packets",
                peer=self._target,
                packet_bytes=SMALL_PACKET_BYTES,
                cause=error,
            )
            self._dial()
            return
        self._on_failed(error, collision)

    def _look_for_renewal(self, ended: Ended) -> None:
        """A relay says that our certificate was replaced, or is silent to each of our secrets."""
        missed = ended.kind == "refused" and not self._older_secret
        peer, target = self._peer, self._target
        if (missed or ended.rejected == RejectReason.RENEW) and peer is not None:
            assert target is not None
            self._common.out_of_date(peer, target)

    # --- tunnel.DiallingOwner -----------------------------------------------------------------

    def authenticated(self, tunnel: Tunnel, result: HandshakeResult) -> None:
        """Somebody has proved who it is."""
        if tunnel.over:
            return
        if intercepted(self._common.config, result):
            tunnel.close(CloseReason.POLICY, INTERCEPTED, wait=False)
        elif tunnel is self.tunnel:
            if tunnel.judges:
                assert self._port is not None
                tunnel.session.belongs_to(self._port)
            self._on_phase(Phase.ACCEPT)

    def established(self, tunnel: Tunnel) -> None:
        """The peer has accepted us."""
        if not tunnel.over and tunnel is self.tunnel:
            self.tunnel = None
            self._older_secret = False
            self.route.succeeded(tunnel.wss.remote_address)
            if self.route.segment_bytes is not None:
                self._common.tell(
                    _log.warning,
                    "longer packets get lost on the way to the peer, the WSS link keeps its short",
                    peer=tunnel.peer_name,
                    packet_bytes=SMALL_PACKET_BYTES,
                    remedy="let ICMP through on the way (fragmentation needed, packet too big)",
                )
            self._on_established(tunnel)

    def link_lost(self, tunnel: Tunnel) -> None:
        """Of an attempt that was aborted while the word that it is established was on its way."""

    def link_stands(self, tunnel: Tunnel, stands: bool) -> None:
        """Of such an attempt, too."""

    def ended(self, tunnel: Tunnel, ended: Ended) -> None:
        """The handshake has failed, or the attempt was aborted."""
        if tunnel is self.tunnel:
            self.tunnel = None
            self._common.handshakes[ended.kind] += 1
            if ended.kind == "refused":
                self._older_secret = not self._older_secret
            self._look_for_renewal(ended)
            # A refusal comes at once; one that comes late is the peer's own time-out.
            if boottime() >= tunnel.started_at + SILENCE_S:
                self.route.timed_out()
            collision = ended.rejected == RejectReason.COLLISION
            if tunnel.dialled_itself:
                self._failed(PeerRefused(f"{self._target}: {SELF}"))
            else:
                self._failed(failed_dial(self._target, ended, self._common.config), collision)
