"""The data path's socket: its options, its port, and who gets what arrives on it."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address

import gevent
import gevent.event
import pytest

from shadowmesh._fastpath import DataPlane, Session
from shadowmesh.base.errors import DeviceError
from shadowmesh.path import udp
from shadowmesh.path.udp import UdpPort, open_socket
from shadowmesh.wire.control import Endpoint

STUN = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(range(12))
WAIT_S = 5.0


@pytest.fixture
def plane():
    return DataPlane()


@pytest.fixture
def port(plane):
    port = UdpPort(plane, 0)
    yield port
    port.close()


@pytest.fixture
def stranger():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


class Inbox:
    """Collects what a receiver is given."""

    def __init__(self):
        self.items = []
        self._arrived = gevent.event.Event()

    def __call__(self, *item):
        self.items.append(item)
        self._arrived.set()

    def next(self):
        assert self._arrived.wait(WAIT_S), "nothing arrived"
        self._arrived.clear()
        return self.items[-1]


def test_one_socket_takes_both_families():
    with open_socket(0) as sock:
        port = sock.getsockname()[1]
        assert sock.family == socket.AF_INET6
        assert not sock.getblocking()
        assert not os.get_inheritable(sock.fileno())
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as other:
                other.sendto(b"x", (address, port))
        assert {sock.recvfrom(10)[1][0] for _ in range(2)} == {"::ffff:127.0.0.1", "::1"}


def test_datagrams_are_never_fragmented_on_the_way():
    with open_socket(0) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, 10) == 3
        assert sock.getsockopt(socket.IPPROTO_IPV6, 23) == 3


def test_trains_arrive_whole_and_buffers_are_large():
    with open_socket(0) as sock:
        assert sock.getsockopt(socket.IPPROTO_UDP, 104) == 1
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with plain:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                assert sock.getsockopt(socket.SOL_SOCKET, option) >= plain.getsockopt(
                    socket.SOL_SOCKET, option
                )


def test_a_taken_port_is_replaced_by_any_other():
    with open_socket(0) as first:
        wanted = first.getsockname()[1]
        with open_socket(wanted) as second:
            assert second.getsockname()[1] not in (0, wanted)


def test_a_host_without_ipv6_gets_an_ipv4_socket(monkeypatch):
    real = udp._open

    def without_ipv6(family, port):
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, port)

    monkeypatch.setattr(udp, "_open", without_ipv6)
    with open_socket(0) as sock:
        assert sock.family == socket.AF_INET


def test_a_host_without_udp_is_told_what_to_do(monkeypatch):
    def nothing(family, port):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(udp, "_open", nothing)
    with pytest.raises(DeviceError, match=r"Operation not permitted.*nat.enabled: false"):
        open_socket(9001)


def ask(port: UdpPort, stranger: socket.socket) -> None:
    """Send the request that STUN answers; no other is heard."""
    assert port.send(STUN, Endpoint(ip_address("127.0.0.1"), stranger.getsockname()[1])) == 0
    assert stranger.recv(100) == STUN


def test_what_is_no_record_goes_to_stun_with_a_plain_address(port, stranger):
    inbox = port.on_stun = Inbox()
    ask(port, stranger)
    stranger.sendto(STUN, ("127.0.0.1", port.port))
    host, number = stranger.getsockname()
    assert inbox.next() == (STUN, Endpoint(ip_address(host), number))


def test_a_record_of_a_session_goes_to_its_receiver(plane, port):
    key = [bytes([n]) * 32 for n in range(2)]
    session = Session(plane)
    session.reserve_key_id(0x11223344)
    session.install(
        0x11223344, 0x11223344, "chacha20-poly1305",
        wss_tx=key[0], wss_rx=key[0], udp_tx=key[1], udp_rx=key[1],
        peer_mtu_bytes=1500, peer_caps=0,
    )  # fmt: skip
    session.send_under(0x11223344)
    inbox = Inbox()
    port.listen(session.number, inbox)
    assert session.send_udp_record(4, b"probe".ljust(27, b"."), "127.0.0.1", port.port) == 0
    here = Endpoint(ip_address("127.0.0.1"), port.port)
    inbox.next()
    gevent.sleep(0)
    assert [item[:5] for item in inbox.items] == [
        (0, b"", 0, here, 0x11223344),  # an address that was not known before
        (4, b"probe".ljust(27, b"."), 27, here, 0x11223344),
    ]
    port.forget(session.number, inbox)
    session.send_udp_record(4, bytes(27), "127.0.0.1", port.port)
    marker = port.on_stun = Inbox()
    port.send(STUN, here)
    marker.next()
    assert len(inbox.items) == 2
    session.close()


def test_a_new_owner_of_a_seat_is_not_forgotten_with_the_old_one(port):
    old, new = Inbox(), Inbox()
    port.listen(3, old)
    port.listen(3, new)
    port.forget(3, old)
    port._hand_out((3, 7, 4, b"x", 1, ("192.0.2.1", 9), 0.0))
    assert len(new.items) == 1
    assert not old.items


def test_a_receiver_that_fails_does_not_end_the_port(port, stranger):
    def fail(data, source):
        raise ZeroDivisionError

    port.on_stun = fail
    ask(port, stranger)
    stranger.sendto(STUN, ("127.0.0.1", port.port))
    gevent.sleep(0.05)
    inbox = port.on_stun = Inbox()
    stranger.sendto(STUN, ("127.0.0.1", port.port))
    inbox.next()


def test_unauthenticated_datagrams_get_no_answer(plane, port, stranger):
    here = ("127.0.0.1", port.port)
    junk = (b"\x80", b"\xff" * 64, b"\x80\0\0\0" + os.urandom(100), b"GET / HTTP/1.1")
    for data in (b"", *junk):
        stranger.sendto(data, here)
    inbox = port.on_stun = Inbox()
    ask(port, stranger)
    stranger.sendto(STUN, here)
    inbox.next()
    stranger.setblocking(False)
    with pytest.raises(BlockingIOError):
        stranger.recv(100)
    assert sum(plane.counters()["udp_refused"].values()) == len(junk)


def test_closing_frees_the_port(plane):
    port = UdpPort(plane, 0)
    number = port.port
    port.close()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", number))
    UdpPort(plane, number).close()  # the plane takes another one


def test_an_ipv4_socket_does_not_reach_ipv6(plane, monkeypatch):
    real = udp._open
    monkeypatch.setattr(udp, "_open", lambda family, port: real(socket.AF_INET, port))
    port = UdpPort(plane, 0)
    try:
        assert port.family == socket.AF_INET
        assert port.reaches(Endpoint(ip_address("192.0.2.1"), 1))
        assert port.send(STUN, Endpoint(ip_address("2001:db8::1"), 1)) == errno.EAFNOSUPPORT
    finally:
        port.close()


def test_a_developer_can_have_datagrams_one_by_one():
    plane = DataPlane(without=("gro",))
    port = UdpPort(plane, 0)
    try:
        assert port._socket.getsockopt(socket.IPPROTO_UDP, 104) == 0
    finally:
        port.close()
