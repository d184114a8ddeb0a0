"""The targets, as data: what each measure must reach, and what would be splendid.

A figure is judged by its ratio to a reference of the same run wherever there is one, because
absolute figures drift from machine to machine. What differs by path has a target for "udp" and one
for "wss".
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

#: A must is met when the median of that many interleaved rounds meets it, on an otherwise idle
#: machine. Fewer tell whether a change was worth it, and nothing more.
ROUNDS = 5

#: TCP, one stream, against vxlan
STREAM = {
    f"udp {AEGIS}": at_least(0.55, 0.75),
    f"udp {CHACHA}": at_least(0.25, 0.40),
    f"wss {AEGIS}": at_least(0.35, 0.50),
    f"wss {CHACHA}": at_least(0.23, 0.32),
}
#: TCP, four streams, against one stream of the same lane
FOUR_STREAMS = at_least(1.0, 1.3)
#: TCP, one stream, on cables that are plain network cards, against veth so measured. The design
#: has one figure for WSS, which is that of its better cipher.
PLAIN_STREAM = {
    f"udp {AEGIS}": at_least(0.45, 0.60),
    f"udp {CHACHA}": at_least(0.28, 0.40),
    f"wss {AEGIS}": at_least(0.38, 0.50),
}
#: 64-byte frames a second at <= 1 % loss, against vxlan
SMALL_FRAMES = {"udp": at_least(1.0, 1.4), "wss": at_least(0.9, 1.2)}
#: frames of a full-sized device, delivered, against vxlan with such as it carries whole
FULL_FRAMES = {f"{path} {AEGIS}": at_least(0.8, 1.0) for path in ("udp", "wss")}
#: round trip, median, idle, one after the other, against vxlan
RTT_IDLE = {"udp": at_most(1.35, 1.2), "wss": at_most(3.0, 2.0)}
#: ... and 200 a second, between which the cores sleep
RTT_SPARSE = {"udp": at_most(2.2, 1.5), "wss": at_most(5.0, 3.0)}
#: round trip beside one TCP stream, p99, against vxlan ...
RTT_LOADED = {"udp": at_most(4.5, 1.5), "wss": at_most(7.5, 3.0)}
#: ... and in ms; both must hold
RTT_LOADED_MS = {"udp": at_most(3.0), "wss": at_most(5.0)}
#: round trip beside an upload on a line of 20 Mbit/s with a deep queue, median, ms
RTT_SLOW_MS = {"udp": at_most(30, 15), "wss": at_most(25, 15)}
#: microseconds that the hub stands still for a change of keys under full load
KEY_CHANGE_P99 = at_most(200, 50)
#: CPU seconds of both daemons for one GB
CPU_PER_GB = {f"udp {AEGIS}": at_most(1.2, 0.9), f"wss {AEGIS}": at_most(2.5, 1.8)}
#: of one daemon at the 10,000 frames a second of the first design
CPU_AT_10K_PERCENT = {"udp": at_most(11, 8), "wss": at_most(25, 15)}
#: frames of 1,400 bytes sealed per second on one core
SEAL = {CHACHA: at_least(700e3, 1.5e6), AEGIS: at_least(4.0e6, 5.2e6)}
#: ... and against the cipher with nothing around it
SEAL_BESIDE_CIPHER = Target(None, 0.90, at_least=True)
#: nanoseconds that a record takes until it may go to the device
ADMIT_NS = at_most(50)
#: what the first design reached, frames a second
SEED_FRAMES = 345_720
MEMORY_MIB = at_most(62, 50)
CPU_IDLE_PERCENT = at_most(0.3, 0.1)
START_S = {"udp": at_most(0.6, 0.35), "wss": at_most(0.6, 0.35)}
FALL_BACK_S = {"udp": at_most(1.0, 0.5)}
RESTART_S = {"wss": at_most(3.0, 1.5)}
#: frames lost while keys are changed under load
REKEY_LOST = {"udp": at_most(0, 0), "wss": at_most(0, 0)}
#: memory of a daemon for one more peer: with a session over a link of its own, and only listed, KiB
MEMBER_KIB = at_most(60, 40)
LISTED_KIB = at_most(25, 15)
#: gigabytes over each path: whether the hashes of the two ends differ, and how often keys changed
SOAK_DIFFERENT = at_most(0)
SOAK_REKEYS = at_least(1)
#: what 10^7 frames leave behind: nothing, but for the arenas that the allocator holds on to
HEAP_GROWTH_KIB = at_most(256, 0)
#: TCP of four peers together, one stream each, against one peer: both ends and all daemons share the
#: cores, so nobody knows what it must be
MANY_STREAMS = Target(None, 1.0, at_least=True)
#: round trip with 1,000 peers listed of whom one is there, against a list of one
IDLE_PEERS_RTT = at_most(1.1, 1.0)
#: round trip to one peer while another one's slow line is full, against the same without that
SLOW_PEER_RTT = at_most(1.1, 1.0)
#: CPU for one broadcast to 100 peers with sessions, us
BROADCAST_US = at_most(1000, 300)
#: nanoseconds of a lookup and of learning, for one frame
TABLE_NS = at_most(50, 20)
