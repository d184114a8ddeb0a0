# The thread that moves the bytes of all links whose peers are authentic: sm-wss.
#
#   epoll --> a link's turn: ring -> TLS -> TCP, TCP -> TLS -> parser -> TAP, records for the hub
#
#   hub  carry_link() -> the thread has it -> release_link(): the hub has it again
#
# A link has a seat in a table, and epoll tells of seats: the thread takes the lock of the table to get
# from a seat to a locked link, so who takes a link out of the table and then its lock knows that the
# thread is not at it and never will be.
#
# What is not a frame waits in the link for the hub, a few records of it; then nothing more is read
# until the hub has taken them. TCP makes the peer wait meanwhile, and nobody else waits for it.

from libc.stddef cimport size_t
from libc.string cimport memcpy
from .base cimport *
from .connection cimport *
from .inbound cimport *
from .link cimport *
from .peers cimport *
from .plane cimport *
from .ring cimport *
from .tls cimport *

cdef enum:
    # Records of TLS that are read before others get their turn.
    READ_TURNS = 8
    EPOLL_EVENTS = 32
    STOP_SEAT = MAX_LINKS       # not a link: the thread is to end
    # Of so many seats at a time the hub looks whether memory can be given back.
    TIDIED_SEATS = 256


cdef inline void keep_event(link_t *link, int kind) noexcept nogil:
    # What parse() came to, for the hub. There is room.
    cdef const parser_t *parser = &link.parser
    cdef link_event_t *event = &link.memory.events[link.events_written % LINK_EVENTS]
    event.body = event.short_body
    event.kind = kind
    if kind < 0:
        event.body_bytes = 0
    else:
        event.opcode = parser.opcode
        event.key_id = parser.key_id
        event.inner_type = parser.inner_type
        event.body_bytes = parser.body_bytes
        if parser.body_bytes > SHORT_BODY_BYTES:
            event.body = link.memory.long_body
            sm_set_flag(&link.long_waits, 1)
        memcpy(event.body, parser.body, parser.body_bytes)
    sm_release(&link.events_written, link.events_written + 1)
    signal_fd(link.connection.event_fd)


cdef inline bint events_full(const link_t *link) noexcept nogil:
    return (sm_flag(&link.long_waits)
            or link.events_written - sm_acquire(&link.events_read) == LINK_EVENTS)


cdef inline bint parse_link(plane_t *plane, link_t *link, uint64_t now_ns) noexcept nogil:
    # All that was read. False: the hub has to take what waits for it first, or the peer broke a rule.
    cdef int outcome
    while True:
        if events_full(link):
            sm_set_flag(&link.paused, 1)
            sm_fence()
            if events_full(link):
                return False
            sm_set_flag(&link.paused, 0)
        outcome = parse(plane, &plane.wss.thread, &link.parser, now_ns)
        if outcome == EVENT_NONE:
            link.unparsed = 0
            return True
        keep_event(link, outcome)
        if outcome < 0:
            link.connection.reading = 0
            return False


cdef inline bint move_in(plane_t *plane, link_t *link, uint64_t now_ns) noexcept nogil:
    # From TCP to the parser, some records. True: there is more. Under the lock, with `tls`.
    cdef connection_t *connection = &link.connection
    cdef tls_t *tls = connection.tls
    cdef ssize_t got
    cdef size_t room
    cdef int turns
    for turns in range(READ_TURNS):
        # Without a session what comes would be a handshake, and that is for the hub.
        if not connection.reading or link.parser.session == NULL:
            return False
        if link.unparsed and not parse_link(plane, link, now_ns):
            return False
        if not tls.rest and record_size(tls) == 0:
            got = tls_receive(tls, connection.fd)
            if got < 0:
                connection_fails(connection, CONNECTION_BROKEN, got)
                return False
            if got == 0 and not tls.ended:
                return False
        room = make_room(&link.parser)
        got = tls_read(tls, link.parser.bytes + link.parser.raw_end, room, now_ns)
        if got < 0:
            connection_fails(connection, CONNECTION_BROKEN, got)
            return False
        if got == 0 and tls.ended:
            connection_fails(connection, CONNECTION_ENDED, 0)
            return False
        if got:
            link.parser.raw_end += got
            link.unparsed = 1
    if link.unparsed and not parse_link(plane, link, now_ns):
        return False
    return tls_ready(tls)


cdef inline void take_turn(plane_t *plane, link_t *link) noexcept nogil:
    # Under the lock.
    cdef connection_t *connection = &link.connection
    cdef bint more
    if connection.tls == NULL or connection.state != CONNECTION_WELL:
        return
    more = move_in(plane, link, boottime_ns())
    # What TLS answers to a key update leaves with the rest.
    if connection.state == CONNECTION_WELL and move_out(connection):
        more = True
    if connection.state == CONNECTION_WELL:
        ask_epoll(connection, (connection.asked & EPOLLOUT)
                  | (EPOLLIN if connection.reading and not sm_flag(&link.paused) else 0))
    if more:
        signal_fd(link.ring.wakeup_fd)


cdef inline link_t *lock_seat(wss_t *wss, uint64_t seat) noexcept nogil:
    # The link there, locked; NULL: nobody sits there any more.
    cdef link_t *link
    pthread_mutex_lock(&wss.lock)
    link = <link_t *>wss.links[seat]
    if link != NULL:
        pthread_mutex_lock(&link.connection.lock)
    pthread_mutex_unlock(&wss.lock)
    return link


