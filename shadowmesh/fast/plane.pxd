# The state that the threads of the data plane share.
#
#   TAP threads  read the device, seal, fill rings, send datagrams       (outbound.pxd, link_out.pxd,
#                                                                         udp_out.pxd)
#   hub          opens what TLS brought, writes the device               (inbound.pxd)
#   UDP thread   opens datagrams, writes the device                      (udp_in.pxd)
#
#   TAP queue 0 --> sm-tap-0 --+--seal--> UDP socket        UDP socket --> sm-udp --+--> TAP queue 0
#   TAP queue 1 --> sm-tap-1 --+--seal--> UDP socket        TLS -------->   hub   --+--> TAP queue 1
#                              '--tx_lock, seal--> ring                   (steer.pxd chooses)
#
# tx_lock guards sessions[], the sending half of epochs[] and the producing end of every ring.
# rx_lock guards what the UDP thread reads: the UDP receiving half of epochs[], the descriptors of
# the device and the queue of signals. Each thread takes its lock once per batch; the hub takes
# both, tx_lock first, when it changes keys or the device. Counters have one writer each and are
# read without a lock.
#
# One TAP thread for each queue of the device (IFF_MULTI_QUEUE). The kernel gives all frames of a
# flow to one queue and a thread sends in the order in which it read, so a flow keeps its order.
#
# Over UDP the threads seal side by side. Under tx_lock a thread copies what it needs of the session
# and pins the keys (`pinned`); then it seals an outbox full without the lock, under counters that
# it takes by an atomic add, and unpins before it touches the socket. Whoever erases keys first
# makes them unreachable under tx_lock, so that nobody can pin them any more, and then waits until
# no thread has them pinned (erase_epoch): no counter is taken twice, and none under keys that are
# gone. While it has keys pinned a thread waits for nothing, so that it may be waited for.
#
# Over WSS sealing is under tx_lock: the counters of a link have to be consecutive in the order of
# its bytes (protocol section 6), and one TCP stream is serial anyway. More queues do not help it.
#
# On the way in there is one UDP thread whatever the number of queues. All datagrams of a peer come
# from one address and port to one, so the kernel would give them all to one of several sockets, and
# several threads that read one socket would pass each other and reorder flows. With many queues it
# is what limits a receiver.

from libc.stddef cimport size_t
from .base cimport *
from .backlog cimport *
from .frame cimport *
from .session cimport *
from .datagram cimport *
from .offload cimport joiner_t
from .capture cimport capture_t

cdef enum:
    # A link that took no byte for this long is stalled: its frames are dropped, not kept waiting.
    STALL_MS = 1000
    # How long frames wait for a session before they are dropped as not_connected.
    HOLD_MS = 1000
    STEER_BUCKETS = 4096

ctypedef struct sent_t:         # one for each TAP thread, which alone writes it
    uint64_t frames_read        # from the TAP
    uint64_t bytes_read
    uint64_t dropped[DROP_REASONS]
    uint64_t frames_udp         # handed to the UDP socket
    uint64_t send_errors[UDP_ERRORS]

ctypedef struct received_t:     # one for each side that opens records: hub (WSS), UDP thread
    uint64_t records
    uint64_t frames_opened
    uint64_t frames_written[MAX_QUEUES]     # to each queue of the TAP
    uint64_t bytes_written
    uint64_t dropped[DROP_REASONS]
    uint64_t refused[REFUSALS]  # datagrams that were no record of ours
    uint64_t socket_errors[UDP_ERRORS]

ctypedef struct route_t:        # what sealing needs of a session, copied under tx_lock
    epoch_t *epoch              # in use without the lock only while pinned
    uint32_t peer_mtu_bytes
    uint32_t peer_caps
    int udp_active
    uint32_t payload_bytes      # the largest datagram; this and `to` for a session on UDP
    address_t to

cdef struct plane_t

