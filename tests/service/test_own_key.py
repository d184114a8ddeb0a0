"""A list of peers that names this daemon itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shadowmesh.base.errors import ConfigError
from shadowmesh.config import load
from shadowmesh.keys.identity import Identity, format_public_key
from shadowmesh.service.daemon import _refuse_own_key

if TYPE_CHECKING:
    from pathlib import Path

OWN, OTHER = (Identity.from_seed(bytes(range(first, first + 32))).public_key for first in (0, 1))


def test_a_list_with_our_own_key_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text(
        "peers:\n"
        f'  - name: nas\n    public_key: "{format_public_key(OTHER)}"\n'
        f'  - name: here\n    public_key: "{format_public_key(OWN)}"\n'
    )
    loaded = load(file, {"daemon.state_dir": str(tmp_path)}, {})
    with pytest.raises(ConfigError) as caught:
        _refuse_own_key(loaded, OWN)
    assert caught.value.exit_code == 7
    [line] = caught.value.report().splitlines()
    assert line.startswith(f"{file}:4: peers: here has the public key of this daemon itself")
    _refuse_own_key(loaded, Identity.from_seed(bytes(range(2, 34))).public_key)


def test_without_a_list_the_handshake_finds_that_out(tmp_path: Path) -> None:
    flags = {"daemon.state_dir": str(tmp_path), "peer.public_key": format_public_key(OWN)}
    file = tmp_path / "daemon.yaml"
    file.write_text("")
    _refuse_own_key(load(file, flags, {}), OWN)
