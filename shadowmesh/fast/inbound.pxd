# The way in: bytes from TLS -> WebSocket frames -> records -> frames written to the TAP.
#
#   recv_into(tail) -> parse: read header, unmask in place -> open record in place -> deliver
#
# The buffer of a link, positions growing to the right:
#
#   | headroom | consumed | decoded: unmasked, contiguous | gap | raw: as received | free |
#                         ^begin                      ^end      ^raw           ^raw_end
#
# The gap holds the headers of continuation and control frames; decoded bytes that follow one are
# moved down over it, so that a record is contiguous however a proxy has cut it. Without such
# frames nothing is moved. parse() runs once per TLS read, on the hub until the peer is authentic and
# in the thread that moves the bytes of links afterwards; which of them is `opener_t`.

from libc.stddef cimport size_t
from libc.string cimport memmove, memset
from .base cimport *
from .frame cimport *
from .wsframe cimport *
from .session cimport *
from .peers cimport *
from .plane cimport *
from .deliver cimport *

cdef enum:
    HEADROOM = 64               # a virtio header is written in front of the first record
    PARSER_BYTES = 512 * 1024
    MAX_UNAUTHENTICATED = 2048
    MAX_FRAGMENTS = 64
    MAX_CONTROLS_PER_SECOND = 10
    # Records for the hub: probes, control, handshake. A session needs a few.
    MAX_EVENTS_PER_SECOND = 200
    # Messages of a network, in pieces: the largest has about 200.
    MAX_MESH_PER_SECOND = 512

# What parse() wants from its caller: nothing until more bytes come, or one event.
cdef enum:
    EVENT_NONE = 0
    EVENT_MESSAGE = 1           # a message before the session exists
    EVENT_WEBSOCKET = 2         # ping, pong or close
    EVENT_RECORD = 3            # a record that is not a frame

ctypedef struct parser_t:
    uint8_t *bytes
    size_t begin
    size_t end
    size_t raw
    size_t raw_end
    size_t reached              # the end of what was used since memory was given back
    int from_client             # the peer is the WebSocket client and has to mask
    session_t *session          # NULL: messages are handshake messages
    # the WebSocket frame under way
    uint64_t frame_left
    uint64_t frame_phase
    uint8_t mask[4]
    int final
    # the message under way
    int in_message
    uint32_t fragments
    uint64_t message_bytes
    int header_read
    uint32_t records_left
    uint32_t key_id
    # control frames, and records for the hub, in this second
    uint64_t second
    uint32_t controls
    uint32_t events
    uint32_t mesh
    # the event that parse() returned last; bytes stay valid until it is called again
    int opcode
    uint8_t inner_type
    uint8_t *body
    size_t body_bytes


cdef inline bint may_open(const epoch_t *epoch, uint32_t key_id, const session_t *session,
                          uint64_t now_ns) noexcept nogil:
    # Asked at the header of a message and again at each of its records: the header is not sealed,
    # so anybody on the way can begin a message and hold it until the keys are erased.
    return (epoch != NULL and epoch.state == EPOCH_INSTALLED and epoch.local_key_id == key_id
            and epoch.session == session and not epoch.wss_rx_closed
            and not epoch_expired(epoch, now_ns))


cdef inline int read_message_header(peers_t *peers, opener_t *opener, parser_t *parser,
                                    uint64_t now_ns) noexcept nogil:
    # 0, or E_RECORD: whatever is wrong ends the link the same way (protocol section 6).
    cdef uint8_t *p = parser.bytes + parser.begin
    cdef uint32_t key_id = sm_load32(p + 4)
    cdef const epoch_t *epoch
    if p[0] != KIND_WSS or p[1] != 0 or sm_load16(p + 2) == 0:
        return E_RECORD
    epoch = pin_epoch(peers, opener.pin, key_id)
    if (not may_open(epoch, key_id, parser.session, now_ns)
            or sm_load64(p + 8) != epoch.wss_rx_next):
        return E_RECORD
    parser.key_id = key_id
    parser.records_left = sm_load16(p + 2)
    parser.header_read = 1
    parser.begin += MESSAGE_HEADER_BYTES
    return 0


cdef inline void retire_older(pin_t *mine, session_t *session, uint64_t generation) noexcept nogil:
    # "On WSS the old receive key goes with the first new record" (protocol section 7).
    cdef epoch_t *epoch
    session.newest_generation = generation
    for i in range(SESSION_EPOCHS):
        epoch = <epoch_t *>pin(mine, &session.receiving[i])
        if epoch != NULL and epoch.generation < generation:
            epoch.wss_rx_closed = 1
            sodium_memzero(epoch.wss_rx_key, KEY_BYTES)


cdef inline void count_second(parser_t *parser, uint64_t now_ns) noexcept nogil:
    if now_ns // 1000000000 != parser.second:
        parser.second = now_ns // 1000000000
        parser.controls = parser.events = parser.mesh = 0


