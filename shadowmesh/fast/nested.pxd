# Records of this tunnel inside of frames of this tunnel.
#
#   Ethernet | 0 to 2 VLAN tags | IPv4 or IPv6 | UDP | u8 0x80, 3 zero | u32 key_id | ...
#
# A datagram of ours that comes out of the TAP was routed into the tunnel that it carries; sealed
# again it would come back, longer each time. One that is in a frame of the peer's is the same, seen
# from the other side. Both are dropped, so that no route and no stack of interfaces, known or not,
# makes a loop, and no probe is answered through the tunnel that it is for. A stranger's chance to hit
# a key id is 2^-32 per frame, and loses that frame.

from libc.stddef cimport size_t
from .base cimport *
from .headers cimport *
from .session cimport *
from .peers cimport *
from .port cimport *

cdef enum:
    TAGGED_BYTES = 8            # of the header of a datagram: kind and key id
    FRAGMENT_OFFSET = 0x1FFF


cdef inline const uint8_t *udp_payload(const uint8_t *frame, size_t frame_bytes) noexcept nogil:
    # What a UDP datagram in a frame begins with, at least TAGGED_BYTES; NULL: it is none, or not
    # of a form that our own socket sends (no IPv6 extension headers).
    cdef size_t at = MIN_FRAME
    cdef uint32_t ethertype
    if frame_bytes < MIN_FRAME + IPV4_BYTES + UDP_BYTES + TAGGED_BYTES:
        return NULL
    ethertype = sm_load16be(frame + 12)
    while at < FRAME_OVERHEAD and (ethertype == TYPE_VLAN or ethertype == TYPE_PROVIDER_VLAN):
        ethertype = sm_load16be(frame + at + 2)
        at += 4
    if ethertype == TYPE_IPV4:
        if (frame_bytes < at + IPV4_BYTES or frame[at + 9] != PROTOCOL_UDP
                or sm_load16be(frame + at + 6) & FRAGMENT_OFFSET):
            return NULL
        at += (frame[at] & 15) * 4
    elif ethertype == TYPE_IPV6:
        if frame_bytes < at + IPV6_BYTES or frame[at + 6] != PROTOCOL_UDP:
            return NULL
        at += IPV6_BYTES
    else:
        return NULL
    at += UDP_BYTES
    return frame + at if frame_bytes >= at + TAGGED_BYTES else NULL


cdef inline bint holds_sent(const epoch_t *epoch, const uint8_t *frame,
                            size_t frame_bytes) noexcept nogil:
    # Whether a frame from the TAP is a datagram that was sealed under these keys.
    cdef const uint8_t *tagged = udp_payload(frame, frame_bytes)
    return (tagged != NULL and sm_load32(tagged) == KIND_UDP
            and sm_load32(tagged + 4) == epoch.remote_key_id)


cdef inline bint holds_sent_to_any(const peers_t *peers, const uint8_t *frame,
                                   size_t frame_bytes) noexcept nogil:
    # The same under the keys of any peer: only what looks like one of ours is compared with all.
    cdef const uint8_t *tagged = udp_payload(frame, frame_bytes)
    cdef const port_t *port
    if tagged == NULL or sm_load32(tagged) != KIND_UDP:
        return False
    for i in range(MAX_PORTS):
        port = <const port_t *>sm_published(&peers.ports[i])
        if port != NULL and sm_counted(&port.remote_key_id) == sm_load32(tagged + 4) != 0:
            return True
    return False


cdef inline bint holds_received(const peers_t *peers, const uint8_t *frame,
                                size_t frame_bytes) noexcept nogil:
    # Whether a frame from the peer is a datagram that was sealed for us.
    cdef const uint8_t *tagged = udp_payload(frame, frame_bytes)
    return (tagged != NULL and sm_load32(tagged) == KIND_UDP
            and sm_counted(&peers.key_ids[epoch_index(sm_load32(tagged + 4))]) == sm_load32(tagged + 4)
            and sm_load32(tagged + 4) != 0)
