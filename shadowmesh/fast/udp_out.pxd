# The way out over UDP: slots -> sealed datagrams in trains -> sendmmsg.
#
#   seal_slots (keys pinned): frames, packed frames, segments or fragments -> outbox
#    send_outbox (unpinned): trains -> socket
#
#   seal_single -> send_single                     one datagram of the hub's
#
# The TAP threads hold no lock; the outbox is the thread's own. Counters are taken in one add for
# what is sealed together: a run of small frames, the segments of a super-frame, the fragments of a
# frame.
#
# Datagrams of one size that follow each other are one train: one system call entry, cut by the
# kernel or the network card (UDP_SEGMENT). A socket that is full keeps the rest of the outbox waiting;
# what it refuses is dropped, sealed as it is: counters may have gaps on UDP.

from libc.stddef cimport size_t
from libc.string cimport memcpy, memset
from .base cimport *
from .drop_reasons cimport *
from .frame cimport *
from .session cimport *
from .datagram cimport *
from .peers cimport *
from .tap cimport *
from .plane cimport *
from .offload cimport *
from .line cimport line_sent
from .packed cimport *

cdef enum:
    # The card that could not cut trains may be another one by then, or the path.
    SINGLE_S = 60


cdef inline bint outbox_has_room(const outbox_t *outbox, size_t trains,
                                 size_t total_bytes) noexcept nogil:
    return (outbox.used + total_bytes <= OUTBOX_BYTES
            and outbox.count + trains <= OUTBOX_TRAINS)


cdef inline bint open_outbox(outbox_t *outbox, lane_t *lane, const address_t *to) noexcept nogil:
    # What is sealed from now on is the lane's, and goes there. False: there are too many targets.
    outbox.lane = lane
    if outbox.count == 0:
        outbox.target_count = 0
    elif outbox.trains[outbox.count - 1].lane == lane and same_address(outbox.to, to):
        return True
    if outbox.target_count == OUTBOX_TARGETS:
        return False
    outbox.targets[outbox.target_count] = to[0]
    outbox.to = &outbox.targets[outbox.target_count]
    outbox.target_count += 1
    return True


cdef inline void append_datagram(outbox_t *outbox, size_t length, uint16_t frames) noexcept nogil:
    # Takes the `length` bytes that were written at the end of the outbox into a train. So many
    # frames of the device's end with this datagram.
    cdef train_t *train = NULL
    if outbox.count:
        train = &outbox.trains[outbox.count - 1]
    if (train == NULL or train.to != outbox.to or train.closed or length > train.segment_bytes
            or train.datagrams == TRAIN_DATAGRAMS or train.length + length > TRAIN_BYTES):
        train = &outbox.trains[outbox.count]
        outbox.count += 1
        train.lane = outbox.lane
        train.to = outbox.to
        train.bytes = outbox.bytes + outbox.used
        train.length = 0
        train.segment_bytes = <uint16_t>length
        train.datagrams = 0
        train.frames = 0
        train.closed = 0
    train.length += length
    train.datagrams += 1
    train.frames += frames
    train.closed = length < train.segment_bytes
    outbox.used += length


cdef inline size_t fragments_of(const route_t *route, size_t inner_bytes) noexcept nogil:
    # How many datagrams a frame takes that does not fit the path whole.
    cdef size_t slice_bytes = (route.payload_bytes - AAD_BYTES - tag_bytes(route.epoch.cipher)
                               - FRAGMENT_HEADER_BYTES)
    if slice_bytes > MAX_SLICE_BYTES:
        slice_bytes = MAX_SLICE_BYTES
    return (inner_bytes + slice_bytes - 1) // slice_bytes


