/* Calls of the system that fail when a test wants them to, under a module that knows nothing of it.
 *
 * The table through which the module calls what other libraries have (its GOT) is made to point here,
 * before any of its threads runs and for as long as the process lives. What is not to fail is passed on.
 */
#ifndef SHADOWMESH_FAULTS_H
#define SHADOWMESH_FAULTS_H

#include <elf.h>
#include <errno.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    F_READ, F_WRITE, F_WRITEV, F_POLL, F_RECVMMSG, F_SENDMMSG, F_SENDTO,
    F_CALLOC, F_MMAP, F_EVENTFD, F_PTHREAD_CREATE, F_FUNCTIONS
};

typedef struct {
    int number;         /* the errno */
    int fd;             /* of the calls that fail; -1: any */
    int spared;         /* so many calls before them do not */
    int times;          /* how many more of them do */
    int calls;          /* that were made */
} fault_t;

static fault_t faults[F_FUNCTIONS];
static int64_t faults_later_s;  /* than the clock says it is, since the machine booted */

static inline int fault_due(int function, int fd) {
    fault_t *fault = &faults[function];
    int times = __atomic_load_n(&fault->times, __ATOMIC_ACQUIRE);
    __atomic_fetch_add(&fault->calls, 1, __ATOMIC_RELAXED);
    do {
        if (times == 0 || (fault->fd != -1 && fault->fd != fd))
            return 0;
        if (__atomic_load_n(&fault->spared, __ATOMIC_ACQUIRE) > 0) {
            __atomic_fetch_sub(&fault->spared, 1, __ATOMIC_ACQ_REL);
            return 0;
        }
    } while (!__atomic_compare_exchange_n(&fault->times, &times, times - 1, 0, __ATOMIC_ACQ_REL,
                                          __ATOMIC_ACQUIRE));
    errno = fault->number;
    return 1;
}

static ssize_t fault_read(int fd, void *buffer, size_t count) {
    return fault_due(F_READ, fd) ? -1 : read(fd, buffer, count);
}

static ssize_t fault_write(int fd, const void *buffer, size_t count) {
    return fault_due(F_WRITE, fd) ? -1 : write(fd, buffer, count);
}

static ssize_t fault_writev(int fd, const struct iovec *pieces, int count) {
    return fault_due(F_WRITEV, fd) ? -1 : writev(fd, pieces, count);
}

static int fault_poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
    nfds_t i;
    if (count == 0 || !fault_due(F_POLL, fds[0].fd))
        return poll(fds, count, timeout_ms);
    /* poll(2) does not say what they are now. */
    for (i = 0; i < count; i++)
        fds[i].revents = -1;
    return -1;
}

static int fault_recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags,
                          struct timespec *timeout) {
    return fault_due(F_RECVMMSG, fd) ? -1 : recvmmsg(fd, messages, count, flags, timeout);
}

static int fault_sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags) {
    return fault_due(F_SENDMMSG, fd) ? -1 : sendmmsg(fd, messages, count, flags);
}

static ssize_t fault_sendto(int fd, const void *data, size_t length, int flags,
                            const struct sockaddr *to, socklen_t to_length) {
    return fault_due(F_SENDTO, fd) ? -1 : sendto(fd, data, length, flags, to, to_length);
}

static void *fault_calloc(size_t count, size_t bytes) {
    return fault_due(F_CALLOC, -1) ? NULL : calloc(count, bytes);
}

static void *fault_mmap(void *address, size_t length, int protection, int flags, int fd,
                        off_t offset) {
    return fault_due(F_MMAP, fd) ? MAP_FAILED : mmap(address, length, protection, flags, fd, offset);
}

static int fault_eventfd(unsigned int initial, int flags) {
    return fault_due(F_EVENTFD, -1) ? -1 : eventfd(initial, flags);
}

static int fault_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                                void *(*start)(void *), void *argument) {
    return fault_due(F_PTHREAD_CREATE, -1) ? errno
                                           : pthread_create(thread, attributes, start, argument);
}

static int fault_clock_gettime(clockid_t clock, struct timespec *now) {
    int code = clock_gettime(clock, now);
    if (clock == CLOCK_BOOTTIME)
        now->tv_sec += __atomic_load_n(&faults_later_s, __ATOMIC_RELAXED);
    return code;
}

