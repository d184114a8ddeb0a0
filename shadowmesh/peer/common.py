"""What all peers of this daemon share, and how each of them gets a session.

Owns: the configuration in force, who still wants the TAP device, what the
kernel may hand us so that all peers take it, the count of handshakes, what a new session is made
of. Does not know: states, which session carries the frames.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shadowmesh.device import addresses
from shadowmesh.link.dial import dial
from shadowmesh.peer.hellos import Hellos
from shadowmesh.peer.joining import DirectDesk
from shadowmesh.peer.terms import terms_of
from shadowmesh.peer.tunnel import Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.config import Config, HostPort, PeerEntry
    from shadowmesh.device.device import Device
    from shadowmesh.fast.openssl import TlsContext
    from shadowmesh.insight.events import Recorder
    from shadowmesh.insight.status import Refused
    from shadowmesh.keys.identity import Identity
    from shadowmesh.link.known import KnownAddresses
    from shadowmesh.link.link import Upgraded
    from shadowmesh.link.route import Route
    from shadowmesh.network.membership import Membership
    from shadowmesh.path.traversal import Traversal
    from shadowmesh.peer.mailbox import Mailbox
    from shadowmesh.peer.terms import Asking, Desk, Meet
    from shadowmesh.peer.tunnel import HandshakeOwner
    from shadowmesh.wire.control import Address


class Common:
    """The one of this daemon.

    Attributes:
        config: replaced by use().
        device_kept: the TAP device stays open also when nobody holds it.
        stopping: nobody is taken in any more.
        handshakes: how handshakes ended, by one word.
        dropped: records that were dropped beside those of the data plane, by reason.
        refused: the last peer that was not let in, cleared by came_in(); its time is boot time.
        mailbox: where everything that changes a state is carried out.
        known: is told behind which addresses peers are.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        plane: DataPlane,
        device: Device,
        client_context: TlsContext,
        mailbox: Mailbox,
        *,
        dial: Callable[[HostPort, str, TlsContext, Route], Upgraded] = dial,
        traversal: Traversal | None,
        recorder: Recorder,
        known: KnownAddresses,
        membership: Membership | None = None,
        desk: Desk | None = None,
        meet: Meet | None = None,
        on_out_of_date: Callable[[PeerEntry, HostPort], None] | None = None,
    ) -> None:
        """Args: as for `ConnectionManager`."""
        self._hellos = Hellos()
        self.use(config)
        self.identity = identity
        self.plane = plane
        self.device = device
        self.traversal = traversal
        self.recorder = recorder
        self.known = known
        self._membership = membership
        self._desk = desk
        self._meet = meet
        self._on_out_of_date = on_out_of_date
        self.mailbox = mailbox
        self.stopping = False
        self.device_kept = False
        self.handshakes: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.refused: Refused | None = None
        self._client_context = client_context
        self._dial = dial
        self._holders: set[object] = set()
        #: of everybody with a session: whether it takes super-frames of streams, of datagrams
        self._takes: dict[object, tuple[bool, bool]] = {}

    @property
    def own_name(self) -> str | None:
        """Return what this machine is called in its network; None in none."""
        return None if self._membership is None else self._membership.certificate.name

    def use(self, config: Config) -> None:
        """Go by this configuration from now on."""
        self.config = config
        self._hellos.dialled_are(len(config.peers))
        keys = (peer.public_key for peer in config.peers if peer.public_key is not None)
        #: shared by all sessions, which keep it for their rekeys
        self._trusted = frozenset(keys) if config.listed else None

    def dial(self, target: HostPort, route: Route) -> Upgraded:
        """Dial once; waits. Raises ControlError: there is no connection."""
        return self._dial(target, self.config.websocket.path, self._client_context, route)

    def start_tunnel(
        self,
        upgraded: Upgraded,
        owner: HandshakeOwner,
        dialled: PeerEntry | None = None,
        asking: Asking | None = None,
        *,
        older_secret: bool = False,
    ) -> Tunnel:
        """Begin the handshake of a session over a connection.

        Args:
            dialled: whom we have dialled; None: somebody has come to us.
            asking: we have dialled to join a network: there will be no session.
            older_secret: as for `terms_of`.
        Raises:
            LocalProtocolError, OSError, MemoryError: no means for one; the socket stays the
                caller's.
        """
        tunnel = Tunnel(
            self.plane,
            upgraded,
            terms_of(
                self.config,
                self.identity,
                upgraded.certificate_sha256,
                udp=self.traversal is not None and self.traversal.port is not None,
                udp_super_frames=self.device.udp_super_frames,
                dialled=dialled,
                trusted=self._trusted,
                membership=None if asking is not None else self._membership,
                asking=asking,
                older_secret=older_secret,
                desk=self._desk_for(upgraded),
                meet=None if asking is not None else self._meet,
                dropped=self.dropped,
            ),
            owner,
            hellos=self._hellos,
            interface_mtu=self._interface_mtu,
            traversal=self.traversal,
            recorder=self.recorder,
        )
        tunnel.start()
        return tunnel

    def _desk_for(self, upgraded: Upgraded) -> Desk | None:
        if self._desk is None or not upgraded.server:
            return None
        direct = self.config.websocket.require_direct_tls
        return DirectDesk(self._desk) if direct else self._desk

    def _interface_mtu(self, address: Address) -> int | None:
        host = addresses.look(None) if self.traversal is None else self.traversal.host()
        return host.mtu_of(address)

    def hold_device(self, holder: object) -> None:
        """Open the TAP device, unless it is open, for as long as somebody holds it.

        Raises:
            DeviceUnavailable: it cannot be made; `holder` holds nothing new.
        """
        self.device.open()
        self._holders.add(holder)

    def release_device(self, holder: object) -> None:
        """Close the device if nobody else holds it; harmless for who does not hold it."""
        self._holders.discard(holder)
        if not (self._holders or self.device_kept):
            self.device.close()

    def takes(self, peer: object, *, streams: bool, datagrams: bool) -> None:
        """A peer with a session takes such super-frames, and unfinished checksums with them.

        The kernel does not know for whom a frame is, so it hands us only what all of them take.
        """
        self._takes[peer] = streams, datagrams
        self._set_offload()

    def takes_nothing(self, peer: object) -> None:
        """Its session is over; harmless without one. What the last one took stays as it is."""
        if self._takes.pop(peer, None) is not None and self._takes:
            self._set_offload()

    def _set_offload(self) -> None:
        streams, datagrams = map(all, zip(*self._takes.values(), strict=True))
        self.device.offload(streams, udp=datagrams)

    def out_of_date(self, peer: PeerEntry, target: HostPort) -> None:
        """What we show to this member may be out of date: somebody may want to ask it for more."""
        if self._on_out_of_date is not None:
            self._on_out_of_date(peer, target)

    def came_in(self, tunnel: Tunnel) -> None:
        """This session is established: whoever was refused before has come in now.

        Among many peers only who has come from the same address.
        """
        refused = self.refused
        if refused is not None and refused.address is not None and self.config.listed:
            host = refused.address.rpartition(":")[0]
            if host != tunnel.peer_name.rpartition(":")[0]:
                return
        self.refused = None

    def tell(self, say: Callable[..., None], message: str, **facts: object) -> None:
        """Log something about a session, and record it for who asks later."""
        say(message, **facts)
        self.recorder.record("session", message, **facts)
