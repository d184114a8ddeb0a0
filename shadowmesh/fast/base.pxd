# C names used by every part of the data plane: bytes, atomics, clocks, file descriptors.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t, int64_t
from posix.types cimport clockid_t


cdef extern from "compat.h" nogil:
    int SM_HAVE_AEGIS256
    int sm_aegis256_usable()
    int sm_aegis256_seal(uint8_t *c, const uint8_t *m, size_t mlen, const uint8_t *ad,
                         size_t adlen, const uint8_t *nonce, const uint8_t *key)
    int sm_aegis256_open(uint8_t *m, const uint8_t *c, size_t clen, const uint8_t *ad,
                         size_t adlen, const uint8_t *nonce, const uint8_t *key)
    uint16_t sm_load16(const uint8_t *p)
    uint32_t sm_load32(const uint8_t *p)
    uint64_t sm_load64(const uint8_t *p)
    void sm_store16(uint8_t *p, uint16_t v)
    void sm_store32(uint8_t *p, uint32_t v)
    void sm_store64(uint8_t *p, uint64_t v)
    uint16_t sm_load16be(const uint8_t *p)
    uint32_t sm_load32be(const uint8_t *p)
    uint64_t sm_load64be(const uint8_t *p)
    void sm_store16be(uint8_t *p, uint16_t v)
    void sm_store32be(uint8_t *p, uint32_t v)
    void sm_store64be(uint8_t *p, uint64_t v)
    uint64_t sm_acquire(const uint64_t *p)
    void sm_release(uint64_t *p, uint64_t v)
    int sm_flag(const int *p)
    void sm_set_flag(int *p, int v)
    int sm_take_flag(int *p)
    void *sm_published(void *const *p)
    void sm_publish(void **p, void *v)
    void sm_fence()
    void sm_count(uint64_t *p, uint64_t n)
    uint64_t sm_counted(const uint64_t *p)
    void sm_add(uint64_t *p, uint64_t n)
    int sm_claim(uint64_t *p, uint64_t *expected, uint64_t wanted)
    uint64_t sm_take_all(uint64_t *p)
    uint64_t sm_take_numbers(uint64_t *p, uint64_t n)
    void sm_raise_bits(int *p, int bits)
    void sm_lower_bits(int *p, int bits)
    void sm_set_errno(int number)
    void sm_mask(uint8_t *p, size_t length, const uint8_t *mask, uint64_t phase)

cdef extern from "<sodium.h>" nogil:
    const char *sodium_version_string()
    int sodium_init()
    void sodium_memzero(void *p, size_t n)
    void randombytes_buf(void *p, size_t n)
    int crypto_aead_chacha20poly1305_ietf_encrypt(
        uint8_t *c, unsigned long long *clen, const uint8_t *m, unsigned long long mlen,
        const uint8_t *ad, unsigned long long adlen, const uint8_t *nsec, const uint8_t *npub,
        const uint8_t *k)
    int crypto_aead_chacha20poly1305_ietf_decrypt(
        uint8_t *m, unsigned long long *mlen, uint8_t *nsec, const uint8_t *c,
        unsigned long long clen, const uint8_t *ad, unsigned long long adlen,
        const uint8_t *npub, const uint8_t *k)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(clockid_t clock, timespec *ts)
    clockid_t CLOCK_BOOTTIME
    clockid_t CLOCK_MONOTONIC
    clockid_t CLOCK_REALTIME
    clockid_t CLOCK_MONOTONIC_COARSE

cdef extern from "<errno.h>" nogil:
    int errno
    int ESRCH, ETIME
    int EAGAIN, EINTR, EIO, EINVAL, EBADFD, EBADF, ENOBUFS, ENODEV
    int EMSGSIZE, EPERM, ENETUNREACH, EHOSTUNREACH, ENETDOWN, ECONNREFUSED

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t count)
    ssize_t write(int fd, const void *buffer, size_t count)
    int close(int fd)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTNEED, MADV_NOHUGEPAGE
    void *MAP_FAILED

cdef enum:
    PAGE_BYTES = 4096           # or more, and then less is given back
    KEPT_BYTES = 4 * 1024       # of each buffer, of the memory of a burst, by a link at rest

cdef extern from "<sched.h>" nogil:
    int sched_yield()
    struct sched_param:
        int sched_priority
    int SCHED_OTHER, SCHED_RR

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    short POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll_fd, epoll_event *events, int count, int timeout_ms)
    uint32_t EPOLLIN, EPOLLOUT, EPOLLET
    int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initial, int flags)
    int EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_create(pthread_t *thread, void *attributes, void *(*start)(void *) noexcept nogil,
                       void *argument)
    int pthread_join(pthread_t thread, void **result)
    pthread_t pthread_self()
    int pthread_setschedparam(pthread_t thread, int policy, const sched_param *parameters)
    int pthread_setname_np(pthread_t thread, const char *name)


cdef inline uint64_t boottime_ns() noexcept nogil:
    # CLOCK_BOOTTIME goes on while the machine is suspended: a key must not outlive its 180 s
    # because somebody closed a lid.
    cdef timespec ts
    clock_gettime(CLOCK_BOOTTIME, &ts)
    return <uint64_t>ts.tv_sec * 1000000000 + <uint64_t>ts.tv_nsec


cdef inline void give_pages_back(uint8_t *memory, size_t kept, size_t reached) noexcept nogil:
    # Of memory from mmap(): whole pages behind the first `kept` bytes, as far as anything has reached.
    # They read as zero afterwards.
    cdef size_t spare = <size_t>(-<size_t>(memory + kept)) % PAGE_BYTES
    if reached > kept + spare:
        madvise(memory + kept + spare, reached - kept - spare, MADV_DONTNEED)


cdef inline void signal_fd(int fd) noexcept nogil:
    # Adding 1 to an eventfd fails only when it is at 2^64 - 2: then it is readable anyway.
    cdef uint64_t one = 1
    if write(fd, &one, 8) < 0:
        return


cdef inline void drain_fd(int fd) noexcept nogil:
    # Fails with EAGAIN when nobody has signalled: nothing to drain.
    cdef uint64_t count
    if read(fd, &count, 8) < 0:
        return
