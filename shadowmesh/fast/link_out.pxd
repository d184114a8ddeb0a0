# The way out over the link: slots -> records in one WebSocket message -> the ring of the link.
#
#   send_over_link -> seal_message -> ring_commit        as long as the ring has room
#     park_slots -> choose_parked -> seal_message        what has to wait, by turns (backlog.pxd)
#
#   seal_signal -> seal_message                          one record of the hub's
#   queue_ws_frame                                       before there are keys; ping, pong, close
#
# Under tx_lock, but for what says otherwise. But for those of the hub it runs in the TAP threads,
# each on its own queue.

from libc.stddef cimport size_t
from libc.string cimport memcpy
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .wsframe cimport *
from .session cimport *
from .peers cimport *
from .tap cimport *
from .plane cimport *
from .offload cimport segment_begin, segment_next, segmenter_t
from .capture cimport *

ctypedef struct message_room_t: # of the next WebSocket message
    size_t bytes                # of its payload so far
    size_t space                # what fits into the ring
    size_t allowance            # what should wait in it


cdef inline size_t room_wanted(const queue_t *queue) noexcept nogil:
    # For one read; on a very slow link for what two are cut into as well.
    return 5 * SLOT_BYTES if queue.very_slow else SLOT_BYTES


cdef inline bint room_for_frames(const queue_t *queue) noexcept nogil:
    cdef size_t start
    cdef size_t wanted = room_wanted(queue)
    return (not backlog_full(queue.backlog)
            and arena_room(queue.backlog, wanted, &start) >= wanted)


cdef inline message_room_t message_room(session_t *session, uint32_t frames) noexcept nogil:
    # What the next message may hold. Under tx_lock; the session has a ring and sending keys.
    cdef message_room_t room
    cdef size_t space = ring_space(session.ring)
    cdef size_t reserve = CONTROL_RESERVE + MAX_WS_HEADER if frames else MAX_WS_HEADER
    room.bytes = MESSAGE_HEADER_BYTES
    room.space = min(space - reserve, <size_t>MAX_MESSAGE) if space > reserve else 0
    room.allowance = ring_allowance(session.ring) if frames else MAX_MESSAGE
    return room


cdef inline bint fill_message(message_room_t *room, size_t sealed_bytes) noexcept nogil:
    # Whether one more record fits; then it counts. One frame may exceed the allowance, or a
    # super-frame would never fit a small one.
    cdef size_t bytes = room.bytes + LENGTH_BYTES + sealed_bytes
    if bytes > room.space or room.allowance == 0:
        return False
    if room.bytes > MESSAGE_HEADER_BYTES and bytes > room.allowance:
        return False
    room.bytes = bytes
    return True


cdef inline int seal_message(plane_t *plane, session_t *session, const slot_t *slots, int count,
                             uint32_t frames) noexcept nogil:
    # Seals up to `count` records into one WebSocket message and commits it. How many were taken:
    # less than `count` when the ring or the message is full, 0 when not even one fits.
    # Under tx_lock; the session has a ring and sending keys.
    cdef epoch_t *epoch = &plane.peers.epochs[session.tx_epoch]
    cdef message_room_t room = message_room(session, frames)
    cdef size_t tag = tag_bytes(epoch.cipher)
    cdef size_t header
    cdef uint8_t mask[4]
    cdef uint8_t *message
    cdef uint8_t *out
    cdef int taken = 0
    while taken < count and fill_message(&room, slots[taken].inner_bytes + tag):
        taken += 1
    if taken == 0:
        return 0
    header = ws_header_bytes(room.bytes, session.masked)
    message = ring_reserve(session.ring, header + room.bytes)
    if session.masked:
        next_mask(&plane.wss, mask)
        ws_write_header(message, OP_BINARY, room.bytes, mask)
    else:
        ws_write_header(message, OP_BINARY, room.bytes, NULL)
    out = message + header
    write_message_header(out, <uint16_t>taken, epoch.remote_key_id, epoch.wss_tx_next)
    out += MESSAGE_HEADER_BYTES
    for i in range(taken):
        out += seal_wss_record(epoch, slots[i].inner, slots[i].inner_bytes, out)
    if session.masked:
        sm_mask(message + header, room.bytes, mask, 0)
    ring_commit(session.ring, message, header + room.bytes, taken if frames else 0)
    return taken


