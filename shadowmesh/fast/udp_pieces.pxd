# Frames that came over UDP in pieces: fragments, and what is packed over the end of a datagram.
#
#   fragment   --its slice------> partial frame --the last one------> device
#   packed     --whole records--> train (udp_frames.pxd)
#              --the last one, cut--> tail --the next datagram of the batch--> train
#                                      '--any other--> partial frame --> device
#
# Datagrams come in order nearly always, and many at once: the tail of one and the head of the next
# are then put together where they lie. What is kept waits for 1 s, and only MAX_PARTIALS of it, of all
# peers: who has most of it makes room.
# All of it runs in the UDP thread.

from libc.stddef cimport size_t
from libc.string cimport memcpy, memmove
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .admit cimport NO_SEGMENTS
from .session cimport *
from .datagram cimport *
from .packed cimport *
from .peers cimport *
from .plane cimport *
from .deliver cimport *
from .udp_frames cimport *

cdef extern from "compat.h" nogil:
    const uint64_t SM_PARTIAL_LIFETIME_NS

cdef enum:
    # Two halves of a packed record are kept as a partial frame of this total, which no fragment has.
    HALVES = 1
    FIRST_HALF = 1              # bits of partial_t.held then
    SECOND_HALF = 2
    HALF_BYTES = MAX_FRAGMENTS_PER_FRAME * MAX_SLICE_BYTES // 2
    # Between the end of a datagram's plaintext and the head of the next one behind it.
    PACKED_GAP_BYTES = MAX_TAG_BYTES + AAD_BYTES + PACKED_HEADER_BYTES


cdef inline int fattest_owner(const inbox_t *inbox, int owner) noexcept nogil:
    # Who has most partial frames; `owner`, unless another has more. Every seat is taken.
    cdef int owners[MAX_PARTIALS + 1]
    cdef int counts[MAX_PARTIALS + 1]
    cdef int known = 1
    cdef int fattest = 0
    cdef int i, j
    owners[0] = owner
    counts[0] = 0
    for i in range(MAX_PARTIALS):
        j = 0
        while j < known and owners[j] != inbox.partials[i].owner:
            j += 1
        if j == known:
            owners[j] = inbox.partials[i].owner
            counts[j] = 0
            known += 1
        counts[j] += 1
    for j in range(1, known):
        if counts[j] > counts[fattest]:
            fattest = j
    return owners[fattest]


cdef inline partial_t *oldest_partial(inbox_t *inbox, int owner) noexcept nogil:
    # Of one that has some.
    cdef partial_t *oldest = NULL
    cdef partial_t *partial
    cdef int i
    for i in range(MAX_PARTIALS):
        partial = &inbox.partials[i]
        if partial.owner == owner and (oldest == NULL or partial.born_ns < oldest.born_ns):
            oldest = partial
    return oldest


cdef inline partial_t *find_partial(udp_t *udp, uint32_t key_id, uint16_t id, uint8_t total,
                                    uint64_t first_counter, uint64_t now_ns) noexcept nogil:
    # The partial frame of a fragment; a new one when there is none: in a free seat, or in the oldest of
    # the peer that has most. So nobody loses one to another who has no fewer.
    cdef partial_t *partial
    cdef partial_t *seat = NULL
    cdef int owner = owner_of(udp.port)
    cdef int i
    for i in range(MAX_PARTIALS):
        partial = &udp.inbox.partials[i]
        if partial.key_id and now_ns - partial.born_ns > SM_PARTIAL_LIFETIME_NS:
            partial.key_id = 0
            refuse(udp, REFUSED_FRAGMENT)
        if (partial.key_id == key_id and partial.id == id and partial.total == total
                and partial.first_counter == first_counter):
            return partial
        if partial.key_id == 0 and seat == NULL:
            seat = partial
    if seat == NULL:
        seat = oldest_partial(udp.inbox, fattest_owner(udp.inbox, owner))
        refuse(udp, REFUSED_FRAGMENT)
    seat.key_id = key_id
    seat.owner = owner
    seat.id = id
    seat.total = total
    seat.held = 0
    seat.first_counter = first_counter
    seat.born_ns = now_ns
    return seat


