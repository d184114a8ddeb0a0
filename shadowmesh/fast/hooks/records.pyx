"""What a record goes through: ciphers, replay window, WebSocket headers, verdicts, life of keys."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from shadowmesh.fast.base cimport *
from shadowmesh.fast.drop_reasons cimport *
from shadowmesh.fast.aead cimport *
from shadowmesh.fast.admit cimport MAX_SEGMENTS, admit_offload
from shadowmesh.fast.datagram cimport *
from shadowmesh.fast.frame cimport *
from shadowmesh.fast.inbound cimport PARSER_BYTES, may_open
from shadowmesh.fast.peers cimport *
from shadowmesh.fast.plane cimport *
from shadowmesh.fast.replay cimport *
from shadowmesh.fast.ring cimport ring_t
from shadowmesh.fast.session cimport *
from shadowmesh.fast.udp_in cimport open_datagram
from shadowmesh.fast.wsframe cimport *
from shadowmesh.fast.hooks.memory cimport *

if sodium_init() < 0:
    raise ImportError("libsodium could not be initialised: the system gives no randomness")
sm_chacha_load()

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
    "own_datagram": DROP_OWN_DATAGRAM,
    "foreign_mac": DROP_FOREIGN_MAC,
    "mac_elsewhere": DROP_MAC_ELSEWHERE,
    "mac_limit": DROP_MAC_LIMIT,
    "flood_limit": DROP_FLOOD_LIMIT,
    "bad_vlan": DROP_BAD_VLAN,
    "reserved_address": DROP_RESERVED_ADDRESS,
    "split_horizon": DROP_SPLIT_HORIZON,
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
    "PARSER_BYTES": PARSER_BYTES,
    "DROP_REASONS": DROP_REASONS,
    "REFUSALS": REFUSALS,
    "SM_KEY_LIFETIME_NS": SM_KEY_LIFETIME_NS,
    "SM_SEAL_LIMIT": SM_SEAL_LIMIT,
    "SM_CHACHA_FROM": SM_CHACHA_FROM,
}


# --- Ciphers (fast/aead.pxd) ---------------------------------------------------------------------


cdef class Contexts:
    """Those of OpenSSL that stand beside an epoch's keys."""

    cdef sm_chacha_t *contexts

    def __cinit__(self):
        self.contexts = <sm_chacha_t *>calloc(SM_CHACHA_THREADS, sizeof(sm_chacha_t))
        if self.contexts == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.contexts != NULL:
            sm_chacha_erase(self.contexts)
        free(self.contexts)


def seal(int cipher, bytes key not None, uint64_t counter, bytes aad not None, plain not None,
         Contexts kept=None):
    """Return ciphertext and tag."""
    cdef Contexts contexts = kept or Contexts()
    cdef Exact held = copy_of(plain)
    cdef Exact sealed = Exact(held.length + tag_bytes(cipher))
    check_key(key)
    memcpy(sealed.bytes, held.bytes, held.length)
    if aead_seal(cipher, key, contexts.contexts, counter, aad, len(aad), sealed.bytes, held.length,
                 sealed.bytes):
        raise AssertionError("sealing failed")
    return sealed.copy()


def open_sealed(int cipher, bytes key not None, uint64_t counter, bytes aad not None,
                sealed not None, Contexts kept=None):
    """Return the plaintext, None when forged."""
    cdef Contexts contexts = kept or Contexts()
    cdef Exact plain = copy_of(sealed)
    check_key(key)
    if aead_open(cipher, key, contexts.contexts, counter, aad, len(aad), plain.bytes, plain.length,
                 plain.bytes):
        return None
    return view(plain.bytes, plain.length - tag_bytes(cipher))


def seal_by_both(bytes key not None, bytes nonce not None, bytes aad not None, plain not None):
    """Return what OpenSSL and what libsodium makes of a record of ChaCha20-Poly1305."""
    cdef Contexts contexts = Contexts()
    cdef Exact held = copy_of(plain)
    cdef Exact one = Exact(held.length + CHACHA_TAG_BYTES)
    cdef Exact other = Exact(held.length + CHACHA_TAG_BYTES)
    cdef EVP_CIPHER_CTX *context
    cdef unsigned long long length
    check_key(key)
    check_nonce(nonce)
    context = sm_chacha_begin(contexts.contexts, key, nonce, NULL)
    if context == NULL:
        raise AssertionError("OpenSSL has no ChaCha20-Poly1305")
    if sm_chacha_seal(context, one.bytes, held.bytes, held.length, aad, len(aad)):
        raise AssertionError("OpenSSL has not sealed")
    crypto_aead_chacha20poly1305_ietf_encrypt(
        other.bytes, &length, held.bytes, held.length, aad, len(aad), NULL, nonce, key)
    return one.copy(), other.copy()


def open_by_both(bytes key not None, bytes nonce not None, bytes aad not None, sealed not None):
    """Return what OpenSSL and what libsodium opens, None when it is forged to them."""
    cdef Contexts contexts = Contexts()
    cdef Exact held = copy_of(sealed)
    cdef size_t plain_bytes = held.length - CHACHA_TAG_BYTES
    cdef Exact one, other
    cdef EVP_CIPHER_CTX *context
    cdef unsigned long long length
    check_key(key)
    check_nonce(nonce)
    if held.length < CHACHA_TAG_BYTES:
        raise ValueError("shorter than a tag")
    one, other = Exact(plain_bytes), Exact(plain_bytes)
    context = sm_chacha_begin(contexts.contexts, key, nonce, held.bytes + plain_bytes)
    if context == NULL:
        raise AssertionError("OpenSSL has no ChaCha20-Poly1305")
    opened = [
        sm_chacha_open(context, one.bytes, held.bytes, plain_bytes, aad, len(aad)),
        crypto_aead_chacha20poly1305_ietf_decrypt(
            other.bytes, &length, NULL, held.bytes, held.length, aad, len(aad), nonce, key),
    ]
    return tuple(None if code else (<Exact>copied).copy() for code, copied in zip(opened, (one, other)))


