# The last step of every frame from the peer: judged, then written to the TAP.
#
# Runs on the hub (frames from WSS) and in the UDP thread; each has its own counters.

from libc.stddef cimport size_t
from libc.string cimport memset
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .admit cimport MAX_SEGMENTS, NO_SEGMENTS, admit_offload
from .nested cimport *
from .session cimport *
from .tap cimport *
from .plane cimport *
from .datagram cimport iovec
from .capture cimport *
from .steer cimport *
from .switch cimport switch_in


cdef inline int tap_verdict(ssize_t written) noexcept nogil:
    # KEEP, or the DROP_ reason of the kernel's answer in errno.
    if written >= 0:
        return KEEP
    if errno == EAGAIN or errno == ENOBUFS:
        return DROP_TAP_FULL
    if errno == EIO:
        return DROP_TAP_DOWN
    if errno == EBADFD or errno == EBADF or errno == ENODEV:
        return DROP_TAP_GONE
    return DROP_TAP_REFUSED


cdef inline int write_tap(const tap_t *tap, int queue, const uint8_t *vnet,
                          size_t length) noexcept nogil:
    # `vnet` points at the virtio header, the frame follows. KEEP or a DROP_ reason.
    cdef int tap_fd = sm_flag(&tap.queues[queue].tap_fd)
    cdef ssize_t written
    if tap_fd < 0:
        return DROP_TAP_GONE
    while True:
        written = write(tap_fd, vnet, length)
        if written >= 0 or errno != EINTR:
            return tap_verdict(written)


cdef inline int admit_inner(const tap_t *tap, uint8_t *inner, size_t inner_bytes, uint8_t **vnet,
                            size_t *frame_bytes, uint32_t most_segments) noexcept nogil:
    # For a record of type frame or offload frame: finds the virtio header, which may be written to
    # the device then; for a plain frame an empty one goes into the 9 bytes in front of `inner`.
    # KEEP or a DROP_ reason.
    if inner[0] == INNER_FRAME:
        frame_bytes[0] = inner_bytes - 1
        vnet[0] = inner + 1 - VNET_HEADER_BYTES
        memset(vnet[0], 0, VNET_HEADER_BYTES)
        return check_frame(inner + 1, inner_bytes - 1, sm_flag(&tap.mtu_bytes))
    vnet[0] = inner + 1
    frame_bytes[0] = 0
    if inner_bytes < 1 + VNET_HEADER_BYTES + MIN_FRAME:
        return DROP_RUNT
    frame_bytes[0] = inner_bytes - 1 - VNET_HEADER_BYTES
    return admit_offload(vnet[0], vnet[0] + VNET_HEADER_BYTES, frame_bytes[0],
                         sm_flag(&tap.mtu_bytes), most_segments)


cdef inline void count_delivery(const opener_t *opener, port_t *port, int queue, int verdict,
                                uint64_t frames, uint64_t total_bytes) noexcept nogil:
    # `port`: whose frames; NULL: nobody's.
    cdef received_t *counters = opener.received
    cdef port_opened_t *its = NULL if port == NULL else &port.openers[opener.who].counted
    if verdict == KEEP:
        sm_count(&counters.frames_written[queue], frames)
        sm_count(&counters.bytes_written, total_bytes)
        if its != NULL:
            sm_count(&its.frames, frames)
            sm_count(&its.bytes, total_bytes)
    else:
        sm_count(&counters.dropped[verdict], frames)
        if its != NULL:
            sm_count(&its.dropped[verdict], frames)


cdef inline void deliver_frame(plane_t *plane, opener_t *opener, port_t *port, uint8_t *inner,
                               size_t inner_bytes, uint32_t most_segments) noexcept nogil:
    # inner[0] is the type; 9 bytes in front of it may be overwritten. `port`: whose frame it is;
    # NULL: nobody's.
    cdef uint8_t *vnet
    cdef size_t frame_bytes
    cdef int queue = 0
    cdef int verdict = admit_inner(&plane.tap, inner, inner_bytes, &vnet, &frame_bytes,
                                   most_segments)
    cdef iovec whole
    sm_count(&opener.received.frames_opened, 1)
    if verdict == KEEP and port == NULL:
        verdict = DROP_NOT_CONNECTED
    if verdict == KEEP and holds_received(&plane.peers, vnet + VNET_HEADER_BYTES, frame_bytes):
        verdict = DROP_OWN_DATAGRAM
    if verdict == KEEP:
        verdict = switch_in(plane, opener, port, vnet + VNET_HEADER_BYTES, frame_bytes)
    if verdict == KEEP:
        queue = steer_in(&plane.tap, vnet + VNET_HEADER_BYTES, frame_bytes)
        verdict = write_tap(&plane.tap, queue, vnet, VNET_HEADER_BYTES + frame_bytes)
    if verdict == KEEP and captures(&plane.capture, port):
        whole.iov_base = vnet
        whole.iov_len = VNET_HEADER_BYTES + frame_bytes
        capture_frame(&plane.capture, CAPTURE_INBOUND, &whole, 1, VNET_HEADER_BYTES)
    count_delivery(opener, port, queue, verdict, 1, frame_bytes)
