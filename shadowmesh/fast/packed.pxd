# Several frames in one datagram and a frame in two: full datagrams, whatever the size of the frames.
#
#   A frame of 1,500 bytes does not fit a path of 1,500; in a datagram of its own it would take two.
#
#   counter n       | 12 | u16 0     | u16 length, record | u16 length, rec-
#   counter n + 1   | 12 | u16 bytes | -ord               | u16 length, record | u16 length, re-
#   counter n + 2   | 12 | u16 bytes | -cord              | zeros
#
# A record is what a datagram of its own would carry: inner type 1 or 9 and the frame. The second
# field is how many bytes end the record that the datagram with the counter before has begun. A
# record lies in two at most, its length is whole in the first. A length of zero, or fewer than
# PACKED_ENTRY_BYTES, is padding to the end (protocol section 6).
#
# Only for who has said that it takes them (control code 6). Who loses a datagram loses the frames
# that have a part in it. Here is where the bytes go; udp_out.pxd writes them, udp_pieces.pxd takes
# them apart.

from libc.stddef cimport size_t
from .base cimport *

cdef enum:
    PACKED_HEADER_BYTES = 3     # inner type, u16 bytes
    PACKED_LENGTH_BYTES = 2
    PACKED_ENTRY_BYTES = 3      # a length and one byte of the record
    # Packing copies every frame, so it is to spare one datagram of so many.
    PACKING_SPARES = 8

ctypedef struct packing_t:      # of datagrams to come
    size_t room                 # of each, without PACKED_HEADER_BYTES
    size_t left                 # of the last one
    size_t datagrams


cdef inline bint packs(size_t room, size_t record_bytes) noexcept nogil:
    # Whether a record lies in no more than two datagrams wherever it begins.
    return PACKED_LENGTH_BYTES + record_bytes <= 2 * room


cdef inline bint begins_anew(const packing_t *packing, size_t record_bytes) noexcept nogil:
    # Whether a record cannot begin in what is left of the last datagram.
    cdef size_t entry = PACKED_LENGTH_BYTES + record_bytes
    return entry > packing.left and (packing.left < PACKED_ENTRY_BYTES
                                     or entry - packing.left > packing.room)


cdef inline void packing_place(packing_t *packing, size_t record_bytes) noexcept nogil:
    # One more record, for which packs() is true.
    cdef size_t entry = PACKED_LENGTH_BYTES + record_bytes
    if begins_anew(packing, record_bytes):
        packing.datagrams += 1
        packing.left = packing.room
    if entry > packing.left:
        entry -= packing.left
        packing.datagrams += 1
        packing.left = packing.room
    packing.left -= entry
