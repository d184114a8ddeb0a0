# The ring of finished WebSocket messages between those who seal and who moves them to TLS.
#
#   producers (TAP threads, hub; under the ring's lock)         consumer (connection.pxd; no lock)
#   ring_reserve -> fill -> ring_commit -> ring_wake  --eventfd-->  ring_peek -> ring_consume
#
# The lock is held to seal one message, and who comes next gets it next: the hub, which has others to
# look after, waits for one message and not for a TAP thread's whole batch.
#
# One block of memory; a message never wraps: when the end is too near, the rest of the block is
# left unused (`wrap`) and writing goes on at 0. Beside the bytes runs a ring of one entry per
# message, so that a link that dies can say how many frames it took with it.
#
# How much of the block frames may use follows the link (`limit`): what is in the ring is sealed and
# keeps its order, so all that comes later waits for it. The consumer measures how fast bytes leave
# while there are some, and lets wait what leaves within QUEUE_NS. A limit that is too low shows by
# the ring running empty soon after it was full, and is doubled. What the kernel holds unsent is a
# queue as well: see ring_piece.

from libc.stddef cimport size_t
from .base cimport *
from .frame cimport MAX_SUPER_FRAME

cdef enum:
    RING_BYTES = 512 * 1024
    RING_MESSAGES = 16384       # more than the smallest messages that RING_BYTES can hold
    CONTROL_RESERVE = 8192      # what frames leave free for the hub's own records
    QUEUE_NS = 10 * 1000000     # what may wait leaves within this; at 400 Mbit/s it is RING_BYTES
    FIRST_LIMIT = 128 * 1024    # before anything is known; doubled within milliseconds
    MIN_LIMIT = 4 * 1024
    # An empty ring begins again at its front: what an idle link never needs stays untouched memory.
    REWIND_BYTES = 4 * 1024
    WINDOW_NS = 20 * 1000000    # a rate is measured over at least this
    # TAP threads that a plane may have, each of which may wait for space in a ring.
    MAX_QUEUES = 4

ctypedef struct ring_entry_t:
    uint32_t length
    uint32_t frames

ctypedef struct ring_t:
    pthread_mutex_t lock        # the producers': of what is theirs below, and of the counters of
                                # the records in it, which have to be in the order of its bytes
    pthread_mutex_t next        # of who waits for that lock
    uint32_t mask_used          # of the pool
    uint8_t mask_pool[256]      # randomness for WebSocket masks, refilled when used up; under lock
    uint8_t *bytes
    ring_entry_t *entries
    uint64_t written            # next byte to write; the producers'
    uint64_t read               # next byte to read; the consumer's
    uint64_t wrap               # where the data before `written` < `read` ends
    uint64_t entry_written      # counts messages, modulo RING_MESSAGES an index
    uint64_t entry_read
    uint64_t entry_left         # bytes of entry_read's message not yet consumed
    uint64_t frames_in          # frames committed; the producers'
    uint64_t frames_out         # frames handed to the socket; the consumer's
    uint64_t frames_booked      # committed before a session let go of the ring, and counted then
    uint64_t limit              # frames may be added while less than this waits; the consumer's
    uint64_t busy_since_ns      # the consumer's: never empty since then; 0: it was just now
    uint64_t busy_bytes         # consumed since then
    uint64_t passed             # consumed before the ring last began again
    uint64_t reached            # the end of what was used since memory was given back; the consumer's
    uint64_t entry_reached      # ... and of the entries
    int filled                  # a producer met the limit in this window
    int idle                    # the consumer sleeps and wants wakeup_fd
    int starved                 # a bit for each TAP thread that waits for space on its space_fd
    int wakeup_fd
    int space_fds[MAX_QUEUES]


cdef inline void ring_init(ring_t *ring) noexcept nogil:
    # The rest of a new ring is zero, but for its memory and descriptors.
    pthread_mutex_init(&ring.lock, NULL)
    pthread_mutex_init(&ring.next, NULL)
    ring.mask_used = sizeof(ring.mask_pool)
    ring.idle = 1
    ring.limit = FIRST_LIMIT


