"""C functions of the data plane for tests and measurements to call one by one.

Owns nothing that the daemon uses; the daemon does not import it. Every buffer that is handed to
the code under test is allocated in just its size, so that a sanitizer sees a step outside.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from shadowmesh.fast.base cimport *
from shadowmesh.fast.aead cimport *
from shadowmesh.fast.frame cimport *
from shadowmesh.fast.wsframe cimport *
from shadowmesh.fast.replay cimport *
from shadowmesh.fast.ring cimport *
from shadowmesh.fast.datagram cimport *
from shadowmesh.fast.session cimport *
from shadowmesh.fast.peers cimport *
from shadowmesh.fast.tap cimport *
from shadowmesh.fast.plane cimport *
from shadowmesh.fast.backlog cimport *
from shadowmesh.fast.inbound cimport (
    EVENT_NONE, HEADROOM, PARSER_BYTES, make_room, may_open, parse as parse_link, parser_t
)
from shadowmesh.fast.link_out cimport seal_message
from shadowmesh.fast.udp_in cimport flush_train, open_datagram
from shadowmesh.fast.flow cimport flow_hash as hash_flow
from shadowmesh.fast.steer cimport (
    steer_in, steer_now_ms, steer_out, steer_reset
)
from shadowmesh.fast.checksum cimport *
from shadowmesh.fast.headers cimport *
from shadowmesh.fast.offload cimport *
from shadowmesh.fast.capture cimport *

if sodium_init() < 0:
    raise ImportError("libsodium could not be initialised: the system gives no randomness")


cdef class Exact:
    """`length` bytes of memory and not one more."""

    cdef uint8_t *bytes
    cdef size_t length

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


# --- Ciphers (fast/aead.pxd) ---------------------------------------------------------------------


def seal(int cipher, bytes key not None, uint64_t counter, bytes aad not None,
         const uint8_t[::1] plain not None):
    """Return ciphertext and tag."""
    cdef size_t plain_bytes = plain.shape[0]
    cdef Exact sealed = Exact(plain_bytes + tag_bytes(cipher))
    check_key(key)
    if plain_bytes:
        memcpy(sealed.bytes, &plain[0], plain_bytes)
    if aead_seal(cipher, key, counter, aad, len(aad), sealed.bytes, plain_bytes, sealed.bytes):
        raise AssertionError("sealing failed")
    return sealed.copy()


def open_sealed(int cipher, bytes key not None, uint64_t counter, bytes aad not None,
                const uint8_t[::1] sealed not None):
    """Return the plaintext, None when forged."""
    cdef size_t sealed_bytes = sealed.shape[0]
    cdef Exact plain = Exact(sealed_bytes)
    check_key(key)
    if sealed_bytes:
        memcpy(plain.bytes, &sealed[0], sealed_bytes)
    if aead_open(cipher, key, counter, aad, len(aad), plain.bytes, sealed_bytes, plain.bytes):
        return None
    return view(plain.bytes, sealed_bytes - tag_bytes(cipher))


cdef int check_key(bytes key) except -1:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return 0


# --- Replay window (fast/replay.pxd) -------------------------------------------------------------


cdef class Window:
    """One replay window."""

    cdef window_t window

    def __cinit__(self):
        window_reset(&self.window)

    def check(self, uint64_t counter):
        return bool(window_check(&self.window, counter))

    def mark(self, uint64_t counter):
        window_mark(&self.window, counter)


# --- WebSocket frames (fast/wsframe.pxd, compat.h) -----------------------------------------------


def mask(const uint8_t[::1] data not None, const uint8_t[::1] key not None, uint64_t phase=0,
         size_t alignment=0):
    """Return `data` masked with a key of 4 bytes, at an address of that `alignment` modulo 16."""
    cdef size_t length = data.shape[0]
    cdef Exact room = Exact(length + alignment % 16)
    cdef uint8_t *p = room.bytes + alignment % 16
    if key.shape[0] != 4:
        raise ValueError(f"a mask has 4 bytes, not {key.shape[0]}")
    if length:
        memcpy(p, &data[0], length)
    sm_mask(p, length, &key[0], phase)
    return view(p, length)


def read_ws_header(const uint8_t[::1] data not None, bint from_client):
    """Return (opcode, fin, length, mask or None, bytes of the header), 0 when it is not all
    there, or the negative close code."""
    cdef Exact room = Exact(data.shape[0])
    cdef wsheader_t header
    cdef int outcome
    if data.shape[0]:
        memcpy(room.bytes, &data[0], data.shape[0])
    outcome = ws_read_header(room.bytes, data.shape[0], from_client, &header)
    if outcome <= 0:
        return outcome
    return (header.opcode, bool(header.fin), header.length,
            view(header.mask, 4) if from_client else None, header.bytes)


def write_ws_header(int opcode, size_t payload_bytes, bytes key=None):
    """Return the header of a final frame; masked when there is a key of 4 bytes."""
    cdef Exact room = Exact(ws_header_bytes(payload_bytes, key is not None))
    cdef const uint8_t *mask_key = NULL
    if key is not None:
        if len(key) != 4:
            raise ValueError(f"a mask has 4 bytes, not {len(key)}")
        mask_key = key
    if ws_write_header(room.bytes, opcode, payload_bytes, mask_key) != room.length:
        raise AssertionError("the header has another length than announced")
    return room.copy()


# --- Frames (fast/frame.pxd) ---------------------------------------------------------------------


def judge(frame, uint32_t mtu_bytes, vnet=None):
    """Return KEEP (-1) or the number of the DROP_ reason; with `vnet`, of an offload frame."""
    cdef Record record = Record(vnet or bytes(VNET_HEADER_BYTES), frame)
    if vnet is None:
        return check_frame(record.frame, record.frame_bytes, mtu_bytes)
    return check_offload(record.vnet, record.frame, record.frame_bytes, mtu_bytes)


# --- Frames that wait for a slow link (fast/backlog.pxd) ------------------------------------------


cdef class Backlog:
    """Frames that wait, in an arena that is filled as the TAP thread does it."""

    cdef backlog_t *backlog
    cdef int chosen

    def __cinit__(self):
        self.backlog = backlog_new()
        self.chosen = NOBODY
        if self.backlog == NULL:
            raise MemoryError

    def __dealloc__(self):
        backlog_free(self.backlog)

    @property
    def waiting(self):
        """How many frames, and how many bytes with their inner type."""
        return self.backlog.waiting, self.backlog.waiting_bytes

    def park(self, list frames not None, uint64_t now_ns):
        """Read a batch of plain frames and let all of it wait; False when there is no room."""
        cdef size_t start
        cdef size_t end = arena_room(self.backlog, SLOT_BYTES, &start)
        cdef slot_t slot
        cdef list slots = []
        cdef const uint8_t[::1] frame
        if backlog_full(self.backlog) or end < SLOT_BYTES:
            return False
        end += start
        if len(frames) > BATCH_FRAMES or start + sum(map(len, frames)) + 64 * len(frames) > end:
            raise ValueError("more than a batch, or than the room for it")
        for frame in frames:
            slot.inner = self.backlog.arena + start
            slot.inner_bytes = <uint32_t>(1 + len(frame))
            slot.inner[0] = INNER_FRAME
            memcpy(slot.inner + 1, &frame[0], len(frame))
            backlog_park(self.backlog, &slot, slot.inner + 1, now_ns)
            start += (slot.inner_bytes + 63) // 64 * 64
        self.backlog.spare = start
        return True

    def next(self, uint64_t now_ns, bint dropping):
        """Return the frame whose turn it is, or None, and how many CoDel has dropped."""
        cdef int dropped = 0
        self.chosen = backlog_next(self.backlog, now_ns, dropping, &dropped)
        return (None if self.chosen == NOBODY else self.frame(self.chosen)), dropped

    def take(self):
        """That frame is sealed."""
        backlog_take(self.backlog, self.chosen)

    def shed(self):
        """Drop the frame that came first, and return it."""
        cdef int oldest = backlog_oldest(self.backlog)
        if oldest == NOBODY:
            return None
        dropped = self.frame(oldest)
        backlog_remove(self.backlog, oldest)
        return dropped

    cdef bytes frame(self, int index):
        cdef const slot_t *slot = &self.backlog.parked[index].slot
        return view(slot.inner + 1, slot.inner_bytes - 1)


# --- Queues of the device (fast/steer.pxd) ---------------------------------------------------------


def flow_hash(const uint8_t[::1] frame not None):
    """The number of the flow that a frame belongs to."""
    cdef Exact copied = Exact(frame.shape[0])
    if frame.shape[0]:
        memcpy(copied.bytes, &frame[0], frame.shape[0])
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


cdef class TxCounters:
    """The counters that an epoch's datagrams are sealed under."""

    cdef epoch_t epoch

    def take(self, uint32_t times) -> int:
        """Take one so many times, without the GIL; their sum."""
        cdef uint64_t total = 0
        with nogil:
            for _ in range(times):
                total += take_counters(&self.epoch, 1)
        return total


