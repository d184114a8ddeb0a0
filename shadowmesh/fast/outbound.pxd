# The way out: TAP -> batch of frames -> the lane of each one's peer -> sealed records in the ring of
# its session's link, or datagrams when that has a UDP path. What either has no room for waits in the
# lane.
#
#   wait_for_work -> wait_for_session -> read_batch -> send_batch
#     sort_frames (switch.pxd) -> give_port -> send_lane -+-> send_over_link (link_out.pxd)
#                                                        '-> send_over_udp (udp_queue.pxd)
#
# Functions stand in the order in which a frame meets them. All of it runs in the TAP threads, each
# on its own queue, and touches no Python object.

from libc.stddef cimport size_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
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
from .switch cimport *


cdef enum:
    # For memory that the kernel lacks, or a socket that will not say when it takes more.
    PAUSE_MS = 1
    # The kernel says when half of the socket is free, but not that another thread has made it larger.
    FULL_MS = 20
    # Of several peers a fast one is waited for so long, so that its sender is held up and not robbed.
    BEHIND_MS = 2
    # What lanes need to wait they may keep for so long.
    TIDY_MS = 10 * 1000
    # A flooded frame of so many bytes fits every path, and nobody writes into it.
    FLOOD_SHARED_BYTES = 1184
    FLOOD_COPY_BYTES = 2 * SLOT_BYTES
    # Frames for a peer without a session.
    HELD_FRAMES = 64
    HELD_BYTES = 64 * 1024


cdef inline int wait_for_work(const plane_t *plane, queue_t *queue) noexcept nogil:
    # 1: the TAP may be read, or the link looked at for what waits; 0: stop; -errno: there is no
    # waiting. A device error is left to read() to name.
    cdef const tap_t *tap = &plane.tap
    cdef pollfd fds[4]
    cdef bint socket_waits = queue.socket_waits != SOCKET_READY
    cdef bint several = sm_published(&plane.peers.wire) == NULL
    cdef int waiting = queue.store.waiting != 0 or socket_waits
    cdef int timeout_ms = STALL_MS if waiting else TIDY_MS if queue.lane_count > 1 else -1
    fds[0].fd = queue.tap_fd
    fds[1].fd = tap.stop_fd
    fds[2].fd = queue.space_fd
    fds[0].events = fds[1].events = fds[2].events = POLLIN
    fds[3].fd = plane.udp.fd if queue.socket_waits == SOCKET_FULL else -1
    fds[3].events = POLLOUT
    fds[3].revents = 0
    if not queue.reads_on and (several or socket_waits or not room_for_frames(queue)):
        # A fast link is behind for a moment; the device's own queue can bear that.
        fds[0].events = 0
        if several:
            timeout_ms = BEHIND_MS
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
    while sm_flag(&plane.peers.connected) == 0 and now_ns < until_ns:
        if poll(fds, 3, HOLD_MS) > 0:
            if fds[1].revents or fds[2].revents:
                return
            drain_fd(queue.space_fd)
        now_ns = boottime_ns()


cdef inline int read_batch(const tap_t *tap, queue_t *queue) noexcept nogil:
    # Fills frames[] until the device is empty, the batch or the arena are full. The number of frames,
    # or -errno when the device is gone.
    # Not through io_uring: its reads cost as much or more, its writes to a local socket a tenth less:
    # make perf ARGS="--only uring".
    cdef store_t *store = queue.store
    cdef uint8_t *base
    cdef size_t used, end
    cdef ssize_t got
    cdef slot_t *slot
    cdef uint64_t total = 0
    queue.read = 0
    if not room_for_frames(queue):
        return 0
    end = arena_room(store, SLOT_BYTES, &used)
    end = used + min(end, <size_t>(BATCH_BYTES + SLOT_BYTES))
    while queue.read < tap.batch_frames and used + SLOT_BYTES <= end:
        base = store.arena + used
        got = read(queue.tap_fd, base + 1, SLOT_BYTES - SLOT_GAP - 1)
        if got < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN or queue.read:
                break
            return -errno
        if got < VNET_HEADER_BYTES:
            break
        slot = &queue.frames[queue.read]
        queue.read += 1
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
    store.spare = used
    sm_count(&queue.sent.frames_read, queue.read)
    sm_count(&queue.sent.bytes_read, total)
    return queue.read