cdef inline void ring_done(ring_t *ring) noexcept nogil:
    pthread_mutex_destroy(&ring.lock)
    pthread_mutex_destroy(&ring.next)


cdef inline void ring_lock(ring_t *ring) noexcept nogil:
    # A mutex alone may go again and again to the thread that has just let go of it.
    pthread_mutex_lock(&ring.next)
    pthread_mutex_lock(&ring.lock)
    pthread_mutex_unlock(&ring.next)


cdef inline void ring_unlock(ring_t *ring) noexcept nogil:
    pthread_mutex_unlock(&ring.lock)


cdef inline void next_mask(ring_t *ring, uint8_t *mask) noexcept nogil:
    # RFC 6455 section 5.3 wants masks that nobody can guess. Under the lock.
    if ring.mask_used + 4 > sizeof(ring.mask_pool):
        randombytes_buf(ring.mask_pool, sizeof(ring.mask_pool))
        ring.mask_used = 0
    sm_store32(mask, sm_load32(ring.mask_pool + ring.mask_used))
    ring.mask_used += 4


cdef inline uint64_t ring_waiting(const ring_t *ring) noexcept nogil:
    # Bytes that are not consumed yet.
    cdef uint64_t start = sm_acquire(&ring.read)
    cdef uint64_t end = sm_acquire(&ring.written)
    return end - start if end >= start else sm_acquire(&ring.wrap) - start + end


cdef inline uint64_t ring_allowance(const ring_t *ring) noexcept nogil:
    # Bytes of frames that may be added now; the last frame may be longer than what is left.
    cdef uint64_t limit = sm_acquire(&ring.limit)
    cdef uint64_t waiting = ring_waiting(ring)
    return limit - waiting if limit > waiting else 0


cdef inline bint ring_slow(const ring_t *ring) noexcept nogil:
    # Whether the link is so slow that what waits has to be kept short.
    return sm_acquire(&ring.limit) < RING_BYTES


cdef inline bint ring_very_slow(const ring_t *ring) noexcept nogil:
    # Whether one super-frame would hold up the link for longer than may wait in it.
    return sm_acquire(&ring.limit) < MAX_SUPER_FRAME


cdef inline size_t ring_piece(const ring_t *ring) noexcept nogil:
    # What is to be handed to the socket at a time: a quarter of the ring, on a slow link an eighth
    # of the limit, in powers of two so that it changes rarely.
    cdef uint64_t limit = sm_acquire(&ring.limit)
    cdef size_t piece = MIN_LIMIT
    if limit >= RING_BYTES:
        return RING_BYTES // 4
    while 16 * piece <= limit:
        piece *= 2
    return piece


