"""A file that is larger than a request of the API may be, as it comes in pieces.

Owns: the one that is held, for how long. Does not know: what is in it, HTTP.
"""

from __future__ import annotations

import hashlib
from typing import Final

import gevent

from shadowmesh.base.errors import BadRequest, FileNotSent
from shadowmesh.insight.custody import Received

MAX_FILE_BYTES: Final = 32 << 20
#: it is forgotten when so long no piece of it has come
FILE_AGE_S: Final = 60.0


class ReceivedFile:
    """The last one; there is room for one."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._forgetting: gevent.Greenlet | None = None

    def receive(self, offset: int, data: bytes) -> Received:
        """Take a piece of a file; offset 0 begins another one.

        Raises:
            FileNotSent: the piece before it is missing.
            BadRequest: the file is too large.
        """
        if offset == 0:
            self._data.clear()
        if offset != len(self._data):
            raise FileNotSent(
                f"this piece begins at {offset}, and {len(self._data)} bytes are here"
            )
        if offset + len(data) > MAX_FILE_BYTES:
            raise BadRequest(f"a file has at most {MAX_FILE_BYTES >> 20} MiB")
        self._data += data
        if self._forgetting is not None:
            self._forgetting.kill(block=False)
        self._forgetting = gevent.spawn_later(FILE_AGE_S, self._data.clear)
        return Received(len(self._data))

    def taken(self, digest: str) -> bytes:
        """Return the file with that SHA-256, in hexadecimal digits, and forget it.

        Raises:
            FileNotSent: it is not here, or not all of it.
        """
        data = bytes(self._data)
        if hashlib.sha256(data).hexdigest() != digest:
            raise FileNotSent(
                "the file that is meant was not sent, or not all of it; send it again"
            )
        self._data.clear()
        return data
