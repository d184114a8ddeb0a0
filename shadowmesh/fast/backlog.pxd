# Frames that wait for a WSS link which is slower than what comes: a queue for each flow, in turns.
#
#   backlog_park: to the end of its flow's queue
#   backlog_next: the first of the flow whose turn it is, after CoDel has dropped what it wants gone
#   backlog_take: that one has been sealed
#
# What is sealed keeps its order (protocol section 6), so who waits for whom is decided before. In
# the order of arrival a key press would wait for the whole upload in front of it: FlowQueue-CoDel
# (RFC 8290) lets a flow that has nothing waiting go first, shares the rest in turns of QUANTUM
# bytes, and drops from the head of a queue that stays long, which is what a TCP sender slows down
# for (RFC 8289). Nothing is reordered inside a flow.
#
# Frames stay where the TAP thread read them. The arena is a ring: room comes back in the order of
# arrival, whatever the order in which frames leave, so one that waits long holds what came after
# it; shed_for_room (link_out.pxd) drops the oldest for that.
#
#   arena | gap | oldest ... newest | batch being read | gap |
#
# All of it belongs to one TAP thread.

from libc.math cimport sqrt
from libc.stddef cimport size_t
from libc.stdlib cimport calloc, free
from .base cimport *
from .frame cimport *
from .session cimport INNER_FRAME
from .flow cimport flow_hash as hash_flow

cdef enum:
    BATCH_FRAMES = 64
    BATCH_BYTES = 256 * 1024
    # Between two slots there is room for the header of a fragment, which is written in front of the
    # second when the first may still be needed (udp_out.pxd). In front of the first there is, too.
    SLOT_GAP = 5
    # One read: inner type, virtio header, the largest super-frame; rounded to a cache line.
    SLOT_BYTES = (1 + VNET_HEADER_BYTES + MAX_SUPER_FRAME + SLOT_GAP + 63) // 64 * 64
    ARENA_MARGIN = 64
    ARENA_BYTES = 1024 * 1024 + SLOT_BYTES
    # For a fast link: what waits is read again soon, so let it stay in the processor's cache.
    FAST_ARENA_BYTES = BATCH_BYTES + 2 * SLOT_BYTES
    PARKED_FRAMES = 2048
    FLOWS = 256
    NOBODY = -1
    QUANTUM = 1514              # of RFC 8290: one full frame
    # Four times and twice those of RFC 8289: the hub that empties the ring is a process among others,
    # and what it is late on a busy machine is no sign of a slow link. Only bulk waits for it.
    CODEL_TARGET_NS = 20 * 1000000
    CODEL_INTERVAL_NS = 200 * 1000000

# In which list a flow stands.
cdef enum:
    UNLISTED = 0
    NEW = 1
    OLD = 2

ctypedef struct slot_t:
    uint8_t *inner              # inner type and body, in the arena
    uint32_t inner_bytes

ctypedef struct parked_t:
    slot_t slot
    uint64_t since_ns
    int flow                    # NOBODY: it has left
    int following               # of the same flow, an index in parked[]; NOBODY: none

ctypedef struct parked_flow_t:
    int first                   # indexes in parked[]; NOBODY: nothing waits
    int last
    int list
    int following               # in that list, an index in flows[]; NOBODY: none
    int64_t deficit             # bytes that it may send before it is the next one's turn
    # CoDel, RFC 8289 section 5
    int dropping
    uint32_t drops
    uint32_t last_drops
    uint64_t above_until_ns     # waiting longer than the target until then is borne; 0: it is not
    uint64_t next_drop_ns

ctypedef struct list_t:
    int first
    int last

ctypedef struct backlog_t:
    parked_t parked[PARKED_FRAMES]
    parked_flow_t flows[FLOWS]
    list_t lists[OLD + 1]
    uint64_t oldest             # numbers of frames, modulo PARKED_FRAMES an index in parked[]
    uint64_t next_number
    uint8_t *arena              # ARENA_BYTES
    size_t arena_end            # as much of it is in use
    size_t spare                # what was read and cut last ends here ...
    size_t spare_end            # ... and as much may be written behind it
    uint64_t waiting            # frames; read by the hub
    uint64_t waiting_bytes      # read by the hub


