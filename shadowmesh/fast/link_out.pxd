# The way out over the link: slots -> records in one WebSocket message -> the ring of the link.
#
#   send_over_link -> seal_message -> wake_link          as long as the ring has room
#     keep_slots -> choose_for_link -> seal_message      what has to wait, by turns (backlog.pxd)
#
#   seal_signal -> seal_message                          one record of the hub's
#   queue_ws_frame                                       before there are keys; ping, pong, close
#
# Under the lock of the ring, where it says so. But for those of the hub it runs in the TAP threads,
# each on its own queue, with the route pinned.

from libc.stddef cimport size_t
from libc.string cimport memcpy
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .wsframe cimport *
from .session cimport *
from .connection cimport wake_link
from .peers cimport *
from .tap cimport *
from .plane cimport *
from .admit cimport ANY_SEGMENTS, MAX_SEGMENTS, admit_offload
from .checksum cimport complete_checksum
from .nested cimport *
from .offload cimport segment_begin, segment_next, segmenter_t
from .capture cimport *

ctypedef struct message_room_t: # of the next WebSocket message
    size_t bytes                # of its payload so far
    size_t space                # what fits into the ring
    size_t allowance            # what should wait in it


cdef inline bint room_for_frames(const queue_t *queue) noexcept nogil:
    cdef size_t start
    return (not store_full(queue.store)
            and arena_room(queue.store, SLOT_BYTES, &start) >= SLOT_BYTES)


cdef inline message_room_t message_room(ring_t *ring, uint32_t frames) noexcept nogil:
    # What the next message may hold. Under the lock.
    cdef message_room_t room
    cdef size_t space = ring_space(ring)
    cdef size_t reserve = CONTROL_RESERVE + MAX_WS_HEADER if frames else MAX_WS_HEADER
    room.bytes = MESSAGE_HEADER_BYTES
    room.space = min(space - reserve, <size_t>MAX_MESSAGE) if space > reserve else 0
    room.allowance = ring_allowance(ring) if frames else MAX_MESSAGE
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


cdef inline int seal_message(epoch_t *epoch, ring_t *ring, bint masked, const slot_t *slots,
                             int count, uint32_t frames) noexcept nogil:
    # Seals up to `count` records into one WebSocket message and commits it. How many were taken:
    # less than `count` when the ring or the message is full, 0 when not even one fits.
    # Under the lock.
    cdef message_room_t room = message_room(ring, frames)
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
    header = ws_header_bytes(room.bytes, masked)
    message = ring_reserve(ring, header + room.bytes)
    if masked:
        next_mask(ring, mask)
        ws_write_header(message, OP_BINARY, room.bytes, mask)
    else:
        ws_write_header(message, OP_BINARY, room.bytes, NULL)
    out = message + header
    write_message_header(out, <uint16_t>taken, epoch.remote_key_id, epoch.wss_tx_next)
    out += MESSAGE_HEADER_BYTES
    for i in range(taken):
        out += seal_wss_record(epoch, slots[i].inner, slots[i].inner_bytes, out)
    if masked:
        sm_mask(message + header, room.bytes, mask, 0)
    ring_commit(ring, message, header + room.bytes, taken if frames else 0)
    return taken


cdef inline int seal_signal(const route_t *route, uint8_t inner_type, const uint8_t *body,
                            size_t body_bytes) noexcept nogil:
    # One record of the hub's as a message of its own: KEEP, NO_ROOM or a DROP_ reason. body_bytes
    # is at most MAX_SIGNAL_BYTES; the route has a ring. Under the lock.
    cdef uint8_t inner[1 + MAX_SIGNAL_BYTES]
    cdef slot_t slot
    cdef int obstacle = sending_obstacle(route, boottime_ns())
    if obstacle != KEEP:
        return obstacle
    inner[0] = inner_type
    memcpy(inner + 1, body, body_bytes)
    slot.inner = inner
    slot.inner_bytes = <uint32_t>(1 + body_bytes)
    if not seal_message(route.epoch, route.ring, route.masked, &slot, 1, 0):
        return NO_ROOM
    ring_wake(route.ring)
    return KEEP


