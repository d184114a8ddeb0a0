/* What Cython cannot say: atomics, and libsodium functions that an older libsodium lacks.
 *
 * Owns nothing. Every function is static inline and touches only its arguments.
 */
#ifndef SHADOWMESH_COMPAT_H
#define SHADOWMESH_COMPAT_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sodium.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

/* AEGIS-256 came with libsodium 1.0.19, whose library version is 26.1. */
#if SODIUM_LIBRARY_VERSION_MAJOR > 26 || \
    (SODIUM_LIBRARY_VERSION_MAJOR == 26 && SODIUM_LIBRARY_VERSION_MINOR >= 1)
#define SM_HAVE_AEGIS256 1
#else
#define SM_HAVE_AEGIS256 0
#endif

/* True when AEGIS-256 is compiled in and this processor has the instructions that make it fast. */
static inline int sm_aegis256_usable(void) {
#if SM_HAVE_AEGIS256
#if defined(__aarch64__)
    return sodium_runtime_has_armcrypto();
#else
    return sodium_runtime_has_aesni();
#endif
#else
    return 0;
#endif
}

static inline int sm_aegis256_seal(uint8_t *c, const uint8_t *m, size_t mlen, const uint8_t *ad,
                                   size_t adlen, const uint8_t *nonce, const uint8_t *key) {
#if SM_HAVE_AEGIS256
    unsigned long long clen;
    return crypto_aead_aegis256_encrypt(c, &clen, m, mlen, ad, adlen, NULL, nonce, key);
#else
    (void)c, (void)m, (void)mlen, (void)ad, (void)adlen, (void)nonce, (void)key;
    return -1;
#endif
}

static inline int sm_aegis256_open(uint8_t *m, const uint8_t *c, size_t clen, const uint8_t *ad,
                                   size_t adlen, const uint8_t *nonce, const uint8_t *key) {
#if SM_HAVE_AEGIS256
    unsigned long long mlen;
    return crypto_aead_aegis256_decrypt(m, &mlen, NULL, c, clen, ad, adlen, nonce, key);
#else
    (void)m, (void)c, (void)clen, (void)ad, (void)adlen, (void)nonce, (void)key;
    return -1;
#endif
}

/* Protocol section 7: keys neither seal nor open after 180 s. */
#define SM_KEY_LIFETIME_NS UINT64_C(180000000000)
/* Protocol section 6: a partial frame waits 1 s for its fragments. */
#define SM_PARTIAL_LIFETIME_NS UINT64_C(1000000000)
/* Protocol section 6: 2^64 - 2^13 - 1; nothing is sealed or opened past it. */
#define SM_SEAL_LIMIT UINT64_C(0xFFFFFFFFFFFFDFFF)

/* Little-endian loads and stores at any alignment; the targets are little-endian (checked below). */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the record layer stores integers as the processor does: a little-endian one is needed"
#endif
static inline uint16_t sm_load16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t sm_load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t sm_load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void sm_store16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void sm_store32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void sm_store64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }

/* Big-endian, for Ethernet, IP and WebSocket headers. */
static inline uint16_t sm_load16be(const uint8_t *p) { return (uint16_t)((p[0] << 8) | p[1]); }
static inline uint32_t sm_load32be(const uint8_t *p) { return __builtin_bswap32(sm_load32(p)); }
static inline uint64_t sm_load64be(const uint8_t *p) { return __builtin_bswap64(sm_load64(p)); }
static inline void sm_store16be(uint8_t *p, uint16_t v) { sm_store16(p, __builtin_bswap16(v)); }
static inline void sm_store32be(uint8_t *p, uint32_t v) { sm_store32(p, __builtin_bswap32(v)); }
static inline void sm_store64be(uint8_t *p, uint64_t v) { sm_store64(p, __builtin_bswap64(v)); }

