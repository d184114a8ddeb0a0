/* ChaCha20-Poly1305 (RFC 8439) by OpenSSL, which beats libsodium where a record is not short.
 *
 * OpenSSL wants a context, which remembers the key: giving it anew would cost a record of 1,400 bytes
 * a twentieth. So an epoch of keys has one for each thread that seals or opens under it. The thread
 * makes it when it first does, no other touches it, and it goes with the epoch.
 *
 * OpenSSL checks a tag after it has decrypted: what is forged costs as much as what is authentic.
 */
#ifndef SHADOWMESH_CHACHA_H
#define SHADOWMESH_CHACHA_H

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sodium.h>
#include <stdint.h>
#include <string.h>

/* Shorter records libsodium does in less time than OpenSSL needs to begin and to end one. Measured
 * with SSE and with AVX2; with AVX-512 it may be less. */
#define SM_CHACHA_FROM 640
/* TAP threads, UDP thread, hub and some to spare. */
#define SM_CHACHA_THREADS 16
#define SM_CHACHA_KEY_BYTES 32
#define SM_CHACHA_TAG_BYTES 16
/* OpenSSL leaves the key on the stack, within a kilobyte and a half below who calls it. */
#define SM_CHACHA_STACK_BYTES 2048

typedef struct {                /* of one thread */
    EVP_CIPHER_CTX *context;    /* NULL: it has not needed one */
    uint8_t key[SM_CHACHA_KEY_BYTES];       /* that is in it */
} sm_chacha_t;

static EVP_CIPHER *sm_chacha_cipher;        /* NULL: libsodium does all */
static pthread_key_t sm_chacha_number;      /* of a thread, which nobody else has while it lives, from 1 on */
static uint32_t sm_chacha_numbers;          /* a bit for each that is given out */

static inline void sm_chacha_give_back(void *number) {
    __atomic_fetch_and(&sm_chacha_numbers, ~(UINT32_C(1) << ((uintptr_t)number - 1)),
                       __ATOMIC_RELEASE);
}

/* When the module is loaded, before there are threads. Without it, or when OpenSSL has no such cipher
 * because its FIPS provider is the only one, libsodium does all. */
static inline void sm_chacha_load(void) {
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", NULL);
    if (cipher != NULL && pthread_key_create(&sm_chacha_number, sm_chacha_give_back) == 0)
        sm_chacha_cipher = cipher;
}

/* 0: all are taken, or there is no memory. */
static inline uintptr_t sm_chacha_thread(void) {
    uintptr_t number = (uintptr_t)pthread_getspecific(sm_chacha_number);
    uint32_t taken = __atomic_load_n(&sm_chacha_numbers, __ATOMIC_RELAXED);
    if (number != 0)
        return number;
    do {
        number = (uintptr_t)__builtin_ctz(~taken) + 1;
        if (number > SM_CHACHA_THREADS)
            return 0;
    } while (!__atomic_compare_exchange_n(&sm_chacha_numbers, &taken,
                                          taken | UINT32_C(1) << (number - 1), 0,
                                          __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
    if (pthread_setspecific(sm_chacha_number, (void *)number) == 0)
        return number;
    sm_chacha_give_back((void *)number);
    return 0;
}

/* Nobody seals or opens under these keys any more. */
static inline void sm_chacha_erase(sm_chacha_t *contexts) {
    int i;
    for (i = 0; i < SM_CHACHA_THREADS; i++)
        EVP_CIPHER_CTX_free(contexts[i].context);
    sodium_memzero(contexts, SM_CHACHA_THREADS * sizeof(*contexts));
}

static __attribute__((noinline)) void sm_chacha_clean_stack(void) {
    uint8_t used[SM_CHACHA_STACK_BYTES];
    sodium_memzero(used, sizeof(used));
}

/* This thread's context, about to seal or, when there is a tag, to open what has it; NULL: libsodium
 * has to do it. */
static inline EVP_CIPHER_CTX *sm_chacha_begin(sm_chacha_t *contexts, const uint8_t *key,
                                              const uint8_t *nonce, const uint8_t *tag) {
    const OSSL_PARAM wanted[2] = {
        OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, (void *)tag,
                                          SM_CHACHA_TAG_BYTES),
        OSSL_PARAM_END};
    uintptr_t thread = sm_chacha_cipher == NULL ? 0 : sm_chacha_thread();
    const EVP_CIPHER *cipher = NULL;
    sm_chacha_t *own;
    int begun;
    if (thread == 0)
        return NULL;
    own = &contexts[thread - 1];
    if (own->context == NULL) {
        own->context = EVP_CIPHER_CTX_new();
        if (own->context == NULL)
            return NULL;
        cipher = sm_chacha_cipher;
    }
    if (cipher == NULL && memcmp(own->key, key, sizeof(own->key)) == 0)
        key = NULL;
    else
        memcpy(own->key, key, sizeof(own->key));
    if (tag == NULL)
        begun = EVP_EncryptInit_ex2(own->context, cipher, key, nonce, NULL);
    else
        begun = EVP_DecryptInit_ex2(own->context, cipher, key, nonce, wanted);
    if (begun)
        return own->context;
    EVP_CIPHER_CTX_free(own->context);
    own->context = NULL;
    return NULL;
}

/* 0 on success. `sealed` may be `plain`. */
static inline int sm_chacha_seal(EVP_CIPHER_CTX *context, uint8_t *sealed, const uint8_t *plain,
                                 size_t plain_bytes, const uint8_t *aad, size_t aad_bytes) {
    OSSL_PARAM tag[2] = {
        OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, sealed + plain_bytes,
                                          SM_CHACHA_TAG_BYTES),
        OSSL_PARAM_END};
    int length;
    int done = EVP_EncryptUpdate(context, NULL, &length, aad, (int)aad_bytes)
        && EVP_EncryptUpdate(context, sealed, &length, plain, (int)plain_bytes)
        && EVP_EncryptFinal_ex(context, sealed + plain_bytes, &length)
        && EVP_CIPHER_CTX_get_params(context, tag);
    sm_chacha_clean_stack();
    return done ? 0 : -1;
}

/* 0 on success, -1 when forged; `plain`, which may be `sealed`, is then worthless. */
static inline int sm_chacha_open(EVP_CIPHER_CTX *context, uint8_t *plain, const uint8_t *sealed,
                                 size_t plain_bytes, const uint8_t *aad, size_t aad_bytes) {
    int length;
    int done = EVP_DecryptUpdate(context, NULL, &length, aad, (int)aad_bytes)
        && EVP_DecryptUpdate(context, plain, &length, sealed, (int)plain_bytes)
        && EVP_DecryptFinal_ex(context, plain + plain_bytes, &length);
    sm_chacha_clean_stack();
    return done ? 0 : -1;
}

#endif