# --- Life of keys (fast/outbound.pxd, fast/inbound.pxd, fast/udp_in.pxd) ---------------------------


cdef class Life:
    """A session with one epoch of keys, of any age and at any counter."""

    cdef plane_t *plane
    cdef ring_t ring
    cdef uint64_t now_ns

    def __cinit__(self, uint64_t age_ns, uint64_t wss_next=0, uint64_t udp_next=0):
        memset(&self.ring, 0, sizeof(ring_t))
        self.plane = <plane_t *>calloc(1, sizeof(plane_t))
        if self.plane == NULL:
            raise MemoryError
        self.plane.peers.epochs = <epoch_t *>calloc(MAX_EPOCHS, sizeof(epoch_t))
        if self.plane.peers.epochs == NULL:
            raise MemoryError
        self.plane.peers.epochs.state = EPOCH_INSTALLED
        self.plane.peers.epochs.born_ns = 1000
        self.plane.peers.epochs.local_key_id = 0x100
        self.plane.peers.epochs.wss_tx_next = wss_next
        self.plane.peers.epochs.udp_tx_next = udp_next
        self.plane.peers.sessions[0].in_use = 1
        self.plane.peers.sessions[0].ring = &self.ring
        self.now_ns = self.plane.peers.epochs.born_ns + age_ns

    def __dealloc__(self):
        if self.plane != NULL:
            free(self.plane.peers.epochs)
        free(self.plane)

    def obstacle(self):
        """KEEP (-1) when the session may seal, or the number of the DROP_ reason."""
        return sending_obstacle(&self.plane.peers, 0, self.now_ns)

    def opens(self):
        """Whether a message or a record of one may be opened."""
        return bool(may_open(self.plane.peers.epochs, 0x100, 0, self.now_ns))

    def refuses_datagram(self, uint64_t counter):
        """Give a datagram that is not authentic; return the number of the REFUSED_ reason."""
        cdef uint8_t datagram[64]
        cdef address_t source
        memset(&source, 0, sizeof(address_t))
        memset(datagram, 0, sizeof(datagram))
        write_aad(datagram, KIND_UDP, 0x100, counter)
        memset(self.plane.udp.received.refused, 0, sizeof(self.plane.udp.received.refused))
        open_datagram(self.plane, datagram, sizeof(datagram), &source, self.now_ns)
        for i in range(REFUSALS):
            if self.plane.udp.received.refused[i]:
                return i


