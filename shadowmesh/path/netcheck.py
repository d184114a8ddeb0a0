"""What kind of network this machine stands in, asked with a socket of our own.

Owns: one look at the NAT from a plain process, and its outcome in words and JSON. Does not know:
the daemon (it may run or not), the command line.

The socket is bound to the daemon's UDP port when that is free: a NAT or a firewall may treat that
port differently. While the daemon has it, any other port tells as much about the NAT.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from shadowmesh.device import addresses
from shadowmesh.device.underlay import Underlay
from shadowmesh.path.udp import open_socket
from shadowmesh.wire.control import Endpoint
from shadowmesh.wire.nat.detector import NatDetector
from shadowmesh.wire.nat.result import Filtering, NatResult, NatType, Server, ServerReport

if TYPE_CHECKING:
    from shadowmesh.config import HostPort

SCHEMA: Final = 1
_DATAGRAM_BYTES: Final = 2048

_UDP_IN: Final = {
    Filtering.ENDPOINT_INDEPENDENT: "from anybody",
    Filtering.ADDRESS_DEPENDENT: "from hosts that we sent to",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "from addresses that we sent to",
    Filtering.UNKNOWN: "answers; who else is not known",
}


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome.

    Attributes:
        result: of the detection.
        port: the local port that was used; `wanted_port` is the daemon's.
        unresolved: servers without an address, and why.
        duration_s: of the whole.
    """

    result: NatResult
    port: int
    wanted_port: int
    unresolved: tuple[tuple[str, str], ...]
    duration_s: float

    @property
    def udp_out(self) -> bool | None:
        """Whether a datagram of ours reached somebody; None when that cannot be told."""
        if any(report.rtt_ms is not None for report in self.result.servers):
            return True
        return False if self.result.type is NatType.UDP_BLOCKED else None

    @property
    def udp_in(self) -> str | None:
        """From whom datagrams arrive, in words; None when nothing came."""
        return _UDP_IN[self.result.filtering] if self.udp_out else None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; names are only ever added."""
        result = self.result
        answers = [_answer(report) for report in result.servers]
        answers += [_without_address(name, why) for name, why in self.unresolved]
        return {
            "schema": SCHEMA,
            "type": str(result.type),
            "mapping": str(result.mapping),
            "mapping_varies": result.mapping_varies,
            "filtering": str(result.filtering),
            "udp_out": self.udp_out,
            "udp_in": self.udp_in,
            "public_addresses": [str(address) for address in result.public_addresses],
            "local_address": None if result.local_address is None else str(result.local_address),
            "port": self.port,
            "servers": answers,
            "duration_ms": round(self.duration_s * 1000, 1),
            "detail": result.detail,
        }


def _answer(report: ServerReport) -> dict[str, Any]:
    return {
        "name": report.server.name,
        "address": str(report.server.endpoint),
        "saw": None if report.mapped is None else str(report.mapped),
        "rtt_ms": None if report.rtt_ms is None else round(report.rtt_ms, 3),
        "detail": report.detail,
    }


def _without_address(name: str, why: str) -> dict[str, Any]:
    return {"name": name, "address": None, "saw": None, "rtt_ms": None, "detail": why}


_NO_ADDRESS: Final = (
    "none of the STUN servers has an address; look at the name resolution of this host, or give one"
    " by its address with --server"
)


def check(
    servers: Sequence[HostPort], port: int, timeout_s: float, tunnel_device: str | None
) -> Report:
    """Look at the NAT; blocks for at most timeout_s after the names are resolved.

    Args:
        servers: STUN servers.
        port: nat.udp_port.
        tunnel_device: name of the daemon's TAP, whose addresses are not ours.
    Raises:
        DeviceError: no UDP socket at all.
    """
    began = time.monotonic()
    with open_socket(port) as sock:
        ipv6 = sock.family == socket.AF_INET6
        found, unresolved = _resolve(servers, ipv6=ipv6)
        found, behind = _outside(found, Underlay(lambda: tunnel_device))
        unresolved += behind
        used = sock.getsockname()[1]
        detector = NatDetector(
            found,
            _local_endpoints(found, used, tunnel_device),
            time.monotonic(),
            detection_timeout_s=timeout_s,
            random=os.urandom,
        )
        while detector.result is None:
            _turn(detector, sock, ipv6=ipv6)
    result = detector.result
    if unresolved and not found:
        result = replace(result, detail=_NO_ADDRESS)
    duration_s = time.monotonic() - began
    return Report(result, used, port, tuple(unresolved), duration_s)


def _turn(detector: NatDetector, sock: socket.socket, *, ipv6: bool) -> None:
    """Send what is due, take what comes, and let time pass until the next of either."""
    for datagram in detector.data_to_send():
        to = datagram.destination
        mapped = ipv6 and to.address.version == 4
        host = f"::ffff:{to.address}" if mapped else str(to.address)
        try:
            sock.sendto(datagram.data, (host, to.port))
        except OSError:
            continue  # no route, or a filter of this machine: the same as no answer
    due = detector.next_timeout()
    if due is None:
        return
    if select.select([sock], [], [], max(0.0, due - time.monotonic()))[0]:
        try:
            data, source = sock.recvfrom(_DATAGRAM_BYTES)
        except OSError:
            return
        detector.receive(data, Endpoint(ip_address(source[0]), source[1]), time.monotonic())
    detector.handle_timeout(time.monotonic())


def _resolve(
    servers: Iterable[HostPort], *, ipv6: bool
) -> tuple[list[Server], list[tuple[str, str]]]:
    """Return the servers, one IPv4 and one IPv6 address each, and those without any."""
    found: list[Server] = []
    failed: list[tuple[str, str]] = []
    for server in servers:
        family = socket.AF_UNSPEC if ipv6 else socket.AF_INET
        try:
            answers = socket.getaddrinfo(server.host, server.port, family, socket.SOCK_DGRAM)
        except OSError as error:
            failed.append((str(server), f"has no address: {error.strerror or error}"))
            continue
        endpoints: dict[int, Endpoint] = {}
        for *_, sockaddr in answers:
            endpoint = Endpoint(ip_address(sockaddr[0]), int(sockaddr[1]))
            endpoints.setdefault(endpoint.address.version, endpoint)
        found += [Server(str(server), endpoint) for endpoint in endpoints.values()]
    return found, failed


def _outside(
    servers: Iterable[Server], underlay: Underlay
) -> tuple[list[Server], list[tuple[str, str]]]:
    """Return the servers that are not behind the tunnel, and those that are."""
    found: list[Server] = []
    behind: list[tuple[str, str]] = []
    for server in servers:
        why = underlay.inside(server.endpoint.address)
        if why is None:
            found.append(server)
        else:
            behind.append((server.name, why))
    underlay.close()
    return found, behind


def _local_endpoints(
    servers: Iterable[Server], port: int, tunnel_device: str | None
) -> list[Endpoint]:
    ways = [addresses.source_address(server.endpoint.address) for server in servers]
    every = (*ways, *addresses.look(tunnel_device).addresses)
    return [Endpoint(each, port) for each in dict.fromkeys(every) if each is not None]