cdef inline const uint8_t *slot_frame(const slot_t *slot) noexcept nogil:
    if slot.inner[0] == INNER_FRAME:
        return slot.inner + 1
    return slot.inner + 1 + VNET_HEADER_BYTES


cdef inline backlog_t *backlog_new() noexcept nogil:
    # NULL: no memory.
    cdef backlog_t *backlog = <backlog_t *>calloc(1, sizeof(backlog_t))
    cdef int i
    if backlog == NULL:
        return NULL
    backlog.arena = <uint8_t *>calloc(1, ARENA_BYTES)
    if backlog.arena == NULL:
        free(backlog)
        return NULL
    backlog.arena_end = ARENA_BYTES
    for i in range(FLOWS):
        backlog.flows[i].first = NOBODY
        backlog.flows[i].following = NOBODY
    for i in range(OLD + 1):
        backlog.lists[i].first = NOBODY
    return backlog


cdef inline size_t slot_stride(size_t inner_bytes) noexcept nogil:
    # From the beginning of a slot to that of the next.
    return (inner_bytes + SLOT_GAP + 63) // 64 * 64


cdef inline void backlog_free(backlog_t *backlog) noexcept nogil:
    if backlog != NULL:
        sodium_memzero(backlog.arena, ARENA_BYTES)     # plaintext frames
        free(backlog.arena)
        free(backlog)


cdef inline void list_flow(backlog_t *backlog, int which, int flow) noexcept nogil:
    # To the end of a list; it stands in none.
    cdef list_t *list = &backlog.lists[which]
    backlog.flows[flow].list = which
    backlog.flows[flow].following = NOBODY
    if list.first == NOBODY:
        list.first = flow
    else:
        backlog.flows[list.last].following = flow
    list.last = flow


cdef inline void unlist_first(backlog_t *backlog, int which) noexcept nogil:
    cdef parked_flow_t *flow = &backlog.flows[backlog.lists[which].first]
    backlog.lists[which].first = flow.following
    flow.list = UNLISTED


cdef inline bint backlog_full(const backlog_t *backlog) noexcept nogil:
    # One more batch could not be parked whole.
    return backlog.next_number - backlog.oldest > PARKED_FRAMES - BATCH_FRAMES


cdef inline void backlog_park(backlog_t *backlog, const slot_t *slot, const uint8_t *frame,
                              uint64_t now_ns) noexcept nogil:
    # The caller read the batch while the backlog was not full. `frame`: the Ethernet header.
    cdef int index = <int>(backlog.next_number % PARKED_FRAMES)
    cdef int number = <int>(
        hash_flow(frame, slot.inner_bytes - (frame - slot.inner)) % FLOWS)
    cdef parked_flow_t *flow = &backlog.flows[number]
    cdef parked_t *parked = &backlog.parked[index]
    parked.slot = slot[0]
    parked.since_ns = now_ns
    parked.flow = number
    parked.following = NOBODY
    if flow.first == NOBODY:
        flow.first = index
    else:
        backlog.parked[flow.last].following = index
    flow.last = index
    if flow.list == UNLISTED:
        flow.deficit = QUANTUM
        list_flow(backlog, NEW, number)
    backlog.next_number += 1
    sm_count(&backlog.waiting, 1)
    sm_count(&backlog.waiting_bytes, slot.inner_bytes)


cdef inline void backlog_remove(backlog_t *backlog, int index) noexcept nogil:
    # The first one of its flow leaves; what it held of the arena is free when all older ones are.
    cdef parked_t *parked = &backlog.parked[index]
    backlog.flows[parked.flow].first = parked.following
    parked.flow = NOBODY
    sm_count(&backlog.waiting, <uint64_t>-1)
    sm_count(&backlog.waiting_bytes, -<uint64_t>parked.slot.inner_bytes)
    while (backlog.oldest < backlog.next_number
           and backlog.parked[backlog.oldest % PARKED_FRAMES].flow == NOBODY):
        backlog.oldest += 1


cdef inline void backlog_take(backlog_t *backlog, int index) noexcept nogil:
    # What backlog_next returned goes to the link.
    cdef parked_t *parked = &backlog.parked[index]
    backlog.flows[parked.flow].deficit -= parked.slot.inner_bytes
    backlog_remove(backlog, index)


