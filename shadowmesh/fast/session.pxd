# Epochs (one set of keys each), sessions (one peer each) and the sealing of records.
#
# key_id: chosen by the receiver; its low 16 bits are the index in epochs[], the rest is random, so
# finding the keys of an incoming record is an array index and one compare (protocol section 6).
#
# What other threads read of both is published and pinned: peers.pxd.
#
# Who may touch what:
#   epoch_t     all that is not named below: the hub, before the epoch is published, then nobody
#     contexts                  each thread that seals or opens its own (chacha.h)
#     wss_tx_next               who has the lock of the ring that the session's records go to
#     udp_tx_next, fragment_next    TAP threads and hub: numbers are taken by an atomic add, so none
#                               is used twice
#     wss_rx_*                  who moves the bytes of the session's link: hub or WSS thread
#     udp_rx_window, udp_failed_opens       the UDP thread; the hub frees what it has with the epoch
#   session_t   all that is not named below: the hub alone
#     routes[]                  published by the hub in the port; a TAP thread reads the one that it
#                               has pinned
#     port, receiving[]         published by the hub
#     last_*, udp_last_*    whoever sends or opens, each a single store; what udp_last_frame_ns is
#                               told of stands in udp_queue.pxd
#     udp_source, signal*       the UDP thread

from libc.stddef cimport size_t
from .base cimport *
from .aead cimport *
from .address cimport address_t
from .replay cimport *
from .connection cimport connection_t
from .ring cimport *

cdef enum:
    MAX_EPOCHS = 65536          # one for each value of a key id's low 16 bits
    # Of one session: the last keys, the present ones, the next, and attempts that are given up.
    SESSION_EPOCHS = 8
    # Every connection that the peer port lets in before it is authenticated has a session (64,
    # protocol section 9). The other 16, and PORT_SESSIONS for each port, are for live sessions, those
    # that they have just replaced and our own dials: strangers must not be able to take them.
    MAX_SESSIONS = 80
    PORT_SESSIONS = 3
    CAP_AEGIS256 = 1
    CAP_OFFLOAD = 2
    CAP_UDP = 4
    CAP_UDP_GSO = 8
    AAD_BYTES = 16
    MESSAGE_HEADER_BYTES = 16
    LENGTH_BYTES = 4
    KIND_UDP = 0x80
    KIND_WSS = 0x81
    MAX_MESSAGE = 256 * 1024
    MAX_SIGNAL_BYTES = 2048     # body of a record that is not a frame, over WSS
    # Each TAP thread may have one pinned, one is published: there is always one to write.
    ROUTES = MAX_QUEUES + 2

cdef enum:
    INNER_PADDING = 0
    INNER_FRAME = 1
    INNER_CONTROL = 2
    INNER_FRAGMENT = 3
    INNER_PROBE = 4
    INNER_PROBE_ANSWER = 5
    INNER_HANDSHAKE = 6
    INNER_CLOSE = 7
    INNER_OFFLOAD_FRAME = 9
    INNER_MESH = 11             # a message of the network: for the hub, and so far over WSS alone
    INNER_PACKED = 12

cdef enum:
    ABILITY_PACKED = 1          # bits of control code 6: packed frames are taken

cdef enum:
    EPOCH_FREE = 0
    EPOCH_RESERVED = 1          # the key id is promised to a handshake
    EPOCH_INSTALLED = 2

cdef extern from "compat.h" nogil:
    const uint64_t SM_KEY_LIFETIME_NS
    const uint64_t SM_SEAL_LIMIT


cdef struct session_t

ctypedef struct epoch_t:
    int state
    session_t *session
    uint64_t session_number
    int seat                    # in the session's held[]
    int cipher
    uint32_t local_key_id
    uint32_t remote_key_id
    uint64_t born_ns
    uint64_t generation         # order of installation: a newer epoch ends the older on WSS
    uint8_t wss_tx_key[KEY_BYTES]
    uint8_t wss_rx_key[KEY_BYTES]
    uint8_t udp_tx_key[KEY_BYTES]
    uint8_t udp_rx_key[KEY_BYTES]
    sm_chacha_t contexts[SM_CHACHA_THREADS]
    uint64_t wss_rx_next
    int wss_rx_closed
    int udp_closed              # the peer is not judged: nothing is opened over UDP (mesh-rules A3)
    uint8_t unshared[64]        # what who sends writes is in no line of who receives
    uint64_t wss_tx_next
    uint64_t udp_tx_next        # see take_counters
    uint64_t fragment_next      # its low 16 bits are the id of the next frame in fragments
    uint8_t unshared_too[64]
    window_t udp_rx_window
    uint64_t udp_failed_opens
    uint8_t unshared_end[64]    # nor is what somebody else has behind it in memory

