"""Looking at configurations: printing one without secrets, comparing two.

Owns: the text of `--check`, its form as JSON, and which changes a reload can apply.
Does not know: how a configuration is loaded.
"""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

from shadowmesh.base.errors import one_line
from shadowmesh.config.model import Addresses, Config, HostPort, LoadedConfig, Secret
from shadowmesh.config.schema import KEYS, SECTIONS, Key
from shadowmesh.config.values import format_duration
from shadowmesh.keys import identity


def value_of(config: Config, key: Key) -> object:
    """Return the value that a key has in a configuration."""
    return getattr(getattr(config, key.section), key.attribute)


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
    if isinstance(value, (str, Path, HostPort, IPv4Interface, IPv6Interface, Secret)):
        return _quoted(str(value))
    raise TypeError(f"no rule to print a {type(value).__name__}")


def _quoted(text: str) -> str:
    # a JSON string of printable characters is a YAML string
    return json.dumps(text, ensure_ascii=False)


def redacted(loaded: LoadedConfig) -> str:
    """Return the configuration as YAML, each value with its source, for `--check`.

    The pre-shared key is `"***"` or, when unset, `""`; nothing else is secret.
    """
    lines = [one_line(f"# file: {loaded.path or 'none'}")]
    for section in SECTIONS:
        lines.append(f"{section}:")
        for key in KEYS.values():
            if key.section == section:
                text = f"  {key.attribute}: {render(value_of(loaded.config, key))}"
                lines.append(f"{text}  # {one_line(loaded.sources[key.name])}")
    return "\n".join(lines) + "\n"


def as_json(loaded: LoadedConfig) -> dict[str, Any]:
    """Return what `redacted` says as JSON has it: the file, and each key's value and source.

    A duration stays text, such as "5s".
    """
    values = {
        key.name: {
            "value": _plain(render(value_of(loaded.config, key))),
            "source": loaded.sources[key.name],
        }
        for key in KEYS.values()
    }
    return {"file": None if loaded.path is None else str(loaded.path), "values": values}


def _plain(rendered: str) -> Any:
    try:
        return json.loads(rendered)
    except ValueError:
        return rendered


def diff(old: Config, new: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys whose value differs: those a reload applies, those that need a restart."""
    changed = [key for key in KEYS.values() if value_of(old, key) != value_of(new, key)]
    return (
        tuple(key.name for key in changed if key.reload),
        tuple(key.name for key in changed if not key.reload),
    )


def reloaded(old: Config, new: Config) -> Config:
    """Return `old` with the values of `new` for the keys that a reload applies."""
    sections: dict[str, dict[str, object]] = {}
    for key in KEYS.values():
        if key.reload:
            sections.setdefault(key.section, {})[key.attribute] = value_of(new, key)
    changed = {name: replace(getattr(old, name), **values) for name, values in sections.items()}
    return replace(old, **changed)


def in_force(old: LoadedConfig, new: LoadedConfig) -> LoadedConfig:
    """Return what holds after a reload: a key that waits for a restart keeps value and source."""
    _, waiting = diff(old.config, new.config)
    kept = {name: old.sources[name] for name in waiting}
    config = reloaded(old.config, new.config)
    return replace(new, config=config, sources={**new.sources, **kept})