cdef inline void take_fragment(plane_t *plane, uint32_t key_id, uint64_t counter,
                               const uint8_t *inner, size_t inner_bytes,
                               uint64_t now_ns) noexcept nogil:
    # Keeps a slice; delivers the frame when it was the last missing one.
    cdef size_t slice_bytes = inner_bytes - FRAGMENT_HEADER_BYTES
    cdef uint8_t index, total
    cdef partial_t *partial
    cdef uint8_t *whole
    cdef size_t length = 0
    cdef int i
    if inner_bytes <= FRAGMENT_HEADER_BYTES:
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    index = inner[3]
    total = inner[4]
    if (total < 2 or total > MAX_FRAGMENTS_PER_FRAME or index >= total
            or slice_bytes > MAX_SLICE_BYTES or counter < index):
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    # The replay window let this counter through once, so no slice comes twice.
    partial = find_partial(&plane.udp, key_id, sm_load16(inner + 1), total, counter - index, now_ns)
    memcpy(partial.bytes + MAX_SLICE_BYTES * index, inner + FRAGMENT_HEADER_BYTES, slice_bytes)
    partial.lengths[index] = <uint16_t>slice_bytes
    partial.held += 1
    if partial.held < total:
        return
    partial.key_id = 0
    whole = partial.bytes
    for i in range(total):
        if length != <size_t>(MAX_SLICE_BYTES * i):
            memmove(whole + length, whole + MAX_SLICE_BYTES * i, partial.lengths[i])
        length += partial.lengths[i]
    if whole[0] != INNER_FRAME and whole[0] != INNER_OFFLOAD_FRAME:
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    # The slices are reused at once, so the frame cannot wait for others.
    flush_train(plane)
    unpin(&plane.peers.udp_pin)
    deliver_frame(plane, &plane.udp.opener, plane.udp.port, whole, length, NO_SEGMENTS)


# --- Packed frames --------------------------------------------------------------------------------


cdef inline void take_packed_record(plane_t *plane, uint8_t *record, size_t record_bytes) noexcept nogil:
    # What a datagram of its own would have brought.
    if record[0] == INNER_FRAME:
        # Its virtio header is written over the end of the frame in front of it. It would end the
        # train anyway: without an unfinished checksum nothing is joined.
        flush_train(plane)
    elif record[0] != INNER_OFFLOAD_FRAME:
        refuse(&plane.udp, REFUSED_TYPE)
        return
    take_frame(plane, record, record_bytes)


cdef inline void take_halves(plane_t *plane, uint8_t *entry, size_t entry_bytes) noexcept nogil:
    # A length and the record that was cut, in one piece again.
    if sm_load16(entry) != entry_bytes - PACKED_LENGTH_BYTES:
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    take_packed_record(plane, entry + PACKED_LENGTH_BYTES, entry_bytes - PACKED_LENGTH_BYTES)


cdef inline void keep_half(plane_t *plane, int half, uint32_t key_id, uint64_t counter,
                           const uint8_t *bytes, size_t length, uint64_t now_ns) noexcept nogil:
    # Of the record that ends in the datagram of that counter, until the other half comes.
    cdef partial_t *partial
    cdef size_t first_bytes
    if length > HALF_BYTES:
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    # The replay window let either counter through once, so no half comes twice.
    partial = find_partial(&plane.udp, key_id, 0, HALVES, counter, now_ns)
    memcpy(partial.bytes + (HALF_BYTES if half == SECOND_HALF else 0), bytes, length)
    partial.lengths[half - 1] = <uint16_t>length
    partial.held |= <uint8_t>half
    if partial.held != FIRST_HALF | SECOND_HALF:
        return
    partial.key_id = 0
    first_bytes = partial.lengths[0]
    memmove(partial.bytes + first_bytes, partial.bytes + HALF_BYTES, partial.lengths[1])
    take_halves(plane, partial.bytes, first_bytes + partial.lengths[1])
    # The halves are reused at once, so the frame cannot wait for others.
    flush_train(plane)


