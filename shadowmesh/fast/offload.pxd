# Super-frames: cut into frames that fit a path, and joined again on the other side.
#
#   out   | type, virtio | headers | payload 0 | payload 1 | payload 2 |
#         '------------- frame 0 -------------'
#                       '- type, virtio, headers' = frame 1 = payload 1, once frame 0 is sealed
#
#   in    [virtio | headers | payload 0]   [payload 1]   [payload 2]      one writev
#
# No payload byte is moved or summed either way. Neither side knows where frames come from or go.
# Runs in the TAP thread (cutting) and in the UDP thread (joining), each on a state of its own.

from libc.stddef cimport size_t
from libc.string cimport memcmp, memcpy, memset
from .base cimport *
from .frame cimport *
from .checksum cimport *
from .headers cimport *
from .datagram cimport iovec

cdef enum:
    # Enough for 64 KiB at the smallest usual MSS, 536 bytes.
    MAX_JOINED_TCP = 128
    # UDP_MAX_SEGMENTS of Linux before 6.9.
    MAX_JOINED_UDP = 64

ctypedef struct segmenter_t:
    flow_t flow
    uint8_t header[VNET_HEADER_BYTES + MAX_HEADERS]     # what stands in front of every payload
    uint8_t *payload            # of the next segment
    uint32_t payload_left
    uint32_t segment_bytes
    uint32_t segments_left
    uint32_t sequence
    uint32_t id
    uint32_t ip_sum             # IPv4 header without total length, id and checksum
    uint32_t l4_sum             # pseudo-header without the length
    uint8_t flags               # of the segment that comes next, without those of the last
    uint8_t last_flags
    int complete

ctypedef struct joiner_t:
    flow_t flow                 # of the first frame
    uint8_t *head               # the first frame; its virtio header is in front of it
    size_t frame_bytes          # of the super-frame so far
    int count
    int limit                   # 0: this frame goes alone
    int join_udp                # the kernel takes UDP super-frames
    uint32_t sequence           # which the next frame must have
    uint32_t id
    uint32_t ip_sum
    uint32_t l4_sum
    uint8_t flags               # of the first frame that the others must have, too
    uint8_t last_flags          # PSH and FIN of the last
    iovec pieces[MAX_JOINED_TCP]


cdef inline uint32_t ip_sum_without(const uint8_t *ip, size_t ip_bytes) noexcept nogil:
    # The sum over an IPv4 header without total length, id and checksum.
    return fold_sum(<uint64_t>sum_bytes(ip, 2) + sum_bytes(ip + 6, 4)
                    + sum_bytes(ip + 12, ip_bytes - 12))


cdef inline uint32_t pseudo_sum(const uint8_t *frame, const flow_t *flow) noexcept nogil:
    # What an unfinished checksum holds, without the length: the addresses and the protocol. Taken
    # from the field, as the kernel's own segmentation does: a routing header hides the address.
    cdef uint32_t l4_bytes = flow.header_bytes - flow.l4 + flow.payload_bytes
    return fold_sum(<uint64_t>sm_load16be(frame + flow.l4 + checksum_offset(flow))
                    + (~l4_bytes & 0xFFFF))


cdef inline void write_lengths(uint8_t *frame, const flow_t *flow, size_t frame_bytes,
                               uint32_t id, uint32_t ip_sum, uint32_t l4_sum) noexcept nogil:
    # Every field that the size of the payload stands in: IP length, IPv4 checksum, UDP length and
    # the unfinished checksum. And the IPv4 id, which the checksum covers.
    cdef uint8_t *ip = frame + flow.l3
    cdef uint8_t *l4 = frame + flow.l4
    cdef uint32_t ip_bytes = <uint32_t>(frame_bytes - flow.l3)
    cdef uint32_t l4_bytes = <uint32_t>(frame_bytes - flow.l4)
    if flow.ipv6:
        sm_store16be(ip + 4, <uint16_t>(ip_bytes - IPV6_BYTES))
    else:
        sm_store16be(ip + 2, <uint16_t>ip_bytes)
        sm_store16be(ip + 4, <uint16_t>id)
        sm_store16be(ip + 10, <uint16_t>~fold_sum(<uint64_t>ip_sum + ip_bytes + id))
    if flow.protocol == PROTOCOL_UDP:
        sm_store16be(l4 + 4, <uint16_t>l4_bytes)
    sm_store16be(l4 + checksum_offset(flow), <uint16_t>fold_sum(<uint64_t>l4_sum + l4_bytes))


# --- Cutting --------------------------------------------------------------------------------------


