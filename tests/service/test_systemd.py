"""What systemd is told, through a real socket; and by a real daemon that a test starts."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from shadowmesh import netlab
from shadowmesh.service.systemd import MAX_STATUS_CHARS, Notifier
from tests.lab.pair import make_pair


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    """The service manager's end: pairs of address and socket."""
    name = f"@shadowmesh-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        sock.setblocking(False)
        yield name, sock


def heard(sock):
    try:
        return sock.recv(4096).decode().split("\n")
    except BlockingIOError:
        return None


def environ(name, **more):
    return {"NOTIFY_SOCKET": name, **more}


def test_ready_comes_with_the_status(manager):
    name, sock = manager
    Notifier(environ(name)).ready("not connected")
    assert heard(sock) == ["READY=1", "STATUS=not connected"]
    assert heard(sock) is None


def test_a_reload_says_when_it_began(manager, clock):
    name, sock = manager
    notifier = Notifier(environ(name), clock)
    notifier.reloading()
    assert heard(sock) == ["RELOADING=1", "MONOTONIC_USEC=1000000000"]


def test_stopping_is_said(manager):
    name, sock = manager
    Notifier(environ(name)).stopping()
    assert heard(sock)[0] == "STOPPING=1"


def test_the_watchdog_is_fed_each_half_of_its_limit(manager, clock):
    name, sock = manager
    notifier = Notifier(
        environ(name, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid())), clock
    )
    notifier.ready("fine")
    heard(sock)
    fed = []
    for second in range(1, 61):
        clock.now = 1000.0 + second
        notifier.beat("fine")
        if (words := heard(sock)) is not None:
            assert words == ["WATCHDOG=1"]
            fed.append(second)
    assert fed == [15, 30, 45, 60]


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "-5"},
     {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}],
)  # fmt: skip
def test_a_watchdog_that_is_none_or_another_process_s_is_not_fed(manager, clock, watchdog):
    name, sock = manager
    notifier = Notifier(environ(name, **watchdog), clock)
    notifier.ready("fine")
    heard(sock)
    clock.now += 3600
    notifier.beat("fine")
    assert heard(sock) is None


def test_a_status_is_told_once_when_it_changes(manager):
    name, sock = manager
    notifier = Notifier(environ(name))
    notifier.ready("not connected")
    heard(sock)
    notifier.beat("not connected")
    assert heard(sock) is None
    notifier.beat("connected to a:1 over wss")
    assert heard(sock) == ["STATUS=connected to a:1 over wss"]
    notifier.beat("connected to a:1 over wss")
    assert heard(sock) is None


def test_a_status_cannot_forge_another_assignment(manager):
    name, sock = manager
    Notifier(environ(name)).beat("refused: \nREADY=1\n" + "x" * 1000)
    [line] = heard(sock)
    assert line.startswith("STATUS=refused: \\nREADY=1")
    assert len(line) == len("STATUS=") + MAX_STATUS_CHARS


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_service_manager_nothing_happens(environment):
    notifier = Notifier(environment)
    notifier.ready("fine")
    notifier.beat("fine")
    notifier.stopping()


def test_a_service_manager_that_went_away_harms_nobody(tmp_path):
    notifier = Notifier(environ(str(tmp_path / "gone")))
    notifier.ready("fine")
    notifier.beat("else")


def test_a_service_manager_that_does_not_read_stops_nobody(manager):
    name, _sock = manager
    notifier = Notifier(environ(name))
    for number in range(10_000):  # far more than the socket's queue takes
        notifier.beat(f"status {number}")


# --- A real daemon ----------------------------------------------------------------------------


@pytest.fixture
def supervised(tmp_path):
    """Two daemons that know each other, the left one under a service manager that we play."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, netlab.Net() as net:
        sock.bind(f"{tmp_path}/notify")
        sock.settimeout(20)
        pair = make_pair(net, tmp_path)
        pair.left.wrapper = ("env", f"NOTIFY_SOCKET={tmp_path}/notify", "WATCHDOG_USEC=2000000")
        try:
            pair.start()
            yield pair, sock
        finally:
            for daemon in pair:
                daemon.kill()


def await_word(sock, word):
    """Read until a message holds a word that begins like this; return the message's words."""
    while True:
        words = sock.recv(4096).decode().split("\n")
        if any(one.startswith(word) for one in words):
            return words


@pytest.mark.netns
def test_a_daemon_tells_its_manager_about_its_life(supervised):
    pair, sock = supervised
    assert await_word(sock, "READY=1") == ["READY=1", "STATUS=not connected"]
    await_word(sock, "WATCHDOG=1")
    pair.connect()
    assert await_word(sock, "STATUS=connected")[-1].endswith(" over wss")
    os.kill(pair.left.pid, signal.SIGHUP)
    assert await_word(sock, "RELOADING=1")[1].startswith("MONOTONIC_USEC=")
    assert await_word(sock, "READY=1")[1].startswith("STATUS=connected to ")
    code, _ = pair.left.terminate()
    assert code == 0
    await_word(sock, "STOPPING=1")


@pytest.mark.netns
def test_the_log_says_where_a_daemon_hung_that_the_watchdog_ended(supervised):
    pair, _ = supervised
    os.kill(pair.left.pid, signal.SIGABRT)
    assert pair.left.process.wait(10) == -signal.SIGABRT
    log = pair.left.log()
    assert "Fatal Python error: Aborted" in log
    assert "most recent call first" in log


@pytest.mark.netns
def test_a_daemon_that_cannot_make_a_tap_is_never_ready(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, netlab.Net() as net:
        sock.bind(f"{tmp_path}/notify")
        sock.setblocking(False)
        left = make_pair(net, tmp_path).left
        left.wrapper = ("env", f"NOTIFY_SOCKET={tmp_path}/notify",
                        "setpriv", "--bounding-set", "-net_admin")  # fmt: skip
        left.write_config()
        assert left.spawn().wait(20) == 4
        assert heard(sock) is None
