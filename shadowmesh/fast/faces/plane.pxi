# DataPlane: the device, the socket, the threads, the counters.


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
            UDP_ERROR_NAMES[i]: (totals.sent.send_errors[i]
                                 + sm_counted(&self.plane.udp.socket_errors[i]))
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

    cdef int _own(self, bytes mac, port_t *port) except -1:
        check_mac(mac)
        if mac[0] & 1 or not fdb_own(self.plane.fdb, self.plane.peers.ports, mac, port):
            raise LocalProtocolError(f"{mac.hex(':')} is another one's address, or no device's")
        return 0

    def own_mac(self, bytes mac not None) -> None:
        """Let nobody else use the address of our device.

        Raises:
            LocalProtocolError: it is a peer's.
        """
        self._own(mac, NULL)

    def limit_macs(self, uint64_t count) -> None:
        """Learn no more addresses than so many, up to 32,768."""
        self.plane.fdb.most_entries = min(count, <uint64_t>(FDB_SETS * FDB_WAYS))

    def age_macs(self) -> None:
        """Forget addresses that were not heard for long; now and then, once in some seconds."""
        with nogil:
            fdb_sweep(self.plane.fdb, self.plane.peers.ports,
                      <uint32_t>(boottime_ns() // 1000000000))

    def give_memory_back(self) -> None:
        """Free what a burst has left in links that are at rest; now and then, once a second.

        Each call looks at a sixteenth of the places of links.
        """
        with nogil:
            tidy_links(&self.plane.wss)

    def fdb(self) -> list:
        """Return behind which port each known address is.

        Returns:
            ``(mac, vlan, port, age, static, moves)``: port is a :attr:`Port.number`, None for this
            host's side; vlan 0: none, None: every one; age: seconds since it was heard, None for a
            static one; moves: from port to port, lately.
        """
        cdef uint32_t now_s = <uint32_t>(boottime_ns() // 1000000000)
        cdef const fdb_entry_t *entry
        cdef uint64_t key, state
        cdef list out = []
        for i in range(FDB_SETS * FDB_WAYS):
            entry = fdb_at(self.plane.fdb, i)
            key = sm_acquire(&entry.key)
            state = sm_acquire(&entry.state)
            if not key & FDB_USED or has_aged(key, state, now_s):
                continue
            static = bool(key & FDB_STATIC)
            vlan = key >> 48 & 0xFFF
            out.append((
                int(key & FDB_MAC).to_bytes(6, "little"),
                None if vlan == ANY_VLAN else vlan,
                None if state_port(state) == LOCAL_PORT else state_port(state),
                None if static else max(0, <int32_t>(now_s - state_heard(state))),
                static,
                state_moves(state),
            ))
        return out

    def fdb_counters(self) -> dict:
        """Return entries, moves from port to port, and frames whose source found no place."""
        return {
            "entries": sm_counted(&self.plane.fdb.entries),
            "moves": sm_counted(&self.plane.fdb.moves),
            "unlearned": sm_counted(&self.plane.fdb.unlearned),
        }

    def counters(self) -> dict:
        """Return frames, bytes and drops since the start of the daemon.

        ``frames_read + frames_copied = frames_sent + frames_queued + sum(tx_dropped)`` holds
        whenever the TAP threads are between two batches, copied being one more for each further
        peer that a frame is flooded to; so does
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
            "frames_copied": totals.sent.frames_copied,
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
            "udp_refused": {
                REFUSAL_NAMES[i]: sm_counted(&self.plane.udp.refused[i]) for i in range(REFUSALS)
            },
        }

    @property
    def capture_fd(self) -> int:
        """An eventfd, readable when :meth:`read_capture` has something after it returned []."""
        return self.plane.capture.wakeup_fd

    def start_capture(self, uint32_t snap_bytes, Port port=None) -> None:
        """Keep copies of the frames that cross the tunnel from now on, for :meth:`read_capture`.

        Outbound: what was read from the TAP and is sealed next. Inbound: what was written to the
        TAP. A frame for which there is no room in 4 MiB is not copied, but counted.

        Args:
            snap_bytes: how much of a frame is kept, from its first byte on.
            port: only frames to and from this peer; None: all.
        Raises:
            LocalProtocolError: a capture is running, or the port is closed.
        """
        if self.plane.capture.bytes != NULL:
            raise LocalProtocolError("a capture is running already")
        if not begin_capture(&self.plane.capture, snap_bytes,
                             NULL if port is None else port._open()):
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