cdef inline int seal_signal(plane_t *plane, int index, uint8_t inner_type, const uint8_t *body,
                            size_t body_bytes) noexcept nogil:
    # One record of the hub's as a message of its own: KEEP, NO_ROOM or a DROP_ reason. body_bytes
    # is at most MAX_SIGNAL_BYTES. Under tx_lock.
    cdef session_t *session = &plane.peers.sessions[index]
    cdef uint8_t inner[1 + MAX_SIGNAL_BYTES]
    cdef slot_t slot
    cdef int obstacle = sending_obstacle(&plane.peers, index, boottime_ns())
    if obstacle != KEEP:
        return obstacle
    if session.ring == NULL:
        return DROP_LINK_LOST
    inner[0] = inner_type
    memcpy(inner + 1, body, body_bytes)
    slot.inner = inner
    slot.inner_bytes = <uint32_t>(1 + body_bytes)
    return KEEP if seal_message(plane, session, &slot, 1, 0) else NO_ROOM


cdef inline bint queue_ws_frame(wss_t *wss, ring_t *ring, bint masked, int opcode,
                                const uint8_t *payload, size_t length) noexcept nogil:
    # One WebSocket frame as it is; False: no room. Under tx_lock.
    cdef size_t header = ws_header_bytes(length, masked)
    cdef uint8_t mask[4]
    cdef uint8_t *message = ring_reserve(ring, header + length)
    if message == NULL:
        return False
    if masked:
        next_mask(wss, mask)
    ws_write_header(message, opcode, length, mask if masked else NULL)
    memcpy(message + header, payload, length)
    if masked:
        sm_mask(message + header, length, mask, 0)
    ring_commit(ring, message, header + length, 0)
    return True


cdef inline void capture_slots(capture_t *capture, const slot_t *slots, int count) noexcept nogil:
    # Frames that are sealed next. Before that, because cutting a super-frame writes into it.
    cdef iovec whole
    cdef size_t skip
    for i in range(count):
        skip = 0 if slots[i].inner[0] == INNER_FRAME else VNET_HEADER_BYTES
        whole.iov_base = slots[i].inner + 1
        whole.iov_len = slots[i].inner_bytes - 1
        capture_frame(capture, CAPTURE_OUTBOUND, &whole, 1, skip)


cdef inline void park_copy(queue_t *queue, const uint8_t *inner, size_t inner_bytes,
                           uint64_t now_ns) noexcept nogil:
    # Behind the batch, so that frames lie in the arena in the order in which they are parked.
    cdef backlog_t *backlog = queue.backlog
    cdef slot_t copy
    copy.inner = backlog.arena + backlog.spare
    copy.inner_bytes = <uint32_t>inner_bytes
    if (backlog.spare + inner_bytes > backlog.spare_end
            or backlog.next_number - backlog.oldest == PARKED_FRAMES):
        drop_outgoing(queue, DROP_QUEUE_FULL, 1)
        return
    memcpy(copy.inner, inner, inner_bytes)
    backlog.spare += (inner_bytes + 63) // 64 * 64
    backlog_park(backlog, &copy, slot_frame(&copy), now_ns)


cdef inline bint park_segments(queue_t *queue, const slot_t *slot, uint64_t now_ns) noexcept nogil:
    # A super-frame as the frames that it is cut into. False: it cannot be, and nothing changed.
    cdef segmenter_t segmenter
    cdef uint8_t *frame
    cdef size_t frame_bytes
    cdef int segments = segment_begin(
        &segmenter, slot.inner + 1, slot.inner_bytes - 1 - VNET_HEADER_BYTES, MAX_SUPER_FRAME,
        False)
    if segments < 0:
        return False
    sm_count(&queue.sent.frames_read, segments - 1)
    while segment_next(&segmenter, &frame, &frame_bytes):
        frame -= 1 + VNET_HEADER_BYTES
        frame[0] = INNER_OFFLOAD_FRAME
        park_copy(queue, frame, 1 + VNET_HEADER_BYTES + frame_bytes, now_ns)
    return True


cdef inline void park_slots(queue_t *queue, int first, uint64_t now_ns) noexcept nogil:
    # Whatever is left of the batch waits behind what waits already. One super-frame would hold a
    # very slow link for tens of milliseconds, so there it waits in pieces.
    cdef const slot_t *slot
    cdef int i
    for i in range(first, queue.batch):
        slot = &queue.slots[i]
        if not queue.very_slow:
            backlog_park(queue.backlog, slot, slot_frame(slot), now_ns)
        elif (slot.inner[0] != INNER_OFFLOAD_FRAME or not slot.inner[2] & ~GSO_ECN
                or not park_segments(queue, slot, now_ns)):
            park_copy(queue, slot.inner, slot.inner_bytes, now_ns)
    queue.batch = 0


