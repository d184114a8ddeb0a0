"""What was found out about a NAT, and the rules that turn observations into words.

Owns: the result of a detection, and the pure functions that judge what STUN servers saw. Does
not know: how they were asked (`detector`).

Source: RFC 4787 for the behaviours, RFC 3489 section 5 for the names of the types.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shadowmesh.wire.control import Endpoint


class NatType(StrEnum):
    """One word for an operator."""

    OPEN = "open"
    FULL_CONE = "full_cone"
    RESTRICTED_CONE = "restricted_cone"
    PORT_RESTRICTED_CONE = "port_restricted_cone"
    SYMMETRIC = "symmetric"
    UDP_BLOCKED = "udp_blocked"
    UNKNOWN = "unknown"


class Mapping(StrEnum):
    """On what the public port of one inside socket depends. Source: RFC 4787, section 4.1."""

    NONE = "none"  # there is no NAT
    ENDPOINT_INDEPENDENT = "endpoint_independent"
    ADDRESS_DEPENDENT = "address_dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address_and_port_dependent"
    DESTINATION_DEPENDENT = "destination_dependent"  # one of the last two
    UNKNOWN = "unknown"


class Filtering(StrEnum):
    """Who may send to a public port. Source: RFC 4787, section 5."""

    ENDPOINT_INDEPENDENT = "endpoint_independent"
    ADDRESS_DEPENDENT = "address_dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address_and_port_dependent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Server:
    """A STUN server: the name that the operator gave it, and one resolved address."""

    name: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What one server did.

    Attributes:
        server: which.
        mapped: the address it saw us at; None when it gave none that can be ours.
        rtt_ms: until its answer; None when it gave none.
        detail: why there is no address; empty when there is one.
    """

    server: Server
    mapped: Endpoint | None = None
    rtt_ms: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NatResult:
    """What was found out; every field is a hint.

    Attributes:
        type: one word.
        mapping, filtering: see there.
        public_address: how the world sees the data socket, IPv4 preferred.
        local_address: the address of the data socket that the caller gave as its main one.
        public_addresses: all that servers named, each once, best first.
        servers: one report for each server asked, in their order.
        detected_at: monotonic seconds.
        detail: one sentence for people.
    """

    type: NatType
    mapping: Mapping
    filtering: Filtering
    public_address: Endpoint | None
    local_address: Endpoint | None
    public_addresses: tuple[Endpoint, ...]
    servers: tuple[ServerReport, ...]
    detected_at: float
    detail: str

    @property
    def mapping_varies(self) -> bool | None:
        """True when the public port depends on the destination; None when that is not known."""
        if self.mapping is Mapping.UNKNOWN:
            return None
        return self.mapping not in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT)


_CONES: Final = {
    Filtering.ENDPOINT_INDEPENDENT: NatType.FULL_CONE,
    Filtering.ADDRESS_DEPENDENT: NatType.RESTRICTED_CONE,
    Filtering.ADDRESS_AND_PORT_DEPENDENT: NatType.PORT_RESTRICTED_CONE,
    Filtering.UNKNOWN: NatType.UNKNOWN,
}

_FILTERS: Final = {
    Filtering.ENDPOINT_INDEPENDENT: "anybody may send to it",
    Filtering.ADDRESS_DEPENDENT: "hosts that we sent to may send to it",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "only addresses that we sent to may send to it",
    Filtering.UNKNOWN: "who may send to it is not known",
}


def name_type(mapping: Mapping, filtering: Filtering) -> NatType:
    """Return the old word for a pair of behaviours."""
    if mapping is Mapping.UNKNOWN:
        return NatType.UNKNOWN
    if mapping is Mapping.NONE:
        # A firewall without a NAT lets in what a cone of its filtering does, and that is what
        # the word is used for.
        open_to_all = filtering in (Filtering.ENDPOINT_INDEPENDENT, Filtering.UNKNOWN)
        return NatType.OPEN if open_to_all else _CONES[filtering]
    if mapping is Mapping.ENDPOINT_INDEPENDENT:
        return _CONES[filtering]
    return NatType.SYMMETRIC


def describe(mapping: Mapping, filtering: Filtering) -> str:
    """Return one sentence about a known mapping."""
    if mapping is Mapping.NONE:
        ports = "no NAT"
    elif mapping is Mapping.ENDPOINT_INDEPENDENT:
        ports = "one public port for all destinations"
    else:
        ports = "another public port for other destinations"
    return f"{ports}; {_FILTERS[filtering]}"


def compare_answers(
    reports: Sequence[ServerReport], version: int, local: Collection[Endpoint]
) -> tuple[Mapping, str]:
    """Return what the plain answers of several servers tell about the mapping.

    Args:
        reports: of all servers.
        version: of IP, 4 or 6; servers of the other are left out.
        local: addresses of the data socket.
    Returns:
        The mapping, and what is to be said about it beside its description; may be empty.
    """
    seen = [
        (report.server.endpoint.address, report.mapped)
        for report in reports
        if report.mapped is not None and report.mapped.address.version == version
    ]
    addresses = {mapped for _, mapped in seen}
    if addresses <= set(local):
        return Mapping.NONE, ""
    for mapped in addresses:
        # A mapping that depends on the destination does not give one port twice.
        if len({server for server, other in seen if other == mapped}) > 1:
            agree = len(addresses) == 1
            return Mapping.ENDPOINT_INDEPENDENT, "" if agree else "a STUN server disagrees"
    if len({server for server, _ in seen}) < 2:
        if len(addresses) > 1:
            return Mapping.ADDRESS_AND_PORT_DEPENDENT, ""
        return Mapping.UNKNOWN, "cone or symmetric: one server only"
    if len({mapped.address for mapped in addresses}) > 1:
        detail = "STUN servers name different hosts: symmetric, several uplinks, or one lies"
        return Mapping.UNKNOWN, detail
    return Mapping.DESTINATION_DEPENDENT, ""
