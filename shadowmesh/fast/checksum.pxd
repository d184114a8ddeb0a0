# The Internet checksum of RFC 1071: sums, and finishing what a stack left to its device.
#
# Sums are held as numbers whose 16-bit words were read in network order, unfolded, in 64 bits: at
# least 2^32 words may be added before one overflows. sm_load16be and sm_store16be move them.

from libc.stddef cimport size_t
from .base cimport *
from .frame cimport *


cdef inline uint32_t fold_sum(uint64_t total) noexcept nogil:
    # Ones-complement sum in 16 bits. 0 only for 0, so that a sum over anything else has one form
    # only; 0xFFFF and 0 are the same number to whoever verifies (RFC 1624 section 3).
    total = (total >> 32) + <uint32_t>total
    total = (total >> 32) + <uint32_t>total
    total = (total >> 16) + (total & 0xFFFF)
    total = (total >> 16) + (total & 0xFFFF)
    return <uint32_t>total


cdef inline uint32_t sum_bytes(const uint8_t *p, size_t n) noexcept nogil:
    # Folded sum of any number of bytes at any alignment; an odd last byte is padded with zero.
    # Words are added in the order of the processor and turned once at the end, which comes to the
    # same (RFC 1071 section 2). The halves of 64-bit words go to sums of their own: no carry to
    # look after and nothing that one addition has to wait for in another.
    cdef uint64_t low = 0
    cdef uint64_t high = 0
    cdef uint64_t a, b, c, d
    cdef uint32_t folded
    while n >= 32:
        a = sm_load64(p)
        b = sm_load64(p + 8)
        c = sm_load64(p + 16)
        d = sm_load64(p + 24)
        low = low + <uint32_t>a + <uint32_t>b + <uint32_t>c + <uint32_t>d
        high += (a >> 32) + (b >> 32) + (c >> 32) + (d >> 32)
        p += 32
        n -= 32
    while n >= 4:
        low += sm_load32(p)
        p += 4
        n -= 4
    if n >= 2:
        high += sm_load16(p)
        p += 2
        n -= 2
    if n:
        high += p[0]
    folded = fold_sum(low + high)
    return (folded >> 8) | ((folded & 0xFF) << 8)


cdef inline void finish_checksum(uint8_t *l4, size_t l4_bytes, size_t offset) noexcept nogil:
    # l4[offset] holds the sum of the pseudo-header; it is replaced by the checksum of l4_bytes. A
    # result of 0 is written as 0xFFFF, as the kernel does: UDP would read 0 as "none" (RFC 768).
    cdef uint32_t checksum = ~sum_bytes(l4, l4_bytes) & 0xFFFF
    sm_store16be(l4 + offset, <uint16_t>(checksum if checksum else 0xFFFF))


cdef inline int complete_checksum(uint8_t *vnet, uint8_t *frame, size_t frame_bytes) noexcept nogil:
    # For a frame that is not a super-frame and that its stack left unfinished (NEEDS_CSUM): fills
    # in the checksum and clears the flag. 0, also when there was nothing to do; -1 and nothing
    # changed when the header points outside of the frame.
    cdef size_t start = sm_load16(vnet + 6)
    cdef size_t offset = sm_load16(vnet + 8)
    if not vnet[0] & VNET_NEEDS_CSUM:
        return 0
    if start < MIN_FRAME or start + offset + 2 > frame_bytes:
        return -1
    finish_checksum(frame + start, frame_bytes - start, offset)
    vnet[0] &= ~VNET_NEEDS_CSUM & 0xFF
    return 0