ctypedef struct queue_t:        # a queue of the TAP and its thread
    plane_t *plane
    int index
    int tap_fd                  # -1: detached
    int space_fd                # wakes a thread that waits for a session or for space in a ring
    int stalled                 # the link took nothing of this thread's frames for STALL_MS
    uint64_t pinned             # index + 1 of the epoch that it seals under without tx_lock, or 0
    outbox_t *outbox            # NULL without a UDP socket
    slot_t slots[BATCH_FRAMES]
    int batch
    backlog_t *backlog          # the batch lies in its arena, too
    int slow                    # the link was when it was last looked at: frames are shed for room
    int very_slow               # and super-frames are cut
    uint64_t taken_until        # how far the link had come when it was last seen to move ...
    uint64_t taken_ns           # ... and when that was
    sent_t sent
    uint8_t unshared[64]        # keeps the next thread's first fields out of our cache line

cdef struct plane_t:
    pthread_mutex_t tx_lock
    pthread_mutex_t rx_lock
    epoch_t *epochs             # MAX_EPOCHS
    session_t sessions[MAX_SESSIONS]
    int active_session          # which session gets a frame; -1: none is connected
    uint64_t generation
    queue_t queues[MAX_QUEUES]
    int queue_count             # of the device; at least 1, attached or not
    uint64_t steering[STEER_BUCKETS]        # steer.pxd
    uint32_t mtu_bytes
    int tap_errno               # why a TAP thread gave up; 0 while all are well
    int event_fd                # tells the hub to look at tap_errno
    int stop_fd                 # of all TAP threads
    int udp_fd                  # -1: no UDP path
    int udp_stop_fd
    int udp_event_fd            # tells the hub to fetch signals
    int no_segmentation         # UDP_SEGMENT failed once: datagrams go one by one
    int batch_frames            # read from the TAP at once: BATCH_FRAMES, 1 without batches
    int batch_messages          # taken from the socket at once: INBOX_MESSAGES, 1 without batches
    int no_joining              # frames from UDP are written one by one
    inbox_t *inbox
    joiner_t joiner             # the UDP thread's; empty between two batches
    uint8_t mask_pool[1024]     # randomness for WebSocket masks, refilled when used up
    size_t mask_used
    capture_t capture           # any thread; asks nobody for a lock
    uint64_t frames_settled     # sent by rings that are closed (hub)
    uint64_t frames_lost        # in rings that are closed (hub)
    received_t wss
    received_t udp


cdef inline void next_mask(plane_t *plane, uint8_t *mask) noexcept nogil:
    # RFC 6455 section 5.3 wants masks that nobody can guess. Under tx_lock.
    if plane.mask_used + 4 > sizeof(plane.mask_pool):
        randombytes_buf(plane.mask_pool, sizeof(plane.mask_pool))
        plane.mask_used = 0
    sm_store32(mask, sm_load32(plane.mask_pool + plane.mask_used))
    plane.mask_used += 4


cdef inline int session_for(plane_t *plane, const uint8_t *frame) noexcept nogil:
    # Which session a frame from the TAP goes to: the seat of the MAC table. With one peer the
    # answer does not depend on the frame.
    return plane.active_session


cdef inline void wake_tap_threads(plane_t *plane) noexcept nogil:
    # To look again at what they wait for: a session, space in a ring.
    for i in range(plane.queue_count):
        signal_fd(plane.queues[i].space_fd)


cdef inline void pin_epoch(queue_t *queue, int index) noexcept nogil:
    # Under tx_lock, for an epoch that a session sends under.
    sm_release(&queue.pinned, <uint64_t>index + 1)


cdef inline void unpin_epoch(queue_t *queue) noexcept nogil:
    sm_release(&queue.pinned, 0)


cdef inline void erase_epoch(plane_t *plane, int index) noexcept nogil:
    # Under both locks; no session sends under the epoch any more, so nobody can pin it now. Who had
    # it pinned is the last to seal under it, which takes less than a millisecond.
    for i in range(MAX_QUEUES):
        while sm_acquire(&plane.queues[i].pinned) == <uint64_t>index + 1:
            sched_yield()
    sodium_memzero(&plane.epochs[index], sizeof(epoch_t))


cdef inline void drop_outgoing(queue_t *queue, int reason, uint64_t frames) noexcept nogil:
    sm_count(&queue.sent.dropped[reason], frames)
