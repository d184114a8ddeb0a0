"""Frames sealed and opened per second on one core, inside the data plane.

Path WSS: one WebSocket message of 64 frames into the ring, masked as a client's; back out of the
parser. Path UDP: 64 datagrams, opened through the replay window. Both beside libsodium on the same
bytes with nothing around it, in the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterator

from shadowmesh import _fasthooks
from shadowmesh._fastpath import CIPHER_NAMES, build_info

from .report import Failure, Row, compared, unread
from .targets import AEGIS, CHACHA, SEAL, SEAL_BESIDE_LIBSODIUM, SEED_FRAMES

SIZES = (64, 512, 1400)
JUDGED_SIZE = 1400
BATCH_FRAMES = _fasthooks.SIZES["BATCH_FRAMES"]
ROUND_S = 0.04
CALLS = ("seal_wss", "seal_udp", "open_wss", "open_udp")


def measure(quick: bool) -> Iterator[Row]:
    rounds = 5 if quick else 15
    for cipher in (CHACHA, AEGIS):
        group = f"{cipher}, frames per second on one core"
        if cipher == AEGIS and not build_info()["aegis256"]:
            why = Failure("this build or processor has no AEGIS-256")
            yield unread(group, f"seal, {JUDGED_SIZE} bytes", "/s", why, SEAL[cipher])
            continue
        for size in SIZES:
            yield from _size(group, cipher, size, rounds)


def _size(group: str, cipher: str, size: int, rounds: int) -> Iterator[Row]:
    bench = _fasthooks.Bench(CIPHER_NAMES[cipher], True)
    batches = _batches(bench, size)
    read: dict[str, list[float]] = {}
    for _ in range(rounds):
        for call in (*CALLS, "seal_alone", "open_alone"):
            ns = getattr(bench, call)(size, batches)
            read.setdefault(call, []).append(1e9 / ns)
    for call in CALLS:
        verb, _, path = call.partition("_")
        name = f"{verb} for {path.upper()}, {size} bytes"
        alone = read[f"{verb}_alone"]
        if size == JUDGED_SIZE and verb == "seal":
            yield compared(group, name, "/s", read[call], target=SEAL[cipher])
            yield compared(group, name, "/s", read[call], "libsodium", alone, SEAL_BESIDE_LIBSODIUM)
            yield compared(group, name, "/s", read[call], "first design", [SEED_FRAMES] * rounds)
        else:
            yield compared(group, name, "/s", read[call], "libsodium", alone)


def _batches(bench: _fasthooks.Bench, size: int) -> int:
    """How many batches take ROUND_S; also warms up."""
    ns = bench.seal_wss(size, 20) * BATCH_FRAMES
    return max(1, int(ROUND_S * 1e9 / ns))
