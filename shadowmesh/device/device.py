"""The TAP device of this daemon: opened when it is wanted, made again when somebody deletes it.

Owns: the open `Tap`, its place in the data plane and in the descriptor store, and the greenlet that
hears of its loss. Does not know: why the device is wanted, sessions, the peer.

::

    adopt() <-- descriptor store: the device of the last run, not used before open()

    open() --> tap.open_tap --> plane.attach_tap          kernel: `ip link delete tap0`
                                plane.event_fd  <-------- the TAP threads give up
    renew() <-- the owner <-- on_lost <-- _watch

With an empty `network.tap_device` there is none: open() does nothing, and the plane has no TAP
threads and drops what comes. Whoever holds the device need not know.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import gevent

from shadowmesh.base import log
from shadowmesh.base.errors import DeviceError, DeviceUnavailable, NotPermitted
from shadowmesh.device.fdstore import NO_STORE, TAP
from shadowmesh.device.tap import (
    OFFLOAD_CHECKSUM,
    OFFLOAD_TCP,
    OFFLOAD_UDP,
    knows_udp_super_frames,
    misfit,
    open_tap,
    remove_addresses,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh._fastpath import DataPlane
    from shadowmesh.config import NetworkSection
    from shadowmesh.device.fdstore import FdStore
    from shadowmesh.device.tap import Tap

#: a device that went away is made again so often, so far apart: within a second it is back or the
#: tunnel is given up
RENEW_ATTEMPTS: Final = 5
RENEW_PAUSE_S: Final = 0.2
#: why the threads have no real-time priority, by what the data plane says
_NOT_REALTIME: Final = {
    errno.EPERM: "not permitted: the service needs LimitRTPRIO=1, another program CAP_SYS_NICE",
    errno.ETIME: "given up, because a thread did not rest once in the time of LimitRTTIME",
}

_log = log.get("device")


class Device:
    """The device, open or not.

    Attributes:
        tap: None while closed, and always without a device.
        udp_super_frames: the kernel takes super-frames of datagrams.
        problem: why the last attempt to open it failed; None when it did not.
    """

    def __init__(
        self,
        network: NetworkSection,
        mac: bytes,
        plane: DataPlane,
        *,
        store: FdStore = NO_STORE,
        udp_super_frames: bool = False,
        open_tap: Callable[..., Tap] = open_tap,
    ) -> None:
        """Args: mac: 6 bytes, of the host's side."""
        self.tap: Tap | None = None
        self.udp_super_frames = udp_super_frames
        self.problem: str | None = None
        self._network = network
        self._queues = None if network.queues == "auto" else network.queues
        self._mac = mac
        self._plane = plane
        self._store = store
        self._open_tap = open_tap
        #: of the last run's device, until open() or close()
        self._held: int | None = None
        self._offload = self._offload_before()
        self._watcher: gevent.Greenlet | None = None

    def start(self, on_lost: Callable[[], None]) -> None:
        """Begin to listen for the loss of the device, which on_lost answers with renew()."""
        self._watcher = gevent.spawn(self._watch, on_lost)

    def stop(self) -> None:
        """Close the device and stop listening."""
        if self._watcher is not None:
            self._watcher.kill()
        self.close()

    def adopt(self) -> None:
        """Take over the device of the last run if it is still the one that is configured.

        It stays as it is, addresses and bridge included, until open() or close().
        """
        network = self._network
        # Of a run with a device nobody claims it, and so the store lets it go.
        fd = None if network.headless else self._store.take(TAP)
        if fd is None:
            return
        why = misfit(
            fd,
            network.tap_device,
            mtu=network.mtu,
            addresses=network.local_ip,
            queues=self._queues,
        )
        if why is None:
            self._held = fd
            self.udp_super_frames = knows_udp_super_frames(fd, network.tap_device)
            _log.info("the TAP device of the last run is taken over", device=network.tap_device)
            return
        _log.info("the TAP device of the last run does not fit, making another", cause=why)
        os.close(fd)
        self._store.forget(TAP)

    def open(self) -> None:
        """Open the device and start the data plane on it, unless that is done.

        Raises:
            DeviceUnavailable: it cannot be done; nothing is left behind.
        """
        network = self._network
        if self.tap is not None or network.headless:
            return
        held, self._held = self._held, None
        try:
            tap = self._open_tap(
                network.tap_device,
                mtu=network.mtu,
                addresses=network.local_ip,
                persist=network.persist_tap,
                offload=self._offload,
                queues=self._queues,
                mac=self._mac,
                held=held,
            )
            try:
                self._plane.attach_tap(tap.fds, tap.mtu, tap.udp_super_frames)
            except BaseException:
                tap.close()
                raise
        except (DeviceError, NotPermitted) as error:
            self._store.forget(TAP)
            self.problem = str(error)
            raise DeviceUnavailable(str(error)) from error
        self.tap, self.problem = tap, None
        if self.realtime_problem is not None:
            _log.warning(
                "the threads that carry frames have no real-time priority",
                cause=self.realtime_problem,
                remedy="allow it, or set network.realtime: false",
            )
        self.udp_super_frames = tap.udp_super_frames
        self._store.keep(TAP, tap.fds[0])

    def close(self) -> None:
        """Stop the data plane on the device and let go of it; harmless when it is closed."""
        tap, self.tap = self.tap, None
        held, self._held = self._held, None
        self._offload = self._offload_before()
        if tap is not None:
            self._plane.detach_tap()
            tap.close()
        if held is not None:
            os.close(held)
        self._store.forget(TAP)

    def disown(self) -> None:
        """Close the device; one that stays although we let go of it keeps no address of ours.

        For a daemon that is somebody else from now on: another's addresses would lead to it.
        """
        self.close()
        network = self._network
        if network.persist_tap:
            remove_addresses(network.tap_device, network.local_ip)

    def offload(self, wanted: bool, *, udp: bool) -> None:
        """Say what the kernel may hand us, now and after renew().

        Args:
            wanted: unfinished checksums and super-frames of streams.
            udp: of datagrams, too.
        """
        self._offload = self._allowed(OFFLOAD_TCP | (OFFLOAD_UDP if udp else 0)) if wanted else 0
        if self.tap is not None:
            try:
                self.tap.set_offload(self._offload)
            except DeviceError as error:
                # Gone this moment: on_lost is about to be called, and renew() sets it again.
                _log.debug("offload not set", cause=error)

    def peer_is_there(self) -> None:
        """Say that frames have somewhere to go: what the host asked before, nobody has heard."""
        if self.tap is not None:
            try:
                self.tap.ask_again()
            except DeviceError as error:
                # They are asked again in a second, by the kernel itself.
                _log.debug("neighbours are not asked at once", cause=error)

    def _offload_before(self) -> int:
        """Return the flags until the peer is known: they are right for most."""
        return self._allowed(OFFLOAD_TCP) if self._network.offload else 0

    def _allowed(self, flags: int) -> int:
        without = self._plane.without
        if "csum" in without:
            return 0
        return flags & OFFLOAD_CHECKSUM if "tso" in without else flags

    @property
    def realtime_problem(self) -> str | None:
        """Why the threads do not run before other programs although they are to."""
        code = self._plane.realtime_error()
        return _NOT_REALTIME.get(code, os.strerror(code)) if code else None

    @property
    def lost(self) -> bool:
        """Whether the open device has gone from under us."""
        return self.tap is not None and self._plane.device_error() != 0

    def renew(self) -> None:
        """Make a lost device again; takes up to a second.

        Raises:
            DeviceUnavailable: it could not be done; the device is closed.
        """
        for attempt in range(RENEW_ATTEMPTS):
            if attempt:
                gevent.sleep(RENEW_PAUSE_S)
            offload = self._offload
            self.close()
            self._offload = offload
            try:
                self.open()
            except DeviceUnavailable as error:
                failure = error
            else:
                return
        raise DeviceUnavailable(f"the TAP device went away and cannot be made again: {failure}")

    def _watch(self, on_lost: Callable[[], None]) -> None:
        """Tell the owner whenever a TAP thread gives up; ends when killed by stop()."""
        hub = gevent.get_hub()
        watcher = hub.loop.io(self._plane.event_fd, 1)
        try:
            while True:
                hub.wait(watcher)
                if self._plane.device_error():
                    on_lost()
        finally:
            watcher.close()
