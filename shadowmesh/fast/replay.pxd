# The replay window of the UDP path: a ring of bits, RFC 6479.
#
# The order is fixed: window_check, then the tag, then window_mark. A forged counter must not move
# the window. One word of the ring is always being cleared, so 65536 bits accept counters up to
# and including 65472 behind the newest.
#
# Why so many: the peer may seal with several threads. One that loses its core between taking
# counters and sending is overtaken by the others for some milliseconds, each of which may be a
# thousand datagrams. With four threads on two cores 8192 bits refused 690 of 3.9 million.
#
# That is 8 KiB, most of what an idle session needs. So there is no ring while all counters are near
# the first that is taken, and at rest it is given back: nothing is under way then that could still
# come, and what is behind the newest is taken no more.

from libc.stdlib cimport calloc, free
from libc.string cimport memset
from .base cimport *

cdef enum:
    WINDOW_WORDS = 1024
    WINDOW_BITS = (WINDOW_WORDS - 1) * 64
    FEW_WORDS = 16
    FEW_BITS = FEW_WORDS * 64

ctypedef struct window_t:
    uint64_t first              # no counter below it is taken any more
    uint64_t few[FEW_WORDS]     # of the counters from it on, while there is no ring
    uint64_t *ring              # WINDOW_WORDS; NULL: none was needed since the last rest
    uint64_t newest
    uint64_t started            # since the last rest, so `newest` counts


cdef inline void window_rest(window_t *window) noexcept nogil:
    # Takes only what is newer from now on, and gives the ring back.
    if window.started:
        # The counter behind the last one is never sealed under.
        window.first = window.newest + (window.newest != <uint64_t>-1)
    window.started = 0
    memset(window.few, 0, sizeof(window.few))
    free(window.ring)
    window.ring = NULL


cdef inline bint window_check(const window_t *window, uint64_t counter) noexcept nogil:
    cdef uint64_t ahead = counter - window.first
    if counter < window.first:
        return False
    if window.ring == NULL:
        return ahead >= FEW_BITS or not (window.few[ahead >> 6] >> (ahead & 63)) & 1
    if counter > window.newest:
        return True
    if window.newest - counter > WINDOW_BITS:
        return False
    return not (window.ring[(counter >> 6) % WINDOW_WORDS] >> (counter & 63)) & 1


cdef inline void mark_in_ring(window_t *window, uint64_t counter) noexcept nogil:
    cdef uint64_t word, last
    if not window.started or counter > window.newest:
        word = (window.newest >> 6) + 1 if window.started else 0
        last = counter >> 6
        if not window.started or last - (window.newest >> 6) >= WINDOW_WORDS:
            memset(window.ring, 0, WINDOW_WORDS * sizeof(uint64_t))
        else:
            while word <= last:
                window.ring[word % WINDOW_WORDS] = 0
                word += 1
        window.newest = counter
        window.started = 1
    window.ring[(counter >> 6) % WINDOW_WORDS] |= <uint64_t>1 << (counter & 63)


cdef inline bint provide_ring(window_t *window) noexcept nogil:
    # A ring with what was marked so far. False: no memory.
    cdef uint64_t ahead
    window.ring = <uint64_t *>calloc(WINDOW_WORDS, sizeof(uint64_t))
    if window.ring == NULL:
        return False
    window.started = 0
    for ahead in range(<uint64_t>FEW_BITS):
        if (window.few[ahead >> 6] >> (ahead & 63)) & 1:
            mark_in_ring(window, window.first + ahead)
    return True


cdef inline bint window_mark(window_t *window, uint64_t counter) noexcept nogil:
    # Only for a counter that window_check let pass and whose tag was right. False: no memory, and what
    # comes again would not be known for that.
    cdef uint64_t ahead = counter - window.first
    if window.ring == NULL and ahead >= FEW_BITS and not provide_ring(window):
        return False
    if window.ring != NULL:
        mark_in_ring(window, counter)
        return True
    window.few[ahead >> 6] |= <uint64_t>1 << (ahead & 63)
    window.newest = max(window.newest, counter) if window.started else counter
    window.started = 1
    return True
