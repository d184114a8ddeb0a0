"""Which service a daemon is, by the file that it goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowmesh.base.constants import RELAY_CONFIG_FILE, SYSTEM_CONFIG_FILE
from shadowmesh.base.services import service_of

INIT = Path(__file__).parents[2] / "init"


@pytest.mark.parametrize("file", [RELAY_CONFIG_FILE, SYSTEM_CONFIG_FILE])
def test_each_service_is_named_as_the_unit_that_has_its_file(file):
    unit = INIT / f"{service_of(Path(file))}.service"
    assert f"--config {file}\n" in unit.read_text()


@pytest.mark.parametrize("file", [None, Path("/home/me/.shadowmesh/config.yaml")])
def test_a_daemon_with_any_other_file_counts_as_the_ordinary_one(file):
    assert service_of(file) == "shadowmesh"
