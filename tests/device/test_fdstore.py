"""The descriptor store, against a service manager that we play."""

from __future__ import annotations

import os
import socket
import time

import gevent
import pytest

from shadowmesh.device import fdstore
from shadowmesh.device.fdstore import FdStore
from shadowmesh.service.systemd import Notifier


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{tmp_path}/notify")
        sock.setblocking(False)
        yield sock


@pytest.fixture
def notifier(manager):
    return Notifier({"NOTIFY_SOCKET": manager.getsockname()})


@pytest.fixture
def passed(monkeypatch):
    """Descriptors as a manager passes them: consecutive, inheritable; closed after the test."""
    made = []

    def make(*names, pid=None, count=None):
        base = max(int(name) for name in os.listdir("/proc/self/fd")) + 50
        for number, _ in enumerate(names):
            read, write = os.pipe()
            os.close(write)
            os.dup2(read, base + number)
            os.close(read)
            made.append(base + number)
        monkeypatch.setattr(fdstore, "FIRST_FD", base)
        return {
            "LISTEN_PID": str(os.getpid() if pid is None else pid),
            "LISTEN_FDS": str(len(names) if count is None else count),
            "LISTEN_FDNAMES": ":".join(names),
        }

    yield make
    for fd in made:
        if is_open(fd):
            os.close(fd)


def is_open(fd):
    return os.path.exists(f"/proc/self/fd/{fd}")


def heard(sock):
    """Return (words, descriptors) of the next message, None without one."""
    try:
        data, fds, _, _ = socket.recv_fds(sock, 4096, 4)
    except BlockingIOError:
        return None
    return data.decode().split("\n"), fds


def test_a_descriptor_of_the_last_run_is_taken_once_by_its_name(passed, notifier):
    store = FdStore(passed("udp", "tap"), notifier)
    tap = store.take("tap")
    assert tap == fdstore.FIRST_FD + 1
    assert not os.get_inheritable(tap)
    assert store.take("tap") is None
    assert store.take("peer") is None


@pytest.mark.parametrize(
    "change", [{"LISTEN_PID": "1"}, {"LISTEN_FDS": "many"}, {"LISTEN_PID": ""}]
)
def test_what_was_passed_to_another_process_is_not_touched(passed, notifier, change):
    store = FdStore({**passed("tap"), **change}, notifier)
    assert store.take("tap") is None
    assert is_open(fdstore.FIRST_FD)


def test_unknown_and_repeated_names_are_closed_and_logged(passed, notifier, caplog):
    store = FdStore(passed("tap", "shadowmesh.socket", "tap"), notifier)
    assert store.take("tap") == fdstore.FIRST_FD
    assert not is_open(fdstore.FIRST_FD + 1)
    assert not is_open(fdstore.FIRST_FD + 2)
    assert len(caplog.records) == 2


def test_a_count_without_descriptors_is_survived(passed, notifier):
    store = FdStore(passed("tap", count=3), notifier)
    assert store.take("tap") == fdstore.FIRST_FD


def test_a_kept_descriptor_reaches_the_manager_with_its_name(manager, notifier):
    read, write = os.pipe()
    FdStore({}, notifier).keep("udp", read)
    words, [duplicate] = heard(manager)
    assert words == ["FDSTORE=1", "FDNAME=udp", "FDPOLL=0"]
    assert os.fstat(duplicate).st_ino == os.fstat(read).st_ino
    for fd in (read, write, duplicate):
        os.close(fd)


def test_what_was_taken_is_not_stored_a_second_time(passed, manager, notifier):
    store = FdStore(passed("tap"), notifier)
    store.keep("tap", store.take("tap"))
    assert heard(manager) is None


def test_forgetting_waits_until_the_manager_has_done_it(manager, notifier):
    store = FdStore({}, notifier)
    store.keep("udp", manager.fileno())
    os.close(heard(manager)[1][0])
    forgetting = gevent.spawn(store.forget, "udp")
    gevent.sleep(0.01)
    assert not forgetting.ready()
    assert heard(manager) == (["FDSTOREREMOVE=1", "FDNAME=udp"], [])
    words, [barrier] = heard(manager)
    assert words == ["BARRIER=1"]
    os.close(barrier)
    forgetting.join(5)
    assert forgetting.successful()
    store.forget("udp")
    assert heard(manager) is None, "there is nothing left to forget"


def test_a_manager_that_does_not_answer_is_not_waited_for_long(manager, notifier, monkeypatch):
    monkeypatch.setattr(fdstore, "BARRIER_TIMEOUT_S", 0.02)
    store = FdStore({}, notifier)
    store.keep("udp", manager.fileno())
    started = time.monotonic()
    store.forget("udp")
    assert time.monotonic() - started < 5


def test_what_was_never_kept_is_not_forgotten(manager, notifier):
    FdStore({}, notifier).forget("tap")
    assert heard(manager) is None


def test_after_leave_the_store_stays_as_it_is(manager, notifier):
    store = FdStore({}, notifier)
    store.keep("tap", manager.fileno())
    os.close(heard(manager)[1][0])
    store.leave()
    store.forget("tap")
    assert heard(manager) is None


def test_what_nobody_took_is_closed_and_forgotten(passed, manager, notifier, monkeypatch):
    monkeypatch.setattr(fdstore, "BARRIER_TIMEOUT_S", 0.02)
    store = FdStore(passed("tap", "udp"), notifier)
    tap = store.take("tap")
    store.drop_unclaimed()
    assert is_open(tap)
    assert not is_open(fdstore.FIRST_FD + 1)
    assert heard(manager)[0] == ["FDSTOREREMOVE=1", "FDNAME=udp"]


def test_without_a_service_manager_nothing_happens():
    store = FdStore({}, Notifier({}))
    store.keep("tap", 0)
    store.forget("tap")
    store.drop_unclaimed()
    assert store.take("tap") is None
