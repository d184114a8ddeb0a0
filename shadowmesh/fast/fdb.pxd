# The forwarding database: behind which port a MAC address is, in each VLAN.
#
#   set of WAYS entries, one cache line, chosen by a hash of (MAC, VLAN)
#   entry:  key    MAC 48 | VLAN 12 | USED | STATIC | BUSY
#           state  heard 32 | port 16 | moves 8 | FROZEN
#
# Every thread reads and learns without a lock. Who changes whose an entry is makes it BUSY first, by
# a compare-and-swap of `key`, and nobody takes that for an entry; who reads looks at `key` again after
# `state`. Who finds an entry busy learns nothing this time: the next frame will do.
#
# `heard` is stored once a second at most, so that the line of a busy address stays clean. What was
# not heard for AGE_S is as good as gone, and goes when somebody needs its place or the hub sweeps.
#
# Static are the addresses of the peers' own devices and of ours, which nobody else may use in any
# VLAN: they stand under ANY_VLAN, where only who does not know an address yet looks them up.
#
# Source: IEEE 802.1Q-2018 8.7 and 8.8.9 (learning and ageing); RFC 7432 15.1 (duplicates).

from libc.string cimport memset
from .base cimport *
from .drop_reasons cimport *
from .flow cimport FLOW_SECRET, mix_bits
from .port cimport *

cdef enum:
    FDB_SETS = 8192
    FDB_WAYS = 4
    LOCAL_PORT = 0xFFFF         # this host's side
    NO_PORT = -1
    ANY_VLAN = 0xFFF            # which IEEE 802.1Q reserves
    AGE_S = 300
    DEFAULT_MACS = 8192
    DEFAULT_PORT_MACS = 256
    # Another port that uses an address which was heard so lately does not get it.
    HOLD_S = 30
    # So many moves within DUPLICATE_S are of two that have the same address.
    DUPLICATE_MOVES = 5
    DUPLICATE_S = 180
    # Above this part of the entries the hub makes room.
    CROWDED_OF_16 = 15

cdef extern from *:
    """
    static const uint64_t FDB_MAC = 0xFFFFFFFFFFFFULL;
    static const uint64_t FDB_USED = 1ULL << 60;
    static const uint64_t FDB_STATIC = 1ULL << 61;
    static const uint64_t FDB_BUSY = 1ULL << 62;
    static const uint64_t FDB_FROZEN = 1ULL << 56;
    """
    const uint64_t FDB_MAC
    const uint64_t FDB_USED
    const uint64_t FDB_STATIC
    const uint64_t FDB_BUSY
    const uint64_t FDB_FROZEN

ctypedef struct fdb_entry_t:
    uint64_t key
    uint64_t state

ctypedef struct fdb_t:
    fdb_entry_t sets[FDB_SETS][FDB_WAYS]
    uint64_t entries            # that are in use; any thread, by atomic adds
    uint64_t local_entries      # of them, learned on this host's side
    uint64_t most_entries       # the hub's
    uint64_t moves              # of addresses from port to port, ever
    uint64_t unlearned          # frames whose source found no place


cdef inline uint64_t fdb_key(const uint8_t *mac, uint32_t vlan) noexcept nogil:
    return (<uint64_t>sm_load32(mac) | <uint64_t>sm_load16(mac + 4) << 32 | <uint64_t>vlan << 48
            | FDB_USED)


cdef inline uint64_t fdb_any(uint64_t key) noexcept nogil:
    # The same address, whatever the VLAN.
    return key | <uint64_t>ANY_VLAN << 48


cdef inline fdb_entry_t *fdb_set(fdb_t *fdb, uint64_t key) noexcept nogil:
    # With the secret of this process, so that nobody can choose addresses that share a set.
    return fdb.sets[mix_bits((key & ~FDB_STATIC) ^ FLOW_SECRET[1]) % FDB_SETS]


cdef inline uint32_t state_heard(uint64_t state) noexcept nogil:
    return <uint32_t>state


cdef inline int state_port(uint64_t state) noexcept nogil:
    return <int>(state >> 32 & 0xFFFF)


cdef inline uint32_t state_moves(uint64_t state) noexcept nogil:
    return <uint32_t>(state >> 48 & 0xFF)


cdef inline uint64_t make_state(uint32_t heard, int port, uint32_t moves) noexcept nogil:
    return <uint64_t>heard | <uint64_t>port << 32 | <uint64_t>min(moves, 255) << 48


cdef inline bint has_aged(uint64_t key, uint64_t state, uint32_t now_s) noexcept nogil:
    # Signed: another thread may have a later clock.
    return (not key & FDB_STATIC
            and <int32_t>(now_s - state_heard(state)) >= <int32_t>AGE_S)


