"""The rows of the catalogue: their names, and what each is.

Owns: NAMES, which is the catalogue, and the form of a row. Does not know: how rows are run.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import rows as families

if TYPE_CHECKING:
    from collections.abc import Callable

    from .bench import Bench

#: every row of the catalogue; tests/test_faults.py sees to it that each is here, done and tested
NAMES: Final = (
    "peer crash",
    "clean stop",
    "both restart at once, both dial",
    "link flap",
    "address change",
    "black hole (half-open)",
    "TCP RST",
    "UDP blocked after punch",
    "NAT forgets or moves mapping",
    "TAP deleted",
    "TAP down",
    "namespace or /dev/net/tun gone",
    "UDP send errors",
    "slow reader",
    "CPU starvation",
    "loss, delay, reorder, duplicate",
    "replay",
    "truncated, extended, bit-flipped datagrams",
    "window edge",
    "rekey under load",
    "rekey impossible",
    "counter at limits",
    "clock jump",
    "wrong PSK, wrong pin, sample key, one side without",
    "corrupted config",
    "config reload with removed peer",
    "key file faults",
    "full disk at run time",
    "fd exhaustion",
    "memory limit",
    "API flood",
    "concurrent API",
    "huge or endless WebSocket message",
    "ping flood",
    "TLS oddities",
    "STUN spoof, silence, garbage, slow",
    "two NAT types at random",
    "peer floods L2",
    "duplicate identity",
    "proxy faults",
    "upgrade",
    "hostile virtio header",
    "TLS key updates",
    "silent connections",
    "path MTU black hole",
    "unread API answers",
    "tunnel inside itself",
    "dead addresses",
    "device changed by others",
    "cyclic reconnects",
    "a thousand starts",
    "forged records of an authenticated peer",
    "soak",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        name: as in NAMES.
        expected: what must hold, in a few words for the table.
        bound_s: it is ended after so many seconds; `long_bound_s` with --long.
        run: does it; raises AssertionError, NetlabError or TimeoutError when something does not
            hold.
        loads: it keeps the processor busy or measures it, so that no other row may run beside it.
        short: the tests of `make test` that hold a short case of it, as FILE::NAME below tests/.
        pieces: with --long it is run so many times, each with a seed of its own.
    """

    name: str
    expected: str
    bound_s: float
    long_bound_s: float
    run: Callable[[Bench], None]
    loads: bool
    short: tuple[str, ...]
    pieces: int


_ROWS: dict[str, Row] = {}


def row(
    name: str,
    expected: str,
    *,
    bound_s: float,
    short: tuple[str, ...],
    long_bound_s: float | None = None,
    loads: bool = False,
    pieces: int = 1,
) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Make a row of a function.

    Raises:
        ValueError: it is not in the catalogue, or there twice.
    """

    def add(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        if name not in NAMES or name in _ROWS:
            raise ValueError(f"{name}: not in the catalogue, or done twice")
        _ROWS[name] = Row(
            name, expected, bound_s, long_bound_s or bound_s, function, loads, short, pieces
        )
        return function

    return add


def rows() -> list[Row]:
    """Return the rows that are done, in the order of the catalogue."""
    for family in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{family.name}")
    return [_ROWS[name] for name in NAMES if name in _ROWS]