cdef inline size_t slot_frame_bytes(const slot_t *slot) noexcept nogil:
    return slot.inner_bytes - (slot_frame(slot) - slot.inner)


cdef inline void note_queue(tap_t *tap, const queue_t *queue) noexcept nogil:
    # That the flows of these frames come from this queue.
    cdef uint64_t now_ms = steer_now_ms()
    cdef const slot_t *slot
    for i in range(queue.read):
        slot = &queue.frames[i]
        steer_out(tap, queue.index, slot_frame(slot), slot_frame_bytes(slot), now_ms)


# --- One peer's frames ----------------------------------------------------------------------------


cdef inline void judge_slots(queue_t *queue, const route_t *route) noexcept nogil:
    # Leaves of the slots that are left those that may be sent.
    cdef int kept = queue.first
    cdef int verdict
    for i in range(queue.first, queue.batch):
        verdict = judge_slot(&queue.slots[i], route)
        if verdict != KEEP:
            drop_outgoing(queue, verdict, 1)
            continue
        queue.slots[kept] = queue.slots[i]
        kept += 1
    queue.batch = kept


cdef inline void hold(queue_t *queue, uint64_t now_ns) noexcept nogil:
    # The peer, of several, has no session: a few frames wait for one for a moment.
    cdef lane_t *lane = queue.lane
    cdef const slot_t *slot
    cdef int i
    if queue.first < queue.batch and not ready_lane(queue):
        drop_outgoing(queue, DROP_NOT_CONNECTED, queue.batch - queue.first)
        queue.batch = queue.first
    for i in range(queue.first, queue.batch):
        slot = &queue.slots[i]
        if (lane.waiting >= <uint64_t>HELD_FRAMES
                or lane.waiting_bytes + slot.inner_bytes > <uint64_t>HELD_BYTES):
            drop_outgoing(queue, DROP_NOT_CONNECTED, 1)
        else:
            keep_copy(queue, slot.inner, slot.inner_bytes, now_ns)
    queue.batch = queue.first = 0
    while (lane.first != NULL
           and now_ns - lane.first.since_ns >= <uint64_t>HOLD_MS * 1000000):
        lane_remove(queue.store, lane.first)
        drop_outgoing(queue, DROP_NOT_CONNECTED, 1)
    give_back(queue.store)


cdef inline void refuse_lane(plane_t *plane, queue_t *queue, int obstacle, uint64_t now_ns) noexcept nogil:
    # Nothing can be sent to the peer now.
    if obstacle == DROP_NOT_CONNECTED and sm_published(&plane.peers.wire) == NULL:
        hold(queue, now_ns)
        return
    drop_outgoing(queue, obstacle, queue.batch - queue.first)
    queue.batch = queue.first = 0
    drop_lane(queue, queue.lane, obstacle)
    give_back(queue.store)


cdef inline void send_lane(plane_t *plane, queue_t *queue, lane_t *lane, uint64_t now_ns) noexcept nogil:
    # Hands the slots to the path of the port's session or to a counter, or lets them wait; and what
    # waits. What was sealed over UDP may be left in the outbox.
    cdef port_t *port = <port_t *>lane.port
    cdef const route_t *route
    cdef int obstacle
    cdef uint64_t judged = 0    # the version of the route that the slots are fit for
    cdef bint sent = False
    queue.lane = lane
    queue.first = queue.captured = queue.chosen = 0
    while not sent and (queue.first < queue.batch or lane.waiting):
        route = pin_route(&plane.peers, queue.index, port)
        obstacle = sending_obstacle(route, now_ns)
        if obstacle != KEEP:
            refuse_lane(plane, queue, obstacle, now_ns)
            break
        if judged != route.version:
            judge_slots(queue, route)
            judged = route.version
        if lane.over_udp != route.udp_active:
            sm_set_flag(&lane.over_udp, route.udp_active)
        if route.udp_active:
            sent = send_over_udp(plane, queue, route, now_ns)
        else:
            sent = send_over_link(plane, queue, route, now_ns)
    unpin(&plane.peers.tap_pins[queue.index])
    if lane.waiting == 0 and lane.listed:
        lane.emptied_ns = now_ns
    queue.batch = queue.first = 0
    queue.lane = NULL


# --- Several peers: whose frames they are ---------------------------------------------------------


cdef inline bint flood_needs_copy(const slot_t *slot) noexcept nogil:
    # Whether sealing it may write into it: what is offloaded, or is cut into fragments.
    return slot.inner[0] != INNER_FRAME or slot.inner_bytes > <uint32_t>FLOOD_SHARED_BYTES


