"""TLS over one TCP connection, for greenlets: who waits, for what, until when.

Owns: the TCP socket of a connection and its TLS state, until both are given away. Does not know:
HTTP, WebSocket, deadlines (the caller's gevent.Timeout ends a wait), who the peer is, how much of
the peer's input OpenSSL gets to work on (`fast.openssl`).

::

    TCP --receive--> Tls --one record--> plaintext
    plaintext --write--> Tls --flush--> TCP
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Any, Final

import gevent

from shadowmesh.fast.openssl import Tls, TlsError

if TYPE_CHECKING:
    from gevent.event import Event
    from gevent.socket import socket as gevent_socket

    from shadowmesh.fast.openssl import TlsContext

#: So much is sealed before TCP has to take it.
_PIECE_BYTES: Final = 64 * 1024
_WAIT_READ: Final = 1
_WAIT_WRITE: Final = 2
#: how long the peer has to close too, once we have
LINGER_TIMEOUT_S: Final = 0.5


class TlsStream:
    """One connection. All methods belong to the hub's thread; one greenlet reads, one writes.

    do_handshake(), recv() and sendall() wait; read_into(), write() and flush() never do.

    Attributes:
        tcp: the TCP socket, non-blocking, for its options; this object's.
        tls: the TLS state; while the data plane has it, none of the methods here may be called.
    """

    def __init__(
        self,
        sock: gevent_socket,
        context: TlsContext,
        *,
        server_hostname: str | None = None,
        allowance: int | None = None,
    ) -> None:
        """Take over a connected socket; nothing is sent or read yet.

        Args:
            sock: is empty afterwards; close() closes the connection.
            context: a server's or a client's.
            server_hostname: what a client asks for; None: nothing.
            allowance: bytes of TCP that the peer may send until unlimited(); None: no limit.
        """
        self.tls = Tls(
            context,
            None if server_hostname is None else server_hostname.encode("idna").decode("ascii"),
            allowance,
        )
        self.tcp = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self.tcp.setblocking(False)
        loop = gevent.get_hub().loop
        descriptor = self.tcp.fileno()
        self._waits = {which: loop.io(descriptor, which) for which in (_WAIT_READ, _WAIT_WRITE)}

    def unlimited(self) -> None:
        """Lift the allowance: the peer has shown that it is one of ours."""
        self.tls.unlimit()

    def getsockname(self) -> Any:
        """The address of our end."""
        return self.tcp.getsockname()

    def getpeername(self) -> Any:
        """The address of the other end."""
        return self.tcp.getpeername()

    def fileno(self) -> int:
        """The descriptor; -1 after close()."""
        return self.tcp.fileno()

    # --- Waiting ------------------------------------------------------------------------------

    def wait_readable(self, wanted: Event | None = None) -> None:
        """Wait until TCP has input or its end, or until `wanted` is set, which is cleared then."""
        watcher = self._waits[_WAIT_READ]
        if wanted is None:
            gevent.get_hub().wait(watcher)
            return
        watcher.start(wanted.set)
        try:
            wanted.wait()
        finally:
            watcher.stop()
            wanted.clear()

    def wait_writable(self) -> None:
        """Wait until TCP takes output."""
        gevent.get_hub().wait(self._waits[_WAIT_WRITE])

    def do_handshake(self) -> None:
        """Finish the TLS handshake.

        Raises:
            OSError: it failed; the peer has been sent the alert if there is one.
        """
        while True:
            try:
                if self.tls.handshake():
                    break
            except TlsError:
                self.flush()
                raise
            self._flush_all()
            while not self.tls.holds_record:
                if self.ended:
                    raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake")
                if not self.tls.receive(self.fileno()) and not self.ended:
                    self.wait_readable()
        self._flush_all()

    def recv(self, count: int) -> bytes:
        """Return 1 to `count` bytes of plaintext, b"" at the end. Raises OSError."""
        data = bytearray(count)
        while True:
            got = self.read_into(memoryview(data))
            if got or self.ended:
                return bytes(data[:got])
            if not self.ready:
                self.wait_readable()
            else:
                gevent.sleep(0)

    def sendall(self, data: bytes) -> None:
        """Send all of it. Raises OSError."""
        for start in range(0, len(data), _PIECE_BYTES):
            self.write(data[start : start + _PIECE_BYTES])
            self._flush_all()

    # --- Not waiting --------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """The peer sends nothing more."""
        return self.tls.ended

    @property
    def ready(self) -> bool:
        """read_into() has something to do before anything else arrives."""
        return self.tls.ready

    def read_into(self, buffer: memoryview) -> int:
        """Put plaintext into buffer and return how much; works on one record at most.

        Returns:
            0: none this time. Ask again at once if `ready`, when readable if not, never if
            `ended`.
        Raises:
            OSError: the connection is broken, or the peer broke TLS.
            TlsFlood: it sends records without data.
        """
        if not self.tls.holds_record:
            self.tls.receive(self.fileno())
        return self.tls.read_into(buffer)

    @property
    def unsent(self) -> bool:
        """flush() has something to do."""
        return self.tls.unsent_bytes > 0

    def write(self, data: bytes | memoryview) -> None:
        """Seal all of data; flush() sends it. At most 192 KiB may wait for that."""
        self.tls.write(data)

    def flush(self) -> bool:
        """Send what is sealed; False when TCP does not take all of it now. Raises OSError."""
        return self.tls.flush(self.fileno())

    # --- The end ------------------------------------------------------------------------------

    def goodbye(self) -> None:
        """End TLS and TCP in order: close_notify, FIN, then read until the peer has closed too.

        Takes at most LINGER_TIMEOUT_S; the caller closes. Closed with unread bytes in it a socket
        sends RST, which would take away from the peer what we sent last.
        """
        self.unlimited()  # nothing of what comes now is worked on
        with contextlib.suppress(OSError), gevent.Timeout(LINGER_TIMEOUT_S, False):
            self.tls.goodbye()
            self._flush_all()
            self.tcp.shutdown(socket.SHUT_WR)
            while not self.ended:
                self.tls.discard()
                if not self.tls.receive(self.fileno()):
                    self.wait_readable()

    def abort(self) -> None:
        """Let every read and write fail from now on; whoever owns the stream closes it."""
        with contextlib.suppress(OSError):
            self.tcp.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection and free the watchers; nobody may be waiting. Idempotent."""
        for watcher in self._waits.values():
            watcher.close()
        self.tcp.close()

    def _flush_all(self) -> None:
        while not self.flush():
            self.wait_writable()