cdef inline void unpark_slots(queue_t *queue) noexcept nogil:
    # The next batch is what has waited longest, in the order of arrival.
    cdef int index = backlog_oldest(queue.backlog)
    queue.batch = 0
    while index != NOBODY and queue.batch < BATCH_FRAMES:
        queue.slots[queue.batch] = queue.backlog.parked[index].slot
        queue.batch += 1
        backlog_take(queue.backlog, index)
        index = backlog_oldest(queue.backlog)


cdef inline void drop_parked(queue_t *queue, int reason) noexcept nogil:
    # All that waits.
    cdef int index = backlog_oldest(queue.backlog)
    while index != NOBODY:
        backlog_remove(queue.backlog, index)
        drop_outgoing(queue, reason, 1)
        index = backlog_oldest(queue.backlog)


cdef inline void shed_for_room(queue_t *queue) noexcept nogil:
    # On a slow link what has waited longest makes room for what comes: its sender has to notice.
    while queue.slow and queue.backlog.waiting and not room_for_frames(queue):
        backlog_remove(queue.backlog, backlog_oldest(queue.backlog))
        drop_outgoing(queue, DROP_QUEUE_FULL, 1)


cdef inline int seal_slots_for_link(plane_t *plane, queue_t *queue, session_t *session, int first,
                                    uint64_t now_ns) noexcept nogil:
    # One message of slots from `first` on: how many it took. Under tx_lock.
    cdef int taken = seal_message(plane, session, &queue.slots[first], queue.batch - first, 1)
    if taken:
        queue.stalled = 0
        session.last_frame_ns = now_ns
        if capture_on(&plane.capture):
            capture_slots(&plane.capture, &queue.slots[first], taken)
    return taken


cdef inline int choose_parked(const peers_t *peers, queue_t *queue, session_t *session,
                              uint64_t now_ns) noexcept nogil:
    # Fills the slots with those whose turn it is, as many as one message takes.
    cdef message_room_t room = message_room(session, 1)
    cdef size_t tag = tag_bytes(peers.epochs[session.tx_epoch].cipher)
    cdef const slot_t *slot
    cdef int dropped = 0
    cdef int index
    queue.batch = 0
    while room.allowance and queue.batch < BATCH_FRAMES:
        index = backlog_next(queue.backlog, now_ns, queue.slow, &dropped)
        if index == NOBODY:
            break
        slot = &queue.backlog.parked[index].slot
        if not fill_message(&room, slot.inner_bytes + tag):
            break
        queue.slots[queue.batch] = slot[0]
        queue.batch += 1
        backlog_take(queue.backlog, index)
    drop_outgoing(queue, DROP_QUEUE_FULL, dropped)
    return queue.batch


cdef inline void watch_link(queue_t *queue, const session_t *session,
                            uint64_t now_ns) noexcept nogil:
    # Frames wait. A link that takes nothing for STALL_MS gets no more of them.
    cdef uint64_t until = sm_acquire(&session.ring.read)
    if until != queue.taken_until:
        queue.taken_until = until
        queue.taken_ns = now_ns
    elif now_ns - queue.taken_ns >= <uint64_t>STALL_MS * 1000000:
        queue.stalled = 1
        drop_parked(queue, DROP_LINK_STALLED)


cdef inline void send_over_link(plane_t *plane, queue_t *queue, session_t *session, int first,
                                uint64_t now_ns) noexcept nogil:
    # Seals slots from `first` on into the session's ring, or lets them wait for room there. Under
    # tx_lock; the session has a ring and sending keys.
    cdef int taken = 1
    queue.slow = ring_slow(session.ring)
    queue.very_slow = ring_very_slow(session.ring)
    queue.backlog.arena_end = ARENA_BYTES if queue.slow else FAST_ARENA_BYTES
    if not queue.backlog.waiting:
        if not queue.stalled:
            queue.taken_until = sm_acquire(&session.ring.read)
            queue.taken_ns = now_ns
        while first < queue.batch and taken and not queue.very_slow:
            taken = seal_slots_for_link(plane, queue, session, first, now_ns)
            first += taken
    park_slots(queue, first, now_ns)
    while queue.backlog.waiting:
        if choose_parked(&plane.peers, queue, session, now_ns):
            seal_slots_for_link(plane, queue, session, 0, now_ns)
        elif ring_starve(session.ring, queue.index):
            watch_link(queue, session, now_ns)
            return