static const struct { const char *name; void *place; } FAULT_PLACES[] = {
    {"read", (void *)fault_read},
    {"write", (void *)fault_write},
    {"writev", (void *)fault_writev},
    {"poll", (void *)fault_poll},
    {"recvmmsg", (void *)fault_recvmmsg},
    {"sendmmsg", (void *)fault_sendmmsg},
    {"sendto", (void *)fault_sendto},
    {"calloc", (void *)fault_calloc},
    {"mmap64", (void *)fault_mmap},     /* as glibc calls it where files may be large */
    {"eventfd", (void *)fault_eventfd},
    {"pthread_create", (void *)fault_pthread_create},
    {"clock_gettime", (void *)fault_clock_gettime},
};
#define FAULT_PLACES_COUNT ((int)(sizeof(FAULT_PLACES) / sizeof(*FAULT_PLACES)))

typedef struct { const char *path; int led; } fault_module_t;

static inline int fault_lead(ElfW(Addr) base, const ElfW(Rela) *entry, const char *name) {
    void **slot = (void **)(base + entry->r_offset);
    uintptr_t page = (uintptr_t)slot & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
    int i;
    for (i = 0; i < FAULT_PLACES_COUNT; i++) {
        if (strcmp(name, FAULT_PLACES[i].name) != 0)
            continue;
        if (mprotect((void *)page, (uintptr_t)(slot + 1) - page, PROT_READ | PROT_WRITE) != 0)
            return 0;
        __atomic_store_n(slot, FAULT_PLACES[i].place, __ATOMIC_SEQ_CST);
        return 1;
    }
    return 0;
}

static int fault_look(struct dl_phdr_info *info, size_t size, void *argument) {
    fault_module_t *module = argument;
    const ElfW(Dyn) *dynamic = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    const ElfW(Rela) *tables[2] = {NULL, NULL};
    size_t bytes[2] = {0, 0};
    size_t i;
    int table;
    (void)size;
    if (strcmp(info->dlpi_name, module->path) != 0)
        return 0;
    for (i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
            dynamic = (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    for (; dynamic != NULL && dynamic->d_tag != DT_NULL; dynamic++) {
        switch (dynamic->d_tag) {
        case DT_SYMTAB: symbols = (const void *)dynamic->d_un.d_ptr; break;
        case DT_STRTAB: names = (const void *)dynamic->d_un.d_ptr; break;
        case DT_JMPREL: tables[0] = (const void *)dynamic->d_un.d_ptr; break;
        case DT_PLTRELSZ: bytes[0] = dynamic->d_un.d_val; break;
        case DT_RELA: tables[1] = (const void *)dynamic->d_un.d_ptr; break;
        case DT_RELASZ: bytes[1] = dynamic->d_un.d_val; break;
        }
    }
    if (symbols == NULL || names == NULL)
        return 1;
    for (table = 0; table < 2; table++)
        for (i = 0; tables[table] != NULL && i < bytes[table] / sizeof(ElfW(Rela)); i++)
            module->led += fault_lead(
                info->dlpi_addr, &tables[table][i],
                names + symbols[ELF64_R_SYM(tables[table][i].r_info)].st_name);
    return 1;
}

/* How many of the FAULT_PLACES the shared object at that path is led through. */
static inline int faults_lead(const char *path) {
    fault_module_t module = {path, 0};
    dl_iterate_phdr(fault_look, &module);
    return module.led;
}

static inline void fault_set(int function, int number, int fd, int spared, int times) {
    fault_t *fault = &faults[function];
    __atomic_store_n(&fault->times, 0, __ATOMIC_SEQ_CST);
    fault->number = number;
    fault->fd = fd;
    fault->spared = spared;
    __atomic_store_n(&fault->times, times, __ATOMIC_RELEASE);
}

static inline int fault_times(int function) {
    return __atomic_load_n(&faults[function].times, __ATOMIC_ACQUIRE);
}

static inline int fault_calls(int function) {
    return __atomic_load_n(&faults[function].calls, __ATOMIC_RELAXED);
}

static inline void faults_set_later(int64_t seconds) {
    __atomic_store_n(&faults_later_s, seconds, __ATOMIC_RELAXED);
}

#endif