cdef inline fdb_entry_t *fdb_find(fdb_t *fdb, uint64_t key, uint64_t *state) noexcept nogil:
    # The entry of a key, with its state at one moment; NULL: there is none.
    cdef fdb_entry_t *entry = fdb_set(fdb, key)
    cdef uint64_t found
    cdef int i
    for i in range(FDB_WAYS):
        found = sm_acquire(&entry[i].key)
        if found & ~FDB_STATIC == key:
            state[0] = sm_acquire(&entry[i].state)
            if sm_acquire(&entry[i].key) == found:
                return &entry[i]
    return NULL


cdef inline int fdb_lookup(fdb_t *fdb, uint64_t key, uint32_t now_s) noexcept nogil:
    # The port that an address is behind; NO_PORT: nobody knows.
    cdef uint64_t state = 0
    cdef fdb_entry_t *entry = fdb_find(fdb, key, &state)
    if entry != NULL and not has_aged(entry.key, state, now_s):
        return state_port(state)
    if fdb_find(fdb, fdb_any(key), &state) != NULL:
        return state_port(state)
    return NO_PORT


# --- Learning -------------------------------------------------------------------------------------


cdef inline void count_entry(fdb_t *fdb, port_t *port, int64_t change) noexcept nogil:
    # `port`: NULL for this host's side.
    if port == NULL:
        sm_add(&fdb.local_entries, <uint64_t>change)
    else:
        sm_add(&port.macs, <uint64_t>change)


cdef inline port_t *port_of(void *const *ports, int number) noexcept nogil:
    # NULL: this host's side, or it is gone.
    return NULL if number == LOCAL_PORT else <port_t *>sm_published(&ports[number])


cdef inline bint fdb_free(fdb_t *fdb, void *const *ports, fdb_entry_t *entry, uint64_t key) noexcept nogil:
    # Takes an entry, if it still has that key, for the caller: it is busy then.
    cdef uint64_t expected = key
    if not sm_claim(&entry.key, &expected, FDB_BUSY):
        return False
    if key:
        count_entry(fdb, port_of(ports, state_port(entry.state)), -1)
        sm_add(&fdb.entries, <uint64_t>-1)
    return True


cdef inline bint fdb_insert(fdb_t *fdb, void *const *ports, uint64_t key, uint64_t state,
                            port_t *port, uint32_t now_s) noexcept nogil:
    # False: there is no place for it. The oldest of its set that is not static makes room.
    cdef fdb_entry_t *entry = fdb_set(fdb, key)
    cdef fdb_entry_t *victim = NULL
    cdef uint64_t found, victim_key = 0
    cdef int32_t age
    cdef int32_t oldest = -1
    cdef int i
    for i in range(FDB_WAYS):
        found = sm_acquire(&entry[i].key)
        if found & FDB_BUSY or found & FDB_STATIC:
            continue
        age = 0x7FFFFFFF if found == 0 else <int32_t>(now_s - state_heard(entry[i].state))
        if age > oldest:
            oldest = age
            victim = &entry[i]
            victim_key = found
    if victim == NULL or not fdb_free(fdb, ports, victim, victim_key):
        return False
    sm_release(&victim.state, state)
    count_entry(fdb, port, 1)
    sm_add(&fdb.entries, 1)
    sm_release(&victim.key, key)
    return True


cdef inline bint may_use(const port_t *port, uint64_t key) noexcept nogil:
    # Whether a port's list has an address. NULL: this host's side, which has no list.
    cdef int i
    if port == NULL or port.listed_macs < 0:
        return True
    for i in range(port.listed_macs):
        if port.mac_list[i] == key & FDB_MAC:
            return True
    return False


cdef inline int fdb_move(fdb_t *fdb, void *const *ports, fdb_entry_t *entry, uint64_t state,
                         port_t *port, int number, uint32_t now_s) noexcept nogil:
    # Another port has an address than the one that it was learned from.
    cdef int32_t age = <int32_t>(now_s - state_heard(state))
    cdef uint32_t moves = state_moves(state) + 1 if age < <int32_t>DUPLICATE_S else 1
    cdef uint64_t moved
    if number != LOCAL_PORT and (
            age < <int32_t>HOLD_S or (state & FDB_FROZEN and age < <int32_t>DUPLICATE_S)):
        return DROP_MAC_ELSEWHERE
    moved = make_state(now_s, number, moves)
    if moves >= DUPLICATE_MOVES:
        moved |= FDB_FROZEN
    if sm_claim(&entry.state, &state, moved):
        count_entry(fdb, port_of(ports, state_port(state)), -1)
        count_entry(fdb, port, 1)
        sm_add(&fdb.moves, 1)
    return KEEP


