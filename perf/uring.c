/*
 * What a frame through a TAP costs with plain system calls and with io_uring (perf/uring.py opens
 * the device and the socket in a network namespace of their own and passes them on).
 *
 *   uring write SECONDS WAY DEPTH TAP <FRAME             FRAME begins with its virtio header
 *   uring read  SECONDS WAY DEPTH BYTES RATE TAP SOCKET  what leaves SOCKET comes out of TAP
 *
 * WAY: calls      write() or poll() and read() until EAGAIN, as the daemon does; DEPTH is not used
 *      batch      DEPTH operations for each io_uring_enter(), reads after a poll() that said yes
 *      armed      DEPTH reads wait in the ring all the time, no poll()
 *      multishot  one read for all frames, into DEPTH buffers of a ring that the kernel takes from
 * BYTES of UDP payload (longer than a packet: one super-frame) and RATE of datagrams a second, sent by
 * a second thread; 0 is as fast as it goes. RATE -1 fills the queue and then lets the reader find it
 * full: nobody is woken, which is the best case for all.
 *
 * Prints frames, ns of time, and ns of CPU of everything but the sending: io_uring may let workers
 * of the kernel do it, and they count as threads of this process.
 * Exit code 3: this kernel does not do it, or not for us; stderr says what.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    ENTRIES = 64,               /* of the ring: the largest DEPTH, and the daemon's largest batch */
    BUFFER_BYTES = 66 * 1024,   /* a super-frame and its headers */
    ARENA_BYTES = ENTRIES * BUFFER_BYTES,
    VNET_BYTES = 10,            /* struct virtio_net_hdr, as the daemon's device has it */
    SEGMENT_BYTES = 1400,
    BUFFER_GROUP = 1,
    UNSUPPORTED = 3,
    READ_MULTISHOT = 49,        /* IORING_OP_READ_MULTISHOT, Linux 6.7: newer than many headers */
};
#define UDP_SEGMENT 103         /* linux/udp.h, which clashes with netinet */
#define WAIT_MS 20              /* nobody waits longer, so that all notice the end */
#define SLOT_NS 250000ULL       /* between two bursts of a steady sender */
#define SECOND_NS 1000000000ULL

static uint64_t read_clock(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * SECOND_NS + (uint64_t)ts.tv_nsec;
}

static uint64_t now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

static void stop(int code, const char *what, int error)
{
    fprintf(stderr, "%s: %s\n", what, strerror(error));
    exit(code);
}

static void fail(const char *what)
{
    stop(1, what, errno);
}

static uint8_t arena[ARENA_BYTES + 64];
static uint64_t until, frames;
/* Frames are looked at, as whoever takes them does. */
static volatile uint8_t seen;

static uint8_t *buffer(unsigned index)
{
    return arena + (size_t)index * BUFFER_BYTES;
}

/* --- the ring ------------------------------------------------------------------------------ */

static struct {
    int fd;
    unsigned *sq_tail, sq_mask, *cq_head, *cq_tail, cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    struct io_uring_buf_ring *buffers;
} ring;

static void *map(size_t bytes, int fd, off_t offset)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED | MAP_POPULATE;
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, offset);
    if (at == MAP_FAILED)
        fail("mmap");
    return at;
}