cdef inline int segment_begin(segmenter_t *s, uint8_t *vnet, size_t frame_bytes,
                              uint32_t max_frame_bytes, bint complete) noexcept nogil:
    # Prepares to cut the super-frame behind `vnet` into frames of at most `max_frame_bytes`, with
    # finished checksums if `complete`. How many there will be, or an E_ code and nothing changed.
    #
    # Payload goes out in pieces of gso_size, where the kernel would cut, or as much as fits. The
    # datagrams of UDP keep their size whatever `max_frame_bytes` says: where one ends is part of
    # what was sent. Such a frame has to be carried in fragments.
    #
    # One byte in front of `vnet` and all that follows are the segmenter's until the last
    # segment_next().
    cdef uint8_t *frame = vnet + VNET_HEADER_BYTES
    cdef uint8_t *header = s.header + VNET_HEADER_BYTES
    cdef flow_t *flow = &s.flow
    cdef int error = parse_super(vnet, frame, frame_bytes, flow)
    if error:
        return error
    s.segment_bytes = flow.segment_bytes
    if flow.protocol == PROTOCOL_TCP and max_frame_bytes < flow.header_bytes + s.segment_bytes:
        if max_frame_bytes <= flow.header_bytes:
            return E_NO_ROOM
        s.segment_bytes = max_frame_bytes - flow.header_bytes
    s.segments_left = 1
    if flow.payload_bytes:
        s.segments_left = (flow.payload_bytes - 1) // s.segment_bytes + 1
    s.payload = frame + flow.header_bytes
    s.payload_left = flow.payload_bytes
    s.complete = complete
    memcpy(header, frame, flow.header_bytes)
    memset(s.header, 0, VNET_HEADER_BYTES)
    if not complete:
        s.header[0] = VNET_NEEDS_CSUM
        sm_store16(s.header + 6, <uint16_t>flow.l4)
        sm_store16(s.header + 8, <uint16_t>checksum_offset(flow))
    if not flow.ipv6:
        s.id = sm_load16be(frame + flow.l3 + 4)
        s.ip_sum = ip_sum_without(frame + flow.l3, flow.l4 - flow.l3)
    s.l4_sum = pseudo_sum(frame, flow)
    if flow.protocol == PROTOCOL_TCP:
        s.sequence = sm_load32be(frame + flow.l4 + 4)
        s.flags = frame[flow.l4 + 13] & ~(TCP_PSH | TCP_FIN) & 0xFF
        s.last_flags = frame[flow.l4 + 13] & (TCP_PSH | TCP_FIN)
    return <int>s.segments_left


cdef inline bint segment_next(segmenter_t *s, uint8_t **frame, size_t *frame_bytes) noexcept nogil:
    # The next frame, False after the last. It is written over what the one before ended with, so
    # that one must have been sealed or sent. The frame is the caller's to change, and so are the
    # 11 bytes in front of it: its virtio header (NEEDS_CSUM, or all zero if complete), and one more
    # for the inner type.
    cdef flow_t *flow = &s.flow
    cdef uint32_t payload_bytes = s.segment_bytes
    cdef uint8_t *start
    if s.segments_left == 0:
        return False
    s.segments_left -= 1
    if payload_bytes > s.payload_left:
        payload_bytes = s.payload_left
    start = s.payload - flow.header_bytes
    memcpy(start - VNET_HEADER_BYTES, s.header, VNET_HEADER_BYTES + flow.header_bytes)
    frame[0] = start
    frame_bytes[0] = flow.header_bytes + payload_bytes
    write_lengths(start, flow, frame_bytes[0], s.id, s.ip_sum, s.l4_sum)
    s.id = (s.id + 1) & 0xFFFF
    if flow.protocol == PROTOCOL_TCP:
        sm_store32be(start + flow.l4 + 4, s.sequence)
        start[flow.l4 + 13] = s.flags if s.segments_left else s.flags | s.last_flags
        s.flags &= ~TCP_CWR & 0xFF
        s.sequence += payload_bytes
    if s.complete:
        finish_checksum(start + flow.l4, frame_bytes[0] - flow.l4, checksum_offset(flow))
    s.payload += payload_bytes
    s.payload_left -= payload_bytes
    return True


# --- Joining --------------------------------------------------------------------------------------


cdef inline void join_reset(joiner_t *j, bint join_udp) noexcept nogil:
    # An empty joiner. `join_udp`: TUNSETOFFLOAD took TUN_F_USO4, so the kernel (6.2 or newer) knows
    # UDP super-frames. They keep the size of the datagrams, so whoever receives them gets the
    # datagrams that were sent.
    j.count = 0
    j.join_udp = join_udp