cdef inline int read_record(plane_t *plane, opener_t *opener, parser_t *parser,
                            uint64_t now_ns) noexcept nogil:
    # One record of the message under way. EVENT_NONE with begin moved: delivered; EVENT_NONE
    # with begin where it was: more bytes are needed; EVENT_RECORD; below zero a close code.
    cdef uint8_t *p = parser.bytes + parser.begin
    cdef size_t available = parser.end - parser.begin
    cdef epoch_t *epoch
    cdef session_t *session = parser.session
    cdef port_t *port
    cdef uint8_t aad[AAD_BYTES]
    cdef size_t sealed_bytes, inner_bytes
    cdef uint8_t *inner = p + LENGTH_BYTES
    if available < LENGTH_BYTES:
        return EVENT_NONE
    epoch = pin_epoch(&plane.peers, opener.pin, parser.key_id)
    if not may_open(epoch, parser.key_id, parser.session, now_ns):
        return E_RECORD
    sealed_bytes = sm_load32(p)
    if sealed_bytes < 1 + tag_bytes(epoch.cipher) or sealed_bytes > MAX_MESSAGE:
        return E_RECORD
    if available < LENGTH_BYTES + sealed_bytes:
        return EVENT_NONE
    write_aad(aad, KIND_WSS, epoch.local_key_id, epoch.wss_rx_next)
    if aead_open(epoch.cipher, epoch.wss_rx_key, epoch.contexts, epoch.wss_rx_next, aad, AAD_BYTES,
                 inner, sealed_bytes, inner) != 0:
        return E_RECORD
    inner_bytes = sealed_bytes - tag_bytes(epoch.cipher)
    epoch.wss_rx_next += 1
    sm_release(&session.last_opened_ns, now_ns)
    sm_count(&opener.received.records, 1)
    if epoch.generation > session.newest_generation:
        retire_older(opener.pin, session, epoch.generation)
    port = <port_t *>sm_published(&session.port)
    # The device may make us wait, so nothing is pinned meanwhile.
    unpin(opener.pin)
    parser.begin += LENGTH_BYTES + sealed_bytes
    parser.records_left -= 1
    if inner[0] == INNER_FRAME or inner[0] == INNER_OFFLOAD_FRAME:
        deliver_frame(plane, opener, port, inner, inner_bytes, MAX_SEGMENTS)
        return EVENT_NONE
    if inner[0] == INNER_PADDING:
        # Of padding only the fact counts: it may be the first record under new keys.
        inner_bytes = 1
    if ((inner[0] > INNER_CLOSE and inner[0] != INNER_MESH) or inner[0] == INNER_FRAGMENT
            or inner_bytes - 1 > MAX_SIGNAL_BYTES):
        return E_RECORD
    count_second(parser, now_ns)
    if inner[0] == INNER_MESH:
        parser.mesh += 1
    else:
        parser.events += 1
    if parser.events > MAX_EVENTS_PER_SECOND or parser.mesh > MAX_MESH_PER_SECOND:
        return E_POLICY
    parser.inner_type = inner[0]
    parser.body = inner + 1
    parser.body_bytes = inner_bytes - 1
    return EVENT_RECORD


cdef inline int take_decoded(plane_t *plane, opener_t *opener, parser_t *parser,
                             uint64_t now_ns) noexcept nogil:
    # Consumes whole records of the decoded bytes: an event, EVENT_NONE when more bytes are
    # needed or the message is used up, or a close code.
    cdef size_t before
    cdef int outcome
    while True:
        if not parser.header_read:
            if parser.end - parser.begin < MESSAGE_HEADER_BYTES:
                return EVENT_NONE
            outcome = read_message_header(&plane.peers, opener, parser, now_ns)
            if outcome < 0:
                return outcome
        if parser.records_left == 0:
            # Bytes behind the last record belong to nothing.
            return E_RECORD if parser.end != parser.begin else EVENT_NONE
        before = parser.begin
        outcome = read_record(plane, opener, parser, now_ns)
        if outcome != EVENT_NONE or parser.begin == before:
            return outcome


cdef inline int end_message(parser_t *parser) noexcept nogil:
    # The final frame of a message is used up: an event, EVENT_NONE or a close code.
    parser.in_message = 0
    if parser.session == NULL:
        parser.body = parser.bytes + parser.begin
        parser.body_bytes = parser.end - parser.begin
        parser.begin = parser.end
        return EVENT_MESSAGE
    if parser.begin != parser.end or not parser.header_read or parser.records_left:
        return E_RECORD
    parser.header_read = 0
    return EVENT_NONE


cdef inline int take_control(parser_t *parser, const wsheader_t *header,
                             uint64_t now_ns) noexcept nogil:
    # A ping, pong or close whose payload is in the raw bytes behind the header. EVENT_NONE when
    # it is not all there yet.
    cdef uint8_t *payload = parser.bytes + parser.raw + header.bytes
    if parser.raw_end - parser.raw < header.bytes + header.length:
        return EVENT_NONE
    count_second(parser, now_ns)
    parser.controls += 1
    if parser.controls > MAX_CONTROLS_PER_SECOND:
        return E_POLICY
    if parser.from_client:
        sm_mask(payload, header.length, header.mask, 0)
    parser.raw += header.bytes + header.length
    parser.opcode = header.opcode
    parser.body = payload
    parser.body_bytes = header.length
    return EVENT_WEBSOCKET


