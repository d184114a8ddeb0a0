# The way in over UDP: datagrams -> records -> frames written to the TAP, signals to the hub.
#
#   receive_batch -> split trains (UDP_GRO) -> open_datagram: key id, window, tag, window
#                 -> udp_frames.pxd | udp_pieces.pxd | signal
#
# Nothing here makes state, costs a public-key operation or gets an answer before the tag was
# right, and nobody but a STUN server that was asked is heard by the hub before that. All of it runs
# in the UDP thread, but for take_signal, expect_stun and await_batch, which are the
# hub's. The keys of the datagram under way are pinned (peers.pxd), but not while a frame is written
# to the device: that may take long.

from libc.stddef cimport size_t
from libc.string cimport memcpy
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .session cimport *
from .datagram cimport *
from .peers cimport *
from .plane cimport *
from .udp_frames cimport *
from .udp_pieces cimport *

cdef enum:
    STUN_FIRST_BYTE_MAX = 3     # RFC 7983
    STUN_BYTES = 20             # of a header: type, length, cookie, transaction id (RFC 8489, 5)
    STUN_COOKIE = 0x2112A442
    # What one session may have for the hub: probes, their answers, changes of address.
    MAX_SIGNALS_PER_SECOND = 200
    IDLE_WAIT_MS = 10
    # Nothing of a session is under way for so long.
    REST_S = 10
    RESTED_AT_ONCE = 64


cdef inline bint has_signal_room(const inbox_t *inbox, uint64_t session, int owner) noexcept nogil:
    # Whether one more may wait. Who is not authentic has half of the queue. Of each peer no more wait
    # than places are free then: the first one leaves half, the second half of the rest, and so on,
    # so that there is a place for who has none.
    cdef uint64_t first = sm_acquire(&inbox.signals_read)
    cdef uint64_t waiting = inbox.signals_written - first
    cdef uint64_t own = 0
    cdef const signal_t *signal
    cdef uint64_t number
    if session == 0:
        return waiting < MAX_SIGNALS // 2
    number = first
    while number != inbox.signals_written:
        signal = &inbox.signals[number % MAX_SIGNALS]
        own += signal.session != 0 and signal.owner == owner
        number += 1
    return own + waiting < <uint64_t>MAX_SIGNALS


cdef inline bint signal_hub(udp_t *udp, uint64_t session, uint32_t key_id, uint8_t inner_type,
                            const address_t *source, const uint8_t *body,
                            size_t body_bytes, uint64_t now_ns) noexcept nogil:
    # Queues something for the hub; False: it does not fit, and is counted.
    cdef inbox_t *inbox = udp.inbox
    cdef signal_t *signal = &inbox.signals[inbox.signals_written % MAX_SIGNALS]
    cdef int owner = owner_of(udp.port) if session else NO_OWNER
    if not has_signal_room(inbox, session, owner):
        refuse(udp, REFUSED_SIGNALS_FULL)
        return False
    signal.session = session
    signal.owner = owner
    signal.key_id = key_id
    signal.inner_type = inner_type
    signal.size = <uint32_t>body_bytes
    signal.came_ns = now_ns
    signal.source = source[0]
    memcpy(signal.bytes, body, body_bytes if body_bytes < SIGNAL_BYTES else SIGNAL_BYTES)
    sm_release(&inbox.signals_written, inbox.signals_written + 1)
    sm_fence()
    # What waits already the hub has been told of, unless it has just taken it.
    if sm_acquire(&inbox.signals_read) + 1 >= inbox.signals_written:
        signal_fd(udp.event_fd)
    return True


cdef inline bint signal_session(plane_t *plane, const epoch_t *epoch, uint8_t inner_type,
                                const address_t *source, const uint8_t *body, size_t body_bytes,
                                uint64_t now_ns) noexcept nogil:
    # As signal_hub, for an authentic record: no peer may take all of the hub's time.
    cdef session_t *session = epoch.session
    if now_ns // 1000000000 != session.signal_second:
        session.signal_second = now_ns // 1000000000
        session.signals = 0
    session.signals += 1
    if session.signals > MAX_SIGNALS_PER_SECOND:
        refuse(&plane.udp, REFUSED_SIGNALS_FULL)
        return False
    return signal_hub(&plane.udp, epoch.session_number, epoch.local_key_id, inner_type, source, body,
                      body_bytes, now_ns)


