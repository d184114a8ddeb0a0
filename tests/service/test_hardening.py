"""Limits of the process."""

from __future__ import annotations

import resource
import subprocess
import sys

TRY: str = """
import resource
from shadowmesh.service.hardening import allow_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))
allow_descriptors()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_daemon_may_open_as_many_descriptors_as_it_is_allowed_to() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 256
    done = subprocess.run(
        [sys.executable, "-c", TRY], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "(256, 256)\n"
