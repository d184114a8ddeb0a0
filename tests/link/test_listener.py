"""The peer port over loopback: what is let in, what is counted, what survives."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import socket
import struct
import time

import gevent
import pytest

from shadowmesh.base.errors import NotPermitted, ShadowMeshError
from shadowmesh.config import HostPort
from shadowmesh.link import bind, tls
from shadowmesh.link import listener as listener_module
from shadowmesh.link.admission import Limits
from shadowmesh.link.tcp import plain_address
from tests.fakes import BINARY, encode_frame
from tests.link.peerport import ACCEPT, PATIENCE_S, PeerPort, read_all, read_head, request


def test_an_ipv4_mapped_address_is_written_as_ipv4():
    assert plain_address(("::ffff:192.0.2.1", 5, 0, 0)) == ("192.0.2.1", 5)
    assert plain_address(("::1", 5, 0, 0)) == ("::1", 5)
    assert plain_address(("fe80::1%lo", 5, 0, 1)) == ("fe80::1%lo", 5)


# --- Over loopback ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    return tls.load_or_create_certificate(directory / "cert.pem", directory / "key.pem")


@pytest.fixture
def open_port(certificate):
    ports = []

    def open_it(host="127.0.0.1", port=0, **options):
        ports.append(PeerPort(certificate, HostPort(host, port), **options))
        return ports[-1]

    with gevent.Timeout(3 * PATIENCE_S):
        yield open_it
        for port in ports:
            port.close()


def test_a_right_request_is_upgraded_and_handed_over(open_port, certificate):
    port = open_port()
    before = time.monotonic()
    client = port.connect_tls()
    client.sendall(request())
    status, lines, rest = read_head(client)
    assert status == "HTTP/1.1 101 Switching Protocols"
    assert sorted(lines) == [
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {ACCEPT}",
        "Sec-WebSocket-Protocol: shadowmesh.v1",
        "Upgrade: websocket",
    ]
    upgraded = port.upgraded.get(timeout=PATIENCE_S)
    assert upgraded.server
    assert upgraded.certificate_sha256 == certificate.sha256
    assert upgraded.remote_address == client.getsockname()[:2]
    assert upgraded.leftover == rest == b""
    assert before + 9.9 < upgraded.authenticate_by < time.monotonic() + 10.0
    assert port.counters == {"accepted": 1, "upgraded": 1}


def test_bytes_move_after_the_upgrade_and_nothing_else_does(open_port):
    port = open_port()
    client = port.connect_tls()
    client.sendall(request())
    read_head(client)
    upgraded = port.upgraded.get(timeout=PATIENCE_S)
    gc.collect()  # gevent-websocket's object would write a close frame when it is collected
    upgraded.sock.sendall(b"from the server")
    upgraded.sock.close()
    assert read_all(client) == b"from the server"


def test_frames_sent_together_with_the_request_are_not_lost(open_port):
    port = open_port()
    frame = encode_frame(BINARY, b"message 1", mask=b"1234")
    client = port.connect_tls()
    client.sendall(request() + frame)
    read_head(client)
    assert port.upgraded.get(timeout=PATIENCE_S).leftover == frame


def test_a_request_in_single_bytes_is_read(open_port):
    port = open_port()
    client = port.connect_tls()
    for byte in request():
        client.sendall(bytes([byte]))
    assert read_head(client)[0] == "HTTP/1.1 101 Switching Protocols"


def test_an_upgraded_connection_counts_until_it_is_released(open_port):
    port = open_port()
    client = port.connect_tls()
    client.sendall(request())
    upgraded = port.upgraded.get(timeout=PATIENCE_S)
    assert port.listener.unauthenticated == 1
    upgraded.release()
    upgraded.release()
    assert port.listener.unauthenticated == 0


def test_a_bug_in_the_hand_over_closes_the_connection_and_frees_its_place(open_port):
    port = open_port()
    port.listener._on_upgraded = lambda upgraded: 1 // 0
    client = port.connect_tls()
    client.sendall(request())
    read_head(client)
    assert read_all(client) == b""
    assert port.listener.unauthenticated == 0


def test_stop_ends_what_is_not_upgraded_and_keeps_what_is(open_port):
    port = open_port()
    waiting = port.connect_tls()
    client = port.connect_tls()
    client.sendall(request())
    read_head(client)
    upgraded = port.upgraded.get(timeout=PATIENCE_S)
    port.listener.stop()
    port.listener.stop()
    assert read_all(waiting) == b""
    with pytest.raises(OSError):
        port.connect()
    upgraded.sock.sendall(b"still here")
    assert client.recv(100) == b"still here"
    assert port.counters == {"accepted": 2, "upgraded": 1, "lost": 1}


def test_the_greenlet_of_an_upgraded_connection_survives_stop(open_port):
    port = open_port()
    started, go_on, done = (gevent.event.Event() for _ in range(3))

    def stay(upgraded):
        started.set()
        go_on.wait()
        upgraded.sock.close()
        done.set()

    port.listener._on_upgraded = stay
    port.connect_tls().sendall(request())
    assert started.wait(PATIENCE_S)
    port.listener.stop()
    go_on.set()
    assert done.wait(PATIENCE_S)


# --- Addresses --------------------------------------------------------------------------------


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@needs_ipv6
@pytest.mark.parametrize(("host", "seen"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1")])
def test_the_default_address_takes_both_families(open_port, host, seen):
    port = open_port("::")
    port.connect_tls(host).sendall(request())
    assert port.upgraded.get(timeout=PATIENCE_S).remote_address[0] == seen


@needs_ipv6
def test_ipv4_peers_of_a_dual_stack_port_are_limited_by_their_ipv4_address(open_port):
    port = open_port("::", limits=Limits(new_per_second=1))
    first = port.connect(source=("127.0.0.1", 0))
    port.wait_for(accepted=1)
    assert read_all(port.connect(source=("127.0.0.1", 0))) == b""
    port.connect_tls("::1")
    assert port.counters == {"accepted": 3, "refused_rate": 1}
    first.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_an_ipv4_address_works(open_port, host):
    port = open_port(host)
    port.connect_tls().sendall(request())
    assert port.upgraded.get(timeout=PATIENCE_S).remote_address[0] == "127.0.0.1"


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_the_default_address_falls_back_to_ipv4(open_port, monkeypatch, number):
    real = bind._listen_on

    def without_ipv6(host, port):
        if ":" in host:
            raise OSError(number, os.strerror(number))
        return real(host, port)

    monkeypatch.setattr(bind, "_listen_on", without_ipv6)
    port = open_port("::")
    assert port.listener.bound[0] == "0.0.0.0"
    with pytest.raises(ShadowMeshError, match=r"\[::1\]:0.*listen_address"):
        open_port("::1")


def test_a_port_that_is_taken_is_named_with_the_way_out(open_port):
    port = open_port()
    with pytest.raises(ShadowMeshError, match=rf"port {port.port} is taken.*ss -ltnp"):
        open_port(port=port.port)


def test_an_address_of_another_machine_is_named(open_port):
    with pytest.raises(ShadowMeshError, match=r"192\.0\.2\.1:0: .*listen_address"):
        open_port("192.0.2.1")


def test_a_privileged_port_says_what_is_missing(open_port, monkeypatch):
    def refuse(host, port):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(bind, "_listen_on", refuse)
    with pytest.raises(NotPermitted, match="CAP_NET_BIND_SERVICE"):
        open_port(port=443)


# --- When accept() fails ----------------------------------------------------------------------


class FailingAccept:
    """A listening socket whose accept() fails a few times before it works."""

    def __init__(self, sock, errors):
        self.sock = sock
        self.errors = list(errors)
        self.calls = 0

    def accept(self):
        self.calls += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self.sock.accept()

    def __getattr__(self, name):
        return getattr(self.sock, name)


@pytest.fixture
def failing_accept(open_port, monkeypatch):
    def make(*errors):
        real = listener_module.listen
        made = []

        def listen(address):
            made.append(FailingAccept(real(address), errors))
            return made[0]

        monkeypatch.setattr(listener_module, "listen", listen)
        return open_port(), made[0]

    return make


def test_a_connection_that_failed_before_accept_does_not_stop_the_next(failing_accept):
    port, _ = failing_accept(errno.ECONNABORTED, errno.EPROTO)
    port.connect_tls().sendall(request())
    assert port.upgraded.get(timeout=PATIENCE_S)
    assert port.counters == {"accept_aborted": 2, "accepted": 1, "upgraded": 1}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_resources_accept_pauses_and_goes_on(failing_accept, number):
    port, accepting = failing_accept(number)
    port.connect_tls().sendall(request())
    assert port.upgraded.get(timeout=PATIENCE_S)
    assert port.counters == {"accept_paused": 1, "accepted": 1, "upgraded": 1}
    assert accepting.calls <= 3


def test_stop_does_not_wait_for_the_pause(failing_accept, monkeypatch):
    monkeypatch.setattr(listener_module, "ACCEPT_PAUSE_MIN_S", PATIENCE_S)
    port, accepting = failing_accept(*[errno.EMFILE] * 50)
    port.wait_for(accept_paused=1)
    began = time.monotonic()
    port.listener.stop()
    assert time.monotonic() - began < 1.0
    assert accepting.calls == 1


def test_real_exhaustion_of_descriptors_is_survived_without_spinning(open_port):
    port = open_port()
    spare = socket.socket()  # made before there is none left
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        while True:
            try:
                fillers.append(os.dup(0))
            except OSError as error:
                assert error.errno == errno.EMFILE
                break
        spare.connect(("127.0.0.1", port.port))
        cpu = time.process_time()
        port.wait_for(accept_paused=1)
        gevent.sleep(0.3)  # the time in which a spin would show
        assert port.listener.counters["accept_paused"] <= 4
        assert time.process_time() - cpu < 0.2
    finally:
        for descriptor in fillers:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    port.wait_for(accepted=1)
    spare.close()
    port.connect_tls().sendall(request())
    assert port.upgraded.get(timeout=PATIENCE_S)


# --- Limits over loopback ---------------------------------------------------------------------


def upgraded_client(port, source=None):
    """Return a client whose request was answered with 101."""
    client = port.connect_tls(source=source)
    client.sendall(request())
    assert read_head(client)[0].startswith("HTTP/1.1 101 ")
    return client


def test_a_new_connection_takes_the_place_of_the_oldest_silent_one(open_port):
    port = open_port(limits=Limits(accepted=7, kept=4))
    silent = [port.connect(source=("127.0.0.2", 0)) for _ in range(5)]
    port.wait_for(evicted_accepted=2)
    assert [read_all(sock) for sock in silent[:2]] == [b"", b""]
    assert port.listener.held["accepted"] == 3
    upgraded_client(port)
    assert port.counters["evicted_accepted"] == 3


def test_who_stalls_in_tls_makes_room_for_the_next(open_port):
    port = open_port(limits=Limits(tls=5, kept=4))
    stalled = port.connect(source=("127.0.0.2", 0))
    stalled.sendall(b"\x16")
    port.wait_for(accepted=1)
    upgraded_client(port)
    assert read_all(stalled) == b""
    port.wait_for(evicted_tls=1, upgraded=1)


def test_who_does_not_begin_the_handshake_makes_room_for_the_next(open_port):
    port = open_port(limits=Limits(handshake=5, kept=4))
    idle = upgraded_client(port, source=("127.0.0.2", 0))
    upgraded_client(port)
    assert read_all(idle) == b""
    assert port.counters["evicted_handshake"] == 1
    first = port.upgraded.get(timeout=PATIENCE_S)
    first.release()  # its owner notices the end of the stream
    assert port.listener.held["handshake"] == 1


def test_strangers_do_not_take_the_places_of_a_known_address(open_port):
    port = open_port(limits=Limits(tls=5, kept=4))
    port.known.name({"127.0.0.1"})
    first = port.connect()
    first.sendall(b"\x16")
    for number in range(2, 6):
        stranger = port.connect(source=(f"127.0.0.{number}", 0))
        stranger.sendall(b"\x16")
        port.wait_for(accepted=number)
    port.wait_for(evicted_tls=3)
    assert port.listener.held["tls"] == 2
    upgraded_client(port)


def test_silent_neighbours_behind_the_peers_own_address_do_not_lock_it_out(open_port):
    port = open_port()
    silent = [port.connect() for _ in range(6)]
    stalled = [port.connect() for _ in range(6)]
    for sock in stalled:
        sock.sendall(b"\x16")
    upgraded_client(port)
    assert len(silent) == 6


def test_a_stranger_who_sends_something_else_than_tls_costs_no_tls(open_port):
    port = open_port()
    sock = port.connect()
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        assert read_all(sock) == b""
    assert port.counters == {"accepted": 1, "tls_failed": 1}


def test_silent_strangers_get_at_most_half_of_the_descriptors(open_port, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    port = open_port()
    for number in range(40):
        port.connect(source=(f"127.0.2.{number}", 0))
    port.wait_for(accepted=40)
    assert port.listener.held["accepted"] == 28  # four of the 32 are for known addresses


def test_a_connection_that_is_reset_at_once_is_counted(open_port):
    port = open_port()
    sock = port.connect()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    port.wait_for(accepted=1, lost=1)
    assert port.listener.unauthenticated == 0


def test_connections_leave_no_descriptor_behind(open_port):
    port = open_port()

    def one_of_each():
        port.connect().close()
        assert port.answer(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client = port.connect_tls()
        client.sendall(request())
        upgraded = port.upgraded.get(timeout=PATIENCE_S)
        upgraded.sock.close()
        upgraded.release()
        client.close()
        for sock in port._socks:
            sock.close()
        port._socks.clear()

    one_of_each()
    port.wait_for(lost=1, upgrade_refused=1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        one_of_each()
    port.wait_for(lost=4, upgrade_refused=4)
    assert len(os.listdir("/proc/self/fd")) == before
    assert port.listener.unauthenticated == 0