cdef inline void expect_stun(udp_t *udp, const uint8_t *request, size_t length) noexcept nogil:
    # The hub is about to send it.
    if length >= STUN_BYTES:
        sm_release(&udp.stun[udp.stun_requests % STUN_REQUESTS].id, sm_load64(request + 8))
        udp.stun_requests += 1


cdef inline bint answers_stun(udp_t *udp, const uint8_t *p, size_t length) noexcept nogil:
    # Whether it answers a request of ours, one of the first that do. The hub looks at the rest.
    cdef stun_t *asked
    cdef uint64_t id
    cdef int i
    if length < STUN_BYTES or sm_load32be(p + 4) != STUN_COOKIE:
        return False
    id = sm_load64(p + 8)
    for i in range(STUN_REQUESTS):
        asked = &udp.stun[i]
        if id and sm_acquire(&asked.id) == id:
            if asked.heard_id != id:
                asked.heard_id = id
                asked.answers = 0
            asked.answers += 1
            return asked.answers <= STUN_ANSWERS
    return False


cdef inline bint take_signal(udp_t *udp, signal_t *oldest) noexcept nogil:
    # For the hub; False: none.
    cdef inbox_t *inbox = udp.inbox
    if inbox == NULL or sm_acquire(&inbox.signals_written) == inbox.signals_read:
        return False
    oldest[0] = inbox.signals[inbox.signals_read % MAX_SIGNALS]
    sm_release(&inbox.signals_read, inbox.signals_read + 1)
    sm_fence()
    return True


cdef inline void begin_batch(udp_t *udp) noexcept nogil:
    udp.joiner.join_udp = sm_flag(&udp.super_frames)
    sm_release(&udp.batches, udp.batches + 1)
    sm_fence()


cdef inline void end_batch(udp_t *udp) noexcept nogil:
    sm_release(&udp.batches, udp.batches + 1)


cdef inline void await_batch(const udp_t *udp) noexcept nogil:
    # For the hub, which has taken the device away: until the UDP thread has seen that.
    cdef uint64_t batches
    sm_fence()
    batches = sm_acquire(&udp.batches)
    while batches & 1 and sm_acquire(&udp.batches) == batches:
        sched_yield()


cdef inline void take_record(plane_t *plane, const epoch_t *epoch, uint64_t counter,
                             const address_t *source, uint8_t *inner, size_t inner_bytes,
                             uint64_t now_ns) noexcept nogil:
    # An authentic record. Handshakes and control records are for WSS only (protocol section 1).
    if inner[0] == INNER_FRAME or inner[0] == INNER_OFFLOAD_FRAME:
        take_frame(plane, inner, inner_bytes)
    elif inner[0] == INNER_FRAGMENT:
        take_fragment(plane, epoch.local_key_id, counter, inner, inner_bytes, now_ns)
    elif inner[0] == INNER_PACKED:
        take_packed(plane, epoch.local_key_id, counter, inner, inner_bytes, now_ns)
    elif inner[0] in (INNER_PROBE, INNER_PROBE_ANSWER, INNER_CLOSE):
        signal_session(plane, epoch, inner[0], source, inner + 1, inner_bytes - 1, now_ns)
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
        if answers_stun(&plane.udp, p, length):
            signal_hub(&plane.udp, 0, 0, 0, source, p, length, now_ns)
        else:
            refuse(&plane.udp, REFUSED_UNKNOWN)
        return
    if length < AAD_BYTES + 1 + CHACHA_TAG_BYTES or sm_load32(p) != KIND_UDP:
        refuse(&plane.udp, REFUSED_UNKNOWN)
        return
    key_id = sm_load32(p + 4)
    counter = sm_load64(p + 8)
    epoch = pin_epoch(&plane.peers, &plane.peers.udp_pin, key_id)
    if epoch == NULL or sm_flag(&epoch.udp_closed):
        refuse(&plane.udp, REFUSED_KEY_ID)
        return
    if epoch_expired(epoch, now_ns):
        refuse(&plane.udp, REFUSED_EXPIRED)
        return
    if counter > SM_SEAL_LIMIT or not window_check(&epoch.udp_rx_window, counter):
        refuse(&plane.udp, REFUSED_REPLAY)
        return
    if (length < AAD_BYTES + 1 + tag_bytes(epoch.cipher)
            or aead_open(epoch.cipher, epoch.udp_rx_key, epoch.contexts, counter, p, AAD_BYTES,
                         p + AAD_BYTES, length - AAD_BYTES, p + AAD_BYTES) != 0):
        sm_count(&epoch.udp_failed_opens, 1)
        refuse(&plane.udp, REFUSED_FORGED)
        return
    if not window_mark(&epoch.udp_rx_window, counter):
        sm_count(&plane.udp.socket_errors[UDP_ENOBUFS], 1)
        return
    sm_count(&plane.udp.received.records, 1)
    session = epoch.session
    plane.udp.port = <port_t *>sm_published(&session.port)
    sm_release(&session.udp_last_opened_ns, now_ns)
    if not same_address(&session.udp_source, source):
        # Authentic from a new address: the hub proves the address before anything goes there.
        if signal_session(plane, epoch, INNER_PADDING, source, p, 0, now_ns):
            session.udp_source = source[0]
    take_record(plane, epoch, counter, source, p + AAD_BYTES,
                length - AAD_BYTES - tag_bytes(epoch.cipher), now_ns)


