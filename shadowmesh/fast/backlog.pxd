# Frames that wait for their peer: of each peer a queue for each flow, in turns.
#
#   park_in_place, park_copy: to the end of its flow's queue
#   lane_next: the first of the flow whose turn it is, after CoDel has dropped what it wants gone
#   lane_take: that one is sealed next;  give_back: it has been
#
# What is sealed keeps its order (protocol section 6), so who waits for whom is decided before. In
# the order of arrival a key press would wait for the whole upload in front of it: FlowQueue-CoDel
# (RFC 8290) lets a flow that has nothing waiting go first, shares the rest in turns of QUANTUM
# bytes, and drops from the head of a queue that stays long, which is what a TCP sender slows down
# for (RFC 8289). Nothing is reordered inside a flow.
#
#   store   of a TAP thread: the arena that it reads into, and the frames that wait in it
#   lane    what a TAP thread has for one peer: its flows, and how its link was last seen
#
# Frames for a link that is behind only for a moment stay where they were read. The arena is a ring:
# room comes back in the order of arrival, whatever the order in which frames leave, so one that waits
# long holds what came after it. What waits for a slow link, or was read together with frames for
# others, is copied out, and gives its memory back when it leaves.
#
#   arena | gap | oldest ... newest | batch being read | gap |
#
# All of it belongs to one TAP thread.

from libc.math cimport sqrt
from libc.stddef cimport size_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from .base cimport *
from .frame cimport *
from .drop_reasons cimport *
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
    # A batch and what waits of the last one. What waits is read again soon, so it stays in the
    # processor's cache.
    ARENA_BYTES = BATCH_BYTES + 2 * SLOT_BYTES
    PARKED_FRAMES = 2048        # in the arena
    # Of one peer's frames so many wait, and so many bytes of those that are copied; of all peers' ...
    LANE_FRAMES = 2048
    LANE_BYTES = 1024 * 1024
    STORE_BYTES = 16 * 1024 * 1024
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
    uint8_t *inner              # inner type and body, in the arena or a copy
    uint32_t inner_bytes

cdef struct lane_t

cdef struct parked_t:
    slot_t slot
    uint64_t since_ns
    lane_t *lane                # NULL: it has left
    parked_t *later             # of the same flow
    parked_t *earlier
    parked_t *after             # of the same lane, in the order of arrival
    parked_t *before
    int flow                    # an index in flows[]
    int copied                  # the bytes are behind it, not in the arena

ctypedef struct parked_flow_t:
    parked_t *first             # NULL: nothing waits
    parked_t *last
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

ctypedef struct flows_t:
    parked_flow_t flows[FLOWS]
    list_t lists[OLD + 1]

cdef struct lane_t:
    void *port                  # whose it is, a port_t
    flows_t *flows              # NULL: nothing has waited lately
    parked_t *first             # in the order of arrival; NULL: nothing waits
    parked_t *last
    uint64_t waiting            # frames; read by the hub
    uint64_t waiting_bytes      # read by the hub
    uint64_t copied_bytes
    lane_t *following           # in the queue's list of those that have flows
    int listed                  # it stands there
    int stalled                 # the link took nothing of this lane's frames for STALL_MS
    int slow                    # the link was when it was last looked at: what waits is copied
    int very_slow               # and super-frames are cut
    int over_udp                # its frames leave that way; read by the hub
    uint64_t taken_until        # how far the link had come when it was last seen to move ...
    uint64_t taken_ns           # ... and when that was
    uint64_t emptied_ns         # nothing waits since then
    uint64_t frames             # that were handed to a link or a socket; these three read by the hub
    uint64_t bytes
    uint64_t dropped[DROP_REASONS]

ctypedef struct store_t:
    parked_t parked[PARKED_FRAMES]
    uint64_t oldest             # numbers of frames in the arena, modulo PARKED_FRAMES an index in ...
    uint64_t next_number        # ... parked[]
    uint64_t waiting            # frames of all lanes; these three read by the hub
    uint64_t waiting_bytes
    uint64_t copied_bytes
    parked_t *taken             # copies that left their lanes and may still be in use
    uint8_t *arena              # ARENA_BYTES
    size_t spare                # what was read and cut last ends here


cdef inline const uint8_t *slot_frame(const slot_t *slot) noexcept nogil:
    if slot.inner[0] == INNER_FRAME:
        return slot.inner + 1
    return slot.inner + 1 + VNET_HEADER_BYTES


