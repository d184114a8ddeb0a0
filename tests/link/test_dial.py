"""Dialling a peer over loopback: the way through, and what is said when there is none."""

from __future__ import annotations

import socket
import ssl

import gevent
import gevent.socket as gsocket
import psutil
import pytest

from shadowmesh.base.errors import ConnectTimeout, ControlError, PeerRefused, PeerUnreachable
from shadowmesh.config import HostPort
from shadowmesh.link import dial as dial_module
from shadowmesh.link import tls
from shadowmesh.link.dial import dial
from shadowmesh.link.route import MAX_ADDRESSES, SMALL_SEGMENT_BYTES, Route
from shadowmesh.link.tcp import progress
from tests.link import othertls
from tests.link.peerport import PATH, PATIENCE_S, PeerPort, read_all

CONTEXT = tls.client_context()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    return tls.load_or_create_certificate(directory / "cert.pem", directory / "key.pem")


@pytest.fixture(autouse=True)
def patience():
    with gevent.Timeout(3 * PATIENCE_S):
        yield


@pytest.fixture
def port(certificate):
    port = PeerPort(certificate)
    yield port
    port.close()


@pytest.fixture
def serve():
    """Run handler(sock) for each connection to a port of its own; return the port."""
    opened = []

    def start(handler, host="127.0.0.1"):
        listening = gsocket.socket()
        opened.append(listening)
        listening.bind((host, 0))
        listening.listen()

        def accept():
            while True:
                sock, _ = listening.accept()
                opened.append(sock)
                greenlets.append(gevent.spawn(handler, sock))

        greenlets.append(gevent.spawn(accept))
        return listening.getsockname()[1]

    greenlets = []
    yield start
    gevent.killall(greenlets)
    for sock in opened:
        sock.close()


def refusal(kind, port, host="127.0.0.1", path=PATH, **options):
    """Dial, and return the text of the one error that must come."""
    with pytest.raises(kind) as caught:
        dial(HostPort(host, port), path, CONTEXT, **options)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert text.startswith(f"cannot reach {HostPort(host, port)}: ")
    assert text.isprintable()
    return text


def resolves_to(monkeypatch, *addresses):
    """Make every name mean these (family, socket address) pairs."""
    found = [(family, socket.SOCK_STREAM, 6, "", sockaddr) for family, sockaddr in addresses]
    monkeypatch.setattr(gsocket, "getaddrinfo", lambda *args, **options: found)


def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def black_hole():
    """Make socket addresses that swallow every SYN: a full backlog does."""
    opened = []

    def make(host="127.0.0.1"):
        full = socket.socket()
        full.bind((host, 0))
        full.listen(0)
        opened.append(full)
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
            opened.append(waiting)
        return full.getsockname()

    yield make
    for sock in opened:
        sock.close()


def silent(sock):
    read_all(sock)


def upgrade_server(certificate, answer):
    """A server that answers every request in the same way, over TLS."""
    context = othertls.server_context(certificate)

    def handler(sock):
        with context.wrap_socket(sock, server_side=True) as sock:
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(4096)
            sock.sendall(answer)

    return handler


def test_dial_ends_with_an_upgraded_connection(port, certificate):
    upgraded = dial(HostPort("127.0.0.1", port.port), PATH, CONTEXT)
    accepted = port.upgraded.get(timeout=PATIENCE_S)
    assert not upgraded.server
    assert upgraded.remote_address == ("127.0.0.1", port.port)
    assert upgraded.certificate_sha256 == certificate.sha256 == accepted.certificate_sha256
    upgraded.release()
    accepted.sock.sendall(b"\x82\x01x")
    assert upgraded.sock.recv(3) == b"\x82\x01x"
    assert upgraded.sock.tcp.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_NODELAY)
    assert not upgraded.sock.tcp.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_KEEPALIVE)
    upgraded.sock.close()


def test_the_name_goes_into_sni_and_the_host_header_and_an_address_does_not(certificate, serve):
    seen = []
    context = othertls.server_context(certificate)
    context.sni_callback = lambda sock, name, context: seen.append(name)

    def handler(sock):
        with context.wrap_socket(sock, server_side=True) as sock:
            seen.append(sock.recv(4096).split(b"\r\n")[1])

    port = serve(handler)
    refusal(PeerRefused, port, host="localhost")
    refusal(PeerRefused, port)
    assert seen == ["localhost", f"Host: localhost:{port}".encode(), None, f"Host: 127.0.0.1:{port}".encode()]  # fmt: skip


def test_a_dot_that_makes_a_name_whole_is_for_the_resolver_alone():
    assert dial_module._server_name("peer.example.") == "peer.example"


