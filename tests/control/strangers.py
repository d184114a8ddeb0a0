"""Programs of another user of this machine, who means no good."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else too")


def as_nobody(*groups: int) -> list[str]:
    """Return what to put before a command for another user to run it, in these groups too."""
    more = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", more]


#: opens connections, sends requests on each without end, and reads nothing; says when it has begun
_FLOOD = """
import selectors, socket, sys
family, address, number, request = sys.argv[1:5]
where = (address.rpartition(":")[0], int(address.rpartition(":")[2])) if family == "tcp" else address
kind = socket.AF_INET if family == "tcp" else socket.AF_UNIX
waiting = selectors.DefaultSelector()
def call():
    sock = socket.socket(kind)
    sock.connect(where)
    sock.setblocking(False)
    waiting.register(sock, selectors.EVENT_WRITE)
for _ in range(int(number)):
    call()
said = False
while True:
    for key, _ in waiting.select(0.2):
        try:
            key.fileobj.send(request.encode().decode("unicode_escape").encode() * 100)
        except BlockingIOError:
            pass
        except OSError:
            waiting.unregister(key.fileobj)
            key.fileobj.close()
            call()
    if not said:
        said = True
        print("begun", flush=True)
"""


@contextlib.contextmanager
def common_place() -> Iterator[Path]:
    """Give a directory that everybody may look into; those of pytest are for their user alone."""
    with tempfile.TemporaryDirectory(prefix="shadowmesh-") as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


@contextlib.contextmanager
def flood(
    address: str, path: str = "/health", number: int = 64, *, wrapper: Sequence[str] = ()
) -> Iterator[None]:
    """Let another user pipeline requests over many connections, and never read an answer.

    Args:
        address: ``host:port``, or the path of a Unix socket.
        wrapper: such as ``ip netns exec NAME``.
    """
    family = "unix" if address.startswith("/") else "tcp"
    request = f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"
    program = [sys._base_executable, "-I", "-c", _FLOOD, family, address, str(number), request]
    with subprocess.Popen([*wrapper, *as_nobody(), *program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"begun\n"
            yield
        finally:
            process.kill()