cdef inline int seal_fragments(outbox_t *outbox, const route_t *route, uint8_t *inner,
                               size_t inner_bytes, bint ends_frame) noexcept nogil:
    # A frame that does not fit the path: fragments with consecutive counters (protocol section
    # 6). Each fragment's header is written in front of its slice, over what was sealed before;
    # 5 bytes in front of `inner` are writable. KEEP, NO_ROOM or a DROP_ reason. `ends_frame`: it
    # is a frame of the device's, or the last one of its super-frame.
    cdef epoch_t *epoch = route.epoch
    cdef size_t overhead = AAD_BYTES + tag_bytes(epoch.cipher) + FRAGMENT_HEADER_BYTES
    cdef size_t total = fragments_of(route, inner_bytes)
    cdef size_t slice_bytes, taken
    cdef uint64_t counter
    cdef uint16_t id
    cdef size_t done = 0
    cdef uint8_t index = 0
    cdef uint8_t *header
    if total > MAX_FRAGMENTS_PER_FRAME:
        return DROP_TOO_LONG
    # Even slices make one train.
    slice_bytes = (inner_bytes + total - 1) // total
    if not outbox_has_room(outbox, total, total * (slice_bytes + overhead)):
        return NO_ROOM
    counter = take_counters(epoch, total)
    id = <uint16_t>sm_take_numbers(&epoch.fragment_next, 1)
    while done < inner_bytes:
        taken = inner_bytes - done
        if taken > slice_bytes:
            taken = slice_bytes
        header = inner + done - FRAGMENT_HEADER_BYTES
        header[0] = INNER_FRAGMENT
        sm_store16(header + 1, id)
        header[3] = index
        header[4] = <uint8_t>total
        done += taken
        append_datagram(
            outbox,
            seal_datagram(epoch, counter + index, header, FRAGMENT_HEADER_BYTES + taken,
                          outbox.bytes + outbox.used),
            ends_frame and done == inner_bytes)
        index += 1
    return KEEP


cdef inline int seal_segments(outbox_t *outbox, const route_t *route,
                              const slot_t *slot) noexcept nogil:
    # A super-frame: cut into frames that fit the path, each sealed before the next one's headers
    # are written over its end (offload.pxd). KEEP, NO_ROOM with nothing sealed, or a DROP_ reason:
    # what became of the last one.
    cdef segmenter_t segmenter
    cdef epoch_t *epoch = route.epoch
    cdef size_t overhead = AAD_BYTES + tag_bytes(epoch.cipher)
    cdef size_t room = route.payload_bytes - overhead
    cdef uint64_t counter = 0
    cdef uint8_t *frame
    cdef uint8_t *inner
    cdef size_t frame_bytes, inner_bytes, needed, trains
    cdef size_t pieces = 1
    cdef int verdict = KEEP
    cdef int segments = segment_begin(
        &segmenter, slot.inner + 1, slot.inner_bytes - 1 - VNET_HEADER_BYTES,
        <uint32_t>(room - 1 - VNET_HEADER_BYTES), False)
    if segments < 0:
        return DROP_TOO_LONG    # not one byte of payload fits beside the headers
    # Segments of one size are few trains. A UDP datagram keeps its size whatever the path, so it
    # may need fragments, which are a train of their own.
    inner_bytes = (1 + VNET_HEADER_BYTES + segmenter.flow.header_bytes
                   + segmenter.segment_bytes)
    if inner_bytes > room:
        pieces = fragments_of(route, inner_bytes)
    needed = segments * (inner_bytes + pieces * (overhead + FRAGMENT_HEADER_BYTES))
    trains = needed // TRAIN_BYTES + 2 + (segments if pieces > 1 else segments // TRAIN_DATAGRAMS)
    if not outbox_has_room(outbox, trains, needed):
        return NO_ROOM
    if pieces == 1:
        counter = take_counters(epoch, segments)
    while segment_next(&segmenter, &frame, &frame_bytes):
        inner = frame - VNET_HEADER_BYTES - 1
        inner[0] = INNER_OFFLOAD_FRAME
        inner_bytes = 1 + VNET_HEADER_BYTES + frame_bytes
        segments -= 1
        if inner_bytes > room:
            verdict = seal_fragments(outbox, route, inner, inner_bytes, segments == 0)
            continue
        verdict = KEEP
        if pieces > 1:
            counter = take_counters(epoch, 1)
        append_datagram(
            outbox,
            seal_datagram(epoch, counter, inner, inner_bytes, outbox.bytes + outbox.used),
            segments == 0)
        counter += 1
    return verdict


cdef inline bint is_super(const slot_t *slot) noexcept nogil:
    return slot.inner[0] == INNER_OFFLOAD_FRAME and slot.inner[2] & ~GSO_ECN != 0


cdef inline bint fits_whole(const slot_t *slot, size_t payload_bytes,
                            size_t overhead) noexcept nogil:
    # Whether a frame is one datagram: neither a super-frame nor too large for the path.
    return not is_super(slot) and overhead + slot.inner_bytes <= payload_bytes


