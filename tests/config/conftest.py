"""Configurations out of a text, as the tests of this folder load them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowmesh import config
from shadowmesh.base.errors import ConfigError, Problem

HOME = {"HOME": "/home/somebody"}


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str | bytes, mode: int = 0o600) -> Path:
        path = tmp_path / "daemon.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return write


@pytest.fixture
def load(write):
    """Load a configuration from the text of a file, flags and environment."""

    def load(text: str | bytes = "", flags=None, environ=None, mode=0o600):
        return config.load(
            write(text, mode), flags or {}, {**HOME, **(environ or {})}, is_root=True
        )

    return load


@pytest.fixture
def problems(load):
    """Return the problems of a configuration that must be wrong."""

    def problems(text: str | bytes = "", flags=None, environ=None) -> tuple[Problem, ...]:
        with pytest.raises(ConfigError) as caught:
            load(text, flags, environ)
        return caught.value.problems

    return problems


@pytest.fixture
def problem(problems):
    """Return the only problem of a configuration that must be wrong in one way."""

    def problem(text: str | bytes = "", flags=None, environ=None) -> Problem:
        (only,) = problems(text, flags, environ)
        return only

    return problem
