"""The switch written down plainly: the slow twin of `shadowmesh/fast/switch.pxd`, several ports.

What a frame's addresses and tags say. Who may flood how much is a matter of time: the twin has no
clock for that, and says when a frame must pass and when it may.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.twins.fdb import Fdb

TAGS = (0x8100, 0x88A8)
MAX_TAGS = 2
MTU_OVERHEAD = 22
FLOOD_FRAMES, FLOOD_BYTES = 1000, 1 << 20
KEEP, FLOOD, FLOOD_LIMIT = "keep", "flood", "flood_limit"
#: beside the verdicts, of a frame of the host's: the number of a port
Verdict = str | int


def vlan_of(frame: bytes) -> int | None:
    """The VLAN of the outer tag, 0 without one; None: refused. Source: IEEE 802.1Q-2018, 9.6."""
    tags = []
    at = 12
    while int.from_bytes(frame[at : at + 2]) in TAGS:
        tags.append(int.from_bytes(frame[at + 2 : at + 4]) & 0xFFF)
        at += 4
        if len(frame) < at + 2:
            return None
    if len(tags) > MAX_TAGS or tags[:1] == [0xFFF]:
        return None
    return tags[0] if tags else 0


def is_group(mac: bytes) -> bool:
    return bool(mac[0] & 1)


def is_reserved(mac: bytes) -> bool:
    return mac[:5] == b"\x01\x80\xc2\0\0" and mac[5] < 16


@dataclass
class Switch:
    """`floods`: frames and bytes that each side has flooded; None is this host's."""

    fdb: Fdb = field(default_factory=Fdb)
    mtu_bytes: int = 1500
    floods: dict[int | None, tuple[int, int]] = field(default_factory=dict)
    #: of each side, the address that it used last: it is not looked up again within a second
    last: dict[int | None, tuple[bytes, int]] = field(default_factory=dict)

    def inward(self, port: int, frame: bytes, now: int) -> set[Verdict]:
        """What may become of a frame that a peer has sent."""
        if len(frame) < 14:
            return {"runt"}
        if len(frame) > self.mtu_bytes + MTU_OVERHEAD:
            return {"too_long"}
        if is_group(frame[6:]):
            return {"multicast_source"}
        vlan = vlan_of(frame)
        if vlan is None:
            return {"bad_vlan"}
        refused = self._learn(port, (frame[6:12], vlan), now)
        if not is_group(frame):
            return refused or {KEEP}
        if KEEP in refused:
            refused = refused - {KEEP}
        elif refused:
            return refused
        if is_reserved(frame):
            return refused | {"reserved_address"}
        return refused | ({KEEP} if self._may_flood(port, frame) else {KEEP, FLOOD_LIMIT})

    def outward(self, frame: bytes, now: int) -> set[Verdict]:
        """What may become of a frame of this host's: a port's number where it goes to that alone."""
        if len(frame) < 14:
            return {"runt"}
        if is_group(frame[6:]):
            return {"multicast_source"}
        vlan = vlan_of(frame)
        if vlan is None:
            return {"bad_vlan"}
        if is_reserved(frame):
            return {"reserved_address"}
        refused = self._learn(None, (frame[6:12], vlan), now)
        if refused:
            return refused
        if not is_group(frame):
            known, port = self.fdb.lookup(frame[:6], vlan, now)
            if known:
                return {"split_horizon" if port is None else port}
        return {FLOOD} if self._may_flood(None, frame) else {FLOOD, FLOOD_LIMIT}

    def flooded(self, side: int | None, frame: bytes) -> None:
        """A frame of that side's was flooded."""
        frames, total = self.floods.get(side, (0, 0))
        self.floods[side] = frames + 1, total + len(frame)

    def _learn(self, side: int | None, key: tuple[bytes, int], now: int) -> set[Verdict]:
        """The reasons for which it may be refused, with KEEP where it need not be; {}: it is not."""
        verdict = self.fdb.learn(*key, side, now)
        again = self.last.get(side) == key
        if verdict == KEEP:
            self.last[side] = key
            return set()
        if not again:
            self.last.pop(side, None)
        return {verdict, KEEP} if again else {verdict}

    def _may_flood(self, side: int | None, frame: bytes) -> bool:
        """Whether it must pass, however little time has gone by."""
        frames, total = self.floods.get(side, (0, 0))
        return frames < FLOOD_FRAMES and total + len(frame) <= FLOOD_BYTES