# --- Ring (fast/ring.pxd) ------------------------------------------------------------------------

cdef enum:
    NO_TIME = 1                 # always the same moment: the limit of the ring stays what it is


cdef class Ring:
    """A ring with its eventfds. commit() and produce() belong to one thread, the rest to another.
    """

    cdef ring_t ring

    def __cinit__(self, uint64_t limit=RING_BYTES):
        self.ring.bytes = <uint8_t *>calloc(1, RING_BYTES)
        self.ring.entries = <ring_entry_t *>calloc(RING_MESSAGES, sizeof(ring_entry_t))
        self.ring.wakeup_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.ring.space_fds[0] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        ring_init(&self.ring)
        self.ring.limit = limit
        if (self.ring.bytes == NULL or self.ring.entries == NULL
                or min(self.ring.wakeup_fd, self.ring.space_fds[0]) < 0):
            raise MemoryError

    def __dealloc__(self):
        free(self.ring.bytes)
        free(self.ring.entries)
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

    def commit(self, const uint8_t[::1] message not None, uint32_t frames=0):
        """Append one message; False when it does not fit."""
        cdef uint8_t *place = ring_reserve(&self.ring, message.shape[0])
        if place == NULL:
            return False
        memcpy(place, &message[0], message.shape[0])
        ring_commit(&self.ring, place, message.shape[0], frames)
        return True

    def peek(self):
        """Return a copy of the bytes that may be sent."""
        cdef uint8_t *start = NULL
        cdef size_t length = ring_peek(&self.ring, &start)
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
                place = ring_reserve(&self.ring, length)
                while place == NULL:
                    if ring_starve(&self.ring, 0):
                        if poll(&space, 1, timeout_ms) <= 0:
                            break
                        drain_fd(self.ring.space_fds[0])
                    place = ring_reserve(&self.ring, length)
                if place == NULL:
                    break
                for i in range(length):
                    place[i] = value
                    value += 1
                ring_commit(&self.ring, place, length, 1)
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
            while self.ring.entry_read < messages:
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
        return self.ring.entry_read, total, wrong


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
        capture_start(&self.capture, self.memory, snap_bytes)

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
            piece = Exact(len(data))
            memcpy(piece.bytes, <const uint8_t *><bytes>data, len(data))
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


