# What of the frames goes over UDP now, and what waits because the host holds enough already.
#
#   batch --the host holds little--> seal_slots, send_outbox (udp_out.pxd)
#         '-it holds what the line takes in 5 ms (line.pxd)--> lane --by turns, as it drains--> seal
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
from .link_out cimport capture_slots, judge_slot, keep_slots
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
    FLOOD_COUNTS_S = 5          # of flooded frames, that one counts in so long


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


cdef inline uint32_t line_segment(const route_t *route) noexcept nogil:
    # The largest frame that one datagram takes: what a super-frame is cut into for a slow line.
    return <uint32_t>(route.payload_bytes - AAD_BYTES - tag_bytes(route.epoch.cipher) - 1
                      - VNET_HEADER_BYTES)


cdef inline void choose_for_line(queue_t *queue, const route_t *route, uint64_t room,
                                 uint64_t now_ns) noexcept nogil:
    # Fills the slots with those whose turn it is, one or as many as there is room for.
    cdef lane_t *lane = queue.lane
    cdef parked_t *parked
    cdef slot_t *slot
    cdef uint64_t chosen = 0
    cdef int dropped = 0
    cdef int verdict
    queue.batch = queue.first = 0
    while queue.batch < BATCH_FRAMES:
        parked = lane_next(queue.store, lane, now_ns, lane.slow, &dropped)
        if parked == NULL:
            break
        slot = &queue.slots[queue.batch]
        slot[0] = parked.slot
        chosen += slot.inner_bytes
        if chosen > room and queue.batch:
            break
        lane_take(queue.store, parked)
        verdict = judge_slot(slot, route)
        if verdict == KEEP:
            queue.batch += 1
        else:
            drop_outgoing(queue, verdict, 1)
    drop_outgoing(queue, DROP_QUEUE_FULL, dropped)


cdef inline uint64_t bytes_left(const queue_t *queue) noexcept nogil:
    # Of the slots.
    cdef uint64_t total = 0
    for i in range(queue.first, queue.batch):
        total += queue.slots[i].inner_bytes
    return total


cdef inline void seal_for_line(plane_t *plane, queue_t *queue, const route_t *route,
                               uint64_t now_ns) noexcept nogil:
    # Of the slots that are left as many as the outbox holds.
    if queue.captured < queue.batch and captures(&plane.capture, queue.lane.port):
        # Before the first is sealed, because cutting a super-frame writes into it.
        capture_slots(&plane.capture, &queue.slots[queue.captured], queue.batch - queue.captured)
    queue.captured = queue.batch
    if open_outbox(queue.outbox, queue.lane, &route.to):
        queue.first += seal_slots(queue, route)
        queue.lane.taken_ns = now_ns


cdef inline bint send_sealed(plane_t *plane, queue_t *queue, uint64_t now_ns) noexcept nogil:
    # What is in the outbox. False: the socket takes no more now. The kernel may make us wait, so
    # nothing is pinned any more.
    unpin(&plane.peers.tap_pins[queue.index])
    return send_outbox(plane, queue, now_ns)


cdef inline void note_frames(const queue_t *queue, session_t *session, uint64_t now_ns) noexcept nogil:
    # That frames leave over UDP: whoever hears nothing then is asked soon whether it is still there.
    # A host that only talks to all would have every peer asked each second. So flooded frames count
    # seldom, but not never: the first after a while may ask who has an address, and if its way is
    # dead, it is before anything is sent to one peer alone that this has to be noticed.
    if queue.only_floods and not queue.lane.waiting:
        if now_ns - sm_counted(&session.udp_last_flood_ns) < <uint64_t>FLOOD_COUNTS_S * 1000000000:
            return
        sm_release(&session.udp_last_flood_ns, now_ns)
    sm_release(&session.udp_last_frame_ns, now_ns)


cdef inline bint send_over_udp(plane_t *plane, queue_t *queue, const route_t *route,
                               uint64_t now_ns) noexcept nogil:
    # One step: seals slots that are left, or lets them wait, or chooses of what waits. True: no more
    # can be sent now. What was sealed may still be in the outbox; the route may be pinned no more.
    cdef lane_t *lane = queue.lane
    cdef uint64_t limit = sm_acquire(&plane.udp.line.limit)
    cdef uint64_t room = 0
    note_frames(queue, route.session, now_ns)
    if queue.chosen:
        queue.chosen = 0
        if queue.socket_waits == SOCKET_READY:
            seal_for_line(plane, queue, route, now_ns)
            send_sealed(plane, queue, now_ns)
            if queue.first < queue.batch:
                queue.chosen = 1
                return False
        if queue.first < queue.batch:
            drop_outgoing(queue, DROP_QUEUE_FULL, queue.batch - queue.first)
        queue.batch = queue.first = 0
        give_back(queue.store)
        return False
    lane.slow = limit < LINE_FAST
    lane.very_slow = limit < MAX_SUPER_FRAME
    if queue.socket_waits == SOCKET_READY:
        room = line_room(&plane.udp, now_ns)
        if room and not lane.slow:
            room = LINE_MOST
    if (room and not lane.waiting and (not lane.slow or not queue.store.waiting)
            and room >= queue.outbox.used + bytes_left(queue)):
        seal_for_line(plane, queue, route, now_ns)
        if queue.first < queue.batch:
            send_sealed(plane, queue, now_ns)
        return False
    keep_slots(queue, line_segment(route), now_ns)
    if queue.outbox.count:
        # Before more is chosen: what it holds counts.
        send_sealed(plane, queue, now_ns)
        return False
    if queue.only_keeps and lane.slow and queue.store.waiting > lane.waiting:
        # Others wait, too: who is next is not for this one to say.
        return True
    if room == 0:
        sm_set_flag(&plane.udp.line.met, 1)
        if queue.socket_waits == SOCKET_READY:
            queue.socket_waits = SOCKET_PAUSES if queue.socket_spoke else SOCKET_FULL
        return True
    room = min(room, max(limit // LINE_PORTIONS, <uint64_t>1))
    choose_for_line(queue, route, min(room, <uint64_t>BATCH_BYTES), now_ns)
    queue.chosen = 1
    queue.captured = 0
    return False