cdef inline int seal_run(outbox_t *outbox, const route_t *route, const slot_t *slots,
                         int count) noexcept nogil:
    # Seals the frames at the beginning of `slots` that are one datagram each, as many as the
    # outbox has room for: how many.
    cdef epoch_t *epoch = route.epoch
    cdef size_t overhead = AAD_BYTES + tag_bytes(epoch.cipher)
    cdef size_t total = 0
    cdef uint64_t counter
    cdef int run = 0
    cdef int i
    while run < count and fits_whole(&slots[run], route.payload_bytes, overhead):
        total += overhead + slots[run].inner_bytes
        if not outbox_has_room(outbox, run + 1, total):
            break
        run += 1
    if run == 0:
        return 0
    counter = take_counters(epoch, run)
    for i in range(run):
        append_datagram(
            outbox,
            seal_datagram(epoch, counter + i, slots[i].inner, slots[i].inner_bytes,
                          outbox.bytes + outbox.used),
            1)
    return run


cdef inline size_t packed_room(const route_t *route) noexcept nogil:
    # Of a datagram of this path; 0: the peer takes no packed frames.
    if not route.peer_abilities & ABILITY_PACKED:
        return 0
    return (route.payload_bytes - AAD_BYTES - tag_bytes(route.epoch.cipher)
            - PACKED_HEADER_BYTES)


cdef inline int packable_run(outbox_t *outbox, const route_t *route, const slot_t *slots, int count,
                             packing_t *packing, bint *worthwhile) noexcept nogil:
    # How many of the first `slots` can be packed together, and where they go. `worthwhile`: there
    # are some that no datagram holds, and it spares enough of them. Small frames alone gain nothing:
    # writing them to the device is what they cost, and more would be lost with a datagram.
    cdef size_t room = packed_room(route)
    cdef size_t overhead = AAD_BYTES + tag_bytes(route.epoch.cipher)
    cdef size_t apart = 0
    cdef packing_t before
    cdef int run = 0
    packing.room = room
    packing.left = packing.datagrams = 0
    while (run < count and not is_super(&slots[run])
           and packs(room, slots[run].inner_bytes)):
        before = packing[0]
        packing_place(packing, slots[run].inner_bytes)
        if not outbox_has_room(outbox, packing.datagrams,
                               packing.datagrams * route.payload_bytes):
            packing[0] = before
            break
        apart += 1
        if overhead + slots[run].inner_bytes > route.payload_bytes:
            apart += fragments_of(route, slots[run].inner_bytes) - 1
        run += 1
    worthwhile[0] = apart > <size_t>run and packing.datagrams + apart // PACKING_SPARES < apart
    return run


cdef inline uint8_t *open_packed(outbox_t *outbox, packing_t *packing, size_t head) noexcept nogil:
    # Begins a datagram, the first `head` bytes of which end the record before: where they go.
    cdef uint8_t *inner = outbox.bytes + outbox.used + AAD_BYTES
    inner[0] = INNER_PACKED
    sm_store16(inner + 1, <uint16_t>head)
    packing.left = packing.room - head
    return inner + PACKED_HEADER_BYTES


cdef inline void close_packed(outbox_t *outbox, epoch_t *epoch, uint64_t counter,
                              const uint8_t *end, uint16_t frames) noexcept nogil:
    # Seals the datagram that was written up to `end`.
    cdef uint8_t *out = outbox.bytes + outbox.used
    append_datagram(outbox,
                    seal_datagram(epoch, counter, out + AAD_BYTES, end - out - AAD_BYTES, out),
                    frames)


cdef inline void seal_packed(outbox_t *outbox, const route_t *route, const slot_t *slots,
                             int run, packing_t *packing) noexcept nogil:
    # Seals `run` frames as packable_run() has placed them. All datagrams but the last are full, so
    # they make one train.
    cdef epoch_t *epoch = route.epoch
    cdef uint64_t counter = take_counters(epoch, packing.datagrams)
    cdef uint8_t *at = NULL
    cdef const uint8_t *record
    cdef size_t rest, here
    cdef uint16_t ended = 0
    cdef int i
    packing.left = 0
    for i in range(run):
        record = slots[i].inner
        rest = slots[i].inner_bytes
        if begins_anew(packing, rest):
            if at != NULL:
                memset(at, 0, packing.left)
                close_packed(outbox, epoch, counter, at + packing.left, ended)
                counter += 1
                ended = 0
            at = open_packed(outbox, packing, 0)
        sm_store16(at, <uint16_t>rest)
        at += PACKED_LENGTH_BYTES
        packing.left -= PACKED_LENGTH_BYTES
        here = min(rest, packing.left)
        memcpy(at, record, here)
        at += here
        packing.left -= here
        rest -= here
        if rest:
            close_packed(outbox, epoch, counter, at, ended)
            counter += 1
            ended = 0
            at = open_packed(outbox, packing, rest)
            memcpy(at, record + here, rest)
            at += rest
        ended += 1
    close_packed(outbox, epoch, counter, at, ended)


