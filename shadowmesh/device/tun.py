"""The kernel's driver of TAP devices: what is said to it through a descriptor of /dev/net/tun.

Owns: the numbers of linux/if_tun.h, the few system calls (`Kernel`, the seam at which tests put a
fake), and what its refusals mean to an operator. Does not know: which device is wanted, how many
queues it has, how it is set up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shadowmesh.base.errors import DeviceError, NotPermitted
from shadowmesh.device.netlink import Netlink

CLONE_DEVICE: Final = "/dev/net/tun"
#: major and minor: Documentation/admin-guide/devices.txt
CLONE_NUMBERS: Final = (10, 200)
_GET_DRIVER: Final = (
    "load the driver (modprobe tun) or, in a container, pass the device in (--device /dev/net/tun)"
)

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
#: linux/if.h, struct ifreq: name and flags
IFREQ: Final = struct.Struct("=16sH22x")
#: what we make, and the flags by which another kind of device would differ
KIND: Final = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
KIND_MASK: Final = KIND | IFF_TUN


class Kernel:
    """The system calls that a TAP device takes: the seam at which tests put a fake."""

    def is_driver(self) -> bool:
        """Whether the clone device is the driver's node. Raises OSError when there is nothing."""
        status = Path(CLONE_DEVICE).stat()
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(*CLONE_NUMBERS)

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


def open_clone(kernel: Kernel) -> int:
    """Return a descriptor of the driver that belongs to no device yet.

    Raises:
        NotPermitted: access to /dev/net/tun is missing.
        DeviceError: the driver is missing, something else has its name, or anything else.
    """
    try:
        # Before it is opened: to open another device can be to use it.
        if not kernel.is_driver():
            raise DeviceError(
                f"{CLONE_DEVICE} is not the driver of TAP devices (character device"
                f" {CLONE_NUMBERS[0]}:{CLONE_NUMBERS[1]}); remove it, then {_GET_DRIVER}"
            )
        return kernel.open()
    except OSError as error:
        problem = f"cannot open {CLONE_DEVICE}: {error.strerror}"
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO):
            raise DeviceError(f"{problem}; {_GET_DRIVER}", error.errno) from error
        if error.errno == errno.EACCES:
            raise NotPermitted(
                f"{problem}; run as root, or `chmod 666 {CLONE_DEVICE}` as udev does it: the right"
                " to make a device is CAP_NET_ADMIN"
            ) from error
        if error.errno == errno.EPERM:
            raise NotPermitted(
                f"{problem}; let the container have it (--device {CLONE_DEVICE}), or the unit"
                f" (DeviceAllow={CLONE_DEVICE} rw)"
            ) from error
        with explained(f"cannot open {CLONE_DEVICE}"):
            raise


def attached(kernel: Kernel, fd: int) -> tuple[str, int]:
    """Return name and flags of the device to which a descriptor belongs."""
    answer = kernel.ioctl(fd, TUNGETIFF, bytes(IFREQ.size))
    if not isinstance(answer, bytes):
        raise DeviceError("the kernel does not name the device")
    name, flags = IFREQ.unpack(answer)
    return str(name.rstrip(b"\0").decode()), int(flags)


@contextmanager
def explained(what: str) -> Iterator[None]:
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
