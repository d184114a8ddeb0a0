# What the data plane checks of an Ethernet frame and of its virtio header, before a device sees it.
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


cdef inline int check_offload(const uint8_t *vnet, const uint8_t *frame, size_t frame_bytes,
                              uint32_t mtu_bytes) noexcept nogil:
    # A frame with a virtio header from the peer. The kernel checks these fields too; we do not
    # lean on that for bytes that came over the network.
    cdef int gso = vnet[1] & ~GSO_ECN
    cdef uint32_t header_bytes = sm_load16(vnet + 2)
    cdef uint32_t segment_bytes = sm_load16(vnet + 4)
    cdef uint32_t checksum_end = <uint32_t>sm_load16(vnet + 6) + sm_load16(vnet + 8) + 2
    if frame_bytes < MIN_FRAME:
        return DROP_RUNT
    if frame[6] & 1:
        return DROP_MULTICAST_SOURCE
    if vnet[0] & ~(VNET_NEEDS_CSUM | VNET_DATA_VALID):
        return DROP_BAD_OFFLOAD
    if vnet[0] & VNET_NEEDS_CSUM and (sm_load16(vnet + 6) < MIN_FRAME
                                      or checksum_end > frame_bytes):
        return DROP_BAD_OFFLOAD
    if gso == GSO_NONE:
        if vnet[1]:
            return DROP_BAD_OFFLOAD
        return DROP_TOO_LONG if frame_bytes > mtu_bytes + FRAME_OVERHEAD else KEEP
    if gso != GSO_TCPV4 and gso != GSO_TCPV6 and vnet[1] != GSO_UDP_L4:
        return DROP_BAD_OFFLOAD
    if frame_bytes > MAX_SUPER_FRAME:
        return DROP_TOO_LONG
    if not vnet[0] & VNET_NEEDS_CSUM:
        return DROP_BAD_OFFLOAD
    # hdr_len is a hint that may be 0 (virtio 1.2, 5.1.6.2); when it is given it lies in the frame.
    if segment_bytes == 0 or segment_bytes > mtu_bytes or header_bytes > frame_bytes:
        return DROP_BAD_OFFLOAD
    return KEEP
