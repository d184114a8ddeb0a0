# Which queue of the TAP a frame is written to: the one that the kernel reads its flow's answers
# into, so that no flow changes its queue, and with it its thread, in the middle.
#
# The tun driver gives a frame that the host sends to the queue on which it last saw the flow come
# in (tun_flow_update, tun_automq_select_queue in drivers/net/tun.c); a flow that it has not seen
# for 3 s, or never, goes where a hash with a key of the kernel's own puts it. Were all frames
# written to one queue, it would pull all flows there; were a flow written now here, now there, its
# frames out would jump between threads and pass each other.
#
#   bucket = symmetric hash of addresses, protocol and ports
#   steering[bucket] = ms of the last frame in << 8 | queue
#
#   frame out, read from queue q    nothing came in for STEER_HOLD_MS: the kernel's choice is ours
#   frame in                        goes to the bucket's queue, which is then held
#
# A flow that this host begins never changes its queue. One that the peer begins is put where the
# bucket is, and the kernel follows with the first answer; it moves once more if nothing has come in
# for 3 s while frames go out. Flows that share a bucket share the queue.
#
# A bucket must not be finer than the kernel's idea of a flow, or one flow would have two queues:
# what the kernel's dissector takes no ports from (fragments) or knows only the type of (ARP) gets
# none here. It may be coarser: tunnels, extension headers and other protocols count by addresses.

from libc.stddef cimport size_t
from .base cimport *
from .frame cimport *
from .flow cimport *
from .tap cimport *

cdef enum:
    # Below the 3 s of TUN_FLOW_EXPIRE: until then the kernel has not forgotten, and a frame out on
    # another queue than ours can only be one that was read long ago.
    STEER_HOLD_MS = 2000


cdef inline uint64_t steer_now_ms() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts)
    return <uint64_t>ts.tv_sec * 1000 + <uint64_t>ts.tv_nsec // 1000000


cdef inline void steer_reset(tap_t *tap, int queue_count) noexcept nogil:
    # For a device that is about to be attached: the flows are dealt out to its queues.
    cdef int i
    for i in range(STEER_BUCKETS):
        sm_release(&tap.steering[i], <uint64_t>(i % queue_count))
    sm_set_flag(&tap.queue_count, queue_count)


cdef inline int steer_in(tap_t *tap, const uint8_t *frame, size_t frame_bytes) noexcept nogil:
    # The queue to write a frame to.
    cdef uint64_t *bucket
    cdef uint64_t held, holding
    if sm_flag(&tap.queue_count) == 1:
        return 0
    bucket = &tap.steering[flow_hash(frame, frame_bytes) % STEER_BUCKETS]
    held = sm_counted(bucket)
    holding = steer_now_ms() << 8 | (held & 0xFF)
    while held != holding and not sm_claim(bucket, &held, holding):
        # A TAP thread has moved the bucket this moment.
        holding = (holding & ~<uint64_t>0xFF) | (held & 0xFF)
    return <int>(holding & 0xFF)


cdef inline void steer_out(tap_t *tap, int queue, const uint8_t *frame,
                           size_t frame_bytes, uint64_t now_ms) noexcept nogil:
    # A frame was read from that queue of several: where the kernel puts its flow.
    cdef uint64_t *bucket = &tap.steering[flow_hash(frame, frame_bytes) % STEER_BUCKETS]
    cdef uint64_t held = sm_counted(bucket)
    if <int>(held & 0xFF) != queue and now_ms > (held >> 8) + STEER_HOLD_MS:
        # Another's word is as good as ours, so once is enough.
        sm_claim(bucket, &held, (held & ~<uint64_t>0xFF) | <uint64_t>queue)