cdef inline int seal_slots(queue_t *queue, const route_t *route) noexcept nogil:
    # Seals slots that are left into the outbox until it is full; how many. The epoch is pinned.
    cdef outbox_t *outbox = queue.outbox
    cdef size_t overhead = AAD_BYTES + tag_bytes(route.epoch.cipher)
    cdef slot_t *slot
    cdef packing_t packing
    cdef bint worthwhile = False
    cdef int run, verdict
    cdef int i = queue.first
    cdef int apart_until = queue.first if packed_room(route) else queue.batch
    while i < queue.batch:
        slot = &queue.slots[i]
        if i >= apart_until:
            run = packable_run(outbox, route, slot, queue.batch - i, &packing, &worthwhile)
            if worthwhile:
                seal_packed(outbox, route, slot, run, &packing)
                i += run
                continue
            apart_until = i + run + 1
        if fits_whole(slot, route.payload_bytes, overhead):
            run = seal_run(outbox, route, slot, min(queue.batch, apart_until) - i)
            i += run
            if run:
                continue
            verdict = NO_ROOM
        elif is_super(slot):
            verdict = seal_segments(outbox, route, slot)
        else:
            verdict = seal_fragments(outbox, route, slot.inner, slot.inner_bytes, True)
        if verdict == NO_ROOM:
            if outbox.count:
                break
            # Not even an empty outbox takes it: segments of a few bytes each.
            verdict = DROP_TOO_LONG
        if verdict != KEEP:
            drop_outgoing(queue, verdict, 1)
        i += 1
    return i - queue.first


cdef inline void count_send(queue_t *queue, const train_t *train, size_t length,
                            int number) noexcept nogil:
    # `length`: its bytes before it was sent. `number`: 0, or the errno with which the socket refused
    # the train.
    if number == 0:
        sm_count(&queue.sent.frames_udp, train.frames)
        sm_count(&train.lane.frames, train.frames)
        sm_count(&train.lane.bytes, length)
        return
    sm_count(&queue.sent.send_errors[udp_error_index(number)], 1)
    sm_count(&queue.sent.dropped[DROP_UDP_SEND], train.frames)
    sm_count(&train.lane.dropped[DROP_UDP_SEND], train.frames)


cdef inline int send_train_singly(udp_t *udp, train_t *train) noexcept nogil:
    # Without UDP_SEGMENT, datagram by datagram. 0, or the errno of the last one that was refused;
    # EAGAIN or ENOBUFS: what is left of the train may go later.
    cdef size_t length
    cdef int number = 0
    while train.length:
        length = min(train.length, <size_t>train.segment_bytes)
        if sendto(udp.fd, train.bytes, length, MSG_DONTWAIT,
                  <const sockaddr *>&train.to.storage, train.to.length) < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN or errno == ENOBUFS:
                return errno
            number = errno
        line_sent(&udp.line, length)
        train.bytes += length
        train.length -= length
    return number


cdef inline void prepare_messages(outbox_t *outbox) noexcept nogil:
    cdef msghdr *message
    cdef int i
    for i in range(outbox.count):
        outbox.vectors[i].iov_base = outbox.trains[i].bytes
        outbox.vectors[i].iov_len = outbox.trains[i].length
        message = &outbox.messages[i].msg_hdr
        memset(message, 0, sizeof(msghdr))
        message.msg_name = <void *>&outbox.trains[i].to.storage
        message.msg_namelen = outbox.trains[i].to.length
        message.msg_iov = &outbox.vectors[i]
        message.msg_iovlen = 1
        if outbox.trains[i].datagrams > 1:
            sm_set_segment_size(message, outbox.controls[i], outbox.trains[i].segment_bytes)


cdef inline void drop_outbox(queue_t *queue, int number) noexcept nogil:
    # What the socket did not take, with that errno.
    cdef outbox_t *outbox = queue.outbox
    while outbox.sent < outbox.count:
        count_send(queue, &outbox.trains[outbox.sent], 0, number)
        outbox.sent += 1
    outbox.used = 0
    outbox.count = outbox.sent = outbox.short_of_memory = outbox.target_count = 0
    outbox.waiting_since_ns = 0
    sm_release(&outbox.frames_waiting, 0)


