# The way out: TAP -> batch of slots -> sealed records in the ring of the session's link, or
# datagrams when the session has a UDP path.
#
#   wait_for_frames -> wait_for_session -> read_batch -> send_batch -+-> seal_message -> ring_commit
#                                                                   +-> seal_slots -> send_outbox
#                                                                               (udp_out.pxd)
#
# Functions stand in the order in which a frame meets them. All of it runs in the TAP threads, each
# on its own queue, and touches no Python object; only seal_message also serves the hub (send_record
# in _fastpath.pyx).

from libc.stddef cimport size_t
from .base cimport *
from .frame cimport *
from .checksum cimport complete_checksum
from .wsframe cimport *
from .session cimport *
from .plane cimport *
from .udp_out cimport *
from .capture cimport *
from .steer cimport *

cdef enum:
    # Sealing stops so far below SM_SEAL_LIMIT. Of the threads that looked before the counter came
    # there each may seal one more outbox full, and the hub a record.
    SEAL_MARGIN = (MAX_QUEUES + 1) * OUTBOX_TRAINS * TRAIN_DATAGRAMS


cdef inline int wait_for_frames(const plane_t *plane, const queue_t *queue) noexcept nogil:
    # 1: the TAP may be read; 0: stop; a device error is left to read() to name.
    cdef pollfd fds[2]
    fds[0].fd = queue.tap_fd
    fds[1].fd = plane.stop_fd
    fds[0].events = fds[1].events = POLLIN
    while True:
        if poll(fds, 2, -1) < 0:
            if errno == EINTR:
                continue
            return 0
        return 0 if fds[1].revents else 1


cdef inline void wait_for_session(const plane_t *plane, const queue_t *queue) noexcept nogil:
    # Frames that come while nobody is connected stay in the device's queue for a moment. What a
    # host says first is an ARP request; dropped during the handshake it would be sent again only
    # after a second. Returns when a session is active, the time is over, the device is gone or the
    # thread is to stop; who calls needs not know which.
    cdef pollfd fds[3]
    cdef uint64_t until_ns = boottime_ns() + <uint64_t>HOLD_MS * 1000000
    cdef uint64_t now_ns = until_ns - 1
    fds[0].fd = queue.space_fd
    fds[1].fd = plane.stop_fd
    fds[2].fd = queue.tap_fd
    fds[0].events = fds[1].events = POLLIN
    fds[2].events = 0
    while sm_flag(&plane.active_session) < 0 and now_ns < until_ns:
        if poll(fds, 3, HOLD_MS) > 0:
            if fds[1].revents or fds[2].revents:
                return
            drain_fd(queue.space_fd)
        now_ns = boottime_ns()


cdef inline int read_batch(queue_t *queue) noexcept nogil:
    # Fills slots until the device is empty, the slots or the arena are full. The number of frames,
    # or -errno when the device is gone.
    # In front of the first slot, too, there is room for the header of a fragment (udp_out.pxd).
    # Not through io_uring: its reads cost as much or more, its writes to a local socket a tenth less:
    # make perf ARGS="--only uring".
    cdef size_t used = 64
    cdef uint8_t *base
    cdef ssize_t got
    cdef slot_t *slot
    cdef uint64_t total = 0
    queue.batch = 0
    while queue.batch < queue.plane.batch_frames and used <= BATCH_BYTES:
        base = queue.arena + used
        got = read(queue.tap_fd, base + 1, SLOT_BYTES - 1)
        if got < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN or queue.batch:
                break
            return -errno
        if got < VNET_HEADER_BYTES:
            break
        slot = &queue.slots[queue.batch]
        queue.batch += 1
        total += got - VNET_HEADER_BYTES
        if sm_load16(base + 1) & 0xFF00 or base[1] & VNET_NEEDS_CSUM:
            base[0] = INNER_OFFLOAD_FRAME
            slot.inner = base
            slot.inner_bytes = <uint32_t>(1 + got)
        else:
            # The last byte of the unused virtio header becomes the inner type.
            base[VNET_HEADER_BYTES] = INNER_FRAME
            slot.inner = base + VNET_HEADER_BYTES
            slot.inner_bytes = <uint32_t>(1 + got - VNET_HEADER_BYTES)
        used += (1 + got + 63) // 64 * 64
    sm_count(&queue.sent.frames_read, queue.batch)
    sm_count(&queue.sent.bytes_read, total)
    return queue.batch


cdef inline const uint8_t *slot_frame(const slot_t *slot) noexcept nogil:
    if slot.inner[0] == INNER_FRAME:
        return slot.inner + 1
    return slot.inner + 1 + VNET_HEADER_BYTES


