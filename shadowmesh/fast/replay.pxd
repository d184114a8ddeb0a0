# The replay window of the UDP path: a ring of bits, RFC 6479.
#
# The order is fixed: window_check, then the tag, then window_mark. A forged counter must not move
# the window. One word of the ring is always being cleared, so 65536 bits accept counters up to
# and including 65472 behind the newest.
#
# Why so many: the peer may seal with several threads. One that loses its core between taking
# counters and sending is overtaken by the others for some milliseconds, each of which may be a
# thousand datagrams. With four threads on two cores 8192 bits refused 690 of 3.9 million.

from libc.string cimport memset
from .base cimport *

cdef enum:
    WINDOW_WORDS = 1024
    WINDOW_BITS = (WINDOW_WORDS - 1) * 64

ctypedef struct window_t:
    uint64_t newest
    uint64_t started
    uint64_t bits[WINDOW_WORDS]


cdef inline void window_reset(window_t *window) noexcept nogil:
    memset(window, 0, sizeof(window_t))


cdef inline bint window_check(const window_t *window, uint64_t counter) noexcept nogil:
    if not window.started or counter > window.newest:
        return True
    if window.newest - counter > WINDOW_BITS:
        return False
    return not (window.bits[(counter >> 6) % WINDOW_WORDS] >> (counter & 63)) & 1


cdef inline void window_mark(window_t *window, uint64_t counter) noexcept nogil:
    # Only for a counter that window_check let pass and whose tag was right.
    cdef uint64_t word, first, last
    if not window.started or counter > window.newest:
        first = (window.newest >> 6) + 1 if window.started else 0
        last = counter >> 6
        if not window.started or last - (window.newest >> 6) >= WINDOW_WORDS:
            memset(window.bits, 0, sizeof(window.bits))
        else:
            word = first
            while word <= last:
                window.bits[word % WINDOW_WORDS] = 0
                word += 1
        window.newest = counter
        window.started = 1
    window.bits[(counter >> 6) % WINDOW_WORDS] |= <uint64_t>1 << (counter & 63)
