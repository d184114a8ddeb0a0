"""The targets, as data: what each measure must reach, and what would be splendid.

A figure is judged by its ratio to a reference of
the same run wherever there is one, because absolute figures drift from machine to machine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for a measure: of its ratio to a reference when there is one, else of its value.

    `at_least` tells which side is good. Without `must` nothing fails.
    """

    must: float | None
    moonshot: float | None
    at_least: bool

    def met(self, figure: float) -> bool:
        return self.must is None or self._reaches(figure, self.must)

    def splendid(self, figure: float) -> bool:
        return self.moonshot is not None and self._reaches(figure, self.moonshot)

    def _reaches(self, figure: float, limit: float) -> bool:
        return figure >= limit if self.at_least else figure <= limit


def at_least(must: float, moonshot: float | None = None) -> Target:
    return Target(must, moonshot, at_least=True)


def at_most(must: float, moonshot: float | None = None) -> Target:
    return Target(must, moonshot, at_least=False)


CHACHA, AEGIS = "chacha20-poly1305", "aegis-256"

#: TCP, one stream, against vxlan
STREAM = {
    f"udp {AEGIS}": at_least(0.55, 0.75),
    f"udp {CHACHA}": at_least(0.25, 0.35),
    f"wss {AEGIS}": at_least(0.35, 0.50),
    f"wss {CHACHA}": at_least(0.23, 0.30),
}
#: TCP, four streams, against one stream of the same lane. "Not below" is meant; two medians of the
#: same thing differ by that much.
FOUR_STREAMS = at_least(0.97, 1.3)
#: TCP, one stream, tso, gso and gro off on the cable, against veth so measured
PLAIN_STREAM = {
    f"udp {AEGIS}": at_least(0.32, 0.45),
    f"udp {CHACHA}": at_least(0.18, 0.22),
    f"wss {AEGIS}": at_least(0.36, 0.45),
}
#: 64-byte frames a second at <= 1 % loss, against vxlan
SMALL_FRAMES = at_least(1.0, 1.4)
#: frames of a full-sized device, delivered, against vxlan with such as it carries whole
FULL_FRAMES = {
    f"{path} {cipher}": at_least(0.8, 1.0) for path, cipher in (("udp", AEGIS), ("wss", AEGIS))
}
#: round trip, median, idle, against vxlan
RTT_IDLE = {"udp": at_most(1.5, 1.2), "wss": at_most(3.0, 2.0)}
#: round trip beside one TCP stream, p99, ms
RTT_LOADED_MS = at_most(3.0, 1.0)
#: CPU seconds of both daemons for one GB
CPU_PER_GB = {f"udp {AEGIS}": at_most(1.6, 1.0), f"wss {AEGIS}": at_most(3.0, 2.0)}
#: frames of 1,400 bytes sealed per second on one core
SEAL = {CHACHA: at_least(500e3), AEGIS: at_least(2.5e6)}
#: ... and against the cipher with nothing around it
SEAL_BESIDE_CIPHER = Target(None, 0.90, at_least=True)
#: nanoseconds that a record takes until it may go to the device
ADMIT_NS = at_most(50)
#: what the first design reached, frames a second
SEED_FRAMES = 345_720
MEMORY_MIB = at_most(70, 55)
CPU_IDLE_PERCENT = at_most(0.5, 0.2)
#: at the 10,000 frames a second of the first design
CPU_AT_10K_PERCENT = at_most(30)
START_S = at_most(1.0, 0.6)
FALL_BACK_S = at_most(2.0, 1.0)
RESTART_S = at_most(5.0, 2.0)
#: frames lost while keys are changed under load
REKEY_LOST = {"wss": at_most(0, 0), "udp": Target(None, 0, at_least=False)}
#: gigabytes over each path: whether the hashes of the two ends differ, and how often keys changed
SOAK_DIFFERENT = at_most(0)
SOAK_REKEYS = at_least(1)
#: what 10^7 frames leave behind: nothing, but for the arenas that the allocator holds on to
HEAP_GROWTH_KIB = at_most(256, 0)
#: microseconds that the hub stands still for a change of keys under full load
KEY_CHANGE_P99 = at_most(200, 50)
