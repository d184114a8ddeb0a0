"""How fast frames are sealed and opened: what `shadowmesh bench` times."""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from shadowmesh.fast.base cimport *
from shadowmesh.fast.admit cimport MAX_SEGMENTS, admit_offload
from shadowmesh.fast.aead cimport *
from shadowmesh.fast.backlog cimport *
from shadowmesh.fast.datagram cimport *
from shadowmesh.fast.fdb cimport *
from shadowmesh.fast.frame cimport *
from shadowmesh.fast.headers cimport MAX_IP_BYTES
from shadowmesh.fast.inbound cimport (
    EVENT_NONE, HEADROOM, PARSER_BYTES, make_room, parse, parser_t
)
from shadowmesh.fast.link_out cimport seal_message
from shadowmesh.fast.offload cimport join_reset
from shadowmesh.fast.peers cimport *
from shadowmesh.fast.plane cimport *
from shadowmesh.fast.port cimport *
from shadowmesh.fast.ring cimport *
from shadowmesh.fast.session cimport *
from shadowmesh.fast.udp_in cimport flush_train, open_datagram

if sodium_init() < 0:
    raise ImportError("libsodium could not be initialised: the system gives no randomness")
sm_chacha_load()

#: All calls take so many frames at a time.
FRAMES_PER_BATCH = BATCH_FRAMES

cdef enum:
    FIRST_KEY_ID = 0x100
    NO_TIME = 1                 # always the same moment: the limit of the ring stays what it is

cdef extern from "<time.h>" nogil:
    clockid_t CLOCK_THREAD_CPUTIME_ID


cdef inline uint64_t spent_ns() noexcept nogil:
    # Of this thread's CPU time, so that other programs on the core do not count.
    cdef timespec ts
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts)
    return <uint64_t>ts.tv_sec * 1000000000 + <uint64_t>ts.tv_nsec


