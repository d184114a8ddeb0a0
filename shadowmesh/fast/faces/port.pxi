# Port: one peer of the switch, over all of its sessions.


cdef int check_mac(mac) except -1:
    if not isinstance(mac, bytes) or len(mac) != 6:
        raise ValueError(f"{mac!r} is no MAC address of 6 bytes")
    return 0


# The collector must not take the plane from what waits for __dealloc__; it refers to nothing else.
@cython.no_gc_clear
cdef class Port:
    """One peer: which session its frames leave by, and what became of them.

    Raises:
        LocalProtocolError: from the constructor, when there are too many.
    """

    cdef readonly DataPlane plane
    cdef port_t *port           # NULL: closed

    def __cinit__(self, DataPlane plane not None, bytes mac=None, *, macs=None,
                  uint64_t max_macs=DEFAULT_PORT_MACS, bint broadcast=True):
        """Open a port.

        Args:
            mac: the peer's own, which nobody else may use then; None: it has none, or it is not known.
            macs: the only other ones that it may use, at most 256; None: any, up to max_macs.
            broadcast: it gets broadcasts, multicasts and frames for nobody known.
        """
        self.plane = plane
        self.port = port_new(&plane.plane.peers)
        if self.port == NULL:
            raise LocalProtocolError(f"there are {plane.plane.peers.port_count} ports, and no room"
                                     " for another")
        self.port.most_macs = max_macs
        self.port.floods = broadcast
        if macs is not None:
            self._list_macs(list(macs))
        if mac is not None:
            plane._own(mac, self.port)

    cdef int _list_macs(self, list macs) except -1:
        if len(macs) > MAX_LISTED_MACS:
            raise ValueError(f"{len(macs)} addresses are more than {MAX_LISTED_MACS}")
        self.port.mac_list = <uint64_t *>calloc(len(macs) + 1, sizeof(uint64_t))
        if self.port.mac_list == NULL:
            raise MemoryError
        for i, mac in enumerate(macs):
            check_mac(mac)
            self.port.mac_list[i] = fdb_key(mac, 0) & FDB_MAC
        sm_set_flag(&self.port.listed_macs, <int>len(macs))
        return 0

    def __dealloc__(self):
        # Without a plane the constructor has refused its arguments.
        if self.plane is not None:
            self.close()

    cdef port_t *_open(self) except NULL:
        if self.port == NULL:
            raise LocalProtocolError("the port is closed")
        return self.port

    @property
    def number(self) -> int:
        """Which port of the plane it is; another may have it after this one is closed."""
        return self._open().number

    def activate(self, Session session) -> None:
        """Send the frames for this peer by `session` from now on; None: by none.

        Of a plane without any they wait for a second in the device's queue, and are then dropped as
        not_connected.

        Raises:
            LocalProtocolError: the session is closed, or not this port's.
        """
        self._open()
        if session is not None and (session.session == NULL
                                    or session.session.port != self.port):
            raise LocalProtocolError("the session is closed or another port's")
        activate_session(&self.plane.plane.peers, self.port,
                         NULL if session is None else session.session)
        # The TAP threads may be waiting for somebody to send to.
        wake_tap_threads(&self.plane.plane.tap)

    def counters(self) -> dict:
        """Return frames, bytes and drops since the port was opened, and how many MACs are behind it.

        ``sent``: handed to a link or a socket. ``received``: written to the device.
        """
        cdef port_totals_t totals
        sum_port(self._open(), &totals)
        return {
            "frames_sent": totals.frames_sent,
            "bytes_sent": totals.bytes_sent,
            "frames_queued": totals.frames_queued,
            "bytes_queued": totals.bytes_queued,
            "frames_received": totals.opened.frames,
            "bytes_received": totals.opened.bytes,
            "tx_dropped": {DROP_NAMES[i]: totals.tx_dropped[i] for i in range(DROP_REASONS)},
            "rx_dropped": {DROP_NAMES[i]: totals.opened.dropped[i] for i in range(DROP_REASONS)},
            "macs": sm_counted(&self.port.macs),
        }

    def close(self) -> None:
        """Take the peer out of the switch; its sessions send and deliver nothing more. Idempotent."""
        if self.port != NULL:
            with nogil:
                port_free(self.plane.plane, self.port)
            self.port = NULL