@pytest.mark.parametrize(
    ("host", "port", "header"),
    [
        ("peer.example", 443, "peer.example"),
        ("peer.example", 9001, "peer.example:9001"),
        ("2001:db8::1", 9001, "[2001:db8::1]:9001"),
        ("fe80::1%eth0", 443, "[fe80::1]"),
        ("peer.example.", 9001, "peer.example:9001"),
        ("b\u00fccher.example", 443, "xn--bcher-kva.example"),
    ],
)
def test_the_host_header_is_what_a_browser_would_send(host, port, header):
    assert dial_module._host_header(HostPort(host, port)) == header


# --- Several addresses ------------------------------------------------------------------------


def test_families_take_turns_and_the_first_stays_first(monkeypatch):
    v4 = [(socket.AF_INET, (f"192.0.2.{n}", 1)) for n in range(2)]
    v6 = [(socket.AF_INET6, (f"2001:db8::{n}", 1, 0, 0)) for n in range(3)]
    progress = dial_module._Progress(HostPort("x", 1))
    resolves_to(monkeypatch, *v6, *v4, *v6)
    assert dial_module._resolve(progress) == [v6[0], v4[0], v6[1], v4[1], v6[2]]
    resolves_to(monkeypatch, *v4)
    assert dial_module._resolve(progress) == v4


def test_a_dead_address_does_not_hide_a_good_one(port, monkeypatch):
    good = (socket.AF_INET, ("127.0.0.1", port.port))
    resolves_to(monkeypatch, (socket.AF_INET, ("127.0.0.1", closed_port())), good)
    upgraded = dial(HostPort("peer.example", port.port), PATH, CONTEXT)
    assert upgraded.remote_address == good[1]
    upgraded.sock.close()


@pytest.mark.parametrize("dead", [1, 4, 8])
def test_addresses_that_swallow_packets_do_not_hide_a_good_one(port, monkeypatch, black_hole, dead):
    good = ("127.0.0.1", port.port)
    ways = [(socket.AF_INET, black_hole()) for _ in range(dead)]
    resolves_to(monkeypatch, *ways, (socket.AF_INET, good))
    upgraded = dial(HostPort("peer.example", port.port), PATH, CONTEXT)
    assert upgraded.remote_address == good
    upgraded.sock.close()
    holes = {way[1] for way in ways}
    left = [one for one in psutil.Process().net_connections("tcp") if one.raddr in holes]
    assert len(left) <= 3 * dead, "those that fill the backlogs, and none of the dial's"


