# All peers: their sessions and keys, and which session gets a frame.
#
#   frame from the TAP  --session_for--> sessions[] --tx_epoch--> epochs[] --copy_route--> sealing
#   record from a peer  --low byte of its key id--> epochs[] --session--> sessions[]
#
# tx_lock and rx_lock of the plane guard them; session.pxd says which field is under which. The hub
# alone gives out seats and keys. Nothing here knows the device, the socket or the links.
#
# Over UDP the TAP threads seal side by side. Under tx_lock a thread copies what it needs of the
# session and pins the keys (pin_epoch); then it seals an outbox full without the lock, under
# counters that it takes by an atomic add, and unpins before it touches the socket. Whoever erases
# keys first makes them unreachable under tx_lock, so that nobody can pin them any more, and then
# waits until no thread has them pinned (erase_epoch): no counter is taken twice, and none under
# keys that are gone. While it has keys pinned a thread waits for nothing, so that it may be waited
# for.

from libc.string cimport memset
from .base cimport *
from .drop_reasons cimport *
from .aead cimport *
from .datagram cimport *
from .frame cimport *
from .ring cimport *
from .session cimport *

cdef enum:
    # Sealing stops so far below SM_SEAL_LIMIT. Of the threads that looked before the counter came
    # there each may seal one more outbox full, and the hub a record.
    SEAL_MARGIN = (MAX_QUEUES + 1) * OUTBOX_TRAINS * TRAIN_DATAGRAMS

ctypedef struct pin_t:          # one for each TAP thread, which alone writes it
    uint64_t epoch              # index + 1 of the one that it seals under without tx_lock, or 0
    uint8_t unshared[56]        # keeps the next thread's out of our cache line

ctypedef struct peers_t:
    epoch_t *epochs             # MAX_EPOCHS
    session_t sessions[MAX_SESSIONS]
    int active_session          # which session gets a frame; -1: none is connected
    uint64_t generation         # of the epoch that was installed last
    uint8_t unshared[64]        # what every thread reads is not in the line of the first pin
    pin_t pins[MAX_QUEUES]

ctypedef struct route_t:        # what sealing needs of a session, copied under tx_lock
    epoch_t *epoch              # in use without the lock only while pinned
    uint32_t peer_mtu_bytes
    uint32_t peer_caps
    int udp_active
    uint32_t payload_bytes      # the largest datagram; this and `to` for a session on UDP
    address_t to


cdef inline int seat_session(peers_t *peers) noexcept nogil:
    # An empty session, -1: all seats are taken. Under tx_lock.
    cdef int i
    for i in range(MAX_SESSIONS):
        if not peers.sessions[i].in_use:
            memset(&peers.sessions[i], 0, sizeof(session_t))
            peers.sessions[i].in_use = 1
            peers.sessions[i].tx_epoch = -1
            return i
    return -1


cdef inline uint32_t reserve_epoch(peers_t *peers, int session, uint32_t wanted) noexcept nogil:
    # A key id for keys to come: `wanted` or, when that is 0, one that nobody can guess. 0: the
    # epoch wanted, or every one, is in use. The hub alone makes epochs, so it needs no lock here.
    cdef uint32_t key_id = wanted
    cdef int index = wanted & 0xFF
    if not wanted:
        while index < MAX_EPOCHS and peers.epochs[index].state != EPOCH_FREE:
            index += 1
    if index == MAX_EPOCHS or peers.epochs[index].state != EPOCH_FREE:
        return 0
    while key_id >> 8 == 0 and not wanted:
        randombytes_buf(&key_id, sizeof(key_id))
    key_id = (key_id & ~<uint32_t>0xFF) | <uint32_t>index
    memset(&peers.epochs[index], 0, sizeof(epoch_t))
    peers.epochs[index].session = session
    peers.epochs[index].local_key_id = key_id
    peers.epochs[index].state = EPOCH_RESERVED
    return key_id


cdef inline int session_for(const peers_t *peers, const uint8_t *frame) noexcept nogil:
    # Which session a frame from the TAP goes to: the seat of the MAC table. With one peer the
    # answer does not depend on the frame.
    return peers.active_session


