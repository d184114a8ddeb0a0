"""What all peers of this daemon share, and how each of them gets a session.

Owns: the configuration in force, who still wants the TAP device, the count of handshakes, what a
new session is made of. Does not know: states, which session carries the frames.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shadowmesh.device import addresses
from shadowmesh.link.dial import dial
from shadowmesh.peer.hellos import Hellos
from shadowmesh.peer.terms import terms_of
from shadowmesh.peer.tunnel import Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.config import Config, HostPort
    from shadowmesh.device.device import Device
    from shadowmesh.fast.openssl import TlsContext
    from shadowmesh.insight.events import Recorder
    from shadowmesh.insight.status import Refused
    from shadowmesh.keys.identity import Identity
    from shadowmesh.link.known import KnownAddresses
    from shadowmesh.link.link import Upgraded
    from shadowmesh.link.route import Route
    from shadowmesh.path.traversal import Traversal
    from shadowmesh.peer.mailbox import Mailbox
    from shadowmesh.peer.tunnel import HandshakeOwner


class Common:
    """The one of this daemon.

    Attributes:
        config: replaced by the manager when it is reloaded.
        stopping: nobody is taken in any more.
        handshakes: how handshakes ended, by one word.
        refused: the last peer that was not let in, cleared by success; its time is boot time.
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
    ) -> None:
        """Args: as for `ConnectionManager`."""
        self.config = config
        self.identity = identity
        self.plane = plane
        self.device = device
        self.traversal = traversal
        self.recorder = recorder
        self.known = known
        self.mailbox = mailbox
        self.stopping = False
        self.handshakes: Counter[str] = Counter()
        self.refused: Refused | None = None
        self._client_context = client_context
        self._dial = dial
        self._hellos = Hellos()
        self._holders: set[object] = set()

    def dial(self, target: HostPort, route: Route) -> Upgraded:
        """Dial once; waits. Raises ControlError: there is no connection."""
        return self._dial(target, self.config.websocket.path, self._client_context, route)

    def start_tunnel(self, upgraded: Upgraded, owner: HandshakeOwner) -> Tunnel:
        """Begin the handshake of a session over a connection.

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
            ),
            owner,
            hellos=self._hellos,
            interface_mtu=lambda address: addresses.look(None).mtu_of(address),
            traversal=self.traversal,
            recorder=self.recorder,
        )
        tunnel.start()
        return tunnel

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
        if not self._holders:
            self.device.close()

    def tell(self, say: Callable[..., None], message: str, **facts: object) -> None:
        """Log something about a session, and record it for who asks later."""
        say(message, **facts)
        self.recorder.record("session", message, **facts)
