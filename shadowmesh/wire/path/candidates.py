"""Which of our own addresses are worth telling the peer.

Owns: the choice and the order of the candidates that travel in a CANDIDATES record. Does not
know: where the addresses come from (interfaces, STUN), how they are encoded (`wire.control`).
"""

from __future__ import annotations

from collections.abc import Iterable

from shadowmesh.base.constants import MAX_CANDIDATES
from shadowmesh.wire.control import Address, Candidate, CandidateKind, Endpoint, Network, is_usable

#: of the 8 places, so many are kept for reflexive addresses: they are what works through a NAT
REFLEXIVE_PLACES = 2


def choose_candidates(
    hosts: Iterable[Address],
    port: int,
    reflexive: Iterable[Endpoint] = (),
    tunnel: Iterable[Network] = (),
) -> tuple[Candidate, ...]:
    """Return at most 8 candidates, host addresses first, each endpoint once.

    Args:
        hosts: addresses of our interfaces, the best first (that of the default route).
        port: of the UDP data socket.
        reflexive: what STUN servers saw, the best first; one that is a host address (there is
            no NAT) is not told twice.
        tunnel: subnets of the tunnel itself; a path through it would run through itself.
    Source: protocol section 8.
    """
    nets = tuple(tunnel)
    found: dict[Endpoint, Candidate] = {}
    for host in hosts:
        endpoint = Endpoint(host, port)
        found.setdefault(endpoint, Candidate(CandidateKind.HOST, endpoint))
    own = [candidate for candidate in found.values() if is_usable(candidate, nets)]
    seen = [
        Candidate(CandidateKind.REFLEXIVE, endpoint)
        for endpoint in dict.fromkeys(reflexive)
        if endpoint not in found
    ]
    seen = [candidate for candidate in seen if is_usable(candidate, nets)]
    places = max(MAX_CANDIDATES - len(seen), MAX_CANDIDATES - REFLEXIVE_PLACES)
    own = own[:places]
    return tuple(own + seen[: MAX_CANDIDATES - len(own)])