def test_the_next_dial_goes_on_where_the_last_one_stopped(port, monkeypatch, black_hole):
    monkeypatch.setattr(dial_module, "CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(dial_module, "CONNECTS_AT_ONCE", 1)
    good = ("127.0.0.1", port.port)
    dead = [(socket.AF_INET, black_hole()) for _ in range(MAX_ADDRESSES)]
    resolves_to(monkeypatch, *dead, (socket.AF_INET, good))
    route = Route()
    with pytest.raises(ConnectTimeout):
        dial(HostPort("peer.example", port.port), PATH, CONTEXT, route)
    upgraded = dial(HostPort("peer.example", port.port), PATH, CONTEXT, route)
    assert upgraded.remote_address == good
    upgraded.sock.close()


def test_an_address_behind_which_there_is_no_peer_is_not_preferred_for_ever(
    port, serve, monkeypatch
):
    other = serve(lambda sock: sock.close())
    first, good = (socket.AF_INET, ("127.0.0.1", other)), ("127.0.0.1", port.port)
    resolves_to(monkeypatch, first, (socket.AF_INET, good))
    route = Route()
    for _ in range(2):
        dial(HostPort("peer.example", 9001), PATH, CONTEXT, route).sock.close()
        route.succeeded(good)
        assert route.order([first, (socket.AF_INET, good)])[0][1] == good


def test_a_dial_that_is_killed_while_others_are_given_up_keeps_no_connection(
    port, monkeypatch, black_hole
):
    taken = []
    connect, killall = dial_module._connect, gevent.killall

    def noted(*what):
        taken.append(connect(*what))
        return taken[-1]

    def slow(greenlets):
        if greenlets and not dialling.dead:
            gevent.sleep(PATIENCE_S)
        killall(greenlets)

    good = (socket.AF_INET, ("127.0.0.1", port.port))
    resolves_to(monkeypatch, (socket.AF_INET, black_hole()), good)
    monkeypatch.setattr(dial_module, "_connect", noted)
    monkeypatch.setattr(dial_module, "STAGGER_S", 0.001)
    dialling = gevent.Greenlet(dial, HostPort("peer.example", 9001), PATH, CONTEXT)
    monkeypatch.setattr(gevent, "killall", slow)
    dialling.start()
    while not taken:
        gevent.sleep(0.01)
    gevent.sleep(0.05)
    monkeypatch.setattr(gevent, "killall", killall)
    dialling.kill()
    assert [sock.fileno() for sock in taken if not isinstance(sock, ControlError)] == [-1]


def test_connections_on_their_way_are_capped(monkeypatch, black_hole):
    monkeypatch.setattr(dial_module, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(dial_module, "STAGGER_S", 0.001)
    running, most = [], []
    connect = dial_module._connect

    def counted(*what):
        running.append(what)
        most.append(len(running))
        try:
            return connect(*what)
        finally:
            running.remove(what)

    monkeypatch.setattr(dial_module, "_connect", counted)
    hole = black_hole()
    ways = [(socket.AF_INET, (f"127.0.0.{n}", hole[1])) for n in range(1, 30)]
    holes = [(family, black_hole(host)) for family, (host, _) in ways]
    resolves_to(monkeypatch, *holes)
    refusal(ConnectTimeout, 9001, host="peer.example")
    assert max(most) == dial_module.CONNECTS_AT_ONCE
    assert len(most) == MAX_ADDRESSES


def test_a_connection_with_short_segments_says_so_to_both_sides(port):
    route = Route()
    route.keep_small()
    upgraded = dial(HostPort("127.0.0.1", port.port), PATH, CONTEXT, route)
    accepted = port.upgraded.get(timeout=PATIENCE_S)
    for sock in (upgraded.sock, accepted.sock):
        assert progress(sock.tcp).segment_bytes <= SMALL_SEGMENT_BYTES
    upgraded.sock.close()


def test_a_step_after_tcp_that_times_out_asks_for_short_segments(serve, monkeypatch):
    monkeypatch.setattr(dial_module, "TLS_TIMEOUT_S", 0.1)
    route = Route()
    with pytest.raises(ConnectTimeout):
        dial(HostPort("127.0.0.1", serve(silent)), PATH, CONTEXT, route)
    assert route.take_retry()
    with pytest.raises(PeerUnreachable):
        dial(HostPort("127.0.0.1", closed_port()), PATH, CONTEXT, route)
    assert not route.take_retry()


def test_an_address_of_a_family_that_is_missing_here_does_not_hide_a_good_one(port, monkeypatch):
    resolves_to(
        monkeypatch, (socket.AF_APPLETALK, ("1", 1)), (socket.AF_INET, ("127.0.0.1", port.port))
    )
    dial(HostPort("peer.example", port.port), PATH, CONTEXT).sock.close()


def test_the_error_is_that_of_the_address_that_came_furthest(certificate, serve, monkeypatch):
    answering = serve(upgrade_server(certificate, b"HTTP/1.1 404 Not Found\r\n\r\n"), "127.0.0.2")
    resolves_to(
        monkeypatch,
        (socket.AF_INET, ("127.0.0.1", closed_port())),
        (socket.AF_INET, ("127.0.0.2", answering)),
        (socket.AF_INET, ("127.0.0.3", closed_port())),
    )
    text = refusal(PeerRefused, 9001, host="peer.example")
    assert "upgrade at 127.0.0.2: " in text


# --- Failures, step by step -------------------------------------------------------------------


def test_an_address_behind_the_tunnel_is_not_dialled_and_hides_no_other(port, monkeypatch):
    resolves_to(
        monkeypatch,
        (socket.AF_INET, ("127.0.0.2", port.port)),
        (socket.AF_INET, ("127.0.0.1", port.port)),
    )
    behind = {"127.0.0.2": "127.0.0.2 leads into the tunnel itself (tap0); ip route add it"}
    upgraded = dial(HostPort("peer.example", port.port), PATH, CONTEXT, refuses=behind.get)
    assert upgraded.remote_address == ("127.0.0.1", port.port)
    upgraded.sock.close()
    why = "it leads into the tunnel itself (tap0); ip route add it elsewhere"
    text = refusal(PeerUnreachable, port.port, refuses=lambda host: why)
    assert text.endswith(f": {why}")


def test_a_name_that_does_not_resolve_is_unreachable(monkeypatch):
    def fail(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(gsocket, "getaddrinfo", fail)
    text = refusal(PeerUnreachable, 9001, host="nowhere.example")
    assert "dns: Name or service not known; check the name" in text


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "x..example"])
def test_what_is_no_host_name_is_unreachable(host):
    assert "dns: " in refusal(PeerUnreachable, 9001, host=host)


def test_a_resolver_that_hangs_times_out(monkeypatch):
    monkeypatch.setattr(gsocket, "getaddrinfo", lambda *args, **options: gevent.sleep(PATIENCE_S))
    text = refusal(ConnectTimeout, 9001, host="slow.example", timeout_s=0.1)
    assert "dns: no answer within 0.1 s" in text


def test_a_port_where_nobody_listens_is_unreachable():
    text = refusal(PeerUnreachable, closed_port())
    assert "tcp: Connection refused; check the address, that the peer's daemon runs" in text


def test_an_address_of_this_machine_is_called_so(monkeypatch):
    monkeypatch.setattr(dial_module, "is_own_address", lambda host: host == "127.0.0.2")
    port = closed_port()
    text = refusal(PeerUnreachable, port, host="127.0.0.2")
    assert text.endswith(
        "Connection refused; 127.0.0.2 is an address of this machine, give one of the peer's"
    )
    assert "this machine" not in refusal(PeerUnreachable, port)


def test_an_address_that_swallows_packets_times_out(monkeypatch):
    monkeypatch.setattr(dial_module, "CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]  # a full backlog drops SYNs
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        assert "tcp: no answer within 0.2 s" in refusal(ConnectTimeout, full.getsockname()[1])
        for sock in waiting:
            sock.close()


def test_a_server_that_never_starts_tls_times_out(serve, monkeypatch):
    monkeypatch.setattr(dial_module, "TLS_TIMEOUT_S", 0.2)
    assert "tls: no answer within 0.2 s" in refusal(ConnectTimeout, serve(silent))


def test_a_server_without_tls_is_named_as_such(serve):
    text = refusal(PeerUnreachable, serve(lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")))
    assert "tls: no TLS 1.3 there (" in text
    assert "websocket.listen_address" in text


def test_a_server_that_closes_in_the_tls_handshake_is_named_as_such(serve):
    text = refusal(PeerUnreachable, serve(lambda sock: sock.close()))
    assert "tls: the connection was closed during the handshake" in text


def test_a_server_with_tls_12_only_is_unreachable(certificate, serve):
    limited = othertls.server_context(certificate, ssl.TLSVersion.TLSv1_2)

    def handler(sock):
        with sock, pytest.raises(OSError):
            limited.wrap_socket(sock, server_side=True)

    assert "tls: no TLS 1.3 there (" in refusal(PeerUnreachable, serve(handler))


def test_another_path_is_refused_with_the_status(port):
    text = refusal(PeerRefused, port.port, path="/elsewhere")
    assert "upgrade: " in text
    assert "404" in text
    assert "check websocket.path" in text


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000,
        b"HTTP/1.1 502 Bad Gateway\r\n\x1b[31mX: y\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_upgrade_is_refused(certificate, serve, answer):
    assert "upgrade: " in refusal(PeerRefused, serve(upgrade_server(certificate, answer)))


def test_a_server_that_does_not_answer_the_request_times_out(certificate, serve, monkeypatch):
    monkeypatch.setattr(dial_module, "UPGRADE_ANSWER_TIMEOUT_S", 0.2)
    context = othertls.server_context(certificate)

    def handler(sock):
        with context.wrap_socket(sock, server_side=True) as sock:
            silent(sock)

    assert "upgrade: no answer within 0.2 s" in refusal(ConnectTimeout, serve(handler))


def test_everything_together_has_a_limit_too(serve):
    text = refusal(ConnectTimeout, serve(silent), timeout_s=0.2)
    assert "tls: no answer within 0.2 s" in text


def test_a_limit_of_the_caller_passes_through(serve):
    port = serve(silent)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        dial(HostPort("127.0.0.1", port), PATH, CONTEXT)


def test_no_failure_and_no_kill_leaves_a_descriptor(certificate, serve, monkeypatch):
    monkeypatch.setattr(dial_module, "TLS_TIMEOUT_S", 0.1)
    ports = [
        closed_port(),
        serve(silent),
        serve(lambda sock: sock.close()),
        serve(upgrade_server(certificate, b"HTTP/1.1 404 Not Found\r\n\r\n")),
    ]

    def fail_everywhere():
        for port in ports:
            with pytest.raises(ControlError):
                dial(HostPort("127.0.0.1", port), PATH, CONTEXT)
        dialling = gevent.spawn(dial, HostPort("127.0.0.1", ports[1]), PATH, CONTEXT)
        gevent.sleep(0.02)
        dialling.kill()

    def ours():
        connections = psutil.Process().net_connections("tcp")
        return [one for one in connections if one.raddr and one.raddr.port in ports]

    fail_everywhere()
    assert ours() == []
