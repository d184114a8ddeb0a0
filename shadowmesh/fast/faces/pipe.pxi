# Pipe: the two halves of a WebSocket link, and who moves its bytes.


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
        cdef uint64_t waiting = ring_waiting(&self.link.ring)
        cdef const session_t *session = self.link.parser.session
        if session != NULL and session.port != NULL and (<port_t *>session.port).active == session:
            waiting += bytes_waiting(<port_t *>session.port)
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
        if self.closed:
            return events
        self._check_ours()
        if self.offence:
            self._raise_offence()
        if n > HEADROOM + PARSER_BYTES - parser.raw_end:
            raise LocalProtocolError(f"{n} bytes ingested, but the buffer had less room")
        parser.raw_end += n
        while True:
            with nogil:
                outcome = parse(self.plane.plane, &self.plane.plane.wss.hub, parser, now_ns)
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
        if self.closed or self.link.parser.session == NULL:
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
