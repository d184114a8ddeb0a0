"""Which addresses are candidates: those of our own that the peer is told, and one that it cannot tell.

Owns: the choice and the order of the candidates that travel in a CANDIDATES record, and the one
that the WSS link adds to the peer's. Does not know: where the addresses come from (interfaces,
STUN), how they are encoded (`wire.control`).
"""

from __future__ import annotations

from collections.abc import Iterable

from shadowmesh.base.constants import MAX_CANDIDATES
from shadowmesh.wire.control import Address, Candidate, CandidateKind, Endpoint, is_usable

#: of the 8 places, so many are kept for reflexive addresses: they are what works through a NAT
REFLEXIVE_PLACES = 2


def choose_candidates(
    hosts: Iterable[Address],
    port: int,
    reflexive: Iterable[Endpoint] = (),
) -> tuple[Candidate, ...]:
    """Return at most 8 candidates, host addresses first, each endpoint once.

    Args:
        hosts: addresses of our interfaces, the best first (that of the default route).
        port: of the UDP data socket.
        reflexive: what STUN servers saw, the best first; one that is a host address (there is
            no NAT) is not told twice.
    Source: protocol section 8.
    """
    found: dict[Endpoint, Candidate] = {}
    for host in hosts:
        endpoint = Endpoint(host, port)
        found.setdefault(endpoint, Candidate(CandidateKind.HOST, endpoint))
    own = [candidate for candidate in found.values() if is_usable(candidate)]
    seen = [
        Candidate(CandidateKind.REFLEXIVE, endpoint)
        for endpoint in dict.fromkeys(reflexive)
        if endpoint not in found
    ]
    seen = [candidate for candidate in seen if is_usable(candidate)]
    places = max(MAX_CANDIDATES - len(seen), MAX_CANDIDATES - REFLEXIVE_PLACES)
    own = own[:places]
    return tuple(own + seen[: MAX_CANDIDATES - len(own)])


def with_link(candidates: Iterable[Candidate], link: Address) -> tuple[Candidate, ...]:
    """Return the peer's candidates and, behind them, its address as the WSS link has it.

    The peer cannot know by what address it is reached through a translator (NAT64), nor in which of
    our zones a link-local address of its own is. The port is that of its data socket.

    Args:
        link: the peer's end of the link, with a zone where it is link-local.
    """
    told = tuple(candidates)[:MAX_CANDIDATES]
    ports = [each.endpoint.port for each in told if each.kind is CandidateKind.HOST]
    if not ports or any(each.endpoint.address == link for each in told):
        return told
    kind = CandidateKind.HOST if link.is_link_local else CandidateKind.REFLEXIVE
    return (*told, Candidate(kind, Endpoint(link, ports[0])))
