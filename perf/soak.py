"""Gigabytes with a checksum over each path while keys change, and what stays in the daemons' memory.

    sender, SHA-256 --TCP--> tunnel --> receiver, SHA-256      are they equal?
    small frames, one way, 10^7 of them                        has the heap grown?

Memory is read after a warm-up, so that what grows is what each further frame leaves behind.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shadowmesh.netlab import NetlabError

from .lab import Broken, Kind, Lab, Lane, generate
from .report import Failure, Row, compared, unread
from .resources import restart_with
from .targets import AEGIS, HEAP_GROWTH_KIB, SOAK_DIFFERENT, SOAK_REKEYS, Target
from .tunnel import SMALL_PAYLOAD

TUNNELS = (Kind("udp", AEGIS), Kind("wss", AEGIS))
ROTATION_INTERVAL = "10s"
BLOCK_BYTES = 1 << 20
NUMBER_BYTES = 8
#: Well below what either path carries, so that frames are lost to nobody's queue.
FRAMES_PER_SECOND = 50_000
WARM_UP = 0.05  # of the amount
SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Amount:
    """What goes over each path."""

    bytes: float
    frames: float


def measure(lab: Lab, amount: Amount) -> Iterator[Row]:
    for lane in lab.lanes.values():
        group = f"soak, {lane.name}"
        if lane.failure is not None:
            yield unread(group, "bytes", "", lane.failure, SOAK_DIFFERENT)
            continue
        try:
            restart_with(lane, {"encryption.rotation_interval": ROTATION_INTERVAL})
            yield from _stream(lab, lane, group, amount.bytes)
            yield from _frames(lab, lane, group, amount.frames)
        except (Broken, NetlabError, OSError) as error:
            why = Failure(str(error).partition("\n")[0], broken=True)
            yield unread(group, "all of it", "", why, SOAK_DIFFERENT)


def _stream(lab: Lab, lane: Lane, group: str, total: float) -> Iterator[Row]:
    send(lane, total * WARM_UP)
    before = [heap_bytes(daemon.pid) for daemon in lane.daemons]
    began = time.monotonic()
    sent, received = send(lane, total)
    span = time.monotonic() - began
    lab.settle(lane)
    rekeys = min(daemon.status()["session"]["rekeys"] for daemon in lane.daemons)
    different = float(sent != received)
    name = f"{total / 1e9:g} GB: SHA-256 of what was sent and what arrived differ"
    yield compared(group, name, "", [different], target=SOAK_DIFFERENT)
    yield compared(group, "  Gbit/s, hashed on both ends", "", [total * 8 / span / 1e9])
    yield compared(group, "  changes of keys meanwhile", "", [rekeys], target=SOAK_REKEYS)
    yield _growth(lane, group, before, "  heap growth meanwhile", None)


def _frames(lab: Lab, lane: Lane, group: str, total: float) -> Iterator[Row]:
    def run(frames: float) -> tuple[int, int]:
        words = max(frames / FRAMES_PER_SECOND, 0.5), FRAMES_PER_SECOND, SMALL_PAYLOAD
        sent, received, _ = generate("frames", *words, sockets=lane.datagrams())
        return int(sent), int(received)

    run(total * WARM_UP)
    before = [heap_bytes(daemon.pid) for daemon in lane.daemons]
    sent, received = run(total)
    lab.settle(lane)
    yield compared(group, f"{sent / 1e6:.3g} million frames: lost", "", [sent - received])
    yield _growth(lane, group, before, "  heap growth meanwhile", HEAP_GROWTH_KIB)


def _growth(lane: Lane, group: str, before: list[int], name: str, target: Target | None) -> Row:
    now = [heap_bytes(daemon.pid) for daemon in lane.daemons]
    most = max(after - start for after, start in zip(now, before, strict=True))
    return compared(group, name, "KiB", [max(most, 0) / 1024], target=target)


def heap_bytes(pid: int) -> int:
    """Memory of a process that no file stands behind, and that is in use."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise NetlabError(f"process {pid}: no RssAnon in its status")


def send(lane: Lane, total: float) -> tuple[str, str]:
    """Send random blocks of `total` bytes in all, each with its number; return both hashes.

    Raises:
        OSError: the stream broke, or stood still for SILENCE_S.
    """
    out, into = lane.streams(1)
    with out, into:
        for end in (out, into):
            end.settimeout(SILENCE_S)
        blocks = max(round(total / BLOCK_BYTES), 1)
        hashes: list[str] = []
        failures: list[OSError] = []

        def receive() -> None:
            digest, buffer, left = hashlib.sha256(), bytearray(BLOCK_BYTES), blocks * BLOCK_BYTES
            try:
                while left and (got := into.recv_into(buffer)):
                    digest.update(memoryview(buffer)[:got])
                    left -= got
            except OSError as error:
                failures.append(error)
            hashes.append(digest.hexdigest())

        receiver = threading.Thread(target=receive, name="receiver", daemon=True)
        receiver.start()
        digest, block = hashlib.sha256(), bytearray(os.urandom(BLOCK_BYTES))
        for number in range(blocks):
            block[:NUMBER_BYTES] = number.to_bytes(NUMBER_BYTES)
            digest.update(block)
            out.sendall(block)
        receiver.join(SILENCE_S)
        if failures:
            raise failures[0]
        if not hashes:
            raise TimeoutError(f"{lane.name}: the last bytes did not come in {SILENCE_S:g} s")
        return digest.hexdigest(), hashes[0]
