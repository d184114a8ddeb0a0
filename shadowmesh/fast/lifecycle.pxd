# The life of a plane: its memory, its descriptors and its threads.
#
#   plane_new -> open_descriptors -+-> attach_device -> detach_device --+-> plane_free
#                                  '-> attach_socket -> detach_socket --'
#
# Called by the hub alone. The threads are bare POSIX threads that never take the GIL; `top -H` shows
# them as sm-tap-0 (one for each queue of the device), sm-udp and sm-wss.

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from .base cimport *
from .drop_reasons cimport *
from .fdb cimport *
from .backlog cimport *
from .capture cimport *
from .datagram cimport *
from .line cimport LINE_FIRST, line_reset
from .link_out cimport drop_lane
from .links cimport STOP_SEAT, await_turn, run_links, watch_descriptor
from .outbound cimport run_outbound
from .peers cimport *
from .plane cimport *
from .port cimport *
from .ring cimport *
from .steer cimport *
from .tap cimport *
from .udp_in cimport await_batch, run_inbound_udp
from .udp_out cimport drop_outbox
from .udp_queue cimport set_buffer

cdef enum:
    E_NO_MEMORY = -1
    E_NO_THREAD = -2
    DESCRIPTORS = 6 + MAX_QUEUES
    # The least that there is: before every ordinary program, behind what the kernel itself does.
    REALTIME_PRIORITY = 1


cdef inline void *tap_thread(void *argument) noexcept nogil:
    cdef tap_thread_t *started = <tap_thread_t *>argument
    cdef char name[16]
    memcpy(name, <const char *>b"sm-tap-0", 9)
    name[7] += <char>started.queue.index
    pthread_setname_np(pthread_self(), name)
    run_outbound(started.plane, started.queue)
    return NULL


cdef inline void *udp_thread(void *argument) noexcept nogil:
    pthread_setname_np(pthread_self(), <const char *>b"sm-udp")
    run_inbound_udp(<plane_t *>argument)
    return NULL


cdef inline void *wss_thread(void *argument) noexcept nogil:
    pthread_setname_np(pthread_self(), <const char *>b"sm-wss")
    run_links(<plane_t *>argument)
    return NULL


cdef inline bint start_thread(threads_t *threads, pthread_t *thread,
                              void *(*body)(void *) noexcept nogil, void *argument) noexcept nogil:
    # False: there is none. All threads of the plane begin here, and get their policy.
    #
    # SCHED_RR, so that two of them that share a core take turns, should neither ever wait. None may
    # spin for somebody of a lower priority, who would not run until it ends.
    cdef sched_param priority
    cdef int code
    if pthread_create(thread, NULL, body, argument) != 0:
        return False
    if threads.realtime and not threads.realtime_error:
        priority.sched_priority = REALTIME_PRIORITY
        code = pthread_setschedparam(thread[0], SCHED_RR, &priority)
        if code != ESRCH:  # it has ended by itself already
            threads.realtime_error = code
    return True


cdef inline void make_ordinary(pthread_t thread) noexcept nogil:
    # ESRCH as above; nobody is refused this.
    cdef sched_param priority
    priority.sched_priority = 0
    pthread_setschedparam(thread, SCHED_OTHER, &priority)


cdef inline void end_realtime(threads_t *threads, int reason) noexcept nogil:
    # For the threads that run and those to come. `reason`: an errno.
    cdef int i
    threads.realtime_error = reason
    for i in range(threads.tap_running):
        make_ordinary(threads.tap[i].thread)
    if threads.udp_running:
        make_ordinary(threads.udp)
    if threads.wss_running:
        make_ordinary(threads.wss)


cdef inline plane_t *plane_new() noexcept nogil:
    # NULL: no memory.
    cdef plane_t *plane = <plane_t *>calloc(1, sizeof(plane_t))
    cdef int i
    if plane == NULL:
        return NULL
    plane.tap.queue_count = 1
    plane.tap.mtu_bytes = 65535
    plane.tap.batch_frames = BATCH_FRAMES
    for i in range(MAX_QUEUES):
        plane.tap.queues[i].index = i
        plane.tap.queues[i].tap_fd = -1
        plane.threads.tap[i].plane = plane
        plane.threads.tap[i].queue = &plane.tap.queues[i]
    plane.fdb = <fdb_t *>calloc(1, sizeof(fdb_t))
    if plane.fdb == NULL:
        free(plane)
        return NULL
    plane.fdb.most_entries = DEFAULT_MACS
    plane.udp.fd = -1
    plane.udp.batch_messages = INBOX_MESSAGES
    make_opener(&plane.udp.opener, &plane.peers.udp_pin, &plane.udp.received, BY_UDP_THREAD)
    make_opener(&plane.wss.thread, &plane.peers.wss_pin, &plane.wss.carried, BY_WSS_THREAD)
    make_opener(&plane.wss.hub, &plane.peers.hub_pin, &plane.wss.received, BY_HUB)
    plane.wss.epoll_fd = -1
    pthread_mutex_init(&plane.wss.lock, NULL)
    return plane


