"""The Python face of the data plane: the classes that own its memory, thread and keys.

    TAP --read--> slots                                             fast/outbound.pxd
    slots --seal--> ring --outgoing()--> TLS                        fast/link_out.pxd
    TLS --recv_buffer()--> parser --open--> TAP                     fast/inbound.pxd
    slots --seal--> trains --sendmmsg--> UDP socket                 fast/udp_out.pxd
    UDP socket --recvmmsg--> open --> TAP                           fast/udp_in.pxd

The work is done by the ``nogil`` functions of ``fast/*.pxd``; here arguments are checked, memory is
owned and codes become exceptions. Everything in this module is called from the hub's thread; the
TAP and UDP threads are bare POSIX threads that never take the GIL. `top -H` shows them as sm-tap-0
(one for each queue of the device) and sm-udp.

Knows nothing of configuration, HTTP, sockets or logging. The state is drawn in ``fast/plane.pxd``.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from .fast.base cimport *
from .fast.aead cimport *
from .fast.frame cimport *
from .fast.wsframe cimport *
from .fast.ring cimport *
from .fast.replay cimport *
from .fast.backlog cimport *
from .fast.datagram cimport *
from .fast.session cimport *
from .fast.peers cimport *
from .fast.tap cimport *
from .fast.plane cimport *
from .fast.link_out cimport *
from .fast.outbound cimport *
from .fast.inbound cimport *
from .fast.deliver cimport *
from .fast.offload cimport join_reset
from .fast.udp_out cimport *
from .fast.udp_in cimport *
from .fast.capture cimport *
from .fast.steer cimport *

import os
import socket

from shadowmesh.base.errors import DeviceError, LocalProtocolError, RemoteProtocolError

if sodium_init() < 0:
    raise ImportError("libsodium could not be initialised: the system gives no randomness")

#: In the order of the DROP_ reasons in fast/frame.pxd.
DROP_NAMES = (
    "not_connected",
    "link_stalled",
    "link_lost",
    "key_expired",
    "seal_refused",
    "runt",
    "too_long",
    "bad_offload",
    "multicast_source",
    "tap_down",
    "tap_full",
    "tap_refused",
    "tap_gone",
    "udp_send",
    "queue_full",
)
#: In the order of the REFUSED_ reasons in fast/datagram.pxd: datagrams that were dropped.
REFUSAL_NAMES = (
    "unknown",
    "key_id",
    "expired",
    "replay",
    "forged",
    "inner_type",
    "fragment",
    "signals_full",
)
#: In the order of the UDP_ errors in fast/datagram.pxd.
UDP_ERROR_NAMES = (
    "EAGAIN",
    "EMSGSIZE",
    "EPERM",
    "ENETUNREACH",
    "ECONNREFUSED",
    "ENOBUFS",
    "other",
)
cdef size_t PIPE_BYTES = (
    RING_BYTES + RING_MESSAGES * sizeof(ring_entry_t) + HEADROOM + PARSER_BYTES)
#: The smallest datagram that a path must carry: what every IPv6 link does, less its headers.
MIN_UDP_PAYLOAD = 1280 - 48
#: Optimisations that a developer can do without, to see what each of them brings; what they mean
#: is written in shadowmesh/service/switches.py.
SWITCHES = ("tso", "csum", "gso", "gro", "join", "batch")
CIPHER_NAMES = {"chacha20-poly1305": CIPHER_CHACHA20_POLY1305, "aegis-256": CIPHER_AEGIS256}

_WHY = {
    E_PROTOCOL: "broke the WebSocket protocol",
    E_UNSUPPORTED: "sent a text message; only binary ones are taken",
    E_POLICY: "sent more fragments or control frames than are allowed",
    E_TOO_BIG: "sent a message over the size limit",
    E_RECORD: "sent a record that did not verify",
}
_WEBSOCKET_EVENTS = {OP_PING: "ping", OP_PONG: "pong", OP_CLOSE: "close"}


def build_info() -> dict:
    """Return what the extension was built with.

    Returns:
        ``libsodium``: its version; ``aegis256``: compiled in and fast on this processor.
    """
    return {
        "libsodium": sodium_version_string().decode("ascii"),
        "aegis256": bool(sm_aegis256_usable()),
    }


cdef void *tap_thread(void *argument) noexcept nogil:
    cdef tap_thread_t *started = <tap_thread_t *>argument
    cdef char name[16]
    memcpy(name, <const char *>b"sm-tap-0", 9)
    name[7] += <char>started.queue.index
    pthread_setname_np(pthread_self(), name)
    run_outbound(started.plane, started.queue)
    return NULL


cdef void *udp_thread(void *argument) noexcept nogil:
    pthread_setname_np(pthread_self(), <const char *>b"sm-udp")
    run_inbound_udp(<plane_t *>argument)
    return NULL


cdef int store_address(address_t *address, str host, int port, int family) except -1:
    # `family` is the socket's: a dual-stack one takes IPv4 addresses in their mapped form.
    cdef sockaddr_in *v4 = <sockaddr_in *>&address.storage
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&address.storage
    cdef bytes raw
    memset(address, 0, sizeof(address_t))
    if not 0 < port <= 65535:
        raise ValueError(f"port {port} is outside 1..65535")
    plain, _, zone = host.partition("%")
    if family == socket.AF_INET:
        raw = socket.inet_pton(socket.AF_INET, plain)
        v4.sin_family = AF_INET
        sm_store16be(<uint8_t *>&v4.sin_port, <uint16_t>port)
        memcpy(&v4.sin_addr, <const uint8_t *>raw, 4)
        address.length = sizeof(sockaddr_in)
        return 0
    raw = socket.inet_pton(socket.AF_INET6, plain if ":" in plain else f"::ffff:{plain}")
    v6.sin6_family = AF_INET6
    sm_store16be(<uint8_t *>&v6.sin6_port, <uint16_t>port)
    memcpy(&v6.sin6_addr, <const uint8_t *>raw, 16)
    if zone:
        v6.sin6_scope_id = socket.if_nametoindex(zone)
    address.length = sizeof(sockaddr_in6)
    return 0


cdef tuple load_address(const address_t *address):
    # (host, port); an IPv4-mapped address as plain IPv4.
    cdef const sockaddr_in *v4 = <const sockaddr_in *>&address.storage
    cdef const sockaddr_in6 *v6 = <const sockaddr_in6 *>&address.storage
    cdef bytes raw
    if v4.sin_family == AF_INET:
        raw = (<const uint8_t *>&v4.sin_addr)[:4]
        return socket.inet_ntop(socket.AF_INET, raw), sm_load16be(<const uint8_t *>&v4.sin_port)
    raw = (<const uint8_t *>&v6.sin6_addr)[:16]
    port = sm_load16be(<const uint8_t *>&v6.sin6_port)
    if raw[:12] == b"\0" * 10 + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, raw[12:]), port
    host = socket.inet_ntop(socket.AF_INET6, raw)
    return (f"{host}%{v6.sin6_scope_id}" if v6.sin6_scope_id else host), port


cdef class DataPlane:
    """Sessions, counters and the threads of the TAP's queues and the UDP socket. One per daemon.

    ``event_fd`` becomes readable when a TAP thread has given up; ask :meth:`device_error`.

    Attributes:
        without: the SWITCHES that are off. The plane sees to ``gso``, ``join`` and ``batch``; who
            opens its device and its socket asks for the others.
    """

    cdef readonly object without
    cdef plane_t *plane

    def __cinit__(self, without=()):
        self.without = frozenset(without)
        if not self.without <= set(SWITCHES):
            raise ValueError(f"{sorted(self.without)} are not all of {SWITCHES}")
        self.plane = <plane_t *>calloc(1, sizeof(plane_t))
        if self.plane == NULL:
            raise MemoryError
        self.plane.tap.batch_frames = 1 if "batch" in self.without else BATCH_FRAMES
        self.plane.udp.batch_messages = 1 if "batch" in self.without else INBOX_MESSAGES
        self.plane.udp.no_joining = "join" in self.without
        self.plane.peers.epochs = <epoch_t *>calloc(MAX_EPOCHS, sizeof(epoch_t))
        if self.plane.peers.epochs == NULL:
            raise MemoryError
        self.plane.peers.active_session = -1
        self.plane.tap.queue_count = 1
        self.plane.tap.mtu_bytes = 65535
        self.plane.udp.fd = -1
        self.plane.wss.mask_used = sizeof(self.plane.wss.mask_pool)
        pthread_mutex_init(&self.plane.tx_lock, NULL)
        pthread_mutex_init(&self.plane.rx_lock, NULL)
        self.plane.tap.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.plane.tap.stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.plane.udp.stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.plane.udp.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.plane.capture.wakeup_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        for i in range(MAX_QUEUES):
            self.plane.threads.tap[i].plane = self.plane
            self.plane.threads.tap[i].queue = &self.plane.tap.queues[i]
            self.plane.tap.queues[i].index = i
            self.plane.tap.queues[i].tap_fd = -1
            self.plane.tap.queues[i].space_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if min(self._descriptors()) < 0:
            raise OSError(errno, os.strerror(errno))

    cdef list _descriptors(self):
        return [self.plane.tap.event_fd, self.plane.tap.stop_fd, self.plane.udp.stop_fd,
                self.plane.udp.event_fd, self.plane.capture.wakeup_fd,
                *[self.plane.tap.queues[i].space_fd for i in range(MAX_QUEUES)]]

    def __dealloc__(self):
        if self.plane == NULL:
            return
        self._stop_tap_threads()
        self._stop_udp_thread()
        self._free_boxes()
        self._free_capture()
        if self.plane.peers.epochs != NULL:
            sodium_memzero(self.plane.peers.epochs, MAX_EPOCHS * sizeof(epoch_t))
            free(self.plane.peers.epochs)
        for i in range(MAX_QUEUES):
            backlog_free(self.plane.tap.queues[i].backlog)
        for fd in self._descriptors():
            if fd > 0:
                close(fd)
        pthread_mutex_destroy(&self.plane.tx_lock)
        pthread_mutex_destroy(&self.plane.rx_lock)
        free(self.plane)

    cdef bint _provide_queues(self) noexcept:
        # What the threads of queue_count queues work in; False: no memory.
        cdef queue_t *queue
        for i in range(self.plane.tap.queue_count):
            queue = &self.plane.tap.queues[i]
            if queue.backlog == NULL:
                queue.backlog = backlog_new()
            if queue.outbox == NULL and self.plane.udp.inbox != NULL:
                queue.outbox = <outbox_t *>calloc(1, sizeof(outbox_t))
            if queue.backlog == NULL or (queue.outbox == NULL and self.plane.udp.inbox != NULL):
                return False
        return True

    cdef bint _start_tap_threads(self) noexcept:
        # All of them or none: False.
        for i in range(self.plane.tap.queue_count):
            if pthread_create(&self.plane.threads.tap[i].thread, NULL, tap_thread,
                              &self.plane.threads.tap[i]) != 0:
                self._stop_tap_threads()
                return False
            self.plane.threads.tap_running += 1
        return True

    cdef void _stop_tap_threads(self) noexcept:
        if self.plane.threads.tap_running:
            signal_fd(self.plane.tap.stop_fd)
            with nogil:
                for i in range(self.plane.threads.tap_running):
                    pthread_join(self.plane.threads.tap[i].thread, NULL)
            drain_fd(self.plane.tap.stop_fd)
            self.plane.threads.tap_running = 0

    cdef void _stop_udp_thread(self) noexcept:
        if self.plane.threads.udp_running:
            signal_fd(self.plane.udp.stop_fd)
            with nogil:
                pthread_join(self.plane.threads.udp, NULL)
            drain_fd(self.plane.udp.stop_fd)
            self.plane.threads.udp_running = False

    cdef void _free_boxes(self) noexcept:
        if self.plane.udp.inbox != NULL:
            # Plaintext frames were opened in it.
            sodium_memzero(self.plane.udp.inbox.bytes, sizeof(self.plane.udp.inbox.bytes))
            free(self.plane.udp.inbox.slices)
            free(self.plane.udp.inbox)
            self.plane.udp.inbox = NULL
        for i in range(MAX_QUEUES):
            free(self.plane.tap.queues[i].outbox)
            self.plane.tap.queues[i].outbox = NULL

    cdef void _free_capture(self) noexcept:
        cdef uint8_t *memory = capture_stop(&self.plane.capture)
        if memory != NULL:
            # Plaintext frames.
            sodium_memzero(memory, CAPTURE_BYTES)
            free(memory)

    cdef void _set_tap(self, list fds, bint udp_super_frames):
        # The UDP thread may be writing to the old ones. No TAP thread runs.
        cdef int i
        cdef int count = len(fds)
        pthread_mutex_lock(&self.plane.rx_lock)
        for i in range(MAX_QUEUES):
            self.plane.tap.queues[i].tap_fd = fds[i] if i < count else -1
        steer_reset(&self.plane.tap, count if count else 1)
        join_reset(&self.plane.udp.joiner, udp_super_frames)
        pthread_mutex_unlock(&self.plane.rx_lock)

    @property
    def event_fd(self) -> int:
        return self.plane.tap.event_fd

    @property
    def udp_event_fd(self) -> int:
        """An eventfd, readable when :meth:`udp_signals` has something."""
        return self.plane.udp.event_fd

    def attach_tap(self, fds, uint32_t mtu_bytes, bint udp_super_frames=False) -> None:
        """Start one thread for each queue of a TAP.

        Args:
            fds: 1 to 4 non-blocking descriptors of one device, opened with a 10-byte virtio header.
                They stay the caller's, who closes them after :meth:`detach_tap`.
            udp_super_frames: the kernel takes joined datagrams (Linux 6.2), not only joined TCP.
        """
        cdef list wanted = list(fds)
        if self.plane.threads.tap_running:
            raise LocalProtocolError("a TAP is attached already")
        if not 1 <= len(wanted) <= MAX_QUEUES:
            raise ValueError(f"{len(wanted)} queues are outside 1..{MAX_QUEUES}")
        if min(wanted) < 0 or not 68 <= mtu_bytes <= 65535:
            raise ValueError(f"fds {wanted} or MTU {mtu_bytes} is out of range")
        for fd in wanted:
            if os.get_blocking(fd):
                raise ValueError(f"fd {fd} is not non-blocking: its thread could not be stopped")
        self.plane.tap.mtu_bytes = mtu_bytes
        self.plane.tap.failure = 0
        self._set_tap(wanted, udp_super_frames)
        drain_fd(self.plane.tap.event_fd)
        if not self._provide_queues() or not self._start_tap_threads():
            self._set_tap([], False)
            raise DeviceError("the TAP threads could not be started: out of threads or memory")

    def detach_tap(self) -> None:
        """Stop and join the TAP threads; frames that arrive from now on are counted as tap_gone.

        So are those that still waited for the link.
        """
        self._stop_tap_threads()
        for i in range(self.plane.tap.queue_count):
            if self.plane.tap.queues[i].backlog != NULL:
                drop_parked(&self.plane.tap.queues[i], DROP_TAP_GONE)
        self._set_tap([], False)

    def attach_udp(self, int fd, int family) -> None:
        """Start the UDP thread on a non-blocking socket, and let sessions send over it.

        Args:
            fd: bound; stays the caller's, who closes it after :meth:`detach_udp`.
            family: AF_INET6 for a dual-stack socket, or AF_INET.
        """
        cdef inbox_t *inbox
        cdef int i
        if self.plane.threads.udp_running:
            raise LocalProtocolError("a UDP socket is attached already")
        if family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"family {family} is neither AF_INET nor AF_INET6")
        self.plane.udp.inbox = inbox = <inbox_t *>calloc(1, sizeof(inbox_t))
        if inbox != NULL:
            inbox.slices = <uint8_t *>calloc(MAX_PARTIALS, PARTIAL_BYTES)
        if inbox == NULL or inbox.slices == NULL or not self._provide_queues():
            self._free_boxes()
            raise MemoryError
        for i in range(MAX_PARTIALS):
            inbox.partials[i].bytes = inbox.slices + i * PARTIAL_BYTES + PARTIAL_HEADROOM
        self.plane.udp.family = family
        self.plane.udp.fd = fd
        self.plane.udp.no_segmentation = "gso" in self.without
        drain_fd(self.plane.udp.event_fd)
        if pthread_create(&self.plane.threads.udp, NULL, udp_thread, self.plane) != 0:
            self.plane.udp.fd = -1
            self._free_boxes()
            raise DeviceError("the UDP thread could not be started: out of threads or memory")
        self.plane.threads.udp_running = True

    def detach_udp(self) -> None:
        """Stop and join the UDP thread; every session goes back to its WSS link. Idempotent."""
        self._stop_udp_thread()
        # The TAP threads send without the lock, from their outboxes: they have to stand still.
        running = self.plane.threads.tap_running
        self._stop_tap_threads()
        pthread_mutex_lock(&self.plane.tx_lock)
        for i in range(MAX_SESSIONS):
            self.plane.peers.sessions[i].udp_active = 0
        self.plane.udp.fd = -1
        pthread_mutex_unlock(&self.plane.tx_lock)
        self._free_boxes()
        if running and not self._start_tap_threads():
            # As if the device had failed: who hears of it attaches it anew.
            sm_set_flag(&self.plane.tap.failure, EAGAIN)
            signal_fd(self.plane.tap.event_fd)

    def udp_signals(self) -> list:
        """Return what the UDP thread has for the hub, oldest first, at most 128 entries.

        Returns:
            ``(session, key_id, inner_type, body, size, (host, port))``: session is None for a
            datagram that is not a record (STUN). body is cut at 1536 bytes, size is its real
            length. Inner type 0 with an empty body: a record came from another address than the
            one before.
        """
        cdef inbox_t *inbox = self.plane.udp.inbox
        cdef signal_t *signal
        cdef list out = []
        drain_fd(self.plane.udp.event_fd)
        if inbox == NULL:
            return out
        pthread_mutex_lock(&self.plane.rx_lock)
        while inbox.signal_count:
            signal = &inbox.signals[inbox.signal_first]
            inbox.signal_first = (inbox.signal_first + 1) % MAX_SIGNALS
            inbox.signal_count -= 1
            held = signal.size if signal.size < <uint32_t>SIGNAL_BYTES else <uint32_t>SIGNAL_BYTES
            out.append((
                None if signal.session < 0 else signal.session,
                signal.key_id, signal.inner_type,
                PyBytes_FromStringAndSize(<char *>signal.bytes, held), signal.size,
                load_address(&signal.source),
            ))
        pthread_mutex_unlock(&self.plane.rx_lock)
        return out

    def send_datagram(self, bytes data not None, str host, int port) -> int:
        """Send `data` as it is (STUN); return 0 or the errno of the socket."""
        cdef address_t address
        if self.plane.udp.fd < 0:
            raise LocalProtocolError("no UDP socket is attached")
        store_address(&address, host, port, self.plane.udp.family)
        return self._send(&address, <const uint8_t *>data, len(data))

    cdef int _send(self, const address_t *to, const uint8_t *data, size_t length) noexcept:
        while sendto(self.plane.udp.fd, data, length, MSG_DONTWAIT,
                     <const sockaddr *>&to.storage, to.length) < 0:
            if errno != EINTR:
                return errno
        return 0

    def udp_errors(self) -> dict:
        """Return errors of the UDP socket by errno, from frames sent and from the UDP thread."""
        cdef sent_t sent = self._sent()
        return {
            UDP_ERROR_NAMES[i]: sent.send_errors[i]
            + sm_counted(&self.plane.udp.received.socket_errors[i])
            for i in range(UDP_ERRORS)
        }

    def device_error(self) -> int:
        """Return the errno with which a TAP thread gave up, 0 while all are well."""
        drain_fd(self.plane.tap.event_fd)
        return sm_flag(&self.plane.tap.failure)

    def activate(self, Session session) -> None:
        """Send the TAP's frames to `session` from now on.

        None: to nobody; they wait for a second in the device's queue and are then dropped as
        not_connected.
        """
        if session is not None and (session.plane is not self or session.index < 0):
            raise LocalProtocolError("the session is closed or another plane's")
        pthread_mutex_lock(&self.plane.tx_lock)
        sm_set_flag(&self.plane.peers.active_session, -1 if session is None else session.index)
        pthread_mutex_unlock(&self.plane.tx_lock)
        # The TAP threads may be waiting for somebody to send to.
        wake_tap_threads(&self.plane.tap)

    cdef sent_t _sent(self) noexcept:
        # The counters of all TAP threads together. A sent_t is nothing but uint64_t.
        cdef sent_t total
        cdef uint64_t *sums = <uint64_t *>&total
        cdef const uint64_t *counted
        memset(&total, 0, sizeof(sent_t))
        for i in range(MAX_QUEUES):
            counted = <const uint64_t *>&self.plane.tap.queues[i].sent
            for k in range(sizeof(sent_t) // sizeof(uint64_t)):
                sums[k] += sm_counted(&counted[k])
        return total

    def counters(self) -> dict:
        """Return frames, bytes and drops since the start of the daemon.

        ``frames_read = frames_sent + frames_queued + sum(tx_dropped)`` holds whenever the TAP
        threads are between two batches; so does
        ``frames_opened = frames_written + sum(rx_dropped)``. ``udp_refused`` counts datagrams
        that were no record of ours, by reason. ``queues`` has (frames read, frames written) of
        each queue that a device may have.
        """
        cdef sent_t sent
        cdef received_t *wss = &self.plane.wss.received
        cdef received_t *udp = &self.plane.udp.received
        cdef uint64_t done, queued = 0
        cdef ring_t *ring
        pthread_mutex_lock(&self.plane.tx_lock)
        sent = self._sent()
        done = self.plane.wss.frames_settled + sent.frames_udp
        for i in range(MAX_SESSIONS):
            ring = self.plane.peers.sessions[i].ring
            if ring != NULL:
                done += ring_sent(ring)
                queued += ring_queued(ring)
        for i in range(MAX_QUEUES):
            if self.plane.tap.queues[i].backlog != NULL:
                queued += sm_counted(&self.plane.tap.queues[i].backlog.waiting)
        sent.dropped[DROP_LINK_LOST] += self.plane.wss.frames_lost
        pthread_mutex_unlock(&self.plane.tx_lock)
        written = [
            sm_counted(&wss.frames_written[i]) + sm_counted(&udp.frames_written[i])
            for i in range(MAX_QUEUES)
        ]
        return {
            "frames_read": sent.frames_read,
            "bytes_read": sent.bytes_read,
            "frames_sent": done,
            "frames_queued": queued,
            "tx_dropped": {DROP_NAMES[i]: sent.dropped[i] for i in range(DROP_REASONS)},
            "queues": [
                (sm_counted(&self.plane.tap.queues[i].sent.frames_read), written[i])
                for i in range(MAX_QUEUES)
            ],
            "records_opened": sm_counted(&wss.records) + sm_counted(&udp.records),
            "frames_opened": sm_counted(&wss.frames_opened) + sm_counted(&udp.frames_opened),
            "frames_written": sum(written),
            "bytes_written": sm_counted(&wss.bytes_written) + sm_counted(&udp.bytes_written),
            "rx_dropped": {
                DROP_NAMES[i]: sm_counted(&wss.dropped[i]) + sm_counted(&udp.dropped[i])
                for i in range(DROP_REASONS)
            },
            "udp_refused": {
                REFUSAL_NAMES[i]: sm_counted(&udp.refused[i]) for i in range(REFUSALS)
            },
        }


    @property
    def capture_fd(self) -> int:
        """An eventfd, readable when :meth:`read_capture` has something after it returned []."""
        return self.plane.capture.wakeup_fd

    def start_capture(self, uint32_t snap_bytes) -> None:
        """Keep copies of the frames that cross the tunnel from now on, for :meth:`read_capture`.

        Outbound: what was read from the TAP and is sealed next. Inbound: what was written to the
        TAP. A frame for which there is no room in 4 MiB is not copied, but counted.

        Args:
            snap_bytes: how much of a frame is kept, from its first byte on.
        Raises:
            LocalProtocolError: a capture is running.
        """
        cdef uint8_t *memory
        if self.plane.capture.bytes != NULL:
            raise LocalProtocolError("a capture is running already")
        memory = <uint8_t *>calloc(1, CAPTURE_BYTES)
        if memory == NULL:
            raise MemoryError
        capture_start(&self.plane.capture, memory, snap_bytes)

    def read_capture(self, int frames, size_t total_bytes) -> list:
        """Return the oldest copies and forget them; [] when there are none.

        Args:
            frames: at most so many.
            total_bytes: no more once they have this size together.
        Returns:
            ``(time_ns, direction, frame_bytes, segment_bytes, data)``: time since 1970;
            direction 1 from the peer, 2 to it; size of the whole frame; size of the segments
            into which a super-frame is cut, 0 for other frames; the bytes that were kept.
        """
        cdef capture_t *capture = &self.plane.capture
        cdef const captured_t *header
        cdef list out = []
        cdef size_t done = 0
        cdef bytes data
        while capture.bytes != NULL and len(out) < frames and done < total_bytes:
            header = capture_next(capture)
            if header == NULL:
                break
            data = PyBytes_FromStringAndSize(NULL, header.held_bytes)
            done += header.held_bytes
            out.append((header.time_ns, header.direction, header.frame_bytes,
                        header.segment_bytes, data))
            capture_take(capture, <uint8_t *><char *>data)
        return out

    def capture_dropped(self) -> int:
        """Return how many frames the last capture had no room for."""
        return sm_counted(&self.plane.capture.dropped)

    def stop_capture(self) -> None:
        """End the capture and wipe what was not read. Idempotent."""
        self._free_capture()


# The collector must not take their plane and pipe from objects that wait for __dealloc__: the TAP
# thread writes into the pipe, and closing needs the plane. They refer to nothing that refers back.
@cython.no_gc_clear
cdef class Session:
    """One peer: its key epochs and the link that carries them.

    Raises:
        LocalProtocolError: from the constructor, when all seats are taken.
    """

    cdef readonly DataPlane plane
    cdef int index
    cdef Pipe pipe

    def __cinit__(self, DataPlane plane not None):
        self.plane = plane
        self.index = -1
        for i in range(MAX_SESSIONS):
            if not plane.plane.peers.sessions[i].in_use:
                self.index = i
                break
        if self.index < 0:
            raise LocalProtocolError(f"all {MAX_SESSIONS} sessions are in use")
        pthread_mutex_lock(&plane.plane.tx_lock)
        memset(&plane.plane.peers.sessions[self.index], 0, sizeof(session_t))
        plane.plane.peers.sessions[self.index].in_use = 1
        plane.plane.peers.sessions[self.index].tx_epoch = -1
        pthread_mutex_unlock(&plane.plane.tx_lock)

    def __dealloc__(self):
        # Without a plane the constructor has refused its arguments.
        if self.plane is not None and self.index >= 0:
            self.close()

    cdef session_t *_state(self) except NULL:
        if self.index < 0:
            raise LocalProtocolError("the session is closed")
        return &self.plane.plane.peers.sessions[self.index]

    cdef epoch_t *_epoch(self, uint32_t key_id) except NULL:
        cdef epoch_t *epoch = &self.plane.plane.peers.epochs[key_id & 0xFF]
        if (epoch.state == EPOCH_FREE or epoch.session != self.index
                or epoch.local_key_id != key_id):
            raise LocalProtocolError(f"key id {key_id:#010x} is not one of this session's")
        return epoch

    cdef void _lock_both(self) noexcept:
        pthread_mutex_lock(&self.plane.plane.tx_lock)
        pthread_mutex_lock(&self.plane.plane.rx_lock)

    cdef void _unlock_both(self) noexcept:
        pthread_mutex_unlock(&self.plane.plane.rx_lock)
        pthread_mutex_unlock(&self.plane.plane.tx_lock)

    @property
    def number(self) -> int:
        """The seat, as :meth:`DataPlane.udp_signals` names it; -1 when closed."""
        return self.index

    def reserve_key_id(self, uint32_t wanted=0) -> int:
        """Return a fresh key id (not 0) under which the peer may send once keys are installed.

        Args:
            wanted: a certain key id, as published vectors need; 0: a random one.
        Raises:
            LocalProtocolError: all epochs, or the wanted one, are in use.
        """
        cdef plane_t *plane = self.plane.plane
        cdef uint32_t key_id = wanted
        self._state()
        for i in range(wanted & 0xFF if wanted else 0, MAX_EPOCHS):
            if plane.peers.epochs[i].state != EPOCH_FREE:
                if wanted:
                    break
                continue
            while not wanted and key_id >> 8 == 0:
                randombytes_buf(&key_id, sizeof(key_id))
            key_id = (key_id & 0xFFFFFF00) | <uint32_t>i
            memset(&plane.peers.epochs[i], 0, sizeof(epoch_t))
            plane.peers.epochs[i].session = self.index
            plane.peers.epochs[i].local_key_id = key_id
            plane.peers.epochs[i].state = EPOCH_RESERVED
            return key_id
        raise LocalProtocolError("no key epoch is free")

    def install(self, uint32_t key_id, uint32_t remote_key_id, str cipher, *,
                bytes wss_tx not None, bytes wss_rx not None, bytes udp_tx not None,
                bytes udp_rx not None, uint32_t peer_mtu_bytes, uint32_t peer_caps) -> None:
        """Make the keys of one handshake usable: records under `key_id` open from now on.

        Args:
            key_id: from :meth:`reserve_key_id`.
            remote_key_id: what the peer wants to see in records to it.
            cipher: ``chacha20-poly1305`` or ``aegis-256``.
            wss_tx, wss_rx, udp_tx, udp_rx: 32 bytes each; copied, never returned.
            peer_mtu_bytes: MTU of the peer's TAP.
            peer_caps: protocol section 4.
        """
        cdef session_t *session = self._state()
        cdef epoch_t *epoch = self._epoch(key_id)
        if epoch.state != EPOCH_RESERVED:
            raise LocalProtocolError(f"key id {key_id:#010x} has keys already")
        if any(len(key) != KEY_BYTES for key in (wss_tx, wss_rx, udp_tx, udp_rx)):
            raise ValueError(f"a traffic key is not {KEY_BYTES} bytes long")
        code = CIPHER_NAMES[cipher]
        if code == CIPHER_AEGIS256 and not SM_HAVE_AEGIS256:
            raise LocalProtocolError("aegis-256 was agreed on, but this libsodium lacks it")
        self._lock_both()
        self.plane.plane.peers.generation += 1
        epoch.generation = self.plane.plane.peers.generation
        epoch.cipher = code
        epoch.remote_key_id = remote_key_id
        epoch.born_ns = boottime_ns()
        memcpy(epoch.wss_tx_key, <const uint8_t *>wss_tx, KEY_BYTES)
        memcpy(epoch.wss_rx_key, <const uint8_t *>wss_rx, KEY_BYTES)
        memcpy(epoch.udp_tx_key, <const uint8_t *>udp_tx, KEY_BYTES)
        memcpy(epoch.udp_rx_key, <const uint8_t *>udp_rx, KEY_BYTES)
        epoch.state = EPOCH_INSTALLED
        session.peer_mtu_bytes = peer_mtu_bytes
        session.peer_caps = peer_caps
        self._unlock_both()

    def send_under(self, uint32_t key_id, int inner_type=0, bytes body=None) -> None:
        """Seal everything from now on under the keys of `key_id`.

        Args:
            inner_type, body: a record to be the first under them, before any frame; None: none.
        Raises:
            LocalProtocolError: no such keys, or no link that takes the record; nothing changed.
        """
        cdef session_t *session = self._state()
        cdef int before
        if self._epoch(key_id).state != EPOCH_INSTALLED:
            raise LocalProtocolError(f"key id {key_id:#010x} has no keys yet")
        pthread_mutex_lock(&self.plane.plane.tx_lock)
        before = session.tx_epoch
        session.tx_epoch = key_id & 0xFF
        failure = None if body is None else self._seal(inner_type, body)
        if failure is not None:
            session.tx_epoch = before
        pthread_mutex_unlock(&self.plane.plane.tx_lock)
        if failure is not None:
            raise LocalProtocolError(failure)

    def send_record(self, int inner_type, bytes body not None) -> None:
        """Seal one record that is not a frame and queue it as a message of its own.

        Args:
            inner_type: protocol section 6.
            body: at most 2048 bytes.
        Raises:
            LocalProtocolError: there are no sending keys, they have expired, or the link takes
                no more bytes.
        """
        self._state()
        pthread_mutex_lock(&self.plane.plane.tx_lock)
        failure = self._seal(inner_type, body)
        pthread_mutex_unlock(&self.plane.plane.tx_lock)
        if failure is not None:
            raise LocalProtocolError(failure)

    cdef str _seal(self, int inner_type, bytes body):
        # Under tx_lock, so it must not raise: why it failed, None when it did not.
        cdef plane_t *plane = self.plane.plane
        cdef uint8_t inner[1 + MAX_SIGNAL_BYTES]
        cdef slot_t slot
        cdef int obstacle = sending_obstacle(&plane.peers, self.index, boottime_ns())
        if len(body) > MAX_SIGNAL_BYTES or not 0 <= inner_type <= 255:
            return f"a record of type {inner_type} with {len(body)} bytes is not allowed"
        if obstacle == KEEP and plane.peers.sessions[self.index].ring == NULL:
            obstacle = DROP_LINK_LOST
        if obstacle != KEEP:
            return f"nothing can be sealed: {DROP_NAMES[obstacle]}"
        inner[0] = <uint8_t>inner_type
        memcpy(inner + 1, <const uint8_t *>body, len(body))
        slot.inner = inner
        slot.inner_bytes = <uint32_t>(1 + len(body))
        if not seal_message(plane, &plane.peers.sessions[self.index], &slot, 1, 0):
            return "the link takes no more bytes"
        return None

    def retire(self, uint32_t key_id) -> None:
        """Erase the keys of `key_id`, or give back a key id that was never used."""
        cdef session_t *session = self._state()
        self._epoch(key_id)
        self._lock_both()
        if session.tx_epoch == <int>(key_id & 0xFF):
            session.tx_epoch = -1
        erase_epoch(&self.plane.plane.peers, key_id & 0xFF)
        self._unlock_both()

    def bind(self, Pipe pipe) -> None:
        """Carry this session's records over `pipe`; None: over nothing.

        From now on the pipe takes messages as records of this session.
        """
        cdef session_t *session = self._state()
        if pipe is not None and (pipe.closed or pipe.plane is not self.plane
                                 or pipe.parser.session not in (-1, self.index)):
            raise LocalProtocolError("the pipe is closed, or another plane's or session's")
        if pipe is self.pipe:
            return
        pthread_mutex_lock(&self.plane.plane.tx_lock)
        if self.pipe is not None:
            self.pipe._settle()
            self.pipe.parser.session = -1
        session.ring = NULL
        if pipe is not None:
            session.ring = &pipe.ring
            session.masked = pipe.client
            pipe.parser.session = self.index
        pthread_mutex_unlock(&self.plane.plane.tx_lock)
        self.pipe = pipe
        # The TAP threads may be waiting for room in the old ring.
        wake_tap_threads(&self.plane.plane.tap)

    def activity(self) -> tuple:
        """Return when the last frame was sealed and the last record of any type opened.

        Seconds of CLOCK_BOOTTIME; 0.0 for never.
        """
        cdef session_t *session = self._state()
        return session.last_frame_ns / 1e9, session.last_opened_ns / 1e9

    def use_udp(self, str host not None, int port, uint32_t payload_bytes) -> None:
        """Send frames as datagrams to `host`, an IP address, from now on.

        Args:
            payload_bytes: the largest datagram that the path carries, without IP and UDP headers.
        """
        cdef session_t *session = self._state()
        cdef address_t address
        if self.plane.plane.udp.fd < 0:
            raise LocalProtocolError("no UDP socket is attached")
        if not MIN_UDP_PAYLOAD <= payload_bytes <= 65507:
            raise ValueError(f"payload of {payload_bytes} bytes is outside"
                             f" {MIN_UDP_PAYLOAD}..65507")
        store_address(&address, host, port, self.plane.plane.udp.family)
        pthread_mutex_lock(&self.plane.plane.tx_lock)
        session.udp_address = address
        session.udp_payload_bytes = payload_bytes
        session.udp_active = 1
        pthread_mutex_unlock(&self.plane.plane.tx_lock)
        # The TAP threads may be waiting for room in the ring.
        wake_tap_threads(&self.plane.plane.tap)

    def use_wss(self) -> None:
        """Send frames over the link from now on."""
        cdef session_t *session = self._state()
        pthread_mutex_lock(&self.plane.plane.tx_lock)
        session.udp_active = 0
        pthread_mutex_unlock(&self.plane.plane.tx_lock)

    def send_udp_record(self, int inner_type, bytes body not None, str host not None,
                        int port) -> int:
        """Seal one record and send it as a datagram, now; 0 or the errno of the socket.

        Args:
            body: at most 9000 bytes.
        Raises:
            LocalProtocolError: no socket, no sending keys, or they have expired.
        """
        cdef plane_t *plane = self.plane.plane
        cdef session_t *session = self._state()
        cdef address_t address
        cdef uint8_t inner[1 + MAX_UDP_SIGNAL_BYTES]
        cdef uint8_t datagram[AAD_BYTES + 1 + MAX_UDP_SIGNAL_BYTES + MAX_TAG_BYTES]
        cdef size_t length = 0
        cdef epoch_t *epoch
        if plane.udp.fd < 0:
            raise LocalProtocolError("no UDP socket is attached")
        if len(body) > MAX_UDP_SIGNAL_BYTES or not 0 <= inner_type <= 255:
            raise ValueError(f"record of type {inner_type} with {len(body)} bytes")
        store_address(&address, host, port, self.plane.plane.udp.family)
        inner[0] = <uint8_t>inner_type
        memcpy(inner + 1, <const uint8_t *>body, len(body))
        pthread_mutex_lock(&plane.tx_lock)
        if session.tx_epoch >= 0:
            epoch = &plane.peers.epochs[session.tx_epoch]
            if (not epoch_expired(epoch, boottime_ns())
                    and sm_counted(&epoch.udp_tx_next) < SM_SEAL_LIMIT - SEAL_MARGIN):
                length = seal_datagram(epoch, take_counters(epoch, 1), inner, 1 + len(body),
                                       datagram)
        pthread_mutex_unlock(&plane.tx_lock)
        if length == 0:
            raise LocalProtocolError("nothing can be sealed: no keys, or they have expired")
        return self.plane._send(&address, datagram, length)

    def udp_activity(self) -> tuple:
        """Return when the last frame went to UDP and the last record came from it.

        Seconds of CLOCK_BOOTTIME; 0.0 for never.
        """
        cdef session_t *session = self._state()
        return session.udp_last_frame_ns / 1e9, session.udp_last_opened_ns / 1e9

    def records_sealed(self) -> int:
        """Return how many records the sending keys have sealed on the busier path."""
        cdef session_t *session = self._state()
        cdef epoch_t *epoch
        if session.tx_epoch < 0:
            return 0
        epoch = &self.plane.plane.peers.epochs[session.tx_epoch]
        return max(epoch.wss_tx_next, sm_counted(&epoch.udp_tx_next))

    def open_failures(self) -> int:
        """Return the most datagrams that failed to open under one of the keys."""
        cdef uint64_t most = 0
        cdef epoch_t *epoch
        for i in range(MAX_EPOCHS):
            epoch = &self.plane.plane.peers.epochs[i]
            if epoch.state == EPOCH_INSTALLED and epoch.session == self.index:
                most = max(most, epoch.udp_failed_opens)
        return most

    def close(self) -> None:
        """Erase all keys and give up the seat. Idempotent."""
        cdef plane_t *plane = self.plane.plane
        if self.index < 0:
            return
        self.bind(None)
        self._lock_both()
        if plane.peers.active_session == self.index:
            sm_set_flag(&plane.peers.active_session, -1)
        plane.peers.sessions[self.index].tx_epoch = -1
        plane.peers.sessions[self.index].udp_active = 0
        for i in range(MAX_EPOCHS):
            if (plane.peers.epochs[i].state != EPOCH_FREE
                    and plane.peers.epochs[i].session == self.index):
                erase_epoch(&plane.peers, i)
        plane.peers.sessions[self.index].in_use = 0
        self._unlock_both()
        self.index = -1


@cython.no_gc_clear
cdef class Pipe:
    """One WebSocket link after the upgrade: the ring of what goes out, the parser of what comes.

    The owner moves bytes: it waits on ``wakeup_fd`` and drains :meth:`outgoing`, and it reads
    into :meth:`recv_buffer` and calls :meth:`ingest`.
    """

    cdef readonly DataPlane plane
    cdef readonly bint client
    cdef readonly bint closed
    cdef int offence            # the close code, below zero, of what the peer did; 0: nothing
    cdef uint8_t *memory        # PIPE_BYTES: the ring, its entries, the parser's buffer
    cdef ring_t ring
    cdef parser_t parser

    def __cinit__(self, DataPlane plane not None, bint client):
        cdef void *memory
        self.plane = plane
        self.client = client
        self.parser.session = -1
        self.parser.from_client = not client
        self.parser.begin = self.parser.end = HEADROOM
        self.parser.raw = self.parser.raw_end = HEADROOM
        # Not from the heap: it hands out the used pages of pipes that are gone, and then each of
        # the strangers at the peer port would cost a megabyte instead of the pages it touches.
        memory = mmap(NULL, PIPE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError
        self.memory = <uint8_t *>memory
        self.ring.bytes = self.memory
        self.ring.entries = <ring_entry_t *>(self.memory + RING_BYTES)
        self.parser.bytes = self.memory + RING_BYTES + RING_MESSAGES * sizeof(ring_entry_t)
        ring_init(&self.ring)
        for i in range(MAX_QUEUES):
            self.ring.space_fds[i] = plane.plane.tap.queues[i].space_fd
        self.ring.wakeup_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.ring.wakeup_fd < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self.memory != NULL:
            # Plaintext frames were opened in this buffer.
            sodium_memzero(self.parser.bytes, HEADROOM + PARSER_BYTES)
            munmap(self.memory, PIPE_BYTES)
        if self.ring.wakeup_fd > 0:
            close(self.ring.wakeup_fd)

    cdef void _settle(self) noexcept:
        # Under tx_lock: books the frames of this ring, sent or lost, into the plane's counters.
        self.plane.plane.wss.frames_settled += ring_sent(&self.ring)
        self.plane.plane.wss.frames_lost += ring_queued(&self.ring)
        ring_book(&self.ring)

    @property
    def wakeup_fd(self) -> int:
        """An eventfd, readable when :meth:`outgoing` has something after it returned None."""
        return self.ring.wakeup_fd

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the link: sealed, at most 512 KiB, and what waits to be sealed."""
        cdef uint64_t waiting = ring_waiting(&self.ring)
        if (self.parser.session != -1
                and self.parser.session == self.plane.plane.peers.active_session):
            for i in range(MAX_QUEUES):
                if self.plane.plane.tap.queues[i].backlog != NULL:
                    waiting += sm_counted(&self.plane.plane.tap.queues[i].backlog.waiting_bytes)
        return waiting

    @property
    def piece_bytes(self) -> int:
        """What :meth:`outgoing` returns at most: 128 KiB, down to 4 KiB on a slow link."""
        return ring_piece(&self.ring)

    def outgoing(self) -> memoryview | None:
        """Return bytes to send, or None when there are none.

        The view is valid until :meth:`sent`; it is the ring's own memory, not a copy.
        """
        cdef uint8_t *start = NULL
        cdef size_t length = 0 if self.closed else ring_peek(&self.ring, &start)
        if length == 0:
            return None
        length = min(length, ring_piece(&self.ring))
        return PyMemoryView_FromMemory(<char *>start, length, PyBUF_READ)

    def sent(self, size_t n) -> None:
        """Tell that the first `n` bytes of the last :meth:`outgoing` have gone."""
        cdef uint8_t *start = NULL
        if self.closed:
            return
        if n > ring_peek(&self.ring, &start):
            raise LocalProtocolError(f"{n} bytes sent, but fewer were outgoing")
        ring_consume(&self.ring, n, boottime_ns())

    def recv_buffer(self) -> memoryview:
        """Return where the next bytes from the socket go: at least 16 KiB.

        Valid until the next :meth:`ingest`; the parser's own memory, not a copy.
        """
        cdef size_t room = make_room(&self.parser)
        return PyMemoryView_FromMemory(
            <char *>self.parser.bytes + self.parser.raw_end, room, PyBUF_WRITE)

    def ingest(self, size_t n) -> list:
        """Take `n` bytes that were written into :meth:`recv_buffer`; frames go to the TAP.

        Call again with 0 until the list is empty: after a handshake message parsing waits for
        what the caller makes of it, because it may install the keys of the next message.

        Returns:
            ``("message", data)`` before :meth:`Session.bind`,
            ``("ping" | "pong" | "close", payload)``,
            ``("record", key_id, inner_type, body)`` for records that are not frames; in order.
        Raises:
            RemoteProtocolError: the peer broke a rule; its ``close_code`` is for the close frame.
        """
        cdef parser_t *parser = &self.parser
        cdef uint64_t now_ns = boottime_ns()
        cdef int outcome
        cdef list events = []
        if self.closed:
            return events
        if self.offence:
            self._raise_offence()
        if n > HEADROOM + PARSER_BYTES - parser.raw_end:
            raise LocalProtocolError(f"{n} bytes ingested, but the buffer had less room")
        parser.raw_end += n
        while True:
            with nogil:
                outcome = parse(self.plane.plane, parser, now_ns)
            if outcome == EVENT_NONE:
                return events
            if outcome < 0:
                # What came before the offence is told first.
                self.offence = outcome
                if events:
                    return events
                self._raise_offence()
            body = PyBytes_FromStringAndSize(<char *>parser.body, parser.body_bytes)
            if outcome == EVENT_MESSAGE:
                events.append(("message", body))
                return events
            if outcome == EVENT_WEBSOCKET:
                events.append((_WEBSOCKET_EVENTS[parser.opcode], body))
            else:
                events.append(("record", parser.key_id, parser.inner_type, body))

    def _raise_offence(self):
        raise RemoteProtocolError(
            f"the peer {_WHY[self.offence]}", close_code=-self.offence)

    def send_message(self, bytes payload not None) -> None:
        """Queue one binary message as it is: the handshake before keys exist.

        Raises:
            LocalProtocolError: no room, the link is stuck.
        """
        self._send_frame(OP_BINARY, payload)

    def send_ws_control(self, int opcode, bytes payload not None) -> None:
        """Queue a ping, pong or close frame of at most 125 bytes."""
        if not OP_CLOSE <= opcode <= OP_PONG or len(payload) > MAX_CONTROL_PAYLOAD:
            raise ValueError(f"opcode {opcode} with {len(payload)} bytes is no control frame")
        self._send_frame(opcode, payload)

    cdef _send_frame(self, int opcode, bytes payload):
        cdef size_t length = len(payload)
        cdef size_t header = ws_header_bytes(length, self.client)
        cdef uint8_t mask[4]
        cdef uint8_t *message = NULL
        pthread_mutex_lock(&self.plane.plane.tx_lock)
        if not self.closed:
            message = ring_reserve(&self.ring, header + length)
        if message != NULL:
            if self.client:
                next_mask(&self.plane.plane.wss, mask)
            ws_write_header(message, opcode, length, mask if self.client else NULL)
            memcpy(message + header, <const uint8_t *>payload, length)
            if self.client:
                sm_mask(message + header, length, mask, 0)
            ring_commit(&self.ring, message, header + length, 0)
        pthread_mutex_unlock(&self.plane.plane.tx_lock)
        if message == NULL:
            raise LocalProtocolError("the link takes no more bytes")

    def close(self) -> None:
        """Take the pipe from its session; what is queued is counted as lost. Idempotent."""
        if self.closed:
            return
        self.closed = True
        pthread_mutex_lock(&self.plane.plane.tx_lock)
        for i in range(MAX_SESSIONS):
            if self.plane.plane.peers.sessions[i].ring == &self.ring:
                self._settle()
                self.plane.plane.peers.sessions[i].ring = NULL
        self.parser.session = -1
        pthread_mutex_unlock(&self.plane.plane.tx_lock)
        wake_tap_threads(&self.plane.plane.tap)
