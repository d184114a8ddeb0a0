# The way in over UDP: datagrams -> records -> frames written to the TAP, signals to the hub.
#
#   receive_batch -> split trains (UDP_GRO) -> open_datagram: key id, window, tag, window
#                 -> join, writev | fragments | signal
#
# Nothing here makes state, costs a public-key operation or gets an answer before the tag was
# right. All of it runs in the UDP thread, but for next_signal.

from libc.stddef cimport size_t
from libc.string cimport memcpy, memmove, memset
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .nested cimport *
from .session cimport *
from .datagram cimport *
from .peers cimport *
from .plane cimport *
from .deliver cimport *
from .steer cimport *
from .offload cimport *
from .capture cimport *

cdef enum:
    STUN_FIRST_BYTE_MAX = 3     # RFC 7983
    IDLE_WAIT_MS = 10

cdef extern from "compat.h" nogil:
    const uint64_t SM_PARTIAL_LIFETIME_NS


cdef inline void refuse(udp_t *udp, int reason) noexcept nogil:
    sm_count(&udp.received.refused[reason], 1)


cdef inline void signal_hub(udp_t *udp, int session, uint32_t key_id, uint8_t inner_type,
                            const address_t *source, const uint8_t *body,
                            size_t body_bytes, uint64_t now_ns) noexcept nogil:
    # Queues something for the hub; what does not fit is dropped and counted. Half of the queue is
    # kept for what is authentic: anybody can send datagrams that look like STUN.
    cdef inbox_t *inbox = udp.inbox
    cdef signal_t *signal
    if inbox.signal_count >= <uint32_t>(MAX_SIGNALS // 2 if session < 0 else MAX_SIGNALS):
        refuse(udp, REFUSED_SIGNALS_FULL)
        return
    signal = &inbox.signals[(inbox.signal_first + inbox.signal_count) % MAX_SIGNALS]
    inbox.signal_count += 1
    signal.session = session
    signal.key_id = key_id
    signal.inner_type = inner_type
    signal.size = <uint32_t>body_bytes
    signal.came_ns = now_ns
    signal.source = source[0]
    memcpy(signal.bytes, body, body_bytes if body_bytes < SIGNAL_BYTES else SIGNAL_BYTES)
    if inbox.signal_count == 1:
        signal_fd(udp.event_fd)


cdef inline signal_t *next_signal(inbox_t *inbox) noexcept nogil:
    # Takes the oldest one, NULL: none. It stays valid as long as the caller, the hub, has rx_lock.
    cdef signal_t *signal = &inbox.signals[inbox.signal_first]
    if inbox.signal_count == 0:
        return NULL
    inbox.signal_first = (inbox.signal_first + 1) % MAX_SIGNALS
    inbox.signal_count -= 1
    return signal


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
    queue = steer_in(&plane.tap, <const uint8_t *>pieces[0].iov_base + VNET_HEADER_BYTES,
                     pieces[0].iov_len - VNET_HEADER_BYTES)
    tap_fd = plane.tap.queues[queue].tap_fd
    if tap_fd >= 0:
        written = writev(tap_fd, pieces, frames)
        while written < 0 and errno == EINTR:
            written = writev(tap_fd, pieces, frames)
        verdict = tap_verdict(written)
    if verdict == KEEP and capture_on(&plane.capture):
        capture_frame(&plane.capture, CAPTURE_INBOUND, pieces, frames, VNET_HEADER_BYTES)
    count_delivery(&plane.udp.received, queue, verdict, frames, frame_bytes)


cdef inline void take_frame(plane_t *plane, uint8_t *inner, size_t inner_bytes) noexcept nogil:
    # Joins a frame to the train of its flow, or ends that train and begins the next with it.
    # Never reorders: what cannot be joined goes out behind what came before.
    cdef uint8_t *vnet
    cdef size_t frame_bytes
    cdef int verdict = admit_inner(&plane.tap, inner, inner_bytes, &vnet, &frame_bytes,
                                   NO_SEGMENTS)
    sm_count(&plane.udp.received.frames_opened, 1)
    if verdict == KEEP and holds_received(&plane.peers, vnet + VNET_HEADER_BYTES, frame_bytes):
        verdict = DROP_OWN_DATAGRAM
    if verdict != KEEP:
        count_delivery(&plane.udp.received, 0, verdict, 1, 0)
        return
    if not join_add(&plane.udp.joiner, vnet, frame_bytes):
        flush_train(plane)
        join_add(&plane.udp.joiner, vnet, frame_bytes)
    if plane.udp.no_joining:
        flush_train(plane)


cdef inline partial_t *find_partial(udp_t *udp, uint32_t key_id, uint16_t id, uint8_t total,
                                    uint64_t first_counter, uint64_t now_ns) noexcept nogil:
    # The partial frame of a fragment; a new one in a free or the oldest seat when there is none.
    cdef partial_t *partial
    cdef partial_t *seat = NULL
    cdef int i
    for i in range(MAX_PARTIALS):
        partial = &udp.inbox.partials[i]
        if partial.key_id and now_ns - partial.born_ns > SM_PARTIAL_LIFETIME_NS:
            partial.key_id = 0
            refuse(udp, REFUSED_FRAGMENT)
        if (partial.key_id == key_id and partial.id == id and partial.total == total
                and partial.first_counter == first_counter):
            return partial
        if partial.key_id == 0:
            if seat == NULL or seat.key_id:
                seat = partial
        elif seat == NULL or (seat.key_id and partial.born_ns < seat.born_ns):
            seat = partial
    if seat.key_id:
        refuse(udp, REFUSED_FRAGMENT)
    seat.key_id = key_id
    seat.id = id
    seat.total = total
    seat.held = 0
    seat.mask = 0
    seat.first_counter = first_counter
    seat.born_ns = now_ns
    return seat


cdef inline void take_fragment(plane_t *plane, uint32_t key_id, uint64_t counter,
                               const uint8_t *inner, size_t inner_bytes,
                               uint64_t now_ns) noexcept nogil:
    # Keeps a slice; delivers the frame when it was the last missing one.
    cdef size_t slice_bytes = inner_bytes - FRAGMENT_HEADER_BYTES
    cdef uint8_t index, total
    cdef partial_t *partial
    cdef uint8_t *whole
    cdef size_t length = 0
    cdef int i
    if inner_bytes <= FRAGMENT_HEADER_BYTES:
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    index = inner[3]
    total = inner[4]
    if (total < 2 or total > MAX_FRAGMENTS_PER_FRAME or index >= total
            or slice_bytes > MAX_SLICE_BYTES or counter < index):
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    # The replay window let this counter through once, so no slice comes twice.
    partial = find_partial(&plane.udp, key_id, sm_load16(inner + 1), total, counter - index, now_ns)
    memcpy(partial.bytes + MAX_SLICE_BYTES * index, inner + FRAGMENT_HEADER_BYTES, slice_bytes)
    partial.lengths[index] = <uint16_t>slice_bytes
    partial.held += 1
    if partial.held < total:
        return
    partial.key_id = 0
    whole = partial.bytes
    for i in range(total):
        if length != <size_t>(MAX_SLICE_BYTES * i):
            memmove(whole + length, whole + MAX_SLICE_BYTES * i, partial.lengths[i])
        length += partial.lengths[i]
    if whole[0] != INNER_FRAME and whole[0] != INNER_OFFLOAD_FRAME:
        refuse(&plane.udp, REFUSED_FRAGMENT)
        return
    # The slices are reused at once, so the frame cannot wait for others.
    flush_train(plane)
    deliver_frame(plane, &plane.udp.received, whole, length, NO_SEGMENTS)


cdef inline void take_record(plane_t *plane, const epoch_t *epoch, uint64_t counter,
                             const address_t *source, uint8_t *inner, size_t inner_bytes,
                             uint64_t now_ns) noexcept nogil:
    # An authentic record. Handshakes and control records are for WSS only (protocol section 1).
    if inner[0] == INNER_FRAME or inner[0] == INNER_OFFLOAD_FRAME:
        take_frame(plane, inner, inner_bytes)
    elif inner[0] == INNER_FRAGMENT:
        take_fragment(plane, epoch.local_key_id, counter, inner, inner_bytes, now_ns)
    elif inner[0] in (INNER_PROBE, INNER_PROBE_ANSWER, INNER_CLOSE):
        signal_hub(&plane.udp, epoch.session, epoch.local_key_id, inner[0], source,
                   inner + 1, inner_bytes - 1, now_ns)
    elif inner[0] != INNER_PADDING:
        refuse(&plane.udp, REFUSED_TYPE)


cdef inline void open_datagram(plane_t *plane, uint8_t *p, size_t length,
                               const address_t *source, uint64_t now_ns) noexcept nogil:
    # Unknown key id, old counter, failed AEAD: drop and count, nothing else (protocol section 6).
    cdef uint32_t key_id
    cdef uint64_t counter
    cdef epoch_t *epoch
    cdef session_t *session
    if length and p[0] <= STUN_FIRST_BYTE_MAX:
        signal_hub(&plane.udp, -1, 0, 0, source, p, length, now_ns)
        return
    if length < AAD_BYTES + 1 + CHACHA_TAG_BYTES or sm_load32(p) != KIND_UDP:
        refuse(&plane.udp, REFUSED_UNKNOWN)
        return
    key_id = sm_load32(p + 4)
    counter = sm_load64(p + 8)
    epoch = &plane.peers.epochs[key_id & 0xFF]
    if epoch.state != EPOCH_INSTALLED or epoch.local_key_id != key_id:
        refuse(&plane.udp, REFUSED_KEY_ID)
        return
    if epoch_expired(epoch, now_ns):
        refuse(&plane.udp, REFUSED_EXPIRED)
        return
    if counter > SM_SEAL_LIMIT or not window_check(&epoch.udp_rx_window, counter):
        refuse(&plane.udp, REFUSED_REPLAY)
        return
    if (length < AAD_BYTES + 1 + tag_bytes(epoch.cipher)
            or aead_open(epoch.cipher, epoch.udp_rx_key, counter, p, AAD_BYTES, p + AAD_BYTES,
                         length - AAD_BYTES, p + AAD_BYTES) != 0):
        epoch.udp_failed_opens += 1
        refuse(&plane.udp, REFUSED_FORGED)
        return
    window_mark(&epoch.udp_rx_window, counter)
    sm_count(&plane.udp.received.records, 1)
    session = &plane.peers.sessions[epoch.session]
    session.udp_last_opened_ns = now_ns
    if not same_address(&session.udp_source, source):
        # Authentic from a new address: the hub proves the address before anything goes there.
        session.udp_source = source[0]
        signal_hub(&plane.udp, epoch.session, key_id, INNER_PADDING, source, p, 0, now_ns)
    take_record(plane, epoch, counter, source, p + AAD_BYTES,
                length - AAD_BYTES - tag_bytes(epoch.cipher), now_ns)


cdef inline int receive_batch(plane_t *plane) noexcept nogil:
    # One recvmmsg and everything in it. How many messages came, or -errno.
    cdef inbox_t *inbox = plane.udp.inbox
    cdef msghdr *message
    cdef size_t at, step, length
    cdef uint64_t now_ns
    cdef int got, i
    for i in range(INBOX_MESSAGES):
        inbox.vectors[i].iov_base = inbox.bytes[i]
        inbox.vectors[i].iov_len = INBOX_MESSAGE_BYTES
        memset(&inbox.sources[i], 0, sizeof(address_t))
        message = &inbox.messages[i].msg_hdr
        message.msg_name = &inbox.sources[i].storage
        message.msg_namelen = sizeof(sockaddr_storage)
        message.msg_iov = &inbox.vectors[i]
        message.msg_iovlen = 1
        message.msg_control = inbox.controls[i]
        message.msg_controllen = 64
        message.msg_flags = 0
    got = recvmmsg(plane.udp.fd, inbox.messages, plane.udp.batch_messages, MSG_DONTWAIT, NULL)
    if got < 0:
        return -errno
    now_ns = boottime_ns()
    pthread_mutex_lock(&plane.rx_lock)
    for i in range(got):
        message = &inbox.messages[i].msg_hdr
        inbox.sources[i].length = message.msg_namelen
        length = inbox.messages[i].msg_len
        step = sm_gro_size(message)
        if step == 0:
            step = length
        at = 0
        while at < length:
            if step > length - at:
                step = length - at
            open_datagram(plane, inbox.bytes[i] + at, step, &inbox.sources[i], now_ns)
            at += step
    flush_train(plane)
    pthread_mutex_unlock(&plane.rx_lock)
    return got


cdef inline void run_inbound_udp(plane_t *plane) noexcept nogil:
    # The UDP thread, until it is stopped. No error of the socket ends it.
    cdef pollfd fds[2]
    cdef int got
    fds[0].fd = plane.udp.fd
    fds[1].fd = plane.udp.stop_fd
    fds[0].events = fds[1].events = POLLIN
    while True:
        if poll(fds, 2, -1) < 0 and errno != EINTR:
            return
        if fds[1].revents:
            return
        got = receive_batch(plane)
        if got < 0 and got != -EAGAIN and got != -EINTR:
            # What ICMP reported for datagrams that we sent, or a network that went away.
            sm_count(&plane.udp.received.socket_errors[udp_error_index(-got)], 1)
            poll(NULL, 0, IDLE_WAIT_MS)