/* The flags are the cheapest there are for one thread; the device is registered as file 0. */
static void open_ring(int tap)
{
    struct io_uring_params wanted = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    unsigned *array;
    uint8_t *both;
    size_t sq_bytes, cq_bytes;
    ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &wanted);
    if (ring.fd < 0 && errno == EINVAL) {   /* before Linux 6.1 */
        memset(&wanted, 0, sizeof wanted);
        ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &wanted);
    }
    if (ring.fd < 0)
        stop(errno == EPERM || errno == ENOSYS ? UNSUPPORTED : 1, "io_uring_setup", errno);
    if (!(wanted.features & IORING_FEAT_SINGLE_MMAP) || !(wanted.features & IORING_FEAT_EXT_ARG))
        stop(UNSUPPORTED, "io_uring of a kernel before 5.11", ENOSYS);
    sq_bytes = wanted.sq_off.array + wanted.sq_entries * sizeof *array;
    cq_bytes = wanted.cq_off.cqes + wanted.cq_entries * sizeof *ring.cqes;
    both = map(sq_bytes > cq_bytes ? sq_bytes : cq_bytes, ring.fd, IORING_OFF_SQ_RING);
    ring.sqes = map(wanted.sq_entries * sizeof *ring.sqes, ring.fd, IORING_OFF_SQES);
    ring.sq_tail = (unsigned *)(both + wanted.sq_off.tail);
    ring.sq_mask = *(unsigned *)(both + wanted.sq_off.ring_mask);
    ring.cq_head = (unsigned *)(both + wanted.cq_off.head);
    ring.cq_tail = (unsigned *)(both + wanted.cq_off.tail);
    ring.cq_mask = *(unsigned *)(both + wanted.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(both + wanted.cq_off.cqes);
    array = (unsigned *)(both + wanted.sq_off.array);
    for (unsigned i = 0; i < wanted.sq_entries; i++)
        array[i] = i;
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &tap, 1) < 0)
        fail("io_uring_register: files");
}

static struct io_uring_sqe *put(int operation, unsigned index, size_t bytes)
{
    unsigned tail = *ring.sq_tail;
    struct io_uring_sqe *sqe = &ring.sqes[tail & ring.sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)operation;
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->addr = (uint64_t)(uintptr_t)buffer(index);
    sqe->len = (uint32_t)bytes;
    sqe->user_data = index;
    __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
    return sqe;
}

/* Submits what was put and waits for `least` completions, at most WAIT_MS. */
static void enter(unsigned put_in, unsigned least)
{
    struct __kernel_timespec limit = {0, WAIT_MS * 1000000};
    struct io_uring_getevents_arg more = {.ts = (uint64_t)(uintptr_t)&limit};
    long done = syscall(SYS_io_uring_enter, ring.fd, put_in, least,
                        IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &more, sizeof more);
    if (done < 0 && errno != ETIME && errno != EINTR)
        fail("io_uring_enter");
}

/* The next completion, or NULL; `took` gives its place back. */
static struct io_uring_cqe *next(void)
{
    unsigned head = *ring.cq_head;
    if (head == __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE))
        return NULL;
    return &ring.cqes[head & ring.cq_mask];
}

static void took(void)
{
    __atomic_store_n(ring.cq_head, *ring.cq_head + 1, __ATOMIC_RELEASE);
}

/* --- write --------------------------------------------------------------------------------- */

static void write_frames(int tap, const char *way, unsigned depth)
{
    size_t whole = fread(buffer(0), 1, BUFFER_BYTES, stdin);
    for (unsigned i = 1; i < ENTRIES; i++)
        memcpy(buffer(i), buffer(0), whole);
    if (strcmp(way, "calls") == 0) {
        while (now_ns() < until) {
            for (unsigned i = 0; i < ENTRIES; i++) {
                if (write(tap, buffer(i), whole) != (ssize_t)whole)
                    fail("write");
            }
            frames += ENTRIES;
        }
        return;
    }
    for (unsigned first = 0; now_ns() < until; first = (first + depth) % ENTRIES) {
        struct io_uring_cqe *done;
        for (unsigned i = 0; i < depth; i++)
            put(IORING_OP_WRITE, (first + i) % ENTRIES, whole);
        enter(depth, depth);
        for (unsigned i = 0; i < depth; i++) {
            done = next();
            if (!done || done->res != (int)whole)
                stop(1, "write through io_uring", done ? -done->res : ETIME);
            took();
        }
        frames += depth;
    }
}

/* --- the sender ---------------------------------------------------------------------------- */

static struct {
    int socket;
    double rate;
    struct mmsghdr messages[ENTRIES];
    struct iovec vector;
    uint64_t cpu_ns;
} sender;

static void open_sender(int socket, size_t bytes, double rate)
{
    int segment = SEGMENT_BYTES;
    sender.socket = socket;
    sender.rate = rate;
    sender.vector = (struct iovec){calloc(1, bytes), bytes};
    for (int i = 0; i < ENTRIES; i++) {
        sender.messages[i].msg_hdr.msg_iov = &sender.vector;
        sender.messages[i].msg_hdr.msg_iovlen = 1;
    }
    if (bytes > SEGMENT_BYTES
        && setsockopt(socket, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment) < 0)
        fail("UDP_SEGMENT");
}

