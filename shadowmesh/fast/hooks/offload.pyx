"""Super-frames: checksums, cutting and joining (fast/checksum.pxd, headers.pxd, offload.pxd)."""

from libc.string cimport memcpy, memset
from shadowmesh.fast.base cimport *
from shadowmesh.fast.checksum cimport *
from shadowmesh.fast.datagram cimport iovec
from shadowmesh.fast.frame cimport *
from shadowmesh.fast.headers cimport *
from shadowmesh.fast.offload cimport *
from shadowmesh.fast.hooks.memory cimport *

cdef enum:
    USED = 0xEE


def sum_of(data not None, size_t skip=0):
    """Folded ones-complement sum of `data` from `skip` on."""
    cdef Exact copied = copy_of(data)
    if skip >= copied.length:
        return 0
    return sum_bytes(copied.bytes + skip, copied.length - skip)


def complete(vnet, frame):
    """Return (virtio header, frame) with the checksum filled in; None when refused."""
    cdef Record record = Record(vnet, frame)
    if complete_checksum(record.vnet, record.frame, record.frame_bytes):
        return None
    return view(record.vnet, VNET_HEADER_BYTES), view(record.frame, record.frame_bytes)


def parse(vnet, frame):
    """Return the fields of flow_t of a super-frame, or the negative E_ code."""
    cdef Record record = Record(vnet, frame)
    cdef flow_t flow
    cdef int error = parse_super(record.vnet, record.frame, record.frame_bytes, &flow)
    if error:
        return error
    return flow


def segment(vnet, frame, uint32_t max_frame_bytes, bint finished=False):
    """Return the list of (virtio header, frame) that a super-frame is cut to, or an E_ code.

    Everything that the segmenter has handed out is overwritten before it is asked for more.
    """
    cdef Record record = Record(vnet, frame)
    cdef segmenter_t s
    cdef uint8_t *cut
    cdef size_t cut_bytes
    cdef int count = segment_begin(&s, record.vnet, record.frame_bytes, max_frame_bytes, finished)
    if count < 0:
        return count
    frames = []
    while segment_next(&s, &cut, &cut_bytes):
        frames.append((view(cut - VNET_HEADER_BYTES, VNET_HEADER_BYTES), view(cut, cut_bytes)))
        memset(cut - TYPE_AND_VNET, USED, TYPE_AND_VNET + cut_bytes)
    if len(frames) != count:
        raise AssertionError(f"{count} segments were promised, {len(frames)} came")
    return frames


def join(frames, bint join_udp=True):
    """Return the list of trains (virtio header, frame, number of frames) that frames come to."""
    cdef joiner_t j
    cdef Record record
    records = [Record(vnet, frame) for vnet, frame in frames]
    trains = []
    join_reset(&j, join_udp)
    for record in records:
        if not join_add(&j, record.vnet, record.frame_bytes):
            trains.append(finish(&j))
            if not join_add(&j, record.vnet, record.frame_bytes):
                raise AssertionError("an empty joiner has refused a frame")
    if records:
        trains.append(finish(&j))
    return trains


cdef tuple finish(joiner_t *j):
    cdef iovec *pieces
    cdef size_t frame_bytes
    cdef int count = join_finish(j, &pieces, &frame_bytes)
    cdef int i
    whole = b"".join([view(<uint8_t *>pieces[i].iov_base, pieces[i].iov_len)
                      for i in range(count)])
    if <size_t>len(whole) != VNET_HEADER_BYTES + frame_bytes:
        raise AssertionError(f"{frame_bytes} bytes were promised, {len(whole)} came")
    return whole[:VNET_HEADER_BYTES], whole[VNET_HEADER_BYTES:], count


def time_segment(vnet, frame, uint32_t max_frame_bytes, bint finished, uint32_t rounds):
    """Return the ns that cutting one super-frame takes, with the copy that restores it each time,
    the ns of that copy alone, and the number of segments."""
    cdef Record record = Record(vnet, frame)
    cdef Record kept = Record(vnet, frame)
    cdef segmenter_t s
    cdef uint8_t *cut
    cdef size_t cut_bytes
    cdef size_t total = TYPE_AND_VNET + record.frame_bytes
    cdef int count = 0
    cdef uint64_t begin, middle
    cdef uint32_t i
    begin = boottime_ns()
    for i in range(rounds):
        memcpy(record.whole.bytes, kept.whole.bytes, total)
        count = segment_begin(&s, record.vnet, record.frame_bytes, max_frame_bytes, finished)
        while segment_next(&s, &cut, &cut_bytes):
            pass
    middle = boottime_ns()
    for i in range(rounds):
        memcpy(record.whole.bytes, kept.whole.bytes, total)
        kept.whole.bytes[0] = <uint8_t>i
    return (middle - begin) // rounds, (boottime_ns() - middle) // rounds, count


def time_join(frames, uint32_t rounds):
    """Return the ns that joining `frames`, which make one train, takes."""
    cdef joiner_t j
    cdef iovec *pieces
    cdef size_t frame_bytes
    cdef Record record
    cdef uint8_t *vnets[MAX_JOINED_TCP]
    cdef size_t sizes[MAX_JOINED_TCP]
    cdef uint8_t head[VNET_HEADER_BYTES + MAX_HEADERS]
    cdef int count = 0
    cdef int joined = 0
    cdef uint64_t begin
    cdef int k
    cdef uint32_t i
    records = [Record(vnet, frame) for vnet, frame in frames]
    if not 0 < len(records) <= MAX_JOINED_TCP:
        raise ValueError(f"{len(records)} frames are not 1..{MAX_JOINED_TCP}")
    for record in records:
        vnets[count] = record.vnet
        sizes[count] = record.frame_bytes
        count += 1
    memset(head, 0, sizeof(head))
    memcpy(head, vnets[0], min(sizeof(head), VNET_HEADER_BYTES + sizes[0]))
    join_reset(&j, True)
    begin = boottime_ns()
    for i in range(rounds):
        memcpy(vnets[0], head, min(sizeof(head), VNET_HEADER_BYTES + sizes[0]))
        for k in range(count):
            if not join_add(&j, vnets[k], sizes[k]):
                break
        joined = join_finish(&j, &pieces, &frame_bytes)
    if joined != count:
        raise AssertionError(f"{joined} of {count} frames were joined")
    return (boottime_ns() - begin) // rounds
