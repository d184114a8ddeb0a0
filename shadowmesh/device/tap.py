"""The TAP device: a network interface of this host whose other end is a file descriptor.

Owns: opening the device with the virtio header, segmentation offload, MTU, queue length, MAC and
IP address, bringing it up, and taking all of it back when a step fails. Does not know: how a
descriptor is attached (`queues`, `tun`), frames. Who reads and writes `Tap.fds` must have stopped
before `Tap.close()`.

Every read and write on a descriptor moves one frame behind a virtio_net_hdr of
VIRTIO_NET_HEADER_BYTES, whether offload is on or off.

A device may have several queues, each with a descriptor of its own. Everything else about it is
the device's, whichever descriptor it was said to. The device goes away, unless it is persistent,
with the last of them.
"""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from shadowmesh.base import log
from shadowmesh.base.constants import MAX_SEGMENTS, VIRTIO_NET_HEADER_BYTES
from shadowmesh.base.errors import DeviceError
from shadowmesh.device.netlink import NUD_INCOMPLETE, Link, Netlink
from shadowmesh.device.queues import attach, attach_queues, best_queues
from shadowmesh.device.tun import (
    IFF_MULTI_QUEUE,
    IFF_PERSIST,
    KIND,
    KIND_MASK,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_TSO_ECN,
    TUN_F_USO4,
    TUN_F_USO6,
    TUNSETOFFLOAD,
    TUNSETPERSIST,
    TUNSETVNETHDRSZ,
    Kernel,
    attached,
    explained,
    open_clone,
)

_log = log.get("tap")

Interface = IPv4Interface | IPv6Interface

#: frames that wait in the kernel for us. Each may be a 64 KiB super-frame, so this bounds the
#: delay that bulk traffic adds: 128 of them are 10 ms at 6 Gbit/s. The kernel's default is 1000.
#: Each queue of the device has so many.
QUEUE_LENGTH: Final = 128
#: it is switched off for the device, or the kernel was made or started without it
_NO_IPV6: Final = frozenset({errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})
#: IFNAMSIZ less the terminating zero
MAX_NAME_BYTES: Final = 15

OFFLOAD_CHECKSUM: Final = TUN_F_CSUM
OFFLOAD_TCP: Final = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
#: since Linux 6.2; the kernel takes both or neither
OFFLOAD_UDP: Final = TUN_F_USO4 | TUN_F_USO6


