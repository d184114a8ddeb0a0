# The way out: TAP -> batch of slots -> sealed records in the ring of the session's link, or
# datagrams when the session has a UDP path. What either has no room for waits in the backlog.
#
#   wait_for_work -> wait_for_session -> read_batch -> send_batch -+-> send_over_link (link_out.pxd)
#                                                                 '-> send_over_udp (udp_queue.pxd)
#
# Functions stand in the order in which a frame meets them. All of it runs in the TAP threads, each
# on its own queue, and touches no Python object.

from libc.stddef cimport size_t
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .session cimport *
from .peers cimport *
from .tap cimport *
from .plane cimport *
from .link_out cimport *
from .udp_queue cimport *
from .capture cimport *
from .steer cimport *


cdef enum:
    # For memory that the kernel lacks, or a socket that will not say when it takes more.
    PAUSE_MS = 1
    # The kernel says when half of the socket is free, but not that another thread has made it larger.
    FULL_MS = 20


cdef inline int wait_for_work(const plane_t *plane, queue_t *queue) noexcept nogil:
    # 1: the TAP may be read, or the link looked at for what waits; 0: stop; -errno: there is no
    # waiting. A device error is left to read() to name.
    cdef const tap_t *tap = &plane.tap
    cdef pollfd fds[4]
    cdef bint socket_waits = queue.socket_waits != SOCKET_READY
    cdef int waiting = queue.backlog.waiting != 0 or socket_waits
    cdef int timeout_ms = STALL_MS if waiting else -1
    fds[0].fd = queue.tap_fd
    fds[1].fd = tap.stop_fd
    fds[2].fd = queue.space_fd
    fds[0].events = fds[1].events = fds[2].events = POLLIN
    fds[3].fd = plane.udp.fd if queue.socket_waits == SOCKET_FULL else -1
    fds[3].events = POLLOUT
    fds[3].revents = 0
    if not queue.slow and (socket_waits or not room_for_frames(queue)):
        # A fast link is behind for a moment; the device's own queue can bear that.
        fds[0].events = 0
    if socket_waits:
        timeout_ms = PAUSE_MS if queue.socket_waits == SOCKET_PAUSES else FULL_MS
    while poll(fds, 3 + socket_waits if waiting else 2, timeout_ms) < 0:
        if errno != EINTR:
            return -errno
    queue.socket_spoke = socket_waits and fds[3].revents != 0
    if waiting and fds[2].revents:
        drain_fd(queue.space_fd)
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
    fds[1].fd = plane.tap.stop_fd
    fds[2].fd = queue.tap_fd
    fds[0].events = fds[1].events = POLLIN
    fds[2].events = 0
    while sm_flag(&plane.peers.active_session) < 0 and now_ns < until_ns:
        if poll(fds, 3, HOLD_MS) > 0:
            if fds[1].revents or fds[2].revents:
                return
            drain_fd(queue.space_fd)
        now_ns = boottime_ns()


cdef inline int read_batch(const tap_t *tap, queue_t *queue) noexcept nogil:
    # Fills slots until the device is empty, the slots or the arena are full. The number of frames,
    # or -errno when the device is gone.
    # Not through io_uring: its reads cost as much or more, its writes to a local socket a tenth less:
    # make perf ARGS="--only uring".
    cdef uint8_t *base
    cdef size_t used, end
    cdef ssize_t got
    cdef slot_t *slot
    cdef uint64_t total = 0
    queue.batch = 0
    if not room_for_frames(queue):
        return 0
    end = arena_room(queue.backlog, room_wanted(queue), &used)
    queue.backlog.spare_end = used + end
    end = used + min(end, <size_t>(2 * SLOT_BYTES if queue.very_slow else BATCH_BYTES + SLOT_BYTES))
    while queue.batch < tap.batch_frames and used + SLOT_BYTES <= end:
        base = queue.backlog.arena + used
        got = read(queue.tap_fd, base + 1, SLOT_BYTES - SLOT_GAP - 1)
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
        used += slot_stride(1 + got)
    queue.backlog.spare = used
    sm_count(&queue.sent.frames_read, queue.batch)
    sm_count(&queue.sent.bytes_read, total)
    return queue.batch


cdef inline void note_queue(tap_t *tap, const queue_t *queue) noexcept nogil:
    # That the flows of these frames come from this queue.
    cdef uint64_t now_ms = steer_now_ms()
    cdef const slot_t *slot
    cdef const uint8_t *frame
    for i in range(queue.batch):
        slot = &queue.slots[i]
        frame = slot_frame(slot)
        steer_out(tap, queue.index, frame, slot.inner_bytes - (frame - slot.inner), now_ms)


cdef inline void judge_batch(queue_t *queue, const route_t *route, int first) noexcept nogil:
    # Leaves of the slots from `first` on those that may be sent.
    cdef int kept = first
    cdef int verdict
    for i in range(first, queue.batch):
        verdict = judge_slot(&queue.slots[i], route)
        if verdict != KEEP:
            drop_outgoing(queue, verdict, 1)
            continue
        queue.slots[kept] = queue.slots[i]
        kept += 1
    queue.batch = kept


cdef inline const uint8_t *next_frame(const queue_t *queue, int first) noexcept nogil:
    # Of the batch, or of what waits.
    if first < queue.batch:
        return slot_frame(&queue.slots[first])
    return slot_frame(&queue.backlog.parked[backlog_oldest(queue.backlog)].slot)


cdef inline void send_batch(plane_t *plane, queue_t *queue) noexcept nogil:
    # Hands every slot to the path of its session or to a counter, or lets it wait; and what waits.
    cdef uint64_t now_ns = boottime_ns()
    cdef pin_t *mine = &plane.peers.tap_pins[queue.index]
    cdef const route_t *route
    cdef session_t *session
    cdef int index, obstacle
    cdef int first = 0
    cdef uint64_t judged = 0    # the version of the route that the slots are fit for
    cdef bint sent = False
    queue.captured = queue.chosen = 0
    queue.socket_waits = SOCKET_READY
    if queue.outbox != NULL and queue.outbox.count:
        send_outbox(plane, queue, now_ns)
    while not sent and (first < queue.batch or queue.backlog.waiting):
        index = session_for(&plane.peers, next_frame(queue, first))
        route = pin_route(&plane.peers, queue.index, index)
        obstacle = sending_obstacle(route, now_ns)
        if obstacle != KEEP:
            drop_outgoing(queue, obstacle, queue.batch - first)
            drop_parked(queue, obstacle)
            break
        session = &plane.peers.sessions[index]
        if judged != route.version:
            judge_batch(queue, route, first)
            judged = route.version
        if queue.over_udp != route.udp_active:
            sm_set_flag(&queue.over_udp, route.udp_active)
        if route.udp_active:
            sent = send_over_udp(plane, queue, session, route, &first, now_ns)
        else:
            sent = send_over_link(plane, queue, session, route, &first, now_ns)
    unpin(mine)


cdef inline void run_outbound(plane_t *plane, queue_t *queue) noexcept nogil:
    # A TAP thread, until it is stopped or the device is gone.
    cdef tap_t *tap = &plane.tap
    cdef int got
    while True:
        got = wait_for_work(plane, queue)
        if got == 0:
            return
        if got > 0:
            wait_for_session(plane, queue)
            shed_for_room(queue)
            got = read_batch(tap, queue)
        if got < 0:
            sm_set_flag(&tap.failure, -got)
            signal_fd(tap.event_fd)
            return
        if got > 0 and tap.queue_count > 1:
            note_queue(tap, queue)
        send_batch(plane, queue)
