# The state that the threads of the data plane share, grouped by whose it is.
#
#   TAP threads  read the device, seal, fill rings, send datagrams       (outbound.pxd, link_out.pxd,
#                                                                         udp_out.pxd)
#   WSS thread   TLS of the links, opens what it brought, writes the device  (links.pxd, inbound.pxd)
#   UDP thread   opens datagrams, writes the device                      (udp_in.pxd)
#   hub          both in the WSS thread's place, until a peer is authentic
#
#   TAP queue 0 --> sm-tap-0 --+--seal--> UDP socket        UDP socket --> sm-udp --+--> TAP queue 0
#   TAP queue 1 --> sm-tap-1 --+--seal--> UDP socket        TLS ----------> sm-wss --+--> TAP queue 1
#                              '--its lock, seal--> ring                  (steer.pxd chooses)
#
#   peers     who they are, their keys, which one gets a frame    all threads   (peers.pxd)
#   tap       the device's queues                                 TAP threads   (tap.pxd)
#   udp       the socket                                          UDP thread    (below)
#   wss       what all links have together                        WSS thread, hub   (below)
#   threads   which of them run                                   hub           (lifecycle.pxd)
#   fdb       behind which port an address is                     any           (fdb.pxd)
#   capture   copies of frames                                    any           (capture.pxd)
#
# A function takes the group that it works on; what crosses from one to another takes the plane.
#
# No thread waits for another on the way of a frame. What the hub changes it publishes, and takes back
# when nobody has it pinned (peers.pxd); what the UDP thread has for the hub goes through a ring
# (udp_in.pxd), what a link has through one of its own (links.pxd). Counters have one writer each and are read without a lock.
#
# Over UDP the TAP threads seal side by side. Over WSS each takes the lock of the link's ring for a
# message: the counters of a link have to be consecutive in the order of its bytes (protocol section
# 6), and one TCP stream is serial anyway. More queues do not help it.
#
# On the way in there is one UDP thread whatever the number of queues. All datagrams of a peer come
# from one address and port to one, so the kernel would give them all to one of several sockets, and
# several threads that read one socket would pass each other and reorder flows. With many queues it
# is what limits a receiver.

from libc.stddef cimport size_t
from .base cimport *
from .drop_reasons cimport *
from .fdb cimport fdb_t
from .frame cimport *
from .ring cimport *
from .datagram cimport *
from .line cimport line_t
from .offload cimport joiner_t
from .capture cimport capture_t
from .peers cimport *
from .port cimport *
from .tap cimport *

cdef enum:
    # A link that took no byte for this long is stalled: its frames are dropped, not kept waiting.
    STALL_MS = 1000
    # How long frames wait for a session before they are dropped as not_connected.
    HOLD_MS = 1000
    # One for each session that there may be, 80 and three for each of 1,024 ports, and those that end.
    MAX_LINKS = 4096
    # Of so many requests answers are waited for, of each so many.
    STUN_REQUESTS = 32
    STUN_ANSWERS = 4

ctypedef struct received_t:     # one for each thread that opens records
    uint64_t records
    uint64_t frames_opened
    uint64_t frames_written[MAX_QUEUES]     # to each queue of the TAP
    uint64_t bytes_written
    uint64_t dropped[DROP_REASONS]

ctypedef struct opener_t:       # a thread that opens records
    pin_t *pin
    received_t *received
    int who                     # BY_, of ports' counters
    uint32_t now_s              # boot time, when it began with what it opens
    uint32_t last_s             # what it learned last (switch.pxd)
    uint64_t last_key
    const port_t *last_port

ctypedef struct stun_t:         # a STUN request that was sent
    uint64_t id                 # of its transaction, the first 8 of 12 bytes; the hub's
    uint64_t heard_id           # what the answers were counted for; the UDP thread's, like ...
    uint32_t answers            # ... how many came

ctypedef struct udp_t:          # TAP threads send on its fd
    int fd                      # -1: no UDP path
    int family                  # of the socket
    int stop_fd
    int event_fd                # tells the hub to fetch signals
    int no_segmentation         # datagrams go one by one
    int batch_messages          # taken from the socket at once: INBOX_MESSAGES, 1 without batches
    int no_joining              # frames are written one by one
    int super_frames            # the device takes joined datagrams; the hub's, see joiner
    uint8_t unshared[64]
    line_t line                 # what the host may hold of what is sent; the TAP threads'
    uint8_t unshared_too[64]
    uint64_t batches            # begun and ended, so odd within one: see await_batch
    stun_t stun[STUN_REQUESTS]
    uint64_t stun_requests      # that were sent, the hub's
    inbox_t *inbox
    port_t *port                # whose datagram is being opened; NULL: nobody's
    joiner_t joiner             # empty between two batches
    port_t *joined_port         # whose frames it holds
    opener_t opener
    received_t received
    uint64_t refused[REFUSALS]  # datagrams that were no record of ours
    uint64_t socket_errors[UDP_ERRORS]      # of the UDP thread

ctypedef struct wss_t:
    int epoll_fd                # -1: the thread does not run
    int stop_fd
    pthread_mutex_t lock        # of links[]
    void *links[MAX_LINKS]      # whose bytes the thread moves: link_t
    uint32_t tidied             # the hub's: the seat that it looks at next, for memory to give back
    uint64_t turns              # of links, begun and ended, so odd within one: see await_turn
    opener_t hub
    opener_t thread
    received_t received         # while the hub moved them
    received_t carried          # by the thread
    uint64_t frames_settled     # sent by rings that no session has any more
    uint64_t frames_lost        # in such rings

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
    pthread_t wss
    int wss_running
    int realtime                # wanted: lifecycle.pxd
    int realtime_error          # the errno that keeps them from it, 0 for none

cdef struct plane_t:
    peers_t peers
    tap_t tap
    udp_t udp
    wss_t wss
    threads_t threads
    fdb_t *fdb
    capture_t capture           # asks nobody for a lock


cdef inline void make_opener(opener_t *opener, pin_t *pin, received_t *received, int who) noexcept nogil:
    opener.pin = pin
    opener.received = received
    opener.who = who