cdef inline void list_descriptors(plane_t *plane, int **fds) noexcept nogil:
    # The DESCRIPTORS that are the plane's own.
    cdef int i
    fds[0] = &plane.tap.event_fd
    fds[1] = &plane.tap.stop_fd
    fds[2] = &plane.udp.event_fd
    fds[3] = &plane.udp.stop_fd
    fds[4] = &plane.capture.wakeup_fd
    fds[5] = &plane.wss.stop_fd
    for i in range(MAX_QUEUES):
        fds[6 + i] = &plane.tap.queues[i].space_fd


cdef inline bint open_descriptors(plane_t *plane) noexcept nogil:
    # False, with the reason in errno.
    cdef int *fds[DESCRIPTORS]
    cdef int i
    list_descriptors(plane, fds)
    for i in range(DESCRIPTORS):
        fds[i][0] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if fds[i][0] < 0:
            return False
    plane.wss.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    return (plane.wss.epoll_fd >= 0
            and watch_descriptor(&plane.wss, plane.wss.stop_fd, EPOLLIN, STOP_SEAT))


cdef inline bint provide_queues(plane_t *plane) noexcept nogil:
    # What the threads of queue_count queues work in; False: no memory.
    cdef queue_t *queue
    cdef int i
    for i in range(plane.tap.queue_count):
        queue = &plane.tap.queues[i]
        if queue.store == NULL:
            queue.store = store_new()
        if queue.outbox == NULL and plane.udp.inbox != NULL:
            # its thread may run already
            sm_publish(<void **>&queue.outbox, calloc(1, sizeof(outbox_t)))
        if queue.store == NULL or (queue.outbox == NULL and plane.udp.inbox != NULL):
            return False
    return True


cdef inline inbox_t *inbox_new() noexcept nogil:
    # NULL: no memory.
    cdef inbox_t *inbox = <inbox_t *>calloc(1, sizeof(inbox_t))
    cdef msghdr *message
    cdef int i
    if inbox == NULL:
        return NULL
    inbox.slices = <uint8_t *>calloc(MAX_PARTIALS, PARTIAL_BYTES)
    if inbox.slices == NULL:
        free(inbox)
        return NULL
    for i in range(INBOX_MESSAGES):
        inbox.vectors[i].iov_base = inbox.bytes[i]
        inbox.vectors[i].iov_len = INBOX_MESSAGE_BYTES
        # The two lengths are written by each reception, which sets them again (udp_in.pxd).
        message = &inbox.messages[i].msg_hdr
        message.msg_name = &inbox.sources[i].storage
        message.msg_namelen = sizeof(sockaddr_storage)
        message.msg_iov = &inbox.vectors[i]
        message.msg_iovlen = 1
        message.msg_control = inbox.controls[i]
        message.msg_controllen = CONTROL_BYTES
    for i in range(MAX_PARTIALS):
        inbox.partials[i].bytes = inbox.slices + i * PARTIAL_BYTES + PARTIAL_HEADROOM
    return inbox


cdef inline void free_boxes(plane_t *plane) noexcept nogil:
    cdef int i
    if plane.udp.inbox != NULL:
        # Plaintext frames were opened in it.
        sodium_memzero(plane.udp.inbox.bytes, sizeof(plane.udp.inbox.bytes))
        free(plane.udp.inbox.slices)
        free(plane.udp.inbox)
        plane.udp.inbox = NULL
    for i in range(MAX_QUEUES):
        free(plane.tap.queues[i].outbox)
        plane.tap.queues[i].outbox = NULL


cdef inline void stop_tap_threads(plane_t *plane) noexcept nogil:
    cdef int i
    if plane.threads.tap_running:
        signal_fd(plane.tap.stop_fd)
        for i in range(plane.threads.tap_running):
            pthread_join(plane.threads.tap[i].thread, NULL)
        drain_fd(plane.tap.stop_fd)
        plane.threads.tap_running = 0


cdef inline bint start_tap_threads(plane_t *plane) noexcept nogil:
    # All of them or none: False.
    cdef tap_thread_t *one
    cdef int i
    for i in range(plane.tap.queue_count):
        one = &plane.threads.tap[i]
        if not start_thread(&plane.threads, &one.thread, tap_thread, one):
            stop_tap_threads(plane)
            return False
        plane.threads.tap_running += 1
    return True


