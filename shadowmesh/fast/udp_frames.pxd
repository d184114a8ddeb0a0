# Frames that came over UDP, on their way to the device: judged, joined to super-frames, written.
#
#   take_frame -> train of a flow -> flush_train: one writev
#
# All of it runs in the UDP thread. A frame stays where it was opened until its train is written, and
# no key is pinned while that is done: it may take long.

from libc.stddef cimport size_t
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .nested cimport *
from .datagram cimport *
from .peers cimport *
from .plane cimport *
from .deliver cimport *
from .steer cimport *
from .switch cimport switch_in
from .offload cimport *
from .capture cimport *
from .tap cimport *

cdef enum:
    NO_OWNER = -1


cdef inline void refuse(udp_t *udp, int reason) noexcept nogil:
    sm_count(&udp.refused[reason], 1)


cdef inline int owner_of(const port_t *port) noexcept nogil:
    # Of what is kept: a number of each peer; NO_OWNER for all sessions that are nobody's.
    return NO_OWNER if port == NULL else port.number


cdef inline void flush_train(plane_t *plane) noexcept nogil:
    # Writes the frames that were joined so far, if any, as one super-frame.
    cdef iovec *pieces
    cdef size_t frame_bytes
    cdef ssize_t written
    cdef int queue, tap_fd
    cdef int verdict = DROP_TAP_GONE
    cdef int frames = join_finish(&plane.udp.joiner, &pieces, &frame_bytes)
    if frames == 0:
        return
    unpin(&plane.peers.udp_pin)
    queue = steer_in(&plane.tap, <const uint8_t *>pieces[0].iov_base + VNET_HEADER_BYTES,
                     pieces[0].iov_len - VNET_HEADER_BYTES)
    tap_fd = sm_flag(&plane.tap.queues[queue].tap_fd)
    if tap_fd >= 0:
        written = writev(tap_fd, pieces, frames)
        while written < 0 and errno == EINTR:
            written = writev(tap_fd, pieces, frames)
        verdict = tap_verdict(written)
    if verdict == KEEP and captures(&plane.capture, plane.udp.joined_port):
        capture_frame(&plane.capture, CAPTURE_INBOUND, pieces, frames, VNET_HEADER_BYTES)
    count_delivery(&plane.udp.opener, plane.udp.joined_port, queue, verdict, frames, frame_bytes)


cdef inline void take_frame(plane_t *plane, uint8_t *inner, size_t inner_bytes) noexcept nogil:
    # Joins a frame to the train of its flow, or ends that train and begins the next with it.
    # Never reorders: what cannot be joined goes out behind what came before.
    cdef port_t *port = plane.udp.port
    cdef uint8_t *vnet
    cdef size_t frame_bytes
    cdef int verdict = admit_inner(&plane.tap, inner, inner_bytes, &vnet, &frame_bytes,
                                   NO_SEGMENTS)
    sm_count(&plane.udp.received.frames_opened, 1)
    if verdict == KEEP and port == NULL:
        verdict = DROP_NOT_CONNECTED
    if verdict == KEEP and holds_received(&plane.peers, vnet + VNET_HEADER_BYTES, frame_bytes):
        verdict = DROP_OWN_DATAGRAM
    if verdict == KEEP:
        verdict = switch_in(plane, &plane.udp.opener, port, vnet + VNET_HEADER_BYTES, frame_bytes)
    if verdict != KEEP:
        count_delivery(&plane.udp.opener, port, 0, verdict, 1, 0)
        return
    if port != plane.udp.joined_port or not join_add(&plane.udp.joiner, vnet, frame_bytes):
        flush_train(plane)
        plane.udp.joined_port = port
        join_add(&plane.udp.joiner, vnet, frame_bytes)
    if plane.udp.no_joining:
        flush_train(plane)