cdef inline void run_links(plane_t *plane) noexcept nogil:
    # The thread, until stop_fd.
    cdef epoll_event events[EPOLL_EVENTS]
    cdef link_t *link
    cdef int count, i
    while True:
        count = epoll_wait(plane.wss.epoll_fd, events, EPOLL_EVENTS, -1)
        for i in range(count):
            if events[i].data.u64 == STOP_SEAT:
                return
            link = lock_seat(&plane.wss, events[i].data.u64)
            if link != NULL:
                sm_release(&plane.wss.turns, plane.wss.turns + 1)
                sm_fence()
                take_turn(plane, link)
                sm_release(&plane.wss.turns, plane.wss.turns + 1)
                pthread_mutex_unlock(&link.connection.lock)


# --- The hub's side -------------------------------------------------------------------------------


cdef inline void await_turn(const wss_t *wss) noexcept nogil:
    # For the hub, which has taken the device away: until the thread has seen that.
    cdef uint64_t turns
    sm_fence()
    turns = sm_acquire(&wss.turns)
    while turns & 1 and sm_acquire(&wss.turns) == turns:
        sched_yield()


cdef inline bint watch_descriptor(wss_t *wss, int fd, uint32_t events, uint64_t seat) noexcept nogil:
    # False, with the reason in errno.
    cdef epoll_event event
    event.events = events
    event.data.u64 = seat
    return epoll_ctl(wss.epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0


cdef inline bint carry_link(plane_t *plane, link_t *link, tls_t *tls, int fd) noexcept nogil:
    # The thread moves its bytes from now on. False: it does not, for the reason in errno.
    cdef connection_t *connection = &link.connection
    cdef uint64_t seat = 0
    cdef bint well
    pthread_mutex_lock(&plane.wss.lock)
    while seat < MAX_LINKS and plane.wss.links[seat] != NULL:
        seat += 1
    if seat < MAX_LINKS:
        plane.wss.links[seat] = link
    pthread_mutex_unlock(&plane.wss.lock)
    if seat == MAX_LINKS:
        sm_set_errno(ENOBUFS)
        return False
    pthread_mutex_lock(&connection.lock)
    connection.fd = fd
    connection.epoll_fd = plane.wss.epoll_fd
    connection.seat = seat
    connection.asked = EPOLLIN
    connection.reading = 1
    # What the hub has read and not parsed, or parsed and left off at a message.
    link.unparsed = 1
    connection.tls = tls
    well = (watch_descriptor(&plane.wss, fd, EPOLLIN, seat)
            # Each signal is one event: it need not be drained while the link is blocked.
            and watch_descriptor(&plane.wss, link.ring.wakeup_fd, EPOLLIN | EPOLLET, seat))
    pthread_mutex_unlock(&connection.lock)
    if not well:
        release_link(plane, link)
        return False
    signal_fd(link.ring.wakeup_fd)
    return True


cdef inline void release_link(plane_t *plane, link_t *link) noexcept nogil:
    # The hub moves its bytes from now on; TLS may have some that it has sealed.
    cdef connection_t *connection = &link.connection
    cdef int number = errno
    if connection.tls == NULL:
        return
    pthread_mutex_lock(&plane.wss.lock)
    plane.wss.links[connection.seat] = NULL
    pthread_mutex_unlock(&plane.wss.lock)
    pthread_mutex_lock(&connection.lock)
    connection.tls = NULL
    # Either may be gone from there already.
    epoll_ctl(connection.epoll_fd, EPOLL_CTL_DEL, connection.fd, NULL)
    epoll_ctl(connection.epoll_fd, EPOLL_CTL_DEL, link.ring.wakeup_fd, NULL)
    pthread_mutex_unlock(&connection.lock)
    sm_set_errno(number)


cdef inline const link_event_t *next_event(const link_t *link) noexcept nogil:
    # The oldest one, until event_taken(); NULL: none.
    if sm_acquire(&link.events_written) == link.events_read:
        return NULL
    return &link.memory.events[link.events_read % LINK_EVENTS]


cdef inline void event_taken(link_t *link) noexcept nogil:
    if link.memory.events[link.events_read % LINK_EVENTS].body == link.memory.long_body:
        sm_set_flag(&link.long_waits, 0)
    sm_release(&link.events_read, link.events_read + 1)
    sm_fence()
    if sm_flag(&link.paused) and sm_take_flag(&link.paused):
        signal_fd(link.ring.wakeup_fd)


cdef inline void stop_reading(link_t *link) noexcept nogil:
    pthread_mutex_lock(&link.connection.lock)
    link.connection.reading = 0
    pthread_mutex_unlock(&link.connection.lock)


cdef inline void tidy_link(link_t *link) noexcept nogil:
    # Gives back what a burst has left behind. Under the lock, with `tls`.
    ring_give_back(&link.ring)
    parser_give_back(&link.parser)
    tls_give_back(link.connection.tls)


cdef inline void tidy_links(wss_t *wss) noexcept nogil:
    # For the hub, now and then: the next of the seats. A link that somebody is at is not at rest.
    cdef link_t *link
    cdef int i
    pthread_mutex_lock(&wss.lock)
    for i in range(TIDIED_SEATS):
        link = <link_t *>wss.links[wss.tidied]
        wss.tidied = (wss.tidied + 1) % MAX_LINKS
        if link != NULL and pthread_mutex_trylock(&link.connection.lock) == 0:
            if link.connection.tls != NULL:
                tidy_link(link)
            pthread_mutex_unlock(&link.connection.lock)
    pthread_mutex_unlock(&wss.lock)
