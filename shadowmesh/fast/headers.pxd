# Where the headers of a frame are: Ethernet, up to two VLAN tags, IPv4 or IPv6, TCP or UDP.
#
#   0            l3            l4                  header_bytes       frame_bytes
#   | Ethernet, tags | IP, options | TCP or UDP, options | payload |
#
# Reads nothing outside of the frame. What is not understood to the last header is refused: such a
# frame is carried as it is, never cut or joined.

from libc.stddef cimport size_t
from .base cimport *
from .frame cimport *

cdef enum:
    TYPE_VLAN = 0x8100
    TYPE_PROVIDER_VLAN = 0x88A8
    TYPE_IPV4 = 0x0800
    TYPE_IPV6 = 0x86DD
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    NEXT_HOP_BY_HOP = 0
    NEXT_ROUTING = 43
    NEXT_DESTINATION = 60
    IPV4_BYTES = 20
    IPV6_BYTES = 40
    TCP_BYTES = 20
    UDP_BYTES = 8
    TCP_CHECKSUM = 16           # offset in the TCP header
    UDP_CHECKSUM = 6
    MAX_IP_BYTES = 65535
    # Two tags, 60 bytes of IPv4, 60 of TCP make 142; the rest is for IPv6 extension headers.
    MAX_HEADERS = 256

# Byte 13 of a TCP header.
cdef enum:
    TCP_FIN = 0x01
    TCP_SYN = 0x02
    TCP_RST = 0x04
    TCP_PSH = 0x08
    TCP_URG = 0x20
    TCP_CWR = 0x80

# Why a frame cannot be cut.
cdef enum:
    E_TRUNCATED = -1            # a header does not end within the frame
    E_UNSUPPORTED_HEADER = -2   # another protocol, a fragment, an extension header
    E_LENGTHS = -3              # the lengths in the headers are not that of the frame
    E_VNET = -4                 # the virtio header says something else than the frame
    E_NO_ROOM = -5              # not one byte of payload fits beside the headers

ctypedef struct flow_t:
    uint32_t l3
    uint32_t l4
    uint32_t header_bytes
    uint32_t payload_bytes
    uint32_t segment_bytes      # payload of each segment but the last (set by parse_super)
    uint8_t ipv6
    uint8_t protocol            # PROTOCOL_TCP or PROTOCOL_UDP


cdef inline int find_ipv4(const uint8_t *frame, size_t frame_bytes, flow_t *flow) noexcept nogil:
    # 0: l4 and protocol are filled in; an E_ code otherwise. flow.l3 is set.
    cdef const uint8_t *ip = frame + flow.l3
    if frame_bytes < flow.l3 + IPV4_BYTES:
        return E_TRUNCATED
    if ip[0] >> 4 != 4 or ip[0] & 15 < 5:
        return E_UNSUPPORTED_HEADER
    flow.l4 = flow.l3 + (ip[0] & 15) * 4
    if flow.l4 > frame_bytes:
        return E_TRUNCATED
    if sm_load16be(ip + 2) != frame_bytes - flow.l3:
        return E_LENGTHS
    if sm_load16be(ip + 6) & 0x3FFF:
        return E_UNSUPPORTED_HEADER
    flow.ipv6 = 0
    flow.protocol = ip[9]
    return 0


cdef inline int find_ipv6(const uint8_t *frame, size_t frame_bytes, flow_t *flow) noexcept nogil:
    # As find_ipv4. Options and routing headers may be repeated in every segment; a fragment header
    # or one of IPsec may not, and a jumbogram's length is not in the header.
    cdef const uint8_t *ip = frame + flow.l3
    cdef uint8_t following
    if frame_bytes < flow.l3 + IPV6_BYTES:
        return E_TRUNCATED
    if ip[0] >> 4 != 6:
        return E_UNSUPPORTED_HEADER
    if (frame_bytes - flow.l3 > MAX_IP_BYTES
            or sm_load16be(ip + 4) != frame_bytes - flow.l3 - IPV6_BYTES):
        return E_LENGTHS
    flow.l4 = flow.l3 + IPV6_BYTES
    following = ip[6]
    while (following == NEXT_HOP_BY_HOP or following == NEXT_ROUTING
           or following == NEXT_DESTINATION):
        if frame_bytes < flow.l4 + 8:
            return E_TRUNCATED
        following = frame[flow.l4]
        flow.l4 += 8 + frame[flow.l4 + 1] * 8
        if flow.l4 > MAX_HEADERS:
            return E_UNSUPPORTED_HEADER
    flow.ipv6 = 1
    flow.protocol = following
    return 0