cdef inline store_t *store_new() noexcept nogil:
    # NULL: no memory.
    cdef store_t *store = <store_t *>calloc(1, sizeof(store_t))
    if store == NULL:
        return NULL
    store.arena = <uint8_t *>calloc(1, ARENA_BYTES)
    if store.arena == NULL:
        free(store)
        return NULL
    return store


cdef inline void store_free(store_t *store) noexcept nogil:
    # Nothing waits in it any more.
    if store != NULL:
        sodium_memzero(store.arena, ARENA_BYTES)     # plaintext frames
        free(store.arena)
        free(store)


cdef inline size_t slot_stride(size_t inner_bytes) noexcept nogil:
    # From the beginning of a slot to that of the next.
    return (inner_bytes + SLOT_GAP + 63) // 64 * 64


cdef inline bint store_full(const store_t *store) noexcept nogil:
    # One more batch could not wait where it is read.
    return store.next_number - store.oldest > PARKED_FRAMES - BATCH_FRAMES


cdef inline size_t arena_room(const store_t *store, size_t wanted, size_t *start) noexcept nogil:
    # How many bytes may be written from arena[start] on: at least `wanted`, or as many as there are.
    cdef size_t begin
    cdef size_t end = store.spare + ARENA_MARGIN
    start[0] = ARENA_MARGIN
    if store.oldest == store.next_number:
        return ARENA_BYTES - ARENA_MARGIN
    begin = <size_t>(store.parked[store.oldest % PARKED_FRAMES].slot.inner - store.arena) // 64 * 64
    if begin >= store.spare:
        start[0] = end
        return begin - end if begin > end else 0
    if ARENA_BYTES >= end + wanted:
        start[0] = end
        return ARENA_BYTES - end
    return begin - ARENA_MARGIN if begin > ARENA_MARGIN else 0


# --- Flows of a lane ------------------------------------------------------------------------------


cdef inline bint lane_provide(lane_t *lane) noexcept nogil:
    # What frames need to wait. False: no memory.
    cdef int i
    if lane.flows != NULL:
        return True
    lane.flows = <flows_t *>calloc(1, sizeof(flows_t))
    if lane.flows == NULL:
        return False
    for i in range(FLOWS):
        lane.flows.flows[i].following = NOBODY
    for i in range(OLD + 1):
        lane.flows.lists[i].first = NOBODY
    return True


cdef inline void list_flow(flows_t *flows, int which, int flow) noexcept nogil:
    # To the end of a list; it stands in none.
    cdef list_t *list = &flows.lists[which]
    flows.flows[flow].list = which
    flows.flows[flow].following = NOBODY
    if list.first == NOBODY:
        list.first = flow
    else:
        flows.flows[list.last].following = flow
    list.last = flow


cdef inline void unlist_first(flows_t *flows, int which) noexcept nogil:
    cdef parked_flow_t *flow = &flows.flows[flows.lists[which].first]
    flows.lists[which].first = flow.following
    flow.list = UNLISTED


cdef inline void park(store_t *store, lane_t *lane, parked_t *parked, uint64_t now_ns) noexcept nogil:
    # At the end of its flow and of the lane, which has flows. Its slot is complete.
    cdef const uint8_t *frame = slot_frame(&parked.slot)
    cdef int number = <int>(
        hash_flow(frame, parked.slot.inner_bytes - (frame - parked.slot.inner)) % FLOWS)
    cdef parked_flow_t *flow = &lane.flows.flows[number]
    parked.since_ns = now_ns
    parked.lane = lane
    parked.flow = number
    parked.later = parked.after = NULL
    parked.earlier = flow.last if flow.first != NULL else NULL
    parked.before = lane.last if lane.first != NULL else NULL
    if flow.first == NULL:
        flow.first = parked
    else:
        flow.last.later = parked
    flow.last = parked
    if lane.first == NULL:
        lane.first = parked
    else:
        lane.last.after = parked
    lane.last = parked
    if flow.list == UNLISTED:
        flow.deficit = QUANTUM
        list_flow(lane.flows, NEW, number)
    sm_count(&lane.waiting, 1)
    sm_count(&lane.waiting_bytes, parked.slot.inner_bytes)
    sm_count(&store.waiting, 1)
    sm_count(&store.waiting_bytes, parked.slot.inner_bytes)


