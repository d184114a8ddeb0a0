"""Who reaches the peer port and has no key."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from shadowmesh.netlab import PEER_PORT, Net, NetlabError
from tests.lab.pair import make_pair

from ..bench import Bench, Resources, answers, assert_logs_clean, beside, cpu_seconds, until
from ..catalogue import row
from .hostile import authenticated_updates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadowmesh.netlab import Daemon, Host

UPGRADE = (
    b"GET /shadowmesh HTTP/1.1\r\nHost: peer.example\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: shadowmesh.v1\r\n\r\n"
)
MASK = b"\1\2\3\4"


def context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = made.maximum_version = version
    made.set_alpn_protocols(["http/1.1"])
    return made


def upgraded(source: Host, target: Daemon) -> ssl.SSLSocket:
    """Return a stranger's connection after its upgrade."""
    raw = source.connect((target.host.ipv4, PEER_PORT))
    sock = context().wrap_socket(raw)
    sock.settimeout(10)
    sock.sendall(UPGRADE)
    head = b""
    while b"\r\n\r\n" not in head:
        part = sock.recv(4096)
        assert part, "no answer to the upgrade"
        head += part
    assert head.startswith(b"HTTP/1.1 101"), head[:80]
    return sock


def frame(opcode: int, payload: bytes, *, length: int | None = None, fin: bool = True) -> bytes:
    """A masked WebSocket frame whose header may lie about the length."""
    size = len(payload) if length is None else length
    first = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        second = bytes([0x80 | size])
    elif size < 1 << 16:
        second = b"\xfe" + struct.pack("!H", size)
    else:
        second = b"\xff" + struct.pack("!Q", size)
    masked = bytes(byte ^ MASK[n % 4] for n, byte in enumerate(payload))
    return first + second + MASK + masked


def close_code(sock: ssl.SSLSocket) -> int:
    """Read to the end; return the code of the close frame, 1006 without one."""
    data = b""
    with contextlib.suppress(OSError):
        while part := sock.recv(65536):
            data += part
    while len(data) >= 2:
        size = data[1] & 0x7F
        if data[0] & 0xF == 8:
            return int.from_bytes(data[2:4])
        data = data[2 + size :]
    return 1006


@row(
    "huge or endless WebSocket message",
    "1009 or 1008, memory flat",
    bound_s=90,
    short=(
        "link/test_websocket_abuse.py::test_a_frame_against_the_rules_ends_the_link_with_its_code",
        "link/test_websocket_abuse.py::test_sixty_four_fragments_are_allowed_and_one_more_is_not",
    ),
)
def huge_message(bench: Bench) -> None:
    cases = {
        "2 GB announced": (frame(2, b"x" * 100, length=2 << 30), {1009}),
        "2^62 announced": (frame(2, b"", length=1 << 62), {1009, 1002}),
        "128 KiB + 1": (frame(2, bytes((128 << 10) + 1)), {1009}),
        "100,000 fragments": (
            frame(2, b"", fin=False) + frame(0, b"", fin=False) * 100_000,
            {1008},
        ),
    }
    with bench.pair() as pair:
        stranger = pair.net.host("stranger")
        before = Resources.of(pair.right).rss_bytes
        for name, (data, codes) in cases.items():
            with upgraded(stranger, pair.right) as sock:
                with contextlib.suppress(OSError):
                    sock.sendall(data)
                code = close_code(sock)
            bench.figure(f"{name}: {code}")
            # Ours may reset what is still sent after its close.
            assert code in codes | {1006}, f"{name} gave {code}"
            time.sleep(0.5)
        grown = Resources.of(pair.right).rss_bytes - before
        bench.figure(f"RSS {grown >> 10:+} KiB")