/* Shared between one writing and one reading thread. */
static inline uint64_t sm_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void sm_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int sm_flag(const int *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void sm_set_flag(int *p, int v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline int sm_take_flag(int *p) { return __atomic_exchange_n(p, 0, __ATOMIC_SEQ_CST); }
/* A pointer to what may only be read, and goes away only when nobody has it pinned: peers.pxd. */
static inline void *sm_published(void *const *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void sm_publish(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline void sm_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* A counter with one writer: the add needs no lock prefix, the readers see whole values. */
static inline void sm_count(uint64_t *p, uint64_t n) {
    __atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}
static inline uint64_t sm_counted(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }

/* Shared between several writing threads. */
static inline void sm_add(uint64_t *p, uint64_t n) { __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }
/* True: it was *expected and is `wanted` now. False: *expected is what it is; may be out of luck. */
static inline int sm_claim(uint64_t *p, uint64_t *expected, uint64_t wanted) {
    return __atomic_compare_exchange_n(p, expected, wanted, 1, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
static inline uint64_t sm_take_all(uint64_t *p) {
    return __atomic_exchange_n(p, 0, __ATOMIC_SEQ_CST);
}
/* Of the `n` numbers from the returned one on, nobody else gets any. */
static inline uint64_t sm_take_numbers(uint64_t *p, uint64_t n) {
    return __atomic_fetch_add(p, n, __ATOMIC_RELAXED);
}
static inline void sm_raise_bits(int *p, int bits) { __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST); }
static inline void sm_lower_bits(int *p, int bits) {
    __atomic_fetch_and(p, ~bits, __ATOMIC_SEQ_CST);
}

/* XOR `length` bytes with the 4-byte mask whose byte for p[0] is mask[phase & 3] (RFC 6455, 5.3).
 * Eight bytes at a time through memcpy, which the compiler turns into vector code. */
static inline void sm_mask(uint8_t *p, size_t length, const uint8_t *mask, uint64_t phase) {
    uint8_t turned[8];
    uint64_t word, pattern;
    size_t i;
    for (i = 0; i < 8; i++) turned[i] = mask[(phase + i) & 3];
    memcpy(&pattern, turned, 8);
    for (i = 0; i + 8 <= length; i += 8) {
        memcpy(&word, p + i, 8);
        word ^= pattern;
        memcpy(p + i, &word, 8);
    }
    for (; i < length; i++) p[i] ^= turned[i & 7];
}

/* errno is a macro, which Cython takes for a variable of its own when it is assigned to. */
static inline void sm_set_errno(int number) { errno = number; }

/* linux/tcp.h, which not every libc header has. */
#define SM_TCP_NOTSENT_LOWAT 25

/* Trains of datagrams in one call: linux/udp.h, which not every libc header has. */
#define SM_UDP_SEGMENT 103
#define SM_UDP_GRO 104
#define SM_SEGMENT_CONTROL_BYTES CMSG_SPACE(sizeof(uint16_t))

/* Let the kernel cut `message` into datagrams of `segment_bytes`. `control` is the caller's and
 * outlives the send; SM_SEGMENT_CONTROL_BYTES, aligned as a struct cmsghdr. */
static inline void sm_set_segment_size(struct msghdr *message, void *control,
                                       uint16_t segment_bytes) {
    struct cmsghdr *header;
    message->msg_control = control;
    message->msg_controllen = SM_SEGMENT_CONTROL_BYTES;
    header = CMSG_FIRSTHDR(message);
    header->cmsg_level = IPPROTO_UDP;
    header->cmsg_type = SM_UDP_SEGMENT;
    header->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    memcpy(CMSG_DATA(header), &segment_bytes, sizeof(segment_bytes));
}

/* The size of the datagrams that the kernel joined into `message`, 0 when it is one datagram. */
static inline uint16_t sm_gro_size(struct msghdr *message) {
    struct cmsghdr *header;
    int size;
    for (header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header))
        if (header->cmsg_level == IPPROTO_UDP && header->cmsg_type == SM_UDP_GRO) {
            memcpy(&size, CMSG_DATA(header), sizeof(size));
            return (uint16_t)size;
        }
    return 0;
}

#endif
