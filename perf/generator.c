/*
 * Traffic for measurements, from sockets that the caller made and connected (perf/lab.py passes
 * them as inherited descriptors, each opened in the network namespace it belongs to).
 *
 *   generator stream SECONDS OUT IN [OUT IN ...]      TCP; one sender and one receiver each
 *       prints: bytes received after a warm-up, seconds of that, bytes received in all
 *   generator frames SECONDS RATE BYTES OUT IN        UDP datagrams at a steady rate, one way
 *       prints: sent, received, seconds from the first to the last that was received
 *   generator rtt SECONDS RATE OUT IN                 UDP ping-pong; IN answers
 *       prints: one round trip in ns a line; "lost N" last
 *
 * OUT and IN are two ends of one connection. The receiver counts: what a sender has handed to its
 * kernel says nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    STREAM_BYTES = 256 * 1024,  /* of one send() and recv(): system calls cost nothing then */
    MAX_STREAMS = 16,
    BURST = 64,                 /* datagrams of one sendmmsg() or recvmmsg() */
    DATAGRAM_BYTES = 2048,
    DRAIN_MS = 100,             /* what is still under way when the sender stops */
    PONG_TIMEOUT_MS = 1000,
};
/* Between two bursts: short, so that a burst stays below what a device queue holds. */
#define SLOT_NS 250000ULL
/* Slow start and the first wake-ups are not part of a measurement. */
#define WARM_UP_NS 300000000ULL
#define SECOND_NS 1000000000ULL

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SECOND_NS + (uint64_t)ts.tv_nsec;
}

static void sleep_until(uint64_t at)
{
    struct timespec ts = {(time_t)(at / SECOND_NS), (long)(at % SECOND_NS)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
        ;
}

static void fail(const char *what)
{
    fprintf(stderr, "generator: %s: %s\n", what, strerror(errno));
    exit(1);
}

static pthread_t start(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    errno = pthread_create(&thread, NULL, body, argument);
    if (errno)
        fail("pthread_create");
    return thread;
}

/* --- stream -------------------------------------------------------------------------------- */

static uint64_t count_from, count_until;    /* receivers count what comes between the two */

static void *send_stream(void *argument)
{
    int fd = *(int *)argument;
    char *data = malloc(STREAM_BYTES);
    if (!data)
        fail("malloc");
    memset(data, 'x', STREAM_BYTES);
    while (now_ns() < count_until) {
        if (send(fd, data, STREAM_BYTES, MSG_NOSIGNAL) < 0 && errno != EINTR)
            fail("send");
    }
    return NULL;
}

static _Atomic uint64_t counted_bytes, stream_bytes;

static void *receive_stream(void *argument)
{
    int fd = *(int *)argument;
    char *data = malloc(STREAM_BYTES);
    uint64_t counted = 0;
    uint64_t bytes = 0;
    if (!data)
        fail("malloc");
    for (;;) {
        struct pollfd waiting = {fd, POLLIN, 0};
        uint64_t now = now_ns();
        ssize_t got;
        if (now >= count_until)
            break;
        if (poll(&waiting, 1, (int)((count_until - now) / 1000000 + 1)) <= 0)
            continue;
        got = recv(fd, data, STREAM_BYTES, 0);
        if (got == 0)
            break;
        if (got < 0 && errno != EINTR)
            fail("recv");
        now = now_ns();
        if (got > 0)
            bytes += (uint64_t)got;
        if (got > 0 && now >= count_from && now < count_until)
            counted += (uint64_t)got;
    }
    atomic_fetch_add(&counted_bytes, counted);
    atomic_fetch_add(&stream_bytes, bytes);
    return NULL;
}

static int run_stream(double seconds, int *fds, int pairs)
{
    pthread_t receivers[MAX_STREAMS];
    count_from = now_ns() + WARM_UP_NS;
    count_until = count_from + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < pairs; i++) {
        receivers[i] = start(receive_stream, &fds[2 * i + 1]);
        start(send_stream, &fds[2 * i]);
    }
    for (int i = 0; i < pairs; i++)
        pthread_join(receivers[i], NULL);
    printf("%llu %.6f %llu\n", (unsigned long long)counted_bytes, seconds,
           (unsigned long long)stream_bytes);
    /* Senders may hang in send(); the end of the process is their end. */
    return 0;
}

/* --- frames -------------------------------------------------------------------------------- */

static _Atomic int sender_done;
static uint64_t frames_received, first_at, last_at;

