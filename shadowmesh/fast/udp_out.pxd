# The way out over UDP: slots -> sealed datagrams in trains -> sendmmsg.
#
#   seal_slots (under tx_lock): frame, its segments or its fragments -> outbox
#    send_outbox (without): trains -> socket
#
# Datagrams of one size that follow each other are one train: one system call entry, cut by the
# kernel or the network card (UDP_SEGMENT). Counters may have gaps on UDP, so a datagram that the
# socket does not take is dropped, sealed as it is.

from libc.stddef cimport size_t
from libc.string cimport memset
from .base cimport *
from .frame cimport *
from .session cimport *
from .datagram cimport *
from .plane cimport *
from .offload cimport *

cdef enum:
    # The socket's buffer is full: a moment for the card to take some of it, then the train goes.
    SEND_WAIT_MS = 20
    NO_ROOM = -2                # beside KEEP and the DROP_ reasons


cdef inline bint outbox_has_room(const outbox_t *outbox, size_t trains,
                                 size_t total_bytes) noexcept nogil:
    return (outbox.used + total_bytes <= OUTBOX_BYTES
            and outbox.count + trains <= OUTBOX_TRAINS)


cdef inline void append_datagram(outbox_t *outbox, size_t length, bint ends_frame) noexcept nogil:
    # Takes the `length` bytes that were written at the end of the outbox into a train.
    cdef train_t *train = NULL
    if outbox.count:
        train = &outbox.trains[outbox.count - 1]
    if (train == NULL or train.closed or length > train.segment_bytes
            or train.datagrams == TRAIN_DATAGRAMS or train.length + length > TRAIN_BYTES):
        train = &outbox.trains[outbox.count]
        outbox.count += 1
        train.bytes = outbox.bytes + outbox.used
        train.length = 0
        train.segment_bytes = <uint16_t>length
        train.datagrams = 0
        train.frames = 0
        train.closed = 0
    train.length += length
    train.datagrams += 1
    train.frames += 1 if ends_frame else 0
    train.closed = length < train.segment_bytes
    outbox.used += length


cdef inline void seal_whole(outbox_t *outbox, epoch_t *epoch, const uint8_t *inner,
                            size_t inner_bytes) noexcept nogil:
    append_datagram(outbox,
                    seal_datagram(epoch, inner, inner_bytes, outbox.bytes + outbox.used), True)


cdef inline size_t fragments_of(const session_t *session, const epoch_t *epoch,
                                size_t inner_bytes) noexcept nogil:
    # How many datagrams a frame takes that does not fit the path whole.
    cdef size_t slice_bytes = (session.udp_payload_bytes - AAD_BYTES - tag_bytes(epoch.cipher)
                               - FRAGMENT_HEADER_BYTES)
    if slice_bytes > MAX_SLICE_BYTES:
        slice_bytes = MAX_SLICE_BYTES
    return (inner_bytes + slice_bytes - 1) // slice_bytes


cdef inline int seal_fragments(outbox_t *outbox, session_t *session, epoch_t *epoch,
                               uint8_t *inner, size_t inner_bytes,
                               bint ends_frame) noexcept nogil:
    # A frame that does not fit the path: fragments with consecutive counters (protocol section
    # 6). Each fragment's header is written in front of its slice, over what was sealed before;
    # 5 bytes in front of `inner` are writable. KEEP, NO_ROOM or a DROP_ reason. `ends_frame`: it
    # is a frame of the device's, or the last one of its super-frame.
    cdef size_t overhead = AAD_BYTES + tag_bytes(epoch.cipher) + FRAGMENT_HEADER_BYTES
    cdef size_t total = fragments_of(session, epoch, inner_bytes)
    cdef size_t slice_bytes, taken
    cdef size_t done = 0
    cdef uint8_t index = 0
    cdef uint8_t *header
    if total > MAX_FRAGMENTS_PER_FRAME:
        return DROP_TOO_LONG
    # Even slices make one train.
    slice_bytes = (inner_bytes + total - 1) // total
    if not outbox_has_room(outbox, total, total * (slice_bytes + overhead)):
        return NO_ROOM
    while done < inner_bytes:
        taken = inner_bytes - done
        if taken > slice_bytes:
            taken = slice_bytes
        header = inner + done - FRAGMENT_HEADER_BYTES
        header[0] = INNER_FRAGMENT
        sm_store16(header + 1, session.fragment_id)
        header[3] = index
        header[4] = <uint8_t>total
        done += taken
        index += 1
        append_datagram(
            outbox,
            seal_datagram(epoch, header, FRAGMENT_HEADER_BYTES + taken,
                          outbox.bytes + outbox.used),
            ends_frame and done == inner_bytes)
    session.fragment_id += 1
    return KEEP


