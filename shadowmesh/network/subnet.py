"""The addresses of a network: which subnet, which one a member gets, what a joiner refuses.

Owns: those choices as arithmetic. Does not know: the interfaces of this machine, the ledger;
both come in as values. Source: mesh section 2, mesh-rules B4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import Final

from shadowmesh.base.errors import IssuerRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: RFC 1918 and RFC 4193; `is_private` of the library means more (loopback, documentation)
_PRIVATE: Final = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
_TEN: Final = IPv4Network("10.0.0.0/8")
_SUBNETS: Final = 1 << 16  # of /24 in 10.0.0.0/8


def choose(taken: Collection[Network], random: bytes) -> IPv4Network:
    """Return a 10.x.y.0/24 that overlaps none of the taken networks.

    Args:
        taken: every network that this machine has an address or a route in, but default routes.
        random: at least 2 bytes; where the search begins.
    Raises:
        IssuerRefused: all of 10.0.0.0/8 is taken.
    """
    mine = [one for one in taken if isinstance(one, IPv4Network) and one.overlaps(_TEN)]
    start = int.from_bytes(random[:2], "big")
    for step in range(_SUBNETS):
        number = (start + step) % _SUBNETS
        subnet = IPv4Network((int(_TEN.network_address) | number << 8, 24))
        if not any(subnet.overlaps(one) for one in mine):
            return subnet
    raise IssuerRefused(
        "this machine has routes to all of 10.0.0.0/8; name a subnet with --subnet", "subnet"
    )


def local_prefix(random: bytes) -> IPv6Network:
    """Return a unique local /64: fd, 40 random bits, subnet 0. Source: RFC 4193, section 3.

    Args: random: at least 5 bytes.
    """
    return IPv6Network((b"\xfd" + random[:5] + bytes(10), 64))


def next_address(
    subnet: Network, given: Collection[Address], before: Collection[Address] = ()
) -> Address:
    """Return an address of the subnet that nobody has.

    The one behind the highest that was ever given, so that an address does not go to somebody else
    while others still have it in their tables: until they have given up its old owner, which takes
    a kernel some 8 s, they would not reach the new one. From the start again when the end is
    reached, and at last what others had.

    Args:
        given: what members have.
        before: what others had, and may have to be given again.
    Raises:
        IssuerRefused: all are given.
    """
    first, last = _hosts(subnet)
    inside = {int(one) for one in given if one in subnet}
    ever = inside | {int(one) for one in before if one in subnet}
    start = min(max(ever, default=first - 1) + 1, last + 1)
    behind = range(start, min(start + 1, last + 1))
    # At most one more step than there are given addresses: a /64 is never walked.
    for number in (*behind, *_gaps(first, last, ever), *_gaps(first, last, inside)):
        return _address(subnet, number)
    raise IssuerRefused(f"every address of {subnet} is given; remove a member first", "full")


def _gaps(first: int, last: int, inside: set[int]) -> Iterable[int]:
    for number in range(first, min(last, first + len(inside)) + 1):
        if number not in inside:
            yield number


def check_host(subnets: Iterable[Network], address: Address) -> None:
    """Refuse an address that is none of a host in one of the subnets.

    Raises:
        IssuerRefused: it is outside of all, or the address of the subnet itself or of everybody.
    """
    for subnet in subnets:
        if address in subnet:
            first, last = _hosts(subnet)
            if first <= int(address) <= last:
                return
            raise IssuerRefused(f"{address} is no address of a host in {subnet}", "address")
    names = ", ".join(map(str, subnets)) or "no subnet"
    raise IssuerRefused(f"{address} is not in the network, which has {names}", "address")


def _hosts(subnet: Network) -> tuple[int, int]:
    first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address)
    # IPv6 has no broadcast address, but the first one means every router (RFC 4291, 2.6.1).
    return first, last - 1 if isinstance(subnet, IPv4Network) else last


def _address(subnet: Network, number: int) -> Address:
    return IPv4Address(number) if isinstance(subnet, IPv4Network) else IPv6Address(number)


def why_unusable(subnet: Network) -> str | None:
    """Say why no network may have this subnet, whoever asks; None when one may."""
    if subnet.prefixlen == 0:
        return f"{subnet} is a default route: all traffic would go into the tunnel"
    if not any(
        subnet.version == one.version and subnet.subnet_of(one)  # type: ignore[arg-type]
        for one in _PRIVATE
    ):
        return (
            f"{subnet} is not private (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or fc00::/7):"
            " it would hide machines of the Internet"
        )
    first, last = _hosts(subnet)
    if last <= first:
        return f"{subnet} has no room for two members"
    return None


def overlapping(subnet: Network, own: Iterable[tuple[str, Network]]) -> str | None:
    """Name what of this machine a subnet overlaps; None when it is free.

    Args: own: (interface, network) of this machine, without default routes and without our TAP.
    """
    for interface, network in own:
        if network.version == subnet.version and network.prefixlen and subnet.overlaps(network):
            return (
                f"the network's subnet {subnet} overlaps {network} of {interface} on this machine:"
                " one of the two would not be reached"
            )
    return None