cdef inline void park_in_place(store_t *store, lane_t *lane, const slot_t *slot,
                               uint64_t now_ns) noexcept nogil:
    # A slot of the batch that was read last, while the store was not full. The lane has flows.
    cdef parked_t *parked = &store.parked[store.next_number % PARKED_FRAMES]
    parked.slot = slot[0]
    parked.copied = 0
    store.next_number += 1
    park(store, lane, parked, now_ns)


cdef inline parked_t *parked_copy(const uint8_t *inner, size_t inner_bytes) noexcept nogil:
    # NULL: no memory.
    cdef parked_t *parked = <parked_t *>malloc(sizeof(parked_t) + ARENA_MARGIN + inner_bytes)
    if parked == NULL:
        return NULL
    parked.slot.inner = <uint8_t *>parked + sizeof(parked_t) + ARENA_MARGIN
    parked.slot.inner_bytes = <uint32_t>inner_bytes
    parked.copied = 1
    memcpy(parked.slot.inner, inner, inner_bytes)
    return parked


cdef inline bint park_copy(store_t *store, lane_t *lane, const uint8_t *inner, size_t inner_bytes,
                           uint64_t now_ns) noexcept nogil:
    # False: there is no memory, or too many wait. The lane has flows.
    cdef parked_t *parked
    if (lane.waiting >= <uint64_t>LANE_FRAMES
            or lane.copied_bytes + inner_bytes > <uint64_t>LANE_BYTES
            or store.copied_bytes + inner_bytes > <uint64_t>STORE_BYTES):
        return False
    parked = parked_copy(inner, inner_bytes)
    if parked == NULL:
        return False
    lane.copied_bytes += inner_bytes
    store.copied_bytes += inner_bytes
    park(store, lane, parked, now_ns)
    return True


cdef inline void replace_neighbours(lane_t *lane, parked_t *parked, parked_t *by_flow,
                                    parked_t *by_flow_back, parked_t *by_lane,
                                    parked_t *by_lane_back) noexcept nogil:
    # What points to a parked frame from before it points to `by_flow` and `by_lane` now, and from
    # behind it to the other two.
    cdef parked_flow_t *flow = &lane.flows.flows[parked.flow]
    if parked.earlier != NULL:
        parked.earlier.later = by_flow
    else:
        flow.first = by_flow
    if parked.later != NULL:
        parked.later.earlier = by_flow_back
    else:
        flow.last = by_flow_back
    if parked.before != NULL:
        parked.before.after = by_lane
    else:
        lane.first = by_lane
    if parked.after != NULL:
        parked.after.before = by_lane_back
    else:
        lane.last = by_lane_back


cdef inline void free_oldest(store_t *store) noexcept nogil:
    # What those held of the arena that have left.
    while (store.oldest < store.next_number
           and store.parked[store.oldest % PARKED_FRAMES].lane == NULL):
        store.oldest += 1


cdef inline void lane_remove(store_t *store, parked_t *parked) noexcept nogil:
    # It leaves its lane. What it held of the arena is free when all older ones are; a copy stays until
    # give_back().
    cdef lane_t *lane = parked.lane
    replace_neighbours(lane, parked, parked.later, parked.earlier, parked.after, parked.before)
    parked.lane = NULL
    sm_count(&lane.waiting, <uint64_t>-1)
    sm_count(&lane.waiting_bytes, -<uint64_t>parked.slot.inner_bytes)
    sm_count(&store.waiting, <uint64_t>-1)
    sm_count(&store.waiting_bytes, -<uint64_t>parked.slot.inner_bytes)
    if parked.copied:
        lane.copied_bytes -= parked.slot.inner_bytes
        store.copied_bytes -= parked.slot.inner_bytes
        parked.after = store.taken
        store.taken = parked
    else:
        free_oldest(store)


cdef inline void lane_take(store_t *store, parked_t *parked) noexcept nogil:
    # What lane_next returned is sealed next.
    parked.lane.flows.flows[parked.flow].deficit -= parked.slot.inner_bytes
    lane_remove(store, parked)


cdef inline void give_back(store_t *store) noexcept nogil:
    # Copies that have left: nobody uses them any more.
    cdef parked_t *parked = store.taken
    while parked != NULL:
        store.taken = parked.after
        free(parked)
        parked = store.taken


