# The switch: what a frame's addresses and VLAN say about where it goes, and whether it may.
#
#   frame from the device  --switch_out--> one port | FLOOD: all that want it | a DROP_ reason
#   frame from a peer      --switch_in---> KEEP: to the device | a DROP_ reason
#
# Never from peer to peer (split horizon), so a full mesh has no loops. With one port the plane is a
# wire: every frame goes through, and addresses are learned only to be shown.
#
# Source: IEEE 802.1Q-2018 8.6 (forwarding), 8.6.3 (addresses that no bridge forwards), 9.6 (VLAN tag).

from libc.stddef cimport size_t
from .base cimport *
from .drop_reasons cimport *
from .fdb cimport *
from .frame cimport *
from .headers cimport TYPE_PROVIDER_VLAN, TYPE_VLAN
from .nested cimport holds_sent_to_any
from .plane cimport *
from .port cimport *

cdef enum:
    FLOOD = -2                  # beside KEEP and the DROP_ reasons
    MAX_VLAN_TAGS = 2
    VLAN_NONE = 0
    VLAN_REFUSED = 0x1000       # tags nested too deep, or the VLAN that is reserved
    # Broadcasts, multicasts and frames for nobody known: so many in a second, and as many at once.
    FLOOD_FRAMES_PER_S = 1000
    FLOOD_BYTES_PER_S = 1024 * 1024


cdef inline uint32_t frame_vlan(const uint8_t *frame, size_t frame_bytes) noexcept nogil:
    # The VLAN of a frame, by its outer tag; VLAN_NONE without one, VLAN_REFUSED.
    cdef size_t at = 12
    cdef uint32_t vlan = VLAN_NONE
    cdef int tags = 0
    cdef uint32_t ethertype = sm_load16be(frame + at)
    while ethertype == TYPE_VLAN or ethertype == TYPE_PROVIDER_VLAN:
        if tags == MAX_VLAN_TAGS or frame_bytes < at + 6:
            return VLAN_REFUSED
        if tags == 0:
            vlan = sm_load16be(frame + at + 2) & 0xFFF
        tags += 1
        at += 4
        ethertype = sm_load16be(frame + at)
    return VLAN_REFUSED if vlan == ANY_VLAN else vlan


cdef inline bint is_group(const uint8_t *mac) noexcept nogil:
    return mac[0] & 1


cdef inline bint is_reserved(const uint8_t *mac) noexcept nogil:
    # 01-80-C2-00-00-00 to -0F: for the bridge at the other end of the wire alone.
    return (sm_load32(mac) == 0x00C28001 and mac[4] == 0 and mac[5] & 0xF0 == 0)


cdef inline bint take_flood(flood_bucket_t *bucket, size_t frame_bytes, uint64_t now_ns) noexcept nogil:
    # Whether one more frame may be flooded.
    cdef uint64_t elapsed = now_ns - bucket.filled_ns
    if <int64_t>elapsed > 0:
        elapsed = min(elapsed, <uint64_t>1000000000)
        bucket.filled_ns = now_ns
        bucket.frames = min(bucket.frames + elapsed * FLOOD_FRAMES_PER_S,
                            FLOOD_FRAMES_PER_S * <uint64_t>1000000000)
        bucket.bytes = min(bucket.bytes + elapsed * FLOOD_BYTES_PER_S,
                           FLOOD_BYTES_PER_S * <uint64_t>1000000000)
    if bucket.frames < 1000000000 or bucket.bytes < frame_bytes * <uint64_t>1000000000:
        return False
    bucket.frames -= 1000000000
    bucket.bytes -= frame_bytes * <uint64_t>1000000000
    return True


cdef inline bint is_known(opener_t *opener, const port_t *port, uint64_t key) noexcept nogil:
    # Whether a thread has learned this from its last frame.
    if opener.last_key == key and opener.last_port == port and opener.last_s == opener.now_s:
        return True
    opener.last_key = key
    opener.last_port = port
    opener.last_s = opener.now_s
    return False


cdef inline int switch_in(plane_t *plane, opener_t *opener, port_t *port, const uint8_t *frame,
                          size_t frame_bytes) noexcept nogil:
    # A frame that `port`'s peer has sent: at least a header, its source no group.
    cdef bint wire = sm_published(&plane.peers.wire) == <void *>port
    cdef uint32_t vlan = frame_vlan(frame, frame_bytes)
    cdef uint64_t key
    cdef int verdict
    if vlan == VLAN_REFUSED:
        return KEEP if wire else DROP_BAD_VLAN
    key = fdb_key(frame + 6, vlan)
    if not is_known(opener, port, key):
        verdict = fdb_learn(plane.fdb, plane.peers.ports, key, port, opener.now_s)
        if verdict != KEEP:
            opener.last_key = 0
            if not wire:
                return verdict
    if wire or not is_group(frame):
        return KEEP
    if is_reserved(frame):
        return DROP_RESERVED_ADDRESS
    if not take_flood(&port.openers[opener.who].floods, frame_bytes, boottime_ns()):
        return DROP_FLOOD_LIMIT
    return KEEP


cdef inline int learn_source(plane_t *plane, queue_t *queue, uint64_t key, uint32_t now_s) noexcept nogil:
    # As fdb_learn(), for this host's side.
    cdef int verdict
    if queue.learned_key == key and queue.learned_s == now_s:
        return KEEP
    verdict = fdb_learn(plane.fdb, plane.peers.ports, key, NULL, now_s)
    queue.learned_key = key if verdict == KEEP else 0
    queue.learned_s = now_s
    return verdict


cdef inline int switch_out(plane_t *plane, queue_t *queue, const uint8_t *frame, size_t frame_bytes,
                           uint64_t now_ns, int *number) noexcept nogil:
    # A frame of this host's, for several ports: KEEP with the number of its port, FLOOD or a DROP_
    # reason.
    cdef uint32_t now_s = <uint32_t>(now_ns // 1000000000)
    cdef uint32_t vlan
    cdef int verdict
    if frame_bytes < MIN_FRAME:
        return DROP_RUNT
    if is_group(frame + 6):
        return DROP_MULTICAST_SOURCE
    vlan = frame_vlan(frame, frame_bytes)
    if vlan == VLAN_REFUSED:
        return DROP_BAD_VLAN
    if is_reserved(frame):
        return DROP_RESERVED_ADDRESS
    if holds_sent_to_any(&plane.peers, frame, frame_bytes):
        return DROP_OWN_DATAGRAM
    verdict = learn_source(plane, queue, fdb_key(frame + 6, vlan), now_s)
    if verdict != KEEP:
        return verdict
    if not is_group(frame):
        number[0] = fdb_lookup(plane.fdb, fdb_key(frame, vlan), now_s)
        if number[0] == LOCAL_PORT:
            return DROP_SPLIT_HORIZON
        if number[0] != NO_PORT:
            return KEEP
    return FLOOD if take_flood(&queue.floods, frame_bytes, now_ns) else DROP_FLOOD_LIMIT


cdef inline void learn_local(plane_t *plane, queue_t *queue, const uint8_t *frame,
                             size_t frame_bytes, uint32_t now_s) noexcept nogil:
    # The source of a frame of this host's, on a wire: to be shown.
    cdef uint32_t vlan
    if frame_bytes >= MIN_FRAME and not is_group(frame + 6):
        vlan = frame_vlan(frame, frame_bytes)
        if vlan != VLAN_REFUSED:
            learn_source(plane, queue, fdb_key(frame + 6, vlan), now_s)
