"""Looking at configurations: printing one without secrets, comparing two.

Owns: the text of `--check`, its form as JSON, and which changes a reload can apply.
Does not know: how a configuration is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

from shadowmesh.base.errors import one_line
from shadowmesh.config.model import (
    Addresses,
    Config,
    HostPort,
    LoadedConfig,
    PeerEntry,
    Secret,
)
from shadowmesh.config.schema import KEYS, PEER_KEYS, PEERS, SECTIONS, Key
from shadowmesh.config.values import format_duration
from shadowmesh.keys import identity

#: changed peers that a reload names; of more it says that there are some
_MOST_NAMED = 16


def value_of(config: Config, key: Key) -> object:
    """Return the value that a key has in a configuration."""
    return getattr(getattr(config, key.section), key.attribute)


#: what is written in quotes as it is
_TEXTS = (
    str, Path, HostPort, IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, Secret,
)  # fmt: skip


def render(value: object) -> str:
    """Return a value as the YAML that gives it, a secret as `"***"`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return format_duration(value)
    if isinstance(value, Addresses) and len(value) < 2:
        return _quoted(str(value))  # as most write it, and as it was before it could be a list
    if isinstance(value, tuple):
        return "[" + ", ".join(render(item) for item in value) + "]"
    if value is None:
        return '""'
    if isinstance(value, bytes):
        return _quoted(identity.format_public_key(value))
    if isinstance(value, _TEXTS):
        return _quoted(str(value))
    raise TypeError(f"no rule to print a {type(value).__name__}")


def _quoted(text: str) -> str:
    # a JSON string of printable characters is a YAML string
    return json.dumps(text, ensure_ascii=False)


def redacted(loaded: LoadedConfig) -> str:
    """Return the configuration as YAML, each value with its source, for `--check`.

    The pre-shared key is `"***"` or, when unset, `""`; nothing else is secret. A list of peers
    stands in the place of the one of `peer:`.
    """
    lines = [one_line(f"# file: {loaded.path or 'none'}")]
    for section in SECTIONS:
        if section == "peer" and loaded.config.listed:
            lines += _peer_lines(loaded)
            continue
        lines.append(f"{section}:")
        for key in KEYS.values():
            if key.section == section:
                text = f"  {key.attribute}: {render(value_of(loaded.config, key))}"
                lines.append(f"{text}  # {one_line(loaded.sources[key.name])}")
    return "\n".join(lines) + "\n"


def _peer_lines(loaded: LoadedConfig) -> Iterator[str]:
    """Give the list of peers as YAML, each with its source."""
    peers = loaded.config.peers
    yield f"{PEERS}:{'' if peers else ' []'}  # {one_line(loaded.sources[PEERS])}"
    for entry in peers:
        source = one_line(loaded.sources[f"{PEERS}.{entry.name}"])
        for attribute in PEER_KEYS:
            head, tail = ("- ", f"  # {source}") if attribute == "name" else ("  ", "")
            yield f"  {head}{attribute}: {_render_of(entry, attribute)}{tail}"


def _render_of(entry: PeerEntry, attribute: str) -> str:
    if attribute == "allowed_macs" and not isinstance(entry.allowed_macs, str):
        return render(tuple(mac.hex(":") for mac in entry.allowed_macs))
    return render(getattr(entry, attribute))


def as_json(loaded: LoadedConfig) -> dict[str, Any]:
    """Return what `redacted` says as JSON has it: the file, and each key's value and source.

    A duration stays text, such as "5s". `peers` is null unless the file has a list of them.
    """
    values = {
        key.name: {
            "value": _plain(render(value_of(loaded.config, key))),
            "source": loaded.sources[key.name],
        }
        for key in KEYS.values()
    }
    peers = [
        {
            **{name: _plain(_render_of(entry, name)) for name in PEER_KEYS},
            "source": loaded.sources[f"{PEERS}.{entry.name}"],
        }
        for entry in loaded.config.peer_list or ()
    ]
    return {
        "file": None if loaded.path is None else str(loaded.path),
        "values": values,
        "peers": peers if loaded.config.listed else None,
    }


def _plain(rendered: str) -> Any:
    try:
        return json.loads(rendered)
    except ValueError:
        return rendered


def diff(old: Config, new: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys whose value differs: those a reload applies, those that need a restart.

    A peer of the list that is new, gone or another is `peers.NAME`; `peers` when they are many.
    """
    changed = [key for key in KEYS.values() if value_of(old, key) != value_of(new, key)]
    return (
        (*(key.name for key in changed if key.reload), *_changed_peers(old, new)),
        tuple(key.name for key in changed if not key.reload),
    )


def _changed_peers(old: Config, new: Config) -> tuple[str, ...]:
    before = {entry.name: entry for entry in old.peer_list or ()}
    after = {entry.name: entry for entry in new.peer_list or ()}
    names = [name for name in {**after, **before} if before.get(name) != after.get(name)]
    if len(names) > _MOST_NAMED or (not names and old.listed != new.listed):
        return (PEERS,)
    return tuple(f"{PEERS}.{name}" for name in names)


def reloaded(old: Config, new: Config) -> Config:
    """Return `old` with the values of `new` for the keys that a reload applies."""
    sections: dict[str, dict[str, object]] = {}
    for key in KEYS.values():
        if key.reload:
            sections.setdefault(key.section, {})[key.attribute] = value_of(new, key)
    changed = {name: replace(getattr(old, name), **values) for name, values in sections.items()}
    return replace(old, **changed, peer_list=new.peer_list)


def in_force(old: LoadedConfig, new: LoadedConfig) -> LoadedConfig:
    """Return what holds after a reload: a key that waits for a restart keeps value and source."""
    _, waiting = diff(old.config, new.config)
    kept = {name: old.sources[name] for name in waiting}
    config = reloaded(old.config, new.config)
    return replace(new, config=config, sources={**new.sources, **kept})
