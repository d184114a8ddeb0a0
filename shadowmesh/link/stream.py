"""TLS over one TCP connection, one record at a time.

Owns: the TCP socket of a connection, its TLS state, and how much of the peer's input OpenSSL gets
to work on. Does not know: HTTP, WebSocket, deadlines (the caller's gevent.Timeout ends a wait),
who the peer is.

::

    TCP --recv_into--> buffer --one record--> memory BIO --read--> plaintext
    plaintext --write--> memory BIO --flush--> TCP

Not SSLSocket: OpenSSL reads on while what it reads is no data, so a stranger who sends nothing but
key updates (32 us each, 27 bytes) holds one call, and with it the hub, for as long as he likes,
and no deadline fires. Here a call works on one record, and records that bring no data are few:
`BARREN_RECORDS` at once, one a second later, `BARREN_BYTES` in a row. A write to a memory BIO is
never unfinished, so a key update that wants an answer can be answered at any time.
Source: RFC 8446 sections 4.6.3 and 5; protocol section 9.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, Final

import gevent

from shadowmesh.base.rate import TokenBucket

if TYPE_CHECKING:
    from gevent.socket import socket as gevent_socket

#: Records without data that may come at once: a handshake is four to ten, a server's tickets are
#: two, TLS stacks change their keys after millions of records.
BARREN_RECORDS: Final = 32
#: ... and after that per second, for as long as the connection lives.
BARREN_RECORDS_PER_S: Final = 1.0
#: Ciphertext in a row that may bring no data.
BARREN_BYTES: Final = 64 * 1024

#: A record of a bulk transfer is 16,384 bytes and at most 256 more.
RECORD_BYTES: Final = 16384
#: RFC 8446 section 5.1: type, version, length
_HEADER_BYTES: Final = 5
_LONGEST_RECORD: Final = _HEADER_BYTES + RECORD_BYTES + 256
#: change_cipher_spec, alert, handshake, application_data
_RECORD_TYPES: Final = range(20, 24)
_MAJOR_VERSION: Final = 3

#: Most connections are idle most of the time; a bulk transfer wants few calls.
_SMALL_BUFFER: Final = 4096
_LARGE_BUFFER: Final = 64 * 1024
#: So many short reads in a row give the large buffer back.
_SHORT_READS: Final = 16

_WAIT_READ: Final = 1
_WAIT_WRITE: Final = 2
#: how long the peer has to close too, once we have
LINGER_TIMEOUT_S: Final = 0.5


class TlsFlood(ConnectionAbortedError):
    """The peer makes work and sends no data, or too much before it may."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.ECONNABORTED, what)


def plain_reason(error: OSError) -> str:
    """Why a read or a write failed, without OpenSSL's file names."""
    why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return why or str(error)