cdef inline void ring_measure(ring_t *ring, size_t length, uint64_t now_ns) noexcept nogil:
    # After each consumption. The mean of two windows: one late hub must not count for much.
    cdef uint64_t elapsed, limit
    if ring.busy_since_ns == 0:
        # How long these bytes took is not known: the clock starts when they are gone.
        ring.busy_since_ns = now_ns
        return
    ring.busy_bytes += length
    elapsed = now_ns - ring.busy_since_ns
    if elapsed < <uint64_t>WINDOW_NS:
        return
    limit = (ring.limit + ring.busy_bytes * <uint64_t>QUEUE_NS // elapsed) // 2
    if limit < MIN_LIMIT:
        limit = MIN_LIMIT
    if limit > RING_BYTES:
        limit = RING_BYTES
    sm_release(&ring.limit, limit)
    sm_set_flag(&ring.filled, 0)
    ring.busy_since_ns = now_ns
    ring.busy_bytes = 0


cdef inline void ring_ran_empty(ring_t *ring) noexcept nogil:
    # Full and empty within one window: the link is faster than was thought.
    ring.busy_since_ns = 0
    ring.busy_bytes = 0
    if sm_take_flag(&ring.filled) and ring.limit < RING_BYTES:
        sm_release(&ring.limit, min(2 * ring.limit, <uint64_t>RING_BYTES))


cdef inline size_t ring_space(ring_t *ring) noexcept nogil:
    # Bytes that one message may take now. Only grows until the next ring_reserve. The consumer asks,
    # too, and may hear of more than there is while a message is committed.
    cdef uint64_t read_at = sm_acquire(&ring.read)
    cdef uint64_t written = sm_counted(&ring.written)
    cdef uint64_t front
    if sm_acquire(&ring.entry_read) + RING_MESSAGES <= sm_counted(&ring.entry_written):
        return 0
    if written < read_at:
        return read_at - written - 1
    front = read_at - 1 if read_at > 0 else 0
    if RING_BYTES - written >= front:
        return RING_BYTES - written
    return front


cdef inline uint64_t ring_sent(ring_t *ring) noexcept nogil:
    # Frames since the last ring_book that were handed to the socket. What had been booked as lost
    # may leave all the same and does not count again.
    cdef uint64_t gone = sm_counted(&ring.frames_out)
    return gone - ring.frames_booked if gone > ring.frames_booked else 0


cdef inline uint64_t ring_queued(ring_t *ring) noexcept nogil:
    # Frames since the last ring_book that still wait.
    return sm_counted(&ring.frames_in) - ring.frames_booked - ring_sent(ring)


cdef inline void ring_book(ring_t *ring) noexcept nogil:
    ring.frames_booked = sm_counted(&ring.frames_in)


cdef inline uint8_t *ring_reserve(ring_t *ring, size_t length) noexcept nogil:
    # Where a message of `length` <= ring_space(ring) bytes is to be written; NULL without space.
    cdef uint64_t read_at
    if length > ring_space(ring):
        return NULL
    read_at = sm_acquire(&ring.read)
    if ring.written >= read_at and RING_BYTES - ring.written < length:
        return ring.bytes
    return ring.bytes + ring.written


cdef inline void ring_commit(ring_t *ring, uint8_t *message, size_t length,
                             uint32_t frames) noexcept nogil:
    # Once or several times before ring_wake() or ring_sleeps().
    cdef ring_entry_t *entry = &ring.entries[ring.entry_written % RING_MESSAGES]
    cdef uint64_t start = <uint64_t>(message - ring.bytes)
    entry.length = <uint32_t>length
    entry.frames = frames
    if start < ring.written:
        sm_release(&ring.wrap, ring.written)
    sm_release(&ring.entry_written, ring.entry_written + 1)
    sm_count(&ring.frames_in, frames)
    sm_release(&ring.written, start + length)


cdef inline bint ring_sleeps(ring_t *ring) noexcept nogil:
    # Whether the consumer has to be woken for what was committed; who is told so has to see to it.
    sm_fence()
    return sm_flag(&ring.idle) and sm_take_flag(&ring.idle)


cdef inline void ring_wake(ring_t *ring) noexcept nogil:
    if ring_sleeps(ring):
        signal_fd(ring.wakeup_fd)


cdef inline bint ring_has_room(ring_t *ring) noexcept nogil:
    # Enough for a producer that waits to be woken.
    return (ring_space(ring) >= RING_BYTES // 4
            and 4 * ring_allowance(ring) >= sm_acquire(&ring.limit))


cdef inline void ring_wake_starved(ring_t *ring) noexcept nogil:
    # Those who wait for space, if there is enough now.
    cdef int i, starved
    sm_fence()
    if sm_flag(&ring.starved) and ring_has_room(ring):
        starved = sm_take_flag(&ring.starved)
        for i in range(MAX_QUEUES):
            if starved & 1 << i:
                signal_fd(ring.space_fds[i])


cdef inline uint64_t ring_position(const ring_t *ring) noexcept nogil:
    # Another one says that the consumer has taken something meanwhile, though not how much: it may be
    # beginning again.
    return sm_acquire(&ring.passed) + sm_acquire(&ring.read)


cdef inline void ring_begin_again(ring_t *ring) noexcept nogil:
    # The consumer's, of an empty ring and under the lock. Who looks in between without it sees a full
    # ring.
    ring.reached = max(ring.reached, ring.read)
    ring.entry_reached = max(ring.entry_reached, ring.entry_read)
    sm_release(&ring.passed, ring.passed + ring.read)
    sm_release(&ring.read, 0)
    sm_release(&ring.written, 0)
    sm_release(&ring.entry_read, 0)
    sm_release(&ring.entry_written, 0)


cdef inline void ring_rewind(ring_t *ring) noexcept nogil:
    # The consumer's, of an empty ring, unless a producer is at it.
    if ring.read < REWIND_BYTES or pthread_mutex_trylock(&ring.lock) != 0:
        return
    if ring.written == ring.read:
        ring_begin_again(ring)
    pthread_mutex_unlock(&ring.lock)
    ring_wake_starved(ring)


cdef inline void ring_give_back(ring_t *ring) noexcept nogil:
    # The consumer's: gives the memory of a burst back, when the ring is empty and no producer at it.
    # Its memory is from mmap().
    if (max(ring.reached, ring.read) <= <uint64_t>KEPT_BYTES
            and max(ring.entry_reached, ring.entry_read) * sizeof(ring_entry_t) <= <uint64_t>KEPT_BYTES):
        return
    if pthread_mutex_trylock(&ring.lock) != 0:
        return
    if ring.written == ring.read:
        ring_begin_again(ring)
        give_pages_back(ring.bytes, KEPT_BYTES, ring.reached)
        give_pages_back(<uint8_t *>ring.entries, KEPT_BYTES,
                        min(ring.entry_reached, <uint64_t>RING_MESSAGES) * sizeof(ring_entry_t))
        ring.reached = ring.entry_reached = 0
    pthread_mutex_unlock(&ring.lock)
    ring_wake_starved(ring)


cdef inline size_t ring_peek(ring_t *ring, uint8_t **start) noexcept nogil:
    # Contiguous bytes ready to send; 0: empty, and wakeup_fd will be signalled at the next commit. Who
    # polls that drains it before.
    cdef uint64_t written
    while True:
        written = sm_acquire(&ring.written)
        if written < ring.read and ring.read == sm_acquire(&ring.wrap):
            ring.reached = RING_BYTES
            sm_release(&ring.read, 0)
        if written != ring.read:
            start[0] = ring.bytes + ring.read
            return (written if written > ring.read else ring.wrap) - ring.read
        sm_set_flag(&ring.idle, 1)
        sm_fence()
        if sm_acquire(&ring.written) == ring.read:
            ring_ran_empty(ring)
            ring_rewind(ring)
            return 0
        sm_set_flag(&ring.idle, 0)


cdef inline void ring_consume(ring_t *ring, size_t length, uint64_t now_ns) noexcept nogil:
    # `length` bytes from the last ring_peek have left, the last of them just now.
    cdef uint64_t left = length
    cdef ring_entry_t *entry
    while left:
        entry = &ring.entries[ring.entry_read % RING_MESSAGES]
        if ring.entry_left == 0:
            ring.entry_left = entry.length
        if left < ring.entry_left:
            ring.entry_left -= left
            break
        left -= ring.entry_left
        ring.entry_left = 0
        sm_count(&ring.frames_out, entry.frames)
        sm_release(&ring.entry_read, ring.entry_read + 1)
    sm_release(&ring.read, ring.read + length)
    ring_measure(ring, length, now_ns)
    ring_wake_starved(ring)


cdef inline bint ring_starve(ring_t *ring, int queue) noexcept nogil:
    # For a producer that found no space: True when it is to wait for its space_fd. The reader may
    # have made room before the flag was up, and then signals nobody: hence the second look.
    sm_set_flag(&ring.filled, 1)
    sm_raise_bits(&ring.starved, 1 << queue)
    sm_fence()
    if not ring_has_room(ring):
        return True
    sm_lower_bits(&ring.starved, 1 << queue)
    return False
