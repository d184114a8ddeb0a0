"""Where frames wait: the backlog of a slow link, the device's queues, rings, captures."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from shadowmesh.fast.base cimport *
from shadowmesh.fast.admit cimport MAX_SEGMENTS
from shadowmesh.fast.backlog cimport *
from shadowmesh.fast.capture cimport *
from shadowmesh.fast.datagram cimport FRAGMENT_HEADER_BYTES, iovec
from shadowmesh.fast.flow cimport flow_hash as hash_flow
from shadowmesh.fast.frame cimport VNET_HEADER_BYTES
from shadowmesh.fast.line cimport *
from shadowmesh.fast.ring cimport *
from shadowmesh.fast.session cimport INNER_FRAME
from shadowmesh.fast.steer cimport steer_in, steer_now_ms, steer_out, steer_reset
from shadowmesh.fast.tap cimport tap_t
from shadowmesh.fast.hooks.memory cimport *

SIZES = {
    "RING_BYTES": RING_BYTES,
    "RING_MESSAGES": RING_MESSAGES,
    "CONTROL_RESERVE": CONTROL_RESERVE,
    "FIRST_LIMIT": FIRST_LIMIT,
    "MIN_LIMIT": MIN_LIMIT,
    "LINE_FIRST": LINE_FIRST,
    "LINE_LEAST": LINE_LEAST,
    "LINE_MOST": LINE_MOST,
    "LINE_QUEUE_NS": LINE_QUEUE_NS,
    "FLOWS": FLOWS,
    "PARKED_FRAMES": PARKED_FRAMES,
    "LANE_FRAMES": LANE_FRAMES,
    "LANE_BYTES": LANE_BYTES,
    "BATCH_FRAMES": BATCH_FRAMES,
    "CAPTURE_BYTES": CAPTURE_BYTES,
    "KEPT_BYTES": KEPT_BYTES,
    "PAGE_BYTES": PAGE_BYTES,
    "MAX_SEGMENTS": MAX_SEGMENTS,
    "FRAGMENT_HEADER_BYTES": FRAGMENT_HEADER_BYTES,
}


# --- Frames that wait (fast/backlog.pxd) ----------------------------------------------------------


def stride(size_t inner_bytes):
    """From where a frame begins in the arena to where the next one does."""
    return slot_stride(inner_bytes)


cdef class Backlog:
    """Frames for one peer that wait, where they are read or copied."""

    cdef store_t *store
    cdef lane_t lane
    cdef parked_t *chosen

    def __cinit__(self):
        memset(&self.lane, 0, sizeof(lane_t))
        self.store = store_new()
        if self.store == NULL or not lane_provide(&self.lane):
            raise MemoryError

    def __dealloc__(self):
        while self.lane.first != NULL:
            lane_remove(self.store, self.lane.first)
        give_back(self.store)
        free(self.lane.flows)
        store_free(self.store)

    @property
    def waiting(self):
        """How many frames, and how many bytes with their inner type."""
        return self.lane.waiting, self.lane.waiting_bytes

    @property
    def copied(self):
        """Bytes that are not in the arena."""
        return self.store.copied_bytes

    def park(self, list frames not None, uint64_t now_ns):
        """Read a batch of plain frames and let all of it wait; False when there is no room."""
        cdef size_t start
        cdef size_t end = arena_room(self.store, SLOT_BYTES, &start)
        cdef slot_t slot
        cdef bytes frame
        if store_full(self.store) or end < SLOT_BYTES:
            return False
        end += start
        if len(frames) > BATCH_FRAMES or start + sum(map(len, frames)) + 64 * len(frames) > end:
            raise ValueError("more than a batch, or than the room for it")
        for frame in frames:
            slot.inner = self.store.arena + start
            slot.inner_bytes = <uint32_t>(1 + len(frame))
            slot.inner[0] = INNER_FRAME
            memcpy(slot.inner + 1, <const uint8_t *>frame, len(frame))
            park_in_place(self.store, &self.lane, &slot, now_ns)
            start += (slot.inner_bytes + 63) // 64 * 64
        self.store.spare = start
        return True

    def park_copy(self, bytes frame not None, uint64_t now_ns):
        """Let a copy of a frame wait; False when there are too many."""
        cdef bytes inner = bytes([INNER_FRAME]) + frame
        return bool(park_copy(self.store, &self.lane, inner, len(inner), now_ns))

    def move_oldest(self):
        """Copy the frame that has been in the arena for longest; False: there is none, or no room."""
        return bool(move_oldest(self.store))

    def next(self, uint64_t now_ns, bint dropping):
        """Return the frame whose turn it is, or None, and how many CoDel has dropped."""
        cdef int dropped = 0
        self.chosen = lane_next(self.store, &self.lane, now_ns, dropping, &dropped)
        give_back(self.store)
        return (None if self.chosen == NULL else self.frame(self.chosen)), dropped

    def take(self):
        """That frame is sealed."""
        lane_take(self.store, self.chosen)
        give_back(self.store)

    def shed(self):
        """Drop the frame that came first, and return it."""
        cdef parked_t *oldest = self.lane.first
        if oldest == NULL:
            return None
        dropped = self.frame(oldest)
        lane_remove(self.store, oldest)
        give_back(self.store)
        return dropped

    cdef bytes frame(self, const parked_t *parked):
        return view(parked.slot.inner + 1, parked.slot.inner_bytes - 1)


# --- What the host may hold (fast/line.pxd) --------------------------------------------------------


cdef class Line:
    """One line, of which nothing is known."""

    cdef line_t line

    def __cinit__(self):
        line_reset(&self.line)

    @property
    def limit(self):
        return self.line.limit

    def look_due(self, uint64_t now_ns):
        return bool(line_look_due(&self.line, now_ns))

    def look(self, uint64_t sent, uint64_t held, uint64_t now_ns):
        """So much was sent since the last look, and the host holds so much now."""
        line_sent(&self.line, sent)
        line_learn(&self.line, held, now_ns)

    def meet(self):
        """Somebody waits for the limit."""
        sm_set_flag(&self.line.met, 1)


# --- Queues of the device (fast/steer.pxd) ---------------------------------------------------------


def flow_hash(frame not None):
    """The number of the flow that a frame belongs to."""
    cdef Exact copied = copy_of(frame)
    return hash_flow(copied.bytes, copied.length)


cdef class Steering:
    """A device with so many queues."""

    cdef tap_t *tap

    def __cinit__(self, int queues):
        self.tap = <tap_t *>calloc(1, sizeof(tap_t))
        if self.tap == NULL:
            raise MemoryError
        steer_reset(self.tap, queues)

    def __dealloc__(self):
        free(self.tap)

    def into(self, bytes frame not None):
        """The queue that a frame from the peer is written to."""
        return steer_in(self.tap, frame, len(frame))

    def out(self, int queue, bytes frame not None, uint64_t later_ms=0):
        """A frame of the host came from that queue, so many milliseconds from now."""
        steer_out(self.tap, queue, frame, len(frame), steer_now_ms() + later_ms)


# --- Ring (fast/ring.pxd) ------------------------------------------------------------------------

cdef enum:
    RING_MEMORY_BYTES = RING_BYTES + RING_MESSAGES * 8      # 8: sizeof(ring_entry_t)
    NO_TIME = 1                 # always the same moment: the limit of the ring stays what it is


cdef size_t end_of_use(const uint8_t *memory, size_t size) noexcept nogil:
    while size and not memory[size - 1]:
        size -= 1
    return size


cdef class Ring:
    """A ring with its eventfds. commit() and produce() belong to one thread, the rest to another.
    """

    cdef ring_t ring

    def __cinit__(self, uint64_t limit=RING_BYTES):
        cdef void *memory = mmap(NULL, RING_MEMORY_BYTES, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError
        self.ring.bytes = <uint8_t *>memory
        self.ring.entries = <ring_entry_t *>(self.ring.bytes + RING_BYTES)
        self.ring.wakeup_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.ring.space_fds[0] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        ring_init(&self.ring)
        self.ring.limit = limit
        if min(self.ring.wakeup_fd, self.ring.space_fds[0]) < 0:
            raise MemoryError

    def __dealloc__(self):
        if self.ring.bytes != NULL:
            munmap(self.ring.bytes, RING_MEMORY_BYTES)
        close(self.ring.wakeup_fd)
        close(self.ring.space_fds[0])

    @property
    def wakeup_fd(self):
        return self.ring.wakeup_fd

    @property
    def space_fd(self):
        return self.ring.space_fds[0]

    @property
    def frames(self):
        """(committed, consumed)"""
        return self.ring.frames_in, self.ring.frames_out

    def space(self):
        return ring_space(&self.ring)

    @property
    def limit(self):
        """Bytes of frames that may wait."""
        return self.ring.limit

    @property
    def piece(self):
        return ring_piece(&self.ring)

    def allowance(self):
        return ring_allowance(&self.ring)

    @property
    def touched(self):
        """(bytes, bytes of entries) up to the last that is not 0: how far the ring was in use."""
        return (end_of_use(self.ring.bytes, RING_BYTES),
                end_of_use(<const uint8_t *>self.ring.entries, RING_MESSAGES * sizeof(ring_entry_t)))

    def give_back(self):
        ring_give_back(&self.ring)

    @property
    def position(self):
        return ring_position(&self.ring)

    def commit(self, message not None, uint32_t frames=0):
        """Append one message; False when it does not fit."""
        cdef Exact held = copy_of(message)
        cdef uint8_t *place = ring_reserve(&self.ring, held.length)
        if place == NULL:
            return False
        memcpy(place, held.bytes, held.length)
        ring_commit(&self.ring, place, held.length, frames)
        ring_wake(&self.ring)
        return True

    def peek(self):
        """Return a copy of the bytes that may be sent."""
        cdef uint8_t *start = NULL
        cdef size_t length
        drain_fd(self.ring.wakeup_fd)
        length = ring_peek(&self.ring, &start)
        return view(start, length) if length else b""

    def consume(self, size_t length, uint64_t now_ns=NO_TIME):
        cdef uint8_t *start = NULL
        if length > ring_peek(&self.ring, &start):
            raise ValueError(f"{length} bytes are not there to consume")
        ring_consume(&self.ring, length, now_ns)

    def starve(self):
        """What a producer does that has found no space: False when it need not wait after all."""
        return bool(ring_starve(&self.ring, 0))

    def produce(self, uint64_t messages, uint32_t seed, int timeout_ms):
        """Commit `messages` of mixed sizes, each byte counting on from the last; waits for space.

        Returns the number of messages for which space came within the time.
        """
        cdef uint64_t done = 0
        cdef uint8_t value = 0
        cdef uint8_t *place
        cdef size_t length, i
        cdef pollfd space
        with nogil:
            space.fd = self.ring.space_fds[0]
            space.events = POLLIN
            while done < messages:
                seed = seed * 1664525 + 1013904223
                length = 1 + (seed >> 8) % (70000 if seed >> 30 == 0 else 300)
                ring_lock(&self.ring)
                place = ring_reserve(&self.ring, length)
                while place == NULL:
                    ring_unlock(&self.ring)
                    if ring_starve(&self.ring, 0):
                        if poll(&space, 1, timeout_ms) <= 0:
                            break
                        drain_fd(self.ring.space_fds[0])
                    ring_lock(&self.ring)
                    place = ring_reserve(&self.ring, length)
                if place == NULL:
                    break
                for i in range(length):
                    place[i] = value
                    value += 1
                ring_commit(&self.ring, place, length, 1)
                ring_wake(&self.ring)
                ring_unlock(&self.ring)
                done += 1
        return done

    def drain(self, uint64_t messages, uint32_t seed, int timeout_ms):
        """Consume until `messages` are through, in pieces of mixed sizes; waits on wakeup_fd.

        Returns (messages, bytes, wrong bytes); fewer messages when nothing came within the time.
        """
        cdef uint64_t total = 0
        cdef uint64_t wrong = 0
        cdef uint8_t value = 0
        cdef uint8_t *start = NULL
        cdef size_t length, i
        cdef pollfd wakeup
        with nogil:
            wakeup.fd = self.ring.wakeup_fd
            wakeup.events = POLLIN
            while sm_counted(&self.ring.frames_out) < messages:
                drain_fd(self.ring.wakeup_fd)
                length = ring_peek(&self.ring, &start)
                if length == 0:
                    if poll(&wakeup, 1, timeout_ms) <= 0:
                        break
                    continue
                seed = seed * 1664525 + 1013904223
                if seed >> 31:
                    length = 1 + (seed >> 8) % length
                for i in range(length):
                    wrong += start[i] != value
                    value += 1
                total += length
                ring_consume(&self.ring, length, boottime_ns())
        return self.ring.frames_out, total, wrong


# --- Copies of frames (fast/capture.pxd) ----------------------------------------------------------


cdef class CaptureRing:
    """A ring in memory of its own. put() and produce() may run in any thread."""

    cdef capture_t capture
    cdef uint8_t *memory

    def __cinit__(self, uint32_t snap_bytes):
        self.capture.wakeup_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.memory = <uint8_t *>calloc(1, CAPTURE_BYTES)
        if self.memory == NULL or self.capture.wakeup_fd < 0:
            raise MemoryError
        capture_start(&self.capture, self.memory, snap_bytes, NULL)

    def __dealloc__(self):
        self.stop()
        free(self.memory)
        close(self.capture.wakeup_fd)

    @property
    def wakeup_fd(self):
        return self.capture.wakeup_fd

    @property
    def dropped(self):
        return self.capture.dropped

    @property
    def used(self):
        """Bytes that no frame can take."""
        return self.capture.written - self.capture.read

    def put(self, int direction, pieces not None, bint vnet=False):
        """Offer one frame; with `vnet` the first piece begins with a virtio header."""
        cdef iovec vectors[8]
        cdef list held = []
        cdef Exact piece
        cdef int count = 0
        for data in pieces:
            piece = copy_of(data)
            held.append(piece)
            vectors[count].iov_base = piece.bytes
            vectors[count].iov_len = piece.length
            count += 1
        capture_frame(&self.capture, direction, vectors, count, VNET_HEADER_BYTES if vnet else 0)

    def take(self):
        """Return (time_ns, direction, frame_bytes, segment_bytes, data); None: no frame."""
        cdef const captured_t *header = capture_next(&self.capture)
        cdef captured_t found
        cdef Exact data
        if header == NULL:
            return None
        found = header[0]
        data = Exact(found.held_bytes)
        capture_take(&self.capture, data.bytes)
        return (found.time_ns, found.direction, found.frame_bytes, found.segment_bytes,
                data.copy())

    def claim(self, uint64_t length):
        """Take a place as a writer does that is then stopped by the scheduler; None: no room."""
        cdef uint64_t at
        return at if capture_claim(&self.capture, length, &at) else None

    def finish(self, uint64_t at, uint64_t length):
        """What that writer does when it goes on; its frame is empty."""
        cdef captured_t *header = <captured_t *>(self.memory + at % CAPTURE_BYTES)
        sm_release(&header.ready, length)

    def stop(self):
        """End it; what is offered from now on goes nowhere."""
        capture_stop(&self.capture)

    def clean(self):
        """Whether there is nothing but 0 in what no frame takes."""
        cdef uint64_t at
        for at in range(self.capture.written, self.capture.read + CAPTURE_BYTES):
            if self.memory[at % CAPTURE_BYTES]:
                return False
        return True

    def produce(self, uint32_t frames, uint8_t who):
        """Offer `frames` frames of mixed sizes, all bytes `who` after a number that counts up."""
        cdef uint8_t frame[2048]
        cdef iovec whole
        cdef uint32_t number
        with nogil:
            memset(frame, who, sizeof(frame))
            whole.iov_base = frame
            for number in range(frames):
                sm_store32(frame, number)
                whole.iov_len = 5 + number * 7919 % 2000
                capture_frame(&self.capture, CAPTURE_INBOUND, &whole, 1, 0)