cdef inline bint queue_ws_frame(ring_t *ring, bint masked, int opcode, const uint8_t *payload,
                                size_t length) noexcept nogil:
    # One WebSocket frame as it is; False: no room. Under the lock.
    cdef size_t header = ws_header_bytes(length, masked)
    cdef uint8_t mask[4]
    cdef uint8_t *message = ring_reserve(ring, header + length)
    if message == NULL:
        return False
    if masked:
        next_mask(ring, mask)
    ws_write_header(message, opcode, length, mask if masked else NULL)
    memcpy(message + header, payload, length)
    if masked:
        sm_mask(message + header, length, mask, 0)
    ring_commit(ring, message, header + length, 0)
    ring_wake(ring)
    return True


cdef inline bint finish_slot(slot_t *slot) noexcept nogil:
    # Makes a plain frame of one with an unfinished checksum; False for what cannot become one.
    cdef uint8_t *vnet = slot.inner + 1
    if vnet[1] or complete_checksum(vnet, vnet + VNET_HEADER_BYTES,
                                    slot.inner_bytes - 1 - VNET_HEADER_BYTES):
        return False
    slot.inner += VNET_HEADER_BYTES
    slot.inner_bytes -= VNET_HEADER_BYTES
    slot.inner[0] = INNER_FRAME
    return True


cdef inline int judge_slot(slot_t *slot, const route_t *route) noexcept nogil:
    # What the peer would refuse is not sent: KEEP, with the slot as this route takes it, or a DROP_
    # reason. Once more for another route: the frame may have waited.
    cdef size_t limit = route.peer_mtu_bytes + FRAME_OVERHEAD
    cdef const uint8_t *frame = slot_frame(slot)
    if holds_sent(route.epoch, frame, slot.inner_bytes - (frame - slot.inner)):
        return DROP_OWN_DATAGRAM
    if (slot.inner[0] == INNER_OFFLOAD_FRAME and not route.peer_caps & CAP_OFFLOAD
            and not finish_slot(slot)):
        # A super-frame that was in the queue when the device's offloads were switched off.
        return DROP_BAD_OFFLOAD
    if slot.inner[0] == INNER_FRAME:
        if slot.inner_bytes - 1 < MIN_FRAME:
            return DROP_RUNT
        return DROP_TOO_LONG if slot.inner_bytes - 1 > limit else KEEP
    if (slot.inner[2] == GSO_UDP_L4 and not route.peer_caps & CAP_UDP_GSO
            and not route.udp_active):
        # As above. On UDP it does no harm: there it is cut.
        return DROP_BAD_OFFLOAD
    return admit_offload(slot.inner + 1, slot.inner + 1 + VNET_HEADER_BYTES,
                         slot.inner_bytes - 1 - VNET_HEADER_BYTES, route.peer_mtu_bytes,
                         ANY_SEGMENTS if route.udp_active else MAX_SEGMENTS)


cdef inline void capture_slots(capture_t *capture, const slot_t *slots, int count) noexcept nogil:
    # Frames that are sealed next. Before that, because cutting a super-frame writes into it.
    cdef iovec whole
    cdef size_t skip
    for i in range(count):
        skip = 0 if slots[i].inner[0] == INNER_FRAME else VNET_HEADER_BYTES
        whole.iov_base = slots[i].inner + 1
        whole.iov_len = slots[i].inner_bytes - 1
        capture_frame(capture, CAPTURE_OUTBOUND, &whole, 1, skip)


cdef inline bint ready_lane(queue_t *queue) noexcept nogil:
    # Frames of the lane may wait. False: no memory.
    cdef lane_t *lane = queue.lane
    if not lane_provide(lane):
        return False
    if not lane.listed:
        lane.listed = 1
        lane.following = queue.lanes
        queue.lanes = lane
        queue.lane_count += 1
    return True


cdef inline void shed(queue_t *queue, lane_t *lane) noexcept nogil:
    # What has waited longest makes room for what comes: its sender has to notice.
    lane_remove(queue.store, lane.first)
    sm_count(&queue.sent.dropped[DROP_QUEUE_FULL], 1)
    sm_count(&lane.dropped[DROP_QUEUE_FULL], 1)