@row(
    "ping flood",
    "closed with 1008, little processor time",
    bound_s=60,
    short=("link/test_websocket_abuse.py::test_a_flood_of_control_frames_ends_the_link",),
)
def ping_flood(bench: Bench) -> None:
    with bench.pair() as pair:
        stranger = pair.net.host("stranger")
        before, began = cpu_seconds(pair.right), time.monotonic()
        codes = []
        for _ in range(3):
            with upgraded(stranger, pair.right) as sock:
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        sock.sendall(frame(9, b"ping") * 100)
                codes.append(close_code(sock))
            time.sleep(1)  # what is left of it is worked off, and counts too
        busy = cpu_seconds(pair.right) - before
        bench.figure(f"codes {codes}, {busy:.2f} s of CPU in {time.monotonic() - began:.0f} s")
        assert set(codes) <= {1008, 1006}
        assert 1008 in codes or busy < 1


@row(
    "TLS oddities",
    "handled, or closed in the deadline; nothing held",
    bound_s=120,
    short=(
        "link/test_websocket_abuse.py::test_a_client_with_tls_12_only_is_refused",
        "link/test_websocket_abuse.py::test_a_client_that_stalls_within_the_tls_handshake_is_dropped",
        "link/test_websocket_abuse.py::test_half_closed_and_reset_connections_in_every_step_are_freed",
    ),
)
def tls_oddities(bench: Bench) -> None:
    with bench.pair() as pair:
        stranger = pair.net.host("stranger")
        target = (pair.right.host.ipv4, PEER_PORT)
        outcomes = {}
        for name, act in {
            "TLS 1.2 only": _tls12,
            "1-byte writes": _dribble,
            "half close": _half_close,
            "junk after hello": _junk,
            "silence": lambda _: None,
            "alert": lambda sock: sock.sendall(b"\x15\x03\x03\x00\x02\x02\x50"),
        }.items():
            with stranger.connect(target) as sock:
                sock.settimeout(15)
                began = time.monotonic()
                with contextlib.suppress(OSError):
                    act(sock)
                    while sock.recv(4096):
                        pass
                outcomes[name] = time.monotonic() - began
            assert outcomes[name] < 12, f"{name}: not closed after {outcomes[name]:.0f} s"
            time.sleep(0.3)  # the next stranger is not refused for its rate
        pair.assert_pings()
    slowest = max(outcomes, key=outcomes.__getitem__)
    bench.figure(f"{len(outcomes)} kinds, slowest {slowest}: {outcomes[slowest]:.1f} s")


def _tls12(sock: socket.socket) -> None:
    context(ssl.TLSVersion.TLSv1_2).wrap_socket(sock.dup())


def _hello() -> bytes:
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context().wrap_bio(into, out)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def _dribble(sock: socket.socket) -> None:
    for byte in _hello():
        sock.sendall(bytes([byte]))
        time.sleep(0.005)


def _half_close(sock: socket.socket) -> None:
    sock.sendall(_hello())
    sock.shutdown(socket.SHUT_WR)


def _junk(sock: socket.socket) -> None:
    sock.sendall(_hello() + os.urandom(2000))


@row(
    "silent connections",
    "a restarted peer is in within 5 s",
    bound_s=200,
    short=(
        "peer/test_peer.py::test_strangers_who_fill_the_peer_port_make_room_for_the_peer",
        "link/test_listener.py::test_silent_neighbours_behind_the_peers_own_address_do_not_lock_it_out",
        "link/test_websocket_abuse.py::test_a_flood_of_silent_connections_leaves_room_for_others",
    ),
)
def silent(bench: Bench) -> None:
    failures = []
    six = [f"2001:db8:0:{n:x}::{m:x}" for n in range(1, 17) for m in range(1, 5)]
    four = [f"198.51.100.{100 + n}" for n in range(40)]
    for name, sources, rate in (
        ("16 IPv6 /64s", six, 30),
        ("40 IPv4", four, 30),
        ("6 of its own", None, 3),
    ):
        with Net() as net:
            pair = make_pair(net, bench.place())
            pair.left.settings["peer.auto_connect"] = True
            crowd = pair.left.host if sources is None else net.host("crowd")
            _addresses(crowd, pair.right.host, sources or [])
            try:
                pair.start()
                pair.await_connected(15)
                with _crowd(crowd, pair.right.host, sources or [pair.left.host.ipv4], rate):
                    time.sleep(12)
                    pair.left.kill()
                    pair.left.spawn()
                    pair.left.await_healthy()
                    began = time.monotonic()
                    try:
                        until("in", lambda p=pair: p.left.status()["state"] == "connected", 25)
                        took = time.monotonic() - began
                        bench.figure(f"{name}: in after {took:.1f} s")
                        if took > 5:
                            failures.append(f"{name}: in after {took:.1f} s")
                    except AssertionError:
                        failures.append(f"{name}: not in after 25 s")
            finally:
                for daemon in pair:
                    daemon.kill()
            assert_logs_clean(pair)
    assert not failures, "; ".join(failures)


