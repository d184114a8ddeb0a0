"""A listener on loopback and a client that sends it whatever a test wants."""

from __future__ import annotations

import gevent
import gevent.event
import gevent.queue
import gevent.socket as gsocket

from shadowmesh.config import HostPort
from shadowmesh.link import tls
from shadowmesh.link.known import KnownAddresses
from shadowmesh.link.listener import Listener
from tests.link import othertls

PATIENCE_S = 10.0
PATH = "/shadowmesh"
#: RFC 6455 section 1.3, with the answer that belongs to it
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def request(
    method="GET", path=PATH, version="HTTP/1.1", *, without=(), replace=(), extra=(), end="\r\n"
):
    """Return an upgrade request; header lines can be left out, replaced or added."""
    lines = {
        "Host": "peer.example",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "shadowmesh.v1",
    } | dict(replace)
    text = f"{method} {path} {version}\r\n"
    text += "".join(f"{name}: {value}\r\n" for name, value in lines.items() if name not in without)
    text += "".join(f"{name}: {value}\r\n" for name, value in extra)
    return (text + end).encode("latin-1")


class PeerPort:
    """A started listener that keeps what it upgraded, and clients of it."""

    def __init__(self, certificate, address=None, **options):
        self._socks = []
        self.upgraded = gevent.queue.Queue()
        self.known = KnownAddresses()
        self.certificate = certificate
        self.client_context = tls.client_context()
        self.listener = Listener(
            address or HostPort("127.0.0.1", 0),
            PATH,
            tls.server_context(certificate),
            certificate.sha256,
            self._keep,
            self.known,
            **options,
        )
        self.listener.start()
        self.port = self.listener.bound[1]

    def _keep(self, upgraded):
        self._socks.append(upgraded.sock)
        self.upgraded.put(upgraded)

    @property
    def counters(self):
        """The counters that are not zero."""
        return {name: count for name, count in self.listener.counters.items() if count}

    def connect(self, host="127.0.0.1", source=None):
        """Return a TCP connection to the listener."""
        sock = gsocket.create_connection((host, self.port), PATIENCE_S, source)
        self._socks.append(sock)
        return sock

    def connect_tls(self, host="127.0.0.1", context=None, source=None):
        sock = (context or othertls.client_context()).wrap_socket(self.connect(host, source))
        self._socks.append(sock)
        return sock

    def answer(self, data, host="127.0.0.1"):
        """Send bytes over TLS; return everything that the listener answers until it closes."""
        sock = self.connect_tls(host)
        sock.sendall(data)
        answer = read_all(sock)
        sock.close()
        return answer

    def wait_for(self, **counters):
        """Let the listener work until its counters have these values."""
        with gevent.Timeout(PATIENCE_S):
            while any(self.listener.counters[name] != value for name, value in counters.items()):
                gevent.sleep(0)

    def close(self):
        self.listener.stop()
        for sock in self._socks:
            sock.close()


def read_all(sock):
    data = b""
    with gevent.Timeout(PATIENCE_S):
        while part := sock.recv(65536):
            data += part
    return data


def read_head(sock):
    """Return (status line, header lines, what follows) of one answer."""
    data = b""
    with gevent.Timeout(PATIENCE_S):
        while b"\r\n\r\n" not in data:
            part = sock.recv(65536)
            assert part, f"closed after {data!r}"
            data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    return status, lines, rest
