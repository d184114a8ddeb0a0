"""What an operator asks of the daemon, over the API: one life of it, from its start to its end.

Owns: to which part each question and wish goes, and that parts which few daemons ever need are
loaded by the first who asks for them. Does not know: HTTP, how a wish is carried out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import gevent

from shadowmesh.base.errors import BadRequest, DaemonStopping
from shadowmesh.config import values, why_not_dialled
from shadowmesh.device.facts import parse_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from shadowmesh.config import LoadedConfig
    from shadowmesh.insight.events import FlightRecorder
    from shadowmesh.insight.explain import Explanation
    from shadowmesh.insight.history import Report
    from shadowmesh.insight.network import (
        Admission,
        Founded,
        InvitationReport,
        Invited,
        NetworkReport,
        Relays,
    )
    from shadowmesh.insight.peers import OnePeer, Peers, Pong
    from shadowmesh.insight.status import Health, Reloaded, Snapshot
    from shadowmesh.insight.table import Entry
    from shadowmesh.link.peer_port import PeerPort
    from shadowmesh.peer.manager import ConnectionManager
    from shadowmesh.service.custody import Custody
    from shadowmesh.service.member import Member
    from shadowmesh.service.networks import Networks
    from shadowmesh.service.rotation import Rotation
    from shadowmesh.service.view import View

ENDING: Final = "the daemon is stopping, or begins anew; try again in a second"


class Operator:
    """The one of this life. Satisfies `control.app.Control`."""

    def __init__(
        self,
        manager: ConnectionManager,
        view: View,
        member: Member | None,
        peer_port: PeerPort,
        recorder: FlightRecorder,
        *,
        in_force: Callable[[], LoadedConfig],
        file: Callable[[], LoadedConfig],
        reload: Callable[[], Reloaded],
        begin_again: Callable[[], None],
        is_ending: Callable[[], bool],
    ) -> None:
        """Args:
        in_force, file: the configuration with what a network makes of it, and without.
        reload: reads it again.
        begin_again: lets the daemon begin anew, soon.
        is_ending: whether what was started is being ended.
        """
        self._manager = manager
        self._view = view
        self._member = member
        self._peer_port = peer_port
        self._recorder = recorder
        self._in_force = in_force
        self._file = file
        self._reload = reload
        self._begin_again = begin_again
        self._is_ending = is_ending
        self._networks: Networks | None = None
        self._custody: Custody | None = None

    def reload(self) -> Reloaded:
        """Read the configuration again."""
        return self._reload()

    def connect(self, peer: str | None, name: str | None = None) -> Snapshot:
        """Connect to `peer` (host:port, checked by the API), or as the configuration says.

        Args:
            name: of the peer that is wanted there; None: all, or the one with that address.
        """
        target = None if peer is None else values.peer(peer)
        objection = None if target is None else why_not_dialled(target, self._in_force().config)
        if objection is not None:
            raise BadRequest(objection)
        self._manager.connect(target, name)
        return self._view.snapshot()

    def disconnect(self, name: str | None = None) -> Snapshot:
        """End the session of one peer, or the tunnel."""
        self._manager.disconnect(name)
        return self._view.snapshot()

    def configuration(self) -> LoadedConfig:
        """Tell what is in force."""
        return self._in_force()

    def ping(self, count: int, name: str | None = None) -> list[Pong]:
        """Measure `count` round trips to the peer, one after the other."""
        return [self._manager.ping(name) for _ in range(count)]

    def status(self) -> Snapshot:
        """What is known now."""
        return self._view.snapshot()

    def peers(self) -> Peers:
        """How each peer is."""
        return self._view.peers(lambda: gevent.sleep(0))

    def peer(self, name: str) -> OnePeer:
        """All about one peer."""
        return self._view.peer(name)

    def table(self) -> Sequence[Entry]:
        """The addresses that the switch knows."""
        return self._view.table()

    def health(self) -> Health:
        """Run the health checks."""
        return self._view.health()

    def explain(self, target: str | None, peer: str | None) -> Explanation:
        """Tell what would happen to a frame for an address, checked by the API, or for a peer."""
        return self._view.explain(None if target is None else parse_target(target), peer)

    def history(self) -> Report:
        """What the tunnel carried in the last hour."""
        return self._view.history()

    def network(self) -> NetworkReport | None:
        """Tell which network this machine is in."""
        return None if self._member is None else self._network_operations().network()

    def relays(self) -> Relays:
        """Tell of the relays of the network. Raises NotInNetwork."""
        return self._network_operations().relays()

    def create_network(
        self, name: str, own_name: str | None, subnets: Sequence[str], address: str | None
    ) -> Founded:
        """Make a network; the daemon begins anew in it."""
        return self._network_operations().create(name, own_name, subnets, address)

    def invite(
        self,
        name: str | None,
        expires_s: int,
        uses: int,
        roles: Sequence[str],
        tags: Sequence[str],
        addresses: Sequence[str],
    ) -> Invited:
        """Make an invitation."""
        return self._network_operations().invite(name, expires_s, uses, roles, tags, addresses)

    def invitations(self) -> Sequence[InvitationReport]:
        """Tell of all invitations."""
        return self._network_operations().invitations()

    def cancel_invitation(self, id: str | None) -> int:  # noqa: A002 (as in the path)
        """Cancel one invitation, or all; return how many were open."""
        return self._network_operations().cancel(id)

    def join(
        self, token: str, name: str | None, accept: bool, announce: Sequence[str]
    ) -> Admission:
        """Ask to be let into a network; accepted, the daemon begins anew in it."""
        return self._network_operations().join(token, name, accept, announce)

    def leave(self) -> None:
        """Forget the network; the daemon begins anew without it."""
        self._network_operations().leave()

    def remove_peer(self, name: str) -> Sequence[str]:
        """Put a member out of the network."""
        return self._network_operations().remove(name)

    def custody(self) -> Custody:
        """Return who keeps the keys of the network, and what its operator has in files."""
        networks = self._network_operations()
        if self._custody is None or self._custody.networks is not networks:
            self._custody = gevent.get_hub().threadpool.apply(_load_custody).Custody(networks)
        return self._custody

    def rotation(self) -> Rotation:
        """Return who replaces the secret and the authorities of the network."""
        self._check_going_on()
        loaded = gevent.get_hub().threadpool.apply(_load_rotation)
        found: Rotation = loaded.Rotation(self._member)
        return found

    def _network_operations(self) -> Networks:
        """Return who does what is about networks; it is loaded when first asked."""
        self._check_going_on()
        if self._networks is None:
            networks = gevent.get_hub().threadpool.apply(_load_networks)
            self._networks = networks.Networks(
                self._file,
                self._member,
                self._in_force().config.network.tap_device,
                self._manager.ask_to_join,
                self._peer_port.check,
                self._begin_again,
                self._recorder,
            )
        return self._networks

    def _check_going_on(self) -> None:
        """Raises DaemonStopping: what was started is being ended."""
        if self._is_ending():
            raise DaemonStopping(ENDING)


def _load_networks() -> ModuleType:
    from shadowmesh.service import networks

    return networks


def _load_custody() -> ModuleType:
    from shadowmesh.service import custody

    return custody


def _load_rotation() -> ModuleType:
    from shadowmesh.service import rotation

    return rotation
