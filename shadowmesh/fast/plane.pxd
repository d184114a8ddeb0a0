# The state that the threads of the data plane share.
#
#   TAP thread   reads the device, seals, fills rings, sends datagrams   (outbound.pxd, udp_out.pxd)
#   hub          opens what TLS brought, writes the device               (inbound.pxd)
#   UDP thread   opens datagrams, writes the device                      (udp_in.pxd)
#
# tx_lock guards sessions[], the sending half of epochs[] and the producing end of every ring.
# rx_lock guards what the UDP thread reads: the UDP receiving half of epochs[], tap_fd, and the
# queue of signals. Each thread takes its lock once per batch; the hub takes both, tx_lock first,
# when it changes keys or the device. Counters have one writer each and are read without a lock.

from libc.stddef cimport size_t
from .base cimport *
from .frame cimport *
from .session cimport *
from .datagram cimport *
from .offload cimport joiner_t
from .capture cimport capture_t

cdef enum:
    BATCH_FRAMES = 64
    BATCH_BYTES = 256 * 1024
    # One read: inner type, virtio header, the largest super-frame; rounded to a cache line.
    SLOT_BYTES = (1 + VNET_HEADER_BYTES + MAX_SUPER_FRAME + 63) // 64 * 64
    ARENA_BYTES = BATCH_BYTES + SLOT_BYTES
    # A link that took no byte for this long is stalled: its frames are dropped, not kept waiting.
    STALL_MS = 200
    # How long frames wait for a session before they are dropped as not_connected.
    HOLD_MS = 1000

ctypedef struct slot_t:
    uint8_t *inner              # inner type and body, in the arena
    uint32_t inner_bytes
    int verdict                 # KEEP or a DROP_ reason

ctypedef struct sent_t:         # written by the TAP thread, and by the hub where it says so
    uint64_t frames_read        # from the TAP
    uint64_t bytes_read
    uint64_t dropped[DROP_REASONS]
    uint64_t frames_udp         # handed to the UDP socket
    uint64_t frames_settled     # by rings that are closed (hub)
    uint64_t lost               # in rings that are closed (hub)
    uint64_t send_errors[UDP_ERRORS]

ctypedef struct received_t:     # one for each side that opens records: hub (WSS), UDP thread
    uint64_t records
    uint64_t frames_opened
    uint64_t frames_written     # to the TAP
    uint64_t bytes_written
    uint64_t dropped[DROP_REASONS]
    uint64_t refused[REFUSALS]  # datagrams that were no record of ours
    uint64_t socket_errors[UDP_ERRORS]

ctypedef struct plane_t:
    pthread_mutex_t tx_lock
    pthread_mutex_t rx_lock
    epoch_t *epochs             # MAX_EPOCHS
    session_t sessions[MAX_SESSIONS]
    int active_session          # which session gets a frame; -1: none is connected
    uint64_t generation
    int tap_fd                  # -1: detached
    uint32_t mtu_bytes
    int tap_errno               # why the TAP thread gave up; 0 while it is well
    int event_fd                # tells the hub to look at tap_errno
    int stop_fd
    int space_fd
    int stalled
    int udp_fd                  # -1: no UDP path
    int udp_stop_fd
    int udp_event_fd            # tells the hub to fetch signals
    int no_segmentation         # UDP_SEGMENT failed once: datagrams go one by one
    int batch_frames            # read from the TAP at once: BATCH_FRAMES, 1 without batches
    int batch_messages          # taken from the socket at once: INBOX_MESSAGES, 1 without batches
    int no_joining              # frames from UDP are written one by one
    outbox_t *outbox
    inbox_t *inbox
    joiner_t joiner             # the UDP thread's; empty between two batches
    uint8_t *arena
    slot_t slots[BATCH_FRAMES]
    int batch
    uint8_t mask_pool[1024]     # randomness for WebSocket masks, refilled when used up
    size_t mask_used
    capture_t capture           # any thread; asks nobody for a lock
    sent_t sent
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
