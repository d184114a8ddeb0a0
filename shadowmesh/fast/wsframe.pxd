# WebSocket frame headers, RFC 6455 section 5.2, with the caps of protocol section 9.
#
#   0      1             2 / 4 / 10      +4 when masked
#   FIN|op MASK|length7  (length16|64)   mask            payload

from libc.stddef cimport size_t
from .base cimport *

cdef enum:
    OP_CONTINUATION = 0
    OP_TEXT = 1
    OP_BINARY = 2
    OP_CLOSE = 8
    OP_PING = 9
    OP_PONG = 10
    MAX_WS_HEADER = 14
    MAX_CONTROL_PAYLOAD = 125

# Close codes, negative so that they cannot be taken for a count: RFC 6455 section 7.4.1 and ours.
cdef enum:
    E_PROTOCOL = -1002
    E_UNSUPPORTED = -1003
    E_POLICY = -1008
    E_TOO_BIG = -1009
    E_RECORD = -4400

ctypedef struct wsheader_t:
    int fin
    int opcode
    uint8_t mask[4]
    uint64_t length
    size_t bytes


cdef inline size_t ws_header_bytes(size_t payload_bytes, bint masked) noexcept nogil:
    cdef size_t n = 2
    if payload_bytes > 0xFFFF:
        n = 10
    elif payload_bytes > MAX_CONTROL_PAYLOAD:
        n = 4
    return n + 4 if masked else n


cdef inline size_t ws_write_header(uint8_t *out, int opcode, size_t payload_bytes,
                                   const uint8_t *mask) noexcept nogil:
    # A final frame in the shortest form; `mask` is NULL from a server. Returns the bytes written.
    cdef size_t n
    cdef uint8_t mask_bit = 0x80 if mask != NULL else 0
    out[0] = <uint8_t>(0x80 | opcode)
    if payload_bytes > 0xFFFF:
        out[1] = mask_bit | 127
        sm_store64be(out + 2, payload_bytes)
        n = 10
    elif payload_bytes > MAX_CONTROL_PAYLOAD:
        out[1] = mask_bit | 126
        sm_store16be(out + 2, <uint16_t>payload_bytes)
        n = 4
    else:
        out[1] = <uint8_t>(mask_bit | payload_bytes)
        n = 2
    if mask != NULL:
        sm_store32(out + n, sm_load32(mask))
        n += 4
    return n


cdef inline int ws_read_header(const uint8_t *p, size_t available, bint from_client,
                               wsheader_t *header) noexcept nogil:
    # 1: header filled; 0: more bytes needed; below zero: a close code. What a header may say in
    # its place (continuation, size of the message) is the caller's business.
    cdef uint8_t length7
    cdef size_t n = 2
    if available < 2:
        return 0
    if p[0] & 0x70:
        return E_PROTOCOL
    header.fin = p[0] >> 7
    header.opcode = p[0] & 0x0F
    if 2 < header.opcode < OP_CLOSE or header.opcode > OP_PONG:
        return E_PROTOCOL
    if (p[1] >> 7) != (1 if from_client else 0):
        return E_PROTOCOL
    length7 = p[1] & 0x7F
    header.length = length7
    if header.opcode >= OP_CLOSE and (not header.fin or length7 > MAX_CONTROL_PAYLOAD):
        return E_PROTOCOL
    if length7 == 126:
        if available < 4:
            return 0
        header.length = sm_load16be(p + 2)
        n = 4
        if header.length <= MAX_CONTROL_PAYLOAD:
            return E_PROTOCOL
    elif length7 == 127:
        if available < 10:
            return 0
        header.length = sm_load64be(p + 2)
        n = 10
        if header.length <= 0xFFFF or header.length >> 63:
            return E_PROTOCOL
    if from_client:
        if available < n + 4:
            return 0
        sm_store32(header.mask, sm_load32(p + n))
        n += 4
    header.bytes = n
    if header.opcode == OP_TEXT:
        return E_UNSUPPORTED
    return 1
