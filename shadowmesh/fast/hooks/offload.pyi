from collections.abc import Sequence
from typing import TypeAlias, TypedDict

Frame: TypeAlias = tuple[bytes, bytes]  # virtio header, frame

class Flow(TypedDict):
    l3: int
    l4: int
    header_bytes: int
    payload_bytes: int
    segment_bytes: int
    ipv6: int
    protocol: int

def sum_of(data: bytes, skip: int = 0) -> int: ...
def complete(vnet: bytes, frame: bytes) -> Frame | None: ...
def parse(vnet: bytes, frame: bytes) -> Flow | int: ...
def segment(
    vnet: bytes, frame: bytes, max_frame_bytes: int, finished: bool = False
) -> list[Frame] | int: ...
def join(frames: Sequence[Frame], join_udp: bool = True) -> list[tuple[bytes, bytes, int]]: ...
def time_segment(
    vnet: bytes, frame: bytes, max_frame_bytes: int, finished: bool, rounds: int
) -> tuple[int, int, int]: ...
def time_join(frames: Sequence[Frame], rounds: int) -> int: ...