cdef inline void resume_tap_threads(plane_t *plane, int running) noexcept nogil:
    # So many ran before.
    if running and not start_tap_threads(plane):
        # As if the device had failed: who hears of it attaches it anew.
        sm_set_flag(&plane.tap.failure, EAGAIN)
        signal_fd(plane.tap.event_fd)


cdef inline void drop_outboxes(plane_t *plane) noexcept nogil:
    # What still waits for the socket. No TAP thread runs.
    for i in range(MAX_QUEUES):
        if plane.tap.queues[i].outbox != NULL:
            drop_outbox(&plane.tap.queues[i], EAGAIN)


cdef inline void stop_udp_thread(plane_t *plane) noexcept nogil:
    if plane.threads.udp_running:
        signal_fd(plane.udp.stop_fd)
        pthread_join(plane.threads.udp, NULL)
        drain_fd(plane.udp.stop_fd)
        plane.threads.udp_running = 0


cdef inline bint start_wss_thread(plane_t *plane) noexcept nogil:
    # Once, before the first link is carried. False: no thread.
    if not plane.threads.wss_running:
        plane.threads.wss_running = start_thread(&plane.threads, &plane.threads.wss, wss_thread,
                                                 plane)
    return plane.threads.wss_running


cdef inline void stop_wss_thread(plane_t *plane) noexcept nogil:
    if plane.threads.wss_running:
        signal_fd(plane.wss.stop_fd)
        pthread_join(plane.threads.wss, NULL)
        plane.threads.wss_running = 0


cdef inline void set_device(plane_t *plane, const int *fds, int count,
                            bint udp_super_frames) noexcept nogil:
    # Those who receive may be writing to the old one, which is the caller's to close afterwards. No
    # TAP thread runs.
    cdef int i
    for i in range(MAX_QUEUES):
        sm_set_flag(&plane.tap.queues[i].tap_fd, -1)
    await_batch(&plane.udp)
    await_turn(&plane.wss)
    steer_reset(&plane.tap, count if count else 1)
    sm_set_flag(&plane.udp.super_frames, udp_super_frames)
    for i in range(count):
        sm_set_flag(&plane.tap.queues[i].tap_fd, fds[i])


cdef inline int attach_device(plane_t *plane, const int *fds, int count, uint32_t mtu_bytes,
                              bint udp_super_frames) noexcept nogil:
    # 0 or an E_ code, and then nothing is attached.
    cdef int code = 0
    sm_set_flag(&plane.tap.mtu_bytes, mtu_bytes)
    plane.tap.failure = 0
    set_device(plane, fds, count, udp_super_frames)
    drain_fd(plane.tap.event_fd)
    if not provide_queues(plane):
        code = E_NO_MEMORY
    elif not start_tap_threads(plane):
        code = E_NO_THREAD
    if code:
        set_device(plane, NULL, 0, False)
    return code


cdef inline void drop_waiting(queue_t *queue, int reason) noexcept nogil:
    # All that waits, whoever it is for. No TAP thread runs.
    cdef lane_t *lane = queue.lanes
    while lane != NULL:
        drop_lane(queue, lane, reason)
        lane = lane.following
    if queue.store != NULL:
        give_back(queue.store)


cdef inline void detach_device(plane_t *plane) noexcept nogil:
    cdef int i
    stop_tap_threads(plane)
    for i in range(plane.tap.queue_count):
        drop_waiting(&plane.tap.queues[i], DROP_TAP_GONE)
    drop_outboxes(plane)
    set_device(plane, NULL, 0, False)


cdef inline int attach_socket(plane_t *plane, int fd, int family,
                              bint no_segmentation) noexcept nogil:
    # 0 or an E_ code, and then nothing is attached.
    plane.udp.inbox = inbox_new()
    if plane.udp.inbox == NULL or not provide_queues(plane):
        free_boxes(plane)
        return E_NO_MEMORY
    plane.udp.family = family
    plane.udp.fd = fd
    line_reset(&plane.udp.line)
    set_buffer(&plane.udp, LINE_FIRST)
    plane.udp.no_segmentation = no_segmentation
    drain_fd(plane.udp.event_fd)
    if not start_thread(&plane.threads, &plane.threads.udp, udp_thread, plane):
        plane.udp.fd = -1
        free_boxes(plane)
        return E_NO_THREAD
    plane.threads.udp_running = 1
    return 0


cdef inline void detach_socket(plane_t *plane) noexcept nogil:
    cdef session_t *session = plane.peers.sessions
    cdef int running
    stop_udp_thread(plane)
    # The TAP threads send with nothing pinned, from their outboxes: they have to stand still.
    running = plane.threads.tap_running
    stop_tap_threads(plane)
    while session != NULL:
        if session.draft.udp_active:
            session.draft.udp_active = 0
            publish_route(&plane.peers, session)
        session = session.after
    drop_outboxes(plane)
    plane.udp.fd = -1
    free_boxes(plane)
    resume_tap_threads(plane, running)


