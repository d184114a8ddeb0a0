"""The queues of a TAP device: a descriptor for each, attached to one device.

Owns: how many queues help on a machine, binding a descriptor to a device that is made or taken
over by that, and who is kept out of one that is in use. Does not know: what is set at the device
(`tap`), frames.

A device may have several queues (IFF_MULTI_QUEUE): the kernel gives each flow to one of them.
Whether it may is settled when it is made.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from typing import Final

from shadowmesh.base import log
from shadowmesh.base.constants import MAX_QUEUES
from shadowmesh.base.errors import DeviceError
from shadowmesh.device.tun import (
    IFF_MULTI_QUEUE,
    IFREQ,
    KIND,
    TUNSETIFF,
    Kernel,
    attached,
    explained,
    open_clone,
)

_log = log.get("tap")

#: on a machine with fewer cores a second queue would only take turns with the first
MIN_CORES_FOR_QUEUES: Final = 3


def best_queues(cores: int) -> int:
    """How many queues help on a machine with so many cores."""
    return min(cores, MAX_QUEUES) if cores >= MIN_CORES_FOR_QUEUES else 1


def attach_queues(
    kernel: Kernel, name: str, queues: int | None, held: int | None, undo: ExitStack
) -> tuple[tuple[int, ...], str]:
    """Make or take over the device, with so many queues; return their descriptors and its name.

    Args:
        queues, held: as for `open_tap`.
        undo: gets what closes each descriptor, `held` too.
    Raises:
        NotPermitted, DeviceError: as `open_tap`.
    """
    wanted = best_queues(kernel.cores()) if queues is None else queues
    first = open_clone(kernel) if held is None else held
    undo.callback(kernel.close, first)
    if held is None:
        name, multi = _attach_first(kernel, first, name, multi=wanted > 1)
    else:
        name, flags = attached(kernel, held)
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
        fds.append(open_clone(kernel))
        undo.callback(kernel.close, fds[-1])
        attach(kernel, fds[-1], name, multi=True, ours=True)
    return tuple(fds), name


def _attach_first(kernel: Kernel, fd: int, name: str, *, multi: bool) -> tuple[str, bool]:
    """Make or take over the device; its name, and whether it may have several queues.

    That is settled when a device is made, and it opens only the way it was made: one that exists is
    opened as it is, whatever `multi` says.
    """
    try:
        return attach(kernel, fd, name, multi=multi), multi
    except _OtherKind as error:
        try:
            return attach(kernel, fd, name, multi=not multi), not multi
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


def attach(kernel: Kernel, fd: int, name: str, *, multi: bool = False, ours: bool = False) -> str:
    """Bind the descriptor to the interface, made when it does not exist; return its name.

    Args:
        multi: as one queue of a device that may have several.
        ours: the device has queues of ours already.
    Raises:
        DeviceError: another process has it, or (`_OtherKind`) the interface is no TAP, or one with
            several queues (multi: with one).
    """
    flags = KIND
    if multi:
        flags |= IFF_MULTI_QUEUE
        if not ours and _is_taken(kernel, name):
            # The kernel would let us in beside the other process, and give us half of its frames.
            raise _taken(name)
    try:
        answer = kernel.ioctl(fd, TUNSETIFF, IFREQ.pack(name.encode(), flags))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _taken(name) from error
        if error.errno == errno.EINVAL:
            raise _OtherKind(name) from error
        with explained(f"cannot open {name}"):
            raise
    if not isinstance(answer, bytes):
        raise DeviceError(f"cannot open {name}: no interface came back")
    return str(IFREQ.unpack(answer)[0].rstrip(b"\0").decode())


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
    with explained(f"cannot open {name}"), kernel.netlink() as netlink:
        return bool(netlink.link(index).tun_queues)
