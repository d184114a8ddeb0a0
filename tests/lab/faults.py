"""Faults of hosts and of the path between them, each a context manager that mends what it broke.

Those of the path act on the switch: a drop on the sender's own output would come back as EPERM.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shadowmesh.netlab import Host, Net

_table_numbers = itertools.count(1)


@contextlib.contextmanager
def link_down(net: Net, host: Host) -> Iterator[None]:
    """Unplug the host: it loses its carrier and keeps its addresses and routes."""
    port = net.port(host)
    net.switch.ip(f"link set {port} down")
    try:
        yield
    finally:
        net.switch.ip(f"link set {port} up")


@contextlib.contextmanager
def _table(host: Host, family: str, chains: str) -> Iterator[None]:
    name = f"fault{next(_table_numbers)}"
    host.nft(f"table {family} {name} {{\n{chains}\n}}\n")
    try:
        yield
    finally:
        host.run("nft", "delete", "table", family, name)


def forwarding(net: Net, *rules: str) -> contextlib.AbstractContextManager[None]:
    """Load nftables rules on what the switch forwards."""
    lines = "\n".join(rules)
    chain = f"chain forward {{\ntype filter hook forward priority 0\n{lines}\n}}"
    return _table(net.switch, "bridge", chain)


def black_hole(net: Net, one: Host, other: Host) -> contextlib.AbstractContextManager[None]:
    """Swallow everything between the two, both ways, without a word to either."""
    there, back = net.port(one), net.port(other)
    return forwarding(
        net,
        f'iifname "{there}" oifname "{back}" drop',
        f'iifname "{back}" oifname "{there}" drop',
    )


def drop_udp(net: Net) -> contextlib.AbstractContextManager[None]:
    return forwarding(net, "meta l4proto udp drop")


def mtu_hole(net: Net, longest_bytes: int) -> contextlib.AbstractContextManager[None]:
    """Swallow UDP datagrams whose UDP length is larger, without an ICMP message."""
    return forwarding(net, f"udp length > {longest_bytes} drop")


def swallow(net: Net, longest_bytes: int) -> contextlib.AbstractContextManager[None]:
    """Swallow IP packets that are longer, without an ICMP message; see `without_offload`."""
    return forwarding(net, f"meta length > {longest_bytes} drop")


def without_offload(net: Net, *hosts: Host) -> None:
    """Cut packets before they leave a host, as a network card does, not behind the switch."""
    features = ("tso", "gso", "tx-udp-segmentation")
    off = [word for feature in features for word in (feature, "off")]
    for host in hosts:
        host.run("ethtool", "-K", "eth0", *off)


def lose(net: Net, percent: int) -> contextlib.AbstractContextManager[None]:
    """Lose UDP datagrams at random."""
    return forwarding(net, f"meta l4proto udp numgen random mod 100 < {percent} drop")


def reset_tcp(net: Net, *hosts: Host, port: int) -> contextlib.AbstractContextManager[None]:
    """Answer each segment to or from TCP `port` that a host sends with a reset."""
    chains = "\n".join(
        f"chain ingress{host.number} {{\n"
        f'type filter hook ingress device "{net.port(host)}" priority 0\n'
        f"tcp dport {port} reject with tcp reset\n"
        f"tcp sport {port} reject with tcp reset\n"
        "}"
        for host in hosts
    )
    return _table(net.switch, "netdev", chains)


def kill_sockets(host: Host, port: int) -> None:
    """Abort the host's established TCP connections to or from `port`; the peer gets a reset."""
    for end in ("dport", "sport"):
        host.run("ss", "-K", "-t", "state", "established", end, "=", f":{port}")


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount a file system of 4 MiB on a directory, which is made."""
    directory.mkdir(parents=True)
    options = "size=4m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", directory], check=True)
    try:
        yield directory
    finally:
        # Lazily: a daemon that is about to end may have something open there.
        subprocess.run(["umount", "--lazy", directory], check=True)


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """Fill the file system of a directory to the last byte."""
    ballast = directory / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        yield
    finally:
        ballast.unlink()