static void *receive_frames(void *argument)
{
    int fd = *(int *)argument;
    static char data[BURST][DATAGRAM_BYTES];
    struct mmsghdr messages[BURST];
    struct iovec vectors[BURST];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BURST; i++) {
        vectors[i] = (struct iovec){data[i], DATAGRAM_BYTES};
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
        struct pollfd waiting = {fd, POLLIN, 0};
        int got = recvmmsg(fd, messages, BURST, MSG_DONTWAIT, NULL);
        if (got > 0) {
            frames_received += (uint64_t)got;
            last_at = now_ns();
            if (!first_at)
                first_at = last_at;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR && errno != ECONNREFUSED)
            fail("recvmmsg");
        if (poll(&waiting, 1, DRAIN_MS) == 0 && sender_done)
            return NULL;
    }
}

static int run_frames(double seconds, double rate, int bytes, int out, int in)
{
    static char data[DATAGRAM_BYTES];
    struct mmsghdr messages[BURST];
    struct iovec vector = {data, (size_t)bytes};
    uint64_t began, next, now;
    uint64_t sent = 0;
    double owed = 0;
    uint64_t length = (uint64_t)(seconds * 1e9);
    pthread_t receiver = start(receive_frames, &in);

    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BURST; i++) {
        messages[i].msg_hdr.msg_iov = &vector;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    began = next = now_ns();
    while (next - began < length) {
        owed += rate * (double)SLOT_NS / 1e9;
        while (owed >= 1) {
            unsigned burst = owed < BURST ? (unsigned)owed : BURST;
            int done = sendmmsg(out, messages, burst, 0);
            if (done < 0) {
                if (errno == EINTR)
                    continue;
                /* A full device queue is a lost frame, not an error of ours. */
                if (errno != ENOBUFS && errno != ECONNREFUSED)
                    fail("sendmmsg");
                done = 1;
            }
            sent += (uint64_t)done;
            owed -= done;
        }
        /* Late by more than a slot: those frames are never sent. Sent all at once they would
           overflow a device queue and be taken for a loss of the tunnel. */
        now = now_ns();
        next += SLOT_NS;
        if (next + SLOT_NS < now)
            next = now - SLOT_NS;
        if (next > now)
            sleep_until(next);
    }
    sender_done = 1;
    pthread_join(receiver, NULL);
    /* Not the sender's time: queues that fill while it sends would pass for speed. */
    printf("%llu %llu %.6f\n", (unsigned long long)sent, (unsigned long long)frames_received,
           (double)(last_at - first_at) / 1e9);
    return 0;
}

/* --- rtt ----------------------------------------------------------------------------------- */

static void *answer(void *argument)
{
    int fd = *(int *)argument;
    uint64_t data;
    for (;;) {
        ssize_t got = recv(fd, &data, sizeof data, 0);
        if (got > 0 && send(fd, &data, (size_t)got, MSG_NOSIGNAL) < 0 && errno == EBADF)
            return NULL;
    }
}

static int run_rtt(double seconds, double rate, int out, int in)
{
    uint64_t gap = (uint64_t)(1e9 / rate);
    uint64_t began = now_ns();
    uint64_t next = began;
    uint64_t end = began + (uint64_t)(seconds * 1e9);
    uint64_t lost = 0;

    start(answer, &in);
    prctl(PR_SET_TIMERSLACK, 1);
    while (next < end) {
        struct pollfd waiting = {out, POLLIN, 0};
        uint64_t sent = now_ns();
        uint64_t back = 0;
        if (send(out, &sent, sizeof sent, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
            fail("send");
        while (back != sent) {
            if (poll(&waiting, 1, PONG_TIMEOUT_MS) == 0)
                break;
            if (recv(out, &back, sizeof back, 0) < 0 && errno != ECONNREFUSED)
                fail("recv");
        }
        if (back == sent)
            printf("%llu\n", (unsigned long long)(now_ns() - sent));
        else
            lost++;
        next += gap;
        if (next < now_ns())
            next = now_ns();
        sleep_until(next);
    }
    printf("lost %llu\n", (unsigned long long)lost);
    return 0;
}

int main(int count, char **words)
{
    int fds[2 * MAX_STREAMS];
    double seconds = count > 2 ? atof(words[2]) : 0;

    if (count >= 5 && count % 2 == 1 && count <= 3 + 2 * MAX_STREAMS
        && strcmp(words[1], "stream") == 0) {
        for (int i = 3; i < count; i++)
            fds[i - 3] = atoi(words[i]);
        return run_stream(seconds, fds, (count - 3) / 2);
    }
    if (count == 7 && strcmp(words[1], "frames") == 0 && atoi(words[4]) <= DATAGRAM_BYTES)
        return run_frames(seconds, atof(words[3]), atoi(words[4]), atoi(words[5]), atoi(words[6]));
    if (count == 6 && strcmp(words[1], "rtt") == 0)
        return run_rtt(seconds, atof(words[3]), atoi(words[4]), atoi(words[5]));
    fprintf(stderr, "usage: generator stream|frames|rtt SECONDS ... (see generator.c)\n");
    return 2;
}