def _addresses(crowd: Host, target: Host, sources: list[str]) -> None:
    if sources and ":" in sources[0]:
        crowd.ip(*(f"address add {source}/64 dev eth0 nodad" for source in sources))
        target.ip("route add 2001:db8::/48 dev eth0")
    elif sources:
        crowd.ip(*(f"address add {source}/24 dev eth0" for source in sources))


@contextlib.contextmanager
def _crowd(host: Host, target: Host, sources: list[str], per_second: int) -> Iterator[None]:
    """Connections that say nothing, so many a second, each held until it is closed."""
    held: list[socket.socket] = []
    family = socket.AF_INET6 if ":" in sources[0] else socket.AF_INET
    address = target.ipv6 if family == socket.AF_INET6 else target.ipv4

    def come(stop: threading.Event) -> None:
        number = 0
        while not stop.wait(1 / per_second):
            sock = host.open_socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            held.append(sock)
            with contextlib.suppress(OSError):
                sock.bind((sources[number % len(sources)], 0))
                sock.connect((address, PEER_PORT))
            number += 1

    try:
        with beside(come):
            yield
    finally:
        for sock in held:
            sock.close()


@row(
    "TLS key updates",
    "hub answers <= 50 ms on average, connection ended, no watchdog",
    bound_s=200,
    loads=True,
    short=(
        "link/test_websocket_abuse.py::test_key_updates_before_the_upgrade_end_the_connection",
        "link/test_stream.py::test_nothing_but_key_updates_ends_the_connection_after_a_few",
    ),
)
def key_updates(bench: Bench) -> None:
    failures = []
    with bench.pair(settle_s=60) as pair:
        stranger = pair.net.host("stranger")
        for connections in (1, 4, 12):
            with _updating(stranger, pair.right, connections, bench):
                time.sleep(1)  # the updates come at full rate
                slow: list[float] = []
                ends = time.monotonic() + bench.amount(10, 55)
                while time.monotonic() < ends:
                    with contextlib.suppress(OSError, NetlabError):
                        slow += answers(pair.right, 1)
                pings = pair.left.host.ping(pair.right.tunnel_ip, count=10)
            slow.sort()
            worst = 1000 * slow[-1] if slow else float("inf")
            median = 1000 * slow[len(slow) // 2] if slow else float("inf")
            bench.figure(
                f"{connections}: /health median {median:.0f}, worst {worst:.0f} ms, "
                f"{pings.received} of 10 pings"
            )
            if median > 100 or worst > 1000 or pings.received < 10:
                failures.append(f"{connections} connections slow the hub: worst {worst:.0f} ms")
    failures += authenticated_updates(bench)
    assert not failures, "; ".join(failures)


@contextlib.contextmanager
def _updating(stranger: Host, target: Daemon, count: int, bench: Bench) -> Iterator[None]:
    """`yes K | openssl s_client`, so many times."""
    script = f"yes K | openssl s_client -connect {target.host.ipv4}:{PEER_PORT} -tls1_3"
    log = bench.place() / "s_client.log"
    clients = [
        stranger.popen("sh", "-c", f"{script} >/dev/null 2>&1", log=log) for _ in range(count)
    ]
    try:
        yield
    finally:
        for client in clients:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(client.pid, 9)
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(5)