cdef inline bint move_oldest(store_t *store) noexcept nogil:
    # Copies the frame that waits longest out of the arena, to where it stands. False: there is none,
    # its lane has too many, or there is no memory.
    cdef parked_t *parked = &store.parked[store.oldest % PARKED_FRAMES]
    cdef parked_t *copy
    cdef lane_t *lane
    if store.oldest == store.next_number:
        return False
    lane = parked.lane
    if (lane.copied_bytes + parked.slot.inner_bytes > <uint64_t>LANE_BYTES
            or store.copied_bytes + parked.slot.inner_bytes > <uint64_t>STORE_BYTES):
        return False
    copy = parked_copy(parked.slot.inner, parked.slot.inner_bytes)
    if copy == NULL:
        return False
    copy.since_ns = parked.since_ns
    copy.lane = lane
    copy.flow = parked.flow
    copy.later = parked.later
    copy.earlier = parked.earlier
    copy.after = parked.after
    copy.before = parked.before
    replace_neighbours(lane, parked, copy, copy, copy, copy)
    lane.copied_bytes += copy.slot.inner_bytes
    store.copied_bytes += copy.slot.inner_bytes
    parked.lane = NULL
    free_oldest(store)
    return True


cdef inline bint waits_too_long(parked_flow_t *flow, uint64_t now_ns) noexcept nogil:
    # RFC 8289 section 5.6, but that a flow's last frame is never dropped.
    if (flow.first == NULL or flow.first == flow.last
            or now_ns - flow.first.since_ns < <uint64_t>CODEL_TARGET_NS):
        flow.above_until_ns = 0
        return False
    if flow.above_until_ns == 0:
        flow.above_until_ns = now_ns + <uint64_t>CODEL_INTERVAL_NS
        return False
    return now_ns >= flow.above_until_ns


cdef inline uint64_t codel_later(uint64_t from_ns, uint32_t drops) noexcept nogil:
    return from_ns + <uint64_t>(CODEL_INTERVAL_NS / sqrt(drops))


cdef inline int drop_what_waits(store_t *store, parked_flow_t *flow, uint64_t now_ns) noexcept nogil:
    # What CoDel drops before the flow sends its next frame: how many (RFC 8289 section 5.5).
    cdef bint too_long = waits_too_long(flow, now_ns)
    cdef int dropped = 0
    cdef uint32_t before
    if not too_long:
        flow.dropping = 0
        return 0
    if flow.dropping:
        while flow.dropping and now_ns >= flow.next_drop_ns:
            lane_remove(store, flow.first)
            dropped += 1
            flow.drops += 1
            if waits_too_long(flow, now_ns):
                flow.next_drop_ns = codel_later(flow.next_drop_ns, flow.drops)
            else:
                flow.dropping = 0
        return dropped
    lane_remove(store, flow.first)
    waits_too_long(flow, now_ns)
    flow.dropping = 1
    # It dropped a moment ago: near the rate at which that was enough.
    before = flow.drops - flow.last_drops
    flow.drops = 1
    if before > 1 and <int64_t>(now_ns - flow.next_drop_ns) < <int64_t>16 * CODEL_INTERVAL_NS:
        flow.drops = before
    flow.last_drops = flow.drops
    flow.next_drop_ns = codel_later(now_ns, flow.drops)
    return 1


cdef inline parked_t *lane_next(store_t *store, lane_t *lane, uint64_t now_ns, bint dropping,
                                int *dropped) noexcept nogil:
    # Whose turn it is, to be taken before anything else is, or asked for again; NULL when nothing
    # waits. `dropping`: CoDel is at work; `dropped` grows by what it dropped.
    cdef flows_t *flows = lane.flows
    cdef int which, number
    cdef parked_flow_t *flow
    if flows == NULL:
        return NULL
    while True:
        which = NEW if flows.lists[NEW].first != NOBODY else OLD
        number = flows.lists[which].first
        if number == NOBODY:
            return NULL
        flow = &flows.flows[number]
        if flow.deficit <= 0:
            flow.deficit += QUANTUM
            unlist_first(flows, which)
            list_flow(flows, OLD, number)
            continue
        if dropping:
            dropped[0] += drop_what_waits(store, flow, now_ns)
        if flow.first != NULL:
            return flow.first
        unlist_first(flows, which)
        if which == NEW and flows.lists[OLD].first != NOBODY:
            # Else a flow could be new again and again and starve the others.
            list_flow(flows, OLD, number)