@dataclass(slots=True, eq=False)
class Tap:
    """An open TAP device. Made by `open_tap`; the owner calls `close` once nobody uses `fds`.

    Attributes:
        fds: one for each queue, non-blocking; none after `close`.
        name: the real one, where a pattern such as "tap%d" was asked for.
        mac: 6 bytes, of the host's side.
        persistent: the device outlives `close`.
        left_out: addresses that it does not have, because this machine has no IPv6.
        udp_super_frames: the kernel knows super-frames of datagrams (Linux 6.2): it takes them from
            us, and hands us some where `set_offload` allows it.
    """

    fds: tuple[int, ...]
    name: str
    index: int
    mtu: int
    mac: bytes
    persistent: bool
    udp_super_frames: bool
    _kernel: Kernel = field(repr=False)
    left_out: tuple[Interface, ...] = ()

    @property
    def ifindex(self) -> int:
        return self.index

    def set_offload(self, flags: int) -> None:
        """Tell the kernel what it may hand us.

        Args:
            flags: 0, OFFLOAD_CHECKSUM (unfinished checksums), OFFLOAD_TCP (super-frames of
                streams, too); with that, OFFLOAD_UDP (of datagrams), which is left out unless
                `udp_super_frames`.
        Raises:
            DeviceError: the device is closed or the kernel refuses.
        """
        if not self.fds:
            raise DeviceError(f"cannot set offload of {self.name}: it is closed", errno.EBADF)
        if not self.udp_super_frames:
            flags &= ~OFFLOAD_UDP
        _set_offload(self._kernel, self.fds[0], self.name, flags)

    def ask_again(self) -> None:
        """Let the kernel ask at once for whom nobody has answered on this device.

        By itself it asks again a second after it did, whoever has come meanwhile.

        Raises:
            DeviceError: the kernel refuses.
        """
        with self._kernel.netlink() as netlink:
            try:
                for entry in netlink.neighbours():
                    if entry.index == self.index and entry.state & NUD_INCOMPLETE:
                        netlink.forget_neighbour(entry)
            except OSError as error:
                if error.errno != errno.ENOENT:  # it has answered, or was given up
                    raise DeviceError(
                        f"cannot clear the neighbours of {self.name}: {error.strerror}",
                        error.errno or 0,
                    ) from error

    def exists(self) -> bool:
        """Whether the interface is still there; somebody may delete it under an open fd."""
        return self._link() is not None

    def is_up(self) -> bool:
        """Whether the interface exists and is administratively up."""
        link = self._link()
        return link is not None and link.up

    def close(self) -> None:
        """Let go of the device; it goes away unless it is persistent. May be called again."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            self._kernel.close(fd)

    def _link(self) -> Link | None:
        with self._kernel.netlink() as netlink:
            try:
                return netlink.link(self.index)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return None
                raise DeviceError(
                    f"cannot look at {self.name}: {error.strerror}", error.errno or 0
                ) from error


def open_tap(
    name: str,
    *,
    mtu: int,
    addresses: Sequence[Interface],
    persist: bool,
    offload: int,
    queue_length: int = QUEUE_LENGTH,
    queues: int | None = 1,
    mac: bytes | None = None,
    held: int | None = None,
    kernel: Kernel | None = None,
) -> Tap:
    """Open the TAP device `name`, set it up and bring it up; on failure leave nothing behind.

    A device that exists already (a persistent one) is taken over: what differs is changed, and
    addresses that it has besides these stay. On such a device nothing is changed that is right
    already, so one that root has prepared for a user opens without privileges.

    Args:
        name: 1 to 15 bytes; may be a pattern such as "tap%d".
        mtu: bytes of payload, without the 14 bytes of the Ethernet header.
        addresses: of this host on the tunnel; none for a member of a bridge. Of those of both
            kinds IPv6 is left out on a machine that has none.
        persist: keep the device when the descriptor is closed. Persistence that was there is not
            taken away, since whoever made it may need it.
        offload: the flags of `Tap.set_offload`.
        queue_length: frames that the kernel holds for us in each queue.
        queues: 1 to MAX_QUEUES; None: as many as help on this machine, or one where the kernel or a
            device that was made for one queue takes no more.
        mac: 6 bytes (see `stable_mac`); None keeps the kernel's choice, a new one each time.
        held: a descriptor of the device in which `misfit` found no fault, to use instead of a new
            one; from now on ours, also on failure.
    Raises:
        NotPermitted: CAP_NET_ADMIN or access to /dev/net/tun is missing.
        DeviceError: anything else; says what to do.
    """
    _check_name(name)
    kernel = kernel or Kernel()
    with ExitStack() as undo:
        fds, name = attach_queues(kernel, name, queues, held, undo)
        fd = fds[0]
        with explained(f"cannot set up {name}"):
            kernel.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", VIRTIO_NET_HEADER_BYTES))
        udp_super_frames = knows_udp_super_frames(fd, name, kernel)
        _set_offload(kernel, fd, name, offload if udp_super_frames else offload & ~OFFLOAD_UDP)
        with explained(f"cannot set up {name}"):
            index = kernel.index_of(name)
            netlink = undo.enter_context(kernel.netlink())
            before = netlink.link(index)
        left_out = [
            address
            for address in addresses
            if not _add_address(netlink, index, name, address, undo, _spared(address, addresses))
        ]
        _limit_segments(netlink, before, undo)
        _bring_up(netlink, before, mtu, queue_length, mac, undo)
        with explained(f"cannot set up {name}"):
            after = netlink.link(index)
            persistent = _is_persistent(kernel, fd)
            # Last, so that a device whose set-up failed goes away with its descriptor.
            if persist and not persistent:
                kernel.ioctl(fd, TUNSETPERSIST, 1)
                persistent = True
        undo.pop_all()
        netlink.close()
    _log.info(
        "TAP device is up",
        device=name,
        mtu=after.mtu,
        addresses=[str(address) for address in addresses],
        offload=bool(offload),
        queues=len(fds),
    )
    return Tap(
        fds=fds,
        name=name,
        index=index,
        mtu=after.mtu,
        mac=after.mac,
        persistent=persistent,
        udp_super_frames=udp_super_frames,
        _kernel=kernel,
        left_out=tuple(left_out),
    )


def misfit(
    fd: int,
    name: str,
    *,
    mtu: int,
    addresses: Sequence[Interface],
    queues: int | None = 1,
    kernel: Kernel | None = None,
) -> str | None:
    """Say why a descriptor that somebody kept is not this TAP device; None when it is.

    Args:
        name, mtu, addresses: as for `open_tap`; other addresses of the device do not matter.
        queues: as for `open_tap`; one descriptor is enough for the others to be opened anew.
    """
    kernel = kernel or Kernel()
    wanted = best_queues(kernel.cores()) if queues is None else queues
    pattern = re.escape(name).replace("%d", r"\d+")
    try:
        real, flags = attached(kernel, fd)
        if flags & KIND_MASK != KIND:
            return "it is of another kind"
        if not re.fullmatch(pattern, real):
            return f"it is {real}, not {name}"
        if wanted > 1 and not flags & IFF_MULTI_QUEUE:
            return f"{real} was made for one queue, not {wanted}"
        index = kernel.index_of(real)
        with kernel.netlink() as netlink:
            if (found := netlink.link(index).mtu) != mtu:
                return f"{real} has an MTU of {found}, not {mtu}"
            present = netlink.addresses()
            for address in addresses:
                if (index, address) not in present and not _spared(address, addresses):
                    return f"{real} does not have the address {address}"
    except (OSError, DeviceError) as error:
        return str(error)
    return None


def knows_udp_super_frames(fd: int, name: str, kernel: Kernel | None = None) -> bool:
    """Whether the kernel knows super-frames of datagrams, as `Tap.udp_super_frames`.

    Asked by switching them on at an attached descriptor: the kernel has no other answer.

    Raises:
        DeviceError: the device is gone.
    """
    with explained(f"cannot set offload of {name}"):
        try:
            (kernel or Kernel()).ioctl(fd, TUNSETOFFLOAD, OFFLOAD_TCP | OFFLOAD_UDP)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
    return True


def check_permission(name: str, kernel: Kernel | None = None) -> bool:
    """Find out at start whether this process may make or use the TAP device `name`.

    The device is attached for a moment, which is the only question that the kernel answers for a
    prepared device as well as for a new one. A device in use is not an error here.

    Args:
        name: of the device; empty: none is wanted, and nothing is asked of the kernel.
    Returns:
        Whether the kernel knows super-frames of datagrams, as `Tap.udp_super_frames`. Without a
        device every frame can be taken, as it is dropped.
    Raises:
        NotPermitted: CAP_NET_ADMIN or access to /dev/net/tun is missing.
        DeviceError: there is no /dev/net/tun.
    """
    if not name:
        return True
    kernel = kernel or Kernel()
    fd = open_clone(kernel)
    try:
        return knows_udp_super_frames(fd, attach(kernel, fd, name), kernel)
    except DeviceError as error:
        _log.debug("TAP device cannot be tried out", device=name, cause=error)
        return False
    finally:
        kernel.close(fd)


def _check_name(name: str) -> None:
    size = len(name.encode())
    if not 1 <= size <= MAX_NAME_BYTES:
        raise DeviceError(
            f'device name "{name}" has {size} bytes; 1 to {MAX_NAME_BYTES} are possible: '
            "choose another network.tap_device",
            errno.EINVAL,
        )
    if name in (".", "..") or any(c in "/:" or c.isspace() or not c.isprintable() for c in name):
        raise DeviceError(
            f"device name \"{name}\" is not possible (no blanks, '/' or ':'): "
            "choose another network.tap_device",
            errno.EINVAL,
        )


def _is_persistent(kernel: Kernel, fd: int) -> bool:
    return bool(attached(kernel, fd)[1] & IFF_PERSIST)


def _set_offload(kernel: Kernel, fd: int, name: str, flags: int) -> None:
    with explained(f"cannot set offload of {name}"):
        kernel.ioctl(fd, TUNSETOFFLOAD, flags)


def _spared(address: Interface, addresses: Sequence[Interface]) -> bool:
    """Whether a device is of use without this address: of IPv6, with another of IPv4."""
    return address.version == 6 and any(other.version == 4 for other in addresses)


def _add_address(
    netlink: Netlink, index: int, name: str, address: Interface, undo: ExitStack, spared: bool
) -> bool:
    """Give a device an address, unless it has it; False: there is no IPv6, and it is `spared`."""
    with explained(f"cannot give {name} the address {address}"):
        present = netlink.addresses()
        if (index, address) in present:
            return True
        for other, taken in present:
            if taken.ip == address.ip and other != index:
                _log.warning(
                    "address of the tunnel is taken by another interface of this host as well",
                    address=address.ip,
                    interface=netlink.link(other).name,
                    remedy="set network.local_ip to an address of a network of its own",
                )
        try:
            netlink.add_address(index, address)
        except OSError as error:
            if error.errno in _NO_IPV6 and spared:
                _log.limited(3600).warning(
                    "the tunnel has no IPv6 on this machine, where that is switched off",
                    device=name,
                    address=address,
                    remedy=f"none is needed for IPv4; sysctl net.ipv6.conf.{name}.disable_ipv6=0",
                )
                return False
            if error.errno == errno.EACCES and address.version == 6:
                raise DeviceError(
                    f"cannot give {name} the address {address}: IPv6 is switched off here; "
                    f"sysctl net.ipv6.conf.{name}.disable_ipv6=0 or use an IPv4 address",
                    errno.EACCES,
                ) from error
            raise
    undo.callback(_quietly, netlink.delete_address, index, address)
    return True


def remove_addresses(
    name: str, addresses: Sequence[Interface], kernel: Kernel | None = None
) -> None:
    """Take addresses from a device that nobody needs any more; what is not there is no matter."""
    kernel = kernel or Kernel()
    with suppress(OSError, DeviceError):
        index = kernel.index_of(name)
        with kernel.netlink() as netlink:
            present = netlink.addresses()
            for address in addresses:
                if (index, address) in present:
                    netlink.delete_address(index, address)


def _limit_segments(netlink: Netlink, before: Link, undo: ExitStack) -> None:
    """Have the kernel cut a super-frame itself that the peer would refuse.

    Only streams of less than 512 bytes a segment come to that, so a device that somebody without
    the right to change it is to use will do as it is: the data plane drops what is too much.
    """
    if before.most_segments <= MAX_SEGMENTS:
        return

    def limit(most_segments: int) -> None:
        netlink.set_link(before.index, most_segments=most_segments)

    try:
        limit(MAX_SEGMENTS)
    except OSError as error:
        _log.debug("super-frames not limited", device=before.name, cause=error)
    else:
        undo.callback(_quietly, limit, before.most_segments)


def _bring_up(
    netlink: Netlink,
    before: Link,
    mtu: int,
    queue_length: int,
    mac: bytes | None,
    undo: ExitStack,
) -> None:
    """Change what differs, in one request, the address of the link before it is up."""
    new_mtu = mtu if mtu != before.mtu else None
    new_queue = queue_length if queue_length != before.queue_length else None
    new_mac = mac if mac is not None and mac != before.mac else None
    if new_mtu is None and new_queue is None and before.up:
        if new_mac is not None:
            _try_mac(netlink, before, new_mac, undo)
        return
    undo.callback(
        _quietly,
        lambda: netlink.set_link(
            before.index,
            mtu=before.mtu,
            queue_length=before.queue_length,
            mac=before.mac,
            up=before.up,
        ),
    )
    with explained(f"cannot bring up {before.name} with MTU {mtu}"):
        netlink.set_link(before.index, mtu=new_mtu, queue_length=new_queue, mac=new_mac, up=True)


def _try_mac(netlink: Netlink, before: Link, mac: bytes, undo: ExitStack) -> None:
    """Give a device that is right otherwise its address, if we may: it works with its own, too."""
    try:
        netlink.set_link(before.index, mac=mac)
    except OSError as error:
        _log.warning(
            "the TAP device keeps its own MAC address",
            device=before.name,
            address=before.mac.hex(":"),
            cause=error.strerror or error,
            remedy=f"none is needed for two machines; among several peers know {mac.hex(':')} to be"
            f" of this one without being told: `ip link set {before.name} address {mac.hex(':')}`"
            " where the device is prepared",
        )
    else:
        undo.callback(_quietly, lambda: netlink.set_link(before.index, mac=before.mac))


def _quietly(call: Callable[..., None], *arguments: object) -> None:
    """Undo one step; the failure that made us undo is the one worth reporting."""
    with suppress(OSError):
        call(*arguments)