cdef inline void keep_tail(plane_t *plane, uint64_t now_ns) noexcept nogil:
    # The next datagram is not the one that the tail waits for, or comes in another batch.
    cdef tail_t *tail = &plane.udp.inbox.tail
    cdef uint32_t key_id = tail.key_id
    cdef port_t *port = plane.udp.port
    tail.key_id = 0
    if key_id:
        # The datagram that is being opened may be another peer's.
        plane.udp.port = <port_t *>tail.port
        keep_half(plane, FIRST_HALF, key_id, tail.counter, tail.bytes, tail.length, now_ns)
        plane.udp.port = port


cdef inline bint complete_tail(plane_t *plane, uint8_t *head, size_t head_bytes) noexcept nogil:
    # Puts the tail and the head that belongs to it together, the shorter one beside the longer.
    # False: there is no room for that. Nothing else is in the gap between two datagrams that were
    # received as one train, or behind the last one of a message.
    cdef tail_t *tail = &plane.udp.inbox.tail
    cdef uint8_t *end = tail.bytes + tail.length
    cdef uint8_t *entry = tail.bytes
    if head >= end and <size_t>(head - end) <= PACKED_GAP_BYTES:
        if tail.length < head_bytes:
            entry = head - tail.length
            memmove(entry, tail.bytes, tail.length)
        else:
            memmove(end, head, head_bytes)
    elif head_bytes <= tail.spare_bytes:
        memcpy(end, head, head_bytes)
    else:
        return False
    take_halves(plane, entry, tail.length + head_bytes)
    return True


cdef inline void take_head(plane_t *plane, uint32_t key_id, uint64_t counter, uint8_t *head,
                           size_t head_bytes, uint64_t now_ns) noexcept nogil:
    # What ends the record that the datagram before has begun.
    cdef tail_t *tail = &plane.udp.inbox.tail
    if tail.key_id == key_id and tail.counter == counter:
        if head_bytes == 0:
            tail.key_id = 0
            refuse(&plane.udp, REFUSED_FRAGMENT)
        elif complete_tail(plane, head, head_bytes):
            tail.key_id = 0
            return
    keep_tail(plane, now_ns)
    if head_bytes:
        keep_half(plane, SECOND_HALF, key_id, counter, head, head_bytes, now_ns)


cdef inline void take_packed(plane_t *plane, uint32_t key_id, uint64_t counter, uint8_t *inner,
                             size_t inner_bytes, uint64_t now_ns) noexcept nogil:
    # The records of one datagram; what it has of the one before and of the one after.
    cdef tail_t *tail = &plane.udp.inbox.tail
    cdef uint8_t *end = inner + inner_bytes
    cdef uint8_t *p = inner + PACKED_HEADER_BYTES
    cdef size_t length
    if inner_bytes < PACKED_HEADER_BYTES or sm_load16(inner + 1) > end - p:
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    length = sm_load16(inner + 1)
    take_head(plane, key_id, counter, p, length, now_ns)
    p += length
    while end - p >= PACKED_ENTRY_BYTES:
        length = sm_load16(p)
        if length == 0:
            return
        if length > <size_t>(end - p) - PACKED_LENGTH_BYTES:
            tail.key_id = key_id
            tail.counter = counter + 1
            tail.bytes = p
            tail.length = end - p
            tail.spare_bytes = plane.udp.inbox.spare_bytes
            tail.port = plane.udp.port
            return
        take_packed_record(plane, p + PACKED_LENGTH_BYTES, length)
        p += PACKED_LENGTH_BYTES + length
