"""Slow, obvious twin of the backlog: FlowQueue-CoDel as RFC 8290 and RFC 8289 write it down.

The oracle for the C code. Frames are whatever has a length; times are nanoseconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import sqrt

QUANTUM = 1514
TARGET_NS = 20_000_000
INTERVAL_NS = 200_000_000
TYPE_BYTES = 1  # the inner type counts as well


@dataclass
class Flow:
    """RFC 8290 section 4.1, with the state of RFC 8289 section 5.3."""

    frames: deque[tuple[bytes, int]] = field(default_factory=deque)
    deficit: int = 0
    first_above_time: int = 0
    drop_next: int = 0
    count: int = 0
    last_count: int = 0
    dropping: bool = False

    def ok_to_drop(self, now: int) -> bool:
        """RFC 8289 section 5.6; "less than a packet left" is: nothing behind this one."""
        if len(self.frames) < 2 or now - self.frames[0][1] < TARGET_NS:
            self.first_above_time = 0
            return False
        if self.first_above_time == 0:
            self.first_above_time = now + INTERVAL_NS
            return False
        return now >= self.first_above_time

    def dequeue(self, now: int) -> int:
        """RFC 8289 section 5.5: how many are dropped before the next may leave."""
        dropped = 0
        drop = self.ok_to_drop(now)
        if self.dropping:
            if not drop:
                self.dropping = False
            while self.dropping and now >= self.drop_next:
                self.frames.popleft()
                dropped += 1
                self.count += 1
                if self.ok_to_drop(now):
                    self.drop_next = control_law(self.drop_next, self.count)
                else:
                    self.dropping = False
        elif drop:
            self.frames.popleft()
            dropped += 1
            self.ok_to_drop(now)
            self.dropping = True
            delta = self.count - self.last_count
            self.count = 1
            if delta > 1 and now - self.drop_next < 16 * INTERVAL_NS:
                self.count = delta
            self.drop_next = control_law(now, self.count)
            self.last_count = self.count
        return dropped


def control_law(time: int, count: int) -> int:
    return time + int(INTERVAL_NS / sqrt(count))


class FlowQueues:
    """All flows by number, and the two lists of RFC 8290 section 4.2."""

    def __init__(self) -> None:
        self.flows: dict[int, Flow] = {}
        self.new: deque[int] = deque()
        self.old: deque[int] = deque()
        self.arrivals: deque[tuple[bytes, int]] = deque()

    @property
    def waiting(self) -> tuple[int, int]:
        lengths = [
            len(frame) + TYPE_BYTES for flow in self.flows.values() for frame, _ in flow.frames
        ]
        return len(lengths), sum(lengths)

    def park(self, number: int, frame: bytes, now: int) -> None:
        flow = self.flows.setdefault(number, Flow())
        flow.frames.append((frame, now))
        self.arrivals.append((frame, number))
        if number not in self.new and number not in self.old:
            flow.deficit = QUANTUM
            self.new.append(number)

    def next(self, now: int, *, dropping: bool) -> tuple[bytes | None, int]:
        dropped = 0
        while self.new or self.old:
            which = self.new or self.old
            number = which[0]
            flow = self.flows[number]
            if flow.deficit <= 0:
                flow.deficit += QUANTUM
                which.popleft()
                self.old.append(number)
                continue
            if dropping:
                dropped += flow.dequeue(now)
            if flow.frames:
                return flow.frames[0][0], dropped
            was_new = which is self.new
            which.popleft()
            if was_new and self.old:
                self.old.append(number)
        return None, dropped

    def take(self) -> None:
        number = (self.new or self.old)[0]
        flow = self.flows[number]
        frame, _ = flow.frames.popleft()
        flow.deficit -= len(frame) + TYPE_BYTES

    def shed(self) -> bytes | None:
        """Drop the frame that came first of those that still wait."""
        while self.arrivals:
            frame, number = self.arrivals.popleft()
            frames = self.flows[number].frames
            if frames and frames[0][0] is frame:
                frames.popleft()
                return frame
        return None
