# What the UDP path moves: trains of datagrams, partial frames, signals to the hub.
#
# Only the shapes and what touches nothing else; udp_out.pxd and udp_in.pxd do the work.

from libc.stddef cimport size_t
from .base cimport *
from .address cimport *
from .backlog cimport lane_t

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int MSG_DONTWAIT
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
    int SOL_SOCKET, SO_SNDBUF, SO_SNDBUFFORCE
    ssize_t sendto(int fd, const void *data, size_t length, int flags,
                   const sockaddr *to, socklen_t to_length)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, int *value)

cdef extern from "<linux/sockios.h>" nogil:
    unsigned long SIOCOUTQ

cdef extern from "<sys/uio.h>" nogil:
    ssize_t writev(int fd, const iovec *pieces, int count)

cdef extern from "compat.h" nogil:
    size_t SM_SEGMENT_CONTROL_BYTES
    void sm_set_segment_size(msghdr *message, void *control, uint16_t segment_bytes)
    uint16_t sm_gro_size(msghdr *message)

cdef enum:
    TRAIN_DATAGRAMS = 64        # UDP_MAX_SEGMENTS of older kernels
    TRAIN_BYTES = 65000         # below what one IP packet takes, IPv4 and IPv6
    OUTBOX_TRAINS = 256
    OUTBOX_BYTES = 512 * 1024
    OUTBOX_TARGETS = 64
    INBOX_MESSAGES = 16
    INBOX_MESSAGE_BYTES = 65536
    CONTROL_BYTES = 64
    MAX_PARTIALS = 64
    MAX_FRAGMENTS_PER_FRAME = 16
    MAX_SLICE_BYTES = 2000
    PARTIAL_HEADROOM = 16       # a virtio header is written in front of the frame
    PARTIAL_BYTES = PARTIAL_HEADROOM + MAX_FRAGMENTS_PER_FRAME * MAX_SLICE_BYTES
    MAX_UDP_SIGNAL_BYTES = 9000
    FRAGMENT_HEADER_BYTES = 5   # inner type, u16 id, u8 index, u8 total
    MAX_SIGNALS = 128
    SIGNAL_BYTES = 1536

# Errors of the UDP socket by errno, in the order of UDP_ERROR_NAMES in _fastpath.pyx.
cdef enum:
    UDP_EAGAIN = 0
    UDP_EMSGSIZE
    UDP_EPERM
    UDP_ENETUNREACH
    UDP_ECONNREFUSED
    UDP_ENOBUFS
    UDP_OTHER
    UDP_ERRORS

ctypedef struct train_t:        # datagrams of one size, the last may be shorter: one sendmsg
    lane_t *lane                # whose frames they carry
    const address_t *to         # one of the outbox's targets
    uint8_t *bytes
    size_t length
    uint16_t segment_bytes
    uint16_t datagrams
    uint16_t frames             # whose last datagram is in this train
    int closed                  # a shorter datagram has ended it

ctypedef struct outbox_t:       # one for each TAP thread
    uint8_t bytes[OUTBOX_BYTES]
    size_t used
    train_t trains[OUTBOX_TRAINS]
    int count
    int sent                    # so many of them; the others wait for the socket
    uint64_t frames_waiting     # in those; read by the hub
    uint64_t waiting_since_ns
    int short_of_memory         # the kernel was, for the next train
    address_t targets[OUTBOX_TARGETS]
    int target_count
    lane_t *lane                # whose frames are sealed into it now, and ...
    const address_t *to         # ... where they go
    mmsghdr messages[OUTBOX_TRAINS]
    iovec vectors[OUTBOX_TRAINS]
    uint8_t controls[OUTBOX_TRAINS][32]

ctypedef struct partial_t:      # a frame of which not every fragment has come
    uint32_t key_id             # 0: free
    int owner                   # whose it is: owner_of() in udp_frames.pxd
    uint16_t id
    uint8_t total
    uint8_t held
    uint64_t first_counter
    uint64_t born_ns
    uint16_t lengths[MAX_FRAGMENTS_PER_FRAME]
    uint8_t *bytes              # MAX_FRAGMENTS_PER_FRAME slices of MAX_SLICE_BYTES

ctypedef struct tail_t:         # how a packed datagram ends: with a record that the next one goes on with
    uint32_t key_id             # 0: none
    uint64_t counter            # of the next one
    uint8_t *bytes              # in the inbox, until the batch is over
    size_t length
    size_t spare_bytes          # behind it nothing else lies
    void *port                  # whose it is, a port_t

ctypedef struct signal_t:       # something on UDP that the hub has to deal with
    uint64_t session            # its number; 0: a datagram that is not a record (STUN)
    int owner                   # as of a partial frame
    uint32_t key_id
    uint8_t inner_type
    uint32_t size               # of the body or datagram; `bytes` holds at most SIGNAL_BYTES of it
    uint64_t came_ns            # boot time
    address_t source
    uint8_t bytes[SIGNAL_BYTES]

ctypedef struct inbox_t:        # the UDP thread's, but for what the hub has read of the signals
    uint8_t bytes[INBOX_MESSAGES][INBOX_MESSAGE_BYTES]
    mmsghdr messages[INBOX_MESSAGES]
    iovec vectors[INBOX_MESSAGES]
    uint8_t controls[INBOX_MESSAGES][CONTROL_BYTES]
    address_t sources[INBOX_MESSAGES]
    partial_t partials[MAX_PARTIALS]
    uint8_t *slices             # of all partials
    tail_t tail
    size_t spare_bytes          # free behind the datagram that is being opened
    signal_t signals[MAX_SIGNALS]           # of number n at n % MAX_SIGNALS
    uint64_t signals_written
    uint64_t signals_read       # the hub's
    uint32_t rested_s           # when windows were last looked at ...
    uint32_t rested             # ... and the index of the epoch that is next


cdef inline int udp_error_index(int number) noexcept nogil:
    if number == EAGAIN:
        return UDP_EAGAIN
    if number == EMSGSIZE:
        return UDP_EMSGSIZE
    if number == EPERM:
        return UDP_EPERM
    if number == ENETUNREACH or number == EHOSTUNREACH or number == ENETDOWN:
        return UDP_ENETUNREACH
    if number == ECONNREFUSED:
        return UDP_ECONNREFUSED
    if number == ENOBUFS:
        return UDP_ENOBUFS
    return UDP_OTHER
