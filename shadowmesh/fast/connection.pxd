# The TCP and TLS connection under a link, while the data plane moves its bytes.
#
#   ring --tls_write--> TLS --tls_flush--> TCP        move_out: the thread of all links (links.pxd), or
#                                                     a TAP thread that has just filled an idle ring
#   TCP --tls_receive--> TLS --tls_read--> parser     links.pxd
#
# Whoever moves bytes has the lock, for one link's turn: some records of TLS, a fraction of a
# millisecond. Until carry_link(), when the peer is authentic, and after release_link() there is no
# `tls` here and the hub moves the bytes.

from .base cimport *
from .ring cimport *
from .tls cimport *

cdef extern from "<sys/socket.h>" nogil:
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP

cdef extern from "compat.h" nogil:
    int SM_TCP_NOTSENT_LOWAT

cdef enum:
    # Pieces of the ring that are written before others get their turn.
    WRITE_TURNS = 2
    # Unsent bytes that the kernel may hold; above that the socket is not writable.
    UNSENT_BYTES = 128 * 1024
    # What a TAP thread moves by itself: the hand-over to another thread costs more.
    INLINE_BYTES = 16 * 1024

# Why a connection moves nothing any more.
cdef enum:
    CONNECTION_WELL = 0
    CONNECTION_ENDED = 1        # the peer's end has come
    CONNECTION_BROKEN = 2       # `code` is what a function of tls.pxd returned, `number` an errno

ctypedef struct connection_t:
    pthread_mutex_t lock        # of all that is not said to be read without
    tls_t *tls                  # NULL: the hub moves the bytes
    ring_t *ring
    int fd                      # the hub's
    int epoll_fd                # with `fd` and the ring's wakeup_fd in it, and with ...
    uint64_t seat               # ... what tells there which link this is
    uint32_t asked              # of epoll, for `fd`; 0: it is not in there
    int reading                 # 0: nothing is read any more
    size_t sealed               # bytes of the ring that TLS has and TCP has not all of
    size_t piece                # of the ring, that the kernel's queue was last fitted to
    int blocked                 # TCP takes nothing more for now. Read by anybody
    int watched                 # the hub looks whether that lasts. The hub sets and takes it
    int tell_empty              # the hub wants to know when the ring is empty. The hub's
    int event_fd                # tells the hub of events, of the end, and of what it asked for
    int state                   # CONNECTION_. Read by the hub
    ssize_t code
    int number


cdef inline void connection_init(connection_t *connection, ring_t *ring) noexcept nogil:
    # The rest of a new one is zero, but for its event_fd.
    pthread_mutex_init(&connection.lock, NULL)
    connection.ring = ring
    connection.fd = -1


cdef inline void ask_epoll(connection_t *connection, uint32_t wanted) noexcept nogil:
    # What nothing is asked of is taken out: a hang-up would be told again and again.
    cdef epoll_event event
    cdef int operation = EPOLL_CTL_MOD
    if wanted == connection.asked:
        return
    if wanted == 0:
        operation = EPOLL_CTL_DEL
    elif connection.asked == 0:
        operation = EPOLL_CTL_ADD
    event.events = wanted
    event.data.u64 = connection.seat
    if epoll_ctl(connection.epoll_fd, operation, connection.fd, &event) == 0:
        connection.asked = wanted


cdef inline void connection_fails(connection_t *connection, int state, ssize_t code) noexcept nogil:
    # The first reason counts; the hub is told.
    if connection.state != CONNECTION_WELL:
        return
    connection.number = errno
    connection.code = code
    connection.reading = 0
    ask_epoll(connection, 0)
    sm_set_flag(&connection.state, state)
    signal_fd(connection.event_fd)


cdef inline void wait_writable(connection_t *connection) noexcept nogil:
    ask_epoll(connection, connection.asked | EPOLLOUT)
    sm_set_flag(&connection.blocked, 1)
    if not sm_flag(&connection.watched):
        sm_set_flag(&connection.watched, 1)
        signal_fd(connection.event_fd)


cdef inline bint is_writable(int fd) noexcept nogil:
    # By TCP_NOTSENT_LOWAT; a write would be taken all the same: the kernel fills its last buffer, up
    # to 64 KiB.
    cdef pollfd one
    one.fd = fd
    one.events = POLLOUT
    return poll(&one, 1, 0) == 1


cdef inline void fit_unsent(connection_t *connection) noexcept nogil:
    # Enough for two pieces, so that the kernel has one while we prepare the next. It calls the socket
    # writable at half of it.
    cdef size_t piece = ring_piece(connection.ring)
    cdef int unsent
    if piece != connection.piece:
        connection.piece = piece
        unsent = <int>min(4 * piece, <size_t>UNSENT_BYTES)
        setsockopt(connection.fd, IPPROTO_TCP, SM_TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent))


cdef inline bint move_out(connection_t *connection) noexcept nogil:
    # From the ring to TCP, some pieces. True: there is more that TCP might take. Under the lock,
    # with `tls`.
    cdef uint8_t *start = NULL
    cdef size_t length
    cdef int flushed, code
    cdef int turns = 0
    while connection.state == CONNECTION_WELL:
        flushed = tls_flush(connection.tls, connection.fd)
        if flushed < 0:
            connection_fails(connection, CONNECTION_BROKEN, flushed)
            return False
        if flushed == 0:
            wait_writable(connection)
            return False
        if connection.sealed:
            ring_consume(connection.ring, connection.sealed, boottime_ns())
            connection.sealed = 0
            fit_unsent(connection)
        if turns == WRITE_TURNS:
            return True
        length = ring_peek(connection.ring, &start)
        if length == 0:
            break
        if connection.piece < UNSENT_BYTES and not is_writable(connection.fd):
            wait_writable(connection)
            return False
        length = min(length, ring_piece(connection.ring))
        code = tls_write(connection.tls, start, length)
        if code < 0:
            connection_fails(connection, CONNECTION_BROKEN, code)
            return False
        connection.sealed = length
        turns += 1
    ask_epoll(connection, connection.asked & ~<uint32_t>EPOLLOUT)
    sm_set_flag(&connection.blocked, 0)
    if sm_flag(&connection.tell_empty):
        signal_fd(connection.event_fd)
    return False


cdef inline void wake_link(connection_t *connection) noexcept nogil:
    # For a TAP thread that has filled the ring, with its route pinned: what is little it moves by
    # itself, unless somebody is at it.
    cdef ring_t *ring = connection.ring
    if not ring_sleeps(ring):
        return
    if (ring_waiting(ring) <= INLINE_BYTES
            and pthread_mutex_trylock(&connection.lock) == 0):
        if connection.tls != NULL:
            if move_out(connection):
                signal_fd(ring.wakeup_fd)
            pthread_mutex_unlock(&connection.lock)
            return
        pthread_mutex_unlock(&connection.lock)
    signal_fd(ring.wakeup_fd)