cdef class Bench:
    """A session and its link as the daemon has them, without sockets and device.

    All calls take whole batches of 64 frames and return the ns of CPU time that one frame took.
    """

    cdef plane_t plane
    cdef ring_t ring
    cdef parser_t parser
    cdef opener_t opener
    cdef session_t session
    cdef port_t port
    cdef epoch_t *epoch
    cdef uint8_t *arena         # the frames, as the TAP thread reads them
    cdef uint8_t *outbox        # the ring, then datagrams and what the cipher alone seals
    cdef uint8_t *inbox         # the parser's buffer
    cdef address_t source
    cdef uint64_t counter
    cdef bint masked

    def __cinit__(self, int cipher, bint masked):
        memset(&self.plane, 0, sizeof(plane_t))
        memset(&self.ring, 0, sizeof(ring_t))
        memset(&self.parser, 0, sizeof(parser_t))
        memset(&self.source, 0, sizeof(address_t))
        self.arena = <uint8_t *>malloc(ARENA_BYTES)
        self.outbox = <uint8_t *>malloc(RING_BYTES)
        self.inbox = <uint8_t *>malloc(HEADROOM + PARSER_BYTES)
        self.epoch = <epoch_t *>calloc(1, sizeof(epoch_t))
        self.ring.entries = <ring_entry_t *>calloc(RING_MESSAGES, sizeof(ring_entry_t))
        if (self.arena == NULL or self.outbox == NULL or self.inbox == NULL or self.epoch == NULL
                or self.ring.entries == NULL):
            raise MemoryError
        randombytes_buf(self.arena, ARENA_BYTES)
        self.plane.tap.queues[0].tap_fd = -1
        self.plane.tap.queue_count = 1
        self.plane.tap.mtu_bytes = MAX_IP_BYTES
        self.masked = masked
        ring_init(&self.ring)
        self.ring.bytes = self.outbox
        self.ring.limit = RING_BYTES
        self.parser.bytes = self.inbox
        self.parser.from_client = masked
        self.parser.begin = self.parser.end = self.parser.raw = self.parser.raw_end = HEADROOM
        self.plane.fdb = <fdb_t *>calloc(1, sizeof(fdb_t))
        if self.plane.fdb == NULL:
            raise MemoryError
        self.plane.fdb.most_entries = DEFAULT_MACS
        memset(&self.session, 0, sizeof(session_t))
        memset(&self.port, 0, sizeof(port_t))
        self.session.port = self.plane.peers.wire = &self.port
        self.port.most_macs = DEFAULT_PORT_MACS
        self.port.listed_macs = -1
        make_opener(&self.opener, &self.plane.peers.wss_pin, &self.plane.wss.carried, BY_WSS_THREAD)
        make_opener(&self.plane.udp.opener, &self.plane.peers.udp_pin, &self.plane.udp.received,
                    BY_UDP_THREAD)
        self.epoch.local_key_id = self.epoch.remote_key_id = FIRST_KEY_ID
        self.epoch.session = &self.session
        self.parser.session = &self.session
        publish_epoch(&self.plane.peers, self.epoch)
        self.epoch.cipher = cipher
        self.epoch.born_ns = boottime_ns()
        self.epoch.generation = self.session.newest_generation = 1
        join_reset(&self.plane.udp.joiner, True)

    def __dealloc__(self):
        free(self.arena)
        free(self.outbox)
        free(self.inbox)
        if self.epoch != NULL:
            sm_chacha_erase(self.epoch.contexts)
        free(self.epoch)
        free(self.ring.entries)
        free(self.plane.fdb)

    cdef size_t fill(self, size_t frame_bytes) except 0:
        # Cuts the arena into 64 slots of one size; the bytes of each with its inner type.
        cdef size_t stride = (1 + frame_bytes + 63) // 64 * 64
        cdef int i
        if not MIN_FRAME <= frame_bytes <= 2000:
            raise ValueError(f"frame of {frame_bytes} bytes is outside {MIN_FRAME}..2000")
        for i in range(BATCH_FRAMES):
            self.plane.tap.queues[0].slots[i].inner = self.arena + i * stride
            self.plane.tap.queues[0].slots[i].inner_bytes = <uint32_t>(1 + frame_bytes)
            self.plane.tap.queues[0].slots[i].inner[0] = INNER_FRAME
            self.plane.tap.queues[0].slots[i].inner[1 + 6] &= 0xFE
        return 1 + frame_bytes

    def seal_wss(self, size_t frame_bytes, uint32_t batches) -> float:
        """Records into one WebSocket message in the ring, masked when it is a client's."""
        cdef uint64_t began
        cdef uint8_t *start = NULL
        cdef uint32_t i
        self.fill(frame_bytes)
        began = spent_ns()
        for i in range(batches):
            if seal_message(self.epoch, &self.ring, self.masked, self.plane.tap.queues[0].slots,
                            BATCH_FRAMES, BATCH_FRAMES) != BATCH_FRAMES:
                raise AssertionError("a batch does not fit into the ring")
            ring_consume(&self.ring, ring_peek(&self.ring, &start), NO_TIME)
        self.epoch.wss_rx_next = self.epoch.wss_tx_next
        return self.each(spent_ns() - began, batches)

    def open_wss(self, size_t frame_bytes, uint32_t batches) -> float:
        """The bytes of such a message to frames at the TAP, which refuses them."""
        cdef uint64_t began, spent = 0
        cdef uint8_t *start = NULL
        cdef size_t length
        cdef uint32_t i
        self.fill(frame_bytes)
        for i in range(batches):
            seal_message(self.epoch, &self.ring, self.masked, self.plane.tap.queues[0].slots,
                         BATCH_FRAMES, BATCH_FRAMES)
            length = ring_peek(&self.ring, &start)
            make_room(&self.parser)
            memcpy(self.parser.bytes + self.parser.raw_end, start, length)
            ring_consume(&self.ring, length, NO_TIME)
            began = spent_ns()
            self.parser.raw_end += length
            if parse(&self.plane, &self.opener, &self.parser, self.epoch.born_ns) != EVENT_NONE:
                raise AssertionError("the parser refused the ring's bytes")
            spent += spent_ns() - began
        self.check(self.plane.wss.carried.dropped[DROP_TAP_GONE], batches)
        self.plane.wss.carried.dropped[DROP_TAP_GONE] = 0
        return self.each(spent, batches)

    def seal_udp(self, size_t frame_bytes, uint32_t batches) -> float:
        """Datagrams behind each other, as a train for UDP_SEGMENT."""
        cdef uint64_t began
        cdef uint64_t counter
        cdef uint32_t i
        cdef int k
        cdef uint8_t *out
        self.fill(frame_bytes)
        began = spent_ns()
        for i in range(batches):
            out = self.outbox
            counter = take_counters(self.epoch, BATCH_FRAMES)
            for k in range(BATCH_FRAMES):
                out += seal_datagram(self.epoch, counter + k,
                                     self.plane.tap.queues[0].slots[k].inner,
                                     self.plane.tap.queues[0].slots[k].inner_bytes, out)
        return self.each(spent_ns() - began, batches)

    def open_udp(self, size_t frame_bytes, uint32_t batches) -> float:
        """Such datagrams to frames at the TAP, which refuses them."""
        cdef size_t inner_bytes = self.fill(frame_bytes)
        cdef size_t step = AAD_BYTES + inner_bytes + tag_bytes(self.epoch.cipher)
        cdef uint64_t began, spent = 0
        cdef uint32_t i
        cdef int k
        for i in range(batches):
            for k in range(BATCH_FRAMES):
                seal_datagram(self.epoch, take_counters(self.epoch, 1),
                              self.plane.tap.queues[0].slots[k].inner, inner_bytes,
                              self.outbox + k * step)
            began = spent_ns()
            for k in range(BATCH_FRAMES):
                open_datagram(&self.plane, self.outbox + k * step, step, &self.source,
                              self.epoch.born_ns)
            flush_train(&self.plane)
            spent += spent_ns() - began
        self.check(self.plane.udp.received.dropped[DROP_TAP_GONE], batches)
        self.plane.udp.received.dropped[DROP_TAP_GONE] = 0
        return self.each(spent, batches)

    def seal_alone(self, size_t frame_bytes, uint32_t batches) -> float:
        """The same bytes by the cipher alone."""
        cdef size_t inner_bytes = self.fill(frame_bytes)
        cdef size_t step = inner_bytes + tag_bytes(self.epoch.cipher)
        cdef uint64_t began = spent_ns()
        cdef uint32_t i
        cdef int k
        for i in range(batches):
            for k in range(BATCH_FRAMES):
                self.counter += 1
                aead_seal(self.epoch.cipher, self.epoch.udp_tx_key, self.epoch.contexts, self.counter,
                          self.arena, AAD_BYTES, self.plane.tap.queues[0].slots[k].inner,
                          inner_bytes, self.outbox + k * step)
        return self.each(spent_ns() - began, batches)

    def open_alone(self, size_t frame_bytes, uint32_t batches) -> float:
        """The same bytes opened by the cipher alone."""
        cdef size_t inner_bytes = self.fill(frame_bytes)
        cdef size_t step = inner_bytes + tag_bytes(self.epoch.cipher)
        cdef uint64_t began, spent = 0
        cdef uint32_t i
        cdef int k
        cdef int failed = 0
        for i in range(batches):
            for k in range(BATCH_FRAMES):
                aead_seal(self.epoch.cipher, self.epoch.udp_tx_key, self.epoch.contexts, k,
                          self.arena, AAD_BYTES, self.plane.tap.queues[0].slots[k].inner, inner_bytes,
                          self.outbox + k * step)
            began = spent_ns()
            for k in range(BATCH_FRAMES):
                failed |= aead_open(self.epoch.cipher, self.epoch.udp_tx_key,
                                    self.epoch.contexts, k, self.arena, AAD_BYTES, self.outbox + k * step,
                                    step, self.outbox + k * step)
            spent += spent_ns() - began
        if failed:
            raise AssertionError("the cipher does not open what it sealed")
        return self.each(spent, batches)

    def admit(self, const uint8_t[:] vnet, const uint8_t[:] frame, uint32_t batches) -> float:
        """Whether such offload frames, a virtio header and a frame, may go to the device: alone."""
        cdef size_t stride = (VNET_HEADER_BYTES + frame.shape[0] + 63) // 64 * 64
        cdef uint64_t began
        cdef uint8_t *record
        cdef uint32_t i
        cdef int k
        cdef int refused = 0
        if vnet.shape[0] != VNET_HEADER_BYTES or BATCH_FRAMES * stride > RING_BYTES:
            raise ValueError(f"a virtio header of {vnet.shape[0]} and a frame of {frame.shape[0]} bytes")
        for k in range(BATCH_FRAMES):
            memcpy(self.outbox + k * stride, &vnet[0], VNET_HEADER_BYTES)
            memcpy(self.outbox + k * stride + VNET_HEADER_BYTES, &frame[0], frame.shape[0])
        began = spent_ns()
        for i in range(batches):
            for k in range(BATCH_FRAMES):
                record = self.outbox + k * stride
                refused |= admit_offload(record, record + VNET_HEADER_BYTES, frame.shape[0],
                                         MAX_IP_BYTES, MAX_SEGMENTS) != KEEP
        if refused:
            raise AssertionError("the frame was refused")
        return self.each(spent_ns() - began, batches)

    def switch(self, uint32_t addresses, uint32_t turns, uint32_t step_s) -> tuple:
        """The switch's table, with so many addresses behind one port.

        Args:
            turns: in which each address sends a frame to another one.
            step_s: between two turns.
        Returns:
            The ns that a frame takes of an address that is new, and of one that is known, to one
            that is.
        """
        cdef fdb_t *fdb = self.plane.fdb
        cdef uint64_t *keys = <uint64_t *>self.outbox
        cdef uint64_t began, fresh
        cdef uint64_t found = 0
        cdef uint32_t i, k, target
        cdef int refused = 0
        if not 1 <= addresses <= DEFAULT_MACS or turns == 0:
            raise ValueError(f"{addresses} addresses or {turns} turns are out of range")
        memset(fdb, 0, sizeof(fdb_t))
        fdb.most_entries = self.port.most_macs = addresses
        self.port.macs = 0
        sm_publish(&self.plane.peers.ports[self.port.number], &self.port)
        for i in range(addresses):
            keys[i] = FDB_USED | <uint64_t>(i + 1) << 8
        began = spent_ns()
        for i in range(addresses):
            refused |= fdb_learn(fdb, self.plane.peers.ports, keys[i], &self.port, 1) != KEEP
        fresh = spent_ns() - began
        began = spent_ns()
        for k in range(turns):
            target = addresses // 2
            for i in range(addresses):
                refused |= fdb_learn(fdb, self.plane.peers.ports, keys[i], &self.port,
                                     1 + (k + 1) * step_s) != KEEP
                found += fdb_lookup(fdb, keys[target], 1 + (k + 1) * step_s) == self.port.number
                target = target + 1 if target + 1 < addresses else 0
        began = spent_ns() - began
        # In a few sets there are more than have room.
        if refused or found < <uint64_t>addresses * turns * 95 // 100:
            raise AssertionError(f"{found} of {addresses * turns} addresses were known")
        return <double>fresh / addresses, <double>began / (<double>addresses * turns)

    cdef check(self, uint64_t delivered, uint32_t batches):
        if delivered != <uint64_t>batches * BATCH_FRAMES:
            raise AssertionError(f"{delivered} of {batches * BATCH_FRAMES} frames came through")

    cdef double each(self, uint64_t spent_ns, uint32_t batches):
        return <double>spent_ns / (<double>batches * BATCH_FRAMES)