cdef inline void note_queue(plane_t *plane, const queue_t *queue) noexcept nogil:
    # That the flows of these frames come from this queue.
    cdef uint64_t now_ms = steer_now_ms()
    cdef const slot_t *slot
    cdef const uint8_t *frame
    for i in range(queue.batch):
        slot = &queue.slots[i]
        frame = slot_frame(slot)
        steer_out(plane, queue.index, frame, slot.inner_bytes - (frame - slot.inner), now_ms)


cdef inline void drop_outgoing(queue_t *queue, int reason, uint64_t frames) noexcept nogil:
    sm_count(&queue.sent.dropped[reason], frames)


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
    # What the peer would refuse is not sent: KEEP or a DROP_ reason.
    cdef size_t limit = route.peer_mtu_bytes + FRAME_OVERHEAD
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
    return check_offload(slot.inner + 1, slot_frame(slot),
                         slot.inner_bytes - 1 - VNET_HEADER_BYTES, route.peer_mtu_bytes)


cdef inline void judge_batch(queue_t *queue, const route_t *route) noexcept nogil:
    # Leaves the slots that may be sent.
    cdef int kept = 0
    cdef int verdict
    for i in range(queue.batch):
        verdict = judge_slot(&queue.slots[i], route)
        if verdict != KEEP:
            drop_outgoing(queue, verdict, 1)
            continue
        queue.slots[kept] = queue.slots[i]
        kept += 1
    queue.batch = kept


cdef inline int seal_message(plane_t *plane, session_t *session, const slot_t *slots, int count,
                             uint32_t frames) noexcept nogil:
    # Seals up to `count` records into one WebSocket message and commits it. How many were taken:
    # less than `count` when the ring or the message is full, 0 when not even one fits.
    # Under tx_lock; the session has a ring and sending keys.
    cdef epoch_t *epoch = &plane.epochs[session.tx_epoch]
    cdef size_t space = ring_space(session.ring)
    cdef size_t reserve = CONTROL_RESERVE if frames else 0
    cdef size_t tag = tag_bytes(epoch.cipher)
    cdef size_t payload = MESSAGE_HEADER_BYTES
    cdef size_t need, header
    cdef uint8_t mask[4]
    cdef uint8_t *message
    cdef uint8_t *out
    cdef int taken = 0
    if space < reserve + MAX_WS_HEADER:
        return 0
    space -= reserve + MAX_WS_HEADER
    if space > MAX_MESSAGE:
        space = MAX_MESSAGE
    while taken < count:
        need = LENGTH_BYTES + slots[taken].inner_bytes + tag
        if payload + need > space:
            break
        payload += need
        taken += 1
    if taken == 0:
        return 0
    header = ws_header_bytes(payload, session.masked)
    message = ring_reserve(session.ring, header + payload)
    if session.masked:
        next_mask(plane, mask)
        ws_write_header(message, OP_BINARY, payload, mask)
    else:
        ws_write_header(message, OP_BINARY, payload, NULL)
    out = message + header
    write_message_header(out, <uint16_t>taken, epoch.remote_key_id, epoch.wss_tx_next)
    out += MESSAGE_HEADER_BYTES
    for i in range(taken):
        out += seal_wss_record(epoch, slots[i].inner, slots[i].inner_bytes, out)
    if session.masked:
        sm_mask(message + header, payload, mask, 0)
    ring_commit(session.ring, message, header + payload, taken if frames else 0)
    return taken


cdef inline int sending_obstacle(const plane_t *plane, int index, uint64_t now_ns) noexcept nogil:
    # Why a session cannot send at all: KEEP when it can, or a DROP_ reason. Under tx_lock.
    cdef const session_t *session
    cdef const epoch_t *epoch
    if index < 0 or plane.sessions[index].tx_epoch < 0:
        return DROP_NOT_CONNECTED
    session = &plane.sessions[index]
    if session.ring == NULL and not session.udp_active:
        return DROP_LINK_LOST
    epoch = &plane.epochs[session.tx_epoch]
    if epoch_expired(epoch, now_ns):
        return DROP_KEY_EXPIRED
    if (epoch.wss_tx_next >= SM_SEAL_LIMIT - SEAL_MARGIN
            or sm_counted(&epoch.udp_tx_next) >= SM_SEAL_LIMIT - SEAL_MARGIN):
        return DROP_SEAL_REFUSED
    return KEEP


