"""What crosses a cable, as tcpdump sees it."""

from __future__ import annotations

import signal
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Self

from shadowmesh.netlab import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadowmesh.netlab import Host, Net

PCAP_HEADER = struct.Struct("<IHHiIII")
PCAP_RECORD = struct.Struct("<IIII")


class Capture:
    """Every frame on one host's cable, seen from the switch, while the block runs."""

    def __init__(self, net: Net, host: Host, directory: Path) -> None:
        self.path = directory / f"{host.label}.pcap"
        self._net = net
        self._port = net.port(host)
        self._log = directory / f"{host.label}.tcpdump.log"

    def __enter__(self) -> Self:
        self._process = self._net.switch.popen(
            "tcpdump", "-i", self._port, "-s", "0", "-U", "-B", "16384", "-Z", "root",
            "-w", str(self.path), log=self._log,
        )  # fmt: skip
        try:
            wait_until(lambda: "listening on" in self._log.read_text(), 10, "tcpdump listens")
        except TimeoutError:
            self._process.kill()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)

    def frames(self) -> Iterator[bytes]:
        """Yield the frames written so far; a capture with dropped frames is no evidence."""
        if self._process.poll() is not None:
            assert "\n0 packets dropped by kernel" in self._log.read_text()
        data = self.path.read_bytes()
        position = PCAP_HEADER.size
        while position + PCAP_RECORD.size <= len(data):
            _, _, length, _ = PCAP_RECORD.unpack_from(data, position)
            position += PCAP_RECORD.size
            yield data[position : position + length]
            position += length

    def count(self, needle: bytes) -> int:
        return sum(needle in frame for frame in self.frames())

    def assert_absent(self, canary: bytes) -> None:
        """No frame shows the canary, and the capture did see traffic."""
        frames = list(self.frames())
        assert frames, f"{self.path}: nothing captured"
        assert not any(canary in frame for frame in frames), f"{canary!r} is on the wire"