cdef inline lane_t *fattest_lane(const queue_t *queue) noexcept nogil:
    # Of those of which something was copied; NULL: there is none.
    cdef lane_t *lane = queue.lanes
    cdef lane_t *fattest = NULL
    while lane != NULL:
        if lane.copied_bytes and (fattest == NULL or lane.copied_bytes > fattest.copied_bytes):
            fattest = lane
        lane = lane.following
    return fattest


cdef inline void keep_copy(queue_t *queue, const uint8_t *inner, size_t inner_bytes,
                           uint64_t now_ns) noexcept nogil:
    # Lets a copy of a frame wait, or drops it where there is no memory.
    cdef lane_t *lane = queue.lane
    cdef lane_t *fattest
    while lane.first != NULL and (lane.waiting >= <uint64_t>LANE_FRAMES
                                  or lane.copied_bytes + inner_bytes > <uint64_t>LANE_BYTES):
        shed(queue, lane)
    fattest = lane
    while fattest != NULL and queue.store.copied_bytes + inner_bytes > <uint64_t>STORE_BYTES:
        fattest = fattest_lane(queue)
        if fattest != NULL:
            shed(queue, fattest)
    if not park_copy(queue.store, lane, inner, inner_bytes, now_ns):
        drop_outgoing(queue, DROP_QUEUE_FULL, 1)


cdef inline bint keep_segments(queue_t *queue, const slot_t *slot, uint32_t most_bytes,
                               uint64_t now_ns) noexcept nogil:
    # A super-frame as the frames that it is cut into, of at most so many bytes. False: it cannot be,
    # and nothing changed.
    cdef segmenter_t segmenter
    cdef uint8_t *frame
    cdef size_t frame_bytes
    cdef int segments = segment_begin(
        &segmenter, slot.inner + 1, slot.inner_bytes - 1 - VNET_HEADER_BYTES, most_bytes, False)
    if segments < 0:
        return False
    sm_count(&queue.sent.frames_read, segments - 1)
    while segment_next(&segmenter, &frame, &frame_bytes):
        frame -= 1 + VNET_HEADER_BYTES
        frame[0] = INNER_OFFLOAD_FRAME
        keep_copy(queue, frame, 1 + VNET_HEADER_BYTES + frame_bytes, now_ns)
    return True


cdef inline void keep_slots(queue_t *queue, uint32_t most_bytes, uint64_t now_ns) noexcept nogil:
    # Whatever is left of the slots waits behind what waits already. One super-frame would hold a
    # very slow link for tens of milliseconds, so there it waits in pieces, of at most `most_bytes`.
    cdef lane_t *lane = queue.lane
    cdef const slot_t *slot
    cdef int i
    if queue.first < queue.batch and not ready_lane(queue):
        drop_outgoing(queue, DROP_QUEUE_FULL, queue.batch - queue.first)
        queue.batch = queue.first
    for i in range(queue.first, queue.batch):
        slot = &queue.slots[i]
        if queue.in_place and not lane.slow:
            park_in_place(queue.store, lane, slot, now_ns)
        elif (not lane.very_slow or slot.inner[0] != INNER_OFFLOAD_FRAME
                or not slot.inner[2] & ~GSO_ECN
                or not keep_segments(queue, slot, most_bytes, now_ns)):
            keep_copy(queue, slot.inner, slot.inner_bytes, now_ns)
    queue.batch = queue.first = 0


cdef inline void drop_lane(queue_t *queue, lane_t *lane, int reason) noexcept nogil:
    # All that waits.
    while lane.first != NULL:
        lane_remove(queue.store, lane.first)
        sm_count(&queue.sent.dropped[reason], 1)
        sm_count(&lane.dropped[reason], 1)


cdef inline void make_arena_room(queue_t *queue) noexcept nogil:
    # Several ports: what waits for one must not keep the frames for others from being read.
    cdef lane_t *lane
    while not room_for_frames(queue):
        if not move_oldest(queue.store):
            lane = queue.store.parked[queue.store.oldest % PARKED_FRAMES].lane
            if lane == NULL:
                return
            shed(queue, lane)
    give_back(queue.store)


cdef inline bint lock_route(const port_t *port, const route_t *route) noexcept nogil:
    # The lock of the ring; False, without it: the port's frames leave by another route now.
    # Under the lock no new one is published that has the same ring and other keys: what follows the
    # first record under new keys is under these (protocol section 7).
    ring_lock(route.ring)
    if sm_published(&port.route) == <const void *>route:
        return True
    ring_unlock(route.ring)
    return False


