# How much of what we sent over UDP the host may hold: what leaves within QUEUE_NS.
#
#   TAP threads --line_sent--> taken           bytes handed to the socket
#   SIOCOUTQ ----line_learn--> limit           of what the host holds unsent: socket, qdisc, card
#
# What is in there keeps its order, so a key press behind it waits for all of it. Frames above the
# limit wait in their lanes instead, by turns (udp_queue.pxd). While the host holds something all the
# time, what leaves is what the line takes. When it held nothing, the line may be faster than we
# know: it takes at least what we gave it, and is tried with more if the limit was in the way.
#
# Only what this host holds is seen. A router behind it with a long queue of its own is not.

from .base cimport *

cdef enum:
    LINE_QUEUE_NS = 5 * 1000000
    LINE_FIRST = 256 * 1024     # before anything is known
    LINE_LEAST = 24 * 1024
    LINE_MOST = 4 * 1024 * 1024 # as much as the socket was given by who opened it (path/udp.py)
    # Above this, 1.6 Gbit/s, nobody waits for long whatever comes first.
    LINE_FAST = 1024 * 1024
    LINE_WINDOW_NS = 20 * 1000000           # a rate is measured over at least this

ctypedef struct line_t:
    uint64_t limit              # bytes, as the kernel counts them; read by all TAP threads
    uint64_t taken              # since the last look; all TAP threads add
    int met                     # somebody had to wait for the limit; any TAP thread
    int free                    # who takes this may use what follows, and gives it back
    uint64_t looked_ns          # at the last look ...
    uint64_t seen               # ... the host held so much
    uint64_t since_ns           # the window began ...
    uint64_t held               # ... with so much, 0: it does not count
    uint64_t window_taken       # since then


cdef inline void line_reset(line_t *line) noexcept nogil:
    # Another line, of which nothing is known.
    line.met = 0
    line.free = 1
    line.taken = line.window_taken = line.held = line.seen = 0
    line.since_ns = line.looked_ns = 0
    sm_release(&line.limit, LINE_FIRST)


cdef inline void line_sent(line_t *line, uint64_t bytes) noexcept nogil:
    sm_add(&line.taken, bytes)


cdef inline bint line_look_due(const line_t *line, uint64_t now_ns) noexcept nogil:
    # Else the host holds less than half of what it may.
    return (2 * (sm_counted(&line.seen) + sm_counted(&line.taken)) >= sm_counted(&line.limit)
            or now_ns - sm_counted(&line.looked_ns) >= <uint64_t>LINE_WINDOW_NS)


cdef inline uint64_t line_clamp(uint64_t limit) noexcept nogil:
    return min(max(limit, <uint64_t>LINE_LEAST), <uint64_t>LINE_MOST)


cdef inline void line_learn(line_t *line, uint64_t held, uint64_t now_ns) noexcept nogil:
    # The host holds so much at this moment.
    cdef uint64_t elapsed = now_ns - line.since_ns
    cdef uint64_t limit = line.limit
    cdef uint64_t gone
    sm_release(&line.looked_ns, now_ns)
    sm_release(&line.seen, held)
    line.window_taken += sm_take_all(&line.taken)
    gone = line.held + line.window_taken
    if held == 0:
        if elapsed:
            limit = max(limit, min(gone, <uint64_t>LINE_MOST) * <uint64_t>LINE_QUEUE_NS // elapsed)
        if sm_take_flag(&line.met) and elapsed < <uint64_t>LINE_WINDOW_NS:
            limit *= 2
        limit = min(limit, 2 * line.limit)
    elif elapsed < <uint64_t>LINE_WINDOW_NS:
        return
    elif line.held:
        # The mean of two windows: what came late by chance must not count for much.
        gone = gone - held if gone > held else 0
        limit = (limit + gone * <uint64_t>LINE_QUEUE_NS // elapsed) // 2
        sm_set_flag(&line.met, 0)
    sm_release(&line.limit, line_clamp(limit))
    line.since_ns = now_ns
    line.held = held
    line.window_taken = 0
