"""What the kernel says about the tunnel's device and about the way to somebody behind it.

Owns: one look through rtnetlink, as plain facts, and how a target is written. Does not know: what
the facts mean for a frame (`explain` judges them), the session.

Asked by the daemon and not by the command line: only the daemon is sure to be in the network
namespace of the device. A look takes under a millisecond and needs no privilege.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from shadowmesh.device.netlink import NUD_FAILED, NUD_INCOMPLETE, NUD_USABLE, Address, Link, Netlink
from shadowmesh.device.underlay import Stack

#: a MAC of 6 bytes, or an IP address
Target = bytes | Address

_MAC: Final = re.compile(r"[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4}[0-9a-fA-F]{2}")


@dataclass(frozen=True, slots=True)
class Device:
    """The interface that has the name of the tunnel's device, ours or not.

    Attributes:
        kind: the kernel's driver, "tun" for a TAP device.
        running: a program has it open.
        addresses: with prefix.
        bridge: the name of the bridge that it is a port of; None without one.
        tx_dropped: frames that the kernel threw away because nobody took them in time.
    """

    name: str
    kind: str
    mac: bytes
    mtu: int
    up: bool
    running: bool
    addresses: tuple[str, ...] = ()
    bridge: str | None = None
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """An address of this host that is not the device's.

    Attributes:
        address: with prefix.
        inside: its interface leads into the tunnel: stacked on the device, or its bridge.
        up: the interface is.
    """

    interface: str
    address: str
    inside: bool = False
    up: bool = True


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the kernel believes a target to be.

    Attributes:
        address: that was asked for, or that the neighbour tables have for the MAC.
        mac: that was asked for, or that the neighbour tables have for the address or its gateway.
        ours: the interface of this host that it belongs to; None when it is somebody else's.
        out: the interface that the route leads out of.
        into_tunnel: that is the device, or its bridge.
        gateway: to which the route leads.
        no_route: the kernel's words; None when there is a route, or none was asked for.
        answered: the next hop answered ARP or ND; None when it has not been asked.
        port: the port of the device's bridge behind which the MAC was seen; None: not seen.
    """

    address: Address | None = None
    mac: bytes | None = None
    ours: str | None = None
    out: str | None = None
    into_tunnel: bool = False
    gateway: Address | None = None
    no_route: str | None = None
    answered: bool | None = None
    port: str | None = None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One look.

    Attributes:
        name: of the tunnel's device.
        device: None when there is no interface of this name.
        target: None when none was asked for.
        name: empty where the daemon runs without a device.
        problem: why the kernel could not be asked; then the others are None.
        others: the addresses of the other interfaces, without loopback and link-local ones.
    """

    name: str
    device: Device | None = None
    target: Whereabouts | None = None
    problem: str | None = None
    others: tuple[Held, ...] = ()


def parse_target(text: str) -> Target:
    """Return the MAC (``02:00:5e:10:00:01``, also with ``-``) or IP address that a text names.

    Raises:
        ValueError: it is neither.
    """
    if _MAC.fullmatch(text):
        return bytes.fromhex(text.replace("-", ":").replace(":", ""))
    try:
        return ip_address(text)
    except ValueError:
        raise ValueError(
            f'"{text}" is neither a MAC like 02:00:5e:10:00:01 nor an IP address'
        ) from None


def format_mac(mac: bytes) -> str:
    """Return a MAC as the kernel writes it."""
    return mac.hex(":")


def look(device: str, target: Target | None) -> HostFacts:
    """Ask the kernel about the device of this name and about the way to a target."""
    try:
        with Netlink() as netlink:
            return _look(netlink, device, target)
    except OSError as error:
        return HostFacts(device, problem=error.strerror or str(error))


def _look(netlink: Netlink, name: str, target: Target | None) -> HostFacts:
    links = {link.index: link for link in netlink.links()}
    tap = next((link for link in links.values() if link.name == name), None)
    if tap is None:
        found = None
    else:
        bridge = links.get(tap.master)
        found = Device(
            name, tap.kind, tap.mac, tap.mtu, tap.up, tap.running,
            tuple(str(address) for index, address in netlink.addresses() if index == tap.index),
            None if bridge is None else bridge.name, tap.tx_dropped,
        )  # fmt: skip
    stack = Stack(list(links.values()), name, lambda to: netlink.route(to).index)
    others = tuple(
        Held(links[index].name, str(address), stack.chain(index) is not None, links[index].up)
        for index, address in netlink.addresses()
        if index in links and (tap is None or index != tap.index)
        if not address.ip.is_loopback and not address.ip.is_link_local
    )
    if target is None:
        return HostFacts(name, found, others=others)
    ours = frozenset() if tap is None else frozenset({tap.index, tap.master} - {0})
    find = _find_mac if isinstance(target, bytes) else _find_address
    where = find(netlink, links, ours, target)  # type: ignore[arg-type]
    return HostFacts(name, found, where, others=others)


def _find_mac(
    netlink: Netlink, links: dict[int, Link], ours: frozenset[int], mac: bytes
) -> Whereabouts:
    holder = next((link for link in links.values() if link.mac == mac and any(mac)), None)
    known = [each for each in netlink.neighbours() if each.mac == mac and each.index in ours]
    return Whereabouts(
        address=known[0].address if known else None,
        mac=mac,
        ours=None if holder is None else holder.name,
        port=_bridge_port(netlink, links, ours, mac),
    )


def _find_address(
    netlink: Netlink, links: dict[int, Link], ours: frozenset[int], address: Address
) -> Whereabouts:
    held = {interface.ip: index for index, interface in netlink.addresses()}
    if address in held:
        holder = links.get(held[address])
        return Whereabouts(address, ours="this host" if holder is None else holder.name)
    try:
        route = netlink.route(address)
    except OSError as error:
        return Whereabouts(address, no_route=error.strerror or str(error))
    if route.local:
        return Whereabouts(address, ours="lo")
    out = links.get(route.index)
    hop = route.gateway or address
    entry = next(
        (n for n in netlink.neighbours() if n.index == route.index and n.address == hop), None
    )
    answered = None
    if entry is not None and entry.state & NUD_USABLE:
        answered = True
    elif entry is not None and entry.state & (NUD_INCOMPLETE | NUD_FAILED):
        answered = False
    mac = entry.mac if entry is not None and answered and entry.mac else None
    return Whereabouts(
        address=address,
        mac=mac,
        out=None if out is None else out.name,
        into_tunnel=route.index in ours,
        gateway=route.gateway,
        answered=answered,
        port=None if mac is None else _bridge_port(netlink, links, ours, mac),
    )


def _bridge_port(
    netlink: Netlink, links: dict[int, Link], ours: frozenset[int], mac: bytes
) -> str | None:
    """Return the port behind which the device's own bridge has seen a MAC."""
    for entry in netlink.bridge_entries():
        if entry.mac == mac and entry.master in ours and entry.index in links:
            return links[entry.index].name
    return None