cdef inline port_t *port_new(peers_t *peers) noexcept nogil:
    # NULL: there are MAX_PORTS already, or there is no memory.
    cdef port_t *port
    cdef int number = 0
    cdef int i
    while number < MAX_PORTS and peers.ports[number] != NULL:
        number += 1
    if number == MAX_PORTS:
        return NULL
    port = <port_t *>calloc(1, sizeof(port_t))
    if port == NULL:
        return NULL
    port.number = number
    port.floods = 1
    port.most_macs = DEFAULT_PORT_MACS
    port.listed_macs = -1
    for i in range(MAX_QUEUES):
        port.lanes[i].port = port
    sm_publish(&peers.ports[number], port)
    peers.port_count += 1
    choose_wire(peers)
    return port


cdef inline void choose_wire(peers_t *peers) noexcept nogil:
    # The only port, if there is only one.
    cdef int i
    sm_publish(&peers.wire, NULL)
    if peers.port_count == 1:
        for i in range(MAX_PORTS):
            if peers.ports[i] != NULL:
                sm_publish(&peers.wire, peers.ports[i])


cdef inline void forget_lane(queue_t *queue, lane_t *lane) noexcept nogil:
    # What waits in it is dropped. No TAP thread runs.
    cdef lane_t **link = &queue.lanes
    drop_lane(queue, lane, DROP_NOT_CONNECTED)
    if queue.store != NULL:
        give_back(queue.store)
    while link[0] != NULL:
        if link[0] == lane:
            link[0] = lane.following
            queue.lane_count -= 1
        else:
            link = &link[0].following
    free(lane.flows)


cdef inline void port_free(plane_t *plane, port_t *port) noexcept nogil:
    # Its sessions are nobody's from now on.
    cdef peers_t *peers = &plane.peers
    cdef session_t *session = peers.sessions
    cdef int running = plane.threads.tap_running
    cdef int i
    if port.active != NULL:
        activate_session(peers, port, NULL)
    while session != NULL:
        if session.port == port:
            sm_publish(&session.port, NULL)
        session = session.after
    # Where frames wait they are the port's, and what was sealed points to it.
    stop_tap_threads(plane)
    sm_publish(&peers.ports[port.number], NULL)
    peers.port_count -= 1
    choose_wire(peers)
    drop_outboxes(plane)
    for i in range(MAX_QUEUES):
        forget_lane(&plane.tap.queues[i], &port.lanes[i])
    await_batch(&plane.udp)
    await_turn(&plane.wss)
    fdb_forget(plane.fdb, peers.ports, port.number, 0)
    if plane.capture.only == port:
        # Another port may have its memory next: this is none.
        plane.capture.only = &plane.capture
    free(port.mac_list)
    free(port)
    resume_tap_threads(plane, running)


cdef inline bint begin_capture(capture_t *capture, uint32_t snap_bytes,
                               const port_t *only) noexcept nogil:
    # False: no memory.
    cdef uint8_t *memory = <uint8_t *>calloc(1, CAPTURE_BYTES)
    if memory == NULL:
        return False
    capture_start(capture, memory, snap_bytes, only)
    return True


cdef inline void end_capture(capture_t *capture) noexcept nogil:
    cdef uint8_t *memory = capture_stop(capture)
    if memory != NULL:
        # Plaintext frames.
        sodium_memzero(memory, CAPTURE_BYTES)
        free(memory)


cdef inline void plane_free(plane_t *plane) noexcept nogil:
    # Whatever of it there is; no session or link uses it any more.
    cdef int *fds[DESCRIPTORS]
    cdef int i
    if plane == NULL:
        return
    stop_tap_threads(plane)
    stop_udp_thread(plane)
    stop_wss_thread(plane)
    free_boxes(plane)
    end_capture(&plane.capture)
    while plane.peers.sessions != NULL:
        session_free(&plane.peers, plane.peers.sessions)
    for i in range(MAX_PORTS):
        if plane.peers.ports[i] != NULL:
            port_free(plane, <port_t *>plane.peers.ports[i])
    for i in range(MAX_QUEUES):
        store_free(plane.tap.queues[i].store)
        free(plane.tap.queues[i].flood_copies)
    free(plane.fdb)
    list_descriptors(plane, fds)
    for i in range(DESCRIPTORS):
        if fds[i][0] > 0:
            close(fds[i][0])
    if plane.wss.epoll_fd >= 0:
        close(plane.wss.epoll_fd)
    pthread_mutex_destroy(&plane.wss.lock)
    free(plane)
