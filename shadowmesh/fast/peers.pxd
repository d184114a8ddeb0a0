# All peers: their sessions and keys, and which session gets a frame.
#
#   frame from the TAP  --session_for--> sessions[] --pin_route--> route_t, with the keys --> sealing
#   record from a peer  --low byte of its key id--> receiving[] --pin_epoch--> opening
#
# The hub alone gives out seats and keys and changes routes. No thread waits for another on the way
# of a frame: what the others read is published by one store and then not changed.
#
#   hub     writes a route that nobody has pinned --> publishes it in place of the one before
#           takes keys out of receiving[] and out of the route --> waits until nobody has them
#           pinned --> erases them
#   thread  reads the pointer --> pins it --> reads the pointer again: if it is the same, the hub saw
#           the pin before it could take anything away
#
# So no counter is taken twice, and none under keys that are gone. While it has something pinned a
# thread waits for nothing but the lock of a ring, which is held to seal one message, and works on no
# more than that: whoever takes keys away waits for less than a millisecond.

from libc.stdlib cimport calloc, free
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

ctypedef struct pin_t:          # of one thread, which alone writes it
    void *held                  # a route_t (TAP threads) or an epoch_t (the others); NULL: nothing
    uint8_t unshared[56]        # keeps the next thread's out of our cache line

ctypedef struct peers_t:
    epoch_t *epochs[MAX_EPOCHS] # the hub's; NULL: free
    session_t sessions[MAX_SESSIONS]
    int active_session          # which session gets a frame; -1: none is connected
    uint64_t generation         # of the epoch that was installed last
    uint64_t numbers            # of sessions that were given out
    uint64_t versions           # of routes that were published
    uint64_t key_ids[MAX_EPOCHS]            # of receiving[], 0 where there is none
    void *receiving[MAX_EPOCHS] # epochs whose records are opened
    uint8_t unshared[64]        # what every thread reads is not in the line of the first pin
    pin_t tap_pins[MAX_QUEUES]
    pin_t udp_pin
    pin_t wss_pin               # of the thread that moves the bytes of links
    pin_t hub_pin               # nobody waits for it: what the hub has pinned it does not take away


cdef inline int seat_session(peers_t *peers) noexcept nogil:
    # An empty session, -1: all seats are taken.
    cdef int i
    for i in range(MAX_SESSIONS):
        if not peers.sessions[i].in_use:
            memset(&peers.sessions[i], 0, sizeof(session_t))
            peers.numbers += 1
            peers.sessions[i].number = peers.numbers
            peers.sessions[i].in_use = 1
            return i
    return -1


cdef inline epoch_t *epoch_of(const peers_t *peers, uint32_t key_id) noexcept nogil:
    # Of the hub's: installed or only reserved; NULL: nobody has this key id.
    cdef epoch_t *epoch = peers.epochs[key_id & 0xFF]
    return epoch if epoch != NULL and epoch.local_key_id == key_id else NULL


cdef inline uint32_t reserve_epoch(peers_t *peers, int session, uint32_t wanted) noexcept nogil:
    # A key id for keys to come: `wanted` or, when that is 0, one that nobody can guess. 0: the
    # epoch wanted, or every one, is in use, or there is no memory.
    cdef uint32_t key_id = wanted
    cdef int index = wanted & 0xFF
    cdef epoch_t *epoch
    if not wanted:
        while index < MAX_EPOCHS and peers.epochs[index] != NULL:
            index += 1
    if index == MAX_EPOCHS or peers.epochs[index] != NULL:
        return 0
    epoch = <epoch_t *>calloc(1, sizeof(epoch_t))
    if epoch == NULL:
        return 0
    while key_id >> 8 == 0 and not wanted:
        randombytes_buf(&key_id, sizeof(key_id))
    key_id = (key_id & ~<uint32_t>0xFF) | <uint32_t>index
    epoch.session = session
    epoch.session_number = peers.sessions[session].number
    epoch.local_key_id = key_id
    epoch.state = EPOCH_RESERVED
    peers.epochs[index] = epoch
    return key_id


cdef inline void publish_epoch(peers_t *peers, epoch_t *epoch) noexcept nogil:
    # Its keys are complete: records under them are opened from now on.
    cdef uint32_t index = epoch.local_key_id & 0xFF
    epoch.state = EPOCH_INSTALLED
    sm_publish(&peers.receiving[index], epoch)
    sm_release(&peers.key_ids[index], epoch.local_key_id)


cdef inline int session_for(const peers_t *peers, const uint8_t *frame) noexcept nogil:
    # Which session a frame from the TAP goes to: the seat of the MAC table. With one peer the
    # answer does not depend on the frame.
    return sm_flag(&peers.active_session)


cdef inline int sending_obstacle(const route_t *route, uint64_t now_ns) noexcept nogil:
    # Why nothing can be sent that way: KEEP when it can, or a DROP_ reason. For a pinned route,
    # or on the hub.
    if route == NULL or route.epoch == NULL:
        return DROP_NOT_CONNECTED
    if route.ring == NULL and not route.udp_active:
        return DROP_LINK_LOST
    if epoch_expired(route.epoch, now_ns):
        return DROP_KEY_EXPIRED
    if (sm_counted(&route.epoch.wss_tx_next) >= SM_SEAL_LIMIT - SEAL_MARGIN
            or sm_counted(&route.epoch.udp_tx_next) >= SM_SEAL_LIMIT - SEAL_MARGIN):
        return DROP_SEAL_REFUSED
    return KEEP


