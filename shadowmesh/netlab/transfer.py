"""One TCP stream from host to host, in Python, so that nobody needs iperf.

Owns: two sockets and a thread for the time of a call. Does not know: daemons, tunnels.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from shadowmesh.netlab.namespaces import NetlabError

if TYPE_CHECKING:
    from shadowmesh.netlab.namespaces import Host

PORT: Final = 5001
CHUNK_BYTES: Final = 1 << 20
#: after the last byte was sent
DRAIN_S: Final = 10


def transfer(source: Host, sink: Host, address: str, seconds: float) -> tuple[float, int]:
    """Send for so long; return bits per second and the bytes that were received.

    Raises:
        NetlabError: nothing arrived.
        OSError: there is no connection.
    """
    received = 0
    with sink.listen((address, PORT)) as listener:

        def take() -> None:
            nonlocal received
            connection, _ = listener.accept()
            buffer = bytearray(CHUNK_BYTES)
            with connection:
                while count := connection.recv_into(buffer):
                    received += count

        thread = threading.Thread(target=take, name="transfer", daemon=True)
        thread.start()
        began = time.monotonic()
        with source.connect((address, PORT)) as connection:
            chunk = bytes(CHUNK_BYTES)
            while time.monotonic() - began < seconds:
                connection.sendall(chunk)
        thread.join(DRAIN_S)
        elapsed = time.monotonic() - began
    if not received:
        raise NetlabError("no byte of the TCP transfer arrived")
    return received * 8 / elapsed, received