# --- Numbers that Python has to know as well -----------------------------------------------------

#: Names of reasons in the order in which the data plane counts them.
REASONS = {
    "not_connected": DROP_NOT_CONNECTED,
    "link_stalled": DROP_LINK_STALLED,
    "link_lost": DROP_LINK_LOST,
    "key_expired": DROP_KEY_EXPIRED,
    "seal_refused": DROP_SEAL_REFUSED,
    "runt": DROP_RUNT,
    "too_long": DROP_TOO_LONG,
    "bad_offload": DROP_BAD_OFFLOAD,
    "multicast_source": DROP_MULTICAST_SOURCE,
    "tap_down": DROP_TAP_DOWN,
    "tap_full": DROP_TAP_FULL,
    "tap_refused": DROP_TAP_REFUSED,
    "tap_gone": DROP_TAP_GONE,
    "udp_send": DROP_UDP_SEND,
    "queue_full": DROP_QUEUE_FULL,
}
REFUSED = {
    "unknown": REFUSED_UNKNOWN,
    "key_id": REFUSED_KEY_ID,
    "expired": REFUSED_EXPIRED,
    "replay": REFUSED_REPLAY,
    "forged": REFUSED_FORGED,
    "inner_type": REFUSED_TYPE,
    "fragment": REFUSED_FRAGMENT,
    "signals_full": REFUSED_SIGNALS_FULL,
}
SIZES = {
    "RING_BYTES": RING_BYTES,
    "RING_MESSAGES": RING_MESSAGES,
    "CONTROL_RESERVE": CONTROL_RESERVE,
    "FIRST_LIMIT": FIRST_LIMIT,
    "MIN_LIMIT": MIN_LIMIT,
    "FLOWS": FLOWS,
    "PARKED_FRAMES": PARKED_FRAMES,
    "PARSER_BYTES": PARSER_BYTES,
    "CAPTURE_BYTES": CAPTURE_BYTES,
    "DROP_REASONS": DROP_REASONS,
    "REFUSALS": REFUSALS,
    "BATCH_FRAMES": BATCH_FRAMES,
    "SM_KEY_LIFETIME_NS": SM_KEY_LIFETIME_NS,
    "SM_SEAL_LIMIT": SM_SEAL_LIMIT,
}


# --- Super-frames (fast/checksum.pxd, fast/headers.pxd, fast/offload.pxd) ---------------------------

