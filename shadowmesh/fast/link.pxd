# One WebSocket link after the upgrade: the ring of what goes out, the parser of what comes.
#
#   link_open -> bind_link: messages are records of a session -> unbind_link -> link_close
#
# The hub alone opens, binds and closes; the TAP threads fill the ring of the session they send to.

from .base cimport *
from .connection cimport *
from .inbound cimport *
from .peers cimport *
from .plane cimport *
from .ring cimport *
from .tap cimport *

cdef enum:
    LINK_EVENTS = 8             # records that may wait for the hub, but ...
    SHORT_BODY_BYTES = 192      # ... only one whose body is longer

ctypedef struct link_event_t:
    int kind                    # an EVENT_, or a close code below zero
    int opcode
    uint32_t key_id
    uint8_t inner_type
    size_t body_bytes
    uint8_t *body               # the next one, or the link's place for a long one
    uint8_t short_body[SHORT_BODY_BYTES]

# What an idle link touches is a page of the ring, one of its entries, and one with the events and the
# beginning of the parser's buffer.
ctypedef struct link_memory_t:
    uint8_t ring[RING_BYTES]
    ring_entry_t entries[RING_MESSAGES]
    uint8_t long_body[PAGE_BYTES]           # MAX_SIGNAL_BYTES of it
    link_event_t events[LINK_EVENTS]
    uint8_t parser[HEADROOM + PARSER_BYTES]

ctypedef struct link_t:
    link_memory_t *memory
    ring_t ring
    parser_t parser             # who moves the bytes has it
    connection_t connection
    int unparsed                # the parser may have something to do: the WSS thread's
    uint64_t events_written     # the WSS thread's
    uint64_t events_read        # the hub's
    int long_waits              # the event with the long body; the WSS thread sets it, the hub takes it
    int paused                  # nothing is read until the hub has taken events


cdef inline bint link_open(link_t *link, const tap_t *tap, bint client) noexcept nogil:
    # False: no memory, or with `memory` no descriptor, for the reason in errno; link_close() is
    # right all the same. `link` is zero before. `client`: we are the WebSocket client.
    cdef void *memory
    # Not from the heap: it hands out the used pages of links that are gone, and then each of the
    # strangers at the peer port would cost a megabyte instead of the pages it touches.
    memory = mmap(NULL, sizeof(link_memory_t), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        return False
    # Where the kernel likes huge pages, each link would have one that it hardly uses. It may know none.
    madvise(memory, sizeof(link_memory_t), MADV_NOHUGEPAGE)
    link.memory = <link_memory_t *>memory
    link.ring.bytes = link.memory.ring
    link.ring.entries = link.memory.entries
    ring_init(&link.ring)
    for i in range(MAX_QUEUES):
        link.ring.space_fds[i] = tap.queues[i].space_fd
    link.parser.bytes = link.memory.parser
    link.parser.from_client = not client
    link.parser.begin = link.parser.end = HEADROOM
    link.parser.raw = link.parser.raw_end = HEADROOM
    connection_init(&link.connection, &link.ring)
    link.ring.wakeup_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    link.connection.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    return link.ring.wakeup_fd >= 0 and link.connection.event_fd >= 0


cdef inline void link_close(link_t *link) noexcept nogil:
    if link.memory != NULL:
        # Plaintext frames were opened in this buffer.
        sodium_memzero(link.parser.bytes, max(link.parser.reached, link.parser.raw_end))
        munmap(link.memory, sizeof(link_memory_t))
    if link.ring.wakeup_fd > 0:
        close(link.ring.wakeup_fd)
    if link.connection.event_fd > 0:
        close(link.connection.event_fd)
    ring_done(&link.ring)


cdef inline void settle_ring(wss_t *wss, ring_t *ring) noexcept nogil:
    # Books the frames of a ring that a session lets go of, sent or lost. Nobody fills it any more.
    wss.frames_settled += ring_sent(ring)
    wss.frames_lost += ring_queued(ring)
    ring_book(ring)


cdef inline void let_go(plane_t *plane, link_t *link) noexcept nogil:
    # Nothing of a session's is put into the ring any more.
    cdef session_t *session = link.parser.session
    pthread_mutex_lock(&link.connection.lock)
    link.parser.session = NULL
    pthread_mutex_unlock(&link.connection.lock)
    session.draft.ring = NULL
    session.draft.connection = NULL
    publish_route(&plane.peers, session)
    # The TAP threads may be waiting for room in it.
    wake_tap_threads(&plane.tap)
    await_unpinned(&plane.peers, NULL, &link.ring)
    settle_ring(&plane.wss, &link.ring)


cdef inline void bind_link(plane_t *plane, session_t *session, link_t *before,
                           link_t *link) noexcept nogil:
    # The session's records go over `link` instead of `before` from now on; NULL: over none.
    if before != NULL and before.parser.session == session:
        let_go(plane, before)
    if link != NULL:
        link.parser.session = session
        session.draft.ring = &link.ring
        session.draft.connection = &link.connection
        session.draft.masked = not link.parser.from_client
        publish_route(&plane.peers, session)


cdef inline void unbind_link(plane_t *plane, link_t *link) noexcept nogil:
    # From whichever session has it.
    if link.parser.session != NULL:
        let_go(plane, link)
