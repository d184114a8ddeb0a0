# What of the frames goes over UDP now, and what waits because the host holds enough already.
#
#   batch --the host holds little--> seal_slots, send_outbox (udp_out.pxd)
#         '-it holds what the line takes in 5 ms (line.pxd)--> backlog --by turns, as it drains--> seal
#
# The same turns as on a slow link (backlog.pxd): a flow that has nothing waiting goes first, CoDel
# drops from one that waits for long. All of it runs in the TAP threads, each on its own queue.

from libc.stddef cimport size_t
from .base cimport *
from .drop_reasons cimport *
from .backlog cimport *
from .capture cimport *
from .datagram cimport *
from .frame cimport *
from .line cimport *
from .link_out cimport capture_slots, judge_slot, park_copy, park_segments
from .peers cimport *
from .plane cimport *
from .session cimport *
from .tap cimport *
from .udp_out cimport *

cdef enum:
    # What is chosen at a time, of what the line takes: the one that comes next is chosen later.
    LINE_PORTIONS = 4
    # The kernel says that there is room when a socket is half empty. The hub's own datagrams find
    # room when frames wait.
    BUFFER_NUMERATOR = 3        # of 4; the kernel doubles it


cdef inline void set_buffer(const udp_t *udp, uint64_t limit) noexcept nogil:
    # Room for the hub above the limit; who waits is woken when a quarter of it is free.
    cdef int size = <int>(limit * BUFFER_NUMERATOR // 4)
    if setsockopt(udp.fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0:
        setsockopt(udp.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size))


cdef inline uint64_t line_room(udp_t *udp, uint64_t now_ns) noexcept nogil:
    # Bytes that may be handed to the socket now, about.
    cdef line_t *line = &udp.line
    cdef uint64_t limit = sm_acquire(&line.limit)
    cdef int held = 0
    if not line_look_due(line, now_ns):
        return limit // 2
    if ioctl(udp.fd, SIOCOUTQ, &held) < 0:
        return limit
    if sm_take_flag(&line.free):
        line_learn(line, <uint64_t>held, now_ns)
        if line.limit != limit:
            set_buffer(udp, line.limit)
            limit = line.limit
        sm_set_flag(&line.free, 1)
    return limit - <uint64_t>held if limit > <uint64_t>held else 0


cdef inline void park_for_line(queue_t *queue, const route_t *route, int first,
                               uint64_t now_ns) noexcept nogil:
    # The rest of the batch waits. A super-frame would hold up a slow line for tens of milliseconds:
    # there it waits in pieces.
    cdef uint32_t most_bytes = <uint32_t>(route.payload_bytes - AAD_BYTES
                                          - tag_bytes(route.epoch.cipher) - 1 - VNET_HEADER_BYTES)
    cdef const slot_t *slot
    cdef int i
    for i in range(first, queue.batch):
        slot = &queue.slots[i]
        if not queue.very_slow:
            backlog_park(queue.backlog, slot, slot_frame(slot), now_ns)
        elif not is_super(slot) or not park_segments(queue, slot, most_bytes, now_ns):
            park_copy(queue, slot.inner, slot.inner_bytes, now_ns)
    queue.batch = 0


cdef inline void choose_for_line(queue_t *queue, const route_t *route, uint64_t room,
                                 uint64_t now_ns) noexcept nogil:
    # Fills the slots with those whose turn it is, one or as many as there is room for.
    cdef slot_t *slot
    cdef uint64_t chosen = 0
    cdef int dropped = 0
    cdef int index, verdict
    queue.batch = 0
    while queue.batch < BATCH_FRAMES:
        index = backlog_next(queue.backlog, now_ns, queue.slow, &dropped)
        if index == NOBODY:
            break
        slot = &queue.slots[queue.batch]
        slot[0] = queue.backlog.parked[index].slot
        chosen += slot.inner_bytes
        if chosen > room and queue.batch:
            break
        backlog_take(queue.backlog, index)
        verdict = judge_slot(slot, route)
        if verdict == KEEP:
            queue.batch += 1
        else:
            drop_outgoing(queue, verdict, 1)
    drop_outgoing(queue, DROP_QUEUE_FULL, dropped)


cdef inline uint64_t batch_bytes(const queue_t *queue, int first) noexcept nogil:
    cdef uint64_t total = 0
    for i in range(first, queue.batch):
        total += queue.slots[i].inner_bytes
    return total


cdef inline void seal_and_send(plane_t *plane, queue_t *queue, session_t *session,
                               const route_t *route, int *first, uint64_t now_ns) noexcept nogil:
    # Slots from `first` on, as many as the outbox holds. The route is pinned no more then.
    if queue.captured < queue.batch and capture_on(&plane.capture):
        # Before the first is sealed, because cutting a super-frame writes into it.
        capture_slots(&plane.capture, &queue.slots[queue.captured], queue.batch - queue.captured)
    queue.captured = queue.batch
    first[0] += seal_slots(queue, route, first[0])
    queue.outbox.to = route.to
    queue.outbox.single_until_ns = &session.single_until_ns
    # The kernel may make us wait, so nothing is pinned meanwhile.
    unpin(&plane.peers.tap_pins[queue.index])
    send_outbox(plane, queue, now_ns)


cdef inline bint send_over_udp(plane_t *plane, queue_t *queue, session_t *session,
                               const route_t *route, int *first, uint64_t now_ns) noexcept nogil:
    # One step: sends slots from `first` on, or lets them wait, or chooses of what waits. True: no
    # more can be sent now. The route may be pinned no more.
    cdef uint64_t room = 0
    sm_release(&session.udp_last_frame_ns, now_ns)
    if queue.outbox.count:
        # What was sealed before waits still.
        if queue.chosen:
            drop_outgoing(queue, DROP_QUEUE_FULL, queue.batch - first[0])
            queue.batch = first[0]
    elif queue.chosen and first[0] < queue.batch:
        seal_and_send(plane, queue, session, route, first, now_ns)
        return False
    else:
        room = line_room(&plane.udp, now_ns)
    queue.chosen = 0
    queue.slow = sm_acquire(&plane.udp.line.limit) < LINE_FAST
    queue.very_slow = sm_acquire(&plane.udp.line.limit) < MAX_SUPER_FRAME
    queue.backlog.arena_end = ARENA_BYTES if queue.slow else FAST_ARENA_BYTES
    if not queue.slow and room:
        room = LINE_MOST
    if room and not queue.backlog.waiting and room >= batch_bytes(queue, first[0]):
        seal_and_send(plane, queue, session, route, first, now_ns)
        return False
    park_for_line(queue, route, first[0], now_ns)
    first[0] = 0
    if room == 0:
        sm_set_flag(&plane.udp.line.met, 1)
        if queue.socket_waits == SOCKET_READY:
            queue.socket_waits = SOCKET_PAUSES if queue.socket_spoke else SOCKET_FULL
        return True
    room = min(room, max(sm_acquire(&plane.udp.line.limit) // LINE_PORTIONS, <uint64_t>1))
    choose_for_line(queue, route, min(room, <uint64_t>BATCH_BYTES), now_ns)
    queue.chosen = 1
    queue.captured = 0
    return False
