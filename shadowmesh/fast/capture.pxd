# Copies of frames for `shadowmesh capture`: a bounded ring that the frame path never waits for.
#
#   TAP thread(s), UDP thread, hub                                  hub (one reader)
#   capture_frame: claim -> copy -> ready   --eventfd-->   capture_next -> copy -> wipe -> free
#
# One block of memory, there only while somebody captures. A record is a header and the first bytes
# of a frame, rounded up to a header's size, so that headers never wrap; the bytes may.
#
# Who wants to write claims its place by moving `written`, copies without any lock, and marks the
# header as ready last. What finds no place is counted and forgotten. The reader goes from header to
# header and stops at the first that is not ready, so a thread that the scheduler stops in the
# middle of a copy delays what is read and nobody who writes. What was read is set to 0 before it
# is given back: that wipes the frames, and makes the header of the next record there not ready.
#
# The memory goes away under `on` and `inside`: a writer counts itself in, then looks at `on` again;
# the owner takes `on` down, then waits until nobody is inside.

from libc.stddef cimport size_t
from libc.string cimport memcpy, memset
from .base cimport *
from .datagram cimport iovec

cdef enum:
    # 60 super-frames of 64 KiB, 2,700 frames of 1,500 bytes.
    CAPTURE_BYTES = 4 * 1024 * 1024
    CAPTURE_INBOUND = 1         # from the peer; the values of pcapng's epb_flags
    CAPTURE_OUTBOUND = 2

ctypedef struct captured_t:     # 32 bytes, in front of the bytes of a frame
    uint64_t ready              # bytes of the record with this header and padding; 0: not yet
    uint64_t time_ns            # since 1970
    uint32_t frame_bytes        # of the whole frame
    uint32_t held_bytes         # of those that follow
    uint16_t direction
    uint16_t segment_bytes      # of a super-frame; 0: this is none
    uint32_t unused

ctypedef struct capture_t:
    int on                      # what the frame path looks at
    int idle                    # the reader sleeps and wants wakeup_fd
    int wakeup_fd
    uint32_t snap_bytes         # how much of a frame is kept
    const void *only            # of this port alone, a port_t; NULL: of all
    uint8_t *bytes
    uint64_t read               # the reader's; all three only grow
    uint64_t written            # the writers', by sm_claim
    uint64_t dropped            # frames that found no place
    uint64_t inside             # writers that may be using `bytes`


cdef inline uint64_t realtime_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_REALTIME, &ts)
    return <uint64_t>ts.tv_sec * 1000000000 + <uint64_t>ts.tv_nsec


cdef inline bint capture_on(const capture_t *c) noexcept nogil:
    return sm_flag(&c.on) != 0


cdef inline bint captures(const capture_t *c, const void *port) noexcept nogil:
    # Whether frames of a port are wanted.
    return capture_on(c) and (c.only == NULL or c.only == port)


cdef inline bint capture_claim(capture_t *c, uint64_t length, uint64_t *at) noexcept nogil:
    # A place of `length` bytes for the caller alone; False when the ring is full.
    at[0] = sm_counted(&c.written)
    while True:
        # Signed: the reader may be past a `written` that is out of date, which the claim notices.
        if <int64_t>(at[0] + length - sm_acquire(&c.read)) > <int64_t>CAPTURE_BYTES:
            return False
        if sm_claim(&c.written, at, at[0] + length):
            return True


cdef inline void capture_copy(capture_t *c, uint64_t at, const uint8_t *from_,
                              size_t length) noexcept nogil:
    cdef size_t start = at % CAPTURE_BYTES
    cdef size_t first = CAPTURE_BYTES - start
    if first > length:
        first = length
    memcpy(c.bytes + start, from_, first)
    memcpy(c.bytes, from_ + first, length - first)


