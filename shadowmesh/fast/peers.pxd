# All peers: the ports of the switch, their sessions and keys.
#
#   frame from the TAP  --port--> route_t, with session and keys --pin_route--> sealing
#   record from a peer  --low 16 bits of its key id--> receiving[] --pin_epoch--> opening
#
# The hub alone gives out ports, sessions and keys and changes routes. No thread waits for another on
# the way of a frame: what the others read is published by one store and then not changed.
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
from .port cimport *
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
    uint32_t lowest_free        # no epoch below it is
    session_t *sessions         # the hub's list
    int session_count
    void *ports[MAX_PORTS]      # port_t, published; NULL: no such port
    int port_count
    void *wire                  # the port, when there is only one: all frames are its; published
    int connected               # ports that have a session for their frames
    uint64_t generation         # of the epoch that was installed last
    uint64_t numbers            # of sessions that were given out
    uint64_t versions           # of routes that were published
    uint64_t key_ids[MAX_EPOCHS]            # of receiving[], 0 where there is none
    uint64_t reach              # there never was one in receiving[] at this index or above
    void *receiving[MAX_EPOCHS] # epochs whose records are opened
    uint8_t unshared[64]        # what every thread reads is not in the line of the first pin
    pin_t tap_pins[MAX_QUEUES]
    pin_t udp_pin
    pin_t wss_pin               # of the thread that moves the bytes of links
    pin_t hub_pin               # nobody waits for it: what the hub has pinned it does not take away


cdef inline session_t *session_new(peers_t *peers) noexcept nogil:
    # NULL: there are too many, or there is no memory.
    cdef session_t *session
    if peers.session_count >= MAX_SESSIONS + PORT_SESSIONS * peers.port_count:
        return NULL
    session = <session_t *>calloc(1, sizeof(session_t))
    if session == NULL:
        return NULL
    peers.numbers += 1
    session.number = peers.numbers
    session.draft.session = session
    session.after = peers.sessions
    if peers.sessions != NULL:
        peers.sessions.before = session
    peers.sessions = session
    peers.session_count += 1
    return session


cdef inline uint32_t epoch_index(uint32_t key_id) noexcept nogil:
    return key_id & 0xFFFF


cdef inline epoch_t *epoch_of(const peers_t *peers, uint32_t key_id) noexcept nogil:
    # Of the hub's: installed or only reserved; NULL: nobody has this key id.
    cdef epoch_t *epoch = peers.epochs[epoch_index(key_id)]
    return epoch if epoch != NULL and epoch.local_key_id == key_id else NULL


cdef inline uint32_t reserve_epoch(peers_t *peers, session_t *session, uint32_t wanted) noexcept nogil:
    # A key id for keys to come: `wanted` or, when that is 0, one that nobody can guess. 0: the
    # epoch wanted, or every one, is in use, or there is no memory. The lowest index that is free, so
    # that few pages of the tables are ever touched.
    cdef uint32_t key_id = wanted
    cdef uint32_t index = epoch_index(wanted)
    cdef int seat = 0
    cdef epoch_t *epoch
    while seat < SESSION_EPOCHS and session.held[seat] != NULL:
        seat += 1
    if not wanted:
        index = peers.lowest_free
        while index < MAX_EPOCHS and peers.epochs[index] != NULL:
            index += 1
        peers.lowest_free = index
    if seat == SESSION_EPOCHS or index == MAX_EPOCHS or peers.epochs[index] != NULL:
        return 0
    epoch = <epoch_t *>calloc(1, sizeof(epoch_t))
    if epoch == NULL:
        return 0
    while key_id >> 16 == 0 and not wanted:
        randombytes_buf(&key_id, sizeof(key_id))
    key_id = (key_id & ~<uint32_t>0xFFFF) | index
    epoch.session = session
    epoch.session_number = session.number
    epoch.local_key_id = key_id
    epoch.state = EPOCH_RESERVED
    epoch.seat = seat
    session.held[seat] = epoch
    peers.epochs[index] = epoch
    return key_id


cdef inline void publish_epoch(peers_t *peers, epoch_t *epoch) noexcept nogil:
    # Its keys are complete: records under them are opened from now on.
    cdef uint32_t index = epoch_index(epoch.local_key_id)
    epoch.state = EPOCH_INSTALLED
    sm_publish(&epoch.session.receiving[epoch.seat], epoch)
    sm_publish(&peers.receiving[index], epoch)
    sm_release(&peers.key_ids[index], epoch.local_key_id)
    sm_release(&peers.reach, max(peers.reach, <uint64_t>index + 1))


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