class TlsStream:
    """One connection. All methods belong to the hub's thread; one greenlet reads, one writes.

    do_handshake(), recv() and sendall() wait; read_into(), write() and flush() never do.

    Attributes:
        tcp: the TCP socket, non-blocking, for its options; this object's.
        tls: the TLS object, to ask what was negotiated.
        ended: the peer sends nothing more.
    """

    def __init__(
        self,
        sock: gevent_socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        allowance: int | None = None,
    ) -> None:
        """Take over a connected socket; nothing is sent or read yet.

        Args:
            sock: is empty afterwards; close() closes the connection.
            allowance: bytes of TCP that the peer may send until unlimited(); None: no limit.
        """
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self.tcp = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self.tcp.setblocking(False)
        self.ended = False
        self._allowance = allowance
        self._buffer = memoryview(bytearray(_SMALL_BUFFER))
        self._start = self._end = 0
        self._short_reads = 0
        #: the last receive filled the buffer, so there may be more in the kernel
        self._more = False
        #: OpenSSL holds the rest of a record that was longer than the reader's buffer
        self._rest = False
        #: sealed and taken out of the BIO, not yet taken by TCP
        self._unsent = memoryview(b"")
        self._barren = TokenBucket(BARREN_RECORDS_PER_S, BARREN_RECORDS)
        self._barren_bytes = 0
        loop = gevent.get_hub().loop
        descriptor = self.tcp.fileno()
        self._waits = {which: loop.io(descriptor, which) for which in (_WAIT_READ, _WAIT_WRITE)}

    def unlimited(self) -> None:
        """Lift the allowance: the peer has shown that it is one of ours."""
        self._allowance = None

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

    def wait_readable(self) -> None:
        """Wait until TCP has input or its end."""
        gevent.get_hub().wait(self._waits[_WAIT_READ])

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
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush_all()
            except ssl.SSLError:
                self.flush()
                raise
            while not (size := self._record()):
                if self.ended:
                    raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake")
                if not self._receive():
                    self.wait_readable()
            self._feed(size)
            self._count_barren(size)
        self._barren_bytes = 0
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
        self.write(data)
        self._flush_all()

    # --- Not waiting --------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """read_into() has something to do before anything else arrives."""
        return self._rest or self._more or bool(self._record())

    def read_into(self, buffer: memoryview) -> int:
        """Put plaintext into buffer and return how much; works on one record at most.

        Returns:
            0: none this time. Ask again at once if `ready`, when readable if not, never if
            `ended`.
        Raises:
            OSError: the connection is broken, or the peer broke TLS.
            TlsFlood: it sends records without data.
        """
        if not self._rest:
            size = self._record()
            if not size:
                if not self._receive():
                    return 0
                size = self._record()
                if not size:
                    return 0
            self._feed(size)
        try:
            count = self.tls.read(RECORD_BYTES, buffer)
        except ssl.SSLWantReadError:
            self._count_barren(size)
            return 0
        if count == 0:
            self.ended = True
        self._barren_bytes = 0
        self._rest = count == len(buffer) and self.tls.pending() > 0
        return count

    @property
    def unsent(self) -> bool:
        """flush() has something to do."""
        return bool(self._unsent) or self._outgoing.pending > 0

    def write(self, data: bytes | memoryview) -> None:
        """Seal all of data; flush() sends it."""
        self.tls.write(data)

    def flush(self) -> bool:
        """Send what is sealed; False when TCP does not take all of it now. Raises OSError."""
        while self.unsent:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self.tcp.send(self._unsent) :]
            except BlockingIOError:
                return False
        return True

    # --- The end ------------------------------------------------------------------------------

    def goodbye(self) -> None:
        """End TLS and TCP in order: close_notify, FIN, then read until the peer has closed too.

        Takes at most LINGER_TIMEOUT_S; the caller closes. Closed with unread bytes in it a socket
        sends RST, which would take away from the peer what we sent last.
        """
        self._allowance = None  # nothing of what comes now is worked on
        with contextlib.suppress(OSError), gevent.Timeout(LINGER_TIMEOUT_S, False):
            with contextlib.suppress(ssl.SSLError, ValueError):
                # Makes our close_notify; that the peer's has not come yet is not of interest.
                self.tls.unwrap()
            self._flush_all()
            self.tcp.shutdown(socket.SHUT_WR)
            while not self.ended:
                self._start = self._end = 0
                if not self._receive():
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

    # --- Records ------------------------------------------------------------------------------

    def _record(self) -> int:
        """Length of the record at the head of the buffer; 0 while it is incomplete.

        What is no record is given to OpenSSL as it is, which finds the words for it.
        """
        held = self._end - self._start
        if held < _HEADER_BYTES:
            return 0
        head, buffer = self._start, self._buffer
        size = _HEADER_BYTES + (buffer[head + 3] << 8 | buffer[head + 4])
        if (
            buffer[head] not in _RECORD_TYPES
            or buffer[head + 1] != _MAJOR_VERSION
            or size > _LONGEST_RECORD
        ):
            return held
        return size if size <= held else 0

    def _receive(self) -> bool:
        """Take once from TCP; False when there was nothing. Sets `ended`. Raises OSError."""
        if self._more and len(self._buffer) == _SMALL_BUFFER:
            self._resize(_LARGE_BUFFER)
        elif self._start == self._end and self._short_reads >= _SHORT_READS:
            self._resize(_SMALL_BUFFER)
        elif self._start:
            # The longest record has room behind what is left of the last receive only from 0 on.
            rest = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._buffer[: self._end] = rest
        self._more = False
        room = self._buffer[self._end :]
        if self._allowance is not None:
            if not self._allowance:
                raise TlsFlood("it sent too much before it was upgraded")
            room = room[: self._allowance]
        try:
            count = self.tcp.recv_into(room)
        except BlockingIOError:
            return False
        self.ended = count == 0
        self._end += count
        self._more = count == len(room)
        large = len(self._buffer) == _LARGE_BUFFER
        self._short_reads = self._short_reads + 1 if large and count < _SMALL_BUFFER else 0
        if self._allowance is not None:
            self._allowance -= count
        return count > 0

    def _resize(self, size: int) -> None:
        rest = self._buffer[self._start : self._end]
        self._buffer = memoryview(bytearray(size))
        self._buffer[: len(rest)] = rest
        self._start, self._end = 0, len(rest)
        self._short_reads = 0

    def _feed(self, size: int) -> None:
        self._incoming.write(self._buffer[self._start : self._start + size])
        self._start += size

    def _count_barren(self, size: int) -> None:
        """A record brought no data. Raises TlsFlood."""
        self._barren_bytes += size
        if self._barren_bytes > BARREN_BYTES or not self._barren.take(time.monotonic()):
            raise TlsFlood("it sent TLS records without data, one after the other")

    def _flush_all(self) -> None:
        while not self.flush():
            self.wait_writable()
