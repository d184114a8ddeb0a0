# The state that the threads of the data plane share, grouped by whose it is.
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
#   peers     who they are, their keys, which one gets a frame    all threads   (peers.pxd)
#   tap       the device's queues                                 TAP threads   (tap.pxd)
#   udp       the socket                                          UDP thread    (below)
#   wss       what all links have together                        hub           (below)
#   threads   which of them run                                   hub           (lifecycle.pxd)
#   capture   copies of frames                                    any           (capture.pxd)
#
# A function takes the group that it works on; what crosses from one to another takes the plane.
#
# tx_lock guards sessions[], the sending half of epochs[], the producing end of every ring and the
# pool of masks. rx_lock guards what the UDP thread reads: the UDP receiving half of epochs[], the
# descriptors of the device and the queue of signals. Each thread takes its lock once per batch; the
# hub takes both, tx_lock first, when it changes keys, and rx_lock when it changes the device.
# Counters have one writer each and are read without a lock.
#
# Over UDP the threads seal side by side, under keys that they have pinned (peers.pxd).
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
from .drop_reasons cimport *
from .frame cimport *
from .ring cimport *
from .datagram cimport *
from .offload cimport joiner_t
from .capture cimport capture_t
from .peers cimport *
from .tap cimport *

cdef enum:
    # A link that took no byte for this long is stalled: its frames are dropped, not kept waiting.
    STALL_MS = 1000
    # How long frames wait for a session before they are dropped as not_connected.
    HOLD_MS = 1000

ctypedef struct received_t:     # one for each side that opens records: hub (WSS), UDP thread
    uint64_t records
    uint64_t frames_opened
    uint64_t frames_written[MAX_QUEUES]     # to each queue of the TAP
    uint64_t bytes_written
    uint64_t dropped[DROP_REASONS]
    uint64_t refused[REFUSALS]  # datagrams that were no record of ours
    uint64_t socket_errors[UDP_ERRORS]

ctypedef struct udp_t:          # TAP threads send on its fd
    int fd                      # -1: no UDP path
    int family                  # of the socket
    int stop_fd
    int event_fd                # tells the hub to fetch signals
    int no_segmentation         # UDP_SEGMENT failed once: datagrams go one by one
    int batch_messages          # taken from the socket at once: INBOX_MESSAGES, 1 without batches
    int no_joining              # frames are written one by one
    inbox_t *inbox
    joiner_t joiner             # empty between two batches
    received_t received

ctypedef struct wss_t:
    received_t received         # the hub's; far from what a TAP thread writes for each message
    uint64_t frames_settled     # sent by rings that no session has any more
    uint64_t frames_lost        # in such rings
    uint8_t mask_pool[1024]     # randomness for WebSocket masks, refilled when used up; tx_lock
    size_t mask_used

cdef struct plane_t

ctypedef struct tap_thread_t:
    plane_t *plane
    queue_t *queue
    pthread_t thread

ctypedef struct threads_t:
    tap_thread_t tap[MAX_QUEUES]
    int tap_running             # so many of them
    pthread_t udp
    int udp_running

cdef struct plane_t:
    pthread_mutex_t tx_lock
    pthread_mutex_t rx_lock
    peers_t peers
    tap_t tap
    udp_t udp
    wss_t wss
    threads_t threads
    capture_t capture           # asks nobody for a lock


cdef inline void lock_both(plane_t *plane) noexcept nogil:
    pthread_mutex_lock(&plane.tx_lock)
    pthread_mutex_lock(&plane.rx_lock)


cdef inline void unlock_both(plane_t *plane) noexcept nogil:
    pthread_mutex_unlock(&plane.rx_lock)
    pthread_mutex_unlock(&plane.tx_lock)


cdef inline void next_mask(wss_t *wss, uint8_t *mask) noexcept nogil:
    # RFC 6455 section 5.3 wants masks that nobody can guess. Under tx_lock.
    if wss.mask_used + 4 > sizeof(wss.mask_pool):
        randombytes_buf(wss.mask_pool, sizeof(wss.mask_pool))
        wss.mask_used = 0
    sm_store32(mask, sm_load32(wss.mask_pool + wss.mask_used))
    wss.mask_used += 4
