# The two data ciphers behind one pair of functions.
#
# Tags: 16 bytes for ChaCha20-Poly1305 (RFC 8439), 32 bytes for AEGIS-256. The nonce is zero bytes
# and then the record counter, little-endian (protocol section 6).
#
# libsodium does AEGIS-256 and short records of ChaCha20-Poly1305, OpenSSL the long ones (chacha.h).
# Its contexts hold keys, so whoever has a key has them beside it and erases both: session.pxd.

from libc.stddef cimport size_t
from libc.string cimport memset
from .base cimport *

cdef enum:
    CIPHER_CHACHA20_POLY1305 = 0
    CIPHER_AEGIS256 = 1
    KEY_BYTES = 32
    CHACHA_NONCE_BYTES = 12
    AEGIS_NONCE_BYTES = 32
    CHACHA_TAG_BYTES = 16
    AEGIS_TAG_BYTES = 32
    MAX_TAG_BYTES = 32

cdef extern from "chacha.h" nogil:
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct sm_chacha_t:
        pass
    const size_t SM_CHACHA_FROM
    enum: SM_CHACHA_THREADS
    void sm_chacha_load()
    void sm_chacha_erase(sm_chacha_t *contexts)
    EVP_CIPHER_CTX *sm_chacha_begin(sm_chacha_t *contexts, const uint8_t *key,
                                    const uint8_t *nonce, const uint8_t *tag)
    int sm_chacha_seal(EVP_CIPHER_CTX *context, uint8_t *sealed, const uint8_t *plain,
                       size_t plain_bytes, const uint8_t *aad, size_t aad_bytes)
    int sm_chacha_open(EVP_CIPHER_CTX *context, uint8_t *plain, const uint8_t *sealed,
                       size_t plain_bytes, const uint8_t *aad, size_t aad_bytes)


cdef inline size_t tag_bytes(int cipher) noexcept nogil:
    return AEGIS_TAG_BYTES if cipher == CIPHER_AEGIS256 else CHACHA_TAG_BYTES


cdef inline int aead_seal(int cipher, const uint8_t *key, sm_chacha_t *contexts, uint64_t counter,
                          const uint8_t *aad, size_t aad_bytes, const uint8_t *plain,
                          size_t plain_bytes, uint8_t *sealed) noexcept nogil:
    # Writes plain_bytes + tag_bytes(cipher) bytes; `sealed` may be `plain`. 0 on success.
    cdef uint8_t nonce[AEGIS_NONCE_BYTES]
    cdef EVP_CIPHER_CTX *context = NULL
    cdef unsigned long long length
    memset(nonce, 0, AEGIS_NONCE_BYTES)
    if cipher == CIPHER_AEGIS256:
        sm_store64(nonce + AEGIS_NONCE_BYTES - 8, counter)
        return sm_aegis256_seal(sealed, plain, plain_bytes, aad, aad_bytes, nonce, key)
    sm_store64(nonce + CHACHA_NONCE_BYTES - 8, counter)
    if plain_bytes >= SM_CHACHA_FROM:
        context = sm_chacha_begin(contexts, key, nonce, NULL)
    if context != NULL:
        return sm_chacha_seal(context, sealed, plain, plain_bytes, aad, aad_bytes)
    return crypto_aead_chacha20poly1305_ietf_encrypt(
        sealed, &length, plain, plain_bytes, aad, aad_bytes, NULL, nonce, key)


cdef inline int aead_open(int cipher, const uint8_t *key, sm_chacha_t *contexts, uint64_t counter,
                          const uint8_t *aad, size_t aad_bytes, const uint8_t *sealed,
                          size_t sealed_bytes, uint8_t *plain) noexcept nogil:
    # Writes sealed_bytes - tag_bytes(cipher) bytes; `plain` may be `sealed`. -1 when forged or
    # shorter than a tag; `plain` is then worthless.
    cdef uint8_t nonce[AEGIS_NONCE_BYTES]
    cdef EVP_CIPHER_CTX *context = NULL
    cdef size_t plain_bytes = sealed_bytes - tag_bytes(cipher)
    cdef unsigned long long length
    if sealed_bytes < tag_bytes(cipher):
        return -1
    memset(nonce, 0, AEGIS_NONCE_BYTES)
    if cipher == CIPHER_AEGIS256:
        sm_store64(nonce + AEGIS_NONCE_BYTES - 8, counter)
        return sm_aegis256_open(plain, sealed, sealed_bytes, aad, aad_bytes, nonce, key)
    sm_store64(nonce + CHACHA_NONCE_BYTES - 8, counter)
    if plain_bytes >= SM_CHACHA_FROM:
        context = sm_chacha_begin(contexts, key, nonce, sealed + plain_bytes)
    if context != NULL:
        return sm_chacha_open(context, plain, sealed, plain_bytes, aad, aad_bytes)
    return crypto_aead_chacha20poly1305_ietf_decrypt(
        plain, &length, NULL, sealed, sealed_bytes, aad, aad_bytes, nonce, key)