/* What a full queue refuses is lost: so it is for any sender. */
static void send_burst(unsigned count)
{
    if (sendmmsg(sender.socket, sender.messages, count, MSG_DONTWAIT) < 0
        && errno != ENOBUFS && errno != EAGAIN && errno != EINTR)
        fail("sendmmsg");
}

static void *send_datagrams(void *unused)
{
    uint64_t next_at = now_ns();
    double owed = 0;
    prctl(PR_SET_TIMERSLACK, 1);
    while (now_ns() < until) {
        struct timespec ts = {(time_t)(next_at / SECOND_NS), (long)(next_at % SECOND_NS)};
        if (sender.rate == 0) {
            send_burst(ENTRIES);
            continue;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
        next_at += SLOT_NS;
        for (owed += sender.rate * (double)SLOT_NS / 1e9; owed >= 1; owed -= (unsigned)owed)
            send_burst(owed < ENTRIES ? (unsigned)owed : ENTRIES);
    }
    sender.cpu_ns = read_clock(CLOCK_THREAD_CPUTIME_ID);
    return unused;
}

/* Without a thread: what this one spends on sending is taken out again. */
static void fill(void)
{
    uint64_t before;
    if (sender.rate >= 0)
        return;
    before = read_clock(CLOCK_THREAD_CPUTIME_ID);
    send_burst(ENTRIES);
    sender.cpu_ns += read_clock(CLOCK_THREAD_CPUTIME_ID) - before;
}

/* --- read ---------------------------------------------------------------------------------- */

static void take(const uint8_t *frame)
{
    seen = frame[VNET_BYTES];
    frames++;
}

static int readable(int tap)
{
    struct pollfd waiting = {tap, POLLIN, 0};
    return poll(&waiting, 1, WAIT_MS) > 0;
}

/* Packed as by read_batch in shadowmesh/fast/outbound.pxd, which begins anew at the same size. */
static void read_with_calls(int tap)
{
    while (now_ns() < until) {
        size_t used = 0;
        ssize_t got = 0;
        fill();
        if (!readable(tap))
            continue;
        while ((got = read(tap, arena + used, BUFFER_BYTES)) > 0) {
            take(arena + used);
            used += ((size_t)got + 63) / 64 * 64;
            if (used > 256 * 1024)
                used = 0;
        }
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            fail("read");
    }
}

/* The device does not block; for io_uring only RWF_NOWAIT makes that true. */
static void read_in_batches(int tap, unsigned depth)
{
    while (now_ns() < until) {
        unsigned got = depth;
        fill();
        if (!readable(tap))
            continue;
        while (got == depth) {
            struct io_uring_cqe *done;
            for (unsigned i = 0; i < depth; i++)
                put(IORING_OP_READ, i, BUFFER_BYTES)->rw_flags = RWF_NOWAIT;
            enter(depth, depth);
            for (got = 0; (done = next()); took()) {
                if (done->res > 0) {
                    take(buffer((unsigned)done->user_data));
                    got++;
                } else if (done->res != -EAGAIN && done->res != -EINTR) {
                    stop(1, "read through io_uring", -done->res);
                }
            }
        }
    }
}

static void read_armed(unsigned depth)
{
    unsigned again = depth;
    for (unsigned i = 0; i < depth; i++)
        put(IORING_OP_READ, i, BUFFER_BYTES);
    while (now_ns() < until) {
        struct io_uring_cqe *done;
        fill();
        enter(again, 1);
        for (again = 0; (done = next()); again++) {
            unsigned index = (unsigned)done->user_data;
            if (done->res > 0)
                take(buffer(index));
            else if (done->res != -EAGAIN)  /* woken in vain too often: as every file may be */
                stop(1, "read that waits in io_uring", -done->res);
            took();
            put(IORING_OP_READ, index, BUFFER_BYTES);
        }
    }
}

static void give(unsigned index)
{
    struct io_uring_buf_ring *to = ring.buffers;
    struct io_uring_buf *slot = &to->bufs[to->tail & (ENTRIES - 1)];
    slot->addr = (uint64_t)(uintptr_t)buffer(index);
    slot->len = BUFFER_BYTES;
    slot->bid = (uint16_t)index;
    __atomic_store_n(&to->tail, to->tail + 1, __ATOMIC_RELEASE);
}

static void read_multishot(unsigned depth)
{
    struct io_uring_buf_reg wanted = {.ring_entries = ENTRIES, .bgid = BUFFER_GROUP};
    int armed = 0;
    ring.buffers = map(ENTRIES * sizeof(struct io_uring_buf), -1, 0);
    wanted.ring_addr = (uint64_t)(uintptr_t)ring.buffers;
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_PBUF_RING, &wanted, 1) < 0)
        stop(UNSUPPORTED, "a ring of buffers", errno);
    for (unsigned i = 0; i < depth; i++)
        give(i);
    while (now_ns() < until) {
        struct io_uring_cqe *done;
        if (!armed) {
            struct io_uring_sqe *sqe = put(READ_MULTISHOT, 0, 0);
            sqe->addr = 0;
            sqe->flags |= IOSQE_BUFFER_SELECT;
            sqe->buf_group = BUFFER_GROUP;
        }
        fill();
        enter(!armed, 1);
        armed = 1;
        for (; (done = next()); took()) {
            unsigned index = done->flags >> IORING_CQE_BUFFER_SHIFT;
            armed = armed && done->flags & IORING_CQE_F_MORE;
            if (done->res == -EINVAL || done->res == -EBADFD || done->res == -EOPNOTSUPP)
                stop(UNSUPPORTED, "multishot read of this device", -done->res);
            if (done->res == -ENOBUFS || done->res == -EAGAIN)
                continue;       /* all buffers were full: asked again, with those given back */
            if (done->res <= 0)
                stop(1, "multishot read", -done->res);
            take(buffer(index));
            give(index);
        }
    }
}