cdef inline int join_limit(const joiner_t *j, const uint8_t *vnet,
                           const uint8_t *frame) noexcept nogil:
    # How many frames the train may have that begins with this one; 0: it has to go alone. j.flow
    # is filled in.
    cdef const flow_t *flow = &j.flow
    cdef uint8_t flags
    if flow.payload_bytes == 0 or not leaves_checksum(vnet, flow):
        return 0
    if not flow.ipv6 and sum_bytes(frame + flow.l3, flow.l4 - flow.l3) != 0xFFFF:
        return 0
    if flow.protocol == PROTOCOL_UDP:
        return MAX_JOINED_UDP if j.join_udp else 0
    flags = frame[flow.l4 + 13]
    if flags & (TCP_SYN | TCP_RST | TCP_URG | TCP_PSH | TCP_FIN):
        return 0
    return MAX_JOINED_TCP


cdef inline void join_begin(joiner_t *j, uint8_t *vnet, size_t frame_bytes) noexcept nogil:
    # The first frame of a train, whatever it is.
    cdef uint8_t *frame = vnet + VNET_HEADER_BYTES
    cdef flow_t *flow = &j.flow
    j.head = frame
    j.frame_bytes = frame_bytes
    j.count = 1
    j.limit = 0
    j.pieces[0].iov_base = vnet
    j.pieces[0].iov_len = VNET_HEADER_BYTES + frame_bytes
    # The cheap question first: most frames that cannot be joined have a finished checksum.
    if not vnet[0] & VNET_NEEDS_CSUM or vnet[1] or find_headers(frame, frame_bytes, flow):
        return
    j.limit = join_limit(j, vnet, frame)
    if j.limit == 0:
        return
    flow.segment_bytes = flow.payload_bytes
    j.l4_sum = pseudo_sum(frame, flow)
    if not flow.ipv6:
        j.id = (sm_load16be(frame + flow.l3 + 4) + 1) & 0xFFFF
        j.ip_sum = ip_sum_without(frame + flow.l3, flow.l4 - flow.l3)
    if flow.protocol == PROTOCOL_TCP:
        j.sequence = sm_load32be(frame + flow.l4 + 4) + flow.payload_bytes
        j.flags = frame[flow.l4 + 13] & ~TCP_CWR & 0xFF
        j.last_flags = 0


cdef inline bint same_ipv4(const joiner_t *j, const uint8_t *ip,
                           uint32_t ip_bytes) noexcept nogil:
    # All but length, id and checksum equal to the first frame's; those three as they must be. An
    # id that does not count up is refused even with DF, where the kernel's GRO takes a constant
    # one: the virtio header cannot say "do not count" to whoever cuts the super-frame again.
    cdef const uint8_t *head = j.head + j.flow.l3
    return (sm_load16(ip) == sm_load16(head)
            and sm_load16be(ip + 2) == ip_bytes
            and sm_load16be(ip + 4) == j.id
            and sm_load32(ip + 6) == sm_load32(head + 6)
            and sm_load16be(ip + 10) == (~fold_sum(<uint64_t>j.ip_sum + ip_bytes + j.id) & 0xFFFF)
            and memcmp(ip + 12, head + 12, j.flow.l4 - j.flow.l3 - 12) == 0)


cdef inline bint same_ipv6(const joiner_t *j, const uint8_t *ip,
                           uint32_t ip_bytes) noexcept nogil:
    # All but the length equal: addresses, class, flow label, hop limit, extension headers.
    cdef const uint8_t *head = j.head + j.flow.l3
    return (sm_load32(ip) == sm_load32(head)
            and sm_load16be(ip + 4) == ip_bytes - IPV6_BYTES
            and memcmp(ip + 6, head + 6, j.flow.l4 - j.flow.l3 - 6) == 0)


cdef inline bint same_tcp(const joiner_t *j, const uint8_t *l4, uint32_t l4_bytes) noexcept nogil:
    # Ports, acknowledgement, window, options and flags equal, the sequence number next.
    cdef const uint8_t *head = j.head + j.flow.l4
    return (sm_load32(l4) == sm_load32(head)
            and sm_load32be(l4 + 4) == j.sequence
            and sm_load32(l4 + 8) == sm_load32(head + 8)
            and l4[12] == head[12]
            and l4[13] & ~(TCP_PSH | TCP_FIN) == j.flags
            and sm_load16(l4 + 14) == sm_load16(head + 14)
            and sm_load16be(l4 + 16) == fold_sum(<uint64_t>j.l4_sum + l4_bytes)
            and memcmp(l4 + 18, head + 18, j.flow.header_bytes - j.flow.l4 - 18) == 0)