ctypedef struct route_t:        # how a session's frames leave; not changed while it is published
    uint64_t version            # no other route of any session has had it
    session_t *session
    epoch_t *epoch              # NULL in a draft: nothing may be sent
    ring_t *ring                # of the WSS link; NULL while there is none
    connection_t *connection    # under it
    int masked                  # we are the WebSocket client
    uint32_t peer_mtu_bytes
    uint32_t peer_caps
    uint32_t peer_abilities
    int udp_active              # frames go to `to` instead of the ring
    uint32_t payload_bytes      # the largest datagram that the path carries
    address_t to

cdef struct session_t:
    session_t *before           # in the hub's list of all
    session_t *after
    uint64_t number             # no other session has had it
    void *port                  # whose it is, a port_t; NULL: nobody's yet, and its frames are dropped
    epoch_t *held[SESSION_EPOCHS]           # reserved or installed; NULL: free
    void *receiving[SESSION_EPOCHS]         # the installed ones of them, published
    uint64_t newest_generation  # of the epochs that records have arrived under
    route_t draft               # what is published next, or was last
    route_t routes[ROUTES]      # the port's route is one of them while this session has its frames
    uint64_t last_frame_ns      # CLOCK_BOOTTIME: a frame was sealed for the WSS link
    uint64_t last_opened_ns     # a record of any type opened that came over it
    uint64_t udp_last_frame_ns
    uint64_t udp_last_flood_ns  # ... of those that were flooded, the last that counted as one
    uint8_t unshared[64]        # what a TAP thread writes is not in the line of the UDP thread
    uint64_t udp_last_opened_ns
    address_t udp_source        # whence the UDP thread opened the last record ...
    uint64_t signal_second      # ... and what it has told the hub in this second
    uint32_t signals


cdef inline bint epoch_expired(const epoch_t *epoch, uint64_t now_ns) noexcept nogil:
    # Signed: who read the clock before the hub installed the keys sees them from the future.
    return <int64_t>(now_ns - epoch.born_ns) > <int64_t>SM_KEY_LIFETIME_NS


cdef inline void write_aad(uint8_t *aad, uint8_t kind, uint32_t key_id,
                           uint64_t counter) noexcept nogil:
    sm_store32(aad, kind)
    sm_store32(aad + 4, key_id)
    sm_store64(aad + 8, counter)


cdef inline size_t seal_wss_record(epoch_t *epoch, const uint8_t *inner, size_t inner_bytes,
                                   uint8_t *out) noexcept nogil:
    # Appends u32 length and ciphertext at `out`; the caller made room, and has the lock of the ring.
    # Returns the bytes written.
    cdef uint8_t aad[AAD_BYTES]
    cdef size_t sealed_bytes = inner_bytes + tag_bytes(epoch.cipher)
    write_aad(aad, KIND_WSS, epoch.remote_key_id, epoch.wss_tx_next)
    sm_store32(out, <uint32_t>sealed_bytes)
    aead_seal(epoch.cipher, epoch.wss_tx_key, epoch.contexts, epoch.wss_tx_next, aad, AAD_BYTES,
              inner, inner_bytes, out + LENGTH_BYTES)
    sm_count(&epoch.wss_tx_next, 1)
    return LENGTH_BYTES + sealed_bytes


cdef inline uint64_t take_counters(epoch_t *epoch, uint64_t count) noexcept nogil:
    # The first of `count` consecutive counters for seal_datagram, the caller's alone. Without a
    # lock, but only while the epoch is pinned, or on the hub, after sending_obstacle() had no
    # objection: it leaves room below SM_SEAL_LIMIT for all that may be taken at the same time.
    return sm_take_numbers(&epoch.udp_tx_next, count)


cdef inline size_t seal_datagram(epoch_t *epoch, uint64_t counter, const uint8_t *inner,
                                 size_t inner_bytes, uint8_t *out) noexcept nogil:
    # One record as a datagram at `out`, under a counter from take_counters that is used for nothing
    # else; the caller made room. Returns the bytes written.
    write_aad(out, KIND_UDP, epoch.remote_key_id, counter)
    aead_seal(epoch.cipher, epoch.udp_tx_key, epoch.contexts, counter, out, AAD_BYTES,
              inner, inner_bytes, out + AAD_BYTES)
    return AAD_BYTES + inner_bytes + tag_bytes(epoch.cipher)


cdef inline void write_message_header(uint8_t *out, uint16_t count, uint32_t key_id,
                                      uint64_t first_counter) noexcept nogil:
    out[0] = KIND_WSS
    out[1] = 0
    sm_store16(out + 2, count)
    sm_store32(out + 4, key_id)
    sm_store64(out + 8, first_counter)
