"""The TAP device: a network interface of this host whose other end is a file descriptor.

Owns: opening the device with the virtio header, segmentation offload, MTU, queue length, MAC and
IP address, bringing it up, and taking all of it back when a step fails.
Does not know: frames. Who reads and writes `Tap.fds` must have stopped before `Tap.close()`.

Every read and write on a descriptor moves one frame behind a virtio_net_hdr of
VNET_HEADER_BYTES, whether offload is on or off.

A device may have several queues (IFF_MULTI_QUEUE), each with a descriptor of its own: the kernel
gives each flow to one of them. Everything else about it is the device's, whichever descriptor it
was said to. The device goes away, unless it is persistent, with the last of them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from shadowmesh.base import log
from shadowmesh.base.constants import MAX_QUEUES, VIRTIO_NET_HEADER_BYTES
from shadowmesh.base.errors import DeviceError, NotPermitted
from shadowmesh.device.netlink import Link, Netlink

_log = log.get("tap")

Interface = IPv4Interface | IPv6Interface

CLONE_DEVICE: Final = "/dev/net/tun"
#: frames that wait in the kernel for us. Each may be a 64 KiB super-frame, so this bounds the
#: delay that bulk traffic adds: 128 of them are 10 ms at 6 Gbit/s. The kernel's default is 1000.
#: Each queue of the device has so many.
QUEUE_LENGTH: Final = 128
#: on a machine with fewer cores a second queue would only take turns with the first
MIN_CORES_FOR_QUEUES: Final = 3
#: IFNAMSIZ less the terminating zero
MAX_NAME_BYTES: Final = 15
MAC_BYTES: Final = 6

# linux/if_tun.h
TUNSETIFF: Final = 0x400454CA
TUNSETPERSIST: Final = 0x400454CB
TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
TUNSETVNETHDRSZ: Final = 0x400454D8
IFF_TUN: Final = 0x0001
IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
IFF_PERSIST: Final = 0x0800
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08
TUN_F_USO4: Final = 0x20
TUN_F_USO6: Final = 0x40
OFFLOAD_CHECKSUM: Final = TUN_F_CSUM
OFFLOAD_TCP: Final = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
#: since Linux 6.2; the kernel takes both or neither
OFFLOAD_UDP: Final = TUN_F_USO4 | TUN_F_USO6
_IFREQ: Final = struct.Struct("=16sH22x")
#: what we make, and the flags by which another kind of device would differ
_KIND: Final = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
_KIND_MASK: Final = _KIND | IFF_TUN


class Kernel:
    """The system calls that this module makes: the seam at which tests put a fake."""

    def open(self) -> int:
        return os.open(CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: bytes | int) -> bytes | int:
        return fcntl.ioctl(fd, request, argument)

    def index_of(self, name: str) -> int:
        return socket.if_nametoindex(name)

    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    def netlink(self) -> Netlink:
        return Netlink()


@dataclass(slots=True, eq=False)
class Tap:
    """An open TAP device. Made by `open_tap`; the owner calls `close` once nobody uses `fds`.

    Attributes:
        fds: one for each queue, non-blocking; none after `close`.
        name: the real one, where a pattern such as "tap%d" was asked for.
        mac: 6 bytes, of the host's side.
        persistent: the device outlives `close`.
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
    address: Interface | None,
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
    addresses that it has besides `address` stay. On such a device nothing is changed that is right
    already, so one that root has prepared for a user opens without privileges.

    Args:
        name: 1 to 15 bytes; may be a pattern such as "tap%d".
        mtu: bytes of payload, without the 14 bytes of the Ethernet header.
        address: of this host on the tunnel; None for a member of a bridge.
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
        fds, name = _attach_queues(kernel, name, queues, held, undo)
        fd = fds[0]
        with _explain(f"cannot set up {name}"):
            kernel.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", VIRTIO_NET_HEADER_BYTES))
        udp_super_frames = knows_udp_super_frames(fd, name, kernel)
        _set_offload(kernel, fd, name, offload if udp_super_frames else offload & ~OFFLOAD_UDP)
        with _explain(f"cannot set up {name}"):
            index = kernel.index_of(name)
            netlink = undo.enter_context(kernel.netlink())
            before = netlink.link(index)
        if address is not None:
            _add_address(netlink, index, name, address, undo)
        _bring_up(netlink, before, mtu, queue_length, mac, undo)
        with _explain(f"cannot set up {name}"):
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
        address=address,
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
    )


