# What the data plane needs of a TLS connection: its state, without Python.

from .tls cimport tls_t


cdef class Tls:
    cdef tls_t state
    cdef object context         # its SSL_CTX calls back into it


cdef ssize_t checked(const tls_t *state, ssize_t code) except? -1
