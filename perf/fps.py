"""Frames sealed and opened per second on one core, inside the data plane.

The readings are those of `shadowmesh bench`; here they are judged. Both paths beside the cipher
on the same bytes with nothing around it, in the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterator

from shadowmesh.cli.benchmark import CALLS, SIZES, ciphers, read_rates

from .report import Failure, Row, compared, unread
from .targets import AEGIS, CHACHA, SEAL, SEAL_BESIDE_CIPHER, SEED_FRAMES

JUDGED_SIZE = 1400


def measure(quick: bool) -> Iterator[Row]:
    rounds = 5 if quick else 15
    for cipher in (CHACHA, AEGIS):
        group = f"{cipher}, frames per second on one core"
        if cipher not in ciphers():
            why = Failure("this build or processor has no AEGIS-256")
            yield unread(group, f"seal, {JUDGED_SIZE} bytes", "/s", why, SEAL[cipher])
            continue
        for size in SIZES:
            yield from _size(group, cipher, size, rounds)


def _size(group: str, cipher: str, size: int, rounds: int) -> Iterator[Row]:
    read = read_rates(cipher, size, rounds).rounds
    for call in CALLS:
        verb, _, path = call.partition("_")
        name = f"{verb} for {path.upper()}, {size} bytes"
        alone = read[f"{verb}_alone"]
        if size == JUDGED_SIZE and verb == "seal":
            yield compared(group, name, "/s", read[call], target=SEAL[cipher])
            yield compared(group, name, "/s", read[call], "cipher alone", alone, SEAL_BESIDE_CIPHER)
            yield compared(group, name, "/s", read[call], "first design", [SEED_FRAMES] * rounds)
        else:
            yield compared(group, name, "/s", read[call], "cipher alone", alone)