cdef inline int find_headers(const uint8_t *frame, size_t frame_bytes,
                             flow_t *flow) noexcept nogil:
    # 0: everything in `flow` but segment_bytes is filled in; an E_ code otherwise. A frame with
    # padding behind its IP packet is refused (E_LENGTHS): the padding would move.
    cdef uint32_t ethertype
    cdef int error
    if frame_bytes < MIN_FRAME:
        return E_TRUNCATED
    flow.l3 = MIN_FRAME
    ethertype = sm_load16be(frame + 12)
    while flow.l3 < FRAME_OVERHEAD and (ethertype == TYPE_VLAN
                                        or ethertype == TYPE_PROVIDER_VLAN):
        if frame_bytes < flow.l3 + 4:
            return E_TRUNCATED
        ethertype = sm_load16be(frame + flow.l3 + 2)
        flow.l3 += 4
    if ethertype == TYPE_IPV4:
        error = find_ipv4(frame, frame_bytes, flow)
    elif ethertype == TYPE_IPV6:
        error = find_ipv6(frame, frame_bytes, flow)
    else:
        error = E_UNSUPPORTED_HEADER
    if error:
        return error
    if flow.protocol == PROTOCOL_TCP:
        if frame_bytes < flow.l4 + TCP_BYTES:
            return E_TRUNCATED
        if frame[flow.l4 + 12] >> 4 < 5:
            return E_UNSUPPORTED_HEADER
        flow.header_bytes = flow.l4 + (frame[flow.l4 + 12] >> 4) * 4
    elif flow.protocol == PROTOCOL_UDP:
        if frame_bytes < flow.l4 + UDP_BYTES:
            return E_TRUNCATED
        if sm_load16be(frame + flow.l4 + 4) != frame_bytes - flow.l4:
            return E_LENGTHS
        flow.header_bytes = flow.l4 + UDP_BYTES
    else:
        return E_UNSUPPORTED_HEADER
    if flow.header_bytes > frame_bytes:
        return E_TRUNCATED
    if flow.header_bytes > MAX_HEADERS:
        return E_UNSUPPORTED_HEADER
    flow.payload_bytes = <uint32_t>(frame_bytes - flow.header_bytes)
    return 0


cdef inline uint32_t checksum_offset(const flow_t *flow) noexcept nogil:
    return TCP_CHECKSUM if flow.protocol == PROTOCOL_TCP else UDP_CHECKSUM


cdef inline int gso_type(const flow_t *flow) noexcept nogil:
    if flow.protocol == PROTOCOL_UDP:
        return GSO_UDP_L4
    return GSO_TCPV6 if flow.ipv6 else GSO_TCPV4


cdef inline bint leaves_checksum(const uint8_t *vnet, const flow_t *flow) noexcept nogil:
    # Whether the virtio header says that the checksum of exactly this flow is to be filled in.
    return (vnet[0] & ~VNET_DATA_VALID == VNET_NEEDS_CSUM and sm_load16(vnet + 6) == flow.l4
            and sm_load16(vnet + 8) == checksum_offset(flow))


cdef inline int parse_super(const uint8_t *vnet, const uint8_t *frame, size_t frame_bytes,
                            flow_t *flow) noexcept nogil:
    # A super-frame and its virtio header: 0 and all of `flow`, or an E_ code. hdr_len is not used:
    # it is a hint (virtio 1.2 section 5.1.6.2), and Linux leaves VLAN tags out of it.
    cdef int error = find_headers(frame, frame_bytes, flow)
    if error:
        return error
    if vnet[1] & ~GSO_ECN != gso_type(flow) or not leaves_checksum(vnet, flow):
        return E_VNET
    flow.segment_bytes = sm_load16(vnet + 4)
    return 0 if flow.segment_bytes else E_VNET
