"""Addresses of datagrams; what is an address is asked of Python's own functions."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shadowmesh._fastpath import DataPlane, Session
from tests.fastpath.rig import eventually, stun

WILDCARD = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
FAMILIES = pytest.mark.parametrize("family", WILDCARD, ids=["IPv4", "dual-stack"])
TEXTS = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=4).map(lambda one: f"::ffff:{one}"),
    st.ip_addresses().map(lambda one: f"{one}%lo"),
    st.text("0123456789abcdef.:%lo", max_size=80),
)


class Udp:
    """A plane with a socket of that family."""

    def __init__(self, family: int) -> None:
        self.plane = DataPlane()
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setblocking(False)
        self.socket.bind((WILDCARD[family], 0))
        self.plane.attach_udp(self.socket.fileno(), family)
        self.port = self.socket.getsockname()[1]

    def close(self) -> None:
        self.plane.detach_udp()
        self.socket.close()


def is_address(text: str, family: int) -> bool:
    plain, _, zone = text.partition("%")
    if family == socket.AF_INET6 and ":" not in plain:
        plain = f"::ffff:{plain}"
    with suppress(OSError):
        socket.inet_pton(family, plain)
        return family == socket.AF_INET or not zone or bool(socket.if_nametoindex(zone))
    return False


def sources(plane: DataPlane) -> Iterator[tuple[str, int]]:
    for *_, source, _ in eventually(plane.udp_signals, "a datagram"):
        yield source


@FAMILIES
def test_an_address_is_what_python_takes_for_one(family):
    with closing(Udp(family)) as udp:
        session = Session(udp.plane)

        @given(TEXTS)
        @example("")
        @example("%")
        @example("1.2.3.4%")
        @example("1.2.3")
        @example("01.2.3.4")
        @example("abcd")
        @example("::")
        @example("::%lo")
        @example("::%" + 20 * "l")
        @example("0000:0000:0000:0000:0000:ffff:255.255.255.255")
        @example("00000:0000:0000:0000:0000:ffff:255.255.255.255")
        def check(text):
            if is_address(text, family):
                session.use_udp(text, 1, 1232)
            else:
                with pytest.raises(OSError):
                    session.use_udp(text, 1, 1232)

        check()
        session.close()


@pytest.mark.parametrize(
    ("family", "to", "source"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::1%lo", "::1"),
    ],
)
def test_a_datagram_goes_where_the_text_says_and_tells_whence_it_came(family, to, source):
    with closing(Udp(family)) as udp:
        assert udp.plane.send_datagram(stun(), to, udp.port) == 0
        assert list(sources(udp.plane)) == [(source, udp.port)]


@FAMILIES
@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_outside_of_the_range_is_refused(family, port):
    with closing(Udp(family)) as udp, pytest.raises(ValueError, match="outside 1"):
        udp.plane.send_datagram(b"", "127.0.0.1", port)


@FAMILIES
def test_a_null_character_does_not_end_an_address(family):
    with closing(Udp(family)) as udp, pytest.raises(ValueError, match="null"):
        udp.plane.send_datagram(b"", "127.0.0.1\0", 1)
