# The TAP's side: the queues of the device, each with the thread that reads it.
#
#   queues[i]    written by its thread; tap_fd by the hub, while no TAP thread runs;
#                outbox by the hub, before any session may use UDP and after none does
#   steering[]   any thread, by atomic operations (steer.pxd)
#   tap_fd, queue_count, mtu_bytes    read by the UDP thread as well, each by one atomic load
#   failure      a TAP thread that gives up, or the hub in its place
#   the rest     written by the hub while no TAP thread runs
#
# One TAP thread for each queue of the device (IFF_MULTI_QUEUE). The kernel gives all frames of a
# flow to one queue and a thread sends in the order in which it read, so a flow keeps its order.

from .base cimport *
from .drop_reasons cimport *
from .backlog cimport *
from .datagram cimport *
from .frame cimport *
from .port cimport *
from .ring cimport *

cdef enum:
    STEER_BUCKETS = 4096

cdef enum:
    SOCKET_READY = 0
    SOCKET_FULL = 1             # it says when it is not (POLLOUT)
    SOCKET_PAUSES = 2           # it does not say: a moment later

ctypedef struct sent_t:         # one for each TAP thread, which alone writes it
    uint64_t frames_read        # from the TAP
    uint64_t bytes_read
    uint64_t frames_copied      # one more for each further peer that a frame is flooded to
    uint64_t dropped[DROP_REASONS]
    uint64_t frames_udp         # handed to the UDP socket
    uint64_t send_errors[UDP_ERRORS]

ctypedef struct queue_t:        # a queue of the TAP and its thread
    int index
    int tap_fd                  # -1: detached
    int space_fd                # wakes a thread that waits for a session or for space in a ring
    outbox_t *outbox            # NULL without a UDP socket
    store_t *store              # what it reads into, and what waits
    slot_t frames[BATCH_FRAMES] # that were read ...
    int owners[BATCH_FRAMES]    # ... and for several ports the number of each one's, or FLOOD
    int read
    lane_t *lane                # whose the following are; NULL: nobody's yet
    slot_t slots[BATCH_FRAMES]  # frames that are to leave now, or to wait
    int batch                   # how many ...
    int first                   # ... of which those before this one have left
    int in_place                # they may wait where they are
    int captured                # slots before this one are in the capture
    int chosen                  # the slots are of frames that have waited, each in its turn
    uint8_t *flood_copies       # FLOOD_COPY_BYTES, once a frame was flooded
    size_t flood_copied
    lane_t *lanes               # of this thread, that have flows
    int lane_count
    int socket_waits            # why nothing is sent over UDP now: SOCKET_ below
    int socket_spoke            # it has just said that it takes more
    int only_floods             # the slots of the lane at work are all for several peers
    int only_keeps              # others may be served before the lane that is at work
    int reads_on                # although frames wait
    flood_bucket_t floods
    uint64_t learned_key        # of the last frame that was read, and when
    uint32_t learned_s
    sent_t sent
    uint8_t unshared[64]        # keeps the next thread's first fields out of our cache line

ctypedef struct tap_t:
    queue_t queues[MAX_QUEUES]
    int queue_count             # of the device; at least 1, attached or not
    uint64_t steering[STEER_BUCKETS]        # steer.pxd
    int mtu_bytes
    int failure                 # the errno with which a thread gave up; 0 while all are well
    int event_fd                # tells the hub to look at `failure`
    int stop_fd                 # of all TAP threads
    int batch_frames            # read from a queue at once: BATCH_FRAMES, 1 without batches


cdef inline void wake_tap_threads(const tap_t *tap) noexcept nogil:
    # To look again at what they wait for: a session, space in a ring.
    for i in range(tap.queue_count):
        signal_fd(tap.queues[i].space_fd)


cdef inline void drop_outgoing(queue_t *queue, int reason, uint64_t frames) noexcept nogil:
    # Frames of the lane that is at work, if one is.
    sm_count(&queue.sent.dropped[reason], frames)
    if queue.lane != NULL:
        sm_count(&queue.lane.dropped[reason], frames)
