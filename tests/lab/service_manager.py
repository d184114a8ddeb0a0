"""What systemd does for a service with a descriptor store, as far as the daemon can see it.

Owns: the notification socket, the stored descriptors, and handing them to the next start. Run as a
program it is the last thing that systemd does in the child: descriptors from 3 on, LISTEN_*, exec.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Self

FIRST_FD = 3
#: where descriptors wait until their places are free
OUT_OF_THE_WAY = 100


class ServiceManager:
    """Listens while the block runs; at its end the service has stopped for good.

    `wrapper` goes in front of the command of the daemon.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self.stored: dict[str, int] = {}
        self.words: list[str] = []

    @property
    def wrapper(self) -> tuple[str, ...]:
        handover, notify = self._directory / "handover", self._directory / "notify"
        return (sys.executable, str(Path(__file__)), str(handover), str(notify))

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        for name, kind, serve in (
            ("notify", socket.SOCK_DGRAM, self._listen),
            ("handover", socket.SOCK_STREAM, self._hand_over),
        ):
            sock = self._stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(str(self._directory / name))
            thread = threading.Thread(target=serve, args=(sock,))
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(self._wake, name, kind)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self.empty()

    def empty(self) -> None:
        """Close what is stored, as after a full stop."""
        with self._lock:
            while self.stored:
                os.close(self.stored.popitem()[1])

    def _wake(self, name: str, kind: socket.SocketKind) -> None:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.connect(str(self._directory / name))
            sock.send(b"end")

    def _listen(self, sock: socket.socket) -> None:
        """Take messages until the one of _wake()."""
        while True:
            data, fds, _, _ = socket.recv_fds(sock, 4096, 8)
            words = data.decode().split("\n")
            if words == ["end"]:
                return
            name = next((w.removeprefix("FDNAME=") for w in words if w.startswith("FDNAME=")), "")
            with self._lock:
                self.words.extend(words)
                if "FDSTORE=1" in words:
                    [fd] = fds
                    assert name not in self.stored, f"{name} is stored twice"
                    self.stored[name] = fd
                elif "FDSTOREREMOVE=1" in words:
                    os.close(self.stored.pop(name))
                else:  # the end of a barrier
                    for fd in fds:
                        os.close(fd)

    def _hand_over(self, sock: socket.socket) -> None:
        """Give every child what is stored, until _wake() comes."""
        sock.listen()
        while True:
            connection, _ = sock.accept()
            with connection, self._lock:
                if connection.recv(3) == b"end":
                    return
                names = json.dumps(list(self.stored)).encode()
                socket.send_fds(connection, [names], list(self.stored.values()))


def main(handover: str, notify: str, *command: str) -> None:
    """Become the command, with the descriptors of the last run."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(handover)
        sock.send(b"new")
        names, received, _, _ = socket.recv_fds(sock, 4096, 8)
    waiting = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, OUT_OF_THE_WAY) for fd in received]
    for fd in received:
        os.close(fd)
    for place, fd in enumerate(waiting, FIRST_FD):
        os.dup2(fd, place)
    given = {
        "NOTIFY_SOCKET": notify,
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(waiting)),
        "LISTEN_FDNAMES": ":".join(json.loads(names)),
    }
    os.execvpe(command[0], command, {**os.environ, **given})


if __name__ == "__main__":
    main(*sys.argv[1:])