cdef inline int seal_slots_for_link(plane_t *plane, queue_t *queue, const route_t *route,
                                    uint64_t now_ns) noexcept nogil:
    # One message of the slots that are left: how many it took. Under the lock.
    cdef const slot_t *slots = &queue.slots[queue.first]
    cdef lane_t *lane = queue.lane
    cdef uint64_t bytes = 0
    cdef int taken = seal_message(route.epoch, route.ring, route.masked, slots,
                                  queue.batch - queue.first, 1)
    cdef int i
    if taken:
        lane.stalled = 0
        sm_release(&route.session.last_frame_ns, now_ns)
        for i in range(taken):
            bytes += slots[i].inner_bytes
        sm_count(&lane.frames, taken)
        sm_count(&lane.bytes, bytes)
        if captures(&plane.capture, lane.port):
            capture_slots(&plane.capture, slots, taken)
    return taken


cdef inline int choose_for_link(queue_t *queue, const route_t *route, uint64_t now_ns) noexcept nogil:
    # Fills the slots with those whose turn it is, as many as one message takes. Under the lock.
    cdef message_room_t room = message_room(route.ring, 1)
    cdef size_t tag = tag_bytes(route.epoch.cipher)
    cdef lane_t *lane = queue.lane
    cdef parked_t *parked
    cdef slot_t *slot
    cdef int dropped = 0
    cdef int verdict
    queue.batch = queue.first = 0
    while room.allowance and queue.batch < BATCH_FRAMES:
        parked = lane_next(queue.store, lane, now_ns, lane.slow, &dropped)
        if parked == NULL:
            break
        slot = &queue.slots[queue.batch]
        slot[0] = parked.slot
        if not fill_message(&room, slot.inner_bytes + tag):
            break
        lane_take(queue.store, parked)
        verdict = judge_slot(slot, route)
        if verdict == KEEP:
            queue.batch += 1
        else:
            drop_outgoing(queue, verdict, 1)
    drop_outgoing(queue, DROP_QUEUE_FULL, dropped)
    return queue.batch


cdef inline void watch_link(queue_t *queue, const ring_t *ring, uint64_t now_ns) noexcept nogil:
    # Frames wait. A link that takes nothing for STALL_MS gets no more of them.
    cdef lane_t *lane = queue.lane
    cdef uint64_t until = ring_position(ring)
    if until != lane.taken_until:
        lane.taken_until = until
        lane.taken_ns = now_ns
    elif now_ns - lane.taken_ns >= <uint64_t>STALL_MS * 1000000:
        lane.stalled = 1
        drop_lane(queue, lane, DROP_LINK_STALLED)


cdef inline bint send_over_link(plane_t *plane, queue_t *queue, const route_t *route,
                                uint64_t now_ns) noexcept nogil:
    # Seals the slots that are left into the ring, or lets them wait for room there. False: the route
    # is another one now, and slots and what waits are left to be sent by that.
    cdef ring_t *ring = route.ring
    cdef lane_t *lane = queue.lane
    cdef int taken = 1
    lane.slow = ring_slow(ring)
    lane.very_slow = ring_very_slow(ring)
    if not lane.waiting:
        if not lane.stalled:
            lane.taken_until = ring_position(ring)
            lane.taken_ns = now_ns
        while queue.first < queue.batch and taken and not lane.very_slow:
            if not lock_route(<port_t *>lane.port, route):
                return False
            taken = seal_slots_for_link(plane, queue, route, now_ns)
            ring_unlock(ring)
            wake_link(route.connection)
            queue.first += taken
    keep_slots(queue, MAX_SUPER_FRAME, now_ns)
    while lane.waiting:
        if not lock_route(<port_t *>lane.port, route):
            return False
        taken = choose_for_link(queue, route, now_ns)
        if taken:
            seal_slots_for_link(plane, queue, route, now_ns)
            queue.batch = 0
        ring_unlock(ring)
        give_back(queue.store)
        wake_link(route.connection)
        if not taken and ring_starve(ring, queue.index):
            watch_link(queue, ring, now_ns)
            return True
    return True