cdef inline bint keep_outbox(queue_t *queue, int number) noexcept nogil:
    # The socket takes no more now: what is left of the outbox goes next. False: it has waited for
    # too long, or in vain, and is gone.
    cdef outbox_t *outbox = queue.outbox
    cdef uint64_t now_ns = boottime_ns()
    cdef uint64_t frames = 0
    cdef int i
    if not outbox.waiting_since_ns:
        outbox.waiting_since_ns = now_ns
    if now_ns - outbox.waiting_since_ns >= <uint64_t>STALL_MS * 1000000:
        drop_outbox(queue, number)
        return False
    # A socket whose buffer is full says when it is not; one for which there was no memory does not.
    queue.socket_waits = SOCKET_FULL if number == EAGAIN else SOCKET_PAUSES
    outbox.short_of_memory = number == ENOBUFS
    for i in range(outbox.sent, outbox.count):
        frames += outbox.trains[i].frames
    sm_release(&outbox.frames_waiting, frames)
    return True


cdef inline bint goes_singly(const udp_t *udp, const train_t *train, uint64_t now_ns) noexcept nogil:
    return (udp.no_segmentation
            or now_ns < sm_counted(&(<port_t *>train.lane.port).single_until_ns))


cdef inline int trains_together(const udp_t *udp, const outbox_t *outbox, uint64_t now_ns) noexcept nogil:
    # How many of those that come next one system call may take.
    cdef int count = outbox.sent
    while count < outbox.count and not goes_singly(udp, &outbox.trains[count], now_ns):
        count += 1
    return count - outbox.sent


cdef inline bint send_outbox(plane_t *plane, queue_t *queue, uint64_t now_ns) noexcept nogil:
    # Sends the trains, or counts why not, until the outbox is empty. False: the socket takes no
    # more now, queue.socket_waits says what to wait for, and the rest stays. Without a lock, and
    # with nothing pinned: the kernel may make us wait.
    cdef outbox_t *outbox = queue.outbox
    cdef train_t *train
    cdef int sent, number, together
    cdef size_t length
    queue.socket_waits = SOCKET_READY
    prepare_messages(outbox)
    while outbox.sent < outbox.count:
        train = &outbox.trains[outbox.sent]
        number = 0
        sent = 1
        together = trains_together(&plane.udp, outbox, now_ns)
        length = train.length
        if not together:
            number = send_train_singly(&plane.udp, train)
        else:
            sent = sendmmsg(plane.udp.fd, &outbox.messages[outbox.sent], together, MSG_DONTWAIT)
            if sent < 0:
                sent = 1
                number = errno
        if number == EINTR:
            continue
        if number == EAGAIN or (number == ENOBUFS and not outbox.short_of_memory):
            return not keep_outbox(queue, number)
        if number == EIO and train.datagrams > 1 and together:
            # No checksum offload on the way out: the kernel will not cut trains.
            now_ns = boottime_ns()
            sm_release(&(<port_t *>train.lane.port).single_until_ns,
                       now_ns + <uint64_t>SINGLE_S * 1000000000)
            continue
        outbox.short_of_memory = 0
        outbox.waiting_since_ns = 0
        while sent:
            if together:
                length = outbox.trains[outbox.sent].length
                if number == 0:
                    line_sent(&plane.udp.line, length)
            count_send(queue, &outbox.trains[outbox.sent], length, number)
            outbox.sent += 1
            sent -= 1
    drop_outbox(queue, 0)
    return True


cdef inline size_t seal_single(epoch_t *epoch, uint8_t inner_type, const uint8_t *body,
                               size_t body_bytes, uint8_t *out) noexcept nogil:
    # One record of the hub's as a datagram at `out`, which has room for it; body_bytes is at most
    # MAX_UDP_SIGNAL_BYTES. How many bytes it has; 0: no keys (NULL), or they have expired.
    cdef uint8_t inner[1 + MAX_UDP_SIGNAL_BYTES]
    if (epoch == NULL or epoch_expired(epoch, boottime_ns())
            or sm_counted(&epoch.udp_tx_next) >= SM_SEAL_LIMIT - SEAL_MARGIN):
        return 0
    inner[0] = inner_type
    memcpy(inner + 1, body, body_bytes)
    return seal_datagram(epoch, take_counters(epoch, 1), inner, 1 + body_bytes, out)


cdef inline int send_single(const udp_t *udp, const address_t *to, const uint8_t *data,
                            size_t length) noexcept nogil:
    # One datagram of the hub's: 0 or the errno of the socket.
    while sendto(udp.fd, data, length, MSG_DONTWAIT, <const sockaddr *>&to.storage, to.length) < 0:
        if errno != EINTR:
            return errno
    return 0