def misfit(
    fd: int,
    name: str,
    *,
    mtu: int,
    address: Interface | None,
    queues: int | None = 1,
    kernel: Kernel | None = None,
) -> str | None:
    """Say why a descriptor that somebody kept is not this TAP device; None when it is.

    Args:
        name, mtu, address: as for `open_tap`; other addresses of the device do not matter.
        queues: as for `open_tap`; one descriptor is enough for the others to be opened anew.
    """
    kernel = kernel or Kernel()
    wanted = best_queues(kernel.cores()) if queues is None else queues
    pattern = re.escape(name).replace("%d", r"\d+")
    try:
        real, flags = _attached(kernel, fd)
        if flags & _KIND_MASK != _KIND:
            return "it is of another kind"
        if not re.fullmatch(pattern, real):
            return f"it is {real}, not {name}"
        if wanted > 1 and not flags & IFF_MULTI_QUEUE:
            return f"{real} was made for one queue, not {wanted}"
        index = kernel.index_of(real)
        with kernel.netlink() as netlink:
            if (found := netlink.link(index).mtu) != mtu:
                return f"{real} has an MTU of {found}, not {mtu}"
            if address is not None and (index, address) not in netlink.addresses():
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
    with _explain(f"cannot set offload of {name}"):
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

    Returns:
        Whether the kernel knows super-frames of datagrams, as `Tap.udp_super_frames`.
    Raises:
        NotPermitted: CAP_NET_ADMIN or access to /dev/net/tun is missing.
        DeviceError: there is no /dev/net/tun.
    """
    kernel = kernel or Kernel()
    fd = _open_clone(kernel)
    try:
        return knows_udp_super_frames(fd, _attach(kernel, fd, name), kernel)
    except DeviceError as error:
        _log.debug("TAP device cannot be tried out", device=name, cause=str(error))
        return False
    finally:
        kernel.close(fd)


def stable_mac(seed: bytes) -> bytes:
    """Derive a unicast, locally administered MAC from something that stays, such as a public key.

    With the kernel's random one the neighbours would send to the old address for seconds after
    each restart of the daemon, until their ARP entries run out.
    """
    digest = hashlib.blake2s(seed, digest_size=MAC_BYTES, person=b"sm-mac").digest()
    return bytes([(digest[0] | 0x02) & 0xFE]) + digest[1:]


def _check_name(name: str) -> None:
    size = len(name.encode())
    if not 1 <= size <= MAX_NAME_BYTES:
        raise DeviceError(
            f"device name {name!r} has {size} bytes; 1 to {MAX_NAME_BYTES} are possible: "
            "choose another network.tap_device",
            errno.EINVAL,
        )
    if name in (".", "..") or any(c in "/:" or c.isspace() or not c.isprintable() for c in name):
        raise DeviceError(
            f"device name {name!r} is not possible (no blanks, '/' or ':'): "
            "choose another network.tap_device",
            errno.EINVAL,
        )


def _open_clone(kernel: Kernel) -> int:
    try:
        return kernel.open()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise DeviceError(
                f"cannot open {CLONE_DEVICE}: {error.strerror}; load the driver (modprobe tun) or, "
                "in a container, pass the device in (mknod /dev/net/tun c 10 200)",
                error.errno,
            ) from error
        with _explain(f"cannot open {CLONE_DEVICE}"):
            raise


def best_queues(cores: int) -> int:
    """How many queues help on a machine with so many cores."""
    return min(cores, MAX_QUEUES) if cores >= MIN_CORES_FOR_QUEUES else 1


def _attach_queues(
    kernel: Kernel, name: str, queues: int | None, held: int | None, undo: ExitStack
) -> tuple[tuple[int, ...], str]:
    """Open the device with so many queues (None: see `open_tap`); descriptors and name."""
    wanted = best_queues(kernel.cores()) if queues is None else queues
    first = _open_clone(kernel) if held is None else held
    undo.callback(kernel.close, first)
    if held is None:
        name, multi = _attach_first(kernel, first, name, multi=wanted > 1)
    else:
        name, flags = _attached(kernel, held)
        multi = bool(flags & IFF_MULTI_QUEUE)
    if wanted > 1 and not multi:
        if queues is not None:
            raise DeviceError(
                f"cannot open {name} with {wanted} queues: it was made for one; delete it (ip link "
                f"delete {name}), make it with `ip tuntap add dev {name} mode tap multi_queue`, or "
                "set network.queues to 1",
                errno.EINVAL,
            )
        _log.warning(
            "TAP device takes one queue only, more cores will not help",
            device=name,
            remedy=f"delete it and make it with `ip tuntap add dev {name} mode tap multi_queue`, or "
            "set network.queues to 1",
        )
        wanted = 1
    fds = [first]
    while len(fds) < wanted:
        fds.append(_open_clone(kernel))
        undo.callback(kernel.close, fds[-1])
        _attach(kernel, fds[-1], name, multi=True, ours=True)
    return tuple(fds), name


def _attach_first(kernel: Kernel, fd: int, name: str, *, multi: bool) -> tuple[str, bool]:
    """Make or take over the device; its name, and whether it may have several queues.

    That is settled when a device is made, and it opens only the way it was made: one that exists is
    opened as it is, whatever `multi` says.
    """
    try:
        return _attach(kernel, fd, name, multi=multi), multi
    except _OtherKind as error:
        try:
            return _attach(kernel, fd, name, multi=not multi), not multi
        except _OtherKind:
            raise error from None


class _OtherKind(DeviceError):
    """An interface of that name exists and cannot be opened in this way."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"cannot open {name}: an interface of that name exists and is not a TAP device; "
            "choose another network.tap_device",
            errno.EINVAL,
        )


