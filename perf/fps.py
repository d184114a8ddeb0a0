"""Frames sealed and opened per second on one core, inside the data plane.

The readings are those of `shadowmesh bench`; here they are judged. Both paths beside the cipher
on the same bytes with nothing around it, in the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterator

from shadowmesh._fastpath import CIPHER_NAMES
from shadowmesh.cli.benchmark import CALLS, SIZES, ciphers, read_rates
from shadowmesh.fast.bench import Bench

from .report import Failure, Row, compared, unread
from .targets import ADMIT_NS, AEGIS, CHACHA, SEAL, SEAL_BESIDE_CIPHER, SEED_FRAMES

JUDGED_SIZE = 1400
#: of a stream, with timestamps: what is in front of its bytes, and a virtio header for each kind
_IPV4 = "02000000000202000000000108004500%04x0001400040060000 0a000001 0a000002"
_IPV6 = "020000000002020000000001 86dd6000 0000%04x0640" + "fd" + 15 * "00" + "fd" + 15 * "01"
_TCP = "13891389 00000001 00000001 8010ffff 00000000 0101080a 00000001 00000001"
ADMIT_BATCHES = 4000


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
    for name, vnet, frame in _records():
        bench = Bench(CIPHER_NAMES[CHACHA], True)
        readings = [bench.admit(vnet, frame, ADMIT_BATCHES) for _ in range(rounds)]
        yield compared("records from the peer, judged alone", name, "ns", readings, target=ADMIT_NS)


def _records() -> Iterator[tuple[str, bytes, bytes]]:
    """What a peer sends: a name, a virtio header, a frame."""
    for version, layout, ip_bytes, counted, kind in (
        ("IPv4", _IPV4, 20, 52, 1),
        ("IPv6", _IPV6, 40, 32, 4),
    ):
        for name, payload, segment_bytes in (("frame", 1448, 0), ("super-frame", 4 * 1448, 1448)):
            head = bytes.fromhex((layout % (counted + payload) + _TCP).replace(" ", ""))
            words = (len(head), segment_bytes, 14 + ip_bytes, 16)
            vnet = bytes((1, kind if segment_bytes else 0))
            vnet += b"".join(word.to_bytes(2, "little") for word in words)
            yield f"{name} of TCP over {version}", vnet, head + bytes(payload)


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
