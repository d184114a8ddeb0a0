"""What this host does with the tunnel's device and with packets to the peer, judged.

Owns: the sentences and remedies for a device that others have changed, for routes that lead the
tunnel into itself, and for networks that overlap. Does not know: how the kernel is asked
(`device.facts`, `device.underlay`). Every function is pure.

A remedy here leaves in place what the operator did on purpose: a device that was put into a bridge
stays there, and what is told is where its address belongs then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_interface

from shadowmesh.device.facts import Device, Held
from shadowmesh.insight.status import Check


def device(found: Device, others: Sequence[Held], wanted: Iterable[str], mtu: int) -> Check | None:
    """Judge an open device that is up; None when it is what the daemon made.

    Args:
        others: the addresses of all other interfaces.
        wanted: network.local_ip, with prefix.
        mtu: that the daemon gave it.
    """
    for address in wanted:
        check = _address(found, others, address)
        if check is not None:
            return check
    if found.mtu != mtu:
        return Check(
            "tap", False, "warning",
            f"{found.name} is up, but its MTU is {found.mtu} now and the daemon was told {mtu}",
            f"ip link set {found.name} mtu {mtu}; or change network.mtu and restart the daemon",
            "tap_mtu",
        )  # fmt: skip
    return None


def _address(found: Device, others: Sequence[Held], address: str) -> Check | None:
    name, bridge = found.name, found.bridge
    holder = next((each for each in others if each.address == address), None)
    if address in found.addresses:
        if bridge is None:
            return None
        move = f"ip address del {address} dev {name}"
        if holder is None or holder.interface != bridge:
            move += f" && ip address add {address} dev {bridge}"
        return Check(
            "tap", False, "error",
            f"{name} is a port of the bridge {bridge}, so {address} on it receives nothing:"
            " in a bridge the bridge has the address",
            f'{move}; and set network.local_ip to "", so that the next start leaves it there',
            "tap_in_bridge",
        )  # fmt: skip
    if holder is not None and holder.inside:
        return Check(
            "tap", False, "warning",
            f"{address} is on {holder.interface} by now, which works until the next start of the"
            f" daemon gives it to {name} again",
            'set network.local_ip to ""', "tap_address_moved",
        )  # fmt: skip
    if holder is not None:
        return Check(
            "tap", False, "error",
            f"{address} is on {holder.interface}, which does not lead into the tunnel, and not on"
            f" {name}",
            f"ip address del {address} dev {holder.interface} && ip address add {address} dev"
            f" {name}; or set another network.local_ip and restart the daemon",
            "tap_address_elsewhere",
        )  # fmt: skip
    if bridge is not None:
        return Check(
            "tap", False, "warning",
            f"{name} is a port of the bridge {bridge}, and nothing of this host has {address}",
            f"ip address add {address} dev {bridge}, if this host is to have it; in any case set"
            ' network.local_ip to ""',
            "tap_address_gone",
        )  # fmt: skip
    return Check(
        "tap", False, "error", f"{name} is up, but {address} was taken off it",
        f"ip address add {address} dev {name}", "tap_address_gone",
    )  # fmt: skip


def way(
    inside: str | None,
    advice: str | None,
    others: Sequence[Held],
    wanted: Iterable[str],
    *,
    carried: bool,
) -> Check:
    """Judge the way to the peer, and the networks of this host beside the tunnel's.

    Args:
        inside: why packets to the peer go into the tunnel itself; None when they do not.
        advice: the command that leads them around it.
        others, wanted: as for `device`.
        carried: frames reach the peer all the same, over another address.
    """
    if inside is not None:
        effect = "the reserve of UDP is gone" if carried else "nothing reaches the peer"
        remedy = f"{advice}; see docs/full-tunnel.md"
        return Check(
            "underlay", False, "warning" if carried else "error", f"{inside}: {effect}", remedy,
            "tunnel_loop",
        )  # fmt: skip
    for address in wanted:
        network = ip_interface(address).network
        for each in others:
            other = ip_interface(each.address).network
            if not each.inside and each.up and network.overlaps(other):
                return Check(
                    "underlay", False, "warning",
                    f"{each.interface} is in {other}, and so is the tunnel ({network}): the kernel"
                    " sends what is for that network to one of the two alone",
                    "set network.local_ip to a network that no other interface has, on both sides",
                    "subnet_overlap",
                )  # fmt: skip
    return Check("underlay", True, text="packets to the peer leave outside of the tunnel")
