# Session: the keys of one peer, and which way its records go.


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
        LocalProtocolError: from the constructor, when there are too many.
    """

    cdef readonly DataPlane plane
    cdef session_t *session     # NULL: closed
    cdef Pipe pipe

    def __cinit__(self, DataPlane plane not None):
        self.plane = plane
        self.session = session_new(&plane.plane.peers)
        if self.session == NULL:
            raise LocalProtocolError(
                f"there are {plane.plane.peers.session_count} sessions, and no room for another")

    def __dealloc__(self):
        # Without a plane the constructor has refused its arguments.
        if self.plane is not None and self.session != NULL:
            self.close()

    cdef session_t *_state(self) except NULL:
        if self.session == NULL:
            raise LocalProtocolError("the session is closed")
        return self.session

    cdef epoch_t *_epoch(self, uint32_t key_id) except NULL:
        cdef epoch_t *epoch = epoch_of(&self.plane.plane.peers, key_id)
        if epoch == NULL or epoch.session != self.session:
            raise LocalProtocolError(f"key id {key_id:#010x} is not one of this session's")
        return epoch

    @property
    def number(self) -> int:
        """What :meth:`DataPlane.udp_signals` calls it, and no other session ever; -1 when closed."""
        return -1 if self.session == NULL else self.session.number

    def belongs_to(self, Port port not None) -> None:
        """This is a session with the peer of `port`; before that its frames are dropped.

        Raises:
            LocalProtocolError: the port is closed or another plane's, or the session another port's.
        """
        self._state()
        if port.plane is not self.plane or port.port == NULL:
            raise LocalProtocolError("the port is closed or another plane's")
        if self.session.port != port.port:
            if self.session.port != NULL:
                raise LocalProtocolError("the session is another port's")
            sm_publish(&self.session.port, port.port)

    def reserve_key_id(self, uint32_t wanted=0) -> int:
        """Return a fresh key id (not 0) under which the peer may send once keys are installed.

        Args:
            wanted: a certain key id, as published vectors need; 0: a random one.
        Raises:
            LocalProtocolError: all epochs of the session, or the wanted one, are in use.
        """
        cdef uint32_t key_id
        key_id = reserve_epoch(&self.plane.plane.peers, self._state(), wanted)
        if key_id == 0:
            raise LocalProtocolError("no key epoch is free")
        return key_id

    def install(self, uint32_t key_id, uint32_t remote_key_id, str cipher, *,
                bytes wss_tx not None, bytes wss_rx not None, bytes udp_tx not None,
                bytes udp_rx not None, uint32_t peer_mtu_bytes, uint32_t peer_caps,
                bint udp=True) -> None:
        """Make the keys of one handshake usable: records under `key_id` open from now on.

        Args:
            key_id: from :meth:`reserve_key_id`.
            remote_key_id: what the peer wants to see in records to it.
            cipher: ``chacha20-poly1305`` or ``aegis-256``.
            wss_tx, wss_rx, udp_tx, udp_rx: 32 bytes each; copied, never returned.
            peer_mtu_bytes: MTU of the peer's TAP.
            peer_caps: protocol section 4.
            udp: datagrams under them are heard; else not before :meth:`hear_udp`.
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
        sm_set_flag(&epoch.udp_closed, not udp)
        publish_epoch(&self.plane.plane.peers, epoch)
        session.draft.peer_mtu_bytes = peer_mtu_bytes
        session.draft.peer_caps = peer_caps
        publish_route(&self.plane.plane.peers, session)

    def hear_udp(self, uint32_t key_id) -> None:
        """Open datagrams under these keys from now on: their peer is judged (mesh-rules A3)."""
        sm_set_flag(&self._epoch(key_id).udp_closed, 0)

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
        retire_epoch(&self.plane.plane.peers, self._epoch(key_id))

    def bind(self, Pipe pipe) -> None:
        """Carry this session's records over `pipe`; None: over nothing.

        From now on the pipe takes messages as records of this session.
        """
        self._state()
        if pipe is not None and (pipe.closed or pipe.plane is not self.plane
                                 or (pipe.link.parser.session != NULL
                                     and pipe.link.parser.session != self.session)):
            raise LocalProtocolError("the pipe is closed, or another plane's or session's")
        if pipe is self.pipe:
            return
        bind_link(self.plane.plane, self.session, NULL if self.pipe is None else &self.pipe.link,
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
        return count_sealed(self._state())

    def open_failures(self) -> int:
        """Return the most datagrams that failed to open under one of the keys."""
        return count_failures(self._state())

    def close(self) -> None:
        """Erase all keys. Idempotent."""
        if self.session == NULL:
            return
        self.bind(None)
        session_free(&self.plane.plane.peers, self.session)
        self.session = NULL