cdef inline bint wait_for_space(const plane_t *plane, const queue_t *queue) noexcept nogil:
    # Sleeps until the writer has made room (True), the thread is to stop or the link is stalled.
    # Without tx_lock; the caller set its bit of ring.starved under it.
    cdef pollfd fds[2]
    cdef int ready
    fds[0].fd = queue.space_fd
    fds[1].fd = plane.stop_fd
    fds[0].events = fds[1].events = POLLIN
    ready = poll(fds, 2, STALL_MS)
    if ready > 0 and fds[0].revents:
        drain_fd(queue.space_fd)
        return True
    return ready < 0


cdef inline void capture_slots(plane_t *plane, const slot_t *slots, int count) noexcept nogil:
    # Frames that are sealed next. Before that, because cutting a super-frame writes into it.
    cdef iovec whole
    cdef size_t skip
    for i in range(count):
        skip = 0 if slots[i].inner[0] == INNER_FRAME else VNET_HEADER_BYTES
        whole.iov_base = slots[i].inner + 1
        whole.iov_len = slots[i].inner_bytes - 1
        capture_frame(&plane.capture, CAPTURE_OUTBOUND, &whole, 1, skip)


cdef inline void copy_route(plane_t *plane, const session_t *session,
                            route_t *route) noexcept nogil:
    # Under tx_lock; the session has sending keys.
    route.epoch = &plane.epochs[session.tx_epoch]
    route.peer_mtu_bytes = session.peer_mtu_bytes
    route.peer_caps = session.peer_caps
    route.udp_active = session.udp_active
    if session.udp_active:
        route.payload_bytes = session.udp_payload_bytes
        route.to = session.udp_address


cdef inline void prepare_batch(plane_t *plane, queue_t *queue,
                               const route_t *route) noexcept nogil:
    # Once for a batch, before any of it is sealed.
    judge_batch(queue, route)
    if capture_on(&plane.capture):
        capture_slots(plane, queue.slots, queue.batch)


cdef inline int send_over_link(plane_t *plane, queue_t *queue, session_t *session, int first,
                               uint64_t now_ns, bint *full) noexcept nogil:
    # Seals slots from `first` on into the session's ring: how many are done with. `full`: wait for
    # space before the next. Under tx_lock; the session has a ring and sending keys.
    cdef int left = queue.batch - first
    cdef int taken = seal_message(plane, session, &queue.slots[first], left, 1)
    if taken:
        queue.stalled = 0
        session.last_frame_ns = now_ns
    elif queue.stalled:
        drop_outgoing(queue, DROP_LINK_STALLED, left)
        return left
    elif left:
        full[0] = ring_starve(session.ring, queue.index)
    return taken


cdef inline void send_batch(plane_t *plane, queue_t *queue) noexcept nogil:
    # Hands every slot to the link of its session or to a counter.
    cdef uint64_t now_ns = boottime_ns()
    cdef session_t *session
    cdef route_t route
    cdef int index, obstacle
    cdef int first = 0
    cdef bint prepared = False
    cdef bint full
    while first < queue.batch:
        full = False
        pthread_mutex_lock(&plane.tx_lock)
        index = session_for(plane, slot_frame(&queue.slots[first]))
        obstacle = sending_obstacle(plane, index, now_ns)
        if obstacle != KEEP:
            pthread_mutex_unlock(&plane.tx_lock)
            drop_outgoing(queue, obstacle, queue.batch - first)
            return
        session = &plane.sessions[index]
        copy_route(plane, session, &route)
        if route.udp_active:
            pin_epoch(queue, session.tx_epoch)
            session.udp_last_frame_ns = now_ns
            pthread_mutex_unlock(&plane.tx_lock)
        if not prepared:
            prepare_batch(plane, queue, &route)
            prepared = True
        if route.udp_active:
            first += seal_slots(queue, &route, first)
            unpin_epoch(queue)
            send_outbox(plane, queue, &route.to)
            continue
        first += send_over_link(plane, queue, session, first, now_ns, &full)
        pthread_mutex_unlock(&plane.tx_lock)
        if full and not wait_for_space(plane, queue):
            queue.stalled = 1


cdef inline void run_outbound(queue_t *queue) noexcept nogil:
    # A TAP thread, until it is stopped or the device is gone.
    cdef plane_t *plane = queue.plane
    cdef int got
    while wait_for_frames(plane, queue):
        wait_for_session(plane, queue)
        got = read_batch(queue)
        if got < 0:
            sm_set_flag(&plane.tap_errno, -got)
            signal_fd(plane.event_fd)
            return
        if got > 0:
            if plane.queue_count > 1:
                note_queue(plane, queue)
            send_batch(plane, queue)
