"""TLS by OpenSSL: contexts, and connections that are fed by hand.

A connection belongs to one thread at a time: to the hub until it is given to the data plane
(``_fastpath.Pipe.carry``), and again afterwards. Which bytes of the peer OpenSSL gets to work on is
decided in ``fast/tls.pxd``.

Not Python's ssl module, whose connections no C code can read or write without the GIL.
Source: protocol section 5.
"""

from libc.stddef cimport size_t

from .base cimport *
from .tls cimport *

import errno as errors
import os

cdef extern from "<openssl/ssl.h>":
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    const SSL_METHOD *TLS_server_method()
    const SSL_METHOD *TLS_client_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
    void SSL_CTX_free(SSL_CTX *context)
    int SSL_CTX_set_min_proto_version(SSL_CTX *context, int version)
    int SSL_CTX_set_max_proto_version(SSL_CTX *context, int version)
    uint64_t SSL_CTX_set_options(SSL_CTX *context, uint64_t options)
    long SSL_CTX_set_mode(SSL_CTX *context, long mode)
    int SSL_CTX_set_ciphersuites(SSL_CTX *context, const char *names)
    int SSL_CTX_set_num_tickets(SSL_CTX *context, size_t count)
    int SSL_CTX_set_alpn_protos(SSL_CTX *context, const uint8_t *protocols, unsigned int size)
    void SSL_CTX_set_alpn_select_cb(
        SSL_CTX *context,
        int (*choose)(SSL *, const uint8_t **, uint8_t *, const uint8_t *, unsigned int,
                      void *) noexcept nogil, void *argument)
    int SSL_select_next_proto(uint8_t **out, uint8_t *out_size, const uint8_t *ours,
                              unsigned int ours_size, const uint8_t *theirs,
                              unsigned int theirs_size) nogil
    void SSL_CTX_set_default_passwd_cb(
        SSL_CTX *context, int (*ask)(char *, int, int, void *) noexcept nogil)
    void SSL_CTX_set_default_passwd_cb_userdata(SSL_CTX *context, void *argument)
    int SSL_CTX_use_certificate_chain_file(SSL_CTX *context, const char *path)
    int SSL_CTX_use_PrivateKey_file(SSL_CTX *context, const char *path, int type)
    SSL *SSL_new(SSL_CTX *context)
    void SSL_set_accept_state(SSL *ssl)
    void SSL_set_connect_state(SSL *ssl)
    int SSL_set_tlsext_host_name(SSL *ssl, const char *name)
    void SSL_set_bio(SSL *ssl, BIO *read, BIO *write)
    X509 *SSL_get_peer_certificate(const SSL *ssl)
    const char *SSL_get_version(const SSL *ssl)
    const char *SSL_get_cipher(const SSL *ssl)
    void SSL_get0_alpn_selected(const SSL *ssl, const uint8_t **protocol, unsigned int *size)
    int TLS1_3_VERSION, SSL_FILETYPE_PEM, SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_NOACK
    uint64_t SSL_OP_NO_COMPRESSION, SSL_OP_IGNORE_UNEXPECTED_EOF
    long SSL_MODE_RELEASE_BUFFERS

cdef extern from "<openssl/bio.h>":
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    int BIO_get_new_index()
    BIO_METHOD *BIO_meth_new(int type, const char *name)
    int BIO_meth_set_read_ex(BIO_METHOD *method,
                             int (*give)(BIO *, char *, size_t, size_t *) noexcept nogil)
    int BIO_meth_set_write_ex(BIO_METHOD *method,
                              int (*take)(BIO *, const char *, size_t, size_t *) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD *method,
                          long (*control)(BIO *, int, long, void *) noexcept nogil)
    BIO *BIO_new(const BIO_METHOD *method)
    void BIO_set_init(BIO *bio, int init)
    void BIO_set_data(BIO *bio, void *data)
    void *BIO_get_data(BIO *bio) nogil
    void BIO_clear_retry_flags(BIO *bio) nogil
    void BIO_set_retry_read(BIO *bio) nogil
    int BIO_CTRL_FLUSH, BIO_TYPE_SOURCE_SINK

cdef extern from "<openssl/x509.h>":
    ctypedef struct X509:
        pass
    int i2d_X509(X509 *certificate, uint8_t **out)
    void X509_free(X509 *certificate)

cdef extern from "<openssl/err.h>":
    const char *ERR_reason_error_string(unsigned long error)

#: TLS 1.3 suites in the order in which browsers have them. TLS hides what we are; what it carries is
#: sealed by keys of 256 bits, so the faster AES does.
CIPHER_SUITES = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
)


class TlsError(OSError):
    """TLS failed on a connection, for OpenSSL's reason, which is ``strerror``."""

    def __init__(self, reason):
        super().__init__(errors.EPROTO, reason)


class TlsFlood(ConnectionAbortedError):
    """The peer makes work and sends no data, or too much before it may."""

    def __init__(self, what):
        super().__init__(errors.ECONNABORTED, what)


# --- What OpenSSL calls ---------------------------------------------------------------------------


