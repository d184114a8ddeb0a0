"""An answer of the daemon that goes on until its reader has had enough.

Owns: the reading of it, how it ends. Does not know: what is in it, how it was asked for.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

from shadowmesh.cli.failures import REQUEST_TIMEOUT_S, DaemonNotRunning, NoAnswer

#: taken at once
STREAM_BYTES: Final = 256 * 1024


class Stream:
    """The body of an answer that goes on: iterate over its bytes, then close it.

    Raises while it is read:
        NoAnswer: nothing came for `REQUEST_TIMEOUT_S`.
        DaemonNotRunning: the connection broke.
    """

    def __init__(self, connection: socket.socket, first: bytes, url: str) -> None:
        """Args: first: bytes of the body that have come already; url: of the daemon, for errors."""
        self._connection = connection
        self._first = first
        self._url = url
        connection.settimeout(REQUEST_TIMEOUT_S)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        data, self._first = self._first, b""
        try:
            while data or (data := self._connection.recv(STREAM_BYTES)):
                yield data
                data = b""
        except TimeoutError:
            raise NoAnswer(
                f"the daemon at {self._url} has said nothing for {REQUEST_TIMEOUT_S:g} s;"
                " see its log"
            ) from None
        except OSError as error:
            raise DaemonNotRunning(
                f"the connection to the daemon at {self._url} broke: {error.strerror}"
            ) from None

    def finish(self) -> None:
        """Tell the daemon that nothing more is wanted: it sends what it has and the end."""
        with contextlib.suppress(OSError):  # it has ended already
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._connection.close()
