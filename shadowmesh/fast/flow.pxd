# Which flow a frame belongs to: a hash of addresses, protocol and ports.
#
# With a secret of each process, so that nobody can choose flows that share a queue with those of
# another. Either end is hashed before the two are added, which makes no difference between the
# directions and, unlike the XOR of both, cannot be kept the same from outside.

from libc.stddef cimport size_t
from .base cimport *
from .frame cimport *
from .headers cimport *


cdef extern from *:
    """
    static uint64_t FLOW_SECRET[2] __attribute__((unused));
    """
    uint64_t FLOW_SECRET[2]


cdef inline void choose_flow_secret() noexcept nogil:
    # Before the first frame. Each extension module has its own; the hooks for tests have none, so
    # that what they find is the same in each run.
    randombytes_buf(FLOW_SECRET, sizeof(FLOW_SECRET))


cdef inline uint32_t mix_bits(uint64_t value) noexcept nogil:
    # The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on all of them.
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return <uint32_t>(value ^ (value >> 31))


cdef inline uint64_t mix_end(uint64_t high, uint64_t low, uint32_t port) noexcept nogil:
    # Of one end of a flow.
    cdef uint64_t mixed = mix_bits(low ^ FLOW_SECRET[0] ^ <uint64_t>port << 48)
    return mix_bits(mixed ^ mixed << 32 ^ high ^ FLOW_SECRET[1])


cdef inline uint32_t flow_hash(const uint8_t *frame, size_t frame_bytes) noexcept nogil:
    # The same for both directions of a flow. Reads nothing outside of the frame.
    cdef size_t l3 = MIN_FRAME
    cdef size_t l4 = 0
    cdef uint32_t ethertype, protocol
    cdef uint32_t source = 0
    cdef uint32_t target = 0
    cdef uint64_t ends
    if frame_bytes < MIN_FRAME:
        return 0
    ethertype = sm_load16be(frame + 12)
    while l3 < FRAME_OVERHEAD and (ethertype == TYPE_VLAN or ethertype == TYPE_PROVIDER_VLAN):
        if frame_bytes < l3 + 4:
            return 0
        ethertype = sm_load16be(frame + l3 + 2)
        l3 += 4
    if ethertype == TYPE_IPV4 and frame_bytes >= l3 + IPV4_BYTES:
        protocol = frame[l3 + 9]
        if not sm_load16be(frame + l3 + 6) & 0x3FFF:
            l4 = l3 + (frame[l3] & 15) * 4
    elif ethertype == TYPE_IPV6 and frame_bytes >= l3 + IPV6_BYTES:
        protocol = frame[l3 + 6]
        l4 = l3 + IPV6_BYTES
    else:
        return mix_bits(ethertype ^ FLOW_SECRET[0])
    if l4 and frame_bytes >= l4 + 4 and (protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP):
        source = sm_load16(frame + l4)
        target = sm_load16(frame + l4 + 2)
    if ethertype == TYPE_IPV4:
        ends = (mix_end(0, sm_load32(frame + l3 + 12), source)
                + mix_end(0, sm_load32(frame + l3 + 16), target))
    else:
        ends = (mix_end(sm_load64(frame + l3 + 8), sm_load64(frame + l3 + 16), source)
                + mix_end(sm_load64(frame + l3 + 24), sm_load64(frame + l3 + 32), target))
    return mix_bits(ends ^ <uint64_t>protocol << 56)