cdef inline int fdb_learn(fdb_t *fdb, void *const *ports, uint64_t key, port_t *port,
                          uint32_t now_s) noexcept nogil:
    # A frame with this source came from `port`, NULL for this host's side: KEEP, or the DROP_ reason
    # why it may not.
    cdef int number = LOCAL_PORT if port == NULL else port.number
    cdef uint64_t state = 0
    cdef uint64_t owned = 0
    cdef fdb_entry_t *entry = fdb_find(fdb, key, &state)
    if entry != NULL and state_port(state) == number:
        if state_heard(state) != now_s:
            # Whoever else has changed it knows better.
            sm_claim(&entry.state, &state, (state & ~<uint64_t>0xFFFFFFFF) | now_s)
        return KEEP
    if fdb_find(fdb, fdb_any(key), &owned) != NULL:
        if state_port(owned) != number:
            return DROP_FOREIGN_MAC
    elif not may_use(port, key):
        return DROP_MAC_LIMIT
    if entry != NULL:
        return fdb_move(fdb, ports, entry, state, port, number, now_s)
    if port != NULL and sm_counted(&port.macs) >= port.most_macs:
        return DROP_MAC_LIMIT
    if (sm_counted(&fdb.entries) >= fdb.most_entries
            or not fdb_insert(fdb, ports, key, make_state(now_s, number, 0), port, now_s)):
        sm_add(&fdb.unlearned, 1)
    return KEEP


# --- The hub's side -------------------------------------------------------------------------------


cdef inline fdb_entry_t *fdb_at(fdb_t *fdb, int index) noexcept nogil:
    return &fdb.sets[index // FDB_WAYS][index % FDB_WAYS]


cdef inline void fdb_remove(fdb_t *fdb, void *const *ports, fdb_entry_t *entry, uint64_t key) noexcept nogil:
    if fdb_free(fdb, ports, entry, key):
        sm_release(&entry.key, 0)


cdef inline void fdb_forget(fdb_t *fdb, void *const *ports, int number, uint64_t mac) noexcept nogil:
    # All entries of a port, and all of an address: NO_PORT and 0 for none.
    cdef fdb_entry_t *entry
    cdef uint64_t key
    cdef int i
    for i in range(FDB_SETS * FDB_WAYS):
        entry = fdb_at(fdb, i)
        key = sm_acquire(&entry.key)
        if key & FDB_USED and (state_port(sm_acquire(&entry.state)) == number
                               or (mac and key & FDB_MAC == mac)):
            fdb_remove(fdb, ports, entry, key)


cdef inline bint fdb_own(fdb_t *fdb, void *const *ports, const uint8_t *mac, port_t *port) noexcept nogil:
    # From now on an address is this port's alone, NULL for this host's side. False: it is another's
    # already, or there is no place for it.
    cdef int number = LOCAL_PORT if port == NULL else port.number
    cdef uint64_t key = fdb_key(mac, ANY_VLAN)
    cdef uint64_t state = 0
    if fdb_find(fdb, key, &state) != NULL:
        return state_port(state) == number
    fdb_forget(fdb, ports, NO_PORT, key & FDB_MAC)
    return fdb_insert(fdb, ports, key | FDB_STATIC, make_state(0, number, 0), port, 0)


cdef inline void fdb_sweep(fdb_t *fdb, void *const *ports, uint32_t now_s) noexcept nogil:
    # Removes what has aged; and if it is still crowded, an eighth of the entries of the port that has
    # most, those that were heard least lately.
    cdef uint32_t ages[AGE_S]
    cdef fdb_entry_t *entry
    cdef port_t *port
    cdef uint64_t key, state, most
    cdef uint64_t gone = 0
    cdef int fattest = LOCAL_PORT
    cdef int limit = AGE_S
    cdef int i
    for i in range(FDB_SETS * FDB_WAYS):
        entry = fdb_at(fdb, i)
        key = sm_acquire(&entry.key)
        if key & FDB_USED and has_aged(key, sm_acquire(&entry.state), now_s):
            fdb_remove(fdb, ports, entry, key)
    if sm_counted(&fdb.entries) * 16 < fdb.most_entries * CROWDED_OF_16:
        return
    most = sm_counted(&fdb.local_entries)
    for i in range(MAX_PORTS):
        port = <port_t *>sm_published(&ports[i])
        if port != NULL and sm_counted(&port.macs) > most:
            most = sm_counted(&port.macs)
            fattest = i
    memset(ages, 0, sizeof(ages))
    for i in range(FDB_SETS * FDB_WAYS):
        entry = fdb_at(fdb, i)
        state = sm_acquire(&entry.state)
        if sm_acquire(&entry.key) & (FDB_USED | FDB_STATIC) == FDB_USED and state_port(state) == fattest:
            ages[min(now_s - state_heard(state), <uint32_t>(AGE_S - 1))] += 1
    while limit > 0 and gone < most // 8 + 1:
        limit -= 1
        gone += ages[limit]
    gone = most // 8 + 1
    for i in range(FDB_SETS * FDB_WAYS):
        entry = fdb_at(fdb, i)
        key = sm_acquire(&entry.key)
        state = sm_acquire(&entry.state)
        if (gone and key & (FDB_USED | FDB_STATIC) == FDB_USED and state_port(state) == fattest
                and now_s - state_heard(state) >= <uint32_t>limit):
            fdb_remove(fdb, ports, entry, key)
            gone -= 1
