"""Optimisations that a developer can switch off, to measure what each of them brings.

Owns: the words of the environment variable SHADOWMESH_WITHOUT. Does not know: who acts on them;
they travel from the daemon to the data plane as an argument.

They are no configuration: no operator gains by them, and what is sent and received is the same
with and without each of them. `python -m perf --only ablation` tells what they cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from shadowmesh.base.errors import ConfigError, Problem

VARIABLE: Final = "SHADOWMESH_WITHOUT"

#: word: what happens without it
MEANING: Final = {
    "tso": "the kernel cuts streams to frames before it hands them to us",
    "csum": "the kernel finishes every checksum as well, which takes tso along",
    "gso": "datagrams are sent one by one instead of in trains (UDP_SEGMENT)",
    "gro": "datagrams are received one by one instead of in trains (UDP_GRO)",
    "join": "frames from UDP are written to the device one by one, not as super-frames",
    "pack": "frames that are too large for a datagram are sent as two, and none shares one",
    "batch": "one frame or message for each read of the device or the UDP socket",
}


def read(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the words of SHADOWMESH_WITHOUT, which commas separate.

    Raises:
        ConfigError: there is one that means nothing.
    """
    words = [word.strip() for word in environ.get(VARIABLE, "").split(",")]
    found = frozenset(filter(None, words))
    unknown = sorted(found - MEANING.keys())
    if unknown:
        message = f"no such optimisation: {', '.join(unknown)}; known are {', '.join(MEANING)}"
        raise ConfigError([Problem(f"environment {VARIABLE}", None, None, message)])
    return found