cdef inline const route_t *pin_route(peers_t *peers, int thread, port_t *port) noexcept nogil:
    # For TAP thread `thread`: how the frames of a port leave; NULL: not at all.
    if port == NULL:
        return NULL
    return <const route_t *>pin(&peers.tap_pins[thread], &port.route)


cdef inline epoch_t *pin_epoch(peers_t *peers, pin_t *mine, uint32_t key_id) noexcept nogil:
    # The keys of a datagram or a message; NULL: there are none.
    cdef uint32_t index = epoch_index(key_id)
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
    # If its port's frames leave by this session, the draft is what the TAP threads go by from now on;
    # who has the one before pinned ends with it first.
    cdef port_t *port = <port_t *>session.port
    cdef int i = 0
    if port == NULL or port.active != session:
        return
    if session.draft.epoch == NULL:
        sm_publish(&port.route, NULL)
        return
    sm_release(&port.remote_key_id, session.draft.epoch.remote_key_id)
    while port.route == &session.routes[i] or route_pinned(peers, &session.routes[i]):
        i += 1
    peers.versions += 1
    session.draft.version = peers.versions
    session.routes[i] = session.draft
    sm_publish(&port.route, &session.routes[i])


cdef inline void activate_session(peers_t *peers, port_t *port, session_t *session) noexcept nogil:
    # The port's frames leave by a session of its own from now on; NULL: by none.
    sm_set_flag(&peers.connected,
                peers.connected + (session != NULL) - (port.active != NULL))
    port.active = session
    if session == NULL:
        sm_publish(&port.route, NULL)
    else:
        publish_route(peers, session)


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


cdef inline void erase_epoch(peers_t *peers, epoch_t *epoch) noexcept nogil:
    # No session sends under it any more.
    cdef uint32_t index = epoch_index(epoch.local_key_id)
    sm_release(&peers.key_ids[index], 0)
    sm_publish(&peers.receiving[index], NULL)
    sm_publish(&epoch.session.receiving[epoch.seat], NULL)
    await_unpinned(peers, epoch, NULL)
    epoch.session.held[epoch.seat] = NULL
    peers.epochs[index] = NULL
    peers.lowest_free = min(peers.lowest_free, index)
    sm_chacha_erase(epoch.contexts)
    window_rest(&epoch.udp_rx_window)
    sodium_memzero(epoch, sizeof(epoch_t))
    free(epoch)


cdef inline void retire_epoch(peers_t *peers, epoch_t *epoch) noexcept nogil:
    # Nothing is sent under it any more.
    cdef session_t *session = epoch.session
    if session.draft.epoch == epoch:
        session.draft.epoch = NULL
        publish_route(peers, session)
    erase_epoch(peers, epoch)


cdef inline void session_free(peers_t *peers, session_t *session) noexcept nogil:
    # It sends nothing any more and its keys are gone; who had it pinned had them pinned.
    cdef port_t *port = <port_t *>session.port
    cdef int i
    session.draft.epoch = NULL
    if port != NULL and port.active == session:
        activate_session(peers, port, NULL)
    for i in range(SESSION_EPOCHS):
        if session.held[i] != NULL:
            erase_epoch(peers, session.held[i])
    if session.before != NULL:
        session.before.after = session.after
    else:
        peers.sessions = session.after
    if session.after != NULL:
        session.after.before = session.before
    peers.session_count -= 1
    free(session)


cdef inline uint64_t count_sealed(const session_t *session) noexcept nogil:
    # Records under the sending keys, on the busier path.
    cdef const epoch_t *epoch = session.draft.epoch
    if epoch == NULL:
        return 0
    return max(sm_counted(&epoch.udp_tx_next), sm_counted(&epoch.wss_tx_next))


cdef inline uint64_t count_failures(const session_t *session) noexcept nogil:
    # Datagrams that did not open, under the keys of the session under which most did not.
    cdef uint64_t most = 0
    cdef int i
    for i in range(SESSION_EPOCHS):
        if session.held[i] != NULL:
            most = max(most, sm_counted(&session.held[i].udp_failed_opens))
    return most