cdef inline int seal_segments(outbox_t *outbox, session_t *session, epoch_t *epoch,
                              const slot_t *slot) noexcept nogil:
    # A super-frame: cut into frames that fit the path, each sealed before the next one's headers
    # are written over its end (offload.pxd). KEEP, NO_ROOM with nothing sealed, or a DROP_ reason:
    # what became of the last one.
    cdef segmenter_t segmenter
    cdef size_t overhead = AAD_BYTES + tag_bytes(epoch.cipher)
    cdef size_t room = session.udp_payload_bytes - overhead
    cdef uint8_t *frame
    cdef uint8_t *inner
    cdef size_t frame_bytes, inner_bytes, needed, trains
    cdef size_t pieces = 1
    cdef int verdict = KEEP
    cdef int segments = segment_begin(
        &segmenter, slot.inner + 1, slot.inner_bytes - 1 - VNET_HEADER_BYTES,
        <uint32_t>(room - 1 - VNET_HEADER_BYTES), False)
    if segments < 0:
        # Headers that we do not cut through: rare, and small enough for fragments or lost.
        return seal_fragments(outbox, session, epoch, slot.inner, slot.inner_bytes, True)
    # Segments of one size are few trains. A UDP datagram keeps its size whatever the path, so it
    # may need fragments, which are a train of their own.
    inner_bytes = (1 + VNET_HEADER_BYTES + segmenter.flow.header_bytes
                   + segmenter.segment_bytes)
    if inner_bytes > room:
        pieces = fragments_of(session, epoch, inner_bytes)
    needed = segments * (inner_bytes + pieces * (overhead + FRAGMENT_HEADER_BYTES))
    trains = needed // TRAIN_BYTES + 2 + (segments if pieces > 1 else segments // TRAIN_DATAGRAMS)
    if not outbox_has_room(outbox, trains, needed):
        return NO_ROOM
    while segment_next(&segmenter, &frame, &frame_bytes):
        inner = frame - VNET_HEADER_BYTES - 1
        inner[0] = INNER_OFFLOAD_FRAME
        inner_bytes = 1 + VNET_HEADER_BYTES + frame_bytes
        segments -= 1
        if inner_bytes > room:
            verdict = seal_fragments(outbox, session, epoch, inner, inner_bytes, segments == 0)
        else:
            verdict = KEEP
            append_datagram(
                outbox, seal_datagram(epoch, inner, inner_bytes, outbox.bytes + outbox.used),
                segments == 0)
    return verdict


cdef inline int seal_slots(plane_t *plane, session_t *session, slot_t *slots,
                           int count) noexcept nogil:
    # Seals slots into the outbox until it is full; how many. Under tx_lock; the session has
    # sending keys and a UDP address.
    cdef epoch_t *epoch = &plane.epochs[session.tx_epoch]
    cdef outbox_t *outbox = plane.outbox
    cdef size_t overhead = AAD_BYTES + tag_bytes(epoch.cipher)
    cdef int i, verdict
    for i in range(count):
        if slots[i].inner[0] == INNER_OFFLOAD_FRAME and slots[i].inner[2] & ~GSO_ECN:
            verdict = seal_segments(outbox, session, epoch, &slots[i])
        elif overhead + slots[i].inner_bytes > session.udp_payload_bytes:
            verdict = seal_fragments(outbox, session, epoch, slots[i].inner, slots[i].inner_bytes,
                                     True)
        elif outbox_has_room(outbox, 1, overhead + slots[i].inner_bytes):
            seal_whole(outbox, epoch, slots[i].inner, slots[i].inner_bytes)
            verdict = KEEP
        else:
            verdict = NO_ROOM
        if verdict == NO_ROOM:
            if outbox.count:
                return i
            # Not even an empty outbox takes it: segments of a few bytes each.
            verdict = DROP_TOO_LONG
        if verdict != KEEP:
            sm_count(&plane.sent.dropped[verdict], 1)
    return count