cdef enum:
    TYPE_AND_VNET = 1 + VNET_HEADER_BYTES
    USED = 0xEE


cdef class Record:
    """One byte for the inner type, a virtio header and a frame in memory of just that size."""

    cdef uint8_t *bytes
    cdef uint8_t *vnet
    cdef uint8_t *frame
    cdef size_t frame_bytes

    def __cinit__(self, const uint8_t[::1] vnet not None, const uint8_t[::1] frame not None):
        if vnet.shape[0] != VNET_HEADER_BYTES:
            raise ValueError(f"a virtio header has {VNET_HEADER_BYTES} bytes, not {vnet.shape[0]}")
        self.frame_bytes = frame.shape[0]
        self.bytes = <uint8_t *>malloc(TYPE_AND_VNET + self.frame_bytes)
        if self.bytes == NULL:
            raise MemoryError
        self.vnet = self.bytes + 1
        self.frame = self.bytes + TYPE_AND_VNET
        memcpy(self.vnet, &vnet[0], VNET_HEADER_BYTES)
        if self.frame_bytes:
            memcpy(self.frame, &frame[0], self.frame_bytes)

    def __dealloc__(self):
        free(self.bytes)


cdef bytes view(const uint8_t *p, size_t n):
    return p[:n]


def sum_of(const uint8_t[::1] data not None, size_t skip=0):
    """Folded ones-complement sum of `data` from `skip` on."""
    if skip >= <size_t>data.shape[0]:
        return 0
    return sum_bytes(&data[skip], data.shape[0] - skip)


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
        memcpy(record.bytes, kept.bytes, total)
        count = segment_begin(&s, record.vnet, record.frame_bytes, max_frame_bytes, finished)
        while segment_next(&s, &cut, &cut_bytes):
            pass
    middle = boottime_ns()
    for i in range(rounds):
        memcpy(record.bytes, kept.bytes, total)
        kept.bytes[0] = <uint8_t>i
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


# --- How fast frames are sealed and opened (perf/fps.py) ------------------------------------------

cdef extern from "<time.h>" nogil:
    clockid_t CLOCK_THREAD_CPUTIME_ID


cdef inline uint64_t spent_ns() noexcept nogil:
    # Of this thread's CPU time, so that other programs on the core do not count.
    cdef timespec ts
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts)
    return <uint64_t>ts.tv_sec * 1000000000 + <uint64_t>ts.tv_nsec