static void read_frames(int tap, const char *way, unsigned depth)
{
    while (read(tap, arena, BUFFER_BYTES) > 0)
        ;                       /* what an earlier run has left */
    if (strcmp(way, "calls") == 0)
        read_with_calls(tap);
    else if (strcmp(way, "batch") == 0)
        read_in_batches(tap, depth);
    else if (strcmp(way, "armed") == 0)
        read_armed(depth);
    else
        read_multishot(depth);
}

int main(int count, char **words)
{
    int reads = count == 9 && strcmp(words[1], "read") == 0;
    int writes = count == 6 && strcmp(words[1], "write") == 0;
    unsigned depth = count > 4 ? (unsigned)atoi(words[4]) : 0;
    uint64_t began, cpu_ns;
    pthread_t thread;
    int tap;

    if (!(reads || writes) || depth > ENTRIES) {
        fprintf(stderr, "usage: uring write|read SECONDS ... (see uring.c)\n");
        return 2;
    }
    tap = atoi(words[reads ? 7 : 5]);
    memset(arena, 1, sizeof arena);     /* pages, before they count */
    if (strcmp(words[3], "calls") != 0)
        open_ring(tap);
    if (reads)
        open_sender(atoi(words[8]), (size_t)atoi(words[5]), atof(words[6]));
    cpu_ns = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    began = now_ns();
    until = began + (uint64_t)(atof(words[2]) * 1e9);
    if (reads && sender.rate >= 0) {
        errno = pthread_create(&thread, NULL, send_datagrams, NULL);
        if (errno)
            fail("pthread_create");
    }
    if (reads)
        read_frames(tap, words[3], depth);
    else
        write_frames(tap, words[3], depth);
    began = now_ns() - began;
    if (reads && sender.rate >= 0)
        pthread_join(thread, NULL);
    else
        began -= sender.cpu_ns;
    cpu_ns = read_clock(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns - sender.cpu_ns;
    printf("%llu %llu %llu\n", (unsigned long long)frames, (unsigned long long)began,
           (unsigned long long)cpu_ns);
    return 0;
}
