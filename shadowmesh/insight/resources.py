"""What the process uses of the machine: processor time, memory, threads, descriptors.

Owns: reading it. Does not know: how often, who asks, how it looks as JSON (`status.Resources`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadowmesh.insight.status import Resources

if TYPE_CHECKING:
    import psutil


def read_resources(process: psutil.Process) -> Resources:
    """Return what a process uses now.

    Args:
        process: kept by the caller between readings: `cpu_percent` is over the time since the
            reading before on the same object, 0.0 at the first.
    """
    with process.oneshot():
        times = process.cpu_times()
        return Resources(
            cpu_percent=process.cpu_percent(None),
            cpu_seconds=times.user + times.system,
            rss_bytes=process.memory_info().rss,
            threads=process.num_threads(),
            open_fds=process.num_fds(),
        )
