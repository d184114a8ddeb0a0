# TLS over one TCP connection, one record at a time.
#
#   TCP --recv--> incoming --one record--> OpenSSL --> plaintext          tls_receive, tls_read
#   plaintext --> OpenSSL --> outgoing --send--> TCP                      tls_write, tls_flush
#
# OpenSSL never sees the socket: it reads on while what it reads is no data, so a stranger who sends
# nothing but key updates (32 us each, 27 bytes) would hold one call for as long as he likes. Here a
# call works on one record, and records that bring no data are few. A write is never unfinished, so a
# key update that wants an answer can be answered at any time.
#
# No function waits. One thread at a time uses a tls_t; who hands it over is said in carrier.pxd.
# Source: RFC 8446 sections 4.6.3 and 5; protocol section 9.

from libc.stddef cimport size_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove
from .base cimport *

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL:
        pass
    void SSL_free(SSL *ssl)
    int SSL_read_ex(SSL *ssl, void *buffer, size_t count, size_t *done)
    int SSL_write_ex(SSL *ssl, const void *buffer, size_t count, size_t *done)
    int SSL_do_handshake(SSL *ssl)
    int SSL_shutdown(SSL *ssl)
    int SSL_pending(const SSL *ssl)
    int SSL_get_error(const SSL *ssl, int result)
    int SSL_ERROR_WANT_READ, SSL_ERROR_ZERO_RETURN

cdef extern from "<openssl/err.h>" nogil:
    unsigned long ERR_peek_error()
    void ERR_clear_error()

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t count, int flags)
    ssize_t send(int fd, const void *buffer, size_t count, int flags)
    int MSG_DONTWAIT, MSG_NOSIGNAL

cdef enum:
    # Records without data that may come at once: a handshake is four to ten, a server's tickets are
    # two, TLS stacks change their keys after millions of records.
    BARREN_RECORDS = 32
    # ... and after that one a second, for as long as the connection lives.
    BARREN_INTERVAL_NS = 1000000000
    # Ciphertext in a row that may bring no data.
    BARREN_BYTES = 64 * 1024
    RECORD_BYTES = 16384        # of data in a record of a bulk transfer
    TLS_HEADER_BYTES = 5        # RFC 8446 section 5.1: type, version, length
    LONGEST_RECORD = TLS_HEADER_BYTES + RECORD_BYTES + 256
    CHANGE_CIPHER_SPEC = 20     # the first of the four types of records
    APPLICATION_DATA = 23       # the last
    MAJOR_VERSION = 3
    # Most connections are idle most of the time and have no buffer then; a bulk transfer wants few
    # calls.
    SMALL_BUFFER = 4096
    LARGE_BUFFER = 64 * 1024
    SHORT_USES = 16             # so many in a row give a large buffer back
    # Room for what one piece of the ring is sealed into, and for answers to key updates.
    MOST_UNSENT = 256 * 1024

# What a call came to, when not to a number of bytes.
cdef enum:
    TLS_NOTHING = 0
    TLS_REFUSED = -1            # by OpenSSL, for the reason in `error`
    TLS_BROKEN = -2             # the connection, for the reason in errno
    TLS_BARREN = -3             # the peer sends records without data, one after the other
    TLS_TOO_MUCH = -4           # ... or more than its allowance
    TLS_NO_MEMORY = -5

ctypedef struct bytes_t:        # bytes that wait in [start, end) of a buffer
    uint8_t *bytes              # NULL: size is 0
    size_t size
    size_t start
    size_t end
    uint32_t short_uses         # of a large buffer, in a row

ctypedef struct tls_t:
    SSL *ssl
    bytes_t incoming            # from TCP
    size_t fed                  # OpenSSL may read up to here
    bytes_t outgoing            # sealed
    int more                    # the last receive filled the buffer: the kernel may have more
    int rest                    # OpenSSL holds the rest of a record
    int ended                   # the peer sends nothing more
    int limited                 # only `allowance` bytes of TCP may come
    size_t allowance
    size_t barren_bytes
    uint64_t barren_until_ns    # the bucket of records without data is full again then
    unsigned long error         # OpenSSL's, with TLS_REFUSED


# --- Buffers --------------------------------------------------------------------------------------


cdef inline bint resize_bytes(bytes_t *held, size_t size) noexcept nogil:
    # To a buffer that has the same bytes, from its start on. False: no memory, nothing changed.
    cdef uint8_t *memory = <uint8_t *>malloc(size)
    if memory == NULL:
        return False
    if held.end > held.start:
        memcpy(memory, held.bytes + held.start, held.end - held.start)
    held.end -= held.start
    held.start = 0
    free(held.bytes)
    held.bytes = memory
    held.size = size
    held.short_uses = 0
    return True