cdef inline bint same_udp(const joiner_t *j, const uint8_t *l4, uint32_t l4_bytes) noexcept nogil:
    return (sm_load32(l4) == sm_load32(j.head + j.flow.l4)
            and sm_load16be(l4 + 4) == l4_bytes
            and sm_load16be(l4 + 6) == fold_sum(<uint64_t>j.l4_sum + l4_bytes))


cdef inline bint continues(const joiner_t *j, const uint8_t *vnet,
                           size_t frame_bytes) noexcept nogil:
    # Whether the frame is what segment_next() of the super-frame so far would have come to next.
    # There is no need to look for its headers: they are where the first frame has them if all the
    # bytes that say so are equal.
    cdef const flow_t *flow = &j.flow
    cdef const uint8_t *frame = vnet + VNET_HEADER_BYTES
    cdef const uint8_t *head_vnet = j.head - VNET_HEADER_BYTES
    cdef uint32_t ip_bytes
    if (j.count >= j.limit or frame_bytes <= flow.header_bytes
            or frame_bytes - flow.header_bytes > flow.segment_bytes
            or j.frame_bytes + (frame_bytes - flow.header_bytes) > flow.l3 + MAX_IP_BYTES
            or sm_load16(vnet) != sm_load16(head_vnet)
            or sm_load32(vnet + 6) != sm_load32(head_vnet + 6)
            or memcmp(frame, j.head, flow.l3) != 0):
        return False
    ip_bytes = <uint32_t>(frame_bytes - flow.l3)
    if flow.ipv6:
        if not same_ipv6(j, frame + flow.l3, ip_bytes):
            return False
    elif not same_ipv4(j, frame + flow.l3, ip_bytes):
        return False
    if flow.protocol == PROTOCOL_TCP:
        return same_tcp(j, frame + flow.l4, <uint32_t>(frame_bytes - flow.l4))
    return same_udp(j, frame + flow.l4, <uint32_t>(frame_bytes - flow.l4))


cdef inline bint join_add(joiner_t *j, uint8_t *vnet, size_t frame_bytes) noexcept nogil:
    # True: the frame behind `vnet` (judged already, at least 14 bytes) is part of the train; it
    # stays where it is until join_finish() and the writev. False: it is not, nothing has changed;
    # finish the train, then begin the next with this frame. Any frame can begin a train.
    cdef const flow_t *flow = &j.flow
    cdef uint8_t *frame = vnet + VNET_HEADER_BYTES
    cdef uint32_t payload_bytes
    if j.count == 0:
        join_begin(j, vnet, frame_bytes)
        return True
    if not continues(j, vnet, frame_bytes):
        return False
    payload_bytes = <uint32_t>(frame_bytes - flow.header_bytes)
    j.pieces[j.count].iov_base = frame + flow.header_bytes
    j.pieces[j.count].iov_len = payload_bytes
    j.count += 1
    j.frame_bytes += payload_bytes
    j.id = (j.id + 1) & 0xFFFF
    if payload_bytes < flow.segment_bytes:
        j.limit = 0
    if flow.protocol == PROTOCOL_TCP:
        j.sequence += payload_bytes
        j.last_flags = frame[flow.l4 + 13] & (TCP_PSH | TCP_FIN)
        if j.last_flags:
            j.limit = 0
    return True


cdef inline int join_finish(joiner_t *j, iovec **pieces, size_t *frame_bytes) noexcept nogil:
    # How many frames the train has; 0: none. As many pieces are to be written with one writev: the
    # virtio header and the first frame, then payload only. `frame_bytes` is without the virtio
    # header. A frame that is alone is as it came. The pieces are valid until the next join_add(),
    # before which the joiner is empty.
    cdef flow_t *flow = &j.flow
    cdef uint8_t *vnet
    cdef uint32_t id
    cdef int count = j.count
    pieces[0] = j.pieces
    frame_bytes[0] = j.frame_bytes
    j.count = 0
    if count < 2:
        return count
    vnet = j.head - VNET_HEADER_BYTES
    id = 0 if flow.ipv6 else sm_load16be(j.head + flow.l3 + 4)
    write_lengths(j.head, flow, j.frame_bytes, id, j.ip_sum, j.l4_sum)
    vnet[1] = <uint8_t>gso_type(flow)
    if flow.protocol == PROTOCOL_TCP:
        if j.head[flow.l4 + 13] & TCP_CWR:
            vnet[1] |= GSO_ECN
        j.head[flow.l4 + 13] |= j.last_flags
    sm_store16(vnet + 2, <uint16_t>flow.header_bytes)
    sm_store16(vnet + 4, <uint16_t>flow.segment_bytes)
    return count
