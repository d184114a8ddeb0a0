"""What each further peer costs one daemon in memory: listed, with a session, after records, a burst.

    daemon under test --eth0-- swarm (perf/swarm.py): all its members in one process

Read is what no file stands behind (RssAnon). Some members connect first, so that what the first
ones make, which all share, is nobody's share.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shadowmesh.keys.identity import format_public_key, parse_public_key
from shadowmesh.keys.mac import stable_mac
from shadowmesh.netlab import Daemon, Host, Net, NetlabError

from .lab import PATHS, ROOT, cable
from .report import Failure, Row, compared, unread
from .soak import heap_bytes
from .swarm import frame, identity
from .targets import LISTED_KIB, MEMBER_KIB, Target

GROUP = "memory of one more peer"
#: that connect first
FIRST = 10
#: What is freed after a while of rest is freed by then: a link is looked at once in 16 s, and a
#: session on UDP once one of its probes has come after 10 s without, which is every 15 s.
SETTLE_S = 45.0
RECORDS, RECORD_BYTES = 1000, 80
BURST_BYTES, BURST_FRAME_BYTES = 10_000_000, 1400
#: between two frames to the same member; a device's queue takes a thousand
TURN_S = 0.001
REQUEST_S = 300.0


def measure(quick: bool) -> Iterator[Row]:
    count = 40 if quick else 200
    for path in PATHS:
        try:
            with tempfile.TemporaryDirectory(prefix="shadowmesh-perf-") as directory:
                yield from _one_path(Path(directory), path, count)
        except (NetlabError, OSError) as error:
            why = Failure(str(error).partition("\n")[0], broken=True)
            yield unread(GROUP, f"idle, {path}", "KiB", why, MEMBER_KIB)


def _one_path(directory: Path, path: str, count: int) -> Iterator[Row]:
    with Net() as net, contextlib.ExitStack() as stack:
        left, right = cable(net, "members")
        settings = {
            "daemon.log_level": "info",
            "nat.enabled": path == "udp",
            "nat.stun_server": "",
        }
        daemon = Daemon(left, directory / "daemon", settings)
        stack.callback(daemon.kill)
        alone = _listing(daemon, FIRST)
        listed = (_listing(daemon, FIRST + count) - alone) / count
        if path == PATHS[0]:
            yield _row("listed, no session", listed, LISTED_KIB)
        swarm = stack.enter_context(_Swarm(right, directory, daemon, path))
        swarm.ask("connect", 1, FIRST)
        few = _settled(daemon)
        swarm.ask("connect", FIRST + 1, FIRST + count)
        idle = (_settled(daemon) - few) / count
        yield _row(f"idle, {path}", listed + idle, MEMBER_KIB)
        _exchange(swarm, daemon, FIRST + count, RECORDS, RECORD_BYTES)
        after = (_settled(daemon) - few) / count
        yield _row(f"idle after {RECORDS} small records, {path}", listed + after, MEMBER_KIB)
        _exchange(swarm, daemon, FIRST + count, BURST_BYTES // BURST_FRAME_BYTES, BURST_FRAME_BYTES)
        after = (_settled(daemon) - few) / count
        name = f"idle after {BURST_BYTES // 10**6} MB each way, {path}"
        yield _row(name, listed + after, MEMBER_KIB)


def _row(name: str, size: float, target: Target) -> Row:
    return compared(GROUP, name, "KiB", [size / 1024], target=target)


def _listing(daemon: Daemon, count: int) -> int:
    """Start the daemon with so many peers that are not there; return what it needs."""
    if daemon.running:
        daemon.terminate()
    daemon.settings["peers"] = [
        {"name": f"m{n}", "public_key": format_public_key(identity(n).public_key)}
        for n in range(1, count + 1)
    ]
    daemon.start()
    return _settled(daemon)


def _settled(daemon: Daemon) -> int:
    time.sleep(SETTLE_S)
    return heap_bytes(daemon.pid)


def _exchange(swarm: _Swarm, daemon: Daemon, members: int, count: int, length: int) -> None:
    """Send so many frames of that length each way between the daemon and each member."""
    swarm.ask("send", count, length)
    source = stable_mac(parse_public_key(daemon.public_key))
    frames = [
        frame(source, stable_mac(identity(n).public_key), length) for n in range(1, members + 1)
    ]
    with daemon.host.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as raw, daemon.host.entered():
        raw.bind((daemon.tap, 0))
        for _ in range(count):
            due = time.monotonic() + TURN_S
            for one in frames:
                raw.send(one)
            time.sleep(max(0.0, due - time.monotonic()))


class _Swarm:
    """The process of the members."""

    def __init__(self, host: Host, directory: Path, daemon: Daemon, path: str) -> None:
        command = [sys.executable, "-m", "perf.swarm", str(directory)]
        command += [daemon.host.peer_endpoint, daemon.public_key, path]
        self._log = (directory / "swarm.log").open("w+b")
        with host.entered():
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )

    def __enter__(self) -> _Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, *words: object) -> None:
        """Have it do something; back when that is done. Raises NetlabError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self._process.stdin.flush()
        readable, _, _ = select.select([self._process.stdout], [], [], REQUEST_S)
        if not readable or self._process.stdout.readline() != b"done\n":
            self._log.seek(0)
            raise NetlabError(f"swarm: {words}: {self._log.read()[-2000:].decode()}")
