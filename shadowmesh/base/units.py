"""Amounts and lists as people read them.

Owns: the forms of sizes, durations and lists of words. Does not know: who shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400


def size(number: float) -> str:
    """Return a number of bytes as ``512 B``, ``1.4 KiB`` and so on."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        # 1023.95 would be written as 1024.0
        if number < 1023.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """Return a duration with its two largest units; below zero (the clock was set) as ``0s``."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE}m"
    return f"{whole // _DAY}d {whole % _DAY // _HOUR}h"


def percent(share: float) -> str:
    """Return a share of 0.0 to 1.0 as ``38 %``."""
    return f"{share * 100:.0f} %"


def count(number: int, noun: str) -> str:
    """Return ``1 frame``, ``12,345 frames``, ``2 addresses``."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def listed(words: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``; empty for none."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