cdef inline void free_bytes(bytes_t *held) noexcept nogil:
    free(held.bytes)
    held.bytes = NULL
    held.size = held.start = held.end = 0
    held.short_uses = 0


cdef inline void shrink_bytes(bytes_t *held, size_t used) noexcept nogil:
    # After a use of so many bytes of an empty buffer: gives it back, a large one when it is not needed.
    held.start = held.end = 0
    held.short_uses = held.short_uses + 1 if used < SMALL_BUFFER else 0
    if held.size <= SMALL_BUFFER or held.short_uses >= SHORT_USES:
        free_bytes(held)


# --- What OpenSSL reads and writes (BIO_meth_set_read_ex, _write_ex) ------------------------------


cdef inline size_t give_fed(tls_t *tls, void *buffer, size_t count) noexcept nogil:
    cdef size_t given = min(count, tls.fed - tls.incoming.start)
    if given == 0:
        return 0                # there may be no buffer yet
    memcpy(buffer, tls.incoming.bytes + tls.incoming.start, given)
    tls.incoming.start += given
    return given


cdef inline bint keep_sealed(tls_t *tls, const void *data, size_t count) noexcept nogil:
    # False: there is no room for so much.
    cdef bytes_t *held = &tls.outgoing
    cdef size_t waiting = held.end - held.start
    cdef size_t size
    if held.end + count > held.size:
        size = SMALL_BUFFER
        while size < waiting + count:
            size *= 2
        if size > MOST_UNSENT:
            return False
        if size <= held.size:
            memmove(held.bytes, held.bytes + held.start, waiting)
            held.start = 0
            held.end = waiting
        elif not resize_bytes(held, size):
            return False
    memcpy(held.bytes + held.end, data, count)
    held.end += count
    return True


# --- In -------------------------------------------------------------------------------------------


cdef inline size_t record_size(const tls_t *tls) noexcept nogil:
    # Length of the record at the head of `incoming`; 0 while it is incomplete. What is no record is
    # given to OpenSSL as it is, which finds the words for it.
    cdef size_t held = tls.incoming.end - tls.incoming.start
    cdef const uint8_t *head = tls.incoming.bytes + tls.incoming.start
    cdef size_t size
    if held < TLS_HEADER_BYTES:
        return 0
    size = TLS_HEADER_BYTES + sm_load16be(head + 3)
    if (head[0] < CHANGE_CIPHER_SPEC or head[0] > APPLICATION_DATA or head[1] != MAJOR_VERSION
            or size > LONGEST_RECORD):
        return held
    return size if size <= held else 0


cdef inline bint tls_ready(const tls_t *tls) noexcept nogil:
    # tls_read() has something to do before anything else arrives.
    return tls.rest or tls.more or record_size(tls) > 0


cdef inline ssize_t tls_receive(tls_t *tls, int fd) noexcept nogil:
    # Takes once from TCP: the bytes taken, TLS_NOTHING with or without `ended`, TLS_BROKEN,
    # TLS_TOO_MUCH or TLS_NO_MEMORY.
    cdef bytes_t *held = &tls.incoming
    cdef size_t room
    cdef ssize_t got
    if held.bytes == NULL or (tls.more and held.size == SMALL_BUFFER):
        if not resize_bytes(held, LARGE_BUFFER if tls.more else SMALL_BUFFER):
            return TLS_NO_MEMORY
    elif held.start:
        # The longest record has room behind what is left of the last receive only from 0 on.
        memmove(held.bytes, held.bytes + held.start, held.end - held.start)
        held.end -= held.start
        held.start = 0
    tls.fed = held.start
    tls.more = 0
    room = held.size - held.end
    if tls.limited:
        if tls.allowance == 0:
            return TLS_TOO_MUCH
        room = min(room, tls.allowance)
    while True:
        got = recv(fd, held.bytes + held.end, room, MSG_DONTWAIT)
        if got >= 0 or errno != EINTR:
            break
    if got < 0:
        return TLS_NOTHING if errno == EAGAIN else TLS_BROKEN
    tls.ended = got == 0
    tls.more = <size_t>got == room
    held.end += got
    tls.allowance -= min(<size_t>got, tls.allowance)
    return got


cdef inline bint barren_allowed(tls_t *tls, size_t record_bytes, uint64_t now_ns) noexcept nogil:
    # A record brought no data.
    tls.barren_bytes += record_bytes
    tls.barren_until_ns = max(tls.barren_until_ns, now_ns) + BARREN_INTERVAL_NS
    return (tls.barren_bytes <= BARREN_BYTES
            and tls.barren_until_ns - now_ns <= <uint64_t>BARREN_RECORDS * BARREN_INTERVAL_NS)


