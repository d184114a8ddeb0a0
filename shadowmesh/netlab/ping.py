"""ICMP echo in Python, so that neither the demo nor a test needs the ping program.

Owns: one raw socket for the time of a call. Does not know namespaces: it pings from where the
calling thread is.
"""

from __future__ import annotations

import errno
import secrets
import socket
import struct
import time
from dataclasses import dataclass

ICMP_ECHO, ICMP_ECHO_REPLY = 8, 0
ICMPV6_ECHO, ICMPV6_ECHO_REPLY = 128, 129
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  # linux/in.h
IPV6_DONTFRAG = 62  # linux/in6.h
# The device or its address is away for the moment: a ping that is not answered.
NO_WAY = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class Ping:
    """Outcome of a row of echo requests; `rtts_ms` has one entry for each that was answered."""

    sent: int
    rtts_ms: tuple[float, ...]

    @property
    def received(self) -> int:
        return len(self.rtts_ms)

    @property
    def complete(self) -> bool:
        return self.received == self.sent


def ping(
    address: str, *, count: int, timeout_s: float, payload: bytes, dont_fragment: bool
) -> Ping:
    """Ping from the calling thread's namespace; the answer must carry `payload` unchanged."""
    six = ":" in address
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    request, reply = (ICMPV6_ECHO, ICMPV6_ECHO_REPLY) if six else (ICMP_ECHO, ICMP_ECHO_REPLY)
    identifier = secrets.randbits(16)
    rtts: list[float] = []
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        if dont_fragment and six:
            raw.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
        elif dont_fragment:
            raw.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        for sequence in range(count):
            message = struct.pack("!BBHHH", request, 0, 0, identifier, sequence) + payload
            if not six:  # the kernel fills in ICMPv6's
                message = message[:2] + struct.pack("!H", _checksum(message)) + message[4:]
            wanted = struct.pack("!HH", identifier, sequence) + payload
            started = time.monotonic()
            try:
                raw.sendto(message, (address, 0))
            except OSError as error:
                if error.errno not in NO_WAY:
                    raise
                continue
            if _await_reply(raw, 0 if six else 20, reply, wanted, started + timeout_s):
                rtts.append((time.monotonic() - started) * 1000)
    return Ping(count, tuple(rtts))


def _await_reply(raw: socket.socket, skip: int, reply: int, wanted: bytes, deadline: float) -> bool:
    while (left := deadline - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            packet = raw.recv(65535)[skip:]
        except TimeoutError:
            return False
        except OSError:  # an ICMP error about an earlier request
            continue
        if packet[:1] == bytes([reply]) and packet[4:] == wanted:
            return True
    return False


def _checksum(data: bytes) -> int:
    """The Internet checksum. Source: RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