cdef inline bint copy_flooded(queue_t *queue, slot_t *slot) noexcept nogil:
    # The slot of its own that a peer gets of a flooded frame. False: there is no room for it now.
    cdef uint8_t *at
    if queue.flood_copies == NULL:
        queue.flood_copies = <uint8_t *>malloc(FLOOD_COPY_BYTES)
        if queue.flood_copies == NULL:
            return False
    if queue.flood_copied + slot_stride(slot.inner_bytes) + ARENA_MARGIN > <size_t>FLOOD_COPY_BYTES:
        return False
    at = queue.flood_copies + queue.flood_copied + ARENA_MARGIN
    memcpy(at, slot.inner, slot.inner_bytes)
    queue.flood_copied += slot_stride(slot.inner_bytes)
    slot.inner = at
    return True


cdef inline void learn_batch(plane_t *plane, queue_t *queue, uint64_t now_ns) noexcept nogil:
    # On a wire: the sources of what was read, to be shown.
    cdef uint32_t now_s = <uint32_t>(now_ns // 1000000000)
    cdef const slot_t *slot
    for i in range(queue.read):
        slot = &queue.frames[i]
        learn_local(plane, queue, slot_frame(slot), slot_frame_bytes(slot), now_s)


cdef inline bint sort_frames(plane_t *plane, queue_t *queue, uint64_t now_ns) noexcept nogil:
    # Says whose each frame is that was read, and drops what is nobody's. Whether some are for all.
    cdef const slot_t *slot
    cdef bint flooded = False
    cdef int kept = 0
    cdef int number = NO_PORT
    cdef int verdict
    for i in range(queue.read):
        slot = &queue.frames[i]
        verdict = switch_out(plane, queue, slot_frame(slot), slot_frame_bytes(slot), now_ns, &number)
        if verdict == FLOOD:
            flooded = True
            number = FLOOD
        elif verdict != KEEP:
            drop_outgoing(queue, verdict, 1)
            continue
        queue.frames[kept] = slot[0]
        queue.owners[kept] = number
        kept += 1
    queue.read = kept
    return flooded


cdef inline int give_port(plane_t *plane, queue_t *queue, port_t *port, bint flooded,
                          uint64_t now_ns) noexcept nogil:
    # Sends a port its frames of those that were read, in their order. How many of the flooded ones.
    cdef lane_t *lane = &port.lanes[queue.index]
    cdef slot_t *slot
    cdef int copies = 0
    cdef int i
    queue.batch = 0
    queue.only_floods = 1
    queue.flood_copied = 0
    flooded = flooded and port.floods and sm_published(&port.route) != NULL
    for i in range(queue.read):
        if queue.owners[i] != port.number and not (flooded and queue.owners[i] == FLOOD):
            continue
        slot = &queue.slots[queue.batch]
        slot[0] = queue.frames[i]
        copies += queue.owners[i] == FLOOD
        queue.only_floods &= queue.owners[i] == FLOOD
        if queue.owners[i] == FLOOD and flood_needs_copy(slot) and not copy_flooded(queue, slot):
            send_lane(plane, queue, lane, now_ns)
            queue.flood_copied = 0
            slot = &queue.slots[0]
            slot[0] = queue.frames[i]
            if not copy_flooded(queue, slot):
                queue.lane = lane
                drop_outgoing(queue, DROP_QUEUE_FULL, 1)
                continue
        queue.batch += 1
    if queue.batch:
        send_lane(plane, queue, lane, now_ns)
    queue.only_floods = 0
    queue.lane = NULL
    return copies


cdef inline void give_all(plane_t *plane, queue_t *queue, bint flooded, uint64_t now_ns) noexcept nogil:
    # Sends each port its frames.
    cdef port_t *port
    cdef int originals = 0
    cdef int copies = 0
    cdef int i, j
    if flooded:
        for i in range(MAX_PORTS):
            port = <port_t *>sm_published(&plane.peers.ports[i])
            if port != NULL:
                copies += give_port(plane, queue, port, True, now_ns)
        for i in range(queue.read):
            originals += queue.owners[i] == FLOOD
        if copies:
            sm_count(&queue.sent.frames_copied, copies - originals)
        else:
            drop_outgoing(queue, DROP_NOT_CONNECTED, originals)
        return
    for i in range(queue.read):
        port = <port_t *>sm_published(&plane.peers.ports[queue.owners[i]])
        for j in range(i):
            if queue.owners[j] == queue.owners[i]:
                port = NULL
        if port != NULL:
            give_port(plane, queue, port, False, now_ns)


cdef inline bint one_owner(const queue_t *queue) noexcept nogil:
    for i in range(1, queue.read):
        if queue.owners[i] != queue.owners[0]:
            return False
    return True


cdef inline void serve_waiting(plane_t *plane, queue_t *queue, uint64_t now_ns) noexcept nogil:
    # Lets each lane in which frames wait send, the first one last the next time.
    cdef lane_t *lane = queue.lanes
    cdef lane_t *last = NULL
    while lane != NULL:
        if lane.waiting:
            queue.batch = 0
            send_lane(plane, queue, lane, now_ns)
        last = lane
        lane = lane.following
    if last != queue.lanes:
        lane = queue.lanes
        queue.lanes = lane.following
        lane.following = NULL
        last.following = lane


cdef inline void tidy_lanes(queue_t *queue, uint64_t now_ns) noexcept nogil:
    # Gives back what lanes need to wait, when nothing has for a while.
    cdef lane_t **link = &queue.lanes
    cdef lane_t *lane = queue.lanes
    while lane != NULL:
        if lane.waiting == 0 and now_ns - lane.emptied_ns >= <uint64_t>TIDY_MS * 1000000:
            link[0] = lane.following
            free(lane.flows)
            lane.flows = NULL
            lane.listed = 0
            queue.lane_count -= 1
        else:
            link = &lane.following
        lane = link[0]


cdef inline bint holds_on(const queue_t *queue, uint64_t now_ns) noexcept nogil:
    # Whether a fast peer is behind, and catches up: then the device's own queue can bear it.
    cdef const lane_t *lane = queue.lanes
    while lane != NULL:
        if (lane.copied_bytes >= <uint64_t>(LANE_BYTES // 2) and not lane.slow and not lane.stalled
                and now_ns - lane.taken_ns < <uint64_t>BEHIND_MS * 1000000):
            return True
        lane = lane.following
    return False


# --- The thread -----------------------------------------------------------------------------------


cdef inline bint outbox_holds(queue_t *queue) noexcept nogil:
    # Whether sealed datagrams wait. The hub may give us an outbox at any time.
    cdef const outbox_t *outbox = <outbox_t *>sm_published(<void **>&queue.outbox)
    return outbox != NULL and outbox.count != 0


cdef inline void send_batch(plane_t *plane, queue_t *queue) noexcept nogil:
    # Hands every frame that was read to the path of its peer or to a counter, or lets it wait; and
    # what waits.
    cdef uint64_t now_ns = boottime_ns()
    cdef port_t *wire = <port_t *>sm_published(&plane.peers.wire)
    cdef bint flooded
    queue.socket_waits = SOCKET_READY
    if outbox_holds(queue):
        send_outbox(plane, queue, now_ns)
    if wire != NULL:
        learn_batch(plane, queue, now_ns)
        memcpy(queue.slots, queue.frames, queue.read * sizeof(slot_t))
        queue.batch = queue.read
        queue.in_place = 1
        send_lane(plane, queue, &wire.lanes[queue.index], now_ns)
        queue.reads_on = wire.lanes[queue.index].slow
        if queue.reads_on:
            make_arena_room(queue)
    else:
        flooded = sort_frames(plane, queue, now_ns)
        queue.in_place = not flooded and one_owner(queue)
        queue.only_keeps = 1
        give_all(plane, queue, flooded, now_ns)
        queue.only_keeps = 0
        serve_waiting(plane, queue, now_ns)
        queue.reads_on = not holds_on(queue, now_ns)
        if queue.reads_on:
            make_arena_room(queue)
        if queue.lane_count > 1:
            tidy_lanes(queue, now_ns)
    if outbox_holds(queue) and queue.socket_waits == SOCKET_READY:
        send_outbox(plane, queue, now_ns)
    queue.read = 0


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
            got = read_batch(tap, queue)
        if got < 0:
            sm_set_flag(&tap.failure, -got)
            signal_fd(tap.event_fd)
            return
        if got > 0 and tap.queue_count > 1:
            note_queue(tap, queue)
        send_batch(plane, queue)
