"""The configuration: flags, environment, file and defaults into frozen dataclasses.

Owns: every key, its default, its range and its documentation; all errors come at once.
Does not know: sockets, devices, what the values are used for.

::

    flags --section.key -----------------------------+
    environment SHADOWMESH_SECTION_KEY --------------+-> load -> Config (model)
    file -> yamlfile (lines, form) -> raw values ----+    |
      peers: of it -> peerlist (one entry each) -----+    |
    schema (keys, defaults) -> values (one parser per kind of value)
                                                report: redacted, diff
    a network ----------------> joined: its addresses and members over that

Source: interface.md, "Configuration".
"""

from __future__ import annotations

from shadowmesh.config.joined import check_beside_network, joined
from shadowmesh.config.loader import load, why_not_dialled
from shadowmesh.config.model import (
    Addresses,
    Config,
    HostPort,
    LoadedConfig,
    NatSection,
    NetworkSection,
    PeerEntry,
)
from shadowmesh.config.report import as_json, diff, in_force, redacted, reloaded
from shadowmesh.config.schema import KEYS

__all__ = [
    "Addresses",
    "Config",
    "HostPort",
    "LoadedConfig",
    "NatSection",
    "NetworkSection",
    "PeerEntry",
    "as_json",
    "check_beside_network",
    "diff",
    "flag_names",
    "in_force",
    "joined",
    "load",
    "redacted",
    "reloaded",
    "values",
    "why_not_dialled",
]


def flag_names() -> tuple[str, ...]:
    """Return the name of every key; each is a flag `--name VALUE` of the daemon.

    Secret keys are among them so that `load` can refuse them with an explanation.
    """
    return tuple(KEYS)