cdef inline void rest_windows(plane_t *plane, uint64_t now_ns) noexcept nogil:
    # Gives back what replay windows need of sessions that have rested; once a second, the next of them.
    cdef peers_t *peers = &plane.peers
    cdef inbox_t *inbox = plane.udp.inbox
    cdef uint32_t now_s = <uint32_t>(now_ns // 1000000000)
    cdef uint64_t reach = sm_acquire(&peers.reach)
    cdef uint64_t left = min(reach, <uint64_t>RESTED_AT_ONCE)
    cdef epoch_t *epoch
    if inbox.rested_s == now_s:
        return
    inbox.rested_s = now_s
    while left:
        left -= 1
        inbox.rested = (inbox.rested + 1) % <uint32_t>reach
        epoch = <epoch_t *>pin(&peers.udp_pin, &peers.receiving[inbox.rested])
        if (epoch != NULL and epoch.udp_rx_window.ring != NULL
                and now_ns - epoch.session.udp_last_opened_ns >= <uint64_t>REST_S * 1000000000):
            window_rest(&epoch.udp_rx_window)
    unpin(&peers.udp_pin)


cdef inline int receive_batch(plane_t *plane) noexcept nogil:
    # One recvmmsg and everything in it. How many messages came, or -errno.
    cdef inbox_t *inbox = plane.udp.inbox
    cdef msghdr *message
    cdef size_t at, step, length
    cdef uint64_t now_ns
    cdef int got, i
    got = recvmmsg(plane.udp.fd, inbox.messages, plane.udp.batch_messages, MSG_DONTWAIT, NULL)
    if got < 0:
        return -errno
    now_ns = boottime_ns()
    plane.udp.opener.now_s = <uint32_t>(now_ns // 1000000000)
    begin_batch(&plane.udp)
    for i in range(got):
        message = &inbox.messages[i].msg_hdr
        inbox.sources[i].length = message.msg_namelen
        message.msg_namelen = sizeof(sockaddr_storage)
        length = inbox.messages[i].msg_len
        step = sm_gro_size(message)
        message.msg_controllen = CONTROL_BYTES
        if step == 0:
            step = length
        at = 0
        while at < length:
            if step > length - at:
                step = length - at
            inbox.spare_bytes = 0 if at + step < length else INBOX_MESSAGE_BYTES - length
            open_datagram(plane, inbox.bytes[i] + at, step, &inbox.sources[i], now_ns)
            at += step
    keep_tail(plane, now_ns)
    flush_train(plane)
    unpin(&plane.peers.udp_pin)
    end_batch(&plane.udp)
    return got


cdef inline void run_inbound_udp(plane_t *plane) noexcept nogil:
    # The UDP thread, until it is stopped. No error of the socket ends it.
    cdef pollfd fds[2]
    cdef int got
    fds[0].fd = plane.udp.fd
    fds[1].fd = plane.udp.stop_fd
    fds[0].events = fds[1].events = POLLIN
    while True:
        if poll(fds, 2, -1) < 0:
            if errno != EINTR:
                sm_count(&plane.udp.socket_errors[udp_error_index(errno)], 1)
                poll(NULL, 0, IDLE_WAIT_MS)
            continue
        if fds[1].revents:
            return
        # Before it is heard who has rested until now.
        rest_windows(plane, boottime_ns())
        got = receive_batch(plane)
        if got < 0 and got != -EAGAIN and got != -EINTR:
            # What ICMP reported for datagrams that we sent, or a network that went away.
            sm_count(&plane.udp.socket_errors[udp_error_index(-got)], 1)
            poll(NULL, 0, IDLE_WAIT_MS)
