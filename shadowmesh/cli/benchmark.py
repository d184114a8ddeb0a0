"""How many frames a second one core of this machine seals and opens, inside the data plane.

Owns: the rounds in which each call is timed. Does not know: what the figures are compared with,
how they are shown.

For the WebSocket path a batch is one message of 64 frames into the ring, masked as a client's, and
back out of the parser; for UDP it is 64 datagrams, opened through the replay window. "alone" is
the cipher on the same bytes with nothing around it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shadowmesh._fastpath import CIPHER_NAMES, build_info
from shadowmesh.fast.bench import FRAMES_PER_BATCH, Bench

#: bytes of a frame: the smallest, a middling one, nearly a full one
SIZES: Final = (64, 512, 1400)
CALLS: Final = ("seal_wss", "seal_udp", "open_wss", "open_udp")
ALONE: Final = ("seal_alone", "open_alone")
#: of one reading: long against the clock, short against what else runs
ROUND_S: Final = 0.04

_WARM_UP_BATCHES: Final = 20


@dataclass(frozen=True, slots=True)
class Rates:
    """Readings of one cipher and size: frames per second by call, one for each round."""

    cipher: str
    frame_bytes: int
    rounds: dict[str, tuple[float, ...]]


def ciphers() -> tuple[str, ...]:
    """Return the ciphers that this build and processor have."""
    return tuple(name for name in CIPHER_NAMES if name != "aegis-256" or build_info()["aegis256"])


def read_rates(cipher: str, frame_bytes: int, rounds: int) -> Rates:
    """Time every call, all of them in each round, so that drift meets them alike."""
    bench = Bench(CIPHER_NAMES[cipher], True)
    ns = bench.seal_wss(frame_bytes, _WARM_UP_BATCHES) * FRAMES_PER_BATCH
    batches = max(1, int(ROUND_S * 1e9 / ns))
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for call in (*CALLS, *ALONE):
            found.setdefault(call, []).append(1e9 / getattr(bench, call)(frame_bytes, batches))
    return Rates(cipher, frame_bytes, {call: tuple(values) for call, values in found.items()})


def read_all(rounds: int, progress: Callable[[str], None]) -> Iterator[Rates]:
    """Time every cipher with every size.

    Args:
        progress: told what is about to be timed.
    """
    for cipher in ciphers():
        for size in SIZES:
            progress(f"{cipher}, {size} bytes")
            yield read_rates(cipher, size, rounds)


def machine() -> str:
    """Return what the figures are of, in one line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores, {model}, Linux {platform.release()}"
