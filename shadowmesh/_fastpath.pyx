"""The Python face of the data plane: the classes that own its memory, threads and keys.

    TAP --read--> slots                                             fast/outbound.pxd
    slots --seal--> ring --outgoing()--> TLS                        fast/link_out.pxd
    TLS --recv_buffer()--> parser --open--> TAP                     fast/inbound.pxd
    slots --seal--> trains --sendmmsg--> UDP socket                 fast/udp_out.pxd
    UDP socket --recvmmsg--> open --> TAP                           fast/udp_in.pxd

The work is done by the ``nogil`` functions of ``fast/*.pxd``; here arguments are checked, memory is
owned and codes become exceptions. Everything in this module is called from the hub's thread; the
TAP and UDP threads (``fast/lifecycle.pxd``) never take the GIL. The three classes stand in one file
because they share C state and name one another: in several modules they would import in a circle,
and the frame path would be compiled once for each.

Knows nothing of configuration, HTTP, sockets or logging. The state is drawn in ``fast/plane.pxd``.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.string cimport memcpy

from .fast.base cimport *
from .fast.drop_reasons cimport *
from .fast.address cimport *
from .fast.aead cimport *
from .fast.frame cimport *
from .fast.wsframe cimport *
from .fast.ring cimport *
from .fast.backlog cimport *
from .fast.datagram cimport *
from .fast.flow cimport choose_flow_secret
from .fast.session cimport *
from .fast.peers cimport *
from .fast.tap cimport *
from .fast.plane cimport *
from .fast.link_out cimport *
from .fast.inbound cimport *
from .fast.udp_out cimport *
from .fast.udp_in cimport *
from .fast.capture cimport *
from .fast.connection cimport *
from .fast.link cimport *
from .fast.links cimport *
from .fast.lifecycle cimport *
from .fast.totals cimport *
from .fast.openssl cimport Tls, checked

import os

from shadowmesh.base.errors import DeviceError, LocalProtocolError, RemoteProtocolError

if sodium_init() < 0:
    raise ImportError("libsodium could not be initialised: the system gives no randomness")
sm_chacha_load()
choose_flow_secret()

#: In the order of the DROP_ reasons in fast/drop_reasons.pxd.
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
    "own_datagram",
)
#: In the order of the REFUSED_ reasons in fast/drop_reasons.pxd: datagrams that were dropped.
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
#: The smallest datagram that a path must carry: what every IPv6 link does, less its headers.
MIN_UDP_PAYLOAD = 1280 - 48
#: Optimisations that a developer can do without, to see what each of them brings; what they mean
#: is written in shadowmesh/service/switches.py.
SWITCHES = ("tso", "csum", "gso", "gro", "join", "pack", "batch")
CIPHER_NAMES = {"chacha20-poly1305": CIPHER_CHACHA20_POLY1305, "aegis-256": CIPHER_AEGIS256}

_WHY = {
    E_PROTOCOL: "broke the WebSocket protocol",
    E_UNSUPPORTED: "sent a text message; only binary ones are taken",
    E_POLICY: "sent more fragments, control frames or control records than are allowed",
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


cdef int store_address(address_t *address, str host, int port, int family) except -1:
    # `family` is the socket's.
    cdef int code
    cdef bytes text = os.fsencode(host)
    if not 0 < port <= 65535:
        raise ValueError(f"port {port} is outside 1..65535")
    if b"\0" in text:
        raise ValueError(f"{host!r} has a null character")
    code = parse_address(address, text, <uint16_t>port, family)
    if code == E_ZONE:
        raise OSError(f"{host}: there is no interface with this name")
    if code < 0:
        raise OSError(f"{host} is no IP address for this socket")
    return 0


cdef tuple load_address(const address_t *address):
    cdef char text[ADDRESS_TEXT_BYTES]
    cdef uint16_t port = write_address(address, text)
    return (<bytes>text).decode("ascii"), port


cdef class DataPlane:
    """Sessions, counters and the threads of the TAP's queues and the UDP socket. One per daemon.

    ``event_fd`` becomes readable when a TAP thread has given up; ask :meth:`device_error`.

    Attributes:
        without: the SWITCHES that are off. The plane sees to ``gso``, ``join``, ``batch`` and
            ``pack``; who opens its device and its socket asks for the others.

    With ``realtime`` its threads run before every ordinary program, where they may:
    :meth:`realtime_error`.
    """

    cdef readonly object without
    cdef plane_t *plane

    def __cinit__(self, without=(), *, bint realtime=False):
        self.without = frozenset(without)
        if not self.without <= set(SWITCHES):
            raise ValueError(f"{sorted(self.without)} are not all of {SWITCHES}")
        self.plane = plane_new()
        if self.plane == NULL:
            raise MemoryError
        if "batch" in self.without:
            self.plane.tap.batch_frames = self.plane.udp.batch_messages = 1
        self.plane.udp.no_joining = "join" in self.without
        self.plane.threads.realtime = realtime
        if not open_descriptors(self.plane):
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        with nogil:
            plane_free(self.plane)

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
        cdef int queues[MAX_QUEUES]
        cdef int count = len(wanted)
        cdef int code
        if self.plane.threads.tap_running:
            raise LocalProtocolError("a TAP is attached already")
        if not 1 <= count <= MAX_QUEUES:
            raise ValueError(f"{count} queues are outside 1..{MAX_QUEUES}")
        if min(wanted) < 0 or not 68 <= mtu_bytes <= 65535:
            raise ValueError(f"fds {wanted} or MTU {mtu_bytes} is out of range")
        for i, fd in enumerate(wanted):
            if os.get_blocking(fd):
                raise ValueError(f"fd {fd} is not non-blocking: its thread could not be stopped")
            queues[i] = fd
        with nogil:
            code = attach_device(self.plane, queues, count, mtu_bytes, udp_super_frames)
        if code < 0:
            raise DeviceError("the TAP threads could not be started: out of threads or memory")

    def detach_tap(self) -> None:
        """Stop and join the TAP threads; frames that arrive from now on are counted as tap_gone.

        So are those that still waited for the link.
        """
        with nogil:
            detach_device(self.plane)

    def attach_udp(self, int fd, int family) -> None:
        """Start the UDP thread on a non-blocking socket, and let sessions send over it.

        Args:
            fd: bound; stays the caller's, who closes it after :meth:`detach_udp`.
            family: AF_INET6 for a dual-stack socket, or AF_INET.
        """
        cdef int code
        cdef bint no_segmentation = "gso" in self.without
        if self.plane.threads.udp_running:
            raise LocalProtocolError("a UDP socket is attached already")
        if family != AF_INET and family != AF_INET6:
            raise ValueError(f"family {family} is neither AF_INET nor AF_INET6")
        with nogil:
            code = attach_socket(self.plane, fd, family, no_segmentation)
        if code == E_NO_MEMORY:
            raise MemoryError
        if code < 0:
            raise DeviceError("the UDP thread could not be started: out of threads or memory")

    def detach_udp(self) -> None:
        """Stop and join the UDP thread; every session goes back to its WSS link. Idempotent."""
        with nogil:
            detach_socket(self.plane)

    def udp_signals(self) -> list:
        """Return what the UDP thread has for the hub, oldest first, at most 128 entries.

        Returns:
            ``(session, key_id, inner_type, body, size, (host, port), came_at)``: session is the
            :attr:`Session.number`, None for a datagram that is not a record (STUN). body is cut at
            1536 bytes, size is its real length. came_at: when the thread received it, boot-time
            seconds. Inner type 0 with an empty body: a record came from another address than the
            one before.
        """
        cdef signal_t signal
        cdef list out = []
        drain_fd(self.plane.udp.event_fd)
        while len(out) < MAX_SIGNALS:
            # Making an object may run a destructor, and that may do anything: even call this.
            if not take_signal(&self.plane.udp, &signal):
                return out
            held = signal.size if signal.size < <uint32_t>SIGNAL_BYTES else <uint32_t>SIGNAL_BYTES
            out.append((
                signal.session or None,
                signal.key_id, signal.inner_type,
                PyBytes_FromStringAndSize(<char *>signal.bytes, held), signal.size,
                load_address(&signal.source), signal.came_ns * 1e-9,
            ))
        # More may have come meanwhile, of which nobody is told again.
        signal_fd(self.plane.udp.event_fd)
        return out

    def send_datagram(self, bytes data not None, str host, int port) -> int:
        """Send `data` as it is, a STUN request; return 0 or the errno of the socket.

        What comes with its transaction id is among :meth:`udp_signals` then, and no other STUN.
        """
        cdef address_t address
        if self.plane.udp.fd < 0:
            raise LocalProtocolError("no UDP socket is attached")
        store_address(&address, host, port, self.plane.udp.family)
        expect_stun(&self.plane.udp, data, len(data))
        return send_single(&self.plane.udp, &address, data, len(data))

    def udp_errors(self) -> dict:
        """Return errors of the UDP socket by errno, from frames sent and from the UDP thread."""
        cdef totals_t totals
        sum_counters(self.plane, &totals)
        return {
            UDP_ERROR_NAMES[i]: totals.sent.send_errors[i] + totals.received.socket_errors[i]
            for i in range(UDP_ERRORS)
        }

    def device_error(self) -> int:
        """Return the errno with which a TAP thread gave up, 0 while all are well."""
        drain_fd(self.plane.tap.event_fd)
        return sm_flag(&self.plane.tap.failure)

    def realtime_error(self) -> int:
        """Return the errno that keeps the threads from their real-time priority, 0 for none.

        ETIME after :meth:`end_realtime`. Before the first thread nothing is known: 0.
        """
        return self.plane.threads.realtime_error

    def end_realtime(self) -> None:
        """Let the threads share the processor with everybody from now on."""
        with nogil:
            end_realtime(&self.plane.threads, ETIME)

    def activate(self, Session session) -> None:
        """Send the TAP's frames to `session` from now on.

        None: to nobody; they wait for a second in the device's queue and are then dropped as
        not_connected.
        """
        if session is not None and (session.plane is not self or session.index < 0):
            raise LocalProtocolError("the session is closed or another plane's")
        sm_set_flag(&self.plane.peers.active_session, -1 if session is None else session.index)
        # The TAP threads may be waiting for somebody to send to.
        wake_tap_threads(&self.plane.tap)

    def counters(self) -> dict:
        """Return frames, bytes and drops since the start of the daemon.

        ``frames_read = frames_sent + frames_queued + sum(tx_dropped)`` holds whenever the TAP
        threads are between two batches; so does
        ``frames_opened = frames_written + sum(rx_dropped)``. ``udp_refused`` counts datagrams
        that were no record of ours, by reason. ``queues`` has (frames read, frames written) of
        each queue that a device may have.
        """
        cdef totals_t totals
        sum_counters(self.plane, &totals)
        written = [totals.received.frames_written[i] for i in range(MAX_QUEUES)]
        return {
            "frames_read": totals.sent.frames_read,
            "bytes_read": totals.sent.bytes_read,
            "frames_sent": totals.frames_sent,
            "frames_queued": totals.frames_queued,
            "tx_dropped": {DROP_NAMES[i]: totals.sent.dropped[i] for i in range(DROP_REASONS)},
            "queues": [
                (sm_counted(&self.plane.tap.queues[i].sent.frames_read), written[i])
                for i in range(MAX_QUEUES)
            ],
            "records_opened": totals.received.records,
            "frames_opened": totals.received.frames_opened,
            "frames_written": sum(written),
            "bytes_written": totals.received.bytes_written,
            "rx_dropped": {DROP_NAMES[i]: totals.received.dropped[i] for i in range(DROP_REASONS)},
            "udp_refused": {REFUSAL_NAMES[i]: totals.received.refused[i] for i in range(REFUSALS)},
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
        if self.plane.capture.bytes != NULL:
            raise LocalProtocolError("a capture is running already")
        if not begin_capture(&self.plane.capture, snap_bytes):
            raise MemoryError

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
        end_capture(&self.plane.capture)


cdef int check_record(int inner_type, bytes body) except -1:
    if len(body) > MAX_SIGNAL_BYTES or not 0 <= inner_type <= 255:
        raise LocalProtocolError(
            f"a record of type {inner_type} with {len(body)} bytes is not allowed")
    return 0


cdef int check_sealed(int verdict) except -1:
    # What seal_signal returned.
    if verdict == NO_ROOM:
        raise LocalProtocolError("the link takes no more bytes")
    if verdict != KEEP:
        raise LocalProtocolError(f"nothing can be sealed: {DROP_NAMES[verdict]}")
    return 0


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
        self.index = seat_session(&plane.plane.peers)
        if self.index < 0:
            raise LocalProtocolError(f"all {MAX_SESSIONS} sessions are in use")

    def __dealloc__(self):
        # Without a plane the constructor has refused its arguments.
        if self.plane is not None and self.index >= 0:
            self.close()

    cdef session_t *_state(self) except NULL:
        if self.index < 0:
            raise LocalProtocolError("the session is closed")
        return &self.plane.plane.peers.sessions[self.index]

    cdef epoch_t *_epoch(self, uint32_t key_id) except NULL:
        cdef epoch_t *epoch = epoch_of(&self.plane.plane.peers, key_id)
        if epoch == NULL or epoch.session != self.index:
            raise LocalProtocolError(f"key id {key_id:#010x} is not one of this session's")
        return epoch

    @property
    def number(self) -> int:
        """What :meth:`DataPlane.udp_signals` calls it, and no other session ever; -1 when closed."""
        return -1 if self.index < 0 else self._state().number

    def reserve_key_id(self, uint32_t wanted=0) -> int:
        """Return a fresh key id (not 0) under which the peer may send once keys are installed.

        Args:
            wanted: a certain key id, as published vectors need; 0: a random one.
        Raises:
            LocalProtocolError: all epochs, or the wanted one, are in use.
        """
        cdef uint32_t key_id
        self._state()
        key_id = reserve_epoch(&self.plane.plane.peers, self.index, wanted)
        if key_id == 0:
            raise LocalProtocolError("no key epoch is free")
        return key_id

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
        self.plane.plane.peers.generation += 1
        epoch.generation = self.plane.plane.peers.generation
        epoch.cipher = code
        epoch.remote_key_id = remote_key_id
        epoch.born_ns = boottime_ns()
        memcpy(epoch.wss_tx_key, <const uint8_t *>wss_tx, KEY_BYTES)
        memcpy(epoch.wss_rx_key, <const uint8_t *>wss_rx, KEY_BYTES)
        memcpy(epoch.udp_tx_key, <const uint8_t *>udp_tx, KEY_BYTES)
        memcpy(epoch.udp_rx_key, <const uint8_t *>udp_rx, KEY_BYTES)
        publish_epoch(&self.plane.plane.peers, epoch)
        session.draft.peer_mtu_bytes = peer_mtu_bytes
        session.draft.peer_caps = peer_caps
        publish_route(&self.plane.plane.peers, session)

    def peer_takes(self, uint32_t abilities) -> None:
        """Send what the peer has said it takes, protocol section 4; nothing of it before."""
        cdef session_t *session = self._state()
        if "pack" in self.plane.without:
            abilities &= ~<uint32_t>ABILITY_PACKED
        if abilities != session.draft.peer_abilities:
            session.draft.peer_abilities = abilities
            publish_route(&self.plane.plane.peers, session)

    def send_under(self, uint32_t key_id, int inner_type=0, bytes body=None) -> None:
        """Seal everything from now on under the keys of `key_id`.

        Args:
            inner_type, body: a record to be the first under them, before any frame; None: none.
        Raises:
            LocalProtocolError: no such keys, or no link that takes the record; nothing changed.
        """
        cdef session_t *session = self._state()
        cdef epoch_t *before = session.draft.epoch
        cdef epoch_t *epoch = self._epoch(key_id)
        cdef ring_t *ring = session.draft.ring
        cdef int verdict = KEEP
        if epoch.state != EPOCH_INSTALLED:
            raise LocalProtocolError(f"key id {key_id:#010x} has no keys yet")
        if body is not None:
            check_record(inner_type, body)
        if ring != NULL:
            ring_lock(ring)
        session.draft.epoch = epoch
        if body is not None:
            verdict = DROP_LINK_LOST
            if ring != NULL:
                verdict = seal_signal(&session.draft, <uint8_t>inner_type, body, len(body))
        if verdict == KEEP:
            publish_route(&self.plane.plane.peers, session)
        else:
            session.draft.epoch = before
        if ring != NULL:
            ring_unlock(ring)
        check_sealed(verdict)

    def send_record(self, int inner_type, bytes body not None) -> None:
        """Seal one record that is not a frame and queue it as a message of its own.

        Args:
            inner_type: protocol section 6.
            body: at most 2048 bytes.
        Raises:
            LocalProtocolError: there are no sending keys, they have expired, or the link takes
                no more bytes.
        """
        cdef const route_t *draft = &self._state().draft
        cdef int verdict
        check_record(inner_type, body)
        if draft.ring == NULL:
            check_sealed(DROP_NOT_CONNECTED if draft.epoch == NULL else DROP_LINK_LOST)
        ring_lock(draft.ring)
        verdict = seal_signal(draft, <uint8_t>inner_type, body, len(body))
        ring_unlock(draft.ring)
        check_sealed(verdict)

    def retire(self, uint32_t key_id) -> None:
        """Erase the keys of `key_id`, or give back a key id that was never used."""
        self._state()
        self._epoch(key_id)
        retire_epoch(&self.plane.plane.peers, key_id & 0xFF)

    def bind(self, Pipe pipe) -> None:
        """Carry this session's records over `pipe`; None: over nothing.

        From now on the pipe takes messages as records of this session.
        """
        self._state()
        if pipe is not None and (pipe.closed or pipe.plane is not self.plane
                                 or pipe.link.parser.session not in (-1, self.index)):
            raise LocalProtocolError("the pipe is closed, or another plane's or session's")
        if pipe is self.pipe:
            return
        bind_link(self.plane.plane, self.index, NULL if self.pipe is None else &self.pipe.link,
                  NULL if pipe is None else &pipe.link)
        self.pipe = pipe

    def activity(self) -> tuple:
        """Return when the last frame was sealed and the last record of any type opened.

        Seconds of CLOCK_BOOTTIME; 0.0 for never.
        """
        cdef session_t *session = self._state()
        return sm_counted(&session.last_frame_ns) / 1e9, sm_counted(&session.last_opened_ns) / 1e9

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
        session.draft.to = address
        session.draft.payload_bytes = payload_bytes
        session.draft.udp_active = 1
        publish_route(&self.plane.plane.peers, session)
        # The TAP threads may be waiting for room in the ring.
        wake_tap_threads(&self.plane.plane.tap)

    def use_wss(self) -> None:
        """Send frames over the link from now on."""
        cdef session_t *session = self._state()
        session.draft.udp_active = 0
        publish_route(&self.plane.plane.peers, session)

    def send_udp_record(self, int inner_type, bytes body not None, str host not None,
                        int port) -> int:
        """Seal one record and send it as a datagram, now; 0 or the errno of the socket.

        Args:
            body: at most 9000 bytes.
        Raises:
            LocalProtocolError: no socket, no sending keys, or they have expired.
        """
        cdef plane_t *plane = self.plane.plane
        cdef address_t address
        cdef uint8_t datagram[AAD_BYTES + 1 + MAX_UDP_SIGNAL_BYTES + MAX_TAG_BYTES]
        cdef size_t length
        cdef session_t *session = self._state()
        if plane.udp.fd < 0:
            raise LocalProtocolError("no UDP socket is attached")
        if len(body) > MAX_UDP_SIGNAL_BYTES or not 0 <= inner_type <= 255:
            raise ValueError(f"record of type {inner_type} with {len(body)} bytes")
        store_address(&address, host, port, plane.udp.family)
        length = seal_single(session.draft.epoch, <uint8_t>inner_type, body, len(body), datagram)
        if length == 0:
            raise LocalProtocolError("nothing can be sealed: no keys, or they have expired")
        return send_single(&plane.udp, &address, datagram, length)

    def udp_activity(self) -> tuple:
        """Return when the last frame went to UDP and the last record came from it.

        Seconds of CLOCK_BOOTTIME; 0.0 for never.
        """
        cdef session_t *session = self._state()
        return (sm_counted(&session.udp_last_frame_ns) / 1e9,
                sm_counted(&session.udp_last_opened_ns) / 1e9)

    def records_sealed(self) -> int:
        """Return how many records the sending keys have sealed on the busier path."""
        self._state()
        return count_sealed(&self.plane.plane.peers, self.index)

    def open_failures(self) -> int:
        """Return the most datagrams that failed to open under one of the keys."""
        return count_failures(&self.plane.plane.peers, self.index)

    def close(self) -> None:
        """Erase all keys and give up the seat. Idempotent."""
        if self.index < 0:
            return
        self.bind(None)
        unseat_session(&self.plane.plane.peers, self.index)
        self.index = -1


cdef tuple make_event(int kind, int opcode, uint32_t key_id, uint8_t inner_type,
                      const uint8_t *body, size_t body_bytes):
    data = PyBytes_FromStringAndSize(<const char *>body, body_bytes)
    if kind == EVENT_MESSAGE:
        return "message", data
    if kind == EVENT_WEBSOCKET:
        return _WEBSOCKET_EVENTS[opcode], data
    return "record", key_id, inner_type, data


@cython.no_gc_clear
cdef class Pipe:
    """One WebSocket link after the upgrade: the ring of what goes out, the parser of what comes.

    At first the owner moves bytes: it waits on ``wakeup_fd`` and drains :meth:`outgoing`, and it
    reads into :meth:`recv_buffer` and calls :meth:`ingest`. After :meth:`carry` a thread of the
    data plane does, until :meth:`release`; the owner waits on ``event_fd`` and asks
    :meth:`events`.
    """

    cdef readonly DataPlane plane
    cdef readonly bint client
    cdef readonly bint closed
    cdef int offence            # the close code, below zero, of what the peer did; 0: nothing
    cdef Tls tls                # while the data plane has it
    cdef link_t link

    def __cinit__(self, DataPlane plane not None, bint client):
        self.plane = plane
        self.client = client
        if not link_open(&self.link, &plane.plane.tap, client):
            if self.link.memory == NULL:
                raise MemoryError
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        release_link(self.plane.plane, &self.link)
        link_close(&self.link)

    @property
    def wakeup_fd(self) -> int:
        """An eventfd, readable when :meth:`outgoing` has something after it returned None."""
        return self.link.ring.wakeup_fd

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the link: sealed, at most 512 KiB, and what waits to be sealed."""
        cdef plane_t *plane = self.plane.plane
        cdef uint64_t waiting = ring_waiting(&self.link.ring)
        if (self.link.parser.session != -1
                and self.link.parser.session == plane.peers.active_session):
            waiting += bytes_waiting(&plane.tap)
        return waiting

    @property
    def piece_bytes(self) -> int:
        """What :meth:`outgoing` returns at most: 128 KiB, down to 4 KiB on a slow link."""
        return ring_piece(&self.link.ring)

    def outgoing(self) -> memoryview | None:
        """Return bytes to send, or None when there are none.

        The view is valid until :meth:`sent`; it is the ring's own memory, not a copy.
        """
        cdef uint8_t *start = NULL
        cdef size_t length
        self._check_ours()
        drain_fd(self.link.ring.wakeup_fd)
        length = 0 if self.closed else ring_peek(&self.link.ring, &start)
        if length == 0:
            return None
        length = min(length, ring_piece(&self.link.ring))
        return PyMemoryView_FromMemory(<char *>start, length, PyBUF_READ)

    def sent(self, size_t n) -> None:
        """Tell that the first `n` bytes of the last :meth:`outgoing` have gone."""
        cdef uint8_t *start = NULL
        if self.closed:
            return
        if n > ring_peek(&self.link.ring, &start):
            raise LocalProtocolError(f"{n} bytes sent, but fewer were outgoing")
        ring_consume(&self.link.ring, n, boottime_ns())

    def recv_buffer(self) -> memoryview:
        """Return where the next bytes from the socket go: at least 16 KiB.

        Valid until the next :meth:`ingest`; the parser's own memory, not a copy.
        """
        cdef size_t room = make_room(&self.link.parser)
        return PyMemoryView_FromMemory(
            <char *>self.link.parser.bytes + self.link.parser.raw_end, room, PyBUF_WRITE)

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
        cdef parser_t *parser = &self.link.parser
        cdef uint64_t now_ns = boottime_ns()
        cdef int outcome
        cdef list events = []
        cdef mover_t mover
        if self.closed:
            return events
        self._check_ours()
        if self.offence:
            self._raise_offence()
        mover.pin = &self.plane.plane.peers.hub_pin
        mover.received = &self.plane.plane.wss.received
        if n > HEADROOM + PARSER_BYTES - parser.raw_end:
            raise LocalProtocolError(f"{n} bytes ingested, but the buffer had less room")
        parser.raw_end += n
        while True:
            with nogil:
                outcome = parse(self.plane.plane, &mover, parser, now_ns)
            if outcome == EVENT_NONE:
                return events
            if outcome < 0:
                # What came before the offence is told first.
                self.offence = outcome
                if events:
                    return events
                self._raise_offence()
            events.append(make_event(outcome, parser.opcode, parser.key_id, parser.inner_type,
                                     parser.body, parser.body_bytes))
            if outcome == EVENT_MESSAGE:
                return events

    def _raise_offence(self):
        raise RemoteProtocolError(
            f"the peer {_WHY[self.offence]}", close_code=-self.offence)

    def carry(self, Tls tls not None, int fd) -> None:
        """Let a thread of the data plane move the bytes from now on.

        Args:
            tls: not to be used until :meth:`release`.
            fd: the TCP socket, non-blocking; stays the caller's.
        Raises:
            LocalProtocolError: closed, carried already, or not bound to a session.
            DeviceError: the system gives no thread, or the link cannot be watched.
        """
        cdef bint well
        self._check_ours()
        if self.closed or self.link.parser.session < 0:
            raise LocalProtocolError("the pipe is closed, or no session's")
        with nogil:
            well = start_wss_thread(self.plane.plane)
        if not well:
            raise DeviceError("the thread of the links could not be started: out of threads")
        if not carry_link(self.plane.plane, &self.link, &tls.state, fd):
            raise DeviceError(f"the link cannot be watched: {os.strerror(errno)}")
        self.tls = tls

    def release(self) -> None:
        """Take the bytes back from the data plane. Idempotent."""
        release_link(self.plane.plane, &self.link)
        self.tls = None

    @property
    def event_fd(self) -> int:
        """An eventfd, readable when one of the next four has something new; the reader drains it."""
        return self.link.connection.event_fd

    def events(self) -> list:
        """Return what has come for the hub, as :meth:`ingest` does, with the same exceptions.

        Raises:
            OSError: the connection has failed; TlsError, TlsFlood: the peer's TLS.
        """
        cdef connection_t *connection = &self.link.connection
        cdef const link_event_t *event = next_event(&self.link)
        cdef list events = []
        while event != NULL and event.kind >= 0:
            events.append(make_event(event.kind, event.opcode, event.key_id, event.inner_type,
                                     event.body, event.body_bytes))
            event_taken(&self.link)
            event = next_event(&self.link)
        if events:
            return events
        if event != NULL:
            self.offence = event.kind
            self._raise_offence()
        if sm_flag(&connection.state) == CONNECTION_BROKEN and self.tls is not None:
            sm_set_errno(connection.number)
            checked(&self.tls.state, connection.code)
        return events

    @property
    def ended(self) -> bool:
        """The connection has ended while it was carried."""
        return sm_flag(&self.link.connection.state) == CONNECTION_ENDED

    @property
    def blocked(self) -> bool:
        """TCP takes nothing more for now. Once :meth:`watch` was called it is told anew."""
        return sm_flag(&self.link.connection.blocked)

    def watch(self) -> None:
        """Let ``event_fd`` tell when the connection is blocked the next time."""
        sm_set_flag(&self.link.connection.watched, 0)

    @property
    def empty(self) -> bool:
        """All that was queued has left, or nothing leaves any more.

        After :meth:`stop_reading` it is told.
        """
        return (ring_waiting(&self.link.ring) == 0
                or sm_flag(&self.link.connection.state) != CONNECTION_WELL)

    def stop_reading(self) -> None:
        """Take nothing more from the peer, and tell when all that is queued has left."""
        stop_reading(&self.link)
        sm_set_flag(&self.link.connection.tell_empty, 1)
        signal_fd(self.link.ring.wakeup_fd)

    cdef int _check_ours(self) except -1:
        if self.tls is not None:
            raise LocalProtocolError("the data plane moves the bytes of this pipe")
        return 0

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
        cdef bint queued = False
        if not self.closed:
            ring_lock(&self.link.ring)
            queued = queue_ws_frame(&self.link.ring, self.client, opcode, payload, len(payload))
            ring_unlock(&self.link.ring)
        if not queued:
            raise LocalProtocolError("the link takes no more bytes")

    def close(self) -> None:
        """Take the pipe from its session; what is queued is counted as lost. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.release()
        unbind_link(self.plane.plane, &self.link)
