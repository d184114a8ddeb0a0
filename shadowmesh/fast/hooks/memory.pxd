# Memory of just the size that is asked for, so that a sanitizer sees a step outside.

from shadowmesh.fast.base cimport *
from shadowmesh.fast.frame cimport VNET_HEADER_BYTES

cdef enum:
    TYPE_AND_VNET = 1 + VNET_HEADER_BYTES


cdef class Exact:               # `length` bytes and not one more
    cdef uint8_t *bytes
    cdef size_t length
    cdef bytes copy(self)


cdef class Record:              # one byte for the inner type, a virtio header and a frame
    cdef Exact whole
    cdef uint8_t *vnet
    cdef uint8_t *frame
    cdef size_t frame_bytes


cdef Exact copy_of(data)


cdef inline bytes view(const uint8_t *p, size_t n):
    return p[:n]