cdef inline void count_send(plane_t *plane, const train_t *train, int number) noexcept nogil:
    # `number`: 0, or the errno with which the socket refused the train.
    if number == 0:
        sm_count(&plane.sent.frames_udp, train.frames)
        return
    sm_count(&plane.sent.send_errors[udp_error_index(number)], 1)
    sm_count(&plane.sent.dropped[DROP_UDP_SEND], train.frames)


cdef inline int send_train_singly(plane_t *plane, const train_t *train,
                                  const address_t *to) noexcept nogil:
    # Without UDP_SEGMENT, datagram by datagram. 0, or the errno of the last one.
    cdef size_t done = 0
    cdef size_t length
    cdef int number = 0
    while done < train.length:
        length = train.length - done
        if length > train.segment_bytes:
            length = train.segment_bytes
        if sendto(plane.udp_fd, train.bytes + done, length, MSG_DONTWAIT,
                  <const sockaddr *>&to.storage, to.length) < 0:
            if errno == EINTR:
                continue
            number = errno
        done += length
    return number


cdef inline void prepare_messages(plane_t *plane, const address_t *to) noexcept nogil:
    cdef outbox_t *outbox = plane.outbox
    cdef msghdr *message
    cdef int i
    for i in range(outbox.count):
        outbox.vectors[i].iov_base = outbox.trains[i].bytes
        outbox.vectors[i].iov_len = outbox.trains[i].length
        message = &outbox.messages[i].msg_hdr
        memset(message, 0, sizeof(msghdr))
        message.msg_name = <void *>&to.storage
        message.msg_namelen = to.length
        message.msg_iov = &outbox.vectors[i]
        message.msg_iovlen = 1
        if outbox.trains[i].datagrams > 1:
            sm_set_segment_size(message, outbox.controls[i], outbox.trains[i].segment_bytes)


cdef inline void wait_for_socket(plane_t *plane) noexcept nogil:
    cdef pollfd fds[2]
    fds[0].fd = plane.udp_fd
    fds[0].events = POLLOUT
    fds[1].fd = plane.stop_fd
    fds[1].events = POLLIN
    poll(fds, 2, SEND_WAIT_MS)


cdef inline void send_outbox(plane_t *plane, const address_t *to) noexcept nogil:
    # Sends every train or counts why not, and empties the outbox. Without a lock.
    cdef outbox_t *outbox = plane.outbox
    cdef int first = 0
    cdef int waited = 0
    cdef int sent, number, i
    if plane.no_segmentation:
        for i in range(outbox.count):
            count_send(plane, &outbox.trains[i], send_train_singly(plane, &outbox.trains[i], to))
        first = outbox.count
    else:
        prepare_messages(plane, to)
    while first < outbox.count:
        sent = sendmmsg(plane.udp_fd, &outbox.messages[first], outbox.count - first, MSG_DONTWAIT)
        if sent > 0:
            for i in range(first, first + sent):
                count_send(plane, &outbox.trains[i], 0)
            first += sent
            continue
        number = errno
        if number == EINTR:
            continue
        if (number == EAGAIN or number == ENOBUFS) and not waited:
            waited = 1
            wait_for_socket(plane)
            continue
        if number == EIO and outbox.trains[first].datagrams > 1:
            # No checksum offload on the way out: the kernel will not cut trains. For good.
            plane.no_segmentation = 1
            number = send_train_singly(plane, &outbox.trains[first], to)
        count_send(plane, &outbox.trains[first], number)
        first += 1
    outbox.used = 0
    outbox.count = 0