cdef inline int sending_obstacle(const peers_t *peers, int index, uint64_t now_ns) noexcept nogil:
    # Why a session cannot send at all: KEEP when it can, or a DROP_ reason. Under tx_lock.
    cdef const session_t *session
    cdef const epoch_t *epoch
    if index < 0 or peers.sessions[index].tx_epoch < 0:
        return DROP_NOT_CONNECTED
    session = &peers.sessions[index]
    if session.ring == NULL and not session.udp_active:
        return DROP_LINK_LOST
    epoch = &peers.epochs[session.tx_epoch]
    if epoch_expired(epoch, now_ns):
        return DROP_KEY_EXPIRED
    if (epoch.wss_tx_next >= SM_SEAL_LIMIT - SEAL_MARGIN
            or sm_counted(&epoch.udp_tx_next) >= SM_SEAL_LIMIT - SEAL_MARGIN):
        return DROP_SEAL_REFUSED
    return KEEP


cdef inline void copy_route(const peers_t *peers, const session_t *session,
                            route_t *route) noexcept nogil:
    # Under tx_lock; the session has sending keys.
    route.epoch = &peers.epochs[session.tx_epoch]
    route.peer_mtu_bytes = session.peer_mtu_bytes
    route.peer_caps = session.peer_caps
    route.udp_active = session.udp_active
    if session.udp_active:
        route.payload_bytes = session.udp_payload_bytes
        route.to = session.udp_address


cdef inline void pin_epoch(peers_t *peers, int thread, int index) noexcept nogil:
    # Under tx_lock, for an epoch that a session sends under.
    sm_release(&peers.pins[thread].epoch, <uint64_t>index + 1)


cdef inline void unpin_epoch(peers_t *peers, int thread) noexcept nogil:
    sm_release(&peers.pins[thread].epoch, 0)


cdef inline void erase_epoch(peers_t *peers, int index) noexcept nogil:
    # Under both locks; no session sends under the epoch any more, so nobody can pin it now. Who had
    # it pinned is the last to seal under it, which takes less than a millisecond.
    for i in range(MAX_QUEUES):
        while sm_acquire(&peers.pins[i].epoch) == <uint64_t>index + 1:
            sched_yield()
    sodium_memzero(&peers.epochs[index], sizeof(epoch_t))


cdef inline void retire_epoch(peers_t *peers, int index) noexcept nogil:
    # Under both locks; the session that sends under it sends nothing any more.
    cdef session_t *session = &peers.sessions[peers.epochs[index].session]
    if session.tx_epoch == index:
        session.tx_epoch = -1
    erase_epoch(peers, index)


cdef inline void unseat_session(peers_t *peers, int index) noexcept nogil:
    # Under both locks: it sends nothing any more, its keys are gone, its seat is free.
    cdef int i
    if peers.active_session == index:
        sm_set_flag(&peers.active_session, -1)
    peers.sessions[index].tx_epoch = -1
    peers.sessions[index].udp_active = 0
    for i in range(MAX_EPOCHS):
        if peers.epochs[i].state != EPOCH_FREE and peers.epochs[i].session == index:
            erase_epoch(peers, i)
    peers.sessions[index].in_use = 0


cdef inline uint64_t count_sealed(const peers_t *peers, int index) noexcept nogil:
    # Records under the sending keys, on the busier path.
    cdef const epoch_t *epoch
    cdef uint64_t over_udp
    if peers.sessions[index].tx_epoch < 0:
        return 0
    epoch = &peers.epochs[peers.sessions[index].tx_epoch]
    over_udp = sm_counted(&epoch.udp_tx_next)
    return over_udp if over_udp > epoch.wss_tx_next else epoch.wss_tx_next


cdef inline uint64_t count_failures(const peers_t *peers, int index) noexcept nogil:
    # Datagrams that did not open, under the keys of the session under which most did not.
    cdef const epoch_t *epoch
    cdef uint64_t most = 0
    cdef int i
    for i in range(MAX_EPOCHS):
        epoch = &peers.epochs[i]
        if (epoch.state == EPOCH_INSTALLED and epoch.session == index
                and epoch.udp_failed_opens > most):
            most = epoch.udp_failed_opens
    return most
