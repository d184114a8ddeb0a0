"""Messages that are too large for one record: cut into parts, and put together again.

Owns: the order of parts and the memory that an unfinished message may take. Does not know: what
is in it; whoever gathers decodes the whole and verifies it as a whole. Source: mesh-rules C3.
"""

from __future__ import annotations

from shadowmesh.base.errors import RemoteProtocolError
from shadowmesh.wire.mesh.messages import (
    LARGE_MESSAGE_MAX_BYTES,
    PART_MAX_BYTES,
    RECORD_MAX_BYTES,
    Message,
    Part,
    decode,
    encode,
)


def cut(message: Message) -> list[bytes]:
    """Return the bodies of the records that carry a message, in their order.

    Raises:
        LocalProtocolError: the other side would refuse it.
    """
    data = encode(message)
    if len(data) <= RECORD_MAX_BYTES:
        return [data]
    return [
        encode(Part(size=len(data), offset=at, data=data[at : at + PART_MAX_BYTES]))
        for at in range(0, len(data), PART_MAX_BYTES)
    ]


class Gathering:
    """Turns the records of one session back into messages; one message at a time.

    Args:
        max_bytes: of a message that comes in parts; 0 takes none.
    """

    def __init__(self, max_bytes: int = LARGE_MESSAGE_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._held = bytearray()

    def receive(self, body: bytes) -> Message | None:
        """Take a record; return the message that it is or completes, None if more is to come.

        Another message may come between two parts.

        Raises:
            RemoteProtocolError: as `messages.decode`, or a part that does not go on with the one
                before it; what was held is let go.
        """
        message = decode(body, RECORD_MAX_BYTES)
        if not isinstance(message, Part):
            return message
        try:
            return self._add(message)
        except RemoteProtocolError:
            self._size, self._held = 0, bytearray()
            raise

    def _add(self, part: Part) -> Message | None:
        if part.offset == 0 and not self._held:
            if part.size > self._max_bytes:
                raise RemoteProtocolError(
                    f"a message of {part.size} bytes in parts, at most {self._max_bytes}"
                )
            self._size = part.size
        if part.size != self._size or part.offset != len(self._held):
            raise RemoteProtocolError(
                f"part {part.offset} of {part.size}, wanted {len(self._held)} of {self._size}"
            )
        if part.offset + len(part.data) > part.size:
            raise RemoteProtocolError("a part goes beyond the end of its message")
        self._held += part.data
        if len(self._held) < self._size:
            return None
        whole = bytes(self._held)
        self._size, self._held = 0, bytearray()
        message = decode(whole, self._max_bytes)
        if isinstance(message, Part):
            raise RemoteProtocolError("a part inside of parts")
        return message
