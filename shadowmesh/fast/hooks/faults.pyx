"""Calls of the system by a module that is shipped, which fail on demand."""

import os

from libc.stdint cimport int64_t

cdef extern from "hooks/faults.h":
    enum: F_READ, F_WRITE, F_WRITEV, F_POLL, F_RECVMMSG, F_SENDMMSG, F_SENDTO
    enum: F_CALLOC, F_MMAP, F_EVENTFD, F_PTHREAD_CREATE
    int FAULT_PLACES_COUNT
    int faults_lead(const char *path)
    void fault_set(int function, int number, int fd, int spared, int times)
    int fault_times(int function)
    int fault_calls(int function)
    void faults_set_later(int64_t seconds)

_FUNCTIONS = {
    "read": F_READ,
    "write": F_WRITE,
    "writev": F_WRITEV,
    "poll": F_POLL,
    "recvmmsg": F_RECVMMSG,
    "sendmmsg": F_SENDMMSG,
    "sendto": F_SENDTO,
    "calloc": F_CALLOC,
    "mmap": F_MMAP,
    "eventfd": F_EVENTFD,
    "pthread_create": F_PTHREAD_CREATE,
}


def lead(str path not None):
    """Lead what the module at `path` calls of the system through here, for good.

    Before it has started a thread; once more does no harm.
    """
    if faults_lead(os.fsencode(path)) != FAULT_PLACES_COUNT:
        raise RuntimeError(f"{path} could not be led to all functions that fail on demand")


def fail(str function not None, int number, int times=1, int fd=-1, int spared=0):
    """Let calls fail with that errno, after as many as are spared.

    fd: only those on that descriptor; poll() is known by the first of its own.
    """
    fault_set(_FUNCTIONS[function], number, fd, spared, times)


def left(str function not None):
    """How many calls are still to fail."""
    return fault_times(_FUNCTIONS[function])


def calls(str function not None):
    """How many calls there were since the module was loaded."""
    return fault_calls(_FUNCTIONS[function])


def later(int64_t seconds):
    """Let so many seconds have gone by on the clock of the data plane."""
    faults_set_later(seconds)


def end():
    """Let nothing fail any more, and the clock be right."""
    for function in _FUNCTIONS:
        fail(function, 0, 0)
    later(0)
