"""Memory of just the size that is asked for, so that a sanitizer sees a step outside."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy


cdef class Exact:
    """`length` bytes of memory and not one more."""

    def __cinit__(self, size_t length):
        if length >= <size_t>1 << 40:
            raise MemoryError
        self.length = length
        self.bytes = <uint8_t *>malloc(length)
        if self.bytes == NULL and length:
            raise MemoryError

    def __dealloc__(self):
        free(self.bytes)

    cdef bytes copy(self):
        return view(self.bytes, self.length)


cdef Exact copy_of(data):
    """The bytes of any object that lends them."""
    cdef Py_buffer buffer
    cdef Exact copied
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        copied = Exact(buffer.len)
        if buffer.len:
            memcpy(copied.bytes, buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)
    return copied


cdef class Record:
    """One byte for the inner type, a virtio header and a frame in memory of just that size."""

    def __cinit__(self, vnet not None, frame not None):
        cdef Exact header = copy_of(vnet)
        cdef Exact payload = copy_of(frame)
        if header.length != VNET_HEADER_BYTES:
            raise ValueError(f"a virtio header has {VNET_HEADER_BYTES} bytes, not {header.length}")
        self.whole = Exact(TYPE_AND_VNET + payload.length)
        self.vnet = self.whole.bytes + 1
        self.frame = self.whole.bytes + TYPE_AND_VNET
        self.frame_bytes = payload.length
        memcpy(self.vnet, header.bytes, VNET_HEADER_BYTES)
        memcpy(self.frame, payload.bytes, payload.length)