cdef inline int tls_refused(tls_t *tls) noexcept nogil:
    tls.error = ERR_peek_error()
    ERR_clear_error()
    return TLS_REFUSED


cdef inline size_t feed_record(tls_t *tls) noexcept nogil:
    # Lets OpenSSL have the next record; its length, 0: there is none.
    cdef size_t size = record_size(tls)
    tls.fed = tls.incoming.start + size
    return size


cdef inline ssize_t tls_read(tls_t *tls, uint8_t *buffer, size_t count,
                             uint64_t now_ns) noexcept nogil:
    # Opens one record, or goes on with one that was longer than the buffer: the bytes of data,
    # TLS_NOTHING (none this time, or `ended`), TLS_REFUSED or TLS_BARREN.
    cdef size_t size = 0
    cdef size_t done = 0
    cdef int result, why
    if not tls.rest:
        size = feed_record(tls)
        if size == 0:
            return TLS_NOTHING
    ERR_clear_error()
    result = SSL_read_ex(tls.ssl, buffer, min(count, <size_t>RECORD_BYTES), &done)
    if result == 1:
        tls.barren_bytes = 0
        tls.rest = done == count and SSL_pending(tls.ssl) > 0
        if not tls.rest and tls.incoming.start == tls.incoming.end:
            shrink_bytes(&tls.incoming, tls.incoming.end)
            tls.fed = 0
        return <ssize_t>done
    tls.rest = 0
    why = SSL_get_error(tls.ssl, result)
    if why == SSL_ERROR_WANT_READ:
        return TLS_NOTHING if barren_allowed(tls, size, now_ns) else TLS_BARREN
    if why == SSL_ERROR_ZERO_RETURN:
        tls.ended = 1
        return TLS_NOTHING
    return tls_refused(tls)


# --- Out ------------------------------------------------------------------------------------------


cdef inline int tls_write(tls_t *tls, const uint8_t *data, size_t count) noexcept nogil:
    # Seals all of it for tls_flush(): 0 or TLS_REFUSED. `count` is not 0.
    cdef size_t done = 0
    ERR_clear_error()
    return 0 if SSL_write_ex(tls.ssl, data, count, &done) == 1 else tls_refused(tls)


cdef inline bint tls_unsent(const tls_t *tls) noexcept nogil:
    return tls.outgoing.end != tls.outgoing.start


cdef inline int tls_flush(tls_t *tls, int fd) noexcept nogil:
    # Sends what is sealed: 1: all, 0: TCP does not take all of it now, or TLS_BROKEN.
    cdef bytes_t *held = &tls.outgoing
    cdef ssize_t sent
    while held.end != held.start:
        sent = send(fd, held.bytes + held.start, held.end - held.start,
                    MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno == EINTR:
                continue
            return 0 if errno == EAGAIN else TLS_BROKEN
        held.start += sent
    if held.end:
        shrink_bytes(held, held.end)
    return 1


cdef inline void tls_give_back(tls_t *tls) noexcept nogil:
    # The large buffers of a burst, when they are empty.
    if tls.incoming.start == tls.incoming.end and not tls.rest:
        free_bytes(&tls.incoming)
        tls.fed = 0
    if not tls_unsent(tls):
        free_bytes(&tls.outgoing)


# --- The beginning and the end --------------------------------------------------------------------


cdef inline int tls_handshake(tls_t *tls, uint64_t now_ns) noexcept nogil:
    # One step with the next record that has come: 1: done, TLS_NOTHING: more is needed,
    # TLS_REFUSED or TLS_BARREN. What it wants to say is for tls_flush(), in every case.
    cdef size_t size = feed_record(tls)
    cdef int result
    ERR_clear_error()
    result = SSL_do_handshake(tls.ssl)
    if result == 1:
        tls.barren_bytes = 0
        return 1
    if SSL_get_error(tls.ssl, result) != SSL_ERROR_WANT_READ:
        return tls_refused(tls)
    return TLS_BARREN if size and not barren_allowed(tls, size, now_ns) else TLS_NOTHING


cdef inline void tls_goodbye(tls_t *tls) noexcept nogil:
    # Makes our close_notify; that the peer's has not come yet is not of interest.
    ERR_clear_error()
    SSL_shutdown(tls.ssl)
    ERR_clear_error()


cdef inline void tls_free(tls_t *tls) noexcept nogil:
    if tls.ssl != NULL:
        SSL_free(tls.ssl)
        tls.ssl = NULL
    free_bytes(&tls.incoming)
    free_bytes(&tls.outgoing)