cdef inline int begin_frame(parser_t *parser, const wsheader_t *header) noexcept nogil:
    # A data frame: checks it against the message under way. 0 or a close code.
    cdef uint64_t cap = MAX_UNAUTHENTICATED if parser.session == NULL else MAX_MESSAGE
    if parser.in_message != (header.opcode == OP_CONTINUATION):
        return E_PROTOCOL
    if not parser.in_message:
        parser.in_message = 1
        parser.fragments = 0
        parser.message_bytes = 0
    parser.fragments += 1
    if parser.fragments > MAX_FRAGMENTS:
        return E_POLICY
    # Compared so that a length near 2^63 cannot overflow the sum.
    if header.length > cap - parser.message_bytes:
        return E_TOO_BIG
    parser.message_bytes += header.length
    parser.frame_left = header.length
    parser.frame_phase = 0
    parser.final = header.fin
    sm_store32(parser.mask, sm_load32(header.mask))
    parser.raw += header.bytes
    return 0


cdef inline void decode_payload(parser_t *parser) noexcept nogil:
    # Unmasks what has come of the frame under way and appends it to the decoded bytes.
    cdef size_t n = parser.raw_end - parser.raw
    if n > parser.frame_left:
        n = parser.frame_left
    if parser.from_client:
        sm_mask(parser.bytes + parser.raw, n, parser.mask, parser.frame_phase)
    if parser.begin == parser.end:
        parser.begin = parser.end = parser.raw
    elif parser.end != parser.raw:
        memmove(parser.bytes + parser.end, parser.bytes + parser.raw, n)
    parser.end += n
    parser.raw += n
    parser.frame_left -= n
    parser.frame_phase += n


cdef inline int parse_next(plane_t *plane, opener_t *opener, parser_t *parser,
                           uint64_t now_ns) noexcept nogil:
    # Works until the bytes are used up (EVENT_NONE), something is for the caller (an event) or
    # the peer broke a rule (a close code below zero: the link is to end).
    cdef wsheader_t header
    cdef int outcome
    while True:
        if parser.session != NULL and parser.in_message:
            outcome = take_decoded(plane, opener, parser, now_ns)
            if outcome != EVENT_NONE:
                return outcome
        if parser.in_message and parser.frame_left == 0 and parser.final:
            outcome = end_message(parser)
            if outcome != EVENT_NONE:
                return outcome
            continue
        if parser.in_message and parser.frame_left:
            if parser.raw == parser.raw_end:
                return EVENT_NONE
            decode_payload(parser)
            continue
        outcome = ws_read_header(parser.bytes + parser.raw, parser.raw_end - parser.raw,
                                 parser.from_client, &header)
        if outcome <= 0:
            return outcome
        if header.opcode >= OP_CLOSE:
            return take_control(parser, &header, now_ns)
        outcome = begin_frame(parser, &header)
        if outcome < 0:
            return outcome


cdef inline int parse(plane_t *plane, opener_t *opener, parser_t *parser,
                      uint64_t now_ns) noexcept nogil:
    # As parse_next(), and nothing is pinned afterwards.
    cdef int outcome
    opener.now_s = <uint32_t>(now_ns // 1000000000)
    outcome = parse_next(plane, opener, parser, now_ns)
    unpin(opener.pin)
    return outcome


cdef inline size_t make_room(parser_t *parser) noexcept nogil:
    # Bytes free behind raw_end, after moving what is left of the buffer to its front if needed.
    # At least 16 KiB, one TLS record, because no record is longer than MAX_MESSAGE.
    cdef size_t held
    parser.reached = max(parser.reached, parser.raw_end)
    if parser.begin == parser.end and parser.raw == parser.raw_end:
        parser.begin = parser.end = parser.raw = parser.raw_end = HEADROOM
    elif HEADROOM + PARSER_BYTES - parser.raw_end < PARSER_BYTES // 8:
        held = parser.end - parser.begin
        memmove(parser.bytes + HEADROOM, parser.bytes + parser.begin, held)
        memmove(parser.bytes + HEADROOM + held, parser.bytes + parser.raw,
                parser.raw_end - parser.raw)
        parser.raw_end = HEADROOM + held + (parser.raw_end - parser.raw)
        parser.raw = HEADROOM + held
        parser.begin = HEADROOM
        parser.end = HEADROOM + held
    return HEADROOM + PARSER_BYTES - parser.raw_end


cdef inline void parser_give_back(parser_t *parser) noexcept nogil:
    # Gives the memory of a burst back, when the buffer is empty. It is from mmap().
    if parser.begin == parser.end and parser.raw == parser.raw_end:
        make_room(parser)
        give_pages_back(parser.bytes, KEPT_BYTES, parser.reached)
        parser.reached = min(parser.reached, <size_t>KEPT_BYTES)