cdef inline int backlog_oldest(const backlog_t *backlog) noexcept nogil:
    # The first of all in the order of arrival, and so of its flow; NOBODY when nothing waits.
    if not backlog.waiting:
        return NOBODY
    return <int>(backlog.oldest % PARKED_FRAMES)


cdef inline bint waits_too_long(const backlog_t *backlog, parked_flow_t *flow,
                                uint64_t now_ns) noexcept nogil:
    # RFC 8289 section 5.6, but that a flow's last frame is never dropped.
    if (flow.first == NOBODY or flow.first == flow.last
            or now_ns - backlog.parked[flow.first].since_ns < <uint64_t>CODEL_TARGET_NS):
        flow.above_until_ns = 0
        return False
    if flow.above_until_ns == 0:
        flow.above_until_ns = now_ns + <uint64_t>CODEL_INTERVAL_NS
        return False
    return now_ns >= flow.above_until_ns


cdef inline uint64_t codel_later(uint64_t from_ns, uint32_t drops) noexcept nogil:
    return from_ns + <uint64_t>(CODEL_INTERVAL_NS / sqrt(drops))


cdef inline int drop_what_waits(backlog_t *backlog, parked_flow_t *flow, uint64_t now_ns) noexcept nogil:
    # What CoDel drops before the flow sends its next frame: how many (RFC 8289 section 5.5).
    cdef bint too_long = waits_too_long(backlog, flow, now_ns)
    cdef int dropped = 0
    cdef uint32_t before
    if not too_long:
        flow.dropping = 0
        return 0
    if flow.dropping:
        while flow.dropping and now_ns >= flow.next_drop_ns:
            backlog_remove(backlog, flow.first)
            dropped += 1
            flow.drops += 1
            if waits_too_long(backlog, flow, now_ns):
                flow.next_drop_ns = codel_later(flow.next_drop_ns, flow.drops)
            else:
                flow.dropping = 0
        return dropped
    backlog_remove(backlog, flow.first)
    waits_too_long(backlog, flow, now_ns)
    flow.dropping = 1
    # It dropped a moment ago: near the rate at which that was enough.
    before = flow.drops - flow.last_drops
    flow.drops = 1
    if before > 1 and <int64_t>(now_ns - flow.next_drop_ns) < <int64_t>16 * CODEL_INTERVAL_NS:
        flow.drops = before
    flow.last_drops = flow.drops
    flow.next_drop_ns = codel_later(now_ns, flow.drops)
    return 1


cdef inline int backlog_next(backlog_t *backlog, uint64_t now_ns, bint dropping,
                             int *dropped) noexcept nogil:
    # Whose turn it is: an index in parked[], to be taken before anything else is, or asked for
    # again; NOBODY when nothing waits. `dropping`: CoDel is at work; `dropped` grows by what it
    # dropped.
    cdef int which, number
    cdef parked_flow_t *flow
    while True:
        which = NEW if backlog.lists[NEW].first != NOBODY else OLD
        number = backlog.lists[which].first
        if number == NOBODY:
            return NOBODY
        flow = &backlog.flows[number]
        if flow.deficit <= 0:
            flow.deficit += QUANTUM
            unlist_first(backlog, which)
            list_flow(backlog, OLD, number)
            continue
        if dropping:
            dropped[0] += drop_what_waits(backlog, flow, now_ns)
        if flow.first != NOBODY:
            return flow.first
        unlist_first(backlog, which)
        if which == NEW and backlog.lists[OLD].first != NOBODY:
            # Else a flow could be new again and again and starve the others.
            list_flow(backlog, OLD, number)


cdef inline size_t arena_room(const backlog_t *backlog, size_t wanted,
                              size_t *start) noexcept nogil:
    # How many bytes may be written from arena[start] on: at least `wanted`, or as many as there are.
    cdef size_t begin
    cdef size_t end = backlog.spare + ARENA_MARGIN
    start[0] = ARENA_MARGIN
    if not backlog.waiting:
        return backlog.arena_end - ARENA_MARGIN
    begin = <size_t>(backlog.parked[backlog.oldest % PARKED_FRAMES].slot.inner
                     - backlog.arena) // 64 * 64
    if begin >= backlog.spare:
        start[0] = end
        return begin - end if begin > end else 0
    if backlog.arena_end >= end + wanted:
        start[0] = end
        return backlog.arena_end - end
    return begin - ARENA_MARGIN if begin > ARENA_MARGIN else 0
