# What of a virtio header from the peer reaches a device: only what the frame behind it confirms.
#
#   offload frame -> refused                        a DROP_ reason
#                 -> super-frame, known headers     hdr_len is written from them
#                 -> its checksum is to be filled   by the device, where TCP or UDP has it; else here
#                 -> nothing is left to be done     the header is empty
#
# The kernel cuts a super-frame in whoever writes it, 1 to 2 us a segment where the card behind it
# cannot: how many there may be is what bounds that. The sender asks the same for the peer, so that
# nothing is sent only to be refused.

from libc.stddef cimport size_t
from libc.string cimport memset
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .headers cimport *
from .checksum cimport *

cdef enum:
    # UDP_MAX_SEGMENTS of Linux; 64 KiB of TCP at the smallest usual MSS, 536 bytes, are 122. The
    # device is told (device/tap.py), so that its own kernel makes none with more.
    MAX_SEGMENTS = 128
    NO_SEGMENTS = 0
    ANY_SEGMENTS = 65535


cdef inline int admit_single(uint8_t *vnet, uint8_t *frame, size_t frame_bytes,
                             uint32_t mtu_bytes) noexcept nogil:
    # A frame that is not to be cut.
    cdef flow_t flow
    if frame_bytes > mtu_bytes + FRAME_OVERHEAD:
        return DROP_TOO_LONG
    if (vnet[0] & VNET_NEEDS_CSUM and find_headers(frame, frame_bytes, &flow) == 0
            and leaves_checksum(vnet, &flow)):
        memset(vnet + 2, 0, 4)
        return KEEP
    # A place that we do not know, such as one inside of another tunnel's packet: whatever it is, a
    # frame that is finished asks nothing of the device.
    if complete_checksum(vnet, frame, frame_bytes):
        return DROP_BAD_OFFLOAD
    memset(vnet + 1, 0, VNET_HEADER_BYTES - 1)
    return KEEP


cdef inline int admit_offload(uint8_t *vnet, uint8_t *frame, size_t frame_bytes,
                              uint32_t mtu_bytes, uint32_t most_segments) noexcept nogil:
    # KEEP, with both as they may be written to a device of that MTU, or a DROP_ reason.
    # `most_segments` of a super-frame: MAX_SEGMENTS for one that goes or came over WSS; NO_SEGMENTS
    # for what came over UDP, where there are no super-frames (protocol section 6); ANY_SEGMENTS for
    # one that we cut.
    cdef flow_t flow
    if frame_bytes < MIN_FRAME:
        return DROP_RUNT
    if frame[6] & 1:
        return DROP_MULTICAST_SOURCE
    if vnet[0] & ~(VNET_NEEDS_CSUM | VNET_DATA_VALID):
        return DROP_BAD_OFFLOAD
    if vnet[1] == GSO_NONE:
        return admit_single(vnet, frame, frame_bytes, mtu_bytes)
    if frame_bytes > MAX_SUPER_FRAME:
        return DROP_TOO_LONG
    # hdr_len is a hint that may be 0 (virtio 1.2, 5.1.6.2); when it is given it lies in the frame.
    if (most_segments == NO_SEGMENTS or vnet[1] == GSO_UDP_L4 | GSO_ECN or sm_load16(vnet + 2) > frame_bytes
            or parse_super(vnet, frame, frame_bytes, &flow)
            or flow.payload_bytes > <uint64_t>most_segments * flow.segment_bytes):
        return DROP_BAD_OFFLOAD
    # Each segment is a frame.
    if flow.header_bytes + min(flow.segment_bytes, flow.payload_bytes) > mtu_bytes + FRAME_OVERHEAD:
        return DROP_TOO_LONG
    sm_store16(vnet + 2, <uint16_t>flow.header_bytes)
    return KEEP