cdef int give(BIO *bio, char *buffer, size_t count, size_t *given) noexcept nogil:
    given[0] = give_fed(<tls_t *>BIO_get_data(bio), buffer, count)
    BIO_clear_retry_flags(bio)
    if given[0] == 0:
        BIO_set_retry_read(bio)
    return given[0] != 0


cdef int take(BIO *bio, const char *data, size_t count, size_t *taken) noexcept nogil:
    BIO_clear_retry_flags(bio)
    if not keep_sealed(<tls_t *>BIO_get_data(bio), data, count):
        taken[0] = 0
        return 0
    taken[0] = count
    return 1


cdef long control(BIO *bio, int command, long number, void *pointer) noexcept nogil:
    # Nothing to flush: what is written is kept at once.
    return command == BIO_CTRL_FLUSH


cdef int choose_protocol(SSL *ssl, const uint8_t **chosen, uint8_t *size, const uint8_t *theirs,
                         unsigned int theirs_size, void *ours) noexcept nogil:
    # `ours`: as in a ClientHello, one name with its length in front.
    cdef const uint8_t *known = <const uint8_t *>ours
    if SSL_select_next_proto(<uint8_t **>chosen, size, known, known[0] + 1,
                             theirs, theirs_size) == 1:
        return SSL_TLSEXT_ERR_OK
    return SSL_TLSEXT_ERR_NOACK


cdef int refuse_password(char *buffer, int size, int writing, void *asked) noexcept nogil:
    # Without this OpenSSL asks on the terminal and the daemon hangs.
    (<int *>asked)[0] = 1
    return -1


cdef BIO_METHOD *make_method() except NULL:
    cdef BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "by hand")
    if method == NULL:
        raise MemoryError
    BIO_meth_set_read_ex(method, give)
    BIO_meth_set_write_ex(method, take)
    BIO_meth_set_ctrl(method, control)
    return method


cdef BIO_METHOD *BY_HAND = make_method()


cdef str reason_of(unsigned long error):
    cdef const char *text = ERR_reason_error_string(error)
    return "OpenSSL gives no reason" if text == NULL else text.decode("ascii", "replace")


# --- Contexts and connections ---------------------------------------------------------------------


cdef class TlsContext:
    """What the connections of one side have in common: TLS 1.3 only, no tickets, no verification."""

    cdef SSL_CTX *context
    cdef bytes protocol         # with its length in front
    cdef readonly bint server

    def __cinit__(self, bint server, str alpn not None):
        """
        Args:
            alpn: the one application protocol that is offered and taken.
        """
        self.server = server
        self.context = SSL_CTX_new(TLS_server_method() if server else TLS_client_method())
        if self.context == NULL:
            raise MemoryError
        name = alpn.encode("ascii")
        self.protocol = bytes([len(name)]) + name
        SSL_CTX_set_min_proto_version(self.context, TLS1_3_VERSION)
        SSL_CTX_set_max_proto_version(self.context, TLS1_3_VERSION)
        SSL_CTX_set_options(self.context, SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF)
        # A connection that is idle keeps none of OpenSSL's two buffers of 17 KiB.
        SSL_CTX_set_mode(self.context, SSL_MODE_RELEASE_BUFFERS)
        if SSL_CTX_set_ciphersuites(self.context, ":".join(CIPHER_SUITES).encode("ascii")) != 1:
            raise self._refused()
        if server:
            # A peer stays for hours: a resumption ticket would save nothing and be a secret more.
            SSL_CTX_set_num_tickets(self.context, 0)
            SSL_CTX_set_alpn_select_cb(self.context, choose_protocol,
                                       <void *><const char *>self.protocol)
        elif SSL_CTX_set_alpn_protos(self.context, self.protocol, len(self.protocol)) != 0:
            raise MemoryError

    def __dealloc__(self):
        if self.context != NULL:
            SSL_CTX_free(self.context)

    def load(self, cert_path not None, key_path not None) -> None:
        """Serve the certificate chain and key of two PEM files.

        Raises:
            TlsError: OpenSSL does not take them; its ``strerror`` is OpenSSL's reason.
            PermissionError: the key is protected by a password.
        """
        cdef bytes cert = os.fsencode(cert_path)
        cdef bytes key = os.fsencode(key_path)
        cdef int asked = 0
        ERR_clear_error()
        SSL_CTX_set_default_passwd_cb(self.context, refuse_password)
        SSL_CTX_set_default_passwd_cb_userdata(self.context, &asked)
        try:
            # The second of the two finds out whether they belong together.
            if (SSL_CTX_use_certificate_chain_file(self.context, cert) != 1
                    or SSL_CTX_use_PrivateKey_file(self.context, key, SSL_FILETYPE_PEM) != 1):
                if asked:
                    ERR_clear_error()
                    raise PermissionError("the key is protected by a password")
                raise self._refused()
        finally:
            SSL_CTX_set_default_passwd_cb_userdata(self.context, NULL)

    def _refused(self):
        # The last one says most: those before it are of attempts that went on.
        error = ERR_peek_error()
        ERR_clear_error()
        return TlsError(reason_of(error))


