# What the counters of all threads come to.

from libc.string cimport memset
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .peers cimport *
from .plane cimport *
from .ring cimport *
from .tap cimport *

ctypedef struct totals_t:
    sent_t sent                 # of all TAP threads
    received_t received         # of all threads that open records
    uint64_t frames_sent        # handed to a socket
    uint64_t frames_queued      # in a ring, or waiting to be sealed


cdef inline void add_counters(void *sums, const void *counted, size_t size) noexcept nogil:
    # For structs that are nothing but uint64_t.
    cdef size_t i
    for i in range(size // sizeof(uint64_t)):
        (<uint64_t *>sums)[i] += sm_counted(&(<const uint64_t *>counted)[i])


cdef inline uint64_t bytes_waiting(const tap_t *tap) noexcept nogil:
    # Of frames that wait to be sealed for a link. What waits for the UDP socket says nothing of it.
    cdef uint64_t waiting = 0
    for i in range(MAX_QUEUES):
        if tap.queues[i].backlog != NULL and not sm_flag(&tap.queues[i].over_udp):
            waiting += sm_counted(&tap.queues[i].backlog.waiting_bytes)
    return waiting


cdef inline void sum_counters(plane_t *plane, totals_t *totals) noexcept nogil:
    cdef ring_t *ring
    memset(totals, 0, sizeof(totals_t))
    add_counters(&totals.received, &plane.wss.received, sizeof(received_t))
    add_counters(&totals.received, &plane.wss.carried, sizeof(received_t))
    add_counters(&totals.received, &plane.udp.received, sizeof(received_t))
    for i in range(MAX_QUEUES):
        add_counters(&totals.sent, &plane.tap.queues[i].sent, sizeof(sent_t))
        if plane.tap.queues[i].backlog != NULL:
            totals.frames_queued += sm_counted(&plane.tap.queues[i].backlog.waiting)
        if plane.tap.queues[i].outbox != NULL:
            totals.frames_queued += sm_counted(&plane.tap.queues[i].outbox.frames_waiting)
    totals.frames_sent = plane.wss.frames_settled + totals.sent.frames_udp
    totals.sent.dropped[DROP_LINK_LOST] += plane.wss.frames_lost
    for i in range(MAX_SESSIONS):
        ring = plane.peers.sessions[i].draft.ring if plane.peers.sessions[i].in_use else NULL
        if ring != NULL:
            totals.frames_sent += ring_sent(ring)
            totals.frames_queued += ring_queued(ring)
