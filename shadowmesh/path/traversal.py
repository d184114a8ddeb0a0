"""How the world sees the data socket: STUN and NAT detection on it, and the candidates.

Owns: the UDP port while `nat.enabled`, when the NAT is looked at (start, changes of the network,
a mapping that moved, a round of punching with old results), the resolving of STUN servers, and
the list of our own addresses that a peer may try. Does not know: what a path is used for.

::

    STUN servers --names--> resolver --> NatDetector (wire.nat) <--on_stun-- UDP port
    interfaces, netlink ----------------------+--> candidates, result --on_change--> connection

Nothing here is waited for: the tunnel is up on WSS meanwhile, and an answer that comes later is
told later. Source: protocol section 8.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.socket
from gevent.event import Event

from shadowmesh.base import log
from shadowmesh.base.clock import boottime
from shadowmesh.base.errors import DeviceError
from shadowmesh.device import addresses
from shadowmesh.device.fdstore import NO_STORE
from shadowmesh.device.underlay import Underlay
from shadowmesh.insight.events import NOBODY
from shadowmesh.path.udp import UdpPort
from shadowmesh.wire.control import Address, Candidate, Endpoint
from shadowmesh.wire.nat.detector import Detected, Mapped, NatDetector
from shadowmesh.wire.nat.result import NatResult, NatType, Server
from shadowmesh.wire.path.candidates import choose_candidates

if TYPE_CHECKING:
    from shadowmesh._fastpath import DataPlane
    from shadowmesh.config import HostPort, NatSection
    from shadowmesh.device.fdstore import FdStore
    from shadowmesh.insight.events import Recorder

#: a NAT may forget an unused mapping after 30 s, so an older look says little
FRESH_S: Final = 15.0
#: a peer that says that our address moved is believed this often
MOVED_SPACING_S: Final = 2.0

_log = log.get("traversal")


class Traversal:
    """The UDP side of this host. All methods belong to the hub's thread.

    Attributes:
        port: the data socket; None while `nat.enabled` is false or there is no UDP here.
        result: of the last finished detection, None before the first.
        detected_at: boot-time seconds of that.
        on_change: called when the candidates may have changed; must not wait.
        on_network_change: called when our addresses or routes changed; must not wait.
        recorder: whom NATs are told.
        underlay: tells which addresses lie behind the tunnel itself.
    """

    def __init__(
        self,
        plane: DataPlane,
        nat: NatSection,
        store: FdStore = NO_STORE,
        underlay: Underlay | None = None,
    ) -> None:
        """Nothing is opened before start()."""
        self.port: UdpPort | None = None
        self.result: NatResult | None = None
        self.detected_at: float | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.on_network_change: Callable[[], None] = lambda: None
        self.recorder: Recorder = NOBODY
        #: name of the tunnel's device, whose addresses are not told
        self.tunnel_device: Callable[[], str | None] = lambda: None
        self.underlay = underlay or Underlay(lambda: None)
        self._plane = plane
        self._nat = nat
        self._store = store
        self._mapped: dict[Server, Endpoint] = {}
        self._asked_at = -FRESH_S
        #: the STUN server that lies behind the tunnel, in words
        self._inside: str | None = None
        self._wanted = Event()
        self._arrived = Event()
        self._detector: NatDetector | None = None
        self._watch: addresses.NetworkWatch | None = None
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Open the socket and begin to look at the NAT, unless it is switched off."""
        if not self._nat.enabled or self.port is not None:
            return
        try:
            self.port = UdpPort(self._plane, self._nat.udp_port, self._store)
            self._watch = addresses.NetworkWatch(self.tunnel_device, self._on_network_change)
        except (DeviceError, OSError) as error:
            _log.error(
                "no UDP path: the tunnel stays on WSS",
                cause=error,
                remedy="restart the daemon when that is mended, or set nat.enabled: false",
            )
            self.stop()
            return
        self.port.on_stun = self._on_stun
        self._greenlet = gevent.spawn(self._run)
        _log.info("UDP port is open", port=self.port.port)
        self.refresh("start")

    def stop(self) -> None:
        """Close everything. Idempotent."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        port, self.port = self.port, None
        if port is not None:
            port.close()
        self.underlay.close()
        self._mapped.clear()
        self._detector = self.result = self.detected_at = None
        self._asked_at = -FRESH_S

    def reload(self, nat: NatSection) -> None:
        """Use other settings; a socket that is no longer wanted is closed at once."""
        old, self._nat = self._nat, nat
        if (old.enabled, old.udp_port) != (nat.enabled, nat.udp_port):
            self.stop()
            self.start()
        elif old.stun_server != nat.stun_server:
            self._mapped.clear()
            self.refresh("other STUN servers", older_than_s=0.0)

    def refresh(self, why: str, *, older_than_s: float = FRESH_S) -> None:
        """Look at the NAT again, unless the last look began after that; returns at once."""
        if self.port is not None and time.monotonic() - self._asked_at >= older_than_s:
            _log.debug("looking at the NAT", why=why)
            self._wanted.set()

    def host(self) -> addresses.HostNetwork:
        """Return what is known of the host's interfaces, without the tunnel's addresses."""
        watch = self._watch
        return addresses.look(self.tunnel_device()) if watch is None else watch.host()

    def candidates(self, toward: Address | None) -> tuple[Candidate, ...]:
        """Return what to tell the peer, now.

        Args:
            toward: an address of the peer; ours on the way to it comes first.
        """
        if self.port is None:
            return ()
        host = self.host()
        first = None if toward is None else addresses.source_address(toward)
        hosts = sorted(host.addresses, key=lambda address: address != first)
        hosts = [address for address in hosts if self.port.reaches(Endpoint(address, 0))]
        if toward is not None and toward.is_link_local and first is not None:
            hosts.insert(0, first)
        return choose_candidates(hosts, self.port.port, dict.fromkeys(self._mapped.values()))

    # --- detection ----------------------------------------------------------------------------

    def _on_network_change(self) -> None:
        self._mapped.clear()
        self.refresh("the network changed", older_than_s=0.0)
        self.on_network_change()

    def _on_stun(self, data: bytes, source: Endpoint) -> None:
        if self._detector is not None and self._detector.receive(data, source, time.monotonic()):
            self._arrived.set()

    def _run(self) -> None:
        """One look at the NAT after another, as they are wanted; ends when killed by stop()."""
        while True:
            self._wanted.wait()
            self._wanted.clear()
            self._asked_at = time.monotonic()
            try:
                self._detect()
            except Exception:  # noqa: BLE001 - without STUN there is still a LAN
                _log.exception("the NAT could not be looked at")
            finally:
                self._detector = None

    def _detect(self) -> None:
        servers = self._resolve()
        detector = self._detector = NatDetector(
            servers,
            self._local_endpoints(servers),
            time.monotonic(),
            detection_timeout_s=self._nat.detection_timeout,
            random=os.urandom,
        )
        while True:
            assert self.port is not None
            for datagram in detector.data_to_send():
                if self.underlay.refusal(datagram.destination.address, "stun") is not None:
                    continue
                number = self.port.send(datagram.data, datagram.destination)
                if number:
                    _log.debug(
                        "no STUN request", to=datagram.destination, cause=os.strerror(number)
                    )
            while (event := detector.next_event()) is not None:
                self._take(event)
            due = detector.next_timeout()
            if due is None:
                return
            if self._wanted.is_set():
                return  # the network changed under the questions
            self._arrived.clear()
            self._arrived.wait(max(0.0, due - time.monotonic()))
            detector.handle_timeout(time.monotonic())

    def _take(self, event: Mapped | Detected) -> None:
        if isinstance(event, Mapped):
            before = self._mapped.get(event.server)
            self._mapped[event.server] = event.mapped
            if before != event.mapped:
                _log.debug("a STUN server answered", server=event.server.name, saw=event.mapped)
                self.on_change()
            return
        result, before_that = event.result, self.result
        if self._nat.stun_server and not result.servers:
            names = ", ".join(str(server) for server in self._nat.stun_server)
            result = replace(
                result,
                detail=self._inside or f"none of the STUN servers has an address: {names}",
            )
        answered = {report.server for report in result.servers if report.mapped is not None}
        for server in self._mapped.keys() - answered:
            del self._mapped[server]  # what it said before is of a mapping that may be gone
        self.result, self.detected_at = result, boottime()
        seen = None if before_that is None else (before_that.type, before_that.public_address)
        if result.servers and seen != (result.type, result.public_address):
            level = _log.warning if result.type is NatType.UDP_BLOCKED else _log.info
            level(
                "NAT detected",
                type=result.type,
                public_address=result.public_address,
                detail=result.detail,
            )
            self.recorder.record(
                "nat",
                "NAT detected",
                type=result.type,
                public_address=result.public_address,
                detail=result.detail,
            )
        self.on_change()

    # --- names and addresses --------------------------------------------------------------------

    def _resolve(self) -> list[Server]:
        """Return the servers with their addresses, one IPv4 and one IPv6 each, in order."""
        self._inside = None
        jobs = [gevent.spawn(self._addresses, server) for server in self._nat.stun_server]
        gevent.joinall(jobs, timeout=self._nat.detection_timeout)
        for job in jobs:
            job.kill(block=False)
        return [server for job in jobs if isinstance(job.value, list) for server in job.value]

    def _addresses(self, server: HostPort) -> list[Server]:
        """Resolve one name; ends when the resolver does, or killed."""
        try:
            found: list[tuple[Any, ...]] = gevent.socket.getaddrinfo(
                server.host, server.port, type=gevent.socket.SOCK_DGRAM
            )
        except OSError as error:
            _log.limited(600).info("a STUN server has no address", name=server, cause=error)
            return []
        endpoints: dict[int, Endpoint] = {}
        for *_, sockaddr in found:
            endpoint = Endpoint(ip_address(sockaddr[0]), sockaddr[1])
            if self.port is None or not self.port.reaches(endpoint):
                continue
            why = self.underlay.refusal(endpoint.address, "stun")
            if why is not None:
                self._inside = f"the STUN server {server}: {why}"
                _log.limited(600).warning(
                    "a STUN server is not asked",
                    cause=self._inside,
                    remedy="add the route that `shadowmesh explain` names, or another nat.stun_server",
                )
            else:
                endpoints.setdefault(endpoint.address.version, endpoint)
        return [Server(str(server), endpoint) for endpoint in endpoints.values()]

    def _local_endpoints(self, servers: list[Server]) -> list[Endpoint]:
        assert self.port is not None
        ways = [addresses.source_address(server.endpoint.address) for server in servers]
        held = self.host().addresses
        every = [address for address in (*ways, *held) if address is not None]
        return [Endpoint(address, self.port.port) for address in dict.fromkeys(every)]
