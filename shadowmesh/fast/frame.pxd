# An Ethernet frame and the virtio header in front of it: their sizes, and what is refused of a frame.
#
#   virtio_net_hdr (virtio 1.2, 5.1.6), 10 bytes, little-endian
#   0 flags | 1 gso_type | 2 hdr_len | 4 gso_size | 6 csum_start | 8 csum_offset

from libc.stddef cimport size_t
from .base cimport *
from .drop_reasons cimport *

cdef enum:
    VNET_HEADER_BYTES = 10
    VNET_NEEDS_CSUM = 1
    VNET_DATA_VALID = 2
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80
    MIN_FRAME = 14
    FRAME_OVERHEAD = 22
    MAX_SUPER_FRAME = 65535 + 22


cdef inline int check_frame(const uint8_t *frame, size_t frame_bytes,
                            uint32_t mtu_bytes) noexcept nogil:
    # A plain frame: KEEP, or the DROP_ reason that names why not (protocol section 6).
    if frame_bytes < MIN_FRAME:
        return DROP_RUNT
    if frame_bytes > mtu_bytes + FRAME_OVERHEAD:
        return DROP_TOO_LONG
    if frame[6] & 1:
        return DROP_MULTICAST_SOURCE
    return KEEP