cdef class Bench:
    """A session and its link as the daemon has them, without sockets and device.

    All calls take whole batches of 64 frames and return the ns of CPU time that one frame took.
    """

    cdef plane_t plane
    cdef ring_t ring
    cdef parser_t parser
    cdef epoch_t *epoch
    cdef Exact arena            # the frames, as the TAP thread reads them
    cdef Exact outbox           # the ring, then datagrams and what libsodium alone seals
    cdef Exact inbox            # the parser's buffer
    cdef address_t source
    cdef uint64_t counter

    def __cinit__(self, int cipher, bint masked):
        memset(&self.plane, 0, sizeof(plane_t))
        memset(&self.ring, 0, sizeof(ring_t))
        memset(&self.parser, 0, sizeof(parser_t))
        memset(&self.source, 0, sizeof(address_t))
        self.arena = Exact(ARENA_BYTES)
        self.outbox = Exact(RING_BYTES)
        self.inbox = Exact(HEADROOM + PARSER_BYTES)
        randombytes_buf(self.arena.bytes, ARENA_BYTES)
        self.plane.peers.epochs = self.epoch = <epoch_t *>calloc(MAX_EPOCHS, sizeof(epoch_t))
        self.ring.entries = <ring_entry_t *>calloc(RING_MESSAGES, sizeof(ring_entry_t))
        if self.epoch == NULL or self.ring.entries == NULL:
            raise MemoryError
        pthread_mutex_init(&self.plane.tx_lock, NULL)
        self.plane.tap.queues[0].tap_fd = -1
        self.plane.tap.queue_count = 1
        self.plane.tap.mtu_bytes = MAX_IP_BYTES
        self.plane.wss.mask_used = sizeof(self.plane.wss.mask_pool)
        self.plane.peers.sessions[0].in_use = 1
        self.plane.peers.sessions[0].ring = &self.ring
        self.plane.peers.sessions[0].masked = masked
        self.ring.bytes = self.outbox.bytes
        self.ring.limit = RING_BYTES
        self.parser.bytes = self.inbox.bytes
        self.parser.from_client = masked
        self.parser.begin = self.parser.end = self.parser.raw = self.parser.raw_end = HEADROOM
        self.epoch.state = EPOCH_INSTALLED
        self.epoch.cipher = cipher
        self.epoch.born_ns = boottime_ns()
        self.epoch.generation = self.plane.peers.sessions[0].newest_generation = 1
        join_reset(&self.plane.udp.joiner, True)

    def __dealloc__(self):
        free(self.epoch)
        free(self.ring.entries)

    cdef size_t fill(self, size_t frame_bytes) except 0:
        # Cuts the arena into 64 slots of one size; the bytes of each with its inner type.
        cdef size_t stride = (1 + frame_bytes + 63) // 64 * 64
        cdef int i
        if not MIN_FRAME <= frame_bytes <= 2000:
            raise ValueError(f"frame of {frame_bytes} bytes is outside {MIN_FRAME}..2000")
        for i in range(BATCH_FRAMES):
            self.plane.tap.queues[0].slots[i].inner = self.arena.bytes + i * stride
            self.plane.tap.queues[0].slots[i].inner_bytes = <uint32_t>(1 + frame_bytes)
            self.plane.tap.queues[0].slots[i].inner[0] = INNER_FRAME
            self.plane.tap.queues[0].slots[i].inner[1 + 6] &= 0xFE
        return 1 + frame_bytes

    def seal_wss(self, size_t frame_bytes, uint32_t batches) -> float:
        """Records into one WebSocket message in the ring, masked when it is a client's."""
        cdef uint64_t began
        cdef uint8_t *start = NULL
        cdef uint32_t i
        self.fill(frame_bytes)
        began = spent_ns()
        for i in range(batches):
            if seal_message(&self.plane, self.plane.peers.sessions, self.plane.tap.queues[0].slots,
                            BATCH_FRAMES, BATCH_FRAMES) != BATCH_FRAMES:
                raise AssertionError("a batch does not fit into the ring")
            ring_consume(&self.ring, ring_peek(&self.ring, &start), NO_TIME)
        self.epoch.wss_rx_next = self.epoch.wss_tx_next
        return self.each(spent_ns() - began, batches)

    def open_wss(self, size_t frame_bytes, uint32_t batches) -> float:
        """The bytes of such a message to frames at the TAP, which refuses them."""
        cdef uint64_t began, spent = 0
        cdef uint8_t *start = NULL
        cdef size_t length
        cdef uint32_t i
        self.fill(frame_bytes)
        for i in range(batches):
            seal_message(&self.plane, self.plane.peers.sessions, self.plane.tap.queues[0].slots,
                         BATCH_FRAMES, BATCH_FRAMES)
            length = ring_peek(&self.ring, &start)
            make_room(&self.parser)
            memcpy(self.parser.bytes + self.parser.raw_end, start, length)
            ring_consume(&self.ring, length, NO_TIME)
            began = spent_ns()
            self.parser.raw_end += length
            if parse_link(&self.plane, &self.parser, self.epoch.born_ns) != EVENT_NONE:
                raise AssertionError("the parser refused the ring's bytes")
            spent += spent_ns() - began
        self.check(self.plane.wss.received.dropped[DROP_TAP_GONE], batches)
        self.plane.wss.received.dropped[DROP_TAP_GONE] = 0
        return self.each(spent, batches)

    def seal_udp(self, size_t frame_bytes, uint32_t batches) -> float:
        """Datagrams behind each other, as a train for UDP_SEGMENT."""
        cdef uint64_t began
        cdef uint64_t counter
        cdef uint32_t i
        cdef int k
        cdef uint8_t *out
        self.fill(frame_bytes)
        began = spent_ns()
        for i in range(batches):
            out = self.outbox.bytes
            counter = take_counters(self.epoch, BATCH_FRAMES)
            for k in range(BATCH_FRAMES):
                out += seal_datagram(self.epoch, counter + k,
                                     self.plane.tap.queues[0].slots[k].inner,
                                     self.plane.tap.queues[0].slots[k].inner_bytes, out)
        return self.each(spent_ns() - began, batches)

    def open_udp(self, size_t frame_bytes, uint32_t batches) -> float:
        """Such datagrams to frames at the TAP, which refuses them."""
        cdef size_t inner_bytes = self.fill(frame_bytes)
        cdef size_t step = AAD_BYTES + inner_bytes + tag_bytes(self.epoch.cipher)
        cdef uint64_t began, spent = 0
        cdef uint32_t i
        cdef int k
        for i in range(batches):
            for k in range(BATCH_FRAMES):
                seal_datagram(self.epoch, take_counters(self.epoch, 1),
                              self.plane.tap.queues[0].slots[k].inner, inner_bytes,
                              self.outbox.bytes + k * step)
            began = spent_ns()
            for k in range(BATCH_FRAMES):
                open_datagram(&self.plane, self.outbox.bytes + k * step, step, &self.source,
                              self.epoch.born_ns)
            flush_train(&self.plane)
            spent += spent_ns() - began
        self.check(self.plane.udp.received.dropped[DROP_TAP_GONE], batches)
        self.plane.udp.received.dropped[DROP_TAP_GONE] = 0
        return self.each(spent, batches)

    def seal_alone(self, size_t frame_bytes, uint32_t batches) -> float:
        """The same bytes by libsodium, with nothing around it."""
        cdef size_t inner_bytes = self.fill(frame_bytes)
        cdef size_t step = inner_bytes + tag_bytes(self.epoch.cipher)
        cdef uint64_t began = spent_ns()
        cdef uint32_t i
        cdef int k
        for i in range(batches):
            for k in range(BATCH_FRAMES):
                self.counter += 1
                aead_seal(self.epoch.cipher, self.epoch.udp_tx_key, self.counter,
                          self.arena.bytes, AAD_BYTES, self.plane.tap.queues[0].slots[k].inner,
                          inner_bytes, self.outbox.bytes + k * step)
        return self.each(spent_ns() - began, batches)

    def open_alone(self, size_t frame_bytes, uint32_t batches) -> float:
        """The same bytes opened by libsodium, with nothing around it."""
        cdef size_t inner_bytes = self.fill(frame_bytes)
        cdef size_t step = inner_bytes + tag_bytes(self.epoch.cipher)
        cdef uint64_t began, spent = 0
        cdef uint32_t i
        cdef int k
        cdef int failed = 0
        for i in range(batches):
            for k in range(BATCH_FRAMES):
                aead_seal(self.epoch.cipher, self.epoch.udp_tx_key, k, self.arena.bytes,
                          AAD_BYTES, self.plane.tap.queues[0].slots[k].inner, inner_bytes,
                          self.outbox.bytes + k * step)
            began = spent_ns()
            for k in range(BATCH_FRAMES):
                failed |= aead_open(self.epoch.cipher, self.epoch.udp_tx_key, k,
                                    self.arena.bytes, AAD_BYTES, self.outbox.bytes + k * step,
                                    step, self.outbox.bytes + k * step)
            spent += spent_ns() - began
        if failed:
            raise AssertionError("libsodium does not open what it sealed")
        return self.each(spent, batches)

    cdef check(self, uint64_t delivered, uint32_t batches):
        if delivered != <uint64_t>batches * BATCH_FRAMES:
            raise AssertionError(f"{delivered} of {batches * BATCH_FRAMES} frames came through")

    cdef double each(self, uint64_t spent_ns, uint32_t batches):
        return <double>spent_ns / (<double>batches * BATCH_FRAMES)