cdef int check_nonce(bytes nonce) except -1:
    if len(nonce) != CHACHA_NONCE_BYTES:
        raise ValueError(f"a nonce has {CHACHA_NONCE_BYTES} bytes, not {len(nonce)}")
    return 0


cdef int check_key(bytes key) except -1:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return 0


# --- Replay window (fast/replay.pxd) -------------------------------------------------------------


cdef class Window:
    """One replay window."""

    cdef window_t window

    def __dealloc__(self):
        window_rest(&self.window)

    def check(self, uint64_t counter):
        return bool(window_check(&self.window, counter))

    def mark(self, uint64_t counter):
        if not window_mark(&self.window, counter):
            raise MemoryError

    def rest(self):
        window_rest(&self.window)

    @property
    def bytes(self):
        """That it has beside itself."""
        return WINDOW_WORDS * sizeof(uint64_t) if self.window.ring != NULL else 0


# --- WebSocket frames (fast/wsframe.pxd, compat.h) -----------------------------------------------


def mask(data not None, bytes key not None, uint64_t phase=0, size_t alignment=0):
    """Return `data` masked with a key of 4 bytes, at an address of that `alignment` modulo 16."""
    cdef Exact plain = copy_of(data)
    cdef Exact room = Exact(plain.length + alignment % 16)
    cdef uint8_t *p = room.bytes + alignment % 16
    if len(key) != 4:
        raise ValueError(f"a mask has 4 bytes, not {len(key)}")
    memcpy(p, plain.bytes, plain.length)
    sm_mask(p, plain.length, key, phase)
    return view(p, plain.length)


def read_ws_header(data not None, bint from_client):
    """Return (opcode, fin, length, mask or None, bytes of the header), 0 when it is not all
    there, or the negative close code."""
    cdef Exact room = copy_of(data)
    cdef wsheader_t header
    cdef int outcome = ws_read_header(room.bytes, room.length, from_client, &header)
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


def judge(frame, uint32_t mtu_bytes):
    """Return KEEP (-1) or the number of the DROP_ reason."""
    cdef Record record = Record(bytes(VNET_HEADER_BYTES), frame)
    return check_frame(record.frame, record.frame_bytes, mtu_bytes)


def admit(vnet, frame, uint32_t mtu_bytes, uint32_t most_segments=MAX_SEGMENTS):
    """Return the virtio header and the frame as they may be written, or the DROP_ reason."""
    cdef Record record = Record(vnet, frame)
    cdef int verdict = admit_offload(record.vnet, record.frame, record.frame_bytes, mtu_bytes,
                                     most_segments)
    if verdict != KEEP:
        return verdict
    return view(record.vnet, VNET_HEADER_BYTES), view(record.frame, record.frame_bytes)


# --- Life of keys (fast/peers.pxd, fast/inbound.pxd, fast/udp_in.pxd, fast/session.pxd) ----------


cdef enum:
    KEY_ID = 0x10000


cdef class Life:
    """A session with one epoch of keys, of any age and at any counter."""

    cdef plane_t *plane
    cdef session_t *session
    cdef ring_t ring
    cdef uint64_t now_ns

    def __cinit__(self, uint64_t age_ns, uint64_t wss_next=0, uint64_t udp_next=0):
        cdef epoch_t *epoch
        memset(&self.ring, 0, sizeof(ring_t))
        self.plane = <plane_t *>calloc(1, sizeof(plane_t))
        if self.plane == NULL:
            raise MemoryError
        self.session = session_new(&self.plane.peers)
        if (self.session == NULL
                or not reserve_epoch(&self.plane.peers, self.session, KEY_ID)):
            raise MemoryError
        epoch = epoch_of(&self.plane.peers, KEY_ID)
        epoch.born_ns = 1000
        epoch.wss_tx_next = wss_next
        epoch.udp_tx_next = udp_next
        publish_epoch(&self.plane.peers, epoch)
        self.session.draft.epoch = epoch
        self.session.draft.ring = &self.ring
        self.now_ns = epoch.born_ns + age_ns

    def __dealloc__(self):
        if self.session != NULL:
            session_free(&self.plane.peers, self.session)
        free(self.plane)

    def obstacle(self):
        """KEEP (-1) when the session may seal, or the number of the DROP_ reason."""
        return sending_obstacle(&self.session.draft, self.now_ns)

    def opens(self):
        """Whether a message or a record of one may be opened."""
        return bool(may_open(epoch_of(&self.plane.peers, KEY_ID), KEY_ID, self.session,
                             self.now_ns))

    def refuses_datagram(self, uint64_t counter):
        """Give a datagram that is not authentic; return the number of the REFUSED_ reason."""
        cdef uint8_t datagram[64]
        cdef address_t source
        memset(&source, 0, sizeof(address_t))
        memset(datagram, 0, sizeof(datagram))
        write_aad(datagram, KIND_UDP, KEY_ID, counter)
        memset(self.plane.udp.refused, 0, sizeof(self.plane.udp.refused))
        open_datagram(self.plane, datagram, sizeof(datagram), &source, self.now_ns)
        unpin(&self.plane.peers.udp_pin)
        for i in range(REFUSALS):
            if self.plane.udp.refused[i]:
                return i


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