# --- Pinning: what a thread reads stays as it is until it unpins, or pins something else ----------


cdef inline void *pin(pin_t *mine, void *const *published) noexcept nogil:
    # What `published` points to; NULL: nothing.
    cdef void *held = sm_published(published)
    while held != mine.held:
        sm_publish(&mine.held, held)
        held = sm_published(published)
    return held


cdef inline void unpin(pin_t *mine) noexcept nogil:
    sm_publish(&mine.held, NULL)


cdef inline const route_t *pin_route(peers_t *peers, int thread, int index) noexcept nogil:
    # For TAP thread `thread`: how the frames of a session leave; NULL: not at all.
    if index < 0:
        return NULL
    return <const route_t *>pin(&peers.tap_pins[thread], &peers.sessions[index].route)


cdef inline epoch_t *pin_epoch(peers_t *peers, pin_t *mine, uint32_t key_id) noexcept nogil:
    # The keys of a datagram or a message; NULL: there are none.
    cdef int index = key_id & 0xFF
    cdef epoch_t *epoch
    if sm_counted(&peers.key_ids[index]) != key_id:
        return NULL
    epoch = <epoch_t *>pin(mine, &peers.receiving[index])
    return epoch if epoch != NULL and epoch.local_key_id == key_id else NULL


# --- The hub's side -------------------------------------------------------------------------------


cdef inline bint route_pinned(const peers_t *peers, const route_t *route) noexcept nogil:
    for i in range(MAX_QUEUES):
        if sm_published(&peers.tap_pins[i].held) == <void *>route:
            return True
    return False


cdef inline void publish_route(peers_t *peers, session_t *session) noexcept nogil:
    # The draft is what the TAP threads go by from now on; who has the one before pinned ends with
    # it first.
    cdef int i = 0
    if session.draft.epoch == NULL:
        sm_publish(&session.route, NULL)
        return
    while session.route == &session.routes[i] or route_pinned(peers, &session.routes[i]):
        i += 1
    peers.versions += 1
    session.draft.version = peers.versions
    session.routes[i] = session.draft
    sm_publish(&session.route, &session.routes[i])


cdef inline void await_unpinned(const peers_t *peers, const epoch_t *epoch,
                                const ring_t *ring) noexcept nogil:
    # Until nobody seals under keys, or into a ring, that no published route has any more. NULL:
    # there are none that matter.
    cdef const route_t *route
    cdef int i
    for i in range(MAX_QUEUES):
        while True:
            route = <const route_t *>sm_published(&peers.tap_pins[i].held)
            if route == NULL or not (route.epoch == epoch != NULL or route.ring == ring != NULL):
                break
            sched_yield()
    while epoch != NULL and (sm_published(&peers.udp_pin.held) == <void *>epoch
                             or sm_published(&peers.wss_pin.held) == <void *>epoch):
        sched_yield()


cdef inline void erase_epoch(peers_t *peers, int index) noexcept nogil:
    # No session sends under it any more.
    cdef epoch_t *epoch = peers.epochs[index]
    sm_release(&peers.key_ids[index], 0)
    sm_publish(&peers.receiving[index], NULL)
    await_unpinned(peers, epoch, NULL)
    peers.epochs[index] = NULL
    sm_chacha_erase(epoch.contexts)
    sodium_memzero(epoch, sizeof(epoch_t))
    free(epoch)


cdef inline void retire_epoch(peers_t *peers, int index) noexcept nogil:
    # The session that sends under it sends nothing any more.
    cdef session_t *session = &peers.sessions[peers.epochs[index].session]
    if session.draft.epoch == peers.epochs[index]:
        session.draft.epoch = NULL
        publish_route(peers, session)
    erase_epoch(peers, index)


cdef inline void unseat_session(peers_t *peers, int index) noexcept nogil:
    # It sends nothing any more, its keys are gone, its seat is free.
    cdef int i
    if peers.active_session == index:
        sm_set_flag(&peers.active_session, -1)
    peers.sessions[index].draft.epoch = NULL
    publish_route(peers, &peers.sessions[index])
    for i in range(MAX_EPOCHS):
        if peers.epochs[i] != NULL and peers.epochs[i].session == index:
            erase_epoch(peers, i)
    peers.sessions[index].in_use = 0


cdef inline uint64_t count_sealed(const peers_t *peers, int index) noexcept nogil:
    # Records under the sending keys, on the busier path.
    cdef const epoch_t *epoch = peers.sessions[index].draft.epoch
    if epoch == NULL:
        return 0
    return max(sm_counted(&epoch.udp_tx_next), sm_counted(&epoch.wss_tx_next))


cdef inline uint64_t count_failures(const peers_t *peers, int index) noexcept nogil:
    # Datagrams that did not open, under the keys of the session under which most did not.
    cdef const epoch_t *epoch
    cdef uint64_t most = 0
    cdef int i
    for i in range(MAX_EPOCHS):
        epoch = peers.epochs[i]
        if epoch != NULL and epoch.session == index:
            most = max(most, sm_counted(&epoch.udp_failed_opens))
    return most
