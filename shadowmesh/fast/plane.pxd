# The state that the threads of the data plane share.
#
#   TAP thread   reads the device, seals, fills rings         (outbound.pxd)
#   hub          opens what TLS brought, writes the device    (inbound.pxd)
#
# tx_lock guards sessions[], the sending half of epochs[] and the producing end of every ring. The
# TAP thread takes it once per batch. Counters have one writer each and are read without a lock.

from libc.stddef cimport size_t
from .base cimport *
from .frame cimport *
from .session cimport *

cdef enum:
    BATCH_FRAMES = 64
    BATCH_BYTES = 256 * 1024
    # One read: inner type, virtio header, the largest super-frame; rounded to a cache line.
    SLOT_BYTES = (1 + VNET_HEADER_BYTES + MAX_SUPER_FRAME + 63) // 64 * 64
    ARENA_BYTES = BATCH_BYTES + SLOT_BYTES
    # A link that took no byte for this long is stalled: its frames are dropped, not kept waiting.
    STALL_MS = 200

ctypedef struct slot_t:
    uint8_t *inner              # inner type and body, in the arena
    uint32_t inner_bytes
    int verdict                 # KEEP or a DROP_ reason

ctypedef struct counters_t:
    uint64_t frames_read        # from the TAP
    uint64_t bytes_read
    uint64_t tx_dropped[DROP_REASONS]
    uint64_t frames_opened      # from the peer, tag right
    uint64_t frames_written     # to the TAP
    uint64_t bytes_written
    uint64_t rx_dropped[DROP_REASONS]
    uint64_t frames_sent_before # by rings that are closed
    uint64_t records_opened

ctypedef struct plane_t:
    pthread_mutex_t tx_lock
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
    uint8_t *arena
    slot_t slots[BATCH_FRAMES]
    int batch
    uint8_t mask_pool[1024]     # randomness for WebSocket masks, refilled when used up
    size_t mask_used
    counters_t counters


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