cdef inline void capture_write(capture_t *c, int direction, const iovec *pieces, int count,
                               size_t skip) noexcept nogil:
    # Inside, with memory.
    cdef const uint8_t *vnet = <const uint8_t *>pieces[0].iov_base
    cdef captured_t *header
    cdef size_t frame_bytes = 0
    cdef size_t left, piece
    cdef uint64_t at, place, length
    cdef int i
    for i in range(count):
        frame_bytes += pieces[i].iov_len
    frame_bytes -= skip
    left = frame_bytes if frame_bytes < c.snap_bytes else c.snap_bytes
    length = (2 * sizeof(captured_t) + left - 1) // sizeof(captured_t) * sizeof(captured_t)
    if not capture_claim(c, length, &at):
        sm_add(&c.dropped, 1)
        return
    header = <captured_t *>(c.bytes + at % CAPTURE_BYTES)
    header.time_ns = realtime_ns()
    header.frame_bytes = <uint32_t>frame_bytes
    header.held_bytes = <uint32_t>left
    header.direction = <uint16_t>direction
    header.segment_bytes = sm_load16(vnet + 4) if skip and vnet[1] else 0
    place = at + sizeof(captured_t)
    for i in range(count):
        piece = pieces[i].iov_len - skip
        if piece > left:
            piece = left
        capture_copy(c, place, <const uint8_t *>pieces[i].iov_base + skip, piece)
        place += piece
        left -= piece
        skip = 0
    sm_release(&header.ready, length)
    sm_fence()
    if sm_flag(&c.idle) and sm_take_flag(&c.idle):
        signal_fd(c.wakeup_fd)


cdef inline void capture_frame(capture_t *c, int direction, const iovec *pieces, int count,
                               size_t skip) noexcept nogil:
    # Keeps a copy of the frame in `pieces` if there is room; any thread, at any time. `skip`:
    # 10 (VNET_HEADER_BYTES) when the first piece begins with a virtio header, else 0.
    sm_add(&c.inside, 1)
    if capture_on(c):
        capture_write(c, direction, pieces, count, skip)
    sm_add(&c.inside, <uint64_t>-1)


cdef inline void capture_start(capture_t *c, uint8_t *memory, uint32_t snap_bytes,
                               const void *only) noexcept nogil:
    # `memory`: CAPTURE_BYTES of 0, the caller's again after capture_stop(). `only`: of frames of that
    # port; NULL: of all.
    c.only = only
    c.bytes = memory
    c.snap_bytes = snap_bytes
    c.read = c.written = c.dropped = 0
    drain_fd(c.wakeup_fd)
    sm_set_flag(&c.idle, 1)
    sm_set_flag(&c.on, 1)


cdef inline uint8_t *capture_stop(capture_t *c) noexcept nogil:
    # The memory, which nobody uses any more; NULL when nothing was started.
    cdef uint8_t *memory = c.bytes
    sm_set_flag(&c.on, 0)
    sm_fence()
    while sm_acquire(&c.inside):
        sched_yield()
    c.bytes = NULL
    return memory


cdef inline const captured_t *capture_next(capture_t *c) noexcept nogil:
    # The oldest record; NULL: none is ready, and wakeup_fd will be signalled when one is.
    cdef captured_t *header = <captured_t *>(c.bytes + c.read % CAPTURE_BYTES)
    if sm_acquire(&header.ready):
        return header
    drain_fd(c.wakeup_fd)
    sm_set_flag(&c.idle, 1)
    sm_fence()
    if sm_acquire(&header.ready) == 0:
        return NULL
    sm_set_flag(&c.idle, 0)
    return header


cdef inline void capture_take(capture_t *c, uint8_t *to) noexcept nogil:
    # Copies held_bytes of the record that capture_next() returned, and gives its place back.
    cdef uint64_t start = c.read % CAPTURE_BYTES
    cdef const captured_t *header = <const captured_t *>(c.bytes + start)
    cdef uint64_t length = header.ready
    cdef size_t held = header.held_bytes
    cdef size_t begin = (start + sizeof(captured_t)) % CAPTURE_BYTES
    cdef size_t first = CAPTURE_BYTES - begin
    if first > held:
        first = held
    memcpy(to, c.bytes + begin, first)
    memcpy(to + first, c.bytes, held - first)
    first = CAPTURE_BYTES - start
    if first > length:
        first = length
    memset(c.bytes + start, 0, first)
    memset(c.bytes, 0, length - first)
    sm_release(&c.read, c.read + length)