def _attach(kernel: Kernel, fd: int, name: str, *, multi: bool = False, ours: bool = False) -> str:
    """Bind the descriptor to the interface, made when it does not exist; return its name.

    Args:
        multi: as one queue of a device that may have several.
        ours: the device has queues of ours already.
    Raises:
        _OtherKind: the interface is no TAP, or one with several queues (multi: with one).
    """
    flags = _KIND
    if multi:
        flags |= IFF_MULTI_QUEUE
        if not ours and _is_taken(kernel, name):
            # The kernel would let us in beside the other process, and give us half of its frames.
            raise _taken(name)
    try:
        answer = kernel.ioctl(fd, TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _taken(name) from error
        if error.errno == errno.EINVAL:
            raise _OtherKind(name) from error
        with _explain(f"cannot open {name}"):
            raise
    if not isinstance(answer, bytes):
        raise DeviceError(f"cannot open {name}: no interface came back")
    return str(_IFREQ.unpack(answer)[0].rstrip(b"\0").decode())


def _taken(name: str) -> DeviceError:
    return DeviceError(
        f"cannot open {name}: another process has it; end that or choose another "
        "network.tap_device",
        errno.EBUSY,
    )


def _is_taken(kernel: Kernel, name: str) -> bool:
    """Whether somebody holds a queue of the device; False when there is none of that name."""
    try:
        index = kernel.index_of(name)
    except OSError:
        return False
    with _explain(f"cannot open {name}"), kernel.netlink() as netlink:
        return bool(netlink.link(index).tun_queues)


def _attached(kernel: Kernel, fd: int) -> tuple[str, int]:
    """Return name and flags of the device to which a descriptor belongs."""
    answer = kernel.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size))
    if not isinstance(answer, bytes):
        raise DeviceError("the kernel does not name the device")
    name, flags = _IFREQ.unpack(answer)
    return str(name.rstrip(b"\0").decode()), int(flags)


def _is_persistent(kernel: Kernel, fd: int) -> bool:
    return bool(_attached(kernel, fd)[1] & IFF_PERSIST)


def _set_offload(kernel: Kernel, fd: int, name: str, flags: int) -> None:
    with _explain(f"cannot set offload of {name}"):
        kernel.ioctl(fd, TUNSETOFFLOAD, flags)


def _add_address(
    netlink: Netlink, index: int, name: str, address: Interface, undo: ExitStack
) -> None:
    with _explain(f"cannot give {name} the address {address}"):
        present = netlink.addresses()
        if (index, address) in present:
            return
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
            if error.errno == errno.EACCES and address.version == 6:
                raise DeviceError(
                    f"cannot give {name} the address {address}: IPv6 is switched off here; "
                    f"sysctl net.ipv6.conf.{name}.disable_ipv6=0 or use an IPv4 address",
                    errno.EACCES,
                ) from error
            raise
    undo.callback(_quietly, netlink.delete_address, index, address)


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
    if new_mtu is None and new_queue is None and new_mac is None and before.up:
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
    with _explain(f"cannot bring up {before.name} with MTU {mtu}"):
        netlink.set_link(before.index, mtu=new_mtu, queue_length=new_queue, mac=new_mac, up=True)


def _quietly(call: Callable[..., None], *arguments: object) -> None:
    """Undo one step; the failure that made us undo is the one worth reporting."""
    with suppress(OSError):
        call(*arguments)


@contextmanager
def _explain(what: str) -> Iterator[None]:
    """Turn an OSError into one of ours that says what to do."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)  # the socket module raises some without an errno
        if error.errno in (errno.EPERM, errno.EACCES):
            raise NotPermitted(
                f"{what}: {why}; run as root or with CAP_NET_ADMIN "
                "(systemd: AmbientCapabilities=CAP_NET_ADMIN)"
            ) from error
        raise DeviceError(f"{what}: {why}", error.errno or 0) from error