cdef ssize_t checked(const tls_t *state, ssize_t code) except? -1:
    # What a function of fast/tls.pxd returned, or an exception.
    cdef int number = errno
    if code >= 0:
        return code
    if code == TLS_REFUSED:
        raise TlsError(reason_of(state.error))
    if code == TLS_BROKEN:
        raise OSError(number, os.strerror(number))
    if code == TLS_NO_MEMORY:
        raise MemoryError
    if code == TLS_TOO_MUCH:
        raise TlsFlood("it sent too much before it was upgraded")
    raise TlsFlood("it sent TLS records without data, one after the other")


cdef class Tls:
    """One connection. What is received and what is sealed waits in here."""

    def __cinit__(self, TlsContext context not None, str server_name=None, allowance=None):
        """
        Args:
            server_name: what a client asks for (SNI), in ASCII; None: nothing.
            allowance: bytes of TCP that the peer may send until :meth:`unlimit`; None: no limit.
        """
        cdef BIO *bio
        self.context = context
        self.state.ssl = SSL_new(context.context)
        bio = BIO_new(BY_HAND)
        if self.state.ssl == NULL or bio == NULL:
            raise MemoryError
        BIO_set_data(bio, &self.state)
        BIO_set_init(bio, 1)
        SSL_set_bio(self.state.ssl, bio, bio)
        if context.server:
            SSL_set_accept_state(self.state.ssl)
        else:
            SSL_set_connect_state(self.state.ssl)
        if server_name is not None:
            SSL_set_tlsext_host_name(self.state.ssl, server_name.encode("ascii"))
        if allowance is not None:
            self.state.limited = 1
            self.state.allowance = allowance

    def __dealloc__(self):
        tls_free(&self.state)

    @property
    def ready(self) -> bool:
        """:meth:`read_into` has something to do before anything else arrives."""
        return tls_ready(&self.state)

    @property
    def holds_record(self) -> bool:
        """:meth:`read_into` has a record, or the rest of one, without :meth:`receive`."""
        return self.state.rest or record_size(&self.state) > 0

    @property
    def unsent_bytes(self) -> int:
        """What :meth:`flush` has to send."""
        return self.state.outgoing.end - self.state.outgoing.start

    @property
    def buffer_bytes(self) -> int:
        """Memory for what is received."""
        return self.state.incoming.size

    @property
    def ended(self) -> bool:
        """The peer sends nothing more."""
        return self.state.ended

    def unlimit(self) -> None:
        """Let the peer send as much as it likes."""
        self.state.limited = 0

    def handshake(self) -> bool:
        """Take one step with what has come; True when it is done. Call :meth:`flush` either way.

        Raises:
            TlsError, TlsFlood: it is over; there may be an alert to flush.
        """
        return checked(&self.state, tls_handshake(&self.state, boottime_ns())) == 1

    def receive(self, int fd) -> int:
        """Take once from TCP; how much, 0 for nothing, or at the end. Raises OSError."""
        return checked(&self.state, tls_receive(&self.state, fd))

    def read_into(self, uint8_t[::1] buffer not None) -> int:
        """Open one record and put its data into `buffer`; how much, 0: none this time.

        Raises:
            TlsError: the peer broke TLS.
            TlsFlood: it sends records without data.
        """
        if buffer.shape[0] == 0:
            raise ValueError("no room to read into")
        return checked(&self.state, 
            tls_read(&self.state, &buffer[0], buffer.shape[0], boottime_ns()))

    def write(self, const uint8_t[::1] data not None) -> None:
        """Seal all of `data`, which :meth:`flush` sends; at most 192 KiB may wait."""
        if data.shape[0]:
            checked(&self.state, tls_write(&self.state, &data[0], data.shape[0]))

    def flush(self, int fd) -> bool:
        """Send what is sealed; False: TCP does not take all of it now. Raises OSError."""
        return checked(&self.state, tls_flush(&self.state, fd)) == 1

    def goodbye(self) -> None:
        """Seal a close_notify."""
        tls_goodbye(&self.state)

    def discard(self) -> None:
        """Throw away what was received."""
        self.state.incoming.start = self.state.incoming.end = self.state.fed = 0

    def peer_certificate(self) -> bytes:
        """The DER form of the certificate that the peer showed; b"" for none."""
        cdef X509 *certificate = SSL_get_peer_certificate(self.state.ssl)
        cdef uint8_t *out
        if certificate == NULL:
            return b""
        try:
            der = bytearray(i2d_X509(certificate, NULL))
            out = der
            i2d_X509(certificate, &out)
            return bytes(der)
        finally:
            X509_free(certificate)

    def negotiated(self) -> tuple:
        """Return TLS version, cipher suite and application protocol (None without one)."""
        cdef const uint8_t *protocol = NULL
        cdef unsigned int size = 0
        SSL_get0_alpn_selected(self.state.ssl, &protocol, &size)
        return (
            SSL_get_version(self.state.ssl).decode("ascii"),
            SSL_get_cipher(self.state.ssl).decode("ascii"),
            (<const char *>protocol)[:size].decode("ascii", "replace") if size else None,
        )
