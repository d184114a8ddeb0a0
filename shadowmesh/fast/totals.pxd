# What the counters of all threads come to.

from libc.string cimport memset
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .peers cimport *
from .plane cimport *
from .port cimport *
from .ring cimport *
from .session cimport session_t
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


cdef inline uint64_t bytes_waiting(const port_t *port) noexcept nogil:
    # Of frames that wait to be sealed for a link. What waits for the UDP socket says nothing of it.
    cdef uint64_t waiting = 0
    for i in range(MAX_QUEUES):
        if not sm_flag(&port.lanes[i].over_udp):
            waiting += sm_counted(&port.lanes[i].waiting_bytes)
    return waiting


cdef inline void sum_counters(plane_t *plane, totals_t *totals) noexcept nogil:
    cdef ring_t *ring
    cdef const session_t *session = plane.peers.sessions
    memset(totals, 0, sizeof(totals_t))
    add_counters(&totals.received, &plane.wss.received, sizeof(received_t))
    add_counters(&totals.received, &plane.wss.carried, sizeof(received_t))
    add_counters(&totals.received, &plane.udp.received, sizeof(received_t))
    for i in range(MAX_QUEUES):
        add_counters(&totals.sent, &plane.tap.queues[i].sent, sizeof(sent_t))
        if plane.tap.queues[i].store != NULL:
            totals.frames_queued += sm_counted(&plane.tap.queues[i].store.waiting)
        if plane.tap.queues[i].outbox != NULL:
            totals.frames_queued += sm_counted(&plane.tap.queues[i].outbox.frames_waiting)
    totals.frames_sent = plane.wss.frames_settled + totals.sent.frames_udp
    totals.sent.dropped[DROP_LINK_LOST] += plane.wss.frames_lost
    while session != NULL:
        ring = session.draft.ring
        if ring != NULL:
            totals.frames_sent += ring_sent(ring)
            totals.frames_queued += ring_queued(ring)
        session = session.after


ctypedef struct port_totals_t:
    uint64_t frames_sent        # handed to a link or a socket
    uint64_t bytes_sent
    uint64_t frames_queued      # waiting to be sealed
    uint64_t bytes_queued
    uint64_t tx_dropped[DROP_REASONS]
    port_opened_t opened        # of all threads that open records


cdef inline void sum_port(const port_t *port, port_totals_t *totals) noexcept nogil:
    cdef const lane_t *lane
    memset(totals, 0, sizeof(port_totals_t))
    for i in range(MAX_QUEUES):
        lane = &port.lanes[i]
        totals.frames_sent += sm_counted(&lane.frames)
        totals.bytes_sent += sm_counted(&lane.bytes)
        totals.frames_queued += sm_counted(&lane.waiting)
        totals.bytes_queued += sm_counted(&lane.waiting_bytes)
        add_counters(totals.tx_dropped, lane.dropped, sizeof(lane.dropped))
    for i in range(OPENERS):
        add_counters(&totals.opened, &port.openers[i].counted, sizeof(port_opened_t))
